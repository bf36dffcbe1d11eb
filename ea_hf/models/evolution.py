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
import inspect
import math
import re
import zlib
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from .evolution_cache import CROPPABLE_ROWS, EvolvingCacheLayer, evolving_cache_layer
from .evolution_fast import EvolvingAttention, Layer, Tensors, infer
from .evolution_state import EvolutionState, is_traced, running_state
from .undocumented import has_hooks, is_plain_tensor, set_attention_function


# What attention functions are given beside their documented arguments and what changes neither scores nor softmax.
HARMLESS_ARGUMENTS = {
    "cache_position",
    "deterministic",
    "is_causal",
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

MIXINGS = ("convex", "additive", "learned")
# Of new kernels in "learned": where a convolution's weight starts at 0, its first gradient is what the kernel gives.
LEARNED_KERNEL_STD = 0.1


def check_evolution(
    residual_weight: float, conv_weight: float, kernel_size: int, activation: str, mixing: str = "convex"
) -> None:
    """Checks the values of the mechanism.

    Raises:
        ValueError: an unknown mixing; a weight that is no number in [0, 1] ("convex") or no finite number (otherwise); a
            kernel size that is no odd positive integer; an activation that `transformers.activations.ACT2FN` does not know.
    """
    if mixing not in MIXINGS:
        raise ValueError(f"`ea_mixing` is {mixing!r}; choose one of {', '.join(MIXINGS)}.")
    for name, weight in (("ea_residual_weight", residual_weight), ("ea_conv_weight", conv_weight)):
        if not (isinstance(weight, Real) and math.isfinite(weight)):
            raise ValueError(
                f"`{name}` is {weight!r}; choose a {'number between 0 and 1' if mixing == 'convex' else 'finite number'}."
            )
        if mixing == "convex" and not 0.0 <= weight <= 1.0:
            raise ValueError(
                f'`{name}` is {weight!r}; choose a number between 0 and 1, or the mixing "additive" (`ea_mixing`).'
            )
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"`ea_kernel_size` is {kernel_size!r}; choose an odd positive integer such as 3.")
    if activation not in ACT2FN:
        raise ValueError(f"`ea_activation` is {activation!r}; choose one of {', '.join(sorted(ACT2FN))}.")


class MapConvolution(nn.Conv2d):
    """The convolution over maps, heads as channels. By its type it is known when weights are initialized."""

    initial_std: float | None = None  # the model's `initializer_range`


class AttentionEvolution(nn.Module):
    """One layer's step of evolving attention: from raw scores S_l to the evolved map A_l, equations (1) and (2).

    Args:
        num_heads: number of attention heads, the channels of the convolution.
        layer_index: position in the chain, from 0. Layer 0 passes its scores on as they are and owns no convolution,
            as in the authors' release; neither does a layer whose `conv_weight` is 0 and stays so. So every parameter
            gets a gradient, which DistributedDataParallel requires.
        residual_weight: share of the previous layer's map in M_l, in [0, 1] (called beta in the authors' code). With
            another mixing its factor, any number; in "learned" the one that `residual_gate` starts with.
        conv_weight: share of the convolution in A_l, in [0, 1] (called alpha in the authors' code). With another mixing
            its factor, any number; in "learned" the one that `conv_gate` starts with.
        kernel_size: side of the square kernel, odd. A kernel of 1 mixes heads only.
        activation: name of the activation after the convolution.
        is_causal: whether a query may see earlier query rows only (a decoder's self- and cross-attention). The
            convolution then has `kernel_size - 1` rows of padding above the map and none below it.
        is_cross_attention: whether the keys belong to another sequence than the queries.
        chain: name of the chain, for models that have several; "cross" or "self" if `None`.
        memory_efficient: whether training saves less and computes more; see `evolution_fast.EvolvingAttention`.
        mixing: "convex", equations (1) and (2), "additive" or "learned", equations (1') and (2').

    Attributes:
        may_be_dropped: whether the model may leave the layer out in training (LayerDrop); False, but where `evolve` sets it.
        residual_gate, conv_gate: (heads,), the weights of "learned", in every layer but the first; otherwise `None`.

    Raises:
        ValueError: see `check_evolution`.
    """

    def __init__(
        self,
        num_heads: int,
        layer_index: int,
        residual_weight: float = 0.1,
        conv_weight: float = 0.1,
        kernel_size: int = 3,
        activation: str = "relu",
        is_causal: bool = False,
        is_cross_attention: bool = False,
        chain: str | None = None,
        memory_efficient: bool = False,
        mixing: str = "convex",
    ):
        super().__init__()
        check_evolution(residual_weight, conv_weight, kernel_size, activation, mixing)
        self.mixing = mixing
        self.layer_index = layer_index
        self.residual_weight = residual_weight
        self.conv_weight = conv_weight
        self.memory_efficient = memory_efficient
        self.kernel_size = kernel_size
        self.is_causal = is_causal
        self.is_cross_attention = is_cross_attention
        self.chain = chain or ("cross" if is_cross_attention else "self")
        self.activation = ACT2FN[activation]
        self.is_relu = activation == "relu"
        self.is_first = layer_index == 0
        self.may_be_dropped = False
        self.conv = self.residual_gate = self.conv_gate = None
        is_learned = mixing == "learned"
        if layer_index > 0 and (is_learned or conv_weight != 0):
            padding = (0 if is_causal else kernel_size // 2, kernel_size // 2)
            self.conv = MapConvolution(num_heads, num_heads, kernel_size, padding=padding)
        if layer_index > 0 and is_learned:
            self.conv.initial_std = LEARNED_KERNEL_STD
            self.residual_gate = nn.Parameter(torch.full((num_heads,), float(residual_weight)))
            self.conv_gate = nn.Parameter(torch.full((num_heads,), float(conv_weight)))
        self._gates_have_moved = False
        self._seen_gates: tuple[tuple[int, ...], bool] | None = None

    def forward(
        self,
        scores: torch.Tensor,
        previous: torch.Tensor | None = None,
        blocked: torch.Tensor | None = None,
        cache: EvolvingCacheLayer | None = None,
    ) -> torch.Tensor:
        """
        Args:
            scores: S_l, (batch, heads, query, key).
            previous: A_{l-1}, same shape; `None` in the first layer, and where the layer takes none.
            blocked: boolean, broadcastable to (batch, 1, query, key); True where the convolution must see zeros.
            cache: holds the rows of M_l before this call, where a causal layer decodes step by step.

        Returns:
            A_l, (batch, heads, query, key).
        """
        mixed = self.mix(scores, previous)
        if self.conv is None:
            return mixed
        image = mixed if blocked is None else mixed.masked_fill(blocked, 0.0)
        if self.is_causal:
            rows_above = self.kernel_size - 1
            if cache is None:
                image = nn.functional.pad(image, (0, 0, rows_above, 0))
            else:
                image = cache.prepend_rows(self.chain, image, rows_above)
        convolved = self.activation(self.conv(image))
        if self.mixing == "convex":
            return self.conv_weight * convolved + (1 - self.conv_weight) * mixed
        return mixed + _per_head(self.conv_weight, self.conv_gate, mixed.dtype) * convolved

    def mix(self, scores: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        """M_l, equation (1); arguments as for `forward`."""
        if previous is None:
            return scores
        if self.mixing == "convex":
            return self.residual_weight * previous + (1 - self.residual_weight) * scores
        return scores + _per_head(self.residual_weight, self.residual_gate, scores.dtype) * previous

    @property
    def takes_maps(self) -> bool:
        """Whether a layer of this chain takes the map of the one before it."""
        return self.mixing == "learned" or self.residual_weight != 0

    @property
    def is_vanilla(self) -> bool:
        """Whether the layer's attention is plain, which then is to be so to the last bits."""
        if self.mixing != "learned":
            return self.residual_weight == self.conv_weight == 0
        if self.residual_gate is None:  # the first layer, plain as long as the others are, of which it does not know
            return True
        return self._gates_are_zero()

    def _gates_are_zero(self) -> bool:
        """Looks at the gates only when they may have changed: a look makes an accelerator wait.

        In training not again once they have moved. Inference looks again at parameters that were written to.
        """
        gates = (self.residual_gate, self.conv_gate)
        is_learning = torch.is_grad_enabled() and any(gate.requires_grad for gate in gates)
        if is_learning and self._gates_have_moved:
            return False
        key = None
        if not is_learning and not any(gate.is_inference() for gate in gates):
            key = tuple(number for gate in gates for number in (id(gate), gate._version))
            if self._seen_gates is not None and self._seen_gates[0] == key:
                return self._seen_gates[1]
        are_zero = not any(gate.any() for gate in gates)
        self._gates_have_moved = not are_zero
        self._seen_gates = None if key is None else (key, are_zero)
        return are_zero

    @property
    def needs_cache(self) -> bool:
        """Whether a step of decoding needs rows of the steps before it."""
        return self.is_causal and self.conv is not None and self.kernel_size > 1

    def extra_repr(self) -> str:
        return (
            f"{self.chain}, layer_index={self.layer_index}, mixing={self.mixing}, "
            f"residual_weight={self.residual_weight}, conv_weight={self.conv_weight}"
        )


def _per_head(weight: float, gate: torch.Tensor | None, dtype: torch.dtype) -> float | torch.Tensor:
    """A weight that multiplies maps of a type; under autocast parameters have another."""
    return weight if gate is None else gate.to(dtype).view(-1, 1, 1)


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
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    if _needs_reference(evolution, state, cache, tensors):
        output, evolved, weights = _reference_attention(evolution, cache, tensors, scaling, dropout)
    else:
        if cache is not None:
            _fill_cache(evolution, cache, tensors, scaling)
        output, evolved = _fast_attention(evolution, tensors, scaling, dropout)
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
    if evolution.conv is not None and evolution.conv.in_channels != query.shape[1]:
        raise ValueError(
            f"{type(module).__name__} attends with {query.shape[1]} heads, but says that it has {evolution.conv.in_channels}."
        )


def _needs_reference(
    evolution: AttentionEvolution, state: EvolutionState, cache: EvolvingCacheLayer | None, tensors: Tensors
) -> bool:
    """The one place that decides which path runs: whether these equations as they stand, or `evolution_fast`."""
    mask = tensors.attention_mask
    floats = (tensors.key, tensors.value, tensors.previous)
    return (
        is_traced()  # compilers fuse the equations by themselves, and exported graphs should show them
        or tensors.query.is_meta  # shapes without numbers
        or not _is_plain(evolution, tensors.query.device)
        or state.keep_maps
        or state.keep_weights
        or (cache is not None and cache.holds_rows(tensors.query.shape[-2]))  # a step of decoding has few rows
        or (evolution.conv is not None and not evolution.is_relu)  # only ReLU allows folding
        or (mask is not None and mask.dtype != torch.bool)
        or any(tensor is not None and tensor.dtype != tensors.query.dtype for tensor in floats)
        or evolution.is_vanilla
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
        for parameter in module.parameters(recurse=False):
            if not is_plain_tensor(parameter) or parameter.device != device:
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
    weights = nn.functional.dropout(weights, p=dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), evolved, weights


def _fast_attention(
    evolution: AttentionEvolution, tensors: Tensors, scaling: float, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and A_l, by `evolution_fast`, all in the query's dtype: under autocast T5's position bias has another."""
    if tensors.position_bias is not None:
        tensors = tensors._replace(position_bias=tensors.position_bias.to(tensors.query.dtype))
    layer = Layer(
        scaling,
        evolution.residual_weight,
        evolution.conv_weight,
        evolution.kernel_size,
        evolution.is_causal,
        evolution.mixing,
    )
    kernel, bias = (None, None) if evolution.conv is None else (evolution.conv.weight, evolution.conv.bias)
    gates = [
        None if gate is None else _per_head(0.0, gate, tensors.query.dtype)
        for gate in (evolution.residual_gate, evolution.conv_gate)
    ]
    with torch.autocast(tensors.query.device.type, enabled=False):
        if torch.is_grad_enabled():
            return EvolvingAttention.apply(*tensors, kernel, bias, *gates, layer, dropout, evolution.memory_efficient)
        return infer(tensors, kernel, bias, *gates, layer)


def _fill_cache(evolution: AttentionEvolution, cache: EvolvingCacheLayer, tensors: Tensors, scaling: float) -> None:
    """Puts the last rows of M_l into an empty cache; the fast paths do not hand them out."""
    rows_above = evolution.kernel_size - 1
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
    bidirectional batch without padding.
    """
    kwargs["allow_is_causal_skip"] = False
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
    for layer_index, attention in enumerate(attentions):
        # An attention module asks its configuration which function to call. It gets one of its own, so that it evolves
        # whatever the model's says: Transformers writes "eager" there when attentions are to be returned.
        attention.config = copy.copy(getattr(attention, "config", config))
        set_attention_function(attention.config, ATTENTION_NAME)
        attention.evolution = AttentionEvolution(
            config.num_attention_heads if num_heads is None else num_heads,
            layer_index,
            residual_weight=config.ea_residual_weight if is_on else 0.0,
            conv_weight=config.ea_conv_weight if is_on else 0.0,
            kernel_size=config.ea_kernel_size,
            activation=config.ea_activation,
            memory_efficient=config.ea_memory_efficient,
            mixing=config.ea_mixing if is_on else "convex",
            **kwargs,
        )
        attention.evolution.built_with = evolution_fields(config)
        attention.evolution.argument_names = tuple(inspect.signature(type(attention).forward).parameters)[1:]
        attention.register_forward_pre_hook(_note_cache, with_kwargs=True)


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
