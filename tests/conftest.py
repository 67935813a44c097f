"""Every test runs offline: a name that would reach for the Hub fails at once, and no cache of the user's is read.

Drawn inputs are the same in each run, so that a change that lands is tested by what its author saw; they are drawn anew
with `make test ARGS=--hypothesis-profile=default`.
"""

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.load_profile("ci")  # hypothesis's own: derandomized, without deadlines

# Set before anything imports huggingface_hub, which reads them once; started processes inherit them.
_hub_cache = tempfile.TemporaryDirectory(prefix="rlhf-kit-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _hub_cache.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell starts jobs behind `&` with Ctrl-C ignored, and so would everything be that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Two test processes with a thread each do more than one with two, and those they start must not crowd each other out.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is printed is laid out for no terminal, whatever the one is from which the tests are started.
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM"):
    os.environ.pop(name, None)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The same sums in the same order on every machine with the same processor."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
