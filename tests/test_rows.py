"""The readers: every container gives its rows with their places and their own bytes, and never raises."""

import gzip
import io
import itertools
import json
import random
import zlib
from pathlib import Path

import pytest
from datafiles import as_text, lines, ranking, rows_of_lines, write

from rlhf_kit import json_rows
from rlhf_kit.errors import Problem
from rlhf_kit.rows import data_files, iter_rows, open_source

ROWS = [{"text": "one", "source": "a"}, {"text": "zwei – 二\u2028\x85"}, {"text": "three"}]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def read(name):
    """The rows by place, and the findings as (where, code)."""
    rows, findings = {}, []
    for row in iter_rows(name):
        if isinstance(row.value, Problem):
            findings.append((row.value.where, row.value.code))
        else:
            rows[row.where] = row.value
    return rows, findings


def reason(name):
    (problem,) = [row.value for row in iter_rows(name) if isinstance(row.value, Problem)]
    return problem.reason


# ---- what is read ----


def as_parquet(name):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), name)
    return name


def as_directory(name):
    pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(name)
    return name


def as_csv(name):
    comma = "\t" if ".tsv" in name else ","
    return write(name, f"text{comma}source\none{comma}a\nzwei – 二\u2028\x85{comma}\nthree{comma}\n".encode())


def as_paragraphs(name):
    return write(name, "one\n\nzwei – 二\u2028\x85\n\n\n  \nthree\n".encode())


def as_rows(name):
    return write(name, *ROWS)


@pytest.mark.parametrize(
    ("make", "name", "places"),
    [
        (as_rows, "rows.jsonl", [":1", ":2", ":3"]),
        (as_rows, "rows.jsonl.gz", [":1", ":2", ":3"]),
        (as_rows, "ROWS.JSONL", [":1", ":2", ":3"]),
        (as_rows, "rows.json", ["#0", "#1", "#2"]),
        (as_rows, "rows.json.gz", ["#0", "#1", "#2"]),
        (as_parquet, "rows.parquet", ["#0", "#1", "#2"]),
        (as_directory, "rows", ["#0", "#1", "#2"]),
        (as_csv, "rows.csv", ["#0", "#1", "#2"]),
        (as_csv, "rows.csv.gz", ["#0", "#1", "#2"]),
        (as_csv, "rows.tsv", ["#0", "#1", "#2"]),
        (as_paragraphs, "rows.txt", [":1", ":3", ":7"]),
        (as_paragraphs, "rows.txt.gz", [":1", ":3", ":7"]),
    ],
)
def test_every_container_gives_the_same_rows(make, name, places):
    make(name)
    expected = [{"text": row["text"]} for row in ROWS] if ".txt" in name else ROWS
    assert read(name) == ({f"{name}{place}": row for place, row in zip(places, expected, strict=True)}, [])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.txt", "rows.csv"])
def test_rows_are_the_bytes_of_the_file(name):
    """All raws together are the file's lines that are not blank; only a line feed ends a line."""
    data = 'text\n{"text": "a\u2028b\u0085c"}\r\n\n \t\r\n\x0c\n{"a"\rb\x0bc}\n"x\ny"\nlast'.encode()
    write(name, data)
    source = open_source(name)
    raws = [row.raw for row in source.rows if row.is_row]
    assert rows_of_lines(source.header + b"\n".join(raws)) == rows_of_lines(data)
    if ".jsonl" in name:
        assert [row.number for row in open_source(name).rows] == [1, 2, 6, 7, 8, 9]


def test_a_json_cell_a_quoted_line_end_and_a_blank_line_of_csv():
    data = b'prompt,responses,id\n"a ""b""\nc","[{""text"": ""x"", ""rank"": 1}]",7\n\n,"no, json",\n'
    write("rows.csv", data)
    assert read("rows.csv") == (
        {
            "rows.csv#0": {"prompt": 'a "b"\nc', "responses": [{"text": "x", "rank": 1}], "id": "7"},
            "rows.csv#1": {"responses": "no, json"},
        },
        [],
    )
    source = open_source("rows.csv")
    assert source.header + b"\n".join(row.raw for row in source.rows) == data


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ('{"a": 1, "a": 2}', "twin-keys"),
        ('{"a": NaN}', "not-a-number"),
        ('{"a": 1e999}', "not-a-number"),
        ('{"a": "\\ud800"}', "surrogate"),
        ("[" * 5000 + "]" * 5000, "too-deep"),
    ],
)
def test_json_in_a_cell_is_as_strict_as_a_line(cell, code):
    quoted = cell.replace('"', '""')
    write("rows.csv", f'text,meta\na,"{quoted}"\nb,"{{}}"\n'.encode())
    assert read("rows.csv") == ({"rows.csv#1": {"text": "b", "meta": {}}}, [("rows.csv#0", code)])


@pytest.mark.parametrize("columns", itertools.permutations(["meta", "rank", "responses"]))
def test_of_two_bad_cells_the_first_is_told(columns):
    write("rows.csv", (",".join(columns) + "\n" + ",".join(["[NaN]"] * 3) + "\n").encode())
    [row] = iter_rows("rows.csv")
    assert row.value.field == columns[0]


@pytest.mark.parametrize(
    ("data", "findings"),
    [
        (b"text,text\na,b\n", [("rows.csv", "damaged-table")]),
        (b"text,\na,b\n", [("rows.csv", "damaged-table")]),
        (b'"text\na,b\n', [("rows.csv", "damaged-table")]),
        (b"te\xffxt,source\na,b\n", [("rows.csv", "not-utf-8")]),
        (b"text,source\na,b,c\na\n\xff,b\nd,e\n", [(f"rows.csv#{n}", c) for n, c in enumerate(["damaged-table"] * 2)]
         + [("rows.csv#2", "not-utf-8")]),
        (b'text,source\na,b\nc,"d"e\nf,g\n', [("rows.csv#1", "damaged-table")]),
        (b'text,source\na,b\nc,"d\nf,g\n', [("rows.csv#1", "damaged-table")]),
    ],
)  # fmt: skip
def test_a_csv_file_with_faults(data, findings):
    write("rows.csv", data)
    assert read("rows.csv")[1] == findings


def test_paragraphs_end_at_blank_lines_and_after_4000_bytes():
    long = b"x" * 1500
    write("rows.txt", b"a\r\nb\r\n\r\n" + b"\n".join([long] * 5) + b"\n")
    rows, _ = read("rows.txt")
    assert list(rows) == ["rows.txt:1", "rows.txt:4", "rows.txt:7"], "three lines of 1,501 bytes are more than 4,000"
    assert rows["rows.txt:1"] == {"text": "a\nb"}
    assert [len(row["text"]) for row in rows.values()] == [3, 4502, 3001]


def test_a_paragraph_that_is_not_utf_8_is_found_at_its_line():
    write("rows.txt", b"a\nb\n\nc\n\xff\n\nd\n")
    assert read("rows.txt") == (
        {"rows.txt:1": {"text": "a\nb"}, "rows.txt:7": {"text": "d"}},
        [("rows.txt:5", "not-utf-8")],
    )


def test_the_splits_of_a_saved_directory():
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk("both")
    datasets.DatasetDict({"test": parts["test"]}).save_to_disk("single")
    assert read("both")[0] == {"both#0": {"text": "train"}}
    assert read("both:test")[0] == {"both:test#0": {"text": "test"}}
    assert read("single")[0] == {"single#0": {"text": "test"}}
    assert reason("both:dev") == "has no split 'dev'; add one of :train, :test"
    parts["test"].save_to_disk("plain")
    assert reason("plain:test") == "has no splits; leave out what stands after the colon"


def test_a_hub_dataset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "owner/none":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/none' doesn't exist on the Hub.\nMore.")
        return datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": None}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("owner/name:test") == ({"owner/name:test#0": {"prompt": "a"}, "owner/name:test#1": {}}, [])
    assert len(read("owner/name")[0]) == 2
    assert asked == [("owner/name", "test"), ("owner/name", "train")]
    line = "is no file here, and no dataset that the Hub gives: Dataset 'owner/none' doesn't exist on the Hub."
    assert reason("owner/none") == line


def test_null_in_a_table_means_that_a_column_does_not_apply():
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        ranking(1, None, meta={"x": None}),
        {"prompt": None, "responses": [{"text": "a", "rank": 1, "source": "sft"}, {"text": "b", "rank": 1}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    first, second = read("rows.parquet")[0].values()
    assert first == {
        "prompt": "Why?",
        "responses": [{"text": "answer 0", "rank": 1}, {"text": "answer 1"}],
        "meta": {"x": None},
    }
    assert second == {"responses": [{"text": "a", "rank": 1, "source": "sft"}, {"text": "b", "rank": 1}]}


def test_a_folder_stands_for_the_data_files_below_it(tmp_path):
    for name in ("b/2.jsonl.gz", "a.json", "b/1.CSV", "notes.md", "c/rows.parquet"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    assert data_files("data") == ["data/a.json", "data/b/1.CSV", "data/b/2.jsonl.gz", "data/c/rows.parquet"]
    assert data_files("data/a.json") == ["data/a.json"]


# ---- what a file is ----


def test_blank_lines_a_bom_and_carriage_returns_are_no_rows():
    write("rows.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    rows, findings = read("rows.jsonl")
    assert rows == {"rows.jsonl:1": {"text": "a"}, "rows.jsonl:4": {"text": "b"}}
    assert findings == [("rows.jsonl", "bom")]


def test_gzip_is_known_by_its_content():
    write("rows.jsonl", gzip.compress(lines(*ROWS)))
    rows, findings = read("rows.jsonl")
    assert (list(rows.values()), findings) == (ROWS, [("rows.jsonl", "gzip-unnamed")])


def test_gzip_that_is_none_or_is_cut_off_or_damaged():
    rows = [{"text": str(random.Random(i).random())} for i in range(20_000)]
    whole = gzip.compress(lines(*rows), mtime=0)
    Path("none.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    assert read("none.jsonl.gz") == ({}, [("none.jsonl.gz", "not-gzip")])
    half = len(whole) // 2
    for name, data in {
        "half.jsonl.gz": whole[:half],
        "crc.jsonl.gz": whole[:-6] + b"\0" + whole[-5:],
        "junk.jsonl.gz": whole + b"junk",
        "flip.jsonl.gz": whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :],
    }.items():
        Path(name).write_bytes(data)
        found, findings = read(name)
        values = list(found.values())
        assert values[:5000] == rows[:5000], "before the damage all rows are read"
        assert (name, "damaged-gzip") == (findings[-1][0].split(":")[0], findings[-1][1])
        if name == "half.jsonl.gz":
            assert values == rows[: len(values)] and findings == [(f"{name}:{len(values) + 1}", "damaged-gzip")]
    for cut in (2, 5, 15):
        Path("start.jsonl.gz").write_bytes(whole[:cut])
        assert read("start.jsonl.gz") == ({}, [("start.jsonl.gz", "damaged-gzip")])


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.txt.gz", "rows.csv.gz"])
@pytest.mark.parametrize("count", [40, 20_000])
def test_all_rows_before_the_damage_are_read(name, count):
    """zlib is the oracle of what can still be read of a file that is cut off."""
    texts = [f"x{random.Random(i).random():.16f}" for i in range(count)]
    parts = {
        ".jsonl": lines(*[{"text": text} for text in texts]),
        ".json": json.dumps([{"text": text} for text in texts]).encode(),
        ".txt": "\n\n".join(texts).encode(),
        ".csv": "\n".join(["text", *texts]).encode(),
    }
    data = gzip.compress(parts[Path(name).stem[4:]], mtime=0)
    data = data[: len(data) * 3 // 4]
    Path(name).write_bytes(data)
    whole = zlib.decompressobj(31).decompress(data)
    rows, findings = read(name)
    values = [row["text"] for row in rows.values()]
    least = whole.count(b"x0.") - 1
    assert least > count / 2 and len(values) >= least
    assert values[:least] == texts[:least]
    assert [code for _, code in findings] == ["damaged-gzip"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt", "rows.jsonl.gz"])
def test_other_encodings_of_unicode(encoding, name):
    write(name, '{"text": "a"}\n'.encode(encoding))
    assert read(name) == ({}, [(name, "utf-16")])


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt", "rows.jsonl.gz"])
def test_a_file_without_rows(name, data):
    write(name, data)
    assert read(name) == ({}, [(name, "bom")] if len(data) == 3 else [])


def test_an_empty_file_that_is_named_gz():
    Path("rows.jsonl.gz").touch()
    assert read("rows.jsonl.gz") == ({}, [])


@pytest.mark.parametrize("name", ["none.jsonl", "data/none.jsonl", "none.parquet", "../none", "a/b/c", "none", "x:y"])
def test_a_missing_file(name):
    assert read(name) == ({}, [(name, "no-file")])
    assert reason(name) == "no such file"


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.gz", "rows.jsonl.bz2"])
def test_a_file_of_a_kind_that_is_not_read(name):
    Path(name).write_bytes(b'{"text": "a"}\n')
    assert read(name) == ({}, [(name, "unknown-container")])


def test_a_directory_that_datasets_did_not_write(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "folder").mkdir()
    assert read("folder") == ({}, [("folder", "unknown-container")])


def test_a_broken_parquet_file():
    pytest.importorskip("pyarrow")
    write("rows.parquet", b"PAR1 this is not one")
    assert read("rows.parquet") == ({}, [("rows.parquet", "damaged-table")])


# ---- one line ----


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b'{"text": "a"} {"text": "b"}', "two-objects", "a second value begins at column 15"),
        (b'  {"text": "a"}{"text": "b"}', "two-objects", "a second value begins at column 16"),
        (b'{"text": "a"}]', "broken-json", "broken JSON at column 14: more stands behind"),
        (b'{"text": "a",}', "broken-json", "broken JSON at column 1"),
        (b"{'text': 'a'}", "broken-json", "broken JSON at column 2"),
        (b'{"text":', "broken-json", "broken JSON at column 9"),
        (b'{"text": "a', "broken-json", "broken JSON at column 10"),
        (b'{"text": "a\tb"}', "broken-json", "broken JSON at column 12"),
        (b'{"text": "a", "text": "b"}', "twin-keys", "the key 'text' stands twice"),
        (b'{"text": "a", "te\\u0078t": "b"}', "twin-keys", "the key 'text' stands twice"),
        (b'{"text" : "a:b", "meta": {"x" :1, "x"  :1}}', "twin-keys", "the key 'x' stands twice"),
        (b'{"text": "\\u003a", "meta": {"x":1, "x":2}}', "twin-keys", "the key 'x' stands twice"),
        (b'{"text": NaN}', "not-a-number", "NaN is no JSON value"),
        (b'{"text": -Infinity}', "not-a-number", "-Infinity is no JSON value"),
        (b'{"meta": [1e999]}', "not-a-number", "1e999 is beyond"),
        (b'"a"', "not-an-object", "must be an object"),
        (b'[{"text": "a"}]', "not-an-object", "must be an object"),
        (b"3", "not-an-object", "must be an object"),
        (b'{"text": "\xe9t\xe9"}', "not-utf-8", "byte 11 of the row"),
        (b'{"text": "\\ud83d"}', "surrogate", "half of a surrogate pair"),
        (b'{"\\udc00\\ud83d": 1}', "surrogate", "half of a surrogate pair"),
        (b'{"text": "\xed\xa0\x80"}', "not-utf-8", "byte 11 of the row"),
        (b'{"text": "a\x00"}', "broken-json", "broken JSON at column 12"),
        (b"\xef\xbb\xbf{}", "broken-json", "broken JSON at column 1"),
        (b'{"text": ' + b"1" * 5000 + b"}", "bad-value", "thousands of digits"),
        (b'{"text": ' + b"[" * 200_000, "too-deep", "nested too deeply"),
        (b'{"text": ' + b"[" * 100 + b"]" * 100 + b"}", "too-deep", "nested too deeply"),
        (b'{"text": ' + b'{"a":' * 150_000, "too-deep", "nested too deeply"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[:24].decode("ascii", "replace"),
)
def test_a_line_that_is_no_row(line, code, words):
    write("rows.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    rows, findings = read("rows.jsonl")
    assert rows == {"rows.jsonl:1": {"text": "a"}, "rows.jsonl:3": {"text": "c"}}
    assert findings == [("rows.jsonl:2", code)]
    assert words in reason("rows.jsonl")


@pytest.mark.parametrize(
    "row",
    [b'{"text": "\\ud83d\\ude00"}', b'{"text": "\xf4\x8f\xbf\xbf"}', b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}", b"{}"],
)
def test_a_line_that_is_just_as_strange_and_right(row):
    write("rows.jsonl", row + b"\n")
    assert read("rows.jsonl") == ({"rows.jsonl:1": json.loads(row)}, [])


def test_the_last_line_cut_off_anywhere():
    """Each shorter beginning of a line is a cut-off line, but for the empty one; with a line end it is broken JSON."""
    row = json.dumps(ranking(1, 2, meta={"a": {"b": [1.5, True, None, {}]}}, id="x"))
    assert row.endswith("}")
    for end in range(1, len(row)):
        write("rows.jsonl", b"{}\n" + row[:end].encode())
        assert read("rows.jsonl")[1] == [("rows.jsonl:2", "truncated-line")], row[:end]
        write("rows.jsonl", b"{}\n" + row[:end].encode() + b"\n")
        assert read("rows.jsonl")[1] == [("rows.jsonl:2", "broken-json")]
    write("rows.jsonl", b"{}\n" + row.encode())
    assert read("rows.jsonl")[1] == []


def test_a_line_of_5_mb_is_read_and_told_of():
    write("rows.jsonl", {"text": "x" * 5_000_000}, {"text": "y"})
    rows, findings = read("rows.jsonl")
    assert [len(row["text"]) for row in rows.values()] == [5_000_000, 1]
    assert findings == [("rows.jsonl:1", "long-row")]


# ---- arrays ----


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 1000])
def test_an_array_in_pieces_of_any_size(size, monkeypatch):
    """json.loads is the oracle; the pieces that are read end in the middle of everything."""
    monkeypatch.setattr(json_rows, "_CHUNK", size)
    rows = [
        {"a": -1.5e-7, 'é\\"': [True, None, False]},
        {},
        {"ü–\U0001f600": "\u2028\n\ud7ff", "n": 12345},
        {"": {"": 0}},
    ]
    texts = [json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=3), json.dumps(rows, separators=(",", ":"))]
    for data in texts:
        found = list(json_rows.elements("rows.json", io.BufferedReader(io.BytesIO(data.encode()))))
        assert [row.value for row in found] == json.loads(data)
        assert [json.loads(row.raw) for row in found] == rows
    found = list(json_rows.elements("rows.json", io.BufferedReader(io.BytesIO(b'[ 12345,-6.5e+10 ,true, "x" ]'))))
    assert [row.raw for row in found] == [b"12345", b"-6.5e+10", b"true", b'"x"']


@pytest.mark.parametrize(
    ("text", "places", "findings", "words"),
    [
        ('[{"text": "a"},\n {"text": }]', [0], [("#1", "broken-json")], "line 2, column 11"),
        ('[{"text": "a"}\n {"text": "b"}]', [0], [("#1", "broken-json")], "line 2, column 2: a comma"),
        ('[{"text": "a"},]', [0], [("#1", "broken-json")], "line 1, column 16"),
        ('[{"text": "a"}', [0], [("#1", "broken-json")], "line 1, column 15: the array is cut off"),
        ('[{"text": "a"}, {"te', [0], [("#1", "broken-json")], "line 1"),
        ('[{"text": "a"}] 1', [0], [("#1", "broken-json")], "line 1, column 17: more stands behind"),
        ("[] 1", [], [("#0", "broken-json")], "line 1, column 4"),
        ('[{"a": 1}, {"b": 2, "b": 3}, 3, {"c": 4}]', [0, 3], [("#1", "twin-keys"), ("#2", "not-an-object")], ""),
        ('[{"a": NaN}, {"c": 1e999}, {"d": 4}]', [2], [("#0", "not-a-number"), ("#1", "not-a-number")], ""),
        ('[{"a": "\\ud800"}, {"d": 4}]', [1], [("#0", "surrogate")], "half"),
        ("[" * 200_000, [], [("#0", "too-deep")], "nested too deeply"),
        ('"a"', [], [("", "broken-json")], "must be a JSON array"),
        ('x[{"a": 1}]', [], [("", "broken-json")], "must be a JSON array"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_an_array_with_mistakes(text, places, findings, words):
    write("rows.json", text.encode())
    rows, found = read("rows.json")
    assert list(rows) == [f"rows.json#{n}" for n in places]
    assert found == [(f"rows.json{place}", code) for place, code in findings]
    if len(found) == 1:
        assert words in reason("rows.json")


def test_bytes_that_are_not_utf_8_spoil_their_element_alone():
    write("rows.json", b'[{"a": "\xff"}, {"b": "\xc3\xa9"}, {"c": "\xc3"}]')
    rows, findings = read("rows.json")
    assert rows == {"rows.json#1": {"b": "é"}}
    assert findings == [("rows.json#0", "not-utf-8"), ("rows.json#2", "not-utf-8")]
    raws = [row.raw for row in open_source("rows.json").rows]
    assert raws == [b'{"a": "\xff"}', b'{"b": "\xc3\xa9"}', b'{"c": "\xc3"}']


def test_what_lies_behind_a_broken_array_is_one_row_with_all_its_bytes():
    data = b'[{"a": 1}, {"b": \xff oops}, {"c": 3}]\n'
    write("rows.json", data)
    first, rest = (row for row in open_source("rows.json").rows if row.is_row)
    assert (first.raw, rest.number) == (b'{"a": 1}', 1)
    assert b"[" + first.raw + b", " + rest.raw == data


@pytest.mark.parametrize(
    ("data", "container"),
    [
        (b'\n[\n{"text": "a"}\n]', "array"),
        (b'[{"text": "a"}]', "array"),
        (b"[]", "array"),
        (b"[\n]", "array"),
        (b'[{"text": "a"}\n{"text": "b"}\n', "lines"),  # a stray bracket on the first line
        (b'["a"]\n{"text": "b"}\n', "lines"),
        (b'{"text": "a"}\n[{"text": "b"}]\n', "lines"),
    ],
)
def test_an_array_that_is_named_jsonl(data, container):
    write("rows.jsonl", data)
    assert open_source("rows.jsonl").container == container
    assert (("rows.jsonl", "array-named-jsonl") in read("rows.jsonl")[1]) == (container == "array")


def test_lines_that_are_named_json():
    write("rows.json", lines(*ROWS))
    rows, findings = read("rows.json")
    assert (list(rows.values()), next(iter(rows))) == (ROWS, "rows.json:1")
    assert findings == [("rows.json", "lines-named-json")]


def test_rows_are_streamed():
    """The first rows of a source come before the rest of it has been read."""
    write("rows.json", *[{"text": as_text({"x": "y" * 1000})} for _ in range(5000)])
    source = open_source("rows.json")
    assert next(source.rows).number == 0
    write("rows.jsonl.gz", *ROWS * 100_000)
    assert next(open_source("rows.jsonl.gz").rows).number == 1
