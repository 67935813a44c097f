"""The page's server: what a labeler and the admin ask, and what they get."""

import json
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
from label_site import Person, rank_task, site

from rlhf_kit import files
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.labeling import serving
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.replies import SKIP_REASONS
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task
from rlhf_kit.labeling.web.security import Origins, Rate, RateLimit
from rlhf_kit.records import Flags, Message

TALK = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello!"),
    Message(role="user", content="Write **code**."),
)


def test_a_labeler_ranks_what_there_is(tmp_path):
    tasks = [rank_task("One?"), rank_task(TALK, "```py\nx < 1\n```", "No.")]
    with site(tmp_path, tasks, ["anna"]) as served:
        anna = served.person("anna")
        first = anna.get("/api/task").json
        assert first["progress"] == {"answered": 0, "skipped": 0, "left": 2, "can_undo": False}
        assert (first["waiting"], first["paused"]) == (False, False)
        assert {key: first["task"][key] for key in ("kind", "hint", "prompt_kind", "draft")} == {
            "kind": "rank",
            "hint": "",
            "prompt_kind": None,
            "draft": None,
        }
        assert first["task"]["prompt"] == [{"role": "user", "html": "<p>One?</p>\n", "text": "One?"}]
        assert [answer["key"] for answer in first["task"]["answers"]] == ["A", "B", "C"]
        second = anna.rank(first).json
        turns = [(turn["role"], turn["text"]) for turn in second["task"]["prompt"]]
        assert turns == [(turn.role, turn.content) for turn in TALK]
        assert second["task"]["prompt"][3]["html"] == "<p>Write <strong>code</strong>.</p>\n"
        code = next(answer for answer in second["task"]["answers"] if answer["text"] != "No.")
        assert code["html"] == '<pre tabindex="0"><code>x &lt; 1\n</code></pre>\n'
        last = anna.rank(second).json
        assert (last["task"], last["waiting"]) == (None, False)
        assert last["progress"] == {"answered": 2, "skipped": 0, "left": 0, "can_undo": True}
        given = list(served.store.answered())
    for answered, shown in zip(given, (first, second), strict=True):
        keys = {answer["key"]: answer["text"] for answer in shown["task"]["answers"]}
        texts = [answered.task.candidates[place].text for place in answered.order]
        assert list(keys.values()) == texts
        assert [answered.reply.answers[key].rank for key in keys] == list(range(1, len(keys) + 1))
        assert answered.seconds == 2.5


def test_the_page_learns_once_what_it_needs(tmp_path):
    guidelines = tmp_path / "guide.md"
    guidelines.write_text("# Be fair\n\n<b onclick=x()>now</b>", encoding="utf-8")
    with site(tmp_path, [rank_task()], title="Sky & <sea>", guidelines=guidelines, language="zh") as served:
        anna = served.person("anna")
        assert anna.get("/api/me").json == {
            "name": "anna",
            "role": "labeler",
            "csrf": anna.csrf,
            "title": "Sky & <sea>",
            "guidelines": "<h3>Be fair</h3>\n<p>&lt;b onclick=x()&gt;now&lt;/b&gt;</p>\n",
            "flags": list(Flags.model_fields),
            "axes": ["helpful", "truthful", "harmless"],
            "scale": [1, 7],
            "skip_reasons": list(SKIP_REASONS),
            "language": "zh",
        }


def test_one_browser_may_have_a_labeler_and_the_admin(tmp_path):
    with site(tmp_path, [rank_task()]) as served:
        browser = served.person("anna")
        labeler = browser.csrf
        assert browser.sign_in(served.links["admin"]).json["role"] == "admin"
        assert browser.get("/api/me").json["role"] == "labeler"
        assert browser.get("/api/me?role=admin").json["csrf"] == browser.csrf
        assert browser.get("/api/admin").status == 200
        assert browser.post("/api/admin/pause", {"paused": True}).status == 200
        assert browser.post("/api/admin/pause", {"paused": False}, X_CSRF_Token=labeler).status == 403
        state = browser.get("/api/task").json
        browser.csrf = labeler
        assert state["paused"] and browser.post("/api/undo").status == 200


def test_drafts_skips_and_undo(tmp_path):
    with site(tmp_path, [rank_task("One?"), rank_task("Two?")], ["anna"]) as served:
        anna = served.person("anna")
        one = anna.get("/api/task").json["task"]["assignment"]
        draft = {"anything": [1, {"the": "page"}], "note": "日本"}
        assert anna.post("/api/draft", {"assignment": one, "draft": draft}).json == {"ok": True}
        assert anna.get("/api/task").json["task"]["draft"] == draft
        skip = {"assignment": one, "reason": "too_hard", "note": "physics", "seconds": 4}
        two = anna.post("/api/skip", skip).json
        assert two["task"]["prompt"][0]["text"] == "Two?" and two["progress"]["skipped"] == 1
        again = anna.post("/api/undo").json
        assert again["task"]["assignment"] == one and again["progress"]["skipped"] == 0
        anna.rank(again)
        taken_back = anna.post("/api/undo").json["task"]
        assert taken_back["assignment"] == one
        assert taken_back["draft"]["answers"]["A"]["rank"] == 1


def test_the_same_answer_again_changes_nothing_and_another_one_is_refused(tmp_path):
    with site(tmp_path, [rank_task("One?"), rank_task("Two?")], ["anna"]) as served:
        anna = served.person("anna")
        first = anna.get("/api/task").json
        after = anna.rank(first)
        assert anna.rank(first).json == after.json
        other = {"answers": {key: {"rank": 1} for key in "ABC"}, "note": ""}
        refused = anna.rank(first, reply=other)
        assert refused.status == 409 and "undo" in refused.json["error"]
        assert len(list(served.store.answered())) == 1


@pytest.mark.parametrize(
    ("kind", "task", "reply", "wrong", "field"),
    [
        ("compare", ("One?", "a", "b"), {"better": "tie", "note": ""}, {"better": "C", "note": ""}, "better"),
        ("rate", ("One?", "a"), {"overall": 7, "flags": {"hallucination": True}}, {"overall": 8}, "overall"),
        ("demonstrate", ("One?",), {"completion": "So."}, {"completion": " "}, "completion"),
        (
            "write",
            (None,),
            {"kind": "few_shot", "prompt": "Do.", "examples": [{"query": "q", "response": "r"}], "use_case": ""},
            {"kind": "few_shot", "prompt": "Do.", "examples": []},
            "examples",
        ),
    ],
)
def test_the_other_kinds_of_tasks(tmp_path, kind, task, reply, wrong, field):
    prompt, *texts = task
    carried = {"kind": "few_shot", "hint": "*mind* the <gap>"} if kind == "write" else {}
    asked = Task(kind, prompt, tuple(map(Candidate, texts)), carried)
    with site(tmp_path, [asked], ["anna"]) as served:
        anna = served.person("anna")
        shown = anna.get("/api/task").json["task"]
        assert shown["kind"] == kind and sorted(answer["text"] for answer in shown["answers"]) == texts
        hint = ("<p><em>mind</em> the &lt;gap&gt;</p>\n", "few_shot") if kind == "write" else ("", None)
        assert (shown["hint"], shown["prompt_kind"]) == hint
        sent = {"assignment": shown["assignment"], "seconds": 1}
        refused = anna.post("/api/answer", {**sent, "reply": wrong})
        assert refused.status == 422
        assert [problem["field"] for problem in refused.json["problems"]] == [field]
        assert all(problem["reason"] for problem in refused.json["problems"])
        not_its_kind = anna.post("/api/answer", {**sent, "reply": {"answers": {k: {"rank": 1} for k in "AB"}}})
        assert not_its_kind.status == 422
        assert anna.post("/api/answer", {**sent, "reply": reply}).status == 200
        (given,) = served.store.answered()
        assert {key: value for key, value in given.reply.model_dump().items() if key in reply} == {
            **reply,
            **({"examples": ({"query": "q", "response": "r"},)} if kind == "write" else {}),
        }


def test_what_others_have_begun_is_waited_for(tmp_path):
    with site(tmp_path, [rank_task()]) as served:
        anna, ben = served.person("anna"), served.person("ben")
        state = anna.get("/api/task").json
        nothing = ben.get("/api/task").json
        assert (nothing["task"], nothing["waiting"]) == (None, True)
        anna.rank(state)
        assert ben.get("/api/task").json["waiting"] is False


def test_nothing_new_is_given_out_while_it_is_paused(tmp_path):
    with site(tmp_path, [rank_task("One?"), rank_task("Two?")], ["anna"]) as served:
        anna, admin = served.person("anna"), served.person("admin")
        begun = anna.get("/api/task").json
        assert admin.post("/api/admin/pause", {"paused": True}).json == {"ok": True}
        stopped = anna.rank(begun).json
        assert (stopped["task"], stopped["paused"], stopped["waiting"]) == (None, True, True)
        assert admin.get("/api/admin").json["paused"] is True
        admin.post("/api/admin/pause", {"paused": False})
        assert anna.get("/api/task").json["task"]["prompt"][0]["text"] == "Two?"


def test_the_admin_sees_asks_for_more_and_exports(tmp_path):
    out = tmp_path / "out.jsonl"
    with site(tmp_path, [rank_task()], settings=Settings(overlap=1), out=out) as served:
        anna, ben, admin = map(served.person, ("anna", "ben", "admin"))
        anna.rank(anna.get("/api/task").json)
        seen = admin.get("/api/admin").json
        assert (seen["answers"], seen["tasks"]["done"], seen["tasks"]["open"]) == (1, 1, 0)
        (task,) = served.store.tasks()
        assert admin.post("/api/admin/more", {"task": task.id}).status == 200
        assert admin.get("/api/admin").json["tasks"]["open"] == 1
        ben.rank(ben.get("/api/task").json)
        exported = admin.get("/api/admin/export")
        assert exported.headers["content-disposition"].startswith("attachment")
        assert exported.content == out.read_bytes()
        links = {row["name"]: row["url"] for row in admin.get("/api/admin/links").json["links"]}
        assert links == served.links
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert sorted(row["labeler"] for row in rows) == ["anna", "ben"]
    sources = [{answer["text"]: answer["source"] for answer in row["responses"]} for row in rows]
    assert sources == [{answer.text: answer.source for answer in task.candidates}] * 2
    assert len(files.load(str(out), "ranking")) == 2


def test_whoever_says_last_how_tasks_are_given_out_is_heard_by_all_who_serve_them(tmp_path):
    tasks = [rank_task("One?"), rank_task("Two?")]
    with site(tmp_path, tasks) as served, closing(Store(served.store.path)) as elsewhere:
        anna, ben = map(served.person, ("anna", "ben"))
        elsewhere.configure(Settings(overlap=2))
        for person in (anna, ben):
            first = person.get("/api/task").json
            assert first["task"]["prompt"][0]["text"] == "One?" and first["progress"]["left"] == 2
        assert elsewhere.settings == Settings(overlap=2) and elsewhere.progress().wanted == 4


def test_a_page_that_is_closed_gives_its_task_back_soon_unless_it_has_a_draft(tmp_path):
    now = [1_000_000.0]
    with site(tmp_path, [rank_task("One?")], clock=lambda: now[0]) as served:
        anna, ben = map(served.person, ("anna", "ben"))
        named = {"assignment": anna.get("/api/task").json["task"]["assignment"]}

        def has_it(person):
            return person.get("/api/task").json["task"] is not None

        assert ben.post("/api/leave", named).json == {"ok": True}, "it is not ben's, and nothing comes of it"
        now[0] += 61
        assert not has_it(ben)
        assert anna.post("/api/leave", named).status == 200
        now[0] += 59
        assert not has_it(ben) and has_it(anna), "the page was loaded again"
        now[0] += 61
        assert not has_it(ben)
        assert anna.post("/api/draft", {**named, "draft": {"note": "hm"}}).status == 200
        assert anna.post("/api/leave", named).status == 200
        now[0] += 61
        assert not has_it(ben), "what she has begun is kept for her"
        assert anna.post("/api/draft", {**named, "draft": {}}).status == 200  # seconds that she looked at it
        now[0] += 1801
        assert has_it(ben) and not has_it(anna)


def test_a_task_as_large_as_they_come(tmp_path):
    texts = [f"# {place}\n\n" + ("**word** `code` [link](https://x.org) and more\n" * 180)[:7990] for place in range(9)]
    with site(tmp_path, [rank_task("Q" * 8000, *texts)], ["anna"]) as served:
        anna = served.person("anna")
        state = anna.get("/api/task").json
        assert sorted(answer["text"] for answer in state["task"]["answers"]) == sorted(texts)
        assert anna.rank(state).status == 200


def test_files_are_those_of_the_page_alone(tmp_path):
    with site(tmp_path, [rank_task()]) as served:
        nobody = Person(served.port)
        for path, kind in (("/", "text/html"), ("/admin", "text/html"), ("/static/style.css", "text/css")):
            answer = nobody.get(path)
            assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
            assert answer.content and answer.headers["cache-control"] == "no-cache"
            assert nobody.get(path, **{"If-None-Match": answer.headers["etag"]}).status == 304
        assert nobody.get("/static/vendor/sortable.esm.js").headers["content-type"].startswith("text/javascript")
        assert nobody.get("/static/vendor/sortable.LICENSE.txt").status == 404
        assert nobody.get("/static/words.zh.json").json
        assert nobody.get("/favicon.ico").status == 204


def test_links_stay_after_a_restart_and_so_do_sessions(tmp_path):
    with site(tmp_path, [rank_task()]) as served:
        anna, port, links = served.person("anna"), served.port, served.links
    with site(tmp_path, [], port=port) as served:
        assert served.links == links
        assert anna.get("/api/me").json["name"] == "anna"
        assert anna.rank(anna.get("/api/task").json).status == 200


def test_a_full_disk_is_told_to_who_answers_in_words_and_to_who_serves_in_a_line(tmp_path, monkeypatch, caplog):
    def full(self):
        raise RlhfKitError("store.sqlite: cannot be written: database or disk is full")

    with site(tmp_path, [rank_task()]) as served:
        anna = served.person("anna")
        state = anna.get("/api/task").json
        with monkeypatch.context() as patch:
            patch.setattr(Store, "together", full)
            refused = anna.rank(state)
        assert refused.status == 503 and "cannot be saved" in refused.json["error"]
        assert "sqlite" not in refused.json["error"], "labelers know nothing of files"
        (line,) = [record.getMessage() for record in caplog.records]
        assert json.loads(line)["reason"] == "store.sqlite: cannot be written: database or disk is full"
        assert caplog.records[0].exc_info is None
        assert anna.rank(state).status == 200, "when there is room again"


def test_a_store_keeps_its_port_as_long_as_nothing_else_has_it(tmp_path):
    """Links that were sent lead to the page after a restart, and pages that are open find it again."""
    with site(tmp_path, []) as first, site(tmp_path, []) as beside:
        links = first.links
        assert beside.port != first.port and beside.person("anna").get("/api/me").status == 200
    with site(tmp_path, []) as again:
        assert again.links == links
    with site(tmp_path, [], port=beside.port) as named:
        assert named.port == beside.port


def test_it_ends_by_itself_a_while_after_the_last_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "_EVERY", 0.05)
    monkeypatch.setattr(serving, "_LINGER", 600.0)
    store, told, left = Store(tmp_path / "store.sqlite"), [], []
    store.set_labelers(["anna"])
    store.add([rank_task()])
    serve = {"args": (store, serving.Serving()), "kwargs": {"told": told.append}}
    thread = threading.Thread(target=serving.serve, **serve, daemon=True)
    progress = store.progress

    def watched():
        found = progress()
        if threading.current_thread() is thread:
            left.append(found.left)
        return found

    def until(is_so):
        end = time.monotonic() + 60
        while not is_so():
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.02)

    monkeypatch.setattr(store, "progress", watched)
    thread.start()
    try:
        until(lambda: any(line.strip().startswith("admin") for line in told))
        link = next(line.split()[-1] for line in told if line.strip().startswith("anna"))
        anna = Person(int(link.split(":")[2].split("/")[0]))
        anna.sign_in(link)
        anna.rank(anna.get("/api/task").json)
        until(lambda: left[-1:] == [0])
        undone = anna.post("/api/undo").json  # in time: there is something to do again
        until(lambda: left[-1:] == [1])
        anna.rank(undone)
        until(lambda: left[-1:] == [0])
    finally:
        monkeypatch.setattr(serving, "_LINGER", 0.0)
        thread.join(60)
    assert not thread.is_alive()
    assert sum("all tasks are done" in line for line in told) == 2
    store.close()


def test_what_is_taken_back_in_time_starts_the_wait_anew(monkeypatch):
    now, done, told = [100.0], [False], []
    monkeypatch.setattr(serving, "time", SimpleNamespace(monotonic=lambda: now[0]))
    over = serving.lingering(lambda: done[0], told.append, "done, {} are left")

    def at(seconds, is_done):
        now[0], done[0] = 100.0 + seconds, is_done
        return over()

    assert [at(0, False), at(1, True), at(20.9, True)] == [False] * 3
    assert [at(20.95, False), at(22, True), at(41.9, True), at(42, True)] == [False, False, False, True]
    assert told == ["done, 20 seconds are left"] * 2


# -------------------------------------------------------------------- what is worked out by hand


def test_a_bucket_fills_as_time_goes_by():
    now = [100.0]
    limit = RateLimit(Rate(burst=3, per_second=0.5), clock=lambda: now[0])
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 2.0]
    now[0] += 1
    assert limit.take("a") == 1.0 and limit.take("b") == 0
    now[0] += 1
    assert limit.wait("a") == 0 and limit.take("a") == 0 and limit.wait("a") == 2.0
    now[0] += 1000
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 2.0]


def test_buckets_of_many_addresses_stay_few():
    limit = RateLimit(Rate(burst=3, per_second=0.5), clock=lambda: 0.0)
    for number in range(20_000):
        limit.take(str(number))
    assert len(limit._buckets) == 10_000


@pytest.mark.parametrize(
    ("host", "public", "name", "ours"),
    [
        ("127.0.0.1", "", "127.0.0.1:80", True),
        ("127.0.0.1", "", "localhost:80", True),
        ("127.0.0.1", "", "LOCALHOST", True),  # without a port it is 80
        ("127.0.0.1", "", "[::1]:80", True),
        ("127.0.0.1", "", "127.0.0.1:81", False),
        ("127.0.0.1", "", "10.0.0.1:80", False),
        ("127.0.0.1", "", "evil.example:80", False),
        ("127.0.0.1", "", "127.0.0.1.evil.example:80", False),
        ("127.0.0.1", "", "localhost.:80", False),
        ("127.0.0.1", "", "localhost:80@evil.example", False),
        ("127.0.0.1", "", "", False),
        ("127.0.0.1", "", ":80", False),
        ("127.0.0.1", "", None, False),
        ("127.0.0.1", "https://label.example.org", "label.example.org", True),
        ("127.0.0.1", "https://label.example.org", "label.example.org:80", False),
        ("127.0.0.1", "https://label.example.org", "127.0.0.1:80", True),
        ("10.0.0.5", "", "10.0.0.5:80", True),
        ("10.0.0.5", "", "127.0.0.1:80", False),
        ("10.0.0.5", "", "evil.example:80", False),
        ("0.0.0.0", "", "10.0.0.5:80", True),  # an address cannot be rebound
        ("0.0.0.0", "", "evil.example:80", False),
        ("::", "", "[fe80::1]:80", True),
    ],
)
def test_which_names_are_ours(host, public, name, ours):
    assert Origins(host, 80, public).is_ours(name) is ours


def test_links_through_a_proxy():
    assert Origins("127.0.0.1", 8000, "https://label.example.org").url == "https://label.example.org"
    assert Origins("::1", 8000).url == "http://[::1]:8000"
