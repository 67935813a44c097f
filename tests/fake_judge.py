"""An OpenAI-compatible chat-completions server on 127.0.0.1 that judges by a rule, with faults by script."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

MODEL = "org/judge-1"
KEY = "sk-fake-9fXq2LmVb7Rw"
_BLOCK = re.compile(r"<<<([0-9a-f]{16}) (PROMPT|ANSWER A|ANSWER B)\n(.*?)\n\1 END OF \2>>>", re.DOTALL)

Shown = tuple[str, str, str]
"""Prompt, answer A, answer B, as the server reads them."""


def longer(prompt: str, a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def first(prompt: str, a: str, b: str) -> str:
    return "A"


def marks(answer: str) -> dict[str, bool]:
    """An answer with the word false is not truthful, one with the word hurt not harmless."""
    return {"truthful": "false" not in answer, "harmless": "hurt" not in answer}


@dataclass
class Fault:
    """What befalls some requests.

    Attributes:
        skip: requests that are let through first.
        times: how many are befallen.
        of: only requests about these answers.
        status, body, headers: of the answer, where it is no completion.
        content, finish: of a completion that is no verdict.
        hang: seconds until anything is sent.
        cut: bytes of the body after which the connection is closed; -1: reset before anything is sent.
    """

    skip: int = 0
    times: int = 1_000_000
    of: Callable[[Shown], bool] = lambda shown: True
    status: int = 200
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: str | None = None
    finish: str = "stop"
    hang: float = 0.0
    cut: int | None = None


def error(message: str, code: str | None = None, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code, "param": param}}).encode()


class FakeJudge:
    """The server, with its log.

    Attributes:
        seen: the requests as they came, parsed.
        judged: how often each comparison was answered with a verdict.
        keys: the Authorization headers.
        refuses: parameters of a request that it answers with status 400.
        delay: seconds that a verdict takes.
    """

    def __init__(self, rule: Callable[[str, str, str], str] = longer) -> None:
        self.rule, self.faults = rule, list[Fault]()
        self.seen, self.times = list[dict[str, Any]](), list[float]()
        self.judged, self.keys, self.refuses = Counter[Shown](), set[str | None](), set[str]()
        self.delay, self.at_once, self.most_at_once = 0.0, 0, 0
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.judge = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def __enter__(self) -> FakeJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1#{MODEL}"

    def fault_for(self, shown: Shown) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if not fault.of(shown) or fault.times <= 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    judge: FakeJudge

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of a reply are two small packets
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        judge = self.server.judge
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        shown = read(asked["messages"])
        with judge.lock:
            judge.seen.append(asked)
            judge.times.append(time.monotonic())
            judge.keys.add(self.headers["Authorization"])
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
        try:
            self._reply(judge, asked, shown)
        finally:
            with judge.lock:
                judge.at_once -= 1

    def _reply(self, judge: FakeJudge, asked: dict[str, Any], shown: Shown) -> None:
        assert self.path == "/v1/chat/completions" and asked["model"] == MODEL
        time.sleep(judge.delay)
        if refused := judge.refuses & asked.keys():
            self._send(400, error(f"{', '.join(refused)}: not supported by this server"))
            return
        fault = judge.fault_for(shown)
        if fault is None:
            said = {"better": judge.rule(*shown), "A": marks(shown[1]), "B": marks(shown[2])}
            with judge.lock:
                judge.judged[shown] += 1
            self._send(200, completion(json.dumps(said)))
            return
        time.sleep(fault.hang)
        body = fault.body
        if body is None:
            said = {"better": judge.rule(*shown), "A": marks(shown[1]), "B": marks(shown[2])}
            body = completion(json.dumps(said) if fault.content is None else fault.content, fault.finish)
        if fault.cut == -1:  # a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self._send(fault.status, body, fault.headers, fault.cut)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None


def completion(content: str | None, finish: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
    ).encode()


def read(messages: list[dict[str, str]]) -> Shown:
    """What stands between the boundaries; the last line of each block ends it and no other does."""
    (message,) = messages
    found = {name: text for _, name, text in _BLOCK.findall(message["content"])}
    return found["PROMPT"], found["ANSWER A"], found["ANSWER B"]
