"""The quick way of reading a row against the thorough one: where it answers, both must have read the same clean row.

`RLHF_KIT_FUZZ=N` in the environment makes N times as many cases of the tests with random rows.
"""

import json
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_kit.checks.quick import reader_of
from rlhf_kit.checks.row import SPECIAL_TOKENS
from rlhf_kit.records import SCHEMAS, Flags
from rlhf_kit.row import Row
from rlhf_kit.scanning import _thorough, has_error

TIMES = int(os.environ.get("RLHF_KIT_FUZZ", "1"))
MANY = settings(
    max_examples=150 * TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
READERS = {kind: reader_of(model) for kind, model in SCHEMAS.items()}


def agree(kind, raw):
    """Whether the quick way took the row; fails where the thorough way sees it otherwise."""
    record = READERS[kind](raw)
    if record is None:
        return False
    entry = _thorough(Row("f:", 1, raw, None), kind, SPECIAL_TOKENS)
    assert not [problem for problem in entry.problems if problem.code not in RANKS_ONLY], (raw, entry.problems)
    if not has_error(entry.problems):
        assert entry.records == (record,), raw
        assert repr(entry.records[0]) == repr(record), raw  # 1, 1.0 and True are equal
    return True


RANKS_ONLY = {"twin-responses", "repeated-response", "no-pair", "special-token", "control-character"}
"""What is looked for in the record that the quick way gives; tokens and DEL are looked for in the bytes."""

# ---- rows that are right ----

texts = st.text(
    st.sampled_from([*'abc :,"{}[]\\/\n\t', "é", "二", "\u2028", "\u3000", "\U0001f600", "\x7f"]), max_size=8
)
words = texts.map(lambda text: text + "x")
numbers = st.one_of(st.integers(-(10**25), 10**25), st.floats(allow_nan=False, allow_infinity=False))
names = st.one_of(*[st.text("ab \\é二\U0001f600", max_size=6)] * 9, texts)
"""Seldom with a colon: such rows take the thorough way."""
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)
metas = st.dictionaries(names, values, max_size=3)


def turns(system, contents):
    start = [{"role": "system", "content": system}] if system else []
    spoken = contents[: len(contents) - 1 + len(contents) % 2]
    return start + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(spoken)]


prompts = st.one_of(words, st.builds(turns, st.none() | words, st.lists(words, min_size=1, max_size=5)))
ranks = st.integers(1, 5) | st.integers(1, 10**30)
flags = st.fixed_dictionaries({}, optional={name: st.none() | st.booleans() for name in [*Flags.model_fields][:4]})
responses = st.fixed_dictionaries(
    {"text": words, "rank": ranks},
    optional={
        "source": st.none() | names,
        "ended": st.booleans(),
        "overall": st.none() | st.integers(1, 7),
        "flags": st.none() | flags,
        "axes": st.none() | st.dictionaries(names, ranks, max_size=3),
    },
)
common = {"labeler": st.none() | names, "category": names, "user_id": names, "id": texts, "meta": metas}
asked = {"kind": st.sampled_from(["plain", "few_shot", None]), "origin": st.sampled_from(["user", None])}
scored = st.fixed_dictionaries({"score": st.floats(1, 5) | st.integers(1, 5)}, optional={"scale": st.just([1, 5.0])})
thumbed = st.fixed_dictionaries({"thumb": st.booleans()}, optional={"score": st.none(), "scale": st.none()})
rated = st.fixed_dictionaries(
    {"prompt": prompts, "response": words}, optional={**common, "axis": names, "source": names}
)
ROWS = {
    "ranking": st.fixed_dictionaries(
        {"prompt": prompts, "responses": st.lists(responses, min_size=2, max_size=4)},
        optional={**common, "weight": st.none() | st.floats(0.001, 10), "margin": st.none() | st.floats(0, 10)},
    ),
    "demonstration": st.fixed_dictionaries({"prompt": prompts, "completion": words}, optional=common | asked),
    "prompt": st.fixed_dictionaries({"prompt": prompts}, optional=common | asked),
    "rating": st.builds(lambda row, score: row | score, rated, scored | thumbed),
    "text": st.fixed_dictionaries(
        {"text": words},
        optional={"source": names, "weight": st.none() | st.floats(0.001, 10), "id": texts, "meta": metas},
    ),
}


class Writer:
    """Writes a value as JSON in one of its many forms: order of keys, spaces, escapes, forms of numbers."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.dense = self.chance.random() < 0.3
        self.escaping = self.chance.choice([0, 0, 0, 0.02, 0.3])
        self.ascii = self.chance.random() < 0.2

    def space(self):
        return "" if self.dense else self.chance.choice(["", "", " ", "\t", "  ", "\r"])

    def text(self, value):
        return '"' + "".join(map(self.character, value)) + '"'

    def character(self, c):
        if self.chance.random() < self.escaping:
            units = c.encode("utf-16-be")
            pairs = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
            return "".join("\\u" + (pair.upper() if self.chance.random() < 0.5 else pair) for pair in pairs)
        if c == "/" and self.chance.random() < 0.3:
            return "\\/"
        return json.dumps(c, ensure_ascii=self.ascii)[1:-1]

    def write(self, value):
        if isinstance(value, dict):
            items = list(value.items())
            self.chance.shuffle(items)
            inner = [f"{self.text(k)}{self.space()}:{self.space()}{self.write(v)}" for k, v in items]
            return "{" + self.joined(inner) + "}"
        if isinstance(value, list):
            return "[" + self.joined([self.write(item) for item in value]) + "]"
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, float) and self.chance.random() < 0.3:
            return f"{value:.25E}"
        return json.dumps(value)

    def joined(self, parts):
        return self.space() + f"{self.space()},{self.space()}".join(parts) + self.space()


TWINS = ['"id":"x",', '"meta" : {"a":1},', '"text":"x",', '"rank":1,', '"role":"user",', '"a":1,', '"content":"x:y",']
PIECES = [
    *TWINS,
    *["NaN", "-Infinity", "1e999", "-0", "1E5", "0.1e-7", "00", "1.", "true", "null", '""', "[]", "{}", "[[", "}}"],
    *["\\u003a", "\\u0022", "\\ud83d", "\\udc00", "\\b", "\\r", "\\/", "\\x", "\\"],
    *['"', ":", "::", ",", " ", "\n", "\r"],
    *["\x00", "\x1f", "\x7f", "\x85", "\u00a0", "\u2028", "\u3000", "\ufeff", "<|im_end|>", "[INST]", "</s>"],
]  # fmt: skip


def damaged(raw, chance):
    """The bytes of a row with one to three small faults."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place : place + chance.randint(1, 4)]
        elif kind == 2:
            data[place:place] = chance.choice(PIECES).encode()
        elif kind == 3:  # a piece of the row once more, which makes twin keys
            start = chance.randrange(len(data) + 1)
            data[place:place] = data[start : start + chance.randint(1, 30)]
        elif kind == 4:
            data[place:place] = bytes([chance.randrange(256)])
        else:  # where twins fit in
            places = [i + 1 for i, byte in enumerate(data) if byte == ord("{")]
            if places:
                at = chance.choice(places)
                data[at:at] = chance.choice(TWINS).encode()
    return bytes(data)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_row_that_is_right_is_read_alike_in_all_its_forms(kind):
    taken = []

    @MANY
    @given(ROWS[kind], st.integers(0, 2**32))
    def check(row, seed):
        writer = Writer(seed)
        raw = (writer.write(row) + writer.space()).encode() + b"\n" * (seed % 2)
        entry = _thorough(Row("f:", 1, raw, None), kind, SPECIAL_TOKENS)
        assert entry.usable or {problem.code for problem in entry.problems} <= RANKS_ONLY, entry.problems
        taken.append(agree(kind, raw))

    check()
    assert sum(taken) > len(taken) / 5, "the quick way is there to be taken"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_no_damage_fools_the_quick_way(kind):
    taken = []

    @MANY
    @given(ROWS[kind], st.integers(0, 2**32))
    def check(row, seed):
        chance = random.Random(seed)
        raw = Writer(seed).write(row).encode()
        taken.extend(agree(kind, damaged(raw, chance)) for _ in range(8))

    check()
    assert 0 < sum(taken) < len(taken) / 2, "some damage does no harm"


# ---- tricks ----


def deep(levels):
    return "[" * levels + "]" * levels


TRICKS = [
    ("text", '{"text":"a","text":"a"}'),
    ("text", '{"text":"a:","text":"a"}'),
    ("text", '{"text":"a","text":"a:"}'),
    ("text", '{"text":"a","meta":{"a":1,"a":2}}'),
    ("text", '{"text":"a:","meta":{"a":1,"a" : 2}}'),
    ("text", '{"text":"::","id":":","meta":{":":":",":":":"}}'),
    ("text", '{"text":"a\\u003a","meta":{"a":1,"a":2}}'),
    ("text", '{"text":"a\\u003A","meta":{"a":1,"a":2}}'),
    ("text", '{"text":"a","te\\u0078t":"a"}'),
    ("text", '{"text":"a","meta":{"b":{"a":1,"a":1}}}'),
    ("text", '{"text":"a","meta":{"x":NaN}}'),
    ("text", '{"text":"a","meta":{"x":[-Infinity]}}'),
    ("text", '{"text":"a","meta":{"x":1e999}}'),
    ("text", '{"text":"a","weight":1e999}'),
    ("text", '{"text":"a","weight":1' + "0" * 400 + "}"),
    ("text", '{"text":"a","meta":{"x":1' + "0" * 5000 + "}}"),
    ("text", '{"text":"a","meta":{"x":"\\ud800"}}'),
    ("text", '{"text":"a","meta":{"x":"\\udc00\\ud800"}}'),
    ("text", '{"text":"a","meta":{"\\ud83d":1}}'),
    ("text", b'{"text":"a","meta":{"x":"\xff"}}'),
    ("text", b'{"text":"a","meta":{"x":"\xed\xa0\x80"}}'),
    ("text", '{"text":"a","meta":{"x":01}}'),
    ("text", '{"text":"a","meta":{"x":1.}}'),
    ("text", '{"text":"a"}\x0b'),
    ("text", '\ufeff{"text":"a"}'),
    ("text", '{"text":"a"}{"text":"b"}'),
    ("text", '{"text":"a\tb"}'),
    ("text", '{"text":"a\\rb"}'),
    ("text", '{"text":"a\\u000db"}'),
    ("text", '{"text":"a\\bb"}'),
    ("text", '{"text":"a\\u0000b"}'),
    ("text", '{"text":"\\u003c/s>"}'),
    ("text", '{"text":"\\u3000\u00a0\u2003"}'),
    ("text", f'{{"text":"a","meta":{{"x":{deep(99)}}}}}'),
    ("text", f'{{"text":"a","meta":{{"x":{deep(150)}}}}}'),
    ("rating", '{"prompt":"a","response":"b","score":1,"scale":[0,Infinity]}'),
    ("rating", '{"prompt":"a","response":"b","score":"1"}'),
    ("rating", '{"prompt":"a","response":"b","score":true}'),
    ("prompt", '{"prompt":[{"role":"user","role":"user","content":"a"}]}'),
    ("prompt", '{"prompt":[{"role":"user","content":"a:","content":"a:"}]}'),
    ("ranking", '{"prompt":"p","responses":[{"text":"a","rank":1,"rank":2},{"text":"b","rank":2}]}'),
    ("ranking", '{"prompt":"p","responses":[{"text":"a","rank":1,"axes":{"h":1,"h":1}},{"text":"b","rank":2}]}'),
    ("ranking", '{"prompt":"p","responses":[{"text":"a","rank":1.0},{"text":"b","rank":2}]}'),
    ("ranking", '{"prompt":"p","responses":[{"text":"a","rank":true},{"text":"b","rank":2}]}'),
    ("ranking", '{"prompt":"p","responses":[{"text":"a","rank":"1"},{"text":"b","rank":2}]}'),
]


@pytest.mark.parametrize(("kind", "row"), TRICKS, ids=lambda value: str(value)[:48])
def test_a_trick_takes_the_thorough_way(kind, row):
    raw = row if isinstance(row, bytes) else row.encode()
    entry = _thorough(Row("f:", 1, raw, None), kind, SPECIAL_TOKENS)
    assert entry.problems, "the row would be right"
    assert READERS[kind](raw) is None


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("text", '{"text":"a","source":"b:c"}\r\n'),
        ("text", '{"text":"\\ud83d\\ude00 \\n\\"\\\\"}'),
        ("text", f'{{"text":"a","meta":{{"x":{deep(98)}}}}}'),
        ("text", '{"text":"a: b: c","meta":{"x":{"y":1}},"id":"7"}'),
        ("ranking", '{"prompt":"p:","responses":[{"text":"a:b","rank":1,"axes":{"h":1}},{"text":"b","rank":2}]}'),
    ],
)
def test_a_clean_row_takes_the_quick_way(kind, row):
    assert agree(kind, row.encode())
