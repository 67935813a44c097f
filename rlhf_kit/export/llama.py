"""llama.cpp as the loader of GGUF files, in an environment of its own: it is compiled there once."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data import Encoder
from rlhf_kit.errors import ExportError
from rlhf_kit.export.comparison import Answers
from rlhf_kit.export.environments import Environment, python_of
from rlhf_kit.export.questions import QUESTIONS

_ONLY = Path(__file__).with_name("llama_only.cmake")
ENVIRONMENT = Environment(
    "llama-cpp-python",
    ("llama-cpp-python==0.3.36",),
    sees_ours=False,
    words="compiling llama.cpp, about 3 minutes",
    needs="the package index and a C++ compiler",
    cmake=("-DLLAVA_BUILD=OFF", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={_ONLY.as_posix()}"),
)
PYTHON_VARIABLE = "RLHF_KIT_LLAMA_PYTHON"
"""Names the interpreter of an environment that has llama-cpp-python already."""

_WORKER = Path(__file__).with_name("llama_worker.py")


def logits_of_gguf(
    model: Path, answers: Answers, tokenizer: PreTrainedTokenizerBase, *, adapter: Path | None = None
) -> Iterator[Tensor]:
    """(T, V) float32 logits of each sequence's compared positions by llama.cpp, on the CPU.

    Args:
        model: the GGUF file of a model.
        tokenizer: the trained model's own: llama.cpp must make the same tokens of the same texts.
        adapter: the GGUF file of an adapter for it.

    Raises:
        ExportError: llama.cpp refuses the files, or reads texts otherwise than the tokenizer does.
    """
    rendered = [_rendered(tokenizer, question) for question in QUESTIONS]
    with tempfile.TemporaryDirectory(dir=model.parent, prefix=".logits-") as scratch:
        logits = Path(scratch) / "logits"
        said = _ask(
            {
                "model": str(model),
                "lora": adapter and str(adapter),
                "sequences": [sequence[:-1] for sequence in answers.sequences],
                "first": answers.first,
                "texts": [text for text, _ in rendered],
                # They wait for each other in a loop: with one for each core, a machine with other work takes many times
                # as long.
                "threads": max(1, torch.get_num_threads() // 2),
                "logits": str(logits),
            }
        )
        for theirs, (text, ours) in zip(said["tokens"], rendered, strict=True):
            if theirs != ours:
                raise ExportError(f"{model.name}: llama.cpp makes other tokens of {text!r}: {theirs} instead of {ours}")
        rows = np.memmap(logits, dtype=np.float32, mode="r", shape=(said["positions"], said["vocabulary"]))
        start = 0
        for sequence, first in zip(answers.sequences, answers.first, strict=True):
            end = start + len(sequence) - 1 - first
            yield torch.from_numpy(rows[start:end].copy())
            start = end


def _rendered(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[str, list[int]]:
    """A question as the kit renders it, as a text and as tokens."""
    ids = Encoder(tokenizer, max_prompt_length=2**20).prompt(question)
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), ids


def _ask(request: dict[str, object]) -> dict[str, object]:
    python = os.environ.get(PYTHON_VARIABLE) or str(python_of(ENVIRONMENT))
    command = [python, str(_WORKER)]
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    except OSError as failure:
        raise ExportError(f"{PYTHON_VARIABLE}: {python} cannot be started: {failure}") from failure
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        wrong = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
        said = " | ".join([*wrong[:2], *lines[-1:]]) or f"it ended with {done.returncode}"
        raise ExportError(f"llama.cpp cannot use the export: {said}")
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer
