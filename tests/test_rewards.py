"""Scores: a loop over single, unpadded sequences is the oracle."""

import pytest
import torch
from backbones import add_head, tiny_backbone

from rlhf_kit import rewards
from rlhf_kit.batches import Sequences

GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 500, (n,), generator=GENERATOR).tolist() for n in (5, 1, 12, 3, 7, 2, 9)]
RESPONSES = [torch.randint(3, 500, (n,), generator=GENERATOR).tolist() for n in (4, 9, 1, 2, 6, 3, 5)]


@pytest.fixture(scope="module")
def backbone():
    made = tiny_backbone("sft", "reward", "other")
    add_head(made, "reward", 1)
    add_head(made, "other", 2)
    made.heads["reward"].normalise(torch.tensor([[1.0], [4.0]]))
    return made


def one_by_one(backbone, name="reward"):
    head, scores = backbone.heads[name], []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad(), backbone.role(name):
            state = backbone.base.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
        raw = (state * head.linear.weight[0]).sum() + head.linear.bias[0]
        scores.append(((raw / head.spread[0] - head.mean) / head.std).item())
    return torch.tensor(scores)


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_scores_are_those_of_single_sequences_in_the_order_given(backbone, size):
    done = []
    found = rewards.score(backbone, PROMPTS, RESPONSES, batch_size=size, progress=done.append)
    torch.testing.assert_close(found, one_by_one(backbone), atol=1e-5, rtol=1e-5)
    assert sum(done) == len(PROMPTS)
    assert not found.requires_grad and found.dtype == torch.float32


def test_another_adapter_and_head_by_name(backbone):
    found = rewards.score(backbone, PROMPTS, RESPONSES, name="other")
    torch.testing.assert_close(found, one_by_one(backbone, "other"), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, one_by_one(backbone), atol=1e-2)


def test_the_score_is_read_at_the_last_real_token(backbone):
    """A causal model: what comes after that token, padding included, changes nothing; the token itself does."""
    batch = Sequences.collate(PROMPTS, RESPONSES, backbone.tokenizer.pad_token_id)
    with torch.no_grad():
        scores = rewards.score_batch(backbone, batch)
        junk = torch.where(batch.attention_mask, batch.input_ids, 123)
        same = rewards.score_batch(backbone, Sequences(junk, batch.attention_mask, batch.response_length))
        rows = torch.arange(len(PROMPTS))
        changed = batch.input_ids.clone()
        changed[rows, batch.last] = backbone.tokenizer.eos_token_id
        ended = rewards.score_batch(backbone, Sequences(changed, batch.attention_mask, batch.response_length))
    torch.testing.assert_close(scores, same, atol=1e-6, rtol=1e-6)
    assert (scores - ended).abs().min() > 1e-4


def test_eos_is_where_the_score_of_an_ended_response_is_read(backbone):
    eos = backbone.tokenizer.eos_token_id
    ended = rewards.score(backbone, PROMPTS, [[*r, eos] for r in RESPONSES])
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad(), backbone.role("reward"):
            whole = torch.tensor([[*prompt, *response, eos]])
            assert whole[0, -1] == eos
            state = backbone.base.model(input_ids=whole).last_hidden_state[0, -1]
            assert ended[i].item() == pytest.approx(backbone.heads["reward"](state).item(), abs=1e-5)


def test_the_role_that_was_active_stays_active(backbone):
    ids = torch.tensor([[5, 6, 7]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad(), backbone.role("sft"):
        before = backbone(ids, mask)
        rewards.score(backbone, PROMPTS, RESPONSES)
        assert torch.equal(backbone(ids, mask), before)


def test_through_the_disk_the_scores_are_the_same(backbone, tmp_path):
    rewards.save(backbone, tmp_path)
    again = tiny_backbone("sft")
    rewards.load(again, tmp_path)
    assert not any(p.requires_grad for p in again.parameters())
    expected = rewards.score(backbone, PROMPTS, RESPONSES)
    torch.testing.assert_close(rewards.score(again, PROMPTS, RESPONSES), expected, atol=1e-6, rtol=1e-6)
    rewards.load(again, tmp_path, "critic")
    torch.testing.assert_close(rewards.score(again, PROMPTS, RESPONSES, name="critic"), expected, atol=1e-6, rtol=1e-6)
