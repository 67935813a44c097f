"""`rlhf-kit chat`: talking to the policies of a run."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from rlhf_kit.cli_shared import Command, count, temperature
from rlhf_kit.errors import CheckpointError
from rlhf_kit.process import prepare_torch

__all__ = ["add_chat"]


def add_chat(command: Command) -> None:
    """Adds the parser of the command."""
    chat = command("chat", _chat, "talk to the base model and the trained ones, one at a time or side by side")
    chat.add_argument("run", metavar="RUN", type=Path, help="the output_dir of a run")
    chat.add_argument(
        "--policy",
        metavar="NAME",
        nargs="+",
        default=[],
        help="who answers: base, sft, ppo, ema, ppo@STEP, an adapter's directory (default: base and all stages)",
    )
    how = chat.add_mutually_exclusive_group()
    how.add_argument(
        "--temperature", metavar="T", type=temperature, help="0 takes the likeliest token (default: the recipe's)"
    )
    how.add_argument("--greedy", action="store_true", help="the likeliest token each time")
    how.add_argument("--beam", metavar="N", type=count, help="beam search with N beams")
    chat.add_argument("--top-p", metavar="P", type=share, default=1.0, help="the likeliest tokens of this share only")
    chat.add_argument("--top-k", metavar="N", type=count, default=0, help="the N likeliest tokens only")
    chat.add_argument(
        "--max-new-tokens", metavar="N", type=count, default=256, help="length of an answer at most (default: 256)"
    )
    chat.add_argument("--seed", metavar="N", type=seed, help="the same answers to the same words again")
    chat.add_argument("--system", metavar="TEXT", help="instructions before the conversation")
    chat.add_argument("--transcript", metavar="FILE", type=Path, help="keep what is said in a new .jsonl file")
    chat.add_argument(
        "--as",
        dest="kind",
        choices=("demonstrations", "prompts"),
        default="demonstrations",
        help="what the transcript's rows are (default: demonstrations)",
    )


def share(text: str) -> float:
    """A part of a whole as it was typed, for argparse."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return value


def seed(text: str) -> int:
    """A seed of sampling as it was typed, for argparse."""
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise argparse.ArgumentTypeError("must be from 0 to 2^63 - 1")
    return value


def _chat(arguments: argparse.Namespace) -> int:
    if not arguments.run.is_dir():
        raise CheckpointError(f"{arguments.run}: no such directory; name the output_dir of a run")
    prepare_torch()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    from rich.console import Console

    from rlhf_kit.chat import Cast, Manner, Start, chat, typed

    cast = Cast(arguments.run)
    degrees = 0.0 if arguments.greedy else arguments.temperature
    manner = Manner(
        temperature=cast.recipe.evaluate.temperature if degrees is None else degrees,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        beams=arguments.beam or 1,
        max_new_tokens=arguments.max_new_tokens,
    )
    start = Start(
        speakers=tuple(arguments.policy),
        manner=manner,
        seed=arguments.seed,
        system=arguments.system,
        transcript=arguments.transcript,
        kind=arguments.kind,
    )
    chat(cast, typed(), Console(highlight=False), start)
    return 0
