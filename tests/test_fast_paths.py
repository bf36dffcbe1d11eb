# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Every path gives what the reference path gives, saves what it promises, and runs when it should."""

import dataclasses

import pytest
import torch
from torch import nn

from ea_hf import AttentionEvolution, EABertConfig, EABertModel
from ea_hf.models import evolution, evolution_blocks
from ea_hf.models.evolution import EvolutionState, evolving_attention_forward
from ea_hf.models.evolution_blocks import Layer, image_gradient, kernel_gradient


@dataclasses.dataclass
class Case:
    heads: int = 3
    queries: int = 7
    kernel_size: int | tuple[int, int] = 3
    residual_weight: float = 0.3
    conv_weight: float = 0.6
    is_causal: bool = False
    padding: bool = True
    dropout: float = 0.0
    position_bias: bool = False
    batch: int = 2
    mixing: str = "convex"
    conv_groups: int | str = 1
    conv_every: int | None = None

    def __str__(self) -> str:
        defaults = Case()
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return ",".join(f"{k}={v}" for k, v in changed.items() if v != getattr(defaults, k)) or "default"


CASES = [
    Case(),
    Case(padding=False),
    Case(dropout=0.3),
    Case(position_bias=True),
    Case(is_causal=True, position_bias=True, dropout=0.2),
    Case(is_causal=True, kernel_size=5, padding=False),
    Case(kernel_size=1, heads=2),
    Case(kernel_size=5, queries=2),
    Case(heads=1, queries=1, padding=False),
    Case(residual_weight=0.0, position_bias=True),
    Case(conv_weight=0.0, position_bias=True, dropout=0.1),
    Case(dropout=1.0),
    Case(residual_weight=1.0, conv_weight=1.0),
    Case(batch=0, padding=False),
    Case(mixing="additive", residual_weight=-1.2, conv_weight=-0.7),
    Case(mixing="additive", residual_weight=1.0, conv_weight=0.0, is_causal=True, position_bias=True),
    Case(mixing="learned", dropout=0.3),
    Case(mixing="learned", is_causal=True, position_bias=True, kernel_size=5),
    Case(mixing="learned", batch=0, padding=False),
    Case(conv_groups="heads", position_bias=True),
    Case(kernel_size=(4, 3), is_causal=True, conv_groups="heads"),
    Case(kernel_size=(2, 5), is_causal=True, padding=False, dropout=0.2),
    Case(kernel_size=(1, 5), conv_every=1),
    Case(kernel_size=(5, 1), mixing="additive", conv_weight=-0.7),
    Case(mixing="learned", kernel_size=(2, 3), is_causal=True, conv_groups="heads"),
    Case(mixing="learned", conv_every=1, position_bias=True),
    Case(mixing="learned", conv_every=2),
]


class Chain:
    """Three layers of attention with random inputs, queries that see padding or the future blocked."""

    def __init__(self, case: Case, dtype: torch.dtype, memory_efficient: bool = False):
        torch.manual_seed(0)
        self.case = case
        self.modules = []
        for layer_index in range(3):
            module = nn.Module()
            module.evolution = AttentionEvolution(
                case.heads,
                layer_index,
                case.residual_weight,
                case.conv_weight,
                case.kernel_size,
                memory_efficient=memory_efficient,
                is_causal=case.is_causal,
                mixing=case.mixing,
                conv_groups=case.conv_groups,
                conv_every=case.conv_every,
            ).to(dtype)
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.4)
            self.modules.append(module)
        shape = (case.batch, case.heads, case.queries, 4)
        self.inputs = [(3 * torch.randn(shape, dtype=dtype)).requires_grad_() for _ in range(9)]
        self.bias = None
        if case.position_bias:
            self.bias = torch.randn(1, case.heads, case.queries, case.queries, dtype=dtype, requires_grad=True)
        self.mask = None
        if case.padding or case.is_causal:
            mask = torch.ones(case.batch, 1, case.queries, case.queries, dtype=torch.bool)
            if case.padding:
                mask[0, ..., -2:] = False
                mask[1, ..., 0] = False
            self.mask = mask.tril() if case.is_causal else mask
        parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self.differentiable = [*self.inputs, *parameters, *([self.bias] if case.position_bias else [])]

    def __call__(self, *_, training: bool = True) -> torch.Tensor:
        torch.manual_seed(1)
        state, outputs = EvolutionState(), []
        for i, module in enumerate(self.modules):
            module.train(training)
            output, _ = state.run(
                evolving_attention_forward,
                module,
                *self.inputs[3 * i : 3 * i + 3],
                self.mask,
                dropout=self.case.dropout,
                position_bias=self.bias,
            )
            outputs.append(output)
        return torch.cat(outputs)

    def gradients(self) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        output = self()
        generator = torch.Generator(torch.get_default_device()).manual_seed(2)
        weights = torch.randn(output.shape, generator=generator).to(output.dtype)  # the same in each type
        return output, torch.autograd.grad((output * weights).sum(), self.differentiable)


@pytest.fixture
def force_reference(monkeypatch):
    """A function that makes the reference path run from then on."""
    return lambda: monkeypatch.setattr(evolution, "_needs_reference", lambda *_: True)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, precision: float | None = None) -> None:
    """Within `precision`, 1e-10 (float64) or 1e-5 (float32), of the largest element, or of 1 if that is smaller."""
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    if precision is None:
        precision = 1e-10 if actual.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=precision * scale)


def assert_trains_as_reference(chain, force_reference):
    output, gradients = chain.gradients()
    force_reference()
    expected, expected_gradients = chain.gradients()
    assert_equal(output, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_equal(gradient, expected_gradient)


@pytest.mark.slow_but("float64")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("memory_efficient", [False, True], ids=["default", "memory_efficient"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_path_equals_reference(case, memory_efficient, dtype, force_reference):
    chain = Chain(case, dtype, memory_efficient)
    assert_trains_as_reference(chain, force_reference)


@pytest.mark.slow_but("float64")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("block_bytes", [1, 300, 2000, 10**9])
@pytest.mark.parametrize("case", [*CASES, Case(batch=5, queries=13, kernel_size=5)], ids=str)
def test_inference_by_blocks_equals_reference(case, block_bytes, dtype, monkeypatch, force_reference):
    monkeypatch.setattr(evolution_blocks, "BLOCK_BYTES_PER_THREAD", block_bytes)
    chain = Chain(case, dtype)
    with torch.no_grad():
        output = chain(training=False)
        force_reference()
        assert_equal(output, chain(training=False))


def test_training_mode_drops_without_gradients_too():
    """As Monte Carlo dropout needs it."""
    chain = Chain(Case(dropout=0.3), torch.float64)
    with torch.no_grad():
        assert not torch.allclose(chain(training=True), chain(training=False))


@pytest.mark.slow_but("-300]")
@pytest.mark.parametrize("block_bytes", [1, 300, 2000])
@pytest.mark.parametrize("memory_efficient", [False, True], ids=["default", "memory_efficient"])
@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        Case(batch=5, queries=13, kernel_size=5, dropout=0.1),
        Case(queries=11, kernel_size=7, position_bias=True),
    ],
    ids=str,
)
def test_training_by_blocks_equals_reference(case, memory_efficient, block_bytes, monkeypatch, force_reference):
    """Blocks of a few rows, the last of them shorter than the kernel."""
    monkeypatch.setattr(evolution_blocks, "BLOCK_BYTES_PER_THREAD", block_bytes)
    chain = Chain(case, torch.float64, memory_efficient)
    assert_trains_as_reference(chain, force_reference)


@pytest.mark.parametrize("memory_efficient", [False, True], ids=["default", "memory_efficient"])
@pytest.mark.parametrize(
    "case",
    [
        Case(queries=4, heads=2),
        Case(queries=4, heads=2, is_causal=True, dropout=0.2, position_bias=True),
        Case(queries=4, heads=2, mixing="additive", residual_weight=-0.6, conv_weight=-1.3),
        Case(queries=4, heads=2, is_causal=True, dropout=0.2, position_bias=True, mixing="learned"),
    ],
    ids=str,
)
@pytest.mark.slow_but("mixing=learned-default")
def test_training_path_passes_gradcheck(case, memory_efficient, monkeypatch):
    monkeypatch.setattr(evolution_blocks, "BLOCK_BYTES_PER_THREAD", 1)
    chain = Chain(case, torch.float64, memory_efficient)
    # The third layer's kernel, the first layer's inputs and all between: the chain as a whole.
    assert torch.autograd.gradcheck(chain, chain.differentiable)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near_float32(dtype):
    assert_is_near_float32(Chain(Case(), dtype))


def assert_is_near_float32(half: Chain) -> None:
    chain, dtype = Chain(half.case, torch.float32), half.inputs[0].dtype
    half.inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in chain.inputs]
    for ours, theirs in zip(half.modules, chain.modules, strict=True):
        ours.load_state_dict(theirs.state_dict())
    precision = torch.finfo(dtype).eps * 64
    torch.testing.assert_close(half().float(), chain(), rtol=precision, atol=precision)
    with torch.no_grad():
        torch.testing.assert_close(half(training=False).float(), chain(training=False), rtol=precision, atol=precision)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_position_bias_of_autocast_takes_the_fast_path(monkeypatch, dtype):
    """T5's embedding of positions stays float32 under autocast, while its queries and keys do not."""
    chain = Chain(Case(position_bias=True), torch.float32)
    expected, expected_gradients = chain.gradients()
    monkeypatch.setattr(evolution, "_reference_attention", None)
    half = Chain(Case(position_bias=True), torch.float32)
    half.inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in chain.inputs]
    half.differentiable[: len(half.inputs)] = half.inputs
    with torch.autocast("cpu", dtype):
        output, gradients = half.gradients()
    precision = torch.finfo(dtype).eps * 64
    torch.testing.assert_close(output.float(), expected, rtol=precision, atol=precision)
    assert gradients[-1].dtype == torch.float32
    scale = expected_gradients[-1].abs().max()
    torch.testing.assert_close(gradients[-1], expected_gradients[-1], rtol=0, atol=precision * scale)


def test_a_backward_pass_within_autocast_is_as_one_after_it():
    """Of layers whose states are float32 under autocast too, as Llama's are with a cache."""
    chain, found = Chain(Case(), torch.float32), []
    for within in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = chain().square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            found.append(torch.autograd.grad(loss, chain.inputs))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def tiny_bert(**fields) -> EABertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = EABertConfig(**{**sizes, "vocab_size": 99, "ea_residual_weight": 0.5, "ea_conv_weight": 0.5, **fields})
    model = EABertModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def run_counting_paths(monkeypatch, model: EABertModel, **kwargs) -> set[str]:
    """Which paths the layers of a model take."""
    taken = set()
    for name in ("_reference_attention", "_fast_attention"):
        original = getattr(evolution, name)

        def count(*args, name=name, original=original):
            taken.add(name)
            return original(*args)

        monkeypatch.setattr(evolution, name, count)
    model(torch.arange(1, 13).view(2, 6), attention_mask=torch.tensor([[1] * 6, [1] * 4 + [0] * 2]), **kwargs)
    return taken


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_fast_path_runs_by_default(monkeypatch, grad):
    with torch.set_grad_enabled(grad):
        assert run_counting_paths(monkeypatch, tiny_bert()) == {"_fast_attention"}


class Subclassed(torch.Tensor):
    """As quantized weights are."""


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_are_no_plain_tensors_take_the_reference_path(monkeypatch, name):
    model = tiny_bert()
    for layer in model.encoder.layer[1:]:
        conv = layer.attention.self.evolution.conv
        setattr(conv, name, nn.Parameter(getattr(conv, name).detach().as_subclass(Subclassed)))
    # The first layer has no convolution.
    assert run_counting_paths(monkeypatch, model) == {"_fast_attention", "_reference_attention"}


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_fast_path_runs_once_learned_gates_have_moved(monkeypatch, grad):
    model = tiny_bert(ea_mixing="learned")
    evolutions = [layer.attention.self.evolution for layer in model.encoder.layer]
    with torch.set_grad_enabled(grad):
        # The first layer has no gates, and does not know of the others'.
        assert run_counting_paths(monkeypatch, model) == {"_fast_attention", "_reference_attention"}
    with torch.no_grad():
        for evolution_module in evolutions[1:]:
            evolution_module.residual_gate.zero_()
            evolution_module.conv_gate.zero_()
        assert run_counting_paths(monkeypatch, model) == {"_reference_attention"}


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_gates_are_not_looked_at_in_every_step(monkeypatch, grad):
    model = tiny_bert(ea_mixing="learned")
    looks = []
    look = torch.Tensor.any
    with torch.set_grad_enabled(grad):
        model(torch.arange(1, 13).view(2, 6))
        with torch.no_grad():
            for parameter in model.parameters() if grad else ():
                parameter.mul_(1.1)  # as an optimizer does
        monkeypatch.setattr(torch.Tensor, "any", lambda self, *args: (looks.append(self.shape), look(self, *args))[1])
        model(torch.arange(1, 13).view(2, 6))
    assert (4,) not in looks


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"attn_implementation": "eager"}, {}),
        ({}, {"output_attentions": True}),
        ({}, {"output_attention_maps": True}),
    ],
    ids=["additive mask", "attention weights", "maps"],
)
def test_reference_path_runs_where_the_others_cannot(monkeypatch, fields, arguments):
    with torch.no_grad():
        assert run_counting_paths(monkeypatch, tiny_bert(**fields), **arguments) == {"_reference_attention"}


def test_reference_path_runs_with_another_activation(monkeypatch):
    model = tiny_bert(ea_activation="gelu")
    with torch.no_grad():  # the first layer has no activation
        assert run_counting_paths(monkeypatch, model) == {"_fast_attention", "_reference_attention"}


@pytest.mark.parametrize("memory_efficient", [False, True], ids=["default", "memory_efficient"])
def test_checkpointed_layers_replay_with_their_maps(memory_efficient):
    model = tiny_bert(ea_memory_efficient=memory_efficient).train()
    input_ids = torch.arange(1, 13).view(2, 6)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        model(input_ids).pooler_output.pow(2).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    model.activation_checkpointing_enable()
    for gradient, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6 * expected[0].abs().max().item())


def saved_bytes(model: nn.Module, input_ids: torch.Tensor) -> int:
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("memory_efficient", [False, True], ids=["default", "memory_efficient"])
def test_learned_weights_save_hardly_more_than_fixed_ones(memory_efficient):
    input_ids = torch.arange(1, 97).view(2, 48)
    sizes = {"num_hidden_layers": 8, "max_position_embeddings": 64, "ea_memory_efficient": memory_efficient}
    convex, learned = (
        saved_bytes(tiny_bert(**sizes, ea_mixing=mixing).train(), input_ids) for mixing in ("convex", "learned")
    )
    assert learned <= 1.1 * convex


@pytest.mark.parametrize(
    ("memory_efficient", "dropout", "limit"), [(True, 0.0, 1.05), (True, 0.1, 0.75), (False, 0.1, 1.0)]
)
def test_saved_bytes_beside_eager_attention(memory_efficient, dropout, limit):
    """Of the shape of BERT-base at 2 x 512, with two layers instead of twelve."""
    from transformers import BertConfig, BertModel

    fields = {"num_hidden_layers": 2, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    input_ids = torch.ones(2, 512, dtype=torch.long)
    eager = BertModel(BertConfig(**fields, attn_implementation="eager"), add_pooling_layer=False).train()
    config = EABertConfig(**fields, ea_memory_efficient=memory_efficient)
    evolving = EABertModel(config, add_pooling_layer=False).train()
    assert saved_bytes(evolving, input_ids) <= limit * saved_bytes(eager, input_ids)


def test_results_do_not_depend_on_threads_and_repeat_exactly():
    model, input_ids = tiny_bert(), torch.arange(1, 61).view(3, 20)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for number in (1, 2, 1):
            torch.set_num_threads(number)
            with torch.no_grad():
                outputs.append(model(input_ids).last_hidden_state)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs[2], outputs[0])


def test_deterministic_algorithms_are_supported():
    model = tiny_bert().train()
    torch.use_deterministic_algorithms(True)
    try:
        model(torch.arange(1, 13).view(2, 6)).pooler_output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel_rows", "kernel_columns", "is_causal"), [(3, 3, False), (2, 5, True), (1, 1, False)])
@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_of_the_convolution_are_those_of_pytorch(batch, kernel_rows, kernel_columns, is_causal, groups):
    layer = Layer(1.0, 0.1, 0.1, kernel_rows, kernel_columns, is_causal, groups=groups)
    image = torch.randn(batch, 4, 6 + kernel_rows - 1, 5, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(4, 4 // groups, kernel_rows, kernel_columns, dtype=torch.float64, requires_grad=True)
    convolved = torch.nn.functional.conv2d(image, kernel, padding=(0, layer.padding[1]), groups=groups)
    grad = torch.randn_like(convolved)
    of_image, of_kernel = torch.autograd.grad(convolved, (image, kernel), grad)
    torch.testing.assert_close(image_gradient(grad, kernel.detach(), layer), of_image)
    torch.testing.assert_close(kernel_gradient(grad, image.detach(), layer), of_kernel)
