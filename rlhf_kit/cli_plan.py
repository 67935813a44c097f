"""`rlhf-kit plan`: what a recipe needs, before anything is loaded."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_kit.cli_shared import Command, count
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.process import memory_of_machine, prepare_torch

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from rlhf_kit.planning import Plan, StagePlan, Wishes
    from rlhf_kit.planning.results import Change

__all__ = ["add_plan"]

DOES_NOT_FIT = 3
_MODES = ("ddp", "zero2", "zero3", "zero3_offload", "fsdp2")
_MEASURED = "measured"
_CPU = "cpu"
_WIDTH = 100
_FIELDS = ("demonstrations", "rankings", "prompts")


def add_plan(command: Command) -> None:
    """Adds the command."""
    what = "what each stage of a recipe needs (memory, steps, time), without loading the weights"
    parser = command("plan", _plan, what)
    parser.epilog = f"Ends with 0, with {DOES_NOT_FIT} where --device is too small, with 2 for a mistake."
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a packaged recipe (quickstart)")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="put over what the recipe says")
    parser.add_argument(
        "--device", metavar="SIZE", help="memory of a GPU (24GB, 80GiB), or cpu for this machine: does it fit?"
    )
    parser.add_argument("--devices", metavar="N", type=count, default=1, help="how many there are (1)")
    parser.add_argument("--mode", choices=_MODES, default="ddp", help="how several share the work (ddp)")
    parser.add_argument(
        "--throughput", metavar="FLOPS", help="operations a second of a device (2e14), or measured: of this machine"
    )
    parser.add_argument("--bandwidth", metavar="BYTES", help="bytes a second of a device's memory (1e12), for sampling")
    parser.add_argument(
        "--rows",
        metavar="FIELD=N,…",
        type=_rows,
        default={},
        help=f"rows of data that are not here: of {', '.join(_FIELDS)}",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def _rows(text: str) -> dict[str, int]:
    found = {}
    for part in text.split(","):
        field, _, number = part.partition("=")
        if field not in _FIELDS or not number.isdecimal() or int(number) < 1:
            raise argparse.ArgumentTypeError(f"such as demonstrations=10000,rankings=5000, not {part!r}")
        found[field] = int(number)
    return found


def _plan(arguments: argparse.Namespace) -> int:
    from rlhf_kit.recipe import load_recipe
    from rlhf_kit.validation import check_recipe, find_recipe

    recipe = load_recipe(find_recipe(arguments.recipe), arguments.overrides, check=check_recipe)
    prepare_torch()
    from rlhf_kit.planning import plan

    found = plan(recipe, _wishes(arguments, recipe))
    if arguments.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)
    return DOES_NOT_FIT if found.fits is False else 0


def _wishes(arguments: argparse.Namespace, recipe: Any) -> Wishes:
    import torch

    from rlhf_kit.planning import Wishes
    from rlhf_kit.planning.speed import measured_bandwidth, measured_throughput
    from rlhf_kit.planning.stages import dtype_of
    from rlhf_kit.planning.wishes import bytes_of

    on_cpu = arguments.device == _CPU or (arguments.device is None and not torch.accelerator.is_available())
    if arguments.device == _CPU:
        size = memory_of_machine()
    else:
        size = None if arguments.device is None else bytes_of(arguments.device)
    gpu = not on_cpu or (arguments.device is None and arguments.devices > 1)
    wishes = Wishes(size, gpu, arguments.devices, arguments.mode, rows=arguments.rows)
    throughput, bandwidth = arguments.throughput, arguments.bandwidth
    if throughput == _MEASURED:
        dtype = dtype_of(recipe.model, wishes)
        print("measuring this machine for two seconds", file=sys.stderr)
        return replace(wishes, throughput=measured_throughput(dtype), bandwidth=measured_bandwidth())
    wanted = f"--throughput {throughput}: operations a second, such as 2e14, or {_MEASURED}"
    return replace(
        wishes,
        throughput=_positive(throughput, wanted),
        bandwidth=_positive(bandwidth, f"--bandwidth {bandwidth}: bytes a second, such as 1e12"),
    )


def _positive(text: str | None, mistake: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise RlhfKitError(mistake)
    return value


# -------------------------------------------------------------------- what is printed


def _print(found: Plan) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=min(_WIDTH, Console().width) if sys.stdout.isatty() else _WIDTH)
    base = f"{found.dtype}" if found.quantization is None else f"{found.quantization}, computed in {found.dtype}"
    devices = "on this machine's CPU" if found.machine == "cpu" else "on a GPU"
    if found.devices > 1:
        devices = f"on {found.devices} devices, {found.mode}"
    _say(console, f"{found.model} ({base}), {devices}; its architecture is from: {found.source}")
    console.print(_parameter_table(found))
    for stage in found.stages:
        console.print(_memory_table(stage))
    console.print(_work_table(found))
    for note in dict.fromkeys(f"{stage.stage}: {note}" for stage in found.stages for note in stage.notes):
        _say(console, note)
    _verdict(console, found)


def _say(console: Console, words: str) -> None:
    from rich.text import Text

    console.print(Text(words))


def _table(title: str, columns: list[str], rows: list[list[str]]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _parameter_table(found: Plan) -> RenderableType:
    rows = []
    for stage in found.stages:
        base = stage.parameters["base"]
        others = ", ".join(f"{name} {_number(size)}" for name, size in stage.parameters.items() if name != "base")
        rows.append([stage.stage, _number(base), others, _number(stage.trained)])
    return _table("parameters", ["stage", "base", "beside it", "trained"], rows)


def _memory_table(stage: StagePlan) -> RenderableType:
    from rlhf_kit.planning.results import PARTS

    unit, divisor, digits = ("MiB", 2**20, 0) if stage.peak.total < 8 * 2**30 else ("GiB", 2**30, 2)

    def shown(size: int) -> str:
        return f"{size / divisor:.{digits}f}"

    least = divisor / 10**digits / 2  # what would be shown as nothing everywhere is left out
    names = [part for part in PARTS if any(phase.parts.get(part, 0) >= least for phase in stage.phases)]
    rows = [[PARTS[name], *(shown(phase.parts.get(name, 0)) for phase in stage.phases)] for name in names]
    rows.append(["in all", *(shown(phase.total) for phase in stage.phases)])
    title = f"{stage.stage}: memory of a device; the most in {stage.peak.name}: {_size(stage.peak.total)} GiB"
    if stage.host:
        title += f" (and {_size(stage.host)} GiB of the machine's own)"
    return _table(title, [unit, *(phase.name for phase in stage.phases)], rows)


def _work_table(found: Plan) -> RenderableType:
    rows = []
    for stage in found.stages:
        work = stage.work
        cells = [_count(work.rows), _count(work.steps), _count(work.tokens), work.shape]
        rows.append([stage.stage, *cells, _flops(work.flops), _time(work.seconds), work.source])
    columns = ["", "rows", "steps", "tokens", "a forward pass", "FLOPs", "time", "lengths"]
    return _table("the work (steps of PPO are updates; answers taken at their longest)", columns, rows)


def _verdict(console: Console, found: Plan) -> None:
    if found.device is None:
        return
    most = max(found.stages, key=lambda stage: stage.peak.total)
    share = found.peak / found.device
    words = "fits" if found.fits else "does not fit"
    _say(
        console,
        f"{words} into {_size(found.device)} GiB: {most.stage} takes {_size(found.peak)} GiB ({share:.0%}) in "
        f"{most.peak.name}",
    )
    if found.changes:
        console.print(_change_table(found.changes))


def _change_table(changes: tuple[Change, ...]) -> RenderableType:
    rows = []
    for change in changes:
        peaks = ", ".join(f"{stage} {_size(size)}" for stage, size in change.peaks.items())
        rows.append(["\n".join(change.settings), peaks, "yes" if change.fits else "no", change.cost])
    return _table("what would help, the cheapest first", ["change", "GiB then", "fits", "its cost"], rows)


def _size(size: int) -> str:
    """In GiB."""
    gib = size / 2**30
    return f"{gib:.2f}" if gib < 100 else f"{gib:.0f}"


def _number(value: int) -> str:
    for unit, power in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= power:
            return f"{value / power:.2f}{unit}"
    return str(value)


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}" if value < 1e6 else _number(value)


def _flops(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
