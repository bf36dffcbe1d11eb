# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The equations of `evolution.py`, with less memory traffic. `evolution.py` says when they run instead of its own.

The scores are added to the previous map within the matrix product; conv_weight is folded into the kernel
(|c| * relu(conv(x)) = relu(conv'(x))), so these paths are for ReLU only; the cells of a map that the mask hides
may be overwritten in place, since the next layer blocks and hides them again. Weights that are learned are not folded, since at
0 they still get a gradient from what the convolution gives.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .evolution_blocks import (
    Block,
    Layer,
    Step,
    Tensors,
    add_convolved,
    block_cells,
    blocks,
    convolve,
    image,
    image_gradient,
    kernel_gradient,
    mix,
    new_output,
    prepare,
    put_output,
)
from .evolution_flags import draw_kept, let_through, pack, scale_of_kept, unpack
from .undocumented import softmax_backward


def infer(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention without gradients. Overwrites `previous`.

    All but the mixing goes by blocks, so that a layer needs hardly more than one map; to mix less than a sequence at once is slower.

    Returns:
        The output, (batch, query, heads, head_dim), and A_l, (batch, heads, query, key), both of the query's dtype.
    """
    step = prepare(tensors, kernel, bias, residual_gate, conv_gate, layer, contiguous=False)
    if step.previous is not None:
        step = step._replace(previous=step.previous.contiguous())
    evolved = step.query.new_empty(step.shape) if step.previous is None else step.previous
    output = new_output(step)
    above = None
    for block in blocks(step.shape, step.query, layer):
        if block.start == 0:
            sequences = block._replace(stop=step.shape[2])
            step.mix(sequences, in_place=True, out=sequences.of(evolved))
        logits = block.of(evolved)
        if kernel is not None:
            seen = block._replace(stop=block.with_halo(step.shape[2], layer).stop)
            seen_rows = block_cells(seen.of(evolved), seen.of(step.blocked))
            logits, above = convolve_block(logits, above if block.start > 0 else None, seen_rows, step)
            block.of(evolved).copy_(logits)
        if step.hidden is not None:
            logits.masked_fill_(block.of(step.hidden), torch.finfo(logits.dtype).min)
        put_output(output, block, torch.softmax(logits, dim=-1), step.value)
    return output, evolved


def decode(
    tensors: Tensors,
    convolution: nn.Conv2d | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
    with_rows_above: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`infer` for a step of decoding: few query rows, so that the number of operations counts. Overwrites `previous`.

    Args:
        with_rows_above: puts the rows of the steps before on top of M_l with zeros where blocked.
    """
    query, key, value, previous, position_bias, attention_mask, blocked = tensors
    evolved = mix(query, key, previous, position_bias, layer, residual_gate, in_place=True)
    if convolution is not None:
        seen = with_rows_above(block_cells(evolved, blocked))
        # Not folded: to fold the kernel would cost more than to multiply a row.
        kernel, bias = convolution.weight.to(seen.dtype), convolution.bias.to(seen.dtype)
        convolved = (
            convolve_row(seen, kernel, bias, layer) if query.shape[2] == 1 else convolve(seen, kernel, bias, layer)
        )
        if conv_gate is None:  # not `lerp_`: under autocast the rows, and so `convolved`, may be of a wider type
            evolved.mul_(layer.map_share).add_(convolved, alpha=layer.conv_weight)
        else:
            evolved.addcmul_(convolved, conv_gate)
    if attention_mask is not None:
        evolved.masked_fill_(~attention_mask, torch.finfo(evolved.dtype).min)
    output = torch.matmul(torch.softmax(evolved, dim=-1), value)
    return output.transpose(1, 2).contiguous(), evolved


def convolve_row(image: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, layer: Layer) -> torch.Tensor:
    """`convolve` of as many rows as the kernel has, which gives one: a matrix product, whose parts are shifted by columns."""
    columns = kernel.shape[3]
    if layer.groups != 1 or columns > image.shape[3]:
        return convolve(image, kernel, bias, layer)
    heads, middle = kernel.shape[0], columns // 2
    parts = torch.matmul(kernel.permute(3, 0, 1, 2).reshape(columns * heads, -1), image.flatten(1, 2))
    parts = parts.chunk(columns, dim=1)
    convolved = parts[middle].add_(bias.view(-1, 1))
    for shift in range(1, middle + 1):
        convolved[..., shift:].add_(parts[middle - shift][..., :-shift])
        convolved[..., :-shift].add_(parts[middle + shift][..., shift:])
    return convolved.relu_().unsqueeze(2)


def convolve_block(
    block: torch.Tensor, above: torch.Tensor | None, seen: torch.Tensor, step: Step
) -> tuple[torch.Tensor, torch.Tensor]:
    """A_l, equation (2), in a block of query rows.

    Args:
        block: M_l's rows, (batch, heads, rows, key).
        above: the rows before them, as many as the convolution sees above a row, zeros where blocked; `None` for the first.
        seen: the block's rows and those after them that the convolution sees, zeros where blocked.

    Returns:
        The rows of A_l, and what is `above` for the next block.
    """
    layer, rows = step.layer, block.shape[2]
    rows_above = layer.kernel_rows - 1 - layer.padding[0]
    missing = layer.padding[0] - (seen.shape[2] - rows)  # below the last row
    above = seen.new_zeros(*seen.shape[:2], rows_above, seen.shape[3]) if above is None else above
    image = torch.cat([above, seen], dim=2)
    next_above = image[:, :, rows : rows + rows_above]
    image = nn.functional.pad(image, (0, 0, 0, missing)) if missing else image
    convolved = convolve(image, step.kernel, step.bias, layer)
    return add_convolved(block, convolved, step.conv_gate, layer), next_above


def attend(step: Step, dropout: float, keep: bool) -> tuple[torch.Tensor | None, ...]:
    """Attention with gradients, forward.

    Args:
        keep: whether to return the softmax and which cells the ReLU let through.

    Returns:
        The output, M_l, A_l, which may be the same tensor, and what is kept: the softmax, and, packed, which cells
        the ReLU and which ones the dropout let through.
    """
    has_convolution = step.kernel is not None
    output, mixed = new_output(step), step.query.new_empty(step.shape)
    evolved = torch.empty_like(mixed) if has_convolution else mixed
    weights = torch.empty_like(mixed) if keep else None
    positive = torch.empty_like(mixed, dtype=torch.bool) if keep and has_convolution else None
    kept = draw_kept(mixed, dropout) if dropout > 0 else None
    queries, mixed_rows = step.shape[2], 0
    for block in blocks(step.shape, step.query, step.layer):
        seen = block.with_halo(queries, step.layer) if has_convolution else block
        new = block._replace(start=0 if block.start == 0 else mixed_rows, stop=seen.stop)
        if new.start < new.stop:
            logits = step.mix(new)
            new.of(mixed).copy_(logits)
        mixed_rows = seen.stop
        if has_convolution:
            seen_rows = image(seen.of(mixed), block, seen, step.blocked, step.layer)
            logits = convolve(seen_rows, step.kernel, step.bias, step.layer)
            if keep:
                block.of(positive).copy_(logits)  # which has no negative cells; faster than a comparison
            logits = add_convolved(block.of(mixed), logits, step.conv_gate, step.layer)
            block.of(evolved).copy_(logits)
        if step.hidden is not None:
            logits.masked_fill_(block.of(step.hidden), torch.finfo(logits.dtype).min)
        softmax = torch.softmax(logits, dim=-1)
        if keep:
            block.of(weights).copy_(softmax)
        put_output(output, block, let_through(softmax, block.of(kept)), step.value)
    if kept is not None:
        output.mul_(scale_of_kept(dropout))
    return output, mixed, evolved, weights, pack(positive), pack(kept)


class Backward:
    """The backward pass of `EvolvingAttention`, by blocks.

    The gradient of M_l in a row is whole once the blocks before and after it have added what their convolutions saw of it.
    """

    def __init__(
        self,
        step: Step,
        had_previous: bool,
        bias_shape: torch.Size | None,
        needs_input_grad: tuple[bool, ...],
        dropout: float,
    ):
        self.step, self.needs = step, needs_input_grad
        self.scale_of_kept = scale_of_kept(dropout)
        query, kernel, dtype = step.query, step.kernel, torch.promote_types(step.query.dtype, torch.float32)
        self.share = step.layer.score_share if had_previous else 1.0
        # In a wider type where blocks are added up.
        self.grad_query = torch.empty_like(query)
        self.grad_key, self.grad_value = (torch.zeros_like(x, dtype=dtype) for x in (step.key, step.value))
        self.grad_mixed = query.new_empty(step.shape)
        self.grad_position_bias = query.new_zeros(bias_shape, dtype=dtype) if needs_input_grad[4] else None
        self.grad_residual_gate = None
        if needs_input_grad[9] and step.previous is not None:
            self.grad_residual_gate = torch.zeros_like(step.residual_gate, dtype=dtype)
        self.grad_kernel = self.grad_bias = None
        needs_gate = needs_input_grad[10]
        if kernel is not None:
            self.grad_kernel = torch.zeros_like(kernel, dtype=dtype) if needs_input_grad[7] or needs_gate else None
            self.grad_bias = torch.zeros_like(step.bias, dtype=dtype) if needs_input_grad[8] or needs_gate else None
            self.gated_kernel = kernel if step.conv_gate is None else kernel * step.conv_gate.unsqueeze(-1)

    def __call__(
        self,
        grad_output: torch.Tensor | None,
        grad_evolved: torch.Tensor | None,
        mixed: torch.Tensor | None,
        weights: torch.Tensor | None,
        positive: torch.Tensor | None,
        kept: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the arguments of `EvolvingAttention.forward`, from those of the output and of A_l and what `attend` gave."""
        step, layer = self.step, self.step.layer
        positive, kept = unpack(positive, step.shape), unpack(kept, step.shape)
        queries = step.shape[2]
        grad_output = torch.zeros_like(new_output(step)) if grad_output is None else grad_output
        grad_output = grad_output if kept is None else grad_output * self.scale_of_kept
        grad_output = grad_output.transpose(1, 2).contiguous()
        rows_above = 0 if step.kernel is None else layer.kernel_rows - 1 - layer.padding[0]
        finished, carried = 0, None
        for block in blocks(step.shape, step.query, layer):
            if block.start == 0:
                finished, carried = 0, None
            seen = block if step.kernel is None else block.with_halo(queries, layer)
            seen_mixed = seen.of(mixed)
            if mixed is None and (weights is None or step.kernel is not None):
                seen_mixed = step.mix(seen)
            softmax, is_positive = block.of(weights), block.of(positive)
            seen_rows = None
            if step.kernel is not None:
                seen_rows = image(seen_mixed, block, seen, step.blocked, layer)
            if softmax is None:
                softmax, is_positive = self.attend_again(block, seen, seen_mixed, seen_rows)
            grad = self.through_softmax(block, block.of(grad_output), softmax, block.of(kept), block.of(grad_evolved))
            if step.kernel is not None:
                carried = self.through_convolution(block, seen, grad, is_positive, seen_rows, carried)
            else:
                block.of(self.grad_mixed).copy_(grad)
            until = queries if block.stop == queries else max(finished, block.stop - rows_above)
            if until > finished:
                self.through_mixing(block._replace(start=finished, stop=until))
                finished = until
        return self.gradients()

    def attend_again(
        self, block: Block, seen: Block, seen_mixed: torch.Tensor, seen_rows: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The softmax, and which cells the ReLU let through."""
        step, positive = self.step, None
        logits = seen_mixed
        if seen_rows is not None:
            logits = convolve(seen_rows, step.kernel, step.bias, step.layer)
            positive = logits.to(torch.bool)
            first = block.start - seen.start
            own = seen_mixed[:, :, first : first + logits.shape[2]]
            logits = add_convolved(own, logits, step.conv_gate, step.layer)
        if step.hidden is not None:
            logits = logits.masked_fill(block.of(step.hidden), torch.finfo(logits.dtype).min)
        return torch.softmax(logits, dim=-1), positive

    def through_softmax(
        self,
        block: Block,
        grad_output: torch.Tensor,
        weights: torch.Tensor,
        kept: torch.Tensor | None,
        grad_evolved: torch.Tensor | None,
    ) -> torch.Tensor:
        """The gradient of A_l, equation (3)."""
        add_product(self.grad_value[block.sequences], let_through(weights, kept), grad_output)
        grad = torch.matmul(grad_output, self.step.value[block.sequences].transpose(-2, -1))
        grad = softmax_backward(let_through(grad, kept, in_place=True), weights)
        if self.step.hidden is not None:  # not zero by itself in a row that may attend nowhere
            grad.masked_fill_(block.of(self.step.hidden), 0.0)
        return grad if grad_evolved is None else grad.add_(grad_evolved)

    def through_convolution(
        self,
        block: Block,
        seen: Block,
        grad: torch.Tensor,
        positive: torch.Tensor,
        seen_rows: torch.Tensor,
        carried: torch.Tensor | None,
    ) -> torch.Tensor:
        """The gradient of M_l, equation (2), but for what later blocks add to it.

        Args:
            carried: what the block before adds to the first rows of this one.

        Returns:
            What this block adds to the rows below it.
        """
        step, layer = self.step, self.step.layer
        passed = let_through(grad, positive)
        passed = passed if layer.sign > 0 else passed.neg_()
        if self.grad_kernel is not None:
            self.grad_kernel.add_(kernel_gradient(passed, seen_rows, layer))
        if self.grad_bias is not None:
            self.grad_bias.add_(passed.sum(dim=(0, 2, 3)))
        grad_image = image_gradient(passed, self.gated_kernel, layer)
        # Rows beyond the map's edges are no one's.
        first = layer.kernel_rows - 1 - layer.padding[0] - (block.start - seen.start)
        grad_image = grad_image[:, :, first : first + seen.stop - seen.start]
        if step.blocked is not None:
            grad_image = grad_image.masked_fill(seen.of(step.blocked), 0.0)
        own = block.start - seen.start
        if own > 0:
            seen._replace(stop=block.start).of(self.grad_mixed).add_(grad_image[:, :, :own])
        rows = block.stop - block.start
        total = block.of(self.grad_mixed)
        torch.add(grad_image[:, :, own : own + rows], grad, alpha=layer.map_share, out=total)
        if carried is not None:
            total[:, :, : carried.shape[2]].add_(carried)
        return grad_image[:, :, own + rows :]

    def through_mixing(self, block: Block) -> None:
        """The gradients of scores and A_{l-1}, equation (1), in rows in which that of M_l is whole."""
        step, layer, grad = self.step, self.step.layer, block.of(self.grad_mixed)
        block.of(self.grad_query).copy_(torch.matmul(grad, step.key[block.sequences]))
        add_product(self.grad_key[block.sequences], grad, block.of(step.query))
        if self.grad_position_bias is not None:
            total = block.of(self.grad_position_bias)
            total.add_((grad * self.share).sum_to_size(total.shape))
        if self.grad_residual_gate is not None:
            previous = block.of(step.previous)
            self.grad_residual_gate.add_((grad * previous).sum(dim=(0, 2, 3)).view_as(self.grad_residual_gate))
        if self.needs[3]:
            grad.mul_(layer.residual_weight if step.residual_gate is None else step.residual_gate)

    def gradients(self) -> tuple[torch.Tensor | None, ...]:
        step, layer = self.step, self.step.layer
        grads = (self.grad_kernel, self.grad_bias)
        grad_kernel, grad_bias, grad_conv_gate = (*grads, None)
        if step.kernel is not None:
            grad_kernel, grad_bias, grad_conv_gate = scale_gradients(
                *grads, step.kernel, step.bias, step.conv_gate, layer
            )
        factor = self.share * layer.scaling
        return (
            *(self.grad_query.mul_(factor), self.grad_key.mul_(factor), self.grad_value),
            *(self.grad_mixed if self.needs[3] else None, self.grad_position_bias, None, None),
            *(grad_kernel, grad_bias, self.grad_residual_gate, grad_conv_gate, None, None, None),
        )


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds the product of `left`, transposed, and `right`, of each head."""
    total, left, right = total.flatten(0, 1), left.flatten(0, 1).transpose(1, 2), right.flatten(0, 1)
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))


def saved_maps(
    tensors: Tensors | Step,
    has_convolution: bool,
    is_learned: bool,
    mixed: torch.Tensor,
    memory_efficient: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """What the backward pass needs of A_{l-1}, the position bias and M_l."""
    # Scores alone are cheaper to compute again than to keep.
    from_scores = not has_convolution and (tensors.previous is None or not memory_efficient)
    mixed = None if from_scores or is_learned else mixed
    needs_bias = (memory_efficient or is_learned) and mixed is None
    return tensors.previous if is_learned else None, tensors.position_bias if needs_bias else None, mixed


class EvolvingAttention(torch.autograd.Function):
    """Attention with gradients: equations (1) to (3) as one node of the graph.

    It saves M_l, and, unless `memory_efficient`, the softmax and which cells the ReLU let through; the rest is computed
    again in the backward pass. Where weights are learned it saves A_{l-1} in the place of M_l, which follows from it.
    Both passes go by blocks, as in `infer`.

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
        tensors = Tensors(query, key, value, previous, position_bias, attention_mask, blocked)
        step = prepare(tensors, kernel, bias, residual_gate, conv_gate, layer)
        output, mixed, evolved, *kept = attend(step, dropout, not memory_efficient)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.dropout = layer, dropout
        ctx.had_previous, ctx.bias_shape = previous is not None, None if position_bias is None else position_bias.shape
        previous, position_bias, mixed = saved_maps(
            step, kernel is not None, residual_gate is not None, mixed, memory_efficient
        )
        step = step._replace(previous=previous, position_bias=position_bias)
        ctx.save_for_backward(*step[:-1], mixed, *kept)
        return output, evolved

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor | None, grad_evolved: torch.Tensor | None) -> tuple:
        refuse_second_derivatives()
        *tensors, mixed, weights, positive, kept = ctx.saved_tensors
        step = Step(*tensors, ctx.layer)
        backward = Backward(step, ctx.had_previous, ctx.bias_shape, ctx.needs_input_grad, ctx.dropout)
        # As in the forward pass; some run the backward pass too within an autocast context.
        with torch.autocast(step.query.device.type, enabled=False):
            return backward(grad_output, grad_evolved, mixed, weights, positive, kept)


def refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # not `once_differentiable`, which lets `torch.autograd.grad` pass without a word
        raise RuntimeError(
            "Evolving attention has no second derivatives (`create_graph=True`) on its fast path. Call the model with "
            "`output_attention_maps=True`, which takes the path that has them."
        )


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
