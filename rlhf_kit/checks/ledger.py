"""What only shows between rows: duplicates, contradictions, leaks, and labels that look wrong as a whole.

Rows pass once and only numbers of them are kept, at most 37 bytes for a row of four answers: 64-bit hashes and row
numbers in plain arrays, sorted when all rows have passed. Two different rows share a hash by chance once in 10^9 files
of 200,000 rows; hashes are Python's own, of this process alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator

from ..errors import Problem
from ..records import Demonstration, Ranking, Rating, Record, Text, prompt_name
from ..row import Row
from .bias import WinCounter, Wins
from .labelers import Opinions

__all__ = ["Ledger", "content_of", "prompt_of"]

_FEW_PAIRS = 100
_MOST = 0.75
_NO_ID = 0


class Ledger:
    """Takes the records of one source in their order, and tells at the end what is wrong between them.

    Args:
        keep_prompts: also remembers the prompts' hashes, so that leaks into other sources can be found.
    """

    def __init__(self, keep_prompts: bool = False) -> None:
        self.opinions = Opinions()
        self.wins = WinCounter()
        self._place = ""
        self._places, self._starts = list[str](), array("Q")  # where another place begins
        self._numbers = array("I")
        self._contents, self._ids, self._prompts = array("q"), array("q"), array("q")
        self._lost_ids: list[
            tuple[int, float, str]
        ] = []  # of rows that are no record: hash, place among records, where
        self._keep_prompts = keep_prompts
        self._weights: dict[str, float | None] = {}
        self._uneven: list[Problem] = []

    def add(self, record: Record, place: str, number: int, sided: bool = False) -> None:
        """Takes the record that stands at `place` `number`; `sided` where its source orders responses by columns."""
        if place != self._place:
            self._place = place
            self._places.append(place)
            self._starts.append(len(self._numbers))
        self._numbers.append(number)
        self._ids.append(_NO_ID if record.id is None else hash(record.id) or 1)
        if type(record) is Ranking:
            responses = record.responses
            texts, ranks = [response.text for response in responses], [response.rank for response in responses]
            answers, opinion = zip(*sorted(zip(texts, ranks, strict=True)), strict=True)
            prompt = record.prompt
            content = hash((prompt if type(prompt) is str else prompt_name(prompt), answers))
            self.opinions.add(record.labeler, opinion)
            self.wins.add(texts, ranks, sided)
        else:
            content = hash(content_of(record))
            if type(record) is Text:
                self._weigh(record, f"{place}{number}")
        self._contents.append(content)
        if self._keep_prompts:
            self._prompts.append(hash(prompt_of(record)))

    def add_unusable(self, row: Row) -> None:
        """Takes the id of a row that is no record: it is taken all the same."""
        name = row.value.get("id") if isinstance(row.value, dict) else None
        if isinstance(name, str):
            self._lost_ids.append((hash(name) or 1, len(self._numbers) - 0.5, row.where))

    def _weigh(self, record: Text, where: str) -> None:
        if record.source is None or len(self._weights) > 10_000:
            return
        weight = self._weights.setdefault(record.source, record.weight)
        if weight != record.weight:
            reason = f"{record.weight} for '{record.source}', which had {weight} before; give its rows one weight"
            self._uneven.append(Problem(where, "weight", reason, "weight-varies"))

    def problems(self) -> Iterator[Problem]:
        """All that is wrong between the rows, each finding at the later of the rows concerned."""
        yield from self._twin_ids()
        yield from self._twin_contents()
        yield from self._uneven
        yield from self._biases()
        yield from self.opinions.problems(self._whole())

    def _whole(self) -> str:
        """The source, or the sources that were joined, by name."""
        names = list(dict.fromkeys(place.rstrip(":#") for place in self._places)) or [""]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

    def _where(self, index: int) -> str:
        return f"{self._places[bisect_right(self._starts, index) - 1]}{self._numbers[index]}"

    def _twin_ids(self) -> Iterator[Problem]:
        count, lost = len(self._ids), self._lost_ids
        ids = self._ids + array("q", [name for name, _, _ in lost]) if lost else self._ids
        for group in _groups(ids, skip=_NO_ID):
            rows = sorted((i, self._where(i)) if i < count else lost[i - count][1:] for i in group)
            for _, where in rows[1:]:
                yield Problem(where, "id", f"also the id of {rows[0][1]}; ids are unique in a file", "duplicate-id")

    def _twin_contents(self) -> Iterator[Problem]:
        for group in _groups(self._contents):
            first: dict[Hashable, int] = {}  # of each labeler
            for index in group:
                labeler, ranks = self.opinions.of(index) if self.opinions else (0, b"")
                before = first.setdefault(labeler, index)
                if before == index:
                    continue
                if not self.opinions or self.opinions.of(before)[1] == ranks:
                    reason = f"the same content as {self._where(before)}; it would count double"
                    yield Problem(self._where(index), "", reason, "duplicate-row")
                else:
                    reason = f"orders the same answers otherwise than {self._where(before)}"
                    advice = "keep one of the two, or name the labelers if there were two"
                    yield Problem(self._where(index), "", f"{reason}, by the same labeler; {advice}", "contradiction")
            if self.opinions and len(first) > 1:
                self.opinions.compare(list(first.values()))

    def _biases(self) -> Iterator[Problem]:
        where = self._whole()
        yield from _bias(self.wins.longer, where, "longer", "shorter", "length-bias")
        yield from _bias(self.wins.first, where, "first", "last", "position-bias")

    def leaks_from(self, training: Ledger, field: str = "") -> Iterator[Problem]:
        """The rows of this (held-out) source whose prompt also stands in `training`; both kept their prompts.

        Args:
            field: of the recipe, that names `training`; told with each finding.
        """
        import numpy as np

        known, mine = np.frombuffer(training._prompts, np.int64), np.frombuffer(self._prompts, np.int64)
        prompts, firsts = np.unique(known, return_index=True)
        places = np.searchsorted(prompts, mine)
        for index in np.flatnonzero(np.isin(mine, known)):
            other = training._where(int(firsts[places[index]])) + (f" ({field})" if field else "")
            reason = f"this held-out prompt is trained on in {other}; take one of the two out"
            yield Problem(self._where(int(index)), "prompt", reason, "leak")


def _bias(wins: Wins, where: str, one: str, other: str, code: str) -> Iterator[Problem]:
    if wins.pairs < _FEW_PAIRS or 1 - _MOST < wins.share < _MOST:
        return
    if code == "position-bias" and wins.wins == wins.pairs:
        reason = "all responses stand in order of rank, so that nothing can be said about their places"
        yield Problem(where, "", reason, "sorted-by-rank")
        return
    more, share = (one, wins.share) if wins.share > 0.5 else (other, 1 - wins.share)
    advice = {
        "length-bias": "a reward model will learn length; look at the labels, or balance the answers",
        "position-bias": "if labelers saw this order, they may not have read on; if not, shuffle it",
    }[code]
    if more == "shorter":
        advice = "are the ranks turned round? 1 is the best"
    yield Problem(where, "", f"the {more} response wins {share:.0%} of {wins.pairs:,} pairs; {advice}", code)


def _groups(hashes: array[int], skip: int | None = None) -> Iterable[list[int]]:
    """The indices of equal values but `skip`, where there are several; ascending, in the order of the first ones."""
    import numpy as np

    values = np.frombuffer(hashes, np.int64)
    ordered = np.sort(values)
    twins = ordered[1:] == ordered[:-1]
    if skip is not None:
        twins &= ordered[1:] != skip
    names = np.unique(ordered[1:][twins])
    del ordered, twins  # what follows needs as much again, and most files have no twins
    groups: dict[int, list[int]] = {}
    if len(names):
        places = np.minimum(np.searchsorted(names, values), len(names) - 1)
        for index in np.flatnonzero(names[places] == values):
            groups.setdefault(int(values[index]), []).append(int(index))
    return groups.values()


def prompt_of(record: Record) -> Hashable:
    """What two records share that ask the same; a text is its own prompt."""
    return record.text if isinstance(record, Text) else prompt_name(record.prompt)


def content_of(record: Record) -> Hashable:
    """What two records share that say the same; the order of a ranking's responses, and their ranks, do not matter."""
    if isinstance(record, Text):
        return record.text
    prompt = prompt_of(record)
    if isinstance(record, Ranking):
        return prompt, *sorted(response.text for response in record.responses)
    if isinstance(record, Demonstration):
        return prompt, record.completion
    if isinstance(record, Rating):
        return prompt, record.response, record.axis, record.score, record.thumb, record.labeler
    return prompt
