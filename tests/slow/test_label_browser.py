"""Ranking with `rlhf-kit label` in a real browser: what mouse, keyboard and touch do is in the exported file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from label_pages import (
    MARKS,
    PHONE,
    RIVERS,
    card_of,
    drag,
    drag_by_touch,
    letter_of,
    rank_by_keys,
    ranked,
    said,
    served,
    submit,
    task,
    watch,
)
from playwright.sync_api import Page, expect

pytestmark = MARKS


SUM = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
]
FIVE = [
    task("Name three rivers of Italy.", RIVERS),
    task("Capital of Australia? One word.", ["Canberra", "It is Canberra.", "Melbourne, perhaps …"]),
    task(
        SUM,
        ["4", "four", "5"],
    ),
    task("Write a villain's monologue.", ["Tremble!", "I cannot.", "Ha ha.", "Once upon a time"]),
    task("Say yes.", ["yes", "Yes!"]),
]
EXPECTED_FIVE = [
    {"prompt": "Name three rivers of Italy.", "labeler": "anna",
     "responses": [ranked("It has many rivers.", 2, "ppo"), ranked("Po, Tiber, Arno.", 1, "sft"),
                   ranked("Sydney.", 3, "base")]},
    {"prompt": "Capital of Australia? One word.", "labeler": "anna",
     "responses": [ranked("Canberra", 1, "sft"), ranked("It is Canberra.", 1, "ppo"),
                   ranked("Melbourne, perhaps …", 2, "base", ended=False)]},
    {"prompt": SUM, "labeler": "anna", "meta": {"note": "wrong sum"},
     "responses": [ranked("4", 1, "sft", overall=7, flags={"satisfies_constraint": True}),
                   ranked("5", 3, "base", overall=1, flags={"hallucination": True}), ranked("four", 2, "ppo")]},
    {"prompt": "Write a villain's monologue.", "labeler": "anna", "meta": {"note": "kept over a reload"},
     "responses": [ranked("Ha ha.", 2, "base", axes={"helpful": 2}), ranked("I cannot.", 4, "ppo"),
                   ranked("Once upon a time", 3, "ptx", overall=4, flags={"fails_instruction": True}),
                   ranked("Tremble!", 1, "sft", axes={"helpful": 1})]},
    {"prompt": "Say yes.", "labeler": "anna", "responses": [ranked("Yes!", 2, "ppo"), ranked("yes", 1, "sft")]},
]  # fmt: skip


def rank_first_by_mouse(page: Page) -> None:
    """The third best is dropped beside the first, then taken into a place between two others and out again."""
    for text, goal in (("Po, Tiber, Arno.", 1), ("Sydney.", 2), ("It has many rivers.", 2)):
        drag(page, letter_of(page, text), f".drop[data-rank='{goal}']")
    a, b, c = (letter_of(page, text) for text in ("Po, Tiber, Arno.", "It has many rivers.", "Sydney."))
    expect(page.locator("#said")).to_contain_text("tied with")
    drag(page, b, ".gap[data-after='1']")
    for letter, rank in ((a, 1), (b, 2), (c, 3)):
        expect(page.locator(f".drop[data-rank='{rank}'] .chip")).to_have_attribute("data-key", letter)
        # Board and radio buttons show the same.
        expect(page.locator(f"#answer-{letter} fieldset").first.get_by_role("radio", checked=True)).to_have_value(
            str(rank)
        )
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#counts")).to_contain_text("1 done")


def rank_third_and_flag(page: Page) -> None:
    """Marks by Shift and a digit, a flag by the mouse, the constraint, a note."""
    rank_by_keys(page, {"4": 1, "four": 2, "5": 3})
    page.keyboard.press("Shift+Digit1")
    page.keyboard.press(letter_of(page, "4").lower())
    page.keyboard.press("Shift+Digit7")
    wrong, right = card_of(page, "5"), card_of(page, "4")
    wrong.get_by_text("Flags", exact=False).first.click()
    wrong.get_by_label("Made up", exact=True).check()
    right.get_by_text("Flags", exact=False).first.click()
    right.get_by_label("kept", exact=True).check()
    expect(wrong.locator("summary .count").first).to_have_text(", 1 set")
    page.get_by_text("Note", exact=True).click()
    page.locator("#note").fill("wrong sum")


def test_a_labeler_ranks_five_tasks_and_the_file_is_exactly_that(context, tmp_path):
    """By mouse and by keyboard, with a tie, a flag, an undo, and a reload in the middle."""
    with served(tmp_path, FIVE) as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        expect(page.get_by_role("heading", name="Rank the answers")).to_be_visible()
        assert "#" not in page.url  # the token has left the address
        rank_first_by_mouse(page)
        expect(page.locator(".cut")).to_have_text("Cut off at the length limit")
        rank_by_keys(page, {"Canberra": 1, "It is Canberra.": 1, "Melbourne, perhaps …": 3})
        submit(page, 2)
        rank_third_and_flag(page)
        submit(page, 3)
        rank_by_keys(page, {"Tremble!": 4})
        page.locator("#heading").focus()
        page.keyboard.press("u")  # back to the third: all of it is there
        expect(page.locator("#counts")).to_contain_text("2 done")
        expect(page.locator("#note")).to_have_value("wrong sum")
        expect(card_of(page, "5").get_by_label("Made up", exact=True)).to_be_checked()
        submit(page, 3)
        fourth_is_reloaded(page)
        submit(page, 4)
        radios_by_tab_and_arrows(page)
        submit(page, 5)
        expect(page.get_by_role("heading", name="All done")).to_be_focused()
        assert seen.is_clean()
        rows = server.end()
    assert [said(row) for row in rows] == [said({"meta": {}, **row}) for row in EXPECTED_FIVE]
    seconds = [row["meta"]["seconds"] for row in rows]
    assert max(seconds) < 60 and seconds[0] > 1  # four times dragged


def fourth_is_reloaded(page: Page) -> None:
    """What was chosen before the undo is there again, and a reload a moment after a change loses nothing."""
    assert letter_of(page, "Tremble!") == page.locator(".drop[data-rank='4'] .chip").get_attribute("data-key")
    rank_by_keys(page, {"Tremble!": 1, "Ha ha.": 2, "Once upon a time": 3})
    page.keyboard.press("Shift+Digit4")
    card_of(page, "Once upon a time").get_by_text("Flags", exact=False).first.click()
    card_of(page, "Once upon a time").get_by_label("Fails the instruction", exact=True).check()
    for text, rank in (("Tremble!", "1"), ("Ha ha.", "2")):
        card_of(page, text).get_by_text("Ranks by quality", exact=False).first.click()
        card_of(page, text).get_by_role("group", name="Helpful").get_by_label(rank, exact=True).check()
    page.get_by_text("Note", exact=True).click()
    page.locator("#note").fill("kept over a reload")
    order = [card.get_attribute("data-key") for card in page.locator(".card").all()]
    texts = page.locator(".card .text").all_inner_texts()
    page.reload()
    expect(page.locator("#state")).to_have_text("3 of 4 ranked")
    assert page.locator(".card .text").all_inner_texts() == texts and len(order) == 4
    expect(page.locator("#note")).to_have_value("kept over a reload")
    expect(card_of(page, "Once upon a time").get_by_label("Fails the instruction", exact=True)).to_be_checked()
    page.keyboard.press("Control+Enter")  # one is missing: told in words, and the focus is where it is mended
    missing = letter_of(page, "I cannot.")
    expect(page.locator("#problems")).to_have_text(f"Still without a rank: {missing}.")
    expect(card_of(page, "I cannot.").get_by_text("Needs a rank.")).to_be_visible()
    page.keyboard.press("4")
    expect(page.locator("#state")).to_have_text("4 of 4 ranked")


def radios_by_tab_and_arrows(page: Page) -> None:
    """No shortcut at all: from the heading by Tab into the native radio buttons."""
    page.get_by_role("button", name="Keys").click()
    page.get_by_label("Single keys are shortcuts").uncheck()
    page.get_by_role("button", name="Close").click()
    page.locator("#heading").focus()
    better = letter_of(page, "yes")
    page.keyboard.press("a")
    page.keyboard.press("1")
    expect(page.locator("#state")).to_have_text("0 of 2 ranked")  # they are off
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    if better != "A":
        page.keyboard.press("ArrowRight")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.card')?.dataset.key") == "B":
            break
    page.keyboard.press("Space")
    if better == "A":
        page.keyboard.press("ArrowRight")
    expect(page.locator("#state")).to_have_text("2 of 2 ranked")


def test_half_places_by_keyboard(context, tmp_path):
    """Alt and an arrow take an answer out of a tie, into the next tie, and so on; the others make room."""
    with served(tmp_path, [task("?", ["one", "two", "three"])]) as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        rank_by_keys(page, {"one": 1, "two": 2, "three": 3})
        steps = []
        for key in ("Alt+ArrowUp", "Alt+ArrowUp", "Alt+ArrowUp", "Alt+ArrowUp", "Alt+ArrowUp", "Alt+ArrowDown"):
            page.keyboard.press(key)
            steps.append([rank_of(page, text) for text in ("one", "two", "three")])
        assert steps == [[1, 2, 2], [1, 3, 2], [1, 2, 1], [2, 3, 1], [2, 3, 1], [1, 2, 1]]
        assert seen.is_clean()


def rank_of(page: Page, text: str) -> int:
    checked = card_of(page, text).locator("fieldset").first.get_by_role("radio", checked=True)
    return int(checked.get_attribute("value"))


def test_by_touch_on_a_phone(browser, tmp_path):
    """With a finger: two cards dragged by their grips, one ranked by its radio buttons; a finger elsewhere scrolls."""
    context = browser.new_context(**PHONE)
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS)]) as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        for text, goal in (("Sydney.", 3), ("Po, Tiber, Arno.", 1)):
            page.locator(".board").scroll_into_view_if_needed()
            drag_by_touch(page, letter_of(page, text), f".drop[data-rank='{goal}']")
            expect(page.locator(f".drop[data-rank='{goal}'] .chip")).to_have_attribute(
                "data-key", letter_of(page, text)
            )
        card_of(page, "It has many rivers.").locator("fieldset").first.locator("input[value='1']").tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="Submit").tap()
        expect(page.get_by_role("heading", name="All done")).to_be_visible()
        assert seen.is_clean()
        rows = server.end()
    expected = [
        ranked("It has many rivers.", 1, "ppo"),
        ranked("Po, Tiber, Arno.", 1, "sft"),
        ranked("Sydney.", 2, "base"),
    ]
    assert said(rows[0])["responses"] == expected
    context.close()


def test_a_skip_has_a_reason_and_can_be_undone(context, tmp_path):
    with served(tmp_path, FIVE[:2]) as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        page.keyboard.press("s")
        dialog = page.get_by_role("dialog", name="Skip this task")
        dialog.get_by_role("button", name="Skip").click()
        expect(dialog.get_by_role("alert")).to_have_text("Choose a reason.")
        dialog.get_by_label("I cannot judge this").check()
        dialog.get_by_label("Anything to add").fill("too far from what I know")
        dialog.get_by_role("button", name="Skip").click()
        expect(page.locator("#counts")).to_have_text("0 done, 1 skipped, 1 left")
        page.keyboard.press("u")
        expect(page.locator("#counts")).to_have_text("0 done, 2 left")
        expect(page.locator("#task").get_by_text("Name three rivers of Italy.")).to_be_visible()
        assert seen.is_clean()


def test_time_stands_still_while_nobody_looks(context, tmp_path):
    """A hidden page is simulated by its own events: two seconds are hidden, a good one is seen."""
    with served(tmp_path, [task("Say yes.", ["yes", "Yes!"])]) as server:
        opened = time.monotonic()
        page = watch(context, server.links["anna"]).page
        expect(page.locator(".card")).to_have_count(2)
        hide = "state => { Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});"
        hide += " document.dispatchEvent(new Event('visibilitychange')); }"
        page.evaluate(hide, "hidden")
        page.wait_for_timeout(2000)
        page.evaluate(hide, "visible")
        page.wait_for_timeout(1000)
        rank_by_keys(page, {"yes": 1, "Yes!": 1})
        submit(page, 1)
        in_all = time.monotonic() - opened
        (row,) = server.end()
    assert 1.0 <= row["meta"]["seconds"] <= in_all - 2.0


def held_for(store: Path) -> float:
    """Seconds for which the only task stays with whoever has it."""
    with closing(sqlite3.connect(store)) as connection:
        ((until,),) = connection.execute("SELECT until FROM assignments WHERE state = 'open'").fetchall()
    return until - time.time()


def waited_for(test: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not test() and time.monotonic() < end:
        time.sleep(0.05)
    return test()


def test_a_page_that_is_closed_holds_no_task_with_which_nobody_has_begun(context, tmp_path):
    with served(tmp_path, [task("Which rivers?", RIVERS[:2])]) as server:
        store = server.out.with_suffix(".sqlite")
        page = watch(context, server.links["anna"]).page
        assert held_for(store) > 1700
        page.goto("about:blank")
        assert waited_for(lambda: held_for(store) < 61)
        page = watch(context, server.links["anna"]).page
        assert held_for(store) > 1700
        page.reload()
        expect(page.locator("body")).to_have_attribute("data-ready", "yes")
        assert held_for(store) > 1700
        page.close()
        assert waited_for(lambda: held_for(store) < 61)
        page = watch(context, server.links["anna"]).page
        rank_by_keys(page, {RIVERS[0]: 1})
        page.goto("about:blank")  # before the draft is sent by itself
        page.wait_for_timeout(1500)
        assert held_for(store) > 1700
        page = watch(context, server.links["anna"]).page
        assert rank_of(page, RIVERS[0]) == 1


def test_a_server_that_is_away_loses_nothing(context, tmp_path):
    """The page says so, keeps what was done, and goes on when the server can be reached again."""
    with served(tmp_path, [task("Say yes.", ["yes", "Yes!"])]) as server:
        page = watch(context, server.links["anna"]).page
        expect(page.locator(".card")).to_have_count(2)
        context.set_offline(True)
        rank_by_keys(page, {"yes": 1, "Yes!": 2})
        page.keyboard.press("Control+Enter")
        expect(page.locator("#problems")).to_contain_text("cannot be reached")
        context.set_offline(False)
        submit(page, 1)
        (row,) = server.end()
    assert said(row)["responses"] == [ranked("Yes!", 2, "ppo"), ranked("yes", 1, "sft")]
