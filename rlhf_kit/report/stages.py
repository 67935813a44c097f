"""What was trained on what: the rows of the report's table of stages, with the settings that matter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rlhf_kit.checkpoint import Manifest
from rlhf_kit.recipe_ppo import PpoSection
from rlhf_kit.report.words import number, plain

__all__ = ["NAMES", "data_hashes", "differing_settings", "is_path", "short", "stage_row", "written"]

NAMES = {"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}
# What a stage reads: the recipe's name, what a row is called, and where the stage's figures count the rows.
_PARENTS = {"sft": "SFT", "reward": "the reward model"}
_DATA = {
    "sft": (("demonstrations", "demonstrations", "demonstrations"),),
    "reward": (
        ("rankings", "ranked prompts", "prompts"),
        ("rankings_heldout", "held-out ranked prompts", "heldout_prompts"),
    ),
    "ppo": (("prompts", "prompts", "prompts"), ("prompts_heldout", "held-out prompts", "heldout_prompts")),
}
_SETTINGS = {
    "sft": ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "reward": ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    "ppo": (
        *("total_episodes", "batch_size", "num_ppo_epochs", "learning_rate", "kl_coef", "cliprange", "gamma", "lam"),
        *("missing_eos_penalty", "response_length", "temperature", "value_head_init"),
    ),
}
# Of PPO, shown where they are not as by default.
_IF_CHANGED = (
    *("algorithm", "value", "num_generations", "kl_estimator", "kl_controller", "reward_funcs", "reward_weights"),
    *("reward_normalization", "reward_clip", "scale_rewards", "score_clip", "whiten_rewards", "whiten_advantages"),
    *("length_penalty", "entropy_coef", "dual_clip", "target_kl", "critic_warmup_steps", "ema_decay", "ptx_coef"),
    *("top_k", "top_p", "stop", "min_response_length", "stop_on"),
)
_WITH_ADAPTIVE_KL = ("kl_target", "kl_horizon")
_NOT_SETTINGS = ("output_dir",)
_FILES = {".jsonl", ".json", ".gz", ".parquet", ".gguf", ".safetensors"}


def stage_row(
    stage: str, manifest: Manifest, metrics: dict[str, Any], differing: Collection[str] = ()
) -> dict[str, Any]:
    """One row of the table; settings are (name, value, whether `STAGE.NAME` is among the differing ones)."""
    figures = metrics.get(stage) or manifest.metrics
    paths, hashes = manifest.recipe.get("data") or {}, manifest.inputs.get("data") or {}
    data = []
    for key, rows, count in _DATA[stage]:
        if paths.get(key) or (figures.get(count) is not None and not key.startswith("prompts")):
            data.append(
                {
                    "file": short(str(paths[key])) if paths.get(key) else "",
                    "rows": rows,
                    "count": figures.get(count),
                    "sha256": _digest(hashes.get(key)),
                }
            )
    seconds = number((metrics.get("seconds") or {}).get(stage)) or manifest.seconds
    return {
        "name": NAMES[stage],
        "data": data,
        "settings": [
            (name, value, f"{stage}.{name}" in differing)
            for name, value in _settings(stage, manifest.recipe.get(stage) or {})
        ],
        "parents": [_PARENTS.get(name, name) for name in manifest.parents],
        "minutes": f"{seconds / 60:.1f}",
        "seconds": seconds,
    }


def _settings(stage: str, section: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of those that are shown."""
    names = list(_SETTINGS[stage])
    if stage == "ppo":
        defaults = {name: info.get_default(call_default_factory=True) for name, info in PpoSection.model_fields.items()}
        names += [name for name in _IF_CHANGED if section.get(name, defaults[name]) != defaults[name]]
        if section.get("kl_controller") == "adaptive":
            names += _WITH_ADAPTIVE_KL
    return [(name, written(section[name])) for name in names if section.get(name) is not None]


def differing_settings(recipes: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, by their dotted names, with each run's value as it is written.

    Args:
        recipes: one a run.
        data: of each run, by stage and name (`sft.demonstrations`), the first digits of the data's hash: a file of the
            same name may hold other rows.
    """
    flat = [dict(_flat(recipe)) for recipe in recipes]
    names = [name for name in dict.fromkeys(name for one in flat for name in one) if name not in _NOT_SETTINGS]
    found = {name: [one.get(name) for one in flat] for name in names}
    rows = {
        name: ["–" if value is None else written(value) for value in values]
        for name, values in found.items()
        if any(value != values[0] for value in values)
    }
    for name in dict.fromkeys(name for one in data for name in one):
        hashes = [one.get(name, "–") for one in data]
        if len(set(hashes)) > 1:
            rows[f"data of {name}"] = hashes
    return rows


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def data_hashes(stage: str, manifest: Manifest) -> dict[str, str]:
    """The first digits of the hashes of what a stage learned from."""
    hashes = manifest.inputs.get("data") or {}
    return {f"{stage}.{key}": digest for key in hashes if (digest := _digest(hashes.get(key)))}


def _digest(entry: Any) -> str:
    digest = entry.get("sha256") if isinstance(entry, dict) else entry
    return digest[:8] if isinstance(digest, str) else ""


def written(value: Any) -> str:
    """A setting's value for reading, files without their directories."""
    if isinstance(value, (list, tuple)):
        return ", ".join(written(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {written(item)}" for name, item in value.items())
    return short(str(value)) if number(value) is None else plain(value)


def short(source: str) -> str:
    """A file by its name, a Hub id whole: a page that is handed on should not tell of the directories of a machine."""
    name = source.split("#")[-1] if source.startswith("pypi:") else source
    return PurePath(name).name if PurePath(name).suffix in _FILES or is_path(name) else name


def is_path(value: str) -> bool:
    """Whether it says where something is on this machine."""
    return PurePath(value).is_absolute()
