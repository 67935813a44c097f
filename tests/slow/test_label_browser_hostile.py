"""Hostile texts on the pages of `rlhf-kit label`: nothing of them runs, is loaded, or leaves the screen sideways."""

from __future__ import annotations

import pytest
from label_pages import (
    DESKTOP,
    MARKS,
    PHONE,
    narrow,
    rank_by_keys,
    served,
    submit,
    task,
    watch,
)
from playwright.sync_api import expect

pytestmark = MARKS
SMALL = {**PHONE, "viewport": {"width": 360, "height": 640}}
DEVICES = {"desktop": DESKTOP, "phone": PHONE, "small": SMALL}


HOSTILE = [
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned=2'><svg onload='window.pwned=3'></svg>",
    "[link](javascript:window.pwned=4) ![image](http://elsewhere.example/spy.png) <iframe src='http://elsewhere.example'>"
    "</iframe> [data](data:text/html,<script>window.pwned=5</script>) <style>body{display:none}</style>",
    "W" * 3000 + " " + "https://elsewhere.example/" + "a" * 500,
    "مرحبا بالعالم. هذا نص طويل بما يكفي ليملأ السطر. " * 8 + "\u202eabc\u202c",
    "A line of eight thousand characters. " * 216,
    "```python\n" + "x = '" + "y" * 400 + "'\n</code></pre><script>window.pwned = 6</script>\n```",
    "|" + "column|" * 14 + "\n|" + "---|" * 14 + "\n|" + "a cell with words|" * 14,
    "</div></main><form action='http://elsewhere.example'><input name=q autofocus onfocus='window.pwned=7'>{{7*7}}",
]  # fmt: skip
FOREIGN = "script, style, img, svg, iframe, form, object, embed, input:not([type=radio]):not([type=checkbox])"


@pytest.mark.parametrize("device", ["desktop", "phone", "small"])
def test_hostile_texts_do_nothing_and_stay_on_the_screen(browser, tmp_path, device):
    """As prompt, answers, guidelines and notes, for the labeler and for the admin."""
    turns = [("system", HOSTILE[0]), ("user", HOSTILE[1]), ("assistant", HOSTILE[2]), ("user", HOSTILE[5])]
    prompt = [{"role": role, "content": content} for role, content in turns]
    rows = [task(prompt, HOSTILE[4:] + HOSTILE[:4], "abcdefgh"), task(HOSTILE[0], ["yes", "no"])]
    with served(tmp_path, rows, labelers=["a", "b"], overlap=2, guidelines="\n\n".join(HOSTILE)) as server:
        for name, best in (("a", "yes"), ("b", "no")):
            context = browser.new_context(**DEVICES[device])
            seen = watch(context, server.links[name])
            page = seen.page
            expect(page.locator(".card")).to_have_count(8)
            assert page.locator(f"main :is({FOREIGN})").count() == 0
            assert page.locator("main a:not([rel~=noopener][target=_blank][href^='http'])[href]").count() == 0
            assert narrow(page)
            page.get_by_role("button", name="Guidelines").click()
            assert page.locator(f"#guidelines :is({FOREIGN})").count() == 0 and narrow(page)
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Skip").click()
            page.get_by_label("Another reason").check()
            page.get_by_label("Anything to add").fill(HOSTILE[0] + "W" * 900)
            page.get_by_role("dialog").get_by_role("button", name="Skip", exact=True).click()
            expect(page.locator(".card")).to_have_count(2)
            rank_by_keys(page, {best: 1, "no" if best == "yes" else "yes": 2})
            submit(page, 1)
            assert seen.is_clean() and page.evaluate("window.pwned === undefined")
            context.close()
        context = browser.new_context(**DEVICES[device])
        seen = watch(context, server.links["admin"])
        expect(seen.page.locator(".disagreement")).to_have_count(1)
        expect(seen.page.locator("#skips tbody tr")).to_have_count(2)
        assert seen.page.locator("main :is(script, style, img, svg, iframe, form, object)").count() == 0
        assert narrow(seen.page) and seen.is_clean() and seen.page.evaluate("window.pwned === undefined")
        context.close()
