"""`rlhf-kit sample`: answers of a run's policies to a file of prompts, and the choice of SFT's checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_kit.cli_shared import Command, add_vllm_options, count, temperature, times, vllm_url
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.measures import Estimate
    from rlhf_kit.recipe_rollout import RolloutSection
    from rlhf_kit.sampling import Account, Comparison, Judge, Policy, Progress, Scorer, Settings

__all__ = ["add_sample"]


def add_sample(command: Command) -> None:
    """Adds the parser of the command."""
    parser = command(
        "sample", _sample, "draw answers to prompts and keep all, ranked ones or the best; choose SFT's checkpoint"
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the output_dir of a run, or one of its stages")
    parser.add_argument(
        "--prompts", metavar="FILE", required=True, help="prompts, or demonstrations or rankings for their prompts"
    )
    parser.add_argument("--k", metavar="K", type=count, help="answers to each prompt (default: the recipe's)")
    parser.add_argument(
        "--policy", choices=("base", "sft", "ppo"), help="who answers (default: the last one that the run has)"
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
        "--reward", metavar="RUN", help="whose reward model scores: a run, or a model (default: that of RUN)"
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


def _sample(arguments: argparse.Namespace) -> int:
    if arguments.choose and not arguments.checkpoints:
        raise RlhfKitError("sample: --choose goes with --checkpoints")
    if not arguments.run.is_dir():
        raise CheckpointError(f"{arguments.run}: no such directory; name the output_dir of a run")
    vllm_url(arguments.vllm, arguments.vllm_adapters)
    prepare_torch()
    from rlhf_kit.sampling import find_policy, settings_of

    wanted = "sft" if arguments.checkpoints and arguments.policy is None else arguments.policy
    policy = find_policy(arguments.run, wanted)
    names = ("k", "temperature", "max_new_tokens", "seed")
    settings = settings_of(policy.recipe, **{name: getattr(arguments, name) for name in names})
    if arguments.checkpoints:
        return _checkpoints(arguments, policy, settings)
    from rlhf_kit.sampling import sample_file

    server = _server(arguments, policy)

    keep: Any = "best" if arguments.best_of else "ranked" if arguments.rank else "all"
    judge = _judge(policy, arguments.reward) if keep != "all" or arguments.reward else None
    out = arguments.out or policy.run / f"{_NAMES[keep]}.{_place(policy)}.jsonl"
    with _bars() as progress:
        account = sample_file(
            policy, arguments.prompts, out, settings, keep=keep, judge=judge, server=server, progress=progress
        )
    if arguments.style == "json":
        print(json.dumps(account.to_json(), ensure_ascii=False))
    else:
        _print_account(account, keep)
    return 0


_NAMES = {"all": "answers", "ranked": "ranked", "best": "best"}


def _place(policy: Policy) -> str:
    return policy.name if policy.directory is None else policy.directory.absolute().name


def _server(arguments: argparse.Namespace, policy: Policy) -> RolloutSection | None:
    from rlhf_kit.sampling import server_at

    url = vllm_url(arguments.vllm)
    return None if url is None else server_at(url, arguments.vllm_adapters, policy.recipe.ppo.rollout)


def _judge(policy: Policy, name: str | None) -> Judge:
    """The reward model that is named, or the run's own; it is loaded later, when the policy is gone.

    Raises:
        CheckpointError: the run has none, or it is damaged.
    """
    from rlhf_kit.checkpoint import read_manifest
    from rlhf_kit.files import sha256_of
    from rlhf_kit.rewards import stage_of
    from rlhf_kit.sampling import Judge

    place = policy.run if name is None else Path(name)
    stage = stage_of(place)
    if stage is None and name is None:
        raise CheckpointError(f"{policy.run}: has no finished reward stage; name another run's with --reward")

    def load() -> Scorer:
        from rlhf_kit.reward_model import RewardModel

        return RewardModel.open(str(stage or name))

    if stage is not None:  # called as its run is, wherever that stands on this machine
        return Judge(stage.resolve().parent.name, read_manifest(stage).files, load)
    return Judge(str(name), sha256_of(str(place)) if place.is_dir() else None, load)


def _checkpoints(arguments: argparse.Namespace, policy: Policy, settings: Settings) -> int:
    from rlhf_kit.sampling import candidates, choose, judge_checkpoints

    judge = _judge(policy, arguments.reward)
    out = arguments.out or policy.run / f"{_place(policy)}.checkpoints.json"
    with _bars() as progress:
        compared = judge_checkpoints(
            policy, arguments.prompts, out, settings, judge, progress, server=_server(arguments, policy)
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


@contextmanager
def _bars() -> Iterator[Progress]:
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
    kinds = {"all": "prompts with their answers", "ranked": "rankings", "best": "demonstrations"}
    table.add_row(f"{account.rows:,}", f"{kinds[keep]} out")
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
