"""Stage 2: a reward model from ranked answers: an adapter and a scalar head on the same base (arXiv 2203.02155,
section 3.5).

All C(K,2) pairs of a prompt are one element of a batch and each response goes through the model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from rlhf_kit.batches import RankedBatch
from rlhf_kit.checkpoint import MetricsLog
from rlhf_kit.data import Encoder, RankedCollator, RankedIds, split_by_prompt
from rlhf_kit.errors import DataError, Problem, RlhfKitError
from rlhf_kit.measures import bootstrap_mean, pair_accuracy, pooled_pair_accuracy
from rlhf_kit.models import Backbone, ScalarHead, load_backbone, lora_config
from rlhf_kit.recipe import Recipe
from rlhf_kit.records import Demonstration, Ranking
from rlhf_kit.rewards import REWARD, save, score, score_batch
from rlhf_kit.rl import ranking_loss
from rlhf_kit.stages.arguments import build, fit, refuse_many_processes


class RewardTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of ranked answers.

    Args:
        model: a `Backbone` with the adapter and the head `reward`, both trainable.
        args: batch sizes count prompts.
        train_dataset: `RankedIds`, one a prompt.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, RankedBatch],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """InstructGPT's eq. 1 over the prompts of this batch."""
        batch = inputs["batch"]
        backbone: Backbone = self.accelerator.unwrap_model(model)
        sequences = batch.sequences.to(self.args.device)
        scores = score_batch(backbone, sequences)
        loss = ranking_loss(scores, batch.group.to(scores.device), batch.rank.to(scores.device))
        if not torch.isfinite(loss):
            raise RlhfKitError(
                f"reward: the loss is {loss.item()} at step {self.state.global_step}; lower reward.learning_rate"
            )
        return loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One role around forward and backward pass: checkpointed layers run again in the backward pass."""
        with self.accelerator.unwrap_model(model).role(REWARD):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        directory = Path(resume_from_checkpoint)
        self.model.reload_adapter(REWARD, directory)
        self.model.heads[REWARD].load_state_dict(ScalarHead.load(directory, self.model.hidden_size).state_dict())


def train(
    recipe: Recipe,
    rankings: list[Ranking],
    heldout: list[Ranking],
    demonstrations: list[Demonstration],
    sft: Path | None,
    work: Path,
) -> dict[str, Any]:
    """Trains the reward model from the SFT adapter, normalises its scores over the demonstrations, measures it, saves
    it.

    Args:
        heldout: rankings that nothing is trained on; where empty, `reward.heldout_fraction` of the prompts is held out.
        sft: run directory of the SFT stage; None starts from the raw base.
    """
    section = recipe.reward
    arguments = _arguments(recipe, work)
    refuse_many_processes("reward", arguments)
    backbone = load_backbone(recipe.model)
    if sft is None:
        torch.manual_seed(recipe.seed)
        backbone.add_adapter(REWARD, lora_config(recipe.lora))
    else:
        backbone.load_adapter(REWARD, sft)
    torch.manual_seed(recipe.seed)
    backbone.add_head(REWARD, ScalarHead(backbone.hidden_size))
    backbone.train_only(REWARD)
    if section.gradient_checkpointing:
        backbone.use_checkpointing()

    if not heldout:
        rankings, heldout = split_by_prompt(rankings, section.heldout_fraction, recipe.seed)
    encoder = Encoder(
        backbone.tokenizer, max_prompt_length=recipe.data.max_prompt_length, max_length=section.max_length
    )
    items = [encoder.ranking(record) for record in rankings if record.pairs]
    if not items:
        raise DataError([Problem("data.rankings", "", "no pair to learn from: all responses of every prompt are tied")])
    encoder.report("reward")
    trainer = RewardTrainer(
        model=backbone,
        args=arguments,
        data_collator=RankedCollator(backbone.tokenizer.pad_token_id),
        train_dataset=items,
        callbacks=[MetricsLog("reward", work)],
    )
    fit(trainer, work)

    if demonstrations:
        normalise(backbone, encoder, demonstrations)
    metrics: dict[str, Any] = {"prompts": len(items), "pairs": sum(len(r.pairs) for r in rankings)}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics |= {"loss_first": losses[0], "loss_last": losses[-1]}
    metrics |= {"shortened_prompts": encoder.shortened_prompts, "cut_responses": encoder.cut_responses}
    if heldout:
        metrics |= measure(backbone, encoder, heldout, recipe)
    if trainer.is_world_process_zero():
        save(backbone, work)
    return metrics


def _arguments(recipe: Recipe, work: Path) -> TrainingArguments:
    section = recipe.reward
    fixed = section.model_dump(exclude={"trainer", "max_length", "heldout_fraction", "gradient_checkpointing"})
    fixed |= {"remove_unused_columns": False, "logging_steps": 1, "label_names": []}
    return build(TrainingArguments, recipe, work, fixed, section.trainer)


def normalise(backbone: Backbone, encoder: Encoder, demonstrations: Sequence[Demonstration]) -> None:
    """Scores over the demonstrations get mean 0 and standard deviation 1; the constants are kept with the head."""
    prompts = [encoder.prompt(d.prompt) for d in demonstrations]
    responses = [encoder.response(d.completion, len(p)) for d, p in zip(demonstrations, prompts, strict=True)]
    try:
        backbone.heads[REWARD].normalise(score(backbone, prompts, responses).to(backbone.device))
    except ValueError as failure:
        raise RlhfKitError(f"reward: {failure}; see metrics.jsonl, and try another reward.learning_rate") from failure


def measure(backbone: Backbone, encoder: Encoder, heldout: Sequence[Ranking], recipe: Recipe) -> dict[str, Any]:
    """Held-out pair accuracy beside what knows nothing of content: length, and whether the response has ended."""
    items = [encoder.ranking(record) for record in heldout]
    prompts = [item.prompt for item in items for _ in item.responses]
    flat = score(backbone, prompts, [r for item in items for r in item.responses])
    scores = [part.tolist() for part in flat.split([len(item.responses) for item in items])]
    ranks = [item.ranks for item in items]
    paired = [i for i, record in enumerate(heldout) if record.pairs]
    if not paired:
        return {}
    per_prompt = [right / pairs for right, pairs in (pair_accuracy(scores[i], ranks[i]) for i in paired)]
    evaluate = recipe.evaluate
    interval = bootstrap_mean(
        per_prompt, resamples=evaluate.bootstrap, confidence=evaluate.confidence, seed=recipe.seed
    )
    group = torch.tensor([g for g, item in enumerate(items) for _ in item.responses])
    rank = torch.tensor([r for item in items for r in item.ranks])
    return {
        "heldout_prompts": len(items),
        "heldout_pairs": sum(len(record.pairs) for record in heldout),
        "heldout_loss": float(ranking_loss(flat, group, rank)),
        "heldout_pair_accuracy": pooled_pair_accuracy(scores, ranks),
        "heldout_accuracy_by_prompt": interval.as_dict(),
        "baseline_accuracy": baselines(items, ranks, heldout),
        "score_mean": float(flat.mean()),
        "score_std": float(flat.std()),
    }


def baselines(items: Sequence[RankedIds], ranks: list[list[int]], records: Sequence[Ranking]) -> dict[str, float]:
    """Pair accuracy of rules that read nothing; what they reach is not to a reward model's credit."""
    lengths = [[float(len(r)) for r in item.responses] for item in items]
    ended = [[float(r.ended) for r in record.responses] for record in records]
    return {
        "shorter": pooled_pair_accuracy([[-n for n in row] for row in lengths], ranks),
        "longer": pooled_pair_accuracy(lengths, ranks),
        "ended": pooled_pair_accuracy(ended, ranks),
    }
