# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The undocumented names of PyTorch and Transformers on which models rely, each with a test that says what breaks without it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.dynamic_module_utils import get_cached_module_file, get_relative_import_files
from transformers.loss.loss_utils import ForCausalLMLoss, ForMaskedLMLoss, ForTokenClassification
from transformers.masking_utils import sdpa_mask as sdpa_mask
from transformers.utils import HF_MODULES_CACHE
from transformers.utils.generic import can_return_tuple as can_return_tuple
from transformers.utils.generic import merge_with_config_defaults as merge_with_config_defaults
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY
from transformers.utils.output_capturing import OutputRecorder as OutputRecorder
from transformers.utils.output_capturing import capture_outputs as capture_outputs


# Loss functions that divide by the number of labels that they are given. That of sequences does so for some labels only.
COUNTING_LOSSES = (ForCausalLMLoss, ForMaskedLMLoss, ForTokenClassification)


def is_in_backward() -> bool:
    """Whether a backward pass is running, in which gradient checkpointing runs layers again."""
    return torch._C._current_graph_task_id() != -1


@torch.compiler.assume_constant_result  # asked while it is traced, within the transforms; the graph is guarded by them
def is_in_function_transform() -> bool:
    """Whether `torch.func` transforms what runs, as `vmap` and `grad` do."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_recorded() -> bool:
    """Whether a mode records or replaces each operation that runs, as `make_fx` and fake tensors do."""
    return torch._C._len_torch_dispatch_stack() > 0


def has_hooks(module: nn.Module) -> bool:
    """Whether something else runs when a module is called: hooks of its own, or of all modules."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or nn.modules.module._has_any_global_hook()


def own_parameters(module: nn.Module) -> Iterable[nn.Parameter | None]:
    """`module.parameters(recurse=False)`, which takes several times as long, and `None` for those that are not there."""
    return module._parameters.values()


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether it is no subclass of tensors, such as a quantized one; fake tensors stand for plain ones."""
    return type(tensor.data) in (torch.Tensor, FakeTensor)


def has_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor is more than a shape, as those on the meta device and fake ones are."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def assert_in_graph(is_right: torch.Tensor, message: str) -> None:
    """What is compiled raises RuntimeError where a tensor is False; nothing that depends on its number can be traced."""
    torch._assert_async(is_right, message)


def keep_in_place(tensor: torch.Tensor) -> None:
    """Tells `torch.compile` that a tensor never moves."""
    torch._dynamo.mark_static_address(tensor)


def set_attention_function(config: PreTrainedConfig, name: str) -> None:
    """Says by which name a module finds its attention function; the documented setter also changes nested configurations."""
    config._attn_implementation_internal = name


def checkpoint_wrappers(model: nn.Module) -> list[nn.Module]:
    """The modules that FSDP's activation checkpointing has put around layers; each calls `checkpoint_fn`."""
    return [module for module in model.modules() if isinstance(module, CheckpointWrapper)]


def record_outputs(model: PreTrainedModel) -> None:
    """Lets a model that has changed its class return hidden states and attentions as its new class does."""
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs


def model_mapping(auto_class: Any) -> Any | None:
    """Which model classes an Auto class has for which configuration classes; `None` if it is no Auto class of models."""
    return getattr(auto_class, "_model_mapping", None)


def forget_renamed_weights(model: PreTrainedModel) -> None:
    """Forgets what renamed the weights of an old checkpoint when it was loaded, so that a model is saved as it is."""
    vars(model).pop("_weight_conversions", None)


def name_model_class(auto_class: Any, model_type: str, name: str) -> None:
    """Enters a class into the table of names of an Auto class, in which `pipeline` looks up whether it supports a model."""
    mapping = model_mapping(auto_class)
    if mapping is not None:
        mapping._model_mapping[model_type] = name


def register_pipeline(task: str, pipeline_class: type, auto_class: Any, kind: str) -> None:
    """Makes `pipeline(task)` know a class, also for a task that Transformers has no more, whose name it refuses."""
    # Only here, since a model does not need it.
    from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

    if task in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline_class
    else:
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, auto_class, type=kind)
        REMOVED_TASKS.pop(task, None)


def convert_checkpoints_as(model_class: str, vanilla_class: str) -> None:
    """Lets old checkpoints, whose weights have other names, be loaded into a class as into its vanilla one."""
    register_checkpoint_conversion_mapping(
        model_class, get_checkpoint_conversion_mapping(vanilla_class), overwrite=True
    )


def fetch_code(name_or_path: str, file_name: str) -> Path:
    """A file of code that lies beside a checkpoint, where code with `trust_remote_code=True` is run."""
    return Path(HF_MODULES_CACHE, get_cached_module_file(name_or_path, file_name))


def imported_files(file: Path) -> list[Path]:
    """The files that a file of code imports as `from .name import x`, and those that these import."""
    return [Path(path) for path in get_relative_import_files(file)]


def softmax_backward(grad: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The gradient of scores from that of their softmax over the last dimension."""
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)


def version_of(tensor: torch.Tensor) -> int:
    """A number that grows whenever a tensor is written to."""
    return tensor._version


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes; its gradient goes to all of them."""
    from torch.distributed._functional_collectives import all_reduce  # not in every build of PyTorch

    return all_reduce(tensor, "sum", torch.distributed.group.WORLD)


def checkpointing_function(module: nn.Module) -> Any:
    """With what a module that has `gradient_checkpointing` runs its layers."""
    return module._gradient_checkpointing_func
