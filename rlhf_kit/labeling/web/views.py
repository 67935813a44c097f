"""What the page asks of the store: what changes it by way of `Writer`, what takes long in threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_kit.labeling.exporting import records, write_records
from rlhf_kit.labeling.figures import figures
from rlhf_kit.labeling.store import Store, Turn
from rlhf_kit.labeling.web.bodies import (
    AnswerBody,
    DraftBody,
    LeaveBody,
    MoreBody,
    PauseBody,
    SessionBody,
    SkipBody,
    UndoBody,
    parse_body,
    reply_in,
)
from rlhf_kit.labeling.web.guard import LOGIN, too_many
from rlhf_kit.labeling.web.security import Limits, Origins, Person, RateLimit, Refusal, Sessions
from rlhf_kit.labeling.web.state import me_json, state_json
from rlhf_kit.labeling.web.writing import Writer
from rlhf_kit.outputs import json_line, row_of

__all__ = ["Admin", "Labeling", "Login", "Site"]

_T = TypeVar("_T")
_FRESH = 2.0
"""Seconds for which the admin's figures are kept: several pages that ask each few seconds cost no more than one."""


@dataclass(frozen=True)
class Site:
    """What is served."""

    store: Store
    origins: Origins
    links: Callable[[], list[tuple[str, str]]] = list
    """Name and address of everybody, for the admin."""
    title: str = ""
    guidelines: str = ""
    """HTML that is safe."""
    language: str = "auto"
    stay: bool = False
    """Tasks may come later, though none is open now."""
    out: Path | None = None
    """The file that is written when the admin exports."""
    limits: Limits = field(default_factory=Limits)


class Login:
    """From the token of a link to a cookie."""

    def __init__(self, site: Site, sessions: Sessions) -> None:
        self._sessions, self._wrong = sessions, RateLimit(site.limits.wrong)

    def routes(self) -> list[Route]:
        """POST /api/session."""
        return [Route(LOGIN, self.open, methods=["POST"])]

    async def open(self, request: Request) -> Response:
        """An address that has sent many wrong tokens waits, with a right one too."""
        address = request.client.host if request.client else ""
        if wait := self._wrong.wait(address):
            raise too_many(wait)
        opened = self._sessions.open(parse_body(await request.body(), SessionBody).token)
        if opened is None:
            self._wrong.take(address)
            raise Refusal(401, "token", "this link is not known here; ask whoever sent it for yours")
        person, cookie = opened
        answer = {"csrf": person.csrf, "role": person.role, "name": person.name}
        return JSONResponse(answer, headers={"Set-Cookie": cookie})


class Labeling:
    """What a labeler does."""

    def __init__(self, site: Site) -> None:
        self._site, self._store = site, site.store
        self._writer = Writer(site.store)

    def routes(self) -> list[Route]:
        """Under /api."""
        return [
            Route("/api/me", self.me),
            Route("/api/task", self.task),
            Route("/api/draft", self.draft, methods=["POST"]),
            Route("/api/leave", self.leave, methods=["POST"]),
            Route("/api/answer", self.answer, methods=["POST"]),
            Route("/api/skip", self.skip, methods=["POST"]),
            Route("/api/undo", self.undo, methods=["POST"]),
        ]

    async def me(self, request: Request) -> Response:
        """Who asks; `?role=admin` asks for the admin's session where a browser has both."""
        person, site = _reader(request, request.query_params.get("role")), self._site
        return JSONResponse(me_json(person, title=site.title, guidelines=site.guidelines, language=site.language))

    async def task(self, request: Request) -> Response:
        """The state."""
        name = _reader(request, "labeler").name
        return await self._writer.write(lambda: self._store.turn(name), self._state)

    async def draft(self, request: Request) -> Response:
        """Keeps what stands on the page so far."""
        name, body = _writer(request, "labeler").name, parse_body(await request.body(), DraftBody)

        return await self._writer.write(
            lambda: self._store.keep_draft(name, body.assignment, body.draft), lambda _: JSONResponse({"ok": True})
        )

    async def leave(self, request: Request) -> Response:
        """The page was closed with this task on it."""
        name, body = _writer(request, "labeler").name, parse_body(await request.body(), LeaveBody)

        return await self._writer.write(
            lambda: self._store.leave(name, body.assignment), lambda _: JSONResponse({"ok": True})
        )

    async def answer(self, request: Request) -> Response:
        """Keeps a reply; what comes next is the answer."""
        name, body = _writer(request, "labeler").name, parse_body(await request.body(), AnswerBody)
        reply = reply_in(body)

        def keep() -> Turn:
            self._store.answer(name, body.assignment, reply, body.seconds)
            return self._store.turn(name)

        return await self._writer.write(keep, self._state)

    async def skip(self, request: Request) -> Response:
        """Passes a task on; what comes next is the answer."""
        name, body = _writer(request, "labeler").name, parse_body(await request.body(), SkipBody)

        def keep() -> Turn:
            self._store.skip(name, body.assignment, body.reason, body.note, body.seconds)
            return self._store.turn(name)

        return await self._writer.write(keep, self._state)

    async def undo(self, request: Request) -> Response:
        """Opens the last task again, which the state has then."""
        name = _writer(request, "labeler").name
        parse_body(await request.body(), UndoBody)

        def undo() -> Turn:
            opened = self._store.undo(name)
            turn = self._store.turn(name)
            return turn if opened is None else replace(turn, assignment=opened)  # it comes before what else is open

        return await self._writer.write(undo, self._state)

    def _state(self, turn: Turn) -> Response:
        # What others have begun comes back if they do not finish it.
        waiting = turn.assignment is None and (turn.paused or self._site.stay or not turn.is_over)
        return JSONResponse(state_json(turn.assignment, turn.progress, paused=turn.paused, waiting=waiting))


class Admin:
    """What the admin sees and does; in one thread of its own, so that a long account does not delay a labeler."""

    def __init__(self, site: Site) -> None:
        self._site, self._store = site, site.store
        self._thread = CapacityLimiter(1)
        self._figures: tuple[float, Response] | None = None

    def routes(self) -> list[Route]:
        """Under /api/admin."""
        return [
            Route("/api/admin", self.figures),
            Route("/api/admin/pause", self.pause, methods=["POST"]),
            Route("/api/admin/more", self.more, methods=["POST"]),
            Route("/api/admin/export", self.export),
            Route("/api/admin/links", self.links),
        ]

    async def figures(self, request: Request) -> Response:
        """What is known of the work so far."""
        _reader(request, "admin")
        return await self._run(self._fresh_figures)

    def _fresh_figures(self) -> Response:
        # There is one thread: who asks meanwhile waits, and gets the same.
        if self._figures is None or time.monotonic() > self._figures[0] + _FRESH:
            content = JSONResponse(figures(self._store))
            self._figures = time.monotonic(), content
        return self._figures[1]

    async def pause(self, request: Request) -> Response:
        """Holds tasks back, or gives them out again."""
        _writer(request, "admin")
        paused = parse_body(await request.body(), PauseBody).paused
        return await self._change(lambda: self._store.pause(paused))

    async def more(self, request: Request) -> Response:
        """Has one more labeler see a task."""
        _writer(request, "admin")
        task = parse_body(await request.body(), MoreBody).task
        return await self._change(lambda: self._store.more(task))

    async def export(self, request: Request) -> Response:
        """The records, which are also written to the file of the command."""
        _reader(request, "admin")

        def export() -> Response:
            if self._site.out is not None:
                write_records(self._store, self._site.out)
            lines = b"".join(json_line(row_of(record)) for record in records(self._store))
            headers = {"Content-Disposition": 'attachment; filename="labels.jsonl"'}
            return Response(lines, media_type="application/jsonl", headers=headers)

        return await self._run(export)

    async def links(self, request: Request) -> Response:
        """Everybody's link."""
        _reader(request, "admin")
        return JSONResponse({"links": [{"name": name, "url": url} for name, url in self._site.links()]})

    async def _change(self, function: Callable[[], None]) -> Response:
        def change() -> Response:
            function()
            self._figures = None
            return JSONResponse({"ok": True})

        return await self._run(change)

    async def _run(self, function: Callable[[], _T]) -> _T:
        return await run_sync(function, limiter=self._thread)


# -------------------------------------------------------------------- who may


def _reader(request: Request, role: str | None) -> Person:
    people: list[Person] = request.state.people
    if not people:
        raise Refusal(401, "session", "your session is not known here; open your link again")
    wanted = [person for person in people if role in (None, person.role)]
    if not wanted:
        raise _not_for(role)
    return wanted[0]


def _writer(request: Request, role: str) -> Person:
    person: Person = request.state.person
    if person.role != role:
        raise _not_for(role)
    return person


def _not_for(role: str | None) -> Refusal:
    who = "the admin" if role == "admin" else "labelers"
    return Refusal(403, "role", f"this is for {who} alone; open your own link again")
