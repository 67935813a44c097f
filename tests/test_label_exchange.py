"""Label Studio and Argilla: tasks go out, an export as these tools document it comes back, and the records are those
that the same people would have made on the page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labelers import work

from rlhf_kit.cli import main
from rlhf_kit.errors import DataError, RlhfKitError
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.exchange import hand_over, take
from rlhf_kit.labeling.exporting import records
from rlhf_kit.labeling.replies import CompareReply, RankReply, RateReply, Reply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Kind, Task
from rlhf_kit.records import Message, Ranking, Record

TEXTS = ("A fair one.", "A fine answer.", "好的 <b>&amp;</b>\n\n* so", "  spaced ")
QUALITY = dict(zip(TEXTS, (2, 3, 1, 0), strict=True))
"""How good each answer is, for whoever labels here."""
TURNS = (
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hi!"),
    Message(role="user", content="Why?"),
)
PLAIN = ("Why is the sky blue?", "Name <three> “colours” & more.\nThanks")
KINDS: tuple[Kind, ...] = ("rank", "compare", "rate")
PEOPLE = ("anna@example.org", "4")


def task(kind: Kind, prompt: Any, texts: tuple[str, ...]) -> Task:
    candidates = tuple(Candidate(text, source=f"model {TEXTS.index(text)}") for text in texts)
    carried = {"id": f"row {prompt[0]}"[:9], "category": "open_qa", "meta": {"round": 2}}
    return Task(kind, prompt, candidates, carried)


def tasks_of(kind: Kind, prompts: tuple[Any, ...] = PLAIN) -> list[Task]:
    sets: dict[Kind, tuple[tuple[str, ...], ...]] = {
        "rank": (TEXTS,),
        "compare": (TEXTS[:2], TEXTS[1:3]),
        "rate": (TEXTS[:1], TEXTS[2:3]),
    }
    return [task(kind, prompt, texts) for prompt in prompts for texts in sets[kind]]


def on_the_page(task: Task, order: tuple[int, ...]) -> Reply:
    """What people say there, whatever order it shows."""
    values = [QUALITY[task.candidates[place].text] for place in order]
    if task.kind == "rate":
        return RateReply(overall=values[0] + 1)
    if task.kind == "compare":
        return CompareReply(better="A" if values[0] > values[1] else "B")
    ranks = [1 + sum(other > value for other in values) for value in values]
    answers = {key: {"rank": rank} for key, rank in zip("ABCD", ranks, strict=False)}
    return RankReply.model_validate({"answers": answers})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "tasks.sqlite")
    made.configure(Settings(overlap=2))
    yield made
    made.close()


def said(store: Store) -> list[Record]:
    """The records, without what the way of labelling leaves in `meta`."""
    found = [
        one.model_copy(update={"meta": {k: v for k, v in one.meta.items() if k not in ("seconds", "shown")}})
        for one in records(store)
    ]
    return sorted(found, key=lambda one: one.model_dump_json())


def by_hand(path: Path, tasks: list[Task]) -> list[Record]:
    made = Store(path)
    made.configure(Settings(overlap=2))
    made.add(tasks)
    made.set_labelers(PEOPLE)
    for name in PEOPLE:
        assert work(made, name, on_the_page) == len(tasks)
    found = said(made)
    made.close()
    return found


# ---------------------------------------------------------------- what the tools make of it, as they document


def label_studio(rows: list[dict[str, Any]], config: ET.Element) -> list[dict[str, Any]]:
    """A JSON export, each task annotated by both people and skipped by a third; the names are those of the tags."""
    control = next(tag for tag in config if tag.tag in ("Ranker", "Pairwise", "Rating"))
    annotations: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        found: list[dict[str, Any]] = []
        for who in ({"id": 3, "email": PEOPLE[0]}, int(PEOPLE[1])):
            result = {
                "id": f"r{number}",
                "type": control.tag.lower(),
                "from_name": control.get("name"),
                "to_name": control.get("name" if control.tag == "Pairwise" else "toName"),  # as the server has it
                "value": _value(control, row["data"]),
            }
            found.append({"id": number, "completed_by": who, "was_cancelled": False, "result": [result]})
        found.append({"id": 99, "completed_by": 9, "was_cancelled": True, "result": []})
        annotations.append({"id": number, **row, "annotations": found, "predictions": [], "project": 1})
    return annotations


def _value(control: ET.Element, data: dict[str, Any]) -> dict[str, Any]:
    if control.tag == "Ranker":
        best = sorted(data["items"], key=lambda item: -QUALITY[item["body"]])
        (bucket,) = control
        return {"ranker": {"_": [], bucket.get("name"): [item["id"] for item in best]}}
    if control.tag == "Pairwise":
        left, right = (data[name] for name in str(control.get("toName")).split(","))
        return {"selected": "left" if QUALITY[left] > QUALITY[right] else "right"}
    return {"rating": QUALITY[data[str(control.get("toName"))]] + 1}


def argilla(rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """`dataset.records.to_list()` of Argilla 2 after both people have answered; a third one's answer is a draft."""
    (question,) = settings["questions"]
    found = []
    for row in rows:
        fields = row["fields"]
        if question["settings"]["type"] == "ranking":
            names = [option["value"] for option in question["settings"]["options"]]
            value: Any = sorted(names, key=lambda name: -QUALITY[fields[name]])
        else:
            value = QUALITY[fields["response"]] + 1
        answers = [{"value": value, "user_id": who, "status": "submitted"} for who in PEOPLE]
        answers.append({"value": value, "user_id": "9", "status": "draft"})
        found.append(
            {**row, "metadata": {}, "suggestions": {}, "vectors": {}, "responses": {question["name"]: answers}}
        )
    return found


def exported(to: str, tasks: list[Task], place: Path) -> Path:
    """What a tool gives back after it was given the tasks."""
    out = place / ("tasks.json" if to == "label-studio" else "tasks")
    assert hand_over(tasks, to, out) == len(tasks)
    if to == "label-studio":
        rows = label_studio(json.loads(out.read_text()), ET.parse(out.with_suffix(".xml")).getroot())
    else:
        settings = json.loads((out / ".argilla" / "settings.json").read_text())
        rows = argilla(json.loads((out / "records.json").read_text()), settings)
    back = place / f"{to}.json"
    back.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return back


@pytest.mark.parametrize("prompts", [PLAIN, ("Hello", TURNS)], ids=["texts", "a conversation among them"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["label-studio", "argilla"])
def test_there_and_back_again(to: str, kind: Kind, prompts: tuple[Any, ...], tmp_path: Path, store: Store) -> None:
    tasks = tasks_of(kind, prompts)
    back = exported(to, tasks, tmp_path)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file() and "sqlite" not in path.name)
    assert "model " not in written, "who wrote an answer is told"
    store.add(tasks)
    assert take(store, str(back)) == 2 * len(tasks)
    assert said(store) == by_hand(tmp_path / "page.sqlite", tasks)
    assert take(store, str(back)) == 0 and len(records(store)) == 2 * len(tasks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["label-studio", "argilla"])
def test_an_export_with_tasks_that_nobody_labelled_is_one_of_labels(
    to: str, kind: Kind, tmp_path: Path, store: Store
) -> None:
    """One was skipped, many are not labelled yet: every row has a prompt, and that is not what the file is of."""
    tasks = tasks_of(kind)
    back = exported(to, tasks, tmp_path)
    rows = json.loads(back.read_text())
    empty: dict[str, Any] = {"annotations": []} if to == "label-studio" else {"responses": {}}
    cancelled = {"id": 1, "completed_by": 1, "was_cancelled": True, "result": []}
    discarded = [{"value": None, "user_id": "9", "status": "discarded"}]
    skipped = (
        {"annotations": [cancelled]}
        if to == "label-studio"
        else {"responses": {"rating" if kind == "rate" else "ranking": discarded}}
    )
    others = [{**rows[0], **skipped, "id": "s"}, *({**rows[0], **empty, "id": str(number)} for number in range(30))]
    back.write_text(json.dumps([*others[:25], *rows, *others[25:]]))
    store.add(tasks)
    assert take(store, str(back)) == 2 * len(tasks)


def test_the_ranker_of_label_studio_has_a_place_for_the_order(tmp_path: Path) -> None:
    """Without one it submits the order that it shows as the labeler's own, also where nobody touched it."""
    hand_over(tasks_of("rank"), "label-studio", tmp_path / "t.json")
    (ranker,) = ET.parse(tmp_path / "t.xml").getroot().iter("Ranker")
    (bucket,) = ranker
    assert (bucket.tag, bucket.get("name"), bucket.get("default")) == ("Bucket", "best_first", None)


def test_sources_come_back_and_the_order_is_the_one_that_was_shown(tmp_path: Path, store: Store) -> None:
    (one,) = tasks_of("rank", PLAIN[:1])
    back = exported("label-studio", [one], tmp_path)
    store.add([one])
    take(store, str(back))
    ranking = records(store)[0]
    assert isinstance(ranking, Ranking)
    assert [(r.source, r.rank) for r in ranking.responses] == [
        ("model 0", 2), ("model 1", 1), ("model 2", 3), ("model 3", 4),
    ]  # fmt: skip
    items = json.loads((tmp_path / "tasks.json").read_text())[0]["data"]["items"]
    assert [TEXTS[place] for place in ranking.meta["shown"]] == [item["body"] for item in items]
    assert [item["id"] for item in items] == list("ABCD")


def test_the_order_tells_nothing(tmp_path: Path) -> None:
    """Over many tasks each answer comes first about as often as the others; 4 places, 400 tasks, five deviations."""
    tasks = [task("rank", f"prompt {number}", TEXTS) for number in range(400)]
    hand_over(tasks, "label-studio", tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())
    for text in TEXTS:
        assert abs(sum(row["data"]["items"][0]["body"] == text for row in rows) - 100) < 5 * (400 * 3 / 16) ** 0.5


def test_argilla_gets_a_dataset_for_each_number_of_answers(tmp_path: Path, store: Store) -> None:
    tasks = [task("rank", "a", TEXTS[:2]), task("rank", "b", TEXTS[:3]), task("rank", "c", TEXTS[1:3])]
    hand_over(tasks, "argilla", tmp_path / "my tasks")
    names = {}
    for folder in sorted((tmp_path / "my tasks").iterdir()):
        rows = json.loads((folder / "records.json").read_text())
        settings = json.loads((folder / ".argilla" / "settings.json").read_text())
        assert {field["name"] for field in settings["fields"]} == rows[0]["fields"].keys() == rows[-1]["fields"].keys()
        names[folder.name] = json.loads((folder / ".argilla" / "dataset.json").read_text())["name"]
        back = tmp_path / f"{folder.name}.json"
        back.write_text(json.dumps(argilla(rows, settings)))
        store.add(tasks)
        take(store, str(back))
    assert names == {"2-answers": "my-tasks-2", "3-answers": "my-tasks-3"}
    assert said(store) == by_hand(tmp_path / "page.sqlite", tasks)


# ---------------------------------------------------------------- rankings from anywhere


def write(place: Path, *rows: dict[str, Any]) -> str:
    place.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(place)


def test_any_rankings_answer_the_tasks_that_they_order(tmp_path: Path, store: Store, caplog: Any) -> None:
    """A ranking of four answers says of each pair among them which is better; a tie stays one."""
    store.add([task("rank", "p", TEXTS[:3]), task("compare", "p", TEXTS[:2]), task("compare", "p", TEXTS[1:3])])
    ranks = dict(zip(TEXTS, (5, 2, 2, 7), strict=True))
    marks = {"flags": {"hallucination": True}, "overall": 6, "axes": {"helpful": 4, "style": 1}}
    responses = [
        {"text": text, "rank": rank, **(marks if text == TEXTS[1] else {})}
        for text, rank in sorted(ranks.items(), key=lambda pair: pair[1])
    ]
    file = write(
        tmp_path / "people.jsonl",
        {"prompt": [{"role": "user", "content": "p"}], "responses": responses},
        {"prompt": "p", "responses": responses[:2], "labeler": "ben"},
        {"prompt": "q", "responses": responses, "labeler": "ben"},
        {"prompt": "p", "responses": responses[2:], "labeler": "cy"},
    )
    with caplog.at_level("INFO", "rlhf_kit"):
        assert take(store, file) == 4
    found = {
        (one.labeler, tuple(r.text for r in one.responses)): one for one in records(store) if isinstance(one, Ranking)
    }
    whole = found["people", TEXTS[:3]]
    assert [r.rank for r in whole.responses] == [2, 1, 1]
    assert whole.responses[1].overall == 6 and whole.responses[1].axes == {"helpful": 1}
    assert whole.responses[1].flags is not None and whole.responses[1].flags.model_dump(exclude_none=True) == {
        "hallucination": True
    }
    assert [r.rank for r in found["people", TEXTS[:2]].responses] == [2, 1]
    assert [r.rank for r in found["people", TEXTS[1:3]].responses] == [1, 1]
    assert [r.rank for r in found["ben", TEXTS[1:3]].responses] == [1, 1]
    assert (
        f"2 rows are left out: {file}:3: no task with this prompt; {file}:4: no task with these answers" in caplog.text
    )


def test_somebody_who_cannot_be_called_so_is_told_with_the_row(tmp_path: Path, store: Store, caplog: Any) -> None:
    store.add([task("compare", "p", TEXTS[:2])])
    responses = [{"text": text, "rank": rank} for rank, text in enumerate(TEXTS[:2], 1)]
    file = write(
        tmp_path / "r.jsonl",
        *({"prompt": "p", "responses": responses, "labeler": name} for name in ("admin", "n" * 65, "ben")),
    )
    assert take(store, file) == 1 and [said.labeler for said in store.answered()] == ["ben"]
    assert f"2 rows are left out: {file}:1: labelers: 'admin' cannot be a name" in caplog.text


def test_what_a_labeler_has_said_otherwise_stays(tmp_path: Path, store: Store, caplog: Any) -> None:
    store.add([task("compare", "p", TEXTS[:2]), task("compare", "q", TEXTS[:2])])
    rows: list[Any] = [
        {"prompt": prompt, "labeler": "anna", "responses": [{"text": text, "rank": rank} for text, rank in pair]}
        for prompt, pair in (
            ("p", ((TEXTS[0], 1), (TEXTS[1], 2))),
            ("q", ((TEXTS[0], 1), (TEXTS[1], 2))),
        )
    ]
    assert take(store, write(tmp_path / "one.jsonl", *rows[:1])) == 1
    rows[0]["responses"].reverse()
    rows[0]["responses"][0]["rank"], rows[0]["responses"][1]["rank"] = 1, 2
    assert take(store, write(tmp_path / "two.jsonl", *rows)) == 1
    assert "1 rows are left out" in caplog.text and "anna has another answer" in caplog.text
    (first, _) = records(store)
    assert isinstance(first, Ranking) and [r.rank for r in first.responses] == [1, 2]


@pytest.mark.parametrize(
    ("rating", "taken"),
    [({"score": 5}, 1), ({"score": 5, "scale": [1, 7]}, 1), ({"score": 5, "scale": [1, 10]}, 0), ({"score": 8}, 0),
     ({"score": 4.5}, 0), ({"thumb": True}, 0), ({"score": 5, "axis": "helpful"}, 0)],
)  # fmt: skip
def test_marks_are_taken_where_they_mean_the_same(
    rating: dict[str, Any], taken: int, tmp_path: Path, store: Store
) -> None:
    store.add([task("rate", "p", TEXTS[:1]), task("rate", "p", TEXTS[1:2])])
    always = {"prompt": "p", "response": TEXTS[1], "score": 1, "labeler": "anna"}
    one = {"prompt": "p", "response": TEXTS[0], "labeler": "anna", **rating}
    assert take(store, write(tmp_path / "r.jsonl", always, one)) == 1 + taken


# ---------------------------------------------------------------- what is refused


def test_a_file_that_answers_nothing_is_refused_with_its_rows(tmp_path: Path, store: Store) -> None:
    store.add(tasks_of("rank"))
    rows = [
        {"prompt": "x", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}], "id": str(n)}
        for n in range(7)
    ]
    file = write(tmp_path / "r.jsonl", *rows)
    with pytest.raises(
        RlhfKitError, match=r"nothing in it answers a task of tasks.sqlite: .*:1: no task .*; and 2 more$"
    ):
        take(store, file)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"prompt": "p", "completion": "c"}],
            "holds no rankings or ratings: its rows have the fields of a demonstration",
        ),
        ([{"prompt": "p", "responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 2}]}], "must be at least 1"),
    ],
)
def test_bad_rows_are_named(rows: list[dict[str, Any]], words: str, tmp_path: Path, store: Store) -> None:
    store.add(tasks_of("rank"))
    with pytest.raises(DataError, match=words):
        take(store, write(tmp_path / "r.jsonl", *rows))
    assert records(store) == []


@pytest.mark.parametrize("to", ["label-studio", "argilla"])
@pytest.mark.parametrize("tasks", [[], [Task("demonstrate", "p")], [*tasks_of("rank"), *tasks_of("compare")]])
def test_tasks_that_the_tools_cannot_show_are_refused(to: str, tasks: list[Task], tmp_path: Path) -> None:
    with pytest.raises(RlhfKitError, match="of one kind; these are"):
        hand_over(tasks, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_argilla_wants_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DataError, match="is a file; Argilla's datasets are directories"):
        hand_over(tasks_of("rank"), "argilla", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# ---------------------------------------------------------------- the command


def test_the_command_goes_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its rankings pass `validate`."""
    monkeypatch.chdir(tmp_path)
    responses = [{"text": text, "source": f"model {place}"} for place, text in enumerate(TEXTS)]
    write(tmp_path / "tasks.jsonl", *({"prompt": prompt, "meta": {"responses": responses}} for prompt in PLAIN))
    assert main(["label", "tasks.jsonl", "--to", "label-studio", "--out", "studio.json"]) == 0
    rows = label_studio(json.loads(Path("studio.json").read_text()), ET.parse("studio.xml").getroot())
    Path("export.json").write_text(json.dumps(rows))
    assert main(["label", "tasks.jsonl", "--take", "export.json", "--out", "rankings.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "wrote 2 tasks for label-studio to studio.json" in told and "took 4 answers" in told
    assert main(["validate", "rankings.jsonl"]) == 0
    found = [json.loads(line) for line in Path("rankings.jsonl").read_text().splitlines()]
    assert [[r["rank"] for r in row["responses"]] for row in found] == [[2, 1, 3, 4]] * 4
    assert {row["labeler"] for row in found} == set(PEOPLE)
