"""One base with named adapters: the traps that were measured, each as a test, and PEFT and transformers as the
oracle."""

import copy
import json

import pytest
import torch
from backbones import (
    BASE_ID,
    add_head,
    backbone_of_type,
    base_of_type,
    lora,
    stir,
    tiny_backbone,
    tiny_base,
    tiny_directory,
)
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer

from rlhf_kit.batches import Sequences
from rlhf_kit.errors import CheckpointError, ModelError
from rlhf_kit.models import Backbone
from rlhf_kit.rollout import sample

IDS = torch.tensor([[10, 20, 30, 40, 50, 60], [70, 80, 90, 100, 110, 120]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def states(backbone, name, ids=IDS, mask=MASK):
    with torch.no_grad(), backbone.role(name):
        return backbone(ids, mask)


def learning(backbone):
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def all_bytes(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def same_bytes(before, parameters):
    return all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


# ---------------------------------------------------------------- who learns


def test_who_learns_is_the_same_whatever_was_active_since():
    backbone = tiny_backbone("sft", "policy", "reward", "value")
    add_head(backbone, "reward")
    add_head(backbone, "value")
    backbone.train_only("policy", "value")
    expected = learning(backbone)
    assert expected and all(".policy." in n or ".value." in n or n.startswith("heads.value.") for n in expected)
    for name in ("sft", "reward", None, "value", "policy"):
        with backbone.role(name):
            assert learning(backbone) == expected
            with backbone.role("reward"):
                sample(backbone, [[10, 20, 30]], max_new_tokens=2, generator=torch.Generator().manual_seed(0))
            assert learning(backbone) == expected
        assert learning(backbone) == expected


def test_an_optimiser_made_under_one_role_still_moves_the_policy_after_rollouts_under_others():
    backbone = tiny_backbone("sft", "policy", "reward")
    backbone.train_only("policy")
    with backbone.role("reward"):
        optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        before = all_bytes(backbone.adapter_parameters("policy"))
        with backbone.role("sft"):
            sample(backbone, [[10, 20]], max_new_tokens=2, generator=torch.Generator().manual_seed(0))
        with backbone.role("policy"):
            backbone(IDS, MASK).pow(2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        moved = [not torch.equal(a, b) for a, b in zip(before, backbone.adapter_parameters("policy"), strict=True)]
        assert all(moved)


def test_training_one_adapter_leaves_the_others_and_the_base_byte_equal():
    backbone = tiny_backbone("sft", "policy", "value")
    add_head(backbone, "value")
    backbone.train_only("policy")
    mine = {id(p) for p in backbone.adapter_parameters("policy")}
    others = [p for p in backbone.parameters() if id(p) not in mine]
    before, outside = all_bytes(others), states(backbone, "sft")
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=0.1, weight_decay=0.1)
    with backbone.role("policy"):
        backbone(IDS, MASK).pow(2).sum().backward()
    optimiser.step()
    assert same_bytes(before, others)
    assert torch.equal(states(backbone, "sft"), outside)


def test_training_what_is_not_there_is_refused():
    backbone = tiny_backbone("policy")
    with pytest.raises(ModelError, match="no adapter or head named polcy; there are policy"):
        backbone.train_only("polcy")
    with pytest.raises(ModelError, match="no adapter"):
        Backbone(tiny_base(), None, BASE_ID).peft  # noqa: B018
    with (
        pytest.raises(ModelError, match="no adapter named policy"),
        Backbone(tiny_base(), None, BASE_ID).role("policy"),
    ):
        pass


def test_a_role_ends_when_it_raises():
    backbone = tiny_backbone("policy", "sft")
    outside = states(backbone, None)
    with pytest.raises(RuntimeError), backbone.role("policy"):
        raise RuntimeError
    assert torch.equal(backbone(IDS, MASK), outside)


# ---------------------------------------------------------------- gradient checkpointing


def gradients(checkpointing):
    backbone = tiny_backbone("sft", "policy", "value")
    head = add_head(backbone, "value")
    backbone.train_only("policy", "value")
    if checkpointing:
        backbone.use_checkpointing()
    backbone.train()
    with backbone.role("policy"):
        log_probs, _ = backbone.log_probs(backbone(IDS, MASK)[:, :-1], IDS[:, 1:])
        log_probs.sum().backward()
    with backbone.role("value"):
        head(backbone(IDS, MASK)).pow(2).sum().backward()
    with backbone.role("sft"), torch.no_grad():
        backbone(IDS, MASK)
    return {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}


def test_gradient_checkpointing_changes_no_gradient_of_policy_or_value():
    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert gradient is not None and recomputed[name] is not None, name
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-6, msg=name)
    assert any(g.abs().max() > 1e-3 for n, g in plain.items() if ".policy." in n)
    assert any(g.abs().max() > 1e-3 for n, g in plain.items() if ".value." in n)


def test_checkpointing_does_recompute():
    backbone = tiny_backbone("policy")
    backbone.train_only("policy")
    backbone.use_checkpointing()
    backbone.train()
    calls = []
    backbone.base.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with backbone.role("policy"):
        hidden = backbone(IDS, MASK)
        assert len(calls) == 1
        hidden.sum().backward()
    assert len(calls) == 2


# ---------------------------------------------------------------- roles and copies


def test_no_role_is_the_raw_base_exactly():
    backbone = tiny_backbone("sft", "policy")
    raw = tiny_base().model(input_ids=IDS).last_hidden_state
    assert torch.equal(states(backbone, None), raw)
    assert not torch.allclose(states(backbone, "policy"), raw, atol=1e-2)
    assert torch.equal(states(backbone, None), raw)  # and again after another role


def test_each_role_is_what_peft_makes_of_that_adapter_alone(tmp_path):
    backbone = tiny_backbone("sft", "policy")
    for name in ("sft", "policy"):
        backbone.save_adapter(name, tmp_path / name)
        alone = PeftModel.from_pretrained(tiny_base(), tmp_path / name).eval()
        torch.testing.assert_close(
            states(backbone, name), alone.base_model.model.model(input_ids=IDS).last_hidden_state, atol=1e-6, rtol=1e-6
        )


def test_a_copy_plays_as_its_original_and_then_goes_its_own_way(tmp_path):
    backbone = tiny_backbone("sft")
    backbone.add_adapter("policy", lora(), copy_of="sft")
    backbone.save_adapter("sft", tmp_path)
    backbone.load_adapter("loaded", tmp_path)
    assert backbone.adapters == ["sft", "policy", "loaded"]
    original = states(backbone, "sft")
    assert torch.equal(states(backbone, "policy"), original)
    assert torch.equal(states(backbone, "loaded"), original)
    stir(backbone, "policy", 9)
    assert torch.equal(states(backbone, "sft"), original)
    assert not torch.equal(states(backbone, "policy"), original)
    backbone.reload_adapter("policy", tmp_path)
    assert torch.equal(states(backbone, "policy"), original)


def test_a_new_adapter_changes_nothing_yet():
    backbone = tiny_backbone("sft")
    backbone.add_adapter("fresh", lora(r=8))
    torch.testing.assert_close(states(backbone, "fresh"), states(backbone, None), atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- on disk


def test_a_saved_adapter_loads_with_plain_peft_and_gives_the_same_logits(tmp_path):
    backbone = tiny_backbone("sft", "policy")
    backbone.save_adapter("policy", tmp_path)
    plain = PeftModel.from_pretrained(tiny_base(), tmp_path).eval()
    with torch.no_grad():
        theirs = plain(input_ids=IDS).logits
        ours = backbone.next_token_logits(states(backbone, "policy").flatten(0, 1)).view_as(theirs)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_saved_adapter_names_its_base_by_id_and_no_path_of_this_machine(tmp_path):
    backbone = tiny_backbone("policy")
    backbone.save_adapter("policy", tmp_path / "a")
    again = tiny_backbone()
    again.load_adapter("policy", tmp_path / "a")
    again.save_adapter("policy", tmp_path / "b")
    for name in ("a", "b"):
        text = (tmp_path / name / "adapter_config.json").read_text(encoding="utf-8")
        config = json.loads(text)
        assert config["base_model_name_or_path"] == BASE_ID
        assert config["inference_mode"] is True
        assert str(tiny_directory()) not in text and str(tmp_path) not in text
        assert not [v for v in config.values() if isinstance(v, str) and v.startswith("/")]
        assert config["lora_alpha"] == 8 and config["r"] == 4


def test_an_adapter_of_plain_peft_is_read(tmp_path):
    model = get_peft_model(tiny_base(), lora()).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    backbone = tiny_backbone()
    backbone.load_adapter("sft", tmp_path)
    with torch.no_grad():
        theirs = model.base_model.model.model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(states(backbone, "sft"), theirs, atol=1e-6, rtol=1e-6)


def saved(tmp_path, **fields):
    backbone = Backbone(tiny_base(), AutoTokenizer.from_pretrained(tiny_directory()), BASE_ID)
    backbone.add_adapter("policy", lora(**fields))
    backbone.save_adapter("policy", tmp_path)
    return tmp_path


def test_a_directory_that_is_no_adapter_is_refused(tmp_path):
    backbone = tiny_backbone()
    with pytest.raises(CheckpointError, match="not an adapter"):
        backbone.load_adapter("policy", tmp_path / "nowhere")
    directory = saved(tmp_path)
    weights = directory / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])  # cut off
    with pytest.raises(CheckpointError, match=str(directory)):
        backbone.load_adapter("policy", directory)
    weights.unlink()
    with pytest.raises(CheckpointError, match=str(directory)):
        backbone.load_adapter("policy", directory)
    (directory / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not an adapter"):
        backbone.load_adapter("policy", directory)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    directory = saved(tmp_path / "llama")
    wider = Backbone(base_of_type("llama", hidden_size=48), None, "someone/wider")
    with pytest.raises(CheckpointError, match="does not fit someone/wider"):
        wider.load_adapter("policy", directory)
    shallower = Backbone(base_of_type("llama", num_hidden_layers=1), None, "someone/shallower")
    with pytest.raises(CheckpointError, match="does not fit someone/shallower"):
        shallower.load_adapter("policy", directory)
    other = saved(tmp_path / "q", target_modules=["q_proj", "v_proj"])
    deeper = Backbone(base_of_type("llama", num_hidden_layers=3), None, "someone/deeper")
    with pytest.raises(CheckpointError, match="does not fit someone/deeper"):
        deeper.load_adapter("policy", other)
    with pytest.raises(CheckpointError, match="does not fit someone/gpt2"):
        Backbone(base_of_type("gpt2"), None, "someone/gpt2").load_adapter("policy", other)


def test_weights_that_do_not_match_their_config_are_refused(tmp_path):
    directory = saved(tmp_path)
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    (directory / "adapter_config.json").write_text(json.dumps({**config, "r": 8}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not fit"):
        tiny_backbone().load_adapter("policy", directory)


# ---------------------------------------------------------------- the forward pass

TYPES = ["llama", "qwen3", "gpt2", "gemma2"]


@pytest.mark.parametrize("model_type", TYPES)
def test_padding_on_the_left_changes_nothing(model_type):
    backbone = backbone_of_type(model_type)
    backbone.add_adapter("policy", lora())
    stir(backbone, "policy", 1)
    prompts, responses = [[10, 20], [5, 6, 7, 8, 9, 10, 11, 12, 13]], [[30, 40, 50], [60]]
    batch = Sequences.collate(prompts, responses, backbone.tokenizer.pad_token_id)
    with torch.no_grad(), backbone.role("policy"):
        hidden = backbone(batch.input_ids, batch.attention_mask)
        log_probs, entropy = backbone.log_probs(batch.before_response(hidden), batch.responses)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            alone = torch.tensor([prompt + response])
            single = backbone(alone, torch.ones_like(alone, dtype=torch.bool))
            torch.testing.assert_close(hidden[row][batch.attention_mask[row]], single[0], atol=1e-5, rtol=1e-5)
            table = torch.log_softmax(backbone.base(input_ids=alone).logits[0].float(), -1)
            for t, token in enumerate(response):
                at = table[len(prompt) + t - 1]
                assert log_probs[row, t].item() == pytest.approx(at[token].item(), abs=2e-5)
                assert entropy[row, t].item() == pytest.approx(-(at.exp() * at).sum().item(), abs=2e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_log_probs_are_the_models_own(model_type):
    backbone = backbone_of_type(model_type)
    backbone.check_log_probs()
    ids, mask = IDS, MASK
    with torch.no_grad():
        found, _ = backbone.log_probs(backbone(ids, mask)[:, :-1], ids[:, 1:], temperature=0.7)
        logits = backbone.base(input_ids=ids).logits
        expected = torch.log_softmax(logits[:, :-1] / 0.7, -1).gather(2, ids[:, 1:, None]).squeeze(2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            backbone.next_token_logits(backbone(ids, mask)[:, -1]), logits[:, -1], atol=1e-5, rtol=1e-5
        )


def test_gemmas_soft_capping_matters_here():
    backbone = backbone_of_type("gemma2", final_logit_softcapping=2.0)
    backbone.check_log_probs()
    assert backbone.base(input_ids=IDS).logits.abs().max() <= 2.0


@pytest.mark.parametrize(
    ("model_type", "fields"), [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 8.0})]
)
def test_a_model_that_scales_its_logits_is_refused(model_type, fields):
    backbone = backbone_of_type(model_type, **fields)
    with pytest.raises(ModelError, match=model_type):
        backbone.check_log_probs()


def test_the_base_is_frozen_and_untouched_by_what_is_around_it():
    base = tiny_base()
    before = copy.deepcopy(base.state_dict())
    backbone = Backbone(base, AutoTokenizer.from_pretrained(tiny_directory()), BASE_ID)
    backbone.add_adapter("policy", lora())
    backbone.train_only("policy")
    now = {n.replace(".base_layer", ""): p for n, p in base.named_parameters() if "lora_" not in n}
    assert all(torch.equal(before[n], p) and not p.requires_grad for n, p in now.items())
    assert len(backbone.adapter_parameters("policy")) == 2 * 7 * 2  # A and B of seven matrices in two layers
