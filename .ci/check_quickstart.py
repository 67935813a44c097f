"""Hold the quickstart's figures against floors.

The floors lie well below what the README claims: chance or another processor must not fail CI, a broken stage must.
Usage: check_quickstart.py [RUN_DIRECTORY]
"""

import json
import math
import sys
from pathlib import Path

# figure: direction, floor (or ceiling), claim
LIMITS: dict[str, tuple[str, float, float]] = {
    "sft.win_rate_vs_base": (">=", 0.55, 0.60),
    "reward.heldout_pair_accuracy": (">=", 0.62, 0.70),
    "ppo.heldout_reward_gain": (">=", 0.20, 0.50),
    "ppo.win_rate_vs_sft": (">=", 0.53, 0.62),
    "ppo.eos_rate": (">=", 0.75, 0.90),
    "ppo.kl": ("<=", 12.0, 6.0),
}


def figure(metrics: object, name: str) -> float:
    """Return the number under a dotted name, or NaN where there is none."""
    for key in name.split("."):
        metrics = metrics.get(key) if isinstance(metrics, dict) else None
    return float(metrics) if isinstance(metrics, int | float) and not isinstance(metrics, bool) else math.nan


def holds(value: float, direction: str, limit: float) -> bool:
    """Say whether a figure is on the right side of its limit; NaN never is."""
    return value >= limit if direction == ">=" else value <= limit


def main(directory: Path) -> int:
    """Print figure, floor and claim side by side; return 0 if every floor holds and every adapter is there."""
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    failures = []
    print(f"{'figure':<30} {'value':>8}   {'floor':<9} {'claim':<9}")
    for name, (direction, floor, claim) in LIMITS.items():
        value = figure(metrics, name)
        verdict = "claimed" if holds(value, direction, claim) else "holds"
        if not holds(value, direction, floor):
            verdict = "FAILS"
            failures.append(name)
        print(f"{name:<30} {value:>8.3f}   {direction} {floor:<6.2f} {direction} {claim:<6.2f} {verdict}")
    for stage in ("sft", "reward", "ppo"):
        adapter = directory / stage / "adapter_model.safetensors"
        if not adapter.is_file():
            print(f"{adapter} is missing")
            failures.append(str(adapter))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")))
