"""Padding, masks and minibatches: by hand, and shapes that do not fit are refused."""

import dataclasses

import pytest
import torch

from rlhf_kit.batches import Episodes, Sequences

PAD = 99


def sequences():
    return Sequences.collate([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], PAD)


def episodes(count, width=3):
    batch = Sequences.collate([[1]] * count, [list(range(width))] * count, PAD)
    numbered = torch.arange(count, dtype=torch.float32)
    table = numbered[:, None].expand(count, width).contiguous()
    return Episodes(batch, table, table + 0.1, table + 0.2, table + 0.3, table + 0.4, numbered)


def test_collate_by_hand():
    batch = sequences()
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6, PAD], [PAD, PAD, 4, 7, 8, 9]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert batch.responses.tolist() == [[5, 6, PAD], [7, 8, 9]]
    assert batch.response_mask.int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.last.tolist() == [4, 5]
    assert batch.attention_mask.dtype == torch.bool


def test_last_is_the_last_real_token_even_where_it_is_the_pad_id():
    batch = Sequences.collate([[1, PAD], [1]], [[PAD], [2, PAD, 3, PAD]], PAD)
    assert batch.last.tolist() == [2, 5]
    rows = torch.arange(2)
    assert batch.input_ids[rows, batch.last].tolist() == [PAD, PAD]
    assert batch.response_mask.sum(1).tolist() == [1, 4]


def test_before_response_are_the_columns_one_to_the_left():
    batch = sequences()
    column = torch.arange(6).expand(2, 6)[:, :, None].float()
    # Columns 3, 4, 5 hold the responses; what stands at 2, 3, 4 predicts them.
    assert batch.before_response(column).squeeze(2).tolist() == [[2, 3, 4], [2, 3, 4]]
    ids = batch.before_response(batch.input_ids)
    assert ids.tolist() == [[3, 5, 6], [4, 7, 8]]  # the last prompt token stands before the first response token


def test_to_keeps_everything():
    moved = sequences().to("cpu")
    assert torch.equal(moved.input_ids, sequences().input_ids)
    assert moved.response_length == 3


def test_what_does_not_fit_is_refused():
    ids = torch.zeros(2, 4, dtype=torch.long)
    good = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"attention_mask: shape \(2, 3\), expected \(2, 4\)"):
        Sequences(ids, good[:, :3], 2)
    with pytest.raises(ValueError, match=r"attention_mask: torch\.int64, expected torch\.bool"):
        Sequences(ids, good.long(), 2)
    for length in (0, 4, 5, -1):
        with pytest.raises(ValueError, match="leaves no prompt"):
            Sequences(ids, good, length)
    with pytest.raises(ValueError):
        Sequences.collate([[1], [2]], [[3]], PAD)


@pytest.mark.parametrize("name", ["log_probs", "values", "advantages", "returns", "kl", "score"])
def test_episodes_refuse_other_shapes_and_dtypes(name):
    whole = episodes(4)
    tensor = getattr(whole, name)
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(whole, **{name: tensor[:3]})
    with pytest.raises(ValueError, match=f"{name}: torch.float64"):
        dataclasses.replace(whole, **{name: tensor.double()})


def test_select_takes_whole_rows_and_keeps_the_padding():
    whole = episodes(5)
    part = whole.select(torch.tensor([3, 0]))
    assert len(part) == 2
    assert part.score.tolist() == [3.0, 0.0]
    for offset, name in enumerate(("log_probs", "values", "advantages", "returns", "kl")):
        torch.testing.assert_close(getattr(part, name)[:, 0], torch.tensor([3.0, 0.0]) + offset / 10)
    assert part.sequences.input_ids.shape[1] == whole.sequences.input_ids.shape[1]


@pytest.mark.parametrize(("count", "size"), [(8, 2), (8, 8), (7, 3), (5, 1)])
def test_minibatches_cover_everything_once(count, size):
    seen = [b.score.tolist() for b in episodes(count).minibatches(size, torch.Generator().manual_seed(0))]
    assert sorted(score for part in seen for score in part) == list(range(count))
    assert all(len(part) == size for part in seen[:-1])


def test_minibatches_come_in_another_order_each_time_but_repeatably():
    def order(generator):
        return torch.cat([b.score for b in episodes(32).minibatches(8, generator)]).tolist()

    generator = torch.Generator().manual_seed(0)
    first, second = order(generator), order(generator)
    assert first != second
    assert first == order(torch.Generator().manual_seed(0))
