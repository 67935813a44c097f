"""Rounds of sampling, labels, reward model and PPO, with tiny models that learn to say cat."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from labelers import labelers, work
from tiny_recipe import write_recipe

from rlhf_kit import files
from rlhf_kit.checkpoint import read_json, read_manifest
from rlhf_kit.cli import main
from rlhf_kit.errors import DataError, RecipeError, RlhfKitError
from rlhf_kit.labeling.exchange import hand_over
from rlhf_kit.labeling.replies import AnswerReply, RankReply
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Task, read_tasks
from rlhf_kit.measures import pair_accuracy
from rlhf_kit.recipe import load_recipe
from rlhf_kit.records import prompt_name
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.rounds import Round, finished, go_round, history, next_round
from rlhf_kit.rounds.labels import label
from rlhf_kit.rounds.steps import once

ROUND = {"prompts_per_round": 12, "k": 4, "labels": "rubric.py:count_cats"}


def write(directory: Path, *, rankings: bool = False, **changes) -> Path:
    """A recipe that starts without rankings, as most do."""
    settings = {"ppo": {"total_episodes": 64}, "evaluate": {"samples_per_prompt": 2}} | changes
    path = write_recipe(directory, **settings)
    recipe = yaml.safe_load(path.read_text())
    recipe["round"] = ROUND | recipe.get("round", {})
    if not rankings:
        del recipe["data"]["rankings"]
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two rounds, only read."""
    path = write(tmp_path_factory.mktemp("two"))
    recipe = load_recipe(path)
    go_round(recipe)
    go_round(recipe)
    return path


def home_of(path: Path) -> Path:
    return path.parent / "run"


def responses_of(file: Path) -> dict[str, dict[str, str]]:
    return {
        row["prompt"]: {r["text"]: r["source"] for r in row["meta"]["responses"]}
        for row in map(json.loads, file.read_text().splitlines())
    }


# -------------------------------------------------------------------- one round after another


def test_each_round_labels_the_newest_policys_answers_to_other_prompts(two):
    asked = []
    for number in (1, 2):
        directory = home_of(two) / f"round-{number}"
        drawn = responses_of(directory / "answers.jsonl")
        assert {source for row in drawn.values() for source in row.values()} == {f"round-{number - 1}"}
        for ranking in files.load(str(directory / "labels.jsonl"), "ranking"):
            assert {r.text for r in ranking.responses} == set(drawn[ranking.prompt])
            cats = sorted({r.text.count("cat") for r in ranking.responses}, reverse=True)
            assert all(r.rank == cats.index(r.text.count("cat")) + 1 for r in ranking.responses), "by hand"
            assert ranking.labeler == "function:count_cats"
        asked.append(set(drawn))
    assert not asked[0] & asked[1] and len(asked[0]) == len(asked[1]) == 12


def test_the_rankings_of_all_rounds_stand_together_and_pass_validation(two, capsys):
    home = home_of(two)
    rows = {n: files.load(str(home / f"round-{n}" / "labels.jsonl"), "ranking") for n in (1, 2)}
    together = files.load(str(home / "round-2" / "rankings.jsonl"), "ranking")
    assert together == rows[1] + rows[2] and len({row.id for row in together}) == len(together)
    assert files.load(str(home / "round-1" / "rankings.jsonl"), "ranking") == rows[1]
    assert main(["validate", str(home / "round-2" / "rankings.jsonl")]) == 0
    manifest = read_manifest(home / "round-2" / "reward")
    heldout = manifest.metrics["heldout_prompts"]
    assert manifest.metrics["prompts"] + heldout > len({prompt_name(row.prompt) for row in rows[1]}), "of both rounds"


def test_reward_models_and_policies_start_from_sft(two):
    home = home_of(two)
    for number in (1, 2):
        for stage, section in (("reward", "reward"), ("ppo", "ppo")):
            recipe = read_manifest(home / f"round-{number}" / stage).recipe
            assert recipe[section]["init"] == str(home / "sft") and recipe["seed"] == number


def test_the_comparison_has_all_rounds_and_kl_from_the_start(two):
    found = read_json(home_of(two) / "round-2" / "evaluation" / "evaluation.json")
    assert found["policies"] == ["round-0", "round-2", "round-1"], "the newest comes behind the start"
    assert list(found["summary"]) == found["policies"] and found["reward_gain"] is not None
    scores = {judge["name"]: judge["scores"] for judge in found["judges"]}["reward"]
    rise = scores["round-2"]["value"] - scores["round-0"]["value"]
    assert (found["reward_gain"]["value"] > 0) == (rise > 0), "of the newest round"
    assert {judge["name"] for judge in found["judges"]} == {"reward", "rubric"}
    assert set(found["kl"]) == {"round-1", "round-2"}
    start = str(home_of(two) / "sft")
    assert all(read_manifest(home_of(two) / f"round-{n}" / "ppo").recipe["ppo"]["init"] == start for n in (1, 2))


def test_how_fast_a_reward_model_goes_stale_is_its_accuracy_on_labels_it_has_not_seen(two):
    home = home_of(two)
    said = read_json(home / "round-2" / "round.json")["reward_fresh"]
    model = RewardModel.open(str(home / "round-1" / "reward"))
    rates = []
    for ranking in files.load(str(home / "round-2" / "labels.jsonl"), "ranking"):
        texts = [r.text for r in ranking.responses]
        ended = [r.ended for r in ranking.responses]
        scores = model.score([ranking.prompt] * len(texts), texts, ended=ended).tolist()
        right, pairs = pair_accuracy(scores, [r.rank for r in ranking.responses])
        rates += [right / pairs] if pairs else []
    assert list(said) == ["round-1"] and said["round-1"]["value"] == pytest.approx(sum(rates) / len(rates))
    assert read_json(home / "round-1" / "round.json")["reward_fresh"] == {}, "there was no reward model before"


def test_the_history_is_what_the_rounds_say(two, capsys):
    home = home_of(two)
    newest = read_json(home / "round-2" / "evaluation" / "evaluation.json")
    rubric = next(judge for judge in newest["judges"] if judge["name"] == "rubric")
    found = history(home)
    assert [row.round for row in found.rows] == [0, 1, 2] and "count_cats" in found.judge
    for row in found.rows:
        name = f"round-{row.round}"
        assert row.elo == rubric["elo"][name] and row.kl == newest["kl"].get(name)
        assert row.over_start == (rubric["win_rates"][name]["round-0"] if row.round else None)
    one, two_ = found.rows[1:]
    assert one.over_before == one.over_start and two_.over_before == rubric["win_rates"]["round-2"]["round-1"]
    assert (one.rankings, two_.rankings) == (12, 12) and one.reward_fresh.keys() == {2} and two_.reward_fresh == {}
    assert set(two_.seconds) == {"sample", "label", "reward", "ppo", "evaluation"}
    assert main(["rounds", str(home), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_json()))
    assert main(["rounds", str(home)]) == 0
    assert "on 16 held-out prompts" in " ".join(capsys.readouterr().out.split())
    assert main(["rounds", str(home / "sft")]) == 2
    assert "no finished round" in capsys.readouterr().err
    assert main(["rounds", str(home / "nowhere")]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err


def test_the_history_needs_no_weights_of_old_rounds(two, tmp_path):
    home = tmp_path / "run"
    shutil.copytree(home_of(two), home)
    for weights in home.glob("round-*/reward/*.safetensors"):
        weights.unlink()
    assert history(home) == history(home_of(two))


def test_who_shall_label_is_looked_for_before_anything_is_trained(tmp_path):
    path = write(tmp_path, round={"labels": "rubric.py:count_dogs"})
    with pytest.raises(RlhfKitError, match="count_dogs"):
        go_round(load_recipe(path))
    assert not home_of(path).exists()


def test_a_rounds_recipe_runs_its_steps_by_itself(two, capsys, caplog, monkeypatch):
    """So that several processes can train them."""
    recipe = home_of(two) / "round-2" / "recipe.yaml"
    monkeypatch.chdir(two.parent)
    caplog.clear()
    assert main(["reward", str(recipe)]) == 0 and main(["ppo", str(recipe)]) == 0
    assert caplog.text.count("finished with the same inputs, skipped") == 2


def test_labels_alone_so_that_something_else_can_train(two, tmp_path, capsys, monkeypatch, caplog):
    home = tmp_path / "run"
    shutil.copytree(home_of(two) / "sft", home / "sft")
    words = [str(two), f"output_dir={home}"]
    assert main(["round", *words, "--no-train"]) == 0
    assert capsys.readouterr().out.strip() == str(home / "round-1")
    assert (home / "round-1" / "rankings.jsonl").is_file() and not (home / "round-1" / "reward").exists()
    for step in ("reward", "ppo"):
        assert main([step, str(home / "round-1" / "recipe.yaml")]) == 0
    caplog.clear()
    assert main(["round", *words, "--no-browser"]) == 0
    assert caplog.text.count("finished with the same inputs, skipped") == 3, "SFT, reward model and PPO"
    assert "beats start" in capsys.readouterr().out and len(finished(home)) == 1


def test_labels_are_read_and_warned_of_once(two, tmp_path, caplog):
    """A row in which all answers are ranked the same is one warning of `validate`."""
    home = Path(shutil.copytree(home_of(two), tmp_path / "run"))
    labels = home / "round-1" / "labels.jsonl"
    tied = {"prompt": "Say it.", "responses": [{"text": "cat", "rank": 1}, {"text": "dog", "rank": 1}]}
    labels.write_text(labels.read_text() + json.dumps(tied) + "\n")
    warnings = len(files.check(str(labels), "ranking").warnings)
    go_round(load_recipe(two, [f"output_dir={home}"]), train=False)
    assert caplog.text.count(f"{labels}: {warnings} warnings") == 1


# -------------------------------------------------------------------- interrupted


@pytest.mark.parametrize("step", ["gather", "label", "reward", "ppo", "evaluate", "freshness"])
def test_a_round_that_was_interrupted_goes_on_and_ends_the_same(two, tmp_path, monkeypatch, step):
    from rlhf_kit import pipeline
    from rlhf_kit.rounds import going

    home = tmp_path / "run"
    shutil.copytree(home_of(two) / "sft", home / "sft")
    recipe = load_recipe(two, [f"output_dir={home}"])

    def stop(*words, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step in ("reward", "ppo"):
            patch.setitem(pipeline._ACTIONS, step, stop)
        else:
            patch.setattr(going, step, stop)
        with pytest.raises(KeyboardInterrupt):
            go_round(recipe)
    assert finished(home) == [] and next_round(recipe).number == 1
    go_round(recipe)
    for file in ("answers.jsonl", "labels.jsonl", "rankings.jsonl"):
        assert (home / "round-1" / file).read_bytes() == (home_of(two) / "round-1" / file).read_bytes()
    weights = "ppo/adapter_model.safetensors"
    assert (home / "round-1" / weights).read_bytes() == (home_of(two) / "round-1" / weights).read_bytes()
    assert not [p.name for p in home.rglob("*.previous-*")]


def test_what_was_made_from_something_else_is_kept_and_made_again(tmp_path, caplog):
    file, made = tmp_path / "file", []

    def do():
        made.append(len(made))
        file.write_text(str(made[-1]))
        return {"number": made[-1]}

    assert once(file, {"k": 4}, do)["number"] == 0 and once(file, {"k": 4}, do)["number"] == 0
    assert once(file, {"k": 5}, do)["number"] == 1 and file.read_text() == "1"
    assert (tmp_path / "file.previous-1").read_text() == "0"
    file.write_text("by hand")
    caplog.clear()
    assert once(file, {"k": 5}, do)["number"] == 1 and file.read_text() == "by hand" and made == [0, 1]
    assert "was changed after it was written" in caplog.text
    file.unlink()
    assert once(file, {"k": 5}, do)["number"] == 2, "a file that is gone is made again"


# -------------------------------------------------------------------- who labels


def test_a_file_of_labels_is_waited_for_and_matched(tmp_path, capsys):
    path = write(tmp_path, round={"labels": str(tmp_path / "by-hand-{round}.jsonl"), "prompts_per_round": 6})
    recipe = load_recipe(path)
    with pytest.raises(RlhfKitError, match=r"round 1: waits for labels: rank the answers in .*answers\.jsonl"):
        go_round(recipe)
    answers = home_of(path) / "round-1" / "answers.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    ranked = [
        {
            "prompt": row["prompt"],
            "responses": [{"text": r["text"], "rank": n} for n, r in enumerate(row["meta"]["responses"], 1)],
            "labeler": "anna",
        }
        for row in rows
    ]
    file = tmp_path / "by-hand-1.jsonl"
    wrong = [*ranked[:1], {**ranked[1], "responses": [{"text": "invented", "rank": 1}, {"text": "x", "rank": 2}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in wrong))
    with pytest.raises(DataError, match="is no answer of this round: 'invented'"):
        go_round(recipe)
    file.write_text("".join(json.dumps(row) + "\n" for row in ranked))
    go_round(recipe)
    labels = files.load(str(home_of(path) / "round-1" / "labels.jsonl"), "ranking")
    assert [[r.rank for r in row.responses] for row in labels] == [
        [r["rank"] for r in row["responses"]] for row in ranked
    ]
    drawn = responses_of(answers)
    assert all(r.source == drawn[row.prompt][r.text] == "round-0" for row in labels for r in row.responses)


def answered_by_hand(directory: Path, labels: str) -> tuple[Round, Path]:
    """A round whose answers are two prompts' with two answers each."""
    one = Round(1, directory / "run", load_recipe(write(directory, round={"labels": labels})))
    answers = directory / "answers.jsonl"
    drawn = [{"text": text, "source": source, "ended": True} for text, source in (("cat", "round-0"), ("dog", "base"))]
    rows = [{"prompt": prompt, "meta": {"responses": drawn}} for prompt in ("Say one.", "Say two.")]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return one, answers


def test_a_file_may_be_what_a_labelling_tool_exports(tmp_path, caplog):
    """Its project has earlier rounds too, a task that somebody skipped, and another's that is not there yet."""
    one, answers = answered_by_hand(tmp_path, str(tmp_path / "export.json"))
    tasks = read_tasks(str(answers), "rank")
    hand_over([*tasks, replace(tasks[0], prompt="Of a round before.")], "label-studio", tmp_path / "tasks.json")
    export = json.loads((tmp_path / "tasks.json").read_text())
    for row in export:
        ids = [item["id"] for item in sorted(row["data"]["items"], key=lambda item: item["body"])]  # cat before dog
        value = {"ranker": {"rank": ids}}
        result = [{"type": "ranker", "from_name": "rank", "to_name": "answers", "value": value}]
        row["annotations"] = [{"completed_by": "anna", "was_cancelled": False, "result": result}]
    export[1]["annotations"] = [{"completed_by": "anna", "was_cancelled": True, "result": []}]
    (tmp_path / "export.json").write_text(json.dumps(export))
    found = label(one, answers, tmp_path / "labels.jsonl", str, browser=False)
    (ranking,) = files.load(str(tmp_path / "labels.jsonl"), "ranking")
    assert {(r.text, r.rank, r.source) for r in ranking.responses} == {("cat", 1, "round-0"), ("dog", 2, "base")}
    assert (ranking.prompt, found["labelers"], found["pairs"]) == ("Say one.", ["anna"], 1)
    assert "1 rankings in" in caplog.text and "are left out: they are of other prompts" in caplog.text
    assert "1 of 2 prompts are not ranked" in caplog.text


def test_a_file_of_other_prompts_alone_is_refused(tmp_path):
    one, answers = answered_by_hand(tmp_path, str(tmp_path / "ranked.jsonl"))
    responses = [{"text": "cat", "rank": 1}, {"text": "dog", "rank": 2}]
    (tmp_path / "ranked.jsonl").write_text(json.dumps({"prompt": "Say three.", "responses": responses}) + "\n")
    with pytest.raises(DataError, match="no ranking is of a prompt of this round"):
        label(one, answers, tmp_path / "labels.jsonl", str, browser=False)


def test_what_a_ranking_in_a_file_says_besides_is_kept(tmp_path):
    """Also what no page could have said: a part of the answers, an axis of its own, how much it counts."""
    one, answers = answered_by_hand(tmp_path, str(tmp_path / "ranked.jsonl"))
    marks = {"overall": 7, "flags": {"hallucination": False}, "axes": {"style": 1}}
    responses = [{"text": "dog", "rank": 1, "source": "mine", **marks}, {"text": "cat", "rank": 2}]
    said = {"weight": 2.0, "margin": 0.5, "labeler": "ben", "meta": {"seconds": 3.0}}
    (tmp_path / "ranked.jsonl").write_text(json.dumps({"prompt": "Say two.", "responses": responses, **said}) + "\n")
    found = label(one, answers, tmp_path / "labels.jsonl", str, browser=False)
    (row,) = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert row["responses"] == [responses[0], {**responses[1], "source": "round-0"}] and row["id"] == "round-1-1"
    assert {name: row[name] for name in said} == said and found["labeler_seconds"] == 3.0


def cats_on_the_page(task: Task, order: tuple[int, ...]) -> RankReply:
    """The more cats the better, by the letters under which the answers are shown."""
    texts = [task.candidates[place].text for place in order]
    cats = sorted({text.count("cat") for text in texts}, reverse=True)
    ranks = [cats.index(text.count("cat")) + 1 for text in texts]
    return RankReply(answers={chr(65 + n): AnswerReply(rank=rank) for n, rank in enumerate(ranks)})


def test_people_label_on_the_page_and_what_they_gave_before_it_was_ended_counts(tmp_path, monkeypatch):
    from rlhf_kit.labeling import serving

    section = {"labels": "page", "labelers": ["anna", "ben"], "overlap": 2, "prompts_per_round": 6}
    path = write(tmp_path, round=section)
    recipe = load_recipe(path)
    file = home_of(path) / "round-1" / "labels.sqlite"
    with monkeypatch.context() as patch:  # somebody ends the page at once
        patch.setattr(serving, "serve", lambda store, how, done, told: told("served"))
        said: list[str] = []
        with pytest.raises(RlhfKitError, match=r"6 of 6 tasks are still to be ranked.*the same command goes on"):
            go_round(recipe, told=said.append)
        assert said == ["round 1: 6 tasks are to be ranked, each by 2 people", "served"]
    with closing(Store(file)) as store:
        assert work(store, "anna", cats_on_the_page, most=4) == 4
    monkeypatch.setattr(serving, "_LINGER", 0.5)

    def when_it_is_open(task: Task, order: tuple[int, ...]) -> RankReply:
        end = time.monotonic() + 60
        while not any("http://127.0.0.1:" in line for line in said):
            assert time.monotonic() < end
            time.sleep(0.01)
        return cats_on_the_page(task, order)

    with labelers(file, dict.fromkeys(("anna", "ben"), when_it_is_open)) as done:
        go_round(recipe, told=said.append)
    assert sorted(done) == ["anna"] * 2 + ["ben"] * 6, "nothing is asked twice"
    labels = files.load(str(home_of(path) / "round-1" / "labels.jsonl"), "ranking")
    assert sorted(str(row.labeler) for row in labels) == ["anna"] * 6 + ["ben"] * 6
    for row in labels:
        cats = sorted({r.text.count("cat") for r in row.responses}, reverse=True)
        assert all(r.rank == cats.index(r.text.count("cat")) + 1 and r.source == "round-0" for r in row.responses)
    assert read_json(home_of(path) / "round-1" / "round.json")["labels"]["labelers"] == ["anna", "ben"]
    assert history(home_of(path)).rows[1].labeler_seconds == 12.0


def test_people_are_asked_for_the_answers_as_they_are_now_and_what_they_said_of_the_same_ones_counts(
    tmp_path, monkeypatch
):
    from rlhf_kit.labeling import serving

    monkeypatch.setattr(serving, "_LINGER", 0.0)
    asked: list[Task] = []

    def noting(task: Task, order: tuple[int, ...]) -> RankReply:
        asked.append(task)
        return cats_on_the_page(task, order)

    def a_page(most):
        def serve(store, how, *, done, told):
            assert not done()
            for _ in range(most):
                work(store, "anna", noting, 1)
                if done() and done():  # at once the second time, as nobody is waited for to take the last one back
                    break

        monkeypatch.setattr(serving, "serve", serve)

    section = {"labels": "page", "labelers": ["anna"], "prompts_per_round": 3}
    prompt_by_prompt = {"samples_per_prompt": 2, "per_device_eval_batch_size": 4}
    path = write(tmp_path, round=section, evaluate=prompt_by_prompt)
    one = home_of(path) / "round-1"
    a_page(2)
    with pytest.raises(RlhfKitError, match="round 1: 1 of 3 tasks are still to be ranked"):
        go_round(load_recipe(path), train=False)
    a_page(20)
    for change, count in (({"prompts_per_round": 5}, 3), ({"temperature": 0.7, "prompts_per_round": 5}, 5)):
        asked.clear()
        go_round(load_recipe(write(tmp_path, round=section | change, evaluate=prompt_by_prompt)), train=False)
        now = responses_of(one / "answers.jsonl")
        assert len(asked) == count, "those that were ranked before count where the answers are the same"
        assert all({c.text for c in task.candidates} == now[task.prompt].keys() for task in asked)
        labels = files.load(str(one / "labels.jsonl"), "ranking")
        assert {str(row.prompt): {r.text for r in row.responses} for row in labels} == {
            prompt: set(texts) for prompt, texts in now.items()
        }


def test_reward_models_label_by_their_mean_and_select_by_their_disagreement(two, tmp_path):
    home = home_of(two)
    models = [str(home / f"round-{n}") for n in (1, 2)]
    section = {"labels": models, "ensemble": 2, "select": "disagreement", "candidates": 2, "prompts_per_round": 8}
    path = write(tmp_path, rankings=True, round=section)
    recipe = load_recipe(path)
    go_round(recipe)
    one = home_of(path) / "round-1"
    assert (one / "reward-2" / "manifest.json").is_file()
    assert read_manifest(one / "reward-2").recipe["seed"] == 1001
    assert read_json(one / "round.json")["reward_fresh"].keys() == {"round-0"}, "data.rankings trained one"
    heldout = [read_manifest(d / "reward").metrics["heldout_accuracy_by_prompt"] for d in (home_of(path), one)]
    assert [row.reward_heldout for row in history(home_of(path)).rows] == heldout
    rankings = files.load(str(one / "labels.jsonl"), "ranking")
    drawn, scores = [], []
    for ranking in rankings:
        texts, ended = [r.text for r in ranking.responses], [r.ended for r in ranking.responses]
        drawn.append([r.rank for r in ranking.responses])
        scores.append([RewardModel.open(m).score([ranking.prompt] * len(texts), texts, ended=ended) for m in models])
    flat = [[float(s) for row in scores for s in row[m]] for m in (0, 1)]
    means = [sum(f) / len(f) for f in flat]
    spreads = [(sum((s - mean) ** 2 for s in f) / len(f)) ** 0.5 for f, mean in zip(flat, means, strict=True)]
    for ranks, row in zip(drawn, scores, strict=True):
        total = [sum((float(row[m][i]) - means[m]) / spreads[m] for m in (0, 1)) for i in range(len(ranks))]
        assert sorted(range(len(ranks)), key=lambda i: ranks[i]) == sorted(range(len(ranks)), key=lambda i: -total[i])
    account = read_json(one / "answers.jsonl.made.json")
    assert account["inputs"]["select"] is None, "one reward model disagrees with nobody: the first round is by chance"
    go_round(recipe)
    account = read_json(home_of(path) / "round-2" / "answers.jsonl.made.json")
    assert account["inputs"]["select"][0] == "disagreement" and len(account["inputs"]["select"][1]) == 2
    assert account["gathered"]["prompts"] == 16 and account["gathered"]["rows"] == 8
    assert account["gathered"]["value"][0] >= account["gathered"]["value"][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sft.learning_rate=0.001", r"settings\.sft\.learning_rate: .* -> 0\.001"),
        ("model.pad_token=cat", r"model\.pad_token: .* -> \"cat\""),
        ("data.demonstrations=null", r"data\.demonstrations: .* started from SFT"),
    ],
)
def test_a_recipe_with_another_start_does_not_go_on_with_the_rounds(two, tmp_path, change, said):
    """Its rounds would be compared with a policy that the finished ones did not start from."""
    home = Path(shutil.copytree(home_of(two), tmp_path / "run"))
    recipe = load_recipe(two, [f"output_dir={home}", change])
    with pytest.raises(RlhfKitError, match=rf"round 3: .*another start.*{said}.*output_dir"):
        go_round(recipe)
    assert sorted(path.name for path in home.iterdir()) == sorted(path.name for path in home_of(two).iterdir())


def test_a_round_that_is_missing_among_finished_ones_is_told(two, tmp_path):
    home = Path(shutil.copytree(home_of(two), tmp_path / "run"))
    (home / "round-1").rename(home / "elsewhere")
    words = r"round-2 is finished, but round-1, on which it is built, is not"
    for ask in (lambda: history(home), lambda: go_round(load_recipe(two, [f"output_dir={home}"]))):
        with pytest.raises(RlhfKitError, match=words):
            ask()


def test_the_last_policy_is_where_ppo_goes_on_from(two, tmp_path):
    home = Path(shutil.copytree(home_of(two), tmp_path / "run"))
    recipe = load_recipe(two, [f"output_dir={home}", "round.start=last"])
    go_round(recipe)
    assert read_manifest(home / "round-3" / "ppo").recipe["ppo"]["init"] == str(home / "round-2" / "ppo")
    assert read_manifest(home / "round-3" / "reward").recipe["reward"]["init"] == str(home / "sft")
    found = history(home)
    assert [row.round for row in found.rows] == [0, 1, 2, 3] and found.rows[3].kl is not None


# -------------------------------------------------------------------- as it is typed


def test_all_that_rounds_lack_is_named_at_once(tmp_path, capsys):
    path = write(tmp_path)
    words = ["data.prompts=null", "data.prompts_heldout=null", "ppo.init=base", "round.k=1"]
    assert main(["round", str(path), *words]) == 2
    said = capsys.readouterr().err
    for field in ("round.prompts", "data.prompts", "data.prompts_heldout", "ppo.init", "round.k"):
        assert f"{field}: " in said
    with pytest.raises(RecipeError, match=r"data\.prompts_heldout"):
        go_round(load_recipe(path, words[1:2]))
    assert main(["round", str(path), "round.select=disagreement"]) == 2
    assert "set round.ensemble to 2 or more" in capsys.readouterr().err
    assert main(["round", str(path), "round.k=3", "round.least=4"]) == 2
    assert "round.least: must be at most k, which is 3" in capsys.readouterr().err


def test_labels_that_say_nothing_are_refused(tmp_path, capsys):
    path = write(tmp_path)
    (tmp_path / "same.py").write_text("def same(completions, **columns):\n    return [1.0] * len(completions)\n")
    assert main(["round", str(path), "round.labels=same.py:same"]) == 2
    assert "all answers were ranked the same" in capsys.readouterr().err
