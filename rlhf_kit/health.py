"""Whether a PPO run is well, in words, from its log alone: DESIGN's "health is part of the product".

Watch KL, length and the rate of answers that end, not the reward: it rises in a run that goes wrong, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["LIMITS", "breached", "verdict"]

Entry = Mapping[str, float]
"""One entry of the log: figures by name, those of an update."""

LIMITS = {
    "kl": "above",
    "approx_kl": "above",
    "clip_fraction": "above",
    "response_length": "above",
    "score": "below",
    "eos_rate": "below",
    "entropy": "below",
    "explained_variance": "below",
}
"""The figures that `ppo.stop_on` may bound, and on which side of the bound a run is ill."""

_REMEDIES = {
    "kl": "raise ppo.kl_coef or lower ppo.learning_rate",
    "approx_kl": "lower ppo.learning_rate or set ppo.target_kl",
    "clip_fraction": "lower ppo.learning_rate or take fewer ppo.num_ppo_epochs",
    "response_length": "raise ppo.length_penalty or ppo.missing_eos_penalty",
    "score": "look at the answers, and at what the reward likes",
    "eos_rate": "raise ppo.missing_eos_penalty or ppo.response_length",
    "entropy": "raise ppo.entropy_coef or ppo.kl_coef",
    "explained_variance": "raise ppo.value_learning_rate or ppo.critic_warmup_steps",
}

# Shares of a run that are its beginning and its end: one update's figures are noise.
_PART = 4
_MUCH_KL = 10.0
_ENDINGS_LOST = 0.1
_FLAT_ENTROPY = 0.2
_MUCH_CLIPPED = 0.3
_LEAST_UPDATES = 4


def breached(entry: Entry, limits: Mapping[str, float]) -> str | None:
    """What of `limits` an entry of the log violates, in words with a remedy; None where it keeps all."""
    for name, limit in limits.items():
        value = entry.get(name)
        if value is None:
            continue
        side = LIMITS[name]
        if value > limit if side == "above" else value < limit:
            return f"{name} is {value:.4g}, {side} the limit of {limit:g}; {_REMEDIES[name]}"
    return None


def verdict(log: Sequence[Entry]) -> list[str]:
    """What is to be said of a finished run, the gravest first; a single sentence where nothing is wrong.

    Args:
        log: the entries of all updates in their order; entries without a `kl` (evaluations) are left out.
    """
    updates = [entry for entry in log if "kl" in entry]
    if len(updates) < _LEAST_UPDATES:
        return [f"{len(updates)} updates are too few to judge the run by."]
    size = max(1, len(updates) // _PART)
    first, last = _means(updates[:size]), _means(updates[-size:])
    found = [
        *_numbers(updates),
        *_distance(first, last),
        *_answers(first, last),
        *_learning(first, last),
    ]
    return found or [
        f"Nothing looks wrong: the score went from {first['score']:.2f} to {last['score']:.2f} at "
        f"{last['kl']:.1f} nats a response from the reference, and {last['eos_rate']:.0%} of the answers end."
    ]


def _means(entries: Sequence[Entry]) -> dict[str, float]:
    names = {name for entry in entries for name in entry}
    columns = {n: [e[n] for e in entries if isinstance(e.get(n), (int, float)) and math.isfinite(e[n])] for n in names}
    return {name: sum(values) / len(values) for name, values in columns.items() if values}


def _numbers(updates: Sequence[Entry]) -> list[str]:
    wrong = sorted({n for e in updates for n, v in e.items() if isinstance(v, float) and not math.isfinite(v)})
    return [f"Some figures were no numbers ({', '.join(wrong)}): the run cannot be trusted."] if wrong else []


def _distance(first: Entry, last: Entry) -> list[str]:
    found = []
    if last["kl"] > _MUCH_KL and last["kl"] > 2 * first["kl"]:
        found.append(
            f"The policy ran away from the reference: {last['kl']:.1f} nats a response at the end, {first['kl']:.1f} "
            f"at the beginning. Its answers are unlike those that the reward was trained on: {_REMEDIES['kl']}."
        )
    if last["kl"] < -0.5:
        found.append(
            f"The KL is negative ({last['kl']:.1f} nats a response), more than sampling explains: what was sampled "
            "is not what is scored. Sample with top_k 0, top_p 1 and min_response_length 0, or look for a mismatch of "
            "padding."
        )
    return found


def _answers(first: Entry, last: Entry) -> list[str]:
    found, better = [], last["score"] > first["score"]
    if last["eos_rate"] < first["eos_rate"] - _ENDINGS_LOST:
        rose = "while the score rose: the policy may be paid for rambling" if better else "and the score did not rise"
        found.append(
            f"Fewer answers end ({first['eos_rate']:.0%}, then {last['eos_rate']:.0%}) {rose}. "
            f"{_REMEDIES['eos_rate'].capitalize()}."
        )
    entropy = last.get("entropy")
    if entropy is not None and entropy < _FLAT_ENTROPY * first.get("entropy", 0.0):
        found.append(
            f"The policy says nearly the same every time: its entropy fell from {first['entropy']:.2f} to "
            f"{entropy:.2f} nats a token. {_REMEDIES['entropy'].capitalize()}."
        )
    return found


def _learning(first: Entry, last: Entry) -> list[str]:
    found = []
    spread = last.get("score_std", 0.0)
    if last["score"] < first["score"] - 0.25 * spread:
        found.append(
            f"The score fell from {first['score']:.2f} to {last['score']:.2f}: the policy did not learn what is "
            "rewarded. Lower ppo.learning_rate, or sample more answers an update."
        )
    if last.get("clip_fraction", 0.0) > _MUCH_CLIPPED:
        found.append(
            f"{last['clip_fraction']:.0%} of the tokens were clipped: the steps are too large. "
            f"{_REMEDIES['clip_fraction'].capitalize()}."
        )
    if last.get("explained_variance", 1.0) < 0:
        found.append(
            "The value model explains nothing of the returns, so the advantages are as noisy as without it. "
            f"{_REMEDIES['explained_variance'].capitalize()}."
        )
    return found
