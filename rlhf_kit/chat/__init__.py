"""Talking to the policies of a run, one at a time or side by side, with the encoder and the sampler of the training."""

from .loop import Start, chat, typed_lines
from .speaking import Answer, Manner, Speaker

__all__ = ["Answer", "Manner", "Speaker", "Start", "chat", "typed_lines"]
