# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The values of a new model's configuration that a user gives with --config_overrides, and what is wrong with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig


# What the data tell.
FROM_THE_DATA = ("num_labels", "id2label", "label2id", "problem_type")


def check_overrides(overrides: dict[str, Any], config: PreTrainedConfig) -> None:
    """Raises ValueError for a name that the configuration does not have, or of something that the data tell."""
    for name in overrides:
        if not hasattr(config, name):
            raise ValueError(f"--config_overrides names {name!r}, which {type(config).__name__} does not have.")
        if name in FROM_THE_DATA:
            raise ValueError(f"--config_overrides names {name!r}, which the data tell; leave it out.")


@contextmanager
def overrides_told(overrides: dict[str, Any]) -> Iterator[None]:
    """While a configuration and its model are made: tells as ValueError what the libraries stumble over otherwise.

    They check few values: a negative size ends in a tensor, an unknown activation in a dictionary.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        named = any(name in str(error) for name in overrides)
        if not overrides or (isinstance(error, ValueError) and named):
            raise
        values = ", ".join(f"{name}={value}" for name, value in overrides.items())
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"No model can be made with --config_overrides {values}: {reason}") from error
