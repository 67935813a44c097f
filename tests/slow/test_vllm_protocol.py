"""The protocol: what a real vLLM server answers is what the double of the other tests does, and what is wrong with one
that was started otherwise is found before anything is sampled."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm_double import BASE, VllmDouble
from vllm_server import VllmServer, adapter_of_tiny, saved

from rlhf_kit.errors import EngineError
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.rollout.vllm import VllmEngine

pytestmark = pytest.mark.slow


def tell(url: str, route: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """A request's status, and the JSON or text of its answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + route, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as failure:
        status, text = failure.code, failure.read().decode()
    return status, json.loads(text) if text.startswith("{") else text


def check_alike(double: Any, real: Any, where: str) -> None:
    """All that the double says, the server says too; text aside, of which nobody reads what is no whole character."""
    if where.endswith((".text", ".tokens", ".top_logprobs")):
        return
    if isinstance(double, dict):
        assert double.keys() <= real.keys(), where
        for key, value in double.items():
            check_alike(value, real[key], f"{where}.{key}")
    elif isinstance(double, list):
        assert len(double) == len(real), where
        for number, (one, other) in enumerate(zip(double, real, strict=True)):
            check_alike(one, other, f"{where}.{number}")
    elif isinstance(double, float):
        assert real == pytest.approx(double, abs=1e-4), where
    elif where.endswith(".message"):  # the server goes on, and hides paths
        assert real.startswith(double.split("/")[0]), (where, double, real)
    else:
        assert double == real, where


def requests_of(adapters: dict[str, Path], prompt: list[int]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """What the kit asks, and what goes wrong with it, in an order that matters."""
    yield from ((route, None) for route in ("/health", "/v1/models", "/nothing"))
    yield "/tokenize", {"prompt": "Two cats, 12 naïve dogs!\n", "add_special_tokens": False}
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    for name in ("good", "good", "rank", "dora", "gone"):
        yield load, {"lora_name": name, "lora_path": str(adapters[name])}
    yield load, {"lora_name": "good", "lora_path": str(adapters["good"]), "load_inplace": True}
    yield "/v1/models", None
    greedy = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 0, "return_token_ids": True}
    greedy |= {"ignore_eos": True, "skip_special_tokens": False}
    for model in (BASE, "good"):
        yield "/v1/completions", {"model": model, **greedy}
        yield "/v1/completions", {"model": model, **greedy, "stop_token_ids": [2, *range(100, 512)]}
        yield "/v1/completions", {"model": model, **greedy, "stop_token_ids": [2, *range(100, 512)], "min_tokens": 7}
    for wrong in ({"model": "nobody"}, {"prompt": [512]}, {"max_tokens": 2000}, {"seed": 2**63}, {"min_tokens": 13}):
        yield "/v1/completions", {"model": "good", **greedy, **wrong}
    yield from [(unload, {"lora_name": "good"})] * 2
    yield "/v1/completions", {"model": "good", **greedy}


def test_the_double_of_the_other_tests_answers_as_the_server(server: VllmServer, model: Path, tmp_path: Path) -> None:
    """tests/test_vllm_engine.py rests on it."""
    backbone = adapter_of_tiny(model)
    good = saved(backbone, "policy", tmp_path / "good")
    adapters = {"good": good, "gone": tmp_path / "gone"}
    for name, changed in {"rank": {"r": 17}, "dora": {"use_dora": True}}.items():
        adapters[name] = shutil.copytree(good, tmp_path / name)
        config = json.loads((good / "adapter_config.json").read_text())
        (adapters[name] / "adapter_config.json").write_text(json.dumps(config | changed))
    with VllmDouble(model, max_lora_rank=16) as double:
        for route, body in requests_of(adapters, backbone.tokenizer.encode("red blue")):
            (ours, said), (theirs, meant) = (tell(url, route, body) for url in (double.url, server.url))
            assert ours == theirs, (route, body, said, meant)
            if ours != 400 or "lora" in route:  # nobody reads what is wrong with a request that the kit does not make
                check_alike(said, meant, f"{route} {str(body)[:60]}")


def test_all_that_is_wrong_with_a_server_is_one_error(model: Path, tmp_path: Path) -> None:
    options = ("--dtype", "float32", "--logprobs-mode", "raw_logprobs")
    other = VllmServer(model, tmp_path / "vllm.log", options, loads_adapters=False)
    section = RolloutSection(engine="vllm", base_url=other.url, timeout=120)
    engine = VllmEngine(section, AutoTokenizer.from_pretrained(model), tmp_path / "adapters")
    with other, pytest.raises(EngineError) as caught:
        engine.connect(temperature=0.7, rank=16)
    found, right = str(caught.value).split("Start it as: ")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in found and "--logprobs-mode processed_logprobs" in found
    assert right.startswith(f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {model} --enable-lora --max-lora-rank 16 ")
