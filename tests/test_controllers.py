"""What PPO carries between updates: the formula of the adaptive KL by hand, numpy for running moments."""

import json
import math

import numpy as np
import pytest
import torch

from rlhf_kit.controllers import KlController, RunningMoments, batch_moments, normalised

# ---------------------------------------------------------------- the KL coefficient


def test_a_fixed_coefficient_stays():
    controller = KlController(0.05)
    for kl in (0.0, 100.0, -3.0):
        controller.update(kl, 512)
    assert controller.coef == 0.05


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.2 * (1 + 0.1 * 256 / 10_000)),  # 10 % above the target
        (5.7, 0.2 * (1 - 0.05 * 256 / 10_000)),  # 5 % below it
        (6.0, 0.2),
        (60.0, 0.2 * (1 + 0.2 * 256 / 10_000)),  # the error counts as 20 % at most, on both sides
        (0.0, 0.2 * (1 - 0.2 * 256 / 10_000)),
        (-50.0, 0.2 * (1 - 0.2 * 256 / 10_000)),
    ],
)
def test_the_adaptive_coefficient_by_hand(kl, expected):
    controller = KlController(0.2, target=6.0)
    controller.update(kl, 256)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_a_horizon_is_the_episodes_in_which_a_full_error_moves_the_coefficient_by_a_fifth():
    controller = KlController(1.0, target=6.0, horizon=1000)
    for _ in range(100):
        controller.update(100.0, 10)
    assert controller.coef == pytest.approx(math.exp(0.2), rel=1e-3)


# ---------------------------------------------------------------- running moments


@pytest.mark.parametrize("cuts", [[], [1], [500], [1, 2, 3], [10, 11, 400, 999], list(range(1, 1000))])
def test_moments_are_numpys_on_all_values_in_whatever_parts_they_come(cuts):
    values = np.random.default_rng(0).normal(1000.0, 0.5, size=1000)  # the mean much larger than the deviation
    moments = RunningMoments()
    for part in np.split(values, cuts):
        moments.update(torch.from_numpy(part))
    assert moments.count == 1000
    assert moments.mean == pytest.approx(values.mean(), rel=1e-12)
    assert moments.std == pytest.approx(values.std(), rel=1e-9)


def test_nan_stands_for_no_value_and_any_shape_will_do():
    moments, nan = RunningMoments(), math.nan
    moments.update(torch.tensor([[1.0, nan], [nan, 3.0]]))
    moments.update(torch.tensor([nan, nan]))
    moments.update(torch.tensor([]))
    moments.update(torch.tensor(8.0))
    assert (moments.count, moments.mean) == (3, 4.0)
    assert moments.std == pytest.approx(np.std([1, 3, 8]))


def test_what_has_not_varied_has_deviation_one():
    moments = RunningMoments()
    assert moments.std == 1.0
    moments.update(torch.full((5,), 7.0))
    assert (moments.std, moments.mean) == (1.0, 7.0)
    assert normalised(torch.tensor([7.0, 9.0]), moments).tolist() == [0.0, 2.0]


def test_a_state_goes_through_json_and_goes_on_bit_for_bit():
    whole = RunningMoments()
    parts = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3 + 0.1
    for part in parts[:3]:
        whole.update(part)
    again = RunningMoments(**json.loads(json.dumps(whole.state())))
    assert again == whole
    for part in parts[3:]:
        whole.update(part)
        again.update(part)
    assert (again.count, again.mean, again.squares) == (whole.count, whole.mean, whole.squares)


def test_normalised_by_hand_keeps_nan_and_is_float32():
    values = torch.tensor([1.0, 3.0, math.nan, 5.0], dtype=torch.float64)
    found = normalised(values, batch_moments(values))
    root = math.sqrt(8 / 3)  # mean 3, variance (4 + 0 + 4) / 3
    assert found.dtype == torch.float32 and math.isnan(found[2])
    assert found[[0, 1, 3]].tolist() == pytest.approx([-2 / root, 0.0, 2 / root])
