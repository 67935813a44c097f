"""What an exported adapter comes from: its stages with their data, settings and figures, its base, and the licence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from gguf import GGUFReader
from huggingface_hub import ModelCard, try_to_load_from_cache

from rlhf_kit.checkpoint import MANIFEST, Manifest, read_json
from rlhf_kit.errors import CheckpointError
from rlhf_kit.models.sources import cache_dir, is_repository_name
from rlhf_kit.recipe import ModelSection, PpoSection, RewardSection, SftSection
from rlhf_kit.recipe_live import LIVE
from rlhf_kit.recipe_sections import Section

STAGES = ("sft", "reward", "ppo")
_SECTIONS: dict[str, type[Section]] = {"sft": SftSection, "reward": RewardSection, "ppo": PpoSection}
_EVALUATION = "evaluation"
# Settings that may name a place on the machine of the training; the last part of a path is shown.
_SOURCES = ("init", "rankings", "name_or_path", "chat_template", "reward_funcs")
_FILES = {".jsonl", ".json", ".gz", ".parquet", ".csv", ".tsv", ".txt", ".gguf", ".safetensors", ".jinja", ".py"}

# What the Hub takes as `license` (its docs, repositories-licenses), but for "other" and "unknown", which say nothing.
_IDS = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
"""
LICENSES = frozenset(_IDS.split())


@dataclass(frozen=True)
class Data:
    """Something that a stage has read.

    Attributes:
        field: what for, as the recipe calls it.
        name: the file's own name, or a Hub id.
        sha256: empty where the manifest has none, as of a Hub id.
    """

    field: str
    name: str
    sha256: str


def lineage(run: Path, trained: Manifest) -> dict[str, Manifest | None]:
    """The manifests of a stage and of all that it started from, in the order of training.

    None for a parent whose directory is gone, or holds another run's weights by now.
    """
    found: dict[str, Manifest | None] = {trained.stage: trained}
    for name, place in trained.parents.items():
        parent = _manifest(run / place)
        if parent is None or parent.files != trained.inputs.get("parents", {}).get(name, parent.files):
            found.setdefault(name, None)
        else:
            found = lineage(run / place, parent) | found
    return {name: found[name] for name in STAGES if name in found}


def evaluation(run: Path, trained: Manifest) -> Manifest | None:
    """The comparison on held-out prompts that stands beside the stage, if it judged these very weights."""
    found = _manifest(run.parent / _EVALUATION)
    if found is None or found.inputs.get("parents", {}).get(trained.stage) != trained.files:
        return None
    return found


def _manifest(run: Path) -> Manifest | None:
    try:
        return Manifest(**read_json(run / MANIFEST))
    except (CheckpointError, TypeError):
        return None


# -------------------------------------------------------------------- names


def name_of(source: str) -> str:
    """A Hub id or a package whole, a path by its last part: a card should not tell of the directories of a machine."""
    if source.startswith("pypi:") or ("/" in source and is_repo_id(source.partition(":")[0])):
        return source
    return PurePath(source).name or source


def is_repo_id(name: str) -> bool:
    """Whether the Hub may have a repository of this name; a path that is there is none."""
    return is_repository_name(name) and PurePath(name).suffix not in _FILES and not Path(name).exists()


def hub_id(trained: Manifest) -> str | None:
    """The base's repository on the Hub; None where the base is known by a path alone."""
    named = trained.recipe["model"].get("base_id") or trained.base["name_or_path"]
    return trained.base["id"] if trained.base["id"] == named and is_repo_id(named) else None


# -------------------------------------------------------------------- data and settings


def data_of(manifest: Manifest) -> Iterator[Data]:
    """What a stage has read, without what is null in its recipe."""
    for field, digest in manifest.inputs.get("data", {}).items():
        source = _source(manifest.recipe, field)
        # What is no file has stood for itself in place of a hash.
        name = name_of(source) if source else field
        yield Data(field, name, "" if digest == source else str(digest))


def _source(recipe: dict[str, Any], field: str) -> str:
    """What the recipe says of `rankings`, `reward.phases.0.rankings` or `reward_funcs.0`."""
    section, *path = field.split(".")
    if section == "reward_funcs":
        others = [source for source in recipe["ppo"]["reward_funcs"] if source not in ("reward", LIVE)]
        return str(others[int(path[0])])
    found = recipe[section] if path else recipe["data"].get(section)
    for part in path:
        found = found[int(part) if part.isdecimal() else part]
    return str(found or "")


def datasets_of(stages: dict[str, Manifest | None]) -> list[str]:
    """The Hub ids among the data, for the Hub."""
    found = [data for manifest in stages.values() if manifest for data in data_of(manifest)]
    ids = [data.name.partition(":")[0] for data in found if not data.sha256 and "/" in data.name]
    return list(dict.fromkeys(name for name in ids if is_repo_id(name)))


def settings_of(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """The settings of a stage that are not the recipe's defaults, `trainer`'s one by one."""
    defaults = _SECTIONS[manifest.stage].model_fields
    for name, value in manifest.recipe[manifest.stage].items():
        if name == "trainer":
            yield from ((f"trainer.{key}", _without_places(key, given)) for key, given in value.items())
        elif name not in defaults or value != defaults[name].get_default(call_default_factory=True):
            yield name, _without_places(name, value)


def _without_places(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(key, given) for key, given in value.items() if given is not None}
    if isinstance(value, list):
        return [_without_places(name, given) for given in value]
    if isinstance(value, str) and (name in _SOURCES or (PurePath(value).is_absolute() and name != "stop")):
        return name_of(value)
    return value


# -------------------------------------------------------------------- the licence


def license_of(model: ModelSection) -> str | None:
    """The licence of the base as its own files or its cached card name it, an id of `LICENSES`; None without network
    to ask, or where they name none."""
    path = Path(model.name_or_path).expanduser()
    if model.name_or_path.startswith("pypi:"):
        package, _, file = model.name_or_path.removeprefix("pypi:").partition("#")
        path = cache_dir() / "packages" / package.replace("==", "-") / PurePath(file).name
    if path.suffix == ".gguf" and path.is_file():
        field = GGUFReader(str(path)).get_field("general.license")
        named = field.contents() if field is not None else None
    else:
        named = _of_card(path / "README.md") if path.is_dir() else None
    for name in (model.base_id, model.name_or_path):
        if named is None and name is not None and is_repo_id(name):
            revision = model.revision if name == model.name_or_path else None
            cached = try_to_load_from_cache(name, "README.md", revision=revision)
            named = _of_card(Path(cached)) if isinstance(cached, str) else None
    return named if isinstance(named, str) and named in LICENSES else None


def _of_card(path: Path) -> Any:
    try:
        return ModelCard.load(path, ignore_metadata_errors=True).data.license if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):  # metadata that nothing can be read from
        return None
