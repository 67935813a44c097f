"""What files share: a vLLM server, which takes twenty seconds to start, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from label_pages import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of a desktop's size, of a person of its own."""
    from label_pages import DESKTOP

    made = browser.new_context(**DESKTOP)
    yield made
    made.close()
