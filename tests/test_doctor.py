"""The doctor, on this machine and on worse ones."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from rlhf_kit import cli, doctor
from rlhf_kit.doctor import Finding


def test_this_machine_can_train_and_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["able"] is True
    found = {finding["name"]: finding for finding in said["findings"]}
    assert found["torch"] == {"name": "torch", "ok": True, "value": metadata.version("torch"), "advice": ""}
    machine = {"python", "platform", "cores", "memory", "device", "bf16", "disk, here", "disk, cache"}
    optional = {"bitsandbytes", "deepspeed", "starlette", "openai", "lm_eval", "C++ compiler", "ninja", "Hub"}
    assert machine | optional | {"transformers", "trl", "peft"} <= found.keys()
    broken = [finding for finding in said["findings"] if "Error: " in finding["value"]]
    assert broken == [], "a probe of our own failed"
    assert "HF_HUB_OFFLINE" in found["Hub"]["value"], "tests are offline, so it must not have asked"


@pytest.mark.parametrize("gone", doctor.REQUIRED)
def test_without_a_needed_package_nothing_can_be_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == gone:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "_PROBES", {"packages": doctor._packages})
    assert cli.main(["doctor"]) == 2
    assert f"missing  {gone:<16} not installed; pip install rlhf-kit\n" in capsys.readouterr().out


def test_an_optional_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.is_able([Finding("deepspeed", False, "not installed"), Finding("torch", True, "2.13")])


def test_a_version_outside_the_range_is_missing() -> None:
    from packaging.specifiers import SpecifierSet

    found = doctor._package("pytest", SpecifierSet("<1"), "")
    assert not found.ok
    assert found.value == f"{metadata.version('pytest')}, but <1 is needed"


def test_a_probe_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("half", True, "seen")
        raise OSError("libcudart.so: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor, "_PROBES", {"device": broken, "python": doctor._python})
    names = {finding.name: finding for finding in doctor.examine()}
    assert names["device"].value == "OSError: libcudart.so: cannot open shared object file"
    assert not names["device"].ok and names["python"].ok


def test_a_torch_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (found,) = doctor._devices()
    assert found.name == "torch" and not doctor.is_able([found])


def test_a_small_disk_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 1024**3})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = doctor._room("disk, here", tmp_path)
    assert not found.ok and "1.0 GB free" in found.value and found.advice


class _Answers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/" else 403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_hub_that_answers_refuses_or_is_silent(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    assert doctor._knock(server + "/") == ""
    assert "403" in doctor._knock(server + "/closed")
    monkeypatch.setattr(doctor, "_HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert doctor._knock(address) != ""
    assert "cannot be reached" in doctor._knock(address)
