"""`rlhf-kit plan`: its counts against published numbers, real tensors and sums by hand; its words and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import write_recipe
from transformers import AutoModelForCausalLM, DynamicCache

from rlhf_kit import cli, load_recipe, rl
from rlhf_kit.batches import Sequences
from rlhf_kit.models import Backbone, ScalarHead, lora_config
from rlhf_kit.planning import Wishes, plan
from rlhf_kit.planning.architectures import architecture_of, known_models, on_meta
from rlhf_kit.planning.changes import _State, _states_again
from rlhf_kit.planning.phases import measure
from rlhf_kit.planning.ppo_phases import Continuing, Learning, Update
from rlhf_kit.planning.ppo_plan import plan_ppo
from rlhf_kit.planning.setup import layer_kinds
from rlhf_kit.planning.sharing import Kept, divided
from rlhf_kit.planning.stages import ppo_setup
from rlhf_kit.planning.weights import optimizer_bytes
from rlhf_kit.planning.wishes import bytes_of
from rlhf_kit.recipe import ModelSection, Recipe

GIB = 2**30
# Of the models' cards, or of the safetensors index that the Hub shows.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(write_recipe(tmp_path_factory.mktemp("plan"), sft={"per_device_train_batch_size": 4}))


def on_paper(name: str, **sections: Any) -> Recipe:
    data = {"demonstrations": "hub/a", "rankings": "hub/b", "prompts": "hub/c", "max_prompt_length": 512}
    return Recipe.model_validate({"model": {"name_or_path": name, "dtype": "bfloat16"}, "data": data, **sections})


ROWS = {"demonstrations": 10_000, "rankings": 5_000, "prompts": 20_000}


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_of_named_models_are_the_published_ones(name: str, count: int) -> None:
    model = on_meta(architecture_of(ModelSection(name_or_path=name)).config, torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_shipped_architecture_is_one() -> None:
    assert len(known_models()) >= 15
    for name in known_models():
        assert architecture_of(ModelSection(name_or_path=name)).source.startswith("shipped")


def test_adapters_are_counted_as_lora_has_them() -> None:
    """r (in + out) of each layer, by hand for Llama-3.2-1B: hidden 2048, inner 8192, 8 of 32 key-value heads of 64."""
    lora = {"r": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    found = plan(on_paper("meta-llama/Llama-3.2-1B-Instruct", lora=lora), Wishes(gpu=True, rows=ROWS))
    by_hand = 16 * 16 * ((2048 + 2048) + (2048 + 512) + (8192 + 2048))
    sft, _, ppo = found.stages
    assert sft.parameters["sft"] == sft.trained == by_hand
    assert ppo.parameters["policy"] == by_hand and ppo.trained == 2 * by_hand + 2048 + 1


def test_activations_are_those_that_autograd_keeps(recipe: Recipe) -> None:
    """The tiny model for real: every storage that is saved for the backward pass of the policy's step, once."""
    _, setup = ppo_setup(recipe, Wishes())
    update = Update(4, 11, 8)
    counted = measure(setup, layer_kinds(setup), Learning(update, "policy", True, None)).parts

    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
    backbone = Backbone(model, None, "tiny")  # type: ignore[arg-type]
    for name in ("sft", "policy", "reward", "value"):
        backbone.add_adapter(name, lora_config(recipe.lora))
    backbone.add_head("value", ScalarHead(backbone.hidden_size, zero=True))
    backbone.train_only("policy", "value")
    backbone.train()
    parameters = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(4, 19, dtype=torch.long)
    batch = Sequences(ids, torch.ones_like(ids, dtype=torch.bool), 8)
    with backbone.role("policy"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = batch.before_response(backbone(batch.input_ids, batch.attention_mask))
        log_probs, _ = backbone.log_probs(states, batch.responses)
        old = torch.zeros(4, 8)
        loss = rl.policy_loss(log_probs, old, old, batch.response_mask, cliprange=0.2)[0].sum()
    assert loss.requires_grad
    # The plan counts at the worst moment, when what goes from layer to layer is there as well: here 7 %.
    assert 1.0 <= counted["activations"] / sum(saved.values()) < 1.1


def test_the_cache_is_a_real_ones(recipe: Recipe) -> None:
    _, setup = ppo_setup(recipe, Wishes())
    found = measure(setup, layer_kinds(setup), Continuing(6, 20, 8, "policy")).cache
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
    cache = DynamicCache(config=model.config)
    model(torch.ones(6, 27, dtype=torch.long), past_key_values=cache, use_cache=True)
    real = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert found == real


def test_what_devices_divide_by_hand() -> None:
    """A base of 8 G in 4 layers of 1.5 G and 2 G around them, 100 M of adapters that learn, on 4 devices."""
    whole = Kept(base=8_000, adapters=100, gradients=100, optimizer=200, gathered=0, host=0)

    def of(mode: str) -> Kept:
        return divided(whole, Wishes(devices=4, mode=mode), parameters=4_000, layer=1_500, rest=2_000)  # type: ignore[arg-type]

    assert of("ddp") == Kept(8_000, 100, 200, 200, 0, 0)  # buckets are a copy of the gradients
    assert of("zero2") == Kept(8_000, 100, 25, 75, 0, 0)  # a part of state and of a float32 copy
    assert of("zero3") == Kept(2_000, 125, 25, 75, 8_000, 0)
    assert of("zero3_offload") == Kept(0, 100, 25, 0, 8_000, 2_000 + 25 + 100)
    assert of("fsdp2") == Kept(2_000, 25, 25, 50, 5_000, 0)
    assert divided(whole, Wishes(), parameters=4_000, layer=1_500, rest=2_000) == whole


def test_optimisers_by_hand() -> None:
    assert optimizer_bytes(1_000, "adamw_torch", "") == (8_000, False)
    assert optimizer_bytes(1_024, "adamw_8bit", "") == (2 * (1_024 + 4 * 4), False)
    assert optimizer_bytes(1_024, "paged_adamw_32bit", "") == (8_192, True)


def test_steps_and_tokens_by_hand(recipe: Recipe) -> None:
    """64 demonstrations in batches of 4, six times; 48 rankings less a fifth in batches of 4, twice; 640 episodes."""
    sft, reward, ppo = plan(recipe, Wishes()).stages
    assert (sft.work.rows, sft.work.steps) == (64, 6 * 16)
    assert (reward.work.rows, reward.work.steps) == (38, 2 * 10)
    assert (ppo.work.rows, ppo.work.steps) == (48, 640 // 32)
    rows = [json.loads(line) for line in Path(str(recipe.data.demonstrations)).read_text().splitlines()]
    assert 6 * 64 * 5 < sft.work.tokens < 6 * 64 * 60 and len(rows) == 64  # type: ignore[operator]
    two = plan(recipe, Wishes(devices=2)).stages
    assert [stage.work.steps for stage in two] == [6 * 8, 2 * 5, 20], "an update is of all devices"


def test_time_is_operations_by_throughput(recipe: Recipe) -> None:
    sft = plan(recipe, Wishes(throughput=1e9, bandwidth=1e12)).stages[0].work
    assert sft.seconds == pytest.approx(sft.flops / 1e9)  # type: ignore[operator]


# ---------------------------------------------------------------- what PPO computes once, and what a server does


def upper_half(**ppo: Any) -> Recipe:
    """SmolLM2 with adapters on layers 15 to 29: 32 answers of 64 tokens to prompts of 512, in micro-batches of 4."""
    sizes = {"per_device_train_batch_size": 4, "batch_size": 32, "mini_batch_size": 32, "response_length": 64}
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = {"layers_to_transform": list(range(15, 30)), "target_modules": linears}
    return on_paper("HuggingFaceTB/SmolLM2-135M-Instruct", lora=lora, ppo={**sizes, **ppo})


def phases_of(recipe: Recipe, **wishes: Any) -> dict[str, dict[str, int]]:
    return {one.name: one.parts for one in plan_ppo(recipe, Wishes(rows=ROWS, **wishes)).phases}


def test_states_below_the_adapters_by_hand() -> None:
    """32 rows of 512 + 64 tokens, 576 wide, in bfloat16, from when they are made until the update is over."""
    found = phases_of(upper_half(), gpu=True)
    kept = 32 * (512 + 64) * 576 * 2
    held = {"the lower layers", "the scores", "the update: policy", "the update: value model"}
    assert {name: parts["states"] for name, parts in found.items() if "states" in parts} == dict.fromkeys(held, kept)
    assert found["the lower layers"]["workspace"] >= kept, "they are put together at the end"
    on_two = phases_of(upper_half(), gpu=True, devices=2, mode="ddp")
    assert on_two["the scores"]["states"] == kept, "each process has those of all"


def test_where_there_is_nothing_to_keep_nothing_is_planned() -> None:
    every = upper_half().model_copy(update={"lora": upper_half().lora.model_copy(update={"layers_to_transform": None})})
    shared_out = phases_of(upper_half(), gpu=True, devices=2, mode="zero3")
    for found in (phases_of(every), phases_of(upper_half(frozen_states_limit=0)), shared_out):
        assert "the lower layers" not in found and not any("states" in parts for parts in found.values())


def test_passes_over_the_lower_layers_are_saved_as_many_as_there_were() -> None:
    """Of an update on the lower half (F operations forward): four roles score, and policy and value model learn for E
    epochs; with the states of the whole update kept it is one pass, without it one for the three roles on the base that
    score a micro-batch together (not the reward model), and all of learning."""
    epochs = 3
    flops = {}
    for limit in (0, 1, 1024):  # MiB: none; less than the 20 MiB of an update; enough
        work = plan_ppo(upper_half(frozen_states_limit=limit, num_ppo_epochs=epochs), Wishes(rows=ROWS)).work
        assert work.flops is not None and work.steps is not None
        flops[limit] = work.flops / work.steps
    _, setup = ppo_setup(upper_half(), Wishes(rows=ROWS))
    config = setup.config.get_text_config()
    head = config.hidden_size // config.num_attention_heads
    width, inner, keys = config.hidden_size, config.intermediate_size, config.num_key_value_heads * head
    linears = 2 * width * width + 2 * width * keys + 3 * width * inner
    tokens, long = 32 * 576, 576
    below = 15 * (2 * tokens * linears + 4 * tokens * long * width)  # products of queries, keys and values too
    assert flops[0] - flops[1] == pytest.approx(2 * below, rel=0.02)
    assert flops[1] - flops[1024] == pytest.approx((1 + 2 * epochs) * below, rel=0.02)


def test_not_to_keep_states_is_a_change_where_there_are_some() -> None:
    """18 MiB of 32 rows; while they are put together there are two copies."""
    tight, wishes = frozenset({"ppo"}), Wishes(gpu=True, rows=ROWS)
    changed = _states_again(_State(upper_half(), wishes), tight)
    assert changed.settings == ("ppo.frozen_states_limit=0",)
    with_them = phases_of(upper_half(), gpu=True)["the scores"]
    without = phases_of(changed.recipe, gpu=True)["the scores"]
    assert "states" in with_them and sum(without.values()) < sum(with_them.values()) - 2**24
    assert _states_again(changed, tight) is changed and _states_again(changed, frozenset()) is changed


def test_a_cpu_samples_with_a_second_copy_of_the_layers_matrices() -> None:
    found = phases_of(upper_half())
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    copies = {name: parts["ordered"] for name, parts in found.items() if "ordered" in parts}
    assert set(copies) == {"the rollout: prompts", "the rollout: last token"}
    assert copies["the rollout: prompts"] == pytest.approx(30 * layer * 2, rel=0.001)
    assert not any("ordered" in parts for parts in phases_of(upper_half(), gpu=True).values())


def test_what_a_server_samples_is_not_planned_and_the_plan_says_so() -> None:
    here, there = (plan_ppo(upper_half(rollout={"engine": engine}), Wishes(rows=ROWS)) for engine in ("hf", "vllm"))
    names = [phase.name for phase in there.phases]
    assert not any("rollout" in name for name in names) and len(names) == len(here.phases) - 2
    assert here.work.flops > there.work.flops  # type: ignore[operator]
    assert any("http://127.0.0.1:8000" in note and "not counted" in note for note in there.notes)
    assert not any("rollout.engine" in note for note in here.notes)


# ---------------------------------------------------------------- many devices


def test_engines_that_shard_have_both_roles_in_one_pass(recipe: Recipe) -> None:
    def learning(**wishes: Any) -> dict[str, int]:
        phases = plan(recipe, Wishes(gpu=True, **wishes)).stages[-1].phases
        return {one.name: one.parts["activations"] for one in phases if one.name.startswith("the update")}

    apart = learning(devices=2, mode="ddp")
    assert set(apart) == {"the update: policy", "the update: value model"}
    for mode in ("zero2", "zero3", "fsdp2"):
        assert learning(devices=2, mode=mode) == {"the update: policy and values": sum(apart.values())}


@pytest.mark.parametrize("devices", [8, 64])
def test_seventy_billion_on_paper(devices: int) -> None:
    sections = {
        "lora": {"r": 16},
        "sft": {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
        "reward": {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
        "ppo": {
            **{"per_device_train_batch_size": 1, "batch_size": 64, "mini_batch_size": 64},
            **{"gradient_checkpointing": True, "ds3_gather_for_generation": False},
        },
    }
    paper = on_paper("meta-llama/Llama-3.1-70B-Instruct", **sections)
    wishes = Wishes(None, True, devices, "zero3", rows=ROWS)
    found = plan(paper, wishes)
    base = 70_553_706_496 * 2
    assert all(stage.phases[0].parts["base"] == base // devices for stage in found.stages)
    assert found.peak < 80 * 10**9 and all(stage.work.flops > 1e17 for stage in found.stages)  # type: ignore[operator]
    whole = paper.model_copy(update={"ppo": paper.ppo.model_copy(update={"ds3_gather_for_generation": True})})
    assert plan_ppo(whole, wishes).peak.total > base, "the whole base on each device while it samples"


# ---------------------------------------------------------------- the command


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("command")))


def test_what_fits_ends_with_nought(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, path, "--device", "24GB")
    assert code == 0 and "fits into 22.35 GiB" in out
    assert all(stage in out for stage in ("sft: memory", "reward: memory", "ppo: memory"))
    assert max(map(len, out.splitlines())) <= 100


def test_what_does_not_fit_ends_with_three_and_three_changes_that_do_what_they_say(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = on_paper("HuggingFaceTB/SmolLM2-135M-Instruct").model_dump(mode="json", exclude_defaults=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    rows = ",".join(f"{name}={count}" for name, count in ROWS.items())
    code, out, _ = run(capsys, str(file), "--device", "4GB", "--rows", rows, "--json")
    found = json.loads(out)
    assert code == 3 and found["fits"] is False and len(found["changes"]) == 3
    before = {stage["stage"]: max(phase["total"] for phase in stage["phases"]) for stage in found["stages"]}
    for change in found["changes"]:
        assert change["cost"] and max(change["peaks"].values()) < max(before.values())
    assert any(change["fits"] for change in found["changes"])
    # One that is of the recipe alone does what it says.
    change = next(c for c in found["changes"] if not any(s.startswith("--") for s in c["settings"]))
    _, again, _ = run(capsys, str(file), *change["settings"], "--device", "4GB", "--rows", rows, "--json")
    now = {stage["stage"]: max(p["total"] for p in stage["phases"]) for stage in json.loads(again)["stages"]}
    assert now == change["peaks"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "much"], "much: no size of a memory; write 24GB or 80GiB"),
        (["--throughput", "fast"], "--throughput fast: operations a second"),
        (["--bandwidth", "nan"], "--bandwidth nan: bytes a second, such as 1e12"),
        (["model.quantization=4bit", "--devices", "2", "--mode", "zero3"], "4bit cannot be shared out by zero3"),
        (
            ["model.name_or_path=nobody/nothing", "model.base_id=null"],
            "nobody/nothing: its configuration is neither here",
        ),
        (["sft.trainer={optim: adafactor}"], "adafactor: what it keeps is not known to plan"),
    ],
)
def test_mistakes_end_with_two_in_a_line(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run(capsys, path, *words)
    assert code == 2 and said in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("rows", ["demonstrations=x", "nope=3", "prompts=0"])
def test_rows_are_counts_of_fields(path: str, capsys: pytest.CaptureFixture[str], rows: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", path, "--rows", rows])
    assert ended.value.code == 2 and "such as demonstrations=10000" in capsys.readouterr().err


def test_sizes_are_read_as_people_write_them() -> None:
    assert (bytes_of("24GB"), bytes_of("80 GiB"), bytes_of("512m")) == (24 * 10**9, 80 * GIB, 512 * 10**6)
