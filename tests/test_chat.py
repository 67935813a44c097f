"""Talking to the policies of a run: what they say, what they see of the conversation, and what is seen of them."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_run import GREEDY, answers, speaker, talk
from rich.console import Console

from rlhf_kit import cli
from rlhf_kit.chat import screen, speaking
from rlhf_kit.chat.speaking import Answer, TextStream, printable
from rlhf_kit.errors import CheckpointError, RlhfKitError
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Message

pytest_plugins = ["chat_run"]  # the fixtures talk_run, talk_recipe and backbone


def test_each_policy_answers_as_plain_transformers_does(talk_run: Path, talk_recipe: Recipe) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = answers(talk(talk_run, ["Why is the sky blue?"]), ("base", "sft", "ppo"))
    tokenizer = AutoTokenizer.from_pretrained(talk_recipe.model.name_or_path)
    for name in said:
        model = AutoModelForCausalLM.from_pretrained(talk_recipe.model.name_or_path)
        if name != "base":
            model = PeftModel.from_pretrained(model, str(talk_run / name))
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        out = model.generate(**encoded, max_new_tokens=6, do_sample=False)[0, encoded["input_ids"].size(1) :]
        expected = printable(tokenizer.decode(out, skip_special_tokens=True))
        assert expected.strip(), "a blank answer is shown in another way"
        (heard,) = said[name]
        assert heard.removesuffix("\n").removesuffix(" [cut at 6 tokens]") == expected
    assert said["base"] == said["sft"] != said["ppo"]


def test_one_policy_alone_streams_the_same_answer(talk_run: Path) -> None:
    together = answers(talk(talk_run, ["Hello."]), ("base", "sft", "ppo"))["ppo"]
    alone = answers(talk(talk_run, ["Hello."], policies=["ppo"]), ("ppo",))["ppo"]
    assert alone == together


def test_reset_forgets_and_a_conversation_remembers(talk_run: Path) -> None:
    first, second, anew = answers(talk(talk_run, ["Hi.", "Hi.", "/reset", "Hi."], policies=["ppo"]), ("ppo",))["ppo"]
    assert first == anew.replace("the conversation starts anew\n", "")
    assert "the conversation starts anew" in second and second.splitlines()[0] != first.splitlines()[0]


def test_the_second_turn_sees_the_first(backbone: Backbone) -> None:
    one = speaker(backbone)
    manner = replace(GREEDY, max_new_tokens=4)
    answer = one.reply("Hello.", manner)
    one.reply("And now?", manner)
    assert [turn.role for turn in one.turns] == ["user", "assistant", "user", "assistant"]
    assert one.turns[1].content == answer.text
    ids, dropped = one._fitting((*one.turns[:2], Message(role="user", content="And now?")), 4)
    text = backbone.tokenizer.decode(ids)
    assert dropped == 0 and text.index("Hello.") < text.index(answer.text) < text.index("And now?")


def test_an_empty_answer_does_not_end_the_conversation(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_kit.chat.speaking.sample", lambda *_, **__: [[backbone.tokenizer.eos_token_id]])
    one = speaker(backbone, "base")
    assert one.reply("Hello.", GREEDY).text == ""
    assert one.turns == []


def test_streaming_waits_until_a_character_is_whole(backbone: Backbone) -> None:
    ids = backbone.tokenizer("你好, 🙂 é!", add_special_tokens=False)["input_ids"]
    assert len(ids) > len("你好, 🙂 é!"), "the tokenizer must split characters for this test to mean anything"
    pieces: list[str] = []
    stream = TextStream(backbone, pieces.append)
    for token in ids:
        stream.feed(token)
    stream.end(ids)
    assert "".join(pieces) == "你好, 🙂 é!"
    assert not any("\ufffd" in piece for piece in pieces)


def test_output_steers_neither_the_terminal_nor_rich(
    talk_run: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "\x1b[2J[red]no[/red] [/]\x07"
    ids = [*backbone.tokenizer(said, add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]

    def sample(*_: object, on_token: Any = None, **__: object) -> list[list[int]]:
        for token in ids if on_token else ():
            on_token(token)
        return [ids]

    monkeypatch.setattr("rlhf_kit.chat.speaking.sample", sample)
    for policies in (["ppo"], ["base", "ppo"]):
        output = talk(talk_run, ["Hi."], policies=policies)
        assert "[2J[red]no[/red] [/]\n" in output
        assert "\x1b" not in output and "\x07" not in output


def test_a_wide_terminal_shows_columns(talk_run: Path) -> None:
    output = talk(talk_run, ["Hi."], width=120, terminal=True)
    *_, header = [line for line in output.splitlines() if "base" in line and "ppo" in line and ";" not in line]
    assert header.index("base") < header.index("sft") < header.index("ppo")


def interrupt_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the first answer."""
    whole, calls = speaking.sample, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(speaking, "sample", interrupted)


def test_ctrl_c_during_an_answer_ends_that_answer_only(talk_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(talk(talk_run, ["Bye."], policies=["base"]), ("base",))["base"]
    interrupt_first(monkeypatch)
    output = talk(talk_run, ["Hi.", "Bye."], policies=["base"])
    assert "(stopped: no answer of base is kept." in output
    assert answers(output, ("base",))["base"][1] == plain[0], "as if the first question had not been asked"


def test_piped_through_the_command_line(
    talk_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Hi.\n\xff\n".encode("latin-1")), encoding="utf-8"))
    words = ["chat", str(talk_run), "--policy", "base", "ppo", "--temperature", "0", "--max-new-tokens", "3"]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    assert output.count("\nbase\n") == output.count("\nppo\n") == 2


def test_a_policy_that_is_not_there(talk_run: Path, talk_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished sft or ppo stage"):
        talk(tmp_path, ["Hi."])
    (tmp_path / "sft").symlink_to(talk_run / "sft")
    with pytest.raises(CheckpointError, match=r"has no finished ppo stage; there are base, sft"):
        talk(tmp_path, ["Hi."], policies=["ppo"])


def test_changed_weights_and_foreign_recipes_are_refused(talk_run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(talk_run / "ppo", tmp_path / "ppo")
    manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text())
    (tmp_path / "ppo" / "manifest.json").write_text(json.dumps({**manifest, "recipe": {"colour": "red"}}))
    with pytest.raises(CheckpointError, match="recipe"):
        talk(tmp_path, ["Hi."])
    (tmp_path / "ppo" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="changed since"):
        talk(tmp_path, ["Hi."])


def test_the_oldest_turns_go_whole_and_the_program_says_so(talk_run: Path, backbone: Backbone) -> None:
    one = speaker(backbone, "base")
    one.turns.append(Message(role="system", content="Be brief."))
    for number in range(200):
        one.turns += [Message(role="user", content=f"Question {number}?"), Message(role="assistant", content="Yes.")]
    last = Message(role="user", content="And the last one?")
    ids, dropped = one._fitting((*one.turns, last), 8)
    context = backbone.context_length
    assert dropped > 0 and dropped % 2 == 0 and len(ids) + 8 <= context
    kept = [one.turns[0], *one.turns[1 + dropped :], last]
    messages = [{"role": turn.role, "content": turn.content} for turn in kept]
    whole = backbone.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert backbone.tokenizer.decode(ids) == whole, "a system message stays, turns are dropped whole"
    one_more = [one.turns[0], *one.turns[dropped - 1 :], last]
    messages = [{"role": turn.role, "content": turn.content} for turn in one_more]
    longer = backbone.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert len(longer) + 8 > context, "and no more of them than must go"


def test_a_question_that_does_not_fit_is_refused_and_nothing_is_lost(talk_run: Path) -> None:
    output = talk(talk_run, ["Hi.", "rain " * 5000, "Hi again."], policies=["base"])
    assert "do not fit into the context of" in output and "shorten what you ask" in output
    plain = talk(talk_run, ["Hi.", "Hi again."], policies=["base"])
    assert answers(output, ("base",))["base"][-1] == answers(plain, ("base",))["base"][-1]


def test_who_had_answered_before_ctrl_c_keeps_the_answer(talk_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = speaking.sample, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    plain = talk(talk_run, ["Hi.", "Bye."], policies=["base"])
    monkeypatch.setattr(speaking, "sample", interrupted)
    output = talk(talk_run, ["Hi.", "Bye."], policies=["base", "ppo"])
    assert "(stopped: no answer of ppo is kept." in output
    assert answers(output, ("base", "ppo"))["base"][1] == answers(plain, ("base",))["base"][1]


def test_a_template_that_refuses_instructions_is_told(
    talk_run: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    monkeypatch.setattr(backbone.tokenizer, "chat_template", refusing)
    one = speaker(backbone, "base")
    one.turns.append(Message(role="system", content="Be brief."))
    with pytest.raises(RlhfKitError, match=r"refuses this conversation: System role not supported; /system without"):
        one.reply("Hi.", GREEDY)


# -------------------------------------------------------------------- what is seen


def test_text_of_all_scripts_stays_and_nothing_steers_the_terminal() -> None:
    text = "10\u00a0000\u202f% \u4f60\u597d\u3000\u4e16 \u0645\u06cc\u200c\u0631\n\t\U0001f468\u200d\U0001f469"
    assert printable(text) == text
    assert printable("a\x1b[2J\x07\x9b\r\x85\u202eb\u2066c\x7f") == "a[2Jbc"


def test_a_tokenizer_that_changes_its_mind_loses_nothing() -> None:
    """One that tidies spaces up makes "do n" and "'t" to "don't"."""

    def decode(ids: list[int], **_: Any) -> str:
        return ("do", "do n", "don't", "don't go")[len(ids) - 1]

    pieces: list[str] = []
    stream = TextStream(SimpleNamespace(tokenizer=SimpleNamespace(decode=decode)), pieces.append)  # type: ignore[arg-type]
    for token in range(4):
        stream.feed(token)
    assert stream.end(range(4)) == "don't go"
    assert pieces == ["do", " n", "\n", "don't go"]


def test_columns_show_the_newest_while_they_grow_and_everything_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_PAUSE", -1.0)
    file = io.StringIO()
    console = Console(file=file, width=90, height=12, force_terminal=True, highlight=False)
    frames = []

    def reply(one: Any, on_text: Any) -> Answer:
        for number in range(200):
            before = len(file.getvalue())
            on_text(f"{one.name}{number} ")
            frames.append(file.getvalue()[before:])
        return Answer("", True)

    screen.show(console, [SimpleNamespace(name="left"), SimpleNamespace(name="right")], reply, 9)  # type: ignore[arg-type]
    seen = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame) for frame in frames]
    assert "left199" in seen[199] and "left0 " not in seen[199] and "right0 " in seen[200]
    assert max(frame.count("\n") for frame in seen) < 12, "a frame higher than the terminal cannot be drawn over"
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).rpartition("right ")[2]
    assert all(f"{name}{number} " in last for name in ("left", "right") for number in range(200))
