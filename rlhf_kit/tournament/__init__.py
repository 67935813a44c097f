"""Who is better, from verdicts on pairs of answers: win rates, strengths, position bias, each with an interval.

The unit of resampling is the prompt, because answers to the same prompt depend on each other. Everything but position
bias and control for length is made of one array: how often policy i beats policy j on prompt p, (P, N, N), NaN where
they were not compared.
"""

from .length import length_controlled
from .position import Position, position_bias
from .resampling import Resamples
from .strengths import bradley_terry, elo, play
from .verdicts import Verdicts, win_matrix, win_rates

__all__ = [
    "Position",
    "Resamples",
    "Verdicts",
    "bradley_terry",
    "elo",
    "length_controlled",
    "play",
    "position_bias",
    "win_matrix",
    "win_rates",
]
