# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What trackers get to know of the attention maps while a model is trained."""

import logging

import torch
from accelerate import Accelerator

from ..map_summary import summary
from ..models.evolution import AttentionEvolution


logger = logging.getLogger(__name__)


def track_maps(
    accelerator: Accelerator, model: torch.nn.Module, batch: dict[str, torch.Tensor], global_step: int
) -> None:
    """Tells the trackers what evolving attention does in the model; every process takes part, the first one's batch counts."""
    if not any(isinstance(module, AttentionEvolution) for module in model.modules()):
        return
    if any(hasattr(parameter, "ds_shape") for parameter in model.parameters()):
        logger.info(
            "Trackers get no summary of the maps: with DeepSpeed's ZeRO-3 the learned weights are never whole."
        )
        return
    try:
        scalars = summary(accelerator.unwrap_model(model), batch).scalars()
    except ValueError as error:  # no reason to end a training
        logger.warning(f"Trackers get no summary of the maps at step {global_step}: {error}")
        return
    accelerator.log({f"evolution/{name}": value for name, value in scalars.items()}, global_step)
