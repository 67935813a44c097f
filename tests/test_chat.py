"""Talking to the policies of a run: a tiny base, an adapter that changes nothing, and one that changes much."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rlhf_kit import cli
from rlhf_kit.chat import BASE, Speaker, _printable, _TextStream, chat
from rlhf_kit.checkpoint import Manifest, finish
from rlhf_kit.data import Encoder
from rlhf_kit.errors import CheckpointError
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


def talk(run: Path, lines: list[str], width: int = 80, terminal: bool = False, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)
    chat(run, lines, console, **{"temperature": 0.0, "max_new_tokens": 6, **options})
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
        expected = _printable(tokenizer.decode(out, skip_special_tokens=True))
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


def test_the_second_turn_sees_the_first(backbone: Backbone) -> None:
    encoder = Encoder(backbone.tokenizer, max_prompt_length=512)
    speaker = Speaker("ppo", backbone, encoder)
    answer = speaker.reply("Hello.", temperature=0, max_new_tokens=4)
    speaker.reply("And now?", temperature=0, max_new_tokens=4)
    roles = [turn.role for turn in speaker.turns]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert speaker.turns[1].content == answer.text
    text = backbone.tokenizer.decode(encoder.prompt((*speaker.turns[:2], Message(role="user", content="And now?"))))
    assert text.index("Hello.") < text.index(answer.text) < text.index("And now?")


def test_an_empty_answer_does_not_end_the_conversation(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_kit.chat.sample", lambda *_, **__: [[backbone.tokenizer.eos_token_id]])
    speaker = Speaker(BASE, backbone, Encoder(backbone.tokenizer, max_prompt_length=512))
    assert speaker.reply("Hello.", temperature=0, max_new_tokens=4).text == ""
    assert speaker.turns == []


def test_streaming_waits_until_a_character_is_whole(backbone: Backbone) -> None:
    encoder = Encoder(backbone.tokenizer, max_prompt_length=512)
    ids = backbone.tokenizer("你好, 🙂 é!", add_special_tokens=False)["input_ids"]
    assert len(ids) > len("你好, 🙂 é!"), "the tokenizer must split characters for this test to mean anything"
    pieces: list[str] = []
    stream = _TextStream(encoder, pieces.append)
    for token in ids:
        stream.feed(token)
    stream.close()
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

    monkeypatch.setattr("rlhf_kit.chat.sample", sample)
    for policies in (["ppo"], ["base", "ppo"]):
        output = talk(run, ["Hi."], policies=policies)
        assert "[2J[red]no[/red] [/]\n" in output
        assert "\x1b" not in output and "\x07" not in output


def test_a_wide_terminal_shows_columns(run: Path) -> None:
    output = talk(run, ["Hi."], width=120, terminal=True)
    (header,) = [line for line in output.splitlines() if "base" in line and "ppo" in line and "temperature" not in line]
    assert header.index("base") < header.index("sft") < header.index("ppo")


def test_quit_stops_and_other_commands_are_explained(run: Path) -> None:
    output = talk(run, ["", "/help", "/quit", "Hi."], policies=["base"])
    assert "/help: no such command; /reset" in output
    assert output.count("\nbase\n") == 0, "nothing may be answered after /quit"


def test_ctrl_c_ends_it_cleanly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_kit.chat.sample", interrupted)
    assert (
        talk(run, ["Hi.", "Hi."], policies=["base"]).count("base") == 2
    )  # the first line, and the name over no answer


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
