"""The model card of an exported policy: what it comes from, how it was verified, how to load it, what is not known.

The text is `templates/policy_card.md.j2`. Whatever comes from data, names or settings goes through `code` or `table`,
so that it can break neither the page nor the metadata.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedTokenizerBase

from rlhf_kit.checkpoint import Manifest, versions
from rlhf_kit.export.check.vllm import max_lora_rank
from rlhf_kit.export.lineage import (
    LICENSES,
    data_of,
    datasets_of,
    evaluation,
    hub_id,
    is_repo_id,
    lineage,
    name_of,
    settings_of,
)
from rlhf_kit.recipe_live import LIVE
from rlhf_kit.stats.words import shown

_ADAPTERS = ("adapter", "gguf-adapter")
_LIBRARIES = {"adapter": "peft", "merged": "transformers"}  # GGUF is no library to the Hub, which sees it by the files
_TITLES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "Proximal policy optimisation"}
_SOURCES = {
    "reward": "a reward model that has learned from ranked answers",
    LIVE: "the scores that people gave while it was trained",
}
_LONGEST = 300
_LENGTH = 64


@dataclass(frozen=True)
class Facts:
    """What an export has written and measured.

    Attributes:
        role: sft, policy or ema.
        dtype: of the written weights: float32, bfloat16, float16 or q8_0.
        files: what is loaded; of GGUF the first one stands in the commands.
        figures: what the verification measured, by name.
        merged_with: the adapters that were weighted together, by name; the first is this one.
        method: PEFT's `combination_type`.
        license: of the base, where it is known.
        rank: of the written adapter, where it is not the recipe's.
    """

    kind: Literal["adapter", "merged", "gguf", "gguf-adapter"]
    role: str
    dtype: str
    files: tuple[str, ...]
    figures: Mapping[str, Any]
    merged_with: tuple[tuple[str, float], ...] = ()
    method: str | None = None
    license: str | None = None
    rank: int | None = None


def policy_card(run: Path, trained: Manifest, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of `README.md`, metadata included.

    Args:
        run: the directory of the stage; the stages before it are read where they are still there.
        trained: the stage's manifest.
        tokenizer: as it was in the training, its chat template included.
    """
    stages = lineage(run, trained)
    judged = evaluation(run, trained) if facts.role != "ema" and not facts.merged_with else None
    recipe, rank = trained.recipe, facts.rank or trained.recipe["lora"]["r"]
    reward = stages.get("reward")
    text: str = _template().render(
        facts=facts,
        adapter=facts.kind in _ADAPTERS,
        metadata=_metadata_of(facts, trained, stages),
        base=trained.base,
        repository=hub_id(trained),
        gguf_base=trained.base["name_or_path"].endswith(".gguf"),
        trust_remote_code=recipe["model"]["trust_remote_code"],
        base_name=trained.base["id"] if hub_id(trained) else name_of(trained.base["id"]),
        base_weights=name_of(trained.base["name_or_path"]),
        chat_template=name_of(recipe["model"]["chat_template"] or ""),
        merged_with=[(name_of(name), f"{weight:g}") for name, weight in facts.merged_with],
        lora=recipe["lora"],
        rank=rank,
        vllm_rank=max_lora_rank(rank),
        stages=[_stage(name, manifest) for name, manifest in stages.items()],
        sources=[_SOURCES.get(source) or code(name_of(source)) for source in recipe["ppo"]["reward_funcs"]],
        ema_decay=recipe["ppo"]["ema_decay"],
        rankings=reward.metrics if reward else {},
        judged=_judged(judged) if judged else None,
        confidence=f"{recipe['evaluate']['confidence']:.0%}",
        chat=tokenizer.chat_template is not None,
        length=recipe["ppo"]["response_length"] if trained.stage == "ppo" else _LENGTH,
        seed=recipe["seed"],
        versions=_listed(trained.versions),
        exported=_listed({name: n for name, n in versions().items() if trained.versions.get(name) != n}),
    )
    return text


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("rlhf_kit", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "quote": shlex.quote,
        "code": code,
        "figures": figures_of,
        "prose": prose,
        "python": json.dumps,
        "table": table,
    }
    return environment.get_template("policy_card.md.j2")


def _metadata_of(facts: Facts, trained: Manifest, stages: dict[str, Manifest | None]) -> str:
    """The Hub's relations are adapter, finetune, quantized (of the base's own weights) and merge (of several bases)."""
    adapter = facts.kind in _ADAPTERS
    tags = ["rlhf_kit", "rlhf", "sft" if facts.role == "sft" else "ppo", *(["lora"] if adapter else [])]
    tags += [
        *(["gguf", "llama-cpp"] if facts.kind.startswith("gguf") else []),
        *(["merge"] if facts.merged_with else []),
    ]
    return metadata(
        hub_id(trained),
        "adapter" if adapter else "finetune",
        library_name=_LIBRARIES.get(facts.kind),
        pipeline_tag="text-generation",
        tags=tags,
        license=facts.license if facts.license in LICENSES else None,
        datasets=datasets_of(stages) or None,
    )


def _stage(name: str, manifest: Manifest | None) -> dict[str, Any]:
    """What the template shows of a stage; of a missing one nothing but its name."""
    if manifest is None:
        return {"title": _TITLES[name], "missing": True}
    return {
        "title": _TITLES[name],
        "missing": False,
        "data": [(data.field, data.name, data.sha256 or "–") for data in data_of(manifest)],
        "settings": [(key, _written(value)) for key, value in settings_of(manifest)],
        "figures": list(figures_of(manifest.metrics)),
        "verdict": manifest.metrics.get("verdict", []),
    }


def _judged(found: Manifest) -> dict[str, Any]:
    """What the template shows of the comparison on held-out prompts."""
    return {
        "data": [(data.field, data.name, data.sha256 or "–") for data in data_of(found)],
        "figures": list(figures_of(found.metrics)),
        "rubric": name_of(found.recipe["data"]["rubric"]) if found.recipe["data"]["rubric"] else None,
        **{key: found.recipe["evaluate"][key] for key in ("samples_per_prompt", "temperature")},
    }


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items())


# -------------------------------------------------------------------- what all cards are made of


def metadata(base: str | None, relation: str, **fields: Any) -> str:
    """What the Hub reads, as YAML; without a base that is no repository, for which the Hub would refuse the card.

    Args:
        relation: to the base, as the Hub calls it.
        fields: of `ModelCardData`; None is left out.
    """
    if base is not None and is_repo_id(base):
        fields |= {"base_model": base, "base_model_relation": relation}
    return str(ModelCardData(**fields).to_yaml()) + "\n"


def figures_of(tree: Mapping[str, Any], prefix: str = "", *, texts: bool = False) -> Iterator[tuple[str, str]]:
    """The numbers of nested figures with their names, an interval as one; with `texts`, all else that stands there."""
    for name, value in tree.items():
        if f"{name}_interval" in tree:
            continue  # the same figure with its bounds
        if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            bounds = f"{value['value']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
            yield prefix + name.removesuffix("_interval"), bounds
        elif isinstance(value, Mapping):
            yield from figures_of(value, f"{prefix}{name}.", texts=texts)
        elif isinstance(value, float):
            yield prefix + name, f"{value:.4g}"
        elif texts or (isinstance(value, int) and not isinstance(value, bool)):
            yield prefix + name, _written(value)


def code(value: Any) -> str:
    """A text as Markdown's code, on one line, whatever it holds."""
    text = shown(str(value), _LONGEST) or "–"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{text}{space}{fence}"


def prose(text: Any) -> str:
    """A text as a line of plain words: whatever Markdown or HTML would read in it stands for itself."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", shown(str(text), _LONGEST))


def table(rows: Iterable[Sequence[Any]], *header: str) -> str:
    """A Markdown table of code; a bar inside a cell is written so that it does not end the cell."""
    lines = [" | ".join(code(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (" | ".join(header), " | ".join("---" for _ in header), *lines))
