"""Requests to a vLLM server: what their failures mean, on a server that answers what it is told to."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from rlhf_kit import RlhfKitError
from rlhf_kit.errors import EngineError
from rlhf_kit.rollout.client import Client, Patience, Refused, Unanswered

HEAD = "HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n"


def reply(status: int, body: str, length: int | None = None) -> bytes:
    return (HEAD.format(status, len(body) if length is None else length) + body).encode()


def received(connection: socket.socket) -> bytes:
    """A whole request."""
    with connection.makefile("rb") as stream:
        head = b"".join(iter(stream.readline, b"\r\n")) + b"\r\n"
        length = re.search(rb"Content-Length: (\d+)", head)
        return head + stream.read(int(length[1]) if length else 0)


@contextlib.contextmanager
def answering(*said: bytes | float) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers one connection after another with these bytes, or after so many seconds with nothing."""
    got: list[bytes] = []
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for one in said:
                connection, _ = listener.accept()
                with connection:
                    if over.is_set():
                        return
                    got.append(received(connection))
                    if isinstance(one, bytes):
                        connection.sendall(one)
                    else:
                        over.wait(one)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", got
        finally:
            over.set()
            with socket.create_connection(listener.getsockname()):  # wakes it where it still waits for a request
                thread.join(30)


def error(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "X", "code": 400}})


def test_a_request_goes_out_as_json_below_the_address() -> None:
    with answering(reply(200, '{"a": 1}'), reply(200, "[2]"), reply(200, "Success: added.")) as (url, got):
        client = Client(f"{url}/below/", 5)
        assert client.post("/v1/x", {"é": [1]}) == {"a": 1}
        assert client.get("/v1/y") == [2]
        client.order("/v1/z", {})
    first, second, third = (one.decode() for one in got)
    head, _, body = first.partition("\r\n\r\n")
    assert head.startswith("POST /below/v1/x HTTP/1.1\r\n")
    assert "Content-Type: application/json" in head
    assert json.loads(body) == {"é": [1]}
    assert second.startswith("GET /below/v1/y ") and third.startswith("POST /below/v1/z ")
    assert "Authorization" not in first


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (reply(500, error("out of  memory")), "status 500: out of memory"),
        (reply(503, ""), "status 503"),
        (reply(429, '{"detail": "slowly"}'), "status 429: slowly"),
        (reply(200, '{"a": 1}', length=100), "the connection broke off (IncompleteRead)"),
        (reply(200, '{"a": '), "an answer that is no JSON, or half of one"),
        (b"", "the connection broke off (RemoteDisconnected)"),
        (b"SSH-2.0-x\r\n", "the connection broke off (BadStatusLine)"),
        (1.0, "no answer within 0.2 s"),
    ],
)
def test_what_may_be_asked_again(said: bytes | float, reason: str) -> None:
    with answering(said) as (url, _), pytest.raises(Unanswered) as caught:
        Client(url, 0.2).get("/v1/models")
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        (reply(400, error("Token id 9 is out of vocabulary")), 400, "status 400: Token id 9 is out of vocabulary"),
        (reply(404, '{"detail": "Not Found"}'), 404, "status 404: Not Found"),
        (reply(401, '{"error": "Unauthorized"}'), 401, 'status 401: {"error": "Unauthorized"}'),
        (reply(307, ""), 307, "status 307"),
    ],
)
def test_what_is_not_asked_again(said: bytes, status: int, reason: str) -> None:
    with answering(said) as (url, _), pytest.raises(Refused) as caught:
        Client(url, 5).post("/v1/x", {})
    assert (caught.value.status, str(caught.value)) == (status, reason)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unanswered, match=r"^the connection was refused$"):
        Client(f"http://127.0.0.1:{port}", 5).get("/health")


def test_a_server_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(reply(200, "{}")) as (url, got):
        assert Client(url, 5).get("/v1/models") == {}
    assert got[0].startswith(b"GET /v1/models ")


def test_the_key_goes_along_and_into_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", " secret-1 \n")
    with answering(reply(400, error("no such key: secret-1"))) as (url, got), pytest.raises(Refused) as caught:
        Client(url, 5).get("/v1/models")
    assert b"Authorization: Bearer secret-1\r\n" in got[0]
    assert str(caught.value) == "status 400: no such key: ***"
    monkeypatch.setenv("VLLM_API_KEY", "gehëim")
    with pytest.raises(EngineError, match=r"^VLLM_API_KEY: holds characters that no key has; set it again$"):
        Client(url, 5)


def test_an_abort_ends_what_is_under_way_and_what_comes_later() -> None:
    with answering(30.0, reply(200, "{}")) as (url, got):
        client, failed = Client(url, 30), list[Unanswered]()

        def ask() -> None:
            try:
                client.get("/health")
            except Unanswered as failure:
                failed.append(failure)

        thread = threading.Thread(target=ask)
        thread.start()
        while not got:
            time.sleep(0.01)
        began = time.monotonic()
        client.abort()
        thread.join(30)
        assert len(failed) == 1 and time.monotonic() - began < 20
        with pytest.raises(Unanswered, match=r"^given up$"):
            client.get("/health")


def test_patience_ends_after_so_many_seconds_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    slept = list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("rlhf_kit.rollout.client.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    patience = Patience("http://there:1", 20.0, since=now[0])
    with pytest.raises(RlhfKitError) as caught:
        while True:
            patience.failed("status 500")
    assert now[0] == 120.0  # to the second: the last wait is cut
    assert slept[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    said = str(caught.value)
    assert said.startswith(
        "http://there:1: no answer of use from the vLLM server for 20 s, the last time: status 500. If it "
        "has ended, start it again "
    )
    assert "\n" not in said


def test_an_answer_renews_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr("rlhf_kit.rollout.client.time", clock)
    patience = Patience("http://there:1", 20.0, since=now[0])
    now[0] = 19.0
    patience.failed("status 500")
    assert patience.left == 1.0
    patience.answered()
    assert (patience.left, patience.tries) == (20.0, 0)
