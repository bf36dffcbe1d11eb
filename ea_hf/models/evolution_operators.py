# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention without gradients as operators of PyTorch, which compilers call as they are instead of taking them apart.

Left to a compiler, the equations hold several maps at once, and their convolution is not done by blocks.
"""

import zlib

import torch

from .evolution_blocks import Layer, Tensors
from .evolution_fast import infer


def namespace(module_name: str) -> str:
    """Where a copy of this file registers its operators, which have one name in the whole process; see `attention_name`."""
    is_own = module_name == "ea_hf.models.evolution_operators"
    return "ea_hf" if is_own else f"ea_hf_{zlib.crc32(module_name.encode()):08x}"


@torch.library.custom_op(f"{namespace(__name__)}::first_attention", mutates_args=())
def first_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    position_bias: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    blocked: torch.Tensor | None,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    scaling: float,
    residual_weight: float,
    conv_weight: float,
    kernel_rows: int,
    kernel_columns: int,
    is_causal: bool,
    mixing: str,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`evolution_fast.infer` where there is no map of a layer before: the output and A_l."""
    tensors = Tensors(query, key, value, None, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.autocast(query.device.type, enabled=False):
        return infer(tensors, kernel, bias, None, conv_gate, layer)


@first_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return _output_like(query, value), query.new_empty(*query.shape[:-1], key.shape[-2])


@torch.library.custom_op(f"{namespace(__name__)}::attention_", mutates_args=("previous",))
def attention_(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    previous: torch.Tensor,
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
    """`evolution_fast.infer`: the output; A_l takes the place of `previous`."""
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.autocast(query.device.type, enabled=False):
        output, evolved = infer(tensors, kernel, bias, residual_gate, conv_gate, layer)
    if evolved.data_ptr() != previous.data_ptr():  # a compiler may choose another layout
        previous.copy_(evolved)
    return output


@attention_.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
    return _output_like(query, value)


def _output_like(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
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
    if previous is None:
        return first_attention(query, key, value, *others, kernel, bias, conv_gate, *layer)
    output = attention_(query, key, value, previous, *others, kernel, bias, residual_gate, conv_gate, *layer)
    return output, previous
