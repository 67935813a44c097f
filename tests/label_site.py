"""The page for labelers, served in a thread, and somebody who talks to it by hand."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from rlhf_kit.labeling import serving as served
from rlhf_kit.labeling.assignment import Settings
from rlhf_kit.labeling.serving import Serving, serve
from rlhf_kit.labeling.store import Store
from rlhf_kit.labeling.tasks import Candidate, Task


def commits_of(store: Store) -> list[str]:
    """A list that grows with each transaction of the store's idle connection."""
    found: list[str] = []
    store._database._idle[-1].set_trace_callback(lambda said: found.append(said) if said == "COMMIT" else None)
    return found


def rank_task(prompt: Any = "Why is the sky blue?", *texts: str, **more: Any) -> Task:
    """A task to rank; the answers come from models of which no labeler may hear."""
    texts = texts or ("Air scatters blue light most.", "Because.", "It is the sea's reflection.")
    answers = tuple(Candidate(text, source=f"secret-model-{place}") for place, text in enumerate(texts))
    return Task("rank", prompt, answers, **more)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Person:
    """A browser: it keeps its cookies and says what a page of the server would."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""

    def sign_in(self, link: str) -> Answer:
        """As the page does with the fragment of its address."""
        answer = self.post("/api/session", {"token": link.partition("#")[2]})
        if answer.status == 200:
            self.csrf = answer.json["csrf"]
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, value: Any = None, **headers: str) -> Answer:
        """`value` as JSON, or bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps({} if value is None else value).encode()
        usual = {"Content-Type": "application/json", "X-CSRF-Token": self.csrf, "Origin": self.origin}
        return self.ask(
            "POST", path, body, {**usual, **{name.replace("_", "-"): text for name, text in headers.items()}}
        )

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """A header that is empty is not sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {name: text for name, text in headers.items() if text}
        if self.cookies:
            sent.setdefault("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        with closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            answer = Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        if found := re.match(r"([^=]+)=([^;]*)", answer.headers.get("set-cookie", "")):
            self.cookies[found[1]] = found[2]
        return answer

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rank(self, state: Any, **more: Any) -> Answer:
        """Ranks the task of a state in the shown order."""
        answers = {answer["key"]: {"rank": place} for place, answer in enumerate(state["task"]["answers"], 1)}
        value = {"assignment": state["task"]["assignment"], "reply": {"answers": answers, "note": ""}, "seconds": 2.5}
        return self.post("/api/answer", {**value, **more})


def raw(port: int, content: bytes, timeout: float = 20) -> Answer:
    """Sends bytes as they are and reads until the server closes, or has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(content)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())


_PLAIN = Settings()


@dataclass
class Site:
    """A server that is running."""

    store: Store
    port: int
    links: dict[str, str]
    told: list[str]

    def person(self, name: str) -> Person:
        """Somebody who has opened their link."""
        person = Person(self.port)
        assert person.sign_in(self.links[name]).status == 200
        return person


@contextmanager
def site(
    folder: Path,
    tasks: Sequence[Task],
    labelers: Sequence[str] = ("anna", "ben"),
    settings: Settings = _PLAIN,
    clock: Callable[[], float] = time.time,
    **serving: Any,
) -> Iterator[Site]:
    """Serves tasks from a store in the folder until the body is through."""
    with closing(Store(folder / "store.sqlite", clock)) as store, mock.patch.object(served, "_EVERY", 0.05):
        store.configure(settings)
        store.set_labelers(labelers)
        store.add(tasks)
        over, begun, told = threading.Event(), threading.Event(), list[str]()

        def hear(line: str) -> None:
            told.append(line)
            if line.strip().startswith("admin"):
                begun.set()

        def run() -> None:
            try:
                serve(store, Serving(**serving), done=over.is_set, told=hear)
            finally:
                begun.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert begun.wait(20)
            links = {line.split()[0]: line.split()[-1] for line in told if "://" in line and "#" in line}
            port = re.search(r"http://\S+:(\d+)", "\n".join(told))
            assert port is not None
            yield Site(store, int(port[1]), links, told)
        finally:
            over.set()
            thread.join()
