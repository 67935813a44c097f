"""The mathematics of PPO: pure functions of tensors, each with its equation and its source.

Axes: B sequences, R response positions, N positions, H hidden, V vocabulary. Every mask is bool, True = real.
Nothing under a mask ever reaches a result: masked positions are replaced before they are used, never multiplied by
zero, because 0 x inf is NaN.
"""

from __future__ import annotations

from typing import Any, Literal

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


# Rows whose softmax is made at a time: their float32 logits stay in the cache (49,152 tokens: 6 MB), while the two
# multiplications with the head, which read all of it, are made once a chunk.
_SOFTMAX_ROWS = 32


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy_gradient: bool = False,
    chunk: int = 256,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of `tokens` under softmax(hidden @ weight.T / temperature), in float32.

    The logits of a chunk live only while the chunk is computed. Where a gradient will be asked for, it is made in the
    same moment, d log p / d hidden = (weight[token] - softmax @ weight) / temperature, so that the backward pass is a
    product of two numbers a position and never sees a logit. `hidden` must be flat: a (B, R, H) slice would make the
    product a batched one that copies the whole head once a row.

    Args:
        hidden: (N, H) last hidden states of the positions that predict `tokens`.
        weight: (V, H) output embedding; if it learns, the logits are made again in the backward pass instead.
        tokens: (N,) token ids.
        softcap: final logit soft-capping of Gemma-type models.
        entropy_gradient: whether the entropy can be differentiated (one more product with the head).
        chunk: positions whose logits live at once.

    Returns:
        Two (N,) float32 tensors. The entropy carries no gradient unless `entropy_gradient` is set.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        return _recomputed_log_probs(hidden, weight, tokens, temperature, softcap, entropy_gradient, chunk)
    if torch.is_grad_enabled() and hidden.requires_grad:
        options = (temperature, softcap, entropy_gradient, chunk)
        found: tuple[Tensor, Tensor] = _TokenLogProbs.apply(hidden, weight, tokens, *options)  # type: ignore[no-untyped-call]
        return found
    log_probs, entropy, _ = _log_probs_and_slopes(hidden, weight, tokens, temperature, softcap, chunk, 0)
    return log_probs, entropy


class _TokenLogProbs(torch.autograd.Function):
    """`token_log_probs` with the gradients that its forward pass has already made."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        softcap: float | None,
        entropy_gradient: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        log_probs, entropy, slopes = _log_probs_and_slopes(
            hidden, weight, tokens, temperature, softcap, chunk, 2 if entropy_gradient else 1
        )
        ctx.save_for_backward(*slopes)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        terms = [grad[:, None] * slope for grad, slope in zip(grads, ctx.saved_tensors, strict=False)]
        return sum(terms[1:], terms[0]).to(ctx.saved_tensors[0].dtype), None, None, None, None, None, None


def _log_probs_and_slopes(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float,
    softcap: float | None,
    chunk: int,
    gradients: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probabilities and entropies (N,), and the first `gradients` of their gradients (N, H) by the states."""
    log_probs, entropy = (torch.empty(len(tokens), device=hidden.device) for _ in range(2))
    slopes = [torch.empty_like(hidden) for _ in range(gradients)]
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    weight = weight.to(dtype)
    for first in range(0, len(tokens), chunk):
        rows = slice(first, first + chunk)
        logits = F.linear(hidden[rows].to(dtype), weight)
        # The gradients by the logits, in their dtype as autograd would have it; the first takes the logits' own place.
        by_logits = [logits, *(torch.empty_like(logits) for _ in range(gradients - 1))][:gradients]
        for block in range(0, len(logits), _SOFTMAX_ROWS):
            part = slice(block, block + _SOFTMAX_ROWS)
            targets = tokens[rows][part]
            log_p, h, *exact = _softmax_block(logits[part], targets, temperature, softcap, gradients)
            log_probs[rows][part], entropy[rows][part] = log_p, h
            for kept, made in zip(by_logits, exact, strict=True):
                kept[part] = made
        for slope, by_logit in zip(slopes, by_logits, strict=True):
            slope[rows] = by_logit @ weight
    return log_probs, entropy, slopes


def _softmax_block(
    logits: Tensor, targets: Tensor, temperature: float, softcap: float | None, gradients: int
) -> list[Tensor]:
    """Of raw logits (n, V), float32: log-probabilities of `targets` (n,), entropies (n,), and as many of their
    gradients by the raw logits (n, V) as `gradients` says."""
    z = logits.to(torch.float32, copy=True)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1.0:
        z.div_(temperature)
    p = torch.softmax(z, dim=-1)
    log_z = z.amax(-1) - p.amax(-1).log()  # the likeliest token's p is at least 1/V: its logarithm loses nothing
    found = [z.gather(1, targets[:, None]).squeeze(1) - log_z, log_z - (p * z).sum(-1)]
    if gradients == 0:
        return found
    slope: Tensor | float = 1 / temperature  # of z by a raw logit
    if softcap is not None:
        slope = (1 - (z * (temperature / softcap)).square_()).mul_(slope)
    # d log p_t / dz = [t] - p, and dH / dz = -p (log p + H)
    by_entropy = [(log_z - found[1])[:, None].sub(z).mul_(p).mul_(slope)] if gradients > 1 else []
    by_log_prob = p.neg_().scatter_add_(1, targets[:, None], torch.ones_like(z[:, :1])).mul_(slope)
    return [*found, by_log_prob, *by_entropy]


def _recomputed_log_probs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float,
    softcap: float | None,
    entropy_gradient: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """`token_log_probs` where the head learns too: autograd through logits that the backward pass makes again."""

    def piece(part: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(part, weight.to(part.dtype)).float()
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        table = torch.log_softmax(logits / temperature, dim=-1)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            entropy = -(table.exp() * table).sum(-1)
        return table.gather(1, targets[:, None]).squeeze(1), entropy

    pieces = [
        checkpoint(piece, part, targets, use_reentrant=False)
        for part, targets in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
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


def truncated_importance(log_probs: Tensor, sampled: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(p / q, cap) for every token, p its probability in training and q that by which it was sampled (Ionides 2008,
    eq. 4; arXiv 1802.01561, section 4.1); 1 under the mask. All (B, R), without a gradient."""
    log_ratio = torch.where(mask, log_probs - sampled, 0.0).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.exp().clamp(max=cap)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cliprange: float | None,
    dual_clip: float | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), a (B, R) loss a token, and where the clip was active (B,
    R).

    Args:
        cliprange: None clips nothing; on the samples of the policy itself the gradient is then that of the advantage
            actor-critic, -A grad log pi (arXiv 1602.01783, section 4).
        dual_clip: c > 1; where the advantage is negative the loss is at most -c A (arXiv 1912.09729, eq. 5).
        importance: (B, R) how much each token's loss counts, where others than the policy have sampled it.
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    loss = -advantages * ratio
    active = torch.zeros_like(mask)
    if cliprange is not None:
        clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
        active = clipped > loss
        loss = torch.maximum(loss, clipped)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = (advantages < 0) & (loss > bound)
        active = active | bounded
        loss = torch.where(bounded, bound, loss)
    if importance is not None:
        loss = loss * importance
    return torch.where(mask, loss, 0.0), mask & active


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error to the returns, clipped around the old values (baselines' ppo2), (B, R) each, as
    `policy_loss`; None clips nothing."""
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    plain = (values - returns) ** 2
    if cliprange_value is None:
        return torch.where(mask, 0.5 * plain, 0.0), torch.zeros_like(mask)
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    clipped = (clipped_values - returns) ** 2
    return torch.where(mask, 0.5 * torch.maximum(plain, clipped), 0.0), mask & (clipped > plain)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the real positions; 1 is perfect, 0 no better than a constant."""
    values, returns = torch.where(mask, values, 0.0), torch.where(mask, returns, 0.0)
    error = returns - values
    residual = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
    spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    return 1 - residual / spread.clamp(min=1e-8)
