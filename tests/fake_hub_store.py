"""What a fake Hub keeps and answers, without HTTP: repositories and commits, Git LFS objects, xet's pieces.

It forgets nothing, so that a second push meets what the first one has left. Its objects are what it assembled itself
from the bytes that came: LFS objects in one piece or in parts, xet objects from the chunks of the uploaded xorbs in the
order that the uploaded shard gives. A commit that names an object which is not there is refused.

Protocols: huggingface_hub 2.4's own source, https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md and
https://huggingface.co/docs/xet (upload-protocol, xorb, shard). Chunks must come uncompressed: set
HF_XET_XORB_COMPRESSION_POLICY=none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer(Exception):
    """What is sent back; raised where a request cannot be met."""

    value: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    """The files of each branch, and the commits: (branch, message)."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"]


class Store:
    """One method a kind of request; `answer` finds it."""

    def __init__(self, url: str, part_size: int) -> None:
        self.url = url
        self.part_size = part_size  # LFS objects larger than this are uploaded in parts of this size; 0: never
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # by sha256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.xorbs: dict[str, bytes] = {}

    def answer(self, what: str, body: bytes) -> Answer:
        """What comes back for `METHOD path`."""
        repo = r"(\w+/[\w.-]+)"
        routes = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": self._validate,
            rf"GET /api/models/{repo}(?:/revision/.+)?": self._info,
            rf"POST /api/models/{repo}/branch/(.+)": self._branch,
            rf"POST /api/models/{repo}/preupload/(.+)": self._preupload,
            rf"POST /api/models/{repo}/commit/(.+)": self._commit,
            rf"POST /{repo}\.git/info/lfs/objects/batch": self._batch,
            r"PUT /storage/lfs/(\w+)": self._object,
            r"PUT /storage/lfs/(\w+)/(\d+)": self._part,
            r"POST /storage/complete/(\w+)": self._complete,
            rf"GET /api/models/{repo}/xet-write-token/(.+)": self._xet_token,
            r"POST /cas/v1/xorb-grants/default/(\w+)": self._xorb_grant,
            r"(?:PUT /storage/xorb|POST /cas/v1/xorbs/default)/(\w+)": self._xorb,
            r"POST /cas/v1/xorb-commits/default/(\w+)/grant/\w+": self._xorb_commit,
            r"POST /cas/v1/shards": self._shard,
        }
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, what):
                return route(body, *found.groups())
        raise Answer({"error": "not found"}, 404)

    # ---------------------------------------------------------------- repositories

    def _repo(self, name: str) -> Repo:
        if name not in self.repos:
            raise Answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return self.repos[name]

    def _files(self, name: str, branch: str) -> dict[str, bytes]:
        branches = self._repo(name).branches
        if branch not in branches:
            raise Answer({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return branches[branch]

    def _create(self, body: bytes) -> Answer:
        asked = json.loads(body)
        name = f"{asked['organization'] or 'someone'}/{asked['name']}"
        if name in self.repos:
            return Answer({"error": "You already created this", "url": f"{self.url}/{name}"}, 409)
        self.repos[name] = Repo(asked.get("visibility") == "private")
        return Answer({"url": f"{self.url}/{name}"})

    def _validate(self, body: bytes) -> Answer:
        if "license: unheard-of" in json.loads(body)["content"]:
            return Answer({"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}]}, 400)
        return Answer({"errors": [], "warnings": []})

    def _info(self, body: bytes, name: str) -> Answer:
        repo = self._repo(name)
        return Answer({"id": name, "private": repo.private, "sha": f"{len(repo.commits):040x}", "siblings": []})

    def _branch(self, body: bytes, name: str, branch: str) -> Answer:
        branches = self._repo(name).branches
        if branch in branches:
            return Answer({"error": "Reference already exists"}, 409)
        branches[branch] = dict(branches["main"])
        return Answer({})

    def _preupload(self, body: bytes, name: str, branch: str) -> Answer:
        files, answers = self._files(name, branch), []
        for asked in json.loads(body)["files"]:
            large = asked["path"].endswith((".safetensors", ".gguf"))
            answer = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (old := files.get(asked["path"])) is not None:
                git = hashlib.sha1(b"blob %d\0" % len(old) + old).hexdigest()
                answer["oid"] = hashlib.sha256(old).hexdigest() if large else git
            answers.append(answer)
        return Answer({"files": answers})

    def _commit(self, body: bytes, name: str, branch: str) -> Answer:
        files, message = dict(self._files(name, branch)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] not in self.objects:
                return Answer({"error": f"LFS object {value['oid']} was not uploaded"}, 400)
            else:
                files[value["path"]] = self.objects[value["oid"]]
        repo = self._repo(name)
        repo.branches[branch] = files
        repo.commits.append((branch, message))
        oid = f"{len(repo.commits):040x}"
        return Answer({"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid})

    # ---------------------------------------------------------------- Git LFS

    def _batch(self, body: bytes, name: str) -> Answer:
        self._repo(name)
        answers = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            upload: dict[str, Any] = {"href": f"{self.url}/storage/lfs/{oid}"}
            if 0 < self.part_size < size:
                parts = range(1, -(-size // self.part_size) + 1)
                header = {str(part): f"{self.url}/storage/lfs/{oid}/{part}" for part in parts}
                upload["href"] = f"{self.url}/storage/complete/{oid}"
                upload["header"] = {"chunk_size": str(self.part_size), **header}
            answers.append(asked if oid in self.objects else {**asked, "actions": {"upload": upload}})
        return Answer({"objects": answers})

    def _object(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return Answer({"error": "these bytes are not the object"}, 400)
        self.objects[oid] = body
        return Answer({})

    def _part(self, body: bytes, oid: str, part: str) -> Answer:
        self.parts.setdefault(oid, {})[int(part)] = body
        return Answer({}, headers={"ETag": hashlib.md5(body).hexdigest()})

    def _complete(self, body: bytes, oid: str) -> Answer:
        return self._object(b"".join(self.parts[oid][part["partNumber"]] for part in json.loads(body)["parts"]), oid)

    # ---------------------------------------------------------------- xet

    def _xet_token(self, body: bytes, name: str, branch: str) -> Answer:
        self._files(name, branch)
        return Answer({"casUrl": f"{self.url}/cas", "accessToken": "xet", "exp": int(time.time()) + 3600})

    def _xorb_grant(self, body: bytes, name: str) -> Answer:
        if name in self.xorbs:
            return Answer({})
        return Answer({"id": "1", "method": "PUT", "url": f"{self.url}/storage/xorb/{name}", "headers": {}}, 201)

    def _xorb(self, body: bytes, name: str) -> Answer:
        self.xorbs[name] = body
        return Answer({"was_inserted": True})

    def _xorb_commit(self, body: bytes, name: str) -> Answer:
        return Answer({}, 200 if name in self.xorbs else 404)

    def _shard(self, body: bytes) -> Answer:
        """Puts the files of a shard together: for each 48 bytes of header, 48 for each segment, then hashes."""
        place = 48
        while body[place : place + 32] != b"\xff" * 32:
            flags, segments = struct.unpack_from("<II", body, place + 32)
            content = b""
            for _segment in range(segments):
                place += 48
                first, end = struct.unpack_from("<II", body, place + 40)
                name = "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", body, place))
                content += b"".join(_chunks(self.xorbs[name])[first:end])
            place += 48 + 48 * segments * bool(flags & 1 << 31) + 48 * bool(flags & 1 << 30)
            self.objects[hashlib.sha256(content).hexdigest()] = content
        return Answer({"result": 1})


def _chunks(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb, each behind 8 bytes: version, length (3), compression, length without it (3)."""
    chunks, place = [], 0
    while place < len(xorb) and xorb[place] == 0:
        size = int.from_bytes(xorb[place + 1 : place + 4], "little")
        assert xorb[place + 4] == 0, "a compressed chunk"
        chunks.append(xorb[place + 8 : place + 8 + size])
        place += 8 + size
    return chunks
