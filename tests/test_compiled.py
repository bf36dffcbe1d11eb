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
from ea_hf.models.evolution_fast import infer
from ea_hf.models.evolution_operators import attend, attention_, namespace


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


def test_the_operator_without_a_convolution():
    query, key, value, previous, *_, layer = layer_inputs(False, False, torch.float32)
    for has_previous in (False, True):
        torch.library.opcheck(attention_, (query, key, value, previous, has_previous, *[None] * 7, *layer))


@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@MODELS
def test_compiled_inference_calls_the_operator_and_training_the_equations(make, training):
    model, _, inputs = make(layers=2)
    model.eval()
    targets = []

    def record(graph: torch.fx.GraphModule, _: list):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.set_grad_enabled(training):
        torch.compile(model, backend=record, fullgraph=True)(**inputs)
    assert any("ea_hf.attention_" in target for target in targets) == (not training)
    assert any("conv2d" in target for target in targets) == training


def test_operators_of_another_copy_of_the_file_have_a_name_of_their_own():
    """As checkpoints bring it with them; both then run in one process."""
    assert namespace("ea_hf.models.evolution_operators") == "ea_hf"
    assert namespace("transformers_modules.copy.evolution_operators") not in (
        "ea_hf",
        namespace("transformers_modules.b"),
    )
