# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`evolve`: any model that uses Transformers' attention interface becomes an evolving one (https://arxiv.org/abs/2102.12895).

Its class is made at run time, and its chains are found by looking at its modules; all else is as in the families.
"""

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_ea_evolved import (
    PREFIX,
    EvolvedConfig,
    MadeFromVanilla,
    evolved_config_class,
    for_every_config_class,
    vanilla_class_of,
)
from .configuration_evolving import HEAD_COUNTS
from .evolution import ATTENTION_NAME, AttentionEvolution, attach_evolution, check_has_convolutions
from .evolution_layer import check_evolution
from .modeling_evolving import (
    EvolvingPreTrainedModel,
    auto_classes_of,
    carry_state_through_checkpoints,
    check_gradient_checkpointing,
)
from .presets import preset_fields
from .undocumented import (
    checkpointing_function,
    forget_renamed_weights,
    model_mapping,
    record_outputs,
    set_attention_function,
)


CROSS_ATTENTION_NAMES = re.compile(r"enc(oder|dec)_?att|cross_?att", re.IGNORECASE)


class EvolvedPreTrainedModel(MadeFromVanilla, EvolvingPreTrainedModel):
    """What evolving models of any type have beside their vanilla methods."""

    @staticmethod
    def _new(vanilla_class: type[PreTrainedModel]) -> "EvolvedPreTrainedModel":
        evolved_class = evolved_model_class(vanilla_class)
        return evolved_class.__new__(evolved_class)

    def make_chains(self) -> None:
        _make_chains(self)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: this is a part of an evolving model, and has a vanilla configuration of its own.
        """
        # Not `isinstance`: in remote code the configuration may be of another copy of its module.
        if self.config.model_type != EvolvedConfig.model_type:
            raise ValueError(
                f"This {type(self).__name__} is a part of an evolving model, and its {type(self.config).__name__} does not say "
                "how it evolves. Save the whole model, or call `evolve` on the part alone."
            )
        super().save_pretrained(*args, **kwargs)


@functools.cache
def evolved_model_class(vanilla_class: type[PreTrainedModel]) -> type[EvolvedPreTrainedModel]:
    """The evolving class of a vanilla one; its `from_pretrained` loads both their checkpoints."""
    namespace = {
        "__module__": __name__,
        "__doc__": f"An evolving {vanilla_class.__name__}; see `evolve`.",
        "vanilla_class": vanilla_class,
        "config_class": evolved_config_class(vanilla_class.config_class),
    }
    return type(PREFIX + vanilla_class.__name__, (EvolvedPreTrainedModel, vanilla_class), namespace)


def register_models(config_class: type[EvolvedConfig]) -> None:
    """Makes every Auto class that knows models of the vanilla configuration know their evolving classes."""
    config_class.family_auto_map = {"AutoConfig": f"configuration_ea_evolved.{config_class.__name__}"}
    vanilla_class = config_class.vanilla_class
    for auto_class, vanilla_models in auto_classes_of(vanilla_class):
        evolved = tuple(evolved_model_class(model) for model in vanilla_models)
        model_mapping(auto_class).register(config_class, evolved if len(evolved) > 1 else evolved[0], exist_ok=True)
        if len(evolved) == 1:
            config_class.family_auto_map[auto_class.__name__] = f"{__name__.split('.')[-1]}.{evolved[0].__name__}"


for_every_config_class(register_models)


def __getattr__(name: str) -> type[EvolvedPreTrainedModel]:
    return evolved_model_class(vanilla_class_of(__name__, name))


# Chains


@dataclass
class Chain:
    """Attention modules whose maps evolve from one to the next, first layer first."""

    name: str
    label: str
    attentions: list[nn.Module]
    num_heads: int
    is_causal: bool
    is_cross_attention: bool


def _attention_function(module: nn.Module) -> Callable | None:
    """The method of a module that looks up Transformers' attention interface, if it has one."""
    for base in type(module).__mro__:
        if base is nn.Module:
            break
        for attribute in vars(base).values():
            code = getattr(inspect.unwrap(attribute), "__code__", None) if callable(attribute) else None
            if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names:
                return inspect.unwrap(attribute)
    return None


def _find_chains(model: PreTrainedModel) -> list[Chain]:
    """The chains of a model: attention modules whose names differ in numbers only, such as "decoder.layers.3.self_attn".

    Raises:
        ValueError: there are none, or one cannot evolve exactly.
    """
    groups: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) and _attention_function(module) is not None:
            groups.setdefault(re.sub(r"\b\d+\b", "#", name), []).append((name, module))
    if not groups:
        raise ValueError(
            f"{type(model).__name__} does not call Transformers' attention interface in any of its modules, so its scores are out "
            "of reach and cannot evolve."
        )
    is_cross = {
        pattern: bool(CROSS_ATTENTION_NAMES.search(pattern) or getattr(members[0][1], "is_cross_attention", False))
        for pattern, members in groups.items()
    }
    self_patterns = [pattern for pattern in groups if not is_cross[pattern]]
    cross_label = "cross" if len(groups) - len(self_patterns) == 1 else None
    chains = []
    for pattern, members in groups.items():
        attentions = [module for _, module in members]
        owner = _owner(model, members[0][0])
        heads = {_num_heads(attention) for attention in attentions}
        if len(heads) > 1:
            raise ValueError(
                f"The layers {pattern!r} of {type(model).__name__} have {sorted(heads)} heads. A map goes on only to a layer with "
                "as many heads."
            )
        siblings = [other for other in self_patterns if _owner(model, groups[other][0][0]) is owner]
        is_causal = any(_is_causal(groups[other][0][1], owner) for other in siblings if is_cross[pattern])
        is_causal = is_causal or (not is_cross[pattern] and _is_causal(attentions[0], owner))
        label = cross_label or pattern if is_cross[pattern] else _label(pattern, self_patterns)
        chains.append(Chain(pattern, label, attentions, heads.pop(), is_causal, is_cross[pattern]))
    return chains


def _owner(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The innermost model around a module."""
    while name:
        name = name.rpartition(".")[0]
        if isinstance(module := model.get_submodule(name), PreTrainedModel):
            return module
    return model


def _num_heads(attention: nn.Module) -> int:
    """Heads of the queries."""
    for place in (attention, attention.config):
        for name in HEAD_COUNTS:
            if isinstance(heads := getattr(place, name, None), int):
                return heads
    raise ValueError(f"{type(attention).__name__} does not say how many heads it has.")


def _is_causal(attention: nn.Module, owner: PreTrainedModel) -> bool:
    if getattr(attention, "is_causal", False) or getattr(attention, "is_decoder", False):
        return True
    # Some only hand the causal mask down.
    names = inspect.unwrap(type(owner).forward).__code__.co_names
    return "create_causal_mask" in names and "create_bidirectional_mask" not in names


def _label(pattern: str, patterns: list[str]) -> str:
    """What tells one self-attention chain from the others: "encoder" or "decoder", "text" or "vision"."""
    if len(patterns) == 1:
        return "self"
    parts, others = pattern.split("."), [other.split(".") for other in patterns if other != pattern]
    for depth, part in enumerate(parts):
        if all(other[depth : depth + 1] != [part] for other in others):
            return part.removesuffix("_model")
    return pattern


def _refuse_what_is_not_exact(model: PreTrainedModel, chains: list[Chain]) -> None:
    """Raises ValueError for what the equations do not cover, as far as it shows before the model runs."""
    name = type(model).__name__
    attentions = [attention for chain in chains for attention in chain.attentions]
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in configs.values():
        window = getattr(config, "sliding_window", None)
        own = [attention for attention in attentions if getattr(attention, "config", None) is config]
        # Modules that know their layer say what becomes of the window: a ModernBERT's configuration always has one.
        know = any(hasattr(attention, "sliding_window") for attention in own)
        windows = {getattr(attention, "sliding_window", window) for attention in own}
        if window is not None and getattr(config, "use_sliding_window", True) and windows != {None}:
            advice = '`layer_types=["full_attention", ...]`, one for each layer' if know else "`sliding_window=None`"
            raise ValueError(
                f"{name} has a sliding window (`sliding_window={window}`), with which evolving attention is not exact. If your "
                f"sequences are shorter, load the model with {advice}."
            )
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "attention"}
        if kinds:
            raise ValueError(
                f"{name} has layers of the kinds {', '.join(sorted(kinds))} (`layer_types`), with which evolving attention is not "
                "exact. All layers must have full attention."
            )
        for field in ("attention_chunk_size", "attn_logit_softcapping"):
            if getattr(config, field, None) is not None:
                raise ValueError(
                    f"{name} has `{field}={getattr(config, field)}`, which the equations of evolving attention do not have."
                )
    layers = getattr(model.config, "num_hidden_layers", None)
    if isinstance(layers, int) and len(attentions) < layers:
        raise ValueError(
            f"{name} has {layers} layers, but only {len(attentions)} attention modules that call the attention interface. Layers "
            "that share a module, as in ALBERT, cannot evolve."
        )
    for chain in chains:
        for attention in chain.attentions:
            _check_own_attention(attention, chain.num_heads)


def _check_own_attention(attention: nn.Module, num_heads: int) -> None:
    """Compares a module's own eager attention function with equation (3) on random numbers.

    Raises:
        ValueError: they differ, as with attention sinks, or the module has none.
    """
    function = _attention_function(attention)
    names = [name for name in function.__code__.co_names if "eager_attention_forward" in name]
    if not names:
        raise ValueError(
            f"{type(attention).__name__} has no eager attention function, with which evolving attention must agree."
        )
    devices = [parameter.device for parameter in attention.parameters() if not parameter.is_meta]
    device = devices[0] if devices else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    key_heads = num_heads // getattr(attention, "num_key_value_groups", 1)
    query, key, value, mask = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((2, num_heads, 3, 4), (2, key_heads, 5, 4), (2, key_heads, 5, 4), (2, 1, 3, 5))
    )
    mask = torch.zeros_like(mask).masked_fill(mask > 1, torch.finfo(mask.dtype).min)
    with torch.no_grad():
        actual, _ = function.__globals__[names[0]](attention, query, key, value, mask, scaling=0.3, dropout=0.0)
        key, value = (states.repeat_interleave(num_heads // key_heads, dim=1) for states in (key, value))
        expected = torch.softmax(torch.matmul(query, key.transpose(2, 3)) * 0.3 + mask, dim=-1).matmul(value)
    if actual.shape != expected.transpose(1, 2).shape or not torch.allclose(
        actual, expected.transpose(1, 2), atol=1e-3
    ):
        raise ValueError(
            f"{type(attention).__name__} does more than softmax(scores + mask), such as attention sinks, which the equations of "
            "evolving attention do not have."
        )


def _make_chains(model: PreTrainedModel) -> None:
    """Gives each attention module its `AttentionEvolution`, and each model within the class that makes states."""
    for chain in _find_chains(model):
        if hasattr(chain.attentions[0], "evolution"):  # a model within has made its own chains already
            continue
        attach_evolution(
            model.config,
            chain.attentions,
            num_heads=chain.num_heads,
            is_causal=chain.is_causal,
            is_cross_attention=chain.is_cross_attention,
            chain=chain.label,
        )
        for attention in chain.attentions:
            attention.evolution.may_be_dropped = True
    attentions = set(_evolving_modules(model))
    for module in list(model.modules()):
        if isinstance(module, PreTrainedModel) and any(part in attentions for part in module.modules()):
            if not isinstance(module, EvolvedPreTrainedModel):
                module.__class__ = evolved_model_class(type(module))
                record_outputs(module)
            module.has_chains = True
            module.attention_map_names = _map_names(module)
            set_attention_function(module.config, ATTENTION_NAME)


def _evolving_modules(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(getattr(module, "evolution", None), AttentionEvolution))


def _map_names(model: PreTrainedModel) -> dict[str, str]:
    """Under which name a model returns the maps of each chain."""
    evolutions = [attention.evolution for attention in _evolving_modules(model)]
    names = {}
    chains = {evolution.chain for evolution in evolutions if not evolution.is_cross_attention}
    for evolution in evolutions:
        is_only = not evolution.is_cross_attention and len(chains) == 1
        names[evolution.chain] = "attention_maps" if is_only else f"{evolution.chain}_attention_maps"
    return names


def _set_configurations(model: nn.Module, copies: dict[int, Any]) -> None:
    """Gives all modules copies of their configurations; modules that share one go on sharing it.

    Args:
        copies: the memo of `copy.deepcopy`, with the copies that there are already.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, PreTrainedConfig):
                vars(module)[name] = copy.deepcopy(value, copies)


def evolve(
    model: PreTrainedModel,
    residual_weight: float | None = None,
    conv_weight: float | None = None,
    kernel_size: int | tuple[int, int] | None = None,
    activation: str | None = None,
    memory_efficient: bool = False,
    mixing: str | None = None,
    conv_groups: int | str | None = None,
    conv_every: int | None = None,
    conv_init: str | None = None,
    post_mixing: str | None = None,
    head_kernel_size: int | None = None,
    kernels: str | None = None,
    preset: str | None = None,
) -> PreTrainedModel:
    """Makes a loaded model evolving, in place: the maps of its attention go from layer to layer.

    It keeps its weights, and what it is: `EvolvedElectraForMaskedLM` is an `ElectraForMaskedLM`. Encoder, decoder,
    cross-attention and the towers of a model are chains of their own. Saved with `save_pretrained`, it is loaded by the Auto
    classes of the vanilla model, in a process that has not imported `ea_hf` with `trust_remote_code=True`. Its configuration
    becomes a copy of its own, so that other models of the same one remain vanilla.

    Args:
        model: a model of Transformers whose attention modules use its attention interface, before `get_peft_model`,
            `torch.compile` and the like.
        residual_weight: share of the previous layer's map, equation (1), in [0, 1]; default 0.1, and 0 in "learned".
        conv_weight: share of the convolution, equation (2), in [0, 1]; default as for `residual_weight`.
        kernel_size: side of the kernel, odd, or (rows, columns); default 3.
        activation: activation after the convolution; default "relu".
        memory_efficient: see `EvolvingConfig`.
        mixing: "convex", the default, "additive" or "learned"; see `EvolvingConfig`.
        conv_groups, conv_every, conv_init, post_mixing, head_kernel_size, kernels: see `EvolvingConfig`.
        preset: name of one of `ea_hf.PRESETS`, for what the other arguments leave open.

    Returns:
        The same model. New convolutions have the device and the type of the attention's weights.

    Raises:
        TypeError: `model` is not a model of Transformers.
        ValueError: see `check_evolution` and `preset_fields`; the model is evolving already, or it has what cannot evolve exactly: attention
            without the interface, sliding windows or chunks, sinks, softcapping, layers that share a module.
    """
    given = {
        "ea_residual_weight": residual_weight,
        "ea_conv_weight": conv_weight,
        "ea_kernel_size": tuple(kernel_size) if isinstance(kernel_size, list) else kernel_size,
        "ea_activation": activation,
        "ea_mixing": mixing,
        "ea_conv_groups": conv_groups,
        "ea_conv_every": conv_every,
        "ea_conv_init": conv_init,
        "ea_post_mixing": post_mixing,
        "ea_head_kernel_size": head_kernel_size,
        "ea_kernels": kernels,
    }
    fields = _all_fields(given, preset)
    values = {name.removeprefix("ea_"): value for name, value in fields.items()}
    check_evolution(**values)
    _refuse_what_is_no_vanilla_model(model)
    chains = _find_chains(model)
    _refuse_what_is_not_exact(model, chains)
    for chain in chains:
        check_evolution(**values, num_heads=chain.num_heads, is_causal=chain.is_causal)
        check_has_convolutions(SimpleNamespace(**fields), len(chain.attentions))
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            check_gradient_checkpointing(checkpointing_function(module))
    _set_evolved_configuration(model, {**fields, "ea_memory_efficient": memory_efficient})
    model.__class__ = evolved_model_class(type(model))
    record_outputs(model)
    forget_renamed_weights(model)
    _make_chains(model)
    carry_state_through_checkpoints(model)
    for attention in _evolving_modules(model):
        weight = next((p for p in attention.parameters() if p.is_floating_point() and p.element_size() > 1), None)
        device, dtype = (model.device, model.dtype) if weight is None else (weight.device, weight.dtype)
        attention.evolution.train(attention.training).to(device=device, dtype=dtype).apply(model._init_weights)
    return model


def _all_fields(given: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """The fields of `EvolvedConfig` with the values that are given, a preset's or the default ones."""
    chosen = preset_fields(preset, **{name: value for name, value in given.items() if value is not None})
    fields = {name: chosen.get(name, getattr(EvolvedConfig, name)) for name in given}
    defaults = (0.0, 0.0) if fields["ea_mixing"] == "learned" else EvolvedConfig.default_weights
    for name, default in zip(("ea_residual_weight", "ea_conv_weight"), defaults, strict=True):
        fields[name] = default if fields[name] is None else fields[name]
    return fields


def _refuse_what_is_no_vanilla_model(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"`evolve` takes a model of Transformers, not a {type(model).__name__}. Call it before the model is wrapped, as "
            "by `get_peft_model` or `torch.compile`."
        )
    if any(isinstance(module, EvolvingPreTrainedModel) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} is evolving already. Its weights are `model.config.ea_residual_weight` and "
            "`model.config.ea_conv_weight`; to change them, save the model and load it with other ones."
        )
    if type(model.config) not in CONFIG_MAPPING.values():
        raise ValueError(
            f"{type(model.config).__name__} is not a configuration of Transformers, so the evolving model could not be loaded again."
        )


def _set_evolved_configuration(model: PreTrainedModel, fields: dict[str, Any]) -> None:
    """Gives a model an evolving copy of its configuration: other models may have been made with the same one."""
    copies: dict[int, Any] = {}
    config = copy.deepcopy(model.config, copies)
    config.__class__ = evolved_config_class(type(config))
    config.forget_foreign_code(vars(config))
    vars(config).pop("model_type", None)  # of the file that it was loaded from
    config.vanilla_model_type = config.vanilla_class.model_type
    for name, value in fields.items():
        setattr(config, name, value)
    _set_configurations(model, copies)
