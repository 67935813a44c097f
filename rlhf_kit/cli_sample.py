"""`rlhf-kit sample`: answers of policies to a file of prompts, for labelers, and the choice of SFT's checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.cli_gather import CHOSEN, gather_answers, server_of
from rlhf_kit.cli_shared import Command, add_vllm_options, bars, count, temperature, times, vllm_url
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.gathering import Comparison
    from rlhf_kit.measures import Estimate

__all__ = ["add_sample"]


def add_sample(command: Command) -> None:
    """Adds the parser of the command."""
    parser = command(
        "sample", _sample, "draw answers to prompts and keep all, ranked ones or the best; choose SFT's checkpoint"
    )
    parser.add_argument(
        "places",
        metavar="[LABEL=]RUN",
        nargs="+",
        help="who answers: the output_dir of a run, one of its stages, an adapter, a model or a Hub id; a text that "
        "several give comes once",
    )
    parser.add_argument(
        "--prompts", metavar="FILE", required=True, help="prompts, or demonstrations or rankings for their prompts"
    )
    parser.add_argument(
        "--k",
        metavar="K",
        type=_between,
        help="answers to each prompt (default: the recipe's); 4..9 keeps those that differ, 4 at least, 9 at most",
    )
    parser.add_argument(
        "--policy",
        metavar="NAME,…",
        type=_policies,
        default=(),
        help="who of a run answers: base, sft, ppo, or several (default: the last one that the run has)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--best-of", action="store_true", help="keep the answer that the reward model scores best, as a demonstration"
    )
    what.add_argument("--rank", action="store_true", help="rank the answers by the reward model's scores")
    what.add_argument(
        "--checkpoints", action="store_true", help="compare the checkpoints of SFT by the scores of their answers"
    )
    parser.add_argument("--choose", action="store_true", help="with --checkpoints: make the best one SFT's result")
    parser.add_argument(
        "--reward",
        metavar="RUN",
        dest="rewards",
        action="append",
        default=[],
        help="whose reward model scores: a run, or a model (default: that of RUN); may come several times",
    )
    parser.add_argument(
        "--select",
        choices=("uncertainty", "disagreement"),
        help="keep the prompts on whose answers the reward model is least sure, or several disagree most",
    )
    parser.add_argument(
        "--take", metavar="N", type=count, help="how many prompts are kept (without --select: by chance)"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: in RUN; the account says where")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=temperature,
        help="0 takes the likeliest token, with --k 1 (default: the recipe's)",
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=count, help="length of an answer at most (default: the recipe's)"
    )
    parser.add_argument("--seed", metavar="N", type=times, help="the same one draws the same (default: the recipe's)")
    add_vllm_options(parser)
    parser.add_argument("--format", dest="style", choices=("text", "json"), default="text", help="of the account")


def _between(text: str) -> tuple[int, int]:
    """`6` or `4..9` as the least and the most."""
    low, dots, high = text.partition("..")
    try:
        return (count(low), count(high)) if dots else (count(text), count(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("must be a number such as 6, or a range such as 4..9") from None


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if wrong := [name for name in names if name not in _POLICIES]:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: not among {', '.join(_POLICIES)}")
    return names


_POLICIES = ("base", "sft", "ppo")


def _sample(arguments: argparse.Namespace) -> int:
    if arguments.choose and not arguments.checkpoints:
        raise RlhfKitError("sample: --choose goes with --checkpoints")
    vllm_url(arguments.vllm, arguments.vllm_adapters)
    prepare_torch()
    return _checkpoints(arguments) if arguments.checkpoints else gather_answers(arguments)


def _checkpoints(arguments: argparse.Namespace) -> int:
    low, high = arguments.k or (None, None)
    several = any(len(named) > 1 for named in (arguments.places, arguments.policy, arguments.rewards))
    if several or low != high or arguments.select or arguments.take:
        raise RlhfKitError("sample: --checkpoints compares those of one run by one reward model and K answers each")
    from rlhf_kit.checkpoint import read_manifest, recipe_of
    from rlhf_kit.evaluation.policies import answering
    from rlhf_kit.gathering import candidates, choose, judge_checkpoints
    from rlhf_kit.sampling import judge_at, settings_of

    (policy,) = answering(arguments.places, arguments.policy or ("sft",))
    stage, run = policy.adapter, policy.run
    if stage is None or run is None or policy.stage != "sft":
        raise CheckpointError(f"{arguments.places[0]}: checkpoints are those of the SFT stage, not of {policy.name}")
    recipe = recipe_of(read_manifest(stage), stage)
    judge = judge_at(next(iter(arguments.rewards), run))
    out = arguments.out or run / f"{stage.name}.checkpoints.json"
    with bars() as progress:
        compared = judge_checkpoints(
            policy,
            arguments.prompts,
            out,
            settings_of(recipe, k=high, **{name: getattr(arguments, name) for name in CHOSEN}),
            judge,
            progress,
            server=server_of(arguments, recipe.ppo.rollout),
        )
    chosen, line = None, f"wrote {out}"
    if arguments.choose:
        best = next(candidate for candidate in candidates(stage) if candidate.name == compared.best)
        choose(stage, best, compared)
        chosen = best.name
        after = "was that already" if best.current else "is that now; what starts from it runs again with rlhf-kit run"
        line += f"\n{stage} {after}"
    if arguments.style == "json":
        print(json.dumps({**compared.to_json(), "chosen": chosen, "file": str(out)}, ensure_ascii=False))
    else:
        _print_comparison(compared, line)
    return 0


def _print_comparison(compared: Comparison, end: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", "score", "less the best's", "ended", "tokens"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for row in compared.standings:
        behind = "best" if row.behind is None else _with_interval(row.behind, "+.3f")
        score = _with_interval(row.score, ".3f")
        table.add_row(row.name, score, behind, f"{row.eos_rate:.1%}", f"{row.tokens:.1f}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    close = [row.name for row in compared.standings if row.behind is not None and row.behind.high >= 0]
    asked = f"{compared.prompts:,} prompts, {compared.k} answers to each"
    console.print(f"scored by {compared.reward} on {asked}; the best: {compared.best}")
    if close:
        console.print(f"not surely worse: {', '.join(close)}; more prompts would tell")
    console.print(end)


def _with_interval(estimate: Estimate, form: str) -> str:
    return f"{estimate.value:{form}} [{estimate.low:.2f}, {estimate.high:.2f}]"
