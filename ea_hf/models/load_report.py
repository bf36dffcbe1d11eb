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

from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

REPORTER = "transformers.modeling_utils"
TITLE = "LOAD REPORT"


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
    """Whether a weight lies outside of the base model, or is the pooler, which only some heads have."""
    first = key.partition(".")[0]
    base = getattr(model, model.base_model_prefix, None)
    if ".pooler." in f".{key}":
        return True
    if base is None:  # as in T5, whose heads stand beside encoder and decoder
        return first in ("lm_head", "classification_head", "qa_outputs")
    # A bare checkpoint's weights are not below the base model's name.
    return first != model.base_model_prefix and not hasattr(base, first)
