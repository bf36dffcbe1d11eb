# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""One line about the weights that a checkpoint lacks or has too many of, where Transformers logs a table.

A vanilla checkpoint that becomes an evolving model always lacks the convolutions, and nearly always has another head. What is
not of these kinds is worth the whole table, and gets it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

REPORTER = "transformers.modeling_utils"
TITLE = "LOAD REPORT"
# Parts of a base model that only some of its heads have.
PARTS_OF_SOME_HEADS = ("pooler", "mask_token", "masked_spec_embed")


@contextmanager
def one_line_report() -> Iterator[Callable[[PreTrainedModel, dict[str, Any]], None]]:
    """Holds the table back, within it, until the function that it gives has been told the model and its loading info.

    The table is logged as ever if loading fails, if something in it is unusual, or if the level of `ea_hf`'s logger is DEBUG.
    """
    held: list[logging.LogRecord] = []
    explained = False

    def hold(record: logging.LogRecord) -> bool:
        if TITLE not in record.getMessage() or logger.isEnabledFor(logging.DEBUG):
            return True
        held.append(record)
        return False

    def explain(model: PreTrainedModel, loading: dict[str, Any]) -> None:
        nonlocal explained
        line = describe_loading(model, loading)
        explained = line is not None
        if line:
            logger.info(line)

    reporter = logging.getLogger(REPORTER)
    reporter.addFilter(hold)
    try:
        yield explain
    finally:
        reporter.removeFilter(hold)
        if not explained:
            for record in held:
                reporter.handle(record)


def describe_loading(model: PreTrainedModel, loading: dict[str, Any]) -> str | None:
    """How many weights are new and unused, by kind; empty if none are, `None` if some are of no usual kind."""
    missing = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    evolution = {key for key in missing if "evolution" in key}
    head, unused = missing - evolution, set(loading["unexpected_keys"])
    if not all(_is_of_head(key, model) for key in head | unused):
        return None
    counts = {"new evolution weights": evolution, "new head": head, "unused head": unused}
    kinds = [f"{name} ({len(keys)} tensors)" for name, keys in counts.items() if keys]
    return f"{type(model).__name__}: {', '.join(kinds)}; all others are the checkpoint's." if kinds else ""


def _is_of_head(key: str, model: PreTrainedModel) -> bool:
    """Whether a weight lies outside of the base model, or is a part that only some heads have."""
    first = key.partition(".")[0]
    base = getattr(model, model.base_model_prefix, None)
    if set(key.split(".")) & set(PARTS_OF_SOME_HEADS):
        return True
    if base is None:  # as in T5, whose heads stand beside encoder and decoder
        return first in ("lm_head", "classification_head", "qa_outputs", "classifier", "score")
    # A bare checkpoint's weights are not below the base model's name.
    return first != model.base_model_prefix and not hasattr(base, first)


def check_whole(name: str, model: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Checks that a model which is to be trained or scored got all that its configuration says from its checkpoint.

    Args:
        name: of the checkpoint, for the messages.

    Raises:
        ValueError: weights are missing that are no head's, and would be made up; layers are left over; or weights are not
            finite.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return  # FSDP2 loads on the first process alone, and its end is that of all
    # `EvolvingPreTrainedModel.from_pretrained` sees to those of evolution.
    lost = sorted(key for key in loading["missing_keys"] if "evolution" not in key and not _is_of_head(key, model))
    if lost:
        raise ValueError(
            f"The checkpoint {name} is not whole: its weights lack {_listed(lost)}, which {type(model).__name__} has by its "
            "config.json and which would be made up. Copy it again, or correct config.json."
        )
    left = sorted(key for key in loading["unexpected_keys"] if not _is_of_head(key, model) and _is_beyond(key, model))
    if left:
        raise ValueError(
            f"The checkpoint {name} has more layers than its config.json says: {_listed(left)} would be dropped. Correct "
            "config.json."
        )
    bad = [key for key, weight in model.named_parameters() if not weight.is_meta and not weight.isfinite().all()]
    if bad:
        raise ValueError(
            f"The checkpoint {name} has weights that are NaN or infinite: {_listed(bad)}. Choose one that was saved before "
            "its training diverged, or copy it again."
        )


def _is_beyond(key: str, model: PreTrainedModel) -> bool:
    """Whether a weight belongs to a layer with a number that the model, or its base model, does not have."""
    for module in (model, getattr(model, model.base_model_prefix, None)):
        for part in key.split("."):
            if isinstance(module, nn.ModuleList) and part.isdigit() and int(part) >= len(module):
                return True
            module = getattr(module, part, None)
    return False


def _listed(names: list[str]) -> str:
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + others
