"""Pushing exports: the real `huggingface_hub` client, by Git LFS and by hf_xet, against a server of ours."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub, Fault
from fake_hub_store import Repo
from huggingface_hub import constants

from rlhf_kit.checkpoint import Manifest, finish
from rlhf_kit.errors import ExportError
from rlhf_kit.export.hub import RECORD, is_export, push

NAME = "someone/policy"
CARD = "---\nbase_model: org/base\nlicense: apache-2.0\ntags: [lora, rlhf]\n---\n# A policy\n"
BASE = {"id": "org/base", "name_or_path": "pypi:base#b.gguf", "revision": None, "sha256": "ab", "dtype": "float32"}
# hf_xet's own pauses are seconds; one upload at a time makes it certain which piece is whole when a fault comes.
XET = {
    "HF_XET_XORB_COMPRESSION_POLICY": "none",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "HF_XET_CLIENT_AC_INITIAL_UPLOAD_CONCURRENCY": "1",
    "HF_XET_CLIENT_AC_MAX_UPLOAD_CONCURRENCY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Large files go by Git LFS, those over a megabyte in parts. Whatever is not at 127.0.0.1 cannot be reached."""
    made = FakeHub(part_size=1_000_000)
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name, value in {**XET, "HF_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    look_up = socket.getaddrinfo

    def only_here(host: Any, *others: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"traffic to {host}"
        return look_up(host, *others, **more)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    yield made
    made.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made, the library's and ours."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture(params=["lfs", "xet"])
def way(request: pytest.FixtureRequest, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """By what large files go."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


def export(
    directory: Path,
    *,
    sizes: tuple[int, ...] = (1000,),
    card: str = CARD,
    base: str = "org/base",
    stage: str = "export",
) -> Path:
    """A finished export with weights of these sizes, which hold nothing that can be compressed."""
    work = directory.with_name(f".{directory.name}.partial")
    (work / "value").mkdir(parents=True)
    for number, size in enumerate(sizes):
        content = random.Random(size).randbytes(size)
        (work / ("value" * (number > 0)) / "adapter_model.safetensors").write_bytes(content)
    (work / "README.md").write_text(card, encoding="utf-8")
    (work / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    recipe = {"data": {"rankings": "/secret/place/rankings.jsonl"}, "output_dir": "/secret/place/run"}
    finish(work, directory, Manifest(stage, {}, {"max_difference": 0.5}, 1.0, BASE, {"ppo": "../ppo"}, recipe))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -------------------------------------------------------------------- what arrives


def test_files_arrive_as_they_are_in_one_commit_of_a_private_repository(tmp_path: Path, hub: FakeHub, way: str) -> None:
    run = export(tmp_path / "out", sizes=(2_500_000, 1000))
    (run / ".cache" / "huggingface").mkdir(parents=True)
    (run / ".cache" / "huggingface" / "scratch.safetensors").write_bytes(b"x")
    (run / ".DS_Store").write_bytes(b"x")
    before = contents(run)

    address = push(run, NAME)
    repo = hub.store.repos[NAME]
    assert address == f"{hub.url}/{NAME}/commit/{1:040x}" and [branch for branch, _ in repo.commits] == ["main"]
    assert repo.private and json.loads(hub.requests("POST /api/repos/create")[0].body)["visibility"] == "private"
    weights = {"adapter_model.safetensors", "value/adapter_model.safetensors"}
    assert set(repo.files) == weights | {"README.md", "adapter_config.json", RECORD}
    assert all(repo.files[name] == before[name] for name in set(repo.files) - {RECORD})
    assert len(hub.requests("PUT /storage/lfs/")) == (3 + 1 if way == "lfs" else 0)
    assert len(hub.requests("PUT /storage/xorb/")) == (1 if way == "xet" else 0)
    assert contents(run) == before

    # The token goes to the Hub and not to where the bytes are kept.
    with_token = [seen.what for seen in hub.seen if seen.authorization == f"Bearer {TOKEN}"]
    assert with_token and not [what for what in with_token if "/storage/" in what or "/cas/" in what]

    hub.seen.clear()
    assert push(run, NAME) == address  # nothing new, no commit
    assert hub.received() == 0 and len(repo.commits) == 1


def test_what_stands_for_the_manifest_names_nothing_of_the_machine(tmp_path: Path, hub: FakeHub) -> None:
    run = export(tmp_path / "out")
    push(run, NAME)
    sent = hub.store.repos[NAME].files[RECORD]
    record = json.loads(sent)
    assert record["base"] == {key: BASE.get(key) for key in ("id", "revision", "sha256", "dtype", "quantization")}
    digest = hashlib.sha256((run / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert record["files"] == {"adapter_model.safetensors": digest}
    assert record["metrics"] == {"max_difference": 0.5} and record["versions"]["rlhf_kit"] == "0.1.0"
    for content in [*hub.store.repos[NAME].files.values(), *(seen.body for seen in hub.seen)]:
        assert not [place for place in ("/secret/", "../ppo", str(tmp_path)) if place.encode() in content]


def test_a_branch_is_made_and_main_left_alone(tmp_path: Path, hub: FakeHub) -> None:
    run = export(tmp_path / "out")
    push(run, NAME, revision="trial")
    push(run, NAME, revision="trial")
    repo = hub.store.repos[NAME]
    assert repo.commits == [("trial", "Export of rlhf_kit, verified")]
    assert repo.files == {} and "README.md" in repo.branches["trial"]


def test_a_bare_name_is_one_of_the_tokens_owner(tmp_path: Path, hub: FakeHub) -> None:
    push(export(tmp_path / "out"), "policy")
    assert "README.md" in hub.store.repos["someone/policy"].files


# -------------------------------------------------------------------- who may see it


def test_a_public_repository_is_not_pushed_to_unasked(tmp_path: Path, hub: FakeHub) -> None:
    hub.store.repos[NAME] = Repo(private=False)
    run = export(tmp_path / "out")
    with pytest.raises(ExportError, match=f"{NAME}: exists and is public, and a private push was asked for"):
        push(run, NAME)
    assert hub.store.repos[NAME] == Repo(private=False) and not hub.requests("preupload")
    push(run, NAME, private=False)
    assert hub.store.repos[NAME].commits and not hub.store.repos[NAME].private


def test_public_where_it_is_asked_for_and_new(tmp_path: Path, hub: FakeHub) -> None:
    run = export(tmp_path / "out")
    push(run, NAME, private=False)
    assert not hub.store.repos[NAME].private
    hub.store.repos["someone/kept"] = Repo(private=True)
    push(run, "someone/kept", private=False)
    assert hub.store.repos["someone/kept"].private and hub.store.repos["someone/kept"].commits


# -------------------------------------------------------------------- interrupted


def large(tmp_path: Path, way: str, hub: FakeHub) -> tuple[Path, list[Fault]]:
    """An export of two pieces, and what cuts the second off for good: of Git LFS a file is a piece, of xet 64 MB."""
    if way == "xet":
        # The second piece is known by its size, and is cut off once the first is there: both are sent at the same time,
        # and with one the client gives up the other.
        how = {"after": 1_000_000, "held": hub.stored}
        cut = [Fault("PUT /storage/xorb/", below=32_000_000, **how), Fault("POST /cas/v1/xorbs/", **how)]
        return export(tmp_path / "out", sizes=(70_000_000,)), cut
    run = export(tmp_path / "out", sizes=(900_000, 3_000_000))
    second = hashlib.sha256((run / "value" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return run, [Fault(f"PUT /storage/lfs/{second}/", skip=1, after=500_000)]


def only_the_second_piece_is_sent(hub: FakeHub, way: str) -> bool:
    """Of xet, what is behind the first 64 MB, with 8 bytes for each chunk of at least 8 KB."""
    return hub.received() == 3_000_000 if way == "lfs" else 2_500_000 < hub.received() < 3_100_000


def test_a_push_that_broke_off_goes_on_with_what_is_missing(
    tmp_path: Path, hub: FakeHub, way: str, slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    run, hub.faults = large(tmp_path, way, hub)
    before = contents(run)
    with pytest.raises(ExportError) as refused:
        push(run, NAME)
    line = str(refused.value)
    assert line.startswith(f"{NAME}: not pushed: no connection to {hub.url}, or it broke off; check the network (")
    assert line.endswith(f"{run} is as it was, and the same command goes on from what was sent") and "\n" not in line
    ours = [record.message for record in caplog.records if record.name == "rlhf_kit.export.hub"]
    assert [message.rsplit("; ")[-1] for message in ours] == ["once more in 5 seconds", "once more in 20 seconds"]
    assert not hub.store.repos[NAME].commits and contents(run) == before

    hub.faults = []
    hub.seen.clear()
    push(run, NAME)
    assert only_the_second_piece_is_sent(hub, way)
    repo = hub.store.repos[NAME]
    assert len(repo.commits) == 1
    assert all(repo.files[name] == content for name, content in before.items() if name != "manifest.json")


COMMAND = (
    "import logging, sys; from pathlib import Path; logging.basicConfig(level=logging.DEBUG);"
    "from rlhf_kit.export.hub import push; print(push(Path(sys.argv[1]), sys.argv[2]))"
)


def start(hub: FakeHub, run: Path, way: str) -> subprocess.Popen[bytes]:
    """The same push as a process of its own, as talkative as it can be; what it prints goes to `printed`."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(run.parent / "home"),
        "HF_HUB_DISABLE_XET": str(int(way == "lfs")),
        "HF_HUB_VERBOSITY": "debug",
        "HF_DEBUG": "1",
        "RUST_LOG": "trace",
    }
    with (run.parent / "printed").open("ab") as printed:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(run), NAME], env=environment, stdout=printed, stderr=printed
        )


def test_a_push_that_was_killed_goes_on_and_its_token_is_nowhere(tmp_path: Path, hub: FakeHub, way: str) -> None:
    run, hub.faults = large(tmp_path, way, hub)
    before = contents(run)
    hub.faults[0].held = threading.Event()
    killed = start(hub, run, way)
    assert hub.faults[0].reached.wait(60)
    wait_for(hub, way)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    hub.faults[0].held.set()
    assert not hub.store.repos[NAME].commits and contents(run) == before

    hub.faults = []
    hub.seen.clear()
    if way == "xet":
        assert start(hub, run, way).wait(60) == 0
        assert f"{hub.url}/{NAME}/commit/{1:040x}" in (tmp_path / "printed").read_text().splitlines()
    else:
        push(run, NAME)  # the same, and seconds faster
    assert only_the_second_piece_is_sent(hub, way)
    sent = hub.store.repos[NAME].files
    assert all(sent[name] == content for name, content in before.items() if name != "manifest.json")

    assert contents(run) == before
    assert b"authenticated: True" in (tmp_path / "printed").read_bytes()  # the debug log is there
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in written if path.suffix == ".log"] or way == "lfs"  # hf_xet's own
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert not [name for name, content in sent.items() if TOKEN.encode() in content]


def wait_for(hub: FakeHub, way: str) -> None:
    """Until the first piece is whole on the server."""
    end = time.monotonic() + 20
    while not (hub.store.xorbs if way == "xet" else hub.store.objects):
        assert time.monotonic() < end
        time.sleep(0.01)


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("POST /api/repos/create", 401, "the Hub does not know this token"),
        ("preupload", 403, "this token may not write there"),
        ("preupload", 404, "the Hub has no such repository or branch"),
        ("commit", 409, "somebody else is changing the repository"),
        ("PUT /storage/", 413, "a file is larger than the Hub takes"),
        ("commit", 418, "the Hub refuses this"),
        ("GET /api/models/", 429, "the Hub takes no more requests of this account for now"),
        ("info/lfs", 503, "the Hub has trouble of its own"),
    ],
)
def test_each_refusal_is_one_line_that_says_what_to_do(
    tmp_path: Path, hub: FakeHub, slept: list[float], where: str, status: int, words: str
) -> None:
    hub.faults = [Fault(where, status, body=b'{"error": "as  the server\\nsays"}')]
    run = export(tmp_path / "out")
    before = contents(run)
    with pytest.raises(ExportError) as refused:
        push(run, NAME)
    line = str(refused.value)
    assert line.startswith(f"{NAME}: not pushed: HTTP {status}: {words}") and "\n" not in line
    assert "(as the server says)" in line and line.endswith("the same command goes on from what was sent")
    assert refused.value.__cause__ is None and refused.value.__context__ is None  # a library's error holds the request
    assert [pause for pause in slept if pause in (5.0, 20.0)] == ([5.0, 20.0] if status in (429, 503) else [])
    assert contents(run) == before
    hub.faults = []
    push(run, NAME)
    assert hub.store.repos[NAME].files["README.md"] == before["README.md"]


def test_hf_xet_says_why_in_its_text_alone(
    tmp_path: Path, hub: FakeHub, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    run = export(tmp_path / "out", sizes=(2_000,))
    hub.faults = [Fault("xet-write-token", 403)]
    with pytest.raises(ExportError, match="not pushed: HTTP 403: this token may not write there; give it the right at"):
        push(run, NAME)
    assert slept == []
    hub.faults = [Fault("/cas/v1/shards", 500)]
    with pytest.raises(ExportError, match="not pushed: HTTP 500: the Hub has trouble of its own"):
        push(run, NAME)
    assert slept == [5.0, 20.0] and len(hub.requests("PUT /storage/xorb/")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /api/repos/create", 500, times=1),
        Fault("GET /api/models/", 429, times=1),
        Fault("validate-yaml", 502, times=1, body=b"<html>Bad gateway</html>"),
        Fault("preupload", 429, times=2),
        Fault("PUT /storage/", after=1, times=1),
        Fault("commit", 503, times=1),
        Fault("commit", times=1),
        Fault("commit", times=1, lost=True),
    ],
)
def test_what_passes_is_waited_for(tmp_path: Path, hub: FakeHub, slept: list[float], fault: Fault) -> None:
    hub.faults = [fault]
    run = export(tmp_path / "out")
    assert push(run, NAME) == f"{hub.url}/{NAME}/commit/{1:040x}"
    assert slept and not fault.times  # and it did happen
    assert len(hub.store.repos[NAME].commits) == 1  # not two where the first was met and its answer lost


def test_no_network_is_said_at_once(tmp_path: Path, hub: FakeHub, slept: list[float]) -> None:
    hub.close()
    with pytest.raises(ExportError, match=f"no connection to {hub.url}, or it broke off; check the network .*refused"):
        push(export(tmp_path / "out"), NAME)
    assert slept == []


def test_the_hubs_own_check_of_the_card_comes_before_any_file(tmp_path: Path, hub: FakeHub) -> None:
    run = export(tmp_path / "out", card=CARD.replace("apache-2.0", "unheard-of"))
    with pytest.raises(ExportError, match=r'not pushed: Invalid metadata in README.md. - "license" must be one of'):
        push(run, NAME)
    assert not hub.requests("preupload") and hub.received() == 0


# -------------------------------------------------------------------- the token


def test_no_token_says_how_to_give_one(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ExportError, match="no token for the Hub: set HF_TOKEN or run `hf auth login`"):
        push(export(tmp_path / "out"), NAME)
    assert hub.seen == []


def test_offline_is_said(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set: nothing can be pushed; unset it"):
        push(export(tmp_path / "out"), NAME)
    assert hub.seen == []


@pytest.mark.parametrize("token", ["hf_a\tb", "hf_ä", "hf a"])
def test_a_token_that_no_header_takes_is_not_printed(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ExportError, match="holds characters that no token has") as refused:
        push(export(tmp_path / "out"), NAME)
    assert token not in str(refused.value) and hub.seen == []


def test_a_server_that_repeats_the_token_does_not_make_us_print_it(
    tmp_path: Path,
    hub: FakeHub,
    slept: list[float],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.faults = [Fault("POST /api/repos/create", 500, body=json.dumps({"error": f"bad token {TOKEN}"}).encode())]
    with caplog.at_level(logging.DEBUG), pytest.raises(ExportError, match=r"\(bad token \(the token\)\)") as refused:
        push(export(tmp_path / "out"), NAME)
    assert TOKEN not in str(refused.value) + caplog.text + "".join(capfd.readouterr())
    assert caplog.text.count("bad token (the token)") == 2


# -------------------------------------------------------------------- what is no export, or none for others


def refusal(directory: Path, name: str = NAME) -> str:
    with pytest.raises(ExportError) as refused:
        push(directory, name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_only_what_was_verified_is_pushed(tmp_path: Path, hub: FakeHub) -> None:
    (tmp_path / "empty").mkdir()
    assert "not a finished export (no manifest.json); make one with `rlhf-kit export" in refusal(tmp_path / "empty")
    assert "not a finished export" in refusal(tmp_path / "nowhere")
    stage = export(tmp_path / "ppo", stage="ppo")
    assert not is_export(stage) and not is_export(tmp_path / "empty")
    assert "the run directory of stage ppo, not an export" in refusal(stage)
    run = export(tmp_path / "out")
    assert is_export(run)
    (run / "extra.gguf").write_bytes(b"GGUF")
    assert "extra.gguf: not there when the export was verified" in refusal(run)
    (run / "extra.gguf").unlink()
    (run / "adapter_model.safetensors").write_bytes(b"changed")
    assert "missing or changed since" in refusal(run)
    assert "not the name of a repository" in refusal(run, "some/one/policy")
    assert hub.seen == []


@pytest.mark.parametrize("base", ["/models/llama", "./llama", "C:\\models\\llama", "models/tiny", "b", "", None])
def test_a_base_on_this_machine_is_refused(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, base: str | None
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if base == "b":  # the name that the kit makes of the file /models/b.gguf
        monkeypatch.setitem(BASE, "id", "b")
        monkeypatch.setitem(BASE, "name_or_path", "/models/b.gguf")
    line = refusal(export(tmp_path / "out", base=base))
    assert f"adapter_config.json: base_model_name_or_path: {base!r} is not a model of the Hub" in line
    assert "set model.base_id" in line and hub.seen == []


def test_a_whole_model_made_from_a_local_base_is_pushed_without_its_name(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASE, "id", "b")
    monkeypatch.setitem(BASE, "name_or_path", "/models/b.gguf")
    run = export(tmp_path / "out", card="---\nlicense: mit\n---\n")
    (run / "adapter_config.json").unlink()
    push(run, NAME)
    assert json.loads(hub.store.repos[NAME].files[RECORD])["base"]["id"] is None


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("base_model: /models/llama", "base_model: '/models/llama' is not the name of a repository"),
        ("base_model: [a/b, 'a b']", "base_model: 'a b' is not the name of a repository"),
        ("datasets: data/rankings/x.jsonl", "datasets: 'data/rankings/x.jsonl' is not the name"),
        ("license: Apache License 2.0", "license: 'Apache License 2.0' is not an identifier of the Hub"),
        ("license: other", "license: other needs license_name"),
        ("license: 2", "license: must be a text"),
        ("language: {en: true}", "language: must be a text or a list of texts"),
        ("tags: [1]", "tags: must be a text or a list of texts"),
        ("tags: [lora", "its metadata cannot be read"),
        ("- lora", "its metadata cannot be read: repo card metadata block should be a dict"),
        ("", "no metadata"),
    ],
)
def test_metadata_that_the_hub_would_refuse(tmp_path: Path, hub: FakeHub, metadata: str, words: str) -> None:
    assert f"README.md: {words}" in refusal(export(tmp_path / "out", card=f"---\n{metadata}\n---\n# A policy\n"))
    assert hub.seen == []


def test_a_card_is_needed(tmp_path: Path, hub: FakeHub) -> None:
    run = export(tmp_path / "out")
    (run / "README.md").unlink()
    assert "README.md: missing" in refusal(run)


def test_a_text_that_names_a_directory_of_this_machine_is_refused(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    run = export(tmp_path / "out", card=f"{CARD}\nTrained on /home/me/data/rankings.jsonl.\n")
    assert re.search(r"README.md:8: names /home/me, a directory of this machine, .* take it out", refusal(run))
    (run / "README.md").write_text(f"{CARD}\nOf /home/men/ it is not.\n")
    (run / "config.json").write_text(json.dumps({"_name_or_path": f"{run}/x"}))
    assert f"config.json:1: names {run}, a directory" in refusal(run)
    (run / "config.json").unlink()
    push(run, NAME)
