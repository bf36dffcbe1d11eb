# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes, data-parallel and sharded, give the gradients, checkpoints and texts of one.

FSDP2 runs on CPUs here, by gloo, though Accelerate offers it for GPUs only.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from model_inputs import Batch
from models import BASE_CASES, CASES
from processes import Processes
from test_ea_resnet import images, tiny_model
from tiny_bert import reset_accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from ea_hf import EAResNetModel
from ea_hf.models import evolution_blocks
from ea_hf.models.dc_transformer_layers import EADCTransformerBatchNorm
from ea_hf.models.evolution import AttentionEvolution, EvolutionState
from ea_hf.training.loop import save_model
from ea_hf.training.sharding import layer_classes, prepare


class ResNetCase:
    """EA-ResNet, which has no vanilla counterpart, as a case among the others.

    Its statistics are fixed: in training, those of a batch normalization are of the examples of a process.
    """

    means = ()
    inputs = SimpleNamespace(options={})

    def __str__(self) -> str:
        return "EAResNetModel"

    def model(self) -> nn.Module:
        model = tiny_model(EAResNetModel)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode: None
        return model

    def batch(self) -> Batch:
        return Batch({"pixel_values": images(4)}, [])


class FormCase:
    """Another form of evolving attention in a family that stands for all."""

    def __init__(self, **fields: Any):
        self.fields = fields
        self.case = next(case for case in BASE_CASES if str(case) == "EABertModel")
        self.means, self.inputs, self.batch = self.case.means, self.case.inputs, self.case.batch

    def model(self) -> nn.Module:
        return self.case.model(**self.fields)


FORMS = {
    "learned": FormCase(ea_mixing="learned"),
    "talking heads": FormCase(ea_kernel_size=1, ea_conv_every=1, ea_post_mixing="heads"),
}
MODELS = {str(case): case for case in (*CASES, ResNetCase())} | FORMS
FAMILIES = [str(case) for case in BASE_CASES] + ["EAResNetModel"]

every_model = pytest.mark.parametrize("name", MODELS)
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def two_processes():
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="module")
def four_processes():
    with Processes(4) as processes:
        yield processes


# What the processes run


def inputs_of(case: Any, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.batch().inputs.items()}


def my_share(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every so-manieth example, as contiguous tensors."""
    return {k: v[dist.get_rank() :: dist.get_world_size()].contiguous() for k, v in inputs.items()}


def objective(case: Any, outputs: dict[str, Any]) -> torch.Tensor:
    """A sum over the examples, which every element of every output changes by a different amount."""
    total = torch.zeros(())
    for name, values in outputs.items():
        for value in values if isinstance(values, tuple) else (values,):
            if name not in case.means and isinstance(value, torch.Tensor):
                weights = torch.arange(value[0].numel()).sin().view_as(value[0])
                total = total + (value * weights.to(value.dtype)).sum()
    return total


def backward(case: Any, model: nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> None:
    with warnings.catch_warnings():
        # Of an in-place operation on what a sharded module returns; nobody does one.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        objective(case, model(**inputs, **case.inputs.options, **options)).backward()


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def difference(model: nn.Module, references: dict[str, torch.Tensor]) -> float:
    """How much the gradients that the processes have averaged differ from those of one process, at most.

    Relative to a parameter's own gradient, if this is not all but zero as that of a key's bias.
    """
    gradients = gradients_of(model)
    assert gradients.keys() == references.keys()
    scale = max(gradient.abs().max() for gradient in references.values())
    return max(
        float(
            (whole(gradients[name]) * dist.get_world_size() - reference).norm() / max(reference.norm(), 1e-3 * scale)
        )
        for name, reference in references.items()
    )


def shard_by_layer(model: nn.Module, **options: Any) -> nn.Module:
    names = layer_classes(model)
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, **options)
    return fully_shard(model, **options)


STRATEGIES: dict[str, Callable[[nn.Module], nn.Module]] = {"DDP": DistributedDataParallel, "FSDP2": shard_by_layer}


def gradient_differences(name: str) -> dict[str, float]:
    case = MODELS[name]
    inputs = inputs_of(case)
    expected = case.model().double().train()
    backward(case, expected, inputs)
    differences = {}
    for strategy, distribute in STRATEGIES.items():
        for checkpointing in ("", ", checkpointing"):
            model = case.model().double().train()
            if checkpointing:
                model.activation_checkpointing_enable()
            backward(case, distribute(model), my_share(inputs))
            differences[strategy + checkpointing] = difference(model, gradients_of(expected))
    return differences


def assert_same_gradients(processes: Processes, name: str) -> None:
    for differences in processes.run(gradient_differences, name):
        assert len(differences) == 2 * len(STRATEGIES)
        # T5 normalizes in single precision whatever its type.
        assert {strategy: value for strategy, value in differences.items() if not value <= 1e-6} == {}


@every_model
@pytest.mark.slow_but("EABertForPreTraining", "EAT5ForConditionalGeneration")
def test_two_processes_give_the_gradients_of_one(name, two_processes):
    assert_same_gradients(two_processes, name)


@every_family
@pytest.mark.slow_but("EABertModel")
def test_four_processes_give_the_gradients_of_one(name, four_processes):
    assert_same_gradients(four_processes, name)


def difference_by_normalization(name: str) -> float:
    """Of DDP, where every process has the same examples."""
    model, expected = tiny_model(EAResNetModel).double().train(), tiny_model(EAResNetModel).double().train()
    inputs = inputs_of(MODELS[name])
    backward(MODELS[name], expected, inputs)
    backward(MODELS[name], DistributedDataParallel(model), inputs)
    for parameter in expected.parameters():
        parameter.grad *= dist.get_world_size()  # a sum over all examples
    return difference(model, gradients_of(expected))


def test_batch_normalization_in_training_is_over_the_examples_of_a_process(two_processes):
    assert max(two_processes.run(difference_by_normalization, "EAResNetModel")) <= 1e-6


def gradient_difference_of_maps(name: str) -> float:
    """Of a loss that depends on nothing but the last layer's map: no gradient enters that layer by its output."""
    case = MODELS[name]
    models = []
    for inputs in (inputs_of(case), my_share(inputs_of(case))):
        model = case.model().double().train()
        outputs = (shard_by_layer(model, reshard_after_forward=False) if models else model)(
            **inputs, output_attention_maps=True
        )
        backward_of = {"map": outputs.attention_maps[-1]}
        objective(case, backward_of).backward()
        for parameter in model.parameters():  # of what comes after the map
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        models.append(model)
    return difference(models[1], gradients_of(models[0]))


@pytest.mark.parametrize("name", ["EABertModel", "EAViTModel", "EAResNetModel"])
def test_a_loss_of_the_maps_alone_where_weights_are_kept_for_the_backward_pass(name, two_processes):
    assert max(two_processes.run(gradient_difference_of_maps, name)) <= 1e-6


def sharded_evolution(name: str) -> list[tuple[bool, int, int]]:
    """Of each convolution's parameter: whether it is sharded along its first axis, its size here, and in all."""
    model = shard_by_layer(MODELS[name].model())
    return [
        (parameter.placements == (Shard(0),), parameter.to_local().numel(), parameter.numel())
        for module in model.modules()
        if isinstance(module, AttentionEvolution) and module.conv is not None
        for parameter in module.conv.parameters()
    ]


@every_family
def test_convolutions_are_sharded(name, two_processes):
    first, second = two_processes.run(sharded_evolution, name)
    assert first
    for (is_sharded, here, total), (_, there, _) in zip(first, second, strict=True):
        assert is_sharded and 0 < here < total and here + there == total


@every_family
def test_layers_are_what_is_sharded_and_replayed(name):
    model = MODELS[name].model()
    names = layer_classes(model)
    assert names and {*names} <= {*model._no_split_modules}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    evolutions = [[m for m in layer.modules() if isinstance(m, AttentionEvolution)] for layer in layers]
    found = [evolution for evolutions_of_layer in evolutions for evolution in evolutions_of_layer]
    assert len({*found}) == len(found) == sum(isinstance(module, AttentionEvolution) for module in model.modules())
    shared = {id(p) for p in model.parameters()}
    for layer in layers:
        assert shared.issuperset(id(p) for p in layer.parameters())
        shared -= {id(p) for p in layer.parameters()}  # no parameter belongs to two layers
    own = {id(p) for layer in layers for p in layer.parameters()}
    outside = [module for module in model.modules() if not any(module in {*layer.modules()} for layer in layers)]
    assert own.isdisjoint(id(p) for module in outside for p in module.parameters(recurse=False))


# Mixed precision


def half_precision(name: str) -> tuple[float, set[torch.dtype], set[torch.dtype], bool]:
    """How far gradients are from those that each process gets alone in bfloat16, and what the layers have used."""
    case = MODELS[name]
    inputs = my_share(inputs_of(case, torch.bfloat16))
    expected = case.model().bfloat16().train()
    backward(case, expected, inputs)
    sums = {name: parameter.grad.float() for name, parameter in expected.named_parameters()}
    for gradient in sums.values():
        dist.all_reduce(gradient)
    maps, kernels, handed_on = set(), set(), []
    store, previous, fold = EvolutionState.store, EvolutionState.previous, evolution_blocks.fold

    def watched_store(self, layer, evolved):
        maps.add(evolved.dtype)
        return store(self, layer, evolved)

    def watched_previous(self, layer, device):
        before = dict(self._maps)
        result = previous(self, layer, device)
        if result is not None:
            handed_on.append(any(result is value for value in before.values()))
        return result

    def watched_fold(parameter, *args):
        kernels.add(parameter.dtype)
        return fold(parameter, *args)

    EvolutionState.store, EvolutionState.previous, evolution_blocks.fold = (
        watched_store,
        watched_previous,
        watched_fold,
    )
    try:
        model = case.model().train()
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        backward(case, shard_by_layer(model, mp_policy=policy), inputs)
    finally:
        EvolutionState.store, EvolutionState.previous, evolution_blocks.fold = store, previous, fold
    assert all(parameter.grad.dtype == parameter.dtype == torch.float32 for parameter in model.parameters())
    return difference(model, sums), maps, kernels, all(handed_on) and len(handed_on) > 0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "EAResNetModel"])
def test_mixed_precision_policy(name, two_processes):
    """Maps and kernels are in bfloat16, and the hooks of sharded layers do not touch what a layer hands to the next."""
    # The decoder's layers all add to the gradient of the encoder's output; in which order is not the same, so that
    # bfloat16 rounds otherwise.
    is_encoder_decoder = MODELS[name].config().is_encoder_decoder
    tolerance = 4 * torch.finfo(torch.bfloat16).eps if is_encoder_decoder else 1e-5
    for value, maps, kernels, untouched in two_processes.run(half_precision, name):
        assert value <= tolerance
        assert maps == kernels == {torch.bfloat16}
        assert untouched


# Through Accelerate


def fsdp2_accelerator(mixed_precision: str = "no") -> Accelerator:
    """An Accelerator as with configs/fsdp2.yaml, but on CPUs."""
    reset_accelerator()
    accelerator = Accelerator(cpu=True)
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    return accelerator


def train_and_save(name: str, directory: Path) -> float:
    """Takes a step, saves the model, and returns how far the weights are from one process's."""
    case = MODELS[name]
    inputs = inputs_of(case)
    expected = case.model().double().train()
    for module in expected.modules():
        if isinstance(module, EADCTransformerBatchNorm):
            module.is_synchronized = False  # as in a process that has no others
    expected_optimizer = torch.optim.SGD(expected.parameters(), lr=1e-3)
    backward(case, expected, inputs)
    accelerator = fsdp2_accelerator()
    model = case.model().double().train()
    model, optimizer = prepare(accelerator, model, torch.optim.SGD(model.parameters(), lr=1e-3))
    assert isinstance(model, FSDPModule)
    backward(case, model, my_share(inputs))
    for parameter in model.parameters():
        parameter.grad *= dist.get_world_size()
    limit = 0.1
    norm = accelerator.clip_grad_norm_(model.parameters(), limit)
    expected_norm = nn.utils.clip_grad_norm_(expected.parameters(), limit)
    torch.testing.assert_close(whole(norm), expected_norm)
    optimizer.step()
    expected_optimizer.step()
    save_model(accelerator, model, directory)
    # The names are those of an ordinary model, and each weight is whole.
    state, expected_state = accelerator.get_state_dict(model), expected.state_dict()
    if dist.get_rank() == 0:
        assert state.keys() == expected_state.keys()
        return max(float((state[k].double() - v.double()).abs().max()) for k, v in expected_state.items())
    return 0.0


def refusal(name: str) -> str:
    model = MODELS[name].model()
    with pytest.raises(ValueError) as error:
        prepare(fsdp2_accelerator(), model, torch.optim.SGD(model.parameters()))
    return str(error.value)


def test_batch_normalization_is_not_sharded(two_processes):
    for message in two_processes.run(refusal, "EAResNetModel"):
        assert "EAResNetModel" in message and "configs/ddp.yaml" in message


@pytest.mark.parametrize("name", [name for name in MODELS if name != "EAResNetModel"])
@pytest.mark.slow_but("EABertForPreTraining", "EAT5ForConditionalGeneration")
def test_a_sharded_model_trains_and_is_saved_as_an_ordinary_checkpoint(name, two_processes, tmp_path):
    assert max(two_processes.run(train_and_save, name, tmp_path)) <= 1e-6
    loaded, info = type(MODELS[name].model()).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not any(isinstance(parameter, DTensor) for parameter in loaded.parameters())
    before = MODELS[name].model().double()
    weights = dict(before.named_parameters())
    assert any(not torch.equal(value, weights[key]) for key, value in loaded.named_parameters())


def generate(options: dict[str, Any]) -> tuple[list, list]:
    """What each process generates, sharded after a step of training, and what an ordinary model does."""
    case = MODELS["EAT5ForConditionalGeneration"]
    model = case.model().train()
    model, _ = prepare(fsdp2_accelerator(), model, torch.optim.SGD(model.parameters(), lr=0.0))
    inputs = case.batch().inputs
    backward(case, model, my_share(inputs))
    inputs = {k: v for k, v in my_share(inputs).items() if "decoder" not in k}
    # The processes want texts of different lengths, and each needs the weights that the others hold.
    options = {**options, "max_new_tokens": 3 + 4 * dist.get_rank(), "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        generated = model.eval().generate(**inputs, **options)
        again = model.generate(**inputs, **options)
        expected = case.model().generate(**inputs, **options)
    assert torch.equal(generated, again)
    return generated.tolist(), expected.tolist()


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_sharded_model_generates_as_an_ordinary_one(options, two_processes):
    results = two_processes.run(generate, {**options, "do_sample": False})
    for generated, expected in results:
        assert generated == expected
    assert len(results[0][0][0]) != len(results[1][0][0])
