"""What strains the pages of `rlhf-kit label`: very long and very wide answers, large letters, a server that is away."""

from __future__ import annotations

import pytest
from label_pages import DESKTOP, MARKS, PHONE, RIVERS, card_of, narrow, rank_by_keys, served, submit, task, watch
from playwright.sync_api import expect

pytestmark = MARKS
LONG = ("The roots want air, and the leaves want light. " * 500)[:20000]
ARABIC = "الأنهار هي:\n\n1. النهر الأول\n2. النهر الثاني\n\n- Po\n- Tiber"
TABLE = "| river | what is said of it | where | how long | into | since |\n|---|---|---|---|---|---|\n" + 2 * (
    "| Po | it is the longest one of all | Turin | 652 km | Adriatic | always |\n"
)


def between(page, letter):
    """Pixels from the end of an answer's text to what is asked about it."""
    box = "document.querySelector('#answer-' + key + ' > .{}').getBoundingClientRect()"
    return page.evaluate(f"key => {box.format('controls')}.top - {box.format('text')}.bottom", letter)


def test_a_very_long_answer_leaves_the_others_whole(context, tmp_path):
    with served(
        tmp_path, [task("Which rivers?", [LONG, "Po."]), task("And in Spain?", ["Ebro. " * 9, "Tajo."])]
    ) as server:
        page = watch(context, server.links["anna"]).page
        short = card_of(page, "Po.").get_attribute("data-key")
        assert between(page, short) < 40
        rank_by_keys(page, {"Po.": 1})
        other = "AB".replace(short, "")
        page.keyboard.press(other.lower())
        page.keyboard.press("2")
        submit(page, 1)
        tops = [round(page.locator(f"#answer-{key} .controls").bounding_box()["y"]) for key in "AB"]
        assert tops[0] == tops[1]  # where answers are about as long, what is asked stands side by side


def test_each_text_has_its_own_direction(context, tmp_path):
    with served(tmp_path, [task("Which rivers?", [ARABIC, "1. Po\n2. Tiber"])]) as server:
        page = watch(context, server.links["anna"]).page
        look = "list => [getComputedStyle(list).direction, parseFloat(getComputedStyle(list).paddingRight) > 10]"
        right = page.locator(".card", has_text="النهر")
        left = page.locator(".card").filter(has_not_text="النهر")
        assert right.locator("ol").evaluate(look) == ["rtl", True]
        assert right.locator(".text ul").evaluate(look) == ["ltr", False]
        assert left.locator("ol").evaluate(look) == ["ltr", False]


def test_marks_that_show_nothing_are_shown_as_they_are(context, tmp_path):
    """Answers that are nothing but Markdown's own marks: an empty heading, an empty block of code, an empty point."""
    bare = ["#", "```\n```", "- "]
    with served(tmp_path, [task("Which rivers?", [*bare, "**Po**"])]) as server:
        page = watch(context, server.links["anna"]).page
        texts = page.locator(".card > .text").all_inner_texts()
        assert sorted(text.strip() for text in texts) == sorted(["#", "```\n```", "-", "Po"])
        assert page.locator(".card").get_by_text("Po", exact=True).evaluate("e => e.localName") == "strong"


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_wide_table_is_scrolled_and_not_squeezed(browser, tmp_path, device):
    with served(tmp_path, [task("Which rivers?", [TABLE, "Po."])]) as server:
        context = browser.new_context(**device)
        page = watch(context, server.links["anna"]).page
        cell = page.locator(".card td", has_text="it is the longest one of all").first
        assert cell.bounding_box()["height"] < 60  # two lines at most
        box = page.locator(".card .wide")
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        assert narrow(page)
        context.close()


@pytest.mark.parametrize("kind", ["rank", "compare", "rate", "demonstrate"])
def test_letters_twice_as_large_on_a_phone(browser, tmp_path, kind):
    with served(tmp_path, [task("Which rivers?", RIVERS[:2])], kind, guidelines="# Fair") as server:
        context = browser.new_context(**PHONE)
        page = watch(context, server.links["anna"]).page
        page.evaluate("document.documentElement.style.fontSize = '200%'")
        assert narrow(page)
        page.evaluate("document.documentElement.style.fontSize = ''")
        assert narrow(page)
        context.close()


def test_each_of_many_ranks_can_be_pressed(browser, tmp_path):
    """As many answers as a page shows, and the ranks that are furthest to the right."""
    names = [f"Answer number {n}" for n in range(26)]
    with served(tmp_path, [task("Which rivers?", names, ["sft"] * 26)]) as server:
        for device in (DESKTOP, PHONE):
            context = browser.new_context(**device)
            page = watch(context, server.links["anna"]).page
            for rank in (13, 26):
                page.locator("#answer-B").get_by_role("group", name="Rank of").get_by_label(
                    str(rank), exact=True
                ).click()
                expect(page.locator(f".drop[data-rank='{rank}'] .chip")).to_have_attribute("data-key", "B")
            assert narrow(page)
            context.close()


def test_nine_ranks_fit_a_laptop(context, tmp_path):
    with served(tmp_path, [task("Which rivers?", [f"River {n}" for n in range(9)], "abcdefghi")]) as server:
        page = watch(context, server.links["anna"]).page
        order = page.locator(".order")
        assert order.evaluate("order => order.scrollHeight - order.clientHeight") <= 1
        end = page.locator(".actions").bounding_box()
        assert end["y"] + end["height"] <= 900


def test_forced_colours_keep_what_only_a_ground_shows(browser, tmp_path):
    with served(tmp_path, [task("Which rivers?", RIVERS)]) as server:
        context = browser.new_context(**DESKTOP, forced_colors="active")
        page = watch(context, server.links["anna"]).page
        edge = "element => getComputedStyle(element).borderTopStyle"
        assert [
            page.locator(name).first.evaluate(edge) for name in (".tier", ".conversation", "progress", ".letter")
        ] == ["solid"] * 4
        context.close()


# -------------------------------------------------------------------- what cannot be saved


def test_what_is_not_saved_is_told_before_anything_is_submitted(context, tmp_path):
    with served(tmp_path, [task("Which rivers?", RIVERS)]) as server:
        page = watch(context, server.links["anna"]).page
        unsaved = page.locator("#unsaved")
        expect(unsaved).to_be_hidden()
        context.set_offline(True)
        rank_by_keys(page, {RIVERS[0]: 1})
        expect(unsaved).to_have_text("Not saved yet: The server cannot be reached. Leave this tab open.")
        context.set_offline(False)
        expect(unsaved).to_be_hidden()
        page.reload()
        expect(page.locator("#state")).to_have_text("1 of 3 ranked")


def test_two_labelers_in_one_browser_see_who_they_are(context, tmp_path):
    rows = [task(f"Which rivers? {number}", RIVERS) for number in range(3)]
    with served(tmp_path, rows, labelers=["anna", "ben"]) as server:
        first = watch(context, server.links["anna"]).page
        expect(first.locator("#who")).to_have_text("Labeler: anna")
        second = watch(context, server.links["ben"]).page
        expect(second.locator("#who")).to_have_text("Labeler: ben")
        rank_by_keys(first, {RIVERS[0]: 1})
        expect(first.locator("#unsaved")).to_contain_text("refused: open your link again")
        first.goto(server.links["anna"])
        expect(first.locator("#who")).to_have_text("Labeler: anna")
        expect(first.locator("#state")).to_have_text("1 of 3 ranked")  # this tab has kept it


def test_who_waits_sees_that_the_server_is_away(context, tmp_path):
    with served(tmp_path, [task("Which rivers?", RIVERS)], "rank", "--stay") as server:
        page = watch(context, server.links["anna"]).page
        rank_by_keys(page, {text: 1 for text in RIVERS})
        submit(page, 1)
        expect(page.get_by_role("heading", name="Nothing to do right now")).to_be_focused()
        context.set_offline(True)
        expect(page.locator("#problems")).to_have_text("The server cannot be reached.")
        context.set_offline(False)
        expect(page.locator("#problems")).to_be_empty()


def test_the_admin_keeps_the_place_and_is_told_what_fails(context, tmp_path):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    with served(tmp_path, [task("Which rivers?", RIVERS)], labelers=["anna", "ben"], overlap=2) as server:
        for name, ranks in (("anna", (1, 2, 3)), ("ben", (3, 2, 1))):
            page = watch(context, server.links[name]).page
            rank_by_keys(page, dict(zip(RIVERS, ranks, strict=True)))
            page.keyboard.press("Control+Enter")
            expect(page.locator("#counts")).to_contain_text("1 done")
            page.close()
        page = watch(context, server.links["admin"]).page
        copy = page.locator("#copy-anna")
        copy.click()
        expect(page.locator("#links li", has_text="anna").get_by_text("✓")).to_be_visible()
        expect(copy).to_be_focused()
        assert page.evaluate("navigator.clipboard.readText()") == server.links["anna"]
        page.get_by_role("button", name="Ask one more labeler").click()
        expect(page.get_by_role("button", name="One more is asked")).to_be_focused()
        context.set_offline(True)
        expect(page.locator("#updated")).to_have_text("Not up to date: The server cannot be reached.")
        context.set_offline(False)
        expect(page.locator("#updated")).to_contain_text("Updated")
        page.get_by_label("Language").select_option("zh")
        expect(page.locator("#updated")).to_contain_text("更新", timeout=3000)  # before it is asked for anew
