"""One round from the newest policy's answers to the next policy: sample, label, reward model, PPO, evaluation.

Each step is done once. Whatever was interrupted goes on where it was, because every step finds what is finished by what
it was made from.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_kit import files, pipeline
from rlhf_kit.checkpoint import read_manifest, write_json
from rlhf_kit.errors import Problem, RecipeError, RlhfKitError
from rlhf_kit.evaluation.evaluating import Wish, evaluate
from rlhf_kit.evaluation.policies import BASE, PPO, SFT, Policy
from rlhf_kit.evaluation.stage import EVALUATION, own_judges
from rlhf_kit.gathering import Wish as Gathering
from rlhf_kit.gathering import gather
from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.pipeline import REWARD
from rlhf_kit.recipe import Recipe, lacks_for_rounds
from rlhf_kit.records import Prompt, Ranking, prompt_name
from rlhf_kit.rounds.freshness import freshness
from rlhf_kit.rounds.labels import check_labels, identity_of, label
from rlhf_kit.rounds.places import KEPT, ROUND, Round, next_round
from rlhf_kit.rounds.steps import once
from rlhf_kit.sampling.drawing import Progress, only_process, settings_of, silent
from rlhf_kit.sampling.judges import judge_at
from rlhf_kit.sampling.prompts import read_prompts

__all__ = ["go_round"]

log = logging.getLogger(__name__)


def go_round(
    recipe: Recipe,
    *,
    told: Callable[[str], None] = log.info,
    browser: bool = False,
    train: bool = True,
    progress: Progress = silent,
) -> Round:
    """The next round of a recipe, or the rest of one that was interrupted.

    Args:
        told: is told the links of the page, where people label.
        browser: whether one is opened.
        train: False ends when the labels are there, so that something else can train on them; the round is not finished
            then.

    Raises:
        RecipeError: it lacks something that rounds need.
        RlhfKitError: labels that are not there yet, or whatever a step raises; the same goes on.
    """
    only_process()
    if problems := [Problem("recipe", field, reason) for field, reason in lacks_for_rounds(recipe)]:
        raise RecipeError(problems)
    one = next_round(recipe)
    check_labels(one)
    log.info("round %d: in %s", one.number, one.directory)
    _check_start(one)
    _start(one)
    one.directory.mkdir(parents=True, exist_ok=True)
    one.write_recipe()
    earlier = [files.load(str(other.labels), "ranking") for other in one.earlier[1:]]
    drawn = _sample(one, earlier, progress)
    made_from = {"answers": files.sha256_of(str(one.answers)), "labels": identity_of(one)}
    given = once(one.labels, made_from, lambda: label(one, one.answers, one.labels, told, browser=browser))
    fresh = files.load(str(one.labels), "ranking")
    _gather_rankings(one, [*earlier, fresh])
    if not train:
        return one
    _train(one)
    started = time.monotonic()
    _evaluate(one)
    found = {"round": one.number, "reward_fresh": freshness(one, fresh)}
    seconds = {
        "sample": drawn["seconds"],
        "label": given["seconds"],
        "reward": sum(read_manifest(reward).seconds for reward in one.rewards),
        "ppo": read_manifest(one.directory / PPO).seconds,
        "evaluation": round(time.monotonic() - started, 1),
    }
    labels = {name: given[name] for name in ("rankings", "pairs", "labelers", "labeler_seconds")}
    write_json(one.directory / ROUND, {**found, "labels": labels, "answers": drawn["gathered"], "seconds": seconds})
    log.info("round %d: done", one.number)
    return one


def _check_start(one: Round) -> None:
    """Raises `RlhfKitError` where the finished rounds started from another policy than this recipe makes: they would be
    compared with one that they have nothing to do with."""
    if one.number == 1:
        return
    first = Round(1, one.home, one.whole)
    was_base = read_manifest(first.directory / PPO).recipe["ppo"]["init"] == BASE
    if was_base != (one.start.policy is None):
        found = [f"data.demonstrations: the others started from {'the base' if was_base else SFT.upper()}"]
    elif was_base:
        found = [line for line in pipeline.changes(first.recipe, PPO) if line.startswith("model")]
    else:
        found = pipeline.changes(one.whole, SFT)
    if found:
        raise RlhfKitError(
            f"round {one.number}: this recipe has another start than the rounds before it: {'; '.join(found)}. Go on "
            "with theirs, or name another output_dir"
        )


def _start(one: Round) -> None:
    """What all rounds start from: SFT, and a reward model where there are rankings already."""
    recipe = one.whole
    wanted = {SFT: recipe.data.demonstrations, REWARD: recipe.data.rankings}
    steps = [name for name, source in wanted.items() if source is not None]
    records = pipeline.load_data(recipe, steps)
    for name in steps:
        pipeline.run_records(recipe, name, records)


# -------------------------------------------------------------------- answers


def _sample(one: Round, earlier: Sequence[Sequence[Ranking]], progress: Progress) -> dict[str, Any]:
    section = one.whole.round
    judges = one.before.rewards
    select = section.select if len(judges) >= (2 if section.select == "disagreement" else 1) else None
    if section.select is not None and select is None:
        log.info("round %d: no reward models yet to select by: prompts are taken by chance", one.number)
    number = section.prompts_per_round * (section.candidates if select else 1)
    prompts = _prompts(one, earlier)[:number]
    wish = Gathering(
        policies=_answering(one),
        prompts=prompts,
        settings=settings_of(one.recipe, k=section.k, temperature=section.temperature),
        least=section.least,
        judges=tuple(judge_at(reward) for reward in judges) if select else (),
        select=select,
        take=section.prompts_per_round,
    )

    def draw() -> dict[str, Any]:
        found = gather(wish, one.answers, kept=one.home / KEPT, progress=progress)
        log.info("round %d: %d prompts with %d answers", one.number, found.rows, found.distinct)
        return {"gathered": found.to_json()}

    return once(one.answers, wish.inputs, draw)


def _prompts(one: Round, earlier: Sequence[Sequence[Ranking]]) -> list[Prompt]:
    """In an order by the seed, those first that were labelled least often."""
    source = one.whole.round.prompts or one.whole.data.prompts
    assert source is not None  # checked
    prompts, _ = read_prompts(source)
    random.Random(one.whole.seed).shuffle(prompts)
    labelled = Counter(prompt_name(ranking.prompt) for rankings in earlier for ranking in rankings)
    return sorted(prompts, key=lambda prompt: labelled[prompt_name(prompt.prompt)])


def _answering(one: Round) -> tuple[Policy, ...]:
    places = {
        "newest": (one.before.name, one.before.policy),
        "start": (one.start.name, one.start.policy),
        BASE: (BASE, None),
    }
    found: dict[str, Policy] = {}
    for who in dict.fromkeys(one.whole.round.policies):
        name, adapter = places[who]
        policy = Policy(name, name, one.whole.model, adapter, one.whole.data.max_prompt_length)
        found.setdefault(policy.identity, policy)
    return tuple(found.values())


# -------------------------------------------------------------------- training


def _gather_rankings(one: Round, of_rounds: Sequence[Sequence[Ranking]]) -> None:
    """The rankings of all rounds in one file, and before them those that the rounds started with."""
    sources, first = [str(r.labels) for r in (*one.earlier[1:], one)], one.whole.data.rankings
    if first is not None:
        sources.insert(0, first)

    def write() -> dict[str, Any]:
        rankings = [*(files.load(first, "ranking") if first is not None else ()), *chain(*of_rounds)]
        with Files([one.rankings]) as written:
            for ranking in rankings:
                written.write(one.rankings, json_line(row_of(ranking)))
        return {"rankings": len(rankings)}

    once(one.rankings, {"sources": [files.sha256_of(source) for source in sources]}, write)


def _train(one: Round) -> None:
    """The reward models, each with a seed of its own, and the policy."""
    records = pipeline.load_data(one.recipe, [REWARD])
    for number in range(1, one.whole.round.ensemble + 1):
        seeded = one.recipe.model_copy(update={"seed": (one.recipe.seed + 1000 * (number - 1)) % 2**32})
        out = None if number == 1 else one.directory / f"{REWARD}-{number}"
        pipeline.run_records(seeded, REWARD, records, out)
    pipeline.run_step(one.recipe, PPO)


# -------------------------------------------------------------------- comparison


def _evaluate(one: Round) -> None:
    """All rounds so far on the held-out prompts, by the newest reward model and the rubric; `evaluation.json`."""
    recipe = one.recipe
    assert recipe.data.prompts_heldout is not None  # checked
    prompts, _ = read_prompts(recipe.data.prompts_heldout)
    judges = own_judges(recipe, one.directory / REWARD)
    start, *between = one.earlier
    wish = Wish(
        # The newest stands behind the start: what changed and what it cost is told of the first two.
        policies=tuple(map(_policy, (start, one, *reversed(between)))),
        prompts=prompts,
        prompts_file=Path(recipe.data.prompts_heldout).name,
        settings=settings_of(one.whole),
        judges=judges,
        resamples=recipe.evaluate.bootstrap,
        confidence=recipe.evaluate.confidence,
    )
    found = evaluate(wish, one.home / KEPT)
    out = one.directory / "evaluation"
    out.mkdir(exist_ok=True)
    write_json(out / EVALUATION, found)


def _policy(one: Round) -> Policy:
    """A round's policy for the comparison; the KL of all is measured from what the rounds started from."""
    start = one.start.policy
    stage = (SFT if start is not None else BASE) if one.number == 0 else PPO
    updates = read_manifest(one.directory / PPO).metrics.get("updates") if one.number else None
    return Policy(
        name=one.name,
        label=f"Round {one.number}",
        model=one.whole.model,
        adapter=one.policy,
        max_prompt_length=one.whole.data.max_prompt_length,
        run=one.directory,
        stage=stage,
        updates=updates,
        held_to=start if one.number else None,
    )
