"""The whole of it: every row is accounted for, in order, by reason, and always with the same bytes."""

import base64
import gzip
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_kit.curation import Bounds, CurateOptions, curate
from rlhf_kit.errors import DataError, RlhfKitError
from rlhf_kit.files import load
from rlhf_kit.formats.base import Format, Shaped, Unusable


def write(path, rows):
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return str(path)


def read(path):
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rb") as stream:
        return [json.loads(line) for line in stream]


def ranking(prompt, *texts, **fields):
    return {"prompt": prompt, "responses": [{"text": t, "rank": n} for n, t in enumerate(texts, 1)], **fields}


LONG = "Describe the river that runs behind our old house, "
FULL = CurateOptions(
    prompt_chars=Bounds(most=100),
    response_chars=Bounds(least=2),
    personal_data="drop",
    prefix_chars=40,
    near_duplicates=0.8,
    max_per_user=2,
)


def test_each_step_takes_what_is_its_own_and_tells_why(tmp_path):
    rows = [
        ranking("How are rivers made?", "Rain", "Magic", user_id="u", id="1", meta={"x": [1]}),  # 1 kept
        b'{"prompt": "cut off',  # 2
        ranking("How deep is the sea?", "Deep", "x"),  # 3: an answer too short
        ranking("Mail a@example.com?", "Yes", "No"),  # 4
        ranking("How are rivers made?", "Rain", "Magic", id="5"),  # 5: as 1
        ranking("How are rivers made?", "Magic", "Rain", user_id="u"),  # 6 kept: another order
        ranking(LONG + "in spring.", "Loud", "Wet", user_id="u"),  # 7 kept
        ranking(LONG + "in autumn, when all leaves have fallen.", "Red", "Dry"),  # 8: prefix of 7
        ranking("How were rivers made? Tell me all of it now.", "Rain", "Magic"),  # 9 kept
        ranking("Oh, how were rivers made? Tell me all of it now.", "Rain", "Rock"),  # 10: 40 of 44 shingles
        ranking("What is a third prompt of this user?", "Yes", "No", user_id="u"),  # 11: the third
        b'{"prompt": "\xff"}',  # 12
        {"prompt": "no answers"},  # 13
    ]
    out, removed = tmp_path / "out" / "kept.jsonl", tmp_path / "removed.jsonl"
    source = write(tmp_path / "in.jsonl", rows)
    report = curate([source], FULL, out, removed)
    assert read(out) == [rows[0], rows[5], rows[6], rows[8]]  # all their fields, and no more
    gone = read(removed)
    assert [(int(g["where"].rpartition(":")[2]), g["step"]) for g in gone] == [
        (2, "invalid"),
        (3, "length"),
        (4, "personal-data"),
        (5, "exact-duplicate"),
        (8, "common-prefix"),
        (10, "near-duplicate"),
        (11, "user-cap"),
        (12, "invalid"),
        (13, "invalid"),
    ]
    assert all(g["where"].startswith(f"{source}:") for g in gone)
    by_line = {int(g["where"].rpartition(":")[2]): g for g in gone}
    assert by_line[2]["raw"] == '{"prompt": "cut off'
    assert base64.b64decode(by_line[12]["raw_base64"]) == rows[11]
    assert json.loads(by_line[13]["raw"]) == rows[12]
    assert "responses" in by_line[13]["reason"]
    assert by_line[5]["row"] == rows[4]
    assert by_line[5]["reason"] == f"the same content as {source}:1"
    assert by_line[10]["reason"] == f"0.90 like {source}:9"  # 40 / 44 = 0.909
    assert "a@example.com" not in by_line[4]["reason"]
    assert (report.rows, report.kept, report.removed) == (13, 4, 9)
    assert report.removed_by == {
        "invalid": 3,
        "length": 1,
        "personal-data": 1,
        "exact-duplicate": 1,
        "common-prefix": 1,
        "near-duplicate": 1,
        "user-cap": 1,
    }
    assert report.personal == {"email": 1}
    assert json.loads(json.dumps(report.to_json()))["removed_by"] == report.removed_by
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out", "removed.jsonl"]


def test_masked_rows_stay_and_become_duplicates_of_each_other(tmp_path):
    rows = [
        {"prompt": "Write to a@example.com", "completion": "Done"},
        {"prompt": "Write to b@example.com", "completion": "Done"},
        {"prompt": "写信给张三", "completion": "好", "meta": {"from": "c@example.com"}},
    ]
    out, removed = tmp_path / "kept.jsonl", tmp_path / "removed.jsonl"
    report = curate([write(tmp_path / "in.jsonl", rows)], CurateOptions(personal_data="mask"), out, removed)
    assert read(out) == [
        {"prompt": "Write to [EMAIL]", "completion": "Done"},
        {"prompt": "写信给张三", "completion": "好", "meta": {"from": "[EMAIL]"}},
    ]
    assert [g["step"] for g in read(removed)] == ["exact-duplicate"]
    assert b"example.com" not in out.read_bytes() + removed.read_bytes()
    assert report.masked == 3
    assert "写信给张三".encode() in out.read_bytes()  # not escaped


def test_what_curate_writes_loads_again(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = {
        "ranking": [ranking(turns, "a", "b", labeler="anna", category="chat")],
        "demonstration": [{"prompt": turns, "completion": "Hey", "kind": "plain", "origin": "user"}],
        "prompt": [{"prompt": "Hi", "user_id": "u"}],
        "rating": [{"prompt": "Hi", "response": "Hey", "thumb": False, "axis": "helpful"}],
        "text": [{"text": "Once\u2028upon", "source": "tales", "meta": {"none": None, "deep": {"none": None}}}],
    }
    for kind, those in rows.items():
        source = write(tmp_path / f"{kind}.jsonl", those)
        out = tmp_path / f"{kind}.out.jsonl"
        curate([source], CurateOptions(), out)
        assert read(out) == those
        assert load(str(out), kind) == load(source, kind)


def test_a_foreign_format_is_guessed_and_said(tmp_path):
    rows = [{"question": f"What is {n} + 2?", "answer": f"It is {n} + 2 = {n + 2}.\n#### {n + 2}"} for n in range(4)]
    out = tmp_path / "kept.jsonl"
    report = curate([write(tmp_path / "in.jsonl", rows)], CurateOptions(), out)
    assert [r["prompt"] for r in read(out)] == [r["question"] for r in rows]
    assert report.rows == report.kept == 4
    assert any("gsm8k" in note for note in report.notes)


def test_rows_of_a_foreign_format_that_become_several_records_or_none(tmp_path):
    def convert(row):
        for text in row["texts"]:
            yield Shaped({"text": text}) if text != "?" else Unusable("no-verdict", "texts", "nothing there")

    every = Format("lists", "", "none", "", lambda row: None, {"text": convert})
    rows = [{"texts": ["a", "b"]}, {"texts": ["?"]}, {"texts": ["c", "?", "a"]}, b"{"]
    out, removed = tmp_path / "kept.jsonl", tmp_path / "removed.jsonl"
    report = curate([write(tmp_path / "in.jsonl", rows)], CurateOptions(format=every), out, removed)
    assert [r["text"] for r in read(out)] == ["a", "b", "c"]
    assert [(g["where"][-1], g["step"]) for g in read(removed)] == [
        ("2", "invalid"),
        ("3", "exact-duplicate"),
        ("4", "invalid"),
    ]
    assert (report.rows, report.usable, report.records, report.kept, report.removed) == (4, 2, 4, 3, 3)
    assert report.findings == {"no-verdict": 1}  # in the row that was used all the same

    def joined(rows):
        yield Shaped({"text": " ".join(row["part"] for row in rows)})

    parts = Format("parts", "", "none", "", lambda row: None, {"text": joined}, lambda row: row["of"])
    rows = [{"of": n % 2, "part": str(n)} for n in range(5)]
    report = curate([write(tmp_path / "in.jsonl", rows)], CurateOptions(format=parts), out)
    assert [r["text"] for r in read(out)] == ["0 2 4", "1 3"]
    assert (report.rows, report.usable, report.joined, report.records, report.kept) == (5, 5, 3, 2, 2)


def test_tables_keep_what_could_not_be_used(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["a", "b"], "completion": ["c", None]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    out, removed = tmp_path / "kept.jsonl", tmp_path / "removed.jsonl"
    report = curate([str(tmp_path / "in.parquet")], CurateOptions(kind="demonstration"), out, removed)
    assert (report.kept, report.removed) == (1, 1)
    assert read(removed)[0]["row"] == {"prompt": "b"}  # nulls of a table are no fields


# ---- the split and the weights ----


def test_a_split_writes_its_parts(tmp_path):
    rows = [ranking(f"Question {n // 2}?", "Yes", "No", labeler=f"l{n % 2}") for n in range(200)]
    source = write(tmp_path / "in.jsonl", rows)
    options = CurateOptions(split={"train": 0.8, "heldout": 0.2})
    report = curate([source], options, tmp_path / "out.jsonl.gz")
    parts = {name: read(tmp_path / f"out.{name}.jsonl.gz") for name in ("train", "heldout")}
    assert {name: len(those) for name, those in parts.items()} == report.parts
    assert [r for r in rows if r in parts["train"]] == parts["train"]  # in file order
    assert len(parts["train"]) + len(parts["heldout"]) == 200
    assert not {r["prompt"] for r in parts["train"]} & {r["prompt"] for r in parts["heldout"]}
    assert (tmp_path / "out.train.jsonl.gz").read_bytes()[4:8] == bytes(4)  # no time in the gzip header
    named = {"train": tmp_path / "a.jsonl", "heldout": tmp_path / "b.jsonl"}
    curate([source], options, named)
    assert read(named["heldout"]) == parts["heldout"]


def test_labelers_held_out_cost_the_prompts_that_they_share(tmp_path):
    rows = [ranking(f"Question {n % 50}?", "Yes", "No", labeler=f"l{n // 50}") for n in range(500)]
    source = write(tmp_path / "in.jsonl", rows)
    options = {"split": {"train": 0.7, "heldout": 0.3}, "split_by": "labeler"}
    with pytest.raises(RlhfKitError, match="hang together"):
        curate([source], CurateOptions(**options), tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]  # nothing is written
    removed = tmp_path / "removed.jsonl"
    report = curate([source], CurateOptions(**options, split_shared="drop"), tmp_path / "out.jsonl", removed)
    assert report.kept + report.removed == 500
    assert report.removed_by == {"split": len(read(removed))}
    assert sum(report.parts.values()) == report.kept == len(read(tmp_path / "out.heldout.jsonl"))
    assert all(g["row"] in rows and "smaller part" in g["reason"] for g in read(removed))


def test_mixture_weights_are_those_of_the_rows_that_are_kept(tmp_path):
    rows = [{"text": f"page {n}", "source": "web"} for n in range(9)] + [{"text": "book", "source": "books"}] * 5
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    report = curate([source], CurateOptions(temperature=0.5), out)
    assert report.weights == {"web": 0.75, "books": 0.25}  # sqrt(9) : sqrt(1), four twins being gone
    assert {(r["source"], r["weight"]) for r in read(out)} == {("web", 0.75), ("books", 0.25)}
    curate([source], CurateOptions(weights={"web": 0.5, "books": 0.5}, split={"a": 0.5, "b": 0.5}), out)
    both = read(tmp_path / "out.a.jsonl") + read(tmp_path / "out.b.jsonl")
    assert len(both) == 10 and {r["weight"] for r in both} == {0.5}
    with pytest.raises(RlhfKitError, match="no weight"):
        curate([source], CurateOptions(weights={"web": 1.0}), tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_the_quality_filter_in_the_pipeline(tmp_path):
    rng = random.Random(1)
    words, junk = ["the", "river", "flows", "past", "old", "houses"], ["BUY", "$$$", "click", "fr33", "!!!"]
    good = [{"text": " ".join(rng.choices(words, k=30))} for _ in range(150)]
    bad = [{"text": " ".join(rng.choices(junk, k=30))} for _ in range(150)]
    files = [
        write(tmp_path / f"{n}.jsonl", those) for n, those in enumerate((good[:100], bad[:100], good[100:] + bad[100:]))
    ]
    out = tmp_path / "out.jsonl"
    report = curate(files[2:], CurateOptions(quality_good=files[0], quality_bad=files[1], quality_threshold=0.5), out)
    assert read(out) == good[100:]
    assert report.removed_by == {"quality": 50}
    assert report.quality_auc == 1.0


# ---- what cannot be done ----


def test_what_is_refused_leaves_everything_as_it_was(tmp_path):
    prompts, out = write(tmp_path / "p.jsonl", [{"prompt": "Hi"}]), tmp_path / "out.jsonl"
    texts = write(tmp_path / "t.jsonl", [{"text": "Hi"}])
    damaged = tmp_path / "d.jsonl.gz"
    damaged.write_bytes(gzip.compress(b"".join(b'{"prompt": "%d %d"}\n' % (n, n**9) for n in range(9999)))[:-40])
    out.write_text("before")
    for sources, options, path, error, words in [
        ([prompts, texts], {}, out, DataError, "one by one"),
        ([str(tmp_path / "none.jsonl")], {}, out, DataError, "no such file"),
        ([str(damaged)], {}, out, DataError, "cut off"),
        ([prompts], {"temperature": 1.0}, out, RlhfKitError, "for text"),
        ([prompts], {}, tmp_path / "p.jsonl", RlhfKitError, "read from"),
        ([prompts], {}, tmp_path / "out.parquet", RlhfKitError, "jsonl"),
        ([prompts], {}, tmp_path / "p.jsonl" / "x.jsonl", RlhfKitError, "cannot be written"),
        ([prompts], {"split": {"a": 0.5, "b": 0.5}}, {"a": out}, RlhfKitError, "parts"),
        ([], {}, out, RlhfKitError, "name a file"),
    ]:
        with pytest.raises(error, match=words):
            curate(sources, CurateOptions(**options), path)
        assert out.read_text() == "before"
    with pytest.raises(RlhfKitError, match="twice"):
        curate([prompts], CurateOptions(), out, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl.gz", "out.jsonl", "p.jsonl", "t.jsonl"]


def test_progress_is_told(tmp_path):
    seen = []
    source = write(tmp_path / "in.jsonl", [{"prompt": f"Question {n}"} for n in range(2500)])
    curate([source, source], CurateOptions(), tmp_path / "out.jsonl", progress=seen.append)
    assert seen == [1000, 2000, 3000, 4000, 5000, 5000]


@pytest.mark.parametrize(
    ("library", "options"),
    [
        ("datasketch", "near_duplicates=0.8"),
        ("phonenumbers", "personal_data='mask'"),
        ("stdnum", "personal_data='mask'"),
        ("sklearn", "quality_good='in.jsonl', quality_bad='in.jsonl'"),
    ],
)
def test_a_library_that_is_missing_is_named(tmp_path, library, options):
    write(tmp_path / "in.jsonl", [{"text": "card 4111 1111 1111 1111"}])
    code = f"""
import sys
sys.modules[{library!r}] = None
from rlhf_kit.curation import CurateOptions, curate
from rlhf_kit.errors import RlhfKitError
from pathlib import Path
try:
    curate(["in.jsonl"], CurateOptions({options}), Path("out.jsonl"))
except RlhfKitError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install 'rlhf-kit[data]'" in done.stdout


# ---- the same bytes, and no row lost ----


def generated(rng, count):
    pool = [f"Question {n} about {'rivers and ' * (n % 7)}seas?" for n in range(60)] + [
        f"第{n}个问题是什么呢？" for n in range(30)
    ]
    pool += ["Mail x@example.com", "电话13812345678"]
    for _ in range(count):
        row = ranking(rng.choice(pool), *rng.sample(["Yes", "No", "Perhaps", "也许"], k=rng.randint(1, 3)))
        if rng.random() < 0.7:
            row["user_id"] = f"u{rng.randrange(9)}"
        if rng.random() < 0.7:
            row["labeler"] = f"l{rng.randrange(5)}"
        yield row


def test_the_same_bytes_whatever_the_hash_seed(tmp_path):
    write(tmp_path / "in.jsonl", generated(random.Random(7), 400))
    code = """
import sys
from pathlib import Path
from rlhf_kit.curation import CurateOptions, curate
out = Path(sys.argv[1])
options = CurateOptions(personal_data="mask", prefix_chars=30, near_duplicates=0.7, max_per_user=15,
                        split={"train": 0.7, "heldout": 0.3}, split_by="user", split_shared="drop")
curate(["in.jsonl"], options, out / "out.jsonl", out / "removed.jsonl")
"""
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, seed], cwd=tmp_path, check=True, env=environment)
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == ["out.heldout.jsonl", "out.train.jsonl", "removed.jsonl"]
    for name in names:
        first = (tmp_path / "1" / name).read_bytes()
        assert first == (tmp_path / "2" / name).read_bytes()
        assert first


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_no_row_is_lost(tmp_path, data):
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in generated(rng, 40)]
    for _ in range(data.draw(st.integers(0, 8))):
        number = rng.randrange(2, len(lines))
        damaged = bytearray(lines[number])
        damaged[rng.randrange(len(damaged))] = rng.choice([c for c in range(256) if c != 10])
        lines[number] = bytes(damaged)
    lines[:2] = [json.dumps(ranking(f"First {n}?", "Yes", "No")).encode() for n in range(2)]
    source, out, removed = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "removed.jsonl"
    source.write_bytes(b"\n".join(lines))
    options = CurateOptions(
        kind="ranking",
        personal_data=data.draw(st.sampled_from([None, "drop", "mask"])),
        near_duplicates=data.draw(st.sampled_from([None, 0.7])),
        prefix_chars=data.draw(st.sampled_from([None, 12])),
        max_per_user=data.draw(st.sampled_from([None, 3])),
        split=data.draw(st.sampled_from([{}, {"a": 0.5, "b": 0.5}])),
        split_by=data.draw(st.sampled_from(["prompt", "user"])),
        split_shared="drop",
    )
    report = curate([str(source)], options, out, removed)
    rows = sum(not line.isspace() and line != b"" for line in lines)
    kept = [row for path in report.files for row in read(tmp_path / path.rpartition("/")[2])]
    gone = read(removed)
    assert report.rows == rows == len(kept) + len(gone)
    assert (report.kept, report.removed) == (len(kept), len(gone))
    assert sum(report.removed_by.values()) == len(gone)
    broken = [g for g in gone if g["step"] == "invalid"]
    for g in broken:
        raw = g["raw"].encode() if "raw" in g else base64.b64decode(g["raw_base64"])
        assert raw == lines[int(g["where"].rpartition(":")[2]) - 1]
