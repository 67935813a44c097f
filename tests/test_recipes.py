"""What the recipes promise: each loads, its data are clean, and the quickstart's data are what the README says."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from recipe_headers import PATHS, RECIPES, prepare

from rlhf_kit import files
from rlhf_kit.measures import pooled_pair_accuracy
from rlhf_kit.recipe import load_recipe
from rlhf_kit.records import Message

QUICKSTART = RECIPES / "quickstart"
KINDS = {
    "demonstrations": "demonstration",
    "rankings": "ranking",
    "rankings_heldout": "ranking",
    "prompts": "prompt",
    "prompts_heldout": "prompt",
    "text": "text",
}
TRAINING = ("demonstrations", "rankings", "prompts")
Records = Sequence[Any]


@cache
def records(name: str) -> Records:
    kind = {"demonstrations": "demonstration", "rankings": "ranking", "text": "text"}.get(name, "prompt")
    return tuple(files.load(str(QUICKSTART / f"{name}.jsonl"), kind))


def as_text(prompt: str | Sequence[Message]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].content


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def prompts_of(name: str) -> list[str]:
    return [normalised(as_text(record.prompt)) for record in records(name)]


@cache
def rubric() -> Callable[..., list[float]]:
    spec = importlib.util.spec_from_file_location("quickstart_rubric", QUICKSTART / "rubric.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    grade: Callable[..., list[float]] = module.grade
    return grade


# -------------------------------------------------------------------- every recipe


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The current directory holds what the commands in the headers make of the Hub's datasets."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(tmp_path_factory.mktemp("shelf"), patch)
        yield


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipe_loads_and_its_data_are_clean(path: Path, shelf: None) -> None:
    recipe = load_recipe(path)
    named = {field: source for field in KINDS if (source := getattr(recipe.data, field)) is not None}
    assert named, "a recipe without data does nothing"
    for field, source in named.items():
        checked = files.check(source, KINDS[field])
        assert checked.records and not checked.problems, [str(problem) for problem in checked.problems[:5]]
    if recipe.data.rubric is not None:
        assert Path(recipe.data.rubric.rpartition(":")[0]).is_file()
    if recipe.model.chat_template is not None:
        assert Path(recipe.model.chat_template).is_file()


def test_there_is_a_quickstart() -> None:
    assert (RECIPES / "quickstart.yaml").is_file() and (QUICKSTART / "GUIDELINES.md").is_file()


# -------------------------------------------------------------------- the quickstart's data


def test_demonstrations_are_many_and_by_several_hands() -> None:
    rows = records("demonstrations")
    by_labeler = Counter(row.labeler for row in rows)
    assert len(rows) >= 80
    assert None not in by_labeler and len(by_labeler) >= 4
    lengths = sorted(len(row.completion.split()) for row in rows)
    assert lengths[-1] >= 3 * lengths[0], "real demonstrations are mixed in length"


def test_rankings_are_many_with_four_to_six_answers() -> None:
    rows = records("rankings")
    assert len({as_text(row.prompt) for row in rows}) >= 120
    assert {len(row.responses) for row in rows} <= {4, 5, 6}
    assert len({len(row.responses) for row in rows}) > 1, "K is ragged"
    assert all(row.pairs for row in rows), "a row whose answers are all tied teaches nothing"


def test_most_ranked_answers_come_from_the_sft_model() -> None:
    sources = Counter(answer.source for row in records("rankings") for answer in row.responses)
    assert sources["sft"] > sum(sources.values()) / 2
    assert sources["base"] > 0


def test_some_prompts_were_ranked_twice_by_different_labelers() -> None:
    labelers: dict[str, set[str | None]] = {}
    for row in records("rankings"):
        labelers.setdefault(as_text(row.prompt), set()).add(row.labeler)
    assert sum(len(names) > 1 for names in labelers.values()) >= 5


def test_no_rule_that_reads_nothing_predicts_the_ranks() -> None:
    rows = records("rankings")
    ranks = [[answer.rank for answer in row.responses] for row in rows]
    rules: dict[str, Callable[[Any], float]] = {
        "shorter (characters)": lambda answer: -len(answer.text),
        "shorter (words)": lambda answer: -len(answer.text.split()),
        "ended": lambda answer: answer.ended,
        "ends in a full stop": lambda answer: answer.text.rstrip()[-1] in ".!?",
    }
    for name, rule in rules.items():
        accuracy = pooled_pair_accuracy([[float(rule(a)) for a in row.responses] for row in rows], ranks)
        if name == "ends in a full stop":
            assert accuracy <= 0.7, name
        else:
            assert 0.38 <= accuracy <= 0.62, f"{name}: {accuracy:.3f}"


def test_prompts_are_enough() -> None:
    assert len(set(prompts_of("prompts"))) >= 256
    assert len(set(prompts_of("heldout"))) >= 96
    assert len(set(prompts_of("validation"))) >= 32
    assert len(records("text")) >= 20


@pytest.mark.parametrize("name", ["demonstrations", "prompts", "heldout", "validation"])
def test_no_prompt_stands_twice_in_a_file(name: str) -> None:
    assert not [prompt for prompt, count in Counter(prompts_of(name)).items() if count > 1]


def test_no_prompt_stands_in_two_files() -> None:
    owners: dict[str, set[str]] = {}
    for name in (*TRAINING, "heldout", "validation"):
        for prompt in prompts_of(name):
            owners.setdefault(prompt, set()).add(name)
    assert not {prompt: names for prompt, names in owners.items() if len(names) > 1}


def test_prompts_are_not_one_template_permuted() -> None:
    """No opening of three words makes up more than a twelfth of a file."""
    for name in ("demonstrations", "prompts", "heldout"):
        prompts = prompts_of(name)
        opening, count = Counter(" ".join(prompt.split()[:3]) for prompt in prompts).most_common(1)[0]
        assert count <= len(prompts) / 12, f"{name}: {count} prompts begin with {opening!r}"


def test_held_out_prompts_share_no_first_word_with_training() -> None:
    first = {prompt.split()[0] for name in TRAINING for prompt in prompts_of(name)}
    shared = Counter(prompt.split()[0] for prompt in prompts_of("heldout") if prompt.split()[0] in first)
    assert not shared


def test_rubric_has_levels_and_does_not_simply_repeat_the_ranks() -> None:
    rows = records("rankings")
    marks = [
        rubric()(prompts=[as_text(row.prompt)] * len(row.responses), completions=[a.text for a in row.responses])
        for row in rows
    ]
    agreement = pooled_pair_accuracy(marks, [[answer.rank for answer in row.responses] for row in rows])
    assert 0.5 < agreement < 1
    bad = [
        "",
        "Yes",
        "Sure, no",
        "Okay, maybe:\n- a\n- a\n- a",
        "Well, yes, yes, yes. Yes. Yes. Yes",
        "It depends. Enjoy!",
    ]
    marks.append(rubric()(prompts=["Why is the sky blue?"] * len(bad), completions=bad))
    levels = {mark for row in marks for mark in row}
    assert len(levels) >= 10, sorted(levels)


def test_rubric_sees_what_the_guidelines_ask_for() -> None:
    prompt = "Why is the sky blue?"
    answers = [
        "The sky is blue because air scatters blue light more than red light.",
        "Great question! The sky is blue because air scatters blue light more than red light.",
        "Great question!\n- Air\n- Light\n\nI hope this helps!",
        "",
    ]
    marks = rubric()(prompts=[prompt] * len(answers), completions=answers)
    assert marks == sorted(marks, reverse=True) and len(set(marks)) == len(marks)
