"""Data files as records: `check`, `load` and `load_fields`, what a file is taken for, and its hash."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from datafiles import ANSWER, USER, ranking, transcript, write

from rlhf_kit import files
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.files import check, guess_kind, is_heldout, kind_of_field, load, load_fields, sha256_of
from rlhf_kit.formats.catalogue import format_named
from rlhf_kit.guessing import guess
from rlhf_kit.records import Text

FIXTURES = Path(__file__).parent / "fixtures" / "formats"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def said(source, kind="text"):
    problems = check(source, kind).problems
    with pytest.raises(DataError) as caught:
        load(source, kind)
    assert list(caught.value.problems) == problems
    return str(caught.value).splitlines()


# ---- records ----


def test_a_ranking_file_with_a_mistake_on_each_line():
    write(
        "rankings.jsonl",
        ranking(1, 2, id="r1"),
        '{"prompt": "Why?", "responses": [',
        ranking(1, 2, None),
        ranking(1),
        {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "", "rank": 2}]},
        ranking(1, 2, id="r2", prompt="Who?"),
        ranking(2, 1, id="r1", prompt="When?"),
        {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b"}]},
        ranking(1, 1, id="r3", prompt="What?"),
        ranking(2, 1),
    )
    assert said("rankings.jsonl", "ranking") == [
        "rankings.jsonl:2: broken JSON at column 34: Expecting value",
        "rankings.jsonl:3: responses.2.rank: null; give each response a rank, 1 = best",
        "rankings.jsonl:4: responses: 1 given, at least 2 needed; a ranking compares 2 to 64 answers",
        "rankings.jsonl:5: responses.1.text: empty; a text is needed",
        "rankings.jsonl:8: responses.1.rank: missing; give each response a rank, 1 = best",
        "rankings.jsonl:7: id: also the id of rankings.jsonl:1; ids are unique in a file",
        "rankings.jsonl:10: orders the same answers otherwise than rankings.jsonl:1, by the same labeler; "
        "keep one of the two, or name the labelers if there were two",
    ]
    checked = check("rankings.jsonl", "ranking")
    assert [record.id for record in checked.records] == ["r1", "r2", "r1", "r3", None]
    assert checked.wheres == [f"rankings.jsonl:{line}" for line in (1, 6, 7, 9, 10)]
    assert [(problem.where, problem.code) for problem in checked.warnings] == [("rankings.jsonl:9", "no-pair")]


def test_warnings_are_no_reason_not_to_load(caplog):
    write("rows.jsonl", b'\xef\xbb\xbf{"text": "a\\r"}\n{"text": "<s>"}\n')
    with caplog.at_level(logging.WARNING):
        assert load("rows.jsonl", "text") == [Text(text="a\r"), Text(text="<s>")]
    assert [problem.code for problem in check("rows.jsonl", "text").warnings] == [
        "bom",
        "carriage-return",
        "special-token",
    ]
    assert caplog.messages == ["rows.jsonl: 3 warnings; rlhf-kit validate shows them"]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("rows.jsonl", b"", "rows.jsonl: holds no rows"),
        ("rows.jsonl", b"\xef\xbb\xbf\n", "rows.jsonl: holds no rows"),
        ("rows.json", b"[]", "rows.json: holds no rows"),
        ("rows.csv", b"text\n", "rows.csv: holds no rows"),
        ("rows.jsonl", '{"text": "a"}'.encode("utf-16"), "rows.jsonl: is UTF-16 or UTF-32; save it as UTF-8"),
        ("rows.dat", b"x", "rows.dat: is of no known kind; name it "),
    ],
)
def test_a_file_that_is_no_file_of_rows(name, data, line):
    write(name, data)
    (found,) = said(name)
    assert found.startswith(line)


def test_a_missing_file():
    assert said("none.jsonl") == ["none.jsonl: no such file"]
    for ask in (guess_kind, sha256_of):
        with pytest.raises(DataError, match="no such file"):
            ask("none.jsonl")


def test_a_file_in_a_foreign_format_is_converted_first():
    write("pairs.jsonl", {"chosen": transcript("Why?", "Because."), "rejected": transcript("Why?", "No.")})
    (line,) = said("pairs.jsonl", "ranking")
    assert line.startswith("pairs.jsonl:1: is of the format hh-rlhf (") and line.endswith(
        "rlhf-kit convert pairs.jsonl --from hh-rlhf --to ranking --out FILE"
    )
    (record,) = check("pairs.jsonl", "ranking", format_named("hh-rlhf")).records
    assert [response.text for response in record.responses] == ["Because.", "No."]


def test_the_fields_of_a_recipe_share_no_held_out_prompt():
    write("train.jsonl", {"prompt": "a"}, {"prompt": "b"})
    write("pairs.jsonl", ranking(1, 2, prompt="c"))
    write("held.jsonl", {"prompt": "x"}, {"prompt": [{"role": "user", "content": "b"}]}, {"prompt": "c"})
    sources = {"prompts": "train.jsonl", "rankings": "pairs.jsonl", "prompts_heldout": "held.jsonl"}
    with pytest.raises(DataError) as caught:
        load_fields(sources)
    assert [(problem.where, problem.code) for problem in caught.value.problems] == [
        ("held.jsonl:2", "leak"),
        ("held.jsonl:3", "leak"),
    ]
    write("held.jsonl", {"prompt": "x"}, {"prompt": "a "})
    assert {name: len(records) for name, records in load_fields(sources).items()} == {
        "prompts": 2,
        "rankings": 1,
        "prompts_heldout": 2,
    }
    write("train.jsonl", {"prompt": "a"}, {"prompt": ""})
    with pytest.raises(DataError, match=r"train\.jsonl:2: prompt: empty"):
        load_fields(sources)


def test_phases_and_ratings_are_trained_on_too():
    write("big.jsonl", ranking(1, 2, prompt="a"), ranking(2, 1, prompt="b"))
    write("own.jsonl", ranking(1, 2, prompt="c"))
    write("rated.jsonl", *({"prompt": prompt, "response": "x", "thumb": True} for prompt in "de"))
    write("held.jsonl", ranking(1, 2, prompt="e"), ranking(1, 2, prompt=[{"role": "user", "content": "b"}]))
    sources = {
        "rankings": "own.jsonl",
        "ratings": "rated.jsonl",
        "rankings_heldout": "held.jsonl",
        "reward.phases.0.rankings": "big.jsonl",
        "reward.phases.1.rankings": "own.jsonl",
    }
    with pytest.raises(DataError) as caught:
        load_fields(sources)
    assert str(caught.value).splitlines() == [
        "held.jsonl:1: prompt: this held-out prompt is trained on in rated.jsonl:2 (data.ratings); "
        "take one of the two out",
        "held.jsonl:2: prompt: this held-out prompt is trained on in big.jsonl:2 (reward.phases.0.rankings); "
        "take one of the two out",
    ]
    write("held.jsonl", ranking(1, 2, prompt="f"))
    found = load_fields(sources)
    assert [[record.prompt for record in records] for records in found.values()] == [
        ["c"],
        ["d", "e"],
        ["f"],
        ["a", "b"],
        ["c"],
    ]
    found["rankings"].clear()  # nobody else's list
    assert len(found["reward.phases.1.rankings"]) == 1


def test_a_source_that_several_fields_name_is_read_and_told_about_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        files, "check", lambda source, *rest, **named: read.append(source) or check(source, *rest, **named)
    )
    write("own.jsonl", ranking(1, 0, prompt="c"))
    sources = {"rankings": "own.jsonl", "reward.phases.0.rankings": "own.jsonl", "rankings_heldout": "own.jsonl"}
    with pytest.raises(DataError) as caught:
        load_fields(sources)
    assert [problem.code for problem in caught.value.problems] == ["bad-rank"] and read == ["own.jsonl"]
    write("own.jsonl", ranking(1, 2, prompt="c"))
    with pytest.raises(DataError) as caught:  # once more, though two fields train on it
        load_fields(sources)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("own.jsonl:1: prompt: this held-out prompt is trained on in own.jsonl:1 (data.rankings)")


def test_the_kind_of_a_field_is_told_by_its_last_name():
    assert {name: kind_of_field(name) for name in ("ratings", "rankings_heldout", "reward.phases.10.rankings")} == {
        "ratings": "rating",
        "rankings_heldout": "ranking",
        "reward.phases.10.rankings": "ranking",
    }
    assert [is_heldout(name) for name in ("prompts_heldout", "a.rankings_heldout", "a.rankings", "ratings")] == [
        True,
        True,
        False,
        False,
    ]


def test_weight_and_margin_are_numbers_in_a_csv_file_too():
    write("rows.csv", b"prompt,chosen,rejected,weight,margin\nWhy?,Because.,No.,2,0.5\nWho?,I.,You.,,\n")
    assert [(record.weight, record.margin) for record in load("rows.csv", "ranking")] == [(2.0, 0.5), (None, None)]


# ---- what a file is taken for ----


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (ranking(1, 2), "ranking"),
        ({"prompt": "a", "responses": ["x", "y"], "ranks": [1, 2]}, "ranking"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "ranking"),
        ({"prompt": "a", "completion": "b"}, "demonstration"),
        ({"messages": [USER, ANSWER]}, "demonstration"),
        ({"messages": [USER]}, "prompt"),
        ({"prompt": "a", "category": "b"}, "prompt"),
        ({"prompt": "a", "categry": "b"}, "prompt"),
        ({"prompt": "a", "response": "b", "thumb": True}, "rating"),
        ({"text": "a"}, "text"),
    ],
)
def test_a_kind_is_guessed_from_the_first_rows_that_can_be_read(row, kind):
    write("rows.jsonl", *["{"] * 30, row)
    assert guess_kind("rows.jsonl") == kind


def test_a_kind_is_what_most_of_the_first_rows_say():
    write("rows.jsonl", {"text": "a"}, *[{"prompt": "a"}] * 3)
    assert guess_kind("rows.jsonl") == "prompt"


@pytest.mark.parametrize("row", [{"prompt": "b", "categry": "c"}, {"prompt": ""}, {"prompt": 7}])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_mistake_makes_no_file_a_foreign_one(row, count):
    write("rows.jsonl", *[{"prompt": str(i)} for i in range(count)], row)
    found = guess("rows.jsonl")
    assert (found.kind, found.format) == ("prompt", None)
    found = guess("rows.jsonl", "demonstration")
    assert (found.kind, found.format) == ("demonstration", None)


def test_a_kind_that_cannot_be_guessed():
    write("rows.jsonl", {"colour": "red", "taste": "sweet"})
    with pytest.raises(DataError) as caught:
        guess_kind("rows.jsonl")
    assert str(caught.value) == "rows.jsonl:1: looks like no kind of row that is known; it has colour, taste"
    write("rows.jsonl", "{", "[1]")
    with pytest.raises(DataError) as caught:
        guess_kind("rows.jsonl")
    assert [problem.code for problem in caught.value.problems] == ["broken-json", "not-an-object"]
    write("rows.jsonl", b"\xef\xbb\xbf")
    with pytest.raises(DataError) as caught:
        guess_kind("rows.jsonl")
    assert caught.value.problems == (Problem("rows.jsonl", "", "holds no rows", "empty-file"),)


OWN = {"trl", "messages", "sharegpt", "llamafactory", "alpaca", "plain-text"}
"""Formats that share shapes with the kit's own or with each other."""


@pytest.mark.parametrize("fixture", sorted(FIXTURES.iterdir()), ids=lambda path: path.stem)
def test_a_foreign_format_is_known_by_its_rows(fixture):
    name = fixture.name.partition(".")[0]
    found = guess(str(fixture))
    assert found.format is not None or name in OWN
    assert found.format is None or (found.format.name in {name, *OWN} and (found.format.name == name or name in OWN))
    assert found.why


# ---- hashes ----


def test_the_hash_of_a_file_is_that_of_its_bytes():
    write("rows.jsonl", b"abc")
    assert (
        sha256_of("rows.jsonl") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2, B.1


def test_the_hash_of_a_directory_changes_with_names_and_bytes(tmp_path):
    hashes = set()
    for name, data in [("a", b"x"), ("b", b"x"), ("a", b"y")]:
        folder = tmp_path / f"d{len(hashes)}"
        folder.mkdir()
        (folder / name).write_bytes(data)
        hashes.add(sha256_of(str(folder)))
        (folder / "cache-1.arrow").write_bytes(b"left by datasets")
        assert sha256_of(str(folder)) in hashes
    assert len(hashes) == 3


def test_the_hash_of_a_saved_directory_and_of_a_hub_dataset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk("both")
    assert len({sha256_of(name) for name in ("both", "both:test", "both:train")}) == 3
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: parts[split])
    assert sha256_of("owner/name") == sha256_of("owner/name:train") != sha256_of("owner/name:test")


def test_reading_needs_no_heavy_library():
    write("rows.jsonl", {"text": "a"})
    code = (
        "import sys; from rlhf_kit.files import load; import rlhf_kit.recipe; load('rows.jsonl', 'text');"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    path = ":".join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_all_mistakes_of_a_row_that_is_no_record_are_told_at_once():
    write(
        "rows.jsonl",
        {"prompt": "a", "id": "x"},
        {"prompt": "b <|im_end|>\r", "id": "y", "bad": 1},
        {"prompt": "c", "id": "y"},
        {"prompt": "", "id": "x"},
        {"prompt": "d", "id": "x"},
    )
    checked = check("rows.jsonl", "prompt")
    found = sorted((p.where.rpartition(":")[2], p.field, p.code) for p in (*checked.problems, *checked.warnings))
    assert found == [
        ("2", "bad", "unknown-key"),
        ("2", "prompt", "carriage-return"),
        ("2", "prompt", "special-token"),
        ("3", "id", "duplicate-id"),  # an id is taken even where its row is wrong
        ("4", "id", "duplicate-id"),
        ("4", "prompt", "empty-text"),
        ("5", "id", "duplicate-id"),
    ]
    (third,) = (p.reason for p in checked.problems if p.where.endswith(":3"))
    assert third.startswith("also the id of rows.jsonl:2;")
