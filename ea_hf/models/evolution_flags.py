# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which cells of a map something lets through, the ReLU or the dropout: drawn, packed for the backward pass, and applied."""

import functools
import math

import torch
from torch import nn

from .undocumented import is_recorded


# How many cells are drawn at once on a CPU: what stays in the processor's cache.
CELLS_AT_ONCE = 2**15

# Times eight bytes that are 0 or 1 each, it gathers them in the highest byte; times a byte, it spreads that over the highest bits of eight.
_GATHER = 0x8040201008040201 - 2**64
_LOWEST_BITS = 0x0101010101010101


def draw_kept(maps: torch.Tensor, dropout: float) -> torch.Tensor:
    """Booleans, True where dropout lets through: those that `torch.nn.functional.dropout` of the maps would draw next."""
    kept = torch.empty_like(maps, dtype=torch.bool)
    if dropout == 1:
        return kept.zero_()  # without a number, as PyTorch does
    is_own = type(kept) is torch.Tensor and kept.device.type == "cpu" and not is_recorded()
    if is_own and _uniform_numbers_decide():
        return draw_by_parts(kept, 1 - dropout)
    return kept.bernoulli_(1 - dropout)


def draw_by_parts(kept: torch.Tensor, probability: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """`kept.bernoulli_(probability)`: True where the lower 53 of 64 random bits, as a fraction, are less than it."""
    limit = math.ceil(probability * 2**53)
    cells = kept.view(-1)
    bits = torch.empty(min(CELLS_AT_ONCE, len(cells)), dtype=torch.int64, device="cpu")
    for part in cells.split(CELLS_AT_ONCE):
        part_bits = bits[: len(part)].random_(-(2**63), None, generator=generator).bitwise_and_(2**53 - 1)
        torch.lt(part_bits, limit, out=part)
    return kept


@functools.cache
def _uniform_numbers_decide() -> bool:
    """Whether `bernoulli_` gives on this CPU what `draw_by_parts` does in less time.

    It takes a number for each cell on most; on some it calls MKL, which draws others.
    """
    theirs, ours = (torch.empty(1024, dtype=torch.bool, device="cpu") for _ in range(2))
    theirs.bernoulli_(0.5, generator=torch.Generator().manual_seed(0))
    return torch.equal(theirs, draw_by_parts(ours, 0.5, torch.Generator().manual_seed(0)))


def scale_of_kept(dropout: float) -> float:
    """The factor of what dropout lets through."""
    return 1 / (1 - dropout) if dropout < 1 else 0.0


def pack(flags: torch.Tensor | None) -> torch.Tensor | None:
    """Booleans as bits, eight in a byte."""
    if flags is None:
        return None
    flags = flags.flatten()
    missing = -len(flags) % 8
    flags = nn.functional.pad(flags, (0, missing)) if missing else flags
    return flags.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    """The booleans that were packed, in their shape."""
    if packed is None:
        return None
    spread = packed.to(torch.int64).mul_(_GATHER).bitwise_right_shift_(7).bitwise_and_(_LOWEST_BITS)
    return spread.view(torch.bool)[: shape.numel()].view(shape)


def let_through(maps: torch.Tensor, flags: torch.Tensor | None, in_place: bool = False) -> torch.Tensor:
    """Maps, zero where flags are False. PyTorch multiplies by bytes many times as fast as by booleans."""
    if flags is None:
        return maps
    return (maps.mul_ if in_place else maps.mul)(flags.view(torch.uint8))
