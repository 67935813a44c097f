"""Strengths of any number of policies: Bradley–Terry by choix, and Elo."""

from __future__ import annotations

import choix
import numpy as np
from numpy.typing import NDArray

from rlhf_kit.measures import Estimate, Floats

from .resampling import Resamples
from .verdicts import Ints

__all__ = ["ALPHA", "SCALE", "START", "K", "bradley_terry", "elo", "play"]

ALPHA = 0.01
"""Of a verdict: added for each side of every pair that was compared, so that who never loses has a finite strength."""
START, SCALE, K = 1000.0, 400.0, 16.0
"""Elo: everybody's first rating, the difference that means odds of 10 to 1, and the most that a game moves a rating."""
_FITS, _ORDERS = 1000, 8


def bradley_terry(matrix: Floats, resamples: Resamples) -> list[Estimate | None]:
    """Strengths as log-odds (Bradley and Terry, Biometrika 39, 1952), with mean 0; by choix.

    A prompt counts once for each pair, however many answers were compared. Of policies that no verdicts link the
    largest group is rated, the others are None.
    """
    group = _linked(matrix)
    if len(group) < 2:
        return [None] * matrix.shape[1]
    inside = matrix[:, group][:, :, group]
    wins = np.nan_to_num(inside)
    prior = ALPHA * (~np.isnan(inside)).any(axis=0)
    value = _strengths(wins.sum(axis=0) + prior)
    drawn = np.tensordot(resamples.counts[:_FITS], wins, axes=1) + prior
    found = np.array([_strengths(one, value) for one in drawn])
    estimates = {name: resamples.estimate(float(value[n]), found[:, n]) for n, name in enumerate(group)}
    return [estimates.get(n) for n in range(matrix.shape[1])]


def _strengths(wins: Floats, start: Floats | None = None) -> Floats:
    """(N,) from how often i beat j (N, N)."""
    strengths: Floats = choix.ilsr_pairwise_dense(wins, initial_params=start, max_iter=1000)
    centred: Floats = strengths - strengths.mean()
    return centred


def _linked(matrix: Floats) -> list[int]:
    """The largest group of policies that comparisons link, directly or through others."""
    met: NDArray[np.bool_] = np.asarray((~np.isnan(matrix)).any(axis=0))
    left, groups = set(range(len(met))), []
    while left:
        group, edge = set[int](), {min(left)}
        while edge:
            group |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(met[i])} - group
        groups.append(sorted(group))
        left -= group
    return max(groups, key=len)


def elo(matrix: Floats, resamples: Resamples, *, seed: int = 0) -> list[Estimate | None]:
    """Elo ratings: every pair on every prompt is one game, played with the share of its verdicts that were won.

    A rating depends on the order of the games, so it is a mean over random orders. It starts at 1000 and moves by 16 a
    game at most: of few games it lies nearer to 1000 than the strengths are apart. None for who has played no game.
    """
    once = np.triu(np.ones(matrix.shape[1:], dtype=bool), 1)
    prompt, ours, theirs = np.nonzero(~np.isnan(matrix) & once)
    score = matrix[prompt, ours, theirs]
    if not len(prompt):
        return [None] * matrix.shape[1]
    rng = np.random.default_rng([seed, 1])
    policies, counts = matrix.shape[1], resamples.counts[: _FITS // 2].astype(np.int64)

    def ratings(draws: Ints) -> Floats:
        """(rows, N) after the games of each row of (rows, P) counts, in a random order of its own."""
        times = draws[:, prompt]
        most = int(times.sum(axis=1).max())
        games = np.full((len(draws), most), -1)
        for row, repeated in enumerate(times):
            played = np.repeat(np.arange(len(prompt)), repeated)
            games[row, : len(played)] = rng.permutation(played)
        return play(games, ours, theirs, score, policies)

    value = ratings(np.ones((_ORDERS * 32, matrix.shape[0]), np.int64)).mean(axis=0)
    found = ratings(np.repeat(counts, _ORDERS, axis=0)).reshape(len(counts), _ORDERS, policies).mean(axis=1)
    met: NDArray[np.bool_] = np.asarray((~np.isnan(matrix)).any(axis=(0, 2)))
    return [resamples.estimate(float(value[n]), found[:, n]) if met[n] else None for n in range(policies)]


def play(games: Ints, ours: Ints, theirs: Ints, score: Floats, policies: int, k: float = K) -> Floats:
    """(rows, N) Elo ratings after many tournaments, one a row, played side by side.

    Args:
        games: (rows, G) which game comes when; -1 is no game.
        ours, theirs: (games,) who plays.
        score: (games,) what `ours` gets of it, 0 to 1.
        k: the most that a game moves a rating.
    """
    ratings = np.full((len(games), policies), START)
    rows = np.arange(len(games))
    for game in games.T:
        i, j = ours[game], theirs[game]
        expected = 1 / (1 + 10 ** ((ratings[rows, j] - ratings[rows, i]) / SCALE))
        change = np.where(game >= 0, k * (score[game] - expected), 0.0)
        ratings[rows, i] += change
        ratings[rows, j] -= change
    return ratings
