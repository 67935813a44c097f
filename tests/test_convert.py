"""`rlhf-kit convert`: an account of every row, rejected rows byte for byte, and a user's own converter."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from rlhf_kit.cli import main
from rlhf_kit.formats.base import Format
from rlhf_kit.formats.catalogue import FORMATS, format_named
from rlhf_kit.formats.resolve import default_kind, kinds_of
from rlhf_kit.guessing import guess

FIXTURES = Path(__file__).parent / "fixtures" / "formats"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def verdict_row(question, preference, k=3):
    answers = {f"prediction {i}": f"{question} answer {i}" for i in range(1, k + 1)}
    return {"question": question, "passages": [["Title", "A sentence."]], **answers, "preference": preference}


def write(name, rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows]
    Path(name).write_bytes(b"".join(lines))
    return name


def rows_of(name):
    data = Path(name).read_bytes()
    data = gzip.decompress(data) if name.endswith(".gz") else data
    return [json.loads(line) for line in data.split(b"\n") if line]


def account_of(capsys, *words):
    assert main(["convert", *words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


# Verdicts are 1v2, 1v3, 2v3: 1 = the first of the two is better, 2 = the second, 0 = neither.
ORDERED = verdict_row("ordered", [2, 2, 1])  # 2 > 3 > 1
TIED = verdict_row("tied", [0, 1, 1])  # 1 = 2 > 3
CYCLE = verdict_row("cycle", [1, 2, 1])  # 1 > 2, 3 > 1, 2 > 3
ALL_TIED = verdict_row("all tied", [0, 0, 0])


def test_the_account_adds_up_and_rejected_rows_are_the_same_bytes(capsys):
    odd = b'{"question":  "odd\\u4e00", "prediction 1": "a", "prediction 2":"b", "preference": ["N/A"]}\r\n'
    write("verdicts.jsonl", [ORDERED, CYCLE, b"\n", odd, TIED, b'{"question": \n', ALL_TIED])
    words = ["verdicts.jsonl", "--from", "pairwise", "--to", "ranking", "--out", "out.jsonl", "--rejected", "no.jsonl"]
    account = account_of(capsys, *words)
    assert (account["rows"], account["rows_kept"], account["rows_rejected"]) == (6, 3, 3)
    assert account["rejected_by"] == {"no-order": 1, "no-verdict": 1, "broken-json": 1}
    assert (account["records"], account["pairs"], account["ties"]) == (3, 3 + 2 + 0, 0 + 1 + 3)
    assert account["sizes"] == {"3": 3}
    assert "first of the two is better" in account["orientation"]
    ranks = [[response["rank"] for response in row["responses"]] for row in rows_of("out.jsonl")]
    assert ranks == [[3, 1, 2], [1, 1, 2], [1, 1, 1]]
    cycle = json.dumps(CYCLE).encode() + b"\n"
    assert Path("no.jsonl").read_bytes() == cycle + odd + b'{"question": \n'
    assert main(["validate", "out.jsonl"]) == 0


def test_the_table_at_the_end_and_the_findings(capsys):
    write("verdicts.jsonl", [ORDERED, CYCLE, TIED])
    assert main(["convert", "verdicts.jsonl", "--to", "ranking", "--out", "out.jsonl"]) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("from pairwise (has 'question'")
    for line in ("3 rows in", "2 rankings out, in out.jsonl", "5 pairs", "1 tied pairs", "1 rows rejected"):
        assert line in lines
    assert err.startswith("verdicts.jsonl:2: preference: ") and err.endswith("[no-order]\n")


def test_aggregate_makes_scores_of_a_cycle(capsys):
    write("verdicts.jsonl", [ORDERED, CYCLE])
    words = ["verdicts.jsonl", "--from", "pairwise", "--aggregate", "bt"]
    account = account_of(capsys, *words, "--to", "rating", "--out", "ratings.jsonl")
    assert (account["rows_rejected"], account["records"]) == (0, 6)
    scores = [row["score"] for row in rows_of("ratings.jsonl")]
    assert scores[1] > scores[2] > scores[0], "2 > 3 > 1"
    assert scores[3:] == pytest.approx([0, 0, 0], abs=1e-6), "a cycle of three is symmetric"
    account = account_of(capsys, *words, "--to", "ranking", "--out", "rankings.jsonl")
    ranks = [[response["rank"] for response in row["responses"]] for row in rows_of("rankings.jsonl")]
    assert ranks == [[3, 1, 2], [1, 1, 1]]


def test_aggregate_needs_verdicts(capsys):
    write("chats.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    words = ["convert", "chats.jsonl", "--from", "messages", "--to", "rating", "--out", "x.jsonl", "--aggregate", "elo"]
    assert main(words) == 2
    assert "makes rankings and ratings of verdicts; messages to rating has none" in capsys.readouterr().err
    assert not Path("x.jsonl").exists()


def test_a_folder_of_files_and_a_gzipped_outcome(capsys):
    Path("data").mkdir()
    write("data/a.jsonl", [ORDERED])
    Path("data/b.json").write_text(json.dumps([TIED, ALL_TIED]))
    Path("data/notes.md").write_text("not data")
    account = account_of(capsys, "data", "--from", "pairwise", "--to", "ranking", "--out", "out.jsonl.gz")
    assert (account["rows"], account["records"]) == (3, 3)
    assert [row["prompt"].split()[0] for row in rows_of("out.jsonl.gz")]
    words = ["convert", "data", "--to", "ranking", "--out", "out.jsonl", "--rejected", "no.jsonl"]
    assert main(words) == 2
    assert "cannot hold rows of array and lines together" in capsys.readouterr().err


def test_prompts_and_demonstrations_follow_from_rankings(capsys):
    write("verdicts.jsonl", [ORDERED, ALL_TIED])
    account_of(capsys, "verdicts.jsonl", "--to", "prompt", "--out", "prompts.jsonl")
    prompts = [row["prompt"] for row in rows_of("prompts.jsonl")]
    assert ["ordered" in prompts[0], "all tied" in prompts[1]] == [True, True]
    write("answers.jsonl", [{"prompt": "q", "answers": []}])
    nectar = {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": []}
    nectar["answers"] = [{"answer": f"a{rank}", "model": "m", "rank": float(rank)} for rank in (2, 1, 3)]
    write("nectar.jsonl", [nectar])
    account_of(capsys, "nectar.jsonl", "--from", "nectar", "--to", "demonstration", "--out", "demos.jsonl")
    assert rows_of("demos.jsonl")[0]["completion"] == "a1"


def test_the_users_own_converter(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = """
def convert(row):
    if row["grade"] == "?":
        raise ValueError("nobody graded it")
    if row["grade"] == "skip":
        return None
    return {"prompt": row["q"], "completion": row["a"]}
"""
    (tmp_path / "own_format.py").write_text(code)  # in the folder that one works in
    grades = ["good", "?", "skip", "good"]
    write("own.jsonl", [{"q": f"q{i}", "a": "a" if i else "", "grade": grade} for i, grade in enumerate(grades)])
    words = ["own.jsonl", "--from", "own_format:convert", "--to", "demonstration", "--out", "out.jsonl"]
    account = account_of(capsys, *words, "--rejected", "no.jsonl")
    assert rows_of("out.jsonl") == [{"prompt": "q3", "completion": "a"}]
    words[2] = "own_format.py:convert"
    assert account_of(capsys, *words)["records"] == 1
    assert account["rejected_by"] == {"empty-text": 1, "bad-value": 1, "left-out": 1}
    assert main(["validate", "own.jsonl", "--from", "own_format:convert"]) == 2  # the kind is seen by what it gives
    out, err = capsys.readouterr()
    assert out.startswith("own.jsonl: 1 demonstration, from 4 rows of own_format:convert")
    assert "own.jsonl:1: completion: empty; a text is needed [empty-text]" in err.splitlines()
    assert "own.jsonl:2: nobody graded it [bad-value]" in err.splitlines()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "no-such"], "no format 'no-such'; there are"),
        (["--from", "no_module:f"], "--from: no_module:f: cannot be loaded: No module named 'no_module'"),
        (["--from", "nowhere/own.py:f"], "nowhere/own.py:f: cannot be loaded: "),
        (["--from", "json:no_function"], "no_function"),
        (["--from", "pairwise", "--to", "text"], "--from pairwise: gives no text; it gives ranking"),
        (["--out", "verdicts.jsonl"], "verdicts.jsonl: is read from; write to another file"),
        (["--rejected", "out.jsonl"], "out.jsonl: would be written twice; give each file its own name"),
        (["--out", "verdicts.jsonl/out.jsonl"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_and_writes_nothing(words, said, capsys):
    write("verdicts.jsonl", [ORDERED])
    before = Path("verdicts.jsonl").read_bytes()
    assert main(["convert", "verdicts.jsonl", "--to", "ranking", "--out", "out.jsonl", *words]) == 2
    assert said in capsys.readouterr().err
    assert Path("verdicts.jsonl").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["verdicts.jsonl"]


def test_missing_words_are_named(capsys):
    assert main(["convert", "--from", "hh-rlhf"]) == 2
    assert capsys.readouterr().err == "convert: SRC, --to, --out is missing\n"


def test_an_empty_file_is_an_error_and_an_unknown_one_too(capsys):
    write("empty.jsonl", [])
    assert main(["convert", "empty.jsonl", "--from", "pairwise", "--to", "ranking", "--out", "out.jsonl"]) == 2
    assert "empty.jsonl: holds no rows" in capsys.readouterr().err
    write("odd.jsonl", [{"colour": "red"}])
    assert main(["convert", "odd.jsonl", "--to", "ranking", "--out", "out.jsonl"]) == 2
    assert "odd.jsonl: is of no format that is known; name it with --from" in capsys.readouterr().err
    write("cycles.jsonl", [CYCLE])
    assert main(["convert", "cycles.jsonl", "--to", "ranking", "--out", "out.jsonl"]) == 2
    assert "cycles.jsonl: none of its 1 rows gave a ranking" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_every_format_is_listed_with_its_orientation(capsys):
    assert main(["convert", "--list"]) == 0
    out = capsys.readouterr().out
    named = {line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")}
    assert {format.name for format in FORMATS} <= named
    asked = (
        "hh-rlhf oasst ultrafeedback helpsteer nectar shp just-eval pandalm pairwise vicuna-review alpaca trl argilla"
    )
    asked += (
        " summarize-from-feedback sharegpt messages llamafactory label-studio gsm8k self-instruct mt-bench nemo-aligner"
    )
    assert set(asked.split()) <= named


def fixture_of(format: Format) -> str:
    (found,) = FIXTURES.glob(f"{format.name}.*")
    return str(found)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_format_guesses_itself_and_its_clean_file_passes(format, capsys):
    assert format_named(format.name) is format
    assert format.orientation and format.documentation.startswith("https://")
    source = fixture_of(format)
    if format.name not in ("plain-text", "trl"):  # which are read as they are
        assert guess(source).format is format
    assert main(["validate", source]) == 0, capsys.readouterr().err
    assert main(["validate", source, "--from", format.name]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for kind in kinds_of(format):
        if main(["convert", source, "--from", format.name, "--to", kind, "--out", "out.jsonl", "--format", "json"]):
            assert kind != default_kind(format) and "gave a" in capsys.readouterr().err
            continue
        account = json.loads(capsys.readouterr().out)
        assert account["rows_kept"] + account["rows_rejected"] == account["rows"] > 0
        assert account["records"] == len(rows_of("out.jsonl")) > 0
        assert main(["validate", "out.jsonl", "--schema", kind]) == 0, capsys.readouterr().err
        capsys.readouterr()
