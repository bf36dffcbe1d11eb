# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads data sets from the Hub, or from local copies of their repositories."""

from datasets import DatasetDict, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError


def load_hub_data(
    name: str, config: str | None, *, described: str, instead: str, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """The splits of a data set.

    Args:
        described: how messages name it.
        instead: what one can pass without a network, for the message.
        streaming: leave the data where it is, and read it when it is asked for.

    Raises:
        ConnectionError: the Hub cannot be reached. ValueError: its files cannot be read.
    """
    try:
        return load_dataset(name, config, streaming=streaming)
    except DatasetGenerationError as error:
        raise ValueError(f"{described} cannot be read: {error.__cause__ or error}") from error
    except ValueError as error:  # such as a name that none can be
        raise ValueError(f"{described} cannot be read: {error}") from error
    except (ConnectionError, OSError) as error:
        raise ConnectionError(
            f"{described} could not be loaded: {error}\nWithout a network, pass {instead}, or a local copy of the repository "
            "with --dataset_name."
        ) from error
