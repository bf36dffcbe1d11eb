# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A model and its optimizer, prepared by Accelerate; for FSDP2, what our models need beyond that."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..models.evolution import AttentionEvolution
from ..models.modeling_ea_evolved import EvolvedPreTrainedModel
from ..undocumented import generate_in_step


def layer_classes(model: PreTrainedModel) -> list[str]:
    """Names of the classes whose modules FSDP2 gathers one by one: the layers, which activation checkpointing replays.

    Transformers' `_no_split_modules`, Accelerate's choice, also names embeddings, but their weights may belong to other
    modules too, such as a head for masked language modeling. Shared weights must be of one unit: the model itself.
    """
    return sorted(
        {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    )


def gather_kernels(model: nn.Module) -> None:
    """Lets DeepSpeed's ZeRO-3 gather the kernels of the maps with each attention layer.

    It gathers what a module owns when the module is called, but the fast paths call no convolution.
    """
    import deepspeed

    for attention in model.modules():
        if isinstance(getattr(attention, "evolution", None), AttentionEvolution):
            for parameter in attention.evolution.parameters():
                deepspeed.zero.register_external_parameter(attention, parameter)


def prepare(
    accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """`accelerator.prepare`, such that FSDP2 also works with shared embeddings, and that a sharded model generates.

    Raises:
        ValueError: FSDP2 or DeepSpeed is to train a model with batch normalization.
    """
    is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if is_sharded and any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has batch normalization, whose running statistics would differ from process to "
            f"process under {accelerator.distributed_type.value}. It is small enough for plain data parallelism: launch "
            "with configs/ddp.yaml."
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        gather_kernels(model)
    if isinstance(model, EvolvedPreTrainedModel) and accelerator.ddp_handler is None:
        # Some have parameters that no loss depends on, such as Marian's positions and DINOv2's mask token.
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model, optimizer)
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model)
    # Accelerate would make a unit of the embeddings, and torch refuses one that shares its weights with another.
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        model, optimizer = accelerator.prepare(model, optimizer)
    finally:
        del model.get_input_embeddings, model.get_output_embeddings
    if hasattr(model, "generate"):
        # Gathers the weights of the root, which `generate` reads outside of the model's forward.
        register_fsdp_forward_method(model, "generate")
        generate_in_step(model)
    return model, optimizer
