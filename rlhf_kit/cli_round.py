"""`rlhf-kit round`: one round of sampling, labels, reward model and PPO; `rlhf-kit rounds`: what they have brought."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.cli_shared import Command, bars, count, estimate_cell, figures_table
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.rounds import History

__all__ = ["add_round"]


def add_round(command: Command) -> None:
    """Adds the parsers of both commands."""
    what = (
        "one round: the newest policy answers, the answers are ranked, reward model and policy are trained anew and "
        "compared with all rounds before; what was interrupted goes on"
    )
    parser = command("round", _round, what)
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a packaged recipe (rounds)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="put over what the recipe says")
    parser.add_argument("--until", metavar="N", type=count, help="go on until so many rounds are there")
    parser.add_argument(
        "--no-train",
        action="store_true",
        help="end when the labels are there, to train by the round's own recipe.yaml on several processes; the same "
        "command without this goes on",
    )
    parser.add_argument("--no-browser", action="store_true", help="with round.labels: page: open none")
    parser = command("rounds", _rounds, "the history of a run's rounds: strength, distance, reward models, cost")
    parser.add_argument("run", metavar="RUN", type=Path, help="the output_dir of the recipe")
    parser.add_argument("--format", dest="style", choices=("text", "json"), default="text", help="of what is printed")
    parser.add_argument("--html", metavar="FILE", type=Path, help="a page of it too, with plots")


def _round(arguments: argparse.Namespace) -> int:
    from rlhf_kit.recipe import lacks_for_rounds, load_recipe
    from rlhf_kit.validation import check_recipe, find_recipe

    recipe = load_recipe(
        find_recipe(arguments.recipe),
        arguments.overrides,
        check=lambda found: (*check_recipe(found), *lacks_for_rounds(found)),
    )
    prepare_torch()
    from rlhf_kit.rounds import finished, go_round, history

    home = Path(recipe.output_dir)
    while True:
        with bars() as progress:
            one = go_round(
                recipe,
                told=_told,
                browser=not arguments.no_browser,
                train=not arguments.no_train,
                progress=progress,
            )
        if arguments.no_train or len(finished(home)) >= (arguments.until or 0):
            break
    if not arguments.no_train:
        _print(history(home))
    print(one.directory)
    return 0


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _rounds(arguments: argparse.Namespace) -> int:
    prepare_torch()
    from rlhf_kit.rounds import history

    found = history(arguments.run)
    if arguments.style == "json":
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        _print(found)
    if arguments.html is not None:
        from rlhf_kit.rounds.page import write_page

        print(write_page(found, arguments.run.resolve().name, arguments.html), file=sys.stderr)
    return 0


# -------------------------------------------------------------------- what is printed


def _print(found: History) -> None:
    from rich.console import Console
    from rich.text import Text

    from rlhf_kit.rounds.tables import tables

    console = Console(highlight=False, markup=False)
    for table in tables(found, lambda figure, form: estimate_cell(figure, form, "–")):
        first, *columns = table.columns
        rows = {name: cells for name, *cells in table.rows}
        console.print(figures_table(f"{table.title}: {table.note}", first, columns, rows))
    console.print(Text("A dash is what there is not, or not yet."))
