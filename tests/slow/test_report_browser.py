"""The report page in a real browser: nothing leaves a phone's screen sideways, the filter works, nothing is loaded."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_run import make_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_reward_page import CURVE, make, rows

from rlhf_kit.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"),
    pytest.mark.skipif(sys.platform == "win32", reason="speaks to the browser through inherited pipes"),
]


# Chromium reads descriptor 3 and writes 4: ours go there by way of high numbers, so that neither overwrites the other.
_START = """
import os, sys
from fcntl import F_DUPFD, fcntl
reading, writing = (fcntl(int(number), F_DUPFD, 100) for number in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless Chromium, spoken to through DevTools over two pipes: no port, no driver, no package."""

    def __init__(self, profile: Path) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _START, str(read_commands), str(write_answers), str(CHROMIUM)),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._buffer, self._number, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def _message(self) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], 60)[0]:
                raise TimeoutError("the browser has not answered for a minute")
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                raise RuntimeError("the browser ended")
            self._buffer += piece
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method: str, **params: object) -> dict:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def run(self, script: str) -> object:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._commands, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def reward_page(tmp_path_factory):
    """The page of `evaluate reward`, whose names from the data would be markup."""
    folder = tmp_path_factory.mktemp("reward")
    make(folder, rows(24), curve=CURVE)
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_of_a_reward_model(browser, reward_page, width, scheme):
    browser.open(reward_page, width, scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked == [reward_page.as_uri()]
    assert browser.run("document.querySelectorAll('script, img').length") == 0
    assert browser.run("document.querySelectorAll('svg.plot').length") >= 5
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 700) == (scheme == "light")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser, page, width):
    browser.open(page, width)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.run("window.innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_nothing_is_loaded_and_nothing_of_the_answers_runs(browser, page):
    browser.open(page, 1280)
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()]
    assert browser.run("window.pwned === undefined && document.querySelectorAll('script').length === 1")
    assert not [e for e in browser.events if e.get("method") == "Runtime.exceptionThrown"]


def test_the_filter_finds_words_and_changes(browser, page):
    browser.open(page, 1280)
    shown = "Array.from(document.querySelectorAll('#answers tbody tr')).filter((r) => r.offsetHeight > 0).length"
    count = "document.querySelector('#filter output').value"
    assert browser.run(shown) == 3
    assert browser.run(count) == "3 prompts"

    def type_in(name: str, value: str) -> None:
        browser.run(
            f"(() => {{ const field = document.getElementById('filter').elements[{name!r}]; field.value = {value!r};"
            " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    type_in("words", "OCTOPUS hearts")
    assert browser.run(shown) == 1
    assert browser.run(count) == "1 of 3 prompts"
    type_in("words", "no such word")
    assert browser.run(shown) == 0
    type_in("words", "")
    type_in("change", "worse")
    assert browser.run(shown) == 1
    type_in("change", "")
    assert browser.run(shown) == 3


def test_the_dark_page_is_dark_and_its_plots_follow(browser, page):
    colours = []
    for scheme in ("light", "dark"):
        browser.open(page, 1280, scheme)
        paper = browser.run("getComputedStyle(document.body).backgroundColor")
        line = browser.run("getComputedStyle(document.querySelector('.plot [style*=accent]')).stroke")
        colours.append((paper, line))
    (light, light_line), (dark, dark_line) = colours
    assert sum(map(int, light[4:-1].split(","))) > 700
    assert sum(map(int, dark[4:-1].split(","))) < 100
    assert light_line != dark_line
