"""Every code of a finding: a file that shows it, at its line and field, beside a file near to it that does not."""

import gzip
import json
from pathlib import Path

import pytest
from datafiles import ANSWER, SYSTEM, USER, lines, ranking, transcript, write

from rlhf_kit.checks.ledger import Ledger
from rlhf_kit.codes import CODES, severity_of
from rlhf_kit.examination import Examined, examine
from rlhf_kit.formats.catalogue import format_named
from rlhf_kit.validation import validate


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def findings(name, kind=None, format=None):
    """(where without the file, field, code) of all findings."""
    found = Examined(name, kind or "", format_named(format) if format else None, ledger=Ledger(keep_prompts=True))
    problems = list(examine(found))
    assert found.kept + found.rejected == found.rows
    return [(problem.where.removeprefix(name), problem.field, problem.code) for problem in problems]


PAIR = {"chosen": [USER, {**ANSWER, "content": "Good."}], "rejected": [USER, {**ANSWER, "content": "Bad."}]}
RATED = {"prompt": "a", "response": "b"}
TEXT = b'{"text": "a"}\n'
ZIPPED = gzip.compress(lines(*[{"text": str(i * i)} for i in range(3000)]), mtime=0)


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def listed(responses, *ranks):
    return {"prompt": "a", "responses": responses, "ranks": list(ranks)}


def text(value):
    return json.dumps({"text": value})


def many(count, wins, longer=True):
    """Rankings of two, of which the longer (or the first) answer wins so many."""
    rows = []
    for i in range(count):
        ranks = (1, 2) if i < wins else (2, 1)
        texts = (f"{i} long", "short") if longer else (f"{i:03}a", f"{i:03}b")
        answers = [{"text": t, "rank": r} for t, r in zip(texts, ranks, strict=True)]
        rows.append({"prompt": str(i), "responses": answers[:: -1 if longer and i % 2 else 1]})
    return rows


def labelled(turned):
    """Ten prompts of one pair each, ordered by three people; the last turns so many of them round."""
    people = ("anna", "ben", "carl")
    return [
        ranking(*((2, 1) if who == "carl" and i < turned else (1, 2)), prompt=str(i), labeler=who)
        for i in range(10)
        for who in people
    ]


# code, file, what is in it, where (behind the file's name), field; and a file that has not the code (rows or bytes)
IN_FILES = [
    ("no-file", "gone/rows.jsonl", None, "", "", TEXT),
    ("unknown-container", "rows.xlsx", TEXT, "", "", ("rows.jsonl", TEXT)),
    ("unknown-kind", "rows.jsonl", [{"colour": "red"}], ":1", "", [{"text": "red"}]),
    ("empty-file", "rows.jsonl", b"\n \r\n", "", "", TEXT),
    ("empty-file", "rows.json", b"[]", "", "", b'[{"text": "a"}]'),
    ("empty-file", "rows.jsonl", b"\xef\xbb\xbf", "", "", TEXT),
    ("empty-file", "rows.csv", b"text\n", "", "", b"text\na\n"),
    ("not-gzip", "rows.jsonl.gz", "bytes", "", "", TEXT),
    ("gzip-unnamed", "rows.jsonl", gzip.compress(TEXT, mtime=0), "", "", TEXT),
    ("damaged-gzip", "rows.jsonl.gz", "cut", "", "", "whole"),
    ("damaged-table", "rows.csv", b"text,id\na,b\nc\n", "#1", "", b"text,id\na,b\nc,\n"),
    ("damaged-table", "rows.parquet", b"PAR1", "", "", ("rows.jsonl", TEXT)),
    ("utf-16", "rows.jsonl", '{"text": "a"}\n'.encode("utf-16"), "", "", TEXT),
    ("bom", "rows.jsonl", b"\xef\xbb\xbf" + TEXT, "", "", TEXT),
    ("array-named-jsonl", "rows.jsonl", b'[{"text": "a"},\n{"text": "b"}]\n', "", "",
     b'[{"text": "a"}\n{"text": "b"}\n'),
    ("lines-named-json", "rows.json", TEXT, "", "", b"[" + TEXT + b"]"),
    ("broken-json", "rows.jsonl", TEXT + b'{"text": "b",}\n' + TEXT, ":2", "", TEXT + b'{"text": "b"}\n'),
    ("broken-json", "rows.json", b'[{"text": "a"},\n{"text": b}]', "#1", "", b'[{"text": "a"},\n{"text": "b"}]'),
    ("truncated-line", "rows.jsonl", TEXT + b'{"text": "b', ":2", "", TEXT + b'{"text": "b"}'),
    ("truncated-line", "rows.jsonl", TEXT + b'{"text": "b", "meta": {}', ":2", "", TEXT + b'{"text": "b"\n'),
    ("two-objects", "rows.jsonl", [{"text": "a"}, text("b") + text("c")], ":2", "", [{"text": "a"}, text("b} {")]),
    ("not-utf-8", "rows.jsonl", b'{"text": "\xe9"}\n' + TEXT, ":1", "", '{"text": "é"}\n'.encode() + TEXT),
    ("not-utf-8", "rows.csv", b"text\n\xe9\n", "#0", "", "text\né\n".encode()),
    ("not-utf-8", "rows.txt", b"a\n\xe9\n", ":2", "", "a\né\n".encode()),
    ("surrogate", "rows.jsonl", b'{"text": "\\ud83d"}\n', ":1", "", b'{"text": "\\ud83d\\ude00"}\n'),
    ("surrogate", "rows.jsonl", b'{"text": "a", "meta": {"x": "\\udc00"}}\n', ":1", "", b'{"text": "\\\\udc00"}\n'),
    ("not-a-number", "rows.jsonl", [text("a"), '{"text": "b", "weight": NaN}'], ":2", "", [text("NaN")]),
    ("not-a-number", "rows.jsonl", ['{"text": "b", "meta": {"x": Infinity}}'], ":1", "", [text("Infinity")]),
    ("not-a-number", "rows.jsonl", ['{"text": "b", "weight": 1e999}'], ":1", "", ['{"text": "b", "weight": 1e99}']),
    ("twin-keys", "rows.jsonl", ['{"text": "a", "text": "b"}'], ":1", "", ['{"text": "text"}']),
    ("twin-keys", "rows.jsonl", ['{"text": "a:", "meta": {"x" : 1, "x"  :2}}'], ":1", "",
     ['{"text": "a", "meta": {"x" :1}}']),
    ("twin-keys", "rows.jsonl", ['{"text": "\\u003a", "meta": {"x":1, "\\u0078":2}}'], ":1", "",
     [text('{"x":1, "x":2}')]),
    ("too-deep", "rows.jsonl", ['{"text": "a", "meta": ' + '{"a":' * 100 + "1" + "}" * 101], ":1", "",
     ['{"text": "a", "meta": ' + '{"a":' * 98 + "1" + "}" * 99]),
    ("too-deep", "rows.jsonl", ['{"text": ' + "[" * 100_000], ":1", "", TEXT),
    ("not-an-object", "rows.jsonl", [text("a"), "[1]"], ":2", "", [text("[1]")]),
    ("long-row", "rows.jsonl", [text("a"), text("x" * 1_000_001)], ":2", "", [text("x" * 999_000)]),
]  # fmt: skip
IN_ROWS = [
    ("missing", "prompt", [{"prompt": "a"}, {"id": "x"}], [{"prompt": "a"}]),
    ("null", "ranking", [ranking(1, 2, prompt=None)], [ranking(1, 2, labeler=None)], "prompt"),
    ("wrong-type", "text", [{"text": "a", "weight": "10"}], [{"text": "10", "weight": 10}], "weight"),
    ("wrong-type", "ranking", [ranking(1, 2, id=5)], [ranking(1, 2, id="5")], "id"),
    ("unknown-key", "prompt", [{"prompt": "a", "categry": "b"}], [{"prompt": "a", "category": "b"}], "categry"),
    ("unknown-key", "text", [{"text": "a", "rank": None}], [{"text": "a", "id": None}], "rank"),
    ("empty-text", "ranking", [listed(["", "b"], 1, 2)], [ranking(1, 2)], "responses.0"),
    ("empty-text", "text", [{"text": " \t\n"}], [{"text": " \ta"}], "text"),
    ("empty-text", "text", [{"text": "\u3000\u00a0\u2003\u2028"}], [{"text": "\u3000。"}], "text"),
    ("bad-value", "prompt", [{"prompt": "a", "origin": "web"}], [{"prompt": "a", "origin": "user"}], "origin"),
    ("bad-value", "text", [{"text": "a", "weight": -1}], [{"text": "a", "weight": 1}], "weight"),
    ("missing-rank", "ranking", [ranking(1, None)], [ranking(1, 2)], "responses.1.rank"),
    ("missing-rank", "ranking", [{"prompt": "a", "responses": [{"text": "a", "rank": 1}, {"text": "b"}]}],
     [ranking(1, 2)], "responses.1.rank"),
    *[("bad-rank", "ranking", [ranking(1, bad)], [ranking(1, 3)], "responses.1.rank")
      for bad in (0, -1, 1.5, 2.0, "10", True)],
    ("bad-rank", "ranking", [listed(["x", "y"], "10", 2)], [ranking(10, 2)], "ranks.0"),
    ("rank-count", "ranking", [listed(["x", "y"], 1)],
     [listed(["x", "y"], 1, 1)], "ranks"),
    ("too-few-responses", "ranking", [ranking(1)], [ranking(1, 2)], "responses"),
    ("too-few-responses", "ranking", [ranking()], [ranking(1, 2)], "responses"),
    ("too-many-responses", "ranking", [ranking(*range(1, 66))], [ranking(*range(1, 65))], "responses"),
    ("no-pair", "ranking", [ranking(2, 2, 2)], [ranking(2, 2, 1)], "responses"),
    ("twin-responses", "ranking", [listed(["x", "y", "x"], 1, 2, 2)],
     [listed(["x", "y", "x "], 1, 2, 2)], "responses.2"),
    ("twin-responses", "ranking", [pair("a", "x", "x")], [pair("a", "x", "X")],
     "rejected"),
    ("repeated-response", "ranking", [listed(["x", "y", "x"], 1, 2, 1)],
     [listed(["x", "y", "z"], 1, 2, 1)], "responses.2"),
    ("no-score", "rating", [RATED], [{**RATED, "score": 1}], ""),
    ("no-score", "rating", [{**RATED, "score": 6, "scale": [1, 5]}], [{**RATED, "score": 5, "scale": [1, 5]}], "score"),
    ("role-order", "prompt", [{"prompt": [USER, USER]}], [{"prompt": [SYSTEM, USER, ANSWER, USER]}], "prompt.1.role"),
    ("no-user-turn", "prompt", [{"prompt": [USER, ANSWER]}], [{"prompt": [USER]}], "prompt"),
    ("no-user-turn", "demonstration", [{"messages": [SYSTEM, ANSWER]}],
     [{"messages": [SYSTEM, USER, ANSWER]}], "messages"),
    ("no-answer", "demonstration", [{"messages": [USER, ANSWER, USER]}], [{"messages": [USER, ANSWER]}], "messages"),
    ("prompt-differs", "ranking", [{**PAIR, "rejected": [SYSTEM, USER, ANSWER]}], [PAIR], "rejected"),
    ("carriage-return", "text", [{"text": "a\r\nb"}], [{"text": "a\nb"}], "text"),
    ("special-token", "demonstration", [{"prompt": "a", "completion": "b<|im_end|>"}],
     [{"prompt": "a", "completion": "<b>"}], "completion"),
    ("special-token", "text", [{"text": "[INST] Why?"}], [{"text": "[INSTALL] Why?"}], "text"),
    ("control-character", "text", [{"text": "a\x00b"}], [{"text": "a\tb"}], "text"),
    ("control-character", "text", [{"text": "a\x7fb"}], [{"text": "a\u0085b"}], "text"),
    ("duplicate-id", "prompt", [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}],
     [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "X"}], "id"),
    ("duplicate-id", "prompt", [{"prompt": "a", "id": ""}, {"prompt": "b", "id": ""}],
     [{"prompt": "a"}, {"prompt": "b"}], "id"),
    ("duplicate-row", "ranking", [ranking(1, 2, id="x"), ranking(3, 9)], [ranking(1, 2), ranking(1, 2, labeler="x")]),
    ("contradiction", "ranking", [ranking(1, 2), ranking(2, 1)], [ranking(1, 2, labeler="x"), ranking(2, 1)]),
    ("contradiction", "ranking", [pair("a", "x", "y"), pair("a", "y", "x")],
     [pair("a", "x", "y"), pair("b", "y", "x")]),
    ("weight-varies", "text", [{"text": "a", "source": "s", "weight": 1}, {"text": "b", "source": "s", "weight": 2}],
     [{"text": "a", "source": "s", "weight": 1}, {"text": "b", "source": "t", "weight": 2}], "weight"),
    ("length-bias", "ranking", many(120, 110), many(120, 60)),
    ("position-bias", "ranking", many(120, 110, longer=False), many(120, 60, longer=False)),
    ("sorted-by-rank", "ranking", many(120, 120, longer=False), many(120, 119, longer=False)),
    ("labeler-contradicts", "ranking", labelled(10), labelled(5), "labeler"),
]  # fmt: skip
VERDICTS = {"question": "Why?", "passages": [], **{f"prediction {i}": f"answer {i}" for i in (1, 2, 3)}}
SAID, OTHER = transcript("Why?", "Because.", "And?", "So."), transcript("Why?", "Because.", "And?", "No.")
SHP = {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
TREE = {"message_id": "t", "text": "Why?", "role": "prompter"}
REPLIES = [{"message_id": f"a{i}", "parent_id": "t", "text": f"answer {i}", "role": "assistant"} for i in (0, 1)]
RANKED = [{**reply, "rank": i} for i, reply in enumerate(REPLIES)]
QUESTION = {"question_id": 1, "category": "x", "turns": ["Why?"]}
REPLY = {"question_id": 1, "answer_id": "u", "model_id": "m", "choices": [{"index": 0, "turns": ["a"]}], "tstamp": 0}
IN_FORMATS = [
    ("no-order", "pairwise", [{**VERDICTS, "preference": [1, 2, 1]}],
     [{**VERDICTS, "preference": [1, 1, 1]}], "preference"),
    ("partial-order", "pairwise", [{**VERDICTS, "preference": [1, None, 2]}],
     [{**VERDICTS, "preference": [1, 0, 2]}], "preference"),
    ("unranked", "oasst", [{"message_tree_id": "t", "prompt": {**TREE, "replies": REPLIES}}],
     [{"message_tree_id": "t", "prompt": {**TREE, "replies": RANKED}}], None),
    ("no-verdict", "shp", [{**SHP, "labels": "N/A"}], [SHP], "labels"),
    ("left-out", "gsm8k", [{"question": "1+1?", "answer": "It is 2\n#### 2"}], None, "answer"),
    ("no-part", "mt-bench", [{**QUESTION, "question_id": 2}, REPLY], [QUESTION, REPLY], "question_id"),
    ("prompt-differs", "hh-rlhf", [{"chosen": SAID, "rejected": OTHER.replace("Because", "Since")}],
     [{"chosen": SAID, "rejected": OTHER}], "rejected"),
    ("carriage-return", "hh-rlhf", [{"chosen": SAID.replace("So.", "So.\r\nYes."), "rejected": OTHER}],
     [{"chosen": SAID.replace("So.", "So.\nYes."), "rejected": OTHER}], "chosen"),
    ("empty-text", "hh-rlhf", [{"chosen": SAID, "rejected": OTHER.replace("No.", "")}],
     [{"chosen": SAID, "rejected": OTHER}], "rejected"),
    ("prompt-differs", "trl", [{"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, ANSWER]}], [PAIR], "rejected"),
]  # fmt: skip
ELSEWHERE = {
    "leak": "test_a_leak",
    "foreign-format": "test_a_foreign_format_where_a_stage_reads",
}


def make(name, content):
    if content in ("cut", "whole"):
        Path(name).write_bytes(ZIPPED if content == "whole" else ZIPPED[:-100])
    elif content == "bytes":
        Path(name).write_bytes(TEXT)
    elif isinstance(content, tuple):
        name = make(*content)
    elif content is not None:
        write(name, *(content if isinstance(content, list) else [content]))
    return name


@pytest.mark.parametrize(("code", "name", "content", "where", "field", "near"), IN_FILES)
def test_a_code_of_a_file(code, name, content, where, field, near):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    found = findings(make(name, content))
    if content == "cut":  # where in the file is up to zlib
        (where,) = {found_where for found_where, _, found_code in found if found_code == code}
        assert 1000 < int(where.removeprefix(":")) < 3000
    assert (where, field, code) in found
    assert not {near_code for _, _, near_code in found if severity_of(near_code) == "error"} - {code}
    name = make(name if name != "gone/rows.jsonl" else "rows.jsonl", near)
    assert code not in {near_code for _, _, near_code in findings(name)}


@pytest.mark.parametrize("case", IN_ROWS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_code_of_rows(case):
    code, kind, rows, near, *field = case
    field = field[0] if field else "prompt" if code == "missing" else ""
    write("rows.jsonl", *rows)
    where = "" if code in OF_THE_WHOLE else f":{len(rows)}"
    assert findings("rows.jsonl", kind) == [(where, field, code)]
    write("rows.jsonl", *near)
    assert [finding[2] for finding in findings("rows.jsonl", kind) if severity_of(finding[2]) == "error"] == []
    assert code not in {finding[2] for finding in findings("rows.jsonl", kind)}


OF_THE_WHOLE = {"length-bias", "position-bias", "sorted-by-rank", "labeler-contradicts"}


@pytest.mark.parametrize(("code", "format", "rows", "near", "field"), IN_FORMATS)
def test_a_code_of_a_foreign_format(code, format, rows, near, field):
    write("rows.jsonl", *rows)
    # As rankings: without a kind, rows that give none are taken for what they give.
    kind = "demonstration" if format == "mt-bench" else "ranking"
    found = findings("rows.jsonl", kind, format=format)
    assert code in {finding[2] for finding in found}
    where, name, _ = next(finding for finding in found if finding[2] == code)
    assert where == f":{len(rows)}" and (field is None or name.split(".")[0] == field)
    if near is not None:
        write("rows.jsonl", *near)
        assert code not in {finding[2] for finding in findings("rows.jsonl", kind, format=format)}


def test_a_leak():
    write("train.jsonl", ranking(1, 2, prompt="Who?"), ranking(1, 2, prompt="Why?"))
    write("held.jsonl", {"prompt": "Where?"}, {"prompt": [USER]})
    from rlhf_kit.validation import Checks, Verdict

    found = [one for one in validate(["train.jsonl"], Checks(heldout=("held.jsonl",))) if not isinstance(one, Verdict)]
    assert [(one.where, one.field, one.code) for one in found] == [("held.jsonl:2", "prompt", "leak")]
    assert "train.jsonl:2" in found[0].reason
    write("held.jsonl", {"prompt": "Where?"}, {"prompt": [SYSTEM, USER]})
    found = [one for one in validate(["train.jsonl"], Checks(heldout=("held.jsonl",))) if not isinstance(one, Verdict)]
    assert found == []


def test_a_foreign_format_where_a_stage_reads():
    from rlhf_kit.files import check

    write("rows.jsonl", *[{"chosen": SAID, "rejected": OTHER}])
    (problem,) = check("rows.jsonl", "ranking").problems
    assert (problem.where, problem.code) == ("rows.jsonl:1", "foreign-format")
    write("rows.jsonl", PAIR)
    assert check("rows.jsonl", "ranking").problems == []


SEVERITIES = {
    "warning": {
        *["gzip-unnamed", "bom", "array-named-jsonl", "lines-named-json", "no-pair", "repeated-response"],
        *["carriage-return", "special-token", "control-character", "duplicate-row", "weight-varies", "length-bias"],
        *["position-bias", "labeler-contradicts"],
    },
    "info": {"long-row", "partial-order", "unranked", "left-out", "sorted-by-rank"},
}


def test_all_codes_are_shown_above():
    shown = {case[0] for case in [*IN_FILES, *IN_ROWS, *IN_FORMATS]} | ELSEWHERE.keys()
    assert shown == CODES.keys()
    assert all(name in globals() for name in ELSEWHERE.values())


def test_a_row_is_rejected_for_an_error_alone():
    """An error makes the row unusable or the row lies; with a warning or an info it can be used."""
    for code in CODES:
        expected = next((severity for severity, codes in SEVERITIES.items() if code in codes), "error")
        assert severity_of(code) == expected, code
    for code, kind, rows, *_ in IN_ROWS:
        write("rows.jsonl", *rows)
        found = Examined("rows.jsonl", kind)
        list(examine(found))
        assert found.rejected == (severity_of(code) == "error"), code
