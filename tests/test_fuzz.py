"""Damage to valid files of every schema, container and foreign format: no traceback, no hang, no row lost.

Each case is a valid file with a few small faults, checked through the command line. Whatever the damage is,
kept + rejected = rows, and the two files that rows are sorted into hold the bytes of all rows together.

The seeds are fixed. `RLHF_KIT_FUZZ=N` in the environment makes N times as many cases, with seeds of their own.
"""

import gzip
import json
import os
import random
import time
from pathlib import Path

import pytest
from datafiles import ANSWER, SYSTEM, USER, lines, ranking, rows_of_lines

from rlhf_kit.cli import main
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.formats.catalogue import format_named
from rlhf_kit.formats.resolve import kinds_of
from rlhf_kit.rows import open_source

TIMES = int(os.environ.get("RLHF_KIT_FUZZ", "1"))
LONGEST = 20  # seconds that a case may take on a busy machine; it takes milliseconds
FIXTURES = sorted((Path(__file__).parent / "fixtures" / "formats").iterdir())
SCHEMAS = {
    "ranking": [
        ranking(1, 2, 2, id="r1", labeler="anna"),
        {"prompt": [SYSTEM, USER], "responses": ["x: y", "é"], "ranks": [2, 1],
         "meta": {"a": [1.5, None, {"b": "\u2028"}]}},
        {"prompt": "a", "chosen": "b", "rejected": "c", "extra": 1, "margin": 0.5},
        ranking(3, 1, 1, 2, prompt="天空为什么是蓝色的？", weight=2.5),
    ],
    "demonstration": [
        {"prompt": "a", "completion": "b", "kind": "plain", "origin": "user"},
        {"messages": [USER, ANSWER, USER, ANSWER], "id": "x"},
        {"prompt": [SYSTEM, USER], "completion": "\U0001f600"},
    ],
    "prompt": [{"prompt": "a", "user_id": "u"}, {"prompt": [USER, ANSWER, USER]}, {"prompt": "é" * 50}],
    "rating": [
        {"prompt": "a", "response": "b", "score": 4.5, "scale": [1, 5]},
        {"prompt": [USER], "response": "c", "thumb": False, "axis": "helpful"},
    ],
    "text": [{"text": "a\nb", "source": "s", "weight": 2}, {"text": "二", "meta": {"x": {}}}, {"text": "c" * 90}],
}  # fmt: skip
JUNK = [
    *[b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xc3"],
    *[b"\xe2\x80\xa8", b"NaN", b"1e999", b"-", b"null", b"\\u", b"\\ud800", b'"id":"x",', b'{"a":', b"[" * 300],
    *[b"\xef\xbb\xbf", b"\x1f\x8b", b"<|im_end|>", b"\x85", b"\x0c", b"\x0b", b" ", b"\t", b"'", b"#", b";"],
    *[b"\x1b[31m", b'""', b"0", b"9" * 5000],
]  # fmt: skip


def damaged(data, chance):
    """The same bytes with one to four faults: bits, holes, junk, the end, pieces and lines at other places or twice."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place, other = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        kind = chance.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place : place + chance.choice([1, 1, 2, 5, 30])]
        elif kind in (2, 3):
            data[place:place] = chance.choice(JUNK)
        elif kind == 4 and chance.random() < 0.5:
            del data[place:]
        elif kind == 5:
            data[place:place] = data[other : other + chance.randint(1, 60)]
        elif kind == 6:
            pieces = data.split(b"\n")
            chance.shuffle(pieces)
            data = bytearray(b"\n".join(pieces))
        elif kind == 7:
            pieces = data.split(b"\n")
            pieces.insert(chance.randrange(len(pieces)), chance.choice(pieces))
            data = bytearray(b"\n".join(pieces))
    return bytes(data)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def validate(capsys):
    def validate(name, *words):
        """Exit code, verdict and findings; the rows sorted into two files, of which each is accounted for."""
        suffix = Path(name.removesuffix(".gz")).suffix
        suffix = ".jsonl" if suffix == ".parquet" else suffix
        outputs = Path(f"good{suffix}"), Path(f"bad{suffix}")
        for path in outputs:
            path.unlink(missing_ok=True)
        start = time.monotonic()
        code = main(
            ["validate", name, "--format", "json", "--clean", f"{outputs[0]}", "--rejected", f"{outputs[1]}", *words]
        )
        assert time.monotonic() - start < LONGEST
        said = capsys.readouterr()
        assert code in (0, 2) and said.err == ""
        *found, verdict, sorted_ = map(json.loads, said.out.removesuffix("\n").split("\n"))
        verdict = verdict["verdict"]
        assert verdict["kept"] + verdict["rejected"] == verdict["rows"]
        assert sorted_ == {"kept": verdict["kept"], "rejected": verdict["rejected"]}
        severities = {one["finding"]["severity"] for one in found}
        assert (code == 2) == ("error" in severities)
        assert verdict["rejected"] == 0 or "error" in severities or verdict["format"], "a row is rejected for a reason"
        return verdict, *[path.read_bytes() for path in outputs]

    return validate


def account_for(name, text, verdict, good, bad):
    """Compares the sorted rows with the bytes of the file, by its container."""
    source = open_source(name)
    rows = [row.raw for row in source.rows if row.is_row]
    assert len(rows) == verdict["rows"]
    text = text.removeprefix(b"\xef\xbb\xbf")
    if source.container in ("lines", "paragraphs"):
        assert rows_of_lines(good + b"\n" + bad) == rows_of_lines(text)
        assert source.container != "lines" or verdict["rows"] == len(rows_of_lines(text))
    elif source.container == "array" and text.lstrip(b" \t\r\n").startswith(b"["):  # else it is no array at all
        place = 0
        for raw in rows:  # between the rows there is nothing but the array's own characters
            start = text.index(raw, place)
            assert not text[place:start].strip(b"[], \t\r\n")
            place = start + len(raw)
        assert not text[place:].strip(b"[], \t\r\n")
        parts = [part.removeprefix(b"[\n").removesuffix(b"]\n").removesuffix(b"\n") for part in (good, bad)]
        assert all(raw in parts[0] or raw in parts[1] for raw in rows)
        commas = sum(2 * (count - 1) for count in (verdict["kept"], verdict["rejected"]) if count)
        assert sum(map(len, parts)) == sum(map(len, rows)) + commas
    elif source.container == "csv" and rows:
        kept = good.removeprefix(source.header) + bad.removeprefix(source.header)
        assert lines_of_csv(kept) == lines_of_csv(text.removeprefix(source.header))


def lines_of_csv(data):
    return sorted(line for line in data.split(b"\n") if line.strip(b"\r"))


def csv_of(rows):
    quoted = [json.dumps(row["meta"], ensure_ascii=False).replace('"', '""') for row in rows]
    cells = [f'"{row["text"]}","{meta}",{i}' for i, (row, meta) in enumerate(zip(rows, quoted, strict=True))]
    return "\r\n".join(["text,meta,id", *cells, ""]).encode()


WHOLE = {f"{kind}.jsonl": lines(*rows) for kind, rows in SCHEMAS.items()}
WHOLE |= {f"{kind}.json": json.dumps(rows, ensure_ascii=False, indent=1).encode() for kind, rows in SCHEMAS.items()}
WHOLE["text.csv"] = csv_of(
    [{"text": "a\nb", "meta": {"x": [1, 2]}}, {"text": "c", "meta": {}}, {"text": "é", "meta": {"y": "z"}}]
)
WHOLE["text.txt"] = "a\nb\n\nc\r\n\r\né\n\n\n二\n".encode()


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_of_every_schema_and_container(validate, name):
    chance = random.Random(f"{name} {TIMES}")
    for case in range(40 * TIMES):
        text = damaged(WHOLE[name], chance)
        zipped = case % 4 == 0
        file = f"rows{Path(name).suffix}{'.gz' if zipped else ''}"
        Path(file).write_bytes(gzip.compress(text, mtime=0) if zipped else text)
        words = ("--schema", name.partition(".")[0]) if case % 2 else ()
        verdict, good, bad = validate(file, *words)
        if zipped or text[:2] != b"\x1f\x8b":
            account_for(file, text, verdict, good, bad)
        if verdict["kept"] and verdict["format"] is None:
            clean = f"good{Path(name).suffix}"
            again, _, nothing = validate_again(validate, clean, verdict["kind"])
            assert (again["kept"], again["rejected"]) == (verdict["kept"], 0), (text, nothing)


def validate_again(validate, clean, kind):
    """What is kept once is kept again."""
    kept = f"again{Path(clean).suffix}"
    Path(kept).write_bytes(Path(clean).read_bytes())
    return validate(kept, "--schema", kind)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_damaged_files_of_every_foreign_format(validate, fixture):
    chance, whole = random.Random(f"{fixture.stem} {TIMES}"), fixture.read_bytes()
    for case in range(20 * TIMES):
        text = damaged(whole, chance)
        file = f"rows{fixture.suffix}"
        Path(file).write_bytes(text)
        words = ("--from", fixture.name.partition(".")[0])
        verdict, good, bad = validate(file, *(words if case % 4 else ()))
        if text[:2] != b"\x1f\x8b":
            account_for(file, text, verdict, good, bad)


VALUES = [
    None,
    True,
    0,
    -1,
    2.5,
    10**30,
    "",
    " ",
    "a",
    "N/A",
    [],
    [[]],
    {},
    {"text": 1},
    [None],
    ["a"],
    [{}],
    {"a": {}},
]


def changed(value, chance, at=0.1):
    """The same row with some of its values replaced, left out or put elsewhere: valid JSON of a wrong shape."""
    if chance.random() < at:
        return chance.choice(VALUES)
    if isinstance(value, dict):
        items = [(k, changed(v, chance, at)) for k, v in value.items() if chance.random() > at / 2]
        return dict(items) | (
            {chance.choice(list(value) or ["x"]): chance.choice(VALUES)} if chance.random() < at else {}
        )
    if isinstance(value, list):
        return [changed(v, chance, at) for v in value if chance.random() > at / 2] + value[: chance.random() < at]
    return value


def rows_in(fixture):
    if fixture.suffix == ".json":
        return json.loads(fixture.read_bytes())
    return [json.loads(line) for line in fixture.read_bytes().splitlines() if line.strip()]


@pytest.mark.parametrize("fixture", [path for path in FIXTURES if path.suffix != ".txt"], ids=lambda path: path.stem)
def test_rows_of_every_foreign_format_with_values_of_another_kind(validate, fixture):
    chance, rows = random.Random(f"values {fixture.stem} {TIMES}"), rows_in(fixture)
    name = fixture.name.partition(".")[0]
    kinds = kinds_of(format_named(name))
    for case in range(40 * TIMES):
        text = lines(*[json.dumps(changed(row, chance, chance.choice([0.02, 0.1]))) for row in rows])
        Path("rows.jsonl").write_bytes(text)
        words = ["--from", name, "--schema", kinds[case % len(kinds)]] if case % 8 else []
        verdict, good, bad = validate("rows.jsonl", *words)
        account_for("rows.jsonl", text, verdict, good, bad)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_rows_of_every_schema_with_values_of_another_kind(validate, kind):
    chance = random.Random(f"values {kind} {TIMES}")
    for case in range(60 * TIMES):
        text = lines(*[json.dumps(changed(row, chance)) for row in SCHEMAS[kind]])
        Path("rows.jsonl").write_bytes(text)
        verdict, good, bad = validate("rows.jsonl", *(["--schema", kind] if case % 2 else []))
        account_for("rows.jsonl", text, verdict, good, bad)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.parquet"])
def test_damaged_files_whose_bytes_are_no_rows(validate, name):
    rows = [ranking(1, 2, id=str(i), category="naïve") for i in range(30)]
    if name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    else:
        whole = lines(*rows) if ".jsonl" in name else json.dumps(rows).encode()
        Path(name).write_bytes(gzip.compress(whole, mtime=0))
    whole, chance = Path(name).read_bytes(), random.Random(f"{name} {TIMES}")
    for _ in range(40 * TIMES):
        Path(name).write_bytes(damaged(whole, chance))
        validate(name, "--schema", "ranking")


def test_what_a_person_can_mend_is_no_bug():
    """`main` lets every exception but these pass, so that a traceback would have failed a case above."""
    assert not issubclass(ValueError, RlhfKitError) and not issubclass(OSError, RlhfKitError)
