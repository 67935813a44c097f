"""The part of `rlhf-kit sample` in which several answer, and what it shares with the rest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_kit.cli_shared import bars, vllm_url

if TYPE_CHECKING:
    from rlhf_kit.gathering import Gathered, Wish
    from rlhf_kit.recipe_rollout import RolloutSection

__all__ = ["CHOSEN", "KINDS", "NAMES", "gather_answers", "keep_of", "server_of"]

NAMES = {"all": "answers", "ranked": "ranked", "best": "best"}
KINDS = {"all": "prompts with their answers", "ranked": "rankings", "best": "demonstrations"}
CHOSEN = ("temperature", "max_new_tokens", "seed")


def gather_answers(arguments: argparse.Namespace) -> int:
    """Has several answer, or one whose prompts are selected; prints the account."""
    from rlhf_kit.evaluation.choosing import home
    from rlhf_kit.gathering import gather

    run = home(arguments.places)
    wish = _wish(arguments, run)
    out = arguments.out or (run or Path()) / f"{NAMES[wish.keep]}.jsonl"
    with bars() as progress:
        gathered = gather(wish, out, progress=progress)
    if arguments.style == "json":
        print(json.dumps(gathered.to_json(), ensure_ascii=False))
    else:
        _print_gathered(gathered, wish)
    return 0


def _wish(arguments: argparse.Namespace, run: Path | None) -> Wish:
    from rlhf_kit.evaluation.choosing import plain_settings
    from rlhf_kit.evaluation.policies import answering, last_recipe
    from rlhf_kit.gathering import Wish
    from rlhf_kit.sampling import judge_at, read_prompts, settings_of

    low, high = arguments.k or (None, None)
    given = {name: getattr(arguments, name) for name in CHOSEN}
    recipe = None if run is None else last_recipe(run)
    # Where nothing but adapters and models is named, nobody says how they are sampled.
    settings = plain_settings({"k": high or 4, **given}) if recipe is None else settings_of(recipe, k=high, **given)
    keep = keep_of(arguments)
    rewards = arguments.rewards or ([run] if run and (keep != "all" or arguments.select) else [])
    return Wish(
        policies=answering(arguments.places, arguments.policy),
        prompts=read_prompts(arguments.prompts)[0],
        settings=settings,
        least=max(low or 1, 2 if keep == "ranked" else 1),
        keep=keep,
        judges=tuple(map(judge_at, rewards)),
        select=arguments.select,
        take=arguments.take,
        server=server_of(arguments, None if recipe is None else recipe.ppo.rollout),
    )


def keep_of(arguments: argparse.Namespace) -> Any:
    """Which answers of a prompt are kept, by what was typed."""
    return "best" if arguments.best_of else "ranked" if arguments.rank else "all"


def server_of(arguments: argparse.Namespace, section: RolloutSection | None) -> RolloutSection | None:
    """The vLLM server that was named, where one was."""
    from rlhf_kit.sampling import server_at

    url = vllm_url(arguments.vllm)
    return None if url is None else server_at(url, arguments.vllm_adapters, section)


def _print_gathered(gathered: Gathered, wish: Wish) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{gathered.prompts:,}", "prompts")
    table.add_row(f"{gathered.answers:,}", f"answers by {', '.join(policy.name for policy in wish.policies)}")
    table.add_row(f"{gathered.distinct:,}", "that differ from the others to their prompt and are not blank")
    if gathered.left_out:
        table.add_row(f"{gathered.left_out:,}", f"prompts left out: fewer than {wish.least} such answers")
    if gathered.not_taken:
        how = "by chance" if wish.select is None else f"by {wish.select}"
        table.add_row(f"{gathered.not_taken:,}", f"prompts not taken, {how}")
    if gathered.value is not None:
        table.add_row(f"{gathered.value[0]:.3f}", f"nats of {wish.select} on average of those taken")
        table.add_row(f"{gathered.value[1]:.3f}", "of all")
    if gathered.score is not None:
        table.add_row(f"{gathered.score:.3f}", f"mean score by {', '.join(judge.name for judge in wish.judges)}")
    table.add_row(f"{gathered.rows:,}", f"{KINDS[wish.keep]} out")
    for who, answers in gathered.kept.items():
        table.add_row(f"{answers:,}", f"answers in them by {who}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"wrote {gathered.file}")
