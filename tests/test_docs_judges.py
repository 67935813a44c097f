"""docs/judges.md: its commands, examples and limits are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from docs_page import blocks, commands, parsed, text_of
from judged import PATIENCE, ask, question

from rlhf_kit.cli import _parser
from rlhf_kit.cli_policies import FOLDER, KEPT
from rlhf_kit.evaluation.evaluating import VERDICTS
from rlhf_kit.evaluation.judges import asking
from rlhf_kit.evaluation.judges.asking import Patience
from rlhf_kit.evaluation.judges.base import Judge
from rlhf_kit.evaluation.judges.choose import judge_named
from rlhf_kit.evaluation.judges.endpoint import LEDGER, EndpointSettings
from rlhf_kit.evaluation.judges.function import FunctionJudge
from rlhf_kit.evaluation.judges.template import FLAGS, read_verdict
from rlhf_kit.evaluation.judges.verdicts import RankingsJudge

TEXT = text_of("judges.md")


COMMANDS = commands(TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    assert parsed(command).command == "evaluate"


def test_every_judge_that_it_shows_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    functions, _ = blocks(TEXT, "python")[0], (tmp_path / "runs" / "other").mkdir(parents=True)
    for file in ("grades.py", "module.py"):
        (tmp_path / file).write_text(functions + "function = brief\n")
    (sheet,) = [block for block in blocks(TEXT, "json") if "meta" in block]
    (tmp_path / "people.jsonl").write_text(json.dumps(json.loads(sheet)) + "\n")
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| [^|]+ \|$", TEXT, re.MULTILINE)
    shown = [text for row in rows for text in re.findall(r"`([^`]+)`", row) if text not in ("--judge", "--retries")]
    own: dict[str, Judge] = {name: FunctionJudge(name, name, len) for name in ("reward", "rubric")}
    kinds = [judge_named(text, own).kind for text in shown]
    assert kinds == [
        "function",
        "function",
        "reward",
        "reward",
        "function",
        "function",
        "verdicts",
        "verdicts",
        "verdicts",
        "verdicts",
        "endpoint",
    ]


def test_its_functions_judge_as_it_says(tmp_path: Path) -> None:
    place = tmp_path / "grades.py"
    place.write_text(blocks(TEXT, "python")[0])
    questions = [question("p", ["one two"], ["one"])]
    brief = ask(FunctionJudge.named(f"{place}:brief"), questions, tmp_path)
    assert brief.scores is not None and brief.scores.ravel().tolist() == [-2, -1]
    compared = ask(FunctionJudge.named(f"{place}:fewer_words"), questions, tmp_path)
    assert compared.verdicts.outcome.tolist() == [0] and compared.verdicts.orders is not None


def test_its_rows_are_read(tmp_path: Path) -> None:
    sheet, verdict = blocks(TEXT, "json")
    file = tmp_path / "people.jsonl"
    file.write_text(json.dumps(json.loads(sheet)) + "\n")
    (ranking,) = RankingsJudge.read(str(file)).rankings
    assert ranking.labeler == "anna" and ranking.pairs == ((0, 1),)
    assert read_verdict(verdict, FLAGS)["better"] == "A"


def test_its_limits_are_the_limits() -> None:
    patience, settings = Patience(), EndpointSettings()
    assert f"`--retries` times ({patience.retries})" in TEXT and patience.retries != PATIENCE.retries
    assert f"{patience.longest:g} seconds at most" in TEXT and patience.backoff == 1 and "after 1, 2, 4 …" in TEXT
    assert f"{patience.in_a_row} comparisons in a row" in TEXT and f"gets {asking._GRACE:g} seconds" in TEXT
    assert f"limit of {settings.max_tokens} tokens" in TEXT and f"`{settings.key_variable}`" in TEXT
    assert f"`{LEDGER}`" in TEXT and all(f"`{flag}`" in TEXT for flag in FLAGS)
    assert f"`{FOLDER}/{KEPT}/{VERDICTS}`" in TEXT
    options = _parser().parse_args(["evaluate", "policy", "runs/mine"])
    assert options.retries == patience.retries and options.concurrency == patience.threads and options.comparisons == 1
