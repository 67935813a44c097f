"""Who asks, from where, and how often: sessions, the origins that are ours, rates, and what every answer carries.

Nothing here is kept on the server: a cookie is derived from the labeler's token by HMAC, so that who is in the middle
of a task goes on after a restart, and a stolen cookie does not say the token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from rlhf_kit.labeling.store import ADMIN, Store

__all__ = ["HEADERS", "Limits", "Origins", "Person", "Rate", "RateLimit", "Refusal", "Sessions", "is_loopback"]

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What every answer carries, errors and files too."""


class Refusal(Exception):
    """A request that is not served; the words are for people, the reason for the log."""

    def __init__(self, status: int, reason: str, words: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.reason, self.words = status, reason, words
        self.headers = dict(headers or {})
        super().__init__(words)


@dataclass(frozen=True)
class Rate:
    """So many requests at once, and then so many a second."""

    burst: float
    per_second: float


@dataclass(frozen=True)
class Limits:
    """What one may send, how long it may take, and how often; far above what a person does.

    A page asks about ten times when it is opened and twice for an answer. Whoever has no session is counted by address,
    which behind a proxy is the same for all.
    """

    body: int = 256 * 1024
    """Bytes of a body at most."""
    login: int = 1024
    """Bytes of the body that somebody without a session may send, which holds a token."""
    seconds: float = 15.0
    """Until the whole of a body must be there."""
    session: Rate = Rate(burst=240, per_second=20)
    address: Rate = Rate(burst=1200, per_second=40)
    wrong: Rate = Rate(burst=30, per_second=0.5)
    """Tokens that are none, of an address."""


class RateLimit:
    """Token buckets, one a key; those that were not asked for longest are forgotten first, so that memory is bounded.

    Args:
        clock: seconds from anywhere, never going back.
    """

    _MOST = 10_000

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        """Seconds until the key may ask again, without asking."""
        return max(0.0, (1 - self._level(key)) / self._rate.per_second)

    def take(self, key: str) -> float:
        """Asks once: 0 where that is allowed, and otherwise the seconds until it will be."""
        level = self._level(key)
        allowed = level >= 1
        self._buckets[key] = (level - 1 if allowed else level, self._clock())
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._MOST:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self._rate.per_second

    def _level(self, key: str) -> float:
        now = self._clock()
        level, then = self._buckets.get(key, (self._rate.burst, now))
        return min(self._rate.burst, level + (now - then) * self._rate.per_second)


@dataclass(frozen=True)
class Person:
    """Somebody with a session."""

    name: str
    csrf: str
    """What the page must send with each change: another site can have the cookie sent, but cannot read this."""

    @property
    def role(self) -> str:
        """`admin` or `labeler`."""
        return "admin" if self.name == ADMIN else "labeler"

    def has_csrf(self, token: str) -> bool:
        """Whether that is what their page sends."""
        return hmac.compare_digest(self.csrf.encode(), token.encode())


@dataclass(frozen=True)
class Sessions:
    """Cookies that say who somebody is, one for a labeler and one for the admin, so that a browser may have both.

    Cookies are the same for all ports of a host: `port` in their names keeps two servers apart.
    """

    store: Store
    port: int
    secure: bool = False
    """For https only."""

    def open(self, token: str) -> tuple[Person, str] | None:
        """The person of a token, and the header that sets their cookie; None for a token that is none."""
        name = self.store.who(token)
        if name is None:
            return None
        person = Person(name, _derived(token, "csrf"))
        value = f"{_packed(name)}.{_derived(token, 'session')}"
        attributes = f"Path=/; HttpOnly; SameSite=Strict{'; Secure' if self.secure else ''}"
        return person, f"{self._cookie(person.role)}={value}; {attributes}"

    def people(self, cookies: Mapping[str, str]) -> list[Person]:
        """Who the cookies are of: at most one labeler and the admin. A cookie that is forged or old is nobody's."""
        found = (self._person(cookies.get(self._cookie(role), ""), role) for role in ("labeler", "admin"))
        return [person for person in found if person is not None]

    def _cookie(self, role: str) -> str:
        return f"rlhf-kit-{role}-{self.port}"

    def _person(self, value: str, role: str) -> Person | None:
        name = _unpacked(value.partition(".")[0])
        if not value.isascii() or not name or (name == ADMIN) != (role == "admin"):
            return None
        token = self.store.token(name)  # any name has one
        expected = f"{_packed(name)}.{_derived(token, 'session')}"
        if not hmac.compare_digest(value, expected) or not (role == "admin" or self.store.may_label(name)):
            return None
        return Person(name, _derived(token, "csrf"))


def _derived(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def _packed(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _unpacked(text: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        return None


@dataclass(frozen=True)
class Origins:
    """The names by which this server is reached. A foreign name that leads here is DNS rebinding: its page would be of
    the same origin, and could read everything.

    Args:
        public: an address such as `https://label.example.org` where a proxy stands before the server.
    """

    host: str
    port: int
    public: str = ""

    def is_ours(self, host: str | None) -> bool:
        """Whether a Host header names this server."""
        if host is None:
            return False
        name, port = _split(host.lower())
        if self.public and host.lower() == self.public.partition("://")[2].lower():
            return True
        return port == self.port and self._is_name(name)

    def _is_name(self, name: str) -> bool:
        if name == self.host.lower():
            return True
        if not _is_wildcard(self.host):
            return is_loopback(self.host) and is_loopback(name)
        # Reached by any of its addresses, which cannot be rebound, or by its own name.
        return _is_address(name) or name in _own_names()

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises `Refusal` where the browser says that another site has made the request; names are in lower case."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none"):
            raise Refusal(403, "origin", "this was sent from another site")
        if origin is not None:
            scheme, _, host = origin.partition("://")
            expected = self.public.partition("://")[0] if self._is_public(host) else "http"
            if scheme != expected or not self.is_ours(host):
                raise Refusal(403, "origin", "this was sent from another site")

    def _is_public(self, host: str) -> bool:
        return bool(self.public) and host.lower() == self.public.partition("://")[2].lower()

    @property
    def url(self) -> str:
        """The address for links, without a slash at its end."""
        if self.public:
            return self.public
        name = socket.gethostname() if _is_wildcard(self.host) else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}"


@cache
def _own_names() -> frozenset[str]:
    return frozenset({"localhost", socket.gethostname().lower(), socket.getfqdn().lower()})


def _split(host: str) -> tuple[str, int | None]:
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "80")
    return name.removeprefix("[").removesuffix("]"), int(port) if port.isascii() and port.isdecimal() else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches that host."""
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_wildcard(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified
