"""The process around a command: its log, its memory, and the troubles of the machine in one line."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = ["few_collections", "launched_as_main", "line_for", "memory_of_machine", "prepare_torch", "set_up_logging"]


def set_up_logging() -> None:
    """Plain lines on stderr: what this package does, and only the warnings of the rest. Of several processes the main
    one says what all do."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("rlhf_kit").setLevel(logging.INFO if launched_as_main() else logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns at each start of kernels not installed


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Takes what is there now, modules, models and optimisers, out of what Python's garbage collector walks over.

    It took 4 % of a training step on a CPU, and 50 ms of a labelling server with everybody waiting (measured).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def launched_as_main() -> bool:
    """Whether no launcher has started this process beside a main one; known before any are connected."""
    return os.environ.get("RANK", "0") == "0"


def prepare_torch(*, trains: bool = True) -> None:
    """What must be set before torch and transformers are imported.

    Args:
        trains: False where one model after another is in memory and memory is short: what was freed must make room for
            the next. It has its price: sampling answers took 75 s with it and 32 s without (measured).
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:  # what other people's packages will rename one day is nothing a user can mend
        warnings.filterwarnings("ignore", category=FutureWarning)
    _manage_freed_memory(keep=trains)


def memory_of_machine() -> int | None:
    """Bytes of this machine, or of the container, which sees the memory of its host otherwise; None where the system
    does not tell."""
    if sys.platform == "win32":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
        total = min(total, int(text))
    return total


def _manage_freed_memory(*, keep: bool) -> None:
    """Lets glibc keep freed memory up to a gigabyte for the next allocation, or give all larger blocks back at once.

    Each training step frees and takes the same activation buffers. By default they go back to the kernel, which zeroes
    their pages again: on a CPU up to a quarter of a step was spent on that (measured). Where one model follows another,
    what glibc keeps by default was a sixth of a model of 2.4 GB (measured). Thresholds that the user has set are left
    alone.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another libc, without mallopt
        libc = ctypes.CDLL(None)
        if keep:
            libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 32 << 20 if keep else 1 << 20)


def line_for(error: BaseException) -> str | None:
    """One line for a machine's trouble that is nobody's bug; None for everything else."""
    if _is_disk_full(error):
        place = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"disk full{place}: nothing finished was lost; free space and run the same command again"
    if isinstance(error, PermissionError):
        return f"{error.filename or error}: permission denied; give yourself access to it, or choose another place"
    if "WORLD_SIZE" in os.environ and any(sign in str(error) for sign in _LOST):
        return "another process of this run has ended; what it said, or what the launcher says of it, is the cause"
    return None


# What gloo and NCCL say where a process that they were talking to is gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
)


def _is_disk_full(error: BaseException | None) -> bool:
    """Also where a library in another language has put the reason into its own error, or raised one over it."""
    # safetensors and tokenizers name the reason of the system; torch.save does not, but has no other reason to fail so:
    # in a write, or where it closes a file that is shorter than what it wrote.
    signs = ("No space left on device", "StorageFull", "PytorchStreamWriter failed writing", ". unexpected pos ")
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False
