"""What stands between a recipe and a trainer: its mistakes are named."""

from transformers import TrainingArguments

from rlhf_kit.recipe import Recipe
from rlhf_kit.stages.arguments import mistakes


def recipe(**sft):
    return Recipe(model={"name_or_path": "a/b"}, sft=sft)


def test_each_mistake_of_a_trainer_mapping_is_named():
    trainer = {"weight_decai": 0.1, "output_dir": "x", "learning_rate": 1e-3, "weight_decay": 0.1}
    trainer["logging_strategy"] = "no"
    found = dict(mistakes(TrainingArguments, "sft", recipe(trainer=trainer).sft))
    assert found == {
        "sft.trainer.weight_decai": "not an argument of TrainingArguments; did you mean 'weight_decay'?",
        "sft.trainer.output_dir": "cannot be set here; use the recipe's output_dir",
        "sft.trainer.logging_strategy": "cannot be set here; the stage's figures are made from its log; "
        "logging_steps may be set",
        "sft.trainer.learning_rate": "belongs one level up: sft.learning_rate",
    }
