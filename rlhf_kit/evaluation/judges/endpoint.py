"""A model behind an OpenAI-compatible endpoint as a judge: shown two answers, in both orders."""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_kit.data import prompt_texts
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.asking import Outcome, Patience, Unanswered, ask_all
from rlhf_kit.evaluation.judges.base import Judgement, Progress, Question
from rlhf_kit.evaluation.judges.chat import Address, Chat
from rlhf_kit.evaluation.judges.ledger import Ledger, key_of
from rlhf_kit.evaluation.judges.pairs import Pair, pairs_of, verdicts_of
from rlhf_kit.evaluation.judges.template import TEMPLATE, Nonsense, Template, read_verdict, verdict_of
from rlhf_kit.measures import Floats
from rlhf_kit.records import Prompt

__all__ = ["LEDGER", "EndpointJudge", "EndpointSettings"]

log = logging.getLogger(__name__)

LEDGER = "verdicts.jsonl"
_OUTCOMES = {"A": 1.0, "B": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class EndpointSettings:
    """How a model behind an endpoint is asked.

    Attributes:
        comparisons: of two policies on one prompt: so many of their answers, the first with the first and so on.
        partial: go on with the verdicts that there are, where some cannot be had.
        template: around prompt and answers.
        key_variable: the environment variable with the key.
        timeout: seconds without a byte of a reply.
        max_tokens: of a reply; a model that thinks first needs more.
        ledger: the file of all verdicts; None for one in the directory of the evaluation.
        patience: with failures.
    """

    comparisons: int = 1
    partial: bool = False
    template: Template = TEMPLATE
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    max_tokens: int = 1024
    ledger: Path | None = None
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class _Comparison:
    """A prompt and two answers in the order in which they are shown."""

    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class EndpointJudge:
    """Compares two answers and marks each with InstructGPT's flags.

    Each verdict is in the ledger as soon as it is there, by its content: endpoint, template, prompt and both answers.
    What is in it is not asked again, so that a run that broke off goes on, and several may share one.
    """

    name: str
    address: Address
    settings: EndpointSettings = EndpointSettings()
    kind: str = field(default="endpoint", init=False)
    compares: bool = field(default=True, init=False)

    @property
    def what(self) -> str:
        """The model and where it is."""
        return f"{self.address.model} at {self.address.url}"

    def total(self, questions: Sequence[Question]) -> int:
        """The number of verdicts; the same content is asked once."""
        return len(self._asked(questions, pairs_of(questions, self.settings.comparisons)))

    def __call__(self, questions: Sequence[Question], kept: Path, progress: Progress) -> Judgement:
        """Asks for the verdicts that are not in the ledger: `verdicts.jsonl` in `kept`, unless the settings name one.

        Raises:
            RlhfKitError: some could not be had, unless part is enough; all that were are kept.
        """
        pairs = pairs_of(questions, self.settings.comparisons)
        asked = self._asked(questions, pairs)
        ledger = Ledger(self.settings.ledger or kept / LEDGER, self._sound)
        left = [key for key in asked if ledger.get(key) is None]
        if len(left) < len(asked):
            progress(len(asked) - len(left))
        if left:
            self._ask(left, asked, ledger, progress)
        texts = prompt_texts([Prompt(prompt=question.prompt) for question in questions])

        def said(prompt: int, first: str, second: str) -> dict[str, Any] | None:
            return ledger.get(self._key(_Comparison(texts[prompt], first, second)))

        def better(prompt: int, first: str, second: str) -> float | None:
            verdict = said(prompt, first, second)
            return None if verdict is None else _OUTCOMES[verdict["better"]]

        verdicts, missing = verdicts_of(questions, pairs, better)
        marks = _Marks(questions, self.settings.template.flags)
        for pair in pairs:
            first, second = (questions[pair.prompt].answers[n][pair.answer].text for n in (pair.ours, pair.theirs))
            marks.add(pair, said(pair.prompt, first, second), "A", "B")
            if first != second:
                marks.add(pair, said(pair.prompt, second, first), "B", "A")
        return Judgement(verdicts, flags=marks.shares(), missing=missing)

    def _asked(self, questions: Sequence[Question], pairs: Sequence[Pair]) -> dict[str, _Comparison]:
        """By key, the two orders of a pair one after the other."""
        texts = prompt_texts([Prompt(prompt=question.prompt) for question in questions])
        found = {}
        for pair in pairs:
            one, other = (questions[pair.prompt].answers[n][pair.answer].text for n in (pair.ours, pair.theirs))
            for first, second in ((one, other), (other, one)):
                comparison = _Comparison(texts[pair.prompt], first, second)
                found[self._key(comparison)] = comparison
        return found

    def _key(self, comparison: _Comparison) -> str:
        shown = (comparison.prompt, comparison.first, comparison.second)
        return key_of(str(self.address), self.settings.template.text, *shown)

    def _sound(self, entry: dict[str, Any]) -> bool:
        try:
            verdict_of(entry, self.settings.template.flags)
        except Nonsense:
            return False
        return True

    def _ask(self, left: list[str], asked: Mapping[str, _Comparison], ledger: Ledger, progress: Progress) -> None:
        settings = self.settings
        chat = Chat(
            self.address,
            key_variable=settings.key_variable,
            timeout=settings.timeout,
            max_tokens=settings.max_tokens,
        )

        def ask(key: str) -> None:
            ledger.refresh()
            if ledger.get(key) is not None:  # another run has asked meanwhile
                return
            compared = asked[key]
            reply = chat(settings.template.render(compared.prompt, compared.first, compared.second))
            try:
                verdict = read_verdict(reply, settings.template.flags)
            except Nonsense as nonsense:
                raise Unanswered(str(nonsense), again=2) from None
            ledger.keep({key: {"judge": str(self.address), **verdict}})

        try:
            outcome = ask_all(_shuffled(left, asked), ask, settings.patience, lambda: progress(1))
        except KeyboardInterrupt:
            log.warning("judge %s: %s", self.name, self._kept(asked, ledger))
            raise
        self._conclude(asked, ledger, outcome)

    def _kept(self, asked: Mapping[str, _Comparison], ledger: Ledger) -> str:
        have = sum(ledger.get(key) is not None for key in asked)
        return f"{have} of {len(asked)} verdicts are there and kept in {ledger.path}"

    def _conclude(self, asked: Mapping[str, _Comparison], ledger: Ledger, outcome: Outcome) -> None:
        have = [key for key in asked if ledger.get(key) is not None]
        if len(have) == len(asked):
            return
        why = [f"{number} x {reason}" for reason, number in outcome.reasons.most_common()]
        if outcome.stopped:
            why.insert(0, f"stopped: {outcome.stopped}")
        words = f"judge {self.name}: {self._kept(asked, ledger)}; {'; '.join(why).rstrip('.')}"
        if self.settings.partial and have:
            log.warning("%s. Goes on with those that there are", words)
            return
        raise RlhfKitError(f"{words}. The same command asks only for the rest; with --partial it goes on without")


def _shuffled(left: Sequence[str], asked: Mapping[str, _Comparison]) -> list[str]:
    """Pairs in random order, the two orders of each one after the other.

    Two runs on one ledger would otherwise walk side by side and ask the same at the same time.
    """
    pairs = defaultdict[tuple[str, ...], list[str]](list)
    for key in left:
        compared = asked[key]
        pairs[(compared.prompt, *sorted((compared.first, compared.second)))].append(key)
    keys = list(pairs.values())
    secrets.SystemRandom().shuffle(keys)  # not the program's random numbers, which two runs may have seeded alike
    return [key for pair in keys for key in pair]


class _Marks:
    """Flags of answers, from all verdicts on them."""

    def __init__(self, questions: Sequence[Question], flags: Sequence[str]) -> None:
        most = max((len(row) for question in questions for row in question.answers), default=0)
        policies = max((len(question.answers) for question in questions), default=0)
        self._shape, self._flags = (len(questions), policies, most), flags
        self._yes = {flag: np.zeros(self._shape) for flag in flags}
        self._all = np.zeros(self._shape)

    def add(self, pair: Pair, verdict: dict[str, Any] | None, ours: str, theirs: str) -> None:
        """Counts a verdict on both answers, which it calls A and B."""
        if verdict is None or not self._flags:
            return
        for policy, place in ((pair.ours, ours), (pair.theirs, theirs)):
            where = (pair.prompt, policy, pair.answer)
            self._all[where] += 1
            for flag, yes in self._yes.items():
                yes[where] += verdict[place][flag]

    def shares(self) -> dict[str, Floats] | None:
        """By flag (P, N): an answer counts as the share of its verdicts that say yes, NaN where there are none."""
        if not self._flags:
            return None
        with np.errstate(invalid="ignore"):
            answers = {flag: yes / self._all for flag, yes in self._yes.items()}
            judged = self._all > 0
            return {
                flag: np.where(judged, shares, 0.0).sum(axis=2) / judged.sum(axis=2) for flag, shares in answers.items()
            }
