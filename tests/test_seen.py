"""What a reward model was trained on: keys of prompts that hold everywhere, and a file that is whole or an error."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datafiles import SYSTEM, USER, ranking
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.checks.ledger import prompt_of
from rlhf_kit.errors import CheckpointError
from rlhf_kit.parsing import parse
from rlhf_kit.records import Message, Prompt, Rating, prompt_name
from rlhf_kit.seen import FILE, Seen, prompt_key, read, write

TEXTS = st.text(st.sampled_from('a"[]\\'), min_size=1, max_size=2)
TURNS = st.lists(TEXTS, min_size=1, max_size=3).filter(lambda texts: len(texts) % 2)


def spoken(system, texts):
    said = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    return tuple([Message(role="system", content=system), *said] if system else said)


PROMPTS = TEXTS | st.builds(spoken, st.none() | TEXTS, TURNS)


def test_a_key_is_sixteen_hex_digits_of_the_sha_256_of_the_json():
    assert prompt_key("Why?") == hashlib.sha256(b'"Why?"').hexdigest()[:16]
    assert prompt_key("二") == hashlib.sha256(rb'"\u4e8c"').hexdigest()[:16]
    said = (Message(**SYSTEM), Message(**USER))
    assert prompt_key(said) == hashlib.sha256(b'[["system", "Be brief."], ["user", "Why?"]]').hexdigest()[:16]


def test_a_text_and_its_one_turn_are_the_same_and_all_else_differs():
    alone = (Message(**USER),)
    assert prompt_key("Why?") == prompt_key(alone) and prompt_name("Why?") == prompt_name(alone)
    others = [
        "Why",
        "why?",
        (Message(**SYSTEM), Message(**USER)),
        '[["system", "Be brief."], ["user", "Why?"]]',
        '"Why?"',
    ]
    assert len({prompt_key(prompt) for prompt in ["Why?", *others]}) == 6
    assert len({prompt_name(prompt) for prompt in ["Why?", *others]}) == 6


@settings(max_examples=300, deadline=None)
@given(PROMPTS, PROMPTS)
def test_keys_are_equal_where_the_turns_are(one, other):
    turns = [(Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt for prompt in (one, other)]
    assert (prompt_key(one) == prompt_key(other)) is (turns[0] == turns[1])
    assert (prompt_of(Prompt(prompt=one)) == prompt_of(Prompt(prompt=other))) is (turns[0] == turns[1])


def test_a_key_is_the_same_in_another_process():
    code = "from rlhf_kit.seen import prompt_key; print(prompt_key('Why?'))"
    env = {**os.environ, "PYTHONHASHSEED": "17"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == prompt_key("Why?")


def test_what_was_written_is_read(tmp_path):
    rankings = [
        parse(ranking(1, 2, prompt="a", labeler="bo"), "ranking"),
        parse(ranking(1, 2, prompt="a", labeler="anna"), "ranking"),
        parse(ranking(1, 2, prompt=[USER]), "ranking"),
    ]
    rated = Rating(prompt="c", response="d", thumb=True, labeler="eve")
    assert write(tmp_path, iter([*rankings, rated]), ["zoe", "李"]) == tmp_path / FILE
    assert json.loads((tmp_path / "training_data.json").read_text()) == {
        "prompts": sorted(map(prompt_key, ("a", "Why?", "c"))),
        "labelers": ["anna", "bo", "eve"],
        "heldout_labelers": ["zoe", "李"],
    }
    assert read(tmp_path) == Seen(
        frozenset(map(prompt_key, ("a", "Why?", "c"))), frozenset({"anna", "bo", "eve"}), frozenset({"zoe", "李"})
    )
    write(tmp_path, [])
    assert read(tmp_path) == Seen()


def test_a_run_that_says_nothing_is_no_error(tmp_path):
    assert read(tmp_path) is None
    assert read(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "Expecting"),
        (b"\xff", "utf-8"),
        (b"[]", "holds no object"),
        (b"null", "holds no object"),
        (b'{"labelers": [], "heldout_labelers": []}', "'prompts' is no list of texts"),
        (b'{"prompts": "ab", "labelers": [], "heldout_labelers": []}', "'prompts' is no list of texts"),
        (b'{"prompts": [], "labelers": [1], "heldout_labelers": []}', "'labelers' is no list of texts"),
        (b'{"prompts": [], "labelers": []}', "'heldout_labelers' is no list of texts"),
        (b'{"prompts": ["0123456789abcde"], "labelers": [], "heldout_labelers": []}', "16 hex digits"),
        (b'{"prompts": ["0123456789abcdeG"], "labelers": [], "heldout_labelers": []}', "16 hex digits"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, text, why):
    Path(tmp_path, FILE).write_bytes(text)
    with pytest.raises(CheckpointError, match=rf"training_data\.json: damaged \(.*{why}.*\); train the stage again"):
        read(tmp_path)


def test_a_directory_in_its_place_is_an_error(tmp_path):
    Path(tmp_path, FILE).mkdir()
    with pytest.raises(CheckpointError, match=r"training_data\.json: damaged"):
        read(tmp_path)
