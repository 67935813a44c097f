"""The schemas on disk are those of the records, and they say the same as the records."""

import copy
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_kit.codes import CODES
from rlhf_kit.errors import DataError
from rlhf_kit.parsing import parse, parse_shaped
from rlhf_kit.records import SCHEMAS, ParallelRanking
from rlhf_kit.schemas import json_schema
from rlhf_kit.shapes import Shaped

FOLDER = Path(__file__).parent.parent / "data_schemas"


@cache
def validator(kind):
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_command_writes_the_schemas_that_are_in_the_repository(tmp_path):
    subprocess.run([sys.executable, "-m", "rlhf_kit.schemas", str(tmp_path)], check=True, cwd=FOLDER.parent)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}
    assert set(written) == {f"{kind}.schema.json" for kind in SCHEMAS}


def test_the_command_wants_a_folder():
    done = subprocess.run([sys.executable, "-m", "rlhf_kit.schemas"], capture_output=True, text=True, cwd=FOLDER.parent)
    assert done.returncode == 1
    assert done.stderr == "usage: python -m rlhf_kit.schemas FOLDER\n"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_says_its_version_and_explains_every_field(kind):
    schema = json_schema(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"https://rlhf-kit.dev/schemas/1/{kind}.schema.json"
    described = [part for part in (schema, *schema.get("$defs", {}).values()) if "properties" in part]
    assert len(described) == {"ranking": 5, "text": 1}.get(kind, 2)  # the record, its message, response, flags, lists
    for part in described:
        assert part["additionalProperties"] is False
        for name, field in part["properties"].items():
            assert field["description"], name
            assert field["examples"], name


def test_a_ranking_is_either_of_two_forms():
    assert json_schema("ranking")["anyOf"] == [{"$ref": "#/$defs/Ranking"}, {"$ref": "#/$defs/ParallelRanking"}]


@pytest.mark.parametrize(
    ("kind", "model"), [*((kind, model) for kind, model in SCHEMAS.items()), ("ranking", ParallelRanking)]
)
def test_the_examples_inside_a_schema_are_valid(kind, model):
    fields = {name: field.examples for name, field in model.model_fields.items()}
    for name, examples in fields.items():
        for example in examples:
            row = {other: values[0] for other, values in fields.items()} | {name: example}
            if kind == "rating":  # it has one of the two
                del row["score" if name == "thumb" else "thumb"]
            assert isinstance(parse(row, kind), SCHEMAS[kind])
            assert validator(kind).is_valid(row)


# ---- schema and records ----


def rows_for_the_schemas():
    """Rows of the kit's own shape, with whether they are right: by reading the README, not by running the records."""
    user = {"role": "user", "content": "b"}
    two = [{"text": "x", "rank": 1}, {"text": "y", "rank": 1, "source": None}]
    rated = {"prompt": "a", "response": "b"}
    lists = {"prompt": "a", "responses": ["x", "y"]}
    yield "prompt", {"prompt": "a"}, True
    yield "prompt", {"prompt": [user], "category": None}, True
    yield "prompt", {"prompt": []}, False
    yield "prompt", {"prompt": [{**user, "role": "tool"}]}, False
    yield "prompt", {"prompt": "\n\t "}, False
    yield "prompt", {"prompt": {"role": "user", "content": "b"}}, False
    yield "prompt", {"prompt": "a", "kind": "few_shot", "origin": "labeler", "user_id": "u"}, True
    yield "prompt", {"prompt": "a", "kind": "other"}, False
    yield "prompt", {"prompt": "a", "origin": "web"}, False
    yield "prompt", {}, False
    yield "demonstration", {"prompt": "a", "completion": "b", "id": "1", "kind": "use_case", "origin": "user"}, True
    yield "demonstration", {"prompt": "a", "completion": "b", "id": 1}, False
    yield "demonstration", {"prompt": "a", "completion": ""}, False
    yield "demonstration", {"prompt": "a"}, False
    yield "ranking", {"prompt": "a", "responses": two}, True
    yield "ranking", {"prompt": "a", "responses": two * 32, "meta": {"any": [1, None]}}, True
    yield "ranking", {"prompt": "a", "responses": two * 33}, False
    yield "ranking", {"prompt": "a", "responses": two[:1]}, False
    yield "ranking", {"prompt": "a", "responses": two, "meta": None}, False
    yield "ranking", {"prompt": "a", "responses": two, "kind": "plain"}, False
    for rank in (0, -1, "1", 1.5, True, None):
        yield "ranking", {"prompt": "a", "responses": [*two, {"text": "z", "rank": rank}]}, False
        yield "ranking", {**lists, "ranks": [1, rank]}, False
    for marks, right in (
        ({"ended": False}, True),
        ({"ended": 0}, False),
        ({"overall": 7}, True),
        ({"overall": 0}, False),
        ({"flags": {"hallucination": True, "sexual_content": None}}, True),
        ({"flags": {"lies": True}}, False),
        ({"axes": {"helpful": 2, "any other": 1}}, True),
        ({"axes": {"helpful": 0}}, False),
        ({"axes": {"helpful": None}}, False),
    ):
        yield "ranking", {"prompt": "a", "responses": [*two, {"text": "z", "rank": 2, **marks}]}, right
    yield "ranking", {**lists, "ranks": [2, 1], "labeler": "x"}, True
    yield "ranking", {**lists, "ranks": [2]}, False
    for counts, right in (
        ({"weight": 1}, True),
        ({"weight": 0.25, "margin": 0}, True),
        ({"weight": None, "margin": None}, True),
        ({"margin": 1.5}, True),
        ({"weight": 0}, False),
        ({"weight": -1}, False),
        ({"weight": "2"}, False),
        ({"weight": True}, False),
        ({"margin": -0.5}, False),
        ({"margin": [1]}, False),
    ):
        yield "ranking", {"prompt": "a", "responses": two, **counts}, right
        yield "ranking", {**lists, "ranks": [2, 1], **counts}, right
    yield "ranking", lists, False
    yield "ranking", {"prompt": "a", "responses": two, "ranks": [1, 2]}, False
    yield "rating", {**rated, "score": -1.5}, True
    yield "rating", {**rated, "score": 3, "thumb": None, "scale": [1, 5], "axis": "helpful", "source": "sft"}, True
    yield "rating", {**rated, "thumb": False}, True
    yield "rating", rated, False
    yield "rating", {**rated, "score": None, "thumb": None}, False
    yield "rating", {**rated, "score": 3, "thumb": True}, False
    yield "rating", {**rated, "score": True}, False
    yield "rating", {**rated, "score": 3, "scale": [1, 3, 5]}, False
    yield "rating", {"prompt": "a", "thumb": True}, False
    yield "text", {"text": "a", "source": "b"}, True
    yield "text", {"text": "a", "weight": 1}, True
    yield "text", {"text": "a", "weight": 0}, False
    for blank in "\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000":
        yield "text", {"text": blank}, False
        yield "text", {"text": f"{blank}."}, True
    for seen in "\x1c\x1f\u200b\ufeff":  # no white space to Unicode, whatever Python or JavaScript say
        yield "text", {"text": seen}, True


@pytest.mark.parametrize(("kind", "row", "right"), list(rows_for_the_schemas()))
def test_schema_and_records_agree(kind, row, right):
    try:
        parse(row, kind)
        assert right
    except DataError:
        assert not right
    assert validator(kind).is_valid(row) is right


TEXT = st.text(min_size=1, max_size=5).map(lambda text: f"x{text}")
SAID = st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), TEXT)
PROMPT = TEXT | st.integers(0, 2).flatmap(
    lambda n: st.lists(TEXT, min_size=2 * n + 1, max_size=2 * n + 1).map(
        lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    )
)
RANK = st.integers(1, 9)
SCORE = st.integers(-9, 9) | st.floats(-9, 9)
META = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3), max_size=2)


def maybe(**fields):
    """Some of the fields; those that are not `meta` may be null."""
    wanted = {name: field if name in ("meta", "ended") else st.none() | field for name, field in fields.items()}
    return st.fixed_dictionaries({}, optional=wanted)


def row_of(needed, **optional):
    common = maybe(labeler=TEXT, category=TEXT, user_id=TEXT, id=TEXT, meta=META, **optional)
    return st.builds(lambda first, rest: first | rest, st.fixed_dictionaries(needed), common)


PLACE = {"kind": st.sampled_from(["plain", "few_shot", "use_case"]), "origin": st.sampled_from(["labeler", "user"])}
RESPONSE = st.builds(
    lambda first, rest: first | rest,
    st.fixed_dictionaries({"text": TEXT, "rank": RANK}),
    maybe(
        source=TEXT,
        ended=st.booleans(),
        overall=st.integers(1, 7),
        flags=maybe(**dict.fromkeys(("hallucination", "harmful_advice", "satisfies_constraint"), st.booleans())),
        axes=st.dictionaries(st.sampled_from(["helpful", "truthful", "harmless"]), RANK),
    ),
)
SIDE_BY_SIDE = st.lists(st.tuples(TEXT, RANK), min_size=2, max_size=4).map(lambda both: tuple(zip(*both, strict=True)))
COUNTED = {"weight": st.floats(0.1, 9) | st.integers(1, 9), "margin": st.floats(0, 9) | st.integers(0, 9)}
PARALLEL = st.builds(
    lambda row, lists: row | {"responses": list(lists[0]), "ranks": list(lists[1])},
    row_of({"prompt": PROMPT}, **COUNTED),
    SIDE_BY_SIDE,
)
SCALED = row_of({"prompt": PROMPT, "response": TEXT, "score": SCORE}, scale=st.just([-9, 9.0]), axis=TEXT, source=TEXT)
THUMBED = row_of({"prompt": PROMPT, "response": TEXT, "thumb": st.booleans()}, axis=TEXT, source=TEXT)
WEIGHTED = st.builds(
    lambda text, rest: {"text": text, **rest},
    TEXT,
    maybe(source=TEXT, weight=st.floats(0.1, 9) | st.integers(1, 9), id=TEXT, meta=META),
)
ROWS = {
    "demonstration": row_of({"prompt": PROMPT, "completion": TEXT}, **PLACE),
    "ranking": row_of({"prompt": PROMPT, "responses": st.lists(RESPONSE, min_size=2, max_size=4)}, **COUNTED)
    | PARALLEL,
    "prompt": row_of({"prompt": PROMPT}, **PLACE),
    "rating": SCALED | THUMBED,
    "text": WEIGHTED,
}
KEYS = (
    "labler",
    "rank",
    "ranks",
    "score",
    "thumb",
    "text",
    "prompt",
    "kind",
    "flags",
    "",
    "role",
    "content",
    "weight",
    "margin",
)
JUNK = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2.0, 1.5, 8, 64, 1e300, "", " ", "\u3000", "\x1c", "\x85", "1", "plain", "user"]
    ),
    st.sampled_from([[], {}, [1, 2], [2, 1], ["a", "b"], {"helpful": 1}, {"hallucination": 1}, [None], [[]], [{}]]),
    st.lists(SAID, max_size=3),
    st.lists(RESPONSE, max_size=3),
)


def places_in(value, place=()):
    """The paths of everything inside a row but what is in `meta`, where anything may be."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*place, key)
        if key != "meta":
            yield from places_in(item, (*place, key))


@st.composite
def damaged(draw, kind):
    """A valid row with one to three changes, each of which may or may not matter."""
    row = copy.deepcopy(draw(ROWS[kind]))
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(row))
        *path, last = draw(st.sampled_from(places)) if places else ("text",)
        holder = row
        for key in path:
            holder = holder[key]
        change = draw(st.sampled_from(["take", "replace", "replace", "add"]))
        if change == "take" and places:
            del holder[last]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(JUNK))
        elif change == "add":
            holder.append(copy.deepcopy(draw(st.sampled_from(holder) if holder else JUNK)))
        else:
            holder[last] = copy.deepcopy(draw(JUNK))
    return row


def findings(row, kind):
    """What the reader says to a row in the kit's own shape; TRL's shapes, which no schema describes, are left out."""
    try:
        if kind == "ranking" and "ranks" in row:
            parse(row, kind)
        else:
            parse_shaped(Shaped(row), kind)
    except DataError as error:
        return error.problems
    return ()


WHOLE_FLOAT = re.compile(r"must be a whole number, not ([\d.e+-]+)$")
CODES_OF_THE_READER = {"role-order", "no-user-turn", "rank-count"}
REASONS_OF_THE_READER = ("must go from the lowest score to the highest", "lies outside its scale")


def only_the_reader_sees(problem):
    """Whether README.md lists this as something that the schema cannot say."""
    number = WHOLE_FLOAT.match(problem.reason)
    return (
        problem.code in CODES_OF_THE_READER
        or problem.reason.startswith(REASONS_OF_THE_READER)
        or (number is not None and "." in number[1] and float(number[1]).is_integer())
        or (number is not None and "e" in number[1])  # 1e300 has no fraction
    )


quick = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", SCHEMAS)
@quick
@given(data=st.data())
def test_rows_as_the_readme_describes_them_pass_both(kind, data):
    row = data.draw(ROWS[kind])
    assert validator(kind).is_valid(row)
    assert findings(row, kind) == ()
    assert isinstance(parse(json.loads(json.dumps(row)), kind), SCHEMAS[kind])


@pytest.mark.parametrize("kind", SCHEMAS)
@quick
@given(data=st.data())
def test_what_one_refuses_the_other_refuses(kind, data):
    row = data.draw(damaged(kind))
    problems = findings(row, kind)
    assert all(problem.code in CODES for problem in problems)
    if validator(kind).is_valid(row):
        assert all(only_the_reader_sees(problem) for problem in problems)
    else:
        assert problems
