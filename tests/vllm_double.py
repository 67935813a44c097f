"""A server on 127.0.0.1 that speaks as vLLM's OpenAI-compatible one does, with faults by script.

It really generates, with a tiny model and the LoRA adapters that it is told to load (PEFT, float32, one sequence at a
time), and its log-probabilities are those of what it drew from. Routes, fields, statuses and messages are those of vLLM
0.32. In a process of its own, to be killed: `python tests/vllm_double.py MODEL --port PORT`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

Fault = Literal[
    "hang",  # no answer
    "reset",  # the connection breaks off before an answer
    "cut",  # and in the middle of one
    "refuse",  # that, and for a moment nobody listens
    "restart",  # that for all connections, and the adapters are gone
    "500",
    "no json",
    "no ids",
    "no log-probs",
    "few log-probs",
    "unfinished",  # finish_reason null
    "short",  # the first tokens of the response, as if the limit had been reached
    "other model",
    "other prompt",
]

BASE = "tiny/tiny"
_DETAIL = {"detail": "Not Found"}


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    route: str
    body: dict[str, Any]


@dataclass
class Adapter:
    path: str
    model: PreTrainedModel | PeftModel


class Answer(Exception):
    """Ends the handling of a request with a status and a body."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def error(status: int, message: str, kind: str = "InvalidUserInput", param: str | None = None) -> Answer:
    return Answer(status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


def failed_to_add(why: str) -> Answer:
    words = f"Call to add_lora method failed: Worker failed with error '{why}', please check the stack trace above"
    return error(500, f"{words} for the root cause", "InternalServerError")


@dataclass
class VllmDouble:
    """The server, with its log; a context manager.

    Attributes:
        model: the directory of the base.
        port: 0 takes a free one.
        max_lora_rank, enable_lora, runtime_lora: what it was started with.
        mode: of the log-probabilities, vLLM's --logprobs-mode.
        key: that it asks for.
        delay: seconds that a response takes at least.
        down: seconds for which nobody listens at "refuse" and "restart".
        wrong_weights: the directory of an adapter that is loaded in place of any that it is told to.
        blind: it sees no directory of adapters, as on another machine.
        defaults: of sampling, as from the model's generation config; they count where a request leaves them out.
        name: of the base.
        script: what befalls the requests for a response, in the order in which they come; None: nothing.
        asked: the requests as they came.
        answered: those for a response that got a whole one, or one that was told to be wrong in what it says.
        restarts: how often it was started again.
    """

    model: Path
    port: int = 0
    max_lora_rank: int = 16
    enable_lora: bool = True
    runtime_lora: bool = True
    mode: Literal["processed_logprobs", "raw_logprobs", "raw_logits"] = "processed_logprobs"
    key: str = ""
    delay: float = 0.0
    down: float = 0.2
    wrong_weights: Path | None = None
    blind: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    name: str = BASE
    script: list[Fault | None] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    answered: list[Asked] = field(default_factory=list)
    restarts: int = 0

    def __post_init__(self) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.model)
        self.base = _load(self.model)
        self.adapters: dict[str, Adapter] = {}
        self.lock, self.computing = threading.Lock(), threading.Lock()
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        self.server: _Server | None = None

    def __enter__(self) -> VllmDouble:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def completions(self) -> list[dict[str, Any]]:
        """The requests for a response."""
        return [asked.body for asked in self.asked if asked.route == "/v1/completions"]

    def start(self) -> None:
        with self.lock:
            self.server = _Server(("127.0.0.1", self.port), _Handler)
            self.server.double, self.port = self, self.server.server_port
            threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> bool:
        """Nobody listens any more, and all connections break off. False where nobody did."""
        with self.lock:
            server, self.server = self.server, None
        if server is None:
            return False
        server.shutdown()
        server.server_close()
        for connection in tuple(self.connections):
            _reset(connection)
        return True

    def restart(self, lose: bool = True) -> None:
        """As after `kill -9`: the adapters are gone, and after `down` seconds it listens again.

        Args:
            lose: its adapters.
        """
        if not self.stop():
            return
        if lose:
            self.adapters.clear()
            self.restarts += 1

        def later() -> None:
            if not self.closing.wait(self.down):
                self.start()

        threading.Thread(target=later, daemon=True).start()

    # ---- the routes

    def get(self, route: str) -> Any:
        if route == "/health":
            return ""
        if route == "/version":
            return {"version": "0.32.0"}
        if route != "/v1/models":
            raise Answer(405 if route == "/v1/load_lora_adapter" and self.runtime_lora else 404, _DETAIL)
        models = [_model(self.name, str(self.model), None, self.base.config.max_position_embeddings)]
        models += [_model(name, adapter.path, self.name, None) for name, adapter in self.adapters.items()]
        return {"object": "list", "data": models}

    def post(self, route: str, body: dict[str, Any]) -> Any:
        if route == "/tokenize":
            tokens = self.tokenizer.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))
            return {"count": len(tokens), "max_model_len": 1024, "tokens": tokens, "token_strs": None}
        if route == "/v1/completions":
            return self.complete(body)
        if route == "/v1/load_lora_adapter" and self.runtime_lora:
            return self.load(body["lora_name"], body["lora_path"], bool(body.get("load_inplace")))
        if route == "/v1/unload_lora_adapter" and self.runtime_lora:
            if self.adapters.pop(body["lora_name"], None) is None:
                raise error(404, f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError")
            return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        raise Answer(404, _DETAIL)

    def load(self, name: str, path: str, in_place: bool) -> str:
        if name in self.adapters and not in_place:
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            raise error(400, f"{said} 'load_inplace' to True.")
        if not self.enable_lora:
            raise failed_to_add("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        if self.blind or not (Path(path) / "adapter_config.json").exists():
            raise error(404, f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError")
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        if config["r"] > self.max_lora_rank:
            raise failed_to_add(f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}.")
        if config.get("use_dora"):
            raise failed_to_add("vLLM does not yet support DoRA.")
        if (Path(path) / "adapter_model.safetensors").stat().st_size < 100:  # without a single matrix
            raise failed_to_add("")
        with self.computing:
            self.adapters[name] = Adapter(path, _load(self.model, self.wrong_weights or Path(path)))
        return f"Success: LoRA adapter '{name}' added successfully."

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        body = self.defaults | body
        self._check(body)
        with self.computing:
            adapter = self.adapters.get(body["model"])
            if adapter is None and body["model"] != self.name:
                said = f"The model `{body['model']}` does not exist. Valid aliases: {self.name}"
                raise error(404, said, "NotFoundError", "model")
            model = self.base if adapter is None else adapter.model
            tokens, log_probs, tops, finish, stop = _generate(model, self.tokenizer, body, self.mode)
        time.sleep(self.delay)
        names = [self.tokenizer.decode([token]) for token in tokens]
        if body.get("return_tokens_as_token_ids"):
            names = [f"token_id:{token}" for token in tokens]
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(tokens, skip_special_tokens=body.get("skip_special_tokens", True)),
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": stop,
            "token_ids": tokens if body.get("return_token_ids") else None,
            "prompt_token_ids": body["prompt"] if body.get("return_token_ids") else None,
        }
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"tokens": names, "token_logprobs": log_probs, "top_logprobs": tops}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(tokens)}
        return {"object": "text_completion", "model": body["model"], "choices": [choice], "usage": usage}

    def _check(self, body: dict[str, Any]) -> None:
        prompt, most = body["prompt"], body["max_tokens"]
        longest = self.base.config.max_position_embeddings
        if len(prompt) + most > longest:
            raise error(400, f"This model's maximum context length is {longest} tokens. However, your prompt contains")
        if max(prompt) >= self.base.config.vocab_size:
            raise error(400, f"Token id {max(prompt)} is out of vocabulary")
        if most < 1 or body.get("min_tokens", 0) > most or not -(2**63) <= body.get("seed", 0) < 2**63:
            raise error(400, "max_tokens, min_tokens or seed is out of bounds")


def _load(base: Path, adapter: Path | None = None) -> PreTrainedModel | PeftModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


def _model(name: str, root: str, parent: str | None, longest: int | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "vllm", "root": root, "parent": parent, "max_model_len": longest}


@torch.no_grad()
def _generate(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any], mode: str
) -> tuple[list[int], list[float], list[dict[str, float]], str, str | int | None]:
    """Tokens, the log-probability of each, the likeliest ones beside it, and why it ended; one sequence, no cache."""
    heat, generator = asked.get("temperature", 1.0), torch.Generator().manual_seed(asked.get("seed", 0) & (2**63 - 1))
    ends = {*(asked.get("stop_token_ids") or ()), *(() if asked.get("ignore_eos") else (tokenizer.eos_token_id,))}
    tokens, log_probs, tops = list[int](), list[float](), list[dict[str, float]]()
    while len(tokens) < asked["max_tokens"]:
        before = torch.tensor([asked["prompt"] + tokens])
        logits = model(input_ids=before).logits[0, -1].double()
        penalised = RepetitionPenaltyLogitsProcessor(asked.get("repetition_penalty", 1.0))(before, logits[None])[0]
        scores = penalised / (heat or 1.0)
        if len(tokens) < asked.get("min_tokens", 0):
            scores[list(ends)] = -torch.inf
        if heat:
            scores = _cut(scores, asked.get("top_k", 0), asked.get("top_p", 1.0))
        drawn_from = torch.log_softmax(scores, -1)
        given = {"raw_logprobs": torch.log_softmax(logits, -1), "raw_logits": logits}.get(mode, drawn_from)
        token = int(torch.multinomial(drawn_from.exp(), 1, generator=generator)) if heat else int(scores.argmax())
        tokens.append(token)
        log_probs.append(float(given[token]))
        best = given.topk(max(1, asked.get("logprobs") or 1))
        tops.append(
            {tokenizer.decode([i]): v for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}
        )
        if len(tokens) <= asked.get("min_tokens", 0):
            continue
        if token in ends:
            return tokens, log_probs, tops, "stop", None if token == tokenizer.eos_token_id else token
        text = tokenizer.decode(tokens, skip_special_tokens=asked.get("skip_special_tokens", True))
        if found := [stop for stop in asked.get("stop") or () if stop in text]:
            return tokens, log_probs, tops, "stop", found[0]
    return tokens, log_probs, tops, "length", None


def _cut(scores: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The scores of the likeliest tokens alone."""
    if top_k > 0:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ordered, places = scores.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        scores = scores.index_fill(0, places[beyond], -torch.inf)
    return scores


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    double: VllmDouble

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.double.connections.add(self.connection)

    def finish(self) -> None:
        self.server.double.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _handle(self, body: dict[str, Any] | None) -> None:
        double, fault = self.server.double, None
        with double.lock:
            asked = Asked(self.path, body or {})
            double.asked.append(asked)
            if self.path == "/v1/completions" and double.script:
                fault = double.script.pop(0)
        if double.key and self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {double.key}":
            self._send(401, {"error": "Unauthorized"})
            return
        if fault is not None and self._befall(fault):
            return
        try:
            said = double.get(self.path) if body is None else double.post(self.path, body)
        except Answer as answer:
            self._send(answer.status, answer.body)
            return
        if self.path == "/v1/completions":
            with double.lock:
                double.answered.append(asked)
        self._send(200, said if fault is None else _wrong(said, fault), half=fault == "cut")

    def _befall(self, fault: Fault) -> bool:
        """Whether that is all that comes of the request."""
        double = self.server.double
        if fault == "500":
            self._send(500, {"error": {"message": "EngineCore encountered an issue.", "code": 500}})
        elif fault == "no json":
            self._send(200, '{"object": "text_compl')
        elif fault in ("hang", "reset", "refuse", "restart"):
            if fault == "hang":
                double.closing.wait(60)
            elif fault != "reset":
                double.restart(lose=fault == "restart")
            _reset(self.connection)
            self.close_connection = True
        else:
            return False
        return True

    def _send(self, status: int, body: Any, half: bool = False) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        if not isinstance(body, str):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        self.close_connection = self.close_connection or half


def _wrong(said: dict[str, Any], fault: Fault) -> dict[str, Any]:
    """A response with a fault in what it says."""
    choice = said["choices"][0]
    if fault == "no ids":
        del choice["token_ids"], choice["prompt_token_ids"]
    elif fault == "no log-probs":
        choice["logprobs"] = None
    elif fault == "few log-probs":
        choice["logprobs"]["token_logprobs"].pop()
    elif fault == "unfinished":
        choice["finish_reason"] = None
    elif fault == "short":
        choice["token_ids"] = choice["token_ids"][:1]
        choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:1]
        choice["finish_reason"] = "length"
    elif fault == "other model":
        said["model"] = f"{said['model']}-1"
    elif fault == "other prompt":
        choice["prompt_token_ids"] = [*choice["prompt_token_ids"], 0]
    return said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with VllmDouble(arguments.model, port=arguments.port, delay=arguments.delay) as double:
        print(double.url, flush=True)
        sys.stdin.read()  # until whoever started it closes it, or ends


if __name__ == "__main__":
    main()
