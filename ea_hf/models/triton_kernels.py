# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The kernels of `evolution_triton.py`, in Triton. Maps are (batch, heads, query, key), contiguous; masks are bytes.

Names in capitals are constants of a compiled kernel: HEADS and HEAD_DIM are padded to powers of 2; ABOVE is how many rows above
a query's the convolution sees; SHARE and SIGN are `Layer.map_share` and `Layer.sign`; ACCUMULATOR is the type that sums are in,
and PRECISION says how float32 is multiplied.
"""

from typing import Any


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# Finite, so that a row that may attend nowhere becomes uniform, as in `evolution.py`.
LOWEST = -3.0e38


constexpr = None if tl is None else tl.constexpr


def jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


def constant(value: Any) -> Any:
    """What kernels may see of a global."""
    return value if triton is None else constexpr(value)


_LOWEST = constant(LOWEST)
# What `convolve` does with the convolution C of `image`, and a map `base`.
EVOLVE, PASS, RETURN = range(3)
_EVOLVE, _PASS, _RETURN = (constant(purpose) for purpose in (EVOLVE, PASS, RETURN))


@jit
def convolve(
    image,
    base,
    kernel,
    bias,
    gate,
    blocked,
    out,
    heads,
    queries,
    keys,
    cells_of_map,
    blocked_batch,
    blocked_row,
    blocked_column,
    SHARE: constexpr,
    SIGN: constexpr,
    PURPOSE: constexpr,
    KERNEL_ROWS: constexpr,
    KERNEL_COLUMNS: constexpr,
    ABOVE: constexpr,
    IS_GROUPED: constexpr,
    HEADS: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """All heads of a tile of ROWS x COLUMNS cells.

    EVOLVE: A_l = SHARE * base + SIGN (or gate) * relu(C + bias); PASS: base * SIGN where C + bias > 0, else 0;
    RETURN, in which C looks the other way: SHARE * base + C, C = 0 where blocked. In the others `image` is 0 where blocked.
    """
    batch = tl.program_id(2).to(tl.int64)
    cell = tl.arange(0, ROWS * COLUMNS)
    rows = tl.program_id(1) * ROWS + cell // COLUMNS
    columns = tl.program_id(0) * COLUMNS + cell % COLUMNS
    head = tl.arange(0, HEADS)
    is_head = head < heads
    maps = batch * heads * cells_of_map + head.to(tl.int64)[:, None] * cells_of_map
    total = tl.zeros([HEADS, ROWS * COLUMNS], ACCUMULATOR)
    for shift in range(KERNEL_ROWS * KERNEL_COLUMNS):
        if PURPOSE != _RETURN:
            row = rows + shift // KERNEL_COLUMNS - ABOVE
            column = columns + shift % KERNEL_COLUMNS - KERNEL_COLUMNS // 2
        else:
            row = rows - shift // KERNEL_COLUMNS + ABOVE
            column = columns - shift % KERNEL_COLUMNS + KERNEL_COLUMNS // 2
        is_seen = (row >= 0) & (row < queries) & (column >= 0) & (column < keys)
        if blocked is not None and PURPOSE != _RETURN:
            where = batch * blocked_batch + row.to(tl.int64) * blocked_row + column * blocked_column
            is_seen = is_seen & (tl.load(blocked + where, mask=is_seen, other=1) == 0)
        seen = tl.load(
            image + maps + (row * keys + column)[None, :], mask=is_head[:, None] & is_seen[None, :], other=0.0
        )
        if IS_GROUPED:
            total += tl.load(kernel + shift * HEADS + head)[:, None].to(ACCUMULATOR) * seen.to(ACCUMULATOR)
        else:
            weight = tl.load(kernel + (shift * HEADS + head[:, None]) * HEADS + head[None, :])
            total = tl.dot(weight, seen, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    is_inside = (rows < queries) & (columns < keys)
    where = maps + (rows * keys + columns)[None, :]
    is_valid = is_head[:, None] & is_inside[None, :]
    own = tl.load(base + where, mask=is_valid, other=0.0).to(ACCUMULATOR)
    if PURPOSE != _RETURN:
        total += tl.load(bias + head)[:, None].to(ACCUMULATOR)
    if PURPOSE == _EVOLVE:
        total = tl.where(total < 0, 0.0, total)  # NaN remains NaN
        total = total * SIGN
        if gate is not None:
            total = total * tl.load(gate + head)[:, None].to(ACCUMULATOR)
        result = own * SHARE + total
    elif PURPOSE == _PASS:
        result = tl.where(total > 0, own * SIGN, 0.0)
    else:
        if blocked is not None:
            blocks = batch * blocked_batch + rows.to(tl.int64) * blocked_row + columns * blocked_column
            is_blocked = tl.load(blocked + blocks, mask=is_inside, other=1) != 0
            total = tl.where(is_blocked[None, :], 0.0, total)
        result = own * SHARE + total
    tl.store(out + where, result.to(out.dtype.element_ty), mask=is_valid)


@jit
def sum_kernel_gradient(
    passed,
    image,
    blocked,
    partial_sums,
    heads,
    queries,
    keys,
    cells_of_map,
    tiles_of_map,
    tiles,
    tiles_of_sum,
    blocked_batch,
    blocked_row,
    blocked_column,
    KERNEL_ROWS: constexpr,
    KERNEL_COLUMNS: constexpr,
    ABOVE: constexpr,
    IS_GROUPED: constexpr,
    HEADS: constexpr,
    CELLS: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """The gradient of one cell of the convolution's kernel, for all heads, from some tiles of the maps."""
    shift = tl.program_id(1)
    head = tl.arange(0, HEADS)
    is_head = (head < heads)[:, None]
    first = tl.program_id(0) * tiles_of_sum
    total = tl.zeros([HEADS] if IS_GROUPED else [HEADS, HEADS], ACCUMULATOR)
    for tile in range(first, tl.minimum(first + tiles_of_sum, tiles)):
        batch = (tile // tiles_of_map).to(tl.int64)
        cell = tile % tiles_of_map * CELLS + tl.arange(0, CELLS)
        rows, columns = cell // keys, cell % keys
        maps = batch * heads * cells_of_map + head.to(tl.int64)[:, None] * cells_of_map
        is_inside = rows < queries
        gradient = tl.load(passed + maps + cell[None, :], mask=is_head & is_inside[None, :], other=0.0)
        row = rows + shift // KERNEL_COLUMNS - ABOVE
        column = columns + shift % KERNEL_COLUMNS - KERNEL_COLUMNS // 2
        is_seen = is_inside & (row >= 0) & (row < queries) & (column >= 0) & (column < keys)
        if blocked is not None:
            where = batch * blocked_batch + row.to(tl.int64) * blocked_row + column * blocked_column
            is_seen = is_seen & (tl.load(blocked + where, mask=is_seen, other=1) == 0)
        seen = tl.load(image + maps + (row * keys + column)[None, :], mask=is_head & is_seen[None, :], other=0.0)
        if IS_GROUPED:
            total += tl.sum(gradient.to(ACCUMULATOR) * seen.to(ACCUMULATOR), axis=1)
        else:
            total = tl.dot(gradient, tl.trans(seen), total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    result = tl.program_id(0) * KERNEL_ROWS * KERNEL_COLUMNS + shift
    if IS_GROUPED:
        tl.store(partial_sums + result * HEADS + head, total)
    else:
        tl.store(partial_sums + (result * HEADS + head[:, None]) * HEADS + head[None, :], total)


@jit
def _logits(
    maps,
    hidden,
    rows,
    columns,
    queries,
    keys,
    hidden_row,
    hidden_column,
    ACCUMULATOR: constexpr,
):
    """A tile of A_l, with what is hidden as low as can be and -inf beyond the last key, and whether it may be attended."""
    is_inside = (rows < queries)[:, None] & (columns < keys)[None, :]
    logits = tl.load(maps + rows[:, None] * keys + columns[None, :], mask=is_inside, other=0.0).to(ACCUMULATOR)
    is_open = is_inside
    if hidden is not None:
        where = rows.to(tl.int64)[:, None] * hidden_row + columns[None, :] * hidden_column
        is_open = tl.load(hidden + where, mask=is_inside, other=1) == 0
        logits = tl.where(is_open, logits, _LOWEST)
    return tl.where((columns < keys)[None, :], logits, float("-inf")), is_open


@jit
def _is_kept(seed, index, rows, columns, keys, DROPOUT: constexpr):
    """Which weights dropout keeps: a function of the seed, the map and the cell, so that every pass finds the same."""
    return tl.rand(tl.load(seed) + index, rows[:, None] * keys + columns[None, :]) >= DROPOUT


@jit
def attend(
    maps,
    value,
    hidden,
    seed,
    out,
    largest,
    sums,
    heads,
    queries,
    keys,
    head_dim,
    cells_of_map,
    hidden_batch,
    hidden_head,
    hidden_row,
    hidden_column,
    DROPOUT: constexpr,
    SCALE: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    HEAD_DIM: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """Equation (3) for ROWS queries of a head: the softmax goes along as columns come."""
    index = tl.program_id(1).to(tl.int64)
    batch, head = index // heads, index % heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, HEAD_DIM)
    own_hidden = hidden
    if hidden is not None:
        own_hidden = hidden + batch * hidden_batch + head * hidden_head
    top = tl.full([ROWS], _LOWEST, ACCUMULATOR)  # finite, for tiles of -inf alone
    total = tl.zeros([ROWS], ACCUMULATOR)
    result = tl.zeros([ROWS, HEAD_DIM], ACCUMULATOR)
    for start in range(0, keys, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        logits, _ = _logits(
            maps + index * cells_of_map,
            own_hidden,
            rows,
            columns,
            queries,
            keys,
            hidden_row,
            hidden_column,
            ACCUMULATOR,
        )
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        rescaled = tl.exp(top - new_top)
        weights = tl.exp(logits - new_top[:, None])
        total = total * rescaled + tl.sum(weights, axis=1)
        if DROPOUT > 0:
            weights = tl.where(_is_kept(seed, index, rows, columns, keys, DROPOUT), weights, 0.0)
        where = index * keys * head_dim + columns[:, None] * head_dim + feature[None, :]
        is_value = (columns < keys)[:, None] & (feature < head_dim)[None, :]
        values = tl.load(value + where, mask=is_value, other=0.0)
        result = result * rescaled[:, None]
        result = tl.dot(weights.to(values.dtype), values, result, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        top = new_top
    result = result / total[:, None]
    if DROPOUT > 0:
        result = result * SCALE
    is_row = rows < queries
    where = ((batch * queries + rows[:, None]) * heads + head) * head_dim + feature[None, :]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=is_row[:, None] & (feature < head_dim)[None, :])
    tl.store(largest + index * queries + rows, top, mask=is_row)
    tl.store(sums + index * queries + rows, total, mask=is_row)


@jit
def attend_backward(
    maps,
    value,
    hidden,
    seed,
    largest,
    sums,
    dots,
    grad_output,
    grad_evolved,
    out,
    heads,
    queries,
    keys,
    head_dim,
    cells_of_map,
    hidden_batch,
    hidden_head,
    hidden_row,
    hidden_column,
    DROPOUT: constexpr,
    SCALE: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    HEAD_DIM: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """The gradient of A_l in a tile."""
    index = tl.program_id(2).to(tl.int64)
    batch, head = index // heads, index % heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    feature = tl.arange(0, HEAD_DIM)
    own_hidden = hidden
    if hidden is not None:
        own_hidden = hidden + batch * hidden_batch + head * hidden_head
    is_row, is_feature = rows < queries, (feature < head_dim)[None, :]
    where = index * queries * head_dim + rows[:, None] * head_dim + feature[None, :]
    gradient = tl.load(grad_output + where, mask=is_row[:, None] & is_feature, other=0.0)
    where = index * keys * head_dim + columns[:, None] * head_dim + feature[None, :]
    values = tl.load(value + where, mask=(columns < keys)[:, None] & is_feature, other=0.0)
    logits, is_open = _logits(
        maps + index * cells_of_map, own_hidden, rows, columns, queries, keys, hidden_row, hidden_column, ACCUMULATOR
    )
    top = tl.load(largest + index * queries + rows, mask=is_row, other=0.0)
    total = tl.load(sums + index * queries + rows, mask=is_row, other=1.0)
    dot = tl.load(dots + index * queries + rows, mask=is_row, other=0.0)
    weights = tl.exp(logits - top[:, None]) / total[:, None]
    grad_weights = tl.dot(gradient, tl.trans(values), input_precision=PRECISION, out_dtype=ACCUMULATOR)
    if DROPOUT > 0:
        is_kept = _is_kept(seed, index, rows, columns, keys, DROPOUT)
        grad_weights = tl.where(is_kept, grad_weights * SCALE, 0.0)
    result = tl.where(is_open, weights * (grad_weights - dot[:, None]), 0.0)
    where = index * cells_of_map + rows[:, None] * keys + columns[None, :]
    is_inside = is_row[:, None] & (columns < keys)[None, :]
    if grad_evolved is not None:
        result += tl.load(grad_evolved + where, mask=is_inside, other=0.0).to(ACCUMULATOR)
    tl.store(out + where, result.to(out.dtype.element_ty), mask=is_inside)


@jit
def sum_value_gradient(
    maps,
    hidden,
    seed,
    largest,
    sums,
    grad_output,
    out,
    heads,
    queries,
    keys,
    head_dim,
    cells_of_map,
    hidden_batch,
    hidden_head,
    hidden_row,
    hidden_column,
    DROPOUT: constexpr,
    SCALE: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    HEAD_DIM: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """The gradient of V for COLUMNS keys of a head."""
    index = tl.program_id(1).to(tl.int64)
    batch, head = index // heads, index % heads
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    feature = tl.arange(0, HEAD_DIM)
    own_hidden = hidden
    if hidden is not None:
        own_hidden = hidden + batch * hidden_batch + head * hidden_head
    result = tl.zeros([COLUMNS, HEAD_DIM], ACCUMULATOR)
    for start in range(0, queries, ROWS):
        rows = start + tl.arange(0, ROWS)
        is_row = rows < queries
        logits, _ = _logits(
            maps + index * cells_of_map,
            own_hidden,
            rows,
            columns,
            queries,
            keys,
            hidden_row,
            hidden_column,
            ACCUMULATOR,
        )
        top = tl.load(largest + index * queries + rows, mask=is_row, other=float("inf"))
        total = tl.load(sums + index * queries + rows, mask=is_row, other=1.0)
        weights = tl.exp(logits - top[:, None]) / total[:, None]
        if DROPOUT > 0:
            weights = tl.where(_is_kept(seed, index, rows, columns, keys, DROPOUT), weights * SCALE, 0.0)
        where = index * queries * head_dim + rows[:, None] * head_dim + feature[None, :]
        is_gradient = is_row[:, None] & (feature < head_dim)[None, :]
        gradient = tl.load(grad_output + where, mask=is_gradient, other=0.0)
        weights = tl.trans(weights).to(gradient.dtype)
        result = tl.dot(weights, gradient, result, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    where = index * keys * head_dim + columns[:, None] * head_dim + feature[None, :]
    is_value = (columns < keys)[:, None] & (feature < head_dim)[None, :]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=is_value)
