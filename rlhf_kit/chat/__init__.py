"""Talking to the policies of a run, one at a time or side by side, with the encoder and the sampler of the training."""

from .cast import Cast
from .lines import typed
from .loop import Start, chat
from .speaking import Answer, Manner, Speaker

__all__ = ["Answer", "Cast", "Manner", "Speaker", "Start", "chat", "typed"]
