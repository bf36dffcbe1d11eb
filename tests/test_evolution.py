# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The mechanism against its equations, written out with loops over numbers in double precision."""

import functools

import pytest
import torch
from chains import (
    ACTIVATIONS,
    HEAD_DIM,
    LAYERS,
    Config,
    assert_chain_matches_reference,
    every_causal_kernel,
    every_kernel,
    every_length,
    make_chain,
    make_projections,
    real_tokens,
    run_chain,
    self_attention_mask,
)
from torch.testing import assert_close

from ea_hf.models.evolution import (
    AttentionEvolution,
    EvolutionState,
    evolving_attention_forward,
    evolving_mask,
)
from ea_hf.models.evolution_cache import EvolvingDynamicLayer, EvolvingStaticLayer


@every_length
@every_kernel
@pytest.mark.parametrize("heads", [1, 2, 12], ids="heads{}".format)
@pytest.mark.parametrize("padding", [None, "right", "left"], ids="padding-{}".format)
def test_bidirectional_chain_follows_the_equations(padding, heads, kernel_size, length):
    config = Config(heads, kernel_size=kernel_size)
    layers = 2 if heads == 12 else LAYERS
    chain = make_chain(config, layers=layers)
    projections = make_projections(heads, length, length, layers=layers)
    real = real_tokens(length, padding)
    allowed = self_attention_mask(real)
    results = run_chain(chain, projections, None if padding is None else allowed[:, None])
    assert_chain_matches_reference(config, chain, projections, results, allowed, real)


@every_length
@every_kernel
@pytest.mark.parametrize("heads", [1, 2, 12], ids="heads{}".format)
@pytest.mark.parametrize("padding", [None, "left"], ids="padding-{}".format)
def test_causal_chain_follows_the_equations(padding, heads, kernel_size, length):
    config = Config(heads, kernel_size=kernel_size)
    layers = 2 if heads == 12 else LAYERS
    chain = make_chain(config, layers=layers, is_causal=True)
    projections = make_projections(heads, length, length, layers=layers)
    real = real_tokens(length, padding)
    allowed = self_attention_mask(real, is_causal=True)
    results = run_chain(chain, projections, allowed[:, None])
    assert_chain_matches_reference(config, chain, projections, results, allowed, real)


@every_kernel
@pytest.mark.parametrize("heads", [1, 2, 12], ids="heads{}".format)
@pytest.mark.parametrize("key_padding", [None, "right", "left"], ids="keys-{}".format)
@pytest.mark.parametrize("query_padding", [None, "left"], ids="queries-{}".format)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 3), (2, 5)], ids="{}".format)
def test_decoder_with_cross_attention_follows_the_equations(
    queries, keys, query_padding, key_padding, heads, kernel_size
):
    """Self-attention and cross-attention alternate in one state; padded queries are known from the former's mask."""
    config = Config(heads, kernel_size=kernel_size)
    layers = 2
    own = make_chain(config, seed=1, layers=layers, is_causal=True)
    cross = make_chain(config, seed=2, layers=layers, is_causal=True, is_cross_attention=True)
    own_projections = make_projections(heads, queries, queries, seed=1, layers=layers)
    cross_projections = make_projections(heads, queries, keys, seed=2, layers=layers)
    real_queries, real_keys = real_tokens(queries, query_padding), real_tokens(keys, key_padding)
    own_allowed = self_attention_mask(real_queries, is_causal=True)
    cross_allowed = real_keys[:, None, :].expand(-1, queries, -1)
    own_mask = own_allowed[:, None]
    cross_mask = None if key_padding is None else cross_allowed[:, None]
    state = EvolutionState(keep_maps=True)
    own_results, cross_results = [], []
    for layer in range(layers):
        for chain, projections, mask, results in (
            (own, own_projections, own_mask, own_results),
            (cross, cross_projections, cross_mask, cross_results),
        ):
            results.append(state.run(evolving_attention_forward, chain[layer], *projections[layer], mask))
    own_results = (*zip(*own_results, strict=True), state.maps())
    cross_results = (*zip(*cross_results, strict=True), state.maps("cross"))
    assert_chain_matches_reference(config, own, own_projections, own_results, own_allowed, real_queries)
    assert_chain_matches_reference(config, cross, cross_projections, cross_results, cross_allowed, real_queries)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    ("residual_weight", "conv_weight"),
    [(0.0, 0.0), (0.4, 0.0), (1.0, 0.0), (0.0, 0.7), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0)],
)
def test_every_pair_of_weights_follows_the_equations(residual_weight, conv_weight, is_causal):
    config = Config(2, residual_weight, conv_weight)
    chain = make_chain(config, is_causal=is_causal)
    projections = make_projections(2, 5, 5)
    real = real_tokens(5, "left")
    allowed = self_attention_mask(real, is_causal)
    results = run_chain(chain, projections, allowed[:, None])
    assert_chain_matches_reference(config, chain, projections, results, allowed, real)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_follows_the_equations(activation):
    config = Config(2, activation=activation)
    chain = make_chain(config)
    projections = make_projections(2, 5, 5)
    real = real_tokens(5, "right")
    allowed = self_attention_mask(real)
    results = run_chain(chain, projections, allowed[:, None])
    assert_chain_matches_reference(config, chain, projections, results, allowed, real)


@pytest.mark.parametrize("groups", [1, "heads", 2], ids="groups-{}".format)
@pytest.mark.parametrize(
    ("kernel_size", "is_causal"), [((4, 3), True), ((1, 5), True), ((3, 1), False), ((1, 3), False)], ids=str
)
def test_kernels_of_any_shape_and_own_kernels_follow_the_equations(kernel_size, is_causal, groups):
    config = Config(2, kernel_size=kernel_size, ea_conv_groups=groups, ea_conv_every=2)
    chain = make_chain(config, layers=4, is_causal=is_causal)
    assert [module.evolution.conv is None for module in chain] == [True, False, True, False]
    assert chain[1].evolution.conv.weight.shape == (2, 2 if groups == 1 else 1, *kernel_size)
    projections = make_projections(2, 5, 5, layers=4)
    real = real_tokens(5, "left")
    allowed = self_attention_mask(real, is_causal)
    results = run_chain(chain, projections, allowed[:, None])
    assert_chain_matches_reference(config, chain, projections, results, allowed, real)


# Causality


@every_causal_kernel
@pytest.mark.parametrize("is_cross_attention", [False, True], ids=["self", "cross"])
def test_later_queries_change_no_earlier_row(is_cross_attention, kernel_size):
    chain = make_chain(Config(2, kernel_size=kernel_size), is_causal=True, is_cross_attention=is_cross_attention)
    length, cut = 6, 3
    projections = make_projections(2, length, length)
    mask = None if is_cross_attention else self_attention_mask(real_tokens(length, None), is_causal=True)[:, None]
    changed = [tuple(tensor.clone() for tensor in projection) for projection in projections]
    for query, key, value in changed:
        query[:, :, cut:] += 1
        if not is_cross_attention:
            key[:, :, cut:] += 1
            value[:, :, cut:] += 1
    outputs, weights, _ = run_chain(chain, projections, mask)
    changed_outputs, changed_weights, _ = run_chain(chain, changed, mask)
    for layer in range(LAYERS):
        assert torch.equal(outputs[layer][:, :cut], changed_outputs[layer][:, :cut])
        assert torch.equal(weights[layer][:, :, :cut], changed_weights[layer][:, :, :cut])
        assert not torch.equal(outputs[layer][:, cut:], changed_outputs[layer][:, cut:])


def test_causal_chain_without_a_mask_is_refused():
    chain = make_chain(Config(2), is_causal=True)
    with pytest.raises(RuntimeError, match="Causal evolving attention got no mask"):
        run_chain(chain, make_projections(2, 2, 2), None)
    run_chain(chain, make_projections(2, 1, 1), None)  # a single row has nothing to hide


def fill(cache, tokens):
    """Puts so many tokens into a cache layer, as an attention module does before it calls the attention function."""
    cache.update(*(torch.zeros(2, 1, tokens, 1) for _ in range(2)))


@every_causal_kernel
@pytest.mark.parametrize("padding", [None, "left"], ids="padding-{}".format)
@pytest.mark.parametrize("chunk", [1, 2, 4], ids="rows{}".format)
@pytest.mark.parametrize("is_cross_attention", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("is_static", [False, True], ids=["dynamic", "static"])
def test_decoding_with_a_cache_equals_the_full_pass(is_static, is_cross_attention, chunk, padding, kernel_size):
    heads, length = 2, 7
    config = Config(heads, kernel_size=kernel_size)
    chain = make_chain(config, is_causal=True, is_cross_attention=is_cross_attention)
    real = real_tokens(length, padding)
    allowed = torch.ones(2, length, length, dtype=torch.bool)
    if not is_cross_attention:
        allowed = self_attention_mask(real, is_causal=True)
    blocked = ~(allowed & real[:, :, None])[:, None]
    scores = [query @ key.transpose(-2, -1) for query, key, _ in make_projections(heads, length, length)]

    full, previous = [], None
    for module, raw in zip(chain, scores, strict=True):
        previous = module.evolution(raw, previous, blocked)
        full.append(previous)

    caches = [EvolvingStaticLayer(length) if is_static else EvolvingDynamicLayer() for _ in chain]
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        keys = length if is_cross_attention or is_static else end
        previous = None
        for layer, module in enumerate(chain):
            fill(caches[layer], end - start)
            raw = scores[layer][:, :, start:end, :keys]
            hidden = blocked[:, :, start:end, :keys]
            previous = module.evolution(raw, previous, hidden, caches[layer])
            assert_close(previous, full[layer][:, :, start:end, :keys], atol=1e-10, rtol=0)


# Gradients


def test_gradients_of_one_layer():
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    evolution = AttentionEvolution(2, 1, 0.3, 0.6, 3, "tanh", is_causal=True).double()
    blocked = torch.tensor([[True, True, False], [True, False, False]])

    def step(scores, previous, past_rows, weight, bias):
        parameters = {"conv.weight": weight, "conv.bias": bias}
        cache = EvolvingDynamicLayer()
        fill(cache, 4)
        cache.map_rows = {"self": past_rows}
        return torch.func.functional_call(evolution, parameters, (scores, previous, blocked, cache))

    arguments = (draw(2, 2, 2, 3), draw(2, 2, 2, 3), draw(2, 2, 2, 3), draw(2, 2, 3, 3), draw(2))
    assert torch.autograd.gradcheck(step, arguments)


@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "additive"])
def test_gradients_of_a_chain(additive):
    chain = make_chain(Config(2, activation="gelu"))
    tensors = [t.requires_grad_() for projection in make_projections(2, 3, 3) for t in projection]
    mask = self_attention_mask(real_tokens(3, "right"))[:, None]
    if additive:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)

    def run(*tensors):
        projections = [tensors[3 * layer : 3 * layer + 3] for layer in range(LAYERS)]
        return run_chain(chain, projections, mask)[0][-1]

    assert torch.autograd.gradcheck(run, tensors)


# Masks


@pytest.mark.parametrize("broadcast", [False, True], ids=["full", "keys-only"])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("blocked_bias", [torch.finfo(torch.float64).min, -torch.inf, -1e4, -1e9])
def test_additive_mask_equals_the_boolean_one(blocked_bias, padding, broadcast):
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    real = real_tokens(5, padding)
    allowed = self_attention_mask(real)[:, None]
    expected = run_chain(chain, projections, allowed)
    rows = allowed[:, :, :1] if broadcast else allowed
    additive = torch.zeros(rows.shape, dtype=torch.float64).masked_fill(~rows, blocked_bias)
    actual = run_chain(chain, projections, additive)
    for layer in range(LAYERS):
        assert torch.equal(actual[2][layer], expected[2][layer])
        for row in range(2):
            assert torch.equal(actual[0][layer][row, real[row]], expected[0][layer][row, real[row]])
            assert torch.equal(actual[1][layer][row][:, real[row]], expected[1][layer][row][:, real[row]])


@pytest.mark.parametrize("padding", ["right", "left"])
def test_boolean_mask_of_keys_alone_equals_the_full_one(padding):
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    allowed = self_attention_mask(real_tokens(5, padding))[:, None]
    expected = run_chain(chain, projections, allowed)
    actual = run_chain(chain, projections, allowed[:, :, :1])
    for layer in range(LAYERS):
        assert all(torch.equal(one[layer], other[layer]) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_mask_of_an_integer_type_is_refused(dtype):
    allowed = self_attention_mask(real_tokens(5, "right"))[:, None]
    with pytest.raises(ValueError, match=rf"{dtype}.*`mask\.bool\(\)`"):
        run_chain(make_chain(Config(2)), make_projections(2, 5, 5), allowed.to(dtype))


def test_mask_of_one_example_holds_for_all():
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    allowed = self_attention_mask(real_tokens(5, "right")[1:])[:, None]
    expected = run_chain(chain, projections, allowed.expand(2, -1, -1, -1))
    actual = run_chain(chain, projections, allowed)
    for layer in range(LAYERS):
        assert all(torch.equal(one[layer], other[layer]) for one, other in zip(actual, expected, strict=True))


def test_each_layer_sees_its_own_mask():
    """Layers with different windows may share a forward pass."""
    config = Config(2, residual_weight=0.0)
    chain = make_chain(config)
    projections = make_projections(2, 6, 6)
    masks = [torch.ones(2, 1, 6, 6, dtype=torch.bool).triu(-width).tril(width) for width in (1, 2, 3)]
    state = EvolutionState(keep_maps=True, check_masks=False)
    for module, projection, mask in zip(chain, projections, masks, strict=True):
        state.run(evolving_attention_forward, module, *projection, mask)
    for layer in range(1, LAYERS):
        query, key, _ = projections[layer]
        expected = chain[layer].evolution(query @ key.transpose(-2, -1) * HEAD_DIM**-0.5, None, ~masks[layer])
        assert_close(state.maps()[layer], expected, atol=1e-12, rtol=0)


def test_mask_per_head_blocks_that_head_alone():
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    allowed = torch.ones(2, 2, 5, 5, dtype=torch.bool)
    allowed[:, 0] = torch.eye(5, dtype=torch.bool)
    _, weights, _ = run_chain(chain, projections, allowed, EvolutionState(keep_maps=True, check_masks=False))
    for layer in weights:
        assert torch.equal(layer[:, 0], torch.eye(5, dtype=torch.float64).expand(2, -1, -1))
        assert (layer[:, 1] > 0).all()


def test_mask_that_allows_everything_equals_none():
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    expected = run_chain(chain, projections, None)
    for mask in (torch.ones(2, 1, 5, 5, dtype=torch.bool), torch.zeros(2, 1, 5, 5, dtype=torch.float64)):
        actual = run_chain(chain, projections, mask)
        for layer in range(LAYERS):
            assert all(torch.equal(one[layer], other[layer]) for one, other in zip(actual, expected, strict=True))


def test_bias_of_an_additive_mask_enters_no_map():
    """Whatever the mask adds where attention is allowed, too, is for the softmax alone."""
    chain = make_chain(Config(2))
    projection, *_ = make_projections(2, 5, 5)
    bias = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    state = EvolutionState(keep_maps=True, keep_weights=True, check_masks=False)
    _, weights, maps = run_chain(chain, [projection] * LAYERS, bias, state)
    _, _, expected_maps = run_chain(chain, [projection] * LAYERS, None)
    for layer in range(LAYERS):
        assert torch.equal(maps[layer], expected_maps[layer])
        assert_close(weights[layer], (maps[layer] + bias).softmax(-1), atol=1e-12, rtol=0)


def test_row_that_may_attend_nowhere_is_uniform():
    chain = make_chain(Config(2))
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    allowed[0] = False
    outputs, weights, maps = run_chain(chain, make_projections(2, 5, 5), allowed)
    for layer in range(LAYERS):
        assert_close(weights[layer][0], torch.full((2, 5, 5), 0.2, dtype=torch.float64))
        assert torch.isfinite(outputs[layer]).all() and torch.isfinite(maps[layer]).all()


def test_mask_function_writes_causal_masks_out():
    arguments = {"batch_size": 1, "q_length": 3, "kv_length": 3}
    mask = evolving_mask(**arguments)
    assert torch.equal(mask, torch.ones(1, 1, 3, 3, dtype=torch.bool).tril())
    # Even where the caller would let a fused kernel do without one.
    assert torch.equal(evolving_mask(**arguments, allow_is_causal_skip=True), mask)


# The attention function


def test_position_bias_is_part_of_the_map():
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    _, _, maps = run_chain(chain, projections, None, position_bias=bias, scaling=1.0)
    previous = None
    for (query, key, _), module, actual in zip(projections, chain, maps, strict=True):
        previous = module.evolution(query @ key.transpose(-2, -1) + bias, previous)
        assert_close(actual, previous, atol=1e-12, rtol=0)


def test_scaling_is_that_of_the_head_dimension_by_default():
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    expected = run_chain(chain, projections, None, scaling=HEAD_DIM**-0.5)
    actual = run_chain(chain, projections, None)
    assert torch.equal(actual[0][-1], expected[0][-1])
    assert not torch.equal(run_chain(chain, projections, None, scaling=1.0)[0][-1], expected[0][-1])


def test_dropout_acts_on_the_weights_in_training_only():
    chain = make_chain(Config(2))
    projections = make_projections(2, 6, 6)
    expected = run_chain(chain, projections, None)
    evaluated = run_chain(chain, projections, None, dropout=0.5)
    trained = run_chain(chain.train(), projections, None, dropout=0.5)
    for layer in range(LAYERS):
        assert torch.equal(evaluated[1][layer], expected[1][layer])
        dropped = trained[1][layer] == 0
        assert 0.3 < dropped.double().mean() < 0.7
        assert_close(trained[1][layer][~dropped], 2 * expected[1][layer][~dropped])
        assert torch.equal(trained[2][layer], expected[2][layer])
        value = projections[layer][2]
        assert_close(trained[0][layer], (trained[1][layer] @ value).transpose(1, 2))


def test_softmax_of_half_precision_runs_in_single_precision():
    chain = make_chain(Config(2)).to(torch.bfloat16)
    projections = [tuple(t.to(torch.bfloat16) for t in projection) for projection in make_projections(2, 6, 6)]
    _, weights, maps = run_chain(chain, projections, None)
    for layer in range(LAYERS):
        assert weights[layer].dtype == maps[layer].dtype == torch.bfloat16
        assert torch.equal(weights[layer], maps[layer].float().softmax(-1).to(torch.bfloat16))


def test_empty_batch_stays_empty():
    outputs, weights, _ = run_chain(
        make_chain(Config(2)), make_projections(2, 5, 5, batch=0), torch.ones(0, 1, 5, 5, dtype=torch.bool)
    )
    assert outputs[-1].shape == (0, 5, 2, HEAD_DIM) and weights[-1].shape == (0, 2, 5, 5)


# The modules of a chain


def test_first_layer_owns_no_convolution():
    chain = make_chain(Config(3, kernel_size=5, activation="gelu"), layers=4)
    assert [module.evolution.layer_index for module in chain] == [0, 1, 2, 3]
    assert chain[0].evolution.conv is None and not list(chain[0].parameters())
    for module in chain[1:]:
        assert module.evolution.conv.weight.shape == (3, 3, 5, 5)
        assert module.evolution.conv.bias.shape == (3,)


def test_no_layer_owns_a_convolution_if_its_weight_is_zero():
    assert not list(make_chain(Config(3, conv_weight=0.0)).parameters())


# The state


def test_layer_without_its_predecessor_is_refused():
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    state = EvolutionState()
    state.run(evolving_attention_forward, chain[0], *projections[0], None)
    with pytest.raises(RuntimeError, match=r"Layer 2 found no map of layer 1.*run in order"):
        state.run(evolving_attention_forward, chain[2], *projections[2], None)


def test_cross_attention_does_not_continue_the_chain_of_self_attention():
    own = make_chain(Config(2), is_causal=True)
    cross = make_chain(Config(2), is_causal=True, is_cross_attention=True)
    projections = make_projections(2, 5, 5)
    state = EvolutionState()
    mask = self_attention_mask(real_tokens(5, None), is_causal=True)[:, None]
    state.run(evolving_attention_forward, own[0], *projections[0], mask)
    with pytest.raises(RuntimeError, match="Layer 1 found no map of layer 0"):
        state.run(evolving_attention_forward, cross[1], *projections[1], None)


@pytest.mark.parametrize("residual_weight", [0.0, 0.3])
def test_maps_are_dropped_without_gradients(residual_weight):
    chain = make_chain(Config(2, residual_weight), layers=4)
    projections = make_projections(2, 5, 5, layers=4)
    with torch.no_grad():
        *_, maps = run_chain(chain, projections, None, EvolutionState())
        *_, kept = run_chain(chain, projections, None, EvolutionState(keep_maps=True))
    assert len(maps) <= 1
    assert len(kept) == 4


def test_maps_are_kept_in_the_order_of_layers():
    chain = make_chain(Config(2), layers=12)
    projections = make_projections(2, 3, 3, layers=12)
    *_, maps = run_chain(chain, projections, None)
    for layer in range(1, 12):
        query, key, _ = projections[layer]
        scores = query @ key.transpose(-2, -1) * HEAD_DIM**-0.5
        assert_close(maps[layer], chain[layer].evolution(scores, maps[layer - 1]))


def test_replayed_layers_get_the_map_of_their_predecessor():
    """As under activation checkpointing, which replays the last layers first, perhaps more than once."""
    chain = make_chain(Config(2))
    projections = make_projections(2, 5, 5)
    state, layers, outputs = EvolutionState(keep_maps=True), [], []
    for module, projection in zip(chain, projections, strict=True):
        layers.append(state.replayable(functools.partial(evolving_attention_forward, module, *projection, None)))
        outputs.append(layers[-1]()[0])
    maps = state.maps()
    for layer in (*reversed(range(LAYERS)), *range(LAYERS)):
        replayed, _ = layers[layer]()
        assert torch.equal(replayed, outputs[layer])
    assert state.maps() == maps and len(maps) == LAYERS
