"""What Label Studio 1.23.2 itself exported, in both of its JSON layouts: taken back, it is what was clicked there.

`tests/fixtures/label_studio` holds the tasks that were handed over and the files as the server gave them. User 1 worked
in a browser, user 2 through the API. Of the rankings, user 1 put three in order (by mouse, by keyboard, and those of a
conversation), submitted the fourth untouched, skipped the fifth and never saw the sixth; user 2 ranked the first, put
two of three answers in order in the second, and skipped the third. Of the pairs, user 1 submitted the third without a
choice and skipped the fourth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_kit.cli import main
from rlhf_kit.errors import DataError
from rlhf_kit.formats import label_studio
from rlhf_kit.formats.base import Unusable
from rlhf_kit.guessing import guess
from rlhf_kit.labeling.exchange import take
from rlhf_kit.labeling.exporting import records
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Kind, read_tasks
from rlhf_kit.parsing import parse_shaped
from rlhf_kit.ranked_files import read_rankings
from rlhf_kit.records import Ranking, Rating
from rlhf_kit.rows import iter_rows
from rlhf_kit.scanning import scan
from rlhf_kit.shapes import Shaped

FOLDER = Path(__file__).parent / "fixtures" / "label_studio"
BLUE, BECAUSE, SEA = "Air scatters blue light most.", "Because.", "  It reflects the sea. \n"
CODE = "Like this:\n\n    def f():\n        return 1 < 2 & 3\n\n* <b>one</b>\n* 好的"
RANKED = {
    ("1", "Why is the sky blue?", (BLUE, SEA, BECAUSE)),
    ("1", "Name <three> “rivers” & more.\nThanks", ("No.", "Po, Tiber, Arno.", "$x^2$ and ${prompt}, {y}.")),
    ("1", "Show me\na function.", (CODE, "No.", "I cannot.")),
    ("2", "Why is the sky blue?", (BECAUSE, BLUE, SEA)),
}
COMPARED = {("1", (BECAUSE, BLUE)), ("1", (SEA, BLUE)), ("2", (BLUE, BECAUSE))}
RATED = {("1", BLUE, 7), ("1", BECAUSE, 1), ("1", SEA, 4), ("2", BLUE, 5)}
"""What was clicked: the best answer first, and stars."""
BOTH = pytest.mark.parametrize("layout", ["json", "min.json"])


def exported(kind: Kind, layout: str) -> str:
    return str(FOLDER / f"{kind}.{layout}")


def tasks_of(kind: Kind) -> str:
    return str(FOLDER / ("tasks.jsonl" if kind == "rank" else "texts.jsonl"))


def what_was_said(found: Any) -> set[Any]:
    """Records as what was clicked."""
    return set(map(_said, found))


def _said(one: Any) -> Any:
    if isinstance(one, Rating):
        return one.labeler, one.response, one.score
    assert isinstance(one, Ranking)
    best_first = tuple(response.text for response in sorted(one.responses, key=lambda response: response.rank))
    assert sorted(response.rank for response in one.responses) == list(range(1, len(best_first) + 1))
    if len(best_first) == 2:
        return one.labeler, best_first
    return one.labeler, one.prompt if isinstance(one.prompt, str) else one.prompt[-1].content, best_first


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "tasks.sqlite")
    yield made
    made.close()


@BOTH
@pytest.mark.parametrize(("kind", "clicked"), [("rank", RANKED), ("compare", COMPARED), ("rate", RATED)])
def test_what_was_clicked_is_what_is_taken(kind: Kind, clicked: Any, layout: str, store: Store) -> None:
    tasks = read_tasks(tasks_of(kind), kind)
    store.add(tasks)
    assert take(store, exported(kind, layout)) == len(clicked)
    found = records(store)
    assert len(found) == len(clicked) and what_was_said(found) == clicked
    sources = {(candidate.text, candidate.source) for task in tasks for candidate in task.candidates}
    answers = [one.responses if isinstance(one, Ranking) else () for one in found]
    assert {(answer.text, answer.source) for row in answers for answer in row} <= sources
    assert take(store, exported(kind, layout)) == 0


@pytest.mark.parametrize("kind", ["rank", "compare", "rate"])
def test_both_layouts_say_the_same_of_the_same_people(kind: Kind, store: Store) -> None:
    store.add(read_tasks(tasks_of(kind), kind))
    assert take(store, exported(kind, "json")) > 0
    assert take(store, exported(kind, "min.json")) == 0


@BOTH
def test_what_says_nothing_is_named_and_stops_nothing(layout: str, store: Store, caplog: Any) -> None:
    """An untouched list is no opinion, whatever order it showed."""
    store.add(read_tasks(tasks_of("rank"), "rank"))
    with caplog.at_level("INFO", "rlhf_kit"):
        take(store, exported("rank", layout))
    assert "2 rows are left out" in caplog.text
    assert "places none of the answers" in caplog.text and "does not place B; all answers need" in caplog.text
    if layout == "json":
        assert "rank.json#1: annotations.1.result.0.value.ranker" in caplog.text
    else:
        assert "rank.min.json#2: rank.0.ranker" in caplog.text


def test_nothing_that_can_be_used_is_refused_with_its_reasons(tmp_path: Path, store: Store) -> None:
    store.add(read_tasks(tasks_of("compare"), "compare"))
    rows = json.loads((FOLDER / "compare.json").read_text())
    file = tmp_path / "empty.json"
    file.write_text(json.dumps([row for row in rows if row["inner_id"] == 3]))
    with pytest.raises(
        DataError, match=r"empty\.json#0: annotations\.0\.result: is empty; the labeler submitted nothing"
    ):
        take(store, str(file))


@BOTH
@pytest.mark.parametrize(("kind", "clicked"), [("rank", RANKED), ("compare", COMPARED)])
def test_a_round_and_an_evaluation_read_an_export_as_it_is(kind: Kind, clicked: Any, layout: str) -> None:
    assert what_was_said(read_rankings([exported(kind, layout)]).records) == clicked


@BOTH
def test_the_commands_read_an_export(layout: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["convert", exported("rate", layout), "--to", "rating", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == len(RATED)
    assert main(["validate", str(out)]) == 0
    capsys.readouterr()
    main(["validate", exported("rank", layout)])
    assert "4 rankings" in capsys.readouterr().out


@BOTH
def test_skipped_tasks_do_not_make_prompts_of_an_export(layout: str) -> None:
    assert guess(exported("rank", layout)).kind == "ranking"
    assert guess(exported("rate", layout)).kind == "rating"


def test_names_of_the_short_layout() -> None:
    """Findings and `meta` speak of the row as it is."""
    row: Any = next(iter_rows(exported("compare", "min.json"))).value
    (shaped,) = label_studio.FORMAT.to["ranking"](row)
    assert isinstance(shaped, Shaped)
    assert shaped.names["prompt"] == "prompt" and shaped.names["responses.0.text"] == "answer1"
    ranking = parse_shaped(shaped, "ranking")
    assert isinstance(ranking, Ranking) and ranking.id == f"{row['id']}-{row['annotation_id']}"
    assert ranking.meta["annotation"]["lead_time"] == row["lead_time"]
    (prompt,) = label_studio.FORMAT.to["prompt"](row)
    assert isinstance(prompt, Shaped) and "comparison" not in prompt.row["meta"]["data"]
    (nothing,) = label_studio.FORMAT.to["ranking"]({k: v for k, v in row.items() if k != "comparison"})
    assert isinstance(nothing, Unusable) and (nothing.code, nothing.field) == ("no-verdict", "")


def test_every_annotation_of_a_file_is_a_row_or_a_finding() -> None:
    """Seven annotations and a task without any."""
    entries = list(scan(exported("rank", "json"), "ranking", label_studio.FORMAT))
    found = [problem.code for entry in entries for problem in entry.problems]
    assert sorted(found) == ["left-out", "left-out", "left-out", "missing-rank", "no-verdict"]
    assert sum(len(entry.records) for entry in entries) == 4
