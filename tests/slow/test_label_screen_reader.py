"""A blind labeler's way through the page of `rlhf-kit label`: real keys, and what Orca says is written down.

Orca speaks through Speech Dispatcher, whose generic module runs a command for each utterance; here the command writes
it to a file. The screen is a virtual one (Xvfb), and session bus, accessibility bus and home are of this test alone.
Debian: apt-get install orca at-spi2-core xvfb openbox xdotool dbus-daemon speech-dispatcher
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from label_pages import CHROMIUM, MARKS, RIVERS, said, served, task
from playwright.sync_api import Page, expect, sync_playwright

PROGRAMS = ("orca", "Xvfb", "openbox", "xdotool", "dbus-daemon", "speech-dispatcher")
FILES = ("/usr/libexec/at-spi-bus-launcher", "/usr/lib/speech-dispatcher-modules/sd_generic")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None] + [
    name for name in FILES if not Path(name).exists()
]
pytestmark = [*MARKS, pytest.mark.skipif(bool(MISSING), reason=f"no screen reader: {', '.join(MISSING)} not installed")]

LIMIT = 60
"""Seconds in which something must have been said; it takes a second at most where nothing else runs."""

SPEECHD = """
LogLevel 2
LogDir "{folder}"
AudioOutputMethod "alsa"
AudioALSADevice "null"
DisableAutoSpawn
AddModule "written" "sd_generic" "written.conf"
DefaultModule written
"""
WRITTEN = """
GenericExecuteSynth "printf '%s\\\\n' \\'$DATA\\' >> {folder}/said.txt"
AddVoice "en" "MALE1" "en"
GenericLanguage "en" "en" "utf-8"
GenericMaxChunkLength 10000
"""
# The whole page is not read as soon as it is there, so that what keys bring about is all that is heard.
ORCA = "import orca.settings\norca.settings.sayAllOnLoad = False\n"


class Desk:
    """A desktop with a screen reader on a virtual screen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes, self.mark = folder, [], 0
        self.said = folder / "said.txt"
        self.said.touch()
        run, home = folder / "run", folder / "home"
        self.write(home / ".config/speech-dispatcher/speechd.conf", SPEECHD.format(folder=folder))
        self.write(home / ".config/speech-dispatcher/modules/written.conf", WRITTEN.format(folder=folder))
        self.write(home / ".local/share/orca/orca-customizations.py", ORCA)
        self.write(home / ".local/share/orca/__init__.py", "")
        run.mkdir(mode=0o700)
        ours = ("DISPLAY", "WAYLAND", "DBUS", "XDG_", "AT_SPI", "LC_", "LANG")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(run),
            "XDG_SESSION_TYPE": "x11",
            "GSETTINGS_BACKEND": "memory",
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        }

    @staticmethod
    def write(path: Path, text: str) -> None:
        """A file in a folder that need not be there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def start(self, *command: str, told: str = "") -> str:
        """Starts a program; `told` is an option with which it writes a line to a file descriptor: the line returned."""
        reading, writing = os.pipe()
        option = [told.format(writing)] if told.startswith("--") else [told, str(writing)] if told else []
        with open(self.folder / f"{Path(command[0]).name}.log", "w") as log:
            process = subprocess.Popen(
                [*command, *option],
                env=self.environment,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        self.processes.append(process)
        with os.fdopen(reading) as answer:
            return answer.readline().strip() if told else ""

    def open(self) -> None:
        """Everything from the screen up, and Orca at last."""
        screen = ("Xvfb", "-screen", "0", "1280x900x24", "-nolisten", "tcp", "-noreset")
        self.environment["DISPLAY"] = f":{self.start(*screen, told='-displayfd')}"
        bus = self.start("dbus-daemon", "--session", "--nofork", told="--print-address={}")
        self.environment["DBUS_SESSION_BUS_ADDRESS"] = bus
        self.start("openbox", "--sm-disable")
        self.start(FILES[0], "--launch-immediately", "--a11y=1", "--screen-reader=1")
        socket = self.folder / "run/speech-dispatcher/speechd.sock"
        self.start("speech-dispatcher", "-s", "-C", str(self.folder / "home/.config/speech-dispatcher"))
        wait_for(socket.exists, "Speech Dispatcher")
        self.start("orca", "--disable", "braille", "--debug-file", str(self.folder / "orca-debug.log"))
        self.hears("Screen reader on.")

    def close(self) -> None:
        """Ends what was started, the last first."""
        for process in reversed(self.processes):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)

    def heard(self, start: int = 0) -> str:
        """What was said since then, in one line."""
        return " ".join(self.said.read_bytes()[start:].decode(errors="replace").split())

    def hears(self, *phrases: str) -> None:
        """Waits until all of it was said since the last key."""
        start = self.mark
        wait_for(lambda: all(phrase in self.heard(start) for phrase in phrases), phrases, lambda: self.heard(start))

    def press(self, keys: str, *phrases: str) -> None:
        """Keys, and what must be said then."""
        self.mark = self.said.stat().st_size
        subprocess.run(["xdotool", "key", *keys.split()], env=self.environment, check=True)
        self.hears(*phrases)


def wait_for(condition, what, found=lambda: "") -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"{what} did not come, but: {found()}"
        time.sleep(0.05)


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    try:
        made.open()
        yield made
    finally:
        made.close()


def radio(desk: Desk, key: str, scale: str, button: str, *changes: str) -> None:
    """Goes to a group of radio buttons by Tab, within it by the arrow, and chooses by the space bar."""
    desk.press(key, f"{scale} panel.", "1.", "not selected radio button")
    for number in range(2, int(button) + 1):
        desk.press("Right")  # by letters: the digit, then the next button
        desk.press("Right", f"{number}.", "not selected radio button")
    desk.press("space", "selected", *changes)


def rank_in_browse_mode(desk: Desk, page: Page) -> None:
    """From the top by headings to the answers; their radio buttons by Tab; a tie, a mark, a flag, a note."""
    desk.press("ctrl+Home", "Skip to the task")
    desk.press("h", "Rank the answers heading level 1")
    desk.press("h", "Prompt heading level 2")
    desk.press("Down", "Name three rivers of Italy.")
    desk.press("h", "Answers heading level 2")
    desk.press("h", "Answer A heading level 3")
    desk.press("Down", page.locator("#answer-A .text").inner_text())
    radio(desk, "Tab", "Rank of answer A: 1 best, 3 worst", "1")
    desk.press(
        "ctrl+Return", "Answer B article", "Rank of answer B: 1 best, 3 worst panel.", "Still without a rank: B and C."
    )
    desk.press("space", "selected", "B: rank 1, tied with A.")
    desk.press("Tab", "Clear Rank of answer B push button.")
    radio(desk, "Tab", "Overall of answer B: 1 poor, 7 excellent", "2")
    desk.press("Tab", "Clear Overall of answer B push button.")
    desk.press("Tab", "Flags of answer B toggle button collapsed.")
    desk.press("space", "expanded")
    desk.press("Tab", "Fails the instruction check box not checked.", "does another task than the one asked, or none")
    desk.press("space", "checked")
    desk.press("alt+Down", "B: rank 2.")
    desk.press("h", "Answer C heading level 3")
    radio(desk, "Tab", "Rank of answer C: 1 best, 3 worst", "2", "C: rank 2, tied with B.")


def submit_undo_and_skip(desk: Desk) -> None:
    """Each change is told, and what is there then; a skip needs a reason, and says so as often as it is forgotten."""
    desk.press("ctrl+Return", "Saved. 1 done, 1 left. Next: Capital of Australia?")
    desk.press("shift+Tab", "Language combo box.")
    desk.press("Tab", "Rank of answer A: 1 best, 2 worst panel.")
    # Single keys are Orca's in browse mode, and the page's in a focus mode that stays.
    desk.press("Insert+a Insert+a", "Focus mode is sticky.")  # within half a second
    desk.press("u", "Undone. 0 done, 2 left. Next: Name three rivers of Italy.")
    desk.press("c", "Answer C article.")
    desk.press("3", "C: rank 3.")
    desk.press("2", "C: rank 2, tied with B.")
    desk.press("shift+7", "C: overall 7.")
    desk.press("ctrl+Return", "Saved. 1 done, 1 left. Next: Capital of Australia?")
    desk.press("s", "Skip this task dialog", "Why? panel.", "It is not clear what is wanted.")
    desk.press("Return", "Choose a reason.")
    desk.press("Return", "Choose a reason.")
    desk.press("Down", "None of the answers can be used.", "selected radio button")
    desk.press("Return", "Skipped. 1 done, 0 left. All done.")


def test_a_ranking_by_ear(desk, tmp_path):
    """What was heard of each answer is what is in the file."""
    rows = [task("Name three rivers of Italy.", RIVERS), task("Capital of Australia?", ["Canberra", "Melbourne"])]
    with served(tmp_path / "served", rows) as server, sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--force-renderer-accessibility", f"--app={server.links['anna']}"]
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, headless=False, args=options, env=desk.environment
        )
        page = context.pages[0]
        expect(page.locator("body")).to_have_attribute("data-ready", "yes", timeout=1000 * LIMIT)
        desk.hears("Finished loading")
        rank_in_browse_mode(desk, page)
        texts = {key: page.locator(f"#answer-{key} .text").inner_text() for key in "ABC"}
        submit_undo_and_skip(desk)
        context.close()
        (row,) = server.end()
    found = {answer["text"]: answer for answer in said(row)["responses"]}
    assert [found[texts[key]]["rank"] for key in "ABC"] == [1, 2, 2]
    assert (found[texts["B"]]["overall"], found[texts["C"]]["overall"]) == (2, 7)
    assert found[texts["B"]]["flags"] == {"fails_instruction": True}
    for twice in ("Rankof", "AnswerA", "middle dot 1 left", "percent", "worst Rank of"):
        assert twice not in desk.heard()
