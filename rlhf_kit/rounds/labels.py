"""Rankings of a round's answers: by people on the page, from a file, or by whatever scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_kit import files
from rlhf_kit.data import columns_of
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.evaluation.evaluated import RUBRIC
from rlhf_kit.evaluation.judges.base import Answer as Shown
from rlhf_kit.evaluation.judges.base import Judge, Question
from rlhf_kit.evaluation.judges.choose import judges_named
from rlhf_kit.evaluation.stage import own_judges
from rlhf_kit.files import sha256_of
from rlhf_kit.measures import Floats
from rlhf_kit.outputs import Files, json_line, row_of
from rlhf_kit.ranked_files import read_rankings
from rlhf_kit.recipe_round import PAGE
from rlhf_kit.records import Prompt, Ranking, prompt_name
from rlhf_kit.rounds.places import KEPT, Round
from rlhf_kit.sampling.drawing import Answer
from rlhf_kit.sampling.writing import ranking_row

__all__ = ["check_labels", "identity_of", "is_file", "label"]

log = logging.getLogger(__name__)

Told = Callable[[str], None]


def identity_of(one: Round) -> list[Any]:
    """What the labels depend on beside the answers, as JSON: settings, and the content of files."""
    section = one.whole.round
    words = [_named(word, one) for word in section.judges]
    if section.judges == (PAGE,):
        return [PAGE, section.overlap, list(section.labelers)]
    return [[word, _content(word, one)] for word in words]


def check_labels(one: Round) -> None:
    """Raises `RlhfKitError` where those who shall score the answers cannot be had; a file of labels may come later."""
    words = one.whole.round.judges
    if words != (PAGE,) and not is_file(words[0]):
        _judges(one)


def label(one: Round, answers: Path, out: Path, told: Told, *, browser: bool) -> dict[str, Any]:
    """Writes the rankings of a round's answers; returns how many, by whom, and what it took.

    Args:
        answers: rows as `gathering.gather` writes them.
        told: is told the links of the page.
        browser: whether one is opened.

    Raises:
        RlhfKitError: the labels are not all there yet; the same command goes on.
        DataError: rows that are wrong.
    """
    words = one.whole.round.judges
    if words == (PAGE,):
        rankings = _by_people(one, answers, told, browser)
    elif len(words) == 1 and is_file(words[0]):
        rankings = _from_file(one, answers, _named(words[0], one))
    else:
        rankings = _by_judges(one, answers, one.home / KEPT)
    if not any(ranking.pairs for ranking in rankings):
        raise DataError([Problem(str(answers), "", "all answers were ranked the same: there is nothing to learn")])
    with Files([out]) as written:
        for number, ranking in enumerate(rankings, 1):
            # A name of its own: the rankings of all rounds stand in one file.
            named = ranking.model_copy(update={"id": f"{one.name}-{number}"})
            written.write(out, json_line(row_of(named)))
    seconds = [float(ranking.meta.get("seconds") or 0.0) for ranking in rankings]
    return {
        "rankings": len(rankings),
        "pairs": sum(len(ranking.pairs) for ranking in rankings),
        "labelers": sorted({str(ranking.labeler) for ranking in rankings if ranking.labeler is not None}),
        "labeler_seconds": round(sum(seconds), 1),
    }


def is_file(word: str) -> bool:
    """Whether `round.labels` means a file of rankings."""
    return word.endswith((".jsonl", ".json", ".jsonl.gz"))


def _named(word: str, one: Round) -> str:
    return word.replace("{round}", str(one.number))


def _content(word: str, one: Round) -> str | None:
    """A hash of the file that decides what is said, where there is one."""
    if word == RUBRIC:
        word = one.whole.data.rubric or ""
    file = word if Path(word).exists() else word.rpartition(":")[0]
    return sha256_of(file) if file and Path(file).exists() else None


# -------------------------------------------------------------------- people


def _by_people(one: Round, answers: Path, told: Told, browser: bool) -> list[Ranking]:
    """Serves the page until each task is ranked, or was skipped by everybody; what was given before counts."""
    from rlhf_kit.labeling.assignment import Settings
    from rlhf_kit.labeling.exporting import records
    from rlhf_kit.labeling.serving import Serving, lingering, serve
    from rlhf_kit.labeling.store import Store
    from rlhf_kit.labeling.tasks import read_tasks
    from rlhf_kit.labeling.watching import Watch

    section, number, batch = one.whole.round, f"round {one.number}", sha256_of(str(answers))
    store = Store(answers.with_name("labels.sqlite"))
    try:
        first = float(store.progress().tasks)  # those that were drawn before the answers became others come last
        tasks = [replace(task, priority=first) for task in read_tasks(str(answers), "rank")]
        store.configure(Settings(overlap=section.overlap, seed=one.recipe.seed))
        store.add(tasks, batch=batch)
        store.set_labelers(section.labelers or ["labeler"])
        serving = Serving(
            port=section.port,
            title=f"Round {one.number}",
            guidelines=None if section.guidelines is None else Path(section.guidelines),
            open_browser=browser,
        )
        watch = Watch(store, {task.id for task in tasks}, opinions=section.overlap, batch=batch)
        if watch.left:
            told(f"{number}: {watch.left} tasks are to be ranked{_each_by(section.overlap)}")
            done = lingering(watch.over, told, "all tasks are ranked; the last can be undone for {}")
            serve(store, serving, done=done, told=told)
        if not watch.over():
            raise RlhfKitError(
                f"{number}: {watch.left} of {watch.count} tasks are still to be ranked; all that was given is kept, "
                "and the same command goes on"
            )
        found = [record for record in records(store, batch=batch) if isinstance(record, Ranking)]
    finally:
        store.close()
    if not found:
        raise RlhfKitError(f"{number}: every task was skipped; look at why on the admin page")
    return found


def _each_by(people: int) -> str:
    return f", each by {people} people" if people > 1 else ""


# -------------------------------------------------------------------- a file


def _from_file(one: Round, answers: Path, file: str) -> list[Ranking]:
    """Rankings of these answers from a file, in any format that is known. Those of other prompts are left out: an
    export of a labelling tool holds earlier rounds too.

    Raises:
        RlhfKitError: it is not there yet.
        DataError: rows that are wrong, rankings of other answers to these prompts, or none of these prompts at all.
    """
    if not Path(file).is_file():
        raise RlhfKitError(
            f"round {one.number}: waits for labels: rank the answers in {answers} (rlhf-kit label {answers} --out "
            f"{file}), then the same command goes on"
        )
    read = read_rankings([file])
    for note in read.notes:
        log.info("round %d: %s", one.number, note)
    asked = {prompt_name(p.prompt): {r["text"]: r for r in p.meta["responses"]} for p in _rows(answers)}
    own = [ranking for ranking in read.records if prompt_name(ranking.prompt) in asked]
    found, problems = [], []
    for ranking in own:
        drawn = asked[prompt_name(ranking.prompt)]
        if unknown := [r.text for r in ranking.responses if r.text not in drawn]:
            problems.append(Problem(file, "responses", f"is no answer of this round: {unknown[0][:60]!r}"))
            continue
        responses = tuple(
            r.model_copy(update={"source": r.source or drawn[r.text].get("source"), "ended": drawn[r.text]["ended"]})
            for r in ranking.responses
        )
        found.append(ranking.model_copy(update={"responses": responses}))
    if not own:
        problems.append(
            Problem(file, "prompt", f"no ranking is of a prompt of this round; its answers are in {answers}")
        )
    if problems:
        raise DataError(problems)
    if others := len(read.records) - len(own):
        log.warning("round %d: %d rankings in %s are left out: they are of other prompts", one.number, others, file)
    if missing := len(asked) - len({prompt_name(ranking.prompt) for ranking in found}):
        log.warning("round %d: %d of %d prompts are not ranked in %s", one.number, missing, len(asked), file)
    return found


# -------------------------------------------------------------------- whatever scores


def _by_judges(one: Round, answers: Path, kept: Path) -> list[Ranking]:
    """The answers ranked by the mean of what the judges say, each on its own scale: equal means tie.

    Raises:
        RlhfKitError: a judge compares instead of scoring, or fails.
    """
    rows = _rows(answers)
    judges = _judges(one)
    questions = [Question(row.prompt, (_shown(row),), columns_of(row)) for row in rows]
    scores = np.mean([_scores(judge, questions, kept, len(judges) > 1) for judge in judges], axis=0)
    if np.isnan(scores).all():
        raise RlhfKitError(f"round.labels: {', '.join(judge.name for judge in judges)}: scored nothing")
    name = "+".join(judge.name for judge in judges)
    rankings = []
    for row, marks in zip(rows, scores, strict=True):
        drawn = [replace(Answer(**r), score=float(m)) for r, m in zip(row.meta["responses"], marks, strict=False)]
        scored = [answer for answer in drawn if not np.isnan(answer.score or 0.0)]
        if len(scored) > 1:
            plain = row.model_copy(update={"meta": {k: v for k, v in row.meta.items() if k != "responses"}})
            ranked = ranking_row(plain, scored, name)
            rankings.append(ranked.model_copy(update={"labeler": f"{judges[0].kind}:{name}"}))
    return rankings


def _judges(one: Round) -> list[Judge]:
    own: dict[str, Judge] = {judge.name: judge for judge in own_judges(one.whole, None)}
    judges = judges_named([_named(word, one) for word in one.whole.round.judges], own)
    if comparing := [judge.name for judge in judges if judge.compares]:
        raise RlhfKitError(f"round.labels: {', '.join(comparing)}: compares answers; name something that scores each")
    return judges


def _scores(judge: Judge, questions: Sequence[Question], kept: Path, standard: bool) -> Floats:
    """(P, K) what it says of each answer, NaN where there is none; in its own standard deviations where it is one of
    several."""
    said = judge(questions, kept, lambda done: None).scores
    assert said is not None  # a judge that does not compare scores
    scores: Floats = said[:, 0]
    if not standard:
        return scores
    spread = float(np.nanstd(scores)) or 1.0
    return (scores - float(np.nanmean(scores))) / spread


def _shown(row: Prompt) -> tuple[Shown, ...]:
    return tuple(Shown(drawn["text"], drawn["ended"], drawn["tokens"]) for drawn in row.meta["responses"])


def _rows(answers: Path) -> list[Prompt]:
    return [record for record in files.load(str(answers), "prompt") if isinstance(record, Prompt)]
