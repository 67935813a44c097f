"""A finished run of tiny models with every role, written by hand, for the tests of exports: nothing is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import add_head, base_of_type, lora, stir
from export_run import write_stage
from safetensors.torch import load_file, save_file
from tiny import make_tiny_tokenizer
from torch import Tensor

from rlhf_kit.checkpoint import MANIFEST, read_json, write_json
from rlhf_kit.files import sha256_of
from rlhf_kit.models import Backbone
from rlhf_kit.models.lora_linear import as_peft
from rlhf_kit.models.probe import Probe
from rlhf_kit.recipe import Recipe

BASE_ID = "someone/tiny"
ROLES = ("sft", "reward", "policy", "value", "ema")
# Fixed sequences of tokens for whatever is compared by hand.
IDS = torch.stack([torch.arange(5, 45), torch.arange(200, 240)])


def write_base(directory: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """A base on disk with its tokenizer, its logits a few units wide as a trained model's are."""
    base_of_type(model_type, **fields).to(dtype).save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


def recipe_of(base: Path, dtype: str = "float32", **sections: Any) -> Recipe:
    model = {"name_or_path": str(base), "base_id": BASE_ID, "dtype": dtype, **sections.pop("model", {})}
    return Recipe(model=model, **{"lora": {"r": 4, "lora_alpha": 8}, **sections})


def write_run(directory: Path, *, base: Path | None = None, dtype: str = "float32", value: str = "adapter") -> Path:
    """`directory/run` with the stages sft, reward and ppo, each role with weights of its own; returns it.

    Args:
        base: a directory; a tiny Llama in `directory/base` where it is left out.
        dtype: of the base in the training.
        value: as the recipe's `ppo.value`: `shared` is a head on the policy.
    """
    base = base or write_base(directory / "base")
    recipe = recipe_of(base, dtype, ppo={"value": value, "ema_decay": 0.9})
    backbone = Backbone(base_of(base, dtype), make_tiny_tokenizer(), BASE_ID)
    for seed, role in enumerate(ROLES, 1):
        layers = backbone.peft.peft_config["sft"].target_modules if backbone.adapters else "all-linear"
        backbone.add_adapter(role, lora(target_modules=layers))
        stir(backbone, role, seed)
        if role in ("reward", "value"):
            add_head(backbone, role, seed)
    for role in ("sft", "reward", "policy"):
        write_stage(directory / "run", recipe, backbone, role)
    ppo = directory / "run" / "ppo"
    backbone.save_adapter("ema", ppo / "ema")
    if value != "shared":
        backbone.save_adapter("value", ppo / "value")
    (ppo / "value").mkdir(exist_ok=True)
    backbone.heads["value"].save(ppo / "value")
    with as_peft(), backbone.role("policy"):
        Probe.take(backbone.base, IDS.tolist(), len(backbone.tokenizer), backbone.tokenizer.pad_token_id).save(ppo)
    rehash(ppo)
    return directory / "run"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` on `base`, both only read."""
    place = tmp_path_factory.mktemp("place")
    write_run(place)
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained in bfloat16."""
    place = tmp_path_factory.mktemp("half")
    write_run(place, base=write_base(place / "base", dtype=torch.bfloat16), dtype="bfloat16")
    return place


def base_of(directory: Path, dtype: str = "float32") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def write_adapter(directory: Path, base: Path, seed: int, **fields: Any) -> Path:
    """An adapter of somebody else's on the same base, in PEFT's layout."""
    backbone = Backbone(base_of(base), make_tiny_tokenizer(), BASE_ID)
    backbone.add_adapter("other", lora(**fields))
    stir(backbone, "other", seed)
    backbone.save_adapter("other", directory)
    return directory


def rehash(stage: Path) -> None:
    """As if the stage itself had saved its files as they are now."""
    files = {str(path.relative_to(stage)): sha256_of(str(path)) for path in sorted(stage.rglob("*.safetensors"))}
    write_json(stage / MANIFEST, read_json(stage / MANIFEST) | {"files": files})


def change(file: Path, function: Callable[[str, Tensor], Tensor | None]) -> None:
    """Writes a file of weights anew, each as the function makes it, without those for which that is None."""
    changed = {name: function(name, tensor) for name, tensor in load_file(file).items()}
    kept = {name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None}
    save_file(kept, file, {"format": "pt"})


def left_in(directory: Path) -> list[str]:
    """Everything below a directory, hidden ones too."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: Tensor = IDS) -> Tensor:
    """Row by row: a batch may be summed in another order."""
    found: Tensor = torch.cat([model.eval()(input_ids=row[None]).logits for row in ids])
    return found
