"""`rlhf-kit evaluate`: whether what was trained is good enough for what comes next."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.cli_policies import add_policy
from rlhf_kit.cli_shared import Command, add_source_options, data_names, format_of
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.reward_evaluation import Evaluation
    from rlhf_kit.reward_material import Material
    from rlhf_kit.reward_quality import CurvePoint

__all__ = ["add_evaluate"]

JSON, PAGE, CURVE = "reward_quality.json", "reward_quality.html", "curve"
_FRACTIONS = "0.125,0.25,0.5,1"


def add_evaluate(command: Command) -> None:
    """Adds the parser of `evaluate`, with one of its own for each thing that can be evaluated."""
    parser = command("evaluate", None, "measure what a reward model is worth, or what the training of policies did")
    kinds = parser.add_subparsers(dest="evaluated", required=True, metavar="WHAT")
    what = "pair accuracy, calibration, length, labelers, and a verdict, on rankings that nothing was trained on"
    reward = kinds.add_parser("reward", help=what, description=what)
    reward.set_defaults(action=_reward)
    reward.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    reward.add_argument(
        "run", metavar="RUN", help="the output_dir of a run, its reward stage, or a Hub id or directory"
    )
    reward.add_argument("files", metavar="FILE", nargs="+", help="ranked answers: files, folders, Hub ids")
    add_source_options(reward)
    reward.add_argument("--out", metavar="DIR", type=Path, help=f"write {JSON} and {PAGE} there")
    reward.add_argument("--format", dest="style", choices=("text", "json"), default="text", help="of the figures")
    reward.add_argument("--html", metavar="FILE", type=Path, help="write the page with plots there")
    reward.add_argument(
        "--curve",
        metavar="SHARE,…",
        type=_fractions,
        nargs="?",
        const=_fractions(_FRACTIONS),
        help=f"train the run's recipe anew on parts of its prompts, under DIR/{CURVE} (default: {_FRACTIONS})",
    )
    reward.add_argument("--seed", metavar="N", type=int, default=0, help="of the intervals and of --curve")
    add_policy(kinds)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"shares of the prompts such as 0.25,0.5,1, not {text!r}") from None
    if not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError("each share must be above 0 and at most 1")
    return found


def _reward(arguments: argparse.Namespace) -> int:
    if arguments.schema not in (None, "ranking"):
        raise RlhfKitError(f"--schema {arguments.schema}: a reward model is measured on rankings; leave it out")
    if arguments.curve and arguments.out is None:
        raise RlhfKitError(f"--curve: name a directory with --out; what is trained is kept in its folder {CURVE}")
    _check_places(arguments.out, arguments.html)
    prepare_torch()
    from rlhf_kit.ranked_files import read_rankings
    from rlhf_kit.reward_evaluation import evaluate_reward
    from rlhf_kit.reward_material import known_of, material_of
    from rlhf_kit.reward_model import RewardModel

    known = known_of(arguments.run)
    files = read_rankings(data_names(arguments.files), format_of(arguments.format))
    material = material_of(files, known, seed=arguments.seed)
    curve = _curve(arguments, material) if arguments.curve else ()
    model = RewardModel.open(arguments.run)
    with _bar("responses", material.responses) as progress:
        found = evaluate_reward(model, material, known, seed=arguments.seed, curve=curve, progress=progress)
    _print(found, arguments.style)
    for path in _write(found, arguments.out, arguments.html):
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _check_places(out: Path | None, html: Path | None) -> None:
    """Raises `RlhfKitError` before anything is scored where the files could not be written afterwards."""
    if out is not None and out.exists() and not out.is_dir():
        raise RlhfKitError(f"--out {out}: is a file; name a directory")
    if html is not None and html.is_dir():
        raise RlhfKitError(f"--html {html}: is a directory; name a file")


def _curve(arguments: argparse.Namespace, material: Material) -> Sequence[CurvePoint]:
    from rlhf_kit.reward_curve import learning_curve, plan_of, train_fraction

    plan = plan_of(arguments.run)
    folder = arguments.out / CURVE
    return learning_curve(
        plan, material.heldout, folder, train=train_fraction, fractions=arguments.curve, seed=arguments.seed
    )


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, where there is one; it is moved on by so many."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=total, unit=f" {what}", file=sys.stderr, leave=False, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


def _print(found: Evaluation, style: str) -> None:
    if style == "json":
        print(json.dumps(found.to_json(), ensure_ascii=False))
        for words in found.notes:
            print(f"! {words}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    from rlhf_kit.reward_page_words import reasons, sections, verdict_line
    from rlhf_kit.stats.text import print_table

    console = Console(highlight=False, markup=False)
    for section in sections(found, 20):
        print_table(section, console)
    verdict = found.quality.verdict
    for words in found.notes:
        console.print(Text(f"! {words}", "yellow"))
    console.print(Text(verdict_line(verdict), "bold green" if verdict.word == "ready" else "bold yellow"))
    for reason in reasons(verdict):
        console.print(Text(f"  {'-' if reason.word else '·'} {reason.text} {reason.advice}".rstrip()))


def _write(found: Evaluation, out: Path | None, html: Path | None) -> Iterator[Path]:
    """The files that were asked for; yields each when it is there."""
    from rlhf_kit.checkpoint import write_json
    from rlhf_kit.reward_page import write_page

    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / JSON, found.to_json())
        except OSError as error:
            raise RlhfKitError(f"--out {out}: cannot be written: {error.strerror or error}") from None
        yield out / JSON
        yield write_page(found, out / PAGE)
    if html is not None:
        yield write_page(found, html)
