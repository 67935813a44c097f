"""The schemas on disk are those of the records, and the README's examples are what it says they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_kit.errors import DataError
from rlhf_kit.records import SCHEMAS, json_schema, parse

FOLDER = Path(__file__).parent.parent / "data_schemas"
FENCE = re.compile(r"^```json (\w+) (valid|invalid)\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
EXAMPLES = [match.groups() for match in FENCE.finditer((FOLDER / "README.md").read_text(encoding="utf-8"))]
VALID = [(kind, json.loads(text)) for kind, verdict, text, _ in EXAMPLES if verdict == "valid"]
INVALID = [(kind, json.loads(text), said) for kind, verdict, text, said in EXAMPLES if verdict == "invalid"]


def test_the_command_writes_the_schemas_that_are_in_the_repository(tmp_path):
    subprocess.run([sys.executable, "-m", "rlhf_kit.records", str(tmp_path)], check=True, cwd=FOLDER.parent)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}
    assert set(written) == {f"{kind}.schema.json" for kind in SCHEMAS}


def test_the_command_wants_a_folder():
    done = subprocess.run([sys.executable, "-m", "rlhf_kit.records"], capture_output=True, text=True, cwd=FOLDER.parent)
    assert done.returncode == 1
    assert done.stderr == "usage: python -m rlhf_kit.records FOLDER\n"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_says_its_version_and_explains_every_field(kind):
    schema = json_schema(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"https://rlhf-kit.dev/schemas/1/{kind}.schema.json"
    for described in (schema, *schema.get("$defs", {}).values()):
        assert described["additionalProperties"] is False
        for name, field in described["properties"].items():
            assert field["description"], name
            assert field["examples"], name


def test_the_readme_shows_every_kind_both_ways():
    assert {kind for kind, _ in VALID} == {kind for kind, *_ in INVALID} == set(SCHEMAS)


@pytest.mark.parametrize(("kind", "row"), VALID)
def test_valid_examples_of_the_readme(kind, row):
    assert isinstance(parse(row, kind), SCHEMAS[kind])


@pytest.mark.parametrize(("kind", "row", "said"), INVALID)
def test_invalid_examples_of_the_readme_give_the_lines_it_shows(kind, row, said):
    with pytest.raises(DataError) as caught:
        parse(row, kind)
    assert f"{caught.value}\n" == said


def rows_for_the_schemas():
    """Rows of the kit's own shape, with whether they are right: by reading the README, not by running the records."""
    user = {"role": "user", "content": "b"}
    two = [{"text": "x", "rank": 1}, {"text": "y", "rank": 1, "source": None}]
    yield "prompt", {"prompt": "a"}, True
    yield "prompt", {"prompt": [user], "category": None}, True
    yield "prompt", {"prompt": [{**user, "role": "tool"}]}, False
    yield "prompt", {"prompt": "\n\t "}, False
    yield "prompt", {"prompt": {"role": "user", "content": "b"}}, False
    yield "prompt", {}, False
    yield "demonstration", {"prompt": "a", "completion": "b", "id": "1"}, True
    yield "demonstration", {"prompt": "a", "completion": "b", "id": 1}, False
    yield "demonstration", {"prompt": "a", "completion": ""}, False
    yield "demonstration", {"prompt": "a"}, False
    yield "ranking", {"prompt": "a", "responses": two}, True
    yield "ranking", {"prompt": "a", "responses": two * 32, "meta": {"any": [1, None]}}, True
    yield "ranking", {"prompt": "a", "responses": two * 33}, False
    yield "ranking", {"prompt": "a", "responses": two[:1]}, False
    yield "ranking", {"prompt": "a", "responses": two, "meta": None}, False
    for rank in (0, -1, "1", 1.5, True, None):
        yield "ranking", {"prompt": "a", "responses": [*two, {"text": "z", "rank": rank}]}, False
    yield "ranking", {"prompt": "a", "responses": [*two, {"text": "z", "rank": 2, "ended": False}]}, True
    yield "ranking", {"prompt": "a", "responses": [*two, {"text": "z", "rank": 2, "ended": 0}]}, False
    yield "text", {"text": "a", "source": "b"}, True
    yield "text", {"text": "a", "weight": 1}, False


@pytest.mark.parametrize(("kind", "row", "right"), rows_for_the_schemas())
def test_schema_and_records_agree(kind, row, right):
    try:
        parse(row, kind)
        assert right
    except DataError:
        assert not right
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema(kind))
    validator.check_schema(validator.schema)
    assert validator.is_valid(row) is right


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_examples_inside_a_schema_are_valid(kind):
    model = SCHEMAS[kind]
    fields = {name: field.examples for name, field in model.model_fields.items()}
    for name, examples in fields.items():
        for example in examples:
            row = {other: values[0] for other, values in fields.items()} | {name: example}
            assert isinstance(parse(row, kind), model)
