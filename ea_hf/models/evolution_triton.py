# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The equations of `evolution.py` in Triton, for GPUs: `ea_kernels="triton"`.

Left to PyTorch, a layer writes and reads a map for the convolution, the ReLU, the sum, the mask, the softmax and the dropout
each. Here M_l comes from one matrix product; one kernel convolves all heads of a tile as matrix products, one for each cell
of the convolution's kernel, and writes A_l; another goes over the columns of A_l as FlashAttention does over scores (Dao,
https://arxiv.org/abs/2307.08691), so that neither softmax nor dropout's mask is ever held. The backward pass has a kernel for
each of these and one for the gradient of the convolution's kernel. For training M_l and A_l are saved, with
`ea_memory_efficient` M_l alone; in "learned" A_{l-1} in place of M_l.

The kernels are for ReLU only, as `evolution_fast.py` says, and multiply float32 as
`torch.backends.cuda.matmul.fp32_precision` says.
"""

from typing import Any

import torch

from .evolution_blocks import Block, Layer, Step, Tensors, new_output, prepare
from .evolution_fast import Backward, refuse_second_derivatives, saved_maps
from .evolution_operators import fake_gradients, found, given, given_gradients, namespace
from .triton_kernels import (
    EVOLVE,
    PASS,
    RETURN,
    attend,
    attend_backward,
    convolve,
    sum_kernel_gradient,
    sum_value_gradient,
    tl,
    triton,
)


IS_INTERPRETED = triton is not None and triton.knobs.runtime.interpret
# The largest head that an attention kernel can hold, and the most heads that `convolve` can, in numbers of at most two bytes and
# in wider ones.
LARGEST_HEAD_DIM = 256
MOST_HEADS = (128, 64)
# Cells of a map are counted in 32 bits.
MOST_CELLS = 2**31 - 2**12  # and a tile beyond the last one
MOST_PROGRAMS = 2**16 - 1  # in the second and third dimension of a grid
# Of the gradient of the convolution's kernel, and their bytes.
MOST_PARTIAL_SUMS = 512
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
    most_heads = MOST_HEADS[query.element_size() > 2]
    if query.shape[1] > most_heads:
        return f"{query.shape[1]} heads are more than {most_heads}, which {query.dtype} allows"
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


# The sizes of tiles are the largest tried, of which `tests/compile_triton_kernels.py` says that what a program works with
# stays in registers. Which are fastest was not measured.


def _geometry(step: Step) -> dict[str, Any]:
    layer, heads = step.layer, _padded_heads(step.shape[1])
    return {
        "KERNEL_ROWS": layer.kernel_rows,
        "KERNEL_COLUMNS": layer.kernel_columns,
        "ABOVE": layer.kernel_rows - 1 - layer.padding[0],
        "IS_GROUPED": layer.groups > 1,
        "HEADS": heads,
        "num_warps": 4 if heads == 16 else 8,
        **_types(step.query),
    }


def _padded_kernel(kernel: torch.Tensor, is_transposed: bool) -> torch.Tensor:
    """(shift, head, head), or (shift, head) where each has its own, with zeros for heads that are not."""
    heads = len(kernel)
    padding = _padded_heads(heads) - heads
    if kernel.shape[1] == 1 and heads > 1:
        return torch.nn.functional.pad(kernel[:, 0].permute(1, 2, 0).flatten(0, 1), (0, padding)).contiguous()
    order = (2, 3, 1, 0) if is_transposed else (2, 3, 0, 1)
    return torch.nn.functional.pad(kernel.permute(order).flatten(0, 1), (0, padding, 0, padding)).contiguous()


def _per_head(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return (
        None
        if tensor is None
        else torch.nn.functional.pad(tensor.flatten(), (0, _padded_heads(tensor.numel()) - tensor.numel()))
    )


def convolve_maps(
    step: Step,
    image: torch.Tensor,
    base: torch.Tensor,
    kernel: torch.Tensor,
    purpose: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`convolve` over whole maps, (batch, heads, query, key)."""
    batch, heads, queries, keys = step.shape
    out = torch.empty_like(base) if out is None else out
    geometry = _geometry(step)
    cells = max(16, (4096 if step.query.element_size() <= 2 else 2048) // geometry["HEADS"])
    columns = min(64, cells, max(16, triton.next_power_of_2(keys)))
    blocked, strides = _strides(step.blocked, (batch, 1, queries, keys))
    rows = cells // columns
    grid = (triton.cdiv(keys, columns), triton.cdiv(queries, rows), batch)
    convolve[grid](
        image,
        base,
        _padded_kernel(kernel, purpose == RETURN),
        _per_head(step.bias),
        _per_head(step.conv_gate),
        blocked,
        out,
        heads,
        queries,
        keys,
        queries * keys,
        strides[0],
        strides[2],
        strides[3],
        SHARE=step.layer.map_share,
        SIGN=step.layer.sign,
        PURPOSE=purpose,
        ROWS=rows,
        COLUMNS=columns,
        **geometry,
    )
    return out


def kernel_gradient(step: Step, passed: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The gradient of the folded kernel, from that of what the convolution gives."""
    batch, heads, queries, keys = step.shape
    geometry = _geometry(step)
    padded, shifts = geometry["HEADS"], step.layer.kernel_rows * step.layer.kernel_columns
    cells = max(16, (2048 if passed.element_size() <= 2 else 1024) // padded)
    tiles_of_map = triton.cdiv(queries * keys, cells)
    tiles = batch * tiles_of_map
    most_sums = min(MOST_PARTIAL_SUMS, max(1, MOST_BYTES_OF_SUMS // (4 * shifts * padded**2)))
    tiles_of_sum = triton.cdiv(tiles, min(tiles, most_sums))
    parts = triton.cdiv(tiles, tiles_of_sum)
    is_grouped = geometry["IS_GROUPED"]
    shape = (parts, shifts, padded) if is_grouped else (parts, shifts, padded, padded)
    dtype = torch.promote_types(passed.dtype, torch.float32)
    partial_sums = passed.new_empty(shape, dtype=dtype)
    blocked, strides = _strides(step.blocked, (batch, 1, queries, keys))
    sum_kernel_gradient[parts, shifts](
        passed,
        image,
        blocked,
        partial_sums,
        heads,
        queries,
        keys,
        queries * keys,
        tiles_of_map,
        tiles,
        tiles_of_sum,
        strides[0],
        strides[2],
        strides[3],
        CELLS=cells,
        **geometry,
    )
    gradient = partial_sums.sum(0).unflatten(0, (step.layer.kernel_rows, step.layer.kernel_columns))
    if is_grouped:
        return gradient[..., :heads].permute(2, 0, 1).unsqueeze(1)
    return gradient[..., :heads, :heads].permute(2, 3, 0, 1)


def _attention_tile(head_dim: int, bytes_of_number: int, is_backward: bool) -> tuple[int, int, int]:
    """Rows, columns and warps."""
    if bytes_of_number <= 2:
        return (64, 64, 8) if is_backward else (64, 32, 4) if head_dim <= 64 else (32, 32, 4)
    return (32, 32, 4) if head_dim <= 64 else (32, 32, 8) if head_dim <= 128 else (16, 16, 4)


def _attention_arguments(
    step: Step, dropout: float, is_backward: bool
) -> tuple[torch.Tensor | None, tuple[int, ...], dict[str, Any]]:
    """What is hidden, and what else all kernels of equation (3) get."""
    _, heads, queries, keys = step.shape
    head_dim = step.value.shape[-1]
    hidden, strides = _strides(step.hidden, step.shape)
    padded = max(16, triton.next_power_of_2(head_dim))
    rows, columns, warps = _attention_tile(padded, step.value.element_size(), is_backward)
    options = {
        "DROPOUT": dropout,
        "SCALE": 1 / (1 - dropout) if dropout < 1 else 0.0,
        "ROWS": rows,
        "COLUMNS": columns,
        "num_warps": warps,
        "HEAD_DIM": padded,
        **_types(step.value),
    }
    return hidden, (heads, queries, keys, head_dim, queries * keys, *strides), options


def attend_to_maps(
    step: Step, evolved: torch.Tensor, seed: torch.Tensor | None, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (3): the output, and for each query its largest logit and the sum of the exponentials, (2, batch, heads, query)."""
    batch, heads, queries, _ = step.shape
    hidden, sizes, options = _attention_arguments(step, dropout, is_backward=False)
    output = new_output(step)
    dtype = torch.promote_types(step.value.dtype, torch.float32)
    statistics = evolved.new_empty(2, batch, heads, queries, dtype=dtype)
    grid = (triton.cdiv(queries, options["ROWS"]), batch * heads)
    attend[grid](evolved, step.value, hidden, seed, output, *statistics, *sizes, **options)
    return output, statistics


class TritonBackward(Backward):
    """The backward pass of attention with these kernels."""

    def __call__(
        self,
        grad_output: torch.Tensor | None,
        grad_evolved: torch.Tensor | None,
        mixed: torch.Tensor | None,
        evolved: torch.Tensor | None,
        statistics: torch.Tensor,
        seed: torch.Tensor | None,
        output: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the arguments of `attention`."""
        step, whole = self.step, Block(slice(None), 0, self.step.shape[2])
        self.grad_mixed = None  # comes whole, into memory of its own
        if mixed is None and (step.kernel is not None or evolved is None):
            mixed = step.mix(whole)
        if evolved is None:
            evolved = mixed if step.kernel is None else convolve_maps(step, mixed, mixed, step.kernel, EVOLVE)
        grad = self.through_attention(grad_output, grad_evolved, evolved, statistics, seed, output)
        if step.kernel is not None:
            passed = convolve_maps(step, mixed, grad, step.kernel, PASS)
            if self.grad_kernel is not None:
                self.grad_kernel.copy_(kernel_gradient(step, passed, mixed))
            if self.grad_bias is not None:
                self.grad_bias.copy_(passed.sum(dim=(0, 2, 3), dtype=self.grad_bias.dtype))
            grad = convolve_maps(step, passed, grad, self.gated_kernel, RETURN)
        self.grad_mixed = grad
        self.through_mixing(whole)
        return self.gradients()

    def through_attention(
        self,
        grad_output: torch.Tensor | None,
        grad_evolved: torch.Tensor | None,
        evolved: torch.Tensor,
        statistics: torch.Tensor,
        seed: torch.Tensor | None,
        output: torch.Tensor,
    ) -> torch.Tensor:
        """The gradient of A_l, equation (3)."""
        step, dropout = self.step, self.dropout
        batch, heads, queries, keys = step.shape
        if grad_output is None:
            return (
                torch.zeros_like(evolved)
                if grad_evolved is None
                else grad_evolved.clone(memory_format=torch.contiguous_format)
            )
        hidden, sizes, options = _attention_arguments(step, dropout, is_backward=True)
        # The sum over keys of the weights times their gradients.
        dots = (grad_output.to(statistics.dtype) * output.to(statistics.dtype)).sum(-1).transpose(1, 2).contiguous()
        grad_output = grad_output.transpose(1, 2).contiguous()
        grad_evolved = None if grad_evolved is None else grad_evolved.contiguous()
        grad = torch.empty_like(evolved)
        grid = (triton.cdiv(keys, options["COLUMNS"]), triton.cdiv(queries, options["ROWS"]), batch * heads)
        maps = (evolved, step.value, hidden, seed, *statistics, dots, grad_output, grad_evolved, grad)
        attend_backward[grid](*maps, *sizes, **options)
        grid = (triton.cdiv(keys, options["COLUMNS"]), batch * heads)
        sum_value_gradient[grid](evolved, hidden, seed, *statistics, grad_output, self.grad_value, *sizes, **options)
        return grad


@torch.library.custom_op(f"{namespace(__name__)}::triton_attention_", mutates_args=("maps",))
def attention_(
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
    """Attention without gradients in all layers that take a map: the output.

    Args:
        maps: A_{l-1}; afterwards A_l.
    """
    own = maps.contiguous()  # a compiler may have chosen another layout
    tensors = Tensors(query, key, value, own, position_bias, attention_mask, blocked)
    layer = Layer(scaling, residual_weight, conv_weight, kernel_rows, kernel_columns, is_causal, mixing, groups)
    with torch.cuda.device_of(query), torch.autocast(query.device.type, enabled=False):
        step = prepare(tensors, kernel, bias, residual_gate, conv_gate, layer)
        evolved = step.mix(Block(slice(None), 0, step.shape[2]), in_place=kernel is None)
        if kernel is not None:
            evolved = convolve_maps(step, evolved, evolved, step.kernel, EVOLVE, out=own)
        output, _ = attend_to_maps(step, evolved, None, 0.0)
    if evolved.data_ptr() != maps.data_ptr():
        maps.copy_(evolved)
    return output


@attention_.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


@torch.library.custom_op(
    f"{namespace(__name__)}::triton_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def attention(
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
        step = prepare(tensors, kernel, bias, residual_gate, conv_gate, layer)
        mixed = step.mix(Block(slice(None), 0, step.shape[2]))
        evolved = mixed if kernel is None else convolve_maps(step, mixed, mixed, step.kernel, EVOLVE)
        seed = None
        if dropout > 0:  # made on the device, so that each replay of a graph draws another one
            seed = torch.randint(2**62, (1,), device=query.device)
        output, statistics = attend_to_maps(step, evolved, seed, dropout)
    nothing = query.new_empty(0, dtype=torch.int64)
    return output, evolved, given(None if kernel is None else mixed, query), statistics, given(seed, nothing)


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


@torch.library.custom_op(f"{namespace(__name__)}::triton_attention_backward", mutates_args=())
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
        step = prepare(tensors, kernel, bias, residual_gate, conv_gate, layer)
        shape = torch.Size(bias_shape) if bias_shape else None
        backward = TritonBackward(step, had_previous, shape, tuple(needed), dropout)
        grads = backward(grad_output, grad_evolved, mixed, evolved, statistics, found(seed), output)
    return given_gradients(grads, needed, query, kernel, bias, residual_gate, conv_gate)


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


def _backward(ctx: Any, grad_output: torch.Tensor | None, grad_evolved: torch.Tensor | None, *_: None) -> tuple:
    refuse_second_derivatives()
    needed = list(ctx.needs_input_grad[:11])
    state = (ctx.had_previous, ctx.bias_shape, needed, *ctx.layer, ctx.dropout)
    grads = attention_backward(grad_output, grad_evolved, *ctx.saved_tensors, *state)
    grads = [grad if is_needed else None for grad, is_needed in zip(grads, needed, strict=True)]
    return *grads, *[None] * (len(ctx.layer) + 2)


attention.register_autograd(_backward, setup_context=_setup_context)


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
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    residual_gate = None if previous is None else residual_gate
    parameters = (kernel, bias, residual_gate, conv_gate)
    if torch.is_grad_enabled() or previous is None:
        options = (*layer, dropout, memory_efficient)
        output, evolved, *_ = attention(query, key, value, previous, *others, *parameters, *options)
        return output, evolved
    return attention_(query, key, value, previous, *others, *parameters, *layer), previous
