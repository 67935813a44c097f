"""What is typed with a slash: who speaks, how, and what is taken back."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_run import GREEDY, answers, speaker, talk
from safetensors.torch import save_file

from rlhf_kit import load
from rlhf_kit.chat import Cast, Manner, speaking
from rlhf_kit.chat.commands import NAMES, command_of
from rlhf_kit.checkpoint import read_json, write_json
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Message

pytest_plugins = ["chat_run"]  # the fixtures talk_run, talk_recipe and backbone


def test_quit_stops_and_other_commands_are_explained(talk_run: Path) -> None:
    output = talk(talk_run, ["", "/dance", "/quit", "Hi."], policies=["base"])
    assert f"/dance: no such command; there are {', '.join(NAMES)}\n" in output
    assert output.count("\nbase\n") == 0, "nothing may be answered after /quit"


def test_who_is_called_takes_the_conversation_over(talk_run: Path) -> None:
    output = talk(talk_run, ["Hi.", "/use ppo", "And now?"], policies=["base"])
    assert "ppo takes over what was said with base" in output and "ppo: greedy" in output
    (heard,) = answers(output, ("ppo",))["ppo"]
    one = Cast(talk_run)
    base, ppo = one.speaker("base"), one.speaker("ppo")
    base.reply("Hi.", GREEDY)
    ppo.turns = list(base.turns)
    assert heard.startswith(ppo.reply("And now?", GREEDY).text)


def test_who_stays_keeps_their_own_conversation(talk_run: Path) -> None:
    output = talk(talk_run, ["Hi.", "/use ppo sft", "Hi."], policies=["base", "ppo"])
    assert "sft takes over what was said with base" in output
    alone = talk(talk_run, ["Hi.", "Hi."], policies=["ppo"])
    names = ("base", "ppo", "sft")
    assert answers(output, names)["ppo"][1].rstrip() == answers(alone, names)["ppo"][1].rstrip()


def test_checkpoints_and_adapters_of_others_can_be_called(talk_run: Path, talk_recipe: Recipe, tmp_path: Path) -> None:
    import shutil

    mine = tmp_path / "run"
    shutil.copytree(talk_run, mine)
    shutil.copytree(talk_run / "ppo", mine / "ppo" / "checkpoints" / "checkpoint-6")
    shutil.copytree(talk_run / "ppo", tmp_path / "adapter")
    names = ["ppo", "ppo@6", str(tmp_path / "adapter")]
    output = talk(mine, ["/who", "Hi."], policies=names)
    assert "base, sft, ppo, ppo@6\n" in output
    heard = [answers(output, tuple(names))[name][0] for name in names]
    assert heard[0] == heard[1] == heard[2]
    output = talk(mine, ["/use nobody", "/use", "Hi."], policies=["base"])
    assert "nobody: nobody of that name; there are base, sft, ppo, ppo@6" in output
    assert "/use: needs names: base" in output and output.count("\nbase\n") == 1


def test_settings_change_while_one_talks(talk_run: Path) -> None:
    lines = ["/temperature 0.7", "/top-p 0.9", "/top-k 5", "/beam 3", "/max-new-tokens 9", "/greedy", "/settings"]
    output = talk(talk_run, lines, policies=["base"])
    said = [line for line in output.splitlines() if line.startswith("base: ")]
    assert [line.removeprefix("base: ").partition(";")[0] for line in said[1:]] == [
        "temperature 0.7, at most 6 tokens",
        "temperature 0.7, top-p 0.9, at most 6 tokens",
        "temperature 0.7, top-p 0.9, top-k 5, at most 6 tokens",
        "beam search with 3 beams, at most 6 tokens",
        "beam search with 3 beams, at most 9 tokens",
        "greedy, at most 9 tokens",
        "greedy, at most 9 tokens",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/temperature hot", "/temperature: needs a number from 0 to 100, not 'hot'"),
        ("/top-p 1.5", "/top-p: needs a share above 0 and at most 1, not '1.5'"),
        ("/beam 0", "/beam: needs a whole number from 1 to 64, not '0'"),
        ("/seed x", "/seed: needs a whole number from 0 to 2^63 - 1, not 'x'"),
        ("/seed 9223372036854775808", "/seed: needs a whole number from 0 to 2^63 - 1, not '9223372036854775808'"),
        ("/temperature nan", "/temperature: needs a number from 0 to 100, not 'nan'"),
        ("/use 'x", "/use: no closing quotation; a name with a quotation mark in it stands in others"),
        ("/save", "/save: needs a file and perhaps what its rows are, such as talk.jsonl --as prompts"),
        ("/undo", "/undo: nothing was said yet"),
        ("/retry", "/retry: nothing was said yet"),
    ],
)
def test_a_mistake_is_told_and_the_talk_goes_on(talk_run: Path, line: str, said: str) -> None:
    output = talk(talk_run, [line, "Hi."], policies=["base"])
    assert said in output and output.count("\nbase\n") == 1


def test_a_seed_repeats_what_was_drawn(talk_run: Path) -> None:
    manner = Manner(temperature=1.0, max_new_tokens=8)
    said = [
        answers(talk(talk_run, ["Hi."], policies=["base"], manner=manner, seed=seed), ("base",))["base"]
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]
    again = talk(talk_run, ["/seed 1", "Hi."], policies=["base"], manner=manner, seed=2)
    assert answers(again, ("base",))["base"] == said[0]


def test_undo_and_retry(talk_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    output = talk(talk_run, ["Hi.", "What?", "/undo", "/retry", "Bye."], policies=["ppo"], transcript=file)
    assert "taken back, with what was answered: What?" in output
    rows = load(str(file), "demonstration")
    assert [row.prompt[-1].content for row in rows] == ["Hi.", "Bye."]
    assert [turn.content for turn in rows[1].prompt] == ["Hi.", rows[0].completion, "Bye."]


def test_instructions_stand_before_the_conversation(talk_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    talk(talk_run, ["Hi.", "/system", "Hi."], policies=["ppo"], system="Be brief.", transcript=file)
    first, second = load(str(file), "demonstration")
    assert [turn.role for turn in first.prompt] == ["system", "user"] and first.prompt[0].content == "Be brief."
    assert [turn.role for turn in second.prompt] == ["user"]


# -------------------------------------------------------------------- what is taken back, and asked again


def test_undo_reaches_who_has_taken_the_conversation_over(talk_run: Path) -> None:
    output = talk(talk_run, ["Hi.", "/use ppo", "/undo", "Bye."], policies=["base"])
    alone = talk(talk_run, ["Bye."], policies=["ppo"])
    assert answers(output, ("ppo",))["ppo"] == answers(alone, ("ppo",))["ppo"]


def test_after_a_reset_there_is_nothing_to_take_back(talk_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    output = talk(talk_run, ["Hi.", "/reset", "/undo", "/retry"], policies=["base"], transcript=file)
    assert "/undo: nothing was said yet" in output and "/retry: nothing was said yet" in output
    assert len(load(str(file), "demonstration")) == 1, "what was said before a reset stays in the transcript"


def said_by_turns(monkeypatch: pytest.MonkeyPatch, backbone: Backbone, *said: str | None) -> None:
    """Answers that are given one after the other; None is a Ctrl-C."""
    waiting = iter(said)

    def sample(*_: Any, **__: Any) -> list[list[int]]:
        text = next(waiting)
        if text is None:
            raise KeyboardInterrupt
        return [[*backbone.tokenizer(text, add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]]

    monkeypatch.setattr(speaking, "sample", sample)


@pytest.mark.parametrize("nothing", ["", None])
def test_retry_asks_the_question_that_was_not_answered(
    talk_run: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: str | None
) -> None:
    said_by_turns(monkeypatch, backbone, "One.", nothing, "Two.")
    file = tmp_path / "talk.jsonl"
    talk(talk_run, ["First?", "Second?", "/retry"], policies=["base"], transcript=file)
    first, second = load(str(file), "demonstration")
    assert (first.completion, second.completion) == ("One.", "Two.")
    assert [turn.content for turn in second.prompt] == ["First?", "One.", "Second?"]


@pytest.mark.parametrize("nothing", ["", None])
def test_a_retry_that_brings_nothing_loses_nothing(
    talk_run: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: str | None
) -> None:
    said_by_turns(monkeypatch, backbone, "Left.", "Right.", "Other.", nothing, "And.", "So.")
    file = tmp_path / "talk.jsonl"
    output = talk(talk_run, ["First?", "/retry", "Second?"], policies=["base", "ppo"], transcript=file)
    assert "ppo: what was said before stays" in output
    rows = [(row.meta["policy"], row.completion) for row in load(str(file), "demonstration")]
    assert rows == [("base", "Other."), ("ppo", "Right."), ("base", "And."), ("ppo", "So.")]
    *_, base, ppo = load(str(file), "demonstration")
    assert (base.prompt[1].content, ppo.prompt[1].content) == ("Other.", "Right.")


def test_a_question_that_was_too_long_can_be_asked_again(talk_run: Path, backbone: Backbone) -> None:
    long = "rain " * (backbone.context_length // 3)
    room = backbone.context_length - len(
        speaker(backbone)._fitting((Message(role="user", content=long.strip()),), 1)[0]
    )
    assert room > 6
    lines = [f"/max-new-tokens {room + 1}", long, f"/max-new-tokens {min(room, 6)}", "/retry"]
    output = talk(talk_run, lines, policies=["base"])
    assert output.count("shorten what you ask") == 1 and len(answers(output, ("base",))["base"]) == 2


# -------------------------------------------------------------------- who is called


def test_equal_policies_say_the_same_side_by_side(talk_run: Path) -> None:
    manner = Manner(temperature=1.0, max_new_tokens=8)
    said = answers(talk(talk_run, ["Hi.", "Hi."], ["base", "sft", "ppo"], manner), ("base", "sft", "ppo"))
    assert said["base"][0] == said["sft"][0] != said["ppo"][0] and said["base"][0] != said["base"][1]


def test_an_adapter_that_does_not_fit_leaves_no_trace(talk_run: Path, tmp_path: Path) -> None:
    shutil.copytree(talk_run / "ppo", tmp_path / "other model")
    save_file({"stray": torch.zeros(2)}, str(tmp_path / "other model" / "adapter_model.safetensors"))
    lines = [f"/use '{tmp_path / 'other model'}'", "/use ppo", "Hi."]
    output = talk(talk_run, lines, policies=["base"])
    assert "the adapter does not fit" in output
    assert answers(output, ("ppo",)) == answers(talk(talk_run, ["Hi."], policies=["ppo"]), ("ppo",))


def test_checkpoints_of_sft_stand_in_a_folder_of_the_adapters_name(talk_run: Path, tmp_path: Path) -> None:
    shutil.copytree(talk_run, tmp_path / "run")
    shutil.copytree(talk_run / "ppo", tmp_path / "run" / "sft" / "checkpoints" / "checkpoint-12" / "sft")
    assert Cast(tmp_path / "run").names == ["base", "sft", "ppo", "sft@12"]
    said = answers(talk(tmp_path / "run", ["Hi."], policies=["ppo", "sft@12"]), ("ppo", "sft@12"))
    assert said["ppo"] == said["sft@12"]


def test_an_adapter_of_another_base_is_remarked_on(talk_run: Path, tmp_path: Path) -> None:
    shutil.copytree(talk_run / "ppo", tmp_path / "theirs")
    config = tmp_path / "theirs" / "adapter_config.json"
    output = talk(talk_run, [], policies=[str(tmp_path / "theirs")])
    assert "says that it belongs to" not in output
    write_json(config, read_json(config) | {"base_model_name_or_path": "someone/else"})
    output = talk(talk_run, [], policies=[str(tmp_path / "theirs")], width=400)
    assert f"{tmp_path / 'theirs'} says that it belongs to someone/else; here it speaks on tiny/base" in output


# -------------------------------------------------------------------- the list


def test_every_command_of_the_list_is_obeyed(talk_run: Path) -> None:
    assert len(NAMES) == 17
    output = talk(talk_run, [*(name for name in NAMES if name != "/quit"), "/nothing"], policies=["base"])
    assert output.count("no such command") == 1


def test_what_is_a_command() -> None:
    assert command_of("  /TOP_P  0.9 ") == ("/top-p", "0.9")
    assert command_of("/system Be\nbrief.") == ("/system", "Be\nbrief.")
    assert command_of("/etc/hosts is what?") is None and command_of("1 / 2 is what?") is None


def test_settings_are_shown_with_seed_context_and_instructions(talk_run: Path, backbone: Backbone) -> None:
    output = talk(talk_run, ["/settings", "/seed 7", "/system Be brief.", "/settings"], policies=["base"], system=" ")
    assert f"no seed; a context of {backbone.context_length} tokens; no instructions\n" in output
    assert f"seed 7; a context of {backbone.context_length} tokens; instructions: Be brief.\n" in output
