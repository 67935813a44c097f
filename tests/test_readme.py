"""Every command and example of README.md is run: here, in test_scripts.py, or by .ci/run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from docs_page import blocks, commands
from labelers import labelers
from tiny_recipe import write_recipe

from rlhf_kit import Recipe, cli, load
from rlhf_kit.labeling import serving
from rlhf_kit.labeling.replies import AnswerReply, RankReply
from rlhf_kit.labeling.tasks import Task

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def the_recipe() -> dict[str, object]:
    return yaml.safe_load(blocks(ENGLISH, "yaml")[0])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as README's reader has it: the files that it names, with a tiny model in the place of the Hub's."""
    directory = tmp_path_factory.mktemp("readme")
    tiny = yaml.safe_load(write_recipe(directory).read_text())
    recipe = the_recipe()
    mine = recipe["data"]
    for field, source in (("demonstrations", "demonstrations"), ("prompts", "prompts"), ("prompts_heldout", "heldout")):
        shutil.copyfile(directory / f"{source}.jsonl", directory / mine[field])
    example = json.loads(blocks(ENGLISH, "json")[0])
    rankings = (directory / "rankings.jsonl").read_text() + json.dumps(example) + "\n"
    (directory / mine["rankings"]).write_text(rankings)
    others = (directory / "rankings.jsonl").read_text().replace('"prompt": "', '"prompt": "weather story ')
    (directory / "my_heldout_rankings.jsonl").write_text(others)
    said = "\n\nHuman: What is {0} plus {0}?\n\nAssistant: {1}"
    pairs = [{"chosen": said.format(n, 2 * n), "rejected": said.format(n, "No idea.")} for n in range(30)]
    pairs[7]["chosen"] = "\n\nHuman: What?\n\nAssistant: It."
    (directory / "their_pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe["model"] = tiny["model"]
    # The defaults are for real models; a tiny one needs larger steps, and fewer of them do here.
    recipe |= {"sft": {"learning_rate": 1e-2}, "reward": {"learning_rate": 5e-3}}
    recipe["ppo"] = {"total_episodes": 32, "response_length": 8}
    (directory / "my_recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory


def test_every_command_is_run_somewhere() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    scripts = (ROOT / "tests" / "test_scripts.py").read_text()
    for command in commands(ENGLISH):
        program, *rest = shlex.split(command)
        if program == "make":
            assert f"make {rest[0]}" in ci, command
        elif "rlhf_kit" in rest:  # by a launch file: tests/slow/test_launched.py starts a run with each kind
            file = rest[rest.index("--config_file") + 1]
            assert program == "accelerate" and (ROOT / file).is_file(), command
        elif program in ("python", "accelerate"):
            assert rest[-1].startswith("recipes/") and (ROOT / rest[-1]).is_file() and "accelerate" in scripts, command
        else:
            assert program == "rlhf-kit", command


@contextlib.contextmanager
def people(desk: Path, argv: list[str]) -> Iterator[None]:
    """Who answers on the page while a command that asks them runs."""
    asking = {
        "label": ("new_rankings.sqlite", ("anna", "ben")),
        "round": ("runs/mine/round-1/labels.sqlite", ("labeler",)),
    }
    if argv[0] not in asking:
        yield
        return
    file, names = asking[argv[0]]
    (desk / file).parent.mkdir(parents=True, exist_ok=True)
    with labelers(desk / file, dict.fromkeys(names, longest_first)) as done:
        yield
    assert set(done) == set(names)


def longest_first(task: Task, order: tuple[int, ...]) -> RankReply:
    texts = [task.candidates[place].text for place in order]
    lengths = sorted({len(text) for text in texts}, reverse=True)
    ranks = {chr(65 + n): AnswerReply(rank=lengths.index(len(text)) + 1) for n, text in enumerate(texts)}
    return RankReply(answers=ranks)


def test_the_kits_own_commands_run_in_order(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "stdin", io.StringIO("small green river\n"))
    mine = [shlex.split(c)[1:] for c in commands(ENGLISH) if c.startswith("rlhf-kit")]
    of_data = {"validate", "convert", "stats", "curate"}
    of_rewards = {"evaluate", "score", "sample", "label", "round", "rounds"}
    assert {argv[0] for argv in mine} == of_data | of_rewards | {"run", "plan", "chat", "export", "report", "doctor"}
    said = ""
    monkeypatch.setattr(serving, "_LINGER", 0.5)
    for argv in mine:
        with people(desk, argv):
            assert cli.main(argv) == 0, (argv, capsys.readouterr().err[-2000:])
        said += capsys.readouterr().out
    (shown,) = blocks(ENGLISH, "text")
    assert " ".join(shown.split()) in " ".join(said.split())
    assert (desk / "not_used.jsonl").read_bytes() == (desk / "their_pairs.jsonl").read_bytes().splitlines(True)[7]
    parts = [(desk / f"curated.{part}.jsonl").read_text().count("\n") for part in ("train", "heldout")]
    assert min(parts) > 0 and sum(parts) + (desk / "removed.jsonl").read_text().count("\n") == 29
    assert (desk / "runs/mine/report.html").is_file() and (desk / "runs/other/ppo/manifest.json").is_file()
    assert json.loads((desk / "runs/other/ppo/manifest.json").read_text())["recipe"]["ppo"]["kl_coef"] == 0.1

    ranked = load(str(desk / "new_rankings.jsonl"), "ranking")
    assert {row.labeler for row in ranked} == {"anna", "ben"} and {r.source for row in ranked for r in row.responses}
    assert (desk / "runs/mine/round-1/round.json").is_file() and "A dash is what there is not" in said
    assert load(str(desk / "best_of_4.jsonl"), "demonstration") and (desk / "my-reward-model" / "README.md").is_file()
    quality = json.loads((desk / "reward-quality" / "reward_quality.json").read_text())
    assert quality and (desk / "reward-quality" / "reward_quality.html").is_file()

    scoring, learning, snippet = blocks(ENGLISH, "python")
    namespace: dict[str, object] = {}
    exec(scoring, namespace)
    assert namespace["scores"].shape == (2,)
    exec(learning.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(desk / "model")), namespace)
    assert namespace["trainer"].state.global_step == 2 and (desk / "my-brief-adapter/adapter_config.json").is_file()
    exec(snippet.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(desk / "model")), namespace)
    assert namespace["tokenizer"].eos_token == "<|im_end|>"


def test_the_mistake_it_shows_is_reported_as_it_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("model:\n  name_or_path: a/b\nsft: {}\nppo:\n  gamma: 1.0\n  kl_coeff: 0.1\n")
    assert cli.main(["run", "recipe.yaml"]) == 2
    shown = re.search(r"^    (recipe\.yaml:6: .*)$", ENGLISH, re.MULTILINE)
    assert shown is not None and shown.group(1) in capsys.readouterr().err


@pytest.mark.parametrize(("place", "section"), [(1, "reward"), (2, "ppo")])
def test_the_settings_that_it_shows_are_settings(place: int, section: str) -> None:
    settings = yaml.safe_load(blocks(ENGLISH, "yaml")[place])
    recipe = Recipe.model_validate({**the_recipe(), **settings})
    assert getattr(recipe, section).model_dump(include=set(settings[section])) == settings[section]


def test_the_chinese_page_has_the_same_commands_and_examples() -> None:
    assert commands(CHINESE) == commands(ENGLISH)
    assert [yaml.safe_load(b) for b in blocks(CHINESE, "yaml")] == [yaml.safe_load(b) for b in blocks(ENGLISH, "yaml")]
    assert blocks(CHINESE, "python") == blocks(ENGLISH, "python")
    assert [json.loads(b).keys() for b in blocks(CHINESE, "json")] == [
        json.loads(b).keys() for b in blocks(ENGLISH, "json")
    ]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target
