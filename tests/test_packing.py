"""Packed rows: a double loop over tokens says who sees whom, and single unpadded sequences say what comes out."""

import itertools
import logging

import pytest
import torch
from backbones import add_head, backbone_of_type, lora, stir

from rlhf_kit import rewards
from rlhf_kit.batches import Sequences
from rlhf_kit.data import RankedCollator, RankedIds
from rlhf_kit.packing import PackedRows, RankedBatch
from rlhf_kit.ranking import ranking_loss

PAD = 0


def some(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]


def items(seed=0, sizes=((9, (4, 7, 3)), (14, (8, 2)), (5, (5, 6, 1, 9)))):
    made = []
    for g, (prompt, responses) in enumerate(sizes):
        [p], said = some(prompt, seed=100 * g + seed), some(*responses, seed=100 * g + 50 + seed)
        made.append(RankedIds(p, said, list(range(1, len(said) + 1)), name=f"prompt {g}"))
    return made


def backbone(model_type="llama", attention="eager", **fields):
    made = backbone_of_type(model_type, **fields)
    if attention:
        made.base.set_attn_implementation(attention)
    made.add_adapter("reward", lora())
    stir(made, "reward", 1)
    add_head(made, "reward", 1)
    made.train_only("reward")
    return made.eval()


# ---------------------------------------------------------------- the layout


def test_two_prompts_in_a_row_by_hand():
    rows = PackedRows.collate([[11, 12], [21], [31, 32, 33, 34]], [[[13], [14, 15]], [[22]], [[35, 36], [37, 38]]], PAD)
    assert rows.input_ids.tolist() == [[31, 32, 33, 34, 35, 36, 37, 38], [11, 12, 13, 14, 15, 21, 22, PAD]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5], [0, 1, 2, 2, 3, 0, 1, 0]]
    assert rows.prompt_of.tolist() == [[3] * 8, [1, 1, 1, 1, 1, 2, 2, 0]]
    assert rows.response_of.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 0, 1, 0]]
    assert rows.rows.tolist() == [1, 1, 1, 0, 0] and rows.columns.tolist() == [2, 4, 6, 5, 7]
    assert rows.tokens == 15


def test_a_response_without_a_token_is_refused():
    with pytest.raises(ValueError, match="without a token"):
        PackedRows.collate([[1, 2]], [[[3], []]], PAD)


def test_who_sees_whom_is_a_double_loop():
    made = items()
    rows = PackedRows.collate([i.prompt for i in made], [i.responses for i in made], PAD)
    mask = rows.attention_mask
    for row, (i, j) in itertools.product(range(mask.size(0)), itertools.product(range(mask.size(1)), repeat=2)):
        prompt_i, prompt_j = rows.prompt_of[row, i], rows.prompt_of[row, j]
        own = rows.response_of[row, j] in (0, rows.response_of[row, i])
        assert bool(mask[row, i, j]) == bool(j <= i and prompt_i == prompt_j and own)
    assert mask.any(2).all()  # a row of the mask without anything would be NaN


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_stands_in_one_row_and_no_row_is_longer_than_the_longest(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 40, (12, 3), generator=generator).tolist()
    made = items(seed, [(p, (a, b)) for p, a, b in sizes])
    rows = PackedRows.collate([i.prompt for i in made], [i.responses for i in made], PAD)
    longest = max(sum(s) for s in sizes)
    assert rows.input_ids.size(1) == longest
    assert rows.tokens == sum(sum(s) for s in sizes)
    for g in range(len(made)):
        where = (rows.prompt_of == g + 1).nonzero()
        assert where[:, 0].unique().numel() == 1
        assert where[:, 1].diff().eq(1).all()
    # First-fit decreasing: two rows half empty would have been one.
    used = (rows.prompt_of > 0).sum(1)
    assert (used <= longest // 2).sum() <= 1
    flat = [response for item in made for response in item.responses]
    assert rows.input_ids[rows.ends].tolist() == [response[-1] for response in flat]


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_and_gradients_are_those_of_single_sequences(model_type, attention, checkpointing):
    made, model = items(), backbone(model_type, attention)
    if checkpointing:
        model.use_checkpointing()
    model.without_dropout()
    model.train()
    found = {}
    for packed in (False, True):
        model.zero_grad()
        batch: RankedBatch = RankedCollator(PAD, packed=packed)(made)["batch"]
        with model.role("reward"):
            scores = rewards.score_batch(model, batch.responses)
            ranking_loss(scores, batch.group, batch.rank[:, 0]).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found[packed] = scores.detach(), gradients
    single = []
    for item in made:
        for response in item.responses:
            with torch.no_grad():
                alone = Sequences.collate([item.prompt], [response], PAD)
                single.append(rewards.score_batch(model, alone).item())
    assert found[True][0].tolist() == pytest.approx(single, abs=1e-4)
    assert torch.std(found[True][0]) > 0.05
    assert len(found[True][1]) == len(found[False][1]) > 10
    for packed, unpacked in zip(found[True][1], found[False][1], strict=True):
        assert (packed - unpacked).norm() <= 1e-3 * unpacked.norm() + 1e-6


def test_a_boolean_mask_at_the_models_door_would_be_wrong():
    """The trap that `Backbone` keeps shut: eager attention adds its mask, True and False as 1 and 0."""
    made, model = items(), backbone("llama", "eager")
    rows = RankedCollator(PAD).rows(made)
    with torch.no_grad(), model.role("reward"):
        right = model(rows.input_ids, rows.attention_mask, rows.position_ids)
        wrong = model.decoder(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask[:, None], position_ids=rows.position_ids
        ).last_hidden_state
    assert (right - wrong)[rows.ends].abs().max() > 0.05


def test_bfloat16_under_autocast():
    made, model = items(), backbone("llama", "sdpa")
    expected = rewards.score_batch(model, RankedCollator(PAD, packed=False).rows(made)).detach()
    model.base.to(torch.bfloat16)
    with rewards.autocast(model):
        found = rewards.score_batch(model, RankedCollator(PAD).rows(made))
    assert found.dtype == torch.float32
    found.sum().backward()
    torch.testing.assert_close(found.detach(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_another_response_or_prompt_says_changes_nothing(attention):
    made, model = items(), backbone("llama", attention)
    before = rewards.score_batch(model, RankedCollator(PAD).rows(made)).detach()
    changed = [RankedIds(i.prompt, [list(r) for r in i.responses], i.ranks) for i in made]
    changed[0].responses[0][:] = [299] * 4
    changed[1].prompt[:] = [7] * 14
    after = rewards.score_batch(model, RankedCollator(PAD).rows(changed)).detach()
    same = (after - before).abs() < 1e-5
    assert same.tolist() == [False, True, True, False, False, True, True, True, True]


def test_each_response_and_each_prompt_go_through_the_model_once():
    made, model = items(), backbone()
    seen = []
    model.base.get_input_embeddings().register_forward_hook(lambda module, ids, out: seen.append(ids[0]))
    batch = RankedCollator(PAD)(made)["batch"]
    rewards.score_batch(model, batch.responses)
    real = sorted(t for ids in seen for t in ids[batch.responses.prompt_of > 0].tolist())
    assert len(seen) == 1
    assert real == sorted(t for i in made for part in (i.prompt, *i.responses) for t in part)


# ---------------------------------------------------------------- scoring any number


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("packed", [None, True, False])
def test_score_gives_the_order_that_it_was_given(size, packed):
    made, model = items(), backbone()
    flat = [(i.prompt, r) for i in made for r in i.responses]
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1)).tolist()
    prompts, responses = [flat[i][0] for i in order], [flat[i][1] for i in order]
    done = []
    found = rewards.score(model, prompts, responses, batch_size=size, packed=packed, progress=done.append)
    single = [
        rewards.score_batch(model, Sequences.collate([p], [r], PAD)).item()
        for p, r in zip(prompts, responses, strict=True)
    ]
    assert found.tolist() == pytest.approx(single, abs=1e-4)
    assert sum(done) == len(flat)


def test_more_responses_than_one_row_should_hold():
    [prompt], said = some(6), some(*[3] * 40, seed=9)
    model = backbone()
    found = rewards.score(model, [prompt] * 40, said, packed=True)
    expected = rewards.score(model, [prompt] * 40, said, packed=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- models that cannot


def test_a_sliding_window_that_is_too_short_is_found_out(caplog):
    made = items()
    prompts = [i.prompt for i in made for _ in i.responses]
    responses = [r for i in made for r in i.responses]
    wide, narrow = backbone("mistral", sliding_window=64), backbone("mistral", sliding_window=8)
    with caplog.at_level(logging.INFO, "rlhf_kit"):
        assert rewards.can_pack(wide, prompts, responses)
        assert not rewards.can_pack(narrow, prompts, responses)
    assert "each response gets a row of its own" in caplog.messages[-1]
    found = rewards.score(narrow, prompts, responses)
    expected = rewards.score(narrow, prompts, responses, packed=False)
    assert torch.equal(found, expected)
    assert not torch.allclose(rewards.score(narrow, prompts, responses, packed=True), expected, atol=1e-2)


def test_a_model_that_takes_no_such_mask_is_found_out():
    made, model = items(), backbone("bloom", None)
    prompts = [i.prompt for i in made for _ in i.responses]
    responses = [r for i in made for r in i.responses]
    assert not rewards.can_pack(model, prompts, responses)
    single = [
        rewards.score_batch(model, Sequences.collate([p], [r], PAD)).item()
        for p, r in zip(prompts, responses, strict=True)
    ]
    assert rewards.score(model, prompts, responses).tolist() == pytest.approx(single, abs=1e-4)


def test_a_model_is_tried_once_and_again_only_on_longer_texts():
    made, model = items(), backbone()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    short, long = made[0], made[1]
    assert rewards.can_pack(model, [short.prompt], [short.responses[0]]) and len(calls) == 2
    assert rewards.can_pack(model, [short.prompt], [short.responses[2]]) and len(calls) == 2
    assert rewards.can_pack(model, [long.prompt], [long.responses[0]]) and len(calls) == 4
