"""The only place that generates text: by the kit's own loop, or by a vLLM server."""

from rlhf_kit.rollout.decoding import Drawing, Ending, beam_search, draw, sample, sample_in_batches
from rlhf_kit.rollout.vllm import Drawn, VllmEngine

__all__ = ["Drawing", "Drawn", "Ending", "VllmEngine", "beam_search", "draw", "sample", "sample_in_batches"]
