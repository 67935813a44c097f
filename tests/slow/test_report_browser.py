"""The report page in a real browser: every figure is drawn, every word can be read, nothing leaves a phone's screen
sideways, the filter works, nothing is loaded."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_full_run import make_full_run
from report_run import answers, evaluation, make_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_reward_page import CURVE, make, rows

from rlhf_kit.report import write_report

LOOK = (Path(__file__).parent / "page_look.js").read_text(encoding="utf-8")
QUICKSTART = Path(__file__).parents[2] / "runs" / "quickstart" / "report.html"
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


def unfolded(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


@pytest.fixture(scope="module")
def pages(page, reward_page, tmp_path_factory):
    """A run with an evaluation of the first format, one with everything, two side by side, a reward model's."""
    folder = tmp_path_factory.mktemp("full")
    run, other = make_full_run(folder / "run"), make_full_run(folder / "other", seed=8)
    return {
        "old": page,
        "full": write_report(run),
        "two": write_report(run, other, out=folder / "two.html"),
        "reward": reward_page,
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("name", ["old", "full", "two", "reward"])
def test_every_word_can_be_read_and_every_figure_is_drawn(browser, pages, name, width, scheme):
    unfolded(browser, pages[name], width, scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    seen = browser.run(LOOK)
    assert len(seen["texts"]) > 100
    assert [text for text in seen["texts"] if not text["enough"]] == []
    assert [text for text in seen["texts"] if text["size"] < 8] == []
    assert seen["cut"] == []
    assert len(seen["drawings"]) >= {"old": 18, "full": 26, "two": 24, "reward": 5}[name]
    assert [one for one in seen["drawings"] if one["area"] <= 0 or one["shapes"] == 0] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked == [pages[name].as_uri()]
    assert browser.run("window.pwned === undefined && document.querySelectorAll('img').length === 0")
    assert not [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


def test_the_script_that_looks_sees_faint_and_cut_text(browser, tmp_path):
    """What the test above must not overlook: #999 on white has a contrast of 2.85, and 22 px bold is large."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background:#fff'><p style='color:#999'>faint</p><p style='opacity:.4'>pale</p>"
        "<div style='background:#000'><p style='color:#333'>dark</p></div>"
        "<p style='color:#888;font:bold 22px x'>large</p>"
        "<svg viewBox='0 0 100 20' width='100'><title>t</title><text x='90' y='10' fill='#fff'>over</text></svg></body>"
    )
    browser.open(bad, 390)
    seen = browser.run(LOOK)
    assert [text["words"] for text in seen["texts"] if not text["enough"]] == ["faint", "pale", "dark", "over"]
    assert seen["texts"][0]["contrast"] == pytest.approx(2.85, abs=0.01)
    assert seen["cut"] == ["over"] and seen["drawings"][0]["shapes"] == 0


@pytest.mark.skipif(not QUICKSTART.is_file(), reason="make quickstart has not been run here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_of_the_quickstart(browser, width, scheme):
    """The page that a newcomer sees first, as `make quickstart` has drawn it."""
    unfolded(browser, QUICKSTART, width, scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    seen = browser.run(LOOK)
    assert [text for text in seen["texts"] if not text["enough"] or text["size"] < 8] == []
    assert seen["cut"] == [] and len(seen["drawings"]) >= 18
    assert [one for one in seen["drawings"] if one["area"] <= 0 or one["shapes"] == 0] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked == [QUICKSTART.as_uri()]
    search = "document.querySelector('#filter input')"
    browser.run(f"{search}.value = 'guitar'; {search}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    rows = "Array.from(document.querySelectorAll('#answers tbody tr')).filter((r) => r.offsetHeight > 0)"
    assert 0 < browser.run(f"{rows}.length") < 96
    assert browser.run(f"{rows}.every((row) => row.textContent.toLowerCase().includes('guitar'))")


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
        stroked = """document.querySelector('.plot [style*="stroke: var(--accent)"]')"""
        line = browser.run(f"getComputedStyle({stroked}).stroke")
        colours.append((paper, line))
    (light, light_line), (dark, dark_line) = colours
    assert sum(map(int, light[4:-1].split(","))) > 700
    assert sum(map(int, dark[4:-1].split(","))) < 100
    assert light_line != dark_line


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """96 prompts, four policies, four samples of fifty words each."""
    judged = evaluation()
    judged["policies"] = ["base", "sft", "ppo", "ptx"]
    text = "An answer with quite a few words in it, so that there is something to look through. " * 3
    judged["prompts"] = [
        {
            "prompt": f"Prompt number {n}?",
            "answers": {
                p: answers(*((f"{text} {p} {n}-{k}", 0.1 * k, k) for k in range(4))) for p in judged["policies"]
            },
        }
        for n in range(96)
    ]
    return write_report(make_run(tmp_path_factory.mktemp("large") / "run", judged=judged))


def test_the_filter_is_quick_and_opens_what_it_finds(browser, large):
    browser.open(large, 1280)
    shown = "Array.from(document.querySelectorAll('#answers tbody tr')).filter((r) => r.offsetHeight > 0).length"
    assert browser.run(shown) == 24 and browser.run("document.querySelector('#filter output').value") == "96 prompts"
    search = """(() => {
      const field = document.querySelector('#filter input'), start = performance.now();
      field.value = %r;
      field.dispatchEvent(new Event('input', {bubbles: true}));
      document.body.getBoundingClientRect();
      return performance.now() - start;
    })()"""
    assert max(browser.run(search % words) for words in ("answer", "ptx 90-3", "quite few", "")) < 1000
    browser.run(search % "ptx 90-3")
    assert browser.run(shown) == 1  # the first 24 only hold where nothing is looked for
    opened = "Array.from(document.querySelectorAll('#answers details')).filter((d) => d.open)"
    assert browser.run(f"{opened}.length") >= 1 and browser.run(f"{opened}.pop().textContent.includes('ptx 90-3')")
    browser.run(search % "")
    assert browser.run(shown) == 24 and browser.run(f"{opened}.length") == 0
    browser.run("document.getElementById('rest').click()")
    assert browser.run(shown) == 96 and browser.run("document.getElementById('rest').hidden")
