"""docs/labeling.md: its commands are commands, its examples do what it says, its limits are those of the code."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_page import ROOT, blocks, commands, parsed, text_of
from labelers import prefer, work
from test_label_exchange import PEOPLE, QUALITY, argilla, label_studio

from rlhf_kit import PPOConfig
from rlhf_kit.cli import main
from rlhf_kit.cli_policies import FOLDER, KEPT
from rlhf_kit.evaluation.evaluating import VERDICTS
from rlhf_kit.evaluation.judges.choose import judge_named
from rlhf_kit.evaluation.judges.page import STORE as PAGE_STORE
from rlhf_kit.evaluation.judges.page import PageJudge
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.exporting import records, write_records
from rlhf_kit.labeling.replies import AXES, FLAGS, SCALE, SKIP_REASONS, parse_reply
from rlhf_kit.labeling.store import ADMIN, Store
from rlhf_kit.labeling.tasks import KINDS, LETTERS, read_tasks
from rlhf_kit.labeling.web.security import Limits
from rlhf_kit.outputs import row_of
from rlhf_kit.ppo.live import STORE as LIVE_STORE
from rlhf_kit.ppo.live import LiveReward
from rlhf_kit.recipe import Recipe
from rlhf_kit.recipe_live import LiveSection
from rlhf_kit.records import Ranking

TEXT = text_of("labeling.md")
COMMANDS = commands(TEXT)
KIT = [line for line in COMMANDS if line.startswith("rlhf-kit")]
TASK, RECORD = blocks(TEXT, "json")
ANSWERS = [answer["text"] for answer in json.loads(TASK)["meta"]["responses"]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the row that the page shows as `tasks.jsonl`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.jsonl").write_text(json.dumps(json.loads(TASK)) + "\n")
    return tmp_path


@pytest.mark.parametrize("command", KIT)
def test_every_command_of_the_kit_is_one(command: str) -> None:
    assert parsed(command).command in ("sample", "label", "validate", "run", "evaluate")


def test_what_it_needs_is_an_extra() -> None:
    (extra,) = re.findall(r"pip install 'rlhf-kit\[(\w+)\]'", TEXT)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^{extra} = \[.*"starlette', text, re.MULTILINE)


# ---------------------------------------------------------------- tasks and records


def test_its_row_is_a_task_of_each_kind(place: Path) -> None:
    told = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert tuple(told) == KINDS
    counts = {kind: len(read_tasks("tasks.jsonl", kind)) for kind in KINDS[:4]}
    assert counts == {"rank": 1, "compare": 3, "rate": 3, "demonstrate": 1}
    (place / "hints.jsonl").write_text('{"text": "Something about bread."}\n')
    assert len(read_tasks("hints.jsonl", "write")) == 1


def test_its_record_is_what_an_answer_becomes(place: Path) -> None:
    shown = json.loads(RECORD)["meta"]["shown"]
    said = {
        0: {"rank": 1, "overall": 7},
        1: {"rank": 2},
        2: {"rank": 2, "flags": {"hallucination": True}},
    }
    answers = {LETTERS[shown.index(number)]: one for number, one in said.items()}
    reply = parse_reply("rank", {"answers": answers, "note": "The last one is a common mistake."})
    with closing(Store(place / "s.sqlite")) as store:
        (task,) = read_tasks("tasks.jsonl", "rank")
        store.add([task])
        store.take("anna", task.id, reply, order=shown)
        (record,) = records(store)
    row = json.loads(json.dumps(row_of(record)))
    assert row | {"meta": row["meta"] | {"seconds": 31.0}} == json.loads(RECORD)
    (place / "rankings.jsonl").write_text(json.dumps(json.loads(RECORD)) + "\n")
    assert main(["validate", "rankings.jsonl"]) == 0


def test_overlap_gold_and_links_are_as_it_says(place: Path) -> None:
    (command,) = [line for line in KIT if "--gold " in line]
    arguments = parsed(command)
    assert (arguments.labelers, arguments.overlap, arguments.gold_every) == (["anna", "ben", "cleo"], 2, 10)
    assert parsed(KIT[1]).gold_every is None and "`--gold-every`" in TEXT
    rule = prefer(lambda one, other: len(one) - len(other))
    with closing(Store(place / "s.sqlite")) as store:
        store.configure(Settings(overlap=arguments.overlap))
        store.add(read_tasks("tasks.jsonl", "compare"))
        store.set_labelers(arguments.labelers)
        tokens = [store.token(name) for name in (*arguments.labelers, ADMIN)]
        done = [work(store, name, rule) for name in arguments.labelers]
        assert done == [3, 3, 0] and len(records(store)) == 6
    with closing(Store(place / "s.sqlite")) as store:
        assert [store.token(name) for name in (*arguments.labelers, ADMIN)] == tokens
        assert [len(token) * 4 for token in set(tokens)] == [256] * 4 and "256 bits" in TEXT
        store.set_labelers(["anna"])
        assert store.who(tokens[0]) == "anna" and store.who(tokens[1]) is None


def test_the_same_command_adds_what_is_new(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["label", "tasks.jsonl", "--out", "rankings.jsonl", "--export"]
    assert main(line) == 0 and main(line) == 0
    with (place / "tasks.jsonl").open("a") as file:
        file.write(json.dumps({**json.loads(TASK), "prompt": "Another one?"}) + "\n")
    assert main(line) == 0 and main(["label", "--out", "rankings.jsonl", "--export"]) == 0
    with closing(Store(place / "rankings.sqlite")) as store:
        assert store.progress().tasks == 2
    assert (place / "rankings.sqlite").stat().st_mode & 0o777 == 0o600


def test_its_limits_are_the_limits() -> None:
    assert f"up to {len(LETTERS)} answers" in TEXT and f"at most {len(LETTERS)} answers side by side" in TEXT
    assert f"scale {SCALE[0]} to {SCALE[1]}" in TEXT and all(axis in TEXT for axis in AXES) and FLAGS
    assert Settings().lease == 30 * 60 and "after half an hour" in TEXT
    assert f"({Limits().body // 1024} KiB a request)" in TEXT
    (reasons,) = re.findall(r"skipped with a reason \((.+?)\)", TEXT)
    assert tuple(reason.replace(" ", "_") for reason in reasons.split(", ")) == SKIP_REASONS


def test_the_proxy_is_that_of_the_command() -> None:
    (proxy,) = blocks(TEXT, "text")
    host, target = re.findall(r"^(\S+) \{\n +reverse_proxy (\S+)$", proxy, re.MULTILINE)[0]
    (behind,) = [parsed(line) for line in KIT if "--origin" in line]
    assert behind.origin == f"https://{host}" and target == f"{behind.host}:{behind.port}"
    (tunnel,) = [line for line in COMMANDS if line.startswith("ssh")]
    (alone,) = [parsed(line) for line in KIT if "--port" in line and "--origin" not in line]
    assert f"-L {alone.port}:{alone.host}:{alone.port}" in tunnel


# ---------------------------------------------------------------- people as reward and judge


def test_its_live_section_is_the_default_and_told_in_full() -> None:
    (settings,) = map(yaml.safe_load, blocks(TEXT, "yaml"))
    recipe = Recipe.model_validate({"model": {"name_or_path": "a/b"}, **settings})
    assert recipe.ppo.live == LiveSection() and recipe.ppo.reward_funcs == ["live"]
    assert settings["ppo"]["live"].keys() | {"store"} == LiveSection.model_fields.keys() and "`ppo.live.store`" in TEXT
    (command,) = [line for line in KIT if "--stay" in line]
    assert LiveReward(LiveSection(), Path("runs/mine") / LIVE_STORE).command == command
    assert 'PPOTrainer(reward_funcs="live", args=PPOConfig(live={"overlap": 2}), …)' in TEXT
    assert PPOConfig(output_dir="x", live={"overlap": 2}, use_cpu=True).live_section == LiveSection(overlap=2)


def test_its_judges_are_pages() -> None:
    judges = [parsed(line).judges for line in KIT if "--judge" in line]
    assert judge_named(judges[0][0], {}) == PageJudge()
    assert judge_named(judges[1][0], {}) == PageJudge(labelers=("anna", "ben"))
    assert f"`{FOLDER}/{KEPT}/{VERDICTS}/{PAGE_STORE}`" in TEXT


# ---------------------------------------------------------------- other tools


def test_its_way_to_other_tools_and_back(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Each command as it stands there; what lies between is what the tools export."""
    monkeypatch.setattr("test_label_exchange.QUALITY", dict(zip(ANSWERS, (2, 1, 0), strict=True)))
    to_studio, from_studio, to_argilla, from_argilla, from_people = (
        line for line in KIT if "--to" in line or "--take" in line
    )

    def run(command: str) -> None:
        assert main(command.split()[1:]) == 0

    run(to_studio)
    rows = label_studio(
        json.loads(Path("for_label_studio.json").read_text()), ET.parse("for_label_studio.xml").getroot()
    )
    Path("label_studio_export.json").write_text(json.dumps(rows))
    run(from_studio)
    assert "took 2 answers" in capsys.readouterr().out
    run(to_argilla)
    folder = Path("for_argilla")
    settings = json.loads((folder / ".argilla" / "settings.json").read_text())
    Path("argilla_records.json").write_text(
        json.dumps(argilla(json.loads((folder / "records.json").read_text()), settings))
    )
    run(from_argilla)
    assert "took 0 answers" in capsys.readouterr().out, "the same people have said the same"
    row = {
        "prompt": json.loads(TASK)["prompt"],
        "responses": [{"text": t, "rank": n} for n, t in enumerate(ANSWERS, 1)],
    }
    Path("people.jsonl").write_text(json.dumps(row) + "\n")
    run(from_people)
    found = [json.loads(line) for line in Path("rankings.jsonl").read_text().splitlines()]
    assert {one["labeler"] for one in found} == {*PEOPLE, "people"}
    assert [[r["source"] for r in sorted(one["responses"], key=lambda r: r["rank"])] for one in found] == [
        ["ppo", "sft", "base"]
    ] * 3
    assert QUALITY and Ranking.model_validate_json(json.dumps(found[0]))


def test_a_file_of_records_has_one_kind(place: Path) -> None:
    with closing(Store(place / "s.sqlite")) as store:
        store.add([*read_tasks("tasks.jsonl", "compare"), *read_tasks("tasks.jsonl", "rate")])
        store.set_labelers(["anna"])
        rate = parse_reply("rate", {"overall": 3})
        compare = prefer(len_difference)
        work(store, "anna", lambda task, order: rate if task.kind == "rate" else compare(task, order))
        with pytest.raises(Exception, match="answers of several kinds"):
            write_records(store, place / "out.jsonl")


def len_difference(one: str, other: str) -> int:
    return len(one) - len(other)
