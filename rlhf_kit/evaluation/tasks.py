"""EleutherAI's lm-eval on each policy: its tasks by name, or one's own as its YAML files; the extra `tasks`.

One base serves all policies: lm-eval gets the base as a model of transformers, with the policy's adapter active. What a
policy got on each document is kept, so that the change between two policies is measured document by document.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
import logging
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets.exceptions import DatasetsError

from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.tax import Items, kept_items
from rlhf_kit.models import Backbone

__all__ = ["Loaded", "load_tasks", "tasks_tax"]

_BITS = "bits_per_byte"


@dataclass(frozen=True)
class Loaded:
    """What one word of `--tasks` names.

    Attributes:
        name: of the task, or of the group whose documents are counted together.
        tasks: lm-eval's tasks by name; several of a group.
        manager: that has loaded them.
    """

    name: str
    tasks: Mapping[str, Any]
    manager: Any


def tasks_tax(
    backbone: Backbone,
    roles: Mapping[str, str | None],
    words: Sequence[str],
    kept: Path,
    identities: Mapping[str, str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[Items]]:
    """What each policy gets on tasks of lm-eval, document by document.

    Metrics are those whose value is the mean over the documents (acc, acc_norm, exact_match and most others), and
    bits_per_byte. Where a task has several filters, the filter stands behind a comma, as in lm-eval's own results.

    Args:
        roles: by the policy's name, the adapter that plays it; None is the base.
        words: names of lm-eval's tasks, tags and groups, YAML files of tasks, or folders of them. The documents of a
            group are counted together: its value is lm-eval's own where that weights tasks by their size.
        kept: the directory for what has been measured already, a file a task and policy.
        identities: by the policy's name, a hash of everything that decides what it says.
        limit: take only so many documents of each task, the first.
        progress: is called with the number of tasks done.

    Returns:
        For each policy, the items of each task and metric, in the order given.

    Raises:
        RlhfKitError: lm-eval is missing; every task that cannot be loaded or measured.
    """
    loaded = load_tasks(words)
    keys = {name: _content(task, limit) for each in loaded for name, task in each.tasks.items()}
    model = _as_lm_eval(backbone, batch_size)
    found: dict[str, list[Items]] = {policy: [] for policy in roles}
    for policy, role in roles.items():
        for each in loaded:
            measured = []
            for name, task in each.tasks.items():
                measure = partial(_measure, backbone, role, model, task, each.manager, limit)
                measured.append(kept_items(kept, "task", keys[name] | {"policy": identities[policy]}, measure))
                progress(1)
            found[policy] += _together(each.name, measured)
    return found


# -------------------------------------------------------------------- which tasks


def load_tasks(words: Sequence[str]) -> list[Loaded]:
    """The tasks that some words name, their data with them.

    Raises:
        RlhfKitError: lm-eval is missing; every task that is unknown, cannot be read, or cannot be measured here.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as missing:
        raise RlhfKitError("--tasks needs lm-eval: pip install 'rlhf-kit[tasks]'") from missing
    shipped: Any = None  # reading the names of lm-eval's own tasks takes seconds
    found, problems = list[Loaded](), list[str]()
    for word in words:
        try:
            if Path(word).is_dir():
                found += _of_folder(word, TaskManager(include_path=word, include_defaults=False))
            elif Path(word).suffix in (".yaml", ".yml"):
                found += _of_file(word)
            else:
                shipped = shipped or TaskManager()
                found += _loaded(word, word, shipped)
        except RlhfKitError as failure:
            problems.append(str(failure))
    names = [name for each in found for name in each.tasks]
    problems += [f"{name}: is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise RlhfKitError("\n".join(problems))
    return found


def _of_folder(word: str, manager: Any) -> list[Loaded]:
    """All groups and tasks in it; what belongs to a group comes with the group only."""
    found, problems = list[Loaded](), list[str]()
    for spec in [*manager.all_groups, *manager.all_subtasks]:
        try:
            found += _loaded(f"{word}: {spec}", spec, manager)
        except RlhfKitError as failure:
            problems.append(str(failure))
    if not found and not problems:
        problems.append(f"{word}: holds no task of lm-eval; a task is a YAML file with `task: NAME` in it")
    if problems:
        raise RlhfKitError("\n".join(problems))
    outermost = list[Loaded]()
    for each in sorted(found, key=lambda each: -len(each.tasks)):
        if not any(each.tasks.keys() <= other.tasks.keys() for other in outermost):
            outermost.append(each)
    return [each for each in found if each in outermost]


def _of_file(word: str) -> list[Loaded]:
    from lm_eval.tasks import TaskManager

    path = Path(word).resolve()
    if not path.is_file():
        raise RlhfKitError(f"{word}: no such file")
    if not re.search(r"^group:", path.read_text(encoding="utf-8"), re.MULTILINE):
        return _loaded(word, str(path), TaskManager(include_defaults=False))
    # lm-eval knows a group by its name only, and its tasks by the folder that they are in.
    manager = TaskManager(include_path=str(path.parent), include_defaults=False)
    names = [name for name, entry in manager.task_index.items() if entry.yaml_path == path]
    if not names:
        raise RlhfKitError(f"{word}: lm-eval cannot read it, or another file beside it has a group of this name")
    return _loaded(word, names[0], manager)


def _loaded(place: str, spec: str, manager: Any) -> list[Loaded]:
    """What a name or a file means to a manager; `place` is what the user calls it."""
    if not Path(spec).is_file() and spec not in manager.task_index:
        close = difflib.get_close_matches(spec, manager.all_tasks, n=1)
        advice = f"did you mean {close[0]}?" if close else "`lm-eval ls tasks` lists them"
        raise RlhfKitError(f"{place}: is no task of lm-eval and no YAML file; {advice}")
    try:
        with _seeded(), _quiet():
            read = manager.load([spec])
    except (OSError, DatasetsError) as failure:
        advice = "run it once with network, or give a task with data of your own: FILE.yaml"
        raise RlhfKitError(f"{place}: its data cannot be read: {_line(failure)}; {advice}") from failure
    except ImportError as failure:
        raise RlhfKitError(f"{place}: needs a package that is missing: {_line(failure)}") from failure
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as failure:
        raise RlhfKitError(f"{place}: lm-eval cannot load it: {_line(failure)}") from failure
    problems = [f"{place}: {name}: {reason}" for name, task in read["tasks"].items() if (reason := _unfit(task))]
    if problems:
        raise RlhfKitError("\n".join(problems))
    if spec in read["groups"]:
        return [Loaded(spec, read["tasks"], manager)]
    return [Loaded(name, {name: task}, manager) for name, task in read["tasks"].items()]


def _unfit(task: Any) -> str | None:
    """Why a task cannot be measured here, before anything has been computed."""
    if getattr(task, "UNSAFE_CODE", False):
        return "runs code that models write; run lm-eval itself for it, in a sandbox"
    if getattr(task, "MULTIMODAL", False):
        return "is about images or sound; these policies read text"
    if not any(_is_mean(task, metric) or metric == _BITS for metric in task.aggregation()):
        return f"none of its metrics ({', '.join(task.aggregation())}) is a mean over documents"
    return None


def _is_mean(task: Any, metric: str) -> bool:
    from lm_eval.api.registry import get_aggregation

    return task.aggregation().get(metric) is get_aggregation("mean")


def _line(failure: BaseException) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0].rstrip(".")


# -------------------------------------------------------------------- what they depend on


def _content(task: Any, limit: int | None) -> dict[str, Any]:
    """Everything but the policy that the values depend on; local files count by what is in them."""
    import lm_eval

    digest = hashlib.sha256()
    with _seeded():
        shots = list(task.fewshot_docs()) if task.config.num_fewshot else []
        for document in itertools.chain(itertools.islice(task.eval_docs, limit), shots):
            digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    settings = json.loads(json.dumps(task.dump_config(), sort_keys=True, default=str))
    return {"task": settings, "documents": digest.hexdigest(), "lm_eval": lm_eval.__version__}


# -------------------------------------------------------------------- measured


def _as_lm_eval(backbone: Backbone, batch_size: int) -> Any:
    """The base as lm-eval takes models; whichever adapter is active answers."""
    from lm_eval.models.huggingface import HFLM

    mixed = torch.bfloat16 if backbone.base.dtype == torch.bfloat16 else None  # as `rewards.autocast`
    with _quiet():
        return HFLM(
            pretrained=backbone.base,
            tokenizer=backbone.tokenizer,
            batch_size=batch_size,
            mixed_precision_dtype=mixed,
            softmax_dtype=torch.float32,  # in bfloat16, log-probabilities of several choices would be the same
        )


def _measure(
    backbone: Backbone, role: str | None, model: Any, task: Any, manager: Any, limit: int | None
) -> list[Items]:
    import lm_eval

    backbone.eval()
    with backbone.role(role), _seeded(), _quiet(logging.WARNING):
        results = lm_eval.simple_evaluate(
            model, tasks=[task], limit=limit, bootstrap_iters=0, log_samples=True, task_manager=manager
        )
    ((name, samples),) = results["samples"].items()
    return _items(name, task, samples)


def _items(name: str, task: Any, samples: Sequence[Mapping[str, Any]]) -> list[Items]:
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    found = []
    for of_filter in filters:
        rows = sorted((sample for sample in samples if sample["filter"] == of_filter), key=lambda row: row["doc_id"])
        for metric in rows[0]["metrics"]:
            shown = metric if of_filter == "none" else f"{metric},{of_filter}"
            if metric == _BITS:
                values = tuple(-float(row[metric][0]) / math.log(2) for row in rows)
                found.append(Items(name, shown, values, tuple(float(row[metric][1]) for row in rows)))
            elif _is_mean(task, metric):
                found.append(Items(name, shown, tuple(float(row[metric]) for row in rows), (1.0,) * len(rows)))
    return found


def _together(name: str, measured: Sequence[Sequence[Items]]) -> list[Items]:
    """The documents of all tasks of a group, by the metrics that all of them have."""
    by_metric = [{items.metric: items for items in rows} for rows in measured]
    return [
        Items(
            name,
            metric,
            tuple(value for rows in by_metric for value in rows[metric].values),
            tuple(count for rows in by_metric for count in rows[metric].counts),
        )
        for metric in by_metric[0]
        if all(metric in rows for rows in by_metric)
    ]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Tasks that shuffle their documents or choices do so in the same way each time, with lm-eval's own seeds; the
    caller's random numbers go on as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(1234)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextlib.contextmanager
def _quiet(level: int = logging.ERROR) -> Iterator[None]:
    """lm-eval's remarks on what is meant to be so, such as a model that is loaded already, are not for the user."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
