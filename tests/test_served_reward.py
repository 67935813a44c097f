"""`rlhf-kit score --vllm`: a reward model on a server that speaks as vLLM's pooling does, beside the one that it was
exported from. What the server computes is transformers' own classification model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from vllm_double import Answer, VllmDouble, error

from rlhf_kit.cli import main

pytest_plugins = ["whole_run"]  # the fixtures place and run

RANKINGS = [
    {
        "prompt": "Why is the sky blue?",
        "responses": [
            {"text": "It scatters.", "rank": 2},
            {"text": "No.", "rank": 1, "ended": False},
            {"text": "I do not know, sorry.", "rank": 3},
        ],
    },
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "Six."},
]


class PoolingDouble(VllmDouble):
    """It serves a sequence classification model and nothing else."""

    def __post_init__(self) -> None:
        self.faults: list[str] = []
        self.scorer = AutoModelForSequenceClassification.from_pretrained(self.model, dtype=torch.float32).eval()
        super().__post_init__()

    @torch.no_grad()
    def post(self, route: str, body: dict[str, Any]) -> Any:
        if route != "/pooling":
            return super().post(route, body)
        if body["model"] != "tiny/tiny":
            raise error(404, f"The model `{body['model']}` does not exist.", "NotFoundError", "model")
        assert (body["task"], body["use_activation"]) == ("classify", False)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "500":
            raise Answer(500, {"error": {"message": "EngineCore encountered an issue."}})
        rows = [self.scorer(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in body["input"]]
        data = [{"index": n, "object": "pooling", "data": row} for n, row in enumerate(rows)]
        return {"object": "list", "data": data[:-1] if fault == "few" else data[::-1]}


@pytest.fixture(scope="module")
def exported(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    words = ["export", str(place / "run"), "--to", "reward", "--merged", "--dtype", "float32", "--out", str(out)]
    assert main(words) == 0
    return out


@pytest.fixture
def rankings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in RANKINGS))
    return file


def scores_of(file: Path) -> list[float]:
    return [score for line in file.read_text().splitlines() for score in json.loads(line)["meta"]["scores"]]


def test_the_scores_are_the_run_s_own(run: Path, exported: Path, rankings: Path, tmp_path: Path) -> None:
    out = tmp_path / "here.jsonl"
    assert main(["score", str(rankings), "--reward", str(run), "--out", str(out)]) == 0
    there = tmp_path / "there.jsonl"
    with PoolingDouble(exported) as double:
        double.faults = ["500", "few"]
        words = ["score", str(rankings), "--reward", str(exported), "--vllm", double.url, "--out", str(there)]
        assert main(words) == 0
        assert not double.faults
    offset = json.loads((exported / "config.json").read_text())["rlhf_kit_score_offset"]
    assert abs(offset) > 0.01, "or it would not be seen whether it is added"
    assert scores_of(there) == pytest.approx(scores_of(out), abs=1e-4)
    assert len(set(scores_of(there))) == 5, "each response has one of its own"


@pytest.mark.parametrize("what", ["run", "another", "cut"])
def test_what_cannot_be_scored_so_ends_with_two_in_a_line(
    run: Path, exported: Path, rankings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    with PoolingDouble(exported) as double:
        named, url = exported, double.url
        if what == "run":
            named, words = run, "no whole reward model of this kit"
        elif what == "another":
            named, words = tmp_path / "other", f"serves {exported}, not {tmp_path / 'other'}"
            named.mkdir()
            for file in exported.iterdir():
                if file.suffix != ".safetensors" and file.is_file():  # the weights are not looked at
                    (named / file.name).write_bytes(file.read_bytes())
        else:
            url, words = "here", "--vllm here: must look like http://HOST:PORT"
        assert main(["score", str(rankings), "--reward", str(named), "--vllm", url]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
