"""From what a user hands to `PPOTrainer` to roles and reward sources: names are loaded, models are wrapped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit import rewards
from rlhf_kit.checkpoint import read_manifest
from rlhf_kit.errors import ModelError
from rlhf_kit.models import Backbone, ScalarHead
from rlhf_kit.models.loading import resolve_dtype
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.live import STORE, LiveReward
from rlhf_kit.ppo.reward_sources import (
    AdapterReward,
    FunctionReward,
    ModelReward,
    RewardSource,
    TokenReward,
    names_of,
)
from rlhf_kit.ppo.roles import POLICY, REFERENCE, VALUE, Role, Roles
from rlhf_kit.recipe_live import LIVE
from rlhf_kit.recipe_ppo import Sizes
from rlhf_kit.reward_model import RewardModel
from rlhf_kit.user_code import load_function

Model = str | PreTrainedModel | PeftModel | Backbone
RewardFunc = str | PreTrainedModel | RewardModel | Callable[..., Any]


# -------------------------------------------------------------------- policy, reference, value model


def make_roles(
    model: Model,
    config: PPOConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: PeftConfig | None,
    ref_model: Model | None,
    value_model: Model | None,
) -> Roles:
    """The roles of a run; `PPOTrainer` says what it takes.

    Raises:
        ModelError: what is given does not make all of them.
    """
    backbone = as_backbone(model, tokenizer, config.model_init_kwargs)
    policy = _policy(backbone, config, peft_config, given=model)
    reference = _reference(policy, config, ref_model)
    if value_model is not None:
        value = _value_of_its_own(as_backbone(value_model, backbone.tokenizer, config.model_init_kwargs), backbone)
    elif config.value == "model":
        raise ModelError("value='model' needs a value_model")
    else:
        value = _value_on(policy, shared=config.value == "shared")
    roles = Roles(policy, reference, value)
    _set_up(roles, config)
    return roles


def as_backbone(
    model: Model, tokenizer: PreTrainedTokenizerBase | None, init_kwargs: dict[str, Any] | str | None = None
) -> Backbone:
    """A model, given in whichever way, with its tokenizer.

    Raises:
        ModelError: it cannot be loaded.
    """
    if isinstance(model, Backbone):
        return model
    options = json.loads(init_kwargs) if isinstance(init_kwargs, str) else dict(init_kwargs or {})
    if isinstance(model, str):
        name = model
        options.setdefault("dtype", resolve_dtype("auto"))
        try:
            model = AutoModelForCausalLM.from_pretrained(name, **options)
        except (OSError, ValueError, KeyError) as failure:
            raise ModelError(f"{name}: cannot be loaded: {str(failure).splitlines()[0]}") from failure
    config = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    tokenizer = tokenizer or _tokenizer_of(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    base_id = Path(name).stem if Path(name).exists() else name
    if isinstance(model, PeftModel):
        return Backbone.from_peft(model, tokenizer, base_id)
    return Backbone(model, tokenizer, base_id)


def _tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as failure:
        raise ModelError(f"{name}: no tokenizer; give one as processing_class") from failure


def _policy(backbone: Backbone, config: PPOConfig, peft_config: PeftConfig | None, given: Model) -> Role:
    if peft_config is not None:
        if backbone.adapters:
            raise ModelError("the model has adapters already; leave peft_config out, or merge them into it first")
        backbone.add_adapter(POLICY, peft_config)
        return Role(backbone, POLICY)
    if not backbone.adapters:
        return Role(backbone)  # the model itself learns
    name = config.model_adapter_name or (given.active_adapter if isinstance(given, PeftModel) else POLICY)
    if name not in backbone.adapters:
        raise ModelError(f"no adapter {name!r} to train; there are {', '.join(backbone.adapters)}")
    return Role(backbone, str(name))


def _reference(policy: Role, config: PPOConfig, ref_model: Model | None) -> Role:
    if ref_model is not None:
        if ref_model is policy.backbone.base:
            raise ModelError("ref_model is the very model that is trained; leave it out, or hand over a copy")
        return Role(as_backbone(ref_model, policy.backbone.tokenizer))
    if policy.adapter is None:
        frozen = Backbone(copy.deepcopy(policy.backbone.base), policy.backbone.tokenizer, policy.backbone.base_id)
        return Role(frozen)
    name = config.ref_adapter_name or (REFERENCE if REFERENCE in policy.backbone.adapters else None)
    if name is not None and name not in policy.backbone.adapters:
        raise ModelError(f"no adapter {name!r} as the reference; there are {', '.join(policy.backbone.adapters)}")
    return Role(policy.backbone, name)


def _value_on(policy: Role, *, shared: bool) -> Role:
    """A head on the policy, or an adapter of its own: the one that is there, else a copy of the policy's."""
    backbone = policy.backbone
    if VALUE not in backbone.heads:
        backbone.add_head(VALUE, ScalarHead(backbone.hidden_size, zero=True))
    if shared:
        return Role(backbone, policy.adapter, backbone.heads[VALUE])
    if policy.adapter is None:
        raise ModelError(
            "value='adapter' needs a base with adapters: give a peft_config, a value_model, or value='shared'"
        )
    if VALUE not in backbone.adapters:
        backbone.add_adapter(VALUE, backbone.peft.peft_config[policy.adapter], copy_of=policy.adapter)
    return Role(backbone, VALUE, backbone.heads[VALUE])


def _value_of_its_own(backbone: Backbone, policy: Backbone) -> Role:
    """A model with a value head: the kit's, or the `score` of a sequence classification model with one label."""
    _check_vocabulary(backbone.base, policy.tokenizer, "value_model")
    if VALUE not in backbone.heads:
        head = ScalarHead(backbone.hidden_size, zero=True)
        score = getattr(backbone.base, "score", None)
        if isinstance(score, torch.nn.Linear) and score.out_features == 1:
            head.linear.weight.data.copy_(score.weight.data.float())
        backbone.add_head(VALUE, head)
    return Role(backbone, VALUE if VALUE in backbone.adapters else None, backbone.heads[VALUE])


def _set_up(roles: Roles, config: PPOConfig) -> None:
    """What learns, and how: no dropout anywhere, and what is frozen is."""
    for backbone in roles.backbones:
        names = {
            role.adapter
            for role in (roles.policy, roles.value)
            if role.backbone is backbone and role.adapter is not None
        }
        if roles.value.backbone is backbone:
            names.add(VALUE)
        if backbone.adapters or VALUE in backbone.heads:
            backbone.train_only(*sorted(names))
        if any(role.backbone is backbone and role.adapter is None for role in (roles.policy, roles.value)):
            backbone.train_base()
            names.add(POLICY)
        if names and (config.gradient_checkpointing or backbone.is_checkpointing):
            backbone.use_checkpointing()
        backbone.without_dropout()
    with roles.policy.playing():
        roles.policy.backbone.check_log_probs()


# -------------------------------------------------------------------- rewards


def make_sources(
    given: RewardFunc | Sequence[RewardFunc],
    tokenizers: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    backbone: Backbone,
    config: PPOConfig,
) -> list[RewardSource]:
    """The reward sources of a run, each with a name of its own.

    Raises:
        ModelError: one cannot be loaded, or has another vocabulary than the policy and no tokenizer.
    """
    funcs = list(given) if isinstance(given, (list, tuple)) else [given]
    if not funcs:
        raise ModelError("reward_funcs is empty; PPO needs something to learn from")
    own = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(funcs)
    if len(own) != len(funcs):
        raise ModelError(f"reward_processing_classes has {len(own)} entries for {len(funcs)} reward_funcs")
    sources = [_source(func, tokenizer, backbone, config) for func, tokenizer in zip(funcs, own, strict=True)]
    for source, name in zip(sources, names_of([source.name for source in sources]), strict=True):
        source.name = name
    return sources


def _source(
    func: RewardFunc, tokenizer: PreTrainedTokenizerBase | None, backbone: Backbone, config: PPOConfig
) -> RewardSource:
    if isinstance(func, RewardModel):
        return ModelReward(func, Path(func.name).name)
    if isinstance(func, str):
        return _named(func, backbone, config)
    if isinstance(func, torch.nn.Module):
        return _model(func, tokenizer, backbone, _micro(config))
    return FunctionReward(func, getattr(func, "__name__", type(func).__name__))


def _named(name: str, backbone: Backbone, config: PPOConfig) -> RewardSource:
    """People, a reward adapter that the backbone has, `module:function`, a run of this kit, or a classification
    model."""
    if name == LIVE:
        return LiveReward(config.live_section, Path(config.live_section.store or Path(str(config.output_dir)) / STORE))
    if name in backbone.heads and name != VALUE:
        return AdapterReward(backbone, _micro(config), name, name)
    if ":" in name and not Path(name).exists():
        return FunctionReward(load_function(name, "ppo.reward_funcs"), name.rpartition(":")[2])
    stage = rewards.stage_of(name)
    if stage is not None and backbone.adapters and read_manifest(stage).base["id"] == backbone.base_id:
        taken = sum(head.startswith(rewards.REWARD) for head in backbone.heads)
        adapter = f"{rewards.REWARD}_{taken + 1}" if taken else rewards.REWARD
        rewards.load(backbone, stage, adapter)
        return AdapterReward(backbone, _micro(config), adapter)
    return ModelReward(RewardModel.open(name), Path(name).name)


def _micro(config: PPOConfig) -> int:
    return Sizes.of(config, config.world_size).micro


def _model(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None, backbone: Backbone, micro: int
) -> RewardSource:
    """A model in memory: given texts where it has a tokenizer of its own, else the policy's tokens."""
    config = model.config
    if config.num_labels != 1:
        raise ModelError(f"a reward model of {config.num_labels} labels; a reward model has one")
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    label = Path(name).name
    if tokenizer is not None:
        return ModelReward(RewardModel.of(model.to(backbone.device), tokenizer, name), label)
    _check_vocabulary(model, backbone.tokenizer, f"the reward model {label}")
    if not isinstance(getattr(model, "score", None), torch.nn.Module):
        raise ModelError(
            f"the reward model {label} does not read its score at the last token; give its tokenizer in "
            "reward_processing_classes"
        )
    return TokenReward(model.requires_grad_(False).to(backbone.device), label, micro)


def _check_vocabulary(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    size = model.config.get_text_config().vocab_size
    added = tokenizer.pad_token_id  # scripts add a `[PAD]` without enlarging their models; no model is given it
    if any(token >= size for token in tokenizer.get_vocab().values() if token != added):
        raise ModelError(
            f"{what} knows {size} tokens, the policy's tokenizer has {len(tokenizer)}: it is another vocabulary. Give "
            "its own tokenizer in reward_processing_classes, or name the model instead of handing it over"
        )
