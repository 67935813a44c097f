"""One base model, named LoRA adapters, scalar heads: the four models of PPO in the memory of one.

`Backbone` is the only owner of which adapter is active and of what requires a gradient. PEFT's `set_adapter` rewrites
`requires_grad`, so that a rollout under another adapter would silently freeze parameters between two updates; here a
switch leaves the flags alone, and they are set from one table. A role must enclose its forward and its backward pass:
with gradient checkpointing the backward pass runs the layers again, under whatever adapter is active then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit import launch
from rlhf_kit.errors import CheckpointError, ModelError
from rlhf_kit.models.adapters import WEIGHTS_FILE
from rlhf_kit.models.heads import ScalarHead
from rlhf_kit.models.lora_linear import fuse, settled
from rlhf_kit.models.lower_layers import LowerLayers
from rlhf_kit.models.packed_linear import packed
from rlhf_kit.models.quantized import settle
from rlhf_kit.rl import token_log_probs


class Backbone(nn.Module):
    """A causal language model with adapters and heads, each used by name.

    Args:
        base: the pretrained model; it is frozen here and stays so.
        tokenizer: its tokenizer, with a pad token that is not EOS.
        base_id: the Hub id that saved adapters declare as their base, never a local path.
    """

    # Tells transformers' Trainer that the loss is normalised by us, not by its own token count.
    accepts_loss_kwargs = False

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_id: str) -> None:
        super().__init__()
        settle(base)  # whoever has loaded it
        self.base = base.requires_grad_(False)
        self.tokenizer = tokenizer
        self.base_id = base_id
        self.config = base.config
        self.hidden_size: int = base.get_input_embeddings().embedding_dim
        self.heads = nn.ModuleDict()
        self._lower: LowerLayers | None = None  # not looked for since adapters came
        # The longest sequence at which packed rows were found to be right; 0: they are wrong; None: not tried yet.
        self.packs_up_to: int | None = None
        self._peft: PeftModel | None = None
        self._trained: frozenset[str] = frozenset()
        self._adapters_learn = True
        self._active: str | None = None
        # What a switch of roles walks over, kept because PPO switches dozens of times an update: `_index` fills them.
        self._layers: list[BaseTunerLayer] = []
        self._parameters_of: dict[str, list[nn.Parameter]] = {}
        self.eval()

    @classmethod
    def from_peft(cls, model: PeftModel, tokenizer: PreTrainedTokenizerBase, base_id: str) -> Backbone:
        """A model that PEFT has wrapped already, with the adapters that it has."""
        backbone = cls(model.get_base_model(), tokenizer, base_id)
        backbone._peft = model
        backbone._index()
        backbone._select(None)
        backbone._set_flags()
        return backbone

    # ---------------------------------------------------------------- adapters and heads

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters, in the order in which they came."""
        return [] if self._peft is None else list(self._peft.peft_config)

    def add_adapter(self, name: str, config: LoraConfig, *, copy_of: str | None = None) -> None:
        """A new adapter: untrained (it changes nothing yet), or a copy of another."""
        config = LoraConfig(**{**config.to_dict(), "base_model_name_or_path": self.base_id, "inference_mode": False})
        if self._peft is None:
            self._peft = PeftModel(self.base, config, adapter_name=name)
        else:
            self._peft.add_adapter(name, config)
        if copy_of is not None:
            state = get_peft_model_state_dict(self._peft, adapter_name=copy_of, save_embedding_layers=False)
            set_peft_model_state_dict(self._peft, state, adapter_name=name)
        self._index()
        self._select(self._active)
        self._set_flags()

    def load_adapter(self, name: str, directory: Path) -> None:
        """An adapter from a directory in PEFT's layout; of a classifier's adapter, what is not its head.

        Raises:
            CheckpointError: nothing there, or weights that do not fit the base.
        """
        try:
            config = LoraConfig.from_pretrained(str(directory))
            weights = load_peft_weights(str(directory), device=str(self.device))
        except (OSError, ValueError, SafetensorError) as failure:
            raise CheckpointError(f"{directory}: not an adapter: {failure}") from failure
        heads = [head for head in config.modules_to_save or () if not self._has(head)]
        if heads:
            config.modules_to_save = [saved for saved in config.modules_to_save if saved not in heads] or None
            config.task_type = "CAUSAL_LM"
            weights = {key: value for key, value in weights.items() if not _is_of(key, heads)}
        try:
            self.add_adapter(name, config)
        except ValueError as failure:  # none of its target modules is there
            raise CheckpointError(f"{directory}: the adapter does not fit {self.base_id}: {failure}") from failure
        self._fill(name, weights, directory)

    def _has(self, module: str) -> bool:
        return any(_is_of(f"{name}.", [module]) for name, _ in self.base.named_modules())

    def reload_adapter(self, name: str, directory: Path) -> None:
        """Puts the weights of a directory into an adapter that is there already (when training goes on from a
        checkpoint)."""
        self._fill(name, load_peft_weights(str(directory), device=str(self.device)), directory)

    def _fill(self, name: str, weights: dict[str, Tensor], directory: Path) -> None:
        try:
            result = set_peft_model_state_dict(self.peft, weights, adapter_name=name)
        except RuntimeError as failure:
            raise CheckpointError(f"{directory}: the adapter does not fit {self.base_id}: {failure}") from failure
        missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
        if missing or result.unexpected_keys:
            wrong = (missing + list(result.unexpected_keys))[0]
            raise CheckpointError(
                f"{directory}: the adapter does not fit {self.base_id}; first stray or missing weight: {wrong}"
            )

    def save_adapter(self, name: str, directory: Path) -> None:
        """Writes an adapter in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`, at the top of
        `directory`. Of several processes all must call this; the main one writes."""
        with launch.whole(self._parameters_of[name]):
            state = get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)
            state = {key: launch.full(value.detach()).cpu().contiguous() for key, value in state.items()}
        if not launch.is_main():
            return
        directory.mkdir(parents=True, exist_ok=True)
        config = LoraConfig(**{**self.peft.peft_config[name].to_dict(), "inference_mode": True})
        config.base_model_name_or_path = self.base_id
        config.save_pretrained(str(directory))
        save_file(state, directory / WEIGHTS_FILE, {"format": "pt"})

    def weight_adapters(
        self, name: str, adapters: list[str], weights: Sequence[float], method: str, *, density: float | None = None
    ) -> None:
        """A new adapter from several by PEFT's `add_weighted_adapter`.

        Args:
            method: its `combination_type`.
            density: the share of values that methods which prune keep.

        Raises:
            ValueError, LookupError, RuntimeError: PEFT's own, where the adapters do not go together by this method.
            ValueError: PEFT has left out a layer, or made one of another rank than its configuration says.
        """
        first = self.peft.peft_config[adapters[0]]
        # PEFT copies the first one's settings, but for alpha = r, a scale of 1; with rsLoRA it would be sqrt(r).
        rslora, first.use_rslora = first.use_rslora, False
        try:
            self.peft.base_model.add_weighted_adapter(
                adapters, list(weights), name, combination_type=method, density=density
            )
        finally:
            first.use_rslora = rslora
        for module, layer in self.base.named_modules():
            if not isinstance(layer, LoraLayer) or not {name, *adapters} & set(layer.r):
                continue
            if name not in layer.r:
                raise ValueError(f"{module} is left out, because the first adapter is of some layers only")
            if name not in layer.lora_A:  # an embedding's
                continue
            if not layer.lora_A[name].weight.size(0) == layer.lora_B[name].weight.size(1) == layer.r[name]:
                raise ValueError(f"{module} is of another rank than the rest; cat takes any ranks")
        self._index()
        for parameter in self._parameters_of[name]:
            parameter.data = parameter.data.contiguous()  # as they are saved: svd leaves transposed ones
        self._select(self._active)
        self._set_flags()

    def add_head(self, name: str, head: ScalarHead) -> None:
        """A scalar head, named as the adapter that it belongs to."""
        self.heads[name] = head.to(self.device).requires_grad_(name in self._trained)

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter, without its head."""
        return self._parameters_of[name]

    # ---------------------------------------------------------------- who is active, who learns

    @property
    def peft(self) -> PeftModel:
        """PEFT's model around the base.

        Raises:
            ModelError: no adapter has been added yet.
        """
        if self._peft is None:
            raise ModelError("this backbone has no adapter yet")
        return self._peft

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.device

    @property
    def padding_id(self) -> int:
        """What stands under the mask: the pad token, or token 0 where there is none or the base has no embedding for
        it, as in scripts that add a `[PAD]` without enlarging the model."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self.base.get_input_embeddings().num_embeddings else 0

    @property
    def context_length(self) -> int:
        """The most tokens that the base takes."""
        return context_length(self.config)

    def train_only(self, *names: str, adapters: bool = True) -> None:
        """Adapters and heads of these names learn from now on; all else is frozen, whichever adapter is active.

        Args:
            adapters: False trains the heads alone.
        """
        unknown = set(names) - set(self.adapters) - set(self.heads)
        if unknown:
            raise ModelError(
                f"no adapter or head named {', '.join(sorted(unknown))}; there are {', '.join(self.adapters)}"
            )
        self._trained = frozenset(names)
        self._adapters_learn = adapters
        self._set_flags()

    def train_base(self) -> None:
        """The base itself learns from now on: full fine-tuning.

        Raises:
            ModelError: it has adapters; they learn, and the base that they share is frozen.
        """
        if self._peft is not None:
            raise ModelError("a base with adapters stays frozen; train the adapters, or a model without any")
        if not all(parameter.is_floating_point() for parameter in self.base.parameters()):
            raise ModelError("a quantised base stays as it is; give a peft_config, so that an adapter learns on it")
        self.base.requires_grad_(True)

    @contextlib.contextmanager
    def role(self, name: str | None) -> Iterator[None]:
        """The model as `name` plays it; None is the raw base. Must enclose the backward pass as well as the forward
        pass."""
        before = self._active
        if name != before:
            self._select(name)
        try:
            yield
        finally:
            if name != before:
                self._select(before)

    def _select(self, name: str | None) -> None:
        if self._peft is None and name is not None:
            raise ModelError(f"no adapter named {name}; this backbone has none")
        if name is not None and name not in self.adapters:
            raise ModelError(f"no adapter named {name}; there are {', '.join(self.adapters)}")
        for layer in self._layers:
            # What PEFT's own enable_adapters and set_adapter leave behind, without the flags of all parameters that
            # they rewrite on the way: PPO switches dozens of times an update, at 6 ms a switch (measured).
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self._active = name

    def _index(self) -> None:
        self._lower = None
        self._layers = [module for module in self.base.modules() if isinstance(module, BaseTunerLayer)]
        for layer in self._layers:
            fuse(layer)
        named = [(name, parameter) for name, parameter in self.base.named_parameters() if "lora_" in name]
        self._parameters_of = {a: [p for name, p in named if f".{a}." in name] for a in self.adapters}

    def reindex(self) -> None:
        """Finds the parameters again, after an engine has put others in their place."""
        self._index()

    def _set_flags(self) -> None:
        for name in self.adapters:
            for parameter in self._parameters_of[name]:
                parameter.requires_grad_(self._adapters_learn and name in self._trained)
        for name, head in self.heads.items():
            head.requires_grad_(name in self._trained)

    def without_dropout(self) -> None:
        """Switches every dropout of the base and its adapters off for good.

        PPO compares log-probabilities of rollout and update; a random mask between the two makes ratios that nobody
        sampled (arXiv 2403.17031).
        """
        for module in self.base.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0

    def without_input_casts(self) -> None:
        """Leaves the precision of what goes into the adapters to autocast, for good.

        PEFT casts it to float32 and autocast back again: the same numbers, but the copy is kept for the backward pass
        (138 MiB of 2.3 GiB of a reward step, measured). Without autocast, a bfloat16 base then stops with an error.
        """
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False

    def use_checkpointing(self) -> None:
        """Recompute activations in the backward pass: half the memory for about 13 % of the speed (measured). What is
        recomputed is so under the role of its forward pass, whoever plays by then."""
        options = {"use_reentrant": False, "context_fn": self._roles_of_a_layer}
        # transformers warns of the older name since 5.23, and has no other before.
        enable = getattr(self.base, "activation_checkpointing_enable", self.base.gradient_checkpointing_enable)
        enable(options)

    @property
    def is_checkpointing(self) -> bool:
        """Whether some layer recomputes its activations in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.base.modules())

    def _roles_of_a_layer(
        self,
    ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """For the forward pass of a layer, and for when it is recomputed."""
        return contextlib.nullcontext(), self.role(self._active)

    # ---------------------------------------------------------------- forward

    def settled(self) -> contextlib.AbstractContextManager[None]:
        """Within, for passes without gradients under the role that plays now: adapters and roles stay as they are. See
        `lora_linear`. Layers that processes share are left alone: they have their matrices while they compute only."""
        return settled([] if launch.parted() else self._layers, self.base.dtype, self.device)

    def packed(self) -> contextlib.AbstractContextManager[None]:
        """Within, passes without gradients are quicker on a CPU, most of all those of few rows, for a second copy of
        the layers' matrices in memory; nothing may be trained or loaded meanwhile. See `packed_linear`."""
        return packed(self.decoder)

    @property
    def decoder(self) -> nn.Module:
        """The layers without the output head."""
        return self.base.get_decoder()

    @property
    def lower_layers(self) -> LowerLayers:
        """The layers below every adapter: what they make of a sequence is the same for all roles."""
        if self._lower is None:
            self._lower = self._below().tried(self)
        return self._lower

    def assume_lower_layers(self) -> None:
        """Takes them as they stand, without trying a pass: for tensors that hold no numbers."""
        self._lower = self._below()

    def _below(self) -> LowerLayers:
        number = self.config.get_text_config().num_hidden_layers
        return LowerLayers.below(self.decoder, number, [] if launch.parted() else self._layers)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        lower: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Last hidden states (B, T, H) under the active role.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) bool, True = real; or (B, T, T) bool, whether the token of a row sees that of a
                column.
            position_ids: (B, T). Where they are left out, positions count real tokens only, so that padding on the
                left shifts nothing.
            lower: (B, T, H) what `lower_layers` made of it: these are left out.
        """
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        mask = attention_mask.long() if attention_mask.dim() == 2 else self._additive(attention_mask)
        with contextlib.nullcontext() if lower is None else self.lower_layers.left_out(lower):
            output = self.decoder(
                input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False, **kwargs
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _additive(self, sees: Tensor) -> Tensor:
        """(B, 1, T, T) with 0 where a token is seen and the least number elsewhere: eager attention adds its mask, so
        a boolean one would be wrong there without an error."""
        kind = sees.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.base.dtype
        return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)[
            :, None
        ]

    def log_probs(
        self, hidden: Tensor, tokens: Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, float32 (B, R), of `tokens` (B, R) from the states (B, R, H) that predict
        them; the entropies carry a gradient where `entropy_gradient` is set."""
        weight = self.base.get_output_embeddings().weight
        with launch.whole([weight]):  # no backward pass reads it: the gradients are made in here
            flat_log_probs, flat_entropy = token_log_probs(
                hidden.reshape(-1, hidden.size(-1)),
                weight,
                tokens.reshape(-1),
                temperature=temperature,
                softcap=getattr(self.config.get_text_config(), "final_logit_softcapping", None),
                entropy_gradient=entropy_gradient,
            )
        return flat_log_probs.view(tokens.shape), flat_entropy.view(tokens.shape)

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits (B, V) of the token after the states (B, H); for sampling."""
        logits = self.base.get_output_embeddings()(hidden).float()
        softcap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        return logits if softcap is None else torch.tanh(logits / softcap) * softcap

    @torch.no_grad()
    def check_log_probs(self) -> None:
        """Compares `log_probs` with the model's own logits once, on three tokens.

        Raises:
            ModelError: the architecture does something to its logits that `log_probs` does not know.
        """
        ids = torch.arange(3, 6, device=self.device)[None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        ours, _ = self.log_probs(self(ids, mask)[:, :-1], ids[:, 1:])
        logits = self.base(input_ids=ids, attention_mask=mask.long()).logits.float()
        theirs = torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None]).squeeze(2)
        if not torch.allclose(ours, theirs, atol=0.05, rtol=0.02):
            kind = self.config.model_type
            raise ModelError(
                f"{kind}: the model post-processes its logits in a way that the kit does not know; "
                "it cannot be trained by PPO"
            )


def context_length(config: PretrainedConfig) -> int:
    """The most tokens that a model of this configuration takes; 2**31 where it does not say."""
    found: int = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
    return found


def _is_of(key: str, modules: list[str]) -> bool:
    """Whether a weight stands in one of these modules."""
    return any(f".{module}." in f".{key}" for module in modules)
