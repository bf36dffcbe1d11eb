# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the models of all families share: a vanilla model becomes an evolving one without a copied `forward`."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss, ForTokenClassification

from .configuration_evolving import EvolvingConfig, check_gates_fit
from .evolution import (
    ATTENTION_NAME,
    AttentionEvolution,
    EvolutionState,
    MapConvolution,
    check_built_with,
    evolution_fields,
    is_evolving_name,
)
from .evolution_layer import HeadMixing
from .undocumented import model_mapping, record_outputs


# Of a forward's code, a call of the loss function that gets what the caller gave beside the inputs.
LOSS_WITH_KEYWORDS = re.compile(r"self\.loss_function\((?:[^()]|\([^()]*\))*\*\*")
# Loss functions that divide by the number of labels that they are given. That of sequences does so for some labels only.
COUNTING_LOSSES = (ForCausalLMLoss, ForMaskedLMLoss, ForTokenClassification)


def evolving_forward(forward: Callable) -> Callable:
    """Turns the forward of a vanilla model class into the one of its evolving subclass.

    Each call gets a fresh `EvolutionState`, which reaches the attention modules through the keyword arguments that
    Transformers' models pass down. With `output_attention_maps=True` (argument, or attribute of the config) the output
    also has the maps of each chain under the name that the class gives it in `attention_map_names`, `attention_maps` if
    there is but one chain: a tuple with A_l of each layer, before mask and softmax, (batch, heads, query, key).
    """

    @functools.wraps(forward)
    def forward_with_state(self, *args, output_attention_maps=None, evolution_state=None, **kwargs):
        if evolution_state is not None:  # a head has made it, and will return the maps
            return forward(self, *args, evolution_state=evolution_state, **kwargs)
        if output_attention_maps is None:
            output_attention_maps = getattr(self.config, "output_attention_maps", False)
        keep_weights = kwargs.get("output_attentions")
        if keep_weights is None:
            keep_weights = self.config.output_attentions
        state = EvolutionState(keep_maps=output_attention_maps, keep_weights=keep_weights)
        outputs = forward(self, *args, evolution_state=state, **kwargs)
        return add_maps(outputs, state, self.attention_map_names) if output_attention_maps else outputs

    return forward_with_state


def add_maps(outputs: Any, state: EvolutionState, names: dict[str, str]) -> Any:
    """The output of a model with the maps of each chain, under the names that belong to the chains."""
    maps = {name: state.maps(chain) for chain, name in names.items() if state.maps(chain)}
    if isinstance(outputs, tuple):
        return (*outputs, *maps.values())
    for name, chain_maps in maps.items():
        outputs[name] = chain_maps
    return outputs


def _check_attn_implementation(attn_implementation: str | None) -> str:
    if attn_implementation not in (None, "eager") and not is_evolving_name(attn_implementation):
        raise ValueError(
            f"`attn_implementation` is {attn_implementation!r}, but evolving attention hands the attention scores "
            "from layer to layer, and fused kernels never write them out. Leave it out, or choose "
            '"evolving" ("eager" means the same).'
        )
    return "eager" if attn_implementation == "eager" else ATTENTION_NAME


def _name_to_pipelines(config: EvolvingConfig) -> None:
    """Enters a family's class names into the tables in which `pipeline` looks up whether it supports a model.

    They are those of Transformers' own models, to which `AutoModel.register` adds nothing.
    """
    auto_map = config.family_auto_map or getattr(config, "auto_map", {})
    for auto_name, reference in auto_map.items():
        mapping = model_mapping(getattr(transformers, auto_name))
        if mapping is not None:
            mapping._model_mapping[config.model_type] = reference.split(".")[-1]


def check_gradient_checkpointing(function: Callable | None) -> None:
    """Raises ValueError if a checkpointing function is reentrant."""
    # torch.utils.checkpoint takes a missing value for True.
    if getattr(function, "keywords", {}).get("use_reentrant", True):
        raise ValueError(
            "`use_reentrant=True` cuts the gradient that flows through the attention maps. Use "
            'gradient_checkpointing_kwargs={"use_reentrant": False}.'
        )


class EvolvingPreTrainedModel:
    """What the model base class of every family has beside its vanilla methods. Comes first among the bases."""

    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flex_attn = False

    # Vanilla classes, each with the evolving class that takes its place. That of a model or stack with attention layers
    # has a method `make_chains`, which calls `attach_evolution`.
    evolving_classes: dict[type, type] = {}

    # Under which name the maps of a chain are returned.
    attention_map_names: dict[str, str] = {"self": "attention_maps"}

    def __init__(self, config: EvolvingConfig, *args: Any, **kwargs: Any):
        config.check()
        super().__init__(config, *args, **kwargs)
        _name_to_pipelines(config)

    def post_init(self) -> None:
        """Makes what the vanilla constructor has built evolving, before new weights are initialized.

        A vanilla head has built its vanilla base model, all of whose state an evolving one shares; so the base model
        changes its class in place (as PyTorch's parametrizations and FSDP do), and nothing is built twice.
        """
        for module in list(self.modules()):
            if type(module) in self.evolving_classes:
                module.__class__ = self.evolving_classes[type(module)]
                if isinstance(module, PreTrainedModel):
                    record_outputs(module)
            if hasattr(module, "make_chains") and not getattr(module, "has_chains", False):
                module.make_chains()
                module.has_chains = True
        super().post_init()

    @functools.cached_property  # not a property, so that it can be set
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss is divided by `num_items_in_batch`, the labels of all micro-batches of an accumulation.

        `Trainer` asks, and otherwise divides by the number of micro-batches itself. Without an answer it would take each
        forward with `**kwargs` for one that divides, and multiply the gradient of all others.
        """
        if not getattr(super(), "accepts_loss_kwargs", True):
            return False
        try:
            source = inspect.getsource(type(self).forward)
        except (OSError, TypeError):  # there is no source
            return False
        return LOSS_WITH_KEYWORDS.search(source) is not None and self.loss_function in COUNTING_LOSSES

    @classmethod
    def is_custom_code(cls) -> bool:
        # For custom code Transformers leaves out modules that have no parameter of their own, in case it initializes
        # weights by other means. T5's heads and feed-forward layers are such modules, and would get std 1.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MapConvolution):
            # A family's own rule for convolutions is for another purpose (T5's standard deviation would be 1).
            std = module.initial_std or getattr(self.config, "initializer_range", 0.02)
            if module.starts_as_identity:
                init.copy_(module.weight, module.identity())
            else:
                init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, HeadMixing):
            init.copy_(module.weight, module.identity())
        elif isinstance(module, AttentionEvolution):
            if module.residual_gate is not None:
                init.constant_(module.residual_gate, module.residual_weight)
            if module.conv_gate is not None:
                init.constant_(module.conv_gate, module.conv_weight)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: a field of evolving attention was changed in the configuration after the model was built.
        """
        check_built_with(self.config, self.modules())
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Loads an evolving checkpoint, or a vanilla one, whose evolution modules are then new and listed as missing.

        Raises:
            ValueError: the configuration's number of heads is not the checkpoint's. The weights alone would not show
                it: the shapes of the projections do not depend on it. Or see `check_gates_fit`.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            hub_arguments = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
            checkpoint, _ = PreTrainedConfig.get_config_dict(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in hub_arguments if name in kwargs}
            )
            check_gates_fit(checkpoint, evolution_fields(model.config))
            name = model.config.attribute_map.get("num_attention_heads", "num_attention_heads")
            heads = getattr(model.config, name, None)
            if checkpoint.get(name, heads) != heads:
                raise ValueError(
                    f"The configuration has {name}={heads}, but the checkpoint "
                    f"{pretrained_model_name_or_path} was trained with {checkpoint[name]}. Load the configuration "
                    f"with `{type(model.config).__name__}.from_pretrained({str(pretrained_model_name_or_path)!r})`."
                )
        return loaded

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # so that the two checks below answer, and not a warning of Transformers

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        return _check_attn_implementation(requested_attention)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, allow_all_kernels: bool = False
    ) -> str:
        return _check_attn_implementation(attn_implementation)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        if enable:
            check_gradient_checkpointing(kwargs.get("gradient_checkpointing_func"))
        super()._set_gradient_checkpointing(enable, **kwargs)
