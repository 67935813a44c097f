"""Pretrained models behind one door: where weights come from, how they load, and one base with named adapters."""

from rlhf_kit.models.backbone import Backbone, context_length
from rlhf_kit.models.heads import ScalarHead
from rlhf_kit.models.loading import load_backbone, load_base, load_tokenizer, lora_config, to_device
from rlhf_kit.models.sources import resolve

__all__ = [
    "Backbone",
    "ScalarHead",
    "context_length",
    "load_backbone",
    "load_base",
    "load_tokenizer",
    "lora_config",
    "resolve",
    "to_device",
]
