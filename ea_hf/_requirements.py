# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Which versions of Transformers this package was run with; imported before whatever needs them."""

import logging
import re

import transformers


# As in setup.cfg: the oldest version, and the first one that was not run.
OLDEST, FIRST_UNTRIED = (5, 23), (5, 25)


def check_transformers(version: str) -> None:
    """
    Raises:
        ImportError: it is older than the oldest one that has what this package needs.
    """
    release = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if release < OLDEST:
        raise ImportError(
            f"ea_hf needs Transformers {'.'.join(map(str, OLDEST))} or later, and {version} is installed. "
            f'Run `pip install "transformers>={".".join(map(str, OLDEST))}"`.'
        )
    if release >= FIRST_UNTRIED:
        logging.getLogger(__name__).warning(
            "ea_hf was not run with Transformers %s. What it cannot do exactly raises an error; for what was run, install "
            '"transformers<%s".',
            version,
            ".".join(map(str, FIRST_UNTRIED)),
        )


check_transformers(transformers.__version__)
