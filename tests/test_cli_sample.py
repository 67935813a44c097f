"""`rlhf-kit sample` as it is typed, with a reward model that counts letters in the place of a real one."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_sampling import QUESTIONS, Letters, oracle, rows_of, stage, stirred, write
from tiny import make_tiny_model

from rlhf_kit import files
from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.cli import main
from rlhf_kit.recipe import Recipe

FEW = ["--k", "3", "--max-new-tokens", "6"]


@pytest.fixture(autouse=True)
def _untouched_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    changes = {"seed": 5, "evaluate": {"samples_per_prompt": 2}, "ppo": {"response_length": 4}}
    return Recipe.model_validate(
        {"model": {"name_or_path": str(model), "base_id": "tiny/base", "dtype": "float32"}, **changes}
    )


@pytest.fixture
def run(recipe, tmp_path):
    backbone = stirred(recipe, 1, 2, 3)
    for number, name in enumerate(("sft", "reward", "ppo"), 1):
        stage(backbone, recipe, f"a{number}", tmp_path / "run", name)
    (tmp_path / "run" / "reward" / "head.safetensors").touch()  # it is never loaded here
    folder = tmp_path / "run" / "sft" / "checkpoints"
    backbone.save_adapter("a2", folder / "checkpoint-4" / "sft")
    backbone.save_adapter("a1", folder / "checkpoint-8" / "sft")
    return tmp_path / "run"


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", [{"prompt": question} for question in QUESTIONS])


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """A stand-in for the reward model; what was loaded stands in the list."""
    loaded = []

    def opened(name):
        loaded.append(name)
        return Letters()

    monkeypatch.setitem(sys.modules, "rlhf_kit.reward_model", SimpleNamespace(RewardModel=SimpleNamespace(open=opened)))
    return loaded


def account_of(capsys, *words):
    assert main([*map(str, ("sample", *words, "--format", "json"))]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_answers_of_the_last_policy_without_a_reward_model(run, prompts, capsys, asked):
    account = account_of(capsys, run, "--prompts", prompts, *FEW)
    assert account["file"] == str(run / "answers.ppo.jsonl") and set(account["kept"]) == {"ppo"}
    assert (account["rows"], account["answers"], account["score"]) == (6, 18, None)
    assert len(files.load(account["file"], "prompt")) == 6 and asked == []


def test_the_recipe_says_what_nobody_types(run, prompts, capsys):
    account = account_of(capsys, run, "--prompts", prompts)
    assert account["answers"] == 12 and account["tokens"] <= 4
    before = Path(account["file"]).read_bytes()
    account_of(capsys, run, "--prompts", prompts, "--seed", "5", "--k", "2", "--max-new-tokens", "4")
    assert Path(account["file"]).read_bytes() == before
    account_of(capsys, run, "--prompts", prompts, "--seed", "6")
    assert Path(account["file"]).read_bytes() != before


def test_the_best_by_the_runs_own_reward_model(run, prompts, capsys, asked, tmp_path):
    out = tmp_path / "new" / "best.jsonl.gz"
    words = ["--prompts", prompts, *FEW, "--policy", "base", "--best-of"]
    account = account_of(capsys, run, *words, "--out", out)
    assert asked == [str(run / "reward")]
    rows = files.load(str(out), "demonstration")
    assert len(rows) == account["rows"] and set(account["kept"]) == {"base"}
    assert all(row.meta["score"] == pytest.approx(oracle(row.completion), abs=1e-6) for row in rows)
    account = account_of(capsys, run / "sft", *words[:-3], "--best-of")
    assert account["file"] == str(run / "best.sft.jsonl"), "a stage's own policy, written into its run"


def test_the_reward_model_of_another_run_or_of_the_hub(run, prompts, capsys, asked, tmp_path):
    (run / "reward").rename(tmp_path / "reward")
    words = ["sample", str(run), "--prompts", prompts, *FEW, "--rank"]
    assert main(words) == 2
    assert "has no finished reward stage; name another run's with --reward" in capsys.readouterr().err
    for name in (tmp_path, tmp_path / "reward"):
        account_of(capsys, *words[1:], "--reward", name)
    assert asked == [str(tmp_path / "reward")] * 2
    account = account_of(capsys, *words[1:], "--reward", "someone/scores")
    assert asked[2:] == ["someone/scores"]
    assert account["file"] == str(run / "ranked.ppo.jsonl")
    assert {row.labeler for row in files.load(account["file"], "ranking")} == {"reward:someone/scores"}


def test_scores_stand_beside_all_answers_if_a_reward_model_is_named(run, prompts, capsys):
    account = account_of(capsys, run, "--prompts", prompts, *FEW, "--reward", run)
    responses = [r for row in rows_of(account["file"]) for r in row["meta"]["responses"]]
    assert all(r["score"] == pytest.approx(oracle(r["text"]), abs=1e-6) for r in responses)
    assert account["score"] == account["kept_score"] and account["reward"] == "run"


def test_the_account_in_words(run, prompts, capsys):
    assert main(["sample", str(run), "--prompts", prompts, *FEW, "--best-of"]) == 0
    said = capsys.readouterr().out
    for words in (
        "prompts",
        "answers by ppo",
        "mean score by run",
        "of the best ones",
        "demonstrations out",
        f"wrote {run}/best.ppo.jsonl\n",
    ):
        assert words in said


def test_checkpoints_are_compared_and_one_is_chosen(run, prompts, capsys, asked):
    words = [run, "--prompts", prompts, *FEW, "--checkpoints"]
    before = read_manifest(run / "sft")
    found = account_of(capsys, *words)
    assert [row["name"] for row in found["standings"]] == ["checkpoint-4", "checkpoint-8"]
    assert found["best"] == max(found["standings"], key=lambda row: row["score"]["value"])["name"]
    assert found["chosen"] is None and found["file"] == str(run / "sft.checkpoints.json")
    assert read_manifest(run / "sft") == before and len(asked) == 1
    chosen = account_of(capsys, *words, "--choose")
    assert chosen["chosen"] == found["best"] and len(asked) == 1, "what was compared is not compared again"
    assert main(["sample", *map(str, words), "--choose"]) == 0
    said = capsys.readouterr().out
    assert f"scored by run on 6 prompts, 3 answers to each; the best: {found['best']}" in said
    for row in found["standings"]:
        score = row["score"]
        line = next(line for line in said.splitlines() if line.startswith(row["name"]))
        assert f" {score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}] " in line
    assert "was that already" in said


def test_the_worse_last_adapter_is_replaced(run, prompts, capsys, monkeypatch):
    class Backwards(Letters):
        def score(self, prompts, responses, **options):
            return -super().score(prompts, responses, **options)

    words = [run, "--prompts", prompts, *FEW, "--checkpoints", "--choose"]
    best = account_of(capsys, *words)["best"]
    loader = SimpleNamespace(open=lambda name: Backwards())
    monkeypatch.setitem(sys.modules, "rlhf_kit.reward_model", SimpleNamespace(RewardModel=loader))
    (run / "sft.checkpoints.json").unlink()
    hashes = read_manifest(run / "sft").files
    other = account_of(capsys, *words)["best"]
    assert {best, other} == {"checkpoint-4", "checkpoint-8"}
    after = read_manifest(run / "sft")
    assert after.files != hashes and after.metrics["chosen_checkpoint"] == other
    assert (run / "sft.previous-1").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--choose"], "--choose goes with --checkpoints"),
        (["--temperature", "0"], "use --k 1"),
        (["--checkpoints", "--policy", "ppo"], "those of the SFT stage"),
        (["--out", "prompts.jsonl/answers.jsonl"], "answers.jsonl: cannot be written"),
        (["--checkpoints", "--out", "prompts.jsonl/checkpoints.json"], "checkpoints.json: cannot be written"),
    ],
)
def test_what_cannot_be_ends_with_2(run, prompts, capsys, monkeypatch, words, said):
    monkeypatch.chdir(Path(prompts).parent)
    assert main(["sample", str(run), "--prompts", prompts, *FEW, *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--seed=x", "must be a whole number, 0 or more"),
        ("--take=1.5", "must be a whole number, 1 or more"),
        ("--temperature=hot", "must be a number, 0 or more"),
    ],
)
def test_what_is_no_number_is_told_in_words(run, prompts, capsys, option, said):
    with pytest.raises(SystemExit) as end:
        main(["sample", str(run), "--prompts", prompts, option])
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_reward_model_that_is_nowhere_is_told_at_once(run, prompts, capsys):
    assert main(["sample", str(run), "--prompts", prompts, *FEW, "--best-of", "--reward", "no where"]) == 2
    assert "no where: no such directory, and no Hub id" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["x", "4..", "..4", "4..9..12", ""])
def test_a_number_of_answers_is_one_or_a_range(run, prompts, capsys, words):
    with pytest.raises(SystemExit) as end:
        main(["sample", str(run), "--prompts", prompts, f"--k={words}"])
    assert end.value.code == 2
    assert "--k: must be a number such as 6, or a range such as 4..9" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--k", "0"], ["--seed", "-1"], ["--best-of", "--rank"], ["--temperature", "-1"]])
def test_wrong_usage_ends_with_2(run, prompts, words):
    with pytest.raises(SystemExit) as end:
        main(["sample", str(run), "--prompts", prompts, *words])
    assert end.value.code == 2


def test_places_and_rows_that_are_wrong(run, tmp_path, capsys):
    source = write(tmp_path / "bad.jsonl", [{"prompt": "Why?"}, {"prompt": ""}, {"question": "How?"}])
    assert main(["sample", str(tmp_path / "nowhere"), "--prompts", source]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert main(["sample", str(run), "--prompts", source]) == 2
    said = capsys.readouterr().err
    assert f"{source}:2" in said and f"{source}:3" in said
    assert main(["sample", str(run), "--prompts", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_ctrl_c_leaves_what_was_drawn_for_the_same_command(run, prompts, capsys, monkeypatch):
    words = ["sample", str(run), "--prompts", prompts, *FEW, "--best-of"]
    score = Letters.score

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Letters, "score", interrupted)
    assert main(words) == 130
    assert (run / ".best.ppo.jsonl.partial").is_dir() and not (run / "best.ppo.jsonl").exists()
    monkeypatch.setattr(Letters, "score", score)
    monkeypatch.setattr("rlhf_kit.sampling.drawing.sample_in_batches", None)  # nothing may be drawn
    assert main(words) == 0
    assert (run / "best.ppo.jsonl").is_file() and not (run / ".best.ppo.jsonl.partial").exists()
