# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The kernels of `evolution_triton.py`, in Triton. Maps are (batch, heads, query, key), contiguous; masks are bytes.

Names in capitals are constants of a compiled kernel: HEADS and HEAD_DIM are padded to powers of 2; IS_LARGE says that
the cells of all heads are too many for 32 bits; ABOVE is how many rows above a query's the convolution sees; ACCUMULATOR is the type that sums are in, and PRECISION says how float32 is multiplied.
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
def mix(
    query,
    key,
    previous,
    position_bias,
    gate,
    out,
    heads,
    queries,
    keys,
    head_dim,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    bias_batch,
    bias_head,
    bias_row,
    bias_column,
    SCALING: constexpr,
    SHARE: constexpr,
    RESIDUAL: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    FEATURES: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """A tile of M_l, equation (1): SHARE * (scores + position bias) + RESIDUAL (or gate) * A_{l-1}."""
    index = tl.program_id(2).to(tl.int64)
    batch, head = index // heads, index % heads
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    own_query = query + batch * query_batch + head * query_head + rows.to(tl.int64)[:, None] * query_row
    own_key = key + batch * key_batch + head * key_head + columns.to(tl.int64)[:, None] * key_row
    result = tl.zeros([ROWS, COLUMNS], ACCUMULATOR)
    for start in range(0, head_dim, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        is_feature = (feature < head_dim)[None, :]
        left = tl.load(own_query + feature[None, :], mask=(rows < queries)[:, None] & is_feature, other=0.0)
        right = tl.load(own_key + feature[None, :], mask=(columns < keys)[:, None] & is_feature, other=0.0)
        result = tl.dot(left, tl.trans(right), result, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    result = result * SCALING
    is_inside = (rows < queries)[:, None] & (columns < keys)[None, :]
    if position_bias is not None:
        where = rows.to(tl.int64)[:, None] * bias_row + columns.to(tl.int64)[None, :] * bias_column
        where += batch * bias_batch + head * bias_head
        result += tl.load(position_bias + where, mask=is_inside, other=0.0).to(ACCUMULATOR)
    where = index * queries * keys + rows[:, None] * keys + columns[None, :]
    if previous is not None:
        carried = tl.load(previous + where, mask=is_inside, other=0.0).to(ACCUMULATOR)
        carried = carried * tl.load(gate + head).to(ACCUMULATOR) if gate is not None else carried * RESIDUAL
        result = result * SHARE + carried
    tl.store(out + where, result.to(out.dtype.element_ty), mask=is_inside)


@jit
def _weight(
    kernel,
    gate,
    place,
    column_shift,
    heads,
    dtype: constexpr,
    FOLDED: constexpr,
    PURPOSE: constexpr,
    KERNEL_ROWS: constexpr,
    KERNEL_COLUMNS: constexpr,
    IS_GROUPED: constexpr,
    HEADS: constexpr,
):
    """One cell of the convolution's kernel, with its share in it: (HEADS, HEADS), or (HEADS, 1) where each has its own.

    Its rows are heads of what the convolution gives, where it looks the other way (RETURN) of what it sees. It takes a row of
    the image to the one that is `place` rows below the first that sees it.
    """
    SHIFTS: constexpr = KERNEL_ROWS * KERNEL_COLUMNS
    head = tl.arange(0, HEADS)
    is_head = head < heads
    shift = (place if PURPOSE == _RETURN else KERNEL_ROWS - 1 - place) * KERNEL_COLUMNS + column_shift
    if IS_GROUPED:
        weight = tl.load(kernel + head * SHIFTS + shift, mask=is_head, other=0.0)[:, None]
    else:
        cells = head[None, :] * heads + head[:, None] if PURPOSE == _RETURN else head[:, None] * heads + head[None, :]
        weight = tl.load(kernel + cells * SHIFTS + shift, mask=is_head[:, None] & is_head[None, :], other=0.0)
    weight = (weight * FOLDED).to(dtype)
    if gate is not None and PURPOSE == _RETURN:
        share = tl.load(gate + head, mask=is_head, other=0.0)
        weight = weight * (share[:, None] if IS_GROUPED else share[None, :])
    return weight


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
    FOLDED: constexpr,
    SHARE: constexpr,
    SIGN: constexpr,
    PURPOSE: constexpr,
    KERNEL_ROWS: constexpr,
    KERNEL_COLUMNS: constexpr,
    ABOVE: constexpr,
    IS_GROUPED: constexpr,
    IS_LARGE: constexpr,
    HEADS: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    KEEPS_WEIGHTS: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """All heads of a tile of ROWS x COLUMNS cells, row by row.

    EVOLVE: A_l = SHARE * base + SIGN (or gate) * relu(C + bias); PASS: base * SIGN where C + bias > 0, else 0;
    RETURN, in which C looks the other way: SHARE * base + C, C = 0 where blocked. In the others `image` is 0 where blocked.

    Each row of the image is read once for each column of the kernel, and goes into all rows that see it: `sums` has those
    that are not yet whole, from the top.
    """
    dtype: constexpr = image.dtype.element_ty
    FIRST: constexpr = KERNEL_ROWS - 1 - ABOVE if PURPOSE == _RETURN else ABOVE
    batch = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * ROWS
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    head = tl.arange(0, HEADS)
    is_head = head < heads
    # Of all heads of a cell from the first one on, counted in 32 bits where they suffice.
    maps = (head.to(tl.int64) if IS_LARGE else head)[:, None] * cells_of_map + columns[None, :]
    first_map = batch * heads * cells_of_map
    is_column = columns < keys
    weights = ()
    if KEEPS_WEIGHTS:
        for place in tl.static_range(KERNEL_ROWS):
            for column_shift in tl.static_range(KERNEL_COLUMNS):
                weight = _weight(
                    kernel,
                    gate,
                    place,
                    column_shift,
                    heads,
                    dtype,
                    FOLDED,
                    PURPOSE,
                    KERNEL_ROWS,
                    KERNEL_COLUMNS,
                    IS_GROUPED,
                    HEADS,
                )
                weights = weights + (weight,)
    zeros = tl.zeros([HEADS, COLUMNS], ACCUMULATOR)
    sums = ()
    for _ in tl.static_range(KERNEL_ROWS - 1):
        sums = sums + (zeros,)
    own_bias = zeros
    if PURPOSE != _RETURN:
        own_bias = tl.load(bias + head, mask=is_head, other=0.0)[:, None] * FOLDED
        own_bias = own_bias.to(dtype).to(ACCUMULATOR)
    for step in range(ROWS + KERNEL_ROWS - 1):
        row = first + step - FIRST
        is_row = (row >= 0) & (row < queries)
        totals = sums + (zeros,)
        for column_shift in tl.static_range(KERNEL_COLUMNS):
            offset = KERNEL_COLUMNS // 2 - column_shift if PURPOSE == _RETURN else column_shift - KERNEL_COLUMNS // 2
            is_seen = is_row & (columns + offset >= 0) & (columns + offset < keys)
            if blocked is not None and PURPOSE != _RETURN:
                where = batch * blocked_batch + row.to(tl.int64) * blocked_row + (columns + offset) * blocked_column
                is_seen = is_seen & (tl.load(blocked + where, mask=is_seen, other=1) == 0)
            is_seen = is_head[:, None] & is_seen[None, :]
            seen = tl.load(image + (first_map + row * keys + offset) + maps, mask=is_seen, other=0.0)
            new = ()
            for place in tl.static_range(KERNEL_ROWS):
                if KEEPS_WEIGHTS:
                    weight = weights[place * KERNEL_COLUMNS + column_shift]
                else:
                    weight = _weight(
                        kernel,
                        gate,
                        place,
                        column_shift,
                        heads,
                        dtype,
                        FOLDED,
                        PURPOSE,
                        KERNEL_ROWS,
                        KERNEL_COLUMNS,
                        IS_GROUPED,
                        HEADS,
                    )
                if IS_GROUPED:
                    total = totals[place] + weight.to(ACCUMULATOR) * seen.to(ACCUMULATOR)
                else:
                    total = tl.dot(weight, seen, totals[place], input_precision=PRECISION, out_dtype=ACCUMULATOR)
                new = new + (total,)
            totals = new
        total = totals[0]
        sums = ()
        for place in tl.static_range(1, KERNEL_ROWS):
            sums = sums + (totals[place],)
        row = first + step - (KERNEL_ROWS - 1)
        is_valid = is_head[:, None] & is_column[None, :] & (row >= first) & (row < queries)
        own = tl.load(base + (first_map + row * keys) + maps, mask=is_valid, other=0.0).to(ACCUMULATOR)
        if PURPOSE == _EVOLVE:
            total += own_bias
            total = tl.where(total < 0, 0.0, total) * SIGN  # NaN remains NaN
            if gate is not None:
                total = total * tl.load(gate + head, mask=is_head, other=0.0)[:, None].to(ACCUMULATOR)
            result = own * SHARE + total
        elif PURPOSE == _PASS:
            result = tl.where(total + own_bias > 0, own * SIGN, 0.0)
        else:
            if blocked is not None:
                cells = batch * blocked_batch + row.to(tl.int64) * blocked_row + columns * blocked_column
                is_cell = is_column & (row >= first) & (row < queries)
                is_blocked = tl.load(blocked + cells, mask=is_cell, other=1) != 0
                total = tl.where(is_blocked[None, :], 0.0, total)
            result = own * SHARE + total
        tl.store(out + (first_map + row * keys) + maps, result.to(out.dtype.element_ty), mask=is_valid)


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
    tiles_of_row,
    rows_of_tile,
    tiles_of_map,
    tiles_of_part,
    tiles,
    blocked_batch,
    blocked_row,
    blocked_column,
    KERNEL_ROWS: constexpr,
    KERNEL_COLUMNS: constexpr,
    ABOVE: constexpr,
    IS_GROUPED: constexpr,
    IS_LARGE: constexpr,
    HEADS: constexpr,
    COLUMNS: constexpr,
    ROWS_AT_ONCE: constexpr,
    COLUMNS_AT_ONCE: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """The gradients of ROWS_AT_ONCE x COLUMNS_AT_ONCE cells of the convolution's kernel, and of the bias, from some tiles of the maps.

    `partial_sums` has them, part by part, (KERNEL_ROWS * KERNEL_COLUMNS, HEADS, HEADS), or without the last where each head
    has its own, and then (HEADS) for the bias. `above` has the gradients of the rows above, from the nearest.
    """
    part = tl.program_id(0)
    first_shift_row = tl.program_id(1) * ROWS_AT_ONCE
    first_shift_column = tl.program_id(2) * COLUMNS_AT_ONCE
    head = tl.arange(0, HEADS)
    is_head = (head < heads)[:, None]
    bias_total = tl.zeros([HEADS, COLUMNS], ACCUMULATOR)
    nothing = tl.zeros([HEADS, COLUMNS if IS_GROUPED else HEADS], ACCUMULATOR)
    sums = ()
    for _ in tl.static_range(ROWS_AT_ONCE * COLUMNS_AT_ONCE):
        sums = sums + (nothing,)
    no_row = tl.zeros([HEADS, COLUMNS], passed.dtype.element_ty)
    no_rows = ()
    for _ in tl.static_range(ROWS_AT_ONCE - 1):
        no_rows = no_rows + (no_row,)
    for tile in range(part * tiles_of_part, tl.minimum((part + 1) * tiles_of_part, tiles)):
        first_map = (tile // tiles_of_map).to(tl.int64) * heads * cells_of_map
        first_blocked = (tile // tiles_of_map).to(tl.int64) * blocked_batch
        first = tile % tiles_of_map // tiles_of_row * rows_of_tile
        last = tl.minimum(first + rows_of_tile, queries)
        columns = tile % tiles_of_row * COLUMNS + tl.arange(0, COLUMNS)
        maps = (head.to(tl.int64) if IS_LARGE else head)[:, None] * cells_of_map + columns[None, :]
        above = no_rows
        for step in range(last - first + ROWS_AT_ONCE - 1):
            row = first + step
            is_own = is_head & (columns < keys)[None, :] & (row < last)
            gradient = tl.load(passed + (first_map + row * keys) + maps, mask=is_own, other=0.0)
            bias_total += gradient.to(ACCUMULATOR)
            gradients = (gradient,) + above
            row = row + first_shift_row - ABOVE
            is_row = (row >= 0) & (row < queries)
            new = ()
            for column_shift in tl.static_range(COLUMNS_AT_ONCE):
                offset = first_shift_column + column_shift - KERNEL_COLUMNS // 2
                is_seen = is_row & (columns + offset >= 0) & (columns + offset < keys)
                if blocked is not None:
                    where = first_blocked + row.to(tl.int64) * blocked_row + (columns + offset) * blocked_column
                    is_seen = is_seen & (tl.load(blocked + where, mask=is_seen, other=1) == 0)
                is_seen = is_head & is_seen[None, :]
                seen = tl.load(image + (first_map + row * keys + offset) + maps, mask=is_seen, other=0.0)
                for row_shift in tl.static_range(ROWS_AT_ONCE):
                    total = sums[column_shift * ROWS_AT_ONCE + row_shift]
                    if IS_GROUPED:
                        total += gradients[row_shift].to(ACCUMULATOR) * seen.to(ACCUMULATOR)
                    else:
                        total = tl.dot(
                            gradients[row_shift],
                            tl.trans(seen),
                            total,
                            input_precision=PRECISION,
                            out_dtype=ACCUMULATOR,
                        )
                    new = new + (total,)
            sums = new
            above = ()
            for place in tl.static_range(ROWS_AT_ONCE - 1):
                above = above + (gradients[place],)
    CELLS: constexpr = HEADS if IS_GROUPED else HEADS * HEADS
    own = partial_sums + part.to(tl.int64) * (KERNEL_ROWS * KERNEL_COLUMNS * CELLS + HEADS)
    for column_shift in tl.static_range(COLUMNS_AT_ONCE):
        for row_shift in tl.static_range(ROWS_AT_ONCE):
            shift = (first_shift_row + row_shift) * KERNEL_COLUMNS + first_shift_column + column_shift
            total = sums[column_shift * ROWS_AT_ONCE + row_shift]
            if IS_GROUPED:
                tl.store(own + shift * CELLS + head, tl.sum(total, axis=1))
            else:
                tl.store(own + shift * CELLS + head[:, None] * HEADS + head[None, :], total)
    if (first_shift_row == 0) & (first_shift_column == 0):
        tl.store(own + KERNEL_ROWS * KERNEL_COLUMNS * CELLS + head, tl.sum(bias_total, axis=1))


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
def _is_kept(seed, index, rows, first_column, keys, COLUMNS: constexpr, DROPOUT: constexpr):
    """Which weights dropout keeps: a function of the seed, the map and the cell, so that every pass finds the same.

    Four cells of a row in turn share one draw of Philox, of 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", 2011, section 4.3 and table 2).
    """
    fours = first_column // 4 + tl.arange(0, COLUMNS // 4)
    draws = tl.rand4x(tl.load(seed) + index, rows[:, None] * tl.cdiv(keys, 4) + fours[None, :], 7)
    pairs = tl.join(tl.join(draws[0], draws[2]), tl.join(draws[1], draws[3]))
    return tl.reshape(pairs, [rows.shape[0], COLUMNS]) >= DROPOUT


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
    value_batch,
    value_head,
    value_row,
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
    own_value = value + batch * value_batch + head * value_head
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
            weights = tl.where(_is_kept(seed, index, rows, start, keys, COLUMNS, DROPOUT), weights, 0.0)
        where = columns.to(tl.int64)[:, None] * value_row + feature[None, :]
        is_value = (columns < keys)[:, None] & (feature < head_dim)[None, :]
        values = tl.load(own_value + where, mask=is_value, other=0.0)
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
    output,
    largest,
    sums,
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
    value_batch,
    value_head,
    value_row,
    DROPOUT: constexpr,
    SCALE: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    HEAD_DIM: constexpr,
    ACCUMULATOR: constexpr,
    PRECISION: constexpr,
):
    """The gradient of A_l for ROWS queries of a head."""
    index = tl.program_id(1).to(tl.int64)
    batch, head = index // heads, index % heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, HEAD_DIM)
    own_hidden = hidden
    if hidden is not None:
        own_hidden = hidden + batch * hidden_batch + head * hidden_head
    own_value = value + batch * value_batch + head * value_head
    is_row, is_feature = rows < queries, (feature < head_dim)[None, :]
    states = ((batch * queries + rows[:, None]) * heads + head) * head_dim + feature[None, :]
    gradient = tl.load(grad_output + states, mask=is_row[:, None] & is_feature, other=0.0)
    own_output = tl.load(output + states, mask=is_row[:, None] & is_feature, other=0.0)
    # The sum over keys of the weights times their gradients.
    dot = tl.sum(gradient.to(ACCUMULATOR) * own_output.to(ACCUMULATOR), axis=1)
    top = tl.load(largest + index * queries + rows, mask=is_row, other=0.0)
    total = tl.load(sums + index * queries + rows, mask=is_row, other=1.0)
    for start in range(0, keys, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        states_of_keys = columns.to(tl.int64)[:, None] * value_row + feature[None, :]
        values = tl.load(own_value + states_of_keys, mask=(columns < keys)[:, None] & is_feature, other=0.0)
        logits, is_open = _logits(
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
        weights = tl.exp(logits - top[:, None]) / total[:, None]
        grad_weights = tl.dot(gradient, tl.trans(values), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        if DROPOUT > 0:
            is_kept = _is_kept(seed, index, rows, start, keys, COLUMNS, DROPOUT)
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
            is_kept = _is_kept(seed, index, rows, tl.program_id(0) * COLUMNS, keys, COLUMNS, DROPOUT)
            weights = tl.where(is_kept, weights * SCALE, 0.0)
        where = ((batch * queries + rows[:, None]) * heads + head) * head_dim + feature[None, :]
        is_gradient = is_row[:, None] & (feature < head_dim)[None, :]
        gradient = tl.load(grad_output + where, mask=is_gradient, other=0.0)
        weights = tl.trans(weights).to(gradient.dtype)
        result = tl.dot(weights, gradient, result, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    where = index * keys * head_dim + columns[:, None] * head_dim + feature[None, :]
    is_value = (columns < keys)[:, None] & (feature < head_dim)[None, :]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=is_value)
