"""What was said, as records: nothing is lost, and nothing is written over."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_run import talk

from rlhf_kit import cli, load
from rlhf_kit.chat import speaking
from rlhf_kit.errors import DataError

pytest_plugins = ["chat_run"]  # the fixtures talk_run, talk_recipe and backbone


def test_ctrl_c_at_the_prompt_ends_it_and_loses_nothing(talk_run: Path, tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "Hi."
        raise KeyboardInterrupt

    file = tmp_path / "talk.jsonl"
    talk(talk_run, lines(), policies=["base"], transcript=file)
    assert len(load(str(file), "demonstration")) == 1


def test_turns_that_are_no_longer_seen_are_told_and_kept_in_the_transcript(talk_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    lines = [f"Tell me a story about number {number} and {'rain ' * 60}" for number in range(12)]
    output = talk(talk_run, lines, policies=["ppo"], transcript=file)
    assert "ppo no longer sees the first 2 turns: its context is full" in output
    rows = load(str(file), "demonstration")
    assert len(rows[-1].prompt) == 2 * (len(rows) - 1) + 1


def test_a_talk_is_saved_as_demonstrations_or_prompts_that_pass_the_validator(
    talk_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demonstrations, prompts = tmp_path / "d.jsonl", tmp_path / "p.jsonl"
    lines = ["Hi.", "And now?", f"/save {prompts} --as prompts"]
    output = talk(talk_run, lines, policies=["base", "ppo"], transcript=demonstrations)
    rows = load(str(demonstrations), "demonstration")
    assert [row.meta["policy"] for row in rows] == ["base", "ppo", "base", "ppo"]
    assert rows[0].meta == {
        "policy": "base",
        "run": talk_run.name,
        "sampling": "greedy, at most 6 tokens",
        "ended": False,
    }
    assert rows[2].prompt[1].content == rows[0].completion
    asked = load(str(prompts), "prompt")
    assert len(asked) == 3, "both were asked the same first question"
    assert f"wrote 3 prompts to {prompts}" in " ".join(output.split())
    assert cli.main(["validate", str(demonstrations), "--schema", "demonstration"]) == 0
    assert cli.main(["validate", str(prompts), "--schema", "prompt"]) == 0


def test_a_transcript_that_cannot_be_written_is_told_before_anything_is_said(talk_run: Path, tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        raise AssertionError("asked for a line")
        yield ""

    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "talk.jsonl"):
        with pytest.raises(DataError, match=r"is a directory|cannot be written"):
            talk(talk_run, lines(), policies=["base"], transcript=place)


def test_the_command_has_all_settings(
    talk_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi.\n"))
    file = tmp_path / "talk.jsonl"
    words = ["--policy", "ppo", "--beam", "2", "--max-new-tokens", "3", "--system", "Be brief.", "--seed", "3"]
    assert cli.main(["chat", str(talk_run), *words, "--transcript", str(file), "--as", "prompts"]) == 0
    assert "beam search with 2 beams, at most 3 tokens" in capsys.readouterr().out
    (row,) = load(str(file), "prompt")
    assert [turn.role for turn in row.prompt] == ["system", "user"]


def test_the_transcript_is_kept_after_every_answer(talk_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    rows = []

    def lines() -> Iterator[str]:
        yield "Hi."
        rows.append(len(load(str(file), "demonstration")))
        yield "Bye."
        rows.append(len(load(str(file), "demonstration")))
        yield "/undo"
        rows.append(len(load(str(file), "demonstration")))
        yield "/undo"
        rows.append(file.exists())

    output = talk(talk_run, lines(), policies=["base"], transcript=file)
    assert rows == [1, 2, 1, False] and "wrote" not in output


def test_no_file_is_written_over_but_ones_own(talk_run: Path, tmp_path: Path) -> None:
    old, mine = tmp_path / "old.jsonl", tmp_path / "mine.jsonl"
    old.write_text("years of work")
    with pytest.raises(DataError, match="is there already"):
        talk(talk_run, ["Hi."], policies=["base"], transcript=old)
    lines = [f"/save {mine}", "Hi.", f"/save {old}", f"/save {mine}", "Bye.", f"/save {mine} prompts"]
    output = " ".join(talk(talk_run, lines, policies=["base"], width=1000).split())
    assert old.read_text() == "years of work" and "is there already, and no talk is written over" in output
    assert "/save: nothing was said yet" in output
    assert f"wrote 1 demonstration to {mine}; 1 of them cut at the most tokens" in output
    assert f"wrote 2 prompts to {mine}" in output and len(load(str(mine), "prompt")) == 2


@pytest.mark.parametrize("name", ["talk.csv", "talk", "talk.json"])
def test_a_name_that_could_not_be_read_again_is_refused(talk_run: Path, tmp_path: Path, name: str) -> None:
    output = talk(talk_run, ["Hi.", f"/save {tmp_path / name}"], policies=["base"])
    assert "holds one object a line; name it .jsonl" in output and not (tmp_path / name).exists()


def test_a_transcript_that_can_no_longer_be_written_is_told_once_and_saved_elsewhere(
    talk_run: Path, tmp_path: Path
) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other.jsonl"

    def lines() -> Iterator[str]:
        folder.rmdir()
        folder.write_text("")
        yield from ("Hi.", "Bye.", f"/save {other}")

    heard: list[str] = []
    with pytest.raises(DataError, match="cannot be written"):
        talk(talk_run, lines(), policies=["base"], transcript=folder / "talk.jsonl", heard=heard)
    assert "".join(heard).count("/save FILE writes what was said elsewhere") == 1
    assert len(load(str(other), "demonstration")) == 2


def test_questions_are_prompts_also_where_nobody_answered(
    talk_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(speaking, "sample", interrupted)
    file = tmp_path / "talk.jsonl"
    talk(talk_run, ["Hi.", "Bye."], policies=["base"], transcript=file, kind="prompts")
    assert [row.prompt[0].content for row in load(str(file), "prompt")] == ["Hi.", "Bye."]
