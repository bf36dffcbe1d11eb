# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The booleans of a map: dropout's are drawn as PyTorch draws them, and what is packed comes back."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ea_hf.models import evolution_flags
from ea_hf.models.evolution_flags import CELLS_AT_ONCE, draw_by_parts, draw_kept, pack, scale_of_kept, unpack


SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 4, 8), (0, 2, 3, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [1e-9, 0.1, 1 / 3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 1, 1, CELLS_AT_ONCE + 5)], ids=str)
def test_dropout_draws_what_pytorch_would(shape, dropout, dtype):
    """The same cells from the same seed, and after them the same numbers."""
    torch.manual_seed(0)
    expected = nn.functional.dropout(torch.ones(shape, dtype=dtype, device="cpu"), p=dropout)
    next_number = torch.rand(1, device="cpu")
    torch.manual_seed(0)
    kept = draw_kept(torch.empty(shape, dtype=dtype, device="cpu"), dropout)
    assert torch.equal(torch.rand(1, device="cpu"), next_number)
    assert torch.equal(kept, expected != 0)
    torch.testing.assert_close(kept.to(dtype) * scale_of_kept(dropout), expected)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.3, 0.9, 1.0])
def test_a_cell_is_kept_where_a_uniform_number_is_below_the_probability(probability):
    """On every processor."""
    kept = torch.empty(2 * CELLS_AT_ONCE + 5, dtype=torch.bool, device="cpu")
    draw_by_parts(kept, probability, torch.Generator().manual_seed(0))
    numbers = torch.rand(len(kept), dtype=torch.float64, device="cpu", generator=torch.Generator().manual_seed(0))
    assert torch.equal(kept, numbers < probability)


def test_where_pytorch_draws_other_numbers_so_do_we(monkeypatch):
    """As it does on processors for which it calls MKL."""

    def draw_none(kept, probability, generator=None):
        return kept.zero_()

    monkeypatch.setattr(evolution_flags, "draw_by_parts", draw_none)
    evolution_flags._uniform_numbers_decide.cache_clear()
    try:
        torch.manual_seed(0)
        kept = draw_kept(torch.empty((1, 2, 9, 9), device="cpu"), 0.1)
    finally:
        evolution_flags._uniform_numbers_decide.cache_clear()
    torch.manual_seed(0)
    assert torch.equal(kept, torch.empty((1, 2, 9, 9), dtype=torch.bool, device="cpu").bernoulli_(0.9))


def test_looking_at_how_pytorch_draws_takes_no_number():
    evolution_flags._uniform_numbers_decide.cache_clear()
    torch.manual_seed(0)
    evolution_flags._uniform_numbers_decide()
    actual = torch.rand(1, device="cpu")
    torch.manual_seed(0)
    assert torch.equal(actual, torch.rand(1, device="cpu"))


def test_fake_tensors_are_drawn_as_such():
    with FakeTensorMode() as mode:
        maps = torch.empty((1, 2, 9, 9), device="cpu")
        within = draw_kept(maps, 0.1)
    for kept in (within, draw_kept(maps, 0.1)):
        assert kept.fake_mode is mode and kept.shape == maps.shape and kept.dtype == torch.bool


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_recorded_draws_are_pytorchs_and_new_in_each_run(tracing_mode):
    maps = torch.empty((1, 2, 9, 9), device="cpu")
    recorded = make_fx(lambda maps: draw_kept(maps, 0.1), tracing_mode=tracing_mode)(maps)
    torch.manual_seed(0)
    first, second = recorded(maps), recorded(maps)
    torch.manual_seed(0)
    assert torch.equal(first, draw_kept(maps, 0.1)) and torch.equal(second, draw_kept(maps, 0.1))


@pytest.mark.parametrize("shape", SHAPES)
def test_flags_are_packed_and_unpacked(shape):
    flags = torch.rand(shape) > 0.5
    packed = pack(flags)
    assert packed.dtype == torch.uint8 and packed.numel() == (flags.numel() + 7) // 8
    assert torch.equal(unpack(packed, flags.shape), flags)
    assert pack(None) is None and unpack(None, flags.shape) is None
