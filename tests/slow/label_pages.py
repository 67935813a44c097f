"""`rlhf-kit label` in a process of its own, and a browser that looks at its pages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Locator, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="ends the server with a signal"),
]
expect.set_options(timeout=20_000)  # milliseconds; five seconds, its own, may pass where much else runs
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


# -------------------------------------------------------------------- the server


@dataclass
class Served:
    """A server that is running, with everybody's link."""

    process: subprocess.Popen[str]
    links: dict[str, str]
    out: Path

    def end(self) -> list[dict[str, Any]]:
        """Ends it as Ctrl-C does and returns the rows of the file that it wrote."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]


@contextmanager
def served(
    folder: Path, rows: Sequence[dict[str, Any]], kind: str = "rank", *options: str, **texts: Any
) -> Iterator[Served]:
    """Serves `rows` as tasks of a kind; `texts` are labelers (names), guidelines (Markdown), title and overlap."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks, out, guidelines = folder / "tasks.jsonl", folder / "labels.jsonl", folder / "guidelines.md"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    guidelines.write_text(texts.get("guidelines", ""), encoding="utf-8")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "rlhf_kit",
        "label",
        *([tasks] if rows else []),
        "--out",
        out,
        "--task",
        kind,
        "--no-browser",
    ]
    command += ["--labelers", ",".join(texts.get("labelers", ["anna"])), "--overlap", str(texts.get("overlap", 1))]
    command += ["--title", texts.get("title", "Test"), "--guidelines", guidelines, *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            links: dict[str, str] = {}
            while "admin" not in links:
                line = process.stdout.readline()
                assert line, "the server ended before it told its links"
                name, _, url = line.strip().rpartition(" ")
                if url.startswith("http"):
                    links[name.strip()] = url
            yield Served(process, links, out)
        finally:
            if process.poll() is None:
                process.kill()


# -------------------------------------------------------------------- the browser


@dataclass
class Seen:
    """A page, and what went wrong on it or left it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def dismiss(self, dialog: Dialog) -> None:
        """Remembers what a dialog said."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def is_clean(self) -> bool:
        """No error in the console (a violation of the content security policy is one), nothing asked of others."""
        assert self.errors == []
        assert self.elsewhere == []
        assert self.dialogs == []
        return True


@contextmanager
def chromium() -> Iterator[Browser]:
    """The distribution's browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def watch(context: BrowserContext, link: str) -> Seen:
    """Opens a link, and listens from the first request on."""
    page = context.new_page()
    page.set_default_timeout(10_000)
    seen = Seen(page)
    ours = link.partition("#")[0].rpartition("/")[0]
    page.on(
        "console", lambda message: seen.errors.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((ours, "data:,")) else seen.elsewhere.append(asked.url)
    )
    page.on("dialog", seen.dismiss)
    page.goto(link)
    expect(page.locator("body")).to_have_attribute("data-ready", "yes")
    return seen


def narrow(page: Page) -> bool:
    """Nothing leaves the screen sideways, and nothing is cut off by it that cannot be scrolled to."""
    assert page.viewport_size is not None
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """width => Array.from(document.querySelectorAll("main *, header *, dialog[open] *"))
        .filter((e) => !e.closest(".scroll, .unseen, .excerpt") && e.getClientRects().length)
        .filter((e) => { const box = e.getBoundingClientRect(); return box.right > width + 1 || box.left < -1; })
        .map((e) => `${e.localName}.${e.className}`)"""
    assert page.evaluate(outside, width) == []
    return True


def card_of(page: Page, text: str) -> Locator:
    """The card of the answer with exactly this text."""
    return page.locator(".card", has=page.locator(".text").get_by_text(text, exact=True))


def letter_of(page: Page, text: str) -> str:
    """The letter under which an answer is shown."""
    letter = card_of(page, text).get_attribute("data-key")
    assert letter is not None
    return letter


def drag(page: Page, letter: str, goal: str) -> None:
    """Carries an answer's small card with the mouse to the middle of what the selector finds."""
    chip = page.locator(f".chip[data-key={letter}] .excerpt")
    chip.scroll_into_view_if_needed()
    start, end = chip.bounding_box(), page.locator(goal).bounding_box()
    assert start is not None and end is not None
    page.mouse.move(start["x"] + 10, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 14, start["y"] + start["height"] / 2 + 8, steps=3)
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=12)
    for _ in range(2):  # rows grow a little under the card: the eye follows
        page.wait_for_timeout(150)
        end = page.locator(goal).bounding_box() or end
        page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=2)
    page.mouse.up()
    page.wait_for_timeout(50)


def drag_by_touch(page: Page, letter: str, goal: str) -> None:
    """The same with a finger on the grip."""
    grip = page.locator(f".chip[data-key={letter}] .grip")
    grip.scroll_into_view_if_needed()
    start, end = grip.bounding_box(), page.locator(goal).bounding_box()
    assert start is not None and end is not None
    x, y = start["x"] + start["width"] / 2, start["y"] + start["height"] / 2
    to_x, to_y = end["x"] + end["width"] / 2, end["y"] + end["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: dict[str, float]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": y})
    for part in range(1, 13):
        touch("touchMove", {"x": x + (to_x - x) * part / 12, "y": y + (to_y - y) * part / 12})
        page.wait_for_timeout(16)
    touch("touchEnd")
    session.detach()


# -------------------------------------------------------------------- what tests say

RIVERS = ["Po, Tiber, Arno.", "It has many rivers.", "Sydney."]


def task(prompt: Any, answers: Sequence[str], sources: Sequence[str] = ("sft", "ppo", "base", "ptx")) -> dict[str, Any]:
    """A row as `rlhf-kit sample` writes them; a text that ends with an ellipsis was cut off."""
    told = [{"text": t, "source": s, "ended": not t.endswith("…")} for t, s in zip(answers, sources, strict=False)]
    return {"prompt": prompt, "meta": {"responses": told}}


def ranked(text: str, rank: int, source: str, **more: Any) -> dict[str, Any]:
    """An answer as it should be exported: what is not said of it is left out."""
    return {"text": text, "rank": rank, "source": source, **more}


def said(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what says nothing, with its answers in the order of their texts, and without how long it took."""

    def without_nothing(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: without_nothing(v) for k, v in value.items()}
            return {k: v for k, v in kept.items() if v not in (None, {}, []) and (k, v) != ("ended", True)}
        return [without_nothing(one) for one in value] if isinstance(value, list) else value

    meta = {name: value for name, value in row["meta"].items() if name not in ("seconds", "shown")}
    row = without_nothing({**row, "meta": meta})
    if "responses" in row:
        row["responses"] = sorted(row["responses"], key=lambda answer: answer["text"])
    return row


def submit(page: Any, done: int) -> None:
    """Submits with the keyboard and waits until the server has it."""
    page.keyboard.press("Control+Enter")
    expect(page.locator("#counts")).to_contain_text(f"{done} done")


def rank_by_keys(page: Any, ranks: dict[str, int]) -> None:
    """The letter of each answer, then the digit of its rank."""
    for text, rank in ranks.items():
        page.keyboard.press(letter_of(page, text).lower())
        page.keyboard.press(str(rank))
