"""What the page of one run shows, by name, for its template."""

from __future__ import annotations

from typing import Any

from rlhf_kit.report.answers import answers_of, columns_of, training_samples
from rlhf_kit.report.curves import plots
from rlhf_kit.report.evaluation import (
    Span,
    compared,
    ends,
    judge_name,
    judge_what,
    judges,
    label,
    policies,
    reference,
    span,
    win,
)
from rlhf_kit.report.figures import Points, interval_rows, win_rate_figure
from rlhf_kit.report.frontier import frontier_plots, frontiers
from rlhf_kit.report.lead import questions
from rlhf_kit.report.reliability import reliability_facts, reliability_plots
from rlhf_kit.report.run import Run
from rlhf_kit.report.stages import NAMES, stage_row
from rlhf_kit.report.tables import judge_tables, measures_table, summary_table
from rlhf_kit.report.tax import tax_entries, tax_table
from rlhf_kit.report.warnings import evaluation_warnings
from rlhf_kit.report.words import fixed, headlines, number, percent, plain, warnings
from rlhf_kit.stats.words import shown
from rlhf_kit.svg import Plot

__all__ = ["LONG_NAMES", "facts", "frontier_words", "judge_views", "run_warnings", "tax_plots", "view", "wins_figure"]

LONG_NAMES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "Proximal policy optimisation"}
_MOST_ROWS = 15
_KINDS = {
    "reward": "a reward model",
    "function": "a function",
    "verdicts": "a file of verdicts",
    "endpoint": "a language model behind an address",
}


def view(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    evaluation, found = run.evaluation, frontiers(run)
    columns = columns_of(evaluation)
    measured, summary, tax = measures_table(evaluation), summary_table(evaluation), tax_table(evaluation)
    return {
        "run": run,
        "lora": run.latest.recipe.get("lora") or {},
        "seed": run.latest.recipe.get("seed"),
        "learned_from_ranks": "reward" in run.manifests or "ppo" in run.manifests,
        "chain": [NAMES[stage] for stage in run.manifests],
        "questions": questions(evaluation, found),
        "headlines": headlines(run.metrics, run.confidence),
        "warnings": run_warnings(run),
        "stages": [stage_row(stage, run.manifests[stage], run.metrics) for stage in run.manifests],
        "curves": [
            (LONG_NAMES[stage], stage, drawn) for stage in run.manifests if (drawn := plots(stage, run.logs[stage]))
        ],
        "training": training_samples(run.samples),
        "gain": (evaluation.get("gain") or {}).get("words") or [],
        "facts": facts(run.metrics),
        "wins": wins_figure(evaluation),
        "judges": judge_views(evaluation),
        "measured": [table for table in (summary, measured) if table.rows],
        "frontier": frontier_plots(found),
        "frontier_words": frontier_words(found),
        "tax": tax if tax.rows else None,
        "tax_plots": tax_plots(evaluation),
        "reliability": reliability_plots(run.metrics.get("reward") or {}, run.quality),
        "reliability_facts": reliability_facts(run.quality),
        "evaluation": evaluation,
        "columns": columns,
        "prompts": answers_of([evaluation], columns),
    }


def run_warnings(run: Run) -> list[str]:
    """What must be known before the figures are believed: of the stages, then of the evaluation."""
    stages = warnings(run.metrics, run.evaluation.get("summary") or {}, run.logs.get("ppo", []))
    return [*stages, *evaluation_warnings(run.evaluation, frontiers(run))]


def frontier_words(found: list[Any]) -> list[str]:
    """What there is to say of where the figures come from and where over-optimisation begins."""
    return list(dict.fromkeys(words for one in found for words in one.words))


def facts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Further figures of the stages, each with its meaning."""
    reward, ppo = metrics.get("reward") or {}, metrics.get("ppo") or {}
    known = (
        ("KL of PPO from SFT, nats a response", ppo.get("kl"), plain),
        ("Explained variance of the returns at the end", ppo.get("explained_variance"), fixed),
        ("PPO's answers that end by themselves", ppo.get("eos_rate"), percent),
        ("Updates of PPO", ppo.get("updates"), plain),
        ("Episodes of PPO", ppo.get("episodes"), plain),
        ("Held-out pairs of the reward model", reward.get("heldout_pairs"), plain),
        ("Loss of the reward model on held-out prompts", reward.get("heldout_loss"), fixed),
        ("Agreement of the rubric with the labelers' ranks", reward.get("rubric_agreement"), percent),
    )
    return [(name, write(value)) for name, value, write in known if number(value) is not None]


# -------------------------------------------------------------------- who wins


def wins_figure(evaluation: dict[str, Any]) -> Plot | None:
    """Win rates against SFT by policy, one series a judge; None without any."""
    against = reference(evaluation)
    if against is None:
        return None
    names = policies(evaluation)
    series = [
        Points(judge_name(judge), [win(judge, name, against) for name in names], place)
        for place, judge in enumerate(judges(evaluation))
    ]
    series = [one for one in series if any(one.spans)]
    if not series or not compared(evaluation):
        return None
    shown_names = [label(evaluation, name) for name in names]
    by = f" By “{series[0].name}”." if len(series) == 1 else " One kind of mark a judge."
    hint = f"Bars: {percent(evaluation.get('confidence') or 0.95)} intervals. Dashes: as good as.{by}"
    title = f"How often each beats {label(evaluation, against)}"
    return Plot(title, hint, win_rate_figure("wins", shown_names, series, label(evaluation, against)))


def judge_views(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Each judge's name, what it is, its tables, and how far it goes by the place of an answer."""
    found = []
    for judge in judges(evaluation):
        what = judge_what(judge) or _KINDS.get(str(judge.get("kind")), "")
        found.append(
            {
                "name": judge_name(judge),
                "what": what,
                "tables": judge_tables(evaluation, judge),
                "position": _position(judge),
                "missing": judge.get("missing") or 0,
            }
        )
    return found


def _position(judge: dict[str, Any]) -> str:
    """In words, empty for a judge that scores answers one by one."""
    told = judge.get("position") or {}
    first, consistent = span(told.get("first_preferred")), span(told.get("consistent"))
    parts = []
    if first is not None:
        parts.append(f"the answer shown first wins {_told(first)} (50 % would be no bias)")
    if consistent is not None:
        parts.append(f"both orders give the same verdict in {_told(consistent)}")
    asked = f" of {plain(told['asked_both'])} pairs" if parts and told.get("asked_both") is not None else ""
    return f"Position: {'; '.join(parts)}{asked}." if parts else ""


def _told(found: Span) -> str:
    return f"{percent(found.value)} ({ends(found, percent)})" if found.low is not None else percent(found.value)


# -------------------------------------------------------------------- what it cost


def tax_plots(evaluation: dict[str, Any], prefix: str = "tax") -> list[Plot]:
    """The changes with their intervals: losses in nats, then shares, then whatever else a task measures."""
    against = str((evaluation.get("tax") or {}).get("against") or "base")
    kinds: dict[str, tuple[str, list[tuple[str, Span]], Any]] = {}
    for entry in tax_entries(evaluation):
        kind, hint = ("text", "Nats a token; to the right is worse.") if entry.kind == "text" else ("other", "")
        if entry.is_share:
            kind, hint = "share", "Points; to the left is worse."
        rows = kinds.setdefault(kind, (hint, [], entry.bare))[1]
        names = [name for name in policies(evaluation) if name in entry.changes and name != against]
        rows += [
            (f"{shown(entry.name, 24)}: {shown(label(evaluation, name), 12)}", entry.changes[name]) for name in names
        ]
    titles = {"text": "Loss on other text", "share": "Right answers elsewhere", "other": "Other tasks"}
    drawn = []
    for kind, (hint, rows, write) in kinds.items():
        if rows:
            words = f"{hint} Change from {label(evaluation, against)}; grey: the interval includes 0."
            words += f" The first {_MOST_ROWS} of {len(rows)}; all are in the table." if len(rows) > _MOST_ROWS else ""
            svg = interval_rows(f"{prefix}-{kind}", rows[:_MOST_ROWS], titles[kind], at=0.0, write=write)
            drawn.append(Plot(titles[kind], words.strip(), svg))
    return drawn
