"""The page of a finished run: `report.html`, one file without network, drawn from what stages and evaluate wrote.

Nothing is measured here. Whatever a run does not have (a stage, a rubric, an evaluation) the page leaves out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_kit.checkpoint import MANIFEST, METRICS, Manifest, read_json, read_manifest, read_metrics
from rlhf_kit.errors import CheckpointError
from rlhf_kit.report_curves import Plot, accuracy_plot, plots
from rlhf_kit.report_stages import NAMES, is_path, short, stage_row
from rlhf_kit.report_words import fixed, headlines, number, percent, plain, warnings

__all__ = ["write_report"]

REPORT = "report.html"
SAMPLES = "samples.jsonl"
STAGES = ("sft", "reward", "ppo")
_NAMES = {**NAMES, "base": "Base"}
_LONG_NAMES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "Proximal policy optimisation"}
_MOST_STEPS, _MOST_SAMPLES = 3, 8
_MEASURES = {
    "score": "reward-model score",
    "rubric": "rubric",
    "tokens": "length in tokens",
    "eos_rate": "answers that end",
    "preamble_rate": "answers with a preamble",
    "list_rate": "answers with a list",
}


def write_report(output_dir: Path) -> Path:
    """Writes `report.html` into the directory of a run and returns its path.

    Raises:
        CheckpointError: no stage is finished there, or one is damaged.
    """
    output_dir = Path(output_dir)
    manifests = {
        stage: read_manifest(output_dir / stage) for stage in STAGES if (output_dir / stage / MANIFEST).is_file()
    }
    if not manifests:
        raise CheckpointError(f"{output_dir}: no finished stage to report on; rlhf-kit run RECIPE makes one")
    target = output_dir / REPORT
    scratch = target.with_name(f".{REPORT}.{os.getpid()}.tmp")
    try:
        # A model may write half of a surrogate pair; it must not cost the page.
        scratch.write_bytes(_render(_view(output_dir, manifests)).encode("utf-8", errors="replace"))
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


def _render(view: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("rlhf_kit", "templates"),
        autoescape=True,  # of all templates: what models and labelers wrote is text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "fixed": fixed, "percent": percent}
    script = _source(environment, "report.js")
    # The page runs this one script and loads nothing, whatever else might get into it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    style = _source(environment, "report.css")
    template = environment.get_template("report.html.j2")
    return template.render(**view, content_security_policy=policy, script=Markup(script), style=Markup(style))


def _source(environment: Environment, name: str) -> str:
    loader = environment.loader
    assert loader is not None
    return loader.get_source(environment, name)[0]


def _view(run: Path, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    metrics = _optional(run / "metrics.json") or {stage: manifest.metrics for stage, manifest in manifests.items()}
    evaluation = _optional(run / "evaluation" / "evaluation.json") or {}
    logs = {stage: read_metrics(run / stage) if (run / stage / METRICS).is_file() else [] for stage in manifests}
    latest = max(manifests.values(), key=lambda m: m.finished)
    confidence = number((latest.recipe.get("evaluate") or {}).get("confidence")) or 0.95
    summary = evaluation.get("summary") or {}
    return {
        "model": _model(latest),
        "base": {
            key: short(value) if isinstance(value, str) and is_path(value) else value
            for key, value in latest.base.items()
        },
        "lora": latest.recipe.get("lora") or {},
        "seed": latest.recipe.get("seed"),
        "date": _date(latest.finished),
        "finished": latest.finished,
        "learned_from_ranks": "reward" in manifests or "ppo" in manifests,
        "chain": [_NAMES[stage] for stage in manifests],
        "headlines": headlines(metrics, confidence),
        "warnings": warnings(metrics, summary, logs.get("ppo", [])),
        "stages": [stage_row(stage, manifests[stage], metrics) for stage in manifests],
        "curves": [
            (_LONG_NAMES[stage], stage, drawn) for stage in manifests if (drawn := _plots(stage, logs[stage], metrics))
        ],
        "health": _health(manifests.get("ppo")),
        "training": _samples(run / "ppo" / SAMPLES),
        "gain": (evaluation.get("gain") or {}).get("words") or [],
        "facts": _facts(metrics),
        "summary": _summary(evaluation),
        "evaluation": evaluation,
        "policies": [(name, _NAMES.get(name, name)) for name in evaluation.get("policies") or []],
        "prompts": _prompts(evaluation),
        "versions": latest.versions,
    }


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _model(manifest: Manifest) -> str:
    model = manifest.recipe.get("model") or {}
    return str(model.get("base_id") or short(str(model.get("name_or_path") or "a language model")))


def _date(finished: str) -> str:
    try:
        day = datetime.fromisoformat(finished)
    except ValueError:
        return ""
    return f"{day.day} {day:%B %Y}"


def _plots(stage: str, log: list[dict[str, Any]], metrics: dict[str, Any]) -> list[Plot]:
    drawn = plots(stage, log)
    bars = accuracy_plot(metrics.get("reward") or {}) if stage == "reward" else None
    return [*drawn[:1], bars, *drawn[1:]] if bars else drawn


def _facts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Further figures, each with its meaning."""
    reward, ppo = metrics.get("reward") or {}, metrics.get("ppo") or {}
    known = (
        ("KL of PPO from SFT, nats a response", ppo.get("kl"), plain),
        ("Explained variance of the returns at the end", ppo.get("explained_variance"), fixed),
        ("PPO's answers that end by themselves", ppo.get("eos_rate"), percent),
        ("Updates of PPO", ppo.get("updates"), plain),
        ("Episodes of PPO", ppo.get("episodes"), plain),
        ("Held-out pairs of the reward model", reward.get("heldout_pairs"), plain),
        ("Loss of the reward model on held-out prompts", reward.get("heldout_loss"), fixed),
        ("Agreement of the rubric with the labelers' ranks", reward.get("rubric_agreement"), percent),
    )
    return [(name, write(value)) for name, value, write in known if number(value) is not None]


def _summary(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a measure: what each policy has, and what PPO changed."""
    summary, policies = evaluation.get("summary") or {}, evaluation.get("policies") or []
    rows = []
    for name in dict.fromkeys(key for policy in policies for key in summary.get(policy) or {}):
        values = [number((summary.get(policy) or {}).get(name)) for policy in policies]
        if all(value is None for value in values):
            continue
        large = max(abs(value) for value in values if value is not None) >= 10
        write = percent if name.endswith("_rate") else partial(fixed, places=1 if large else 2)
        by_policy = dict(zip(policies, values, strict=True))
        before, after = by_policy.get("sft"), by_policy.get("ppo")
        change = write(after - before, signed=True) if before is not None and after is not None else "–"
        share = " (share of the answers)" if name.endswith("_rate") else ""
        label = _MEASURES.get(name, name.removesuffix("_rate").replace("_", " ") + share)
        rows.append({"name": label, "values": [write(value) for value in values], "change": change})
    return rows


def _prompts(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a held-out prompt, with the means of its samples and whether PPO did better than SFT by them."""
    policies = evaluation.get("policies") or []
    rows = []
    for item in evaluation.get("prompts") or []:
        answers = {policy: (item.get("answers") or {}).get(policy) or [] for policy in policies}
        means = {key: {policy: _mean(answers[policy], key) for policy in policies} for key in ("score", "rubric")}
        judged = means["rubric"] if means["rubric"].get("ppo") is not None else means["score"]
        before, after = judged.get("sft"), judged.get("ppo")
        change = (
            ""
            if before is None or after is None
            else "better"
            if after > before
            else "worse"
            if after < before
            else "same"
        )
        rows.append({"turns": _turns(item["prompt"]), "answers": answers, "means": means, "change": change})
    return rows


def _health(ppo: Manifest | None) -> list[str]:
    """What PPO itself says of its run, a sentence each."""
    said = ppo.metrics.get("verdict") if ppo else None
    return [str(sentence) for sentence in said] if isinstance(said, list) else []


def _samples(path: Path) -> dict[str, Any] | None:
    """Answers to held-out prompts while PPO went on: of the first evaluation, of one in the middle and of the last."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    entries = [json.loads(line) for line in lines]
    steps = sorted({entry["step"] for entry in entries})
    if not steps:
        return None
    steps = sorted({steps[place * (len(steps) - 1) // (_MOST_STEPS - 1)] for place in range(_MOST_STEPS)})
    by_prompt: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in entries:
        by_prompt.setdefault(json.dumps(entry["prompt"]), {})[entry["step"]] = entry
    rows = []
    for prompt, told in by_prompt.items():
        last = told[max(told)]
        answers = [
            {"text": told[step]["policy"], "score": told[step]["score"]} if step in told else None for step in steps
        ]
        reference = {"text": last["reference"], "score": last["reference_score"]}
        rows.append({"turns": _turns(json.loads(prompt)), "answers": [reference, *answers]})
    names = ["Reference", *(f"Update {step}" for step in steps)]
    return {"names": names, "rows": rows[:_MOST_SAMPLES], "count": len(rows)}


def _turns(prompt: str | list[dict[str, str]]) -> list[tuple[str, str]]:
    return [("", prompt)] if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]


def _mean(answers: list[dict[str, Any]], key: str) -> float | None:
    known = [value for answer in answers if (value := number(answer.get(key))) is not None]
    return sum(known) / len(known) if known else None
