"""The mathematics of PPO: pure functions of tensors, each with its equation and its source.

Axes: B sequences, R response positions, N positions, H hidden, V vocabulary. Every mask is bool, True = real.
Nothing under a mask ever reaches a result: masked positions are replaced before they are used, never multiplied by
zero, because 0 x inf is NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

KlEstimator = Literal["k1", "k2", "k3"]

# exp() of a log-ratio beyond this is no longer a probability ratio but an accident (and overflows float32 at 88).
MAX_LOG_RATIO = 20.0


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True; 0 where nothing is."""
    total = torch.where(mask, values, 0.0).sum()
    return total / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` scaled to variance 1 over the real positions, and to mean 0 unless `shift_mean` is False.

    Advantages are whitened with the shift, rewards without (arXiv 1909.08593, code; arXiv 2403.17031).
    Positions under the mask come back as 0.
    """
    values = torch.where(mask, values, 0.0)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int = 512,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of `tokens` under softmax(hidden @ weight.T / temperature), in float32.

    The logits of a chunk live only while the chunk is computed; the backward pass makes them again. `hidden` must be
    flat: a (B, R, H) slice would make the product a batched one that copies the whole head once a row.

    Args:
        hidden: (N, H) last hidden states of the positions that predict `tokens`.
        weight: (V, H) output embedding.
        tokens: (N,) token ids.
        softcap: final logit soft-capping of Gemma-type models.

    Returns:
        Two (N,) float32 tensors. The entropy carries no gradient.
    """

    def piece(part: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(part, weight.to(part.dtype)).float()
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits = logits / temperature
        log_z = torch.logsumexp(logits, dim=-1)
        chosen = logits.gather(1, targets[:, None]).squeeze(1) - log_z
        with torch.no_grad():
            entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        return chosen, entropy

    pieces = []
    for part, targets in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        recompute = torch.is_grad_enabled() and part.requires_grad
        pieces.append(checkpoint(piece, part, targets, use_reentrant=False) if recompute else piece(part, targets))
    return torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])


def kl_penalty(log_probs: Tensor, reference: Tensor, estimator: KlEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy (joschu.net/blog/kl-approx.html).

    With log r = log p_ref - log p_policy: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r. k1 and k3 are
    unbiased; k1 belongs into the reward. All tensors (B, R).
    """
    log_ratio = (reference - log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef x KL at every real token, plus the score of the response on its last real token (arXiv 2203.02155, eq.
    2).

    Args:
        scores: (B,).
        kl: (B, R).
        mask: (B, R), at least one real token a row.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.long().cumsum(1).argmax(1)
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) and the returns, both (B, R).

    Column t of `values` is the value before token t. After the last real token the episode is over: its value is 0.
    lam = 0 is the one-step temporal difference, lam = 1 the discounted sum of rewards minus the value.
    """
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(running)
    for t in range(rewards.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, 0.0)
        advantages[:, t] = running
        next_value = values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, cliprange: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), a (B, R) loss a token, and where the clip was active (B,
    R)."""
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.where(mask, torch.maximum(plain, clipped), 0.0), mask & (clipped > plain)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error to the returns, clipped around the old values (baselines' ppo2), (B, R) each, as
    `policy_loss`."""
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    return torch.where(mask, 0.5 * torch.maximum(plain, clipped), 0.0), mask & (clipped > plain)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the real positions; 1 is perfect, 0 no better than a constant."""
    values, returns = torch.where(mask, values, 0.0), torch.where(mask, returns, 0.0)
    error = returns - values
    residual = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    return 1 - residual / spread.clamp(min=1e-8)
