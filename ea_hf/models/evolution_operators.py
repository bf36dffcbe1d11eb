# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The fast paths as operators of PyTorch, which compilers call as they are instead of taking them apart.

They neither write to their inputs nor return parts of them.
"""

import zlib

import torch

from .evolution_blocks import Layer, Tensors
from .evolution_fast import infer


def namespace(module_name: str) -> str:
    """Where a copy of this file registers its operators, which have one name in the whole process; see `attention_name`."""
    is_own = module_name == "ea_hf.models.evolution_operators"
    return "ea_hf" if is_own else f"ea_hf_{zlib.crc32(module_name.encode()):08x}"


@torch.library.custom_op(f"{namespace(__name__)}::attention", mutates_args=())
def attention_operator(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention without gradients: `evolution_fast.infer`, which here leaves `previous` as it is."""
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.autocast(query.device.type, enabled=False):
        return infer(tensors, kernel, bias, residual_gate, conv_gate, layer, in_place=False)


@attention_operator.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, queries, _ = query.shape
    output = query.new_empty(batch, queries, heads, value.shape[-1])
    return output, query.new_empty(batch, heads, queries, key.shape[-2])
