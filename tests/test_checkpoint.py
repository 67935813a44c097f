"""Run directories: what a kill at any moment leaves behind is never taken for more than it is."""

import errno
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlhf_kit import checkpoint
from rlhf_kit.checkpoint import (
    Manifest,
    MetricsLog,
    differences,
    finish,
    last_checkpoint,
    open_work,
    read_json,
    read_manifest,
    read_metrics,
    work_directory,
    write_json,
)
from rlhf_kit.errors import CheckpointError

INPUTS = {"seed": 0, "data": {"rankings": "ab12"}, "ppo": {"kl_coef": 0.05, "trainer": {}}}


def manifest(**fields):
    return Manifest(
        **{
            "stage": "sft",
            "inputs": INPUTS,
            "metrics": {"loss": 1.5},
            "seconds": 2.0,
            "base": {},
            "parents": {},
            "recipe": {},
        }
        | fields
    )


def stage(run, inputs=INPUTS, weight=1.0, **fields):
    """A stage from beginning to end."""
    work = open_work(run, inputs)
    save_file({"w": torch.full((8,), weight)}, work / "adapter_model.safetensors")
    (work / "value").mkdir(exist_ok=True)
    save_file({"w": torch.full((8,), -weight)}, work / "value" / "adapter_model.safetensors")
    finish(work, run, manifest(inputs=inputs, **fields))
    return run


# ---------------------------------------------------------------- finished runs


def test_a_finished_run_is_read_back(tmp_path):
    run = stage(tmp_path / "sft")
    found = read_manifest(run)
    assert (found.stage, found.inputs, found.metrics, found.seconds) == ("sft", INPUTS, {"loss": 1.5}, 2.0)
    assert set(found.files) == {"adapter_model.safetensors", "value/adapter_model.safetensors"}
    assert found.versions["torch"] == torch.__version__ and found.finished.endswith("+00:00")
    assert not work_directory(run).exists()
    assert sorted(p.name for p in run.iterdir()) == ["adapter_model.safetensors", "manifest.json", "value"]


def test_the_hashes_are_sha256sums(tmp_path):
    run = stage(tmp_path / "sft")
    for name, digest in read_manifest(run).files.items():
        said = subprocess.run(["sha256sum", run / name], capture_output=True, text=True, check=True).stdout
        assert said.split()[0] == digest


def test_half_a_manifest_is_not_trusted(tmp_path):
    run = stage(tmp_path / "sft")
    file = run / "manifest.json"
    whole = file.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"manifest\.json: missing or damaged"):
            read_manifest(run)
    for other in ("[]", "{}", '{"stage": "sft", "something": 1}', "null"):
        file.write_text(other, encoding="utf-8")
        with pytest.raises(CheckpointError, match="not a manifest of this kit"):
            read_manifest(run)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        read_manifest(run)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "value/adapter_model.safetensors"])
def test_a_weight_file_that_changed_is_found(tmp_path, name):
    run = stage(tmp_path / "sft")
    data = bytearray((run / name).read_bytes())
    data[-1] ^= 1
    (run / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="missing or changed since the stage finished; remove"):
        read_manifest(run)
    (run / name).unlink()
    with pytest.raises(CheckpointError, match=name.rsplit("/", 1)[-1]):
        read_manifest(run)


def test_older_results_are_kept(tmp_path):
    run = tmp_path / "sft"
    for n in range(3):
        stage(run, {**INPUTS, "seed": n})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sft", "sft.previous-1", "sft.previous-2"]
    seeds = {p.name: read_manifest(p).inputs["seed"] for p in tmp_path.iterdir()}
    assert seeds == {"sft": 2, "sft.previous-1": 0, "sft.previous-2": 1}


# ---------------------------------------------------------------- interrupted runs


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/ppo: cannot be written: (Not a directory|File exists)"):
        open_work(tmp_path / "file" / "ppo", INPUTS)


def test_only_the_same_inputs_go_on(tmp_path):
    run = tmp_path / "ppo"
    work = open_work(run, INPUTS)
    (work / "checkpoints").mkdir()
    assert open_work(run, json.loads(json.dumps(INPUTS))) == work
    assert (work / "checkpoints").is_dir()  # what was there is there
    other = json.loads(json.dumps(INPUTS))
    other["ppo"]["kl_coef"] = 0.1
    assert open_work(run, other) == work
    assert sorted(p.name for p in work.iterdir()) == ["inputs.json"]  # thrown away and begun anew
    assert read_json(work / "inputs.json") == other
    assert not run.exists()


def test_an_interrupted_run_with_a_checkpoint_is_kept_when_its_inputs_change(tmp_path, caplog):
    """A reward function that failed and was mended is another input."""
    run = tmp_path / "ppo"
    for number in (1, 2):
        work = open_work(run, {"reward": f"version {number}"})
        (work / "checkpoints" / "checkpoint-4").mkdir(parents=True)
        with caplog.at_level("INFO", "rlhf_kit"):
            assert open_work(run, {"reward": "mended"}) == work
        assert [p.name for p in work.iterdir()] == ["inputs.json"]
        kept = tmp_path / f".ppo.interrupted-{number}"
        assert (kept / "checkpoints" / "checkpoint-4").is_dir()
        assert read_json(kept / "inputs.json") == {"reward": f"version {number}"}
        assert f"ppo: an interrupted run with other inputs is kept as {kept.name}" in caplog.text
        (work / "inputs.json").unlink()
        work.rmdir()


@pytest.mark.parametrize("damage", ["missing", "half", "empty"])
def test_a_work_directory_without_readable_inputs_is_begun_anew(tmp_path, damage):
    work = open_work(tmp_path / "ppo", INPUTS)
    (work / "left").write_text("over", encoding="utf-8")
    file = work / "inputs.json"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text('{"seed":' if damage == "half" else "", encoding="utf-8")
    open_work(tmp_path / "ppo", INPUTS)
    assert not (work / "left").exists() and read_json(file) == INPUTS


def put_checkpoint(work, step, state='{"global_step": 1}'):
    path = work / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state, encoding="utf-8")
    return path


def test_the_newest_whole_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10, 9):  # as numbers: as texts, 9 would be the newest
        put_checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    put_checkpoint(tmp_path, 12, '{"global_step": 12, "epoch"')
    put_checkpoint(tmp_path, 14, None)
    put_checkpoint(tmp_path, 16, "")
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert not (tmp_path / "checkpoints" / "checkpoint-12").exists()  # not to be met again


def test_no_whole_checkpoint_is_none(tmp_path):
    put_checkpoint(tmp_path, 4, "{")
    assert last_checkpoint(tmp_path) is None


def test_a_run_that_was_killed_before_its_end_is_no_run(tmp_path):
    run = tmp_path / "sft"
    work = open_work(run, INPUTS)
    save_file({"w": torch.ones(3)}, work / "adapter_model.safetensors")
    for directory in (run, work):
        with pytest.raises(CheckpointError):
            read_manifest(directory)


@pytest.mark.parametrize("step", ["rename", "write_json", "sha256_of"])
def test_a_failure_inside_finish_leaves_the_old_result_readable(tmp_path, monkeypatch, step):
    """Whatever fails, the directory of that name is the old result, the new one, or not there: never a mixture."""
    run = stage(tmp_path / "sft", weight=1.0)
    work = open_work(run, {**INPUTS, "seed": 1})
    save_file({"w": torch.full((8,), 2.0)}, work / "adapter_model.safetensors")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path if step == "rename" else checkpoint, step, full)
        with pytest.raises(OSError, match="No space left"):
            finish(work, run, manifest(inputs={**INPUTS, "seed": 1}))
    assert read_manifest(run).inputs == INPUTS
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["sft"]


# ---------------------------------------------------------------- JSON


def test_write_json_writes_what_json_reads(tmp_path):
    value = {"a": [1, 2.5, None, True], "ü": "中文"}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value == read_json(tmp_path / "x.json")
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_on_a_full_disk_the_old_file_stays(tmp_path, monkeypatch, call):
    write_json(tmp_path / "x.json", {"old": True})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os if call == "fsync" else checkpoint.Path, call, full)
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / "x.json", {"new": True})
    assert read_json(tmp_path / "x.json") == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_json_cannot_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"old": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"new": {1, 2}})
    assert read_json(tmp_path / "x.json") == {"old": True}


def test_a_kill_while_a_file_is_written_again_and_again_leaves_a_whole_one(tmp_path):
    """A real process, a real SIGKILL."""
    file = tmp_path / "x.json"
    write_json(file, {"n": 0, "fill": ["x" * 100] * 2000})
    for delay in (0.05, 0.11, 0.17):
        child = os.fork()  # a new interpreter would take seconds to import what is here already
        if child == 0:
            try:
                while True:
                    write_json(file, {"n": read_json(file)["n"] + 1, "fill": ["x" * 100] * 2000})
            finally:
                os._exit(1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL  # it was still writing
        assert len(read_json(file)["fill"]) == 2000


# ---------------------------------------------------------------- what differs


def test_differences_are_readable():
    before = {"seed": 0, "ppo": {"kl_coef": 0.05, "lam": 0.95}, "data": "a" * 64, "gone": 1}
    now = {"seed": 0, "ppo": {"kl_coef": 0.1, "lam": 0.95}, "data": "b" * 64, "new": [1]}
    long = f'"{"a" * 17}...{"a" * 17}" -> "{"b" * 17}...{"b" * 17}"'
    assert differences(before, now) == [
        f"data: {long}",
        "gone: 1 -> null",
        "new: null -> [1]",
        "ppo.kl_coef: 0.05 -> 0.1",
    ]
    assert differences(before, before) == []
    assert differences({"a": {"b": 1}}, {"a": None}) == ['a: {"b": 1} -> null']


# ---------------------------------------------------------------- metrics


def callback_args(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True)


def test_metrics_are_trimmed_to_the_checkpoint_that_training_goes_on_from(tmp_path, capsys):
    metrics, args, control = MetricsLog("ppo", tmp_path), callback_args(tmp_path), TrainerControl()

    def log(step, **figures):
        metrics.on_log(args, TrainerState(global_step=step, max_steps=9), control, logs=figures)

    metrics.on_train_begin(args, TrainerState(global_step=0), control)
    for step in (1, 2, 3, 4):
        log(step, loss=step / 10, epoch=0.1)
    assert "ppo step=4/9 loss=0.4" in capsys.readouterr().err
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 5, "lo')  # killed while it wrote
    metrics.on_train_begin(args, TrainerState(global_step=2), control)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}]
    log(3, loss=9.0)
    log(3, train_runtime=1.0, train_loss=2.0)  # the Trainer's summary is no step
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [1, 2, 3]
    metrics.on_train_begin(args, TrainerState(global_step=0), control)  # no checkpoint was there: from the beginning
    assert read_metrics(tmp_path) == []


def test_only_one_process_writes_metrics(tmp_path):
    metrics, args, control = MetricsLog("ppo", tmp_path), callback_args(tmp_path), TrainerControl()
    metrics.on_log(args, TrainerState(global_step=1, is_world_process_zero=False), control, logs={"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()
