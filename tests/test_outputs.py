"""Outputs that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf_kit.errors import DataError
from rlhf_kit.outputs import Files, check_outputs


def write(path: Path) -> None:
    with Files([path]) as files:
        files.write(path, b"new\n")


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    write(out)
    assert out.read_bytes() == b"new\n"
    with pytest.raises(KeyError), Files([out]) as files:
        files.write(out, b"half")
        raise KeyError
    assert out.read_bytes() == b"new\n" and [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """As root, `--out /dev/null` would put a file in the place of the device."""
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    device, pipes = Path("/dev/null"), "is a device or a pipe"
    for path, reason in ((pipe, pipes), (device, pipes), (folder, "is a directory")):
        for refused in (lambda path=path: write(path), lambda path=path: check_outputs([], [path])):
            with pytest.raises(DataError, match=f"^{path}: {reason}; name a file$"):
                refused()
    assert pipe.is_fifo() and folder.is_dir() and device.is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_what_cannot_be_written_has_the_name_that_was_asked_for(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"/file: cannot be written: (File exists|Not a directory)"):
        write(tmp_path / "file" / "out.jsonl")
    long = tmp_path / ("x" * 250)
    with pytest.raises(DataError) as caught:
        write(long)
    assert str(caught.value) == f"{long}: cannot be written: File name too long"
