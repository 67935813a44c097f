"""A reward model in the shape of transformers' sequence classification models: how it is written.

Such a model reads its score at the last token that is not padding, through a linear layer without a bias. The kit
reads it at the last token of the response too. So the head's scale (and its axes) go into that layer's weight, and
what cannot, a constant, stands in the configuration.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.checkpoint import read_json, write_json
from rlhf_kit.errors import CheckpointError, ExportError
from rlhf_kit.models import Backbone, ScalarHead
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.loading import save_lora_config
from rlhf_kit.recipe import ModelSection
from rlhf_kit.rewards import REWARD

OFFSET = "rlhf_kit_score_offset"
"""The field of `config.json` that holds the offset: the kit's score is the model's plus this."""
OFFSET_FILE = "rlhf_kit_reward.json"
"""Holds it beside an adapter, where a `config.json` would keep transformers from finding the base."""


def classifier_like(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, str]:
    """The classification model of a base's architecture, without weights, and the name of its head.

    Raises:
        ExportError: there is none, or its head is more than one linear layer without a bias on the same decoder.
    """
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    # As transformers calls it: its pipelines leave the score of a regression as it is.
    config.problem_type = "regression"
    # Padding is what the model looks for to find the last token; EOS must not count as such.
    for part in (config, config.get_text_config()):
        part.pad_token_id, part.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as failure:
        raise ExportError(f"{config.model_type}: transformers has no sequence classification model of it") from failure
    decoder = _name_of_decoder(base)
    others = {
        name: module
        for name, module in model.named_modules()
        if name and not f"{name}.".startswith(f"{decoder}.") and not f"{decoder}.".startswith(f"{name}.")
    }
    plain = [name for name, module in others.items() if isinstance(module, nn.Linear) and module.bias is None]
    same = type(dict(model.named_modules()).get(decoder)) is type(base.get_decoder())
    if not same or len(others) != 1 or len(plain) != 1:
        raise ExportError(
            f"{config.model_type}: its sequence classification model is not one linear layer without a bias on "
            f"the same decoder (beside it: {', '.join(others) or 'nothing'}), so it cannot give the same scores"
        )
    return model, plain[0]


def _name_of_decoder(base: PreTrainedModel) -> str:
    decoder = base.get_decoder()
    return next(name for name, module in base.named_modules() if module is decoder)


def write_adapter(backbone: Backbone, run: Path, model: ModelSection, out: Path) -> None:
    """The adapter of the stage `run` with the head's weight where PEFT looks for it."""
    _, head = classifier_like(backbone.base, backbone.tokenizer, trust_remote_code=model.trust_remote_code)
    weight, offset = backbone.heads[REWARD].folded()
    config = LoraConfig.from_pretrained(str(run))
    config.task_type = "SEQ_CLS"
    config.modules_to_save = [head]
    save_lora_config(config, out, backbone.base_id, model.revision)
    state = load_file(run / WEIGHTS_FILE)
    state[f"base_model.model.{head}.weight"] = weight.cpu()[None].contiguous()
    save_file(state, out / WEIGHTS_FILE, {"format": "pt"})
    write_json(out / OFFSET_FILE, {"score_offset": offset, "pad_token_id": backbone.tokenizer.pad_token_id})


def exported_head(directory: Path) -> ScalarHead:
    """The head of an adapter that `write_adapter` wrote, as one that can learn on; its scores are the same.

    Raises:
        CheckpointError: the weights are missing or damaged.
    """
    try:
        config = LoraConfig.from_pretrained(str(directory))
        weight = load_file(directory / WEIGHTS_FILE)[f"base_model.model.{(config.modules_to_save or [''])[0]}.weight"]
    except (OSError, ValueError, KeyError, SafetensorError) as failure:
        raise CheckpointError(f"{directory}: the head of the exported adapter cannot be read: {failure}") from failure
    head = ScalarHead(weight.size(1))
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.fill_(read_json(directory / OFFSET_FILE)["score_offset"])
    return head


def write_merged(backbone: Backbone, model: ModelSection, out: Path) -> None:
    """The base with adapter and head in it, as one model in the precision of the base.

    The backbone's base is merged in place: the backbone is of no use afterwards.
    """
    weight, offset = backbone.heads[REWARD].folded()
    merged = backbone.peft.merge_and_unload(adapter_names=[REWARD])
    whole, head = classifier_like(merged, backbone.tokenizer, trust_remote_code=model.trust_remote_code)
    whole.set_submodule(_name_of_decoder(merged), merged.get_decoder())
    whole.get_submodule(head).weight = nn.Parameter(weight.to(backbone.device)[None].clone())
    setattr(whole.config, OFFSET, offset)
    whole.save_pretrained(out)
