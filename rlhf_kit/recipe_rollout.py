"""The `ppo.rollout` section of a recipe: what samples the answers of an update, and how far it is trusted."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from .recipe_sections import Name, Section

__all__ = ["RolloutSection"]


class RolloutSection(Section):
    """What samples the answers of an update."""

    engine: Literal["hf", "vllm"] = Field(
        default="hf",
        description="What samples: the kit's own loop in the process that trains (hf), or a vLLM server that is given "
        "the policy's adapter after each update (vllm).",
    )
    base_url: Name = Field(
        default="http://127.0.0.1:8000", description="Of the vLLM server: what stands before /v1/completions."
    )
    adapters_dir: Name | None = Field(
        default=None,
        description="Where adapters are written for the server to read, a directory that both see under this name; by "
        "default one below output_dir.",
    )
    timeout: float = Field(
        default=600.0,
        gt=0,
        description="Seconds without any answer from the server, which may be starting again, until the run stops, to "
        "be resumed. After half of it a request is given up and sent again.",
    )
    importance_cap: float = Field(
        default=2.0,
        ge=1,
        description="A token's loss is weighted by min(p / q, importance_cap), p being its probability in training and "
        "q in sampling (truncated importance sampling: Ionides 2008; in RL 1802.01561).",
    )
    max_mismatch: float = Field(
        default=0.2,
        gt=0,
        description="The mean absolute difference a token between the log-probabilities of training and of sampling "
        "(nats) above which the run stops: the server has another adapter, another base, or says something else.",
    )

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            sound = False
        if not sound or any(character.isspace() for character in value):
            raise PydanticCustomError("address", "must look like http://HOST:PORT")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise PydanticCustomError(
                "address", "must be http://HOST:PORT alone; a key goes into the environment, as VLLM_API_KEY"
            )
        if parts.path.rstrip("/").endswith("/v1"):
            raise PydanticCustomError("address", "must end before /v1, which is added")
        return value
