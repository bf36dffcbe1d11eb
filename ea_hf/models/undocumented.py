# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The undocumented names of PyTorch and Transformers on which models rely, each with a test that says what breaks without it."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY


def is_in_backward() -> bool:
    """Whether a backward pass is running, in which gradient checkpointing runs layers again."""
    return torch._C._current_graph_task_id() != -1


def is_in_function_transform() -> bool:
    """Whether `torch.func` transforms what runs, as `vmap` and `grad` do."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def has_hooks(module: nn.Module) -> bool:
    """Whether something else runs when a module is called: hooks of its own, or of all modules."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or nn.modules.module._has_any_global_hook()


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether it is no subclass of tensors, such as a quantized one; fake tensors stand for plain ones."""
    return type(tensor.data) in (torch.Tensor, FakeTensor)


def has_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor is more than a shape, as those on the meta device and fake ones are."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


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
