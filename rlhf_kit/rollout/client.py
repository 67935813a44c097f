"""Requests to a vLLM server over HTTP, what their failures mean, and patience with them."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rlhf_kit.data import one_line
from rlhf_kit.errors import EngineError

__all__ = ["Client", "Patience", "Refused", "Unanswered"]

log = logging.getLogger(__name__)
_T = TypeVar("_T")

KEY = "VLLM_API_KEY"
"""The environment variable with the server's key, where it was started with one; vLLM reads the same."""

_CONNECTING = 10.0  # seconds
_LONGEST = 5.0  # seconds between two tries
_LATER = (408, 409, 425, 429)


class Unanswered(Exception):
    """A request had no answer that can be used; asking again may help.

    Attributes:
        said: the server's own words, if it had any.
    """

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason)
        self.said = said


class Refused(Exception):
    """The server does not do what it is asked; asking again would not help.

    Attributes:
        status: HTTP's.
        said: the server's own words.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}" + (f": {said}" if said else ""))
        self.status, self.said = status, said


class Client:
    """Asks one server, directly and not through a proxy. May be used from several threads.

    Each request has a connection of its own: none that a server has left behind when it was started again is ever used.

    Args:
        url: what stands before the routes.
        timeout: seconds without a byte after which a request is given up.

    Raises:
        EngineError: VLLM_API_KEY cannot be a key.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise EngineError(f"{KEY}: holds characters that no key has; set it again")
        self._open = set[socket.socket]()
        self._lock, self._aborted = threading.Lock(), False

    def get(self, route: str) -> Any:
        """The JSON that a route answers; raises as `post` does."""
        return _parsed(self._ask("GET", route, None))

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """The JSON that a route answers.

        Raises:
            Unanswered: no connection, no answer in time, one that broke off or is no JSON, or a status that says so.
            Refused: any other status.
        """
        return _parsed(self._ask("POST", route, body))

    def order(self, route: str, body: dict[str, Any]) -> None:
        """Posts what is answered by its status alone; raises as `post` does."""
        self._ask("POST", route, body)

    def abort(self) -> None:
        """Ends all requests that are under way in other threads at once, and all later ones, each as `Unanswered`."""
        with self._lock:
            self._aborted = True
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, route: str, body: dict[str, Any] | None) -> bytes:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        sent = None if body is None else json.dumps(body).encode()
        parts = urlsplit(self.url)
        try:
            with self._connected() as connection:
                connection.request(method, f"{parts.path}{route}", sent, headers)
                reply = connection.getresponse()
                content = reply.read()
        except TimeoutError:
            raise Unanswered(f"no answer within {self.timeout:g} s") from None
        except ConnectionRefusedError:
            raise Unanswered("the connection was refused") from None
        except socket.gaierror:
            raise Unanswered(f"no address is known for {parts.hostname}") from None
        except (OSError, http.client.HTTPException) as failure:
            raise Unanswered(f"the connection broke off ({type(failure).__name__})") from None
        if reply.status == 200:
            return content
        said = self._said(content)
        if reply.status >= 500 or reply.status in _LATER:
            raise Unanswered(f"status {reply.status}" + (f": {said}" if said else ""), said)
        raise Refused(reply.status, said)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=min(_CONNECTING, self.timeout))
        try:
            try:
                connection.connect()
            except TimeoutError:
                raise Unanswered(f"no connection within {connection.timeout:g} s") from None
            held = connection.sock  # the connection lets go of it once there is a response
            held.settimeout(self.timeout)
            with self._lock:
                if self._aborted:
                    raise Unanswered("given up")
                self._open.add(held)
            try:
                yield connection
            finally:
                with self._lock:
                    self._open.discard(held)
        finally:
            connection.close()

    def _said(self, content: bytes) -> str:
        """What the server says of an error, without the key, should it repeat that."""
        text = content.decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            body = json.loads(text)
            error = body.get("error", body) if isinstance(body, dict) else body
            if isinstance(error, dict):
                text = str(error.get("message") or error.get("detail") or "")
        return one_line(text.replace(self._key, "***") if self._key else text, 240)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise Unanswered("an answer that is no JSON, or half of one") from None


@dataclass
class Patience:
    """Bears with a server that gives no answer, for so long at most since it last gave one."""

    url: str
    timeout: float
    since: float = field(default_factory=time.monotonic)
    tries: int = 0
    reason: str = "requests without an answer"

    @property
    def left(self) -> float:
        """Seconds for which an answer is still waited for."""
        return max(0.0, self.since + self.timeout - time.monotonic())

    def answered(self) -> None:
        """Begins anew."""
        if self.tries:
            log.info("%s: answers again", self.url)
        self.since, self.tries = time.monotonic(), 0

    def persist(self, do: Callable[[], _T]) -> _T:
        """What `do` returns, which is done again as long as it is `Unanswered`.

        Raises:
            EngineError: it has been long enough.
            Refused: by `do`.
        """
        while True:
            try:
                return do()
            except Unanswered as failure:
                self.failed(str(failure))

    def failed(self, reason: str) -> None:
        """Waits for a moment, longer each time; raises `EngineError` where it has been long enough.

        Args:
            reason: why there was no answer; empty where it is not known.
        """
        self.reason = reason or self.reason
        if self.left == 0:
            raise EngineError(
                f"{self.url}: no answer of use from the vLLM server for {self.timeout:g} s, the last time: "
                f"{self.reason}. If it has ended, start it again (its log says why it ended); then run the same "
                "command, which goes on where this one stopped. ppo.rollout.timeout is how long a server is waited for"
            )
        if self.tries == 0:
            log.warning("%s: %s; asking again for up to %.0f s", self.url, self.reason, self.left)
        time.sleep(min(0.1 * 2 ** min(self.tries, 10), _LONGEST, self.left))
        self.tries += 1
