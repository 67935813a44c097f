"""llama.cpp through llama-cpp-python's own class, as a user asks it; the kit's verification calls the C functions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_kit.export.environments import python_of
from rlhf_kit.export.llama import ENVIRONMENT, PYTHON_VARIABLE

LENGTH = 48

ASK = """
import json, sys
import llama_cpp
import numpy as np

asked = json.load(sys.stdin)
# One thread: llama.cpp's wait for each other in a loop, forty times as long where the machine has other work.
one = dict(n_threads=1, n_threads_batch=1)
llm = llama_cpp.Llama(asked["model"], lora_path=asked["lora"], n_ctx=512, logits_all=True, verbose=False, **one)
rows, answers = [], []
for sequence in asked["sequences"]:
    llm.reset()
    llm.eval(sequence)
    rows.append(llm.scores[: len(sequence)].copy())
for prompt in asked["prompts"]:
    answer = []
    for token in llm.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
        answer.append(int(token))
        if token == llm.token_eos() or len(answer) == asked["length"]:
            break
    answers.append(answer)
chats = [
    llm.create_chat_completion([{"role": "user", "content": text}], temperature=0.0, max_tokens=asked["length"])
    for text in asked["chats"]
]
if rows:
    np.save(asked["logits"], np.concatenate(rows))
print(json.dumps({"answers": answers, "chats": chats}))
"""


def ask(
    directory: Path,
    model: Path,
    adapter: Path | None = None,
    *,
    sequences: list[list[int]] | None = None,
    prompts: list[list[int]] | None = None,
    chats: list[str] | None = None,
    length: int = LENGTH,
) -> tuple[list[Tensor], dict[str, Any]]:
    """Logits (T, V) of sequences and greedy answers to prompts and to chats, by llama-cpp-python's own class."""
    python = os.environ.get(PYTHON_VARIABLE) or str(python_of(ENVIRONMENT))
    request = {
        "model": str(model),
        "lora": adapter and str(adapter),
        "sequences": sequences or [],
        "prompts": prompts or [],
        "chats": chats or [],
        "length": length,
        "logits": str(directory / "logits.npy"),
    }
    done = subprocess.run([python, "-c", ASK], input=json.dumps(request), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows: list[Tensor] = []
    if sequences:
        logits = torch.from_numpy(np.load(directory / "logits.npy"))
        rows = list(logits.split([len(sequence) for sequence in sequences]))
    return rows, json.loads(done.stdout.splitlines()[-1])


def kl(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Mean of KL(ours || theirs) over positions, in nats."""
    p, q = (torch.cat(rows).double().log_softmax(-1) for rows in (ours, theirs))
    return (p.exp() * (p - q)).sum(-1).mean().item()


def logits_of(model: torch.nn.Module, sequences: list[list[int]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([sequence])).logits[0] for sequence in sequences]
