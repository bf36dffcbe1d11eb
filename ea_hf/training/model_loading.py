# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a script trains it, and what its tokenizer and its positions must be."""

import argparse
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.auto import evolving_model_from_pretrained
from .loop import copy_weights_from_file
from .script import evolution_overrides


def load_evolving_model(
    auto_class: Any, args: argparse.Namespace, *positional: Any, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """The evolving model of `--model_name_or_path`, with weights of its own, and the names of weights that it lacks.

    Args:
        positional, options: as for `evolving_model_from_pretrained`.
    """
    model, missing = evolving_model_from_pretrained(
        auto_class,
        args.model_name_or_path,
        evolution_overrides(args),
        *positional,
        trust_remote_code=args.trust_remote_code,
        dtype=torch.float32,  # a half-precision checkpoint's small updates would be lost
        **options,
    )
    copy_weights_from_file(model)
    return model, missing


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises ValueError if the tokenizer has tokens that the model has no embedding for.

    Args:
        name: of the checkpoint, for the message.
    """
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, but the model only {embeddings} embeddings: they do "
            "not belong together."
        )


def longest_input(model: PreTrainedModel) -> int | None:
    """How many tokens a model has positions for; `None` if any number."""
    longest = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the one after the padding token's id.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None and longest:
            return longest - module.padding_idx - 1
    return longest
