"""`rlhf-kit validate`, through `main`: what it prints, how it exits, and the two files that it sorts rows into."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datafiles import USER, lines, ranking, rows_of_lines, transcript, write

from rlhf_kit.cli import main
from rlhf_kit.codes import CODES

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "formats"
GOOD = [{"prompt": "a", "id": "1"}, {"prompt": "b: <b>", "meta": {"x": 1.5}}, {"prompt": "c\u2028d", "labeler": None}]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run(capsys):
    def run(*words):
        code = main(["validate", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return run


def bad_rows():
    """Five rows of which the second, third and fifth cannot be used; the fourth has a warning."""
    return [
        b'{"prompt": "a", "id": "x"}\r',
        b'{"prompt": "\xff"}',
        b'  {"prompt": 7}',
        b'{"prompt": "b\\r\\nc"}',
        b'{"prompt" :"c", "id":"x", "meta": {"\xc3\xa9": 1.50}}',
    ]


# ---- what it says ----


def test_findings_and_the_summary_as_text(run):
    write("rows.jsonl", *bad_rows())
    code, out, err = run("rows.jsonl")
    assert code == 2
    assert err == [
        "rows.jsonl:2: not UTF-8 at byte 13 of the row; save the file in that encoding [not-utf-8]",
        "rows.jsonl:3: prompt: must be a text or a list of messages [wrong-type]",
        "rows.jsonl:4: prompt: holds carriage returns; end its lines with \\n alone [warning: carriage-return]",
        "rows.jsonl:5: id: also the id of rows.jsonl:1; ids are unique in a file [duplicate-id]",
    ]
    assert out[0] == "rows.jsonl: 3 prompts; 3 errors, 1 warning"
    table = [re.split(r"\s{2,}", line.strip(), maxsplit=3) for line in out[1:]]
    assert sorted(row[:3] for row in table) == sorted(
        [
            ["1", "error", "not-utf-8"],
            ["1", "error", "wrong-type"],
            ["1", "error", "duplicate-id"],
            ["1", "warning", "carriage-return"],
        ]
    )
    assert all(row[3] == CODES[row[2]].meaning for row in table)


def test_findings_and_the_summary_as_json(run):
    write("rows.jsonl", *bad_rows())
    code, out, err = run("rows.jsonl", "--format", "json")
    assert (code, err) == (2, [])
    *found, last = map(json.loads, out)
    assert [(one["finding"]["where"], one["finding"]["code"], one["finding"]["severity"]) for one in found] == [
        ("rows.jsonl:2", "not-utf-8", "error"),
        ("rows.jsonl:3", "wrong-type", "error"),
        ("rows.jsonl:4", "carriage-return", "warning"),
        ("rows.jsonl:5", "duplicate-id", "error"),
    ]
    assert {"where", "field", "reason", "code", "severity"} == found[0]["finding"].keys()
    verdict = last["verdict"]
    assert (verdict["rows"], verdict["kept"], verdict["rejected"], verdict["kind"]) == (5, 2, 3, "prompt")
    assert verdict["findings"] == {"not-utf-8": 1, "wrong-type": 1, "carriage-return": 1, "duplicate-id": 1}


def test_findings_as_commands_of_github(run):
    write("a,b.jsonl", lines(*bad_rows()) + b'{"prompt": "x", "50%\\n": 1}\n')
    write("rows.json", b'[{"prompt": ""}, {"prompt": "a"}]')
    code, out, err = run("a,b.jsonl", "rows.json", "--format", "github")
    assert (code, err) == (2, [])
    commands = sorted((line for line in out if line.startswith("::")), key=lambda line: line.split("file=")[1])
    assert commands[1] == (
        "::error file=a%2Cb.jsonl,line=3,title=wrong-type::a,b.jsonl:3: prompt: must be a text or a list of messages"
    )
    assert commands[2].startswith("::warning file=a%2Cb.jsonl,line=4,title=carriage-return::")
    assert commands[4].startswith("::error file=a%2Cb.jsonl,line=6,title=unknown-key::a,b.jsonl:6: 50%25\\n: unknown")
    assert commands[-1] == "::error file=rows.json,title=empty-text::rows.json#0: prompt: empty; a text is needed"


def test_a_finding_stays_one_line_that_steers_no_terminal(run):
    write("rows.jsonl", {"prompt": "a", "x\ny\x1b[31m\u2028": 1}, b'{"prompt": 1, "\\ud800": 1, "\\ud800": 2}')
    for style in ("text", "json", "github"):
        code, out, err = run("rows.jsonl", "--schema", "prompt", "--format", style)
        said = "\n".join(out + err)
        assert (code == 2 and "\x1b" not in said and "\u2028" not in said.replace("\\u2028", "")) or style == "json"
        assert "\ud800" not in said
    assert len(run("rows.jsonl", "--schema", "prompt")[2]) == 2


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_a_file_whose_name_is_not_utf_8(run):
    name = os.fsdecode(b"r\xff.jsonl")
    Path(name).write_bytes(b'{"prompt": ""}\n')
    for style in ("text", "json", "github"):
        assert run(name, "--format", style)[0] == 2


def test_the_exit_code(run):
    write("clean.jsonl", *GOOD)
    write("warned.jsonl", {"prompt": "a\r"})
    write("unusual.jsonl", {"prompt": "x" * 1_000_001})
    write("bad.jsonl", {"prompt": ""})
    for strict in ((), ("--strict",)):
        assert run("clean.jsonl", *strict)[0] == 0
        assert run("unusual.jsonl", *strict)[0] == 0
        assert run("warned.jsonl", *strict)[0] == (1 if strict else 0)
        assert run("bad.jsonl", "warned.jsonl", *strict)[0] == 2
    assert run("warned.jsonl", "--strict", "--ignore", "carriage-return")[0] == 0
    assert run("bad.jsonl", "--ignore", "carriage-return", "empty-text")[0] == 0


def test_ignored_codes_are_not_shown_or_counted_and_their_rows_are_rejected_all_the_same(run):
    write("rows.jsonl", *bad_rows())
    code, out, err = run("rows.jsonl", "--format", "json", "--ignore", "not-utf-8", "duplicate-id")
    assert (code, len(out)) == (2, 3)
    assert json.loads(out[-1])["verdict"]["findings"] == {"wrong-type": 1, "carriage-return": 1}
    assert json.loads(out[-1])["verdict"]["rejected"] == 3
    code, out, err = run("rows.jsonl", "--ignore", "nonsense")
    assert code == 2 and err[0].startswith("--ignore: no code 'nonsense'; there are no-file, ")


def test_only_the_first_errors_are_shown_and_all_are_counted(run):
    write("rows.jsonl", *[{"prompt": ""}] * 5)
    code, out, err = run("rows.jsonl", "--max-errors", "2")
    assert (code, len(err)) == (2, 2)
    assert out[0] == "rows.jsonl: 0 prompts; 5 errors"


def test_every_row_is_told_of_where_none_can_be_read(run):
    write("rows.jsonl", *["{"] * 50)
    _code, out, _err = run("rows.jsonl", "--format", "json")
    assert [json.loads(line)["finding"]["where"] for line in out[:-1]] == [f"rows.jsonl:{n}" for n in range(1, 51)]
    assert json.loads(out[-1])["verdict"]["rejected"] == json.loads(out[-1])["verdict"]["rows"] == 50


def test_a_schema_that_is_asked_for(run):
    write("rows.jsonl", {"prompt": "a"})
    assert run("rows.jsonl")[:2] == (0, ["rows.jsonl: 1 prompt"])
    code, _out, err = run("rows.jsonl", "--schema", "demonstration")
    assert (code, err) == (
        2,
        ["rows.jsonl:1: completion: missing; a demonstration needs the answer to imitate [missing]"],
    )


def test_a_foreign_format_that_is_asked_for_or_guessed(run):
    said, other = transcript("Why?", "Because."), transcript("Why?", "No.")
    write("rows.jsonl", {"chosen": said, "rejected": other}, {"chosen": said, "rejected": other.replace("Why", "Who")})
    for words in ((), ("--from", "auto"), ("--from", "hh-rlhf"), ("--from", "hh-rlhf", "--schema", "prompt")):
        code, out, err = run("rows.jsonl", *words)
        assert code == 2 and out[0].startswith("rows.jsonl: 1 ") and "of hh-rlhf" in out[0]
        assert len(err) == 1 and err[0].startswith("rows.jsonl:2: rejected: ") and err[0].endswith("[prompt-differs]")
    code, out, err = run("rows.jsonl", "--from", "nonsense")
    assert code == 2 and "no format 'nonsense'" in err[0]
    code, out, err = run("rows.jsonl", "--from", "hh-rlhf", "--schema", "text")
    assert code == 2 and "gives no text" in err[0]


@pytest.mark.parametrize("fixture", sorted(FIXTURES.iterdir()), ids=lambda path: path.stem)
def test_a_clean_file_of_every_format_exits_with_0(run, fixture):
    name, clean = fixture.name.partition(".")[0], f"clean{fixture.suffix}"
    code, out, _ = run(fixture, "--from", name, "--clean", clean)
    assert int(re.search(r"kept ([\d,]+) rows", out[-1])[1]) > 0
    if code != 0:  # the fixture has rows that its own test wants rejected
        fixture = clean
    code, _, err = run(fixture, "--from", name)
    assert code == 0, err


CLEAN = {
    "ranking": [ranking(2, 1), {"prompt": [USER], "responses": ["x", "y"], "ranks": [1, 1], "id": "t"}],
    "demonstration": [{"prompt": "a", "completion": "b"}, {"messages": [USER, {"role": "assistant", "content": "b"}]}],
    "prompt": GOOD,
    "rating": [
        {"prompt": "a", "response": "b", "score": 3, "scale": [1, 5]},
        {"prompt": "a", "response": "c", "thumb": True},
    ],
    "text": [{"text": "a", "source": "s", "weight": 2}, {"text": "b", "source": "s", "weight": 2}],
}  # fmt: skip


@pytest.mark.parametrize("kind", CLEAN)
def test_a_clean_file_of_every_schema_exits_with_0(run, kind):
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.json"):
        write(name, *CLEAN[kind])
        code, out, err = run(name, "--ignore", "no-pair", "--strict")
        assert (code, err) == (0, [])
        assert out[0].startswith(f"{name}: 2 {kind}s" if kind != "prompt" else f"{name}: 3 prompts")


def test_the_tokens_of_a_tokenizer(run):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}))
    tokenizer.add_special_tokens(["[STOP]"])
    tokenizer.save("tokenizer.json")
    write("rows.jsonl", {"text": "a [STOP] b"}, {"text": "stop"})
    assert run("rows.jsonl", "--strict")[0] == 0
    code, _out, err = run("rows.jsonl", "--strict", "--tokenizer", "tokenizer.json")
    assert (code, len(err)) == (1, 1) and err[0].startswith("rows.jsonl:1: text: holds the control token [STOP]")


# ---- leaks and recipes ----


def test_prompts_that_are_held_out(run):
    write("train.jsonl", ranking(1, 2, prompt="a"), ranking(1, 2, prompt="b"))
    write("held.jsonl", {"prompt": "c"}, {"prompt": "b"})
    assert run("train.jsonl", "held.jsonl")[0] == 0
    code, out, err = run("train.jsonl", "--heldout", "held.jsonl")
    assert code == 2
    line = "held.jsonl:2: prompt: this held-out prompt is trained on in train.jsonl:2; take one of the two out [leak]"
    assert err == [line]
    assert out[1] == "held.jsonl: 2 prompts; 1 error"
    code, out, err = run("train.jsonl", "--heldout", "held.jsonl", "--schema", "prompt", "--format", "json")
    assert code == 2


def recipe(**data):
    fields = "".join(f"  {name}: {source}\n" for name, source in data.items())
    Path("recipe.yaml").write_text(f"model:\n  name_or_path: owner/name\ndata:\n{fields}")


def test_a_recipe_with_all_its_files(run, tmp_path):
    write("demos.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""})
    write("pairs.jsonl.gz", ranking(1, 2, prompt="b"), "{")
    write("held.jsonl", {"prompt": "a"}, {"prompt": "x"}, {"prompt": "b"})
    recipe(
        demonstrations="demos.jsonl",
        rankings="pairs.jsonl.gz",
        prompts_heldout="held.jsonl",
        rankings_heldout="no.jsonl",
    )
    code, out, err = run("recipe.yaml")
    found = {(line.split(": ")[0].removeprefix(f"{tmp_path}/"), line.rpartition("[")[2].rstrip("]")) for line in err}
    assert code == 2
    assert found == {
        ("demos.jsonl:2", "empty-text"),
        ("pairs.jsonl.gz:2", "broken-json"),
        ("held.jsonl:1", "leak"),
        ("held.jsonl:3", "leak"),
        ("no.jsonl", "no-file"),
    }
    assert out[0] == "recipe.yaml: recipe, 4 data sources"


def test_a_recipe_whose_data_are_clean_or_foreign(run):
    write("pairs.jsonl", ranking(1, 2, prompt="b"))
    write("held.jsonl", {"prompt": "x"})
    recipe(rankings="pairs.jsonl", prompts_heldout="held.jsonl")
    assert run("recipe.yaml") == (
        0,
        ["recipe.yaml: recipe, 2 data sources", "pairs.jsonl: 1 ranking, 1 pair, 0 tied pairs",
         "held.jsonl: 1 prompt"],
        [],
    )  # fmt: skip
    write("pairs.jsonl", {"chosen": transcript("Why?", "Because."), "rejected": transcript("Why?", "No.")})
    code, _out, err = run("recipe.yaml")
    assert code == 2 and len(err) == 1 and err[0].endswith("[foreign-format]")


def test_held_out_files_of_a_recipe_may_share_prompts_with_each_other(run):
    write("pairs.jsonl", ranking(1, 2, prompt="b"))
    write("held.jsonl", {"prompt": "x"})
    write("held_pairs.jsonl", ranking(1, 2, prompt="x"))
    write("public.jsonl", ranking(1, 2, prompt="y"))
    recipe(rankings="pairs.jsonl", prompts_heldout="held.jsonl", rankings_heldout="held_pairs.jsonl")
    assert run("recipe.yaml")[0] == 0
    text = Path("recipe.yaml").read_text() + "reward:\n  phases:\n  - rankings: public.jsonl\n"
    Path("recipe.yaml").write_text(text)
    code, out, _ = run("recipe.yaml")
    assert code == 0 and "public.jsonl: 1 ranking, 1 pair, 0 tied pairs" in out
    write("public.jsonl", ranking(1, 2, prompt="x"))  # what a phase learns from may not be held out either
    code, _, err = run("recipe.yaml")
    assert code == 2 and {line.split(":")[0] for line in err} == {"held.jsonl", "held_pairs.jsonl"}


# ---- sorting ----


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_are_sorted_byte_for_byte(run, name):
    data = b"\n" + b"\n".join([*bad_rows(), b"", b"{"])
    write(name, data)
    code, out, _err = run(name, "--clean", "out/good.jsonl", "--rejected", "bad.jsonl.gz")
    assert (code, out[-1]) == (2, "  kept 2 rows, rejected 4")
    good, bad = Path("out/good.jsonl").read_bytes(), gzip.decompress(Path("bad.jsonl.gz").read_bytes())
    rows = bad_rows()
    assert good == b"".join(row + b"\n" for row in (rows[0], rows[3]))
    assert bad == b"".join(row + b"\n" for row in (rows[1], rows[2], rows[4], b"{"))
    assert rows_of_lines(good + bad) == rows_of_lines(data)
    assert run("out/good.jsonl")[0] == 0


def test_an_array_stays_an_array(run):
    write("rows.json", b'[ {"prompt": "a",\n "id": "\\u0061"} ,{"prompt": ""},3, {"prompt": 1.0}]')
    _code, out, _err = run("rows.json", "--clean", "good.json", "--rejected", "bad.json")
    assert out[-1] == "  kept 1 rows, rejected 3"
    assert Path("good.json").read_bytes() == b'[\n{"prompt": "a",\n "id": "\\u0061"}\n]\n'
    assert Path("bad.json").read_bytes() == b'[\n{"prompt": ""},\n3,\n{"prompt": 1.0}\n]\n'
    assert run("good.json")[0] == 0


def test_csv_keeps_its_header(run):
    write("rows.csv", b'\xef\xbb\xbfprompt,id\r\n"a\r\n""b""",1\r\n,2\r\n"x,y",3\r\nz\r\n')
    _code, out, _err = run("rows.csv", "--clean", "good.csv", "--rejected", "bad.csv")
    assert out[-1] == "  kept 2 rows, rejected 2"
    assert Path("good.csv").read_bytes() == b'prompt,id\r\n"a\r\n""b""",1\r\n"x,y",3\r\n'
    assert Path("bad.csv").read_bytes() == b"prompt,id\r\n,2\r\nz\r\n"


def test_paragraphs_stay_apart(run):
    write("rows.txt", b"a\nb\n\n\n\xff\n\nc")
    _code, out, _err = run("rows.txt", "--clean", "good.txt", "--rejected", "bad.txt")
    assert out[-1] == "  kept 2 rows, rejected 1"
    assert (Path("good.txt").read_bytes(), Path("bad.txt").read_bytes()) == (b"a\nb\n\nc\n", b"\xff\n")


def test_rows_of_a_table_become_lines(run):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "a", "id": "é"}, {"prompt": " ", "id": None}, {"prompt": "b", "id": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    _code, out, err = run("rows.parquet", "--clean", "good.jsonl", "--rejected", "bad.jsonl")
    assert err == ["rows.parquet#1: prompt: empty; a text is needed [empty-text]"]
    assert out[-1] == "  kept 2 rows, rejected 1"
    read = [[json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("good.jsonl", "bad.jsonl")]
    assert read == [[{"prompt": "a", "id": "é"}, {"prompt": "b"}], [{"prompt": " "}]]


def test_rows_of_no_known_kind_are_all_rejected(run):
    data = lines({"colour": "red"}, "{", {"colour": "blue"})
    write("rows.jsonl", data)
    code, out, err = run("rows.jsonl", "--clean", "good.jsonl", "--rejected", "bad.jsonl")
    assert code == 2 and [line.rpartition("[")[2] for line in err] == ["broken-json]", "unknown-kind]"]
    assert out[-1] == "  kept 0 rows, rejected 3"
    assert (Path("good.jsonl").read_bytes(), Path("bad.jsonl").read_bytes()) == (b"", data)


def test_only_one_of_the_two_files(run):
    write("rows.jsonl", *bad_rows())
    assert run("rows.jsonl", "--rejected", "bad.jsonl")[1][-1] == "  kept 2 rows, rejected 3"
    assert len(Path("bad.jsonl").read_bytes().splitlines()) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["bad.jsonl", "rows.jsonl"]


def test_wrong_outputs(run):
    write("rows.jsonl", *bad_rows())
    write("others.jsonl", *GOOD)
    before = Path("rows.jsonl").read_bytes()
    for words in (
        ("rows.jsonl", "others.jsonl", "--clean", "good.jsonl"),
        ("rows.jsonl", "--clean", "./rows.jsonl"),
        ("rows.jsonl", "--clean", "good.jsonl", "--rejected", "good.jsonl"),
        ("rows.jsonl", "--clean", "rows.jsonl/good.jsonl"),
    ):
        code, _, err = run(*words)
        assert code == 2 and err
        assert not Path("good.jsonl").exists() and Path("rows.jsonl").read_bytes() == before
    code, _out, err = run("none.jsonl", "--clean", "good.jsonl", "--rejected", "bad.jsonl")
    assert code == 2 and err == ["none.jsonl: no such file [no-file]"]


def test_a_folder_is_checked_file_by_file(run):
    Path("data").mkdir()
    write("data/b.jsonl", {"prompt": ""})
    write("data/a.json", *GOOD)
    code, out, _err = run("data")
    assert code == 2 and [line.partition(":")[0] for line in out if not line.startswith(" ")] == [
        "data/a.json",
        "data/b.jsonl",
    ]


# ---- what it costs ----


def test_files_whose_rows_belong_together_are_checked_together(run):
    answer = {"question_id": 1, "model_id": "m", "metadata": {}}
    write("questions.jsonl", {"question_id": 1, "text": "Why?", "category": "generic"})
    write("answers.jsonl", *({**answer, "answer_id": name, "text": f"Since {name}."} for name in "abc"))
    review = {"question_id": 1, "reviewer_id": "r", "text": "", "metadata": {}}
    pairs = (("a", "b", [9, 7]), ("b", "c", [8, 3]), ("c", "a", [9, 1]))
    reviews = [
        {**review, "review_id": f"r{n}", "answer1_id": one, "answer2_id": two, "score": score}
        for n, (one, two, score) in enumerate(pairs)
    ]
    write("reviews.jsonl", *reviews[:2])
    files = ("answers.jsonl", "questions.jsonl", "reviews.jsonl")
    code, out, _ = run(*files)
    assert (code, len(out)) == (0, 1)
    assert out[0].startswith(
        "answers.jsonl and 2 files more: 1 ranking, 3 pairs, 0 tied pairs, from 6 rows of vicuna-review"
    )
    write("reviews.jsonl", *reviews)  # a > b > c > a
    code, out, _ = run(*files, "--format", "json")
    verdict = json.loads(out[-1])["verdict"]
    assert code == 2 and verdict["findings"]["no-order"] == 1
    assert (verdict["rows"], verdict["kept"], verdict["rejected"]) == (7, 0, 7)
    write("heldout.jsonl", {"prompt": "Why?"}, {"prompt": "Why not?"})
    write("reviews.jsonl", *reviews[:2])
    code, _, err = run(*files, "--heldout", "heldout.jsonl")
    assert code == 2 and err[0].startswith("heldout.jsonl:1: prompt: this held-out prompt is trained on in ")


def test_ten_rows_need_nothing_heavy_and_end_soon():
    write("rows.jsonl", *[ranking(1, 2, 3, prompt=str(i)) for i in range(10)])
    script = (
        "import sys; from rlhf_kit.cli import main; code = main(['validate', 'rows.jsonl'])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'trl', 'peft'} & set(sys.modules)))\n"
        "import time; print(time.process_time()); sys.exit(code)"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    verdict, heavy, seconds = done.stdout.splitlines()
    assert (verdict, heavy) == ("rows.jsonl: 10 rankings, 30 pairs, 0 tied pairs", "[]")
    assert float(seconds) < 5, "processor time; the clock would also count what else is running"
