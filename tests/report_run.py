"""A small finished run, as the stages and evaluate leave it, for the tests of the report page."""

import json
from pathlib import Path
from typing import Any

SCRIPT = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
LONG_WORD = "https://example.org/" + "averylongword" * 12
RECIPE = {
    "model": {"name_or_path": "pypi:tiny==1.0#weights/tiny.gguf", "base_id": "someone/Tiny-Instruct"},
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "data": {
        "demonstrations": "/home/someone/demonstrations.jsonl",
        "rankings": "rankings.jsonl",
        "prompts": "prompts.jsonl",
    },
    "sft": {"learning_rate": 3e-4, "num_train_epochs": 2.0},
    "reward": {"learning_rate": 2e-4},
    "ppo": {
        "total_episodes": 320,
        "kl_coef": 0.05,
        "kl_controller": "adaptive",
        "cliprange": 0.2,
        "value": "shared",
        "kl_estimator": "k1",
        "reward_funcs": ["reward", "/home/someone/mine.py:brief"],
        "stop_on": {"kl": 20.0},
    },
    "seed": 7,
}
METRICS: dict[str, dict[str, Any]] = {
    "sft": {
        "loss_last": 1.94,
        "demonstrations": 96,
        "win_rate_vs_base": 0.68,
        "win_rate_vs_base_interval": {"value": 0.68, "low": 0.63, "high": 0.73},
    },
    "reward": {
        "heldout_pair_accuracy": 0.74,
        "heldout_accuracy_by_prompt": {"value": 0.75, "low": 0.69, "high": 0.81},
        "baseline_accuracy": {"shorter": 0.58, "longer": 0.42, "ended": 0.6},
        "prompts": 112,
        "heldout_prompts": 28,
        "rubric_agreement": 0.78,
    },
    "ppo": {
        "heldout_reward_gain": 0.71,
        "heldout_reward_gain_interval": {"value": 0.71, "low": 0.52, "high": 0.9},
        "win_rate_vs_sft": 0.66,
        "win_rate_vs_sft_interval": {"value": 0.66, "low": 0.61, "high": 0.71},
        "kl": 1.84,
        "explained_variance": 0.31,
        "eos_rate": 0.97,
        "verdict": ["Nothing looks wrong: the score went from 0.15 to 0.90 & 95% of the answers end."],
    },
    "seconds": {"sft": 36, "reward": 90, "ppo": 222},
}
LOGS = {
    "sft": [{"step": i, "loss": str(2.6 - 0.02 * i), "learning_rate": 3e-4, "grad_norm": 1.0} for i in range(1, 25)],
    "reward": [{"step": i, "loss": 0.7 - 0.01 * i, "learning_rate": 2e-4, "grad_norm": 2.0} for i in range(1, 21)],
    "ppo": [
        {
            "step": i,
            "score": 0.05 * i,
            "score_std": 0.9,
            "kl": 0.1 * i,
            "entropy": 2.0 - 0.02 * i,
            "response_length": 30.0 - 0.3 * i,
            "eos_rate": 0.85 + 0.005 * i,
            "explained_variance": -0.2 + 0.03 * i,
            "value_loss": 1 / i,
            "clip_fraction": 0.03,
            "grad_norm": 0.5,
            "kl_coef": 0.05 * 1.01**i,
            "rewards/reward": 0.02 * i,
            f"rewards/{SCRIPT}": 0.03 * i,
        }
        for i in range(1, 21)
    ]
    + [
        {"step": i, "eval_score": 0.04 * i, "eval_reference_score": 0.1, "eval_win_rate": 0.5 + 0.01 * i}
        for i in range(5, 21, 5)
    ],
}
# What PPO's evaluations leave beside the log: two prompts after 5, 10, 15 and 20 updates.
SAMPLES = [
    {"step": step, "prompt": prompt, "policy": policy.format(step), "score": step / 10}
    | {"reference": "Water.", "reference_score": -0.25}
    for step in (5, 10, 15, 20)
    for prompt, policy in (
        ("What is rain?", "Drops, said " + SCRIPT + " after {} updates."),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And snow?"}], LONG_WORD),
    )
]


def answers(*texts_and_scores: tuple[str, float, int]) -> list[dict[str, Any]]:
    return [{"text": t, "ended": True, "tokens": 9, "score": s, "rubric": r} for t, s, r in texts_and_scores]


def evaluation() -> dict[str, Any]:
    return {
        "policies": ["base", "sft", "ppo"],
        "temperature": 1.0,
        "samples_per_prompt": 2,
        "rubric_name": "grade",
        "summary": {
            "base": {"score": -0.62, "rubric": 3.9, "tokens": 51.2, "eos_rate": 0.55},
            "sft": {"score": 0.02, "rubric": 5.3, "tokens": 34.1, "eos_rate": 0.87},
            "ppo": {"score": 0.73, "rubric": 6.4, "tokens": 27.6, "eos_rate": 0.97},
        },
        "prompts": [
            {
                "prompt": "How many hearts has an octopus?",
                "answers": {
                    "base": answers((SCRIPT, -1.5, 2), ("Well.", -1.0, 1)),
                    "sft": answers(("Two.", 0.25, 4), ("An octopus has hearts.", 0.0, 5)),
                    "ppo": answers(("An octopus has three hearts.", 1.25, 9), ("It has three.", 1.0, 8)),
                },
            },
            {
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Where do I read more?"},
                    {"role": "assistant", "content": "About what?"},
                    {"role": "user", "content": "About tides."},
                ],
                "answers": {
                    "base": answers((LONG_WORD, 0.0, 1)),
                    "sft": answers(("In an almanac.", 0.5, 8)),
                    "ppo": answers(("", -0.5, 0)),
                },
            },
            {
                "prompt": "Say hello.",
                "answers": {
                    "base": answers(("Hi", 0, 3)),
                    "sft": answers(("Hello!", 0, 5)),
                    "ppo": answers(("Hello!", 0, 5)),
                },
            },
        ],
        "gain": {"words": ["PPO's answers are shorter & end more often."]},
    }


def make_run(
    directory: Path,
    *,
    stages: tuple[str, ...] = ("sft", "reward", "ppo"),
    metrics: dict[str, Any] | None = METRICS,
    judged: dict[str, Any] | None = None,
    with_evaluation: bool = True,
) -> Path:
    """Writes the run; `metrics=None` and `with_evaluation=False` leave those files out."""
    for stage in stages:
        (directory / stage).mkdir(parents=True)
        lines = "".join(json.dumps(entry) + "\n" for entry in LOGS[stage])
        (directory / stage / "metrics.jsonl").write_text(lines, encoding="utf-8")
        manifest = {
            "stage": stage,
            "inputs": {"data": {"demonstrations": "3f8a1b22" * 8} if stage == "sft" else {}},
            "metrics": METRICS[stage],
            "seconds": 60.0,
            "base": {"name": "pypi:tiny==1.0#weights/tiny.gguf", "revision": None},
            "parents": {} if stage == "sft" else {"sft": "../sft"},
            "recipe": RECIPE,
            "files": {},
            "versions": {"python": "3.11.7", "torch": "2.9.0"},
            "finished": "2026-11-22T01:39:00+00:00",
        }
        (directory / stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        if stage == "ppo":
            told = "".join(json.dumps(row) + "\n" for row in SAMPLES)
            (directory / stage / "samples.jsonl").write_text(told, encoding="utf-8")
    if metrics is not None:
        (directory / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if with_evaluation:
        (directory / "evaluation").mkdir()
        (directory / "evaluation" / "evaluation.json").write_text(json.dumps(judged or evaluation()), encoding="utf-8")
    return directory
