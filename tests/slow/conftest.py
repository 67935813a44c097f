"""A server that the files with vLLM share: it takes twenty seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vllm_server import VllmServer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, and it learns in seconds."""
    from vllm_server import make_servable_model

    return make_servable_model(tmp_path_factory.mktemp("servable"))


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Of the tiny model, in float32."""
    from vllm_double import BASE
    from vllm_server import VllmServer, lora_options

    options = (*lora_options(16), "--served-model-name", BASE)
    with VllmServer(model, tmp_path_factory.mktemp("server") / "vllm.log", options) as made:
        yield made
