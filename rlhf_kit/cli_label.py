"""`rlhf-kit label`: a page on which people rank, compare, rate and write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.cli_shared import Command, count, times
from rlhf_kit.errors import RlhfKitError

if TYPE_CHECKING:
    from rlhf_kit.labeling.assignment import Settings
    from rlhf_kit.labeling.store import Store
    from rlhf_kit.labeling.tasks import Kind, Task

__all__ = ["add_label"]

_TASKS = ("rank", "compare", "rate", "demonstrate", "write")


def add_label(command: Command) -> None:
    """Adds the parser of the command."""
    parser = command("label", _label, "open a page on which people rank answers, or compare, rate or write them")
    parser.add_argument(
        "tasks",
        metavar="TASKS",
        nargs="?",
        help="what rlhf-kit sample has written, rankings, ratings or prompts; none where the store has them already",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the records, written at the end")
    parser.add_argument("--task", choices=_TASKS, help="what is asked (default: rank, or what the store has)")
    parser.add_argument(
        "--store", metavar="FILE", type=Path, help="where answers are at once (default: OUT with .sqlite)"
    )
    parser.add_argument(
        "--labelers", metavar="NAMES", type=_names, help="who labels, with commas; each has a link (default: labeler)"
    )
    parser.add_argument(
        "--overlap", metavar="N", type=count, help="labelers for each task (default: as before in this store, first 1)"
    )
    parser.add_argument("--limit", metavar="N", type=count, help="so many tasks, the first ones; to write: prompts")
    parser.add_argument(
        "--seed", metavar="N", type=times, help="of the order of answers (default: as before in this store, first 0)"
    )
    gold = parser.add_argument_group("tasks whose answer is known")
    gold.add_argument("--gold", metavar="FILE", help="rankings (or ratings) that tell how labelers do; not exported")
    gold.add_argument(
        "--gold-every", metavar="N", type=count, help="one in so many tasks is such (default: as before, first 10)"
    )
    page = parser.add_argument_group("the page")
    page.add_argument("--title", metavar="TEXT", help="above the page (default: the name of TASKS)")
    page.add_argument("--guidelines", metavar="FILE", type=Path, help="Markdown that labelers can open beside a task")
    page.add_argument("--language", choices=("auto", "en", "zh"), default="auto", help="(default: the browser's)")
    page.add_argument("--host", default="127.0.0.1", help="other machines reach it by another one than 127.0.0.1")
    page.add_argument("--port", metavar="N", type=times, default=0, help="(default: the store's own, else a free one)")
    page.add_argument(
        "--origin", metavar="URL", default="", help="how people reach it through a proxy: https://label.example.org"
    )
    page.add_argument("--no-browser", action="store_true", help="do not open a browser")
    page.add_argument("--stay", action="store_true", help="go on when all is done, for tasks that come later")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--export", action="store_true", help="write OUT from the store, and serve nothing")
    what.add_argument(
        "--to",
        choices=("label-studio", "argilla"),
        help="write TASKS to OUT as that tool reads them, and serve nothing",
    )
    what.add_argument(
        "--take", metavar="FILE", help="put what that tool has exported, or any rankings of TASKS, into the store"
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names nobody; write names with commas, such as anna,ben")
    return names


def _label(arguments: argparse.Namespace) -> int:
    from rlhf_kit.labeling.store import Store

    if arguments.to:
        return _hand_over(arguments)
    place = _place(arguments)
    tasks = _read(arguments)
    store = Store(place)
    try:
        _check_kind(store, tasks[0].kind if tasks else arguments.task)
        store.configure(_settings(arguments, store.settings))
        if arguments.tasks is not None:
            _tell_others(store, tasks, arguments.tasks)
        store.add(tasks)
        _work(arguments, store)
        _export(store, arguments)
    finally:
        store.close()
    return 0


def _place(arguments: argparse.Namespace) -> Path:
    """The store's file, after all is checked that can be told before anything is read."""
    from rlhf_kit.labeling.serving import check_installed
    from rlhf_kit.outputs import check_outputs

    place: Path = arguments.store or arguments.out.with_suffix(".sqlite")
    if arguments.gold_every and not arguments.gold:
        raise RlhfKitError("label: --gold-every goes with --gold FILE")
    if arguments.tasks is None and not place.exists() and not _is_blank(arguments):
        also = " or --limit N, so many prompts" if arguments.task == "write" else ""
        raise RlhfKitError(f"label: there is no store {place} yet; name TASKS, what is to be labelled{also}")
    check_outputs(filter(None, (arguments.tasks, arguments.gold, arguments.take)), [arguments.out, place])
    if arguments.out.exists() and not place.exists():
        raise RlhfKitError(f"label: {arguments.out} exists, but its store {place} does not; name another file")
    if not (arguments.export or arguments.take):
        check_installed()
    return place


def _read(arguments: argparse.Namespace) -> list[Task]:
    from rlhf_kit.labeling.tasks import blank_tasks, read_tasks

    kind: Kind = arguments.task or "rank"
    tasks = []
    if arguments.tasks is not None:
        tasks = read_tasks(arguments.tasks, kind)[: arguments.limit]
    elif _is_blank(arguments):
        tasks = blank_tasks(arguments.limit)
    return tasks + (read_tasks(arguments.gold, kind, gold=True) if arguments.gold else [])


def _check_kind(store: Store, asked: str | None) -> None:
    """A file of records holds one kind: labelers' work would stand in the store, and could not be written."""
    held = store.kind()
    if asked is not None and held not in (None, asked):
        raise RlhfKitError(
            f"label: {store.path} holds tasks to {held}, and none to {asked}; name another --out or --store for those"
        )


def _tell_others(store: Store, tasks: Sequence[Task], file: str) -> None:
    """Says how many tasks are asked that are not in the file: a row that was taken out of it is in the store still."""
    own = {task.id for task in tasks} | {opinion.task for opinion in store.opinions()}
    if others := sum(not task.gold and task.id not in own for task in store.tasks()):
        _told(f"tasks that are asked besides those of {file}: {others:,} (of another file, or no longer in this one)")


def _settings(arguments: argparse.Namespace, before: Settings) -> Settings:
    """How tasks are given out: what is not typed stays as it was in the store. Another process may be serving it, which
    an export must not tell that one opinion on each task is enough."""
    typed = {name: value for name in ("overlap", "seed") if (value := getattr(arguments, name)) is not None}
    if arguments.gold:
        typed["gold_every"] = arguments.gold_every or before.gold_every or 10
    return replace(before, **typed)


def _is_blank(arguments: argparse.Namespace) -> bool:
    """Whether so many prompts are to be written, of which nothing is said."""
    return arguments.tasks is None and arguments.task == "write" and arguments.limit is not None


def _work(arguments: argparse.Namespace, store: Store) -> None:
    if arguments.take:
        from rlhf_kit.labeling.exchange import take

        print(f"took {take(store, arguments.take):,} answers")
    elif not arguments.export:
        _serve(arguments, store)


def _serve(arguments: argparse.Namespace, store: Store) -> None:
    from rlhf_kit.labeling.serving import Serving, serve

    if arguments.labelers or not store.labelers():
        store.set_labelers(arguments.labelers or ["labeler"])
    serving = Serving(
        host=arguments.host,
        port=arguments.port,
        title=arguments.title or Path(arguments.tasks or arguments.out).stem,
        guidelines=arguments.guidelines,
        language=arguments.language,
        stay=arguments.stay,
        open_browser=not arguments.no_browser,
        origin=arguments.origin,
        out=arguments.out,
    )
    serve(store, serving, told=_told)


def _told(line: str) -> None:
    print(line, flush=True)  # who started this in the background reads the links at once


def _export(store: Store, arguments: argparse.Namespace) -> None:
    from rlhf_kit.labeling.exporting import write_records

    written, left = write_records(store, arguments.out), store.progress().left
    what = f"wrote {written:,} records to {arguments.out}" if written else f"no answers yet for {arguments.out}"
    rest = f"; {left:,} answers are still wanted" if left else ""
    more = ", and the same command goes on" if left and not (arguments.export or arguments.take) else ""
    print(f"{what}{rest}{more}")


def _hand_over(arguments: argparse.Namespace) -> int:
    from rlhf_kit.labeling.exchange import hand_over
    from rlhf_kit.outputs import check_outputs

    if arguments.tasks is None:
        raise RlhfKitError("label: --to needs TASKS, which are handed over")
    if arguments.to == "label-studio":  # for Argilla it is a directory
        check_outputs(filter(None, (arguments.tasks, arguments.gold)), [arguments.out])
    written = hand_over(_read(arguments), arguments.to, arguments.out)
    print(f"wrote {written:,} tasks for {arguments.to} to {arguments.out}")
    return 0
