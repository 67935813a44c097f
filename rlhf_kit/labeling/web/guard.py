"""The door of the application: each request passes it before anything of its body is read.

Host, session, rate, content type, origin, CSRF token, and only then the body, of a bounded size and within a bounded
time. What is refused is one line of JSON in the log, and a connection whose body was not read is closed.
"""

from __future__ import annotations

import json
import logging
import math
import re
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_kit.labeling.web.security import HEADERS, Limits, Origins, Person, RateLimit, Refusal, Sessions

__all__ = ["LOGIN", "Guard", "log_refusal"]

LOGIN = "/api/session"
_log = logging.getLogger(__name__)
_ADDED = [(name.lower().encode(), value.encode()) for name, value in {"Cache-Control": "no-store", **HEADERS}.items()]
_SECRET = re.compile(r"[A-Za-z0-9_-]{16,}")


def log_refusal(scope: Scope, status: int, reason: str) -> None:
    """One line of JSON about a request that was not served."""
    _log.warning("%s", _line("refused", scope, status, reason))


def _line(event: str, scope: Scope, status: int, reason: str = "") -> str:
    """What was asked, without its query; whatever is as long as a token is left out, should somebody type one here."""
    people: list[Person] = scope.get("state", {}).get("people", [])
    told = {
        "event": event,
        "status": status,
        "reason": reason,
        "method": scope["method"][:16],
        "path": _SECRET.sub("...", scope["path"][:200]),
        "address": scope["client"][0] if scope.get("client") else None,
        "name": people[0].name if people else None,
    }
    return json.dumps({key: value for key, value in told.items() if value != ""})


class Guard:
    """An ASGI application around the one with the routes."""

    def __init__(self, app: ASGIApp, sessions: Sessions, origins: Origins, limits: Limits) -> None:
        self._app, self._sessions, self._origins, self._limits = app, sessions, origins, limits
        self._by_session, self._by_address = RateLimit(limits.session), RateLimit(limits.address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request; other things than HTTP are not answered."""
        if scope["type"] != "http":
            return
        answer = _Answer(scope, send)
        try:
            body = await self._admit(scope, receive)
            await self._app(scope, _Read(body, receive), answer.send)
        except Refusal as refusal:
            log_refusal(scope, refusal.status, refusal.reason)
            headers = refusal.headers | {"Connection": "close"}
            await JSONResponse({"error": refusal.words}, refusal.status, headers)(scope, receive, answer.send)
        except ClientDisconnect:
            pass
        except Exception:  # the application has answered 500 and hands the error on
            _log.exception("%s", _line("failed", scope, 500))

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        """The body of a request that may be served; who asks is in the scope's state as `people`, who posts as
        `person`. Raises `Refusal`."""
        headers = Headers(scope=scope)
        if not self._origins.is_ours(headers.get("host")):
            raise Refusal(403, "host", "this server is not reached by that name")
        state: dict[str, Any] = scope.setdefault("state", {})
        people = state["people"] = self._sessions.people(HTTPConnection(scope).cookies)
        self._count(scope, people)
        if scope["method"] != "POST":
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                raise Refusal(400, "body", "nothing may be sent with this request")
            return b""
        content = headers.get("content-type", "").lower().replace(" ", "")
        if content not in ("application/json", "application/json;charset=utf-8"):
            raise Refusal(415, "content-type", "only JSON is taken, as application/json")
        self._origins.check(headers)
        if scope["path"] == LOGIN:
            return await self._body(headers, receive, self._limits.login)
        state["person"] = _who_posts(people, headers.get("x-csrf-token", ""))
        return await self._body(headers, receive, self._limits.body)

    def _count(self, scope: Scope, people: list[Person]) -> None:
        if people:
            wait = self._by_session.take(people[0].name)
        else:
            wait = self._by_address.take(scope["client"][0] if scope.get("client") else "")
        if wait:
            raise too_many(wait)

    async def _body(self, headers: Headers, receive: Receive, most: int) -> bytes:
        too_large = Refusal(413, "too-large", f"more than {most // 1024} KiB were sent at once")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and (len(length) > 12 or int(length) > most):
            raise too_large
        body = bytearray()
        try:
            with anyio.fail_after(self._limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            words = f"what was sent did not arrive within {self._limits.seconds:g} seconds"
            raise Refusal(408, "slow", words) from None


def too_many(wait: float) -> Refusal:
    """The refusal of what comes too often."""
    seconds = math.ceil(wait)
    words = f"too many requests; try again in {seconds} seconds"
    return Refusal(429, "rate", words, headers={"Retry-After": str(seconds)})


def _who_posts(people: list[Person], token: str) -> Person:
    """The one of those with a session whose page has sent this."""
    if not people:
        raise Refusal(401, "session", "your session is not known here; open your link again")
    for person in people:
        if person.has_csrf(token):
            return person
    raise Refusal(403, "csrf", "this was not sent by your page; open your link again")


class _Answer:
    """Sends an answer with the headers that all have."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in _ADDED if pair[0] not in given)]
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s", _line("answered", self._scope, message["status"]))
        await self._send(message)


class _Read:
    """What the application receives: a body that was read already, and later that the client has gone."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
