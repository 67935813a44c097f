"""A real Label Studio server for the tests, in an environment of its own that is made once, with its empty database."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from vllm_server import free_port

from rlhf_kit.errors import ExportError
from rlhf_kit.export.environments import Environment, python_of
from rlhf_kit.models.sources import made_once

STUDIO = Environment(
    name="label-studio",
    requirements=("label-studio==1.23.2",),
    sees_ours=False,  # a hundred packages come along
    words="Label Studio, 1 GB on disk",
)
PATIENCE = 180  # seconds for a start; 12 to 18 on two busy cores
MAIN = "from label_studio.server import main; main()"  # the script beside the interpreter names another directory
QUIET = {
    "COLLECT_ANALYTICS": "false",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
}
"""It tells nobody that it runs, and asks nobody."""


@functools.cache
def _made() -> tuple[Path, Path] | ExportError:
    """The interpreter, and a directory with a database without anybody in it; tried once a test run."""
    before = os.environ.get("PIP_NO_COMPILE")
    os.environ["PIP_NO_COMPILE"] = "1"  # most of its packages are never imported
    try:
        python = python_of(STUDIO)
    except ExportError as failure:
        return failure
    finally:
        os.environ.pop("PIP_NO_COMPILE")
        if before is not None:
            os.environ["PIP_NO_COMPILE"] = before
    empty = STUDIO.directory.with_name(f"{STUDIO.directory.name}-empty")
    if not empty.is_dir():
        with made_once(empty) as scratch:  # hundreds of migrations
            command = [str(python), "-c", MAIN, "version", "--data-dir", str(scratch)]
            subprocess.run(command, env=_environment(), check=True, capture_output=True, timeout=600)
    return python, empty


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LABEL_STUDIO"))}
    return ours | QUIET


@dataclass
class LabelStudio:
    """`label-studio start` on 127.0.0.1 with one user; with `with`, from its start to its end.

    Args:
        folder: for its database and its log; not there yet.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    email: str = "anna@example.org"
    password: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LabelStudio:
        made = _made()
        if isinstance(made, ExportError):
            pytest.skip(f"there is no Label Studio here: {made}")
        python, empty = made
        shutil.copytree(empty, self.folder)
        command = [str(python), "-c", MAIN, "start", "--data-dir", str(self.folder), "--no-browser"]
        command += ["--internal-host", "127.0.0.1", "--port", str(self.port), "--username", self.email]
        command += ["--password", self.password, "--user-token", self.token, "--enable-legacy-api-token"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, env=_environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self.process is not None and self.process.poll() is None, self._said()
            assert time.monotonic() < deadline, self._said()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)

    def _said(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """What the API answers to JSON, by default to GET or POST."""
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._ask(path, data, "application/json", method))

    def _ask(self, path: str, data: bytes | None, kind: str, method: str | None = None) -> bytes:
        headers = {"Authorization": f"Token {self.token}", "Content-Type": kind}
        asked = urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def project(self, title: str, tasks: Path, configuration: Path) -> int:
        """A new project with a file of tasks, uploaded as the page does it; returns its number."""
        project: int = self.ask("projects", {"title": title})["id"]
        config = configuration.read_text(encoding="utf-8")
        self.ask(f"projects/{project}", {"label_config": config}, "PATCH")  # an error where it is not valid
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{tasks.name}"\r\n'
        form = (
            f"{head}Content-Type: application/json\r\n\r\n".encode()
            + tasks.read_bytes()
            + f"\r\n--{edge}--\r\n".encode()
        )
        told = json.loads(self._ask(f"projects/{project}/import", form, f"multipart/form-data; boundary={edge}"))
        assert told["task_count"] == len(json.loads(tasks.read_text(encoding="utf-8")))
        return project

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """In the order of the file."""
        found: list[dict[str, Any]] = self.ask(f"tasks?project={project}&page_size=100")["tasks"]
        return sorted(found, key=lambda one: int(one["id"]))

    def export(self, project: int, layout: str, out: Path) -> str:
        """As the export dialog does it, with `layout` `JSON` or `JSON_MIN`; returns the file."""
        out.write_bytes(self._ask(f"projects/{project}/export?exportType={layout}", None, "application/json"))
        return str(out)
