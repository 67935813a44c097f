"""The files of the page, all read when the server starts: no path of a request is ever looked up on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["File", "answer_file", "read_files"]

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
}


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    content: bytes
    type: str
    etag: str


def read_files() -> Mapping[str, File]:
    """The files that a page is made of, by their path below `static/` with slashes."""
    found = (path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _TYPES and path.is_file())
    return {path.relative_to(_FOLDER).as_posix(): _read(path) for path in found}


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def answer_file(file: File, request: Request) -> Response:
    """The file, or that the browser has it; it asks each time, so that page and server are of the same version."""
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)
