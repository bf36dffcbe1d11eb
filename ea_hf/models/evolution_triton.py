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

from .evolution_blocks import Layer, Step, Tensors, prepare
from .evolution_fast import refuse_second_derivatives, saved_maps, scale_gradients
from .evolution_operators import fake_gradients, found, given, given_gradients, namespace
from .evolution_state import is_traced
from .triton_kernels import EVOLVE, PASS, RETURN, triton
from .triton_launches import MOST_CELLS, attend_to_maps, attention_gradients, convolve_maps, kernel_gradient, mix_maps


IS_INTERPRETED = triton is not None and triton.knobs.runtime.interpret
# That the kernels can hold.
LARGEST_HEAD_DIM = 256
MOST_HEADS = 64
MOST_PROGRAMS = 2**16 - 1  # in the second and third dimension of a grid


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
