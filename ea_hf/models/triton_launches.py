# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the kernels of `triton_kernels.py` over whole maps: which tiles they go by, and where everything lies in memory."""

from typing import Any

import torch

from .evolution_blocks import Step, new_output
from .evolution_flags import scale_of_kept
from .triton_kernels import (
    attend,
    attend_backward,
    convolve,
    mix,
    sum_kernel_gradient,
    sum_value_gradient,
    tl,
    triton,
)


# Cells of a map are counted in 32 bits.
MOST_CELLS = 2**31 - 2**12  # and a tile beyond the last one
# Of the gradient of the convolution's kernel, and their bytes.
MOST_PARTIAL_SUMS = 1024
MOST_BYTES_OF_SUMS = 2**26

# The sizes of tiles, as rows, columns and warps: of those tried on an H100, the fastest with 12 heads of 64 features in bfloat16;
# of the others `tests/compile_triton_kernels.py` says that what a program works with stays in registers.

# With features at a time, in numbers of at most two bytes, and in wider ones.
MIX_TILE = ((64, 128, 4, 64), (32, 64, 4, 32))
# Numbers of the convolution's kernel that a program keeps in registers, and those of its gradient.
MOST_KEPT_WEIGHTS = 9 * 16**2
MOST_KEPT_SUMS = (32 * 16**2, 8 * 16**2)
FEWEST_PROGRAMS = 512


def _convolution_tile(heads: int, bytes_of_number: int, shape: torch.Size) -> tuple[int, int, int]:
    batch, _, queries, keys = shape
    columns = max(16, (2048 if bytes_of_number <= 2 else 512) // heads)
    columns = min(columns, max(16, triton.next_power_of_2(keys)))
    # Many rows are read again less often, but small maps then keep few processors busy.
    tiles_of_row = batch * triton.cdiv(keys, columns)
    rows = next((rows for rows in (16, 8) if tiles_of_row * triton.cdiv(queries, rows) >= FEWEST_PROGRAMS), 4)
    return rows, columns, max(4 if rows == 4 else 2, heads // 8)


def _kernel_gradient_tile(heads: int, bytes_of_number: int, keys: int) -> tuple[int, int, int]:
    """The rows are the fewest of a tile."""
    columns = max(16, (512 if bytes_of_number <= 2 else 256) // heads)
    return 16, min(columns, max(16, triton.next_power_of_2(keys))), max(1, heads // 16)


def _attention_tile(step: Step) -> tuple[int, int, int]:
    head_dim = max(16, triton.next_power_of_2(step.value.shape[-1]))
    if step.value.element_size() <= 2:
        return (64, 32, 4) if head_dim <= 64 else (32, 32, 4)
    return (32, 32, 4) if head_dim <= 64 else (32, 32, 8) if head_dim <= 128 else (16, 16, 4)


def _backward_tiles(step: Step) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For the gradient of A_l, and for that of V."""
    if step.value.element_size() <= 2:
        return (32, 64, 4), (16, 64, 4)
    return _attention_tile(step), _attention_tile(step)


def number_types(tensor: torch.Tensor) -> dict[str, Any]:
    """In which type the kernels add up, and how they multiply float32."""
    is_double = tensor.dtype == torch.float64
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return {"ACCUMULATOR": tl.float64 if is_double else tl.float32, "PRECISION": precision}


def _padded_heads(heads: int) -> int:
    return max(16, triton.next_power_of_2(heads))


def _strides(mask: torch.Tensor | None, shape: tuple[int, ...]) -> tuple[torch.Tensor | None, tuple[int, ...]]:
    """A mask as bytes, and by how many of them its cells lie apart."""
    if mask is None:
        return None, (0,) * len(shape)
    mask = mask.expand(shape)
    return mask.view(torch.uint8), mask.stride()


def mix_maps(step: Step, out: torch.Tensor | None = None) -> torch.Tensor:
    """M_l, equation (1), (batch, heads, query, key); `out` may be A_{l-1} itself."""
    batch, heads, queries, keys = step.shape
    head_dim = step.query.shape[-1]
    out = step.query.new_empty(step.shape) if out is None else out
    position_bias, strides = step.position_bias, (0,) * 4
    if position_bias is not None:
        strides = position_bias.expand(step.shape).stride()
    rows, columns, warps, features = MIX_TILE[step.query.element_size() > 2]
    grid = (triton.cdiv(keys, columns), triton.cdiv(queries, rows), batch * heads)
    mix[grid](
        *(step.query, step.key, step.previous, position_bias, step.residual_gate, out),
        *(heads, queries, keys, head_dim, *step.query.stride()[:3], *step.key.stride()[:3], *strides),
        SCALING=step.layer.scaling,
        SHARE=step.layer.score_share,
        RESIDUAL=step.layer.residual_weight,
        ROWS=rows,
        COLUMNS=columns,
        FEATURES=min(features, max(16, triton.next_power_of_2(head_dim))),
        num_warps=warps,
        **number_types(step.query),
    )
    return out


def _geometry(step: Step) -> dict[str, Any]:
    layer, heads = step.layer, _padded_heads(step.shape[1])
    return {
        "KERNEL_ROWS": layer.kernel_rows,
        "KERNEL_COLUMNS": layer.kernel_columns,
        "ABOVE": layer.kernel_rows - 1 - layer.padding[0],
        "IS_GROUPED": layer.groups > 1,
        "IS_LARGE": step.shape[1:].numel() >= MOST_CELLS,
        "HEADS": heads,
        **number_types(step.query),
    }


def convolve_maps(
    step: Step, image: torch.Tensor, base: torch.Tensor, purpose: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`convolve` over whole maps, (batch, heads, query, key)."""
    batch, heads, queries, keys = step.shape
    out = torch.empty_like(base) if out is None else out
    geometry = _geometry(step)
    shifts = geometry["KERNEL_ROWS"] * geometry["KERNEL_COLUMNS"]
    keeps_weights = shifts * geometry["HEADS"] ** 2 <= MOST_KEPT_WEIGHTS
    rows, columns, warps = _convolution_tile(geometry["HEADS"], image.element_size(), step.shape)
    blocked, strides = _strides(step.blocked, (batch, 1, queries, keys))
    grid = (triton.cdiv(keys, columns), triton.cdiv(queries, rows), batch)
    convolve[grid](
        *(image, base, step.kernel, step.bias, step.conv_gate, blocked, out),
        *(heads, queries, keys, queries * keys, strides[0], strides[2], strides[3]),
        FOLDED=step.layer.folded,
        SHARE=step.layer.map_share,
        SIGN=step.layer.sign,
        PURPOSE=purpose,
        ROWS=rows,
        COLUMNS=columns,
        KEEPS_WEIGHTS=keeps_weights,
        num_warps=warps,
        num_stages=1,
        **geometry,
    )
    return out


def kernel_gradient(step: Step, passed: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the folded kernel and bias, from that of what the convolution gives."""
    batch, heads, queries, keys = step.shape
    geometry = _geometry(step)
    padded, size = geometry["HEADS"], (step.layer.kernel_rows, step.layer.kernel_columns)
    is_grouped = geometry["IS_GROUPED"]
    cells = padded if is_grouped else padded**2
    rows, columns, warps = _kernel_gradient_tile(padded, passed.element_size(), keys)
    size_of_part = size[0] * size[1] * cells + padded
    most_parts = max(1, min(MOST_PARTIAL_SUMS, MOST_BYTES_OF_SUMS // (4 * size_of_part)))
    # Tiles of few rows are read more often than those of many, since each reads the rows beyond its edges.
    tiles_of_row = triton.cdiv(keys, columns)
    most_strips = max(1, most_parts // (batch * tiles_of_row))
    rows_of_tile = max(rows, triton.cdiv(queries, most_strips))
    tiles_of_map = tiles_of_row * triton.cdiv(queries, rows_of_tile)
    tiles = batch * tiles_of_map
    tiles_of_part = triton.cdiv(tiles, most_parts)
    parts = triton.cdiv(tiles, tiles_of_part)
    most_sums = MOST_KEPT_SUMS[passed.element_size() > 2]
    at_once = next((some for some in (size, (size[0], 1)) if some[0] * some[1] * cells <= most_sums), (1, 1))
    dtype = torch.promote_types(passed.dtype, torch.float32)
    partial_sums = passed.new_empty((parts, size_of_part), dtype=dtype)
    blocked, strides = _strides(step.blocked, (batch, 1, queries, keys))
    sum_kernel_gradient[parts, size[0] // at_once[0], size[1] // at_once[1]](
        *(passed, image, blocked, partial_sums),
        *(heads, queries, keys, queries * keys, tiles_of_row, rows_of_tile, tiles_of_map, tiles_of_part, tiles),
        *(strides[0], strides[2], strides[3]),
        COLUMNS=columns,
        ROWS_AT_ONCE=at_once[0],
        COLUMNS_AT_ONCE=at_once[1],
        num_warps=warps,
        **geometry,
    )
    total = partial_sums.sum(0)
    grad_kernel, grad_bias = total[:-padded], total[-padded:][:heads]
    if is_grouped:
        return grad_kernel.view(*size, padded)[..., :heads].permute(2, 0, 1).unsqueeze(1), grad_bias
    return grad_kernel.view(*size, padded, padded)[..., :heads, :heads].permute(2, 3, 0, 1), grad_bias


def _attention_arguments(
    step: Step, dropout: float, tile: tuple[int, int, int]
) -> tuple[torch.Tensor | None, tuple[int, ...], dict[str, Any]]:
    """What is hidden, and what else all kernels of equation (3) get."""
    _, heads, queries, keys = step.shape
    head_dim = step.value.shape[-1]
    hidden, strides = _strides(step.hidden, step.shape)
    options = {
        "DROPOUT": dropout,
        "SCALE": scale_of_kept(dropout),
        "ROWS": tile[0],
        "COLUMNS": tile[1],
        "num_warps": tile[2],
        "HEAD_DIM": max(16, triton.next_power_of_2(head_dim)),
        **number_types(step.value),
    }
    return hidden, (heads, queries, keys, head_dim, queries * keys, *strides), options


def attend_to_maps(
    step: Step, evolved: torch.Tensor, seed: torch.Tensor | None, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (3): the output, and for each query its largest logit and the sum of the exponentials, (2, batch, heads, query)."""
    batch, heads, queries, _ = step.shape
    hidden, sizes, options = _attention_arguments(step, dropout, _attention_tile(step))
    output = new_output(step)
    dtype = torch.promote_types(step.value.dtype, torch.float32)
    statistics = evolved.new_empty(2, batch, heads, queries, dtype=dtype)
    grid = (triton.cdiv(queries, options["ROWS"]), batch * heads)
    attend[grid](evolved, step.value, hidden, seed, output, *statistics, *sizes, *step.value.stride()[:3], **options)
    return output, statistics


def attention_gradients(
    step: Step,
    grad_output: torch.Tensor | None,
    grad_evolved: torch.Tensor | None,
    evolved: torch.Tensor,
    statistics: torch.Tensor,
    seed: torch.Tensor | None,
    output: torch.Tensor,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of A_l and of V, equation (3)."""
    batch, heads, queries, keys = step.shape
    grad_value = step.value.new_empty(step.value.shape)
    if grad_output is None:
        if grad_evolved is None:
            return torch.zeros_like(evolved), grad_value.zero_()
        return grad_evolved.clone(memory_format=torch.contiguous_format), grad_value.zero_()
    grad_output, output = grad_output.contiguous(), output.contiguous()
    grad_evolved = None if grad_evolved is None else grad_evolved.contiguous()
    grad = torch.empty_like(evolved)
    for_maps, for_values = _backward_tiles(step)
    hidden, sizes, options = _attention_arguments(step, dropout, for_maps)
    grid = (triton.cdiv(queries, options["ROWS"]), batch * heads)
    maps = (evolved, step.value, hidden, seed, output, *statistics, grad_output, grad_evolved, grad)
    attend_backward[grid](*maps, *sizes, *step.value.stride()[:3], **options)
    hidden, sizes, options = _attention_arguments(step, dropout, for_values)
    grid = (triton.cdiv(keys, options["COLUMNS"]), batch * heads)
    sum_value_gradient[grid](evolved, hidden, seed, *statistics, grad_output, grad_value, *sizes, **options)
    return grad, grad_value
