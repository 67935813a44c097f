"""What somebody might try on the page's server: each is refused and logged, and nothing is leaked.

All goes to a real server on 127.0.0.1. Whatever is logged in this file is searched for tokens at its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import time
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_load import Server, write_tasks
from label_site import Person, rank_task, raw, site

from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task
from rlhf_kit.labeling.web import server
from rlhf_kit.labeling.web.markdown import ATTRIBUTES, SCHEMES, TAGS, safe_html
from rlhf_kit.labeling.web.security import HEADERS, Limits, Rate
from rlhf_kit.records import Message

GUARD = "rlhf_kit.labeling.web.guard"


class _Heard(logging.Handler):
    """Keeps what is logged by anybody, as it would be printed."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, self.format(record)))

    def refusals(self) -> list[dict[str, object]]:
        """What the guard has said of refusals: each is one line of JSON."""
        said = [json.loads(line) for name, line in self.lines if name == GUARD]
        return [line for line in said if line["event"] == "refused"]


@pytest.fixture(scope="module")
def heard():
    handler, levels = _Heard(), {}
    for name in ("", "rlhf_kit", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        levels[logger] = logger.level
        logger.setLevel(5)  # uvicorn's trace is below DEBUG
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture(scope="module")
def served(tmp_path_factory, heard):
    """A server with the limits that are shipped, which the attacks below stay under unless they mean to."""
    tasks = [rank_task(f"Question {number}?") for number in range(40)]
    with site(tmp_path_factory.mktemp("site"), tasks, ["anna", "ben"]) as made:
        yield made


@pytest.fixture
def refused(served, heard):
    """Asserts that so many requests of this test were logged with a status and a reason, and changed nothing."""
    before = (list(served.store.answered()), list(served.store.skipped()), served.store.paused)
    start = len(heard.refusals())

    def check(status: int, reason: str, times: int = 1) -> None:
        new = heard.refusals()[start:]
        assert [(line["status"], line["reason"]) for line in new] == [(status, reason)] * times
        assert (list(served.store.answered()), list(served.store.skipped()), served.store.paused) == before

    return check


def assert_says_nothing(answer) -> None:
    """An error is words for people; every answer has the headers that bind a browser."""
    assert list(answer.json) == ["error"] or set(answer.json) == {"error", "problems"}
    text = answer.content.decode()
    for word in ("Traceback", "rlhf_kit", "/work", "/tmp", "sqlite", "secret-model", "root:", ".py"):
        assert word not in text
    for name, value in HEADERS.items():
        assert answer.headers[name.lower()] == value
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers


# -------------------------------------------------------------------- scripts in texts


class _Allowed(HTMLParser):
    """The oracle: what a browser would see in some HTML must be on the lists."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.depth: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES.get(tag, ()), (tag, name)
            if name == "href":
                # A browser strips control characters and blanks before it looks for a scheme.
                address = "".join(sign for sign in str(value) if sign > " ").lower()
                assert urlsplit(address).scheme in SCHEMES, value
            if name == "start":
                assert str(value).isdecimal()
        if tag == "a" and "href" in dict(attrs):
            assert dict(attrs)["rel"] == "noopener noreferrer nofollow"
            assert dict(attrs)["target"] == "_blank"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_safe(html: str) -> str:
    """The text that it shows."""
    parser = _Allowed()
    parser.feed(html)
    parser.close()
    return parser.text


SCRIPTS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(1)&gt;\">",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
    "<a href=javascript:alert(1)>x</a>",
    "<form action=//evil.example><input name=csrf></form>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<!--<img src=\"--><img src=x onerror=alert(1)//\">",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?php alert(1) ?>",
    "</p></div></main><script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A&#x61&#x76&#x61script:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](javascript&Tab;:alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](data:image/png;base64,AAAA)",
    "[x](file:///etc/passwd)",
    "[x](blob:http://127.0.0.1/1)",
    "[x](//evil.example)",
    "[x](/api/admin/export)",
    "[x](#token)",
    "[x](https://a.example \"onmouseover=alert(1)\")",
    "[x](https://a.example\"onmouseover=\"alert(1))",
    "[x](<javascript:alert(1)>)",
    "[![x](javascript:alert(1))](javascript:alert(2))",
    "![x](https://evil.example/seen.png)",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "<javascript:alert(1)>",
    "<data:text/html,<script>alert(1)</script>>",
    "<https://a.example/\"onclick=alert(1)>",
    "[x]: javascript:alert(1)\n\n[x] [x][] [y][x]",
    "[x]: https://a.example '\"><script>alert(1)</script>'\n\n[x]",
    "```\"><script>alert(1)</script>\nx\n```",
    "``` js onload=alert(1)\n</code></pre><script>alert(1)</script>\n```",
    "`</code><script>alert(1)</script>`",
    "| <img src=x onerror=alert(1)> |\n|---|\n| [x](javascript:alert(1)) |",
    "> <script>alert(1)</script>\n> * [a](javascript:alert(1))",
    "# <svg onload=alert(1)>",
    "*<b onclick=alert(1)>*",
    "~~</s><script>alert(1)</script>~~",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e<script>alert(1)</script>",
    "<scr\0ipt>alert(1)</scr\0ipt>",
    "<style>@import '//evil.example/x.css'</style>",
    "<p style=\"background:url(//evil.example)\">x</p>",
    "<template><script>alert(1)</script></template>",
    "<xmp><script>alert(1)</script></xmp>",
    "${alert(1)} {{alert(1)}}",
]  # fmt: skip


@pytest.mark.parametrize("text", SCRIPTS)
def test_no_text_becomes_more_than_text(text):
    assert_safe(safe_html(text))
    assert_safe(safe_html(f"1. x\n\n   > {text}\n\n[y](https://b.example) {text} **{text}**"))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(SCRIPTS) | st.text(alphabet="<>[]()`*_~|!#&;:\"'\\/ \n\t=-ax1", max_size=20), max_size=8)
)
def test_no_mixture_of_texts_becomes_more_than_text(parts):
    assert_safe(safe_html("".join(parts)))


@pytest.mark.parametrize(
    "tag",
    ["<b>", "<script>", "<i class='x'>", "<!-- x -->", "</div>", "[1]: https://a.example", "<?php ?>", "<![CDATA[x]]>"],
)
def test_what_looks_like_html_can_be_read(tag):
    """HTML in an answer is shown, not swallowed: a labeler judges what the model wrote."""
    assert assert_safe(safe_html(f"a {tag} b\n\n{tag}")) == f"a {tag} b\n{tag}\n"


def test_math_stands_as_the_model_wrote_it():
    assert safe_html(r"So \(x_1\) and \[ E = mc^2 \], not \*this\*") == (
        "<p>So \\(x_1\\) and \\[ E = mc^2 \\], not *this*</p>\n"
    )
    assert "<a" not in safe_html(r"\[a](http://b.example)")


def test_an_image_is_a_link_that_nobody_follows_by_reading():
    html = safe_html("![a *cat*](https://evil.example/seen.png)")
    assert html.startswith('<p>!<a href="https://evil.example/seen.png"') and assert_safe(html) == "!a cat\n"


def test_a_new_line_stays_one_but_in_a_file_of_markdown():
    assert safe_html("one\ntwo") == "<p>one<br>\ntwo</p>\n"
    assert safe_html("one\ntwo", breaks=False) == "<p>one\ntwo</p>\n"


def test_code_is_shown_as_code():
    assert safe_html("    <b>&amp;</b>") == '<pre tabindex="0"><code>&lt;b&gt;&amp;amp;&lt;/b&gt;\n</code></pre>\n'


@pytest.mark.parametrize(
    "start", ["[", "![", "](", "`", "` ", "*a ", "_a", "<", ">", "> ", "- ", "|a", "&", "<a ", "[]"]
)
def test_no_text_takes_long_to_show(start):
    """At the length up to which Markdown is looked for; half a second here, and a machine may be ten times slower."""
    begun = time.process_time()
    assert_safe(safe_html((start * 50_000)[:50_000]))
    assert time.process_time() - begun < 5


def test_a_text_of_any_length_is_shown():
    text = "<b>*x*</b>\n" * 20_000
    assert assert_safe(safe_html(text)) == text


@pytest.mark.parametrize("place", ["prompt", "turns", "answer", "hint"])
def test_scripts_in_tasks_reach_the_page_as_text(tmp_path, place):
    text = "\n\n".join(script for script in SCRIPTS if "\0" not in script)
    turns = (
        Message(role="system", content=text),
        Message(role="user", content=text),
        Message(role="assistant", content=text),
        Message(role="user", content=text),
    )
    tasks = {
        "prompt": rank_task(text),
        "turns": rank_task(turns),
        "answer": rank_task("x", text, f"{text} 2"),
        "hint": Task("write", None, (), {"kind": "plain", "hint": text}),
    }
    with site(tmp_path, [tasks[place]], ["anna"]) as made:
        answer = made.person("anna").get("/api/task")
        assert answer.headers["content-type"] == "application/json"
        task = answer.json["task"]
        shown = [*(turn["html"] for turn in task["prompt"]), *(one["html"] for one in task["answers"]), task["hint"]]
        for html in shown:
            assert_safe(html)
        raw_texts = [*(turn["text"] for turn in task["prompt"]), *(one["text"] for one in task["answers"])]
        assert any(text in one for one in [*raw_texts, text if place == "hint" else ""])


def test_scripts_in_notes_names_and_guidelines_reach_the_admin_as_json(tmp_path):
    guidelines = tmp_path / "guide.md"
    guidelines.write_text("\n\n".join(SCRIPTS).replace("\0", ""), encoding="utf-8")
    name, script = "<img src=x onerror=alert(1)>", "<script>alert(1)</script>"
    with site(tmp_path, [rank_task(script), rank_task("x")], ["a", name], guidelines=guidelines, title=script) as made:
        someone = Person(made.port)
        someone.sign_in(made.store.token(name))
        token = made.store.token(name)
        assert someone.sign_in(f"#{token}").json["name"] == name
        me = someone.get("/api/me")
        assert_safe(me.json["guidelines"])
        assert me.json["title"] == script and me.headers["content-type"] == "application/json"
        state = someone.get("/api/task").json
        skip = {"assignment": state["task"]["assignment"], "reason": "other", "note": script, "seconds": 1}
        assert someone.post("/api/skip", skip).status == 200
        seen = made.person("admin").get("/api/admin")
        assert seen.headers["content-type"] == "application/json"
        assert seen.headers["x-content-type-options"] == "nosniff"
        assert [(row["note"], row["labeler"]) for row in seen.json["skips"]] == [(script, name)]


def test_every_answer_binds_the_browser(served):
    anna, nobody = served.person("anna"), Person(served.port)
    answers = [nobody.get(path) for path in ("/", "/admin", "/static/main.js", "/nothing", "/api/me", "/favicon.ico")]
    answers += [anna.get("/api/me"), anna.post("/api/undo", b"{"), anna.ask("DELETE", "/api/me", None, {})]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name.lower()] == value
        assert "server" not in answer.headers
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


# -------------------------------------------------------------------- who one is


def test_forged_tokens_are_nobodys(served, refused, tmp_path):
    token = served.store.token("anna")
    other = Store(tmp_path / "other.sqlite")
    forged = [token[:-1], token + "0", token.upper(), token[::-1], "", "a" * 64, "é" * 64, other.token("anna"), "admin"]
    forged.append(served.store.token("carl"))  # of the right secret, but nobody is called so
    other.close()
    for one in forged:
        nobody = Person(served.port)
        answer = nobody.sign_in(f"#{one}")
        assert answer.status == 401 and nobody.cookies == {}
        assert_says_nothing(answer)
    refused(401, "token", len(forged))


def test_forged_cookies_are_nobodys(served, refused):
    anna, ben = served.person("anna"), served.person("ben")
    ((cookie, value),) = anna.cookies.items()
    name, _, proof = value.partition(".")
    other_name, _, other_proof = next(iter(ben.cookies.values())).partition(".")
    admin = served.person("admin")
    forged = [
        f"{name}.{proof[:-1]}",
        f"{name}.{proof}0",
        f"{name}.",
        name,
        f".{proof}",
        f"{other_name}.{proof}",
        f"{name}.{other_proof}",
        next(iter(admin.cookies.values())),  # of the admin, as if it were a labeler's
        served.store.token("anna"),
        "x" * 4000,
        "%00",
        "a.b.c",
        "____.____",
    ]
    for one in forged:
        assert_says_nothing(answer := Person(served.port, {cookie: one}).get("/api/task"))
        assert answer.status == 401
    refused(401, "session", len(forged))


def test_a_cookie_says_no_token_and_no_script_can_read_it(served):
    anna = Person(served.port)
    answer = anna.sign_in(served.links["anna"])
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert served.store.token("anna") not in cookie + answer.content.decode()


def test_a_proxys_cookie_is_for_https_alone(tmp_path):
    with site(tmp_path, [rank_task()], origin="https://label.example.org") as made:
        assert made.links["anna"].startswith("https://label.example.org/#")
        anna = Person(made.port)
        assert anna.sign_in(made.links["anna"]).headers["set-cookie"].endswith("; Secure")
        proxied = {"Host": "label.example.org", "Origin": "https://label.example.org"}
        assert anna.post("/api/undo", **proxied).status == 200
        assert anna.post("/api/undo", **proxied | {"Origin": "http://label.example.org"}).status == 403


def test_who_may_label_no_longer_is_nobody(tmp_path):
    with site(tmp_path, [rank_task()]) as made:
        anna = made.person("anna")
        state = anna.get("/api/task").json
        made.store.set_labelers(["ben"])
        assert anna.get("/api/task").status == 401
        assert anna.rank(state).status == 401
        assert Person(made.port).sign_in(made.links["anna"]).status == 401


# -------------------------------------------------------------------- other sites


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Origin": "https://evil.example"}, 403, "origin"),
        ({"Origin": "null"}, 403, "origin"),
        ({"Origin": "http://127.0.0.1:1"}, 403, "origin"),
        ({"Origin": "http://127.0.0.1"}, 403, "origin"),
        ({"Origin": "https://127.0.0.1:PORT"}, 403, "origin"),
        ({"Origin": "http://127.0.0.1:PORT.evil.example"}, 403, "origin"),
        ({"Origin": "http://evil.example@127.0.0.1:PORT"}, 403, "origin"),
        ({"Sec_Fetch_Site": "cross-site"}, 403, "origin"),
        ({"Sec_Fetch_Site": "same-site", "Origin": ""}, 403, "origin"),
        ({"X_CSRF_Token": ""}, 403, "csrf"),
        ({"X_CSRF_Token": "0" * 64}, 403, "csrf"),
        ({"X_CSRF_Token": "é"}, 403, "csrf"),
        ({"X_CSRF_Token": "BEN"}, 403, "csrf"),
        ({"Content_Type": "text/plain"}, 415, "content-type"),
        ({"Content_Type": ""}, 415, "content-type"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415, "content-type"),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415, "content-type"),
        ({"Content_Type": "text/plain;application/json"}, 415, "content-type"),
        ({"Content_Type": "application/json-seq"}, 415, "content-type"),
    ],
)
def test_a_post_of_another_site_does_nothing(served, refused, headers, status, reason):
    anna, ben = served.person("anna"), served.person("ben")
    state = anna.get("/api/task").json
    sent = {name: text.replace("PORT", str(served.port)).replace("BEN", ben.csrf) for name, text in headers.items()}
    answer = anna.ask(
        "POST",
        "/api/answer",
        json.dumps(_reply(state)).encode(),
        {
            "Content-Type": "application/json",
            "X-CSRF-Token": anna.csrf,
            "Origin": anna.origin,
            **{name.replace("_", "-"): text.encode("latin-1").decode("latin-1") for name, text in sent.items()},
        },
    )
    assert answer.status == status
    assert_says_nothing(answer)
    refused(status, reason)


def _reply(state):
    answers = {answer["key"]: {"rank": 1} for answer in state["task"]["answers"]}
    return {"assignment": state["task"]["assignment"], "reply": {"answers": answers}, "seconds": 1}


def test_another_site_is_told_nothing_it_could_read(served):
    anna = served.person("anna")
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (anna.ask("OPTIONS", "/api/answer", None, asked), anna.get("/api/me", Origin="https://evil.example")):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert anna.ask("OPTIONS", "/api/answer", None, asked).status == 405


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:PORT",
        "127.0.0.1:1",
        "127.0.0.1",
        "127.0.0.1.nip.example:PORT",
        "10.0.0.1:PORT",
        "a b",
    ],
)
def test_a_name_that_was_bent_to_this_address_is_refused(served, refused, host):
    """DNS rebinding: to the browser the page is of the other site's origin."""
    anna = served.person("anna")
    name = host.replace("PORT", str(served.port))
    answer = anna.get("/", Host=name)
    assert answer.status == 403
    assert_says_nothing(answer)
    assert anna.post("/api/undo", Host=name, Origin=f"http://{name}").status == 403
    refused(403, "host", 2)


def test_a_request_without_a_name_is_refused(served, refused):
    assert_says_nothing(raw(served.port, b"GET / HTTP/1.0\r\n\r\n"))
    refused(403, "host")
    both = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nHost: evil.example\r\n\r\n"
    assert raw(served.port, both.encode()).status == 400


# -------------------------------------------------------------------- bodies


def _head(person: Person, *lines: str, path: str = "/api/answer") -> bytes:
    cookies = "; ".join(f"{name}={value}" for name, value in person.cookies.items())
    usual = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{person.port}", f"Cookie: {cookies}"]
    usual += [f"X-CSRF-Token: {person.csrf}", "Content-Type: application/json", *lines, "", ""]
    return "\r\n".join(usual).encode()


def test_a_large_body_that_is_announced_is_not_read(served, refused):
    anna = served.person("anna")
    answer = raw(served.port, _head(anna, "Content-Length: 104857600"))
    assert answer.status == 413 and answer.headers["connection"] == "close"
    assert_says_nothing(answer)
    assert raw(served.port, _head(anna, "Content-Length: 99999999999999999999")).status == 413
    refused(413, "too-large", 2)


def _flood(port: int, head: bytes, piece: bytes, total: int) -> int:
    """Sends up to `total` bytes of a body; returns how many the server has let in before it closed."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        try:
            connection.sendall(head)
            while sent < total:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
    return sent


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_body_of_100_mb_is_cut_off_and_memory_does_not_grow(tmp_path):
    """In a process of its own; pieces come without a length, and with one that is a lie of the client's."""
    server = Server(tmp_path, [str(write_tasks(tmp_path / "tasks.jsonl", 3)), "--labelers", "anna,ben", "--stay"])
    server.start()
    try:
        anna, nobody = Person(server.port), Person(server.port)
        anna.sign_in(server.links["anna"])
        megabyte = b"x" * (1 << 20)
        chunk = f"{len(megabyte):x}\r\n".encode() + megabyte + b"\r\n"
        _flood(server.port, _head(anna, "Transfer-Encoding: chunked"), chunk, 2 << 20)
        before = server.memory()
        for person, path in [(anna, "/api/answer"), (anna, "/api/draft"), (nobody, "/api/session")] * 4:
            # What the kernel has buffered on both sides counts as sent.
            assert (
                _flood(server.port, _head(person, "Transfer-Encoding: chunked", path=path), chunk, 100 << 20) < 20 << 20
            )
            length = _head(person, "Content-Length: 104857600", path=path)
            assert _flood(server.port, length, megabyte, 100 << 20) < 20 << 20
        assert server.memory() - before < 10 << 20
        assert anna.get("/api/task").status == 200
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert {(line["status"], line["reason"]) for line in lines} == {(413, "too-large")}
        assert len(lines) == 1 + 24
    finally:
        server.end()


def test_who_has_no_session_may_send_a_token_alone(served, refused):
    assert Person(served.port).post("/api/session", {"token": "x" * 2000}).status == 413
    refused(413, "too-large")


def test_a_question_has_no_body(served, refused):
    anna = served.person("anna")
    assert anna.ask("GET", "/api/task", b"x" * 100, {}).status == 400
    assert anna.ask("PUT", "/api/task", b"x" * 100, {}).status == 400
    refused(400, "body", 2)


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path, heard):
    with site(tmp_path, [rank_task()], limits=Limits(seconds=0.5)) as made:
        anna = made.person("anna")
        begun = time.monotonic()
        answer = raw(made.port, _head(anna, "Content-Length: 1000") + b'{"assignment')
        assert answer.status == 408 and time.monotonic() - begun < 12  # by the limits that are shipped 15
        assert_says_nothing(answer)
        with socket.create_connection(("127.0.0.1", made.port), timeout=20) as connection:
            connection.sendall(_head(anna, "Content-Length: 1000"))
            begun = time.monotonic()
            connection.settimeout(0.1)
            got = b""
            while not got and time.monotonic() - begun < 14:  # a byte now and then does not buy more time
                with contextlib.suppress(OSError):  # it has hung up just now
                    connection.sendall(b" ")
                try:
                    got = connection.recv(100)
                except TimeoutError:
                    continue
            assert b"408" in got
        assert heard.refusals()[-1]["reason"] == "slow"


def test_a_head_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_IDLE", 1.0)
    with site(tmp_path, [rank_task()]) as made:
        with socket.create_connection(("127.0.0.1", made.port), timeout=15) as connection:
            connection.sendall(b"GET / HT")
            assert connection.recv(100) == b""
        with socket.create_connection(("127.0.0.1", made.port), timeout=15) as connection:
            connection.sendall(f"GET /favicon.ico HTTP/1.1\r\nHost: 127.0.0.1:{made.port}\r\n\r\nGET / HT".encode())
            while connection.recv(4096):
                pass
        assert made.person("anna").get("/api/task").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"[" * 100_000,
        b'{"a":' * 40_000,
        b'{"assignment": "x", "draft": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
        b'{"assignment": "x", "draft": {"a": NaN}}',
        b'{"assignment": "x", "draft": {"a": Infinity}}',
        b'{"assignment": "x", "draft": {"a": 1e999}}',
        b'{"assignment": "x", "draft": {"a": ' + b"9" * 5000 + b"}}",
        b'{"assignment": "x", "assignment": "y", "draft": {}}',
        b'{"assignment": "x", "draft": {"a": "\\ud800"}}',
        b'{"assignment": "x", "draft": {}, "labeler": "ben"}',
        b'{"assignment": 7, "draft": {}}',
        b'{"assignment": "' + b"x" * 200 + b'", "draft": {}}',
        b'{"assignment": "x", "draft": []}',
        b"\xff\xfe{}",
        b'{"assignment": "x", "draft": {}} {}',
        b"assignment=x&draft=y",
        b"\0",
    ],
)
def test_what_is_no_json_of_ours_is_refused(served, refused, body):
    answer = served.person("anna").post("/api/draft", body)
    assert answer.status == 422 and answer.json["problems"]
    assert_says_nothing(answer)
    refused(422, "content")


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": -1},
        {"seconds": 1e300},
        {"seconds": "1"},
        {"seconds": True},
        {"reply": {}},
        {"reply": {"answers": {}}},
        {"reply": {"answers": {"A": {"rank": 1}}}},
        {"reply": {"answers": {"A": {"rank": 1}, "B": {"rank": 2}, "C": {"rank": 3}, "D": {"rank": 4}}}},
        {"reply": {"answers": {"A": {"rank": 0}, "B": {"rank": 2}, "C": {"rank": 3}}}},
        {"reply": {"answers": {"A": {"rank": 1.0}, "B": {"rank": 2}, "C": {"rank": 3}}}},
        {"reply": {"answers": {"A": {"rank": 1, "source": "x"}, "B": {"rank": 2}, "C": {"rank": 3}}}},
        {"reply": {"answers": {"__proto__": {"rank": 1}, "B": {"rank": 2}, "C": {"rank": 3}}}},
        {"reply": {"answers": {key: {"rank": 1} for key in "ABC"}, "note": "x" * 5000}},
    ],
)
def test_what_is_no_answer_is_refused(served, refused, change):
    anna = served.person("anna")
    answer = anna.rank(anna.get("/api/task").json, **change)
    assert answer.status == 422 and answer.json["problems"]
    assert_says_nothing(answer)
    refused(422, "content")


# -------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/../../../../../../etc/passwd",
        "/static/%2e%2e/app.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/static/..%2fapp.py",
        "/static/..%5capp.py",
        "/static/..\\app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/file:///etc/passwd",
        "/static/index.html%00.js",
        "/static/%00",
        "/static/index.html/",
        "/static/",
        "/static",
        "/static/vendor",
        "/static/%252e%252e/app.py",
        "/static/..;/app.py",
        "/static/%c0%ae%c0%ae/app.py",
        "/static/INDEX.HTML",
        "/static/vendor/../index.html",
        "/app.py",
        "//etc/passwd",
        "/etc/passwd",
        "/../store.sqlite",
        "/store.sqlite",
        "/admin/",
        "/admin/../admin",
        "/api",
        "/api/",
        "/api/admin/../me",
        "/api/labelers",
        "/.git/config",
        "/docs",
        "/openapi.json",
        "/" + "a" * 5000,
    ],
)
def test_paths_lead_nowhere(served, refused, path):
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n"
    answer = raw(served.port, request.encode("latin-1"))
    assert answer.status == 404
    assert_says_nothing(answer)
    refused(404, "path")


def test_a_whole_address_leads_to_its_path_alone(served):
    request = (
        f"GET http://evil.example/etc/passwd HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nConnection: close\r\n\r\n"
    )
    assert raw(served.port, request.encode()).status == 404


# -------------------------------------------------------------------- what is not one's own


@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        ("GET", "/api/admin", None),
        ("GET", "/api/admin/export", None),
        ("GET", "/api/admin/links", None),
        ("POST", "/api/admin/pause", {"paused": True}),
        ("POST", "/api/admin/more", {"task": "x"}),
    ],
)
def test_a_labeler_is_no_admin(served, refused, method, path, value):
    anna = served.person("anna")
    answer = anna.get(path) if method == "GET" else anna.post(path, value)
    assert answer.status == 403
    assert_says_nothing(answer)
    refused(403, "role")
    assert Person(served.port).get(path).status == (401 if method == "GET" else 405)


def test_the_admin_is_no_labeler(served, refused):
    admin = served.person("admin")
    assert [admin.get("/api/task").status, admin.post("/api/undo").status] == [403, 403]
    refused(403, "role", 2)


def test_anothers_task_is_not_ones_own(served, refused):
    anna, ben = served.person("anna"), served.person("ben")
    state = ben.get("/api/task").json
    theirs = state["task"]["assignment"]
    answers = [
        anna.rank(state),
        anna.post("/api/draft", {"assignment": theirs, "draft": {"x": 1}}),
        anna.post("/api/skip", {"assignment": theirs, "reason": "other", "note": "", "seconds": 1}),
        anna.post("/api/draft", {"assignment": "0" * 16, "draft": {}}),
    ]
    for answer in answers:
        assert answer.status == 409
        assert_says_nothing(answer)
    # Somebody else's and none at all look the same.
    assert answers[1].json == answers[3].json
    refused(409, "conflict", 4)
    assert ben.get("/api/task").json["task"]["draft"] is None


def test_undo_opens_ones_own_alone(tmp_path):
    with site(tmp_path, [rank_task("One?"), rank_task("Two?")]) as made:
        anna, ben = made.person("anna"), made.person("ben")
        ben.rank(ben.get("/api/task").json)
        state = anna.post("/api/undo").json
        assert state["progress"]["answered"] == 0
        assert [answered.labeler for answered in made.store.answered()] == ["ben"]


def test_a_labeler_hears_nothing_of_sources_scores_and_others(tmp_path):
    answers = tuple(
        Candidate(text, source=f"secret-model-{text}", rank=place, meta={"score": 0.125, "tokens": 4321})
        for place, text in enumerate(("one", "two", "three"), 1)
    )
    task = Task("rank", "Which?", answers, {"id": "secret-row", "meta": {"secret-meta": 1}, "user_id": "secret-user"})
    gold = Task("rank", "Known?", answers, gold=True)
    both = Settings(overlap=2, gold_every=2)
    with site(tmp_path, [task, gold], ["anna", "secret-ben"], settings=both) as made:
        anna, ben = made.person("anna"), Person(made.port)
        ben.sign_in(f"#{made.store.token('secret-ben')}")
        reply = {"answers": {key: {"rank": 1} for key in "ABC"}, "note": "secret-note"}
        said = anna.get("/api/me").content
        for _ in range(2):
            ben.rank(ben.get("/api/task").json, reply=reply)
            shown = anna.get("/api/task")
            assert shown.json["task"]
            said += shown.content + anna.rank(shown.json).content
        said += anna.post("/api/undo").content
        assert {answered.task.gold for answered in made.store.answered()} == {True, False}
    for word in (b"secret", b"0.125", b"4321", b"gold", b"source"):
        assert word not in said.lower()


# -------------------------------------------------------------------- too often, and trouble


def test_one_session_that_asks_too_often_waits_and_holds_nobody_up(tmp_path, heard):
    with site(tmp_path, [rank_task()], limits=Limits(session=Rate(burst=5, per_second=0.01))) as made:
        anna, ben = made.person("anna"), made.person("ben")
        statuses = [anna.get("/api/me").status for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        late = anna.get("/api/me")
        assert_says_nothing(late)
        assert 50 <= int(late.headers["retry-after"]) <= 100
        again = Person(made.port, dict(anna.cookies))  # another tab is the same session
        assert again.get("/api/me").status == 429
        assert ben.get("/api/me").status == 200
        assert heard.refusals()[-1]["reason"] == "rate" and heard.refusals()[-1]["name"] == "anna"


def test_an_address_without_a_session_that_asks_too_often_waits(tmp_path):
    with site(tmp_path, [rank_task()], limits=Limits(address=Rate(burst=6, per_second=0.01))) as made:
        anna, nobody = made.person("anna"), Person(made.port)
        assert [nobody.get("/").status for _ in range(7)] == [200] * 5 + [429] * 2
        assert anna.get("/").status == 200


def test_tokens_cannot_be_tried_out(tmp_path):
    with site(tmp_path, [rank_task()], limits=Limits(wrong=Rate(burst=30, per_second=0.001))) as made:
        anna = made.person("anna")
        statuses = [Person(made.port).sign_in(f"#{number:064x}").status for number in range(40)]
        assert statuses == [401] * 30 + [429] * 10
        assert Person(made.port).sign_in(made.links["ben"]).status == 429
        assert anna.get("/api/task").status == 200


def test_nobody_who_works_is_slowed_down(served):
    """Two hundred questions as fast as they can be asked, by the limits that are shipped."""
    anna = served.person("anna")
    time.sleep(2)
    assert {anna.get("/api/me").status for _ in range(200)} == {200}


def test_a_fault_of_ours_says_nothing(tmp_path, heard, monkeypatch):
    def broken(self, labeler):
        raise RuntimeError("the secret of /tmp/store.sqlite")

    with site(tmp_path, [rank_task()]) as made:
        anna = made.person("anna")
        with monkeypatch.context() as patched:
            patched.setattr(Store, "turn", broken)
            answer = anna.get("/api/task")
        assert answer.status == 500
        assert_says_nothing(answer)
        assert anna.get("/api/task").status == 200
    assert any("the secret of" in line for name, line in heard.lines if name == GUARD)  # who serves can mend it
    heard.lines[:] = [(name, line) for name, line in heard.lines if "the secret of" not in line]


def test_nothing_that_was_logged_holds_a_token(served, heard):
    """Also not where one was typed into the address."""
    anna, token = served.person("anna"), served.store.token("anna")
    for path in (f"/{token}", f"/?token={token}", f"/api/{token}/task", f"/api/task?{token}", f"/static/{token}.js"):
        anna.get(path)
    anna.get("/api/me", Referer=f"http://127.0.0.1:{served.port}/{token}")
    secrets = [*map(served.store.token, ("anna", "ben", "admin")), anna.csrf, *anna.cookies.values()]
    assert [line["path"] for line in heard.refusals()[-3:]] == ["/...", "/api/.../task", "/static/....js"]
    for name, line in heard.lines:
        if name == GUARD:
            json.loads(line)
        assert not any(secret in line for secret in secrets), (name, line)
