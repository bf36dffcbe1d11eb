# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights and optimizer state on disk, in a form that does not depend on how many processes share them, or how.

Whole tensors by the names of the parameters: what DDP or FSDP2 wrote on many processes, one process reads, and the
other way round. DeepSpeed's engine keeps files of its own, for as many processes as wrote them.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)


MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.bin"
SCHEDULER_FILE = "scheduler.bin"
SCALER_FILE = "scaler.bin"


def describe_engine(accelerator: Accelerator) -> str:
    """Which checkpoints a run can read: "torch", or DeepSpeed's of one stage and number of processes."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return "torch"
    return f"DeepSpeed ZeRO-{plugin.zero_stage} on {accelerator.num_processes} processes"


def save_training_state(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, scheduler: Any, directory: Path
) -> None:
    """Writes what `load_training_state` reads. All processes take part; the main one writes.

    Args:
        model, optimizer: prepared by the accelerator, or sharded with torch's `fully_shard`.
        scheduler: of the learning rate, unprepared.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.save_state(str(directory))
    else:
        # Gathered on the main process alone, on its CPU.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model = accelerator.unwrap_model(model)
        weights = get_model_state_dict(model, options=options)
        for name in _names_of_ties(model):  # safetensors holds each tensor once
            weights.pop(name, None)
        moments = get_optimizer_state_dict(model, _plain(optimizer), options=options)
        for group in moments.get("param_groups", []):  # gathering makes lists of tuples, but the first time only
            group.update(
                {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
            )
        # After all that needs the other processes, so that a full disk leaves none of them waiting.
        accelerator.save(weights, directory / MODEL_FILE, safe_serialization=True)
        accelerator.save(moments, directory / OPTIMIZER_FILE)
    accelerator.save(scheduler.state_dict(), directory / SCHEDULER_FILE)
    if accelerator.scaler is not None:
        accelerator.save(accelerator.scaler.state_dict(), directory / SCALER_FILE)


def load_training_state(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, scheduler: Any, directory: Path
) -> None:
    """Reads what `save_training_state` wrote, on however many processes. All processes take part; the main one reads."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.load_state(str(directory))
        # Accelerate counts micro-batches, and this run may have another number of them in a step.
        accelerator.step = 0
    else:
        several = accelerator.num_processes > 1
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=several)
        model = accelerator.unwrap_model(model)
        set_model_state_dict(
            model, _read_weights(model, directory) if accelerator.is_main_process else {}, options=options
        )
        moments = torch.load(directory / OPTIMIZER_FILE, map_location="cpu") if accelerator.is_main_process else {}
        # Not strict: a parameter that no loss has depended on yet, such as Marian's positions, has no moments.
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=several, strict=False)
        set_optimizer_state_dict(model, _plain(optimizer), moments, options=options)
        names = set(broadcast_object_list([list(moments.get("state", ()))])[0])
        known = {parameter for name, parameter in model.named_parameters(remove_duplicate=False) if name in names}
        for parameter in set(_plain(optimizer).state) - known:  # torch has made some up
            del _plain(optimizer).state[parameter]
    scheduler.load_state_dict(_read(accelerator, directory / SCHEDULER_FILE))
    if accelerator.scaler is not None:
        scale = _read(accelerator, directory / SCALER_FILE)
        if scale is not None:  # the run had another precision until now
            accelerator.scaler.load_state_dict(scale)


def _read(accelerator: Accelerator, file: Path) -> Any:
    """What a small file holds, on every process; `None` if there is no such file."""
    content = torch.load(file) if accelerator.is_main_process and file.exists() else None
    return broadcast_object_list([content])[0]


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _names_of_ties(model: torch.nn.Module) -> dict[str, str]:
    """Further names of tied parameters, and the first name of each."""
    first: dict[torch.nn.Parameter, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    return {name: known for name, parameter in names if (known := first.setdefault(parameter, name)) != name}


def _read_weights(model: torch.nn.Module, directory: Path) -> dict[str, torch.Tensor]:
    weights = load_file(directory / MODEL_FILE)
    return weights | {name: weights[first] for name, first in _names_of_ties(model).items()}
