"""Judges by what a user types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.base import Judge
from rlhf_kit.evaluation.judges.chat import Address
from rlhf_kit.evaluation.judges.endpoint import EndpointJudge, EndpointSettings
from rlhf_kit.evaluation.judges.function import FunctionJudge
from rlhf_kit.evaluation.judges.page import LABELER, PAGE, PageJudge
from rlhf_kit.evaluation.judges.reward import RewardJudge
from rlhf_kit.evaluation.judges.verdicts import RankingsJudge
from rlhf_kit.models.sources import is_repository_name
from rlhf_kit.rewards import stage_of

__all__ = ["judge_named", "judges_named"]

_NAME = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)
_FUNCTION = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz")
_OWN = ("reward", "rubric")
_Made = RewardJudge | FunctionJudge | RankingsJudge | EndpointJudge | PageJudge


def judges_named(
    texts: Sequence[str], own: Mapping[str, Judge], settings: EndpointSettings | None = None
) -> list[Judge]:
    """The judges that are meant, in their order, each once and under a name of its own.

    Of two that would be called the same the second gets a number; a name that the user gave stays as it is.

    Args:
        texts: as in `judge_named`.
        own, settings: as there.

    Raises:
        RlhfKitError: something typed is no judge, or one name is given twice.
        DataError: a function or a file of rankings that cannot be read.
    """
    words = list(dict.fromkeys(texts))
    fixed = [name for name, _ in map(_parts, words) if name] + [word for word in words if word in own]
    if twice := next((name for name in fixed if fixed.count(name) > 1), None):
        raise RlhfKitError(f"two judges are called {twice}; give each its own name")
    found: list[Judge] = []
    for word in words:
        judge = judge_named(word, own, settings)
        if judge.name not in fixed:
            taken = {*fixed, *(other.name for other in found)}
            names = (judge.name if number == 1 else f"{judge.name}-{number}" for number in range(1, len(words) + 2))
            judge = _renamed(judge, next(name for name in names if name not in taken))
        elif _parts(word)[0] is None and word not in own:
            judge = _renamed(judge, f"{judge.name}-2")
        found.append(judge)
    return found


def judge_named(text: str, own: Mapping[str, Judge], settings: EndpointSettings | None = None) -> Judge:
    """The judge that is meant, under the name that the user gives or one that says what it is.

    Args:
        text: one of `own`; `path.py:function` or `module:function`; a file of rankings, perhaps with `#AXIS`; `page`,
            perhaps with `#LABELER,…`; `http(s)://HOST/v1#MODEL`; a run, a directory or a Hub id with a reward model.
            `NAME=` may stand before it.
        own: the judges that the evaluated run has of its own, such as reward and rubric.
        settings: of endpoints; None for the defaults.

    Raises:
        RlhfKitError: it is none of these.
        DataError: a function or a file of rankings that cannot be read.
    """
    name, word = _parts(text)
    if word in own:
        judge = own[word]
        return judge if name is None else _renamed(judge, name)
    if word in _OWN:
        has = f"it has {', '.join(own)}" if own else "it has no judge of its own"
        raise RlhfKitError(f"judge {word}: the first run that is evaluated has none; {has}")
    made = _made(word, settings or EndpointSettings())
    return made if name is None else replace(made, name=name)


def _parts(text: str) -> tuple[str | None, str]:
    found = None if Path(text).exists() else _NAME.fullmatch(text)
    return (found[1], found[2]) if found else (None, text)


def _renamed(judge: Judge, name: str) -> Judge:
    if judge.name == name:
        return judge
    if not isinstance(judge, _Made):
        raise RlhfKitError(f"judge {judge.name}: keeps its name; it cannot be called {name}")
    return replace(judge, name=name)


def _made(word: str, settings: EndpointSettings) -> _Made:
    if word.startswith(("http://", "https://")):
        address = Address.parse(word)
        return EndpointJudge(address.model.rpartition("/")[2], address, settings)
    if word.partition("#")[0] == PAGE:
        names = tuple(name.strip() for name in word.partition("#")[2].split(",") if name.strip())
        return PageJudge(PAGE, names or (LABELER,), settings.comparisons, settings.partial)
    if _FUNCTION.fullmatch(word):
        return FunctionJudge.named(word, texts=False)
    file, _, axis = (word, "", "") if Path(word).is_file() else word.partition("#")
    if file.endswith(_FILES) or Path(file).is_file():
        return RankingsJudge.read(file, axis=axis or None)
    path = Path(word)
    if (stage := stage_of(word)) is not None:
        return RewardJudge.of_run(path, name=stage.resolve().parent.name)
    if path.is_dir() or (not path.exists() and word.count("/") == 1 and is_repository_name(word)):
        return RewardJudge.of_model(word, name=path.resolve().name, what=f"the reward model {_shown(word)}")
    raise RlhfKitError(
        f"judge {word}: no such file, directory or judge. A judge is reward or rubric (the run's own), "
        "FILE.py:FUNCTION, a file of rankings (FILE.jsonl), page (people, in the browser), http://HOST:PORT/v1#MODEL, "
        "or a reward model: a run, a directory, owner/name on the Hub"
    )


def _shown(place: str) -> str:
    """A directory by its name: a page that is handed on should not tell of the directories of a machine."""
    return Path(place).resolve().name if Path(place).is_dir() else place
