"""Sampling from a vLLM server: what comes back is what was asked, once, whatever happens to the server meanwhile."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import lora, stir, tiny_backbone, tiny_directory
from tiny import make_tiny_model, make_tiny_tokenizer
from vllm_double import BASE, Fault, VllmDouble

from rlhf_kit.errors import EngineError
from rlhf_kit.models import Backbone
from rlhf_kit.recipe_rollout import RolloutSection
from rlhf_kit.rollout import Ending, sample
from rlhf_kit.rollout.vllm import Drawn, VllmEngine

GENERATOR = torch.Generator().manual_seed(0)
PROMPTS = [torch.randint(3, 500, (2 + n % 5,), generator=GENERATOR).tolist() for n in range(6)]
PROMPTS += [PROMPTS[0], PROMPTS[0]]  # of an update with several answers to a prompt
SEEDS = list(range(40, 48))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    made = tiny_backbone("policy", "other")
    stir(made, "policy", 5, 0.3)
    return made


@pytest.fixture(scope="module")
def saved(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    for name in ("policy", "other"):
        backbone.save_adapter(name, directory / name)
    return directory


@pytest.fixture
def double() -> Iterator[VllmDouble]:
    with VllmDouble(tiny_directory()) as made:
        yield made


def engine(double: VllmDouble, directory: Path, timeout: float = 20.0) -> VllmEngine:
    section = RolloutSection(engine="vllm", base_url=double.url, timeout=timeout)
    return VllmEngine(section, make_tiny_tokenizer(), directory / "adapters")


def drawn(made: VllmEngine, version: str | None, **options: Any) -> list[Drawn]:
    return made.sample(
        PROMPTS,
        version=version,
        seeds=SEEDS,
        **{"max_new_tokens": 6, "temperature": 0.8, "stop_token_ids": (), **options},
    )


def log_probs(
    backbone: Backbone, role: str | None, prompt: list[int], ids: tuple[int, ...], heat: float
) -> torch.Tensor:
    """By one plain forward pass of the trainer's model."""
    with torch.no_grad(), backbone.role(role):
        logits = backbone.base(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / heat, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def only_line(caught: pytest.ExceptionInfo[EngineError]) -> str:
    said = str(caught.value)
    assert "\n" not in said
    return said


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("heat", [1.0, 0.7])
@pytest.mark.parametrize("role", ["policy", "other", None])
def test_log_probabilities_are_those_of_the_trainer(
    role: str | None, heat: float, backbone: Backbone, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    made.connect(temperature=heat, rank=4)
    version = None if role is None else made.publish(saved / role)
    for prompt, one in zip(PROMPTS, drawn(made, version, temperature=heat), strict=True):
        expected = log_probs(backbone, role, prompt, one.ids, heat)
        assert len(one.ids) == 6
        torch.testing.assert_close(torch.tensor(one.log_probs), expected, rtol=0, atol=1e-4)


def test_the_wrong_weights_under_the_right_name_show_in_the_log_probabilities(
    backbone: Backbone, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    double.wrong_weights = saved / "other"
    made = engine(double, tmp_path)
    found = drawn(made, made.publish(saved / "policy"))
    differences = [
        log_probs(backbone, "policy", prompt, one.ids, 0.8) - torch.tensor(one.log_probs)
        for prompt, one in zip(PROMPTS, found, strict=True)
    ]
    assert torch.cat(differences).abs().mean() > RolloutSection().max_mismatch


def test_the_same_seeds_give_the_same_responses_and_others_do_not(
    saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    first = drawn(made, version)
    assert drawn(made, version) == first
    assert first[0] != first[6] != first[7]  # one prompt, three seeds
    turned = made.sample(
        PROMPTS[::-1], version=version, seeds=SEEDS[::-1], max_new_tokens=6, temperature=0.8, stop_token_ids=()
    )
    assert turned[::-1] == first
    assert drawn(made, made.publish(saved / "other")) != first
    assert made.sample([], version=version, seeds=[], max_new_tokens=6) == []


def test_what_the_models_generation_config_says_counts_for_nothing(
    saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    first = drawn(made, version)
    double.defaults = {"temperature": 0.1, "top_k": 2, "top_p": 0.5, "repetition_penalty": 3.0, "max_tokens": 3}
    assert drawn(made, version) == first
    assert {"min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"} <= double.completions[0].keys()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_sampling_options_do_what_they_do_in_the_kits_own_loop(
    options: dict[str, Any], backbone: Backbone, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    """Of the first token of many answers the two have the same distribution: it is within three deviations."""
    made = engine(double, tmp_path)
    version, many = made.publish(saved / "policy"), 400
    prompts = [PROMPTS[1]] * many
    theirs = made.sample(prompts, version=version, seeds=range(many), max_new_tokens=1, temperature=0.1, **options)
    with backbone.role("policy"):
        generator = torch.Generator().manual_seed(0)
        ours = sample(backbone, prompts, max_new_tokens=1, temperature=0.1, generator=generator, **options)
    counted, expected = Counter(one.ids[0] for one in theirs), Counter(one[0] for one in ours)
    for token in counted | expected:
        share = (counted[token] + expected[token]) / (2 * many)
        assert abs(counted[token] - expected[token]) <= 3.5 * (2 * many * share * (1 - share)) ** 0.5 + 1
    assert len(counted) > 1


def test_a_response_ends_where_it_does_in_the_kits_own_loop(
    backbone: Backbone, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    """The likeliest tokens, so that both say the same; each second token of the vocabulary ends a response."""
    made = engine(double, tmp_path)
    version, lengths = made.publish(saved / "policy"), set()
    texts = [backbone.tokenizer.decode([token]) for token in range(97, 103)]
    for ends in (
        {"stop_token_ids": tuple(range(0, 512, 2))},
        {"stop_token_ids": tuple(range(0, 512, 2)), "min_new_tokens": 3},
        {"stop_token_ids": (), "stop": texts},
        {"stop_token_ids": (), "stop": texts, "min_new_tokens": 4},
        {},
    ):
        found = drawn(made, version, temperature=0.0, **{"stop_token_ids": None, **ends})
        with backbone.role("policy"):
            expected = sample(backbone, PROMPTS, max_new_tokens=6, temperature=0, **ends)
        assert [list(one.ids) for one in found] == expected
        lengths |= {(len(one.ids), ends.get("min_new_tokens", 0)) for one in found}
    assert {(1, 0), (3, 3), (6, 0)} <= lengths


def test_eos_ends_a_response_only_where_it_is_asked_to(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    eos = make_tiny_tokenizer().eos_token_id
    made.sample(PROMPTS[:1], version=version, seeds=[0], max_new_tokens=2)
    made.sample(PROMPTS[:1], version=version, seeds=[0], max_new_tokens=2, stop_token_ids=[7])
    made.sample(PROMPTS[:1], version=version, seeds=[0], max_new_tokens=2, stop_token_ids=[])
    assert [(asked["ignore_eos"], asked["stop_token_ids"]) for asked in double.completions] == [
        (True, [eos]),
        (True, [7]),
        (True, []),
    ]


# ---------------------------------------------------------------- when something goes wrong

FAULTS: list[Fault] = [
    *("hang", "reset", "cut", "refuse", "restart", "500", "no json", "no ids", "no log-probs", "few log-probs"),
    *("unfinished", "short", "other model", "other prompt"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_asked_again_and_nothing_is_lost_or_counted_twice(
    fault: Fault, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    expected = drawn(made, version)
    made.timeout = 10.0 if fault == "hang" else 20.0
    before = len(double.completions)
    double.script = [None, fault, None, None, fault]
    told = list[int]()
    assert drawn(made, version, progress=told.append) == expected
    assert sum(told) == len(PROMPTS)
    assert not double.script
    asked = Counter((tuple(one["prompt"]), one["seed"]) for one in double.completions[before:])
    assert asked.keys() == {(tuple(prompt), seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)}
    if fault not in ("refuse", "restart"):  # which befall others, too
        assert sorted(asked.values()) == [1] * 6 + [2] * 2
    assert {one["model"] for one in double.completions} == {version}
    assert (double.restarts > 0) == (fault == "restart")


def test_the_adapter_is_given_again_to_a_server_that_has_lost_it(
    saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    expected = drawn(made, version)
    double.adapters.clear()
    assert drawn(made, version) == expected
    loaded = [asked.body["lora_name"] for asked in double.asked if asked.route == "/v1/load_lora_adapter"]
    assert loaded == [version, version]


def test_a_server_may_be_started_again_and_again(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    """Each time in the middle, until every response has come."""
    double.down, double.delay = 0.05, 0.02
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    expected = drawn(made, version)
    over = threading.Event()

    def killer() -> None:
        for _ in range(5):
            if over.wait(0.25):
                return
            double.restart()

    thread = threading.Thread(target=killer)
    thread.start()
    told, times = list[int](), 0
    try:
        while times < 6 or (double.restarts < 2 and thread.is_alive()):
            assert drawn(made, version, progress=told.append) == expected
            times += 1
    finally:
        over.set()
        thread.join()
    assert sum(told) == times * len(PROMPTS)
    assert double.restarts > 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("hang", "no answer within 1 s"),
        ("reset", "the connection broke off"),
        ("cut", "the connection broke off (IncompleteRead)"),
        ("500", "status 500: EngineCore encountered an issue."),
        ("no json", "an answer that is no JSON, or half of one"),
        ("no ids", "an answer without its tokens or their log-probabilities"),
        ("no log-probs", "an answer without its tokens or their log-probabilities"),
        ("few log-probs", "an answer whose log-probabilities are not those of its tokens"),
        ("unfinished", "an answer that is not whole (finish_reason None)"),
        ("short", "an answer that is not whole (finish_reason length)"),
        ("other model", "-1, where rlhf-kit-"),
        ("other prompt", "an answer to another prompt"),
    ],
)
def test_a_fault_that_stays_ends_in_one_line(
    fault: Fault, reason: str, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    version = engine(double, tmp_path).publish(saved / "policy")
    made = engine(double, tmp_path, timeout=2)
    double.script = [fault] * 10_000
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        made.sample(PROMPTS[:2], version=version, seeds=SEEDS[:2], max_new_tokens=2, stop_token_ids=())
    said = only_line(caught)
    assert said.startswith(f"{double.url}: no answer of use from the vLLM server for 2 s, the last time: ")
    assert reason in said and "start it again" in said and "ppo.rollout.timeout" in said
    assert 1.9 < time.monotonic() - began < 60


def test_a_server_that_stays_away_ends_in_one_line(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    version = engine(double, tmp_path).publish(saved / "policy")
    made = engine(double, tmp_path, timeout=0.5)
    double.stop()
    for what in (lambda: drawn(made, version), lambda: made.publish(saved / "other"), lambda: connect(made)):
        with pytest.raises(EngineError) as caught:
            what()
        assert f"{double.url}: no answer of use" in only_line(caught) and "was refused" in only_line(caught)
    double.start()
    made.timeout = 20.0
    assert len(drawn(made, version)) == len(PROMPTS)  # and nothing has been spoilt by it


def connect(made: VllmEngine) -> None:
    made.connect(temperature=1.0, rank=4)


def test_answers_are_waited_for_as_long_as_some_come(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    """The time is one without any answer, not that of all of them."""
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    expected = drawn(made, version, max_new_tokens=1)
    made.timeout = 4
    double.script = [*(["500"] * 7), None, *(["500"] * 6), None, *(["500"] * 5), None, *(["500"] * 4)]
    double.delay = 1.1
    began = time.monotonic()
    assert drawn(made, version, max_new_tokens=1) == expected
    assert time.monotonic() - began > 4


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([5] * 1020, "This model's maximum context length is 1024 tokens"),
        ([5, 40_000], "Token id 40000 is out of vocabulary"),
    ],
)
def test_what_the_server_refuses_is_not_asked_again(
    prompt: list[int], said: str, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    with pytest.raises(EngineError) as caught:
        made.sample([prompt], version=version, seeds=[0], max_new_tokens=6)
    assert only_line(caught).startswith(f"{double.url}: the vLLM server refuses what it is asked, status 400: {said}")
    assert len(double.completions) == 1


def test_another_base_after_a_restart_is_refused(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    double.name = "tiny/other"
    double.restart()
    with pytest.raises(EngineError, match=rf"serves tiny/other now, and before {BASE}"):
        drawn(made, version)


def test_an_interrupt_does_not_wait_for_a_server_that_hangs(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    made = engine(double, tmp_path, timeout=60)
    version = made.publish(saved / "policy")
    double.script = ["hang"] * 7

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        drawn(made, version, progress=interrupt)
    assert time.monotonic() - began < 30


# ---------------------------------------------------------------- versions


def test_a_version_is_the_content_of_an_adapter(
    backbone: Backbone, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made = engine(double, tmp_path)
    version = made.publish(saved / "policy")
    assert version.startswith("rlhf-kit-") and len(version) == len("rlhf-kit-") + 16
    assert double.adapters[version].path == str((tmp_path / "adapters" / version).resolve())
    copy = tmp_path / "copy"
    backbone.save_adapter("policy", copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    config["target_modules"].reverse()  # a set, of which every process has another order
    (copy / "adapter_config.json").write_text(json.dumps(config))
    requests = len(double.asked)
    assert made.publish(copy) == version
    assert [asked.route for asked in double.asked[requests:]] == ["/v1/models"]  # it is not loaded twice
    (copy / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    assert made.publish(copy) != version
    other = made.publish(saved / "other")
    assert other != version
    (saved / "other").rename(saved / "moved")  # what was published is a copy
    try:
        double.restart()
        assert len(drawn(made, other)) == len(PROMPTS)
    finally:
        (saved / "moved").rename(saved / "other")


def test_older_versions_are_taken_from_the_server_and_the_disk(
    backbone: Backbone, saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    made, versions = engine(double, tmp_path), list[str]()
    double.load("somebody-elses", str(saved / "other"), False)
    for seed in range(4):
        stirred = tiny_backbone("policy")
        stir(stirred, "policy", seed)
        stirred.save_adapter("policy", tmp_path / "policy")
        versions.append(made.publish(tmp_path / "policy"))
        assert len(drawn(made, versions[-1])) == len(PROMPTS)
    assert len(set(versions)) == 4
    assert set(double.adapters) == {"somebody-elses", *versions[-2:]}
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == set(versions[-2:])
    made.close()
    assert set(double.adapters) == {"somebody-elses"} and not list((tmp_path / "adapters").iterdir())


def test_two_that_are_compared_stay_loaded(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    made = engine(double, tmp_path)
    for _ in range(3):
        for name in ("policy", "other"):
            drawn(made, made.publish(saved / name))
    loads = [asked for asked in double.asked if asked.route == "/v1/load_lora_adapter"]
    assert len(loads) == 2


def test_an_adapter_that_was_loaded_from_elsewhere_is_loaded_from_here(
    saved: Path, double: VllmDouble, tmp_path: Path
) -> None:
    """Another run has published the same one, and may remove it."""
    theirs, ours = engine(double, tmp_path / "theirs"), engine(double, tmp_path / "ours")
    version = theirs.publish(saved / "policy")
    assert ours.publish(saved / "policy") == version
    assert double.adapters[version].path == str((tmp_path / "ours" / "adapters" / version).resolve())
    expected = drawn(ours, version)
    theirs.close()
    assert drawn(ours, version) == expected


def test_several_processes_publish_the_same_at_once(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    engines = [engine(double, tmp_path) for _ in range(4)]
    found, failures = list[str](), list[BaseException]()

    def publish(made: VllmEngine) -> None:
        try:
            connect(made)
            found.append(made.publish(saved / "policy"))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=publish, args=(made,)) for made in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(found) == 4 and len(set(found)) == 1
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [found[0]]


@pytest.mark.parametrize(
    ("config", "said"),
    [({"r": 32}, "LoRA rank 32 is greater than max_lora_rank 16"), ({"use_dora": True}, "does not yet support DoRA")],
)
def test_an_adapter_that_the_server_cannot_load_is_no_matter_of_patience(
    config: dict[str, Any], said: str, tmp_path: Path, double: VllmDouble
) -> None:
    backbone = tiny_backbone()
    backbone.add_adapter("policy", lora(**config))
    backbone.save_adapter("policy", tmp_path / "policy")
    with pytest.raises(EngineError) as caught:
        engine(double, tmp_path).publish(tmp_path / "policy")
    assert only_line(caught).startswith(f"{double.url}: the vLLM server cannot load the adapter: ")
    assert said in only_line(caught)


def test_an_adapter_that_the_server_sees_late_is_waited_for(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    double.blind = True
    threading.Timer(0.4, lambda: setattr(double, "blind", False)).start()
    assert engine(double, tmp_path).publish(saved / "policy") in double.adapters


# ---------------------------------------------------------------- the handshake


def test_a_server_that_can_all_is_left_as_it_was(double: VllmDouble, tmp_path: Path) -> None:
    engine(double, tmp_path).connect(temperature=0.7, rank=16)
    assert not double.adapters
    assert not list((tmp_path / "adapters").iterdir())


@pytest.mark.parametrize(
    ("settings", "heat", "rank", "said"),
    [
        ({"mode": "raw_logprobs"}, 0.7, 4, ["at temperature 1, while sampling is at 0.7 (--logprobs-mode processed_"]),
        ({"mode": "raw_logprobs"}, 1.0, 4, []),
        ({"mode": "raw_logits"}, 1.0, 4, ["it gives logits where log-probabilities are needed"]),
        ({"runtime_lora": False}, 1.0, 4, ["no adapters while it runs (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"]),
        ({"enable_lora": False}, 1.0, 4, ["it takes no adapters (--enable-lora)"]),
        ({"blind": True}, 1.0, 4, ["it does not see the directory of adapters, /"]),
        ({}, 1.0, 17, ["it takes no adapters of rank 17 (--max-lora-rank)", "--max-lora-rank 32 "]),
        ({"mode": "raw_logprobs", "max_lora_rank": 8}, 0.5, 9, ["at temperature 1", "of rank 9", "-lora-rank 16 "]),
    ],
)
def test_all_that_a_server_cannot_do_is_in_one_line(
    settings: dict[str, Any], heat: float, rank: int, said: list[str], tmp_path: Path
) -> None:
    with VllmDouble(tiny_directory(), **settings) as double:
        made = engine(double, tmp_path)
        if not said:
            made.connect(temperature=heat, rank=rank)
            return
        with pytest.raises(EngineError) as caught:
            made.connect(temperature=heat, rank=rank)
    line = only_line(caught)
    assert all(words in line for words in said)
    assert f"Start it as: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {BASE} --enable-lora --max-lora-rank" in line


def test_other_tokens_are_found(tmp_path: Path) -> None:
    made = make_tiny_model(tmp_path / "model")
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    with VllmDouble(made) as double, pytest.raises(EngineError, match=r"its tokens are other ones than the policy's"):
        connect(engine(double, tmp_path))


def test_a_server_that_asks_for_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VllmDouble(tiny_directory(), key="secret") as double:
        made = engine(double, tmp_path)
        with pytest.raises(EngineError, match=r"status 401.*\(a key is read from VLLM_API_KEY\)"):
            connect(made)
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        connect(made)


def test_a_server_is_waited_for(double: VllmDouble, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()

    def start_when_missed() -> None:
        while "the connection was refused; asking again for up to 20 s" not in caplog.text and not over.wait(0.05):
            pass
        double.start()

    double.stop()
    thread = threading.Thread(target=start_when_missed)
    thread.start()
    try:
        connect(engine(double, tmp_path))
    finally:
        over.set()
        thread.join()
    assert "the connection was refused; asking again for up to 20 s" in caplog.text


def test_adapters_that_cannot_be_written(double: VllmDouble, tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("a file")
    with pytest.raises(EngineError, match=r"adapters: adapters cannot be written there: File exists"):
        connect(engine(double, tmp_path))


def test_a_response_says_itself_whether_it_ended(saved: Path, double: VllmDouble, tmp_path: Path) -> None:
    """`Ending`, by which PPO decides it, agrees with the server's finish_reason."""
    made = engine(double, tmp_path)
    version, ends = made.publish(saved / "policy"), tuple(range(0, 512, 8))
    found = drawn(made, version, stop_token_ids=ends, max_new_tokens=8)
    ending, tokenizer = Ending(ends, 8), make_tiny_tokenizer()
    assert {ending.ended(one.ids, tokenizer) for one in found} == {True, False}
    for one in found:
        assert ending.ended(one.ids, tokenizer) or len(one.ids) == 8
        assert not set(one.ids[:-1]) & set(ends)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].ids = ()  # type: ignore[misc]
