"""Data files: every way to read one, and every bad line with its place."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_kit.errors import DataError, Problem
from rlhf_kit.files import check, guess_kind, iter_rows, load, sha256_of
from rlhf_kit.records import Prompt, Text

ROWS = [{"text": "one", "source": "a"}, {"text": "zwei – 二\u2028"}, {"text": "three"}]


def ranking(*ranks, **fields):
    return {"prompt": "Why?", "responses": [{"text": f"answer {i}", "rank": r} for i, r in enumerate(ranks)], **fields}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(name, data):
    if not isinstance(data, bytes):
        data = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in data).encode()
    with open(name, "wb") as stream:
        stream.write(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return name


def said(source, kind="text"):
    problems = check(source, kind).problems
    with pytest.raises(DataError) as caught:
        load(source, kind)
    assert list(caught.value.problems) == problems
    return str(caught.value).splitlines()


# ---- what is read ----


def as_jsonl(name):
    return write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode())


def as_json(name):
    return write(name, json.dumps(ROWS, indent=1).encode())


def as_parquet(name):
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), name)
    return name


def as_directory(name):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(name)
    return name


@pytest.mark.parametrize(
    ("make", "name", "places"),
    [
        (as_jsonl, "rows.jsonl", [":1", ":2", ":3"]),
        (as_jsonl, "rows.jsonl.gz", [":1", ":2", ":3"]),
        (as_json, "rows.json", ["#0", "#1", "#2"]),
        (as_json, "rows.json.gz", ["#0", "#1", "#2"]),
        (as_parquet, "rows.parquet", ["#0", "#1", "#2"]),
        (as_directory, "rows", ["#0", "#1", "#2"]),
    ],
)
def test_every_container_gives_the_same_records(make, name, places):
    source = make(name)
    checked = check(source, "text")
    assert checked.records == load(source, "text") == [Text(**row) for row in ROWS]
    assert checked.wheres == [f"{name}{place}" for place in places]
    assert guess_kind(source) == "text"
    assert len(sha256_of(source)) == 64


def test_blank_lines_a_bom_and_carriage_returns_are_no_rows_and_no_mistakes():
    write("rows.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    checked = check("rows.jsonl", "text")
    assert (checked.wheres, checked.problems) == (["rows.jsonl:1", "rows.jsonl:4"], [])


def test_gzip_is_known_by_its_content():
    write("rows.jsonl", gzip.compress(b'{"text": "a"}\n'))
    assert load("rows.jsonl", "text") == [Text(text="a")]


def test_the_splits_of_a_saved_directory():
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk("both")
    datasets.DatasetDict({"test": parts["test"]}).save_to_disk("single")
    assert load("both", "text") == [Text(text="train")]
    assert load("both:test", "text") == [Text(text="test")]
    assert load("single", "text") == [Text(text="test")]
    assert said("both:dev") == ["both:dev: has no split 'dev'; add one of :train, :test"]
    assert sha256_of("both:test") != sha256_of("both")


def test_a_hub_dataset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "owner/none":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/none' doesn't exist on the Hub.\nMore.")
        return datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": " "}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert check("owner/name:test", "prompt").records == [Prompt(prompt="a")]
    assert said("owner/name", "prompt") == ["owner/name#1: prompt: empty; a text is needed"]
    assert asked == [("owner/name", "test"), ("owner/name", "train"), ("owner/name", "train")]
    assert sha256_of("owner/name") == sha256_of("owner/name:train")
    line = (
        "owner/none: is no file here, and no dataset that the Hub gives: Dataset 'owner/none' doesn't exist on the Hub."
    )
    assert said("owner/none") == [line]


def test_null_in_a_table_means_that_a_column_does_not_apply():
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        ranking(1, 2, meta={"x": None}),
        ranking(2, None, labeler="anna"),
        {"prompt": None, "responses": [{"text": "a", "rank": 1, "source": "sft"}, {"text": "b", "rank": 1}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    assert load_good("rows.parquet", "ranking")[0].meta == {"x": None}
    assert said("rows.parquet", "ranking") == [
        "rows.parquet#1: responses.1.rank: missing; give each response a rank, 1 = best",
        "rows.parquet#2: prompt: missing; every row needs its prompt",
    ]


def load_good(source, kind):
    return check(source, kind).records


# ---- what is reported ----


def test_a_ranking_file_with_a_mistake_on_each_line():
    rows = [
        ranking(1, 2, id="r1"),
        '{"prompt": "Why?", "responses": [\n',
        ranking(1, 2, None),
        ranking(1),
        {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "", "rank": 2}]},
        ranking(1, 2, id="r2"),
        ranking(2, 1, id="r1"),
        {"prompt": "Why?", "responses": [{"text": "a", "rank": 1}, {"text": "b"}]},
        ranking(1, 1, id="r3"),
    ]
    write("rankings.jsonl", rows)
    assert said("rankings.jsonl", "ranking") == [
        "rankings.jsonl:2: broken JSON at column 34: Expecting value",
        "rankings.jsonl:3: responses.2.rank: null; give each response a rank, 1 = best",
        "rankings.jsonl:4: responses: 1 given, at least 2 needed; a ranking compares 2 to 64 answers",
        "rankings.jsonl:5: responses.1.text: empty; a text is needed",
        "rankings.jsonl:7: id: duplicate; 'r1' is already the id of rankings.jsonl:1",
        "rankings.jsonl:8: responses.1.rank: missing; give each response a rank, 1 = best",
    ]
    checked = check("rankings.jsonl", "ranking")
    assert [record.id for record in checked.records] == ["r1", "r2", "r3"]
    assert checked.wheres == ["rankings.jsonl:1", "rankings.jsonl:6", "rankings.jsonl:9"]


def test_an_id_counts_even_where_its_row_is_wrong():
    write("rows.jsonl", [ranking(1, id="r1"), ranking(1, 2, id="r1")])
    assert said("rows.jsonl", "ranking")[-1] == "rows.jsonl:2: id: duplicate; 'r1' is already the id of rows.jsonl:1"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"} {"text": "b"}', "broken JSON at column 15: Extra data"),
        (b'{"text":', "broken JSON at column 9: Expecting value"),
        (b'{"text": "a', "broken JSON at column 10: Unterminated string starting at"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        (b'{"text": NaN}', "NaN is no JSON value"),
        (b'{"text": -Infinity}', "-Infinity is no JSON value"),
        (b'"a"', "must be an object with named fields"),
        (b'{"text": "\xe9t\xe9"}', "not UTF-8 at byte 11 of the line; save the file in that encoding"),
        pytest.param(b'{"text": ' + b"[" * 200_000, "nested too deeply to be a row", id="deep"),
    ],
)
def test_a_line_that_is_no_object(line, reason):
    write("rows.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    assert said("rows.jsonl") == [f"rows.jsonl:2: {reason}"]
    assert load_good("rows.jsonl", "text") == [Text(text="a"), Text(text="c")]


def test_a_number_too_long_to_be_read():
    write("rows.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n")
    (line,) = said("rows.jsonl")
    assert line.startswith("rows.jsonl:1: ")


@pytest.mark.parametrize(
    ("name", "data", "lines"),
    [
        ("rows.jsonl", b"", ["rows.jsonl: holds no rows"]),
        ("rows.jsonl", b"\n \n", ["rows.jsonl: holds no rows"]),
        ("rows.json", b"[]", ["rows.json: holds no rows"]),
        ("rows.json", b"", ["rows.json: holds no rows"]),
        (
            "rows.jsonl",
            b'\n[\n{"text": "a"}\n]',
            ["rows.jsonl: is a JSON array; name it .json, or write one object a line"],
        ),
        (
            "rows.json",
            b'{"text": "a"}\n{"text": "b"}',
            ["rows.json: must be a JSON array of objects; a file with one object a line is named .jsonl"],
        ),
        ("rows.jsonl", '{"text": "a"}\n'.encode("utf-16"), ["rows.jsonl: is UTF-16; save it as UTF-8"]),
        ("rows.json", b'[\n"\xff"]', ["rows.json:2: not UTF-8; save the file in that encoding"]),
        (
            "rows.csv",
            b"text\na\n",
            ["rows.csv: is of no known kind; name it .jsonl, .jsonl.gz, .json, .json.gz or .parquet, as what it holds"],
        ),
    ],
)
def test_a_file_that_is_no_file_of_rows(name, data, lines):
    write(name, data)
    assert said(name) == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            '[{"text": "a"},\n {"text": 1}, 3, {"text": "b"}]',
            ["#1: text: must be a text, not 1; put it in quotes", "#2: must be an object with named fields"],
        ),
        ('[{"text": "a"},\n {"text": }]', [":2: broken JSON at column 11: Expecting value; nothing after it was read"]),
        (
            '[{"text": "a"}\n {"text": "b"}]',
            [":2: broken JSON at column 2: Expecting ',' or ']'; nothing after it was read"],
        ),
        ('[{"text": "a"},]', [":1: broken JSON at column 16: Expecting value; nothing after it was read"]),
        ('[{"text": "a"}', [":1: broken JSON at column 15: Expecting ',' or ']'; nothing after it was read"]),
        ('[{"text": "a"}] 1', [":1: broken JSON at column 17: Extra data; nothing after it was read"]),
        ("[] 1", [":1: broken JSON at column 4: Extra data; nothing after it was read"]),
        (
            '[{"text": "a"}, {"text": "b", "text": "c"}, {"text": NaN}, {"text": "d"}]',
            ["#1: the key 'text' stands twice in one object", "#2: NaN is no JSON value"],
        ),
        pytest.param("[" * 200_000, [": nested too deeply to be a row"], id="deep"),
    ],
)
def test_an_array_with_mistakes(text, lines):
    write("rows.json", text.encode())
    assert said("rows.json") == [f"rows.json{line}" for line in lines]


def test_an_array_is_read_on_behind_a_mistake():
    write("rows.json", b'[{"text": "a"}, {"text": "b", "text": "c"}, 3, {"text": "d"}]')
    assert load_good("rows.json", "text") == [Text(text="a"), Text(text="d")]


def test_gzip_that_is_none_or_is_cut_off():
    (whole,) = [gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(20_000)))]
    with open("none.jsonl.gz", "wb") as stream:
        stream.write(b'{"text": "a"}\n')
    for name in ("half.jsonl.gz", "half.json.gz"):
        with open(name, "wb") as stream:
            stream.write(whole[: len(whole) // 2])
    assert said("none.jsonl.gz") == ["none.jsonl.gz: is no gzip file, though its name ends in .gz"]
    assert said("half.json.gz") == ["half.json.gz: the gzip data are cut off or damaged; fetch the file again"]
    rows = list(iter_rows("half.jsonl.gz"))
    assert [row.value for row in rows[:-1]] == [{"text": str(i)} for i in range(len(rows) - 1)]
    place = f"half.jsonl.gz:{len(rows)}"
    assert rows[-1].value == Problem(
        place, "", "the gzip data are cut off or damaged from here on; fetch the file again"
    )


@pytest.mark.parametrize(
    "name", ["none.jsonl", "data/none.jsonl", "data/none.parquet", "../none", "a/b/c", "none", "x:y"]
)
def test_a_missing_file(name):
    assert said(name) == [f"{name}: no such file"]
    for ask in (guess_kind, sha256_of):
        with pytest.raises(DataError, match="no such file"):
            ask(name)


def test_a_directory_that_datasets_did_not_write(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    line = "folder: is a directory, but none that datasets.save_to_disk wrote; name the file in it"
    assert said("folder") == [line]


def test_a_broken_parquet_file():
    pytest.importorskip("pyarrow")
    write("rows.parquet", b"PAR1 this is not one")
    (line,) = said("rows.parquet")
    assert line.startswith("rows.parquet: is no Parquet file that can be read: ")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.json.gz", "rows.parquet"])
def test_a_damaged_file_gives_problems_or_records_but_never_a_crash(name):
    rows = [ranking(1, 2, id=str(i), category="naïve") for i in range(3)]
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), name)
    else:
        write(name, rows if ".jsonl" in name else [json.dumps(rows, ensure_ascii=False)])
    whole = Path(name).read_bytes()
    chance = random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data))
            junk = bytes(chance.choice(b'{}[],:"\n\\0N\xff') for _ in range(chance.randint(0, 4)))
            data[place : place + chance.randint(0, 4)] = junk
        Path(name).write_bytes(data)
        checked = check(name, "ranking")
        assert checked.records or checked.problems


# ---- kinds and hashes ----


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (ranking(1, 2), "ranking"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "ranking"),
        ({"prompt": "a", "completion": "b"}, "demonstration"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "demonstration"),
        ({"messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ({"prompt": "a", "category": "b"}, "prompt"),
        ({"text": "a"}, "text"),
    ],
)
def test_a_kind_is_guessed_from_the_first_row_that_can_be_read(row, kind):
    write("rows.jsonl", ["{\n", row])
    assert guess_kind("rows.jsonl") == kind


def test_a_kind_that_cannot_be_guessed():
    write("rows.jsonl", [{"instruction": "a", "output": "b"}])
    with pytest.raises(DataError) as caught:
        guess_kind("rows.jsonl")
    assert str(caught.value) == "rows.jsonl:1: looks like no kind of row that is known; it has instruction, output"


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


def test_reading_needs_no_heavy_library():
    write("rows.jsonl", [{"text": "a"}])
    code = (
        "import sys; from rlhf_kit.files import load; import rlhf_kit.recipe; load('rows.jsonl', 'text');"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    path = ":".join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert (done.stdout, done.stderr) == ("[]\n", "")
