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
        made.normalise(made(hidden))
        scores = made(hidden)
        assert scores.mean().item() == pytest.approx(0, abs=1e-5)
        assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(made.mean, before.mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.std, before.std(correction=0), atol=1e-4, rtol=1e-4)
    assert (made(hidden).argsort() == before.argsort()).all()


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_normalise_refuses_scores_that_say_nothing(scores):
    made = head()
    with pytest.raises(ValueError, match="learned nothing"):
        made.normalise(torch.tensor(scores))
    assert made.mean.item() == 0 and made.std.item() == 1


def test_save_and_load_keep_the_scores_normalisation_included(tmp_path):
    made, hidden = head(), torch.randn(9, 4)
    made.normalise(made(torch.randn(20, 4)))
    made.save(tmp_path)
    again = ScalarHead.load(tmp_path, 4)
    assert torch.equal(again(hidden), made(hidden))
    assert set(load_file(tmp_path / "head.safetensors")) == {"linear.weight", "linear.bias", "mean", "std"}


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
