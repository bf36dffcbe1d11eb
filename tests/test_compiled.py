# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiled models: layer by layer, in several threads at once, and with broken graphs. The backend runs what was traced."""

import threading

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, CheckpointWrapper
from torch.testing import assert_close
from transformers import BartConfig, BartModel, LlamaConfig, LlamaModel

from ea_hf import EABertConfig, EABertModel, EAT5Config, EAT5Model, EAViTConfig, EAViTModel, evolve
from ea_hf.models.evolution_blocks import Layer, Tensors
from ea_hf.models.evolution_fast import EvolvingAttention, infer
from ea_hf.models.evolution_operators import (
    attend,
    attend_with_gradients,
    attention_,
    attention_forward,
    hold,
    namespace,
    without_idle_masks,
)


LAYERS = 5  # more than graphs are allowed; threads need fewer
WEIGHTS = {"ea_residual_weight": 0.4, "ea_conv_weight": 0.4}
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32}


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, 99, shape, generator=torch.Generator().manual_seed(0))


def bert(layers: int = LAYERS):
    model = EABertModel(
        EABertConfig(vocab_size=99, **SIZES, num_hidden_layers=layers, **WEIGHTS, initializer_range=0.3)
    )
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[-1, 5:] = 0
    return model, [model.encoder.layer], {"input_ids": ids(2, 7), "attention_mask": mask}


def t5(layers: int = LAYERS):
    config = EAT5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=32, num_layers=layers, num_heads=4, **WEIGHTS)
    model = EAT5Model(config)
    inputs = {"input_ids": ids(2, 7), "decoder_input_ids": ids(2, 5), "use_cache": False}
    return model, [model.encoder.block, model.decoder.block], inputs


def llama(layers: int = LAYERS):
    config = LlamaConfig(
        vocab_size=99, **SIZES, num_hidden_layers=layers, num_key_value_heads=2, initializer_range=0.3
    )
    model = evolve(LlamaModel(config), 0.4, 0.4)
    return model, [model.layers], {"input_ids": ids(2, 7), "use_cache": False}


def vit(layers: int = LAYERS):
    model = EAViTModel(
        EAViTConfig(**SIZES, num_hidden_layers=layers, **WEIGHTS, image_size=8, patch_size=4, initializer_range=0.3)
    )
    return model, [model.layers], {"pixel_values": ids(2, 3, 8, 8) / 99}


def bart(layers: int = LAYERS):
    config = BartConfig(
        vocab_size=99, d_model=32, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, init_std=0.3,
    )  # fmt: skip
    model = evolve(BartModel(config), 0.4, 0.4)
    inputs = {"input_ids": ids(2, 7), "decoder_input_ids": ids(2, 5), "use_cache": False}
    return model, [model.encoder.layers, model.decoder.layers], inputs


MODELS = pytest.mark.parametrize("make", (bert, t5, llama), ids=lambda make: make.__name__)
MORE_MODELS = pytest.mark.parametrize("make", (bert, t5, llama, vit, bart), ids=lambda make: make.__name__)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def result(model: nn.Module, inputs: dict) -> torch.Tensor:
    return model(**inputs)[0]


@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@MORE_MODELS
@pytest.mark.slow_but("bert-", "bart-inference")
def test_compiling_layer_by_layer_makes_three_graphs_for_each_stack(make, training):
    """As Accelerate's `compile_regions` does; a graph of each layer's own would soon reach the limit of recompilations."""
    model, stacks, inputs = make()
    without_dropout(model).train(training)
    with torch.set_grad_enabled(training):
        expected = result(model, inputs)
        counter = CompileCounter()
        for layer in (layer for stack in stacks for layer in stack):
            layer.compile(backend=counter, fullgraph=True)
        for _ in range(2):
            assert_close(result(model, inputs), expected, atol=1e-5, rtol=1e-5)
    assert 0 < counter.frame_count <= 3 * len(stacks)


@pytest.mark.parametrize("breaks", (False, True), ids=("whole", "broken"))
@MODELS
@pytest.mark.slow_but("llama-whole")
def test_threads_that_run_compiled_models_do_not_meet(make, breaks):
    model, stacks, inputs = make(layers=2)
    model.eval()
    if breaks:
        for layer in stacks[0]:
            layer.register_forward_pre_hook(lambda *args: torch._dynamo.graph_break())
    batches = [{name: value[:1] if torch.is_tensor(value) else value for name, value in inputs.items()}, inputs]
    with torch.no_grad():
        expected = [result(model, batch) for batch in batches]
    compiled = torch.compile(model, backend="eager", dynamic=False, fullgraph=not breaks)
    failures, runs = [], []

    def work(index: int) -> None:
        for _ in range(10):
            try:
                with torch.no_grad():
                    assert_close(result(compiled, batches[index]), expected[index], atol=1e-5, rtol=1e-5)
                runs.append(index)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(runs) == 40


@MORE_MODELS
def test_wrappers_of_activation_checkpointing_change_no_gradient(make):
    """As FSDP puts them around layers; their replays come in the backward pass, outside any call of the model."""
    model, stacks, inputs = make()
    model.train()
    without_dropout(model)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        result(model, inputs).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    for stack in stacks:
        for index, layer in enumerate(stack):
            stack[index] = CheckpointWrapper(layer)
    actual = gradients()
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_reentrant_wrappers_are_refused():

    model, (stack,), inputs = bert()
    stack[1] = CheckpointWrapper(stack[1], CheckpointImpl.REENTRANT)
    with pytest.raises(ValueError, match="use_reentrant"):
        result(model.train(), inputs)


def layer_inputs(is_causal: bool, is_learned: bool, dtype: torch.dtype) -> tuple:
    """Arguments of `attend`, in a layer with everything that one can have."""
    batch, heads, queries, width = 2, 2, 5, 4
    states = [torch.randn(batch, heads, queries, width, dtype=dtype) for _ in range(3)]
    maps = [torch.randn(count, heads, queries, queries, dtype=dtype) for count in (batch, 1)]
    mask = torch.ones(batch, 1, queries, queries, dtype=torch.bool)
    mask = mask.tril() if is_causal else mask
    mask[-1, :, :, 3:] = False
    kernel, bias = torch.randn(heads, heads, 3, 3), torch.randn(heads)
    gates = [torch.rand(heads, 1, 1, dtype=dtype) if is_learned else None for _ in range(2)]
    layer = Layer(0.5, 0.4, 0.3, 3, 3, is_causal, "learned" if is_learned else "convex", 1)
    return (*states, *maps, mask, ~mask, kernel, bias, *gates, layer)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("is_learned", (False, True), ids=("constant", "learned"))
@pytest.mark.parametrize("is_causal", (False, True), ids=("both ways", "causal"))
def test_the_operator_does_what_compilers_rely_on_and_what_eager_inference_does(is_causal, is_learned, dtype):
    query, key, value, previous, *others, residual_gate, conv_gate, layer = layer_inputs(is_causal, is_learned, dtype)
    with torch.no_grad():
        for has_previous in (False, True):
            arguments = (query, key, value, previous, has_previous, *others, residual_gate, conv_gate, *layer)
            torch.library.opcheck(attention_, arguments)
        for map_before in (None, previous, previous.transpose(2, 3).contiguous().transpose(2, 3)):
            clones = [None if map_before is None else map_before.clone() for _ in range(2)]
            parts = [Tensors(query, key, value, clone, *others[:3]) for clone in clones]
            gates = (None if map_before is None else residual_gate, conv_gate)
            actual = attend(parts[0], *others[3:], *gates, layer)
            expected = infer(parts[1], *others[3:], *gates, layer)
            assert_close(actual, expected, rtol=0, atol=0)


def test_a_held_mask_is_a_copy():
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool).expand(2, 1, 5, 5)
    torch.library.opcheck(hold, (mask,))
    held = hold(mask)
    assert held.is_contiguous() and torch.equal(held, mask)


def test_the_operators_leave_out_masks_that_hide_nothing():
    states, shown = [torch.randn(2, 2, 3, 4)] * 3, torch.ones(2, 1, 3, 3, dtype=torch.bool)
    assert without_idle_masks(Tensors(*states, None, None, shown, ~shown))[5:] == (None, None)
    hiding = shown.clone()
    hiding[1, 0, 2, 0] = False
    for mask in (hiding, hiding.expand(2, 2, 3, 3), hiding[:0]):  # an empty batch hides nothing, and is left as it is
        left = without_idle_masks(Tensors(*states, None, None, mask, ~mask))
        assert left.attention_mask is mask and torch.equal(left.blocked, ~mask)


def test_the_operator_without_a_convolution():
    query, key, value, previous, *_, layer = layer_inputs(False, False, torch.float32)
    for has_previous in (False, True):
        torch.library.opcheck(attention_, (query, key, value, previous, has_previous, *[None] * 7, *layer))


def called_in_graph(make, layers: int, training: bool) -> list[str]:
    """What the graph of a compiled model calls."""
    model, _, inputs = make(layers=layers)
    model.eval()
    targets = []

    def record(graph: torch.fx.GraphModule, _: list):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.set_grad_enabled(training):
        torch.compile(model, backend=record, fullgraph=True)(**inputs)
    return targets


@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@MODELS
def test_compiled_models_call_the_operators(make, training):
    targets = called_in_graph(make, 2, training)
    operator = "ea_hf.attention_forward" if training else "ea_hf.attention_."
    assert any(operator in target for target in targets)
    assert not any("conv2d" in target for target in targets if "vit" not in make.__name__)


@MODELS
def test_compiled_models_compute_masks_once_for_all_layers(make):
    held, more_held = (called_in_graph(make, layers, False).count("ea_hf.hold.default") for layers in (2, 3))
    assert held == more_held
    if make is bert:
        assert held == 2  # of what may be attended to, and of what the convolution must not see


def gradients(model: nn.Module, called: nn.Module, inputs: dict) -> dict[str, torch.Tensor]:
    """Of a model's parameters, with numbers that differ from cell to cell on the way back."""
    model.zero_grad()
    output = result(called, inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= 1e-5 * scale, name


def learned(layers: int = LAYERS):
    model, stacks, inputs = bert(layers)
    config = type(model.config)(**{**model.config.to_dict(), "ea_mixing": "learned", "ea_conv_groups": "heads"})
    return EABertModel(config), stacks, inputs


def memory_saving(layers: int = LAYERS):
    model, stacks, inputs = t5(layers)
    for module in model.modules():
        if hasattr(module, "memory_efficient"):
            module.memory_efficient = True
    return model, stacks, inputs


@pytest.mark.parametrize("make", (bert, t5, llama, learned, memory_saving, vit, bart), ids=lambda make: make.__name__)
@pytest.mark.slow_but("bert", "learned")
def test_compiled_training_gives_the_gradients_of_eager_training(make):
    model, _, inputs = make(layers=2)
    without_dropout(model).train()
    expected = gradients(model, model, inputs)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_gradients(gradients(model, compiled, inputs), expected)


@MODELS
@pytest.mark.slow_but("bert")
def test_gradient_checkpointing_leaves_its_layers_out_of_the_graph(make):
    model, _, inputs = make(layers=3)
    without_dropout(model).train()
    expected = gradients(model, model, inputs)
    model.gradient_checkpointing_enable()
    compiled = torch.compile(model, backend="aot_eager")
    assert_same_gradients(gradients(model, compiled, inputs), expected)


@pytest.mark.slow
def test_inductor_gives_the_gradients_of_eager_training():
    model, _, inputs = bert(layers=3)
    without_dropout(model).train()
    expected = gradients(model, model, inputs)
    assert_same_gradients(gradients(model, torch.compile(model), inputs), expected)
    for other in (2, 3):  # lengths that were not compiled
        cut = {name: value[:, : value.shape[1] - other] for name, value in inputs.items()}
        expected = gradients(model, model, cut)
        assert_same_gradients(gradients(model, torch.compile(model), cut), expected)


def test_compiled_dropout_is_the_same_in_both_passes():
    """The gradient along a direction is the difference quotient of outputs with the same dropout."""
    model, _, inputs = bert(layers=2)
    model = model.double().train()
    compiled = torch.compile(model, backend="aot_eager")
    weight = model.encoder.layer[1].attention.self.value.weight
    direction = torch.randn(weight.shape, dtype=torch.double)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        output = result(compiled, inputs)
        return (output * torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output)).sum()

    loss().backward()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * direction
        values.append(loss().item())
        with torch.no_grad():
            weight -= sign * 1e-5 * direction
    assert (values[0] - values[1]) / 2e-5 == pytest.approx((weight.grad * direction).sum().item(), rel=1e-5)


@pytest.mark.slow
def test_compiled_training_under_autocast_is_as_near_as_eager_training():
    model, _, inputs = bert(layers=2)
    without_dropout(model).train()
    exact = gradients(model, model, inputs)
    scale = max(gradient.abs().max() for gradient in exact.values())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradients(model, called, inputs) for called in (model, compiled)]
    errors = [max((other[name] - exact[name]).abs().max() / scale for name in exact) for other in found]
    assert 0 < errors[1] < 2 * errors[0] < 0.1


def test_function_transforms_are_compiled_through_the_equations():
    model, _, inputs = bert(layers=2)
    without_dropout(model).eval()
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (), inputs)[0].square().mean()

    expected = torch.func.grad(loss)(parameters)
    compiled = torch.compile(torch.func.grad(loss), backend="aot_eager", fullgraph=True)
    for name, gradient in expected.items():
        assert_close(compiled(parameters)[name], gradient, atol=1e-6, rtol=1e-5)
    # The same model, no longer transformed.
    plain = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_close(plain(parameters), loss(parameters), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("is_memory_efficient", (False, True), ids=("fast", "memory-saving"))
@pytest.mark.parametrize("is_learned", (False, True), ids=("constant", "learned"))
@pytest.mark.parametrize("is_causal", (False, True), ids=("both ways", "causal"))
def test_the_operators_of_training_do_what_compilers_rely_on(is_causal, is_learned, is_memory_efficient):
    *tensors, layer = layer_inputs(is_causal, is_learned, torch.float32)
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            tensor.requires_grad_()
    without_previous = [*tensors[:3], None, *tensors[4:9], None, tensors[10]]
    without_convolution = [*tensors[:7], *[None] * 4]
    for arguments in (tensors, without_previous, without_convolution):
        torch.library.opcheck(attention_forward, (*arguments, *layer, 0.0, is_memory_efficient))
        expected = EvolvingAttention.apply(*arguments, layer, 0.0, is_memory_efficient)
        actual = attend_with_gradients(Tensors(*arguments[:7]), *arguments[7:], layer, 0.0, is_memory_efficient)
        assert_close(actual, expected, rtol=0, atol=0)
        wanted = [t for t in arguments if t is not None and t.requires_grad]
        for outputs in ((0,), (0, 1)):
            grads = [
                torch.autograd.grad([found[i].square().sum() for i in outputs], wanted, allow_unused=True)
                for found in (
                    EvolvingAttention.apply(*arguments, layer, 0.0, is_memory_efficient),
                    attend_with_gradients(Tensors(*arguments[:7]), *arguments[7:], layer, 0.0, is_memory_efficient),
                )
            ]
            assert_close(*grads, rtol=0, atol=0)


def test_gradients_are_laid_out_as_compilers_are_told():
    """Also those of kernels in another memory format, as `model.to(memory_format=torch.channels_last)` makes them."""
    *tensors, layer = layer_inputs(False, False, torch.float32)
    kernel = tensors[7] = tensors[7].to(memory_format=torch.channels_last).requires_grad_()
    output, _ = attend_with_gradients(Tensors(*tensors[:7]), *tensors[7:], layer, 0.0, False)
    (gradient,) = torch.autograd.grad(output.square().sum(), kernel)
    assert gradient.is_contiguous() and not kernel.is_contiguous()


def test_compiled_models_refuse_masks_too():
    model, _, inputs = bert(layers=2)
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    packed = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).bool()
    with torch.no_grad(), pytest.raises(RuntimeError, match="packed sequences"):
        compiled(inputs["input_ids"], attention_mask=packed.expand(2, 1, 7, 7))


def test_operators_of_another_copy_of_the_file_have_a_name_of_their_own():
    """As checkpoints bring it with them; both then run in one process."""
    assert namespace("ea_hf.models.evolution_operators") == "ea_hf"
    assert namespace("transformers_modules.copy.evolution_operators") not in (
        "ea_hf",
        namespace("transformers_modules.b"),
    )
