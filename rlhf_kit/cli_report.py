"""`rlhf-kit report`: the page of a run, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_kit.cli_shared import Command
from rlhf_kit.errors import CheckpointError
from rlhf_kit.process import prepare_torch

__all__ = ["add_report"]


def add_report(command: Command) -> None:
    """Adds the command."""
    report = command("report", _report, "draw the page of a run anew, or one page of several runs side by side")
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="the output_dir of a run")
    report.add_argument(
        "--out",
        metavar="FILE.html",
        type=Path,
        help="where to (default: RUN/report.html, of several runs report.html); the numbers go beside it as .json",
    )


def _report(arguments: argparse.Namespace) -> int:
    missing = [run for run in arguments.runs if not run.is_dir()]
    if missing:
        raise CheckpointError("\n".join(f"{run}: no such directory; name the output_dir of a run" for run in missing))
    prepare_torch()
    from rlhf_kit.report import write_report

    print(write_report(*arguments.runs, out=arguments.out))
    return 0
