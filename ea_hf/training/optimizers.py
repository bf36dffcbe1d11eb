# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The optimizers of `--optim`, for the training loop and for `ea_hf.plan`."""

import argparse
import ast
import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import Adafactor

from ..models.evolution_layer import AttentionEvolution, HeadMixing, MapConvolution


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


def names_without_decay(model: torch.nn.Module) -> set[str]:
    """The parameters of evolving attention that weight decay must leave alone, by their names in the model.

    Decay pulls towards 0. Kernels and head mixing that start as the identity are nothing there but attention that is lost,
    and gates that start elsewhere than at 0 would be undone. Kernels that start as noise decay like other matrices.
    """
    names = set()
    for path, module in model.named_modules():
        is_kernel = isinstance(module, MapConvolution)
        if isinstance(module, (AttentionEvolution, HeadMixing, MapConvolution)):
            for name, _ in module.named_parameters(recurse=False):
                if not is_kernel or module.starts_as_identity or name == "bias":
                    names.add(f"{path}.{name}" if path else name)
    return names


def create_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `--optim`.

    Weight decay is for matrices and kernels only: not for biases, not for the weights of normalization, not for those of
    `names_without_decay`.

    Raises:
        ValueError: see `construct_optimizer`; nothing has the `--ea_learning_rate`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # ZeRO-3 leaves a parameter without elements, and notes its shape.
    dimensions = {p: len(getattr(p, "ds_shape", p.shape)) for p in parameters}
    spared_names = names_without_decay(model)
    spared = {p for name, p in model.named_parameters() if name in spared_names or dimensions.get(p, 0) < 2}
    groups = [
        {"params": [p for p in parameters if p not in spared], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p in spared], "weight_decay": 0.0},
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
    return construct_optimizer(args, groups)


def construct_optimizer(args: argparse.Namespace, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimizer of `--optim` for parameters or groups of them.

    Raises:
        ValueError: the optimizer does not take one of `--optim_args`, or not its value.
    """
    optimizer_class, defaults = OPTIMIZERS[args.optim]
    try:
        return optimizer_class(parameters, lr=args.learning_rate, **{**defaults, **args.optim_args})
    except (TypeError, ValueError) as error:
        raise ValueError(f"--optim {args.optim} does not take --optim_args {args.optim_args}: {error}") from error
