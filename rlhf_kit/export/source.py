"""What is exported: which adapter of which stage, and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_kit.checkpoint import MANIFEST, Manifest, read_manifest
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.heads import HEAD_FILE
from rlhf_kit.recipe import ModelSection, Recipe

SFT, REWARD, POLICY, VALUE, EMA = ROLES = ("sft", "reward", "policy", "value", "ema")
SCORED = (REWARD, VALUE)
"""The roles with a head: they give a score, and no text."""

# Where a role's adapter stands: the stage, and the folder in its run directory.
_PLACES = {SFT: ("sft", ""), REWARD: ("reward", ""), POLICY: ("ppo", ""), VALUE: ("ppo", VALUE), EMA: ("ppo", EMA)}
_FIRST = {"sft": SFT, "reward": REWARD, "ppo": POLICY}


@dataclass(frozen=True)
class Source:
    """One trained adapter.

    Attributes:
        run: the directory of its stage, with the manifest.
        role: sft, reward, policy, value or ema (the moving average of the policy).
        adapter: the directory that holds its weights.
        head: the directory that holds its head, if it has one.
    """

    run: Path
    role: str
    adapter: Path
    head: Path | None
    trained: Manifest
    recipe: Recipe

    @property
    def model(self) -> ModelSection:
        """The base as it was when the adapter was trained: in that precision, whatever this machine would choose, and
        with an attention that knows float32."""
        own = self.role == REWARD or (self.role == VALUE and self.recipe.ppo.value == "model")
        model = self.recipe.reward_model if own else self.recipe.model
        attention = model.attn_implementation
        if attention is not None and "flash" in attention:
            attention = None
        return model.model_copy(update={"dtype": self.trained.base["dtype"], "attn_implementation": attention})

    @property
    def name(self) -> str:
        """For people: the run's own name and the role."""
        return f"{self.run.resolve().parent.name}/{self.role}"

    @property
    def files(self) -> dict[str, str]:
        """sha256 of the files that the adapter is made of."""
        folders = {path.relative_to(self.run).as_posix() for path in (self.adapter, self.head) if path is not None}
        return {name: digest for name, digest in self.trained.files.items() if str(Path(name).parent) in folders}


def find(run: Path, role: str | None = None) -> Source:
    """The adapter that a person means.

    Args:
        run: the directory of a stage, or of a whole run.
        role: one of `ROLES`; where it is left out, the last policy of a whole run, or a stage's own adapter.

    Raises:
        CheckpointError: there is no finished stage, or it is damaged.
        ExportError: the run has no adapter of this role.
    """
    stage = run if (run / MANIFEST).is_file() else _stage(run, role)
    trained = read_manifest(stage)
    if trained.stage not in _FIRST:
        raise CheckpointError(f"{stage}: is an {trained.stage} step, not a stage that has trained an adapter")
    role = role or _FIRST[trained.stage]
    where, folder = _PLACES[role]
    if where != trained.stage:
        raise ExportError(f"{stage}: is a finished {trained.stage} stage; the {role} adapter is of the {where} stage")
    recipe = Recipe.model_validate(trained.recipe)
    adapter, head = stage / folder, stage / folder if role in SCORED else None
    if role == VALUE and recipe.ppo.value == "shared":
        adapter = stage  # the head stands on the policy
    if not (adapter / WEIGHTS_FILE).is_file() or (head is not None and not (head / HEAD_FILE).is_file()):
        raise ExportError(f"{stage}: this run has no {role} adapter")
    return Source(stage, role, adapter, head, trained, recipe)


def _stage(run: Path, role: str | None) -> Path:
    wanted = ("ppo", "sft") if role is None else (_PLACES[role][0],)
    for name in wanted:
        if (run / name / MANIFEST).is_file():
            return run / name
    there = [name for name in _FIRST if (run / name / MANIFEST).is_file()]
    raise CheckpointError(
        f"{run}: no finished {' or '.join(wanted)} stage in it"
        + (f"; there is {', '.join(there)}: name it with --adapter" if there else "; name the output_dir of a run")
    )
