"""`rlhf-kit export`: carry an adapter of a run away, push it, or look at any adapter directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_kit.cli_shared import Command, printable
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rlhf_kit.export.check import Check
    from rlhf_kit.export.exporting import Wish

_KINDS = ("adapter", "merged", "gguf", "gguf-adapter", "reward")
_ROLES = ("sft", "reward", "policy", "value", "ema")
_DTYPES = ("float32", "bfloat16", "float16", "f16", "bf16", "q8_0")
_METHODS = (
    *("cat", "linear", "svd", "ties", "ties_svd", "dare_ties", "dare_linear", "dare_ties_svd", "dare_linear_svd"),
    *("magnitude_prune", "magnitude_prune_svd"),
)
# Options that say nothing without another one, and their names in the parsed arguments.
_ONLY_WITH = {
    "--to hub": {"--repo": "repo", "--as": "kind", "--public": "public", "--revision": "revision"},
    "--merge-with": {"--weights": "weights", "--method": "method", "--density": "density"},
    "--check": {"--base": "base", "--sha256": "sha256"},
}


def add_export(command: Command) -> None:
    """Adds the command."""
    export = command("export", _export, "write an adapter of a run for others to load, and verify it; or check one")
    export.add_argument("run", metavar="RUN", type=Path, nargs="?", help="the output_dir of a run, or of one stage")
    export.add_argument(
        "--to",
        choices=(*_KINDS, "hub"),
        default="adapter",
        help="a PEFT adapter (default), the merged model, one GGUF file of it, the adapter as GGUF, a classification "
        "model with one label, or the Hugging Face Hub",
    )
    export.add_argument(
        "--adapter", choices=_ROLES, help="which of the run's adapters (default: the last policy, or the stage's own)"
    )
    export.add_argument("--out", metavar="DIR", type=Path, help="a new directory (default: in RUN)")
    export.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of a whole model: float32, bfloat16 or float16 (default: of the training); of GGUF: f16 (default), "
        "bf16 or q8_0",
    )
    export.add_argument("--merged", action="store_true", help="with --to reward: a whole model instead of an adapter")
    _add_mixture(export)
    _add_hub(export)
    checks = export.add_argument_group("looking at an adapter directory, whoever wrote it")
    checks.add_argument("--check", metavar="DIR", type=Path, help="name what is wrong with it; nothing is written")
    checks.add_argument("--base", metavar="MODEL", help="its base, where it is not what the adapter names")
    checks.add_argument("--sha256", help="of a base in a GGUF file; pypi: needs it")


def _add_mixture(export: argparse.ArgumentParser) -> None:
    mixture = export.add_argument_group("several adapters weighted into one, by PEFT")
    mixture.add_argument(
        "--merge-with", metavar="DIR", nargs="+", default=[], help="directories of other adapters on the same base"
    )
    mixture.add_argument(
        "--weights", metavar="W", nargs="+", type=float, default=[], help="of the run's own, then of each other"
    )
    mixture.add_argument("--method", choices=_METHODS, help="PEFT's combination_type (default: cat, the exact sum)")
    mixture.add_argument(
        "--density", metavar="D", type=float, help="the share of values that ties, dare and magnitude_prune keep"
    )


def _add_hub(export: argparse.ArgumentParser) -> None:
    hub = export.add_argument_group("to the Hub; the token comes from HF_TOKEN or the login, and is written nowhere")
    hub.add_argument("--repo", metavar="OWNER/NAME", help="with --to hub: made where it does not exist")
    hub.add_argument("--as", dest="kind", choices=_KINDS, help="with --to hub: what is pushed (default: adapter)")
    hub.add_argument("--public", action="store_true", help="a repository that is made is private without this")
    hub.add_argument("--revision", metavar="BRANCH", help="made from main where it does not exist")


def _export(arguments: argparse.Namespace) -> int:
    _refuse_stray(arguments)
    if arguments.check is not None:
        return _check(arguments)
    run: Path | None = arguments.run
    if run is None or not run.is_dir():
        raise CheckpointError(f"{run or 'RUN'}: no such directory; name the output_dir of a run")
    prepare_torch(trains=False)
    from rlhf_kit.export.exporting import export

    if arguments.to != "hub":
        wish = _wish(arguments, arguments.to)
        print(_plain(arguments) or export(run, wish, role=arguments.adapter, out=arguments.out))
        return 0
    from rlhf_kit.export.hub import is_export, push

    finished = run
    if is_export(run):
        made = ("kind", "adapter", "out", "dtype", "merged", "merge_with")
        if any(vars(arguments)[name] for name in made):
            raise ExportError(f"{run}: is a finished export, and pushed as it is; leave out what asks for another")
    else:
        finished = export(run, _wish(arguments, arguments.kind or "adapter"), role=arguments.adapter, out=arguments.out)
    print(push(finished, arguments.repo, private=not arguments.public, revision=arguments.revision))
    return 0


def _refuse_stray(arguments: argparse.Namespace) -> None:
    """Refuses options that would do nothing in this company."""
    hub, checks = arguments.to == "hub", arguments.check is not None
    if checks and arguments.run is not None:
        raise ExportError("--check DIR looks at DIR alone; leave RUN out")
    if hub and arguments.repo is None:
        raise ExportError("--to hub needs --repo OWNER/NAME")
    if arguments.merged and "reward" not in (arguments.to, arguments.kind):
        raise ExportError("--merged is for --to reward; --to merged writes a whole policy")
    there = {"--to hub": hub, "--merge-with": arguments.merge_with, "--check": checks}
    for needed, options in _ONLY_WITH.items():
        given = [option for option, name in options.items() if vars(arguments)[name]]
        if given and not there[needed]:
            raise ExportError(f"{' and '.join(given)}: only with {needed}")


def _wish(arguments: argparse.Namespace, kind: str) -> Wish:
    from rlhf_kit.export.exporting import Wish
    from rlhf_kit.export.trained import of_mixture

    mixture = of_mixture(arguments.merge_with, arguments.weights, arguments.method or "cat", arguments.density)
    return Wish(kind, arguments.dtype, arguments.merged, mixture)


def _plain(arguments: argparse.Namespace) -> Path | None:
    """The run's own export step, where nothing else than that is asked for."""
    asked = (arguments.adapter, arguments.out, arguments.dtype, *arguments.merge_with)
    if arguments.to != "adapter" or any(asked) or not (arguments.run / "ppo").is_dir():
        return None
    from rlhf_kit.pipeline import export_run

    return export_run(arguments.run)


def _check(arguments: argparse.Namespace) -> int:
    prepare_torch(trains=False)
    from rlhf_kit.export.check import check

    found = check(arguments.check, base=arguments.base, sha256=arguments.sha256)
    for finding in found.findings:
        print(finding)
    print(_summary(found), file=sys.stderr)
    return 0 if found.is_sound else 2


def _summary(found: Check) -> str:
    """What was looked at, and the verdict, on one line."""
    count = len(found.errors)
    parts = [
        f"{found.pairs} modules of rank {', '.join(map(str, found.ranks)) or '?'}, alpha {found.alpha:g}"
        if found.pairs and found.alpha is not None
        else f"{found.tensors} tensors",
        f"base {found.base or 'not named'}",
        f"loaded onto it, moves its outputs by {found.effect:.3g} on average"
        if found.effect is not None
        else "not loaded onto its base",
    ]
    verdict = "sound" if found.is_sound else f"not sound: {count} error{'s' if count > 1 else ''}"
    return printable(f"{found.directory}: {verdict} ({'; '.join(parts)})")
