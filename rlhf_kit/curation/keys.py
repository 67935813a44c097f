"""What two records are compared by: digests of what they ask and say, the same in every process."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Hashable
from typing import Any

from ..checks.ledger import content_of, prompt_of
from ..records import Ranking, Rating, Record, Text

__all__ = ["content_key", "digest", "missing", "normalised", "prompt_key", "spoken"]


def digest(value: Any) -> bytes:
    """128 bits that stand for a value of texts, numbers, None, lists and tuples."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def prompt_key(record: Record) -> bytes:
    """The same for records that ask the very same; a text is its own prompt."""
    return digest(prompt_of(record))


def content_key(record: Record) -> bytes:
    """The same for records that say the very same.

    Rankings and ratings are opinions: another labeler's is another one, and so is another order or another score of
    the same answers. The order in which answers stand does not matter, nor which numbers say the order of ranks.
    `id`, `user_id`, `source`, `category`, `kind`, `origin`, `weight`, `margin` and `meta` are no content.
    """
    if isinstance(record, Ranking):
        return digest((prompt_of(record), record.labeler, sorted(_answers(record))))
    if isinstance(record, Rating):
        return digest((content_of(record), record.scale))
    return digest(content_of(record))


def _answers(record: Ranking) -> list[tuple[str, int, str]]:
    order = {rank: place for place, rank in enumerate(sorted({r.rank for r in record.responses}), 1)}
    return [
        (r.text, order[r.rank], "" if _plain(r) else r.model_dump_json(exclude={"text", "rank", "source"}))
        for r in record.responses
    ]


def _plain(response: Any) -> bool:
    return bool(response.ended and response.overall is response.flags is response.axes is None)


def spoken(record: Record) -> tuple[Hashable, str]:
    """The system turn, and all turns behind it in one text; a text is a text without a system turn."""
    if isinstance(record, Text):
        return None, record.text
    if isinstance(record.prompt, str):
        return None, record.prompt
    first, *rest = record.prompt
    if first.role == "system":
        return first.content, "\n".join(turn.content for turn in rest)
    return None, "\n".join(turn.content for turn in record.prompt)


def normalised(text: str) -> str:
    """The text without what two writings of the same differ in: width of characters, case, white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def missing(package: str) -> str:
    """What to say where an optional library is not installed."""
    return f"{package} is needed for this and not installed; run: pip install 'rlhf-kit[data]'"
