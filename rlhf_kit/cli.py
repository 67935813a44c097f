"""The command line: the only place that prints and exits, with `cli_*` for the commands about data.

Whatever is heavy is imported by the command that needs it, so that `--help` and `validate` answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rlhf_kit.cli_chat import add_chat
from rlhf_kit.cli_convert import add_convert
from rlhf_kit.cli_corpus import add_curate, add_stats
from rlhf_kit.cli_evaluate import add_evaluate
from rlhf_kit.cli_export import add_export
from rlhf_kit.cli_label import add_label
from rlhf_kit.cli_plan import add_plan
from rlhf_kit.cli_report import add_report
from rlhf_kit.cli_round import add_round
from rlhf_kit.cli_sample import add_sample
from rlhf_kit.cli_score import add_score
from rlhf_kit.cli_validate import add_validate
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.process import launched_as_main, line_for, prepare_torch, set_up_logging

__all__ = ["main"]

STAGES = ("sft", "reward", "ppo")
POLICIES = ("base", "sft", "ppo")
_RESUMABLE = ("run", *STAGES, "sample", "label", "round", "evaluate", "export")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file may hold what no text can
    arguments = _parse(argv)
    set_up_logging()
    try:
        code: int = arguments.action(arguments)
        return code
    except RlhfKitError as error:
        if arguments.debug:
            raise
        return _fail(str(error), 2)
    except BrokenPipeError:  # who read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        goes_on = arguments.command in _RESUMABLE
        return _fail("interrupted; the same command goes on from what is finished" if goes_on else "interrupted", 130)
    except Exception as error:
        line = line_for(error)
        if line is None or arguments.debug:
            raise
        return _fail(line, 2)


def _fail(line: str, code: int) -> int:
    place = "" if launched_as_main() else f"[process {os.environ['RANK']}] "
    print(place + line, file=sys.stderr, flush=True)
    return code


# -------------------------------------------------------------------- what is typed


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes all the overrides at once or not at all: those after an option are left over.
    overrides: list[str] | None = getattr(arguments, "overrides", None)
    if rest and (overrides is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if overrides is not None:
        overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(prog="rlhf-kit", description="RLHF on Hugging Face: SFT, reward model, PPO.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Any, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what, parents=[common])
        added.set_defaults(action=action)
        return added

    whats = {
        "run": "run every stage that a recipe has data for; what is finished is skipped, what was interrupted goes on",
        "sft": "supervised fine-tuning only",
        "reward": "the reward model only; the SFT stage is taken as it is on disk",
        "ppo": "PPO only; the earlier stages are taken as they are on disk",
    }
    for name, what in whats.items():
        stage = command(name, _train, what)
        stage.add_argument(
            "recipe", metavar="RECIPE", help="a YAML file, or the name of a packaged recipe (quickstart)"
        )
        stage.add_argument("overrides", metavar="section.key=value", nargs="*", help="put over what the recipe says")

    add_plan(command)
    add_validate(command)
    add_convert(command)
    add_stats(command)
    add_curate(command)
    add_evaluate(command)
    add_score(command)
    add_sample(command)
    add_label(command)
    add_round(command)

    add_export(command)

    add_chat(command)
    add_report(command)

    doctor = command("doctor", _doctor, "show what this machine has and what is missing")
    doctor.add_argument("--json", action="store_true", help="for machines")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        number = "of a checkout that is not installed"
        with contextlib.suppress(PackageNotFoundError):
            number = version("rlhf-kit")
        print(f"rlhf-kit {number}")
        parser.exit()


# -------------------------------------------------------------------- the commands


def _train(arguments: argparse.Namespace) -> int:
    from rlhf_kit.recipe import load_recipe
    from rlhf_kit.validation import check_recipe, find_recipe

    recipe = load_recipe(find_recipe(arguments.recipe), arguments.overrides, check=check_recipe)
    prepare_torch()
    from rlhf_kit.pipeline import run, run_step

    out = run(recipe) if arguments.command == "run" else run_step(recipe, arguments.command)
    if launched_as_main():
        print(out)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    prepare_torch()
    from rlhf_kit.doctor import examine, is_able, to_json

    findings = examine()
    if arguments.json:
        print(json.dumps(to_json(findings), indent=2))
    else:
        print("\n".join(map(str, findings)))
    return 0 if is_able(findings) else 2
