"""A Hub on 127.0.0.1 for the real `huggingface_hub` client, with and without hf_xet, and with faults by script."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_hub_store import Answer, Store

TOKEN = "hf_fake_Uq7ZkPx3VnRsT9"
# Where large files come in; hf_xet takes the second where the first does not answer.
_STORES = ("PUT /storage/", "POST /cas/v1/xorbs/")


@dataclass
class Fault:
    """What befalls requests whose `METHOD path` contains `where`."""

    where: str
    status: int = 0
    """The answer; 0: none, the connection is reset."""
    after: int = 0
    """Bytes of the body that are read before the reset; 0: all."""
    skip: int = 0
    """Requests that are let through first."""
    below: int = 0
    """Befalls bodies of fewer bytes only; 0: all."""
    times: int = 1_000_000
    body: bytes = b'{"error": "scripted"}'
    lost: bool = False
    """The request is met and the answer lost."""
    held: threading.Event | None = None
    """What the server waits for before it resets a connection within a body."""
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when it has come so far."""


@dataclass
class Seen:
    """A request, with as much of its body as was read."""

    what: str
    authorization: str | None
    blocks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.blocks)

    @property
    def received(self) -> int:
        return sum(map(len, self.blocks))


class FakeHub:
    """The server, in threads of its own, with its log of requests and the faults to come."""

    def __init__(self, *, part_size: int = 0) -> None:
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.stored = threading.Event()
        """Set once a piece of a large file has come whole."""
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.store = Store(f"http://127.0.0.1:{self.server.server_port}", part_size)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return self.store.url

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def requests(self, where: str) -> list[Seen]:
        """The requests whose `METHOD path` contains `where`."""
        return [seen for seen in self.seen if where in seen.what]

    def received(self) -> int:
        """Bytes of large files that came, whole or not, by whatever way."""
        return sum(seen.received for where in _STORES for seen in self.requests(where))

    def fault(self, what: str, length: int) -> Fault | None:
        """The fault that a request with a body of so many bytes meets."""
        with self.lock:
            for fault in self.faults:
                if fault.where not in what or not fault.times or (fault.below and length >= fault.below):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms a request otherwise
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_request(self) -> None:
        hub = self.server.hub
        seen = Seen(f"{self.command} {self.path.split('?')[0]}", self.headers.get("Authorization"))
        hub.seen.append(seen)
        fault = hub.fault(seen.what, int(self.headers.get("Content-Length", 0)))
        with contextlib.suppress(ConnectionError):
            if not self._read(seen, fault):
                self._reset()
            elif fault is not None and not fault.lost:
                self._send(fault.status, fault.body) if fault.status else self._reset()
            elif seen.authorization != f"Bearer {TOKEN}" and ("/api/" in seen.what or "/info/lfs/" in seen.what):
                self._send(401, b'{"error": "Invalid credentials in Authorization header"}')
            else:
                try:
                    with hub.lock:
                        answer = hub.store.answer(seen.what, seen.body)
                except Answer as refused:
                    answer = refused
                if fault is not None:
                    return self._reset()
                self._send(answer.status, json.dumps(answer.value).encode(), answer.headers)
                if any(where in seen.what for where in _STORES):
                    hub.stored.set()

    do_GET = do_POST = do_PUT = handle_request

    def _read(self, seen: Seen, fault: Fault | None) -> bool:
        """Reads the body; False where the fault breaks the connection within it."""
        for block in self._blocks():
            seen.blocks.append(block)
            if fault is not None and fault.after and seen.received >= fault.after:
                fault.reached.set()
                if fault.held is not None:
                    fault.held.wait(60)
                return False
        return True

    def _blocks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, 1 << 16))
            if not block:
                raise ConnectionResetError
            left -= len(block)
            yield block

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)
