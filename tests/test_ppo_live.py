"""`ppo.reward_funcs: live`: the same run as with a function that says what the people say, whatever comes between."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from label_site import site
from labelers import labelers, mark, rate, visitors, work
from ppo_trainers import ROWS, config, tiny_roles, trainer
from test_export_card import card_of, facts, recipe_of
from test_ppo_rewards import CHAT, PLAIN, answered
from tiny_recipe import write_recipe
from transformers import HfArgumentParser

from rlhf_kit import DataError, PPOConfig, PPOTrainer, RecipeError, RlhfKitError, load_recipe, pipeline
from rlhf_kit.cli import main
from rlhf_kit.errors import EngineError
from rlhf_kit.labeling.exporting import records
from rlhf_kit.labeling.replies import RateReply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Task
from rlhf_kit.ppo import live
from rlhf_kit.ppo.checkpoints import last_whole
from rlhf_kit.ppo.live import LiveReward
from rlhf_kit.recipe_live import LiveSection
from rlhf_kit.records import Prompt, Rating


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_POLL", 0.02)


def by_hand(text: str) -> float:
    """What a person's mark of a text comes to; nobody is asked about nothing."""
    return (mark(text) - 4) / 3 if text.strip() else -1.0


def as_function(completions: list[str], **_: Any) -> list[float]:
    return [by_hand(text) for text in completions]


def log_of(made: PPOTrainer, name: str = "live") -> list[dict[str, float]]:
    """The log without times, the one source under the name `source`."""
    entries = [entry for entry in made.state.log_history if "kl" in entry]
    return [
        {k.replace(f"rewards/{name}", "rewards/source"): v for k, v in e.items() if "seconds" not in k} for e in entries
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The log of the run with the function."""
    made = trainer(tmp_path_factory.mktemp("plain"), reward_funcs=as_function, total_episodes=32)
    made.train()
    return log_of(made, "as_function")


def asking(directory: Path, **fields: Any) -> PPOTrainer:
    made = {"total_episodes": 32, "save_strategy": "steps", "save_steps": 100, **fields}
    return trainer(directory, reward_funcs="live", **made)


def reward(path: Path, **section: Any) -> LiveReward:
    return LiveReward(LiveSection(**section), path)


# ---------------------------------------------------------------- training goes on


def test_people_are_a_function_that_takes_longer(tmp_path: Path, plain: list[dict[str, float]]) -> None:
    made = asking(tmp_path)
    with labelers(tmp_path / "live.sqlite", {"anna": rate}):
        made.train()
    assert log_of(made) == plain and len(plain) == 4
    assert len({entry["rewards/source"] for entry in plain}) > 1


def test_scores_are_rating_records_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "live.sqlite"
    source = reward(path)
    source.update = 3
    with labelers(path, {"anna": rate}):
        found = source(answered([{"prompt": CHAT}, *PLAIN[:2]]))
    with closing(Store(path)) as store:
        rated = records(store, batch="live")
    assert found.tolist() == pytest.approx(
        [by_hand(text) for text in ("Air scatters blue light.", "Hello!", "No. " * 9)]
    )
    assert all(isinstance(one, Rating) for one in rated) and len(rated) == 3
    (first,) = [one for one in rated if isinstance(one, Rating) and one.response == "Air scatters blue light."]
    assert first.prompt == Prompt.model_validate({"prompt": CHAT}).prompt
    assert (first.score, first.scale, first.labeler, first.source) == (
        mark(first.response), (1, 7), "anna", "update 4",
    )  # fmt: skip


def test_the_same_answer_is_asked_for_once_and_an_empty_one_never(tmp_path: Path) -> None:
    source, rows = reward(tmp_path / "live.sqlite"), [{"prompt": "Hi"}] * 4 + [{"prompt": "Ho"}]
    with labelers(source.path, {"anna": rate}) as done:
        found = source(answered(rows, ["a b", " \n", "a b", "c", "a b"]))
        again = source(answered(rows[:2], ["c", "a b"]))
    assert found.tolist() == pytest.approx([by_hand("a b"), -1, by_hand("a b"), by_hand("c"), by_hand("a b")])
    assert again.tolist() == pytest.approx([by_hand("c"), by_hand("a b")])
    assert len(done) == 3


def test_several_labelers_are_averaged_and_each_is_waited_for(tmp_path: Path) -> None:
    source = reward(tmp_path / "live.sqlite", overlap=2)
    rules = {"anna": lambda task, order: RateReply(overall=7), "ben": lambda task, order: RateReply(overall=2)}
    with labelers(source.path, rules):
        found = source(answered(PLAIN))
    assert found.tolist() == pytest.approx([(1 - 2 / 3) / 2] * 3)
    with closing(Store(source.path)) as store:
        assert store.settings.overlap == 2, "whoever opens the page need not say so"


def test_what_is_skipped_by_everybody_counts_as_a_functions_none(tmp_path: Path) -> None:
    def hesitant(task: Task, order: tuple[int, ...]) -> RateReply | None:
        return None if mark(task.candidates[0].text) > 4 else rate(task, order)

    def function(completions: list[str], **_: Any) -> list[float | None]:
        return [None if mark(text) > 4 and text.strip() else by_hand(text) for text in completions]

    by_function = trainer(tmp_path / "plain", reward_funcs=function, reward_normalization="running")
    by_function.train()
    made = asking(tmp_path / "live", total_episodes=16, reward_normalization="running")
    with labelers(tmp_path / "live" / "live.sqlite", {"anna": hesitant}):
        made.train()
    assert log_of(made) == log_of(by_function, "function")


def test_one_who_skips_leaves_it_to_another(tmp_path: Path) -> None:
    source = reward(tmp_path / "live.sqlite")
    with labelers(source.path, {"anna": lambda *_: None, "ben": rate}):
        found = source(answered(PLAIN))
    assert found.tolist() == pytest.approx(
        [by_hand(text) for text in ("Air scatters blue light.", "Hello!", "No. " * 9)]
    )
    with closing(Store(source.path)) as store:
        assert {said.labeler for said in store.answered()} == {"ben"}


def test_a_prompt_that_no_page_can_show_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "tool", "content": "42"}], "input_ids": [5, 6]}]
    with pytest.raises(RlhfKitError, match=r"live: nobody can be shown sample 1 of 1, 'so' to the prompt '42'"):
        reward(tmp_path / "live.sqlite")(answered(rows, ["so"]))


# ---------------------------------------------------------------- nobody answers


def test_a_time_out_stops_the_run_and_the_same_call_goes_on(tmp_path: Path, plain: list[dict[str, float]]) -> None:
    made = asking(tmp_path, live={"timeout": 5})
    path = tmp_path / "live.sqlite"
    with labelers(path, {"anna": rate}, most=12) as first, pytest.raises(EngineError) as stopped:
        made.train()
    words = str(stopped.value)
    assert words.startswith("ppo: stopped, 1 of 4 updates are saved: live: nobody has scored an answer for 5 seconds")
    assert "4 of 8 wait" in words and "\n" not in words and f"rlhf-kit label --store {path} --stay" in words
    assert str(last_whole(tmp_path)).endswith("checkpoint-1")
    resumed = asking(tmp_path, live={"timeout": 60})
    with labelers(path, {"anna": rate}) as second:
        resumed.train(resume_from_checkpoint=True)
    assert log_of(resumed) == plain
    with closing(Store(path)) as store:  # nothing twice: as many as there are tasks
        assert len(first) + len(second) == len(list(store.tasks())) == store.progress().answered


def test_each_score_starts_the_time_anew(tmp_path: Path) -> None:
    def slow(task: Task, order: tuple[int, ...]) -> RateReply:
        time.sleep(1.4)
        return rate(task, order)

    source = reward(tmp_path / "live.sqlite", timeout=4)
    with labelers(source.path, {"anna": slow}):
        started = time.monotonic()
        found = source(answered(PLAIN))
    assert time.monotonic() - started > 4.2 and not found.isnan().any()


def test_the_time_stands_while_labeling_is_paused(tmp_path: Path) -> None:
    source = reward(tmp_path / "live.sqlite", timeout=3)
    with closing(Store(source.path)) as store:
        store.set_labelers(["anna"])
        store.pause(True)

        def later() -> None:
            time.sleep(4)
            store.pause(False)
            work(store, "anna", rate)

        thread = threading.Thread(target=later)
        thread.start()
        found = source(answered(PLAIN))
        thread.join()
    assert not found.isnan().any()


def test_on_timeout_skip_goes_on_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = reward(tmp_path / "live.sqlite", timeout=4, on_timeout="skip")
    with labelers(source.path, {"anna": rate}, most=1), caplog.at_level("INFO", "rlhf_kit"):
        found = source(answered(PLAIN)).tolist()
    assert [math.isnan(value) for value in found].count(True) == 2
    assert "nobody has scored an answer for 4 seconds; 2 of 3 answers do without" in caplog.text
    assert f"3 answers of update 1 wait for scores; ask for them with: {source.command}" in caplog.text


def test_fresh_answers_are_asked_before_those_that_nobody_waits_for(tmp_path: Path) -> None:
    source = reward(tmp_path / "live.sqlite", timeout=0.1, on_timeout="skip")
    source(answered(PLAIN[:2], ["old", "older"]))
    source.update = 1
    source(answered(PLAIN[:1], ["fresh"]))
    with closing(Store(source.path)) as store:
        store.set_labelers(["anna"])
        given = store.next("anna")
    assert given is not None and given.task.candidates[0].text == "fresh"


def test_an_answer_that_comes_again_is_waited_for_again(tmp_path: Path) -> None:
    source, asked = reward(tmp_path / "live.sqlite", timeout=0.1, on_timeout="skip"), list[str]()
    source(answered(PLAIN, ["old", "older", "again"]))
    source.update = 1
    source(answered(PLAIN[2:], ["again"]))

    def noting(task: Task, order: tuple[int, ...]) -> RateReply:
        asked.append(task.candidates[0].text)
        return rate(task, order)

    with closing(Store(source.path)) as store:
        store.set_labelers(["anna"])
        work(store, "anna", noting)
    assert asked == ["again", "old", "older"]


# ---------------------------------------------------------------- told to end


def test_sigterm_while_people_are_waited_for_saves_and_ends(tmp_path: Path, plain: list[dict[str, float]]) -> None:
    path = tmp_path / "live.sqlite"

    def terminate() -> None:
        with closing(Store(path)) as store:
            while store.progress().answered < 12:
                time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    with labelers(path, {"anna": rate}, most=12):
        thread.start()
        with pytest.raises(SystemExit) as ended:
            asking(tmp_path).train()
    thread.join()
    assert ended.value.code == 143 and str(last_whole(tmp_path)).endswith("checkpoint-1")
    resumed = asking(tmp_path)
    with labelers(path, {"anna": rate}):
        resumed.train(resume_from_checkpoint=True)
    assert log_of(resumed) == plain


# ---------------------------------------------------------------- what is not asked


def held_out(directory: Path, funcs: Any, **fields: Any) -> PPOTrainer:
    return PPOTrainer(
        model=tiny_roles(),
        reward_funcs=funcs,
        args=config(directory, eval_steps=1, **fields),
        train_dataset=ROWS,
        eval_dataset=ROWS[:3],
    )


def test_people_are_not_asked_about_held_out_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = held_out(tmp_path, ["live"], total_episodes=8)
    with labelers(tmp_path / "live.sqlite", {"anna": rate}):
        made.train()
    with closing(Store(tmp_path / "live.sqlite")) as store:
        assert len(list(store.tasks())) <= 8
    (entry,) = [entry for entry in made.state.log_history if "eval_kl" in entry]
    assert {"eval_kl", "eval_eos_rate", "eval_response_length"} <= entry.keys()
    assert not {"eval_score", "eval_win_rate", "eval_reference_score", "eval_rewards/live"} & entry.keys()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [None] * 3 and all(row["policy"] for row in rows)
    made.generate_completions()
    assert "–" in capsys.readouterr().out


def test_held_out_answers_are_scored_by_the_sources_beside_people(tmp_path: Path) -> None:
    """As if people were none of the sources; the weights are those of who is left."""
    both = held_out(tmp_path / "both", ["live", as_function], reward_weights=[5.0, 2.0])
    alone = held_out(tmp_path / "alone", [as_function], reward_weights=[2.0])
    found = [{k: v for k, v in made.evaluate().items() if "runtime" not in k} for made in (both, alone)]
    assert found[0] == found[1] and "eval_score" in found[0]


def test_a_source_that_does_not_abstain_may_not_say_nan(tmp_path: Path) -> None:
    made = trainer(tmp_path, reward_funcs="reward")
    (source,) = made.experience.rewards.sources
    assert not source.abstains
    made.experience.rewards.sources = [_Silent("silent")]
    with pytest.raises(RlhfKitError, match=r"'silent' gives nan to sample 1"):
        made.experience.rewards.raw(answered(PLAIN))


class _Silent:
    abstains: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, answers: Any) -> torch.Tensor:
        return torch.full((len(answers),), math.nan)


# ---------------------------------------------------------------- over HTTP


def test_scores_come_from_the_page(tmp_path: Path, plain: list[dict[str, float]]) -> None:
    """The file is served beside it, as `rlhf-kit label --store FILE --stay --task rate` does."""

    def marked(task: dict[str, Any]) -> dict[str, Any]:
        return {"overall": mark(task["answers"][0]["text"]), "flags": {}, "note": ""}

    with site(tmp_path, [], ["anna"], stay=True) as page, visitors(lambda: "\n".join(page.told), ["anna"], marked):
        made = asking(tmp_path, live={"store": str(page.store.path)})
        made.train()
        assert log_of(made) == plain and page.store.progress().left == 0


# ---------------------------------------------------------------- a recipe


ONLY_LIVE = {
    "init": "base",
    "reward_funcs": ["live"],
    "total_episodes": 64,
    "batch_size": 16,
    "save_steps": 1,
    "eval_steps": 2,
}


def test_the_command_ends_with_one_line_where_nobody_is_there_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, ppo=ONLY_LIVE))
    assert main(["ppo", recipe, "ppo.live.timeout=0.2"]) == 2
    store = tmp_path / "run" / "live.sqlite"
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("ppo: stopped, no update was made: live: nobody has scored an answer for 0.2 seconds")
    assert f"rlhf-kit label --store {store} --stay --task rate --out {store.with_suffix('.jsonl')}" in line
    with labelers(store, {"anna": rate}) as done, caplog.at_level("INFO", "rlhf_kit"):
        assert main(["ppo", recipe]) == 0
        assert main(["ppo", recipe, "ppo.live.timeout=7"]) == 0
    assert "ppo: finished with the same inputs, skipped" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "rewards/live" in row]) == 4
    assert main(["report", str(tmp_path / "run")]) == 0, "held-out answers without scores are shown too"
    with closing(Store(store)) as opened:
        assert len(done) == opened.progress().tasks == opened.progress().answered
        assert {one.source for one in records(opened) if isinstance(one, Rating)} == {
            f"update {n}" for n in range(1, 5)
        }


def test_where_the_store_is_and_how_long_it_waits_are_no_inputs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, ppo=ONLY_LIVE)

    def inputs(*overrides: str) -> Any:
        return pipeline._inputs(load_recipe(path, overrides), "ppo", {})["settings"]["ppo"]

    before = inputs()
    assert before["live"] == {"on_timeout": "stop", "overlap": 1}
    assert inputs("ppo.live.store=elsewhere.sqlite", "ppo.live.timeout=5") == before
    assert inputs("ppo.live.overlap=2") != before != inputs("ppo.live.on_timeout=skip")
    assert "live" not in inputs("ppo.reward_funcs=[rubric.py:count_cats]"), "older runs are finished as they were"
    assert pipeline._inputs(load_recipe(path), "ppo", {})["data"].keys() == {"prompts", "prompts_heldout"}


def test_a_directory_of_that_name_beside_the_recipe_is_not_meant(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, ppo=ONLY_LIVE)
    (tmp_path / "live").mkdir()
    assert load_recipe(path).ppo.reward_funcs == ["live"]


def test_validate_and_plan_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_recipe(tmp_path, ppo=ONLY_LIVE))
    assert main(["validate", path]) == 0
    assert main(["plan", path]) == 0
    assert "reward_funcs: live: each update waits for people" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"timeout": 0}, "timeout: must be greater than 0, not 0"),
        ({"overlap": 0}, "overlap: must be at least 1, not 0"),
        ({"on_timeout": "wait"}, "on_timeout: must be 'stop' or 'skip', not \"wait\""),
        ({"stroe": "x"}, "stroe: unknown key; did you mean 'store'?"),
    ],
)
def test_wrong_settings_are_named(section: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"ppo.live.{reason}")):
        load_recipe(write_recipe(tmp_path, ppo={**ONLY_LIVE, "live": section}))
    with pytest.raises(DataError, match=re.escape(f"PPOConfig: live.{reason}")):
        config(tmp_path, live=section)


def test_the_card_of_an_export_says_that_people_scored(tmp_path: Path) -> None:
    """Without the place of their scores on this machine; what else was a source is named with its own hash."""
    recipe = recipe_of(tmp_path)
    live = LiveSection(store=str(tmp_path / "secret" / "live.sqlite"))
    funcs = ["live", *recipe.ppo.reward_funcs]
    recipe = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"reward_funcs": funcs, "live": live})})
    card = card_of(tmp_path, facts(), recipe)
    words = "against the scores that people gave while it was trained and a reward model that has learned from ranked"
    assert words in card and str(tmp_path) not in card
    assert f"| `reward_funcs.0` | `own.py:brevity` | `{'d' * 64}` |" in card


def test_a_config_and_a_command_line_have_the_whole_of_it(tmp_path: Path) -> None:
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--live", '{"overlap": 2}']
    (found,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(line)
    assert found.live_section == LiveSection(overlap=2) and found.live == LiveSection(overlap=2).model_dump()
    assert config(tmp_path).live_section == LiveSection()
