# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The optimizers of `--optim`, for the training loop and for `ea_hf.plan`."""

import argparse
import ast
import re
from typing import Any

import torch
from transformers import Adafactor

from ..models.evolution import AttentionEvolution


# Name and, for Transformers' ones, the arguments that `Trainer` gives them.
OPTIMIZERS = {
    "adamw_torch": (torch.optim.AdamW, {"fused": True}),
    "adafactor": (Adafactor, {"scale_parameter": False, "relative_step": False}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "radam": (torch.optim.RAdam, {}),
}


def parse_values(text: str) -> dict[str, Any]:
    """Parses "d_model=256,feed_forward_proj=gated-gelu", for an argument of the command line."""
    values = {}
    for part in re.split(r",(?![^(\[]*[)\]])", text):  # not within brackets
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(f"{part!r} is not name=value")
        try:
            values[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            values[name] = {"true": True, "false": False}.get(value, value)
    return values


def create_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `--optim`.

    Weight decay is for matrices and kernels only: not for biases, not for the weights of normalization, not for those that
    evolving attention has learned.

    Raises:
        ValueError: the optimizer does not know one of `--optim_args`, or nothing has the `--ea_learning_rate`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # ZeRO-3 leaves a parameter without elements, and notes its shape.
    dimensions = {p: len(getattr(p, "ds_shape", p.shape)) for p in parameters}
    groups = [
        {"params": [p for p in parameters if dimensions[p] >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if dimensions[p] < 2], "weight_decay": 0.0},
    ]
    ea_learning_rate = getattr(args, "ea_learning_rate", None)
    if ea_learning_rate is not None:
        modules = [module for module in model.modules() if isinstance(module, AttentionEvolution)]
        own = {parameter for module in modules for parameter in module.parameters()}.intersection(parameters)
        if not own:
            raise ValueError(
                f"--ea_learning_rate is {ea_learning_rate}, but {type(model).__name__} trains no parameter of evolving attention."
            )
        for group in groups[:]:
            ours = [parameter for parameter in group["params"] if parameter in own]
            group["params"] = [parameter for parameter in group["params"] if parameter not in own]
            groups += [{**group, "params": ours, "lr": ea_learning_rate}]
    optimizer_class, defaults = OPTIMIZERS[args.optim]
    try:
        return optimizer_class(groups, lr=args.learning_rate, **{**defaults, **args.optim_args})
    except TypeError as error:
        raise ValueError(f"--optim {args.optim} does not take --optim_args {args.optim_args}: {error}") from error
