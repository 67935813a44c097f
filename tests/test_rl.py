"""The mathematics, against the papers' own definitions in plain Python, exact enumeration and numbers by hand."""

import math

import numpy as np
import pytest
import torch

from rlhf_kit import rl

JUNK = [1e9, -1e9, math.inf, -math.inf, math.nan]


def masks(lengths, width):
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


# ---------------------------------------------------------------- log-probabilities


HEADS = [(1.0, None), (0.7, None), (1.0, 5.0), (1.3, 5.0)]  # temperature, softcap


def exact_log_probs(hidden, weight, tokens, temperature, softcap):
    """Log-probabilities and entropies by torch's own functions on the whole table of logits."""
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    table = torch.log_softmax(logits / temperature, -1)
    return table[torch.arange(len(tokens)), tokens], torch.distributions.Categorical(logits=table).entropy()


@pytest.mark.parametrize(("temperature", "softcap"), HEADS)
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("learns", ["hidden", "hidden and weight"])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_token_log_probs_are_torchs_log_softmax(temperature, softcap, chunk, learns, with_entropy):
    torch.manual_seed(0)
    hidden, weight, tokens = torch.randn(70, 8) * 2, torch.randn(50, 8), torch.randint(50, (70,))
    weight.requires_grad_(learns == "hidden and weight")
    push, pull = torch.randn(70), torch.randn(70)
    runs = []
    for function in (exact_log_probs, rl.token_log_probs):
        state = hidden.clone().requires_grad_()
        options = {} if function is exact_log_probs else {"chunk": chunk, "entropy_gradient": with_entropy}
        log_probs, entropy = function(state, weight, tokens, temperature=temperature, softcap=softcap, **options)
        if function is rl.token_log_probs:
            assert entropy.requires_grad == with_entropy
        loss = (log_probs * push).sum() + ((entropy * pull).sum() if with_entropy else 0.0)
        grads = torch.autograd.grad(loss, [state, weight] if weight.requires_grad else [state])
        runs.append([log_probs, entropy, *grads])
    for expected, found in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


def test_token_log_probs_without_gradients_are_the_same_and_float32():
    torch.manual_seed(0)
    hidden, weight, tokens = torch.randn(9, 8), torch.randn(30, 8), torch.randint(30, (9,))
    with torch.no_grad():
        plain, _ = rl.token_log_probs(hidden, weight, tokens, chunk=4)
    torch.testing.assert_close(plain, torch.log_softmax(hidden @ weight.T, -1)[torch.arange(9), tokens])
    half, entropy = rl.token_log_probs(hidden.bfloat16(), weight, tokens)
    assert half.dtype == entropy.dtype == torch.float32
    assert (half - plain).abs().max() < 0.2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast, _ = rl.token_log_probs(hidden.requires_grad_(), weight, tokens)
    assert torch.equal(autocast, half)


@pytest.mark.parametrize("gap", [8.0, 120.0])
def test_certain_and_impossible_tokens_keep_their_log_probabilities_and_gradients(gap):
    # Two tokens with logits gap and 0: log p = -log(1 + e^-gap) and -gap - log(1 + e^-gap); gradient 1 - p of the gap.
    weight, hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[gap, 0.0]] * 2)
    for dtype in (torch.float32, torch.bfloat16):
        state = hidden.to(dtype).clone().requires_grad_()
        log_probs, entropy = rl.token_log_probs(state, weight, torch.tensor([0, 1]))
        rest = math.exp(-gap)
        assert log_probs.tolist() == pytest.approx([-math.log1p(rest), -gap - math.log1p(rest)], abs=1e-6)
        assert entropy.tolist() == pytest.approx([rest * gap + rest] * 2, rel=1e-2, abs=1e-6)
        log_probs.sum().backward()
        small = rest / (1 + rest)  # 1 - p, not rounded away beside 1
        assert state.grad[0].tolist() == pytest.approx([small, -small], rel=1e-2, abs=1e-7)
        assert state.grad[1].tolist() == pytest.approx([-1 + small, 1 - small], rel=1e-2)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_token_log_probs_in_bfloat16_are_as_near_to_the_truth_as_autograds(with_entropy):
    torch.manual_seed(0)
    hidden, weight, tokens = torch.randn(40, 16), torch.randn(300, 16) / 2, torch.randint(300, (40,))
    hidden, weight = hidden.bfloat16(), weight.bfloat16()

    def gradient(function, dtype, **options):
        state = hidden.to(dtype).clone().requires_grad_()
        log_probs, entropy = function(state, weight.to(dtype), tokens, temperature=0.7, softcap=None, **options)
        (log_probs.sum() + (entropy.sum() if with_entropy else 0.0)).backward()
        return state.grad.double()

    truth = gradient(exact_log_probs, torch.float64)
    ours = gradient(rl.token_log_probs, torch.bfloat16, entropy_gradient=with_entropy)
    theirs = gradient(lambda *a, **k: rl._recomputed_log_probs(*a, *k.values(), with_entropy, 512), torch.bfloat16)
    assert (ours - truth).norm() < 1.2 * (theirs - truth).norm() < 0.02 * truth.norm()


def test_no_logit_is_kept_for_the_backward_pass():
    hidden, weight, tokens = torch.randn(64, 8, requires_grad=True), torch.randn(1000, 8), torch.zeros(64).long()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        rl.token_log_probs(hidden, weight, tokens, entropy_gradient=True)
    assert sum(kept) == 2 * hidden.numel()


# ---------------------------------------------------------------- KL


def test_kl_estimators_on_two_small_distributions():
    policy, reference = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    exact = float((policy * (policy / reference).log()).sum())
    mean = {
        name: float((policy * rl.kl_penalty(policy.log(), reference.log(), name)).sum()) for name in ("k1", "k2", "k3")
    }
    assert mean["k1"] == pytest.approx(exact, abs=1e-6)
    assert mean["k3"] == pytest.approx(exact, abs=1e-6)
    assert mean["k2"] != pytest.approx(exact, abs=1e-3)  # biased, and known to be
    assert (rl.kl_penalty(policy.log(), reference.log(), "k3") >= 0).all()


def test_kl_estimators_by_hand_and_their_sign():
    # r = p_ref / p_policy = 1/2: k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2
    ours, theirs = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    assert float(rl.kl_penalty(ours, theirs)) == pytest.approx(0.693147, abs=1e-6)
    assert float(rl.kl_penalty(ours, theirs, "k2")) == pytest.approx(0.240227, abs=1e-6)
    assert float(rl.kl_penalty(ours, theirs, "k3")) == pytest.approx(0.193147, abs=1e-6)
    assert float(rl.kl_penalty(theirs, ours)) == pytest.approx(-0.693147, abs=1e-6)
    assert torch.isfinite(rl.kl_penalty(torch.tensor(-500.0), torch.tensor(0.0), "k3"))


# ---------------------------------------------------------------- rewards and advantages


def test_token_rewards_by_hand():
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.inf]])
    rewards = rl.token_rewards(torch.tensor([10.0, -1.0]), kl, masks([3, 1], 3), 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 9.7], [-1.4, 0.0, 0.0]]))


def direct_gae(rewards, values, gamma, lam):
    """arXiv 1506.02438, eq. 16: A_t = sum over l of (gamma lam)^l delta_{t+l}, by its definition."""
    deltas = [
        rewards[t] + (gamma * values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t in range(len(rewards))
    ]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]


def rollout(seed, lengths, width):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(len(lengths), width, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards, values, masks(lengths, width)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (1.0, 1.0), (0.5, 1.0), (0.0, 0.5)])
def test_gae_is_the_sum_that_defines_it(gamma, lam):
    lengths = [6, 1, 4]
    rewards, values, mask = rollout(0, lengths, 6)
    advantages, returns = rl.gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row, n in enumerate(lengths):
        expected = direct_gae(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, :n].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[row, :n].tolist(), strict=True)], abs=1e-12
        )
        assert advantages[row, n:].abs().sum() == returns[row, n:].abs().sum() == 0


def test_gae_with_lambda_one_is_monte_carlo_whatever_the_values_say():
    lengths = [5, 3]
    rewards, values, mask = rollout(1, lengths, 5)
    _, returns = rl.gae(rewards, values, mask, gamma=0.9, lam=1.0)
    _, others = rl.gae(rewards, values * 100 - 7, mask, gamma=0.9, lam=1.0)
    for row, n in enumerate(lengths):
        for t in range(n):
            discounted = sum(0.9 ** (s - t) * float(rewards[row, s]) for s in range(t, n))
            assert float(returns[row, t]) == pytest.approx(discounted, abs=1e-12)
            assert float(others[row, t]) == pytest.approx(discounted, abs=1e-9)


def test_gae_with_lambda_zero_is_the_temporal_difference():
    advantages, _ = rl.gae(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]]), masks([3], 3), gamma=0.5, lam=0.0
    )
    assert advantages.tolist() == [[1 + 10 - 10, 2 + 15 - 20, 3 - 30]]


def test_a_perfect_critic_leaves_no_advantage():
    rewards, _, mask = rollout(2, [4, 2], 4)
    truth = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    advantages, _ = rl.gae(rewards, truth, mask, gamma=1.0, lam=0.7)
    assert advantages.abs().max() < 1e-12


def test_masked_whiten_is_numpys():
    torch.manual_seed(0)
    values, mask = torch.randn(4, 6) * 3 + 5, masks([6, 1, 3, 4], 6)
    real = values[mask].numpy()
    shifted = rl.masked_whiten(values, mask)
    np.testing.assert_allclose(shifted[mask], (real - real.mean()) / real.std(), atol=1e-5)
    kept = rl.masked_whiten(values, mask, shift_mean=False)
    np.testing.assert_allclose(kept[mask], (real - real.mean()) / real.std() + real.mean(), atol=1e-5)
    assert kept[mask].mean() == pytest.approx(real.mean(), abs=1e-4)  # the mean stays; the sign flag, that is
    assert shifted[mask].mean() == pytest.approx(0, abs=1e-5)
    assert (shifted[~mask] == 0).all() and (kept[~mask] == 0).all()


def test_whitening_what_is_all_the_same_is_finite():
    assert rl.masked_whiten(torch.full((2, 3), 4.0), masks([3, 1], 3)).abs().max() < 1e-3
    assert float(rl.masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))) == 0.0


# ---------------------------------------------------------------- losses


def test_policy_loss_by_hand():
    # ratios 1.5, 1.5, 0.5, 0.5, 1.1 with advantages +, -, +, -, +; clip 0.2
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]])
    new = ratio.log().requires_grad_()
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0]])
    loss, clipped = rl.policy_loss(new, torch.zeros(1, 5), advantages, masks([5], 5), cliprange=0.2)
    torch.testing.assert_close(loss, torch.tensor([[-2.4, 3.0, -1.0, 1.6, -2.2]]))
    assert clipped.tolist() == [[True, False, False, True, False]]
    loss.sum().backward()
    # d(-A r)/d log p = -A r where it is not clipped, 0 where it is.
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, 3.0, -1.0, 0.0, -2.2]]))


def test_policy_gradient_raises_what_was_good():
    new = torch.zeros(1, 2, requires_grad=True)
    loss, _ = rl.policy_loss(new, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), masks([2], 2), cliprange=0.2)
    loss.sum().backward()
    assert new.grad.tolist() == [[-1.0, 1.0]]  # descent: the first gets likelier, the second less so


def test_value_loss_by_hand():
    # old value 0, clip 0.2; value 1 with returns 2, 0.1, -1; value 0.1 (inside) with return 1
    values = torch.tensor([[1.0, 1.0, 1.0, 0.1]], requires_grad=True)
    returns = torch.tensor([[2.0, 0.1, -1.0, 1.0]])
    loss, clipped = rl.value_loss(values, torch.zeros(1, 4), returns, masks([4], 4), cliprange_value=0.2)
    torch.testing.assert_close(loss, torch.tensor([[0.5 * 1.8**2, 0.5 * 0.9**2, 0.5 * 2**2, 0.5 * 0.9**2]]))
    assert clipped.tolist() == [[True, False, False, False]]
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 0.9, 2.0, -0.9]]))


def test_dual_clip_by_hand():
    # clip 0.2 and c = 3: only where the advantage is negative and the ratio above 3 does the second clip act.
    ratio = torch.tensor([[5.0, 5.0, 2.9, 0.5, 1.1]])
    new = ratio.log().requires_grad_()
    advantages = torch.tensor([[-2.0, 2.0, -2.0, -2.0, -2.0]])
    options = {"mask": masks([5], 5), "cliprange": 0.2}
    loss, active = rl.policy_loss(new, torch.zeros(1, 5), advantages, dual_clip=3.0, **options)
    torch.testing.assert_close(loss, torch.tensor([[6.0, -2.4, 5.8, 1.6, 2.2]]))
    assert active.tolist() == [[True, True, False, True, False]]
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, 0.0, 5.8, 0.0, 2.2]]))
    plain, _ = rl.policy_loss(new, torch.zeros(1, 5), advantages, **options)
    torch.testing.assert_close(plain, torch.tensor([[10.0, -2.4, 5.8, 1.6, 2.2]]))


def test_without_a_clip_the_loss_is_the_surrogate_and_on_policy_its_gradient_that_of_reinforce():
    new = torch.tensor([[1.5, 0.5, 4.0]]).log().requires_grad_()
    advantages = torch.tensor([[2.0, -2.0, 1.0]])
    loss, active = rl.policy_loss(new, torch.zeros(1, 3), advantages, masks([3], 3), cliprange=None)
    torch.testing.assert_close(loss, torch.tensor([[-3.0, 1.0, -4.0]]))
    assert not active.any()
    old = torch.tensor([[-1.0, -2.0, -3.0]])
    own = old.clone().requires_grad_()
    rl.policy_loss(own, old, advantages, masks([3], 3), cliprange=None)[0].sum().backward()
    assert own.grad.tolist() == (-advantages).tolist()


def test_without_a_clip_the_value_loss_is_half_the_squared_error():
    values = torch.tensor([[1.0, 5.0, -2.0]], requires_grad=True)
    returns = torch.tensor([[2.0, 1.0, -2.0]])
    loss, clipped = rl.value_loss(values, torch.full((1, 3), 9.0), returns, masks([3], 3), cliprange_value=None)
    assert loss.tolist() == [[0.5, 8.0, 0.0]] and not clipped.any()
    loss.sum().backward()
    assert values.grad.tolist() == [[-1.0, 4.0, 0.0]]


def test_explained_variance_by_hand():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), masks([3], 4)
    assert float(rl.explained_variance(returns, returns, mask)) == pytest.approx(1.0)
    assert float(rl.explained_variance(torch.full((1, 4), 7.0), returns, mask)) == pytest.approx(0.0)
    assert float(rl.explained_variance(returns + 5, returns, mask)) == pytest.approx(1.0)
    # errors 0, 0, 1: variance 2/9, of returns 2/3
    values = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert float(rl.explained_variance(values, returns, mask)) == pytest.approx(2 / 3, abs=1e-6)
    assert float(rl.explained_variance(-returns, returns, mask)) == pytest.approx(-3.0, abs=1e-5)


# ---------------------------------------------------------------- nothing leaks from under a mask

FUNCTIONS = {
    "masked_mean": (1, lambda m, a: rl.masked_mean(a, m)),
    "masked_whiten": (1, lambda m, a: rl.masked_whiten(a, m)),
    "masked_whiten, mean kept": (1, lambda m, a: rl.masked_whiten(a, m, shift_mean=False)),
    "token_rewards": (1, lambda m, a: rl.token_rewards(torch.tensor([1.0, 2.0, 3.0]), a, m, 0.1)),
    "gae": (2, lambda m, a, b: torch.cat(rl.gae(a, b, m, gamma=0.9, lam=0.8))),
    "policy_loss": (3, lambda m, a, b, c: torch.cat(rl.policy_loss(a, b, c, m, cliprange=0.2))),
    "value_loss": (3, lambda m, a, b, c: torch.cat(rl.value_loss(a, b, c, m, cliprange_value=0.2))),
    "policy_loss, dual clip": (
        3,
        lambda m, a, b, c: torch.cat(rl.policy_loss(a, b, c, m, cliprange=0.2, dual_clip=1.5)),
    ),
    "policy_loss, no clip": (3, lambda m, a, b, c: torch.cat(rl.policy_loss(a, b, c, m, cliprange=None))),
    "value_loss, no clip": (2, lambda m, a, b: torch.cat(rl.value_loss(a, a.detach(), b, m, cliprange_value=None))),
    "explained_variance": (2, lambda m, a, b: rl.explained_variance(a, b, m)),
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_junk_under_the_mask_changes_nothing(name, junk):
    count, function = FUNCTIONS[name]
    mask = masks([4, 1, 3], 4)
    generator = torch.Generator().manual_seed(0)
    clean = [torch.where(mask, torch.randn(3, 4, generator=generator), 0.0) for _ in range(count)]
    for dirty in [{i} for i in range(count)] + [set(range(count))]:
        runs = []
        for spoil in (False, True):
            inputs = [torch.where(mask, x, junk) if spoil and i in dirty else x.clone() for i, x in enumerate(clean)]
            for x in inputs:
                x.requires_grad_()
            result = function(mask, *inputs)
            (result * torch.linspace(1, 2, result.numel()).view(result.shape)).sum().backward()
            runs.append((result.detach(), [x.grad for x in inputs]))
        (plain, plain_grads), (spoiled, spoiled_grads) = runs
        assert torch.equal(plain, spoiled), dirty
        for a, b in zip(plain_grads, spoiled_grads, strict=True):
            assert torch.equal(a, b), dirty
            assert (b[~mask] == 0).all()
