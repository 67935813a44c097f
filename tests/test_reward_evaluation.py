"""From files to figures with a model whose scores are known, so that every figure can be counted by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from backbones import add_head, tiny_backbone, tiny_directory

from rlhf_kit import files, rewards, seen
from rlhf_kit.checkpoint import Manifest, finish, open_work
from rlhf_kit.errors import CheckpointError, DataError, RlhfKitError
from rlhf_kit.formats.catalogue import format_named
from rlhf_kit.models.heads import ScalarHead
from rlhf_kit.ranked_files import read_rankings
from rlhf_kit.recipe import Recipe
from rlhf_kit.reward_curve import Plan, Trained, learning_curve, plan_of, train_fraction
from rlhf_kit.reward_evaluation import evaluate_reward, score_rankings
from rlhf_kit.reward_material import MOST_TRAINING, Known, known_of, material_of
from rlhf_kit.reward_model import RewardModel


class Fake:
    """Scores a response by the number at its end; its length is its words."""

    def __init__(self, name="a fake", factor=1.0):
        self.name, self.factor = name, factor
        self.shortened_prompts = self.cut_responses = 0
        self.calls = []

    def lengths(self, responses):
        return [len(text.split()) for text in responses]

    def score(self, prompts, responses, *, ended=None, progress=lambda done: None):
        self.calls.append(list(zip(prompts, responses, ended, strict=True)))
        self.shortened_prompts += sum(len(prompt) > 90 for prompt in prompts)
        self.cut_responses += sum(not one for one in ended)
        progress(len(prompts))
        return torch.tensor([self.factor * float(text.split()[-1]) for text in responses])


def row(prompt, *answers, **fields):
    """`answers`: (rank, text)."""
    return {"prompt": prompt, "responses": [{"rank": rank, "text": text} for rank, text in answers], **fields}


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows():
    """Twelve prompts. Of each the model gets two pairs right and one wrong; the longest answer is always the worst."""
    return [
        row(
            f"p{i}",
            *((1, "a 2"), (2, "b c 3"), (3, "d e f 1")),
            category="qa" if i < 6 else "chat",
            labeler="anna" if i % 2 else "ben",
        )
        for i in range(12)
    ]


def known(*prompts, **fields):
    return Known(frozenset(map(seen.prompt_key, prompts)), **fields)


TRAINED_ON_NOTHING = Known(frozenset())


def evaluate(path, *, of=TRAINED_ON_NOTHING, model=None, **options):
    return evaluate_reward(model or Fake(), material_of(read_rankings([path]), of), of, bootstrap=200, **options)


# -------------------------------------------------------------------- figures that can be counted


def test_every_figure_is_what_is_counted_by_hand(tmp_path, rows):
    quality = evaluate(write(tmp_path / "r.jsonl", rows), of=known("other", labelers=frozenset({"anna"}))).quality
    assert (quality.counts.prompts, quality.counts.rankings, quality.counts.responses) == (12, 12, 36)
    assert quality.accuracy.value == pytest.approx(24 / 36)
    # (2 over 3) is wrong, the other two are right: the gap of one place has half of its pairs right.
    assert [(one.name, one.accuracy.value) for one in quality.by_rank_gap] == [("1", 0.5), ("2", 1.0)]
    assert [(one.name, one.accuracy.pairs) for one in quality.by_category] == [("chat", 18), ("qa", 18)]
    assert [(one.name, one.labelers) for one in quality.by_labeler] == [("anna", "training"), ("ben", "held-out")]
    losses = [math.log(1 + math.exp(-difference)) for difference in (-1, 2, 1)]
    assert quality.log_loss.value == pytest.approx(sum(losses) / 3)
    assert quality.length.baselines["shorter"].value == 1.0
    assert quality.length.shorter_preferred.pairs == 36
    assert quality.length.gain.value == pytest.approx(24 / 36 - 1)


def test_scores_of_a_run_are_put_on_the_scale_that_was_trained(tmp_path, rows):
    path = write(tmp_path / "r.jsonl", rows)
    plain, scaled = evaluate(path), evaluate(path, of=Known(frozenset(), log_odds=3.0))
    losses = [math.log(1 + math.exp(-3 * difference)) for difference in (-1, 2, 1)]
    assert scaled.quality.log_loss.value == pytest.approx(sum(losses) / 3)
    assert scaled.quality.accuracy == plain.quality.accuracy
    assert scaled.length_points == plain.length_points  # as the model gives them


def test_the_bins_of_length_hold_each_different_answer_once(tmp_path, rows):
    found = evaluate(write(tmp_path / "r.jsonl", [*rows, {**rows[0], "labeler": "cem"}]))
    assert [(one.low, one.high, one.responses, one.mean) for one in found.length_bins] == [
        (2, 2, 12, 2.0),
        (3, 3, 12, 3.0),
        (4, 4, 12, 1.0),
    ]
    assert sorted(found.length_points) == [(2, 2.0)] * 12 + [(3, 3.0)] * 12 + [(4, 1.0)] * 12


def test_what_several_labelers_ranked_is_scored_once(tmp_path):
    answers = ((1, "a 2"), (2, "b 1"))
    twice = [row("p", *answers, labeler="anna"), row("p", *answers[::-1], labeler="ben")]
    as_turns = row([{"role": "user", "content": "p"}], (1, "a 2"), (2, "c 0"), labeler="cem")
    cut = row("p", (1, "a 2"), (2, "d 0"), labeler="dora")
    cut["responses"][0]["ended"] = False
    model, done = Fake(), []
    records = read_rankings([write(tmp_path / "r.jsonl", [*twice, as_turns, cut])]).records
    scored = score_rankings(model, records, done.append)
    asked = [(text, ended) for call in model.calls for _, text, ended in call]
    assert asked == [("a 2", True), ("b 1", True), ("c 0", True), ("a 2", False), ("d 0", True)]
    assert [one.scores for one in scored] == [(2, 1), (1, 2), (2, 0), (2, 0)]
    assert [one.lengths for one in scored] == [(2, 2)] * 4
    assert sum(done) == 5 == material_of(read_rankings([str(tmp_path / "r.jsonl")])).responses


def test_the_json_has_everything_and_no_nan(tmp_path, rows):
    found = evaluate(write(tmp_path / "r.jsonl", rows[:2])).to_json()  # two prompts: no intervals
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["accuracy"] == {"value": pytest.approx(2 / 3), "low": None, "high": None, "pairs": 6, "prompts": 2}
    assert found["verdict"]["word"] == "weak" and found["sources"][0]["rankings"] == 2
    assert [one["responses"] for one in found["score_by_length"]["bins"]] == [2, 2, 2]


# -------------------------------------------------------------------- what was trained on


def test_prompts_that_were_trained_on_are_counted_apart(tmp_path, rows):
    better = [row(f"t{i}", (1, "a 2"), (2, "b 1")) for i in range(11)]
    path = write(tmp_path / "r.jsonl", [*rows, *better, {**better[0], "labeler": "anna"}])
    found = evaluate(path, of=known(*(one["prompt"] for one in better)))
    assert found.quality.accuracy.pairs == 36
    assert found.quality.memorised.training.value == 1.0
    assert found.quality.memorised.training.pairs == 12
    (note,) = [words for words in found.notes if "trained on" in words]
    assert note.startswith("11 of 23 prompts were trained on: their 12 rankings are counted apart")


def test_a_prompt_in_turns_is_the_same_prompt(tmp_path, rows):
    turns = [{**one, "prompt": [{"role": "user", "content": one["prompt"]}]} for one in rows]
    with pytest.raises(DataError, match="trained on"):
        evaluate(write(tmp_path / "r.jsonl", turns), of=known(*(one["prompt"] for one in rows)))


def test_where_all_was_trained_on_it_is_one_line_that_says_what_to_do(tmp_path, rows):
    path = write(tmp_path / "r.jsonl", rows)
    with pytest.raises(DataError) as error:
        evaluate(path, of=known(*(one["prompt"] for one in rows)))
    assert str(error.value).startswith(f"{path}: every prompt in it was trained on")
    assert "held out" in str(error.value) and "\n" not in str(error.value)


def test_of_many_training_prompts_some_are_scored_and_that_is_said(tmp_path, rows):
    many = [row(f"t{i}", (1, "a 2"), (2, "b 1")) for i in range(MOST_TRAINING + 7)]
    path = write(tmp_path / "r.jsonl", [*rows, *many])
    material = material_of(read_rankings([path]), known(*(one["prompt"] for one in many)))
    assert len(material.training) == MOST_TRAINING and len(material.heldout) == 12
    assert any(f"Those of {MOST_TRAINING} prompts are scored" in words for words in material.notes)


def test_of_a_model_of_others_it_is_said_that_nothing_is_known(tmp_path, rows):
    path = write(tmp_path / "r.jsonl", rows)
    assert any("Nothing is known" in words for words in evaluate(path, of=Known()).notes)
    assert evaluate(path).notes == ()
    assert evaluate(path, of=Known()).to_json()["prompts_trained_on"] is None


def test_shortened_prompts_cut_answers_and_several_axes_are_said(tmp_path, rows):
    rows[0]["prompt"] = "long " * 20
    rows[1]["responses"][0]["ended"] = False
    model = Fake()
    model.shortened_prompts, model.cut_responses = 7, 8  # from before
    axes = Known(frozenset(), settings={"reward": {"axes": {"helpful": 1.0, "harmless": 0.5}}})
    notes = evaluate(write(tmp_path / "r.jsonl", rows), model=model, of=axes).notes
    assert notes[0].endswith("lost their oldest turns: 3.") and notes[1].endswith("were cut: 1.")
    assert "helpful, harmless" in notes[2]


# -------------------------------------------------------------------- files


def test_rankings_without_a_pair_are_counted_and_nothing_but_ties_is_an_error(tmp_path, rows):
    tied = [row(f"t{i}", (1, "a 2"), (1, "b 1")) for i in range(3)]
    found = evaluate(write(tmp_path / "r.jsonl", [*rows, *tied]))
    assert "3 of 15 held-out rankings are all ties: there is no pair in them." in found.notes
    assert found.quality.counts.tied_pairs == 3 and found.quality.ties.pairs == 3
    path = write(tmp_path / "tied.jsonl", tied)
    with pytest.raises(DataError) as error:
        evaluate(path)
    assert str(error.value).startswith(f"{path}: no pair to measure on") and "\n" not in str(error.value)
    mixed = write(tmp_path / "mixed.jsonl", [*rows, *tied])
    with pytest.raises(DataError, match="that was not trained on are tied"):
        evaluate(mixed, of=known(*(one["prompt"] for one in rows)))


def test_all_that_is_wrong_in_all_files_is_told_at_once(tmp_path, rows):
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps(rows[0]) + '\n{"prompt": "p", "responses": []}\n{broken\n')
    other = write(tmp_path / "other.jsonl", [rows[1], {**rows[2], "responses": rows[2]["responses"][:1]}])
    with pytest.raises(DataError) as error:
        read_rankings([str(one), other, str(tmp_path / "none.jsonl")])
    wheres = {problem.where for problem in error.value.problems}
    assert {f"{one}:2", f"{one}:3", f"{other}:2"} <= wheres
    assert any("none.jsonl" in where for where in wheres)


def test_a_cut_off_gzip_and_an_empty_file_are_errors(tmp_path, rows):
    import gzip

    whole = gzip.compress("".join(json.dumps(one) + "\n" for one in rows * 50).encode(), mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("cut.jsonl.gz", "empty.jsonl"):
        with pytest.raises(DataError, match=name):
            read_rankings([str(tmp_path / name)])


def test_rows_of_a_foreign_format_become_rankings_and_those_that_cannot_are_counted(tmp_path):
    said = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": said.format(f"q{i}", "good 2"), "rejected": said.format(f"q{i}", "bad 1")} for i in range(10)]
    rows.append({"chosen": said.format("q", "same"), "rejected": said.format("other", "else")})
    path = write(tmp_path / "hh.jsonl", rows)
    guessed, named = read_rankings([path]), read_rankings([path], format_named("hh-rlhf"))
    assert guessed.records == named.records and len(named.records) == 10
    (source,) = named.sources
    assert (source.format, source.rows, source.left_out, source.rankings) == ("hh-rlhf", 11, 1, 10)
    assert named.notes == (f"1 of 11 rows of {path} are left out; rlhf-kit validate names each with its reason.",)
    assert guessed.notes[0].startswith(f"{path} was read as hh-rlhf: ")
    assert evaluate_reward(Fake(), material_of(named), bootstrap=50).quality.accuracy.value == 1.0


def test_a_foreign_file_that_is_cut_off_is_an_error_all_the_same(tmp_path):
    import gzip

    said = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": said.format(f"q{i}", "good"), "rejected": said.format(f"q{i}", "bad")} for i in range(900)]
    whole = gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode(), mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(DataError, match="cut off"):
        read_rankings([str(tmp_path / "cut.jsonl.gz")])


def test_several_files_are_measured_together_and_one_named_twice_counts_once(tmp_path, rows):
    one, other = write(tmp_path / "one.jsonl", rows[:5]), write(tmp_path / "other.jsonl", rows[5:])
    found = read_rankings([one, other, one])
    assert [source.rankings for source in found.sources] == [5, 7]
    assert len(found.records) == 12


def test_a_score_that_is_no_number_stops_with_one_line(tmp_path, rows):
    rows[3]["responses"][0]["text"] = "a nan"
    with pytest.raises(RlhfKitError, match="1 of 36 scores are not finite"):
        evaluate(write(tmp_path / "r.jsonl", rows))


# -------------------------------------------------------------------- runs


def make_run(out, rankings, trained_on=(), hub=False, **recipe):
    """A finished reward stage that was never trained."""
    backbone = tiny_backbone("reward")
    head = add_head(backbone, "reward")
    head.mean.fill_(0.7)
    head.std.fill_(1.5)
    head.spread.fill_(2.0)
    work = open_work(out / "reward", {})
    rewards.save(backbone, work)
    if trained_on:
        seen.write(work, trained_on)
    model = {"name_or_path": str(tiny_directory()), "dtype": "float32", "base_id": "someone/tiny-llama"}
    whole = Recipe.model_validate({"model": model, "data": {"rankings": rankings}, **recipe})
    inputs = {"data": {"rankings": rankings if hub else files.sha256_of(rankings)}}
    base = {"id": "someone/tiny-llama", "dtype": "float32"}
    finish(work, out / "reward", Manifest("reward", inputs, {}, 4.0, base, {}, whole.model_dump(mode="json")))
    return out


@pytest.fixture
def run(tmp_path, rows):
    path = write(tmp_path / "rankings.jsonl", rows)
    return make_run(tmp_path / "run", path, read_rankings([path]).records[:6], reward={"init": "base"})


def test_a_run_tells_what_it_was_trained_on(run):
    found = known_of(run)
    assert found == known_of(run / "reward")
    assert found.prompts == {seen.prompt_key(f"p{i}") for i in range(6)}
    assert found.labelers == {"anna", "ben"} and found.settings["base"]["id"] == "someone/tiny-llama"
    assert known_of(run.parent) == Known()


def test_the_trained_scale_is_that_of_the_heads_own_outputs(run):
    head = ScalarHead.load(run / "reward", 32)
    said = torch.tensor([[0.3], [-1.2]])
    apart = head.score(said)[0] - head.score(said)[1]
    assert known_of(run).log_odds * float(apart) == pytest.approx(1.5)


def test_a_real_run_from_files_to_figures(run, rows):
    """A double loop over the scores of the model itself is the oracle."""
    known, model = known_of(run), RewardModel.from_run(run)
    path = str(run.parent / "rankings.jsonl")
    found = evaluate_reward(model, material_of(read_rankings([path]), known), known, bootstrap=100)
    right, pairs = 0.0, 0
    for one in rows[6:]:
        texts = [answer["text"] for answer in one["responses"]]
        scores = model.score([one["prompt"]] * 3, texts).tolist()
        for i in range(3):
            for j in range(i + 1, 3):
                pairs += 1
                right += scores[i] > scores[j]
    assert (found.quality.accuracy.pairs, found.quality.accuracy.value) == (pairs, pytest.approx(right / pairs))
    assert found.quality.memorised.training.pairs == 18
    assert found.quality.length.baselines["shorter"].value == 1.0


# -------------------------------------------------------------------- the learning curve


class Trainer:
    """Stands in for the training: a model of few prompts turns every score round."""

    def __init__(self):
        self.parts = []

    def __call__(self, plan, rankings, work):
        self.parts.append([record.prompt for record in rankings])
        assert work.is_dir()
        return Trained(Fake(factor=-1 if len(rankings) < 5 else 1), 60.0 * len(rankings))


def curve(tmp_path, rows, train, fractions=(0.25, 0.5, 1.0), **options):
    records = read_rankings([write(tmp_path / "train.jsonl", rows)]).records
    heldout = read_rankings(
        [write(tmp_path / "heldout.jsonl", [{**one, "prompt": "h" + one["prompt"]} for one in rows])]
    )
    plan = Plan(Recipe.model_validate({"model": {"name_or_path": "m"}}), records)
    return learning_curve(
        plan, heldout.records, tmp_path / "curve", train=train, fractions=fractions, bootstrap=50, **options
    )


def test_the_curve_measures_growing_parts_on_the_same_rankings(tmp_path, rows):
    train = Trainer()
    points = curve(tmp_path, [*rows, {**rows[0], "labeler": "cem"}], train)
    assert [(one.fraction, one.prompts) for one in points] == [(0.25, 3), (0.5, 6), (1.0, 12)]
    assert [round(one.accuracy.value, 4) for one in points] == [0.3333, 0.6667, 0.6667]
    assert [one.accuracy.prompts for one in points] == [12, 12, 12]
    small, half, whole = map(set, train.parts)
    assert small < half < whole and whole == {f"p{i}" for i in range(12)}
    assert points[2].pairs == 39 and points[2].seconds == 780.0


def test_a_finished_part_is_not_trained_again_and_a_changed_one_is(tmp_path, rows):
    train = Trainer()
    first = curve(tmp_path, rows, train, (0.5, 1.0))
    assert curve(tmp_path, rows, train, (0.25, 0.5, 1.0))[1:] == first and len(train.parts) == 3
    (tmp_path / "curve" / "0.5" / "point.json").write_text("{cut off")
    assert curve(tmp_path, rows, train, (0.5, 1.0)) == first and len(train.parts) == 4
    rows[0]["responses"][0]["text"] = "another 2"
    curve(tmp_path, rows, train, (1.0,))
    assert len(train.parts) == 5


def test_a_part_without_a_pair_and_one_of_the_same_size_are_left_out(tmp_path, rows):
    train = Trainer()
    assert [one.prompts for one in curve(tmp_path, rows, train, (0.25, 0.26, 1.0))] == [3, 12]
    tied = [row(one["prompt"], (1, "a 1"), (1, "b 2")) for one in rows[:11]]
    points = curve(tmp_path / "tied", [*tied, rows[11]], Trainer()) if (tmp_path / "tied").mkdir() is None else ()
    assert points[-1].prompts == 12 and all(one.pairs for one in points)


def test_the_plan_of_a_run_is_its_recipe_and_the_rankings_it_was_trained_on(run):
    plan = plan_of(run)
    assert [record.prompt for record in plan.rankings] == [f"p{i}" for i in range(6)]
    assert plan.recipe.output_dir == str(run) and plan.recipe.reward.init == "base"


def test_rankings_from_the_hub_stand_for_themselves(run, tmp_path, monkeypatch):
    again = make_run(tmp_path / "hub", "someone/rankings", plan_of(run).rankings, hub=True)
    records = read_rankings([str(run.parent / "rankings.jsonl")]).records
    monkeypatch.setattr(
        files, "load", lambda source, kind: {("someone/rankings", "ranking"): list(records)}[source, kind]
    )
    assert len(plan_of(again).rankings) == 6


def test_a_run_whose_rankings_are_gone_or_changed_or_unknown_is_one_line(run, tmp_path, rows):
    path = run.parent / "rankings.jsonl"
    for change, words in (
        (lambda: path.write_text("{}\n"), "has changed since the run"),
        (path.unlink, "is not there"),
    ):
        change()
        with pytest.raises(DataError, match=words) as error:
            plan_of(run)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    again = make_run(tmp_path / "old", write(tmp_path / "again.jsonl", rows))
    with pytest.raises(CheckpointError, match="does not say which prompts"):
        plan_of(again)
    with pytest.raises(CheckpointError, match="no finished reward stage"):
        plan_of(tmp_path)


def test_the_stage_is_trained_anew_on_a_part_and_the_whole_is_the_run_itself(run, tmp_path, monkeypatch):
    plan = plan_of(run)
    trained = train_fraction(plan, plan.rankings[:3], tmp_path / "part")
    found = known_of(tmp_path / "part" / "reward")
    assert found.prompts == {seen.prompt_key(f"p{i}") for i in range(3)}
    assert trained.seconds > 0 and trained.model.name == str(tmp_path / "part" / "reward")
    again = train_fraction(plan, plan.rankings[:3], tmp_path / "part")
    assert again.seconds == trained.seconds  # it was finished
    assert train_fraction(plan, plan.rankings, tmp_path / "whole").seconds == 4.0
    assert not (tmp_path / "whole").exists()
