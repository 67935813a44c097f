"""Rows in the shapes of the Hub datasets that recipes name, written for the tests, and a Hub that gives them.

Columns, their types and the names of the splits are those of the datasets' cards and of the scripts that made them
(huggingface/trl: examples/datasets/hh-rlhf-helpful-base.py and tldr.py; OpenBMB/UltraFeedback). The n-th row asks for n
and n, so that its better answers can be told by anyone. A few rows are such as are found in the originals and cannot be
trained on: an empty answer, a pair that two people ordered both ways, a completion without its ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pytest

NUMBERS = range(1, 301)
WITHOUT_ANSWER, BOTH_WAYS, TWICE, UNRATED = 11, 12, 13, 14
"""Numbers of the rows that are not like the others."""

Row = dict[str, Any]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def hh_rlhf() -> Iterator[Row]:
    """Each side the assistant's last turn, the conversation before it in `prompt`."""
    for n in NUMBERS:
        asked = [_turn("user", "Hello."), _turn("assistant", "Hello!"), _turn("user", f"What is {n} and {n}?")]
        sides = [f"{2 * n}.", "No idea." if n != WITHOUT_ANSWER else ""]
        for better, worse in [sides, sides[::-1]][: 2 if n == BOTH_WAYS else 1]:
            yield {
                "chosen": [_turn("assistant", better)],
                "rejected": [_turn("assistant", worse)],
                "prompt": asked,
            }


def _post(n: int) -> str:
    return f"SUBREDDIT: r/sums\n\nTITLE: Sums\n\nPOST: I have {n} and {n}, and I count all.\n\nTL;DR:"


def tldr() -> Iterator[Row]:
    """Texts; the summary begins with the space that belongs behind the colon."""
    for n in NUMBERS:
        for _ in range(2 if n == TWICE else 1):
            yield {"prompt": _post(n), "completion": f" {2 * n}."}


def tldr_preference() -> Iterator[Row]:
    """The same posts with two summaries each."""
    for n in NUMBERS:
        sides = [f" {2 * n}.", " Numbers."]
        for better, worse in [sides, sides[::-1]][: 2 if n == BOTH_WAYS else 1]:
            yield {"prompt": _post(n), "chosen": better, "rejected": worse}


ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def _completion(model: str, response: str, ratings: tuple[str, ...], overall: float) -> Row:
    found = [float(rating) for rating in ratings if rating != "N/A"]
    return {
        "annotations": {
            aspect: {"Rating": rating, "Rationale": "Written for a test."}
            for aspect, rating in zip(ASPECTS, ratings, strict=True)
        },
        "custom_system_prompt": "Be brief.",
        "critique": "None.",
        "fine-grained_score": sum(found) / len(found) if found else None,
        "model": model,
        "overall_score": overall,
        "principle": "helpfulness",
        "response": response,
    }


def ultrafeedback() -> Iterator[Row]:
    """Four completions; the worst one's `overall_score` is the 10 that the first release wrote for a 1."""
    for n in NUMBERS:
        sides = [
            _completion("alpaca-7b", "No idea.", ("1", "1", "1", "1"), 10.0),
            _completion("gpt-4", f"{2 * n}.", ("5", "5", "5", "4"), 9.0),
            _completion("bard", f"Some {2 * n}, perhaps.", ("3", "4", "3", "3"), 6.0),
            _completion("starchat", f"{n}.", ("N/A",) * 4 if n == UNRATED else ("2", "2", "3", "2"), 3.0),
        ]
        yield {
            "source": "evol_instruct",
            "instruction": f"What is {n} and {n}?",
            "models": [side["model"] for side in sides],
            "completions": sides,
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }


HUB: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[Row]]]] = {
    "trl-lib/hh-rlhf-helpful-base": (("train", "test"), hh_rlhf),
    "trl-lib/tldr": (("train", "validation", "test"), tldr),
    "trl-lib/tldr-preference": (("train", "validation"), tldr_preference),
    "openbmb/UltraFeedback": (("train",), ultrafeedback),
}
"""By id the splits, and the rows of each."""


def serve(patch: pytest.MonkeyPatch) -> None:
    """`datasets.load_dataset` gives these datasets and no others, by the splits that they have."""

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        splits, rows = HUB.get(name, ((), None))
        if rows is None:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub.")
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return datasets.Dataset.from_list(list(rows()))

    patch.setattr(datasets, "load_dataset", load_dataset)
