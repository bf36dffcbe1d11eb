# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention without gradients as an operator of PyTorch, which compilers call as it is instead of taking it apart.

Left to a compiler, the equations hold several maps at once, and their convolution is not done by blocks.
"""

import zlib

import torch

from .evolution_blocks import Layer, Tensors
from .evolution_fast import infer


def namespace(module_name: str) -> str:
    """Where a copy of this file registers its operator, which has one name in the whole process; see `attention_name`."""
    is_own = module_name == "ea_hf.models.evolution_operators"
    return "ea_hf" if is_own else f"ea_hf_{zlib.crc32(module_name.encode()):08x}"


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
        output, evolved = infer(tensors, kernel, bias, residual_gate, conv_gate, layer)
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
