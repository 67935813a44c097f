"""What the commands about data have in common: their options, and a bar for long work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_kit.errors import RlhfKitError

if TYPE_CHECKING:
    from rich.table import Table

    from rlhf_kit.sampling import Progress

_T = TypeVar("_T", int, float)

__all__ = [
    "KINDS",
    "Command",
    "add_source_options",
    "add_vllm_options",
    "bars",
    "count",
    "data_names",
    "estimate_cell",
    "figures_table",
    "format_of",
    "printable",
    "progress_bar",
    "share",
    "temperature",
    "times",
    "vllm_url",
]

KINDS = ("demonstration", "ranking", "prompt", "rating", "text")
Command = Callable[..., argparse.ArgumentParser]
"""Makes the parser of a command: name, action, what it does."""
_WORTH_A_BAR = 20_000_000  # bytes


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds what says how the rows of data files are read."""
    parser.add_argument(
        "--schema", choices=KINDS, metavar="KIND", help=f"of the rows: {', '.join(KINDS)}; guessed otherwise"
    )
    parser.add_argument(
        "--from",
        dest="format",
        metavar="FORMAT",
        help="a foreign format (rlhf-kit convert --list), auto, or package.module:function",
    )


def add_vllm_options(parser: Any) -> None:
    """Adds what has a vLLM server draw the answers."""
    parser.add_argument(
        "--vllm",
        metavar="URL",
        help="a vLLM server of the same base draws the answers, such as http://127.0.0.1:8000 (as ppo.rollout in the "
        "recipe is started); the base is not loaded here for them",
    )
    parser.add_argument(
        "--vllm-adapters",
        metavar="DIR",
        type=Path,
        help="where adapters are written for it, a directory that both see (default: ppo.rollout.adapters_dir of the "
        "recipe, else below the output)",
    )


def vllm_url(url: str | None, adapters: Path | None = None) -> str | None:
    """The URL of a vLLM server as it was typed.

    Raises:
        RlhfKitError: it is none, or there is none that the adapters would be for.
    """
    if url is None:
        if adapters is not None:
            raise RlhfKitError("--vllm-adapters goes with --vllm URL")
        return None
    from pydantic import ValidationError

    from rlhf_kit.recipe_rollout import RolloutSection

    try:
        return RolloutSection(base_url=url).base_url.rstrip("/")
    except ValidationError as failure:
        raise RlhfKitError(f"--vllm {url}: {failure.errors()[0]['msg']}") from None


def data_names(files: list[str]) -> list[str]:
    """The sources themselves, and for each folder of data files all of them."""
    from rlhf_kit.rows import data_files

    return [name for file in files for name in data_files(file)]


def format_of(name: str | None) -> Any:
    """The format of that name; None where it shall be guessed. Raises `DataError` where there is none."""
    if name in (None, "auto"):
        return None
    from rlhf_kit.formats.catalogue import format_named

    return format_named(str(name))


def _typed(text: str, kind: Callable[[str], _T], holds: Callable[[_T], bool], words: str) -> _T:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(words) from None
    if not holds(value):
        raise argparse.ArgumentTypeError(words)
    return value


def temperature(text: str) -> float:
    """A sampling temperature as it was typed, for argparse."""
    return _typed(text, float, lambda value: 0 <= value < float("inf"), "must be a number, 0 or more")


def count(text: str) -> int:
    """A number of things as it was typed, for argparse."""
    return _typed(text, int, lambda value: value >= 1, "must be a whole number, 1 or more")


def times(text: str) -> int:
    """A whole number from 0 as it was typed, such as a seed or a number of retries, for argparse."""
    return _typed(text, int, lambda value: value >= 0, "must be a whole number, 0 or more")


def share(text: str) -> float:
    """A part of a whole as it was typed, for argparse."""
    return _typed(text, float, lambda value: 0 < value <= 1, "must be a number above 0 and at most 1")


@contextmanager
def progress_bar(names: list[str]) -> Iterator[Callable[[str, int], None] | None]:
    """A bar on the terminal where there is one and the files are large; it shows rows and how many a second."""
    sizes = [Path(name).stat().st_size for name in names if Path(name).is_file()]
    if not sys.stderr.isatty() or sum(sizes) < _WORTH_A_BAR:
        yield None
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(unit=" rows", unit_scale=True, file=sys.stderr, leave=False) as bar:

        def told(name: str, rows: int) -> None:
            bar.set_description(Path(name).name, refresh=False)
            bar.update(rows - bar.n if rows > bar.n else rows)

        yield told


def printable(text: str) -> str:
    """The same on one line that steers no terminal: what is not printable stands as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@contextmanager
def bars() -> Iterator[Progress]:
    """A bar for each thing that is done, on the terminal where there is one."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    with Bars(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.advance(tasks[what], done)

        yield told


def estimate_cell(estimate: Mapping[str, Any] | None, shape: str, between: str = " to ") -> str:
    """A value, and its interval on a second line; a dash where there is none."""
    if estimate is None:
        return "–"
    value, low, high = (shape.format(estimate[key]) for key in ("value", "low", "high"))
    return f"{value}\n{low}{between}{high}"


def figures_table(title: str, first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    """A table of figures with a name before each row.

    Args:
        first: the heading over the names.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table
