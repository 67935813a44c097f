"""The other tasks of `rlhf-kit label` in a real browser, its languages, and several labelers with the admin's page."""

from __future__ import annotations

from pathlib import Path

from label_pages import (
    DESKTOP,
    MARKS,
    RIVERS,
    card_of,
    letter_of,
    rank_by_keys,
    ranked,
    said,
    served,
    submit,
    task,
    watch,
)
from playwright.sync_api import Route, expect

from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task

pytestmark = MARKS


# -------------------------------------------------------------------- the other tasks


def test_two_answers_compared_by_keys_and_by_mouse(context, tmp_path):
    rows = [task("2+2?", ["4", "5"]), task("3+3?", ["6", "six"]), task("1+1?", ["3", "2"])]
    with served(tmp_path, rows, "compare") as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        page.keyboard.press("Enter")
        expect(page.locator("#problems")).to_have_text("Choose A, B or a tie.")
        page.locator("#heading").focus()
        page.keyboard.press("ArrowLeft" if letter_of(page, "4") == "A" else "ArrowRight")
        page.keyboard.press("Enter")
        expect(page.locator("#counts")).to_contain_text("1 done")
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("button", name="Tie")).to_have_attribute("aria-pressed", "true")
        submit(page, 2)
        page.get_by_role("button", name=f"{letter_of(page, '2')} is better").click()
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_role("heading", name="All done")).to_be_visible()
        assert seen.is_clean()
        exported = [said(row)["responses"] for row in server.end()]
    assert exported == [
        [ranked("4", 1, "sft"), ranked("5", 2, "ppo")],
        [ranked("6", 1, "sft"), ranked("six", 1, "ppo")],
        [ranked("2", 1, "ppo"), ranked("3", 2, "sft")],
    ]


def test_answers_rated_one_by_one(context, tmp_path):
    with served(tmp_path, [task("2+2?", ["4", "5"])], "rate", "--stay") as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        marks = {"4": 7, "5": 1}
        for done in (1, 2):
            text = page.locator(".card .text").inner_text()
            page.keyboard.press(str(marks[text]))
            if text == "5":
                page.get_by_text("Flags").first.click()
                page.get_by_label("Made up", exact=True).check()
                page.locator("#heading").focus()
            page.keyboard.press("Enter")
            expect(page.locator("#counts")).to_contain_text(f"{done} done")
        # It stays open: further answers, as a training asks for them, come by themselves.
        expect(page.get_by_role("heading", name="Nothing to do right now")).to_be_visible()
        assert seen.is_clean()
        rows = sorted(map(said, server.end()), key=lambda row: row["response"])
    common = {"prompt": "2+2?", "scale": [1, 7], "labeler": "anna"}
    assert rows == [
        {**common, "response": "4", "score": 7, "source": "sft"},
        {**common, "response": "5", "score": 1, "source": "ppo", "meta": {"flags": {"hallucination": True}}},
    ]


def test_tasks_that_come_later_appear_by_themselves(context, tmp_path):
    """As a training that asks for scores adds them: from another process, to a page that waits, not while paused."""
    with served(tmp_path, [task("2+2?", ["4"])], "rate", "--stay") as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        page.keyboard.press("7")
        submit(page, 1)
        expect(page.get_by_role("heading", name="Nothing to do right now")).to_be_focused()
        page.get_by_role("button", name="Undo").focus()
        page.wait_for_timeout(2000)  # asked again meanwhile: whoever is on the button stays there
        expect(page.get_by_role("button", name="Undo")).to_be_focused()
        store = Store(server.out.with_suffix(".sqlite"))
        store.pause(True)
        expect(page.get_by_role("heading", name="Paused")).to_be_focused()
        store.add([Task("rate", "3+3?", (Candidate("six"),))])
        page.wait_for_timeout(2000)
        expect(page.locator(".card")).to_have_count(0)
        store.pause(False)
        expect(page.locator("#task").get_by_text("3+3?")).to_be_visible()
        expect(page.locator("#said")).to_have_text("A new task is here.")
        page.keyboard.press("6")
        submit(page, 2)
        store.close()
        assert seen.is_clean()
        assert [(row["prompt"], row["score"]) for row in server.end()] == [("2+2?", 7), ("3+3?", 6)]


def test_a_demonstration(context, tmp_path):
    with served(tmp_path, [{"prompt": "Why is the sky blue?"}], "demonstrate") as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        expect(page.get_by_label("Your answer", exact=True)).to_be_focused()
        page.keyboard.press("Control+Enter")
        expect(page.locator("#problems")).to_have_text("Write an answer, or skip the task.")
        page.keyboard.type("Air scatters blue light most.\n\nu and s are letters here.")
        page.reload()
        expect(page.get_by_label("Your answer", exact=True)).to_have_value(
            "Air scatters blue light most.\n\nu and s are letters here."
        )
        submit(page, 1)
        assert seen.is_clean()
        (row,) = server.end()
    text = "Air scatters blue light most.\n\nu and s are letters here."
    assert said(row) == {"prompt": "Why is the sky blue?", "completion": text, "labeler": "anna"}


def test_prompts_of_three_kinds(context, tmp_path):
    hints = (("plain", "About **gardens**"), ("few_shot", "Moods"), ("use_case", "Letters"))
    rows = [{"text": hint, "meta": {"kind": kind}} for kind, hint in hints]
    with served(tmp_path, rows, "write") as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        expect(page.locator(".conversation strong")).to_have_text("gardens")
        page.get_by_label("Your prompt").fill("When do I plant tulips?")
        submit(page, 1)
        page.get_by_label("The instruction").fill("Give the mood of the sentence.")
        page.get_by_label("Example 1: what is given").fill("What a day!")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#problems")).to_have_text("Example 1 needs both parts.")
        expect(page.get_by_label("Example 1: what is wanted")).to_be_focused()
        page.keyboard.type("happy")
        page.get_by_role("button", name="Add an example").click()
        expect(page.get_by_label("Example 2: what is given")).to_be_focused()
        page.keyboard.type("It rains again.")
        page.get_by_label("Example 2: what is wanted").fill("sad")
        submit(page, 2)
        page.get_by_label("The use case").fill("letters to neighbours")
        page.get_by_label("Your prompt").fill("Write to my neighbour about the hedge.")
        submit(page, 3)
        assert seen.is_clean()
        rows = [said(row) for row in server.end()]
    few = "Give the mood of the sentence.\n\nQ: What a day!\nA: happy\n\nQ: It rains again.\nA:"
    examples = [{"query": "What a day!", "response": "happy"}, {"query": "It rains again.", "response": "sad"}]
    common = {"origin": "labeler", "labeler": "anna"}
    assert rows == [
        {**common, "prompt": "When do I plant tulips?", "kind": "plain", "meta": {"hint": "About **gardens**"}},
        {**common, "prompt": few, "kind": "few_shot", "meta": {"examples": examples, "hint": "Moods"}},
        {
            **common,
            "prompt": "Write to my neighbour about the hedge.",
            "kind": "use_case",
            "category": "letters to neighbours",
            "meta": {"hint": "Letters"},
        },
    ]


def test_the_kind_of_a_prompt_is_chosen_where_none_is_asked_for(context, tmp_path):
    """Another server may leave it open: the state is changed on its way to the page."""
    with served(tmp_path, [], "write", "--limit", "1") as server:

        def opened(route: Route) -> None:
            answer = route.fetch()
            state = answer.json()
            route.fulfill(response=answer, json={**state, "task": {**state["task"], "prompt_kind": None}})

        context.route("**/api/task", opened)
        seen = watch(context, server.links["anna"])
        page = seen.page
        page.get_by_label("Your prompt").fill("Add the numbers.")
        page.get_by_label("With examples").check()
        expect(page.get_by_label("The instruction")).to_have_value("Add the numbers.")  # what was written stays
        page.get_by_label("Example 1: what is given").fill("1 2")
        page.get_by_label("Example 1: what is wanted").fill("3")
        submit(page, 1)
        assert seen.is_clean()
        (row,) = server.end()
    assert (row["kind"], row["prompt"]) == ("few_shot", "Add the numbers.\n\nQ: 1 2\nA:")


# -------------------------------------------------------------------- languages, several people


def test_chinese_by_the_browser_and_by_choice(browser, tmp_path):
    context = browser.new_context(**DESKTOP, locale="zh-CN")
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS)], guidelines="# 指南\n\n先读完。") as server:
        seen = watch(context, server.links["anna"])
        page = seen.page
        expect(page.get_by_role("heading", name="给回答排序")).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "zh-Hans"
        page.get_by_role("button", name="标注指南").click()
        expect(page.get_by_role("dialog").get_by_text("先读完。")).to_be_visible()
        page.keyboard.press("Escape")
        rank_by_keys(page, {"Sydney.": 3})
        page.keyboard.press("Control+Enter")
        expect(page.locator("#problems")).to_contain_text("还没有名次")
        page.get_by_label("语言").select_option("en")  # nothing of the work is lost
        expect(page.get_by_role("heading", name="Rank the answers")).to_be_visible()
        expect(page.locator("#state")).to_have_text("1 of 3 ranked")
        page.reload()
        expect(page.get_by_role("heading", name="Rank the answers")).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "en"
        assert seen.is_clean()
    context.close()


def test_two_labelers_and_what_the_admin_sees(browser, tmp_path):
    """Both rank the same two tasks, one of them in opposite orders; the admin asks one more and pauses."""
    rows = [task("Name three rivers of Italy.", RIVERS), task("Say yes.", ["yes", "Yes!"])]
    said_by = {
        "anna": [{"Po, Tiber, Arno.": 1, "It has many rivers.": 2, "Sydney.": 3}, {"yes": 1, "Yes!": 2}],
        "ben": [{"Po, Tiber, Arno.": 1, "It has many rivers.": 2, "Sydney.": 3}, {"yes": 2, "Yes!": 1}],
    }
    with served(tmp_path, rows, labelers=["anna", "ben", "chris"], overlap=2) as server:
        for name, tasks in said_by.items():
            context = browser.new_context(**DESKTOP)
            page = watch(context, server.links[name]).page
            for number, ranks in enumerate(tasks, 1):
                expect(card_of(page, next(iter(ranks)))).to_be_visible()
                rank_by_keys(page, ranks)
                submit(page, number)
            context.close()
        context = browser.new_context(**DESKTOP)
        seen = watch(context, server.links["admin"])
        page = seen.page
        expect(page.locator("#overview")).to_contain_text("2of 2")
        expect(page.locator("#overview")).to_contain_text("75 %")  # of 4 pairs that both ordered, 3 are the same
        for name in said_by:
            expect(page.locator("#labelers").get_by_role("row", name=name)).to_contain_text("2")
        expect(page.locator(".disagreement")).to_have_count(1)
        expect(page.locator(".disagreement h3")).to_have_text("Say yes.")
        expect(page.get_by_label("Link of ben")).to_have_value(server.links["ben"])
        page.get_by_role("button", name="Ask one more labeler").click()
        expect(page.locator("#said")).to_have_text("One more is asked")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#running")).to_have_text("Paused: labelers see no tasks")
        third = watch(browser.new_context(**DESKTOP), server.links["chris"]).page
        expect(third.get_by_role("heading", name="Paused")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(third.get_by_text("Say yes.")).to_be_visible()  # by itself
        with page.expect_download() as download:
            page.get_by_role("link", name="Export").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == 4
        assert seen.is_clean()
        context.close()
        assert len(server.end()) == 4


def test_a_link_that_is_none(context, tmp_path):
    with served(tmp_path, [task("Name three rivers of Italy.", RIVERS)]) as server:
        link = server.links["anna"].partition("#")[0] + "#" + "0" * 64
        page = watch(context, link).page
        expect(page.get_by_role("heading", name="This page cannot be opened")).to_be_visible()
        expect(page.locator(".card")).to_have_count(0)
        assert "0000" not in page.url
