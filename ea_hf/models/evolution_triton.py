# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The equations of `evolution.py` in Triton, for GPUs: `ea_kernels="triton"`.

Left to PyTorch, a layer writes and reads a map for the convolution, the ReLU, the sum, the mask, the softmax and the dropout
each. Here one kernel writes M_l; one convolves all heads of a tile as matrix products, one for each cell of the
convolution's kernel, and writes A_l; another goes over the columns of A_l as FlashAttention does over scores (Dao,
https://arxiv.org/abs/2307.08691), so that neither softmax nor dropout's mask is ever held. The backward pass has a kernel for
each of the last two, one for the gradient of V and one for those of the convolution. For training M_l and A_l are saved, with
`ea_memory_efficient` M_l alone; in "learned" A_{l-1} in place of M_l.

The kernels are for ReLU only, as `evolution_fast.py` says, and multiply float32 as
`torch.backends.cuda.matmul.fp32_precision` says.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from .evolution_blocks import Layer, Step, Tensors, new_output, prepare
from .evolution_fast import refuse_second_derivatives, saved_maps, scale_gradients
from .evolution_operators import fake_gradients, found, given, given_gradients, namespace
from .evolution_state import is_traced
from .triton_kernels import (
    EVOLVE,
    PASS,
    RETURN,
    attend,
    attend_backward,
    convolve,
    mix,
    sum_kernel_gradient,
    sum_value_gradient,
    tl,
    triton,
)


IS_INTERPRETED = triton is not None and triton.knobs.runtime.interpret
# That the kernels can hold.
LARGEST_HEAD_DIM = 256
MOST_HEADS = 64
# Cells of a map are counted in 32 bits.
MOST_CELLS = 2**31 - 2**12  # and a tile beyond the last one
MOST_PROGRAMS = 2**16 - 1  # in the second and third dimension of a grid
# Of the gradient of the convolution's kernel, and their bytes.
MOST_PARTIAL_SUMS = 1024
MOST_BYTES_OF_SUMS = 2**26


def obstacle(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocked: torch.Tensor | None = None
) -> str | None:
    """Why the kernels cannot run with these tensors; `None` if they can."""
    if triton is None:
        return "the package triton is not installed"
    if not IS_INTERPRETED:
        if query.device.type != "cuda":
            return f"the device is {query.device.type}"
        if query.dtype == torch.float64:  # Triton 3.7 cannot compile its matrix products
            return "the type is torch.float64"
    if query.shape[1] > MOST_HEADS:
        return f"{query.shape[1]} heads are more than {MOST_HEADS}"
    if max(query.shape[-1], value.shape[-1]) > LARGEST_HEAD_DIM:
        return f"heads of {max(query.shape[-1], value.shape[-1])} features are larger than {LARGEST_HEAD_DIM}"
    if blocked is not None and blocked.shape[1] > 1:
        return "each head has a mask of its own"
    if max(query.shape[0] * query.shape[1], query.shape[2]) > MOST_PROGRAMS:
        return f"{query.shape[0]} x {query.shape[1]} heads or {query.shape[2]} queries are more than {MOST_PROGRAMS}"
    if query.shape[2] * key.shape[2] >= MOST_CELLS:
        return f"maps of {query.shape[2]} x {key.shape[2]} cells are larger than {MOST_CELLS - 1}"
    return "there is nothing to attend to" if 0 in (*query.shape, *key.shape, *value.shape) else None


def _types(tensor: torch.Tensor) -> dict[str, Any]:
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


def with_adjacent_features(states: torch.Tensor) -> torch.Tensor:
    """As the kernels read queries, keys and values, whose other dimensions may lie in memory as they like."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _step(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
) -> Step:
    """With the parameters as they are: the kernels fold them."""
    query, key, value, *others = tensors
    states = (with_adjacent_features(x) for x in (query, key, value))
    step = prepare(Tensors(*states, *others), None, None, residual_gate, conv_gate, layer, contiguous=False)
    return step if kernel is None else step._replace(kernel=kernel.contiguous(), bias=bias)


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
        **_types(step.query),
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
        **_types(step.query),
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
    tiles_of_row = triton.cdiv(keys, columns)
    size_of_part = size[0] * size[1] * cells + padded
    most_parts = min(MOST_PARTIAL_SUMS, MOST_BYTES_OF_SUMS // (4 * size_of_part))
    # Parts of few rows are read more often than those of many, since each reads the rows beyond its edges.
    most_strips = max(1, most_parts // (batch * tiles_of_row))
    rows_of_part = max(rows, triton.cdiv(queries, most_strips))
    parts_of_map = tiles_of_row * triton.cdiv(queries, rows_of_part)
    most_sums = MOST_KEPT_SUMS[passed.element_size() > 2]
    at_once = next((some for some in (size, (size[0], 1)) if some[0] * some[1] * cells <= most_sums), (1, 1))
    dtype = torch.promote_types(passed.dtype, torch.float32)
    partial_sums = passed.new_empty((batch * parts_of_map, size_of_part), dtype=dtype)
    blocked, strides = _strides(step.blocked, (batch, 1, queries, keys))
    sum_kernel_gradient[batch * parts_of_map, size[0] // at_once[0], size[1] // at_once[1]](
        *(passed, image, blocked, partial_sums),
        *(heads, queries, keys, queries * keys, tiles_of_row, parts_of_map, rows_of_part),
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
        "SCALE": 1 / (1 - dropout) if dropout < 1 else 0.0,
        "ROWS": tile[0],
        "COLUMNS": tile[1],
        "num_warps": tile[2],
        "HEAD_DIM": max(16, triton.next_power_of_2(head_dim)),
        **_types(step.value),
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


def attention_and_map_gradients(
    step: Step,
    grad_output: torch.Tensor | None,
    grad_evolved: torch.Tensor | None,
    mixed: torch.Tensor | None,
    evolved: torch.Tensor | None,
    statistics: torch.Tensor,
    seed: torch.Tensor | None,
    output: torch.Tensor,
    had_previous: bool,
    bias_shape: list[int],
    needed: list[bool],
    dropout: float,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of the tensors that `attention` gets."""
    layer = step.layer
    if mixed is None and (step.kernel is not None or evolved is None):
        mixed = mix_maps(step)
    if evolved is None:
        evolved = mixed if step.kernel is None else convolve_maps(step, mixed, mixed, EVOLVE)
    grad, grad_value = attention_gradients(step, grad_output, grad_evolved, evolved, statistics, seed, output, dropout)
    grad_kernel = grad_bias = grad_conv_gate = None
    if step.kernel is not None:
        passed = convolve_maps(step, mixed, grad, PASS)
        if needed[7] or needed[8] or needed[10]:
            sums = kernel_gradient(step, passed, mixed)
            parameters = (step.kernel, step.bias, step.conv_gate)
            grad_kernel, grad_bias, grad_conv_gate = scale_gradients(*sums, *parameters, layer)
        grad = convolve_maps(step, passed, grad, RETURN)
    share = layer.score_share if had_previous else 1.0
    grad_position_bias = grad_residual_gate = grad_previous = None
    if needed[4]:
        grad_position_bias = grad.sum_to_size(bias_shape) * share
    if needed[9] and step.previous is not None:
        grad_residual_gate = (grad * step.previous).sum(dim=(0, 2, 3)).view_as(step.residual_gate)
    maps, query, key = grad.flatten(0, 1), step.query.flatten(0, 1), step.key.flatten(0, 1)
    grad_query, grad_key = query.new_empty(query.shape), key.new_empty(key.shape)
    grad_query.baddbmm_(maps, key, beta=0, alpha=share * layer.scaling)
    grad_key.baddbmm_(maps.mT, query, beta=0, alpha=share * layer.scaling)
    if needed[3]:
        grad_previous = grad.mul_(layer.residual_weight if step.residual_gate is None else step.residual_gate)
    return (
        *(grad_query.view(step.query.shape), grad_key.view(step.key.shape), grad_value),
        *(grad_previous, grad_position_bias, None, None),
        *(grad_kernel, grad_bias, grad_residual_gate, grad_conv_gate),
    )


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
    """The rows are the fewest of a part."""
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


def infer(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    maps: torch.Tensor,
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
    """Attention without gradients in a layer that takes a map: the output.

    Args:
        maps: A_{l-1}; afterwards A_l.
    """
    own = maps.contiguous()  # a compiler may have chosen another layout
    tensors = Tensors(query, key, value, own, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.cuda.device_of(query), torch.autocast(query.device.type, enabled=False):
        step = _step(tensors, kernel, bias, residual_gate, conv_gate, layer)
        evolved = mix_maps(step, out=own if kernel is None else None)
        if kernel is not None:
            evolved = convolve_maps(step, evolved, evolved, EVOLVE, out=own)
        output, _ = attend_to_maps(step, evolved, None, 0.0)
    if evolved.data_ptr() != maps.data_ptr():
        maps.copy_(evolved)
    return output


attention_ = torch.library.custom_op(f"{namespace(__name__)}::triton_attention_", infer, mutates_args=("maps",))


@attention_.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


def attend_with_gradients(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention with gradients, forward. Neither the output nor A_l may be written to before the backward pass, which needs them.

    Returns:
        The output and A_l; then M_l, empty where it is A_l; the statistics of `attend_to_maps`; and the seed of the dropout.
    """
    previous = None if previous is None else previous.contiguous()
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.cuda.device_of(query), torch.autocast(query.device.type, enabled=False):
        step = _step(tensors, kernel, bias, residual_gate, conv_gate, layer)
        mixed = mix_maps(step)
        evolved = mixed if kernel is None else convolve_maps(step, mixed, mixed, EVOLVE)
        seed = None
        if dropout > 0:  # made on the device, so that each replay of a graph draws another one
            seed = torch.randint(2**62, (1,), device=query.device)
        output, statistics = attend_to_maps(step, evolved, seed, dropout)
    nothing = query.new_empty(0, dtype=torch.int64)
    return output, evolved, given(None if kernel is None else mixed, query), statistics, given(seed, nothing)


attention = torch.library.custom_op(
    f"{namespace(__name__)}::triton_attention",
    attend_with_gradients,
    mutates_args=(),
    tags=(torch.Tag.nondeterministic_seeded,),
)


@attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    kernel, dropout = others[4], others[-2]
    batch, heads, queries, _ = query.shape
    shape = (batch, heads, queries, key.shape[2])
    return (
        query.new_empty(batch, queries, heads, value.shape[-1]),
        query.new_empty(shape),
        query.new_empty(shape if kernel is not None else (0,)),
        query.new_empty((2, *shape[:-1]), dtype=torch.promote_types(query.dtype, torch.float32)),
        query.new_empty((1 if dropout > 0 else 0,), dtype=torch.int64),
    )


def differentiate(
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
    evolved: torch.Tensor | None,
    statistics: torch.Tensor,
    seed: torch.Tensor,
    output: torch.Tensor,
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
    """Attention with gradients, backward.

    Returns:
        The gradients of what `attention` gets, from the query to `conv_gate`, empty where none is needed.
    """
    previous = None if previous is None else previous.contiguous()
    tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.cuda.device_of(query), torch.autocast(query.device.type, enabled=False):
        step = _step(tensors, kernel, bias, residual_gate, conv_gate, layer)
        saved = (mixed, evolved, statistics, found(seed), output)
        grads = attention_and_map_gradients(
            step, grad_output, grad_evolved, *saved, had_previous, bias_shape, needed, dropout
        )
    return given_gradients(grads, needed, query, kernel, bias, residual_gate, conv_gate)


attention_backward = torch.library.custom_op(
    f"{namespace(__name__)}::triton_attention_backward", differentiate, mutates_args=()
)
attention_backward.register_fake(fake_gradients)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, kernel, bias, residual_gate, conv_gate = inputs[:11]
    *layer, dropout, memory_efficient = inputs[11:]
    output, evolved, mixed, statistics, seed = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mixed, statistics, seed)
    tensors = Tensors(*tensors)
    maps = evolved if kernel is None else mixed
    is_scores = kernel is None and tensors.previous is None  # which are cheaper to compute again than to keep
    previous, position_bias, mixed = saved_maps(
        tensors, kernel is not None, residual_gate is not None, maps, memory_efficient or is_scores
    )
    ctx.had_previous = tensors.previous is not None
    ctx.bias_shape = [] if tensors.position_bias is None else list(tensors.position_bias.shape)
    ctx.layer, ctx.dropout = layer, dropout
    tensors = tensors._replace(previous=previous, position_bias=position_bias)
    evolved = None if memory_efficient or is_scores else evolved
    ctx.save_for_backward(*tensors, kernel, bias, residual_gate, conv_gate, mixed, evolved, statistics, seed, output)


def _backward(
    ctx: Any,
    grad_output: torch.Tensor | None,
    grad_evolved: torch.Tensor | None,
    *_: None,
    differentiate: Callable[..., list[torch.Tensor]] = attention_backward,
) -> tuple:
    refuse_second_derivatives()
    needed = list(ctx.needs_input_grad[:11])
    state = (ctx.had_previous, ctx.bias_shape, needed, *ctx.layer, ctx.dropout)
    grads = differentiate(grad_output, grad_evolved, *ctx.saved_tensors, *state)
    grads = [grad if is_needed else None for grad, is_needed in zip(grads, needed, strict=True)]
    return *grads, *[None] * (len(ctx.layer) + 2)


attention.register_autograd(_backward, setup_context=_setup_context)


class TritonAttention(torch.autograd.Function):
    """The operator `attention`, without what it takes to call an operator, for where nothing is traced."""

    forward = staticmethod(attend_with_gradients)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(functools.partial(_backward, differentiate=differentiate))


def attend_by_triton(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
    dropout: float,
    memory_efficient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and A_l, with gradients where they are enabled; otherwise overwrites `previous`."""
    query, key, value, previous, *others = tensors
    residual_gate = None if previous is None else residual_gate
    parameters = (kernel, bias, residual_gate, conv_gate)
    if torch.is_grad_enabled() or previous is None:
        options = (*layer, dropout, memory_efficient)
        attend_to_layer = attention if is_traced() else TritonAttention.apply
        output, evolved, *_ = attend_to_layer(query, key, value, previous, *others, *parameters, *options)
        return output, evolved
    output = (attention_ if is_traced() else infer)(query, key, value, previous, *others, *parameters, *layer)
    return output, previous
