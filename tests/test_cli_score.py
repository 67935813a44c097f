"""`rlhf-kit score` as it is typed: the scores of `RewardModel` beside the right responses, in rows that stay valid."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from backbones import tiny_directory
from test_reward_model import make_run

from rlhf_kit.cli import main
from rlhf_kit.reward_model import RewardModel

RANKINGS = [
    {
        "prompt": "Why is the sky blue?",
        "responses": [
            {"text": "It scatters.", "rank": 2, "source": "sft"},
            {"text": "No.", "rank": 1, "ended": False},
            {"text": "I do not know, sorry.", "rank": 3},
        ],
        "labeler": "anna",
        "meta": {"batch": 3},
    },
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "Six."},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run", tiny_directory())


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(name):
    raw = Path(name).read_bytes()
    text = gzip.decompress(raw) if str(name).endswith(".gz") else raw
    return [json.loads(line) for line in text.splitlines()]


def score(*words):
    return main(["score", *map(str, words)])


def account_of(capsys, *words):
    assert score(*words, "--format", "json") == 0
    return json.loads(capsys.readouterr().out)


def test_each_response_of_a_ranking_gets_its_score(run, capsys):
    write("rankings.jsonl", RANKINGS)
    account = account_of(capsys, "rankings.jsonl", "--reward", run)
    prompts = ["Why is the sky blue?"] * 3 + ["Hi"] * 2
    texts = ["It scatters.", "No.", "I do not know, sorry.", "Hello!", "Six."]
    expected = RewardModel.from_run(run).score(prompts, texts, ended=[True, False, True, True, True])
    first, second = rows_of("rankings.scored.jsonl")
    torch.testing.assert_close(torch.tensor(first["meta"]["scores"]), expected[:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(second["meta"]["scores"]), expected[3:], atol=1e-5, rtol=1e-5)
    assert [r["text"] for r in second["responses"]] == ["Hello!", "Six."]
    assert first["meta"] == {"batch": 3, "scores": first["meta"]["scores"], "scored_by": str(run)}
    assert {key: first[key] for key in ("prompt", "responses", "labeler")} == {
        key: RANKINGS[0][key] for key in ("prompt", "responses", "labeler")
    }
    assert main(["validate", "rankings.scored.jsonl"]) == 0
    assert (account["kind"], account["rows"], account["responses"]) == ("ranking", 2, 5)
    assert account["mean"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert account["std"] == pytest.approx(expected.std(correction=0).item(), abs=1e-5)
    ordered = sorted(expected.tolist())
    assert list(account["quantiles"]) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    assert [account["quantiles"][q] for q in ("0", "0.25", "0.5", "1")] == pytest.approx(
        [ordered[0], ordered[1], ordered[2], ordered[4]], abs=1e-5
    )
    assert (account["shortened_prompts"], account["cut_responses"], account["replaced"]) == (0, 0, 0)
    assert account["out"] == "rankings.scored.jsonl"


def test_demonstrations_and_ratings_get_one_score(run, capsys):
    write("demos.jsonl", [{"prompt": "Hi", "completion": "Hello!"}, {"prompt": "Say hello.", "completion": "No."}])
    write("ratings.jsonl", [{"prompt": "Hi", "response": "Hello!", "score": 4, "scale": [1, 5]}])
    account_of(capsys, "demos.jsonl", "--reward", run)
    account_of(capsys, "ratings.jsonl", "--reward", run, "--out", "out/rated.jsonl.gz")
    one, two = rows_of("demos.scored.jsonl")
    (rated,) = rows_of("out/rated.jsonl.gz")
    expected = RewardModel.from_run(run).score(["Hi", "Say hello."], ["Hello!", "No."])
    assert [row["meta"]["score"] for row in (one, two)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert rated["meta"]["score"] == pytest.approx(expected[0].item(), abs=1e-5) and rated["score"] == 4
    assert main(["validate", "demos.scored.jsonl", "out/rated.jsonl.gz"]) == 0
    capsys.readouterr()
    again = account_of(capsys, "demos.scored.jsonl", "--reward", run)
    Path("demos.jsonl.gz").write_bytes(gzip.compress(Path("demos.jsonl").read_bytes()))
    account_of(capsys, "demos.jsonl.gz", "--reward", run)
    assert rows_of("demos.scored.jsonl.gz") == [one, two]
    assert again["replaced"] == 2 and again["out"] == "demos.scored.scored.jsonl"


def test_a_file_of_a_foreign_format_and_a_folder(run, capsys):
    Path("folder").mkdir()
    pair = "\n\nHuman: Hi\n\nAssistant: {}"
    write("folder/a.jsonl", [{"chosen": pair.format("Hello!"), "rejected": pair.format("No.")}])
    write("folder/b.jsonl", [{"chosen": pair.format("Six."), "rejected": pair.format("Yes.")}])
    account = account_of(capsys, "folder", "--reward", run, "--out", "all.jsonl")
    assert (account["kind"], account["rows"], account["responses"]) == ("ranking", 2, 4)
    found = [dict(zip([r["text"] for r in row["responses"]], row["meta"]["scores"], strict=True))
             for row in rows_of("all.jsonl")]  # fmt: skip
    said = {**found[0], **found[1]}
    expected = RewardModel.from_run(run).score(["Hi"] * 4, list(said))
    assert set(said) == {"Hello!", "No.", "Six.", "Yes."}
    assert list(said.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    Path("csv.csv").write_text("prompt,completion\nHi,Hello!\n")
    assert account_of(capsys, "csv.csv", "--reward", run)["out"] == "csv.scored.jsonl"
    account_of(capsys, "folder/a.jsonl", "--reward", run, "--schema", "demonstration", "--from", "hh-rlhf")
    assert "score" in rows_of("folder/a.scored.jsonl")[0]["meta"]


def test_the_account_in_words(run, capsys):
    long = [{"role": role, "content": "one two three " * 20} for _ in range(9) for role in ("user", "assistant")]
    write("demos.jsonl", [{"prompt": [*long, {"role": "user", "content": "Hi"}], "completion": "No. " * 600}])
    assert score("demos.jsonl", "--reward", run) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 demonstration rows with 1 responses"
    assert said[1].startswith("scores: mean ") and said[2].startswith("quantiles: 0% ")
    assert said[3] == "1 prompts were longer than the model takes and lost their oldest turns"
    assert said[4] == "1 responses were longer than the model takes and were cut"
    assert said[5:] == ["wrote demos.scored.jsonl"]


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([{"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}, {"prompt": 3, "completion": "b"}], [],
         ["rows.jsonl:1: completion: empty", "rows.jsonl:3: prompt: must be"]),
        ([{"prompt": "a"}], [], ["rows.jsonl: holds prompt rows, which have no response to score"]),
        ([{"prompt": "a", "completion": "b"}], ["--out", "rows.jsonl"], ["rows.jsonl: is read from"]),
        ([{"prompt": "a", "completion": "b"}], ["--reward", "nothing"], ["nothing: neither a run with a finished"]),
        ([{"prompt": p, "completion": "b", "id": "x"} for p in "ac"], [], ["rows.jsonl:2: id: "]),
        ([], [], ["rows.jsonl: holds no rows"]),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_said_at_once_and_nothing_is_written(rows, words, said, run, capsys):
    Path("nothing").mkdir()
    write("rows.jsonl", rows)
    assert score("rows.jsonl", *(["--reward", run] if "--reward" not in words else []), *words) == 2
    for line, start in zip(capsys.readouterr().err.splitlines(), said, strict=True):
        assert line.startswith(start)
    assert sorted(path.name for path in Path().iterdir()) == ["nothing", "rows.jsonl"]


def test_a_source_that_is_no_file_needs_a_name_for_the_output(run, capsys):
    Path("folder").mkdir()
    write("folder/a.jsonl", [{"prompt": "a", "completion": "b"}])
    assert score("folder", "--reward", run) == 2
    assert capsys.readouterr().err == "folder: is no file, so name the file to write in --out\n"
