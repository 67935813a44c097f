"""Answers of several policies for labelers: put together, each text once, and the prompts worth labelling."""

# ruff: noqa: F811

import json
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from test_cli_sample import (  # noqa: F401
    FEW,
    _untouched_logging,
    account_of,
    asked,
    prompts,
    recipe,
    run,
)
from test_sampling import QUESTIONS, Letters, _answers_that_end, oracle, rows_of, write  # noqa: F401

from rlhf_kit import files
from rlhf_kit.cli import main
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.policies import answering
from rlhf_kit.gathering import Wish, disagreement, gather, uncertainty
from rlhf_kit.gathering.selection import most
from rlhf_kit.sampling import Answer, Judge, Settings, distinct
from rlhf_kit.sampling.prompts import read_prompts

LN2 = math.log(2)


# -------------------------------------------------------------------- which prompts


def test_uncertainty_by_hand():
    assert uncertainty(np.array([[0.3, 0.3]])) == pytest.approx(LN2), "a coin"
    assert uncertainty(np.array([[1000.0, -1000.0]])) == pytest.approx(0.0, abs=1e-12), "sure, and no overflow"
    # odds of three to one: -(3/4 ln 3/4 + 1/4 ln 1/4)
    assert uncertainty(np.array([[math.log(3), 0.0]])) == pytest.approx(0.5623351446)
    # three answers: two pairs of 3 to 1 and a coin
    assert uncertainty(np.array([[math.log(3), 0.0, 0.0]])) == pytest.approx((2 * 0.5623351446 + LN2) / 3)
    # two models that are sure of the opposite: their mean is a coin
    assert uncertainty(np.array([[50.0, -50.0], [-50.0, 50.0]])) == pytest.approx(LN2)


def test_disagreement_by_hand():
    assert disagreement(np.array([[50.0, -50.0], [-50.0, 50.0]])) == pytest.approx(LN2), "a verdict tells all"
    assert disagreement(np.array([[0.0, 0.0]] * 3)) == pytest.approx(0.0), "unsure, but of one mind"
    nine, one = math.log(9), -math.log(9)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert disagreement(np.array([[nine, 0.0], [one, 0.0]])) == pytest.approx(LN2 - entropy)


def test_both_are_the_papers_double_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=(rng.integers(1, 5), rng.integers(2, 7))) * 3

        def h(p):
            return -p * math.log(p) - (1 - p) * math.log(1 - p)

        both, alone, pairs = 0.0, 0.0, 0
        for i, j in combinations(range(scores.shape[1]), 2):
            verdicts = [1 / (1 + math.exp(-(model[i] - model[j]))) for model in scores]
            both += h(sum(verdicts) / len(verdicts))
            alone += sum(map(h, verdicts)) / len(verdicts)
            pairs += 1
        assert uncertainty(scores) == pytest.approx(both / pairs)
        assert disagreement(scores) == pytest.approx((both - alone) / pairs, abs=1e-12)


def test_the_most_keep_their_order_and_the_first_of_equals_wins():
    assert most([0.1, 0.5, 0.3, 0.5, 0.5], 3) == [1, 3, 4]
    assert most([0.2, 0.2, 0.2], 2) == [0, 1]
    assert most([1.0], 5) == [0]


def test_a_text_of_two_policies_names_both_and_counts_all():
    a, b = Answer("same", False, 4, source="sft"), Answer("same", True, 3, source="ppo")
    assert distinct([a, b, a]) == [Answer("same", True, 3, count=3, source="sft + ppo")]


# -------------------------------------------------------------------- several answer


def wish_of(run, prompts, policies=("base", "sft", "ppo"), **changes):
    settings = Settings(**{"k": 6, "temperature": 1.0, "max_new_tokens": 6, "seed": 3, "batch_size": 8})
    given = {"policies": answering([str(run)], policies), "prompts": read_prompts(prompts)[0], "settings": settings}
    return Wish(**given | changes)


def test_every_row_holds_each_text_once_with_who_gave_it(run, prompts, tmp_path):
    out = tmp_path / "answers.jsonl"
    found = gather(wish_of(run, prompts), out)
    rows = rows_of(out)
    assert [row["prompt"] for row in rows] == QUESTIONS and found.answers == 3 * 2 * len(QUESTIONS)
    who = set()
    for row in rows:
        responses = row["meta"]["responses"]
        texts = [r["text"] for r in responses]
        assert len(set(texts)) == len(texts) <= 6 and all(text.strip() for text in texts)
        who |= {name for r in responses for name in r["source"].split(" + ")}
        assert "policy" not in row["meta"]
    assert who == {"base", "sft", "ppo"}
    assert sum(found.kept.values()) >= sum(len(row["meta"]["responses"]) for row in rows)
    assert files.load(str(out), "prompt"), "rows that every reader of prompts takes"
    assert not list(tmp_path.glob(".*")), "no work is left"


def test_each_answers_as_if_it_were_alone(run, prompts, tmp_path):
    """The same sampling and seeds: what a policy says does not depend on who else is asked."""
    together, alone = tmp_path / "together.jsonl", tmp_path / "alone.jsonl"
    gather(wish_of(run, prompts), together)
    k = Settings(k=2, temperature=1.0, max_new_tokens=6, seed=3, batch_size=8)
    gather(wish_of(run, prompts, ("sft",), settings=k), alone)
    for both, one in zip(rows_of(together), rows_of(alone), strict=True):
        said = {r["text"] for r in both["meta"]["responses"] if "sft" in r["source"]}
        assert said == {r["text"] for r in one["meta"]["responses"]}


def test_who_comes_first_changes_where_not_all_have_room(run, prompts, tmp_path):
    settings = Settings(k=2, temperature=1.0, max_new_tokens=6, seed=3, batch_size=8)
    found = gather(wish_of(run, prompts, settings=settings), tmp_path / "few.jsonl")
    assert min(found.kept.get(name, 0) for name in ("base", "sft", "ppo")) >= 2


def test_at_temperature_0_each_has_its_one_answer(run, prompts, tmp_path, monkeypatch):
    monkeypatch.undo()  # else the likeliest token is EOS
    settings = Settings(k=1, temperature=0.0, max_new_tokens=6, seed=3, batch_size=8)
    found = gather(wish_of(run, prompts, settings=settings), tmp_path / "greedy.jsonl")
    assert found.answers == 3 * len(QUESTIONS) and min(found.kept.get(name, 0) for name in ("base", "sft", "ppo")) >= 1
    for name in ("base", "sft", "ppo"):
        gather(wish_of(run, prompts, (name,), settings=settings), tmp_path / f"{name}.jsonl")
    alone = {
        (row["prompt"], r["text"])
        for name in ("base", "sft", "ppo")
        for row in rows_of(tmp_path / f"{name}.jsonl")
        for r in row["meta"]["responses"]
    }
    together = {
        (row["prompt"], r["text"]) for row in rows_of(tmp_path / "greedy.jsonl") for r in row["meta"]["responses"]
    }
    assert together == alone


def test_prompts_with_too_few_answers_are_left_out(run, prompts, tmp_path):
    settings = Settings(k=4, temperature=0.02, max_new_tokens=3, seed=3, batch_size=8)  # nearly always the same
    found = gather(wish_of(run, prompts, ("sft",), settings=settings, least=3), tmp_path / "few.jsonl")
    assert found.left_out > 0 and found.rows + found.left_out == found.prompts
    assert all(len(row["meta"]["responses"]) >= 3 for row in rows_of(tmp_path / "few.jsonl"))


def test_what_was_interrupted_goes_on_and_draws_nothing_twice(run, prompts, tmp_path, monkeypatch):
    from rlhf_kit.evaluation import answering as drawing

    plain, drawn = drawing.draw_chunk, []

    def counted(backbone, ids, settings, chunk, progress):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(chunk)
        return plain(backbone, ids, settings, chunk, progress)

    gather(wish_of(run, prompts), tmp_path / "whole.jsonl")
    monkeypatch.setattr(drawing, "draw_chunk", counted)
    out = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        gather(wish_of(run, prompts), out)
    assert not out.exists()
    monkeypatch.setattr(drawing, "draw_chunk", lambda *words: drawn.append(words[3]) or plain(*words))
    gather(wish_of(run, prompts), out)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    chunks = 3 * -(-len(QUESTIONS) // 4)  # chunks of four prompts with two answers each
    assert len(drawn) == chunks


def test_the_most_uncertain_prompts_are_taken(run, prompts, tmp_path):
    judge = Judge("letters", None, Letters, lambda: 0.5)
    everything = wish_of(run, prompts, judges=(judge,))
    gather(everything, tmp_path / "all.jsonl")
    found = gather(wish_of(run, prompts, judges=(judge,), select="uncertainty", take=2), tmp_path / "two.jsonl")
    values = []
    for row in rows_of(tmp_path / "all.jsonl"):
        responses = row["meta"]["responses"]
        scores = [oracle(r["text"]) for r in responses]
        assert [r["score"] for r in responses] == pytest.approx(scores, abs=1e-6), "as the model says them"
        values.append(uncertainty(0.5 * np.array([scores])))
    kept = [row["prompt"] for row in rows_of(tmp_path / "two.jsonl")]
    assert kept == [QUESTIONS[i] for i in sorted(sorted(range(6), key=lambda i: -values[i])[:2])]
    assert found.not_taken == 4 and found.value is not None and found.value[0] > found.value[1]


def test_several_reward_models_rank_by_their_mean(run, prompts, tmp_path):
    class Shorter(Letters):
        def score(self, prompts, responses, **given):
            return super().score(prompts, [""] * len(responses), **given) - np.array([len(r) for r in responses])

    judges = (Judge("letters", None, Letters), Judge("shorter", None, Shorter))
    gather(wish_of(run, prompts, judges=judges, keep="ranked", least=2), tmp_path / "ranked.jsonl")
    for ranking in files.load(str(tmp_path / "ranked.jsonl"), "ranking"):
        assert ranking.labeler == "reward:letters + shorter"
        means = [(oracle(r.text) - len(r.text)) / 2 for r in ranking.responses]
        assert ranking.meta["scores"] == pytest.approx(means, abs=1e-5)
        order = sorted(range(len(means)), key=lambda i: ranking.responses[i].rank)
        assert all(means[a] >= means[b] - 1e-5 for a, b in pairwise(order))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"least": 7}, "--k 7..6"),
        ({"select": "uncertainty", "take": 2}, "reward models needed: 1, named: 0"),
        ({"select": "disagreement", "take": 2, "judges": (Judge("one", None, Letters),)}, "needed: 2, named: 1"),
        ({"select": "uncertainty", "judges": (Judge("one", None, Letters),)}, "say how many with --take"),
        ({"keep": "ranked"}, "reward models needed: 1"),
        ({"keep": "best"}, "reward models needed: 1"),
    ],
)
def test_what_cannot_be_is_said(run, prompts, changes, words):
    with pytest.raises(RlhfKitError, match=words.replace(".", r"\.")):
        wish_of(run, prompts, **changes)


# -------------------------------------------------------------------- as it is typed


def test_several_by_the_command(run, prompts, capsys, tmp_path):
    words = ["--prompts", prompts, "--k", "2..4", "--max-new-tokens", "6", "--out", tmp_path / "tasks.jsonl"]
    said = account_of(capsys, run, "--policy", "sft,ppo", *words)
    assert set(said["kept"]) == {"sft", "ppo"} and said["rows"] + said["left_out"] == len(QUESTIONS)
    assert all(2 <= len(row["meta"]["responses"]) <= 4 for row in rows_of(tmp_path / "tasks.jsonl"))
    said = account_of(capsys, run, f"mine={run / 'sft'}", *words)
    assert set(said["kept"]) == {"ppo", "mine"}, "of a run the last policy, and what is named beside it"
    said = account_of(capsys, run, *words, "--take", "3")
    assert said["rows"] == 3 and set(said["kept"]) == {"ppo"}
    assert main([*map(str, ("sample", run, "--policy", "base,ppo", *words))]) == 0
    printed = capsys.readouterr().out
    assert "answers by base, ppo" in printed and "prompts with their answers out" in printed


def test_a_policy_of_no_stage_and_bad_numbers_are_refused(run, prompts, capsys, tmp_path):
    words = ["sample", str(run), "--prompts", prompts]
    (run / "ppo").rename(tmp_path / "ppo")
    assert main([*words, "--policy", "sft,ppo"]) == 2
    assert "no policy of the stage ppo" in capsys.readouterr().err
    for wrong in (["--policy", "sft,rm"], ["--k", "0..3"], ["--k", "x"]):
        with pytest.raises(SystemExit):
            main([*words, *wrong])
    assert main([*words, "--k", "5..3"]) == 2
    assert "--k 5..3" in capsys.readouterr().err
    assert main(["sample", str(run), str(run / "sft"), "--prompts", prompts, "--checkpoints"]) == 2
    assert "--checkpoints compares those of one run" in capsys.readouterr().err
    assert main(["sample", str(run), "--policy", "base,sft", "--prompts", prompts, "--checkpoints"]) == 2
    assert "--checkpoints compares those of one run" in capsys.readouterr().err


def test_json_is_the_account(run, prompts, capsys, tmp_path):
    said = account_of(capsys, run, "--prompts", prompts, "--policy", "base,sft", *FEW, "--out", tmp_path / "o.jsonl")
    assert json.loads(json.dumps(said))["file"] == str(tmp_path / "o.jsonl")
    assert said["answers"] == len(QUESTIONS) * 2 * 2, "three answers of two policies: two of each are drawn"
