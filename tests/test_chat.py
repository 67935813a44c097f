"""Talking to the policies of a run: a tiny base, an adapter that changes nothing, and one that changes much."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rlhf_kit import cli, load
from rlhf_kit.chat import Manner, Speaker, Start, chat, speaking
from rlhf_kit.chat.cast import Cast
from rlhf_kit.chat.loop import joined
from rlhf_kit.chat.speaking import TextStream, printable
from rlhf_kit.checkpoint import Manifest, finish
from rlhf_kit.errors import CheckpointError, DataError
from rlhf_kit.models import Backbone, load_backbone, lora_config
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Message
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    return Recipe.model_validate({"model": {"name_or_path": str(model), "base_id": "tiny/base", "dtype": "float32"}})


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sft` is an untrained adapter, which changes nothing; `ppo` has weights that change nearly every token."""
    out = tmp_path_factory.mktemp("run")
    backbone = load_backbone(recipe.model)
    backbone.add_adapter("sft", lora_config(recipe.lora))
    backbone.add_adapter("ppo", lora_config(recipe.lora))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in backbone.adapter_parameters("ppo"):
            parameter.normal_(std=0.5)
    for name in ("sft", "ppo"):
        work = out / f".{name}.partial"
        backbone.save_adapter(name, work)
        finish(work, out / name, Manifest(name, {}, {}, 0.0, {}, {}, recipe.model_dump(mode="json")))
    return out


@pytest.fixture(scope="module")
def backbone(recipe: Recipe, run: Path) -> Backbone:
    backbone = load_backbone(recipe.model)
    for name in ("sft", "ppo"):
        backbone.load_adapter(name, run / name)
    return backbone


GREEDY = Manner(temperature=0.0, max_new_tokens=6)


def talk(
    run: Path,
    lines: Iterable[str],
    policies: Sequence[str] = (),
    manner: Manner = GREEDY,
    width: int = 80,
    terminal: bool = False,
    **options: Any,
) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)
    chat(run, lines, console, Start(tuple(policies), manner, **options))
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def answers(output: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in names}
    current = ""
    for line in output.splitlines()[1:]:
        if line in names:
            current = line
            found[current].append("")
        elif current:
            found[current][-1] += line + "\n"
    return found


def test_each_policy_answers_as_plain_transformers_does(run: Path, recipe: Recipe) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said = answers(talk(run, ["Why is the sky blue?"]), ("base", "sft", "ppo"))
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.name_or_path)
    for name in said:
        model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path)
        if name != "base":
            model = PeftModel.from_pretrained(model, str(run / name))
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        out = model.generate(**encoded, max_new_tokens=6, do_sample=False)[0, encoded["input_ids"].size(1) :]
        expected = printable(tokenizer.decode(out, skip_special_tokens=True))
        assert expected.strip(), "a blank answer is shown in another way"
        (heard,) = said[name]
        assert heard.removesuffix("\n").removesuffix(" [cut at 6 tokens]") == expected
    assert said["base"] == said["sft"] != said["ppo"]


def test_one_policy_alone_streams_the_same_answer(run: Path) -> None:
    together = answers(talk(run, ["Hello."]), ("base", "sft", "ppo"))["ppo"]
    alone = answers(talk(run, ["Hello."], policies=["ppo"]), ("ppo",))["ppo"]
    assert alone == together


def test_reset_forgets_and_a_conversation_remembers(run: Path) -> None:
    first, second, anew = answers(talk(run, ["Hi.", "Hi.", "/reset", "Hi."], policies=["ppo"]), ("ppo",))["ppo"]
    assert first == anew.replace("the conversation starts anew\n", "")
    assert "the conversation starts anew" in second and second.splitlines()[0] != first.splitlines()[0]


def speaker(backbone: Backbone, name: str = "ppo") -> Speaker:
    return Speaker(name, None if name == "base" else name, backbone)


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
    run: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "\x1b[2J[red]no[/red] [/]\x07"
    ids = [*backbone.tokenizer(said, add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]

    def sample(*_: object, on_token: Any = None, **__: object) -> list[list[int]]:
        for token in ids if on_token else ():
            on_token(token)
        return [ids]

    monkeypatch.setattr("rlhf_kit.chat.speaking.sample", sample)
    for policies in (["ppo"], ["base", "ppo"]):
        output = talk(run, ["Hi."], policies=policies)
        assert "[2J[red]no[/red] [/]\n" in output
        assert "\x1b" not in output and "\x07" not in output


def test_a_wide_terminal_shows_columns(run: Path) -> None:
    output = talk(run, ["Hi."], width=120, terminal=True)
    *_, header = [line for line in output.splitlines() if "base" in line and "ppo" in line and ";" not in line]
    assert header.index("base") < header.index("sft") < header.index("ppo")


def test_quit_stops_and_other_commands_are_explained(run: Path) -> None:
    output = talk(run, ["", "/dance", "/quit", "Hi."], policies=["base"])
    assert "/dance: no such command; /help shows" in output
    assert output.count("\nbase\n") == 0, "nothing may be answered after /quit"


def interrupt_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the first answer."""
    whole, calls = speaking.sample, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(speaking, "sample", interrupted)


def test_ctrl_c_during_an_answer_ends_that_answer_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = answers(talk(run, ["Bye."], policies=["base"]), ("base",))["base"]
    interrupt_first(monkeypatch)
    output = talk(run, ["Hi.", "Bye."], policies=["base"])
    assert "(stopped; this answer is not kept" in output
    assert answers(output, ("base",))["base"][1] == plain[0], "as if the first question had not been asked"


def test_ctrl_c_at_the_prompt_ends_it_and_loses_nothing(run: Path, tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "Hi."
        raise KeyboardInterrupt

    file = tmp_path / "talk.jsonl"
    talk(run, lines(), policies=["base"], transcript=file)
    assert len(load(str(file), "demonstration")) == 1


def test_piped_through_the_command_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Hi.\n\xff\n".encode("latin-1")), encoding="utf-8"))
    words = ["chat", str(run), "--policy", "base", "ppo", "--temperature", "0", "--max-new-tokens", "3"]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    assert output.count("\nbase\n") == output.count("\nppo\n") == 2


def test_a_policy_that_is_not_there(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished sft or ppo stage"):
        talk(tmp_path, ["Hi."])
    (tmp_path / "sft").symlink_to(run / "sft")
    with pytest.raises(CheckpointError, match=r"has no finished ppo stage; there are base, sft"):
        talk(tmp_path, ["Hi."], policies=["ppo"])


def test_changed_weights_and_foreign_recipes_are_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "ppo", tmp_path / "ppo")
    manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text())
    (tmp_path / "ppo" / "manifest.json").write_text(json.dumps({**manifest, "recipe": {"colour": "red"}}))
    with pytest.raises(CheckpointError, match="recipe"):
        talk(tmp_path, ["Hi."])
    (tmp_path / "ppo" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="changed since"):
        talk(tmp_path, ["Hi."])


# -------------------------------------------------------------------- the context


def test_the_oldest_turns_go_whole_and_the_program_says_so(run: Path, backbone: Backbone) -> None:
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


def test_turns_that_are_no_longer_seen_are_told_and_kept_in_the_transcript(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    lines = [f"Tell me a story about number {number} and {'rain ' * 60}" for number in range(12)]
    output = talk(run, lines, policies=["ppo"], transcript=file)
    assert "ppo no longer sees the first 2 turns: its context is full" in output
    rows = load(str(file), "demonstration")
    assert len(rows[-1].prompt) == 2 * (len(rows) - 1) + 1


def test_a_question_that_does_not_fit_is_refused_and_nothing_is_lost(run: Path) -> None:
    output = talk(run, ["Hi.", "rain " * 5000, "Hi again."], policies=["base"])
    assert "do not fit into the context of" in output and "shorten what you ask" in output
    plain = talk(run, ["Hi.", "Hi again."], policies=["base"])
    assert answers(output, ("base",))["base"][-1] == answers(plain, ("base",))["base"][-1]


# -------------------------------------------------------------------- who speaks, and how


def test_who_is_called_takes_the_conversation_over(run: Path) -> None:
    output = talk(run, ["Hi.", "/use ppo", "And now?"], policies=["base"])
    assert "ppo takes over what was said with base" in output and "ppo: greedy" in output
    (heard,) = answers(output, ("ppo",))["ppo"]
    one = Cast(run)
    base, ppo = one.speaker("base"), one.speaker("ppo")
    base.reply("Hi.", GREEDY)
    ppo.turns = list(base.turns)
    assert heard.startswith(ppo.reply("And now?", GREEDY).text)


def test_who_stays_keeps_their_own_conversation(run: Path) -> None:
    output = talk(run, ["Hi.", "/use ppo sft", "Hi."], policies=["base", "ppo"])
    assert "sft takes over what was said with base" in output
    alone = talk(run, ["Hi.", "Hi."], policies=["ppo"])
    names = ("base", "ppo", "sft")
    assert answers(output, names)["ppo"][1].rstrip() == answers(alone, names)["ppo"][1].rstrip()


def test_checkpoints_and_adapters_of_others_can_be_called(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    import shutil

    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    shutil.copytree(run / "ppo", mine / "ppo" / "checkpoints" / "checkpoint-6")
    shutil.copytree(run / "ppo", tmp_path / "adapter")
    names = ["ppo", "ppo@6", str(tmp_path / "adapter")]
    output = talk(mine, ["/who", "Hi."], policies=names)
    assert "base, sft, ppo, ppo@6\n" in output
    heard = [answers(output, tuple(names))[name][0] for name in names]
    assert heard[0] == heard[1] == heard[2]
    output = talk(mine, ["/use nobody", "/use", "Hi."], policies=["base"])
    assert "nobody: nobody of that name; there are base, sft, ppo, ppo@6" in output
    assert "/use: needs names: base" in output and output.count("\nbase\n") == 1


def test_settings_change_while_one_talks(run: Path) -> None:
    lines = ["/temperature 0.7", "/top-p 0.9", "/top-k 5", "/beam 3", "/max-new-tokens 9", "/greedy", "/settings"]
    output = talk(run, lines, policies=["base"])
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
        ("/temperature hot", "/temperature: needs a number from 0, not 'hot'"),
        ("/top-p 1.5", "/top-p: needs a share above 0 and at most 1, not '1.5'"),
        ("/beam 0", "/beam: needs a whole number from 1 to 64, not '0'"),
        ("/seed x", "/seed: needs a whole number from 0, not 'x'"),
        ("/save", "/save: needs a file, such as talk.jsonl"),
        ("/undo", "/undo: nothing was said yet"),
        ("/retry", "/retry: nothing was said yet"),
    ],
)
def test_a_mistake_is_told_and_the_talk_goes_on(run: Path, line: str, said: str) -> None:
    output = talk(run, [line, "Hi."], policies=["base"])
    assert said in output and output.count("\nbase\n") == 1


def test_a_seed_repeats_what_was_drawn(run: Path) -> None:
    manner = Manner(temperature=1.0, max_new_tokens=8)
    said = [
        answers(talk(run, ["Hi."], policies=["base"], manner=manner, seed=seed), ("base",))["base"]
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]
    again = talk(run, ["/seed 1", "Hi."], policies=["base"], manner=manner, seed=2)
    assert answers(again, ("base",))["base"] == said[0]


def test_undo_and_retry(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    output = talk(run, ["Hi.", "What?", "/undo", "/retry", "Bye."], policies=["ppo"], transcript=file)
    assert "the last question and what was answered are taken back" in output
    rows = load(str(file), "demonstration")
    assert [row.prompt[-1].content for row in rows] == ["Hi.", "Bye."]
    assert [turn.content for turn in rows[1].prompt] == ["Hi.", rows[0].completion, "Bye."]


def test_instructions_stand_before_the_conversation(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    talk(run, ["Hi.", "/system", "Hi."], policies=["ppo"], system="Be brief.", transcript=file)
    first, second = load(str(file), "demonstration")
    assert [turn.role for turn in first.prompt] == ["system", "user"] and first.prompt[0].content == "Be brief."
    assert [turn.role for turn in second.prompt] == ["user"]


# -------------------------------------------------------------------- what is typed, what is kept


def test_lines_that_belong_together_are_one() -> None:
    typed = ["one", "two \\", "three", '"""four', "", 'five"""', '"""six"""', "seven\\"]
    assert list(joined(typed)) == ["one", "two \nthree", "four\n\nfive", "six", "seven"]


def test_a_talk_is_saved_as_demonstrations_or_prompts_that_pass_the_validator(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demonstrations, prompts = tmp_path / "d.jsonl", tmp_path / "p.jsonl"
    lines = ["Hi.", "And now?", f"/save {prompts} prompts"]
    output = talk(run, lines, policies=["base", "ppo"], transcript=demonstrations)
    rows = load(str(demonstrations), "demonstration")
    assert [row.meta["policy"] for row in rows] == ["base", "ppo", "base", "ppo"]
    assert rows[0].meta == {"policy": "base", "run": run.name, "sampling": "greedy, at most 6 tokens"}
    assert rows[2].prompt[1].content == rows[0].completion
    asked = load(str(prompts), "prompt")
    assert len(asked) == 3, "both were asked the same first question"
    assert f"wrote 3 prompts to {prompts}" in " ".join(output.split())
    assert cli.main(["validate", str(demonstrations), "--schema", "demonstration"]) == 0
    assert cli.main(["validate", str(prompts), "--schema", "prompt"]) == 0


def test_a_transcript_that_cannot_be_written_is_told_before_anything_is_said(run: Path, tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        raise AssertionError("asked for a line")
        yield ""

    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "talk.jsonl"):
        with pytest.raises(DataError, match=r"is a directory|cannot be written"):
            talk(run, lines(), policies=["base"], transcript=place)


def test_the_command_has_all_settings(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi.\n"))
    file = tmp_path / "talk.jsonl"
    words = ["--policy", "ppo", "--beam", "2", "--max-new-tokens", "3", "--system", "Be brief.", "--seed", "3"]
    assert cli.main(["chat", str(run), *words, "--transcript", str(file), "--as", "prompts"]) == 0
    assert "beam search with 2 beams, at most 3 tokens" in capsys.readouterr().out
    (row,) = load(str(file), "prompt")
    assert [turn.role for turn in row.prompt] == ["system", "user"]
