# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts that the passes of `evolution_fast.py` are made of, and the blocks that these go by."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn


# Size of a block of maps. On a CPU a thread's share should fit into its cache; elsewhere the size only
# bounds the memory.
BLOCK_BYTES_PER_THREAD = 2**21
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


class Block(NamedTuple):
    """Query rows of some sequences of a batch."""

    sequences: slice
    start: int
    stop: int

    def of(self, tensor: torch.Tensor | None) -> Any:
        """Its part of something broadcastable to (batch, heads, query, key)."""
        if tensor is None:
            return None
        sequences = self.sequences if tensor.shape[0] > 1 else slice(None)
        return tensor[sequences, :, self.start : self.stop] if tensor.shape[2] > 1 else tensor[sequences]

    def with_halo(self, queries: int, layer: Layer) -> "Block":
        """The rows that the convolution sees."""
        below = layer.padding[0]
        above = layer.kernel_rows - 1 - below
        return self._replace(start=max(0, self.start - above), stop=min(queries, self.stop + below))


def blocks(shape: torch.Size, like: torch.Tensor, layer: Layer) -> Iterator[Block]:
    """Blocks of maps that stay in the processor's cache, several sequences or some query rows of one, in order.

    Args:
        shape: of the maps, (batch, heads, query, key).
        like: a tensor of their type and device.
    """
    batch, heads, queries, keys = shape
    bytes_per_row = max(1, heads * keys * like.element_size())
    is_cpu = like.device.type == "cpu"
    budget = BLOCK_BYTES_PER_THREAD * torch.get_num_threads() if is_cpu else BLOCK_BYTES_OF_ACCELERATOR
    # Whole sequences get half of it: a convolution of more images than one takes longer for each.
    sequences = max(1, budget // 2 // max(1, bytes_per_row * queries))
    parts = 1 if sequences > 1 else -(-queries // max(1, budget // bytes_per_row))
    rows = max(layer.kernel_rows, -(-queries // max(1, parts)))  # alike, so that no block has a few rows only
    for first in range(0, batch, sequences):
        for start in range(0, queries, rows):
            yield Block(slice(first, min(batch, first + sequences)), start, min(queries, start + rows))


def mix(
    query: torch.Tensor,
    key: torch.Tensor,
    previous: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    layer: Layer,
    residual_gate: torch.Tensor | None = None,
    in_place: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """M_l, (batch, heads, query, key), equation (1); written into `previous` if `in_place`, into `out` if there is no `previous`."""
    shape = (*query.shape[:-1], key.shape[-2])
    query, key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    if previous is None:
        share = 1.0
        mixed = torch.bmm(query, key, out=None if out is None else out.flatten(0, 1)).mul_(layer.scaling)
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


def image(mixed: torch.Tensor, block: Block, seen: Block, blocked: torch.Tensor | None, layer: Layer) -> torch.Tensor:
    """What the convolution of a block sees: zeros where blocked, above the first row and below the last one.

    Args:
        mixed: M_l in the rows `seen`, which are `block.with_halo`.
    """
    below = layer.padding[0]
    above = layer.kernel_rows - 1 - below
    missing = (above - (block.start - seen.start), below - (seen.stop - block.stop))
    mixed = block_cells(mixed, seen.of(blocked))
    return nn.functional.pad(mixed, (0, 0, *missing)) if any(missing) else mixed


def convolve(image: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, layer: Layer) -> torch.Tensor:
    """relu(Conv2d(M_l)) with folded weights, in the rows of a block."""
    return nn.functional.conv2d(image, kernel, bias, padding=(0, layer.padding[1]), groups=layer.groups).relu_()


def image_gradient(grad: torch.Tensor, kernel: torch.Tensor, layer: Layer) -> torch.Tensor:
    """What a convolution's output passes on to its image: a convolution with the kernel turned around.

    PyTorch has an operation for it, which takes longer on a CPU.

    Args:
        grad: of the output, (batch, heads, rows, key).
        kernel: (heads, heads / groups, kernel rows, kernel columns).

    Returns:
        (batch, heads, rows + kernel rows - 1, key).
    """
    turned = kernel.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    padding = (layer.kernel_rows - 1, layer.kernel_columns - 1 - layer.padding[1])
    return nn.functional.conv2d(grad, turned, padding=padding, groups=layer.groups)


def kernel_gradient(grad: torch.Tensor, image: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The gradient of a kernel, (heads, heads / groups, kernel rows, kernel columns).

    Where all heads are mixed, it is a sum of matrix products, a row of the maps each: those rows of all heads that a kernel
    covers lie one after the other once the heads stand within the rows, so one product is for all rows of a kernel's column.
    PyTorch's operation takes longer on a CPU.

    Args:
        grad: of the convolution's output, (batch, heads, rows, key).
        image: what the convolution saw, (batch, heads, rows + kernel rows - 1, key).
    """
    batch, heads, rows, keys = grad.shape
    sizes = (heads, heads // layer.groups, layer.kernel_rows, layer.kernel_columns)
    if layer.groups > 1 or grad.device.type != "cpu":
        constants = ((1, 1), (0, layer.padding[1]), (1, 1), False, (0, 0), layer.groups, (False, True, False))
        return torch.ops.aten.convolution_backward(grad, image, grad.new_empty(sizes), None, *constants)[1]
    columns, seen_rows = layer.padding[1], image.shape[2]
    width = keys + 2 * columns
    # The rows of all sequences after one another.
    stacked = nn.functional.pad(image.transpose(1, 2), (columns, columns)).contiguous().flatten(0, 1)
    grads, count = grad.transpose(1, 2), batch * seen_rows - (seen_rows - rows)
    if batch > 1:  # a product of rows that reach into the next sequence is with zeros
        grads = nn.functional.pad(grads, (0, 0, 0, 0, 0, seen_rows - rows))
    grads = grads.flatten(0, 1)[:count]
    products = []
    for column in range(layer.kernel_columns):
        covered = stacked.as_strided(
            (count, layer.kernel_rows * heads, keys), (heads * width, width, 1), stacked.storage_offset() + column
        )
        products.append(torch.bmm(grads, covered.transpose(1, 2)).sum(dim=0))
    return torch.stack(products, dim=-1).unflatten(1, (layer.kernel_rows, heads)).transpose(1, 2)


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


class Step(NamedTuple):
    """What a layer's step computes with: `Tensors`, and the parameters, folded."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    previous: torch.Tensor | None
    position_bias: torch.Tensor | None
    hidden: torch.Tensor | None  # where `attention_mask` is False
    blocked: torch.Tensor | None
    kernel: torch.Tensor | None
    bias: torch.Tensor | None
    residual_gate: torch.Tensor | None
    conv_gate: torch.Tensor | None
    layer: Layer

    @property
    def shape(self) -> torch.Size:
        """Of the maps."""
        return torch.Size((*self.query.shape[:-1], self.key.shape[-2]))

    def mix(self, block: Block, in_place: bool = False, out: torch.Tensor | None = None) -> torch.Tensor:
        """M_l in a block, equation (1); see `mix`."""
        query, key = block.of(self.query), self.key[block.sequences]
        previous, position_bias = block.of(self.previous), block.of(self.position_bias)
        return mix(query, key, previous, position_bias, self.layer, self.residual_gate, in_place, out)


def prepare(
    tensors: Tensors,
    kernel: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual_gate: torch.Tensor | None,
    conv_gate: torch.Tensor | None,
    layer: Layer,
    contiguous: bool = True,
) -> Step:
    """With queries, keys and values in memory as their shapes are, if `contiguous`: each sequence and head is then read several times."""
    query, key, value, previous, position_bias, attention_mask, blocked = tensors
    if contiguous:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    if kernel is not None:
        kernel, bias = fold(kernel, layer, query.dtype), fold(bias, layer, query.dtype)
    hidden = None if attention_mask is None else ~attention_mask
    return Step(
        query, key, value, previous, position_bias, hidden, blocked, kernel, bias, residual_gate, conv_gate, layer
    )


def new_output(step: Step) -> torch.Tensor:
    """(batch, query, heads, head_dim), not filled."""
    batch, heads, queries, _ = step.shape
    return step.query.new_empty(batch, queries, heads, step.value.shape[-1])


def put_output(output: torch.Tensor, block: Block, weights: torch.Tensor, value: torch.Tensor) -> None:
    """Writes a block of the output, equation (3)."""
    product = torch.matmul(weights, value[block.sequences])
    output[block.sequences, block.start : block.stop] = product.transpose(1, 2)
