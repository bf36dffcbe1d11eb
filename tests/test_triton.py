# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The kernels in Triton give what the reference path gives, on a CPU by Triton's interpreter, and compile for GPUs.

`make test-triton` installs Triton and runs them; `EA_HF_TEST_DEVICE=cuda` runs the kernels themselves. `conftest.py`
chooses the interpreter where there is no GPU.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exactness import assert_same_gradients, gradients
from models import every_family
from test_fast_paths import (
    CASES,
    Case,
    Chain,
    assert_equal,
    assert_is_near_float32,
    assert_trains_as_reference,
    force_reference,
)

from ea_hf import EABertConfig, EABertModel
from ea_hf.models import evolution, evolution_triton, triton_launches
from ea_hf.models.evolution_blocks import Layer


__all__ = ["force_reference"]  # a fixture
needs_triton = pytest.mark.skipif(
    evolution_triton.triton is None, reason="Triton is not installed: `make test-triton`"
)
needs_double = pytest.mark.skipif(not evolution_triton.IS_INTERPRETED, reason="On GPUs there is no float64.")
TRITON_CASES = [
    *(case for case in CASES if case.batch > 0),
    Case(heads=17),  # which are padded to 32
    Case(heads=2, queries=40, is_causal=True, padding=False, batch=1),  # several tiles of rows and of columns
]
SOME_CASES = [
    Case(queries=4, heads=2),
    Case(queries=4, heads=2, is_causal=True, dropout=0.2, position_bias=True),
    Case(queries=4, heads=2, mixing="additive", residual_weight=-0.6, conv_weight=-1.3),
    Case(queries=4, heads=2, is_causal=True, dropout=0.2, mixing="learned", conv_groups="heads"),
]


def skip_bfloat16(dtype):
    if evolution_triton.IS_INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter does not multiply bfloat16.")


class TritonChain(Chain):
    def __init__(self, *args):
        super().__init__(*args)
        for module in self.modules:
            module.evolution.kernels = "triton"


def assert_near_exact(chain, force_reference):
    """In float32, within 1e-5 of the largest of all gradients, or 4 times the error of the reference path, beside float64.

    Of the largest of all, because that of the logits is a difference, as in FlashAttention: the weights times (their gradients
    minus a sum over features). Where one weight is nearly 1, what is left is the rounding of two large numbers, and goes on to
    parameters whose own gradients are small.
    """
    output, gradients = chain.gradients()
    force_reference()
    _, reference = chain.gradients()
    exact_chain = Chain(chain.case, torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(exact_chain.differentiable, chain.differentiable, strict=True):
            ours.copy_(theirs)
    exact_output, exact = exact_chain.gradients()
    assert_equal(output.double(), exact_output, 1e-5)
    largest = max(1.0, *(gradient.abs().max().item() for gradient in exact))
    for ours, theirs, expected in zip(gradients, reference, exact, strict=True):
        limit = max(1e-5 * largest, 4 * (theirs - expected).abs().max().item())
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=limit)


@pytest.fixture
def calls(monkeypatch):
    """Which kernels have run; nothing else may compute a layer but the reference path."""
    names = []

    def counted(name):
        function = getattr(evolution_triton, name)
        return lambda *args, **kwargs: names.append(name) or function(*args, **kwargs)

    for name in ("attend_to_maps", "convolve_maps", "kernel_gradient"):
        monkeypatch.setattr(evolution_triton, name, counted(name))
    for name in ("infer", "attend", "attend_with_gradients", "EvolvingAttention"):
        monkeypatch.setattr(evolution, name, None)
    return names


@needs_triton
@pytest.mark.parametrize("memory_efficient", [False, True], ids=["default", "memory_efficient"])
@pytest.mark.parametrize("case", TRITON_CASES, ids=str)
def test_kernels_equal_reference(case, memory_efficient, force_reference, calls):
    dtype = torch.float64 if evolution_triton.IS_INTERPRETED else torch.float32
    chain = TritonChain(case, dtype, memory_efficient)
    layers = sum(not module.evolution.is_vanilla for module in chain.modules)
    assert layers >= 2
    with torch.no_grad():
        inferred = chain(training=False)
    assert calls.count("attend_to_maps") == layers
    if case.dropout in (0.0, 1.0):
        check = assert_trains_as_reference if dtype == torch.float64 else assert_near_exact
        check(chain, force_reference)
        assert calls.count("attend_to_maps") == 2 * layers
    force_reference()
    with torch.no_grad():
        assert_equal(inferred, chain(training=False))


@needs_triton
@pytest.mark.parametrize("case", [case for case in SOME_CASES if case.dropout == 0], ids=str)
def test_kernels_equal_reference_in_float32(case, force_reference):
    assert_near_exact(TritonChain(case, torch.float32), force_reference)


@needs_triton
@needs_double
@pytest.mark.parametrize("case", SOME_CASES, ids=str)
def test_kernels_pass_gradcheck(case, monkeypatch, calls):
    """With dropout too, whose seed is the same in each call."""
    monkeypatch.setattr(triton_launches, "MOST_PARTIAL_SUMS", 1)
    chain = TritonChain(case, torch.float64)
    assert torch.autograd.gradcheck(chain, chain.differentiable, fast_mode=True)
    assert "kernel_gradient" in calls


@needs_triton
@needs_double
def test_kernel_gradient_adds_up_many_tiles(monkeypatch, force_reference, calls):
    monkeypatch.setattr(triton_launches, "MOST_PARTIAL_SUMS", 3)
    assert_trains_as_reference(TritonChain(Case(heads=2, queries=40), torch.float64), force_reference)


@needs_triton
@needs_double
@pytest.mark.parametrize("fewest_programs, rows", [(12, 16), (20, 8), (21, 4)])
def test_tiles_of_any_height_equal_reference(fewest_programs, rows, monkeypatch, force_reference):
    """How high they are depends on how many a GPU is given at once."""
    monkeypatch.setattr(triton_launches, "FEWEST_PROGRAMS", fewest_programs)
    case = Case(heads=2, queries=37, batch=2)
    assert triton_launches._convolution_tile(16, 8, torch.Size((2, 2, 37, 37)))[0] == rows
    assert_trains_as_reference(TritonChain(case, torch.float64), force_reference)


@needs_triton
def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    query = torch.zeros(2, 3, 50, 16)
    value = torch.ones(2, 3, 50, 16)
    layer = Layer(1.0, 0.0, 0.0, 1, 1, False)
    output, *_ = evolution_triton.attention(query, query, value, *[None] * 8, *layer, 0.25, False)
    # Each number is the sum of 50 equal weights of which a quarter is dropped: its standard deviation is 0.08.
    assert output.mean().item() == pytest.approx(1.0, abs=4 * 0.082 / 300**0.5)
    assert output[..., 0].std().item() == pytest.approx((0.25 / 0.75 / 50) ** 0.5, rel=0.25)
    other, *_ = evolution_triton.attention(query, query, value, *[None] * 8, *layer, 0.25, False)
    assert not torch.equal(output, other)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near_float32(dtype):
    skip_bfloat16(dtype)
    assert_is_near_float32(TritonChain(Case(), dtype))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dropout_drops_the_same_weights_in_the_backward_pass(dtype):
    """Whose tiles are others in half precision. What is dropped shows in the output where V is the identity."""
    skip_bfloat16(dtype)
    torch.manual_seed(0)
    queries, head_dim, dropout, scaling = 100, 128, 0.25, 0.3
    layer = Layer(scaling, 0.0, 0.0, 1, 1, False)
    query, key = (torch.randn(2, 3, queries, head_dim, dtype=dtype, requires_grad=True) for _ in range(2))
    value = torch.eye(queries, head_dim, dtype=dtype).expand(2, 3, -1, -1).clone().requires_grad_()
    states = (query, key, value)
    output, *_ = evolution_triton.attention(*states, *[None] * 8, *layer, dropout, False)
    is_kept = output[..., :queries].transpose(1, 2) != 0
    assert is_kept.double().mean().item() == pytest.approx(1 - dropout, abs=0.01)
    weights = torch.randn_like(output)
    gradients = torch.autograd.grad(output, states, weights)
    exact = tuple(state.detach().double().requires_grad_() for state in states)
    softmax = torch.softmax(exact[0] @ exact[1].mT * scaling, -1)
    expected = ((softmax * is_kept / (1 - dropout)) @ exact[2]).transpose(1, 2)
    expected_gradients = torch.autograd.grad(expected, exact, weights.double())
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        limit = 64 * torch.finfo(dtype).eps * expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=limit)


@needs_triton
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="There are no two GPUs.")
def test_kernels_run_where_the_tensors_are(force_reference):
    with torch.device("cuda:1"):
        assert_near_exact(TritonChain(Case(), torch.float32), force_reference)


@needs_triton
@pytest.mark.parametrize("has_kernel", (False, True))
def test_maps_of_another_layout_are_read_right(has_kernel):
    """A compiler may choose one."""
    torch.manual_seed(0)
    states = [torch.randn(2, 3, 7, 4) for _ in range(3)]
    maps = torch.randn(2, 3, 7, 7)
    layer = Layer(0.3, 0.4, 0.5, 3, 3, False, "additive")
    parameters = [torch.randn(3, 3, 3, 3), torch.randn(3)] if has_kernel else [None, None]
    results = []
    for previous in (maps.clone(), maps.clone().transpose(2, 3).contiguous().transpose(2, 3)):
        arguments = (*[None] * 3, *parameters, None, None, *layer)
        forward = evolution_triton.attention(*states, previous, *arguments, 0.0, False)[:2]
        results.append((*forward, evolution_triton.attention_(*states, previous, *arguments), previous))
    torch.testing.assert_close(results[0], results[1])


@needs_triton
def test_a_first_tile_of_minus_infinity_gives_no_nan():
    torch.manual_seed(0)
    states = [torch.randn(1, 2, 70, 4) for _ in range(3)]
    bias = torch.zeros(1, 2, 70, 70)
    bias[..., :64] = float("-inf")
    layer = Layer(0.5, 0.0, 0.0, 1, 1, False)
    output, *_ = evolution_triton.attention(*states, None, bias, *[None] * 6, *layer, 0.0, False)
    expected = torch.softmax(states[0] @ states[1].mT * 0.5 + bias, -1) @ states[2]
    torch.testing.assert_close(output, expected.transpose(1, 2))


@needs_triton
def test_float32_is_multiplied_as_pytorch_is_told():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, expected in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert triton_launches.number_types(torch.zeros(1))["PRECISION"] == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_triton
@pytest.mark.parametrize("is_learned", (False, True), ids=("convex", "learned"))
@pytest.mark.parametrize("is_memory_efficient", (False, True), ids=("default", "memory_efficient"))
@pytest.mark.parametrize("dropout", (0.0, 0.1))
def test_the_operators_do_what_compilers_rely_on(is_learned, is_memory_efficient, dropout):
    def random(*shape):
        return torch.randn(shape, requires_grad=True)

    heads, queries = 2, 5
    states = [random(2, heads, queries, 4) for _ in range(3)]
    mask = torch.ones(2, 1, queries, queries, dtype=torch.bool)
    mask[0, ..., -2:] = False
    gates = [random(heads, 1, 1) if is_learned else None for _ in range(2)]
    parameters = [random(heads, heads, 3, 3), random(heads), *gates]
    maps = random(2, heads, queries, queries)
    layer = Layer(0.5, 0.1, 0.1, 3, 3, False, "learned" if is_learned else "convex")
    arguments = (None, mask, ~mask, *parameters, *layer)
    operators = torch.ops.ea_hf
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    # The two runs that the last one compares draw different masks.
    checks = checks[: 3 if dropout else 4]
    training = (*states, maps, *arguments, dropout, is_memory_efficient)
    torch.library.opcheck(operators.triton_attention.default, training, test_utils=checks)
    inference = [
        tensor.detach() if isinstance(tensor, torch.Tensor) else tensor for tensor in (*states, maps, *arguments)
    ]
    torch.library.opcheck(operators.triton_attention_.default, tuple(inference))


@needs_triton
@needs_double
@every_family
def test_models_compute_what_they_do_with_pytorch(case, calls, monkeypatch):
    """Each family, with gradients."""
    inputs = case.batch().inputs
    model = case.model(ea_kernels="triton").double()
    actual = gradients(model, inputs)
    assert "kernel_gradient" in calls
    monkeypatch.setattr(evolution, "_needs_reference", lambda *_: True)
    assert_same_gradients(actual, gradients(model, inputs))


@needs_triton
def test_compiled_models_keep_the_kernels(calls):
    config = EABertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        ea_kernels="triton",
    )
    model = EABertModel(config).train()
    inputs = {"input_ids": torch.randint(5, 30, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    inputs["attention_mask"][0, -3:] = 0
    expected = model(**inputs).last_hidden_state
    expected_gradients = torch.autograd.grad(
        expected.square().sum(), list(model.encoder.parameters()), allow_unused=True
    )
    calls.clear()
    output = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).last_hidden_state
    assert calls.count("attend_to_maps") == 3
    torch.testing.assert_close(output, expected)
    gradients = torch.autograd.grad(output.square().sum(), list(model.encoder.parameters()), allow_unused=True)
    torch.testing.assert_close(gradients, expected_gradients)


@needs_triton
@needs_double
def test_second_derivatives_are_refused():
    chain = TritonChain(Case(), torch.float64)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(chain().sum(), chain.inputs, create_graph=True)


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for GPUs is in its wheels for Linux")
def test_kernels_compile_for_gpus():
    """And hold what they work with in registers: few bytes of a thread's go to memory."""
    script = Path(__file__).with_name("compile_triton_kernels.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


def test_other_operations_run_where_the_kernels_cannot(monkeypatch, caplog, force_reference):
    monkeypatch.setattr(evolution_triton, "obstacle", lambda *_: "of a test")
    evolution._tell_once.cache_clear()
    chain = TritonChain(Case(), torch.float64)
    with caplog.at_level(logging.WARNING):
        assert_trains_as_reference(chain, force_reference)
    assert [record.getMessage() for record in caplog.records] == [
        '`ea_kernels` is "triton", but PyTorch\'s operations are used instead: of a test.'
    ]


def obstacle_of(*shape, blocked=None):
    states = torch.zeros(1).expand(shape)
    return evolution_triton.obstacle(states, states, states, blocked)


@needs_triton
def test_obstacles_are_named():
    assert obstacle_of(1, 2, 3, 4) is None
    assert obstacle_of(1, 65, 3, 4) == "65 heads are more than 64"
    assert obstacle_of(1, 2, 3, 300) == "heads of 300 features are larger than 256"
    assert obstacle_of(8192, 8, 3, 4).startswith("8192 x 8 heads or 3 queries are more than 65535")
    assert obstacle_of(1, 2, 50_000, 4).startswith("maps of 50000 x 50000 cells are larger than")
    assert obstacle_of(0, 2, 3, 4) == "there is nothing to attend to"
    masks = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    assert obstacle_of(1, 2, 3, 4, blocked=masks) == "each head has a mask of its own"


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(evolution_triton, "triton", None)
    assert obstacle_of(1, 2, 3, 4) == "the package triton is not installed"


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="`ea_kernels` is 'cuda'; choose one of torch, triton"):
        EABertConfig(ea_kernels="cuda")
