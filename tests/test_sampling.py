"""Answers to prompts: who answers, what is drawn, what a reward model that counts letters makes of it."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from backbones import tiny_backbone
from safetensors.torch import load_file
from tiny import make_tiny_model

from rlhf_kit import files, sampling
from rlhf_kit.checkpoint import Manifest, finish, read_manifest, work_directory
from rlhf_kit.data import Encoder
from rlhf_kit.errors import CheckpointError, DataError, ModelError, RlhfKitError
from rlhf_kit.evaluation.choosing import home
from rlhf_kit.evaluation.policies import answering
from rlhf_kit.gathering import Wish, candidates, choose, compare, gather, judge_checkpoints
from rlhf_kit.gathering.checkpoints import FINAL
from rlhf_kit.models import Backbone, load_backbone, lora_config
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Demonstration, Prompt, Ranking
from rlhf_kit.sampling import Answer, Judge, Settings, best_of, distinct, read_prompts, score_answers
from rlhf_kit.sampling.drawing import draw_chunk, seed_of, silent

QUESTIONS = ["Why is the sky blue?", "Say hello.", "Name three colours.", "Count to five.", "Tell me a story.", "Hi."]
FEW = Settings(k=4, temperature=1.0, max_new_tokens=6, seed=3, batch_size=8)


class Letters:
    """Scores an answer by its letters e: no model, so that a test can count along."""

    name = "letters"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, prompts, responses, *, ended=None, progress=lambda done: None):
        assert len(prompts) == len(responses) == len(ended)
        self.asked += len(responses)
        progress(len(responses))
        return torch.tensor([oracle(text) for text in responses])


def oracle(text):
    return float(text.count("e")) - 0.1 * len(text)


JUDGE = Judge("letters", None, Letters)


@pytest.fixture(autouse=True)
def _answers_that_end(monkeypatch):
    """Makes EOS likely: about half of the answers end before the sixth token."""
    plain = Backbone.next_token_logits

    def likelier(self, hidden):
        logits = plain(self, hidden)
        logits[:, self.tokenizer.eos_token_id] += 4.0
        return logits

    monkeypatch.setattr(Backbone, "next_token_logits", likelier)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    return Recipe.model_validate({"model": {"name_or_path": str(model), "base_id": "tiny/base", "dtype": "float32"}})


def stirred(recipe, *seeds):
    """A backbone with an adapter for each seed, each with weights that do something."""
    backbone = load_backbone(recipe.model)
    for seed in seeds:
        backbone.add_adapter(f"a{seed}", lora_config(recipe.lora))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in backbone.adapter_parameters(f"a{seed}"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return backbone


def stage(backbone, recipe, adapter, run, name, **fields):
    work = run / f".{name}.partial"
    backbone.save_adapter(adapter, work)
    finish(work, run / name, Manifest(name, {}, {"loss_last": 1.0}, 0.0, {}, {}, recipe.model_dump(mode="json")))
    return run / name


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    backbone = stirred(recipe, 1, 2)
    stage(backbone, recipe, "a1", out, "sft")
    stage(backbone, recipe.model_copy(update={"seed": 7}), "a2", out, "ppo")
    return out


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", [{"prompt": q, "id": f"q{i}"} for i, q in enumerate(QUESTIONS)])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---------------------------------------------------------------- who answers, and what


def policy_of(run, *stages):
    (policy,) = answering([str(run)], stages)
    return policy


def test_the_last_policy_answers_if_none_is_named(run):
    assert policy_of(run).adapter == run / "ppo"
    assert policy_of(run, "sft").adapter == run / "sft"
    base = policy_of(run, "base")
    assert (base.name, base.adapter, base.run) == ("base", None, run)
    alone = policy_of(run / "sft")
    assert (alone.name, alone.adapter, alone.run) == ("sft", run / "sft", run)


def test_a_policy_that_is_not_there(run, recipe, tmp_path):
    with pytest.raises(RlhfKitError, match="neither a run, nor a stage, nor an adapter, nor a model"):
        policy_of(tmp_path)
    with pytest.raises(CheckpointError, match="no policy of the stage ppo"):
        policy_of(run / "sft", "ppo")
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "manifest.json").write_text((run / "sft" / "manifest.json").read_text())
    (tmp_path / "reward" / "adapter_model.safetensors").write_bytes(
        (run / "sft" / "adapter_model.safetensors").read_bytes()
    )
    assert policy_of(tmp_path).name == "base", "a run with a reward model alone still has its base"
    assert home([str(tmp_path)]) == tmp_path
    (tmp_path / "reward" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(RlhfKitError, match="changed since"):
        policy_of(tmp_path)


def test_the_prompts_of_every_kind_of_file_once(tmp_path):
    answers = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]
    rankings = [
        {"prompt": "Why?", "responses": answers, "labeler": "anna", "category": "open_qa", "meta": {"batch": 3}},
        {"prompt": [{"role": "user", "content": "Why?"}], "responses": answers, "labeler": "ben"},
        {"prompt": "How?", "responses": answers},
    ]
    found, repeated = sampling.read_prompts(write(tmp_path / "r.jsonl", rankings))
    assert found == [Prompt(prompt="Why?", category="open_qa"), Prompt(prompt="How?")]
    assert repeated == 1
    demonstration = {"prompt": "Why?", "completion": "So.", "labeler": "anna", "user_id": "u1", "id": "d1"}
    found, _ = sampling.read_prompts(write(tmp_path / "d.jsonl", [demonstration]))
    assert found == [Prompt(prompt="Why?", user_id="u1", id="d1")]
    own = {"prompt": "Why?", "labeler": "anna", "meta": {"batch": 3}}
    found, _ = sampling.read_prompts(write(tmp_path / "p.jsonl", [own]))
    assert found == [Prompt(prompt="Why?", labeler="anna", meta={"batch": 3})]


def test_every_bad_prompt_is_named(tmp_path):
    name = write(tmp_path / "p.jsonl", [{"prompt": "Why?"}, {"prompt": " "}, {"prompt": "How?"}, {"prompt": 3}])
    with pytest.raises(DataError) as caught:
        sampling.read_prompts(name)
    assert [p.where for p in caught.value.problems] == [f"{name}:2", f"{name}:4"]
    with pytest.raises(DataError, match="text rows"):
        sampling.read_prompts(write(tmp_path / "t.jsonl", [{"text": "A river."}]))


# ---------------------------------------------------------------- drawing


def draw(backbone, settings=FEW, questions=QUESTIONS, role=None):
    encoder = Encoder(backbone.tokenizer, max_prompt_length=64)
    ids, size, rows = [encoder.prompt(question) for question in questions], settings.prompts_of_a_chunk, []
    for chunk, start in enumerate(range(0, len(ids), size)):
        with backbone.role(role):
            drawn = draw_chunk(backbone, ids[start : start + size], settings, chunk)
        said = [Answer(encoder.text(a), a[-1] == encoder.tokenizer.eos_token_id, len(a)) for a in drawn]
        rows += [said[at : at + settings.k] for at in range(0, len(said), settings.k)]
    return rows


def test_k_answers_of_the_role_that_is_asked_for():
    backbone = tiny_backbone("sft", "ppo")
    said = {role: draw(backbone, role=role) for role in (None, "sft", "ppo")}
    assert all([len(row) for row in rows] == [4] * len(QUESTIONS) for rows in said.values())
    assert said[None] != said["sft"] != said["ppo"] != said[None]
    flat = [answer for row in said["sft"] for answer in row]
    assert {a.ended for a in flat} == {True, False}
    assert all(a.tokens == 6 for a in flat if not a.ended) and all(1 <= a.tokens <= 6 for a in flat)
    assert len({a.text for row in said["sft"] for a in row}) > len(QUESTIONS), "K answers of a prompt are not one"


def test_a_greedy_answer_begins_with_the_likeliest_token_of_the_role():
    backbone = tiny_backbone("sft")
    found = draw(backbone, Settings(1, 0.0, 5, 0), ["Hi.", "Say hello to the cat."], role="sft")
    encoder = Encoder(backbone.tokenizer, max_prompt_length=64)
    for question, (answer,) in zip(["Hi.", "Say hello to the cat."], found, strict=True):
        ids = torch.tensor([encoder.prompt(question)])
        with backbone.role("sft"):
            hidden = backbone.base.get_decoder()(ids).last_hidden_state[:, -1]
            first = int(backbone.next_token_logits(hidden).argmax())
        assert answer.text.startswith(encoder.text([first]))


def test_the_same_seed_draws_the_same_and_others_draw_others():
    backbone = tiny_backbone("sft")
    assert draw(backbone) == draw(backbone)
    other = Settings(**{**vars(FEW), "seed": 4})
    assert draw(backbone, other) != draw(backbone)
    assert len({seed_of(seed, chunk) for seed in range(30) for chunk in range(30)}) == 900


def test_a_chunk_depends_on_no_other():
    backbone = tiny_backbone("sft")
    assert FEW.prompts_of_a_chunk == 2
    whole = draw(backbone)
    changed = draw(backbone, questions=[*QUESTIONS[:2], "What is this?", "And that?", *QUESTIONS[4:]])
    assert whole[:2] == changed[:2] and whole[4:] == changed[4:] and whole[2:4] != changed[2:4]
    twice = draw(backbone, questions=[*QUESTIONS[:2], *QUESTIONS[:2]])
    assert twice[:2] != twice[2:], "each chunk has randomness of its own"


def test_settings_that_cannot_be():
    with pytest.raises(RlhfKitError, match="the same answer 4 times; use --k 1"):
        Settings(4, 0.0, 8, 0)
    with pytest.raises(RlhfKitError, match="at least one answer"):
        Settings(0, 1.0, 8, 0)
    Settings(1, 0.0, 8, 0)


def test_what_is_not_given_is_as_the_recipe_says():
    recipe = Recipe.model_validate(
        {
            "model": {"name_or_path": "a/b"},
            "seed": 5,
            "ppo": {"response_length": 31},
            "evaluate": {"samples_per_prompt": 3, "temperature": 0.7, "per_device_eval_batch_size": 9},
        }
    )
    assert sampling.settings_of(recipe) == Settings(3, 0.7, 31, 5, 9)
    given = sampling.settings_of(recipe, k=1, temperature=0.0, max_new_tokens=None, seed=0)
    assert given == Settings(1, 0.0, 31, 0, 9)


# ---------------------------------------------------------------- scoring


def test_the_same_texts_are_one_and_counted():
    a, b, cut = Answer("a", True, 2), Answer("b", False, 6), Answer("a", False, 6)
    assert distinct([cut, b, a, a]) == [Answer("a", True, 2, count=3), Answer("b", False, 6)]
    assert distinct([a, cut]) == [Answer("a", True, 2, count=2)]


def answer(text, score, ended=True):
    return Answer(text, ended, 3, score=score)


def test_the_best_is_the_argmax_among_those_that_ended():
    answers = [answer("a", -2.0), answer("b", 3.0), answer("c", 1.0), answer("d", 3.0)]
    assert best_of(answers) == answers[1]
    cut = answer("e", 9.0, ended=False)
    assert best_of([cut, *answers]) == answers[1]
    assert best_of([cut, answer("f", 1.0, ended=False)]) == cut
    blank = answer(" \n", 8.0)
    assert best_of([blank, *answers]) == answers[1]
    assert best_of([blank, cut]) == cut, "a blank answer that ended is no reason to drop the others"
    assert best_of([blank]) is None and best_of([]) is None


class Prompted(Letters):
    """Scores that tell which prompt they were asked about."""

    def score(self, prompts, responses, **options):
        own = torch.tensor([100.0 * QUESTIONS.index(prompt) for prompt in prompts])
        return own + super().score(prompts, responses, **options)


def test_scores_go_to_their_answers_whatever_the_chunks(tmp_path):
    said = [[Answer("e" * i, True, i) for i in range(1, 2 + row % 3)] for row in range(6)]
    expected = [[pytest.approx(100 * row + oracle(a.text), abs=1e-4) for a in some] for row, some in enumerate(said)]
    for size in (1, 4, 64):
        scored = score_answers(Prompted(), QUESTIONS, said, chunk=size)
        assert [[a.score for a in row] for row in scored] == expected
    first = Prompted()
    score_answers(first, QUESTIONS, said, kept=tmp_path, chunk=4)
    again = Prompted()
    assert score_answers(again, QUESTIONS, said, kept=tmp_path, chunk=4) == scored
    assert again.asked == 0 and first.asked == sum(map(len, said))


def test_a_score_is_the_shortest_decimal_of_its_float32():
    class Thirds(Letters):
        def score(self, prompts, responses, **_):
            return torch.tensor([0.3, 1 / 3])

    ((a, b),) = score_answers(Thirds(), ["q"], [[Answer("a", True, 1), Answer("b", True, 1)]])
    assert (a.score, b.score) == (0.3, 0.33333334)
    assert torch.tensor(b.score).equal(torch.tensor(1 / 3))


def test_a_score_that_is_no_number_stops_it():
    class Broken(Letters):
        def score(self, prompts, responses, **_):
            return torch.tensor([1.0, float("nan")])

    with pytest.raises(ModelError, match="letters: gives the score nan to an answer to 'Why"):
        score_answers(Broken(), ["How?", "Why?"], [[Answer("a", True, 1)], [Answer("b", True, 1)]])


# ---------------------------------------------------------------- files


def sample(policy, source, out, settings, *, keep="all", judge=None, progress=silent):
    judges = () if judge is None else (judge,)
    return gather(Wish((policy,), read_prompts(source)[0], settings, keep=keep, judges=judges), out, progress=progress)


def drawn_by(adapter, recipe):
    """What an adapter says to the questions, drawn by hand."""
    backbone = load_backbone(recipe.model)
    backbone.load_adapter("one", adapter)
    return draw(backbone, role="one")


def test_all_answers_stand_in_prompt_rows(run, recipe, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    account = sample(policy_of(run), prompts, out, FEW)
    rows = files.load(str(out), "prompt")
    assert files.guess_kind(str(out)) == "prompt"
    assert [row.prompt for row in rows] == QUESTIONS and [row.id for row in rows] == [f"q{i}" for i in range(6)]
    said = drawn_by(run / "ppo", recipe)
    for row, answers in zip(rows, said, strict=True):
        responses = row.meta["responses"]
        assert all(set(r) == {"text", "ended", "tokens", "count", "source"} for r in responses)
        assert {r["source"] for r in responses} == {"ppo"}
        counted = Counter(a.text for a in answers if a.text.strip())
        assert [(r["text"], r["count"]) for r in responses] == list(counted.items())
    flat = [answer for answers in said for answer in answers]
    assert account.rows == account.prompts == 6 and account.answers == 24
    assert account.distinct == sum(len(row.meta["responses"]) for row in rows)
    assert account.eos_rate == pytest.approx(sum(a.ended for a in flat) / 24)
    assert account.tokens == pytest.approx(sum(a.tokens for a in flat) / 24)
    assert account.score is account.kept_score is account.reward is None
    assert not work_directory(out).exists()


def test_the_best_answers_are_demonstrations(run, recipe, prompts, tmp_path):
    account = sample(policy_of(run, "sft"), prompts, tmp_path / "best.jsonl", FEW, keep="best", judge=JUDGE)
    drawn = dict(zip(QUESTIONS, drawn_by(run / "sft", recipe), strict=True))
    best = files.load(str(tmp_path / "best.jsonl"), "demonstration")
    assert all(type(row) is Demonstration for row in best)
    unended, scores = 0, []
    for row in best:
        said = [a for a in drawn[row.prompt] if a.text.strip()]
        pool = [a for a in said if a.ended] or said
        top = max(oracle(a.text) for a in pool)
        assert oracle(row.completion) == pytest.approx(top) == pytest.approx(row.meta["score"], abs=1e-6)
        assert row.meta["of"] == 4 and (row.meta["policy"], row.meta["reward"]) == ("sft", "letters")
        assert row.meta["ended"] == any(a.ended for a in said)
        unended += not row.meta["ended"]
        scores.append(top)
    missing = [q for q, said in drawn.items() if not any(a.text.strip() for a in said)]
    assert account.rows == len(best) and account.left_out == len(missing) == len(QUESTIONS) - len(best)
    assert account.unended == unended and account.reward == "letters"
    assert account.kept_score == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    flat = [oracle(a.text) for said in drawn.values() for a in said if a.text.strip()]
    assert account.score == pytest.approx(sum(flat) / len(flat), abs=1e-6)
    assert account.kept_score > account.score


def test_ranked_answers_are_rankings(run, prompts, tmp_path):
    out = tmp_path / "ranked.jsonl"
    account = sample(policy_of(run), prompts, out, FEW, keep="ranked", judge=JUDGE)
    rows = files.load(str(out), "ranking")
    assert rows and account.rows == len(rows) and account.rows + account.left_out == 6
    for row in rows:
        assert type(row) is Ranking and row.labeler == "reward:letters"
        assert min(r.rank for r in row.responses) == 1
        for one, score in zip(row.responses, row.meta["scores"], strict=True):
            assert score == pytest.approx(oracle(one.text), abs=1e-6)
            better = {oracle(other.text) for other in row.responses if oracle(other.text) > oracle(one.text) + 1e-6}
            assert one.rank == 1 + len({round(b, 4) for b in better}) and one.source == "ppo"


def test_blank_and_unended_answers_are_counted(run, tmp_path, monkeypatch):
    said = [[Answer("", True, 1)] * 2, [Answer("eee", False, 6), Answer("e", False, 6)], [Answer("e", True, 2)] * 2]
    monkeypatch.setattr(sys.modules["rlhf_kit.gathering.gather"], "answers_of", lambda *_, **__: [said])
    source = write(tmp_path / "p.jsonl", [{"prompt": q} for q in QUESTIONS[:3]])
    settings, policy = Settings(2, 1.0, 6, 0), policy_of(run)
    account = sample(policy, source, tmp_path / "o.jsonl", settings, keep="best", judge=JUDGE)
    assert (account.rows, account.left_out, account.unended) == (2, 1, 1)
    assert (account.answers, account.distinct, account.eos_rate) == (6, 3, pytest.approx(4 / 6))
    assert [row["completion"] for row in rows_of(tmp_path / "o.jsonl")] == ["eee", "e"]
    assert account.kept_score == pytest.approx((2.7 + 0.9) / 2, abs=1e-6)
    assert account.score == pytest.approx((2.7 + 0.9 + 0.9 + 0.9) / 4, abs=1e-6), "what is blank counts for nothing"


def test_ties_share_a_rank(run, tmp_path):
    from rlhf_kit.sampling.writing import ranking_row

    row = ranking_row(
        Prompt(prompt="Why?", user_id="u", meta={"batch": 3}, labeler="anna"),
        [answer("a", 1.0), answer("b", 2.5, ended=False), answer("c", 1.0), answer("d", -1.0)],
        "rm",
    )
    assert [(r.rank, r.ended) for r in row.responses] == [(2, True), (1, False), (2, True), (3, True)]
    assert row.user_id == "u" and row.meta == {"batch": 3, "scores": [1.0, 2.5, 1.0, -1.0]}


def test_the_same_command_twice_gives_the_same_bytes_also_when_interrupted(run, prompts, tmp_path, monkeypatch):
    policy, out, again = policy_of(run), tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    sample(policy, prompts, out, FEW, keep="best", judge=JUDGE)
    whole = out.read_bytes()
    sample(policy, prompts, out, FEW, keep="best", judge=JUDGE)
    assert out.read_bytes() == whole

    def stop_after(count):
        def progress(what, done, total):
            nonlocal count
            count -= done
            if count < 0:
                raise KeyboardInterrupt

        return progress

    # After one chunk, after two, and when all are drawn but not all scored.
    for answers in (8, 16, 25):
        with pytest.raises(KeyboardInterrupt):
            sample(policy, prompts, again, FEW, keep="best", judge=JUDGE, progress=stop_after(answers))
        assert not again.exists() and work_directory(again).is_dir()
    drawn = []
    plain = sampling.drawing.sample_in_batches
    monkeypatch.setattr(
        "rlhf_kit.sampling.drawing.sample_in_batches", lambda *a, **k: drawn.append(1) or plain(*a, **k)
    )
    sample(policy, prompts, again, FEW, keep="best", judge=JUDGE)
    assert again.read_bytes() == whole and not drawn, "everything was drawn before"
    assert not work_directory(again).exists()


def test_a_changed_setting_starts_anew(run, prompts, tmp_path, monkeypatch):
    policy, out = policy_of(run), tmp_path / "out.jsonl"

    def interrupted():
        def progress(what, done, total):
            if what == "scores":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sample(policy, prompts, out, FEW, keep="best", judge=JUDGE, progress=progress)

    drawn = []
    plain = sampling.drawing.sample_in_batches
    monkeypatch.setattr(
        "rlhf_kit.sampling.drawing.sample_in_batches", lambda *a, **k: drawn.append(1) or plain(*a, **k)
    )
    longer = write(tmp_path / "more.jsonl", [{"prompt": q} for q in [*QUESTIONS, "And?"]])
    changes = [
        (policy, prompts, Settings(**{**vars(FEW), "seed": 9}), JUDGE, 3),
        (policy, prompts, Settings(**{**vars(FEW), "temperature": 0.9}), JUDGE, 3),
        (policy, prompts, Settings(**{**vars(FEW), "k": 3}), JUDGE, 3),
        (policy, longer, FEW, JUDGE, 4),
        (policy_of(run, "sft"), prompts, FEW, JUDGE, 3),
        (replace(policy, max_prompt_length=policy.max_prompt_length - 1), prompts, FEW, JUDGE, 3),
        (policy, prompts, FEW, Judge("letters", {"head": "ab12"}, Letters), 3),
        (policy, prompts, FEW, JUDGE, 0),
    ]
    for who, source, settings, judge, chunks in changes:
        interrupted()
        drawn.clear()
        sample(who, source, out, settings, keep="best", judge=judge)
        assert len(drawn) == chunks


def test_what_cannot_be_asked(run, prompts, tmp_path):
    policy = policy_of(run)
    with pytest.raises(RlhfKitError, match="reward models needed: 1"):
        sample(policy, prompts, tmp_path / "o.jsonl", FEW, keep="best")
    for k in (1, 65):
        with pytest.raises(RlhfKitError, match="2 to 64 answers"):
            sample(policy, prompts, tmp_path / "o.jsonl", Settings(k, 1.0, 4, 0), keep="ranked", judge=JUDGE)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_several_processes_are_refused(run, prompts, tmp_path, monkeypatch):
    state = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr("rlhf_kit.sampling.drawing.PartialState", lambda **_: state)
    policy = policy_of(run, "sft")
    for launched in (
        lambda: sample(policy, prompts, tmp_path / "o.jsonl", FEW),
        lambda: judge_checkpoints(policy, prompts, tmp_path / "o.json", FEW, JUDGE),
    ):
        with pytest.raises(RlhfKitError, match="launched on 2 processes"):
            launched()


# ---------------------------------------------------------------- checkpoints of SFT


@pytest.fixture
def trained(recipe, tmp_path):
    """A run whose SFT kept three checkpoints, in the Trainer's layout or a plain one; the last is the stage's own."""
    backbone = stirred(recipe, 11, 12, 13)
    stage(backbone, recipe, "a13", tmp_path / "run", "sft")
    folder = tmp_path / "run" / "sft" / "checkpoints"
    backbone.save_adapter("a11", folder / "checkpoint-4" / "sft")
    backbone.save_adapter("a12", folder / "checkpoint-16")
    backbone.save_adapter("a13", folder / "checkpoint-32" / "sft")
    return tmp_path / "run"


def test_the_candidates_by_their_steps_and_which_is_the_stages_own(trained):
    found = candidates(trained / "sft")
    assert [(c.name, c.current) for c in found] == [
        ("checkpoint-4", False),
        ("checkpoint-16", False),
        ("checkpoint-32", True),
    ]


def test_a_last_adapter_that_is_no_checkpoint_is_a_candidate_too(trained, recipe):
    stirred(recipe, 14).save_adapter("a14", trained / "sft")
    assert [(c.name, c.current) for c in candidates(trained / "sft")][2:] == [("checkpoint-32", False), (FINAL, True)]


def test_nothing_to_choose_from(trained, run):
    with pytest.raises(CheckpointError, match=r"kept no checkpoints .*set sft\.keep_checkpoints"):
        candidates(run / "sft")
    folder = trained / "sft" / "checkpoints"
    (folder / "checkpoint-16" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-16: holds no adapter_model\.safetensors"):
        candidates(trained / "sft")
    (folder / "checkpoint-16" / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not an adapter"):
        candidates(trained / "sft")
    for name in ("checkpoint-16", "checkpoint-4"):
        (folder / name).rename(trained / name)
    with pytest.raises(CheckpointError, match=r"its only checkpoint, checkpoint-32, .*nothing to choose"):
        candidates(trained / "sft")


def test_standings_by_hand():
    def rows(*pairs):
        return [[answer("a", a), answer("b", b)] for a, b in pairs]

    scored = {
        "one": rows((0.0, 2.0), (1.0, 1.0)),  # 1, 1
        "two": rows((3.0, 5.0), (0.0, 1.0)),  # 4, 0.5
        "three": [[Answer("a", False, 9, count=3, score=2.0), answer("b", 6.0)], [answer("c", 1.5)]],  # 3, 1.5
    }
    drawn = {name: [[a for a in row for _ in range(a.count)] for row in found] for name, found in scored.items()}
    one, two, three = compare(drawn, scored, resamples=200)
    assert (one.score.value, two.score.value, three.score.value) == (1.0, 2.25, 2.25)
    assert two.behind is None and one.behind.value == -1.25 and three.behind.value == 0.0, "the first of equals"
    assert (one.behind.low, one.behind.high) == (-3.0, 0.5), "paired by prompt: -3 and 0.5"
    assert three.eos_rate == pytest.approx(2 / 5) and three.tokens == pytest.approx((27 + 6) / 5)
    assert one.eos_rate == 1.0 and one.tokens == 3.0


class Favourite(Letters):
    """Scores an answer by how often one policy gave it: that policy is best by construction."""

    name = "favourite"
    said: ClassVar[Counter[str]] = Counter()

    def score(self, prompts, responses, *, ended=None, progress=lambda done: None):
        return torch.tensor([float(self.said[text]) for text in responses])


@pytest.fixture
def favourite(trained, recipe):
    """A judge that likes what checkpoint-16 says."""
    said = drawn_by(trained / "sft" / "checkpoints" / "checkpoint-16", recipe)
    Favourite.said = Counter({a.text: 1 for row in said for a in row if a.text})
    return Judge("favourite", None, Favourite)


def judged(trained, prompts, judge, **options):
    policy = policy_of(trained, "sft")
    return judge_checkpoints(policy, prompts, trained / "compared.json", FEW, judge, **options)


def test_the_best_checkpoint_is_found(trained, prompts, favourite):
    found = judged(trained, prompts, favourite)
    assert [s.name for s in found.standings] == ["checkpoint-4", "checkpoint-16", "checkpoint-32"]
    assert found.best == "checkpoint-16" and (found.prompts, found.k, found.reward) == (6, 4, "favourite")
    by_name = {s.name: s for s in found.standings}
    assert by_name["checkpoint-16"].behind is None
    assert all(by_name[n].behind.high < 0 for n in ("checkpoint-4", "checkpoint-32"))
    assert not work_directory(trained / "compared.json").exists()


def test_what_was_compared_is_not_drawn_again(trained, prompts, favourite, monkeypatch):
    def stop(what, done, total):
        if what == "checkpoint-32 answers":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(trained, prompts, favourite, progress=stop)
    drawn = []
    plain = sampling.drawing.sample_in_batches
    monkeypatch.setattr(
        "rlhf_kit.sampling.drawing.sample_in_batches", lambda *a, **k: drawn.append(1) or plain(*a, **k)
    )
    first = judged(trained, prompts, favourite)
    assert len(drawn) == 3, "the chunks of the last checkpoint alone"
    assert judged(trained, prompts, favourite) == first and len(drawn) == 3
    choose(trained / "sft", candidates(trained / "sft")[0], first)
    assert judged(trained, prompts, favourite) == first and len(drawn) == 3, "the candidates are the same"
    judged(trained, prompts, Judge("favourite", {"head": "ab12"}, Favourite))
    assert len(drawn) == 12
    other = trained / "sft" / "checkpoints" / "checkpoint-16" / "adapter_model.safetensors"
    other.write_bytes(candidates(trained / "sft")[0].weights.read_bytes())
    judged(trained, prompts, Judge("favourite", {"head": "ab12"}, Favourite))
    assert len(drawn) == 18, "two checkpoints with the same weights answer once"


def test_the_chosen_one_becomes_the_stage_and_nothing_is_lost(trained, prompts, favourite):
    sft = trained / "sft"
    (sft / "metrics.jsonl").write_text('{"step": 1}\n')
    (trained / ".sft.partial").mkdir()  # an interrupted training is none of our business
    before = read_manifest(sft)
    found = judged(trained, prompts, favourite)
    own = (sft / "adapter_model.safetensors").read_bytes()
    best = next(c for c in candidates(sft) if c.name == found.best)
    wanted = load_file(best.weights)
    choose(sft, best, found)

    after = read_manifest(sft)
    weights = load_file(sft / "adapter_model.safetensors")
    assert weights.keys() == wanted.keys() and all(weights[k].equal(wanted[k]) for k in wanted)
    assert after.files != before.files and after.inputs == before.inputs and after.recipe == before.recipe
    standing = found.standings[1]
    assert after.metrics == {
        "loss_last": 1.0,
        "chosen_checkpoint": "checkpoint-16",
        "chosen_checkpoint_score": standing.score.value,
        "chosen_checkpoint_score_interval": standing.score.as_dict(),
        "chosen_by": "favourite",
    }
    assert (sft / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (trained / "sft.previous-1" / "adapter_model.safetensors").read_bytes() == own
    assert read_manifest(trained / "sft.previous-1") == before
    assert (trained / ".sft.partial").is_dir()
    assert sorted(p.name for p in trained.iterdir()) == [".sft.partial", "compared.json", "sft", "sft.previous-1"]

    # One can choose again: the checkpoints came along, and the old last one is among them.
    assert [(c.name, c.current) for c in candidates(sft)][1:] == [("checkpoint-16", True), ("checkpoint-32", False)]
    choose(sft, candidates(sft)[1], found)
    assert not (trained / "sft.previous-2").exists(), "it is that already"
    choose(sft, candidates(sft)[2], found)
    assert (sft / "adapter_model.safetensors").read_bytes() == own and (trained / "sft.previous-2").is_dir()


def test_other_policies_have_no_checkpoints(run, prompts, tmp_path):
    with pytest.raises(CheckpointError, match="those of the SFT stage"):
        judge_checkpoints(policy_of(run), prompts, tmp_path / "o.json", FEW, JUDGE)
