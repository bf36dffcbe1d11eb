# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows that a generator makes, on disk and not in memory."""

from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Features
from datasets.fingerprint import Hasher


def mapped_dataset(
    generate: Callable[..., Iterator[dict[str, Any]]], features: Features, arguments: dict[str, Any], identity: Any
) -> Dataset:
    """The rows of a generator, memory-mapped from the cache on disk.

    Args:
        arguments: of `generate`.
        identity: what the rows depend on, such as the files' names, sizes and times; nothing is made twice.

    Raises:
        ValueError, OSError: as the generator raises them.
    """
    try:
        return Dataset.from_generator(
            generate, features=features, gen_kwargs=arguments, fingerprint=Hasher.hash(identity)
        )
    except Exception as error:  # the library wraps what the generator raises
        cause = error
        while cause.__cause__ is not None and not isinstance(cause, ValueError | OSError):
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        raise
