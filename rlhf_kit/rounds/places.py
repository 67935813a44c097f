"""Where the rounds of a run stand, and the recipe of one of them.

output_dir/            what the rounds start from: sft/, and reward/ where data.rankings trained one
  round-1/             answers.jsonl, labels.jsonl, rankings.jsonl (of all rounds), recipe.yaml,
                       reward/, ppo/, evaluation/, and last of all round.json
  round-2/ …
  kept/                what was said and judged, by content
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_kit.checkpoint import MANIFEST, read_json
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.outputs import Files
from rlhf_kit.pipeline import REWARD
from rlhf_kit.recipe import Recipe

__all__ = ["KEPT", "ROUND", "Round", "finished", "next_round", "rounds_of"]

ROUND, KEPT = "round.json", "kept"
SFT, PPO = "sft", "ppo"


@dataclass(frozen=True)
class Round:
    """One round, 0 being what the others start from.

    Attributes:
        number: from 0.
        home: the `output_dir` of the recipe.
        whole: the recipe as it was given.
    """

    number: int
    home: Path
    whole: Recipe

    @property
    def directory(self) -> Path:
        """That of the round; of round 0, the run itself."""
        return self.home / self.name if self.number else self.home

    @property
    def name(self) -> str:
        """Of its directory and of its policy in answers, verdicts and figures."""
        return f"round-{self.number}"

    @property
    def answers(self) -> Path:
        """Rows of prompts with the answers that are labelled."""
        return self.directory / "answers.jsonl"

    @property
    def labels(self) -> Path:
        """The round's own rankings."""
        return self.directory / "labels.jsonl"

    @property
    def rankings(self) -> Path:
        """Those of all rounds so far."""
        return self.directory / "rankings.jsonl"

    @property
    def start(self) -> Round:
        """Round 0."""
        return Round(0, self.home, self.whole)

    @property
    def before(self) -> Round:
        """The round before this one."""
        return Round(self.number - 1, self.home, self.whole)

    @property
    def earlier(self) -> list[Round]:
        """All rounds before this one, the first of them number 0."""
        return [Round(number, self.home, self.whole) for number in range(self.number)]

    @property
    def policy(self) -> Path | None:
        """The directory of its policy's adapter; None is the raw base, where nothing was demonstrated."""
        if self.number:
            return self.directory / PPO
        return self.home / SFT if self.whole.data.demonstrations is not None else None

    @property
    def rewards(self) -> list[Path]:
        """The directories of its reward models, the first of which is PPO's; none of a round 0 without rankings."""
        names = [REWARD, *(f"{REWARD}-{number}" for number in range(2, self.whole.round.ensemble + 1))]
        return [self.directory / name for name in names if (self.directory / name / MANIFEST).is_file()]

    @property
    def recipe(self) -> Recipe:
        """As a recipe of its own: its rankings, what reward model and policy start from, and another seed.

        The reward model starts from SFT's policy in each round; PPO too, unless `round.start` is `last`.
        """
        whole = self.whole
        if not self.number:
            return whole
        start = self.start.policy
        origin = self.before.policy if whole.round.start == "last" else start
        changes: dict[str, Any] = {
            "output_dir": str(self.directory),
            "seed": (whole.seed + self.number) % 2**32,
            "data": whole.data.model_copy(update={"rankings": str(self.rankings)}),
            "ppo": whole.ppo.model_copy(update={"init": _init(origin)}),
        }
        if whole.reward.init == SFT:
            changes["reward"] = whole.reward.model_copy(update={"init": _init(start)})
        return whole.model_copy(update=changes)

    def write_recipe(self) -> None:
        """`recipe.yaml`, so that a step of the round can be run by itself, on several processes for example."""
        path = self.directory / "recipe.yaml"
        said = self.recipe.model_dump(mode="json", exclude_defaults=True)
        with Files([path]) as files:
            files.write(path, yaml.safe_dump(said, sort_keys=False, allow_unicode=True).encode())


def _init(adapter: Path | None) -> str:
    return "base" if adapter is None else str(adapter)


def finished(home: Path) -> list[dict[str, Any]]:
    """What `round.json` of each finished round says, from round 1.

    Raises:
        RlhfKitError: one is missing among them.
    """
    found: list[dict[str, Any]] = []
    while (file := home / f"round-{len(found) + 1}" / ROUND).is_file():
        found.append(read_json(file))
    if len(others := list(home.glob(f"round-*/{ROUND}"))) > len(found):
        later = max((other.parent.name for other in others), key=lambda name: (len(name), name))
        raise RlhfKitError(
            f"{home}: {later} is finished, but {file.parent.name}, on which it is built, is not; put it back, or move "
            "the later ones away"
        )
    return found


def next_round(recipe: Recipe) -> Round:
    """The first round that is not finished."""
    home = Path(recipe.output_dir)
    return Round(len(finished(home)) + 1, home, recipe)


def rounds_of(home: Path) -> list[dict[str, Any]]:
    """`finished`, where there are some.

    Raises:
        RlhfKitError: there are none.
    """
    if not home.is_dir():
        raise RlhfKitError(f"{home}: no such directory; name the output_dir of the rounds' recipe")
    found = finished(home)
    if not found:
        raise RlhfKitError(f"{home}: no finished round in it; start one: rlhf-kit round RECIPE")
    return found
