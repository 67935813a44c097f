"""Generation: transformers' own `generate` is the oracle for what is sampled, a hook for what it costs."""

import pytest
import torch
from backbones import backbone_of_type, lora, stir, tiny_backbone

from rlhf_kit.rollout import draw, sample, sample_in_batches

PROMPTS = [[10, 20, 30], [40], [50, 60, 70, 80, 90, 100, 110], [33, 34], [400, 401, 402, 403]]


def greedy_alone(backbone, name, prompt, count):
    """transformers' generate for one prompt, cut after EOS."""
    ids = torch.tensor([prompt])
    with backbone.role(name):
        whole = backbone.base.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )[0].tolist()
    return whole[len(prompt) :]


@pytest.mark.parametrize("name", [None, "policy"])
def test_greedy_is_transformers_generate_row_by_row(name):
    backbone = tiny_backbone("policy")
    with backbone.role(name):
        found = sample(backbone, PROMPTS, max_new_tokens=12, temperature=0)
    assert found == [greedy_alone(backbone, name, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(r) for r in found}) > 1


@pytest.mark.parametrize("model_type", ["qwen3", "gpt2", "gemma2"])
def test_greedy_is_transformers_generate_on_other_architectures(model_type):
    # A window smaller than the text, so that Gemma's sliding layers do slide.
    backbone = backbone_of_type(model_type, **({"sliding_window": 6} if model_type == "gemma2" else {}))
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 1)
    with backbone.role("policy"):
        found = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0)
    assert found == [greedy_alone(backbone, "policy", prompt, 10) for prompt in PROMPTS]


def with_eos_often(backbone, boost=6.0):
    """Makes EOS likely enough that rows end at different steps."""
    eos = backbone.tokenizer.eos_token_id
    plain = type(backbone).next_token_logits

    def likelier(hidden):
        logits = plain(backbone, hidden)
        logits[:, eos] += boost
        return logits

    backbone.next_token_logits = likelier
    return eos


def test_eos_is_part_of_the_response_and_its_last_token():
    backbone = tiny_backbone("policy")
    eos = with_eos_often(backbone)
    with backbone.role("policy"):
        found = sample(backbone, PROMPTS * 6, max_new_tokens=8, generator=torch.Generator().manual_seed(1))
    assert all(1 <= len(r) <= 8 for r in found)
    assert all(eos not in r[:-1] for r in found)
    ended = [r for r in found if r[-1] == eos]
    assert 0 < len(ended) < len(found) or all(len(r) < 8 for r in found)
    assert all(len(r) == 8 for r in found if r[-1] != eos)
    assert len({len(r) for r in found}) > 2


def test_rows_that_have_ended_leave_the_batch_and_the_others_do_not_notice():
    backbone = tiny_backbone("policy")
    with_eos_often(backbone)
    rows = []
    backbone.decoder.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(kwargs["input_ids"].size(0)), with_kwargs=True
    )
    with backbone.role("policy"):
        found = sample(backbone, PROMPTS * 6, max_new_tokens=8, generator=torch.Generator().manual_seed(1))
    # The prompt is read once for all its copies; then step t runs for the rows whose response has more than t tokens.
    assert rows[0] == len(PROMPTS)
    assert rows[1:] == [sum(len(r) > t for r in found) for t in range(1, len(rows))]
    assert rows[1] > len(PROMPTS) and rows[-1] < 30
    assert len(rows) == max(map(len, found))


def test_a_row_goes_on_as_if_it_were_alone_when_its_neighbours_leave():
    backbone = tiny_backbone("policy")
    plain = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0)
    # EOS becomes what the first row says third: it leaves then, and some others perhaps.
    backbone.tokenizer.eos_token_id = plain[0][2]
    cut = sample(backbone, PROMPTS, max_new_tokens=10, temperature=0)
    for whole, part in zip(plain, cut, strict=True):
        stop = whole.index(plain[0][2]) + 1 if plain[0][2] in whole else len(whole)
        assert part == whole[:stop]
    assert min(map(len, cut)) <= 3


# Critical values of chi-square at p = 0.001, from the tables.
CHI_SQUARE = {4: 18.47, 9: 27.88}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -1.5, 0.5, 1.5, -0.5, 0.2])
    count = 40_000
    tokens = draw(logits.expand(count, -1), temperature, torch.Generator().manual_seed(0))
    expected = torch.softmax(logits.double() / temperature, -1) * count
    seen = torch.bincount(tokens, minlength=10).double()
    assert float(((seen - expected) ** 2 / expected).sum()) < CHI_SQUARE[9]


def test_draws_follow_the_softmax_over_a_large_vocabulary():
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) * 2
    count = 600
    tokens = torch.cat(
        [draw(logits.expand(50, -1), 1.0, g) for g in [torch.Generator().manual_seed(3)] for _ in range(12)]
    )
    share = torch.softmax(logits.double(), -1).view(5, -1).sum(1)
    seen = torch.bincount(tokens // 10_000, minlength=5).double()
    assert float(((seen - share * count) ** 2 / (share * count)).sum()) < CHI_SQUARE[4]


def test_what_cannot_be_is_never_drawn():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(20_000, -1)
    tokens = draw(logits, 1.0, torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {1, 3}


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]])
    assert draw(logits, 0, None).tolist() == [1, 0]
    assert draw(logits, 1e-4, torch.Generator().manual_seed(0)).tolist() == [1, 0]


def test_the_first_token_of_many_samples_follows_the_models_softmax():
    backbone = tiny_backbone("policy")
    prompt, count = [10, 20, 30], 4000
    with backbone.role("policy"), torch.no_grad():
        found = sample(backbone, [prompt] * count, max_new_tokens=1, generator=torch.Generator().manual_seed(5))
        share = torch.softmax(backbone.base(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)
    order = share.argsort(descending=True)
    groups = torch.empty(len(share), dtype=torch.long)
    # Ten groups of about the same weight, from the few likeliest tokens to the many unlikely ones.
    groups[order] = ((share[order].cumsum(0) - share[order] / 2) * 10).long().clamp(max=9)
    expected = torch.zeros(10, dtype=torch.double).index_add(0, groups, share) * count
    assert expected.min() > 5
    seen = torch.bincount(groups[torch.tensor(found).squeeze(1)], minlength=10).double()
    assert float(((seen - expected) ** 2 / expected).sum()) < CHI_SQUARE[9]


def test_samples_are_repeatable_and_differ_with_the_seed():
    backbone = tiny_backbone()

    def run(seed):
        return sample(backbone, PROMPTS, max_new_tokens=6, generator=torch.Generator().manual_seed(seed))

    assert run(1) == run(1) != run(2)


def test_on_token_hears_the_first_prompt_only_and_training_mode_comes_back():
    backbone = tiny_backbone()
    heard = []
    backbone.train()
    found = sample(backbone, PROMPTS, max_new_tokens=6, temperature=0, on_token=heard.append)
    assert heard == found[0]
    assert backbone.training
    backbone.eval()
    sample(backbone, PROMPTS[:1], max_new_tokens=1)
    assert not backbone.training


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_of_like_length_give_each_prompt_its_own_answer(size):
    backbone, done = tiny_backbone(), []
    found = sample_in_batches(backbone, PROMPTS, batch_size=size, progress=done.append, max_new_tokens=5, temperature=0)
    assert found == [greedy_alone(backbone, None, prompt, 5) for prompt in PROMPTS]
    assert sum(done) == len(PROMPTS)
