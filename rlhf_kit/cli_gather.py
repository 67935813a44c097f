"""The part of `rlhf-kit sample` that writes answers, and what the choice of a checkpoint shares with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_kit.cli_shared import bars, vllm_url

if TYPE_CHECKING:
    from rlhf_kit.evaluation.policies import Policy
    from rlhf_kit.gathering import Gathered, Wish
    from rlhf_kit.recipe_rollout import RolloutSection
    from rlhf_kit.records import Prompt

__all__ = ["CHOSEN", "gather_answers", "server_of"]

NAMES = {"all": "answers", "ranked": "ranked", "best": "best"}
KINDS = {"all": "prompts with their answers", "ranked": "rankings", "best": "demonstrations"}
CHOSEN = ("temperature", "max_new_tokens", "seed")


def gather_answers(arguments: argparse.Namespace) -> int:
    """Has them answer, and prints the account."""
    from rlhf_kit.evaluation.choosing import home
    from rlhf_kit.evaluation.policies import answering
    from rlhf_kit.gathering import gather
    from rlhf_kit.outputs import check_outputs
    from rlhf_kit.sampling import read_prompts

    run, policies = home(arguments.places), answering(arguments.places, arguments.policy)
    prompts, repeated = read_prompts(arguments.prompts)
    wish = _wish(arguments, run, policies, prompts)
    out = arguments.out or (run or Path()) / _name(wish)
    check_outputs([arguments.prompts], [out])
    with bars() as progress:
        gathered = gather(wish, out, progress=progress)
    if arguments.style == "json":
        print(json.dumps({**gathered.to_json(), "repeated": repeated}, ensure_ascii=False))
    else:
        _print_gathered(gathered, wish, repeated)
    return 0


def _wish(
    arguments: argparse.Namespace, run: Path | None, policies: tuple[Policy, ...], prompts: Sequence[Prompt]
) -> Wish:
    from rlhf_kit.evaluation.choosing import plain_settings
    from rlhf_kit.evaluation.policies import last_recipe
    from rlhf_kit.gathering import Wish
    from rlhf_kit.sampling import judge_at, settings_of

    low, high = arguments.k or (None, None)
    given = {name: getattr(arguments, name) for name in CHOSEN}
    recipe = None if run is None else last_recipe(run)
    # Where nothing but adapters and models is named, nobody says how they are sampled.
    settings = plain_settings({"k": high or 4, **given}) if recipe is None else settings_of(recipe, k=high, **given)
    keep = _keep(arguments)
    rewards = arguments.rewards or ([run] if run and (keep != "all" or arguments.select) else [])
    return Wish(
        policies=policies,
        prompts=prompts,
        settings=settings,
        # A number of answers is the most that there may be; of a range the least is wanted too.
        least=max(low if low and low != high else 1, 2 if keep == "ranked" else 1),
        keep=keep,
        judges=tuple(map(judge_at, rewards)),
        select=arguments.select,
        take=arguments.take,
        server=server_of(arguments, None if recipe is None else recipe.ppo.rollout),
    )


def _name(wish: Wish) -> str:
    """Of the file: what it holds, and of whom, where it is one who answers."""
    who = [policy.name.replace("/", "-") for policy in wish.policies]
    return ".".join([NAMES[wish.keep], *(who if len(who) == 1 else []), "jsonl"])


def _keep(arguments: argparse.Namespace) -> Any:
    return "best" if arguments.best_of else "ranked" if arguments.rank else "all"


def server_of(arguments: argparse.Namespace, section: RolloutSection | None) -> RolloutSection | None:
    """The vLLM server that was named, where one was."""
    from rlhf_kit.sampling import server_at

    url = vllm_url(arguments.vllm)
    return None if url is None else server_at(url, arguments.vllm_adapters, section)


def _print_gathered(gathered: Gathered, wish: Wish, repeated: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{gathered.prompts:,}", "prompts")
    if repeated:
        table.add_row(f"{repeated:,}", "rows with a prompt that stood before; it was asked once")
    table.add_row(f"{gathered.answers:,}", f"answers by {', '.join(policy.name for policy in wish.policies)}")
    table.add_row(f"{gathered.eos_rate:.1%}", "of them ended by themselves")
    table.add_row(f"{gathered.tokens:.1f}", "tokens on average")
    table.add_row(f"{gathered.distinct:,}", "that differ from the others to their prompt and are not blank")
    if gathered.left_out:
        few = f"fewer than {wish.least} such answers" if wish.least > 1 else "no such answer"
        table.add_row(f"{gathered.left_out:,}", f"prompts left out: {few}")
    if gathered.not_taken:
        how = "by chance" if wish.select is None else f"by {wish.select}"
        table.add_row(f"{gathered.not_taken:,}", f"prompts not taken, {how}")
    if gathered.value is not None:
        table.add_row(f"{gathered.value[0]:.3f}", f"nats of {wish.select} on average of those taken")
        table.add_row(f"{gathered.value[1]:.3f}", "of all")
    if gathered.score is not None:
        table.add_row(f"{gathered.score:.3f}", f"mean score by {gathered.reward}")
    if gathered.kept_score is not None and wish.keep == "best":
        table.add_row(f"{gathered.kept_score:.3f}", "mean score of the best ones")
    if gathered.unended:
        table.add_row(f"{gathered.unended:,}", "best answers that were cut off: none of their prompt ended")
    table.add_row(f"{gathered.rows:,}", f"{KINDS[wish.keep]} out")
    if len(wish.policies) > 1:
        for who, answers in gathered.kept.items():
            table.add_row(f"{answers:,}", f"answers in them by {who}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"wrote {gathered.file}")
