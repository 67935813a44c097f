"""Logits of a GGUF model by llama.cpp. A script for the environment that has llama-cpp-python, and nothing of this kit.

Reads a JSON request from stdin: `model`, `lora` (or null), `sequences` (lists of token ids), `first` (of each, the
position of the first token whose logits are wanted), `texts` (to be made tokens), `threads`, `logits` (where to write).
Writes the logits as raw float32 (positions, V), and to stdout one JSON line: `vocabulary`, `positions`, `tokens`.

llama.cpp's C functions are called directly: llama-cpp-python's own class cannot switch the repacking of weights off
(`use_extra_bufts`), with which it crashes on CPUs with AMX where the weights are quantised.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any, BinaryIO

import llama_cpp as llama
import numpy as np


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Does what the request asks for.

    Raises:
        SystemExit: llama.cpp refuses the model or the adapter; what it said stands on stderr.
    """
    llama.llama_backend_init()
    model = _load(request["model"])
    sequences: list[list[int]] = request["sequences"]
    context = _context(model, max(map(len, sequences), default=1), request["threads"])
    if request["lora"] is not None:
        _attach(model, context, request["lora"])
    vocabulary = llama.llama_model_get_vocab(model)
    size = llama.llama_vocab_n_tokens(vocabulary)
    positions = 0
    with open(request["logits"], "wb") as out:
        for sequence, first in zip(sequences, request["first"], strict=True):
            positions += _logits(context, sequence, first, size, out)
    tokens = [_tokens(vocabulary, text) for text in request["texts"]]
    return {"vocabulary": size, "positions": positions, "tokens": tokens}


def _load(path: str) -> Any:
    options = llama.llama_model_default_params()
    options.n_gpu_layers = 0
    options.use_extra_bufts = False
    model = llama.llama_model_load_from_file(path.encode(), options)
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    return model


def _context(model: Any, longest: int, threads: int) -> Any:
    options = llama.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = longest
    options.n_threads = options.n_threads_batch = threads
    # The cache in float32 and no flash attention: what is compared is the weights, not this run's rounding.
    options.type_k = options.type_v = llama.GGML_TYPE_F32
    options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama.llama_init_from_model(model, options)
    if not context:
        sys.exit("llama.cpp cannot make a context for the model")
    return context


def _attach(model: Any, context: Any, path: str) -> None:
    adapter = llama.llama_adapter_lora_init(model, path.encode())
    if not adapter:
        sys.exit(f"llama.cpp cannot load the adapter {path} onto the model")
    adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
    if llama.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)):
        sys.exit(f"llama.cpp cannot use the adapter {path}")


def _logits(context: Any, sequence: list[int], first: int, size: int, out: BinaryIO) -> int:
    """Writes the logits of one sequence from position `first` on; returns how many."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = llama.llama_batch_init(len(sequence), 0, 1)
    try:
        batch.n_tokens = len(sequence)
        for position, token in enumerate(sequence):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = position >= first
        if llama.llama_decode(context, batch):
            sys.exit(f"llama.cpp failed on a sequence of {len(sequence)} tokens")
        for position in range(first, len(sequence)):
            row = llama.llama_get_logits_ith(context, position)
            out.write(np.ctypeslib.as_array(row, shape=(size,)).tobytes())
    finally:
        llama.llama_batch_free(batch)
    return len(sequence) - first


def _tokens(vocabulary: Any, text: str) -> list[int]:
    """Token ids of a text whose special tokens are spelled out; nothing is added before or after."""
    raw = text.encode()
    room = (llama.llama_token * (len(raw) + 8))()
    count = llama.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, True)
    return list(room[:count])


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))), flush=True)
