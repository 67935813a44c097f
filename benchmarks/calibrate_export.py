"""What rounding an export costs: likeliest token and KL beside the trained model, for every kind of rounded weights.

The limits in `rlhf_kit/export/merged.py` and `gguf_model.py` were set by this: below what sound exports reach by about
three standard errors of 256 positions, and far above what a wrong one does (the base itself, printed too).

    python benchmarks/calibrate_export.py runs/quickstart [--roles sft policy] [--positions 1000]

One JSON line an export. llama.cpp is compiled at the first use, as by `rlhf-kit export`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_kit.export.comparison import Figures, logits_of, own_answers, refer
from rlhf_kit.export.gguf_adapter import write_gguf
from rlhf_kit.export.gguf_model import LIMITS as GGUF_LIMITS
from rlhf_kit.export.gguf_model import convert
from rlhf_kit.export.llama import logits_of_gguf
from rlhf_kit.export.merged import DTYPES, merge, reload, save
from rlhf_kit.export.merged import LIMITS as MERGED_LIMITS
from rlhf_kit.export.source import Source, find
from rlhf_kit.export.trained import TRAINED, load_plain_base, load_trained

_MERGED_FOR = {"f16": "float16", "bf16": "bfloat16", "q8_0": "float16"}


def main() -> None:
    """Prints one JSON line an export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--roles", nargs="+", default=["sft", "policy"])
    parser.add_argument("--positions", type=int, default=1000)
    options = parser.parse_args()
    for run in options.runs:
        for role in options.roles:
            source = find(run, role)
            with tempfile.TemporaryDirectory(dir=run) as scratch:
                for kind, figures in measure(source, Path(scratch), options.positions):
                    print(json.dumps({"run": run.name, "role": role, "kind": kind, **rounded(figures)}), flush=True)


def measure(source: Source, scratch: Path, positions: int) -> Iterator[tuple[str, Figures]]:
    """Every kind in turn, the base first."""
    backbone = load_trained(source)
    tokenizer = backbone.tokenizer
    reference = refer(backbone, TRAINED, own_answers(backbone, TRAINED, positions), scratch)
    yield "the base", reference.base
    write_gguf(source.adapter, backbone.config, scratch / "adapter.gguf")
    for dtype in MERGED_LIMITS:
        if dtype == "float32":
            continue
        folder = scratch / dtype
        tokenizer.save_pretrained(folder)
        save(merge(load_trained(source), DTYPES[dtype]), folder)
        model = reload(folder, source.model)
        yield f"merged {dtype}", reference.compare(logits_of(model, model, reference.answers))
    for outtype in GGUF_LIMITS:
        convert(scratch / _MERGED_FOR[outtype], scratch / "model.gguf", outtype, source.model)
        yield f"gguf {outtype}", reference.compare(logits_of_gguf(scratch / "model.gguf", reference.answers, tokenizer))
    tokenizer.save_pretrained(scratch / "base")
    save(load_plain_base(source.model), scratch / "base")
    for outtype in GGUF_LIMITS:
        convert(scratch / "base", scratch / "base.gguf", outtype, source.model)
        others = logits_of_gguf(scratch / "base.gguf", reference.answers, tokenizer, adapter=scratch / "adapter.gguf")
        yield f"gguf-adapter on {outtype}", reference.compare(others)


def rounded(figures: Figures) -> dict[str, Any]:
    """Four digits."""
    return {name: float(f"{value:.4g}") for name, value in asdict(figures).items()}


if __name__ == "__main__":
    main()
