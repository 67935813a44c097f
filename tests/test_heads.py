"""Scalar heads: by hand, against torch, and through the disk."""

import pytest
import torch
from safetensors.torch import load_file

from rlhf_kit.errors import CheckpointError
from rlhf_kit.models import ScalarHead


def head(size=4, seed=0):
    torch.manual_seed(seed)
    made = ScalarHead(size)
    torch.nn.init.normal_(made.linear.bias)
    return made


def test_the_score_by_hand():
    made = ScalarHead(2)
    with torch.no_grad():
        made.linear.weight.copy_(torch.tensor([[2.0, -1.0]]))
        made.linear.bias.fill_(0.5)
        made.mean.fill_(1.0)
        made.std.fill_(4.0)
    assert made(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist() == [(6 - 1 + 0.5 - 1) / 4, (0.5 - 1) / 4]


def test_initialisation():
    torch.manual_seed(0)
    made = ScalarHead(4095)
    assert made.linear.weight.std().item() == pytest.approx(1 / 64, rel=0.05)  # 1 / sqrt(H + 1)
    assert made.linear.bias.item() == 0
    assert ScalarHead(8, zero=True)(torch.randn(5, 8)).abs().max() == 0
    assert made.linear.weight.dtype == torch.float32


def test_shapes_and_precision():
    made = head()
    hidden = torch.randn(2, 3, 4)
    assert made(hidden).shape == (2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(hidden)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, made(hidden))  # bfloat16 would have changed the third digit
    assert made(hidden.bfloat16()).dtype == torch.float32


def test_normalise_makes_mean_zero_and_std_one_however_often():
    made, hidden = head(), torch.randn(50, 4) * 3 + 1
    before = made(hidden).detach()
    for _ in range(3):
        made.normalise(made.outputs(hidden))
        scores = made(hidden)
        assert scores.mean().item() == pytest.approx(0, abs=1e-5)
        assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(made(hidden), (before - before.mean()) / before.std(correction=0), atol=1e-4, rtol=1e-4)
    assert (made(hidden).argsort() == before.argsort()).all()


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_normalise_refuses_scores_that_say_nothing(scores):
    made = head()
    with pytest.raises(ValueError, match="learned nothing"):
        made.normalise(torch.tensor(scores)[:, None])
    assert made.mean.item() == 0 and made.std.item() == 1


def test_save_and_load_keep_the_scores_normalisation_included(tmp_path):
    made, hidden = head(), torch.randn(9, 4)
    made.normalise(made.outputs(torch.randn(20, 4)))
    made.save(tmp_path)
    again = ScalarHead.load(tmp_path, 4)
    assert torch.equal(again(hidden), made(hidden))
    tensors = {"linear.weight", "linear.bias", "weights", "spread", "mean", "std"}
    assert set(load_file(tmp_path / "head.safetensors")) == tensors


def test_what_is_no_head_for_this_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"head\.safetensors"):
        ScalarHead.load(tmp_path, 4)
    head(4).save(tmp_path)
    with pytest.raises(CheckpointError, match="size mismatch"):
        ScalarHead.load(tmp_path, 5)
    file = tmp_path / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-7])  # cut off on a full disk
    with pytest.raises(CheckpointError, match=r"head\.safetensors"):
        ScalarHead.load(tmp_path, 4)


def test_several_axes_are_one_score_by_hand():
    made = ScalarHead(2, axes=("helpful", "harmless"), weights=(1.0, 3.0))
    with torch.no_grad():
        made.linear.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -1.0]]))
        made.linear.bias.copy_(torch.tensor([0.5, 0.0]))
    hidden = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert made.outputs(hidden).tolist() == [[2.5, -2.0], [0.5, 0.0]]
    assert made(hidden).tolist() == [2.5 - 6.0, 0.5]


def test_a_weight_means_the_same_on_an_axis_of_any_spread(tmp_path):
    torch.manual_seed(0)
    made = ScalarHead(2, axes=("helpful", "harmless"), weights=(1.0, 3.0))
    with torch.no_grad():
        made.linear.weight.copy_(torch.tensor([[100.0, 0.0], [0.0, 0.01]]))  # axes of very different spread
    hidden = torch.randn(2000, 2)
    for _ in range(2):
        made.normalise(made.outputs(hidden))
        standard = (hidden - hidden.mean(0)) / hidden.std(0, correction=0)
        expected = standard @ torch.tensor([1.0, 3.0])
        expected = expected / expected.std(correction=0)
        torch.testing.assert_close(made(hidden), expected, atol=1e-4, rtol=1e-4)
    made.save(tmp_path)
    again = ScalarHead.load(tmp_path, 2)
    assert again.axes == ("helpful", "harmless") and torch.equal(again(hidden), made(hidden))


@pytest.mark.parametrize("axes", [("overall",), ("helpful", "harmless", "truthful")])
def test_the_folded_head_is_the_head(axes):
    torch.manual_seed(1)
    made = ScalarHead(5, axes=axes, weights=[0.5 + i for i in range(len(axes))])
    torch.nn.init.normal_(made.linear.bias)
    made.normalise(made.outputs(torch.randn(30, 5)))
    hidden = torch.randn(7, 5)
    weight, offset = made.folded()
    assert weight.shape == (5,)
    torch.testing.assert_close(hidden @ weight + offset, made(hidden), atol=1e-5, rtol=1e-5)


def test_an_axis_that_says_nothing_is_named():
    made = ScalarHead(2, axes=("helpful", "harmless"))
    with pytest.raises(ValueError, match="on the axis harmless"):
        made.normalise(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
