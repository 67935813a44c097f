"""`rlhf-kit label` as it is typed, and the server as another program starts it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from label_load import Server, write_tasks
from label_site import Person, rank_task

from rlhf_kit import files
from rlhf_kit.cli import main
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.labeling import serving
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.replies import AnswerReply, RankReply
from rlhf_kit.labeling.serving import Serving, serve
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import read_tasks


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path / "tasks.jsonl", 3, answers=3)


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "store.sqlite")) as made:
        made.set_labelers(["anna"])
        made.add([rank_task()])
        yield made


def answer_one(store: Store) -> None:
    given = store.next("anna")
    assert given is not None
    reply = RankReply(answers={key: AnswerReply(rank=rank) for rank, key in enumerate("ABC", 1)})
    store.answer("anna", given.id, reply, 1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_tasks_to_records(tmp_path, tasks, number):
    gold = tmp_path / "gold.jsonl"
    known = [{"text": "good", "rank": 1}, {"text": "bad", "rank": 2}]
    gold.write_text(json.dumps({"prompt": "Known?", "responses": known}) + "\n", encoding="utf-8")
    guide = tmp_path / "guide.md"
    guide.write_text("# Fair", encoding="utf-8")
    options = ["--labelers", "anna, ben", "--gold", str(gold), "--gold-every", "2", "--guidelines", str(guide)]
    server = Server(tmp_path, [str(tasks), *options, "--limit", "2", "--language", "zh"])
    server.start()
    assert list(server.links) == ["anna", "ben", "admin"]
    anna = Person(server.port)
    anna.sign_in(server.links["anna"])
    me = anna.get("/api/me").json
    assert (me["title"], me["language"], me["guidelines"]) == ("tasks", "zh", "<h3>Fair</h3>\n")
    state, prompts = anna.get("/api/task").json, []
    while state["task"]:
        prompts.append(state["task"]["prompt"][0]["text"])
        state = anna.rank(state).json
    assert sorted(prompts) == ["Known?", "Question 0", "Question 1"]
    code, said = server.end(number)
    assert code == 0 and "wrote 2 records" in said and server.log == ""
    records = files.load(str(server.out), "ranking")
    assert {(record.prompt, record.labeler) for record in records} == {("Question 0", "anna"), ("Question 1", "anna")}


def test_the_same_command_goes_on(tmp_path, tasks):
    server = Server(tmp_path, [str(tasks)])
    server.start()
    links = dict(server.links)
    assert list(links) == ["labeler", "admin"]
    somebody = Person(server.port)
    somebody.sign_in(links["labeler"])
    somebody.rank(somebody.get("/api/task").json)
    code, said = server.end()
    assert code == 0 and "wrote 1 records" in said and "2 answers are still wanted" in said
    server.start()
    assert server.links == links
    assert somebody.get("/api/task").json["progress"]["answered"] == 1
    server.end()


def test_export_serves_nothing(tmp_path, tasks, capsys):
    out = tmp_path / "out.jsonl"
    with closing(Store(tmp_path / "out.sqlite")) as store:
        store.set_labelers(["anna"])
        store.add(read_tasks(str(tasks), "rank"))
        answer_one(store)
    assert main(["label", "--out", str(out), "--export"]) == 0
    assert "wrote 1 records" in capsys.readouterr().out
    assert [record.labeler for record in files.load(str(out), "ranking")] == ["anna"]


@pytest.mark.parametrize("doing", [["--export"], ["--take"]])
def test_how_tasks_are_given_out_stays_until_somebody_says_otherwise(tmp_path, tasks, capsys, doing):
    """A server may be on the same store: told that one opinion is enough, it would end with half of the answers."""
    out, elsewhere = tmp_path / "out.jsonl", tmp_path / "elsewhere.jsonl"
    said = [{"text": "good", "rank": 1}, {"text": "bad", "rank": 2}]
    elsewhere.write_text(json.dumps({"prompt": "Known?", "responses": said, "labeler": "zoe"}) + "\n", "utf-8")
    first = ["label", str(tasks), "--out", str(out), "--gold", str(elsewhere), "--export"]
    assert main([*first, "--overlap", "2", "--seed", "5", "--gold-every", "3"]) == 0
    doing = [*doing, str(elsewhere)] if doing == ["--take"] else doing
    assert main(["label", str(elsewhere), "--out", str(out), *doing]) == 0
    wanted = 8 - (doing[0] == "--take")
    assert f"{wanted} answers are still wanted" in capsys.readouterr().out.splitlines()[-1]
    with closing(Store(tmp_path / "out.sqlite")) as store:
        assert store.settings == Settings(overlap=2, gold_every=3, seed=5)
        assert store.progress().wanted == 2 * 4, "of four tasks, gold ones not counted"
    assert main([*first, "--overlap", "1"]) == 0
    with closing(Store(tmp_path / "out.sqlite")) as store:
        assert store.settings == Settings(overlap=1, gold_every=3, seed=5)


def test_a_kind_that_the_store_has_not_is_told(tmp_path, tasks, capsys):
    command = ["label", "--out", str(tmp_path / "out.jsonl"), "--export"]
    assert main([*command, str(tasks)]) == main(command) == main([*command, "--task", "rank"]) == 0
    capsys.readouterr()
    assert main([*command, "--task", "rate"]) == 2
    error = capsys.readouterr().err
    assert "holds tasks to rank, and none to rate" in error and error.count("\n") == 1


def test_rows_that_are_no_longer_in_the_file_are_told_of(tmp_path, tasks, capsys):
    command = ["label", str(tasks), "--out", str(tmp_path / "out.jsonl"), "--export"]
    whole = tasks.read_text("utf-8").splitlines(keepends=True)
    assert main(command) == 0 and "besides" not in capsys.readouterr().out
    with closing(Store(tmp_path / "out.sqlite")) as store:
        store.set_labelers(["anna"])
        answer_one(store)
    tasks.write_text(whole[2], "utf-8")  # the first one has an answer by now
    assert main(command) == 0 and f"besides those of {tasks}: 1 (" in capsys.readouterr().out
    tasks.write_text("".join(whole[1:]), "utf-8")
    assert main(command) == 0 and "besides" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["rank", "demonstrate"])
def test_hints_are_for_prompts_to_write_alone(tmp_path, capsys, kind):
    hints = tmp_path / "hints.jsonl"
    hints.write_text('{"text": "Letters to a landlord"}\n', "utf-8")
    command = ["label", str(hints), "--out", str(tmp_path / "out.jsonl"), "--export", "--task"]
    assert main([*command, kind]) == 2
    assert "hints.jsonl:1: is a hint for a prompt that is to be written; --task write" in capsys.readouterr().err
    assert main([*command, "write"]) == 0


def test_prompts_to_write_need_no_file(tmp_path):
    server = Server(tmp_path, ["--task", "write", "--limit", "2"])
    server.start()
    somebody = Person(server.port)
    somebody.sign_in(server.links["labeler"])
    state = somebody.get("/api/task").json
    assert (state["task"]["kind"], state["progress"]["left"]) == ("write", 2)
    sent = {"assignment": state["task"]["assignment"], "reply": {"kind": "plain", "prompt": "Sing."}, "seconds": 3}
    assert somebody.post("/api/answer", sent).status == 200
    server.end()
    assert [record.prompt for record in files.load(str(server.out), "prompt")] == ["Sing."]


def test_rankings_of_elsewhere_are_taken(tmp_path, tasks, capsys):
    task = read_tasks(str(tasks), "rank")[0]
    theirs = tmp_path / "theirs.jsonl"
    responses = [{"text": one.text, "rank": rank} for rank, one in enumerate(task.candidates, 1)]
    theirs.write_text(json.dumps({"prompt": task.prompt, "responses": responses, "labeler": "zoe"}) + "\n", "utf-8")
    out = tmp_path / "out.jsonl"
    assert main(["label", str(tasks), "--out", str(out), "--take", str(theirs)]) == 0
    assert "took 1 answers" in capsys.readouterr().out
    (record,) = files.load(str(out), "ranking")
    assert record.labeler == "zoe" and {answer.source for answer in record.responses} == {
        f"model-{k}" for k in range(3)
    }


def test_tasks_are_handed_over(tmp_path, tasks, capsys):
    out = tmp_path / "tasks.json"
    assert main(["label", str(tasks), "--out", str(out), "--to", "label-studio"]) == 0
    assert "wrote 3 tasks for label-studio" in capsys.readouterr().out
    assert len(json.loads(out.read_text(encoding="utf-8"))) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "out.jsonl"], "there is no store out.sqlite yet; name TASKS"),
        (["--out", "out.jsonl", "--task", "write"], "or --limit N"),
        (["none.jsonl", "--out", "out.jsonl"], "none.jsonl"),
        (["tasks.jsonl", "--out", "tasks.jsonl"], "tasks.jsonl: is read from"),
        (["tasks.jsonl", "--out", "folder"], "folder: is a directory"),
        (["tasks.jsonl", "--out", "there.jsonl"], "but its store there.sqlite does not"),
        (["tasks.jsonl", "--out", "out.jsonl", "--gold-every", "3"], "--gold-every goes with --gold"),
        (["tasks.jsonl", "--out", "out.jsonl", "--guidelines", "none.md"], "none.md: cannot be read as guidelines"),
        (["tasks.jsonl", "--out", "out.jsonl", "--guidelines", "folder"], "Is a directory; name a Markdown file"),
        (["tasks.jsonl", "--out", "out.jsonl", "--labelers", "anna,admin"], "'admin' cannot be a name"),
        (["tasks.jsonl", "--out", "out.jsonl", "--port", "70000"], "there is no port 70000"),
        (["tasks.jsonl", "--out", "out.jsonl", "--host", "256.1.1.1"], "256.1.1.1: no address to serve at"),
        (["tasks.jsonl", "--out", "out.jsonl", "--host", "256.1.1.1"], "--host takes an address of this machine"),
        (["tasks.jsonl", "--out", "out.jsonl", "--origin", "label.example.org"], "is no origin"),
        (["tasks.jsonl", "--out", "out.jsonl", "--store", "tasks.jsonl"], "is read from"),
        (["--out", "out.json", "--to", "argilla"], "--to needs TASKS"),
        (["tasks.jsonl", "--out", "tasks.jsonl", "--to", "label-studio"], "tasks.jsonl: is read from"),
        (["tasks.jsonl", "--out", "folder", "--to", "label-studio"], "folder: is a directory"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, tasks, capsys, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.jsonl").write_text("{}\n", encoding="utf-8")
    before = tasks.read_bytes()
    assert main(["label", *options, "--no-browser"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert (tmp_path / "there.jsonl").read_text(encoding="utf-8") == "{}\n"
    assert tasks.read_bytes() == before


def test_names_that_are_none(tmp_path, tasks, capsys):
    with pytest.raises(SystemExit) as end:
        main(["label", str(tasks), "--out", str(tmp_path / "out.jsonl"), "--labelers", " , ", "--export"])
    assert end.value.code == 2
    assert "--labelers: names nobody" in capsys.readouterr().err


def test_a_store_is_of_one_kind_of_task(tmp_path, tasks, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["label", str(tasks), "--out", str(out), "--export"]) == 0
    assert main(["label", str(tasks), "--out", str(out), "--task", "rate", "--export"]) == 2
    error = capsys.readouterr().err
    assert "out.sqlite holds tasks to rank" in error and "--out" in error and error.count("\n") == 1
    with closing(Store(tmp_path / "out.sqlite")) as store:
        assert [task.kind for task in store.tasks()] == 3 * ["rank"]


def test_a_port_that_is_taken(tmp_path, tasks, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["label", str(tasks), "--out", str(tmp_path / "o.jsonl"), "--port", port, "--no-browser"]) == 2
    error = capsys.readouterr().err
    assert f"port {port}" in error and "--port" in error and error.count("\n") == 1


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "nh3", "markdown_it"])
def test_without_the_extra_it_says_what_to_install(tmp_path, tasks, missing):
    command = ["label", str(tasks), "--out", str(tmp_path / "out.jsonl"), "--no-browser"]
    ended = run(
        f"import sys; sys.modules['{missing}'] = None",
        "from rlhf_kit.cli import main",
        f"sys.exit(main({command!r}))",
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.endswith("pip install 'rlhf-kit[label]'\n") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "out.sqlite").exists()


def test_it_needs_no_torch(tmp_path):
    ended = run(
        "import sys",
        "from pathlib import Path",
        "import rlhf_kit.cli",
        "from rlhf_kit.labeling.serving import Serving, serve",
        "from rlhf_kit.labeling.store import Store",
        "from rlhf_kit.labeling.tasks import blank_tasks",
        f"store = Store(Path({str(tmp_path / 's.sqlite')!r}))",
        "store.add(blank_tasks(3))",
        "serve(store, Serving(), done=lambda: True, told=print)",
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])",
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("\n[]\n")


# -------------------------------------------------------------------- from another program


def test_another_program_has_its_signals_back(store):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    told: list[str] = []
    serve(store, Serving(), done=lambda: True, told=told.append)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert told[-1].startswith("  admin ")


_HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)


@pytest.fixture
def terminal():
    """Whose end is heard, also where the tests are started behind nohup."""
    before = signal.signal(_HANGUP, signal.SIG_DFL)
    yield
    signal.signal(_HANGUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, _HANGUP])
def test_a_signal_ends_the_serving_and_not_the_program(store, number):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))

    def done() -> bool:
        if not timer.ident:  # only from here on are signals certainly heard
            timer.start()
        return False

    serve(store, Serving(), done=done, told=lambda line: None)
    timer.join()  # and here it goes on


@pytest.mark.usefixtures("terminal")
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_a_terminal_that_is_closed_ends_it_with_its_records_but_not_behind_nohup(tmp_path, tasks, store):
    server = Server(tmp_path, [str(tasks), "--limit", "1"])
    server.start()
    somebody = Person(server.port)
    somebody.sign_in(server.links["labeler"])
    assert somebody.rank(somebody.get("/api/task").json).status == 200
    code, said = server.end(signal.SIGHUP)
    assert code == 0 and "wrote 1 records" in said and len(files.load(str(server.out), "ranking")) == 1
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        seen = list[object]()
        serve(store, Serving(), done=lambda: not seen.append(signal.getsignal(signal.SIGHUP)), told=lambda line: None)
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_of_the_program_ends_the_serving(store):
    def done() -> bool:
        raise RuntimeError("training has failed")

    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="training has failed"):
        serve(store, Serving(), done=done, told=lambda line: None)
    assert threading.active_count() <= threads + 1  # a thread for the disk ends by itself a little later


def test_done_is_asked_until_it_is(store):
    answers = iter([False, False, True])
    serve(store, Serving(), done=lambda: next(answers), told=lambda line: None)
    assert next(answers, "asked no more") == "asked no more"


def test_the_browser_is_opened_by_way_of_a_file_that_nobody_else_reads(store, monkeypatch):
    opened: list[tuple[str, str, int]] = []

    def browser(url: str) -> bool:
        path = Path(urllib.request.url2pathname(url.removeprefix("file://")))
        opened.append((str(path), path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)))
        return True

    monkeypatch.setattr(serving.webbrowser, "open", browser)
    monkeypatch.setenv("DISPLAY", ":0")
    told: list[str] = []
    serve(store, Serving(open_browser=True), done=lambda: True, told=told.append)
    ((path, content, mode),) = opened
    link = next(line.split()[-1] for line in told if line.startswith("  anna"))
    assert f"url={link}" in content and mode == 0o600
    assert not Path(path).exists()
    store.set_labelers(["anna", "ben"])  # whoever serves several is none of them, and would begin a task as the first
    serve(store, Serving(open_browser=True), done=lambda: True, told=told.append)
    assert f"url={told[-1].split()[-1]}" in opened[1][1] and told[-1].startswith("  admin ")


def test_other_machines_are_warned_of():
    told: list[str] = []
    serving._tell(Serving(host="0.0.0.0"), 8000, [("admin", "link")], told.append)
    assert "not encrypted" in told[0] and "proxy with TLS" in told[0]
    told.clear()
    serving._tell(Serving(origin="https://label.example.org"), 8000, [("admin", "link")], told.append)
    assert told[0] == "the proxy of https://label.example.org finds the page at http://127.0.0.1:8000"
    with pytest.raises(RlhfKitError, match="no origin"):
        Serving(origin="https://label.example.org/path")
