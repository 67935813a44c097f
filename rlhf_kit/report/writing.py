"""The page of finished runs: one file without network, drawn from what stages and evaluations wrote, and its numbers.

Nothing is measured here. Whatever a run does not have (a stage, a rubric, an evaluation) the page leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rlhf_kit import pages
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
        RlhfKitError: no name of a page, or the files cannot be written.
    """
    runs = read_runs([Path(run), *map(Path, others)])
    target = Path(out) if out is not None else Path() / REPORT if others else Path(run) / REPORT
    numbers = target.with_suffix(".json")
    if target == numbers or not target.name or target.is_dir():
        raise RlhfKitError(f"--out {target}: name an HTML file, such as {REPORT}; its numbers go beside it as .json")
    name, shown = ("report.runs.html.j2", view_of_several(runs)) if others else ("report.html.j2", view(runs[0]))
    filters: dict[str, Callable[..., str]] = {"plain": plain, "fixed": fixed, "percent": percent, "unbroken": _unbroken}
    html = pages.rendered(name, shown, script="report.js", filters=filters)
    said = json.dumps(as_json(runs), ensure_ascii=False, indent=1, allow_nan=False).encode() + b"\n"
    return pages.write_page(target, html, {numbers: said})


def _unbroken(text: str) -> str:
    """The text with no line ending between a figure and its percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")
