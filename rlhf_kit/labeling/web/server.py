"""The server under the application: its address, its settings, and connections that never say what they want."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.labeling.store import ADMIN, Store
from rlhf_kit.labeling.web.app import Site, make_app
from rlhf_kit.labeling.web.markdown import safe_html
from rlhf_kit.labeling.web.security import Limits, Origins
from rlhf_kit.process import few_collections

if TYPE_CHECKING:
    from rlhf_kit.labeling.serving import Serving

__all__ = ["listening", "make_server", "own_port", "run"]

_KEEP_ALIVE = 30
_PORTS = range(20_000, 30_000)
_IDLE = 40.0
"""Seconds after which a connection without a whole request is closed, however slowly it goes on sending."""


def make_server(store: Store, serving: Serving, port: int) -> tuple[uvicorn.Server, list[tuple[str, str]]]:
    """The server, and everybody's name and link; raises `RlhfKitError` where the guidelines cannot be read."""
    origins = Origins(serving.host, port, serving.origin)
    guidelines = _read(serving.guidelines)

    def links() -> list[tuple[str, str]]:
        labelers = [(name, f"{origins.url}/#{store.token(name)}") for name in store.labelers()]
        return [*labelers, (ADMIN, f"{origins.url}/admin#{store.token(ADMIN)}")]

    site = Site(
        store,
        origins,
        links=links,
        title=serving.title,
        guidelines=safe_html(guidelines, breaks=False) if guidelines.strip() else "",
        language=serving.language,
        stay=serving.stay,
        out=serving.out,
        limits=serving.limits or Limits(),
    )
    config = uvicorn.Config(
        make_app(site),
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",  # its own account of requests holds what is typed into an address, and cookies
        access_log=False,
        proxy_headers=False,  # anybody can send them
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config), links()


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise RlhfKitError(f"{path}: cannot be read as guidelines: {reason}; name a Markdown file") from None


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serves until the server shall exit. In a thread other than the main one uvicorn leaves signals alone."""

    async def serve() -> None:
        watch = asyncio.create_task(_close_idle(server))
        await server.serve(sockets=[listener])
        watch.cancel()

    with few_collections():
        asyncio.run(serve())


async def _close_idle(server: uvicorn.Server) -> None:
    """uvicorn waits forever for the end of a request's head."""
    last: dict[Any, tuple[Any, float]] = {}
    while True:
        await asyncio.sleep(1)
        now = time.monotonic()
        connections: list[Any] = list(server.server_state.connections)
        idle = {c: c.cycle for c in connections if c.cycle is None or c.cycle.response_complete}
        last = {c: last[c] if c in last and last[c][0] is cycle else (cycle, now) for c, cycle in idle.items()}
        for connection, (_, since) in last.items():
            if now > since + _IDLE:
                connection.transport.close()


def own_port(store: Store) -> int:
    """The port of a store where nobody names one: the same whenever it is served, so that links which were sent and
    pages that are open still lead there. It is below those that systems lend to connections."""
    drawn = store.token("\n")  # that is nobody's name, so that it tells nothing of a link
    return _PORTS[int(drawn[:8], 16) % len(_PORTS)]


@contextmanager
def listening(serving: Serving, own: int = 0) -> Iterator[socket.socket]:
    """A socket at the address; raises `RlhfKitError` where it cannot be had.

    Args:
        own: the port where none is named; a free one if it is taken, or 0.
    """
    try:
        listener = _listener(serving.host, serving.port or own)
    except RlhfKitError:
        if serving.port or not own:
            raise
        listener = _listener(serving.host, 0)
    with listener:
        yield listener


def _listener(host: str, port: int) -> socket.socket:
    place = f"{host}, port {port}" if port else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        advice = "--host takes an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all it has"
        raise RlhfKitError(f"label: {place}: no address to serve at: {error.strerror or error}; {advice}") from None
    if sys.platform != "win32":  # there it would let two programs share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        advice = "name another port with --port, or leave it out for a free one"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RlhfKitError(f"label: {place}: cannot be served at: {reason}; {advice}") from None
    return listener
