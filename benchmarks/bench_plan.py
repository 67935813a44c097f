"""`rlhf-kit plan` beside the memory that the stages take, for three models, one of them also with adapters on its upper
half alone, and three stages.

    python benchmarks/bench_plan.py [--models smollm upper qwen llama] [--stages sft reward ppo]

SmolLM2-135M of the quickstart (bfloat16, eager attention; `upper` adapts the upper 15 of its 30 layers), a Qwen3 of
152M (bfloat16, sdpa, a vocabulary of 65,536, gradient checkpointing in SFT and PPO) and a Llama of 40M (float32, eager,
a vocabulary of 8,192), the last two with random weights. Each stage runs for a few steps in a process of its own by the
command that users type; its peak is the highest resident size (VmHWM) above what the process had with everything
imported. The plan is made in this process, from the same recipe.

Wanted: each of the twelve planned within 20 % of what was measured. The last line is JSON; it ends with 1 if one is
not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
QUICKSTART = HERE.parent / "recipes" / "quickstart.yaml"
STAGES = ("sft", "reward", "ppo")
WANTED = 0.20
WORDS = [f"w{number}" for number in range(500)]
SPECIAL = ["<pad>", "<eos>", "<unk>"]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Fields of the configurations, and what the recipe of each model says beside the data.
MODELS: dict[str, dict[str, Any]] = {
    "smollm": {"config": None, "recipe": {"lora": {"r": 16}}},
    "upper": {
        "config": None,
        "recipe": {"lora": {"r": 16, "target_modules": LINEARS, "layers_to_transform": list(range(15, 30))}},
    },
    "qwen": {
        "config": {
            "model_type": "qwen3",
            "hidden_size": 768,
            "intermediate_size": 2304,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 65536,
            "tie_word_embeddings": True,
        },
        "recipe": {
            "model": {"dtype": "bfloat16"},
            "sft": {"gradient_checkpointing": True},
            "ppo": {"gradient_checkpointing": True},
        },
    },
    "llama": {
        "config": {
            "model_type": "llama",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 10,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 8192,
            "tie_word_embeddings": False,
        },
        "recipe": {"model": {"dtype": "float32", "attn_implementation": "eager"}},
    },
}
COMMON: dict[str, dict[str, Any]] = {
    "data": {
        "demonstrations": "demonstrations.jsonl",
        "rankings": "rankings.jsonl",
        "prompts": "prompts.jsonl",
        "max_prompt_length": 160,
    },
    "sft": {"max_length": 320, "per_device_train_batch_size": 4, "trainer": {"max_steps": 3}},
    "reward": {
        "max_length": 320,
        "per_device_train_batch_size": 2,
        "heldout_fraction": 0.0,
        "trainer": {"max_steps": 3},
    },
    "ppo": {
        "total_episodes": 16,
        "batch_size": 8,
        "mini_batch_size": 4,
        "per_device_train_batch_size": 4,
        "response_length": 48,
        "min_response_length": 48,
        "missing_eos_penalty": None,
    },
}


def write_data(folder: Path) -> None:
    """The same rows every time, of about 60 to 160 tokens."""
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    files = {
        "demonstrations": [{"prompt": text(40, 60), "completion": text(40, 80)} for _ in range(32)],
        "rankings": [
            {"prompt": text(40, 60), "responses": [{"text": text(20, 50), "rank": n} for n in range(1, 6)]}
            for _ in range(12)
        ],
        "prompts": [{"prompt": text(40, 60)} for _ in range(24)],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, fields: dict[str, Any], dtype: str) -> None:
    """A model of random weights, and a tokenizer with a token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[2]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=SPECIAL[0], eos_token=SPECIAL[1], unk_token=SPECIAL[2]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    rest = dict(fields)
    config = AutoConfig.for_model(
        rest.pop("model_type"), max_position_embeddings=2048, bos_token_id=None, eos_token_id=1, pad_token_id=0, **rest
    )
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)


def write_recipe(folder: Path, name: str) -> Path:
    """Model, data and recipe of one of the models; returns the recipe."""
    entry = MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    if entry["config"] is None:
        model = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))["model"] | {"dtype": "bfloat16"}
        model.pop("chat_template")
    else:
        model = {"name_or_path": "model", "base_id": name, **entry["recipe"]["model"]}
        write_model(folder / "model", entry["config"], model["dtype"])
    recipe: dict[str, Any] = {"model": model, "output_dir": str(folder / "run")}
    for section, settings in COMMON.items():
        recipe[section] = settings | entry["recipe"].get(section, {})
    recipe["lora"] = entry["recipe"].get("lora", {})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its highest."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("bench_plan needs Linux: memory is read from /proc/self/status")


def run_stage(stage: str, recipe: str) -> None:
    """One stage, as the command runs it, in this process; prints its peak above the imported process."""
    from rlhf_kit.process import prepare_torch

    prepare_torch()

    import rlhf_kit.stages.ppo
    import rlhf_kit.stages.reward
    import rlhf_kit.stages.sft  # noqa: F401
    from rlhf_kit.cli import main as command

    imported = memory("VmRSS")
    code = command([stage, recipe])
    print(json.dumps({"code": code, "peak": memory("VmHWM") - imported, "imported": imported}), flush=True)


def measured(stage: str, recipe: Path) -> int:
    """The peak of a process of its own, in bytes.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--one", stage, str(recipe)]
    # As a user's machine has it, but for the threads.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=HERE.parent)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"code": 0')]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{stage} of {recipe} failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return int(json.loads(lines[-1])["peak"])


def planned(recipe: Path) -> dict[str, tuple[int, str]]:
    """The peak of each stage in bytes, and its phase."""
    from rlhf_kit import load_recipe
    from rlhf_kit.planning import Wishes, plan

    stages = plan(load_recipe(recipe), Wishes()).stages
    return {stage.stage: (stage.peak.total, stage.peak.name) for stage in stages}


def main() -> int:
    """Measures and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "RECIPE"), help="run a stage in this process")
    options = parser.parse_args()
    if options.one:
        run_stage(*options.one)
        return 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        for name in options.models:
            recipe = write_recipe(Path(folder) / name, name)
            plans = planned(recipe)
            for stage in STAGES[: max(map(STAGES.index, options.stages)) + 1]:  # a stage needs those before it
                found, (expected, phase) = measured(stage, recipe), plans[stage]
                row = {
                    "model": name,
                    "stage": stage,
                    "planned_mib": round(expected / 2**20),
                    "measured_mib": round(found / 2**20),
                    "ratio": round(expected / found, 3),
                    "phase": phase,
                }
                print(json.dumps(row), flush=True)
                rows.append(row)
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(json.dumps({"benchmark": "plan", "wanted": WANTED, "worst": round(worst, 3), "rows": rows}))
    return 0 if worst <= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
