"""Pages of one HTML file: no network, no script but the kit's own, and whatever was read is text, never markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.outputs import Files

__all__ = ["Headline", "Interval", "rendered", "write_page"]


@dataclass(frozen=True)
class Interval:
    """Where a figure, its interval and the value to beat lie on a line from 0 to 100."""

    value: float
    low: float
    high: float
    reference: float = 50.0
    reference_label: str = "50 %"

    @classmethod
    def of_shares(cls, value: float, low: float, high: float, reference: float = 0.5, label: str = "50 %") -> Interval:
        """That of shares from 0 to 1."""
        return cls(100 * value, 100 * low, 100 * high, 100 * reference, label)


@dataclass(frozen=True)
class Headline:
    """One of the few figures at the top of a page."""

    name: str
    figure: str
    unit: str = ""
    range: str = ""
    caption: str = ""
    interval: Interval | None = None


def rendered(
    template: str, view: Mapping[str, Any], *, script: str | None = None, filters: Mapping[str, Callable[..., Any]] = {}
) -> str:
    """A template with what it shows, in the pages' own style.

    Args:
        template: its name in `rlhf_kit/templates`.
        script: the name of the one script that may run; None allows none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("rlhf_kit", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,  # of all templates: what models, labelers and data say is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    shown = {**view, "style": Markup(loader.get_source(environment, "report.css")[0])}
    if script is not None:
        code = loader.get_source(environment, script)[0]
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        shown["script"] = Markup(code)
    return environment.get_template(template).render(**shown, content_security_policy=policy)


def write_page(path: Path, html: str, beside: Mapping[Path, bytes] = {}) -> Path:
    """Writes a page, and other files with it: all of them, or none; returns its path.

    Raises:
        DataError: one cannot be written.
    """
    # A model may write half of a surrogate pair; it must not cost the page.
    contents = {**beside, path: html.encode("utf-8", errors="replace")}
    with Files(contents) as files:
        for place, content in contents.items():
            files.write(place, content)
    return path
