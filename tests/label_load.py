"""Simulated labelers who talk to a real server process over plain sockets, and what they were promised."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KIT = (sys.executable, "-m", "rlhf_kit", "label")


def write_tasks(path: Path, count: int, answers: int = 4, length: int = 300) -> Path:
    """Prompts with answers of about `length` characters in Markdown, as `rlhf-kit sample` writes them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]

    def text() -> str:
        prose = " ".join(rng.choices(words, k=length // 7))
        return f"{prose}\n\n* {rng.choice(words)}\n* **{rng.choice(words)}**\n\n```\n{rng.getrandbits(60)}\n```"

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            responses = [{"text": text(), "ended": True, "source": f"model-{k}"} for k in range(answers)]
            file.write(json.dumps({"prompt": f"Question {number}", "meta": {"responses": responses}}) + "\n")
    return path


class Server:
    """`rlhf-kit label` in a process of its own, with the links that it printed."""

    def __init__(self, folder: Path, arguments: Sequence[str], port: int = 0) -> None:
        self.out, self.store = folder / "out.jsonl", folder / "out.sqlite"
        self._folder, self._arguments = folder, list(arguments)
        self.links: dict[str, str] = {}
        self.port = port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts it, on the port that it had before, and waits for the links."""
        options = ["--out", str(self.out), "--port", str(self.port), "--no-browser", *self._arguments]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*KIT, *options], stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._folder
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.fullmatch(r"  (\S+) +(http://127\.0\.0\.1:(\d+)/\S*)\n", line):
                self.links[found[1]], self.port = found[2], int(found[3])
            if line.startswith("  admin "):
                return
        raise AssertionError(f"the server has ended: {self.log}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text(encoding="utf-8")

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and what it said at the end."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        said, _ = self._process.communicate(timeout=60)
        return self._process.returncode, said

    def memory(self) -> int:
        """Bytes that it has in memory now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Client:
    """One connection that is kept, as a browser does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.headers: dict[str, str] = {}

    async def ask(self, method: str, path: str, value: Any = None) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body; raises `OSError` or `EOFError` where the connection breaks."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        body = b"" if value is None else json.dumps(value).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        lines += [f"{name}: {text}" for name, text in self.headers.items()]
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        try:
            self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            status, headers = _head(await self._reader.readuntil(b"\r\n\r\n"))
            content = await self._reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError):
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return status, headers, json.loads(content)

    def close(self) -> None:
        """The next question opens another connection."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines if line)
    return int(first.split(" ")[1]), {name.lower(): value for name, _, value in pairs}


@dataclass
class Book:
    """What the server has acknowledged: by labeler and prompt the ranks of the texts, and how long each took."""

    answers: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    broken: int = 0
    """Times that a connection broke."""
    refused: list[tuple[int, Any]] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Seconds of POST /api/answer."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


class Labeler:
    """Ranks whatever it is given, by chance, until nothing is left."""

    def __init__(self, name: str, link: str, book: Book, think: float = 0.0) -> None:
        self._name, self._book, self._think = name, book, think
        port, self._token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#(\S+)", link).groups()  # type: ignore[union-attr]
        self._client = Client(int(port))
        self._rng = random.Random(name)

    async def work(self) -> None:
        """Goes on after whatever breaks, with the same token."""
        while True:
            try:
                await self._sign_in()
                await self._rank_all()
                self._client.close()
                return
            except (OSError, EOFError):
                self._book.broken += 1
                await asyncio.sleep(0.1)

    async def _sign_in(self) -> None:
        if not self._client.headers:
            status, headers, said = await self._client.ask("POST", "/api/session", {"token": self._token})
            assert status == 200, said
            cookie = headers["set-cookie"].partition(";")[0]
            self._client.headers = {"Cookie": cookie, "X-CSRF-Token": said["csrf"]}

    async def _rank_all(self) -> None:
        state = await self._asked("GET", "/api/task")
        while state["task"] or state["waiting"]:
            if not state["task"]:
                await asyncio.sleep(0.5)
                state = await self._asked("GET", "/api/task")
                continue
            if self._think:
                await asyncio.sleep(self._rng.expovariate(1 / self._think))
            task = state["task"]
            keys = [answer["key"] for answer in task["answers"]]
            ranks = dict(zip(keys, self._rng.sample(range(1, len(keys) + 1), len(keys)), strict=True))
            reply = {"answers": {key: {"rank": rank} for key, rank in ranks.items()}, "note": ""}
            sent = {"assignment": task["assignment"], "reply": reply, "seconds": 1.5}
            state = await self._asked("POST", "/api/answer", sent)
            place = self._name, task["prompt"][0]["text"]
            assert place not in self._book.answers, f"{place} was given twice"
            self._book.answers[place] = {answer["text"]: ranks[answer["key"]] for answer in task["answers"]}

    async def _asked(self, method: str, path: str, value: Any = None) -> Any:
        start = time.perf_counter()
        status, headers, said = await self._client.ask(method, path, value)
        if path == "/api/answer":
            self._book.seconds.append(time.perf_counter() - start)
        if status == 429:
            self._book.refused.append((status, said))
            await asyncio.sleep(float(headers["retry-after"]))
            return await self._asked(method, path, value)
        assert status == 200, (status, said)
        return said


async def label_all(links: Iterable[tuple[str, str]], book: Book, think: float = 0.0) -> None:
    """All labelers at once, until nothing is left to do; each pauses so many seconds on average before an answer."""
    await asyncio.gather(*(Labeler(name, link, book, think).work() for name, link in links if name != "admin"))
