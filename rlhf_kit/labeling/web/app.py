"""The application: its routes, and what is said of errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rlhf_kit.errors import DataError, RlhfKitError
from rlhf_kit.labeling.store import Refused
from rlhf_kit.labeling.web.guard import Guard, log_refusal
from rlhf_kit.labeling.web.pages import answer_file, read_files
from rlhf_kit.labeling.web.security import Refusal, Sessions
from rlhf_kit.labeling.web.views import Admin, Labeling, Login, Site

__all__ = ["Site", "make_app"]

_MOST_PROBLEMS = 50


def make_app(site: Site) -> ASGIApp:
    """The ASGI application; whatever is asked of it passes its `Guard`."""
    sessions = Sessions(site.store, site.origins.port, secure=site.origins.public.startswith("https://"))
    routes = [
        *_pages(),
        *Login(site, sessions).routes(),
        *Labeling(site).routes(),
        *Admin(site).routes(),
    ]
    handlers: dict[Any, Any] = {
        Refusal: _on_refusal,
        HTTPException: _on_http,
        Refused: _on_refused,
        DataError: _on_wrong,
        RlhfKitError: _on_trouble,
        Exception: _on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would name a host, and nothing here has two names
    return Guard(app, sessions, site.origins, site.limits)


def _pages() -> list[Route]:
    files = read_files()

    def page(name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            file = files.get(name or request.path_params["path"])
            if file is None:
                raise Refusal(404, "path", "there is nothing here")
            return answer_file(file, request)

        return answer

    async def no_icon(request: Request) -> Response:
        return Response(status_code=204)

    return [
        Route("/", page("index.html")),
        Route("/admin", page("admin.html")),
        Route("/static/{path:path}", page("")),
        Route("/favicon.ico", no_icon),  # browsers ask by themselves
    ]


async def _on_refusal(request: Request, error: Refusal) -> Response:
    return _refuse(request, error.status, error.reason, error.words, error.headers)


async def _on_http(request: Request, error: HTTPException) -> Response:
    words = "this cannot be done here" if error.status_code == 405 else "there is nothing here"
    return _refuse(request, error.status_code, "path", words, error.headers)


async def _on_refused(request: Request, error: Refused) -> Response:
    return _refuse(request, 409, "conflict", str(error))


async def _on_wrong(request: Request, error: DataError) -> Response:
    log_refusal(request.scope, 422, "content")
    problems = [{"field": problem.field, "reason": problem.reason} for problem in error.problems[:_MOST_PROBLEMS]]
    return JSONResponse({"error": "what was sent cannot be used", "problems": problems}, 422)


async def _on_trouble(request: Request, error: RlhfKitError) -> Response:
    """A full disk, or a file that another program holds: who serves is told why, who labels that it is no fault of
    theirs."""
    words = "this cannot be saved at the moment; it stays on this page: tell whoever sent you the link, and try again"
    return _refuse(request, 503, str(error), words)


async def _on_bug(request: Request, error: Exception) -> Response:
    # It is handed on to the guard, which logs it.
    return JSONResponse({"error": "something went wrong here; nothing that was saved is lost"}, 500)


def _refuse(request: Request, status: int, reason: str, words: str, headers: Any = None) -> Response:
    log_refusal(request.scope, status, reason)
    return JSONResponse({"error": words}, status, headers)
