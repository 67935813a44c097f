"""`rlhf-kit sample`: answers of policies to a file of prompts, for labelers, and the choice of SFT's checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.cli_gather import CHOSEN, KINDS, NAMES, gather_answers, keep_of, server_of
from rlhf_kit.cli_shared import Command, add_vllm_options, bars, count, temperature, times, vllm_url
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.measures import Estimate
    from rlhf_kit.sampling import Account, Comparison, Policy, Settings

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
        help="the output_dir of a run, or one of its stages; several answer with --policy or where further ones are "
        "named (runs, adapters, models, Hub ids), and each text comes once",
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
        "--temperature", metavar="T", type=temperature, help="0 takes the likeliest token (default: the recipe's)"
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
    return (count(low), count(high)) if dots else (count(text), count(text))


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
    low, high = arguments.k or (None, None)
    several = len(arguments.places) > 1 or len(arguments.policy) > 1 or len(arguments.rewards) > 1
    if several or low != high or arguments.select or arguments.take:
        if arguments.checkpoints:
            raise RlhfKitError("sample: --checkpoints compares those of one run by one reward model and K answers each")
        prepare_torch()
        return gather_answers(arguments)
    run = Path(arguments.places[0])
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such directory; name the output_dir of a run")
    prepare_torch()
    from rlhf_kit.sampling import find_policy, settings_of

    wanted = "sft" if arguments.checkpoints and not arguments.policy else next(iter(arguments.policy), None)
    policy = find_policy(run, wanted)
    settings = settings_of(policy.recipe, k=high, **{name: getattr(arguments, name) for name in CHOSEN})
    if arguments.checkpoints:
        return _checkpoints(arguments, policy, settings)
    from rlhf_kit.sampling import judge_at, sample_file

    reward = next(iter(arguments.rewards), None)
    keep = keep_of(arguments)
    judge = judge_at(reward or policy.run) if keep != "all" or reward else None
    out = arguments.out or policy.run / f"{NAMES[keep]}.{_place(policy)}.jsonl"
    with bars() as progress:
        account = sample_file(
            policy,
            arguments.prompts,
            out,
            settings,
            keep=keep,
            judge=judge,
            server=server_of(arguments, policy.recipe.ppo.rollout),
            progress=progress,
        )
    if arguments.style == "json":
        print(json.dumps(account.to_json(), ensure_ascii=False))
    else:
        _print_account(account, keep)
    return 0


def _place(policy: Policy) -> str:
    return policy.name if policy.directory is None else policy.directory.absolute().name


def _checkpoints(arguments: argparse.Namespace, policy: Policy, settings: Settings) -> int:
    from rlhf_kit.sampling import candidates, choose, judge_at, judge_checkpoints

    judge = judge_at(next(iter(arguments.rewards), policy.run))
    out = arguments.out or policy.run / f"{_place(policy)}.checkpoints.json"
    with bars() as progress:
        compared = judge_checkpoints(
            policy,
            arguments.prompts,
            out,
            settings,
            judge,
            progress,
            server=server_of(arguments, policy.recipe.ppo.rollout),
        )
    chosen, line = None, f"wrote {out}"
    if arguments.choose and policy.directory is not None:
        best = next(candidate for candidate in candidates(policy.directory) if candidate.name == compared.best)
        choose(policy.directory, best, compared)
        chosen = best.name
        after = "was that already" if best.current else "is that now; what starts from it runs again with rlhf-kit run"
        line += f"\n{policy.directory} {after}"
    if arguments.style == "json":
        print(json.dumps({**compared.to_json(), "chosen": chosen, "file": str(out)}, ensure_ascii=False))
    else:
        _print_comparison(compared, line)
    return 0


def _print_account(account: Account, keep: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{account.prompts:,}", "prompts")
    if account.repeated:
        table.add_row(f"{account.repeated:,}", "rows with a prompt that stood before; it was asked once")
    table.add_row(f"{account.answers:,}", f"answers by {account.policy}")
    table.add_row(f"{account.distinct:,}", "that differ from the others to their prompt")
    table.add_row(f"{account.eos_rate:.1%}", "ended by themselves")
    table.add_row(f"{account.tokens:.1f}", "tokens on average")
    if account.score is not None:
        table.add_row(f"{account.score:.3f}", f"mean score by {account.reward}")
    if account.kept_score is not None and keep == "best":
        table.add_row(f"{account.kept_score:.3f}", "mean score of the best ones")
    if account.left_out:
        need = "an answer that is not blank" if keep == "best" else "two answers that differ and are not blank"
        table.add_row(f"{account.left_out:,}", f"prompts left out: none had {need}")
    if account.unended:
        table.add_row(f"{account.unended:,}", "best answers that were cut off: none of their prompt ended")
    table.add_row(f"{account.rows:,}", f"{KINDS[keep]} out")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"wrote {account.file}")


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
