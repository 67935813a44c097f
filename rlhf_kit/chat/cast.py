"""Who can speak: the policies of a run, loaded when they are first called."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import PartialState
from peft.utils import CONFIG_NAME

from rlhf_kit.chat.speaking import Speaker
from rlhf_kit.checkpoint import MANIFEST, checkpoints, read_manifest, recipe_of
from rlhf_kit.errors import CheckpointError
from rlhf_kit.models import Backbone, load_backbone, to_device

__all__ = ["BASE", "Cast"]

BASE, EMA = "base", "ema"
TRAINED = ("sft", "ppo")


class Cast:
    """The speakers of a run, on one base.

    Args:
        run: the output directory.

    Raises:
        CheckpointError: it has no finished SFT or PPO stage, or another version has written it.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.stages = [name for name in TRAINED if (run / name / MANIFEST).is_file()]
        if not self.stages:
            raise CheckpointError(f"{run}: no finished sft or ppo stage in it; name the output_dir of a run")
        last = run / self.stages[-1]
        self.recipe = recipe_of(read_manifest(last), last)
        self._backbone: Backbone | None = None
        self._roles: dict[Path, str] = {}

    @property
    def names(self) -> list[str]:
        """Who can be called by a short name: the base, the stages, the moving average and kept checkpoints."""
        found = [BASE, *self.stages]
        if (self.run / "ppo" / EMA / CONFIG_NAME).is_file():
            found.append(EMA)
        return [*found, *self._kept]

    @property
    def _kept(self) -> dict[str, Path]:
        """The checkpoints that the stages have kept, by their names."""
        found = {}
        for stage in self.stages:
            for folder in checkpoints(self.run / stage):
                name = f"{stage}@{folder.name.rsplit('-', 1)[1]}"
                # PEFT saves an adapter that has a name in a folder of that name.
                for place in (folder / stage, folder):
                    if (place / CONFIG_NAME).is_file():
                        found[name] = place
        return found

    def speaker(self, name: str) -> Speaker:
        """A speaker without a conversation.

        Args:
            name: one of `names`, or the directory of an adapter on the same base.

        Raises:
            CheckpointError: nobody of that name, or weights that have changed or do not fit.
            ModelError: the base cannot be loaded.
        """
        directory = self._directory(name)
        if directory is None:
            return Speaker(name, None, self.backbone)
        place = directory.resolve()
        if place not in self._roles:
            role = f"speaker_{len(self.backbone.adapters)}"  # one that did not fit has left its name there
            self.backbone.load_adapter(role, directory)
            self._roles[place] = role
        return Speaker(name, self._roles[place], self.backbone)

    @property
    def backbone(self) -> Backbone:
        """The base, loaded once."""
        if self._backbone is None:
            self._backbone = load_backbone(self.recipe.model)
            to_device(self._backbone, self.recipe.model, PartialState().device)
        return self._backbone

    def doubt(self, name: str) -> str | None:
        """A remark on an adapter that declares another base than this one; it may be the same under another name."""
        directory = self._directory(name)
        if directory is None or name in self.names:
            return None
        declared = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not declared or declared in (self.backbone.base_id, self.recipe.model.name_or_path):
            return None
        return f"{name} says that it belongs to {declared}; here it speaks on {self.backbone.base_id}"

    def check(self, name: str) -> None:
        """Raises `CheckpointError` where `speaker` would for want of a directory; loads nothing."""
        self._directory(name)

    def _directory(self, name: str) -> Path | None:
        if name == BASE:
            return None
        if name in self.names:
            if name in self._kept:
                return self._kept[name]
            read_manifest(self.run / ("ppo" if name == EMA else name))  # checks the weights before they are loaded
            return self.run / "ppo" / EMA if name == EMA else self.run / name
        if (Path(name) / CONFIG_NAME).is_file():
            return Path(name)
        if name in TRAINED:
            raise CheckpointError(f"{self.run}: has no finished {name} stage; there are {', '.join(self.names)}")
        raise CheckpointError(
            f"{name}: nobody of that name; there are {', '.join(self.names)}, and any directory with an {CONFIG_NAME}"
        )
