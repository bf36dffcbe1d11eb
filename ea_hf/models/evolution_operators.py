# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The passes of `evolution_fast.py` as operators of PyTorch, which compilers call as they are instead of taking them apart.

Left to a compiler, the equations hold several maps at once, and their convolution is not done by blocks.
"""

import math
import zlib
from typing import Any

import torch

from .evolution_blocks import Layer, Tensors, prepare
from .evolution_fast import Backward, infer, saved_maps
from .evolution_fast import attend as attend_by_blocks


def namespace(module_name: str) -> str:
    """Where a copy of this file registers its operators, which have one name in the whole process; see `attention_name`."""
    is_own = module_name.startswith("ea_hf.models.")
    return "ea_hf" if is_own else f"ea_hf_{zlib.crc32(module_name.encode()):08x}"


def without_idle_masks(tensors: Tensors) -> Tensors:
    """Without masks that hide nothing. A graph keeps them, since to look into them would break it; an operator may look."""
    mask, blocked = tensors.attention_mask, tensors.blocked
    if tensors.query.device.type != "cpu":  # where the answer would have to be waited for
        return tensors
    # As bytes, whose extremes are found many times as fast as `all` and `any`.
    mask = None if mask is not None and mask.numel() and mask.view(torch.uint8).amin() > 0 else mask
    blocked = None if blocked is not None and blocked.numel() and blocked.view(torch.uint8).amax() == 0 else blocked
    return tensors._replace(attention_mask=mask, blocked=blocked)


@torch.library.custom_op(f"{namespace(__name__)}::hold", mutates_args=())
def hold(mask: torch.Tensor) -> torch.Tensor:
    """A copy of a mask. Otherwise a compiler computes it again for each operator that takes it."""
    return mask.clone(memory_format=torch.contiguous_format)


@hold.register_fake
def _(mask: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(mask, memory_format=torch.contiguous_format)


@torch.library.custom_op(f"{namespace(__name__)}::attention_", mutates_args=("maps",))
def attention_(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    maps: torch.Tensor,
    has_previous: bool,
    position_bias: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    blocked: torch.Tensor | None,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    scaling: float,
    residual_weight: float,
    conv_weight: float,
    kernel_rows: int,
    kernel_columns: int,
    is_causal: bool,
    mixing: str,
    groups: int,
) -> torch.Tensor:
    """`evolution_fast.infer`: the output.

    Args:
        maps: A_{l-1}, or anything without `has_previous`; afterwards A_l.
    """
    tensors = Tensors(query, key, value, maps if has_previous else None, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.autocast(query.device.type, enabled=False):
        output, evolved = infer(without_idle_masks(tensors), kernel, bias, residual_gate, conv_gate, layer)
    if evolved.data_ptr() != maps.data_ptr():  # nor is it where a compiler has chosen another layout
        maps.copy_(evolved)
    return output


@attention_.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


def attend(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `evolution_fast.infer`, for compilers."""
    query, key, value, previous, *others = tensors
    maps = query.new_empty(*query.shape[:-1], key.shape[-2]) if previous is None else previous
    has_previous = previous is not None
    parameters = (kernel, bias, residual_gate if has_previous else None, conv_gate)
    output = attention_(query, key, value, maps, has_previous, *others, *parameters, *layer)
    return output, maps


def given(tensor: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """An operator gives tensors only: an empty one where there is none."""
    return like.new_empty(0) if tensor is None else tensor


def found(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor if tensor.numel() else None


@torch.library.custom_op(
    f"{namespace(__name__)}::attention_forward", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    previous: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    blocked: torch.Tensor | None,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    scaling: float,
    residual_weight: float,
    conv_weight: float,
    kernel_rows: int,
    kernel_columns: int,
    is_causal: bool,
    mixing: str,
    groups: int,
    dropout: float,
    memory_efficient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`evolution_fast.EvolvingAttention`, forward.

    Returns:
        The output and A_l; then, empty where the backward pass needs none: M_l, the softmax, and, packed, which cells the ReLU
        and which ones the dropout let through.
    """
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.autocast(query.device.type, enabled=False):
        step = prepare(without_idle_masks(tensors), kernel, bias, residual_gate, conv_gate, layer)
        output, mixed, evolved, weights, positive, kept = attend_by_blocks(step, dropout, not memory_efficient)
    # Without a convolution M_l is A_l, and no operator may give a tensor twice.
    mixed = None if kernel is None or residual_gate is not None else mixed
    packed = query.new_empty(0, dtype=torch.uint8)
    return output, evolved, given(mixed, query), given(weights, query), given(positive, packed), given(kept, packed)


@attention_forward.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    kernel, residual_gate, dropout, memory_efficient = others[4], others[6], *others[-2:]
    batch, heads, queries, _ = query.shape
    shape = (batch, heads, queries, key.shape[2])

    def maps(is_given: bool) -> torch.Tensor:
        return query.new_empty(shape if is_given else (0,))

    def flags(are_given: bool) -> torch.Tensor:
        return query.new_empty((math.prod(shape) + 7) // 8 if are_given else 0, dtype=torch.uint8)

    has_convolution = kernel is not None
    return (
        query.new_empty(batch, queries, heads, value.shape[-1]),
        maps(True),
        maps(has_convolution and residual_gate is None),
        maps(not memory_efficient),
        flags(has_convolution and not memory_efficient),
        flags(dropout > 0),
    )


@torch.library.custom_op(f"{namespace(__name__)}::attention_backward", mutates_args=())
def attention_backward(
    grad_output: torch.Tensor | None,
    grad_evolved: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    previous: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    blocked: torch.Tensor | None,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    mixed: torch.Tensor | None,
    weights: torch.Tensor,
    positive: torch.Tensor,
    kept: torch.Tensor,
    had_previous: bool,
    bias_shape: list[int],
    needed: list[bool],
    scaling: float,
    residual_weight: float,
    conv_weight: float,
    kernel_rows: int,
    kernel_columns: int,
    is_causal: bool,
    mixing: str,
    groups: int,
    dropout: float,
) -> list[torch.Tensor]:
    """`evolution_fast.EvolvingAttention`, backward.

    Returns:
        The gradients of what `attention_forward` gets, from the query to `conv_gate`, empty where none is needed.
    """
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.autocast(query.device.type, enabled=False):
        step = prepare(without_idle_masks(tensors), kernel, bias, residual_gate, conv_gate, layer)
        backward = Backward(step, had_previous, torch.Size(bias_shape) if bias_shape else None, tuple(needed), dropout)
        grads = backward(grad_output, grad_evolved, mixed, *map(found, (weights, positive, kept)))
    return given_gradients(grads, needed, query, kernel, bias, residual_gate, conv_gate)


def given_gradients(
    grads: tuple[torch.Tensor | None, ...], needed: list[bool], query: torch.Tensor, *parameters: torch.Tensor | None
) -> list[torch.Tensor]:
    """The gradients of `Tensors` and of parameters, as an operator gives them: in their types, empty where none is needed."""
    likes = [query] * 7 + list(parameters)
    return [
        given(grad.to(like.dtype).contiguous() if is_needed and grad is not None else None, query)
        for grad, like, is_needed in zip(grads, likes, needed, strict=False)
    ]


@attention_backward.register_fake
def fake_gradients(
    grad_output: torch.Tensor | None,
    grad_evolved: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *others: Any,
) -> list[torch.Tensor]:
    """Of an operator whose arguments begin like `attention_backward`'s, and go on after the maps that are kept like its."""
    bias_shape, needed = next(others[i : i + 2] for i, other in enumerate(others) if isinstance(other, list))
    maps = query.new_empty(*query.shape[:-1], key.shape[2])
    position_bias = query.new_empty(bias_shape) if bias_shape else None
    sources = (query, key, value, maps, position_bias, None, None, *others[4:8])
    return [
        query.new_empty(0) if source is None or not is_needed else source.new_empty(source.shape)
        for source, is_needed in zip(sources, needed, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, kernel, bias, residual_gate, conv_gate = inputs[:11]
    *layer, dropout, memory_efficient = inputs[11:]
    _, evolved, mixed, *kept = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mixed, *kept)
    tensors = Tensors(*tensors)
    maps = evolved if kernel is None else mixed
    previous, position_bias, mixed = saved_maps(
        tensors, kernel is not None, residual_gate is not None, maps, memory_efficient
    )
    ctx.had_previous = tensors.previous is not None
    ctx.bias_shape = [] if tensors.position_bias is None else list(tensors.position_bias.shape)
    ctx.layer, ctx.dropout = layer, dropout
    tensors = tensors._replace(previous=previous, position_bias=position_bias)
    ctx.save_for_backward(*tensors, kernel, bias, residual_gate, conv_gate, mixed, *kept)


def _backward(ctx: Any, grad_output: torch.Tensor | None, grad_evolved: torch.Tensor | None, *_: None) -> tuple:
    needed = list(ctx.needs_input_grad[:11])
    saved = ctx.saved_tensors
    grads = attention_backward(
        grad_output, grad_evolved, *saved, ctx.had_previous, ctx.bias_shape, needed, *ctx.layer, ctx.dropout
    )
    grads = [grad if is_needed else None for grad, is_needed in zip(grads, needed, strict=True)]
    return *grads, *[None] * (len(ctx.layer) + 2)


attention_forward.register_autograd(_backward, setup_context=_setup_context)


def attend_with_gradients(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
    dropout: float,
    memory_efficient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `evolution_fast.EvolvingAttention`, for compilers."""
    query, key, value, *others = tensors
    states = (query.contiguous(), key.contiguous(), value.contiguous())  # once, not in each pass
    parameters = (kernel, bias, None if tensors.previous is None else residual_gate, conv_gate)
    output, evolved, *_ = attention_forward(*states, *others, *parameters, *layer, dropout, memory_efficient)
    return output, evolved
