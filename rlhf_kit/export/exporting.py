"""`export`: one adapter of a run, written as a kind of export, verified, with its card; all of it or nothing."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig

from rlhf_kit.checkpoint import MANIFEST, Manifest, clear_work, differences, finish, open_work, read_manifest
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.export import gguf_adapter, gguf_model
from rlhf_kit.export.adapter import export_adapter
from rlhf_kit.export.card import Facts, policy_card
from rlhf_kit.export.comparison import POSITIONS
from rlhf_kit.export.lineage import license_of
from rlhf_kit.export.merged import DTYPES, export_merged
from rlhf_kit.export.modelfile import modelfile
from rlhf_kit.export.reward import export_reward
from rlhf_kit.export.source import REWARD, SCORED, Source, find
from rlhf_kit.export.trained import Mixture
from rlhf_kit.models import load_tokenizer
from rlhf_kit.models.adapters import FILES, WEIGHTS_FILE, content_of
from rlhf_kit.models.loading import base_id

log = logging.getLogger(__name__)

KINDS = ("adapter", "merged", "gguf", "gguf-adapter", "reward")
MODELFILE = "Modelfile"
_GGUF = {"float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Wish:
    """What somebody wants of an adapter.

    Attributes:
        kind: one of `KINDS`; `reward` is a classification model with one label.
        dtype: of whole models: float32, bfloat16, float16; of GGUF f16, bf16, q8_0. None is that of the training, and
            f16 of GGUF.
        merged: with `reward`: a whole model instead of an adapter.
        mixture: other adapters weighted in.
        positions: of the trained model's own answers that are compared at least.
    """

    kind: str = "adapter"
    dtype: str | None = None
    merged: bool = False
    mixture: Mixture | None = None
    positions: int = POSITIONS


def export(run: Path, wish: Wish, *, role: str | None = None, out: Path | None = None) -> Path:
    """Writes an export of a run and returns its directory. One that is there already, of the same adapter and wish, is
    left as it is.

    Args:
        run: of a whole run or of a stage.
        role: one of `source.ROLES`; where it is left out, the last policy, or the stage's own.
        out: a new directory; `export-KIND` beside the stage where it is left out.

    Raises:
        CheckpointError: there is no such adapter, or `out` holds something else.
        ExportError: it cannot be written as this kind, or is not what was trained. Nothing is left of it.
    """
    source = find(run, role or (REWARD if wish.kind == "reward" else None))
    out = out or source.run.parent / "-".join(["export", wish.kind, *([role] if role else [])])
    inputs = _inputs(source, wish)
    if out.exists():
        return _same(out, inputs)
    work, started = open_work(out, inputs), time.monotonic()
    try:
        metrics = write(source, wish, work)
        seconds = round(time.monotonic() - started, 1)
        parents = {source.trained.stage: f"../{source.run.name}"} if source.run.parent == out.parent else {}
        manifest = Manifest("export", inputs, metrics, seconds, source.trained.base, parents, source.trained.recipe)
        finish(work, out, manifest)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return out


def write(source: Source, wish: Wish, out: Path) -> dict[str, Any]:
    """Writes and verifies an export in a directory, its card included; returns what was measured.

    Args:
        out: the work directory of a step; what an interrupted attempt has left in it goes first, and what was written
            goes again if this function raises.

    Raises:
        ExportError: it cannot be written as this kind, or is not what was trained.
        CheckpointError: the trained adapter is damaged.
    """
    clear_work(out)
    try:
        return _write(source, wish, out)
    except BaseException:
        clear_work(out)
        raise


def _write(source: Source, wish: Wish, out: Path) -> dict[str, Any]:
    if source.role in SCORED:
        return _scored(source, wish, out)
    if wish.kind == "reward":
        raise ExportError(f"{source.name}: gives texts, not scores; only {' and '.join(SCORED)} have a head")
    if wish.dtype is not None and wish.kind in ("adapter", "gguf-adapter"):
        raise ExportError(f"--dtype is of a whole model; --to {wish.kind} writes float32, as it was trained")
    options: dict[str, Any] = {"mixture": wish.mixture, "positions": wish.positions}
    if wish.kind == "adapter":
        figures = export_adapter(source, out, **options)
        files = (WEIGHTS_FILE,)
    elif wish.kind == "merged":
        _known(wish.dtype, tuple(DTYPES), "merged")
        figures = export_merged(source, out, dtype=wish.dtype, **options)
        files = tuple(sorted(path.name for path in out.glob("*.safetensors")))
    elif wish.kind == "gguf":
        outtype = _GGUF.get(wish.dtype or "float16", wish.dtype or "")
        _known(outtype, gguf_model.OUTTYPES, "gguf")
        figures = gguf_model.export_gguf(source, out, outtype=outtype, **options)
        files = (f"model-{outtype}.gguf",)
    else:
        figures = gguf_adapter.export_gguf_adapter(source, out, **options)
        files = (gguf_adapter.FILE,)
    _describe(source, wish, out, figures, files)
    return figures


def _scored(source: Source, wish: Wish, out: Path) -> dict[str, Any]:
    if wish.mixture is not None:
        raise ExportError(f"--merge-with: the head of a {source.role} model belongs to one adapter; it is not weighted")
    if wish.kind.startswith("gguf"):
        raise ExportError(
            f"--to {wish.kind}: llama.cpp has no place for the head of a {source.role} model; --to reward"
        )
    return export_reward(source, out, merged=wish.merged or wish.kind == "merged", dtype=wish.dtype)


def _known(dtype: str | None, known: tuple[str, ...], kind: str) -> None:
    if dtype is not None and dtype not in known:
        raise ExportError(f"--dtype {dtype}: --to {kind} writes {', '.join(known)}")


def _describe(source: Source, wish: Wish, out: Path, figures: dict[str, Any], files: tuple[str, ...]) -> None:
    """The card, and for GGUF what Ollama needs."""
    tokenizer, mixture = load_tokenizer(source.model), wish.mixture
    names = [source.name, *(path.name for path in mixture.others)] if mixture else []
    facts = Facts(
        kind=wish.kind,  # type: ignore[arg-type]
        role=source.role,
        dtype=figures.get("dtype", "float32"),
        files=files,
        figures=figures,
        merged_with=tuple(zip(names, mixture.weights, strict=True)) if mixture else (),
        method=mixture.method if mixture else None,
        license=license_of(source.model),
        rank=LoraConfig.from_pretrained(str(out)).r if wish.kind == "adapter" else None,
    )
    (out / "README.md").write_text(policy_card(source.run, source.trained, facts, tokenizer), encoding="utf-8")
    if wish.kind.startswith("gguf"):
        text = modelfile(wish.kind, files, tokenizer, base_id(source.model))
        (out / MODELFILE).write_text(text, encoding="utf-8")


def _inputs(source: Source, wish: Wish) -> dict[str, Any]:
    """Everything that the export depends on, as JSON."""
    mixture = None
    if wish.mixture is not None:
        mixture = asdict(wish.mixture)
        mixture["others"] = [_content(path) for path in wish.mixture.others]
        mixture["weights"] = list(wish.mixture.weights)
    return {
        **{"kind": wish.kind, "dtype": wish.dtype, "merged": wish.merged, "positions": wish.positions},
        **{"role": source.role, "adapter": source.files, "mixture": mixture},
    }


def _content(adapter: Path) -> str:
    for name in FILES:
        if not (adapter / name).is_file():
            raise ExportError(f"--merge-with: {adapter}: no {name} in it; name the directory of an adapter")
    return content_of(adapter)


def _same(out: Path, inputs: dict[str, Any]) -> Path:
    """`out`, if it is the export that was asked for."""
    if not (out / MANIFEST).is_file():
        raise CheckpointError(f"{out}: exists already; name a new directory with --out")
    changed = differences(read_manifest(out).inputs, inputs)
    if changed:
        raise CheckpointError(f"{out}: exists already, of something else ({changed[0]}); name a new one with --out")
    log.info("%s: exported and verified already", out)
    return out
