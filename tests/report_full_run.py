"""A run with an evaluation that has everything: four policies, two judges, checkpoints, tax, calibration."""

import json
import math
from pathlib import Path
from typing import Any

from report_run import LOGS, RECIPE, SCRIPT, answers, evaluation, make_run


def estimate(value: float, half: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": round(value - half, 4), "high": round(value + half, 4)}


POLICIES = ("base", "sft", "ppo", "ptx")
STRENGTHS = {"base": -1.1, "sft": 0.0, "ppo": 0.8, "ptx": 0.3}
JUDGE = f"panel {SCRIPT}"
TEXTS = {
    "tokens": (51.2, 34.1, 27.6, 31.0),
    "eos_rate": (0.55, 0.87, 0.97, 0.95),
    "distinct_1": (0.71, 0.7, 0.69, 0.7),
    "distinct_2": (0.93, 0.92, 0.71, 0.9),
    "self_bleu": (0.11, 0.13, 0.31, 0.14),
    "repetition": (0.1, 0.08, 0.08, 0.07),
    "refusal_rate": (0.0, 0.1, 0.3, 0.11),
}


def judge(name: str, kind: str, shift: float) -> dict[str, Any]:
    """Win rates that are the logistic function of differences of strength, so that all figures agree."""
    known = {policy: value + shift * (policy in ("ppo", "ptx")) for policy, value in STRENGTHS.items()}
    rates = {a: {b: 1 / (1 + math.exp(known[b] - known[a])) for b in POLICIES if b != a} for a in POLICIES}
    mean = sum(known.values()) / len(known)
    return {
        "name": name,
        "kind": kind,
        "what": f"the function /home/someone/mine.py:grade of {name}",
        "scores": {policy: estimate(value, 0.1) for policy, value in known.items()} if kind == "reward" else None,
        "win_rates": {
            ours: {
                theirs: {**estimate(rate), "prompts": 96, "length_controlled": estimate(0.5 + (rate - 0.5) / 4)}
                for theirs, rate in beaten.items()
            }
            for ours, beaten in rates.items()
        },
        "bradley_terry": {policy: estimate(value - mean, 0.2) for policy, value in known.items()},
        "elo": {policy: estimate(1000 + 400 / math.log(10) * (v - mean), 30) for policy, v in known.items()},
        "position": None,
        "flags": None,
        "missing": 0,
    }


def tax() -> dict[str, Any]:
    """Worse on text, surely; worse on the others, perhaps."""
    return {
        "against": "base",
        "text": [
            {
                "name": "text_heldout.jsonl",
                "rows": 20,
                "tokens": 1800,
                "loss": {p: estimate(3 + 0.1 * n, 0.2) for n, p in enumerate(POLICIES)},
                "change": {p: estimate(0.1 * n, 0.05) for n, p in enumerate(POLICIES)},
            }
        ],
        "choices": [
            {
                "name": f"choices {SCRIPT}",
                "rows": 40,
                "accuracy": {p: estimate(0.6) for p in POLICIES},
                "change": {p: estimate(-0.02, 0.03) for p in POLICIES},
            }
        ],
        "tasks": [
            {
                "name": "arc_easy",
                "metric": "acc",
                "rows": 500,
                "value": {p: estimate(0.4) for p in POLICIES},
                "change": {p: estimate(-0.01, 0.03) for p in POLICIES},
            }
        ],
    }


def full_evaluation() -> dict[str, Any]:
    """Everything that an evaluation may hold: four policies, two judges, checkpoints, tax; bad figures among them."""
    old = evaluation()
    prompts = old["prompts"]
    for item in prompts:
        item["answers"]["ptx"] = answers(("As PPO, beside text.", 0.6, 7), (f"folded {SCRIPT}", 0.4, 6))
        for told in item["answers"].values():
            for place, answer in enumerate(told):
                answer["scores"] = {"reward": answer["score"], JUDGE: 0.125 * place}
    panel = judge(JUDGE, "endpoint", 0.4)
    panel["position"] = {"first_preferred": estimate(0.62), "consistent": estimate(0.71), "asked_both": 96}
    panel["missing"] = 3
    panel["flags"] = {
        policy: {kind: {"yes": 80, "of": 96, "rate": estimate(0.833)} for kind in ("truthful", SCRIPT)}
        for policy in POLICIES
    }
    points = [
        {
            "policy": f"ppo@{step}",
            "step": step,
            "kl": estimate(0.3 * step, 0.1),
            "scores": {"reward": estimate(0.1 * step, 0.1), JUDGE: estimate(0.2 * step - 0.012 * step**2, 0.1)},
        }
        for step in (3, 6, 9, 12, 15)
    ]
    over = {"proxy": "reward", "gold": JUDGE, "step": 9, "kl": 2.7}
    return {
        **old,
        "policies": list(POLICIES),
        "labels": {"base": "Base", "sft": "SFT", "ppo": "PPO", "ptx": f"PPO-ptx {SCRIPT}"},
        "checkpoints": [point["policy"] for point in points],
        "confidence": 0.95,
        "measures": {
            policy: {key: estimate(values[n], 0.9 if key == "tokens" else 0.02) for key, values in TEXTS.items()}
            for n, policy in enumerate(POLICIES)
        },
        "changes": {
            policy: {
                key: estimate(values[n] - values[1], 0.9 if key == "tokens" else 0.02) for key, values in TEXTS.items()
            }
            for n, policy in enumerate(POLICIES)
            if policy != "sft"
        },
        "kl": {"ppo": estimate(1.84, 0.2), "ptx": estimate(1.2, 0.2)},
        "judges": [judge("reward", "reward", 0.0), panel],
        "prompts": prompts,
        "frontier": [{"run": "run", "points": points, "over_optimised": over, "words": f"It turns, says {SCRIPT}."}],
        "tax": tax(),
    }


# As `evaluate reward` writes it into a run.
QUALITY = {
    "model": "/home/someone/run/reward",
    "verdict": {"word": "ready", "reasons": []},
    "calibration": {
        **{
            kind: [
                {"low": low, "high": low + 0.125, "pairs": 40, "confidence": low + 0.06, "accuracy": low + 0.03}
                for low in (0.5, 0.625, 0.75, 0.875)
            ]
            for kind in ("equal_width", "equal_count")
        },
        **{"error": 0.03, "error_equal_count": 0.031, "temperature": 1.125, "log_loss": 0.51},
    },
}


def make_full_run(directory: Path, *, seed: int = 7) -> Path:
    """A run with everything; another seed makes one that differs in it, in ppo.kl_coef and in PPO's curves."""
    make_run(directory)
    (directory / "policies").mkdir()
    judged = full_evaluation()
    judged["frontier"][0]["run"] = directory.name
    (directory / "reward_quality.json").write_text(json.dumps(QUALITY), encoding="utf-8")
    if seed != RECIPE["seed"]:
        for stage in ("sft", "reward", "ppo"):
            path = directory / stage / "manifest.json"
            manifest = json.loads(path.read_text(encoding="utf-8"))
            manifest["recipe"] = {**RECIPE, "seed": seed, "ppo": {**RECIPE["ppo"], "kl_coef": 0.1}}
            path.write_text(json.dumps(manifest), encoding="utf-8")
        log = [{**entry, **{k: 0.8 * entry[k] for k in ("score", "kl") if k in entry}} for entry in LOGS["ppo"]]
        (directory / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log), encoding="utf-8")
        for item in judged["prompts"]:
            item["answers"]["ppo"] = answers((f"Of seed {seed}.", 0.5, 7))
        for point in judged["frontier"][0]["points"]:
            point["kl"] = estimate(0.25 * point["step"], 0.1)
    (directory / "policies" / "evaluation.json").write_text(json.dumps(judged), encoding="utf-8")
    return directory
