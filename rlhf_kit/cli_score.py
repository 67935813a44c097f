"""`rlhf-kit score`: what a reward model says of every response in a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_kit.cli_shared import Command, add_source_options, data_names, format_of, printable, vllm_url
from rlhf_kit.errors import DataError, Problem
from rlhf_kit.process import prepare_torch

__all__ = ["add_score"]

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_KINDS = ("ranking", "demonstration", "rating")


def add_score(command: Command) -> None:
    """Adds the parser of the command."""
    parser = command(
        "score", _score, "add a reward model's scores to the rankings, demonstrations or ratings in a file"
    )
    parser.add_argument("file", metavar="FILE", help="a file, a folder, a Hub id")
    parser.add_argument(
        "--reward",
        metavar="RUN",
        required=True,
        help="the output_dir of a run, or the directory or Hub id of a sequence classification model with one label",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="JSON Lines (default: rows.scored.jsonl)")
    parser.add_argument(
        "--vllm",
        metavar="URL",
        help="a vLLM server of the model scores: --reward is then the directory of what `rlhf-kit export --to reward "
        "--merged --dtype float32` has written, served with --runner pooling --dtype float32",
    )
    add_source_options(parser)
    parser.add_argument("--format", dest="style", choices=("text", "json"), default="text", help="of the account")


def _score(arguments: argparse.Namespace) -> int:
    from rlhf_kit.outputs import check_outputs

    names = data_names([arguments.file])
    out = arguments.out or _beside(arguments.file)
    url = vllm_url(arguments.vllm)
    check_outputs(names, [out])
    kind, records = _records(names, arguments.schema, format_of(arguments.format))
    pairs = [(record.prompt, *answer) for record in records for answer in _answers(record)]
    prepare_torch()
    judge = _judge(arguments.reward, url)
    prompts, responses, ended = (list(column) for column in zip(*pairs, strict=True))
    with _bar(len(pairs)) as told:
        scores = judge.score(prompts, responses, ended=ended, progress=told).numpy()
    replaced = _write(out, records, [float(str(score)) for score in scores], judge.name)
    account = _account(scores) | {
        "shortened_prompts": judge.shortened_prompts,
        "cut_responses": judge.cut_responses,
        "replaced": replaced,
        "scored_by": judge.name,
        "out": str(out),
    }
    account = {"kind": kind, "rows": len(records), **account}
    if arguments.style == "json":
        print(json.dumps(account, ensure_ascii=False))
    else:
        _print_account(account)
    return 0


def _judge(name: str, url: str | None) -> Any:
    """The reward model, here or on a server."""
    if url is None:
        from rlhf_kit.reward_model import RewardModel

        return RewardModel.open(name)
    from rlhf_kit.sampling import server_at
    from rlhf_kit.sampling.served_reward import ServedReward

    return ServedReward(name, server_at(url, None))


def _beside(file: str) -> Path:
    """`rows.jsonl` to `rows.scored.jsonl`; what is written is JSON Lines whatever was read.

    Raises:
        DataError: the source is no file, so there is no place beside it.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError([Problem(file, "", "is no file, so name the file to write in --out")])
    zipped = ".gz" if path.suffix == ".gz" else ""
    stem = Path(path.name.removesuffix(zipped)).stem
    return path.with_name(f"{stem}.scored.jsonl{zipped}")


def _records(names: Sequence[str], kind: str | None, format: Any) -> tuple[str, list[Any]]:
    """The records of all sources, which must be of one kind.

    Raises:
        DataError: with all that is wrong with any row, or where there is nothing to score.
    """
    from rlhf_kit.checks.ledger import Ledger
    from rlhf_kit.codes import severity_of
    from rlhf_kit.guessing import guess
    from rlhf_kit.rows import open_source
    from rlhf_kit.scanning import scan_sources

    found = guess(names[0], kind, format)
    if found.kind not in _KINDS:
        reason = f"holds {found.kind} rows, which have no response to score; rows of {', '.join(_KINDS)} have"
        raise DataError([Problem(names[0], "", reason)])
    records: list[Any] = []
    problems: list[Problem] = []
    ledger = Ledger()
    for entry in scan_sources(map(open_source, names), found.kind, found.format):
        problems += entry.problems
        records += entry.records
        if not entry.usable:
            ledger.add_unusable(entry.row)
        for record in entry.records:
            ledger.add(record, entry.row.place, entry.row.number, entry.sided)
    problems += ledger.problems()
    if errors := [problem for problem in problems if severity_of(problem.code) == "error"]:
        raise DataError(errors)
    if not records:
        raise DataError([Problem(names[0], "", f"none of its rows gave a {found.kind}", "empty-file")])
    if warnings := sum(severity_of(problem.code) == "warning" for problem in problems):
        print(f"{warnings:,} warnings; rlhf-kit validate shows them", file=sys.stderr)
    return found.kind, records


def _answers(record: Any) -> list[tuple[str, bool]]:
    """The texts of a record's responses, and whether each has ended."""
    from rlhf_kit.records import Demonstration, Ranking

    if isinstance(record, Ranking):
        return [(response.text, response.ended) for response in record.responses]
    return [(record.completion if isinstance(record, Demonstration) else record.response, True)]


def _write(out: Path, records: Sequence[Any], scores: Sequence[float], name: str) -> int:
    """Writes the records with their scores in `meta`; returns how many had others there before."""
    from rlhf_kit.outputs import Files, json_line, row_of
    from rlhf_kit.records import Ranking

    rest = iter(scores)
    replaced = 0
    with Files([out]) as files:
        for record in records:
            own = [next(rest) for _ in _answers(record)]
            found = {"scores": own} if isinstance(record, Ranking) else {"score": own[0]}
            replaced += bool(found.keys() & record.meta.keys())
            row = row_of(record)
            row["meta"] = {**record.meta, **found, "scored_by": name}
            files.write(out, json_line(row))
    return replaced


def _account(scores: Any) -> dict[str, Any]:
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)
    quantiles = np.quantile(values, _QUANTILES)
    return {
        "responses": len(values),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "quantiles": {f"{share:g}": float(value) for share, value in zip(_QUANTILES, quantiles, strict=True)},
    }


def _print_account(account: dict[str, Any]) -> None:
    print(f"{account['rows']:,} {account['kind']} rows with {account['responses']:,} responses")
    print(f"scores: mean {account['mean']:.4g}, standard deviation {account['std']:.4g}")
    spread = [f"{float(share):.0%} {value:.4g}" for share, value in account["quantiles"].items()]
    print(f"quantiles: {', '.join(spread)}")
    if account["shortened_prompts"]:
        print(f"{account['shortened_prompts']:,} prompts were longer than the model takes and lost their oldest turns")
    if account["cut_responses"]:
        print(f"{account['cut_responses']:,} responses were longer than the model takes and were cut")
    if account["replaced"]:
        print(f"{account['replaced']:,} rows had scores before, which these replace")
    print(f"wrote {printable(account['out'])}")


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of responses on the terminal, where there is one."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=total, unit=" responses", file=sys.stderr, leave=False, disable=None) as bar:

        def told(done: int) -> None:
            bar.update(done)

        yield told
