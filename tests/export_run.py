"""A finished stage of a run, written by hand, for the tests of exports: nothing is trained."""

from __future__ import annotations

from pathlib import Path

from rlhf_kit import rewards
from rlhf_kit.checkpoint import Manifest, finish
from rlhf_kit.models import Backbone
from rlhf_kit.recipe import Recipe

STAGES = {"policy": "ppo", "sft": "sft", "reward": "reward"}


def write_stage(run: Path, recipe: Recipe, backbone: Backbone, name: str) -> Path:
    """The run directory `run`/STAGE of the adapter `name` (policy, sft or reward), which exports find by its role."""
    stage = STAGES[name]
    work = run / f".{stage}.partial"
    work.mkdir(parents=True)
    if name == "reward":
        rewards.save(backbone, work)
    else:
        backbone.save_adapter(name, work)
    model = recipe.model
    base = {"id": backbone.base_id, "name_or_path": model.name_or_path, "revision": model.revision}
    base |= {"sha256": model.sha256, "dtype": str(backbone.base.dtype).removeprefix("torch.")}
    base["quantization"] = model.quantization
    manifest = Manifest(stage, {"data": {}}, {}, 1.0, base, {}, recipe.model_dump(mode="json"))
    finish(work, run / stage, manifest)
    return run / stage
