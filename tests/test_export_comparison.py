"""The trained model beside the exported one: figures by hand, answers by generate, limits one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import base_of_type, lora, stir, tiny_backbone, tiny_base
from peft import PeftModel
from torch import Tensor
from whole_run import left_in

from rlhf_kit.errors import ExportError
from rlhf_kit.export import comparison
from rlhf_kit.export.comparison import Answers, Figures, Limit, Logits, Reference, figures, judge, own_answers

CONFIG = "adapter_config.json"


def by_hand(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, float]:
    """One position and one token at a time."""
    positions = same = 0
    largest = total = count = kl = 0.0
    for rows, others in zip(ours, theirs, strict=True):
        for row, other in zip(rows.astype(np.float64), others.astype(np.float64), strict=True):
            p, q = np.exp(row - row.max()), np.exp(other - other.max())
            p, q = p / p.sum(), q / q.sum()
            for token in range(len(row)):
                largest = max(largest, abs(row[token] - other[token]))
                total, count = total + abs(row[token] - other[token]), count + 1
                kl += p[token] * np.log(p[token] / q[token])
            same += int(np.argmax(row) == np.argmax(other))
            positions += 1
    return {
        "positions": positions,
        "max_difference": largest,
        "mean_difference": total / count,
        "top1_agreement": same / positions,
        "mean_kl": kl / positions,
    }


def some_logits(seed: int, lengths: tuple[int, ...] = (1, 37, 16), vocabulary: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, vocabulary, generator=generator) for length in lengths]


def test_figures_are_those_of_a_plain_loop() -> None:
    ours = some_logits(1)
    theirs = [row + 0.5 * noise for row, noise in zip(ours, some_logits(2), strict=True)]
    expected = by_hand([x.numpy() for x in ours], [x.numpy() for x in theirs])
    assert 0.2 < expected["top1_agreement"] < 0.98 and expected["mean_kl"] > 0.05
    assert vars(figures(ours, theirs)) == pytest.approx(expected, rel=1e-6)
    # Rows that pad a vocabulary are nobody's tokens, however large they are.
    wide = [torch.cat([x, torch.full((len(x), 5), 99.0)], 1) for x in theirs]
    assert figures(ours, wide) == figures(ours, theirs)


def test_figures_of_the_same_and_of_nonsense() -> None:
    ours = some_logits(1)
    assert vars(figures(ours, ours)) == {
        **{"positions": 54, "max_difference": 0.0, "mean_difference": 0.0, "top1_agreement": 1.0, "mean_kl": 0.0}
    }
    for wrong in (float("nan"), float("inf")):
        theirs = some_logits(1)
        theirs[1][20, 3] = wrong
        assert figures(ours, theirs).max_difference == float("inf")
    with pytest.raises(ValueError):
        figures(ours, ours[:-1])


def test_logits_come_back_from_the_disk(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        given = [x.to(dtype) for x in some_logits(3)]
        kept = Logits(tmp_path, iter(given))
        for _ in range(3):
            found = list(kept)
            assert [x.dtype for x in found] == [dtype] * 3
            assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))
        assert left_in(tmp_path) == [], "the file has no name"


def test_own_answers_are_those_of_generate() -> None:
    backbone = tiny_backbone("policy", "other")
    answers = own_answers(backbone, "policy", 100)
    assert own_answers(backbone, "policy", 100) == answers
    assert (
        answers.positions == sum(len(s) - 1 - f for s, f in zip(answers.sequences, answers.first, strict=True)) >= 100
    )
    assert own_answers(backbone, "other", 100).sequences != answers.sequences
    with backbone.role("policy"), torch.no_grad():
        for sequence, first in zip(answers.sequences[:4], answers.first, strict=False):
            prompt = torch.tensor([sequence[: first + 1]])
            said = backbone.base.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False
            )
            assert said[0].tolist() == sequence
    text = backbone.tokenizer.decode(answers.sequences[0])
    assert text.startswith("<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n")
    # More than the likeliest answers have are sampled, and never the same twice.
    most = sum(len(answer) for answer in own_answers(backbone, "policy", 1).sequences) * 4
    many = own_answers(backbone, "policy", most + 2048)
    assert many.positions >= most + 2048
    assert len({tuple(sequence) for sequence in many.sequences}) == len(many.sequences)
    assert many == own_answers(backbone, "policy", most + 2048)


def test_a_model_that_ends_at_once_is_refused(tmp_path: Path) -> None:
    """Each of its answers is one position, and the same one every time."""
    backbone = tiny_backbone("policy")
    end = backbone.tokenizer.eos_token_id
    with torch.no_grad():
        backbone.base.model.norm.weight.zero_()
        backbone.base.lm_head = torch.nn.Linear(32, len(backbone.tokenizer))
        backbone.base.lm_head.bias.zero_()[end] = 99.0
    with pytest.raises(ExportError, match="ends its answers at once: 32 tokens in 32 answers, where 33 are to be comp"):
        own_answers(backbone, "policy", 33)
    assert own_answers(backbone, "policy", 32).positions == 32


ANSWERS = Answers([list(range(5, 45)), list(range(90, 103)), list(range(200, 229)), [7, 8]], [30, 2, 0, 0])


@pytest.mark.parametrize("together", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_are_those_of_each_sequence_alone(kind: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands behind it in a batch. Each position is the one that predicts a token of the answer."""
    model = base_of_type(kind)
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, inputs, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr(comparison, "_NUMBERS", together * 39 * model.config.vocab_size)
    found = list(comparison.logits_of(model, model, ANSWERS, torch.float64))
    assert [len(batch) for batch in found] == [9, 10, 28, 1] and ANSWERS.positions == 48
    assert [rows for rows, _ in seen] == {1: [1, 1, 1, 1], 2: [2, 2], 3: [3, 1], 100: [4]}[together]
    whole = model.double()
    for logits, sequence, first in zip(found, ANSWERS.sequences, ANSWERS.first, strict=True):
        with torch.no_grad():
            alone = whole(input_ids=torch.tensor([sequence])).logits[0]
        assert logits.dtype == torch.float64 and torch.allclose(logits, alone[first:-1], atol=1e-12)


def test_a_reference_is_the_trained_model_beside_its_base(tmp_path: Path) -> None:
    backbone = tiny_backbone("other")
    backbone.add_adapter("policy", lora(r=3))  # a scale that rounds: PEFT's own sums and no others
    stir(backbone, "policy", 2)
    reference = comparison.refer(backbone, "policy", ANSWERS, tmp_path)
    backbone.save_adapter("policy", tmp_path / "policy")
    peft = PeftModel.from_pretrained(tiny_base(), str(tmp_path / "policy"))
    trained = [x.numpy() for x in comparison.logits_of(peft, peft.get_base_model(), ANSWERS)]
    assert all(np.array_equal(x.numpy(), y) for x, y in zip(reference.logits, trained, strict=True))
    base = [x.numpy() for x in comparison.logits_of(tiny_base(), tiny_base(), ANSWERS)]
    assert vars(reference.base) == pytest.approx(by_hand(trained, base), rel=1e-5)
    assert reference.base.max_difference > 1 and reference.base.mean_kl > 0.01
    assert reference.compare(torch.from_numpy(x) for x in trained).max_difference == 0
    assert reference.compare(torch.from_numpy(x) for x in base) == reference.base
    assert [path.name for path in tmp_path.iterdir()] == ["policy"], "no logits are left"


def reference_of(**base: float) -> Reference:
    usual = {"positions": 300, "max_difference": 2.0, "mean_difference": 0.1, "top1_agreement": 0.8, "mean_kl": 0.1}
    return Reference(Answers([], []), [], Figures(**{**usual, **base}))  # type: ignore[arg-type]


FOUND = Figures(positions=300, max_difference=0.01, mean_difference=0.001, top1_agreement=0.99, mean_kl=0.001)


@pytest.mark.parametrize(
    ("limit", "found", "base", "said"),
    [
        (Limit(max_difference=0.01), {"max_difference": 0.011}, {}, r"logits differ by up to 0\.011 \(limit 0\.01\)"),
        (Limit(top1_agreement=0.99), {"top1_agreement": 0.98}, {}, r"token agrees at 98\.00% \(limit 99\.0%\)"),
        (Limit(mean_kl=0.001), {"mean_kl": 0.002}, {}, r"KL from the trained model is 0\.002 nats \(limit 0\.001\)"),
        (Limit(mean_kl=1.0), {"mean_kl": 0.011}, {}, r"0\.011 nats, that of the base alone 0\.1: rounding has taken"),
        (Limit(mean_kl=1.0), {"max_difference": float("inf")}, {}, "logits that are not finite"),
        (Limit(mean_kl=1.0), {}, {"max_difference": 0.0, "mean_kl": 0.0}, "changes nothing: .* up to 0$"),
        (Limit(max_difference=0.01), {}, {"max_difference": 0.01}, r"changes nothing: .* up to 0\.01$"),
    ],
)
def test_each_limit_by_itself(
    limit: Limit, found: dict[str, float], base: dict[str, float], said: str, tmp_path: Path
) -> None:
    """What lies on the limit passes, what lies beyond does not."""
    if "inf" not in str(found) and not base:
        judge(tmp_path, reference_of(), FOUND, replace(limit), loader="PEFT")
    with pytest.raises(ExportError, match=said) as failure:
        judge(tmp_path, reference_of(**base), replace(FOUND, **found), limit, loader="PEFT")
    assert str(tmp_path) in str(failure.value) and "\n" not in str(failure.value)


def test_all_that_is_wrong_is_said_and_all_that_is_right_is_kept(tmp_path: Path) -> None:
    limit = Limit(max_difference=0.001, top1_agreement=0.999, mean_kl=1e-4)
    with pytest.raises(ExportError, match=r"logits differ .*; the likeliest token .*; KL from .*Nothing was kept$"):
        judge(tmp_path, reference_of(), FOUND, limit, loader="PEFT")
    # Of float32 the largest difference says it all; a base that is as near by its KL is no fault.
    kept = judge(tmp_path, reference_of(mean_kl=0.0), FOUND, Limit(max_difference=0.02), loader="PEFT")
    assert kept == {
        **vars(FOUND),
        "loader": "PEFT",
        "limit": {"max_difference": 0.02},
        "base_mean_difference": 0.1,
        "base_top1_agreement": 0.8,
        "base_mean_kl": 0.0,
    }
