# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a run can do what it was launched for, told before anything is loaded."""

import argparse
import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_bf16_available


# What a launcher tells a process of several: torch's, or MPI's.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
PRECISIONS = ("no", "fp16", "bf16")


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def is_cpu_run() -> bool:
    """Whether this process is to run on the CPU: because it was told so, or for want of anything else."""
    return _is_true("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def check_launch(args: argparse.Namespace) -> None:
    """Checks processes, devices and precision.

    Raises:
        ValueError: `accelerate launch` was asked for several processes and has started one, there are more processes
            than devices, FSDP or DeepSpeed is to run without any, or the device lacks the precision.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    # Accelerate tells the address of the first process if there are to be several.
    if by_accelerate and "MASTER_ADDR" in os.environ and not any(name in os.environ for name in RANKS):
        raise ValueError(
            "`accelerate launch` was asked for several processes, but has started only one: on a CPU it needs mpirun for "
            "more. Launch with `accelerate launch --config_file configs/cpu_processes.yaml --num_processes N`, or with "
            "`torchrun --nproc_per_node N`."
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    engine = "FSDP" if _is_true("ACCELERATE_USE_FSDP") else None
    engine = "DeepSpeed" if _is_true("ACCELERATE_USE_DEEPSPEED") else engine
    if is_cpu_run():
        if engine is not None:
            raise ValueError(
                f"The launch configuration asks for {engine}, which Accelerate has for accelerators only, and here is "
                "none to use. Launch with configs/cpu_processes.yaml, which shards nothing."
            )
        if by_accelerate and "LOCAL_RANK" in os.environ and not (_is_true("ACCELERATE_USE_CPU") or _hides_gpus()):
            raise ValueError(
                f"The launch configuration asks for {processes} GPUs on this machine, which has none. Launch with "
                "configs/cpu_processes.yaml, or with `torchrun`, to use several processes on its CPU."
            )
    elif processes > torch.accelerator.device_count():
        raise ValueError(
            f"{processes} processes were started on this machine, but it has {torch.accelerator.device_count()} "
            f"devices ({torch.accelerator.current_accelerator().type}), and each process needs its own. Lower "
            "--num_processes of `accelerate launch`, or --nproc_per_node of `torchrun`."
        )
    _check_precision(args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


def _hides_gpus() -> bool:
    """Whether the environment names no GPU that exists, as configs/cpu_processes.yaml does."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names is not None and all(name.strip() in ("", "-1") for name in names.split(","))


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"The mixed precision is {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if is_cpu_run():
        if precision == "fp16":
            raise ValueError("On a CPU, fp16 would quietly be float32. Choose --mixed_precision bf16 or no.")
        return
    device = torch.accelerator.current_accelerator().type
    # CUDA emulates bfloat16 where the hardware has none, slower than float32.
    lacks_bf16 = not is_bf16_available(ignore_tpu=True) or (
        device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if precision == "bf16" and lacks_bf16:
        raise ValueError(f"The mixed precision is bf16, which this {device} device lacks. Choose fp16 or no.")


def configure_engine(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Hands FSDP or DeepSpeed what the arguments say.

    Raises:
        ValueError: the engine cannot do what the arguments or its own configuration ask for.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_fsdp(accelerator, args)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        _check_deepspeed(config, args)
        # The engine usually reads it off a prepared data loader; ours shards by itself.
        config["train_micro_batch_size_per_gpu"] = args.per_device_train_batch_size
        # The engine clips by itself.
        config["gradient_clipping"] = args.max_grad_norm


def _check_fsdp(accelerator: Accelerator, args: argparse.Namespace) -> None:
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {plugin.fsdp_version}; the scripts shard with version 2, as configs/fsdp2.yaml."
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing would draw other dropout masks in the backward pass than in the forward pass. "
            "Switch it off, and pass --gradient_checkpointing."
        )
    if args.optim == "adafactor":
        raise ValueError(
            "--optim adafactor needs whole matrices, which FSDP2 shards. Choose --optim adamw_torch, or launch with "
            "configs/ddp.yaml."
        )


def _check_deepspeed(config: dict, args: argparse.Namespace) -> None:
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage > 0 and args.optim == "adafactor":
        raise ValueError(
            f"--optim adafactor needs whole matrices, but ZeRO-{stage} cuts all parameters into vectors. Choose --optim "
            "adamw_torch, or launch with configs/ddp.yaml."
        )
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ValueError(
                f"DeepSpeed's configuration has a section {section!r}, which would take the place of what the script's "
                "arguments say. Delete the section."
            )
    if stage == 3:
        if getattr(args, "eval_only", False):
            raise ValueError(
                "--eval_only starts no engine, without which ZeRO-3 cannot gather the weights. Launch with "
                "configs/one_gpu.yaml or configs/ddp.yaml."
            )
        if not zero.get("stage3_gather_16bit_weights_on_model_save", False):
            raise ValueError(
                "ZeRO-3 can save the finished model only with stage3_gather_16bit_weights_on_model_save (in Accelerate's "
                "file: zero3_save_16bit_model), which is off. Switch it on, as in configs/deepspeed_zero3.yaml."
            )
