"""One question to an OpenAI-compatible endpoint, and what its failures mean."""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rlhf_kit.data import one_line
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.evaluation.judges.asking import Hopeless, Unanswered

__all__ = ["Address", "Chat"]

log = logging.getLogger(__name__)

_NONSENSE_AGAIN = 2
_HOPELESS = {401: "the key is refused", 402: "payment is required", 403: "the key may not do this"}
_QUOTA = "insufficient_quota"


@dataclass(frozen=True)
class Address:
    """Where a model is asked.

    Attributes:
        url: what stands before /chat/completions.
        model: as the server calls it.
    """

    url: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """`http(s)://HOST[:PORT]/v1#MODEL`.

        Raises:
            RlhfKitError: it is none, or has a password in it.
        """
        url, _, model = text.partition("#")
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            sound = False
        if not sound or re.search(r"\s", url):
            raise RlhfKitError("the address of a judge must look like http://HOST:PORT/v1#MODEL")
        if "@" in parts.netloc or parts.query:
            raise RlhfKitError(
                f"the address of a judge at {parts.hostname} must hold no key or password, because it stands in "
                "results and messages; put the key into the environment"
            )
        if not model.strip():
            raise RlhfKitError(f"{url}: which model? Add #MODEL, as the server calls it")
        return cls(url.rstrip("/"), model.strip())

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"

    @property
    def exposes(self) -> bool:
        """Whether what is sent can be read on its way: no TLS, and another machine."""
        parts = urlsplit(self.url)
        if parts.scheme == "https" or parts.hostname == "localhost":
            return False
        try:
            return not ipaddress.ip_address(parts.hostname or "").is_loopback
        except ValueError:
            return True


class Chat:
    """Asks a model, at temperature 0, for a JSON object.

    What a server refuses of the request (`response_format`, `max_tokens`, `temperature`) is left out or named
    otherwise from then on.

    Args:
        key_variable: the environment variable with the key; a server that needs none is asked without.
        timeout: seconds without a byte.

    Raises:
        RlhfKitError: the openai package is missing, or the key cannot be one.
    """

    def __init__(self, address: Address, *, key_variable: str, timeout: float, max_tokens: int) -> None:
        try:
            import openai
        except ImportError:
            raise RlhfKitError(
                f"{address}: a judge behind an endpoint needs the openai package; pip install 'rlhf-kit[judge]'"
            ) from None
        self._openai, self._address, self._variable, self._timeout = openai, address, key_variable, timeout
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise RlhfKitError(f"{key_variable}: holds characters that no key has; set it again")
        if self._key and address.exposes:
            log.warning("%s: the key in %s goes there unencrypted; use https", address.url, key_variable)
        self._client = openai.OpenAI(api_key=self._key or "none", base_url=address.url, timeout=timeout, max_retries=0)
        self._options: dict[str, Any] = {
            "temperature": 0,
            "max_tokens": max_tokens,
            "response_format": {"type": "json_object"},
        }

    def __call__(self, message: str) -> str:
        """The model's reply. May be called from several threads.

        Raises:
            Unanswered: there is none this time.
            Hopeless: there will be none.
        """
        began = options = self._options
        while True:
            try:
                reply = self._client.chat.completions.create(
                    model=self._address.model, messages=[{"role": "user", "content": message}], **options
                )
                break
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as refusal:
                fewer = _without(options, f"{refusal.param or ''} {self._said(refusal.body)}")
                if fewer is None:  # it is not the options, so that asking again would not help
                    raise Unanswered(f"refused: {self._said(refusal.body)}", again=0) from None
                options = fewer
            except Exception as failure:
                raise self._meaning(failure) from None  # a cause could show what was sent
        if options is not began:
            self._options = options
        return _content(reply)

    def _meaning(self, failure: Exception) -> Exception:
        if isinstance(failure, self._openai.APITimeoutError):
            return Unanswered(f"no reply within {self._timeout:g} s")
        if isinstance(failure, self._openai.APIConnectionError):
            cause = type(failure.__cause__ or failure).__name__
            return Unanswered(f"no connection, or one that broke off ({cause})")
        if isinstance(failure, self._openai.APIStatusError):
            return self._status(failure.status_code, failure.body, failure.response.headers)
        if isinstance(failure, (self._openai.OpenAIError, ValueError)):  # a body that is no JSON, or half of one
            return Unanswered(f"a reply that cannot be read ({type(failure).__name__})")
        return failure

    def _status(self, status: int, body: object, headers: Mapping[str, str]) -> Exception:
        said = self._said(body)
        about = f"{self._address}: status {status}"
        if status == 404:
            return Hopeless(
                f"{about}: no such model there, or no chat completions at this address{said and f': {said}'}"
            )
        if status in _HOPELESS:
            hint = f" ({self._variable} is {'set' if self._key else 'not set'})"
            return Hopeless(f"{about}: {_HOPELESS[status]}{hint}{said and f': {said}'}")
        if status == 429:
            if _QUOTA in _codes(body):
                return Hopeless(f"{about}: the quota is used up{said and f': {said}'}")
            return Unanswered("status 429, too many requests", wait=_retry_after(headers))
        if status >= 500 or status in (408, 409):
            return Unanswered(f"status {status}", wait=_retry_after(headers))
        return Unanswered(f"status {status}: {said}", again=0)

    def _said(self, body: object) -> str:
        """What the server says of an error, without the key, should it repeat that."""
        text = str((body.get("message") or body.get("detail") or "") if isinstance(body, dict) else body or "")
        return one_line(text.replace(self._key, "***") if self._key else text, 160)


def _without(options: dict[str, Any], said: str) -> dict[str, Any] | None:
    """The options without the one that the server names, or without the least common one; None where all are basic."""
    known = [name for name in ("max_tokens", "temperature", "response_format") if name in options]
    named = next((name for name in known if name in said), "response_format")
    if named not in options:
        return None
    fewer = {name: value for name, value in options.items() if name != named}
    if named == "max_tokens":
        fewer["max_completion_tokens"] = options[named]
    return fewer


def _content(reply: Any) -> str:
    """The text of a chat completion, which the client does not check.

    Raises:
        Unanswered: there is none, or only its beginning.
    """
    try:
        choice = reply.choices[0]
        content, ended = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        raise Unanswered("a reply that is no chat completion", again=_NONSENSE_AGAIN) from None
    if ended == "length":
        raise Unanswered("a reply that was cut off at max_tokens", again=_NONSENSE_AGAIN)
    if not isinstance(content, str) or not content.strip():
        raise Unanswered("an empty reply", again=_NONSENSE_AGAIN)
    return content


def _codes(body: object) -> tuple[object, ...]:
    return (body.get("code"), body.get("type")) if isinstance(body, dict) else ()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a number of them or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
