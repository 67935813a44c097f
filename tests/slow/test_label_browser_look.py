"""The pages of `rlhf-kit label` as they are seen, in every state: all is legible, reachable and named (axe-core).

With LABEL_SHOTS=FOLDER in the environment, a picture of each state is left there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from label_pages import (
    DESKTOP,
    MARKS,
    PHONE,
    Served,
    narrow,
    rank_by_keys,
    served,
    submit,
    task,
    watch,
)
from playwright.sync_api import Browser, Page, expect

pytestmark = MARKS
LOOK = (Path(__file__).parent / "page_look.js").read_text(encoding="utf-8")
SHOTS = os.environ.get("LABEL_SHOTS")
DEVICES = {"desktop": DESKTOP, "phone": PHONE}
LOOKS = [(device, scheme) for device in ("desktop", "phone") for scheme in ("light", "dark")]


# -------------------------------------------------------------------- every state, looked at

GARDEN = [
    {"role": "system", "content": "You help customers of a garden shop. Be brief and friendly."},
    {"role": "user", "content": "My tomato plants have yellow leaves at the bottom. What should I do?"},
    {"role": "assistant", "content": "How often do you water them, and are they in pots or in the ground?"},
    {
        "role": "user",
        "content": "In pots on the balcony. I water them every evening. Give me a short list of what to try.",
    },
]
TOMATOES = [
    "Yellow lower leaves in pots usually mean too much water or too little nitrogen. Try this:\n\n"
    "1. Water only when the top 3 cm of soil are dry.\n2. Check that the pots have holes.\n"
    "3. Feed with a tomato fertiliser once a week.\n\nIf new leaves turn yellow as well, send us a photo!",
    "Tomatoes come from South America. There are many possible causes, for example:\n\n- watering\n- light\n"
    "- diseases such as *Alternaria solani*\n\nIt is always best to consult an expert.",
    "Water less: every second morning instead of every evening. Then feed them. The yellow leaves can come off.",
    "Spray them with vinegar and dish soap (1:1) each day. It kills the fungus in two days, as a study by the "
    "University of Parma has shown. Water them twice a day in addition, so that the soil is always wet and the …",
]
RANKS = [[1, 3, 2, 4], [1, 2, 2, 3], [2, 3, 1, 4], [1, 4, 2, 3]]
GUIDE = "# How to rank\n\nRead **all** answers first.\n\n| mark | the answer |\n|---|---|\n| 1 | harms |\n| 7 | good |"
HINT = {"text": "A task in a **garden**.", "meta": {"kind": "few_shot"}}
PEOPLE = [f"{device}-{scheme}" for device, scheme in LOOKS]


class Looked:
    """Checks a state of a page as a reader sees it."""

    def __init__(self, page: Page, look: str) -> None:
        self.page, self.look, self.names = page, look, []

    def at(self, name: str) -> None:
        page = self.page
        page.wait_for_timeout(150)
        found = Axe().run(page).response["violations"]
        serious = [
            (one["id"], [node["html"][:160] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert (name, serious) == (name, [])
        assert narrow(page)
        if page.locator("dialog[open]").count() == 0:  # what is behind a dialog is dimmed
            faint = [
                text for text in page.evaluate(LOOK)["texts"] if not text["enough"] and text["words"] not in DISABLED
            ]
            assert (name, faint) == (name, [])
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{SHOTS}/{name}-{self.look}.png", full_page=page.viewport_size["width"] < 600)
        self.names.append(name)


DISABLED = {"Undo", "Add an example"}
"""Buttons that cannot be pressed may be paler (WCAG 2.2, 1.4.3)."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[dict[str, Served]]:
    """One of each kind, where everybody is asked everything; eve never comes, so that no server is done."""
    folder, common = (
        tmp_path_factory.mktemp("looks"),
        {"labelers": [*PEOPLE, "eve"], "overlap": 5, "title": "Garden shop, round 2"},
    )
    rows = [
        task(GARDEN, TOMATOES),
        task("Name three rivers of Italy.", ["Po, Tiber, Arno.", "Many.", "Po and Danube."]),
    ]
    with (
        served(folder / "rank", rows, guidelines=GUIDE, **common) as rank,
        served(folder / "compare", [task(GARDEN, TOMATOES[:2])], "compare", **common) as compare,
        served(folder / "rate", [task(GARDEN, TOMATOES[:1])], "rate", "--stay", **common) as rate,
        served(folder / "demonstrate", [{"prompt": GARDEN}], "demonstrate", **common) as demonstrate,
        served(folder / "write", [HINT], "write", **common) as write,
    ):
        yield {"rank": rank, "compare": compare, "rate": rate, "demonstrate": demonstrate, "write": write}


@pytest.mark.parametrize(("device", "scheme"), LOOKS)
@pytest.mark.parametrize("kind", ["rank", "compare", "rate", "demonstrate", "write"])
def test_every_state_can_be_read_reached_and_named(browser, servers, kind, device, scheme):
    context = browser.new_context(**DEVICES[device], color_scheme=scheme, reduced_motion="reduce")
    seen = watch(context, servers[kind].links[f"{device}-{scheme}"])
    looked = Looked(seen.page, f"{device}-{scheme}")
    paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 700) == (scheme == "light")
    STATES[kind](seen.page, looked, PEOPLE.index(looked.look))
    assert len(looked.names) >= 3 and seen.is_clean()
    context.close()


def states_of_ranking(page: Page, looked: Looked, person: int) -> None:
    looked.at("rank")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#problems")).to_contain_text("Still without a rank")
    looked.at("rank-missing")
    rank_by_keys(page, {first_words(text): rank for text, rank in zip(TOMATOES, RANKS[person], strict=True)})
    page.keyboard.press("Shift+Digit7")
    for fold in page.locator(".card").first.locator("summary").all():
        fold.click()
    page.locator(".flags input").nth(2).check()
    looked.at("rank-open")
    for button, name in (("Guidelines", "guidelines"), ("Keys", "keys"), ("Skip", "skip")):
        page.get_by_role("button", name=button).first.click()
        expect(page.locator("dialog[open]")).to_be_visible()
        looked.at(name)
        page.keyboard.press("Escape")
    submit(page, 1)
    page.locator(".fold summary").last.click()
    rank_by_keys(page, {"Many.": 2, "Po, Tiber, Arno.": 1, "Po and Danube.": 3})
    submit(page, 2)
    looked.at("done")


def first_words(text: str) -> str:
    """The first line as it is read, which finds its card."""
    return text.partition("\n")[0]


def states_of_comparing(page: Page, looked: Looked, person: int) -> None:
    looked.at("compare")
    page.get_by_role("button", name="Submit").click()
    looked.at("compare-missing")
    page.keyboard.press("ArrowLeft")
    looked.at("compare-chosen")


def states_of_rating(page: Page, looked: Looked, person: int) -> None:
    looked.at("rate")
    page.keyboard.press("6")
    looked.at("rate-chosen")
    submit(page, 1)
    expect(page.get_by_role("heading", name="Nothing to do right now")).to_be_visible()
    looked.at("waiting")


def states_of_demonstrating(page: Page, looked: Looked, person: int) -> None:
    looked.at("demonstrate")
    page.get_by_role("button", name="Submit").click()
    looked.at("demonstrate-missing")
    page.keyboard.type("Water less, and feed them once a week.")
    looked.at("demonstrate-written")


def states_of_writing(page: Page, looked: Looked, person: int) -> None:
    looked.at("write")
    page.get_by_label("The instruction").fill("Name the season in which to plant it.")
    page.get_by_role("button", name="Add an example").click()
    looked.at("write-two")
    page.get_by_role("button", name="Submit").click()
    looked.at("write-missing")


STATES = {
    "rank": states_of_ranking,
    "compare": states_of_comparing,
    "rate": states_of_rating,
    "demonstrate": states_of_demonstrating,
    "write": states_of_writing,
}


@pytest.fixture(scope="module")
def reviewed(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server where two labelers have ranked the same answers in different orders, and one has skipped a task."""
    rows = [task(GARDEN, TOMATOES), task("Say yes.", ["yes", "Yes!"])]
    with served(tmp_path_factory.mktemp("admin"), rows, labelers=["anna", "ben"], overlap=2) as server:
        for name, ranks in (("anna", RANKS[0]), ("ben", RANKS[3])):
            context = browser.new_context(**DESKTOP)
            page = watch(context, server.links[name]).page
            rank_by_keys(page, {first_words(text): rank for text, rank in zip(TOMATOES, ranks, strict=True)})
            submit(page, 1)
            if name == "ben":
                page.get_by_role("button", name="Skip").click()
                page.get_by_label("It is not clear what is wanted").check()
                page.get_by_role("dialog").get_by_role("button", name="Skip", exact=True).click()
                expect(page.locator("#counts")).to_contain_text("1 skipped")
            context.close()
        yield server


@pytest.mark.parametrize(("device", "scheme"), LOOKS)
def test_the_admin_page_can_be_read_reached_and_named(browser, reviewed, device, scheme):
    context = browser.new_context(**DEVICES[device], color_scheme=scheme, reduced_motion="reduce")
    seen = watch(context, reviewed.links["admin"])
    page, looked = seen.page, Looked(seen.page, f"{device}-{scheme}")
    expect(page.locator("#labelers tbody tr")).to_have_count(2)
    expect(page.locator(".disagreement")).to_have_count(1)
    expect(page.locator("#skips tbody tr")).to_have_count(1)
    looked.at("admin")
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_role("heading", name="标注员", exact=True)).to_be_visible()
    looked.at("admin-zh")
    assert seen.is_clean()
    page.goto(reviewed.links["admin"].partition("#")[0] + "#" + "0" * 64)
    expect(page.get_by_role("heading", name="无法打开本页")).to_be_focused()
    looked.at("admin-refused")
    page.reload()  # its own session is still known
    expect(page.locator("#labelers tbody tr")).to_have_count(2)
    assert ["401" in error for error in seen.errors] == [True]
    context.close()


def test_the_page_without_a_link_can_be_read(browser, servers):
    for device, scheme in LOOKS:
        context = browser.new_context(**DEVICES[device], color_scheme=scheme)
        seen = watch(context, servers["rank"].links["admin"].partition("admin")[0])
        expect(seen.page.get_by_role("heading", name="This page cannot be opened")).to_be_focused()
        Looked(seen.page, f"{device}-{scheme}").at("refused")
        context.close()


def test_what_looks_sees_what_is_wrong(browser: Browser, servers: dict[str, Served]):
    """A button without a name, and text of #bbb on white, whose contrast is 1.9: the checks above are not blind."""
    context = browser.new_context(**DESKTOP)
    page = watch(context, servers["rank"].links["eve"]).page
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    with pytest.raises(AssertionError, match="button-name"):
        Looked(page, "eve").at("nameless")
    page.evaluate(
        "document.querySelector('main > button').remove(); document.getElementById('lead').style.color = '#bbb'"
    )
    with pytest.raises(AssertionError, match="color-contrast"):
        Looked(page, "eve").at("faint")
    page.evaluate(
        "document.getElementById('lead').style = ''; document.getElementById('title').style.minWidth = '2000px'"
    )
    with pytest.raises(AssertionError):
        Looked(page, "eve").at("wide")
    context.close()
