"""vLLM as a sampler: a server that is running, or one that is started for the time of the benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rollout_speed.asked import Asked
from rollout_speed.samplers import Responses, Sampler

__all__ = ["Server", "serving", "vllm"]

_START = 180.0
"""Seconds in which a server must answer."""


@dataclass(frozen=True)
class Server:
    """How a server is started.

    Attributes:
        python: of an environment with vLLM.
        model: a directory in the Hugging Face layout.
        threads: as the other samplers have.
        beside: requests side by side.
        length: tokens of prompt and response at most.
    """

    python: Path
    model: str
    dtype: str
    threads: int
    rank: int
    beside: int
    length: int

    def command(self, port: int) -> list[str]:
        """Its command line; `vllm serve` with the same options, where vLLM is not the build for CPUs alone."""
        return [
            *(str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", self.model),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", self.dtype),
            *("--enable-lora", "--max-lora-rank", str(self.rank), "--logprobs-mode", "processed_logprobs"),
            *("--max-model-len", str(self.length), "--max-num-seqs", str(self.beside)),
            # On a CPU its engine dies of a seeded prompt that is read in parts ("CPU Generator does not use offset").
            "--no-enable-chunked-prefill",
        ]


@contextlib.contextmanager
def serving(server: Server, log: Path) -> Iterator[str]:
    """The URL of a server that answers; it is ended afterwards.

    Raises:
        RuntimeError: it ended or did not answer; what it said last stands in the message.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": str(server.threads),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{server.threads - 1}",
    }
    with log.open("w") as said:
        started = subprocess.Popen(
            server.command(port), stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(started, url, log)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


def _wait(started: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START
    while time.monotonic() < end and started.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.5)
    last = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
    raise RuntimeError(f"vLLM did not start within {_START:.0f} s: {last}")


def vllm(url: str, tokenizer: PreTrainedTokenizerBase, adapter: Path, rank: int, scratch: Path) -> Sampler:
    """vLLM through the kit's engine, as PPO calls it with `ppo.rollout.engine: vllm`: one request a prompt, with its
    seed, all at once. Which rows stand side by side is the server's affair (`--max-num-seqs`).

    Raises:
        RlhfKitError: no such server answers there, or it is not made ready for this.
    """
    from rlhf_kit.recipe_rollout import RolloutSection
    from rlhf_kit.rollout.vllm import VllmEngine

    engine = VllmEngine(RolloutSection(engine="vllm", base_url=url), tokenizer, scratch)
    version, rounds = "", 0

    def run(asked: Asked) -> Responses:
        nonlocal version, rounds
        if not version:
            engine.connect(temperature=asked.temperature, rank=rank)
            version = engine.publish(adapter)
        seeds = [rounds * len(asked.prompts) + row for row in range(len(asked.prompts))]
        rounds += 1
        drawn = engine.sample(
            asked.prompts,
            version=version,
            seeds=seeds,
            max_new_tokens=asked.most,
            temperature=asked.temperature,
        )
        return [list(one.ids) for one in drawn]

    return run
