"""SFT on two ranks: DeepSpeed ZeRO-2 and plain DDP, started as a user starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM

from rlhf_kit.checkpoint import read_manifest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds; the first start of DeepSpeed compiles an operation, about one minute
ZERO2 = {
    "zero_optimization": {"stage": 2},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("deepspeed")
    write_recipe(directory, sft={"num_train_epochs": 1, "per_device_train_batch_size": 4, "save_steps": 4})
    (directory / "zero2.json").write_text(json.dumps(ZERO2))
    return directory


def on_two_ranks(place: Path, *overrides: str) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command = [sys.executable, *command, "-m", "rlhf_kit", "sft", "recipe.yaml", *overrides]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = place / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=stream, stderr=stream)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its workers
            process.wait(30)
            raise AssertionError(f"hangs:\n{log.read_text()[-3000:]}") from None
    assert code == 0, log.read_text()[-3000:]
    return log.read_text()


def check(place: Path, run: Path, how: str) -> None:
    """Two processes trained and one wrote: half the steps of one rank, each logged once, and a whole adapter."""
    manifest = read_manifest(run)
    assert (manifest.metrics["processes"], manifest.metrics["distributed"]) == (2, how)
    assert not [path.name for path in run.parent.iterdir() if path.name != run.name], "one directory, and no scratch"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 5], "64 demonstrations in batches of 2 x 4 are eight steps"
    assert manifest.metrics["loss_last"] > 0
    base = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, str(run)).eval()(input_ids=ids).logits
    assert (after - before).abs().mean() > 0.01


def test_zero2_trains_on_two_ranks_and_writes_once(place: Path) -> None:
    pytest.importorskip("deepspeed")
    said = on_two_ranks(place, "sft.trainer={deepspeed: zero2.json}", "output_dir=zero2")
    check(place, place / "zero2" / "sft", "zero2")
    assert said.count("sft step=5/8 ") == 1


def test_plain_data_parallel_does_the_same(place: Path) -> None:
    """ZeRO-2 only shares the optimiser's state out: where both have run, their figures are the same."""
    on_two_ranks(place, "output_dir=ddp")
    check(place, place / "ddp" / "sft", "ddp")
    if (place / "zero2").exists():
        sharded, plain = (read_manifest(place / run / "sft").metrics["loss_last"] for run in ("zero2", "ddp"))
        assert sharded == pytest.approx(plain, rel=1e-3)


def test_started_again_every_rank_skips(place: Path) -> None:
    said = on_two_ranks(place, "output_dir=ddp") + on_two_ranks(place, "output_dir=ddp")
    assert said.count("sft: finished with the same inputs, skipped") >= 2
