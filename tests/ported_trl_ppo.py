"""A PPO script as TRL 1.12's documentation writes them; `test_ported_script.py` changes its one TRL import and runs it.

    python ported_trl_ppo.py --sft_model_path MODEL --reward_model_path REWARD_MODEL --prompts prompts.jsonl \
        --output_dir out --total_episodes 32 --use_lora True
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


@dataclass
class ScriptArguments:
    prompts: str = field(metadata={"help": "A JSONL file with a column `prompt`."})
    use_lora: bool = field(default=False, metadata={"help": "Train an adapter, not the whole policy."})
    eval_samples: int = field(default=4, metadata={"help": "The last rows are held out."})
    max_prompt_tokens: int = field(default=24, metadata={"help": "Longer prompts are left out."})


class CountSteps(TrainerCallback):
    def __init__(self):
        self.begun, self.steps, self.logged, self.ended = 0, 0, [], 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logged.append(dict(logs or {}))

    def on_train_end(self, args, state, control, **kwargs):
        self.ended += 1


def prepare_dataset(dataset, tokenizer, most):
    def tokenize(element):
        input_ids = tokenizer(element["prompt"], padding=False)["input_ids"]
        return {"input_ids": input_ids, "lengths": [len(ids) for ids in input_ids]}

    dataset = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
    return dataset.filter(lambda row: row["lengths"] <= most)


def main(arguments=None):
    parser = HfArgumentParser((ScriptArguments, PPOConfig))
    script_args, training_args = parser.parse_args_into_dataclasses(arguments)

    tokenizer = AutoTokenizer.from_pretrained(training_args.sft_model_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    value_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    reward_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    if script_args.use_lora:
        peft_config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        ref_policy = None
    else:
        peft_config = None
        ref_policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)

    dataset = load_dataset("json", data_files=script_args.prompts, split="train")
    held_out = len(dataset) - script_args.eval_samples
    train_dataset = prepare_dataset(dataset.select(range(held_out)), tokenizer, script_args.max_prompt_tokens)
    eval_dataset = prepare_dataset(
        dataset.select(range(held_out, len(dataset))), tokenizer, script_args.max_prompt_tokens
    )

    callback = CountSteps()
    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.generate_completions()
    return trainer, callback


if __name__ == "__main__":
    main()
