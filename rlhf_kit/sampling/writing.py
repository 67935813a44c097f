"""From drawn answers to a file: all answers of a prompt, ranked ones, or the best one.

Answers that nobody ranked yet are no ranking, and the format has no kind of their own for them: they stand in the
`meta` of a prompt row, which every reader of prompts takes. The best answers are demonstrations: another round of SFT
on them is rejection sampling (arXiv 2307.09288, section 3.2.3).
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_kit import files
from rlhf_kit.checkpoint import open_work
from rlhf_kit.data import Encoder
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.outputs import Files, check_outputs, json_line, row_of
from rlhf_kit.reasons import NON_BLANK
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.records import Conversation, Demonstration, Prompt, Ranking, Record, Response
from rlhf_kit.sampling.drawing import Answer, Progress, Settings, drawn_answers, sample_answers, silent
from rlhf_kit.sampling.judges import Judge
from rlhf_kit.sampling.policy import Policy, load_policy, only_process, read_prompts
from rlhf_kit.sampling.scoring import best_of, distinct, score_answers
from rlhf_kit.sampling.served import Server

log = logging.getLogger(__name__)

Keep = Literal["all", "ranked", "best"]
MOST_RANKED = 64


@dataclass(frozen=True)
class Account:
    """What became of the prompts.

    Attributes:
        repeated: rows whose prompt stood in an earlier one; they were asked once.
        answers: drawn in all.
        distinct: of them, texts that differ from the others to the same prompt.
        eos_rate: share of the drawn answers that the model ended itself.
        tokens: mean length of the drawn answers, EOS included.
        score: mean of all drawn answers.
        kept_score: mean of those that stand in the file.
        unended: best answers that were cut off, since none of their prompt ended.
        left_out: prompts without a row: no answer but blank ones, or fewer than two to rank.
    """

    policy: str
    reward: str | None
    file: str
    rows: int
    prompts: int
    repeated: int
    answers: int
    distinct: int
    eos_rate: float
    tokens: float
    score: float | None
    kept_score: float | None
    unended: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def sample_file(
    policy: Policy,
    source: str,
    out: Path,
    settings: Settings,
    *,
    keep: Keep = "all",
    judge: Judge | None = None,
    server: RolloutSection | None = None,
    progress: Progress = silent,
) -> Account:
    """Draws answers to the prompts of `source` and writes one row a prompt; goes on where the same was interrupted.

    Args:
        keep: all answers in a prompt row's `meta.responses`; `ranked` ones by their score in a ranking; or the `best`
            one as a demonstration.
        judge: needed but for `all`.
        server: a vLLM server of the policy's base, which draws the answers; None draws them here.

    Raises:
        DataError: every bad row of the prompts; an output that cannot be written.
        RlhfKitError: settings that cannot be, or several processes.
        ModelError, CheckpointError: policy or reward model cannot be loaded or used.
        EngineError: the server cannot be used; what it has drawn is kept.
    """
    only_process()
    if keep != "all" and judge is None:
        raise RlhfKitError("sample: best and ranked answers need a reward model")
    if keep == "ranked" and not 2 <= settings.k <= MOST_RANKED:
        raise RlhfKitError(f"sample: a ranking holds 2 to {MOST_RANKED} answers, not {settings.k}")
    check_outputs([source], [out])
    prompts, repeated = read_prompts(source)
    inputs = {
        **inputs_of(policy, source, settings, server),
        "keep": keep,
        "reward": judge and [judge.name, judge.identity],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    work = open_work(out, inputs)
    drawn = _draw(policy, prompts, settings, server, work, progress)
    merged = [distinct(row) for row in drawn]
    if judge is not None:
        merged = score_answers(judge.load(), [p.prompt for p in prompts], merged, kept=work, progress=progress)
    name = None if judge is None else judge.name
    kept = [chosen(keep, answers) for answers in merged]
    rows = write_rows(out, zip(prompts, kept, strict=True), keep, settings.k, policy.name, str(name))
    shutil.rmtree(work)
    return Account(
        policy=policy.name,
        reward=name,
        file=str(out),
        rows=rows,
        prompts=len(prompts),
        repeated=repeated,
        answers=sum(map(len, drawn)),
        distinct=sum(map(len, merged)),
        eos_rate=float(np.mean([answer.ended for row in drawn for answer in row])),
        tokens=float(np.mean([answer.tokens for row in drawn for answer in row])),
        score=mean_score(merged),
        kept_score=mean_score([[replace(a, count=1) for a in row] for row in kept] if keep == "best" else kept),
        unended=sum(not row[0].ended for row in kept if row) if keep == "best" else 0,
        left_out=sum(not row for row in kept),
    )


def mean_score(answers: Sequence[Sequence[Answer]]) -> float | None:
    """Over all draws; None where there are no scores."""
    flat = [(answer.score, answer.count) for row in answers for answer in row if answer.score is not None]
    return float(np.average([s for s, _ in flat], weights=[count for _, count in flat])) if flat else None


def _draw(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: Settings,
    section: RolloutSection | None,
    work: Path,
    progress: Progress,
) -> list[list[Answer]]:
    asked = [prompt.prompt for prompt in prompts]
    if section is not None:
        server = Server(section, policy.recipe.model, [policy.directory], work / "adapters")
        try:
            return served_answers(server, policy, policy.directory, asked, settings, work, policy.name, progress)
        finally:
            server.close()
    backbone, encoder = load_policy(policy)  # gone from memory before a reward model comes
    role = None if policy.directory is None else policy.name
    return sample_answers(backbone, encoder, asked, settings, role=role, kept=work, name=policy.name, progress=progress)


def served_answers(
    server: Server,
    policy: Policy,
    adapter: Path | None,
    asked: Sequence[Conversation],
    settings: Settings,
    work: Path,
    name: str,
    progress: Progress,
) -> list[list[Answer]]:
    """`sample_answers` of a policy with this adapter in the place of its own, drawn by a server."""
    encoder = Encoder(server.tokenizer, max_prompt_length=policy.recipe.data.max_prompt_length)

    def draw(some: Sequence[list[int]], chunk: int, told: Callable[[int], None]) -> list[list[int]]:
        return [list(one.ids) for one in server.draw_chunk(adapter, some, settings, chunk, told)]

    return drawn_answers(draw, encoder, asked, settings, kept=work, name=name, progress=progress)


def inputs_of(policy: Policy, source: str, settings: Settings, server: RolloutSection | None = None) -> dict[str, Any]:
    """Everything that the answers depend on, as JSON; which server it is does not count, but that one draws does."""
    model = policy.recipe.model.model_dump()
    if policy.recipe.model.chat_template is not None:
        model["chat_template"] = files.sha256_of(policy.recipe.model.chat_template)
    return {
        "policy": policy.name,
        "weights": policy.hashes,
        "model": model,
        "max_prompt_length": policy.recipe.data.max_prompt_length,
        "prompts": files.sha256_of(source),
        "settings": asdict(settings),
        **({} if server is None else {"engine": server.engine}),
    }


# -------------------------------------------------------------------- rows


def chosen(keep: Keep, answers: Sequence[Answer]) -> list[Answer]:
    """The answers of one prompt that stand in its row; none where there is no row: blank answers are neither ranked
    nor the best, and a ranking needs two."""
    if keep == "all":
        return list(answers)
    if keep == "best":
        best = best_of(answers)
        return [] if best is None else [best]
    said = [answer for answer in answers if re.search(NON_BLANK, answer.text)]
    return said if len(said) > 1 else []


def write_rows(
    out: Path,
    kept: Iterable[tuple[Prompt, Sequence[Answer]]],
    keep: Keep,
    of: int,
    policy: str | None,
    reward: str,
) -> int:
    """Writes a row for each prompt of whose answers some were `chosen`; returns how many.

    Args:
        of: how many answers to a prompt were drawn.
        policy: who gave them, where it was one.
        reward: who scored them.

    Raises:
        DataError: the file cannot be written.
    """
    rows = 0
    with Files([out]) as written:
        for prompt, answers in kept:
            if answers:
                written.write(out, json_line(row_of(_row(keep, prompt, answers, of, policy, reward))))
                rows += 1
    return rows


def _row(keep: Keep, prompt: Prompt, kept: Sequence[Answer], of: int, policy: str | None, reward: str) -> Record:
    if keep == "all":
        return prompt_row(prompt, kept, policy)
    if keep == "ranked":
        return ranking_row(prompt, kept, policy, reward)
    return demonstration_row(prompt, kept[0], of, policy, reward)


def prompt_row(prompt: Prompt, answers: Sequence[Answer], policy: str | None) -> Prompt:
    """The prompt with all its answers in `meta.responses`, for people to rank: text, ended, tokens, count, and score
    and source where they are known.

    Args:
        policy: who gave all of them, for `meta.policy`; None takes out what stood there.
    """
    responses = [{name: value for name, value in asdict(answer).items() if value is not None} for answer in answers]
    meta = {key: value for key, value in prompt.meta.items() if key != "policy"}
    by = {} if policy is None else {"policy": policy}
    return prompt.model_copy(update={"meta": {**meta, **by, "responses": responses}})


def ranking_row(prompt: Prompt, answers: Sequence[Answer], policy: str | None, reward: str) -> Ranking:
    """The answers ranked by their scores, equal ones tied; `meta.scores` has the scores in the order of the answers."""
    scores = [float(answer.score or 0.0) for answer in answers]
    better = sorted(set(scores), reverse=True)
    responses = tuple(
        Response(text=answer.text, rank=better.index(score) + 1, source=answer.source or policy, ended=answer.ended)
        for answer, score in zip(answers, scores, strict=True)
    )
    meta = {**prompt.meta, "scores": scores}
    return Ranking(responses=responses, labeler=f"reward:{reward}", meta=meta, **_shared(prompt, Ranking))


def demonstration_row(prompt: Prompt, best: Answer, of: int, policy: str | None, reward: str) -> Demonstration:
    """The best answer, with its score, how many it is the best of, whether it ended, and who wrote and judged it."""
    said = {"score": best.score, "of": of, "ended": best.ended, "policy": best.source or policy, "reward": reward}
    return Demonstration(completion=best.text, meta={**prompt.meta, **said}, **_shared(prompt, Demonstration))


def _shared(prompt: Prompt, kind: type[Record]) -> dict[str, Any]:
    kept = {"prompt", "category", "kind", "origin", "user_id", "id"} & set(kind.model_fields)
    return {name: getattr(prompt, name) for name in kept}
