# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolving attention: the mechanism, and nothing about a model family.

Wang et al., "Evolving Attention with Residual Convolutions", ICML 2021, https://arxiv.org/abs/2102.12895
Wang et al., "Convolution-enhanced Evolving Attention Networks", TPAMI 2023, https://arxiv.org/abs/2212.08330

Layer l of a chain of attention layers has raw scores S_l = Q K^T * scaling (+ position bias). Its attention map is

    M_l = residual_weight * A_{l-1} + (1 - residual_weight) * S_l          the residual,     (1)
    A_l = conv_weight * act(Conv2d(M_l)) + (1 - conv_weight) * M_l         the convolution,  (2)
    P_l = dropout(softmax(A_l + mask)),   output = P_l V                   plain attention,  (3)

and A_l goes on to layer l+1. All maps are (batch, heads, query, key); the heads are the channels of the convolution.
That is the mixing "convex". In "additive" and "learned" nothing is taken away from what is there already,

    M_l = S_l + residual_weight * A_{l-1}                                                   (1')
    A_l = M_l + conv_weight * act(Conv2d(M_l))                                              (2')

where "learned" has one weight per layer and head, parameters that start at `residual_weight` and `conv_weight`.
The first layer of a chain has no predecessor and owns no convolution: A_1 = M_1 = S_1. The carried map knows neither
mask nor softmax nor dropout. Wherever attention is not allowed (padded keys, padded queries, the future), the
convolution sees zeros, so that a padded batch gives each token what it gets alone and no token sees a later one.
"""

import copy
import functools
import inspect
import logging
import re
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import Cache

from .evolution_blocks import Layer, Tensors
from .evolution_cache import CROPPABLE_ROWS, EvolvingCacheLayer, evolving_cache_layer
from .evolution_fast import EvolvingAttention, decode, infer
from .evolution_layer import AttentionEvolution, MapConvolution, has_convolution, per_head
from .evolution_operators import attend, attend_with_gradients
from .evolution_state import EvolutionState, is_traced, mask_checks_are_deferred, running_state
from .undocumented import (
    has_hooks,
    is_in_function_transform,
    is_plain_tensor,
    own_parameters,
    sdpa_mask,
    set_attention_function,
)


logger = logging.getLogger(__name__)

# What attention functions are given beside their documented arguments and what changes neither scores nor softmax.
HARMLESS_ARGUMENTS = {
    "cache_position",
    "deterministic",
    "is_causal",
    "labels",  # Seq2SeqTrainer gives them to `generate`, which hands them to the encoder
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
# Of those that do, some by name.
FOREIGN_ARGUMENTS = {
    "softcap": "softcapping of the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "sliding_window": "a sliding window",
    "head_mask": "a head mask",
    "layer_head_mask": "a head mask",
    "cu_seq_lens_q": "packed sequences",
    "cu_seqlens": "packed sequences",
    "block_table": "a paged cache",
    "cache": "a paged cache",
}


def evolving_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention function that Transformers finds under `ATTENTION_NAME`: equations (1) to (3).

    Previous maps and caches are in the `EvolutionState` of the forward pass that is running.

    Args:
        module: the attention module; owns an `AttentionEvolution` as `module.evolution`.
        query: (batch, heads, query, head_dim).
        key: (batch, key_heads, key, head_dim). If they are fewer than `heads`, each is for as many queries' heads in a row.
        value: (batch, key_heads, key, head_dim).
        attention_mask: broadcastable to (batch, heads, query, key); boolean, True where a query may attend, or
            additive, where -10000 and below mean that it may not.
        scaling: factor of the scores; `head_dim ** -0.5` if `None`.
        dropout: probability of dropping an attention weight in training.
        position_bias: added to the scores, and so part of the map, (batch or 1, heads, query, key).

    Returns:
        The attention output, (batch, query, heads, head_dim), and the attention weights P_l,
        (batch, heads, query, key), or `None` where a faster path never holds them whole and nobody asked for them.

    Raises:
        RuntimeError: the module has no `evolution`, or runs without its model.
        ValueError: what the attention is to do is not part of the equations, see `FOREIGN_ARGUMENTS`; the mask is of an
            integer type; see also `evolving_cache_layer`.
    """
    evolution, state = getattr(module, "evolution", None), running_state()
    if evolution is None:
        raise RuntimeError(
            f'{type(module).__name__} runs with attn_implementation="evolving" but has no `evolution` module. Use a model of '
            "`ea_hf`, such as `EABertModel`, or `ea_hf.evolve`."
        )
    if state is None:
        raise RuntimeError(
            f"{type(module).__name__} was called without a forward pass of its model, so there is no map of the layer before. "
            "Call the model, not its layers; recompute activations with `model.activation_checkpointing_enable()`."
        )
    _check_arguments(module, query, attention_mask, kwargs)
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropout = dropout if module.training else 0.0
    queries, keys = query.shape[-2], key.shape[-2]
    cache = past_length = None
    if state.cache is not None and (evolution.needs_cache or not evolution.is_cross_attention):
        cache = evolving_cache_layer(state.cache, module.layer_idx, queries)
        past_length = cache.get_seq_length() - queries
    previous = state.previous(evolution, query.device)
    blocked = state.where_blocked(evolution, queries, keys, attention_mask, past_length)
    if not evolution.needs_cache:
        cache = None
    if blocked is None and attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = None  # it hides nothing
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    if _needs_reference(evolution, state, cache, tensors, dropout):
        output, evolved, weights = _reference_attention(evolution, cache, tensors, scaling, dropout)
    else:
        decodes = cache is not None and cache.holds_rows(queries)
        if cache is not None and not decodes:
            _fill_cache(evolution, cache, tensors, scaling)
        if is_traced():
            tensors = state.with_held_masks(evolution, tensors)
        output, evolved = _fast_attention(evolution, tensors, scaling, dropout, cache if decodes else None)
        weights = None
    state.store(evolution, evolved)
    return output, weights


def _check_arguments(
    module: nn.Module, query: torch.Tensor, attention_mask: torch.Tensor | None, arguments: dict[str, Any]
) -> None:
    for name, value in arguments.items():
        if value is not None and value is not False and name not in HARMLESS_ARGUMENTS:
            meaning = FOREIGN_ARGUMENTS.get(name, "something that the equations do not have")
            raise ValueError(
                f"{type(module).__name__} asks for {meaning} (`{name}`), which evolving attention cannot do."
            )
    evolution = module.evolution
    if attention_mask is None and arguments.get("is_causal") and not evolution.is_causal:
        raise ValueError(
            f"{type(module).__name__} is causal without an attention mask, which evolving attention needs to see."
        )
    if evolution.num_heads != query.shape[1]:
        raise ValueError(
            f"{type(module).__name__} attends with {query.shape[1]} heads, but says that it has {evolution.num_heads}."
        )


def _needs_reference(
    evolution: AttentionEvolution,
    state: EvolutionState,
    cache: EvolvingCacheLayer | None,
    tensors: Tensors,
    dropout: float,
) -> bool:
    """The one place that decides which path runs: whether these equations as they stand, or `evolution_fast`."""
    mask = tensors.attention_mask
    floats = (tensors.key, tensors.value, tensors.previous)
    return (
        (is_traced() and not _keeps_operators(evolution, cache, tensors))
        or tensors.query.is_meta  # shapes without numbers
        or not _is_plain(evolution, tensors.query.device)
        or state.keep_maps
        or state.keep_weights
        or (dropout > 0 and not torch.is_grad_enabled())  # the fast paths drop in training alone
        or (cache is not None and cache.holds_rows(tensors.query.shape[-2]) and not _is_decoding_step(tensors))
        or (evolution.conv is not None and not evolution.is_relu)  # only ReLU allows folding
        or (mask is not None and mask.dtype != torch.bool)
        or any(tensor is not None and tensor.dtype != tensors.query.dtype for tensor in floats)
        or evolution.post_mixing is not None
        # A compiler cannot look at learned weights; where all are 0 the operator then gives the same but for rounding.
        or (not (is_traced() and len(evolution.gates) > 0) and evolution.is_vanilla)
    )


def _is_decoding_step(tensors: Tensors) -> bool:
    """Whether a call that needs the rows of earlier ones has few rows itself, and no gradients."""
    return not torch.is_grad_enabled() and tensors.query.shape[-2] <= CROPPABLE_ROWS


def _keeps_operators(evolution: AttentionEvolution, cache: EvolvingCacheLayer | None, tensors: Tensors) -> bool:
    """Whether what is traced may call the fast paths as operators.

    Exported files hold the equations, so that they need nothing but PyTorch.
    """
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        # Elsewhere PyTorch's operations were not timed as operators.
        and (tensors.query.device.type == "cpu" or _runs_triton(evolution, tensors))
        and cache is None
        and not is_in_function_transform()
    )


def _is_plain(evolution: AttentionEvolution, device: torch.device) -> bool:
    """Whether the modules of a layer's step are as they were made, so that the fast paths may read their parameters.

    They are not where others stand around them: hooks, offloading (which swaps `forward` or leaves weights elsewhere),
    parametrizations, quantized weights, adapters.
    """
    for module, its_type in ((evolution, AttentionEvolution), (evolution.conv, MapConvolution)):
        if module is None:
            continue
        if type(module) is not its_type or "forward" in vars(module) or has_hooks(module):
            return False
        for parameter in own_parameters(module):
            if parameter is not None and (not is_plain_tensor(parameter) or parameter.device != device):
                return False
    return not has_hooks(evolution.activation) and "forward" not in vars(evolution.activation)


def _reference_attention(
    evolution: AttentionEvolution,
    cache: EvolvingCacheLayer | None,
    tensors: Tensors,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, A_l and P_l, as the equations say."""
    query, key, value, previous, position_bias, attention_mask, blocked = tensors
    scores = torch.matmul(query, key.transpose(-2, -1)) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    evolved = evolution(scores, previous, blocked, cache)
    logits = evolved
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            # The lowest finite number: a row that may attend nowhere becomes uniform, not NaN, as in eager attention.
            logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
        else:
            logits = logits + attention_mask
    softmax_dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = nn.functional.softmax(logits, dim=-1, dtype=softmax_dtype).to(value.dtype)
    if evolution.post_mixing is not None:
        weights = evolution.post_mixing(weights)
    weights = nn.functional.dropout(weights, p=dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), evolved, weights


def _fast_attention(
    evolution: AttentionEvolution,
    tensors: Tensors,
    scaling: float,
    dropout: float,
    cache: EvolvingCacheLayer | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and A_l, by `evolution_fast`, all in the query's dtype: under autocast T5's position bias has another.

    Args:
        cache: holds the rows above, in a step of decoding.
    """
    if tensors.position_bias is not None:
        tensors = tensors._replace(position_bias=tensors.position_bias.to(tensors.query.dtype))
    layer = Layer(
        scaling,
        evolution.residual_weight,
        evolution.conv_weight,
        evolution.kernel_rows,
        evolution.kernel_columns,
        evolution.is_causal,
        evolution.mixing,
        1 if evolution.conv is None else evolution.conv.groups,
    )
    kernel, bias = (None, None) if evolution.conv is None else (evolution.conv.weight, evolution.conv.bias)
    gates = [
        None if gate is None else per_head(0.0, gate, tensors.query.dtype)
        for gate in (evolution.residual_gate, evolution.conv_gate)
    ]
    device_type = tensors.query.device.type
    # To enter the context costs a step of decoding more than to ask.
    is_autocast = torch.is_autocast_enabled(device_type)
    with torch.autocast(device_type, enabled=False) if is_autocast else nullcontext():
        arguments = (kernel, bias, *gates, layer, dropout, evolution.memory_efficient)
        if cache is None and _runs_triton(evolution, tensors):
            from .evolution_triton import attend_by_triton

            return attend_by_triton(tensors, *arguments)
        if torch.is_grad_enabled():
            if is_traced():
                return attend_with_gradients(tensors, *arguments)
            return EvolvingAttention.apply(*tensors, *arguments)
        if cache is not None:
            rows_above = evolution.kernel_rows - 1
            return decode(
                tensors,
                evolution.conv,
                *gates,
                layer,
                lambda image: cache.prepend_rows(evolution.chain, image, rows_above),
            )
        return (attend if is_traced() else infer)(tensors, kernel, bias, *gates, layer)


def _runs_triton(evolution: AttentionEvolution, tensors: Tensors) -> bool:
    """Whether the kernels in Triton are to run, and can; a warning says once why not."""
    if evolution.kernels != "triton":
        return False
    from .evolution_triton import obstacle  # not before: it loads a compiler

    reason = obstacle(tensors.query, tensors.key, tensors.value, tensors.blocked)
    if reason is not None and not is_traced():
        _tell_once(f'`ea_kernels` is "triton", but PyTorch\'s operations are used instead: {reason}.')
    return reason is None


@functools.cache
def _tell_once(message: str) -> None:
    logger.warning(message)


def _fill_cache(evolution: AttentionEvolution, cache: EvolvingCacheLayer, tensors: Tensors, scaling: float) -> None:
    """Puts the last rows of M_l into an empty cache; the fast paths do not hand them out."""
    rows_above = evolution.kernel_rows - 1
    last = slice(max(0, tensors.query.shape[-2] - rows_above - CROPPABLE_ROWS), None)
    scores = torch.matmul(tensors.query[:, :, last], tensors.key.transpose(-2, -1)) * scaling
    if tensors.position_bias is not None:
        scores = scores + tensors.position_bias[:, :, last]
    image = evolution.mix(scores, None if tensors.previous is None else tensors.previous[:, :, last])
    if tensors.blocked is not None:
        image = image.masked_fill(tensors.blocked[..., last, :], 0.0)
    cache.keep_rows(evolution.chain, image, rows_above)


def evolving_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask function under `ATTENTION_NAME`: boolean, (batch, 1, query, key), True where a query may attend.

    Always written out for causal attention, since the convolution must know what is masked; `None` for a
    bidirectional batch without padding, unless nobody is to wait for an accelerator to find that out, or `vmap` is not to look.
    """
    kwargs["allow_is_causal_skip"] = False
    if mask_checks_are_deferred() or is_in_function_transform():
        kwargs["allow_is_bidirectional_skip"] = False
    return sdpa_mask(*args, **kwargs)


def attention_name(name: str) -> str:
    """Under which name this copy of the file registers an attention function with Transformers.

    Transformers finds a function by one name in the whole process. A checkpoint's remote code is another copy of this file,
    perhaps of another version, so each copy but the package's has names of its own.
    """
    return name if __name__ == "ea_hf.models.evolution" else f"{name}_{zlib.crc32(__name__.encode()):08x}"


ATTENTION_NAME = attention_name("evolving")
AttentionInterface.register(ATTENTION_NAME, evolving_attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, evolving_mask)


def is_evolving_name(attn_implementation: str) -> bool:
    """Whether it is the name of evolving attention, in this or in another copy of this file."""
    return re.fullmatch(r"evolving(_[0-9a-f]{8})?", attn_implementation) is not None


def attach_evolution(
    config: PreTrainedConfig,
    attentions: Iterable[nn.Module],
    is_on: bool = True,
    num_heads: int | None = None,
    **kwargs: Any,
) -> None:
    """Makes a chain: gives each attention module its `AttentionEvolution`, as `module.evolution`.

    Args:
        config: an `EvolvingConfig`, which holds the weights, the kernel size and the activation.
        attentions: the attention modules of one chain, first layer first.
        is_on: whether its maps evolve; otherwise its attention is plain.
        num_heads: `config.num_attention_heads` if `None`.
        kwargs: `is_causal`, `is_cross_attention` and `chain` of `AttentionEvolution`.
    """
    arguments = evolution_arguments(config)
    if not is_on:
        arguments = {"residual_weight": 0.0, "conv_weight": 0.0, "memory_efficient": config.ea_memory_efficient}
    attentions = list(attentions)
    if is_on:
        check_has_convolutions(config, len(attentions))
        _tell_if_inert(config, len(attentions))
    for layer_index, attention in enumerate(attentions):
        # An attention module asks its configuration which function to call. It gets one of its own, so that it evolves
        # whatever the model's says: Transformers writes "eager" there when attentions are to be returned.
        attention.config = copy.copy(getattr(attention, "config", config))
        set_attention_function(attention.config, ATTENTION_NAME)
        heads = config.num_attention_heads if num_heads is None else num_heads
        attention.evolution = AttentionEvolution(heads, layer_index, **arguments, **kwargs)
        attention.evolution.built_with = evolution_fields(config)
        attention.evolution.argument_names = tuple(inspect.signature(type(attention).forward).parameters)[1:]
        attention.register_forward_pre_hook(_note_cache, with_kwargs=True)


def _tell_if_inert(config: PreTrainedConfig, layers: int) -> None:
    """Warns of a chain in which nothing evolves though it is to: of one layer, without a map before it."""
    is_wanted = config.ea_mixing == "learned" or config.ea_residual_weight != 0 or config.ea_conv_weight != 0
    if layers == 1 and is_wanted and not has_convolution(0, config.ea_conv_every) and config.ea_post_mixing == "none":
        logger.warning("A chain of attention has one layer only, to which no map comes, so nothing in it evolves.")


def _note_cache(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Hook before an attention module: the attention function needs the cache, which only the module gets.

    It is known by its type: its name is not the same in all models and versions of Transformers.
    """
    state = running_state()
    if state is None:
        return
    arguments = {**dict(zip(module.evolution.argument_names, args, strict=False)), **kwargs}
    state.cache = next((value for value in arguments.values() if isinstance(value, Cache)), None)
    if state.cache is not None and getattr(module, "layer_idx", None) is None:
        raise ValueError(
            f"{type(module).__name__} has no `layer_idx`, by which a cache would hold its maps. Use no cache."
        )
    has_other_keys = any(arguments.get(name) is not None for name in ("key_value_states", "encoder_hidden_states"))
    if has_other_keys != module.evolution.is_cross_attention:
        expected = ("cross" if module.evolution.is_cross_attention else "self") + "-attention"
        raise ValueError(f"{type(module).__name__} is used as other than {expected}, which its evolution is for.")


def evolution_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """The arguments of `AttentionEvolution` that a configuration says."""
    names = inspect.signature(AttentionEvolution).parameters
    fields = {name.removeprefix("ea_"): value for name, value in evolution_fields(config).items()}
    return {name: value for name, value in fields.items() if name in names}


def check_has_convolutions(config: PreTrainedConfig, layers: int) -> None:
    """Raises ValueError if so few layers would have no convolution, which is asked for."""
    every = config.ea_conv_every
    is_wanted = every is not None and (config.ea_mixing == "learned" or config.ea_conv_weight != 0)
    if is_wanted and layers > 0 and not any(has_convolution(index, every) for index in range(layers)):
        raise ValueError(
            f"`ea_conv_every` is {every}, but a chain has {layers} layers, none of which would have a convolution. Choose at "
            f"most {max(1, 2 * layers - 1)}."
        )


def evolution_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of evolving attention."""
    return {name: value for name, value in vars(config).items() if name.startswith("ea_")}


def check_built_with(config: PreTrainedConfig, modules: Iterable[nn.Module]) -> None:
    """Raises ValueError if a configuration says something else of evolving attention than what modules were built with."""
    for module in modules:
        built_with = getattr(module, "built_with", None) if isinstance(module, AttentionEvolution) else None
        for name, value in (built_with or {}).items():
            if getattr(config, name, value) != value:
                raise ValueError(
                    f"`config.{name}` is {getattr(config, name)!r}, but the model was built with {value!r}; a change of the "
                    f"configuration does not reach the layers. Set it back, save the model, and load it with `{name}=...`."
                )
