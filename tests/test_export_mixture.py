"""Several adapters weighted into one: the sum by hand, PEFT's other methods, what cannot be weighted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from whole_run import base_of, left_in, logits_of, write_adapter, write_run

from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.export.exporting import Wish, export
from rlhf_kit.export.source import find
from rlhf_kit.export.trained import TRAINED, Mixture, load_trained, of_mixture
from rlhf_kit.models.adapters import WEIGHTS_FILE

KEY = "base_model.model."
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_run(folder)
    write_adapter(folder / "other", folder / "base", 11, r=3, lora_alpha=9)
    write_adapter(folder / "same", folder / "base", 12, r=4, lora_alpha=4)
    write_adapter(folder / "root", folder / "base", 13, r=4, lora_alpha=4, use_rslora=True)
    return folder


def update(directory: Path, module: str) -> torch.Tensor:
    """scaling B A of one module, in float64, from the files."""
    weights = {name: tensor.double() for name, tensor in load_file(directory / WEIGHTS_FILE).items()}
    config = json.loads((directory / CONFIG).read_text())
    rank = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    b, a = weights[f"{KEY}{module}.lora_B.weight"], weights[f"{KEY}{module}.lora_A.weight"]
    return config["lora_alpha"] / rank * b @ a


def modules(directory: Path) -> list[str]:
    names = load_file(directory / WEIGHTS_FILE)
    return sorted({name.removeprefix(KEY).rpartition(".lora_")[0] for name in names})


def test_cat_is_the_weighted_sum_of_the_updates(place: Path, tmp_path: Path) -> None:
    others = (place / "other", place / "root")
    out = export(place / "run", Wish("merged", mixture=Mixture(others, (0.5, 0.3, -0.2))), out=tmp_path / "out")
    before, after = base_of(place / "base").state_dict(), base_of(out).state_dict()
    seen = modules(place / "run" / "ppo")
    assert len(seen) == 14
    for module in seen:
        by_hand = before[f"{module}.weight"].double()
        parts = [place / "run" / "ppo", *others]
        by_hand += sum(w * update(part, module) for w, part in zip((0.5, 0.3, -0.2), parts, strict=True))
        assert (after[f"{module}.weight"].double() - by_hand).abs().max() < 1e-6, module
    rest = [name for name in before if name.removesuffix(".weight") not in seen]
    assert rest and all(torch.equal(before[name], after[name]) for name in rest)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`other`" in card and "`root`" in card and "0.3" in card and "cat" in card


def test_an_adapter_of_a_mixture_is_of_the_sum_of_ranks(place: Path, tmp_path: Path) -> None:
    mixture = Mixture((place / "other",), (0.25, 0.75))
    out = export(place / "run", Wish("adapter", mixture=mixture), out=tmp_path / "out")
    plain = PeftModel.from_pretrained(base_of(place / "base"), str(out))
    assert plain.peft_config["default"].r == 7
    for module in modules(out):
        by_hand = 0.25 * update(place / "run" / "ppo", module) + 0.75 * update(place / "other", module)
        assert (update(out, module) - by_hand).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["linear", "svd", "ties", "dare_linear", "magnitude_prune"])
def test_other_methods_are_what_peft_makes(method: str, place: Path, tmp_path: Path) -> None:
    density = 0.5 if method in ("ties", "dare_linear", "magnitude_prune") else None
    mixture = Mixture((place / "same",), (0.6, 0.4), method, density)
    out = export(place / "run", Wish("adapter", mixture=mixture), out=tmp_path / "out")
    model = PeftModel.from_pretrained(base_of(place / "base"), str(place / "run" / "ppo"), adapter_name="one")
    model.load_adapter(str(place / "same"), "two")
    torch.manual_seed(0)  # the seed of the recipe
    model.base_model.add_weighted_adapter(["one", "two"], [0.6, 0.4], "both", combination_type=method, density=density)
    model.base_model.set_adapter("both")
    found = logits_of(PeftModel.from_pretrained(base_of(place / "base"), str(out)))
    assert (found - logits_of(model)).abs().max() < 1e-4
    model.base_model.set_adapter("one")
    assert (found - logits_of(model)).abs().max() > 1e-2


def test_of_several_with_rslora_first(place: Path, tmp_path: Path) -> None:
    """PEFT copies the first one's settings: with rsLoRA its result would be sqrt(r) times too large."""
    backbone = load_trained(find(place / "run"))
    backbone.load_adapter("root", place / "root")
    backbone.load_adapter("same", place / "same")
    backbone.weight_adapters("both", ["root", "same"], [0.5, 0.5], "cat")
    backbone.save_adapter("both", tmp_path / "both")
    for module in modules(tmp_path / "both"):
        by_hand = 0.5 * (update(place / "root", module) + update(place / "same", module))
        assert (update(tmp_path / "both", module) - by_hand).abs().max() < 1e-6
    assert backbone.peft.peft_config["root"].use_rslora and TRAINED in backbone.adapters


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("linear", {"r": 3}, "PEFT cannot weight these adapters by linear: All adapters must have the same r"),
    ("cat", {"use_dora": True}, "DoRA cannot be weighted, only plain LoRA"),
    ("cat", {"bias": "all"}, "biases cannot be weighted, only plain LoRA"),
    ("cat", {"lora_bias": True}, "biases cannot be weighted, only plain LoRA"),
    ("cat", {"modules_to_save": ["embed_tokens"]}, "modules_to_save cannot be weighted, only plain LoRA"),
    # What PEFT makes of these has matrices of another rank than its configuration says, and nothing can load it.
    ("linear", {"rank_pattern": {"layers.0.self_attn.q_proj": 2}}, "PEFT cannot weight these adapters by linear"),
    ("magnitude_prune", {"r": 2, "rank_pattern": {"down_proj": 4}}, "by magnitude_prune"),
    ("svd", {"r": 20}, r"by svd: model\.layers\.0\.self_attn\.k_proj is of another rank than the rest"),
    ("linear", {"target_modules": ".*_proj"}, "by linear: all adapter configs should follow the same target modules"),
]


@pytest.mark.parametrize(("method", "fields", "words"), REFUSED)
def test_what_cannot_be_weighted(method: str, fields: dict[str, Any], words: str, place: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "part", place / "base", 3, **fields)
    density = 0.5 if method == "magnitude_prune" else None
    wish = Wish("adapter", mixture=Mixture((tmp_path / "part",), (0.5, 0.5), method, density))
    with pytest.raises(ExportError, match=words):
        export(place / "run", wish, out=tmp_path / "out")
    assert not any(name.startswith((".out", "out")) for name in left_in(tmp_path))


def test_layers_that_the_first_adapter_does_not_have(place: Path) -> None:
    """PEFT leaves them out of the mixture, without a word: it copies the first one's `layers_to_transform`."""
    write_adapter(place / "first", place / "base", 5, target_modules=["q_proj"], layers_to_transform=[0])
    write_adapter(place / "second", place / "base", 6, target_modules=["q_proj"])
    backbone = load_trained(find(place / "run"))
    for name in ("first", "second"):
        backbone.load_adapter(name, place / name)
    with pytest.raises(ValueError, match=r"^model\.layers\.1\.self_attn\.q_proj is left out, because the first"):
        backbone.weight_adapters("both", ["first", "second"], [0.5, 0.5], "cat")
    backbone.weight_adapters("turned", ["second", "first"], [0.5, 0.25], "cat")
    backbone.save_adapter("turned", place / "turned")
    for layer, weight in ((0, 0.25), (1, 0.0)):
        module = f"model.layers.{layer}.self_attn.q_proj"
        by_hand = 0.5 * update(place / "second", module)
        if weight:
            by_hand += weight * update(place / "first", module)
        assert (update(place / "turned", module) - by_hand).abs().max() < 1e-6


def test_an_adapter_of_another_base(place: Path, tmp_path: Path) -> None:
    """It would fit, of the same shapes; a path says nothing of whose it is."""
    write_adapter(tmp_path / "part", place / "base", 3)
    config = json.loads((tmp_path / "part" / CONFIG).read_text())
    wish = Wish(mixture=Mixture((tmp_path / "part",), (0.5, 0.5)))
    (tmp_path / "part" / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "someone/other"}))
    with pytest.raises(ExportError, match=r"part: was trained on someone/other, not on someone/tiny$"):
        export(place / "run", wish, out=tmp_path / "out")
    assert left_in(tmp_path) == ["part", f"part/{CONFIG}", f"part/{WEIGHTS_FILE}"]
    (tmp_path / "part" / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": str(place / "base")}))
    export(place / "run", wish, out=tmp_path / "out")


def test_the_scale_of_another_adapter_is_part_of_the_wish(place: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "part", place / "base", 3)
    wish = Wish(mixture=Mixture((tmp_path / "part",), (0.5, 0.5)))
    out = export(place / "run", wish, out=tmp_path / "out")
    assert export(place / "run", wish, out=tmp_path / "out") == out
    config = json.loads((tmp_path / "part" / CONFIG).read_text())
    (tmp_path / "part" / CONFIG).write_text(json.dumps(config | {"lora_alpha": 1}))
    with pytest.raises(CheckpointError, match="exists already, of something else"):
        export(place / "run", wish, out=tmp_path / "out")


def test_what_is_drawn_is_the_same_every_time(place: Path, tmp_path: Path) -> None:
    wish = Wish(mixture=Mixture((place / "same",), (0.5, 0.5), "dare_ties", 0.5))
    first = load_file(export(place / "run", wish, out=tmp_path / "first") / WEIGHTS_FILE)
    torch.manual_seed(99)  # whatever has been drawn meanwhile
    second = load_file(export(place / "run", wish, out=tmp_path / "second") / WEIGHTS_FILE)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_directory_without_an_adapter(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nowhere: no adapter_config\.json in it; name the directory of an adapter"):
        export(place / "run", Wish(mixture=Mixture((tmp_path / "nowhere",), (0.5, 0.5))), out=tmp_path / "out")


def test_weights_and_density() -> None:
    assert of_mixture([], [], "cat", None) is None
    assert of_mixture(["a", "b"], [], "cat", None) == Mixture((Path("a"), Path("b")), (1 / 3,) * 3)
    with pytest.raises(ExportError, match="--weights: 3 given for 2 adapters"):
        of_mixture(["a"], [1.0, 2.0, 3.0], "cat", None)
    for density in (None, 0.0, 1.5):
        with pytest.raises(ExportError, match="--density: --method ties needs"):
            of_mixture(["a"], [], "ties", density)
    with pytest.raises(ExportError, match="--density: --method cat keeps all values"):
        of_mixture(["a"], [], "cat", 0.5)
