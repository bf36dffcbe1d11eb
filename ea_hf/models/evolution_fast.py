# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The equations of `evolution.py`, with less memory traffic. `evolution.py` says when they run instead of its own.

The scores are added to the previous map within the matrix product; conv_weight is folded into the kernel
(|c| * relu(conv(x)) = relu(conv'(x))), so these paths are for ReLU only; the cells of a map that the mask hides
are overwritten in place, since the next layer blocks and hides them again. Weights that are learned are not folded, since at
0 they still get a gradient from what the convolution gives.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .undocumented import softmax_backward


# Size of a block of maps in inference. On a CPU a thread's share should fit into its cache; elsewhere the size only
# bounds the memory.
BLOCK_BYTES_PER_THREAD = 2**20
BLOCK_BYTES_OF_ACCELERATOR = 2**28


class Layer(NamedTuple):
    """The constants of one layer's step."""

    scaling: float
    residual_weight: float
    conv_weight: float
    kernel_rows: int
    kernel_columns: int
    is_causal: bool
    mixing: str = "convex"
    groups: int = 1

    @property
    def score_share(self) -> float:
        """The factor of S_l where there is a previous map."""
        return 1 - self.residual_weight if self.mixing == "convex" else 1.0

    @property
    def map_share(self) -> float:
        """The factor of M_l where there is a convolution."""
        return 1 - self.conv_weight if self.mixing == "convex" else 1.0

    @property
    def folded(self) -> float:
        """The factor that the kernel contains."""
        return 1.0 if self.mixing == "learned" else abs(self.conv_weight)

    @property
    def sign(self) -> int:
        """The factor of what the folded convolution gives, unless a gate is."""
        return -1 if self.mixing == "additive" and self.conv_weight < 0 else 1

    @property
    def padding(self) -> tuple[int, int]:
        return (0 if self.is_causal else self.kernel_rows // 2, self.kernel_columns // 2)


class Tensors(NamedTuple):
    """What an attention function gets.

    Attributes:
        query: (batch, heads, query, head_dim).
        key: (batch, heads, key, head_dim).
        value: likewise.
        previous: A_{l-1}, (batch, heads, query, key), if the layer takes it.
        position_bias: (batch or 1, heads, query, key), if there is any.
        attention_mask: broadcastable to (batch, heads, query, key), if there is any.
        blocked: boolean, broadcastable to (batch, 1, query, key); where the convolution must see zeros, if anywhere.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    previous: torch.Tensor | None
    position_bias: torch.Tensor | None
    attention_mask: torch.Tensor | None
    blocked: torch.Tensor | None


def mix(
    query: torch.Tensor,
    key: torch.Tensor,
    previous: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    layer: Layer,
    residual_gate: torch.Tensor | None = None,
    in_place: bool = False,
) -> torch.Tensor:
    """M_l, (batch, heads, query, key), equation (1); written into `previous` if `in_place`."""
    shape = (*query.shape[:-1], key.shape[-2])
    query, key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    if previous is None:
        share = 1.0
        mixed = torch.bmm(query, key).mul_(layer.scaling)
    else:
        share, beta = layer.score_share, layer.residual_weight
        if residual_gate is not None:
            previous = previous.mul_(residual_gate) if in_place else previous * residual_gate
            in_place, beta = True, 1.0
        previous = previous.flatten(0, 1)
        add = previous.baddbmm_ if in_place else previous.baddbmm
        mixed = add(query, key, beta=beta, alpha=share * layer.scaling)
    mixed = mixed.view(shape)
    if position_bias is not None:
        mixed.add_(position_bias, alpha=share)
    return mixed


def convolve(image: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, layer: Layer) -> torch.Tensor:
    """relu(Conv2d(M_l)) with folded weights, (batch, heads, query, key)."""
    if layer.is_causal:
        image = nn.functional.pad(image, (0, 0, layer.kernel_rows - 1, 0))
    return nn.functional.conv2d(image, kernel, bias, padding=layer.padding, groups=layer.groups).relu_()


def add_convolved(
    mixed: torch.Tensor, convolved: torch.Tensor, conv_gate: torch.Tensor | None, layer: Layer
) -> torch.Tensor:
    """A_l, equation (2), written into `convolved`."""
    if conv_gate is not None:
        return torch.addcmul(mixed, convolved, conv_gate, out=convolved)
    convolved = convolved.neg_() if layer.sign < 0 else convolved
    return convolved.add_(mixed, alpha=layer.map_share)


def block_cells(maps: torch.Tensor, blocked: torch.Tensor | None) -> torch.Tensor:
    return maps if blocked is None else maps.masked_fill(blocked, 0.0)


def fold(parameter: torch.Tensor, layer: Layer, dtype: torch.dtype) -> torch.Tensor:
    return (parameter.detach() * layer.folded).to(dtype)


def infer(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention without gradients. Overwrites `previous`.

    All but the mixing goes by blocks (several sequences, or some query rows of one), which stay in the processor's
    cache, so that a layer needs hardly more than one map.

    Returns:
        The output, (batch, query, heads, head_dim), and A_l, (batch, heads, query, key), both of the query's dtype.
    """
    query, key, value, previous, position_bias, attention_mask, blocked = tensors
    evolved = mix(query, key, previous, position_bias, layer, residual_gate, in_place=True)
    if kernel is not None:
        kernel, bias = fold(kernel, layer, evolved.dtype), fold(bias, layer, evolved.dtype)
    batch, heads, queries, keys = evolved.shape
    output = query.new_empty(batch, queries, heads, value.shape[-1])
    hidden = None if attention_mask is None else (~attention_mask).expand(batch, -1, queries, keys)
    blocked = None if blocked is None else blocked.expand(batch, -1, queries, keys)
    bytes_per_row = max(1, heads * keys * evolved.element_size())
    is_cpu = query.device.type == "cpu"
    budget = BLOCK_BYTES_PER_THREAD * torch.get_num_threads() if is_cpu else BLOCK_BYTES_OF_ACCELERATOR
    items = max(1, budget // max(1, bytes_per_row * queries))
    rows = queries if items > 1 else max(layer.kernel_rows, budget // bytes_per_row)
    for first in range(0, batch, items):
        part = slice(first, first + items)
        above = evolved.new_zeros(len(evolved[part]), heads, layer.kernel_rows - 1 - layer.padding[0], keys)
        for start in range(0, queries, rows):
            block = evolved[part, :, start : start + rows]
            if kernel is not None:
                below = slice(start, start + rows + layer.padding[0])
                seen = evolved[part, :, below]
                if blocked is not None:
                    seen = seen.masked_fill(blocked[part, :, below], 0.0)
                above = convolve_block(block, above, seen, kernel, bias, conv_gate, layer)
            if hidden is not None:
                block.masked_fill_(hidden[part, :, start : start + rows], torch.finfo(evolved.dtype).min)
            weights = torch.softmax(block, dim=-1)
            output[part, start : start + rows] = torch.matmul(weights, value[part]).transpose(1, 2)
    return output, evolved


def convolve_block(
    block: torch.Tensor,
    above: torch.Tensor,
    seen: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    conv_gate: torch.Tensor | None,
    layer: Layer,
) -> torch.Tensor:
    """Turns M_l into A_l, equation (2), in a block of query rows, in place.

    Args:
        block: M_l's rows, (batch, heads, rows, key).
        above: the rows before them, as many as the convolution sees above a row, zeros where blocked.
        seen: the block's rows and those after them that the convolution sees, zeros where blocked.

    Returns:
        What is `above` for the next block.
    """
    rows = block.shape[2]
    image = torch.cat([above, seen], dim=2)
    next_above = image[:, :, rows : rows + above.shape[2]]
    missing = layer.padding[0] - (seen.shape[2] - rows)  # below the last row
    image = nn.functional.pad(image, (0, 0, 0, missing)) if missing else image
    image = nn.functional.conv2d(image, kernel, bias, padding=(0, layer.padding[1]), groups=layer.groups)
    if conv_gate is None:
        block.mul_(layer.map_share).add_(image.relu_(), alpha=layer.sign)
    else:
        block.addcmul_(image.relu_(), conv_gate)
    return next_above


class EvolvingAttention(torch.autograd.Function):
    """Attention with gradients: equations (1) to (3) as one node of the graph.

    It saves M_l, and, unless `memory_efficient`, the softmax and which cells the ReLU let through; the rest is computed
    again in the backward pass. Where weights are learned it saves A_{l-1} in the place of M_l, which follows from it.

    `residual_gate` and `conv_gate` are those weights, (heads, 1, 1), in "learned" only.
    """

    @staticmethod
    def forward(
        ctx: Any,
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
        layer: Layer,
        dropout: float,
        memory_efficient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = evolved = mix(query, key, previous, position_bias, layer, residual_gate)
        positive = None
        if kernel is not None:
            kernel, bias = fold(kernel, layer, mixed.dtype), fold(bias, layer, mixed.dtype)
            evolved = convolve(block_cells(mixed, blocked), kernel, bias, layer)
            if not memory_efficient:
                positive = evolved > 0
            evolved = add_convolved(mixed, evolved, conv_gate, layer)
        weights = softmax(evolved, attention_mask)
        kept = None
        if dropout > 0:
            kept = torch.empty(weights.shape, dtype=torch.bool, device=weights.device).bernoulli_(1 - dropout)
        output = torch.matmul(drop(weights, kept, dropout), value)

        ctx.layer, ctx.dropout = layer, dropout
        ctx.bias_shape = None if position_bias is None else position_bias.shape
        ctx.had_previous = previous is not None
        # Scores alone are cheaper to compute again than to keep.
        saved = None if kernel is None and (previous is None or not memory_efficient) else mixed
        is_learned = residual_gate is not None
        saved = None if is_learned else saved
        ctx.save_for_backward(
            query,
            key,
            value,
            saved,
            previous if is_learned else None,
            position_bias if (memory_efficient or is_learned) and saved is None else None,
            None if memory_efficient else weights,
            positive,
            kept,
            kernel,
            bias,
            residual_gate,
            conv_gate,
            attention_mask,
            blocked,
        )
        return output.transpose(1, 2).contiguous(), evolved

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, grad_evolved: torch.Tensor | None) -> tuple:
        if torch.is_grad_enabled():  # not `once_differentiable`, which lets `torch.autograd.grad` pass without a word
            raise RuntimeError(
                "Evolving attention has no second derivatives (`create_graph=True`) on its fast path. Call the model with "
                "`output_attention_maps=True`, which takes the path that has them."
            )
        query, key, value, mixed, previous, position_bias, weights, positive, kept, *parameters = ctx.saved_tensors
        kernel, bias, residual_gate, conv_gate, attention_mask, blocked = parameters
        layer, dropout = ctx.layer, ctx.dropout
        if mixed is None and (weights is None or kernel is not None):
            mixed = mix(query, key, previous, position_bias, layer, residual_gate)
        if weights is None:
            evolved = mixed
            if kernel is not None:
                evolved = convolve(block_cells(mixed, blocked), kernel, bias, layer)
                positive = evolved > 0
                evolved = add_convolved(mixed, evolved, conv_gate, layer)
            weights = softmax(evolved, attention_mask)
            del evolved

        # Equation (3).
        grad_output = grad_output.transpose(1, 2)
        grad_value = torch.matmul(drop(weights, kept, dropout).transpose(-2, -1), grad_output)
        grad = drop(torch.matmul(grad_output, value.transpose(-2, -1)), kept, dropout)
        grad = softmax_backward(grad, weights)
        if attention_mask is not None:  # not zero by itself in a row that may attend nowhere
            grad.masked_fill_(~attention_mask, 0.0)
        if grad_evolved is not None:
            grad = grad.add_(grad_evolved)

        # Equation (2).
        grad_kernel = grad_bias = grad_conv_gate = None
        if kernel is not None:
            needed = (ctx.needs_input_grad[7], ctx.needs_input_grad[8], ctx.needs_input_grad[10])
            passed = grad * positive if layer.sign > 0 else grad * -positive.to(grad.dtype)
            grad_image, *grads = convolution_backward(passed, mixed, blocked, kernel, conv_gate, layer, needed)
            grad = grad.mul_(layer.map_share).add_(grad_image)
            grad_kernel, grad_bias, grad_conv_gate = scale_gradients(*grads, kernel, bias, conv_gate, layer)

        # Equation (1).
        share = layer.score_share if ctx.had_previous else 1.0
        grad_query = torch.matmul(grad, key).mul_(share * layer.scaling)
        grad_key = torch.matmul(grad.transpose(-2, -1), query).mul_(share * layer.scaling)
        grad_position_bias = grad_previous = grad_residual_gate = None
        if ctx.needs_input_grad[4]:
            grad_position_bias = (grad * share).sum_to_size(ctx.bias_shape)
        if ctx.needs_input_grad[9] and previous is not None:
            grad_residual_gate = (grad * previous).sum(dim=(0, 2, 3)).view_as(residual_gate)
        if ctx.needs_input_grad[3]:
            grad_previous = grad.mul_(layer.residual_weight if residual_gate is None else residual_gate)
        return (
            *(grad_query, grad_key, grad_value, grad_previous, grad_position_bias, None, None),
            *(grad_kernel, grad_bias, grad_residual_gate, grad_conv_gate, None, None, None),
        )


def convolution_backward(
    grad: torch.Tensor,
    mixed: torch.Tensor,
    blocked: torch.Tensor | None,
    kernel: torch.Tensor,
    conv_gate: torch.Tensor | None,
    layer: Layer,
    needed: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of M_l, and of the kernel and the bias as they are folded, from that of the convolution before its gate."""
    image = block_cells(mixed, blocked)
    if layer.is_causal:
        image = nn.functional.pad(image, (0, 0, layer.kernel_rows - 1, 0))
    grad_image, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        image,
        kernel if conv_gate is None else kernel * conv_gate.unsqueeze(-1),
        [kernel.shape[0]],
        (1, 1),
        layer.padding,
        (1, 1),
        False,
        (0, 0),
        layer.groups,
        (True, needed[0] or needed[2], needed[1] or needed[2]),
    )
    if layer.is_causal:
        grad_image = grad_image[:, :, layer.kernel_rows - 1 :]
    return block_cells(grad_image, blocked), grad_kernel, grad_bias


def scale_gradients(
    grad_kernel: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    conv_gate: torch.Tensor | None,
    layer: Layer,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of the kernel, the bias and the gate, from those of the folded kernel and bias before the gate."""
    if conv_gate is None:
        return *(None if grad is None else grad * layer.folded for grad in (grad_kernel, grad_bias)), None
    grad_gate = None
    if grad_kernel is not None and grad_bias is not None:
        # What the convolution gives is linear in its parameters, so their gradients tell its own without the map.
        grad_gate = ((grad_kernel * kernel).sum(dim=(1, 2, 3)) + grad_bias * bias).view_as(conv_gate)
    grad_kernel = None if grad_kernel is None else grad_kernel * conv_gate.unsqueeze(-1)
    grad_bias = None if grad_bias is None else grad_bias * conv_gate.flatten()
    return grad_kernel, grad_bias, grad_gate


def softmax(evolved: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Overwrites the cells of `evolved` that the mask hides."""
    if attention_mask is not None:
        evolved.masked_fill_(~attention_mask, torch.finfo(evolved.dtype).min)
    return torch.softmax(evolved, dim=-1)


def drop(weights: torch.Tensor, kept: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return weights if kept is None else (weights * kept).mul_(1 / (1 - dropout))
