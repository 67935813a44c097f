"""`rlhf-kit evaluate policy`: whether the training made the answers better, at what, and at what cost."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_kit.cli_shared import (
    add_vllm_options,
    count,
    estimate_cell,
    figures_table,
    share,
    temperature,
    times,
    vllm_url,
)
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.process import prepare_torch

if TYPE_CHECKING:
    from rich.table import Table

    from rlhf_kit.evaluation.choosing import Options
    from rlhf_kit.evaluation.evaluating import Wish

__all__ = ["add_policy"]

KEY = "OPENAI_API_KEY"
FOLDER, KEPT = "policies", "kept"
_COSTS = {"text": "loss", "choices": "accuracy", "tasks": "value"}
_MEASURES = {
    "tokens": "tokens",
    "eos_rate": "answers that end",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs of words",
    "self_bleu": "self-BLEU",
    "repetition": "repetition",
    "refusal_rate": "refusals",
}


def add_policy(kinds: Any) -> None:
    """Adds the parser of `evaluate policy` to those of `evaluate`."""
    what = (
        "answer held-out prompts with several policies, have them judged, and compare: win rates, strengths, KL, cost"
    )
    parser = kinds.add_parser("policy", help=what, description=what)
    parser.set_defaults(action=_policy)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser.add_argument(
        "places",
        metavar="[LABEL=]RUN",
        nargs="+",
        help="the output_dir of a run (its base, SFT and PPO answer), a stage, an adapter, a model or Hub id",
    )
    parser.add_argument(
        "--checkpoints",
        dest="steps",
        metavar="STEP,…",
        type=_steps,
        nargs="?",
        const=(),
        help="PPO's kept checkpoints too, all or these, for score against KL",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: the folder `policies` of the first run")
    parser.add_argument("--format", dest="style", choices=("text", "json"), default="text", help="of what is printed")
    _add_answers(parser.add_argument_group("the answers"))
    _add_judges(parser.add_argument_group("the judges"))
    _add_cost(parser.add_argument_group("what it cost elsewhere"))


def _add_answers(group: Any) -> None:
    group.add_argument("--prompts", metavar="FILE", help="that nothing was trained on (default: the recipe's)")
    group.add_argument("--limit", metavar="N", type=count, help="the first N prompts only")
    group.add_argument("--k", metavar="K", type=count, help="answers to each prompt (default: the recipe's)")
    group.add_argument("--temperature", metavar="T", type=temperature, help="0 is greedy (default: the recipe's)")
    group.add_argument("--top-p", metavar="P", type=share, help="sample from this share of the likelihood only")
    group.add_argument("--top-k", metavar="N", type=count, help="sample from the N likeliest tokens only")
    group.add_argument("--max-new-tokens", metavar="N", type=count, help="default: the recipe's response_length")
    group.add_argument("--seed", metavar="N", type=times, help="of sampling and intervals (default: the recipe's)")
    add_vllm_options(group)


def _add_judges(group: Any) -> None:
    group.add_argument(
        "--judge",
        dest="judges",
        metavar="[NAME=]JUDGE",
        action="append",
        help="reward and rubric are the run's own (the default); file.py:function, a reward model's run or Hub id, "
        "rankings of these answers by people (.jsonl), page (people, in the browser; page#anna,ben: these), or "
        "http://HOST/v1#MODEL; may come several times",
    )
    group.add_argument("--judge-key", metavar="NAME", default=KEY, help=f"variable with the endpoint's key ({KEY})")
    group.add_argument("--judge-prompt", metavar="FILE", type=Path, help="a template of your own for the endpoint")
    group.add_argument(
        "--comparisons",
        metavar="N",
        type=count,
        default=1,
        help="pairs of answers to a prompt shown to it, or on the page (1)",
    )
    group.add_argument("--concurrency", metavar="N", type=count, default=4, help="questions asked at once (4)")
    group.add_argument("--retries", metavar="N", type=times, default=5, help="of a question that failed (5)")
    group.add_argument(
        "--partial",
        action="store_true",
        help="go on with what an endpoint that failed, or a page that was ended, has judged",
    )
    group.add_argument(
        "--sheet", metavar="FILE", type=Path, help="write the answers for people to rank, in random order, and end"
    )
    group.add_argument("--resamples", metavar="N", type=count, help="behind an interval (default: the recipe's)")
    group.add_argument("--confidence", metavar="C", type=share, help="of the intervals (default: the recipe's)")


def _add_cost(group: Any) -> None:
    group.add_argument("--text", metavar="FILE", action="append", default=[], help="text rows: the loss on them")
    group.add_argument(
        "--choices", metavar="FILE", action="append", default=[], help="multiple-choice questions of your own"
    )
    group.add_argument("--tasks", metavar="NAME,…", help="tasks of lm-eval, or YAML files of some")
    group.add_argument("--task-limit", metavar="N", type=count, help="the first N documents of each task only")


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"steps such as 4,8, not {text!r}; put RUN in front of it") from None


def _policy(arguments: argparse.Namespace) -> int:
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        raise RlhfKitError(f"--out {arguments.out}: is a file; name a directory")
    if arguments.sheet is not None and arguments.sheet.suffix != ".jsonl":
        raise RlhfKitError(f"--sheet {arguments.sheet}: name a file that ends in .jsonl, so that it can be read back")
    vllm_url(arguments.vllm, arguments.vllm_adapters)
    prepare_torch()
    from rlhf_kit.checkpoint import write_json
    from rlhf_kit.evaluation.choosing import home, wish_for
    from rlhf_kit.evaluation.evaluating import evaluate
    from rlhf_kit.evaluation.stage import EVALUATION

    wish = wish_for(arguments.places, _options(arguments))
    out = arguments.out or (home(arguments.places) or Path()) / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    if arguments.sheet is not None:
        return _sheet(wish, out, arguments.sheet)
    found = evaluate(wish, out / KEPT)
    write_json(out / EVALUATION, found)
    if arguments.style == "json":
        print(json.dumps({name: value for name, value in found.items() if name != "prompts"}, ensure_ascii=False))
    else:
        _print(found)
    print(f"wrote {out / EVALUATION}", file=sys.stderr)
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    from rlhf_kit.evaluation.choosing import Options
    from rlhf_kit.evaluation.cost import Cost
    from rlhf_kit.evaluation.judges.asking import Patience
    from rlhf_kit.evaluation.judges.endpoint import EndpointSettings
    from rlhf_kit.evaluation.judges.template import TEMPLATE, read_template

    endpoint = EndpointSettings(
        comparisons=arguments.comparisons,
        partial=arguments.partial,
        template=TEMPLATE if arguments.judge_prompt is None else read_template(arguments.judge_prompt),
        key_variable=arguments.judge_key,
        patience=Patience(threads=arguments.concurrency, retries=arguments.retries),
    )
    same = (
        *("prompts", "limit", "k", "temperature", "top_k", "top_p", "max_new_tokens", "seed", "steps"),
        *("resamples", "confidence", "vllm", "vllm_adapters"),
    )
    given = {name: getattr(arguments, name) for name in same}
    tasks = tuple((arguments.tasks or "").split(",")) if arguments.tasks else ()
    cost = Cost(tuple(arguments.text), tuple(arguments.choices), tasks, arguments.task_limit)
    return Options(judges=tuple(arguments.judges or ()), endpoint=endpoint, cost=cost, **given)


def _sheet(wish: Wish, out: Path, file: Path) -> int:
    from rlhf_kit.evaluation.evaluating import answers_of, questions_of
    from rlhf_kit.evaluation.judges.sheet import write_sheet

    rows = write_sheet(file, wish.prompts, questions_of(wish, answers_of(wish, out / KEPT)), wish.settings.seed)
    print(f"{rows} prompts with the answers of {', '.join(policy.label for policy in wish.policies)}")
    print(f"wrote {file}; put a rank beside each answer and hand it over with --judge {file}", file=sys.stderr)
    return 0


# -------------------------------------------------------------------- what is printed


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    anchor = "sft" if "sft" in found["policies"] else found["policies"][0]
    for judge in found["judges"]:
        console.print(_judge_table(judge, found, anchor))
        if judge["position"]:
            first, same = judge["position"]["first_preferred"], judge["position"]["consistent"]
            words = f"shown first is preferred {_share_of(first)} of the time; both orders agree on {_share_of(same)}"
            console.print(Text(words), soft_wrap=True)
        if judge["missing"]:
            console.print(Text(f"{judge['missing']} comparisons without a verdict"), soft_wrap=True)
    console.print(_text_table(found))
    if found["tax"]:
        console.print(_cost_table(found["tax"], found["labels"]))
    for sentence in (*(found.get("gain") or {}).get("words", []), *(one["words"] for one in found["frontier"])):
        console.print(Text(sentence), soft_wrap=True)


def _judge_table(judge: dict[str, Any], found: dict[str, Any], anchor: str) -> Table:
    names, labels = found["policies"], found["labels"]
    rates = [judge["win_rates"].get(name, {}).get(anchor) for name in names]
    rows = {
        f"beats {labels[anchor]}": [estimate_cell(rate, "{:.1%}") for rate in rates],
        "at equal length": [estimate_cell(rate and rate["length_controlled"], "{:.1%}") for rate in rates],
        "Bradley–Terry": [estimate_cell(judge["bradley_terry"].get(name), "{:+.2f}") for name in names],
        "Elo": [estimate_cell(judge["elo"].get(name), "{:.0f}") for name in names],
    }
    if judge["scores"]:
        rows = {"score": [estimate_cell(judge["scores"].get(name), "{:.2f}") for name in names], **rows}
    for flag in dict.fromkeys(flag for flags in (judge["flags"] or {}).values() for flag in flags):
        cells = [judge["flags"].get(name, {}).get(flag) for name in names]
        rows[flag] = [estimate_cell(cell and cell["rate"], "{:.1%}") for cell in cells]
    return figures_table(f"{judge['name']}: {judge['what']}", "", [labels[name] for name in names], rows)


def _text_table(found: dict[str, Any]) -> Table:
    measured = found["measures"]
    rows = (
        {"KL, nats a response": [estimate_cell(found["kl"].get(name), "{:.2f}") for name in measured]}
        if found["kl"]
        else {}
    )
    for one in dict.fromkeys(key for measures in measured.values() for key in measures):
        shape = "{:.1%}" if one.endswith("_rate") else "{:.1f}" if one == "tokens" else "{:.2f}"
        rows[_MEASURES.get(one, one)] = [estimate_cell(measures.get(one), shape) for measures in measured.values()]
    return figures_table("the answers", "", [found["labels"][name] for name in measured], rows)


def _cost_table(tax: dict[str, Any], labels: dict[str, str]) -> Table:
    rows: dict[str, list[str]] = {}
    names = list(dict.fromkeys(name for kind in _COSTS for entry in tax.get(kind, ()) for name in entry[_COSTS[kind]]))
    for kind, figure in _COSTS.items():
        shape = "{:.3f}" if kind == "text" else "{:.1%}" if kind == "choices" else "{:.3g}"
        change = shape.replace("{:", "{:+")
        for entry in tax.get(kind, ()):
            what = f"{entry['name']}, {entry['metric']}"
            rows[what] = [estimate_cell(entry[figure].get(name), shape) for name in names]
            rows[f"{what}: change"] = [estimate_cell(entry["change"].get(name), change) for name in names]
    title = f"what it cost elsewhere: nats a token, shares, and changes from {labels[tax['against']]}"
    return figures_table(title, "", [labels[name] for name in names], rows)


def _share_of(estimate: dict[str, float]) -> str:
    return "{value:.0%} ({low:.0%} to {high:.0%})".format(**estimate)
