"""The page for labelers, served until it is done or somebody ends it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.labeling.store import Store

if TYPE_CHECKING:
    from rlhf_kit.labeling.web.security import Limits

__all__ = ["Serving", "check_installed", "lingering", "serve"]

_EVERY = 1.0
"""Seconds between the questions whether it is done."""
_LINGER = 20.0
"""Seconds after the last answer in which it can be undone, and the page says that all is done."""


@dataclass(frozen=True)
class Serving:
    """How the page is served.

    Raises:
        RlhfKitError: something in it cannot be.
    """

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes the store's own, the same each time, or a free one where that is taken."""
    title: str = ""
    guidelines: Path | None = None
    """Markdown."""
    language: str = "auto"
    """`en`, `zh`, or that of each browser."""
    stay: bool = False
    """Waits for further tasks; otherwise it ends when nothing is left to do."""
    open_browser: bool = False
    origin: str = ""
    """The address under which people reach it, such as https://label.example.org, where a proxy stands before it."""
    out: Path | None = None
    """Is written when the admin exports."""
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RlhfKitError(f"label: there is no port {self.port}; it goes from 1 to 65535, and 0 takes a free one")
        scheme, _, host = self.origin.partition("://")
        if self.origin and (scheme not in ("http", "https") or not host or set(host) & set("/?#@ ")):
            raise RlhfKitError(f"label: {self.origin!r} is no origin; write it as https://label.example.org")


def check_installed() -> None:
    """Raises `RlhfKitError` where the packages of the page are not there."""
    needed = {"starlette": "starlette", "uvicorn": "uvicorn", "nh3": "nh3", "markdown_it": "markdown-it-py"}
    missing = [name for module, name in needed.items() if find_spec(module) is None]
    if missing:
        raise RlhfKitError(f"the page for labelers needs {', '.join(missing)}: pip install 'rlhf-kit[label]'")


def serve(
    store: Store, serving: Serving, *, done: Callable[[], bool] | None = None, told: Callable[[str], None]
) -> None:
    """Serves until `done` is true, which is asked each second in this thread, or Ctrl-C, SIGTERM or a
    closed terminal ends it.

    Without `done` it ends when nothing is left to do, or never if it shall stay. Whoever has given it asks it once more
    to know whether somebody has ended the work before it was done. The server runs in a thread of its own; signals are
    only heard where this is called from the main thread, and are as they were afterwards.

    Args:
        told: is given lines for people, the links first.

    Raises:
        RlhfKitError: the address cannot be had, or packages are missing.
    """
    check_installed()
    from rlhf_kit.labeling.web.server import listening, make_server, own_port, run

    with listening(serving, own_port(store)) as listener, _ended() as ended:
        port: int = listener.getsockname()[1]
        server, links = make_server(store, serving, port)
        thread = threading.Thread(target=run, args=(server, listener), name="label-server", daemon=True)
        thread.start()
        try:
            _wait(lambda: server.started or not thread.is_alive() or ended())
            _tell(serving, port, links, told)
            _, own = links[0 if len(links) == 2 else -1]  # of several labelers, whoever serves is none
            with _opened(own if serving.open_browser and _has_screen() else None):
                is_done = _asked_at_times(done or _done_by_itself(store, serving, told))
                _wait(lambda: ended() or not thread.is_alive() or is_done())
            if not thread.is_alive():
                raise RuntimeError("the server has ended by itself; why stands above")
        finally:
            server.should_exit = True
            thread.join()


def _wait(over: Callable[[], bool]) -> None:
    # No lock is held while waiting: the handler of a signal runs in this thread, between any two lines.
    while not over():
        time.sleep(0.1)


def _asked_at_times(done: Callable[[], bool]) -> Callable[[], bool]:
    last = 0.0

    def is_done() -> bool:
        nonlocal last
        if time.monotonic() < last + _EVERY:
            return False
        last = time.monotonic()
        return done()

    return is_done


def lingering(done: Callable[[], bool], told: Callable[[str], None], words: str) -> Callable[[], bool]:
    """Whether it has been done for so long that nobody will undo the last answer any more.

    Args:
        words: are told each time that it becomes done, with the seconds in the place of `{}`.
    """
    since: float | None = None

    def over() -> bool:
        nonlocal since
        if not done():
            since = None
        elif since is None:
            since = time.monotonic()
            told(words.format(f"{_LINGER:.0f} seconds"))
        return since is not None and time.monotonic() >= since + _LINGER

    return over


def _done_by_itself(store: Store, serving: Serving, told: Callable[[str], None]) -> Callable[[], bool]:
    words = "all tasks are done; this ends in {} (--stay keeps it open)"
    return lingering(lambda: not serving.stay and store.progress().left == 0, told, words)


@contextmanager
def _ended() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come meanwhile, or the terminal was closed."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    # What nohup or a service manager has the program ignore stays ignored.
    heard = [number for number in _SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in heard}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else []))


# -------------------------------------------------------------------- what is told


def _tell(serving: Serving, port: int, links: list[tuple[str, str]], told: Callable[[str], None]) -> None:
    from rlhf_kit.labeling.web.security import Origins, is_loopback

    if serving.origin:
        told(f"the proxy of {serving.origin} finds the page at {Origins(serving.host, port).url}")
    elif not is_loopback(serving.host):
        told(
            f"{serving.host} is reached from other machines, and what goes over the network is not encrypted: put a "
            "proxy with TLS before it, and name its address with --origin"
        )
    told("each link is a person's own; Ctrl-C ends, and what was saved stays saved")
    width = max(len(name) for name, _ in links)
    for name, url in links:
        told(f"  {name:{width}}  {url}")


def _has_screen() -> bool:
    """Elsewhere a browser for terminals might open, in this one."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


@contextmanager
def _opened(url: str | None) -> Iterator[None]:
    """Opens a browser by way of a file that only this user can read: all users see what a program is started with."""
    if url is None:
        yield
        return
    handle, name = tempfile.mkstemp(prefix="rlhf-kit-label-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(
                f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={escape(url)}">'
                f'<a href="{escape(url)}">rlhf-kit label</a>\n'
            )
        with suppress(webbrowser.Error):
            webbrowser.open(Path(name).as_uri())
        yield
    finally:
        Path(name).unlink(missing_ok=True)
