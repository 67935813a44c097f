"""Label Studio itself: it takes the tasks and the configuration, its page shows them whole, and what people say there
comes back in both layouts of its export."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_pages import CHROMIUM
from label_studio_server import LabelStudio
from playwright.sync_api import Browser, Page, expect

from rlhf_kit.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("RLHF_KIT_LABEL_STUDIO" not in os.environ, reason="`make test-label-studio` runs these"),
]

FOLDER = Path(__file__).parents[1] / "fixtures" / "label_studio"
LAYOUTS = {"JSON": "whole.json", "JSON_MIN": "short.json"}
QUALITY = {
    "Air scatters blue light most.": 7, "Because.": 1, "  It reflects the sea. \n": 4,
    "Po, Tiber, Arno.": 6, "No.": 2, "$x^2$ and ${prompt}, {y}.": 3,
}  # fmt: skip
"""How good each answer to the first two prompts is, for whoever labels here: marks, and the order of any two."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    with LabelStudio(tmp_path_factory.mktemp("studio") / "data") as made:
        yield made


def handed_over(studio: LabelStudio, kind: str, tasks: Path, folder: Path) -> int:
    """A project with the tasks as the command writes them."""
    out = folder / "for_label_studio.json"
    assert main(["label", str(tasks), "--task", kind, "--to", "label-studio", "--out", str(out)]) == 0
    return studio.project(kind, out, out.with_suffix(".xml"))


def taken(studio: LabelStudio, project: int, kind: str, tasks: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """The records of each layout, taken back into a store of its own; `validate` has nothing against them."""
    found = []
    for layout, name in LAYOUTS.items():
        export, out = studio.export(project, layout, folder / name), folder / f"{layout}.jsonl"
        assert main(["label", str(tasks), "--task", kind, "--take", export, "--out", str(out)]) == 0
        assert main(["validate", str(out)]) == 0
        found.append([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()])
    return found


def result(kind: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    """What the page would send for somebody who knows `QUALITY`."""
    if kind == "rank":
        best = [item["id"] for item in sorted(data["items"], key=lambda item: -QUALITY[item["body"]])]
        return [said("rank", "answers", "ranker", {"ranker": {"_": [], "best_first": best}})]
    if kind == "compare":
        better = "left" if QUALITY[data["answer1"]] > QUALITY[data["answer2"]] else "right"
        return [said("comparison", "comparison", "pairwise", {"selected": better})]
    return [said("rating", "response", "rating", {"rating": QUALITY[data["response"]]})]


def said(name: str, to: str, kind: str, value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


@pytest.mark.parametrize(("kind", "count"), [("rank", 2), ("compare", 6), ("rate", 6)])
def test_there_and_back_through_the_api(kind: str, count: int, studio: LabelStudio, tmp_path: Path) -> None:
    """All but the last task are labelled; the first one is submitted empty too, and the last one skipped."""
    tasks = FOLDER / "texts.jsonl"
    project = handed_over(studio, kind, tasks, tmp_path)
    there = studio.tasks(project)
    assert len(there) == count
    for task in there[:-1]:
        studio.ask(f"tasks/{task['id']}/annotations/", {"result": result(kind, task["data"])})
    studio.ask(f"tasks/{there[0]['id']}/annotations/", {"result": []})
    studio.ask(f"tasks/{there[-1]['id']}/annotations/", {"result": [], "was_cancelled": True})
    rows_of = [json.loads(line) for line in tasks.read_text(encoding="utf-8").splitlines()]
    sources = {answer["text"]: answer["source"] for row in rows_of for answer in row["meta"]["responses"]}
    for rows in taken(studio, project, kind, tasks, tmp_path):
        assert len(rows) == count - 1
        for row in rows:
            if kind == "rate":
                assert row["score"] == QUALITY[row["response"]] and row["source"] == sources[row["response"]]
                continue
            best = sorted(row["responses"], key=lambda answer: answer["rank"])
            marks = [QUALITY[answer["text"]] for answer in best]
            assert marks == sorted(marks, reverse=True) and len(marks) == (3 if kind == "rank" else 2)
            assert all(answer["source"] == sources[answer["text"]] for answer in best)


# ---------------------------------------------------------------- in a browser

PATIENCE = 60_000  # milliseconds; other tests may run beside it


def submit(page: Page) -> None:
    """Waits until the server has it."""
    with page.expect_response(lambda one: "/annotations" in one.url and one.request.method == "POST") as sent:
        page.get_by_label("Submit current annotation").click()
    assert sent.value.status == 201


def put_last(page: Page, key: str) -> None:
    """Moves an answer to the end of the order with the keyboard, by what the page tells to screen readers."""
    told = page.locator("[aria-live=assertive]")
    ordered = page.locator("[data-rbd-droppable-id=best_first] [data-ranker-id]")
    count = ordered.count()
    page.locator(f"[data-ranker-id={key}]").focus()
    page.keyboard.press("Space")
    expect(told).to_contain_text("You have lifted an item", timeout=PATIENCE)
    page.keyboard.press("ArrowRight")
    expect(told).to_have_text(re.compile(r"to list best_first\s+in position \d"), timeout=PATIENCE)
    place = int(re.findall(r"in position (\d+)", told.inner_text())[-1])
    for later in range(place + 1, count + 2):
        page.keyboard.press("ArrowDown")
        expect(told).to_have_text(re.compile(rf"position {later}\s*$"), timeout=PATIENCE)
    page.keyboard.press("Space")
    expect(ordered).to_have_count(count + 1, timeout=PATIENCE)
    expect(ordered.last).to_have_attribute("data-ranker-id", key, timeout=PATIENCE)
    expect(told).to_contain_text("You have dropped the item", timeout=PATIENCE)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
def test_the_page_shows_answers_whole_and_takes_no_untouched_order(
    studio: LabelStudio, browser: Browser, tmp_path: Path
) -> None:
    lines = (FOLDER / "tasks.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(lines[2] + lines[0], encoding="utf-8")
    project = handed_over(studio, "rank", tasks, tmp_path)
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{studio.url}/user/login")
    page.fill("input[name=email]", studio.email)
    page.fill("input[name=password]", studio.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    page.goto(f"{studio.url}/projects/{project}/data?labeling=1")

    items = studio.tasks(project)[0]["data"]["items"]
    shown = page.locator("[data-ranker-id]")
    expect(shown).to_have_count(3, timeout=PATIENCE)
    for item in items:  # with their lines, and `<b>` as it was written
        assert page.locator(f"[data-ranker-id={item['id']}] p").first.inner_text() == item["body"]
    turns = page.locator(".lsf-paragraphs").inner_text()
    assert "Show me\na function." in turns and "00:00" not in turns and "authors" not in turns
    order = [item["id"] for item in reversed(items)]
    for key in order:
        put_last(page, key)
    submit(page)
    expect(shown.filter(has_text="Because.")).to_have_count(1, timeout=PATIENCE)
    submit(page)  # untouched
    page.close()
    for (row,) in taken(studio, project, "rank", tasks, tmp_path):
        best = [answer["text"] for answer in sorted(row["responses"], key=lambda answer: answer["rank"])]
        assert best == [item["body"] for item in reversed(items)]
