# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""One step of the optimizer, with the mean loss over all labels of its examples, whoever computes them."""

import argparse
import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from torch.distributed.tensor import DTensor

from ..models.evolution_state import deferred_mask_checks
from .batching import Step, count_labels, stand_in
from .command_line import RunError
from .interruptions import received


class NonFiniteLossError(RunError):
    """The loss or its gradient is infinite or not a number; nothing was updated with it."""


def model_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss that a model returns for a batch with labels."""
    return model(**batch).loss


def take_step(
    accelerator: Accelerator,
    args: argparse.Namespace,
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    step: Step,
    global_step: int,
    compute_loss: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor],
) -> tuple[float, list[float]]:
    """One update with the mean loss over all labels of the step. An accelerator is waited for once, at its end.

    Returns:
        That loss, and how many processes got each of the signals that end a run.

    Raises:
        NonFiniteLossError: the loss or its gradient is infinite or NaN; nothing was updated.
        ValueError: evolving attention is not exact with a batch's mask; nothing was updated.
    """
    device = accelerator.device
    # Each batch's share of the loss depends on the labels of all.
    counts = [
        count_labels(batch) if micro_batch.counts else 0
        for micro_batch, batch in zip(step.micro_batches, step.inputs, strict=True)
    ]
    total = accelerator.reduce(torch.tensor(sum(counts), dtype=torch.float32, device=device), "sum").clamp(min=1)
    step_loss = torch.zeros((), device=device)
    shares = []
    # Where Accelerate counts from: a short step has fewer micro-batches, and the gradients are exchanged at the last one.
    accelerator.step = args.gradient_accumulation_steps - len(step.micro_batches)
    with deferred_mask_checks() as masks:
        for place, (micro_batch, batch, count) in enumerate(zip(step.micro_batches, step.inputs, counts, strict=True)):
            # What is random in a batch depends on its place in the run, not on what ran before it.
            set_seed(
                _batch_seed(args.seed, global_step, place * accelerator.num_processes + accelerator.process_index)
            )
            with accelerator.accumulate(model), nullcontext() if micro_batch.counts else stand_in(model):
                loss = compute_loss(model, send_to_device(batch, device, non_blocking=device.type == "cuda"))
                if count == 0:  # a mean over no label is NaN; the backward pass is still needed on every process
                    loss = torch.nan_to_num(loss)
                share = loss * (count / total)
                shares.append(share.detach())
                step_loss += shares[-1]
                # Undoes the means that Accelerate takes over accumulation steps and processes.
                accelerator.backward(share * (args.gradient_accumulation_steps * accelerator.num_processes))
    signals = torch.tensor(received(), dtype=step_loss.dtype, device=device)
    noted = accelerator.reduce(torch.cat([torch.stack([step_loss, masks.found(step_loss)]), signals]), "sum")
    # An infinite limit clips nothing, but the norm is still looked at.
    norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
    norm = torch.as_tensor(0.0 if norm is None else norm, device=device)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    # The one time that an accelerator is waited for.
    loss, wrong_masks, *counts_of_signals, norm = torch.cat([noted, norm.to(noted)[None]]).tolist()
    if wrong_masks:
        masks.raise_if_any()
        raise ValueError("Another process found an attention mask with which evolving attention is not exact.")
    _refuse_what_is_not_finite(accelerator, args, step, global_step, loss, shares, norm)
    optimizer.step()
    optimizer.zero_grad()
    if not accelerator.optimizer_step_was_skipped:
        scheduler.step()
    return loss, counts_of_signals


def _refuse_what_is_not_finite(
    accelerator: Accelerator,
    args: argparse.Namespace,
    step: Step,
    global_step: int,
    loss: float,
    shares: list[torch.Tensor],
    norm: float,
) -> None:
    """Raises an error that names the examples, on all processes together.

    Args:
        loss: of the step; `shares` are what the micro-batches of this process add to it.
        norm: of the gradient.
    """
    if not math.isfinite(loss):
        faulty = zip(step.micro_batches, shares, strict=True)
        indices = [index for part, share in faulty if not torch.isfinite(share) for index in part.indices]
        advice = (
            " float16 overflows easily; try --mixed_precision bf16." if accelerator.mixed_precision == "fp16" else ""
        )
        raise NonFiniteLossError(
            f"The loss is {loss} at step {global_step + 1}, in the training examples {sorted(gather_object(indices))} "
            f"(counted from 0). Nothing was updated with it; checkpoints in {args.output_dir} are as they were. Look at "
            f"these examples, or lower --learning_rate (now {args.learning_rate}).{advice}"
        )
    # With float16, Accelerate's scaler skips such a step by itself.
    if accelerator.scaler is None and not math.isfinite(norm):
        indices = [index for part in step.micro_batches for index in part.indices]
        raise NonFiniteLossError(
            f"The gradient's norm is {norm} at step {global_step + 1}, in the training examples "
            f"{sorted(gather_object(indices))} (counted from 0). Nothing was updated with it; checkpoints in "
            f"{args.output_dir} are as they were."
        )


def _batch_seed(seed: int, step: int, place: int) -> int:
    digest = hashlib.sha256(f"{seed} {step} {place}".encode()).digest()
    return int.from_bytes(digest[:4], "little")  # NumPy takes 32 bits
