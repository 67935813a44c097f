"""Pushing a finished export to the Hub: checked before anything is sent, private by default, and an interrupted push
goes on from what was sent.

Files go through `HfApi.create_commit` of huggingface_hub (its source read in 2.4, where `upload_large_folder` is gone
and `upload_folder` resumes in the same way, but takes a folder as it is and may make several commits):

* There is one commit, made when all large files have arrived: a repository never shows half an export.
* With hf_xet, which comes with huggingface_hub, large files travel in pieces of up to 64 MB that follow from their
  content. The server is asked before each, and what it has is not sent again. Of a server that does not know this
  question, hf_xet keeps its own notes in HF_HOME/xet, written every 20 seconds.
* Without it, or with HF_HUB_DISABLE_XET, a large file is one Git LFS object. The server says which it has; one that
  was cut off is sent anew.
* Uploads are repeated up to five times by huggingface_hub and hf_xet themselves, with growing pauses. What fails after
  that, or is not repeated by them (making the repository, the commit), begins anew after `_PAUSES`.

The tests run the real client, with and without hf_xet, against a server of their own that breaks off, refuses and
remembers. That the Hub remembers too is what its documentation says; it is not tested here.

The token is what `huggingface_hub.get_token` finds: HF_TOKEN or the login. It goes to the Hub and is written nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the last is httpx's or httpx2's

from rlhf_kit.checkpoint import INPUTS, MANIFEST, Manifest, read_json, read_manifest
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.models.sources import is_repository_name

__all__ = ["RECORD", "is_export", "push"]

log = logging.getLogger(__name__)

# What the Hub gets in place of `manifest.json`: that one names data, parents and directories of the training machine
# (`recipe`, `inputs`, `parents`), and a folder with a manifest looks like a finished run to this kit. What others can
# use is in here: the base, the hashes to check the weights by, what was measured, the versions.
RECORD = "rlhf_kit_export.json"
_BASE = ("id", "revision", "sha256", "dtype", "quantization")

_MAKE = "rlhf-kit export RUN --to KIND --out DIR"
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_PAUSES = (5.0, 20.0)  # seconds before each further attempt
_NAMES = ("base_model", "datasets")
_TEXTS = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")
_LISTS = ("tags", "language", "metrics", *_NAMES)

# hf_xet has no error of its own for an answer, but writes it so.
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")
_TROUBLE = "the Hub has trouble of its own; wait some minutes"
_ADVICE = {
    401: "the Hub does not know this token; make one that may write at {settings} and log in again or set HF_TOKEN",
    403: "this token may not write there; give it the right at {settings}, or name a repository of your own",
    404: "the Hub has no such repository or branch, or does not show it to this token; check the name and the token",
    408: _TROUBLE,
    409: "somebody else is changing the repository; run the command again when they are done",
    412: "somebody else has changed the repository meanwhile; run the command again",
    413: "a file is larger than the Hub takes; export in smaller files, or ask the Hub for more",
    429: "the Hub takes no more requests of this account for now; wait some minutes",
}


def push(directory: Path, repo_id: str, *, private: bool = True, revision: str | None = None) -> str:
    """Uploads a finished export as one commit and returns the commit's address.

    Files that the repository has and the export has not stay there. Nothing in `directory` is changed. Dot files are
    not sent, `rlhf_kit_export.json` is sent in place of `manifest.json`.

    Args:
        directory: an export with its manifest, as `rlhf-kit export` leaves it.
        repo_id: `owner/name`; a bare name is one of the token's owner. A repository that does not exist is made.
        private: of a repository that is made; one that exists keeps its visibility.
        revision: a branch, made from `main` where it does not exist.

    Raises:
        ExportError: not a finished export or changed since; something in it that others could not use or should not
            see (a local path as base, metadata that the Hub would refuse, a directory of this machine); no token;
            offline; a public repository though `private`; whatever the Hub or the network answered, with what to do.
    """
    _check_name(repo_id)
    token = _token()
    manifest = _finished(directory)
    record = _record(manifest)
    _check_base(directory, manifest)
    _check_card(directory / "README.md")
    _check_places(directory, record)
    api, reached = HfApi(token=token), False
    for pause in (*_PAUSES, None):
        try:
            name = _repository(api, repo_id, private)
            reached = True
            return _commit(api, directory, name, revision, record)
        except (HTTPError, OSError, RuntimeError, ValueError) as failure:
            reason, passing = _reason(failure)
            # A wrong address or no network is not mended by waiting; a connection that was there may be again.
            passing &= reached or isinstance(failure, HfHubHTTPError)
        reason = reason.replace(token, "(the token)")
        if pause is None or not passing:
            break
        log.warning("%s: %s; once more in %g seconds", repo_id, reason, pause)
        time.sleep(pause)
    raise ExportError(
        f"{repo_id}: not pushed: {reason}. {directory} is as it was, and the same command goes on from what was sent"
    )


# -------------------------------------------------------------------- before anything is sent


def is_export(directory: Path) -> bool:
    """Whether a directory says of itself that it is a finished export; its files are not looked at.

    Raises:
        CheckpointError: its manifest is damaged.
    """
    return (directory / MANIFEST).is_file() and read_json(directory / MANIFEST).get("stage") == "export"


def _finished(directory: Path) -> Manifest:
    if not (directory / MANIFEST).is_file():
        raise ExportError(f"{directory}: not a finished export (no {MANIFEST}); make one with `{_MAKE}`")
    try:
        manifest = read_manifest(directory)
    except CheckpointError as failure:
        raise ExportError(str(failure)) from failure
    if manifest.stage != "export":
        raise ExportError(
            f"{directory}: the run directory of stage {manifest.stage}, not an export; only what was verified is "
            f"pushed: make an export of it with `{_MAKE}`"
        )
    weights = {str(path.relative_to(directory)) for _, path in _files(directory) if path.suffix in _WEIGHTS}
    if added := sorted(weights - set(manifest.files)):
        raise ExportError(f"{directory / added[0]}: not there when the export was verified; move it away")
    return manifest


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """What is sent: name in the repository, file. Hidden files and folders are other people's scratch."""
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory)
        if str(name) not in (MANIFEST, INPUTS) and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def _check_name(repo_id: str) -> None:
    if not is_repository_name(repo_id):
        raise ExportError(f"{repo_id}: not the name of a repository: `owner/name` of letters, digits, `-`, `_` and `.`")


def _record(manifest: Manifest) -> bytes:
    """What stands in `rlhf_kit_export.json`."""
    base = {key: manifest.base.get(key) for key in _BASE}
    if _is_local(manifest.base["id"], manifest.base):
        base["id"] = None
    kept = {name: getattr(manifest, name) for name in ("metrics", "files", "versions", "finished")}
    return (json.dumps({"base": base, **kept}, indent=2, ensure_ascii=False) + "\n").encode()


def _is_local(name: str, base: dict[str, Any]) -> bool:
    """Whether a base is named by a place on this machine, or by the name that was made from such a place."""
    if not is_repository_name(name):
        return True
    source = base["name_or_path"]
    if name == base["id"]:
        return name == Path(source).stem and (name != source or Path(source).exists())
    return Path(name).exists()


def _check_base(directory: Path, manifest: Manifest) -> None:
    """Adapters must name a base that others can load."""
    for path in sorted(directory.rglob("adapter_config.json")):
        name = read_json(path).get("base_model_name_or_path")
        if not name or _is_local(name, manifest.base):
            raise ExportError(
                f"{path}: base_model_name_or_path: {name!r} is not a model of the Hub, so nobody else could load this "
                "adapter; set model.base_id to the Hub id of the base and export again"
            )


def _check_card(path: Path) -> None:
    """What can be known of a card's metadata without the Hub: that it is read, its types, its names. Whether the Hub
    has such a licence or pipeline it says itself: `create_commit` asks it before it sends a file."""
    if not path.is_file():
        raise ExportError(f"{path}: missing; an export without a model card is not pushed")
    try:
        data = ModelCard.load(path).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as failure:
        raise ExportError(f"{path}: its metadata cannot be read: {_flat(str(failure))}") from failure
    if not data:
        raise ExportError(f"{path}: no metadata (lines between `---` and `---` at the top)")
    wrong = [f"{key}: must be a text" for key in _TEXTS if not isinstance(data.get(key, ""), str)]
    for key in _LISTS:
        values = data.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            wrong.append(f"{key}: must be a text or a list of texts")
        elif key in _NAMES:
            wrong += [
                f"{key}: {value!r} is not the name of a repository" for value in values if not is_repository_name(value)
            ]
    licence = data.get("license")
    if isinstance(licence, str) and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        wrong.append(f"license: {licence!r} is not an identifier of the Hub, such as apache-2.0")
    if licence == "other" and "license_name" not in data:
        wrong.append("license: other needs license_name and license_link")
    if wrong:
        raise ExportError(f"{path}: " + "; ".join(wrong))


def _check_places(directory: Path, record: bytes) -> None:
    """No text that is sent may name the home directory, the working directory or the export's own."""
    own = {str(place.resolve()) for place in (Path(os.path.expanduser("~")), Path.cwd(), directory)} - {"/"}
    texts = {name: path.read_bytes() for name, path in _files(directory) if _is_text(path.name)}
    for name, text in {**texts, RECORD: record}.items():
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
            if found := [place for place in own if f"{place}/" in f"{line}/"]:
                raise ExportError(
                    f"{directory / name}:{number}: names {max(found, key=len)}, a directory of this machine, which "
                    "others should not see and cannot use; take it out"
                )


def _is_text(name: str) -> bool:
    return name.endswith((".md", "config.json", ".jinja")) or name == "Modelfile"


def _token() -> str:
    if constants.is_offline_mode():
        raise ExportError("HF_HUB_OFFLINE is set: nothing can be pushed; unset it and run the command again")
    token = get_token()
    if not token:
        raise ExportError(
            "no token for the Hub: set HF_TOKEN or run `hf auth login`, with a token that may write "
            f"(from {constants.ENDPOINT}/settings/tokens)"
        )
    if not re.fullmatch(r"[!-~]+", token):  # httpx would print it
        raise ExportError("the token for the Hub (HF_TOKEN or the login) holds characters that no token has")
    return token


# -------------------------------------------------------------------- what is sent


def _repository(api: HfApi, repo_id: str, private: bool) -> str:
    """The full name of the repository, made if need be; its visibility is looked at after, never changed."""
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.model_info(name).private:
        raise ExportError(
            f"{name}: exists and is public, and a private push was asked for; name another repository, make this one "
            "private in its settings, or ask for a public push"
        )
    return name


def _commit(api: HfApi, directory: Path, repo_id: str, revision: str | None, record: bytes) -> str:
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    # Made anew for each attempt: huggingface_hub keeps in them what the server said before.
    operations = [CommitOperationAdd(name, path) for name, path in _files(directory)]
    operations.append(CommitOperationAdd(RECORD, record))
    commit = api.create_commit(
        repo_id, operations=operations, commit_message="Export of rlhf_kit, verified", revision=revision
    )
    return commit.commit_url


def _reason(failure: BaseException) -> tuple[str, bool]:
    """Why a push failed and what to do, in one line, and whether the same again may succeed."""
    if isinstance(failure, RuntimeError) and failure.__cause__ is not None:
        failure = failure.__cause__  # "Error while uploading"
    said, status = _flat(str(failure)), None
    if isinstance(failure, HfHubHTTPError):
        said, status = _flat(failure.server_message or ""), failure.response.status_code
    elif found := _XET_STATUS.search(said):
        status = int(found[1])
    if status is not None:
        advice = _ADVICE.get(status, _TROUBLE if status >= 500 else "the Hub refuses this")
        advice = advice.format(settings=f"{constants.ENDPOINT}/settings/tokens")
        return f"HTTP {status}: {advice}" + f" ({said})" * bool(said), status in (408, 429) or status >= 500
    if isinstance(failure, (HTTPError, ConnectionError)):
        return f"no connection to {constants.ENDPOINT}, or it broke off; check the network ({said})", True
    if isinstance(failure, json.JSONDecodeError):  # a page for people, of something between here and the Hub
        return f"{_TROUBLE} (its answer is no JSON)", True
    return said or type(failure).__name__, False


def _flat(text: str) -> str:
    return " ".join(text.split())
