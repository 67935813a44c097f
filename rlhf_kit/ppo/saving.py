"""A trainer of transformers' whose checkpoints appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from rlhf_kit.ppo import checkpoints

__all__ = ["StagedTrainer"]


class StagedTrainer(Trainer):  # type: ignore[misc]
    """Writes a checkpoint beside the others, under its name once it is whole (see `checkpoints.staged`).

    Attributes:
        saved_step: the last step of which there is a checkpoint.
    """

    _saves_into: Path | None = None
    saved_step: int = 0

    def write_more(self, directory: Path) -> None:
        """Writes what transformers does not know of into a checkpoint, before it gets its name."""

    def save_now(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved_step != self.state.global_step:
            self._save_checkpoint(self.model, None)

    @property
    def is_named(self) -> bool:
        """False while a checkpoint is being written."""
        return self._saves_into is None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saves_into or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, limit = Path(super()._get_output_dir(trial)), self.args.save_total_limit
        name = f"checkpoint-{self.state.global_step}"
        self.args.save_total_limit = None  # it would count what is in the staging directory
        try:
            with checkpoints.staged(folder, name) as self._saves_into:
                super()._save_checkpoint(model, trial)
                self._name_best(self._saves_into / name, folder / name)
                self.write_more(self._saves_into / name)
        finally:
            self._saves_into, self.args.save_total_limit = None, limit
        self.saved_step = self.state.global_step
        checkpoints.keep_last(folder, limit, folder / name, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / name))

    def _name_best(self, staged: Path, final: Path) -> None:
        """transformers has seen the best checkpoint where it is written, not where it will stand."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """transformers', once the checkpoint has its name."""
        if self.is_named:
            super()._push_from_checkpoint(checkpoint_folder)
