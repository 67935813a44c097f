"""`rlhf-kit evaluate policy` as a user types it, on a run of tiny models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from whole_run import write_adapter

from rlhf_kit.cli import main
from rlhf_kit.evaluation import answering

pytest_plugins = ["whole_run"]  # the fixtures place and run

RUBRIC = """
def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def first(completions, others):
    return [1.0 for _ in completions]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with prompts, functions, texts and questions, and few resamples."""
    prompts = [{"prompt": f"Count to {number}."} for number in ("one", "two", "three", "four")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (tmp_path / "judge.py").write_text(RUBRIC)
    (tmp_path / "text.jsonl").write_text('{"text": "The cat sat on the mat."}\n{"text": "Air scatters blue light."}\n')
    questions = [
        {"question": f"Is a {animal} a fish?", "choices": ["Yes", "No"], "answer": answer}
        for animal, answer in (("whale", 1), ("herring", 0), ("dog", 1))
    ]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(run: Path | str, *words: str) -> int:
    common = ("--prompts", "prompts.jsonl", "--max-new-tokens", "4", "--k", "2", "--resamples", "50")
    return main(["evaluate", "policy", str(run), *words, *common])


def written(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "policies" / "evaluation.json").read_text())
    return found


def test_tables_for_people_and_a_file_for_machines(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--judge", "reward", "--judge", "judge.py:length") == 0
    shown = capsys.readouterr()
    for words in ("reward: the reward model of run", "length: ", "beats SFT", "Bradley–Terry", "KL, nats a response"):
        assert words in shown.out
    assert re.search(r"Base\s+SFT\s+PPO", shown.out)
    assert "wrote" in shown.err
    found = written(run)
    assert found["policies"] == ["base", "sft", "ppo"] and len(found["prompts"]) == 4
    assert [judge["name"] for judge in found["judges"]] == ["reward", "length"]
    lengths = [len(a["text"]) for row in found["prompts"] for a in row["answers"]["ppo"]]
    mean = found["judges"][1]["scores"]["ppo"]["value"]
    assert mean == pytest.approx(sum(lengths) / len(lengths))


def test_the_same_command_again_loads_no_policy(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(run, "--judge", "judge.py:length") == 0
    first = written(run)

    def refuse(*_: Any) -> Any:
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(answering, "load_backbone", refuse)
    assert evaluate(run, "--judge", "judge.py:length") == 0
    assert written(run) == first


def test_json_on_the_terminal_is_the_file_without_the_answers(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, "--judge", "judge.py:length", "--format", "json", "--out", "elsewhere") == 0
    shown = json.loads(capsys.readouterr().out)
    whole = json.loads((here / "elsewhere" / "evaluation.json").read_text())
    assert shown == {key: value for key, value in whole.items() if key != "prompts"}


def test_a_judge_that_sees_two_answers_shows_its_bias(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, "--judge", "judge.py:first", "--limit", "3") == 0
    position = written(run)["judges"][0]["position"]
    assert position["first_preferred"]["value"] == 1.0
    assert "shown first is preferred 100% (100% to 100%) of the time" in capsys.readouterr().out


def test_judges_that_compare_are_shown_no_checkpoints(run: Path, here: Path) -> None:
    import shutil

    folder = run / "ppo" / "checkpoints" / "checkpoint-4"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / "sft" / name, folder / name)
    assert evaluate(run, "--checkpoints", "--judge", "judge.py:first", "--judge", "judge.py:length") == 0
    found = written(run)
    assert found["checkpoints"] == ["ppo@4"] and set(found["judges"][0]["win_rates"]) == {"base", "sft", "ppo"}
    (frontier,) = found["frontier"]
    assert [point["policy"] for point in frontier["points"]] == ["sft", "ppo@4", "ppo"]
    assert set(frontier["points"][0]["scores"]) == {"length"}
    assert found["kl"]["ppo@4"]["value"] == pytest.approx(0, abs=1e-6)


def test_what_it_cost_elsewhere(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--judge", "judge.py:length", "--text", "text.jsonl", "--choices", "choices.jsonl") == 0
    tax = written(run)["tax"]
    assert tax["against"] == "base" and set(tax["text"][0]["loss"]) == {"base", "sft", "ppo"}
    assert set(tax["choices"][0]["change"]) == {"sft", "ppo"}
    shown = capsys.readouterr().out
    assert "what it cost elsewhere" in shown and "text.jsonl, loss: change" in shown


def test_people_rank_what_the_sheet_holds(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--judge", "judge.py:length", "--sheet", "sheet.jsonl") == 0
    assert "--judge sheet.jsonl" in capsys.readouterr().err and not (run / "policies" / "evaluation.json").exists()
    rows = [json.loads(line) for line in (here / "sheet.jsonl").read_text().splitlines()]
    assert rows and "sft" not in json.dumps(rows)
    for row in rows:
        ordered = sorted(row["meta"]["responses"], key=lambda answer: -len(answer["text"]))
        for rank, answer in enumerate(ordered, 1):
            answer["rank"] = rank
    (here / "sheet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(run, "--judge", "people=sheet.jsonl") == 0
    assert written(run)["judges"][0]["name"] == "people"


def test_labels_and_other_adapters(run: Path, here: Path, place: Path) -> None:
    mine = write_adapter(here / "mine", place / "base", seed=9)
    assert evaluate(f"tuned={run}", str(mine), "--judge", "judge.py:length") == 0
    found = written(run)
    assert found["policies"] == ["base", "sft", "tuned", "mine"] and found["labels"]["tuned"] == "tuned"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere/at/all"], "no such directory, and no Hub id"),
        (["RUN"], "no prompts: name a file with --prompts"),
        (["RUN", "--prompts", "missing.jsonl"], "missing.jsonl"),
        (["RUN", "--prompts", "prompts.jsonl", "--judge", "nobody"], "judge nobody: no such file, directory or judge"),
        (["RUN", "--prompts", "prompts.jsonl", "--judge", "rubric"], "judge rubric: "),
        (["RUN", "--prompts", "prompts.jsonl", "--out", "judge.py"], "--out judge.py: is a file"),
        (
            ["RUN", "--prompts", "prompts.jsonl", "--judge", "judge.py:length", "--text", "nothing.jsonl"],
            "nothing.jsonl",
        ),
        (["RUN", "--prompts", "prompts.jsonl", "--temperature", "0"], "temperature 0 would draw the same answer"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["evaluate", "policy", *(str(run) if word == "RUN" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
