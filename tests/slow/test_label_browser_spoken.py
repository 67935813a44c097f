"""What the page of `rlhf-kit label` tells people who cannot see it: names without twins, and each change in words.

Each of these was found by listening to the page with a screen reader (test_label_screen_reader.py does so again).
"""

from __future__ import annotations

from typing import Any

from label_pages import MARKS, RIVERS, card_of, letter_of, rank_by_keys, served, task, watch
from playwright.sync_api import Locator, Page, expect

pytestmark = MARKS

CAPITAL = task("Capital of Australia? One word.", ["Canberra", "Melbourne"])


def said(page: Page) -> Locator:
    """The place whose changes are read out."""
    return page.locator("#said")


def tree(page: Page, place: str) -> list[dict[str, Any]]:
    """Chromium's accessibility tree below what a selector finds, without what is ignored in it."""
    session = page.context.new_cdp_session(page)
    found = session.send("Runtime.evaluate", {"expression": f"document.querySelector({place!r})"})
    nodes = session.send("Accessibility.queryAXTree", {"objectId": found["result"]["objectId"]})["nodes"]
    session.detach()
    return [node for node in nodes if not node["ignored"]]


def names(page: Page, place: str) -> list[str]:
    """The names and texts in it."""
    return [node.get("name", {}).get("value", "") for node in tree(page, place)]


def choose(page: Page, text: str, scale: int, value: int) -> None:
    """A native radio button of an answer: scale 0 is its rank, 1 its overall mark."""
    card_of(page, text).locator("fieldset.scale").nth(scale).locator(f"input[value='{value}']").check()


def test_hidden_words_do_not_run_into_those_that_are_seen(context, tmp_path):
    """A legend's text is the group's name: where they differ, both are read ("Rankof answer A", "Rank of answer A")."""
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS)]) as server:
        page = watch(context, server.links["anna"]).page
        assert {"Rank", " of answer A: 1 best, 3 worst"} <= set(names(page, "#answer-A .scale legend"))
        assert {"Answer ", "A"} <= set(names(page, "#answer-A h3"))


def test_a_single_turn_has_no_unseen_heading(context, tmp_path):
    """It would stand in the place of the first line, which is then passed over by whoever goes from line to line."""
    with served(tmp_path, [task("2+2?", ["4"])], "rate") as server:
        page = watch(context, server.links["anna"]).page
        headings = [node["name"]["value"] for node in tree(page, "main") if node["role"]["value"] == "heading"]
        assert headings == ["How good is this answer?", "Prompt", "Answer"]


def test_the_order_and_the_progress_are_told_once(context, tmp_path):
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS)]) as server:
        page = watch(context, server.links["anna"]).page
        board = names(page, ".board")
        assert [name for name in board if name in ("1", "2", "3", "best", "worst")] == []
        assert [name for name in board if name.startswith("Rank")] == ["Rank 1, best", "Rank 2", "Rank 3, worst"]
        roles = [node["role"]["value"] for node in tree(page, "header")]
        assert "progressbar" not in roles  # its changes would be read as per cents before the counts
        expect(page.get_by_role("group", name="Progress")).to_have_text("0 done, 1 left")
        page.get_by_text("Note", exact=True).click()
        expect(page.get_by_role("textbox", name="Note", exact=True)).to_be_visible()


def test_radio_buttons_tell_of_ties_and_doubts(context, tmp_path):
    """Of itself a radio button only says that it is selected."""
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS)]) as server:
        page = watch(context, server.links["anna"]).page
        one, two, three = (letter_of(page, text) for text in RIVERS)
        choose(page, RIVERS[0], 0, 1)
        choose(page, RIVERS[1], 0, 1)
        expect(said(page)).to_have_text(f"{two}: rank 1, tied with {one}.")
        choose(page, RIVERS[2], 0, 3)
        choose(page, RIVERS[0], 1, 2)
        choose(page, RIVERS[2], 1, 5)
        expect(said(page)).to_have_text(
            f"{one} is ranked above {three}, but has the lower overall mark. Is that meant?"
        )
        page.keyboard.press("0")  # of the third
        expect(said(page)).to_have_text(f"{three}: no rank.")


def test_what_was_done_and_what_is_next(context, tmp_path):
    """Submit, undo, skip: each says what it was, how far one is, and which prompt is there now."""
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS), CAPITAL]) as server:
        page = watch(context, server.links["anna"]).page
        rank_by_keys(page, {text: 1 for text in RIVERS})
        page.keyboard.press("Control+Enter")
        expect(said(page)).to_have_text("Saved. 1 done, 1 left. Next: Capital of Australia? One word.")
        page.keyboard.press("u")
        expect(said(page)).to_have_text("Undone. 0 done, 2 left. Next: Name three rivers of Italy.")
        page.keyboard.press("s")
        expect(said(page)).to_have_text("")  # or it is read again when the dialog closes
        page.get_by_label("I cannot judge this").check()
        page.get_by_role("dialog").get_by_role("button", name="Skip").click()
        expect(said(page)).to_have_text("Skipped. 0 done, 1 left. Next: Capital of Australia? One word.")
        rank_by_keys(page, {"Canberra": 1, "Melbourne": 2})
        page.keyboard.press("Control+Enter")
        expect(said(page)).to_have_text("Saved. 1 done, 0 left. All done.")


COUNT = """place => {
    window.told = [];
    new MutationObserver(() => window.told.push(document.querySelector(place).textContent))
        .observe(document.querySelector(place), {childList: true, subtree: true, characterData: true});
}"""


def test_the_same_mistake_is_told_a_second_time(context, tmp_path):
    """Words that were there before are not news to a screen reader: they have to go in between."""
    with served(tmp_path, [CAPITAL]) as server:
        page = watch(context, server.links["anna"]).page
        for place, press, words in (
            ("#problems", "Control+Enter", "Still without a rank: A and B."),
            ("#skip-problem", "Enter", "Choose a reason."),
        ):
            if place == "#skip-problem":
                page.keyboard.press("s")
            page.evaluate(COUNT, place)
            for times in (1, 2):
                page.keyboard.press(press)
                page.wait_for_function(
                    "([words, n]) => told.filter((w) => w === words).length >= n", arg=[words, times]
                )
            assert page.evaluate("told") == [words, "", words]


def test_dialogs_are_read_from_their_beginning_and_name_keys_in_words(context, tmp_path):
    with served(tmp_path, [CAPITAL], guidelines="# First\n\nRead.") as server:
        page = watch(context, server.links["anna"]).page
        page.get_by_role("button", name="Guidelines").click()
        expect(page.get_by_role("heading", name="Guidelines")).to_be_focused()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keyboard")
        expect(dialog.get_by_role("heading", name="Keyboard")).to_be_focused()
        expect(dialog.get_by_text("focus mode that stays on")).to_be_visible()
        terms = [node["name"]["value"] for node in tree(page, "#help-keys") if node["role"]["value"] == "StaticText"]
        assert {"Alt with up or down arrow", "Shift with 1 to 7", "left or right arrow"} <= set(terms)
        assert not [term for term in terms if any(sign in term for sign in "⇧↑↓←→")]


def test_a_field_with_the_focus_does_not_hide_the_prompt(context, tmp_path):
    """The focus starts in the field, and what stands before it would not be read."""
    with served(tmp_path, [{"prompt": "Why is the sky blue?"}], "demonstrate") as server:
        page = watch(context, server.links["anna"]).page
        expect(page.get_by_label("Your answer", exact=True)).to_be_focused()
        expect(said(page)).to_have_text("Next: Why is the sky blue?")


def test_enter_submits_what_was_chosen_by_a_key(context, tmp_path):
    """After a mistake the focus is on the first button, which Enter would press."""
    with served(tmp_path, [task("2+2?", ["4", "5"])], "compare") as server:
        page = watch(context, server.links["anna"]).page
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="A is better")).to_be_focused()
        page.keyboard.press("b")
        expect(page.get_by_role("button", name="B is better")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="B is better")).to_have_attribute("aria-pressed", "true")
