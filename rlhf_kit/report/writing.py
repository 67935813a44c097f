"""The page of finished runs: one file without network, drawn from what stages and evaluations wrote, and its numbers.

Nothing is measured here. Whatever a run does not have (a stage, a rubric, an evaluation) the page leaves out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.report.as_json import as_json
from rlhf_kit.report.page import view
from rlhf_kit.report.run import read_runs
from rlhf_kit.report.runs import view as view_of_several
from rlhf_kit.report.words import fixed, percent, plain

__all__ = ["write_report"]

REPORT = "report.html"


def write_report(run: str | Path, *others: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page and, beside it, its numbers as `.json`; returns the page's path.

    Args:
        run: the directory of a run.
        others: further runs, side by side with the first.
        out: the page's file; `report.html` in the run's directory, or in the current one where there are several.

    Raises:
        CheckpointError: no stage is finished in one of them, one is damaged, or is named twice.
        RlhfKitError: the files cannot be written.
    """
    runs = read_runs([Path(run), *map(Path, others)])
    target = Path(out) if out is not None else Path() / REPORT if others else Path(run) / REPORT
    numbers = target.with_suffix(".json")
    if target == numbers or not target.name or target.is_dir():
        raise RlhfKitError(f"--out {target}: name an HTML file, such as {REPORT}; its numbers go beside it as .json")
    html = _render("report.runs.html.j2", view_of_several(runs)) if others else _render("report.html.j2", view(runs[0]))
    # A model may write half of a surrogate pair; it must not cost the page.
    contents = {
        numbers: json.dumps(as_json(runs), ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n",
        target: html.encode("utf-8", errors="replace"),
    }
    scratches = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            scratches[path].write_bytes(content)
        for path, scratch in scratches.items():
            scratch.replace(path)
    except OSError as error:
        raise RlhfKitError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        if target.parent.is_dir():
            for scratch in scratches.values():
                scratch.unlink(missing_ok=True)
    return target


def _render(name: str, shown: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("rlhf_kit", "templates"),
        autoescape=True,  # of all templates: what models and labelers wrote is text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "fixed": fixed, "percent": percent, "unbroken": _unbroken}
    script = _source(environment, "report.js")
    # The page runs this one script and loads nothing, whatever else might get into it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = _source(environment, "report.css")
    template = environment.get_template(name)
    return template.render(**shown, content_security_policy=policy, script=Markup(script), style=Markup(style))


def _unbroken(text: str) -> str:
    """The text with no line ending between a figure and its percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _source(environment: Environment, name: str) -> str:
    loader = environment.loader
    assert loader is not None
    return loader.get_source(environment, name)[0]
