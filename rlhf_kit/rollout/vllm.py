"""Responses from a vLLM server, to which the policy's adapter is given anew after each update.

The server is vLLM's own OpenAI-compatible one. It keeps nothing that is needed here: an adapter is named by a hash of
its content, written where the server reads it, and given to it again where it is gone, so that the server may be
killed and started again at any time.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import EngineError
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.rollout import versions
from rlhf_kit.rollout.client import Client, Patience, Refused, Unanswered
from rlhf_kit.rollout.completions import Drawn, asked, draw_one
from rlhf_kit.rollout.handshake import UNLOAD, Served, serve_line, served, shortcomings

__all__ = ["Drawn", "VllmEngine"]

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_AT_ONCE = 256  # requests under way; what the server does not take at once waits in its own queue
_KEPT = 2  # versions that stay loaded, the last ones: a policy and what it is compared with
_UNLOADING = 10.0  # seconds; nothing depends on it


class VllmEngine:
    """Samples from a vLLM server.

    Args:
        section: where it is, and how long one waits for it.
        tokenizer: of the policy.
        adapters: the directory in which versions of the adapter are written.
    """

    def __init__(self, section: RolloutSection, tokenizer: PreTrainedTokenizerBase, adapters: Path) -> None:
        self.url, self.timeout = section.base_url.rstrip("/"), section.timeout
        self.tokenizer, self.adapters = tokenizer, adapters
        self._base = ""
        self._published: list[str] = []

    def connect(self, *, temperature: float, rank: int) -> None:
        """Waits for the server and makes sure that it can do all that is needed.

        Args:
            temperature: of sampling.
            rank: the highest of the adapters to come.

        Raises:
            EngineError: it does not answer in time, or with all that it cannot do and the command that would be right.
        """
        try:
            self.adapters.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise EngineError(f"{self.adapters}: adapters cannot be written there: {failure.strerror}") from None
        patience, client = self._patience(), self._client()
        self._base = self._persist(lambda: self._base_of(served(client)), patience)
        ask = partial(
            shortcomings, client, self._base, self.tokenizer, self.adapters, temperature=temperature, rank=rank
        )
        if found := self._persist(lambda: list(ask()), patience):
            raise EngineError(f"{self.url}: {'; '.join(found)}. Start it as: {serve_line(self._base, rank)}")

    def publish(self, directory: Path) -> str:
        """Gives the server an adapter, and takes older ones from it.

        Args:
            directory: of an adapter in PEFT's layout; it is copied and may change afterwards.

        Returns:
            The version, which is also the name by which the server knows it: a hash of what the adapter is.

        Raises:
            EngineError: the server does not answer in time, or cannot load it.
        """
        version = versions.version_of(directory)
        versions.copy(directory, self.adapters / version)
        self._ensure(version, self._patience())
        self._published = [*(name for name in self._published if name != version), version]
        for old in self._published[:-_KEPT]:
            self._drop(old)
        return version

    def close(self) -> None:
        """Takes from the server, and removes, what this object has published."""
        for version in tuple(self._published):
            self._drop(version)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        version: str | None,
        seeds: Sequence[int],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Drawn]:
        """One response to each prompt, in their order; the arguments mean what they do in `rollout.sample`.

        An answer counts if it is whole and names the version that was asked for. All others are asked for again, with
        the same seed; a version that the server no longer has is given to it again.

        Args:
            version: of the adapter, from `publish`; None is the base.
            seeds: one a prompt, from 0 to 2**63 - 1. The same one gives the same response again, up to the server's
                rounding.
            progress: told how many responses have come.

        Raises:
            EngineError: the server refuses a request, or gave no answer of use for `ppo.rollout.timeout` seconds.
        """
        options = asked(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            stop_token_ids=(self.tokenizer.eos_token_id,) if stop_token_ids is None else stop_token_ids,
        )
        patience = self._patience()
        if not self._base:
            self._ensure(None, patience)
        model = version or self._base
        requests = [
            {**options, "model": model, "prompt": list(prompt), "seed": seed}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        drawn: dict[int, Drawn] = {}
        while len(drawn) < len(requests):
            left = {row: request for row, request in enumerate(requests) if row not in drawn}
            reason = self._round(left, drawn, patience, progress)
            if len(drawn) < len(requests):
                patience.failed(reason)
                self._ensure(version, patience)
        return [drawn[row] for row in range(len(requests))]

    def _round(
        self,
        requests: dict[int, dict[str, Any]],
        drawn: dict[int, Drawn],
        patience: Patience,
        progress: Callable[[int], None],
    ) -> str:
        """Asks for each response once and adds those that came to `drawn`.

        Returns:
            Why others did not, if it is known.
        """
        client, reason = self._client(), ""
        pool = ThreadPoolExecutor(min(_AT_ONCE, len(requests)), thread_name_prefix="rollout")
        try:
            rows: dict[Future[Drawn], int] = {
                pool.submit(draw_one, client, request): row for row, request in requests.items()
            }
            pending = set(rows)
            while pending:
                done, pending = wait(pending, patience.left, FIRST_COMPLETED)
                for future in done:
                    try:
                        drawn[rows[future]] = future.result()
                    except Unanswered as failure:
                        reason = str(failure)
                    except Refused as failure:
                        raise self._refusal(failure) from None
                    else:
                        patience.answered()
                        progress(1)
                if pending and patience.left == 0:
                    break
        finally:
            client.abort()  # so that nobody waits for a server that does not answer, least of all after Ctrl-C
            pool.shutdown(cancel_futures=True)
        return reason

    def _ensure(self, version: str | None, patience: Patience) -> None:
        """The server serves the same base as before, and this version of the adapter."""

        def load() -> None:
            client = self._client()
            models = served(client)
            base = self._base_of(models)
            if self._base and base != self._base:
                raise EngineError(
                    f"{self.url}: serves {base} now, and before {self._base}; start it with that one again"
                )
            self._base = base
            if version is None:
                return
            place = self.adapters / version
            if Served(version, base, str(place.resolve())) in models:
                return
            log.debug("%s: loading %s", self.url, version)
            versions.load(client, version, place)
            if (version, base) not in [(model.name, model.parent) for model in served(client)]:
                raise Unanswered(f"it does not list {version}, which it has just loaded")

        self._persist(load, patience)

    def _persist(self, do: Callable[[], _T], patience: Patience) -> _T:
        try:
            return patience.persist(do)
        except Refused as failure:
            raise self._refusal(failure) from None

    def _refusal(self, failure: Refused) -> EngineError:
        hint = " (a key is read from VLLM_API_KEY)" if failure.status in (401, 403) else ""
        return EngineError(f"{self.url}: the vLLM server refuses what it is asked, {failure}{hint}")

    def _drop(self, version: str) -> None:
        """Takes a version from the server, if it is there, and from the disk."""
        self._published.remove(version)
        try:
            Client(self.url, min(_UNLOADING, self.timeout)).order(UNLOAD, {"lora_name": version})
        except (Unanswered, Refused) as failure:
            log.debug("%s: %s stays loaded: %s", self.url, version, failure)
        shutil.rmtree(self.adapters / version, ignore_errors=True)

    def _base_of(self, models: list[Served]) -> str:
        """The base among them; of several names it was given, the first."""
        base = next((model.name for model in models if model.parent is None), None)
        if base is None:
            raise EngineError(f"{self.url}: serves no model; start it as: {serve_line('MODEL', 16)}")
        return base

    def _client(self) -> Client:
        return Client(self.url, self.timeout / 2)

    def _patience(self) -> Patience:
        return Patience(self.url, self.timeout)
