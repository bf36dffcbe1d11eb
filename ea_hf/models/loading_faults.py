# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a checkpoint that cannot be loaded, by name of the file, where the libraries raise whatever they meet."""

import json
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


@contextmanager
def loading_told(name: str) -> Iterator[None]:
    """While a checkpoint is loaded: tells as ValueError, with its name, what is no mistake of the code.

    Args:
        name: a directory, or a name on the Hub.
    """
    try:
        yield
    except (SafetensorError, EOFError, pickle.UnpicklingError, struct.error, json.JSONDecodeError) as error:
        fault = _damaged_file(Path(name)) or " ".join(str(error).split())
        raise ValueError(f"The checkpoint {name} cannot be read: {fault} Copy it again.") from error
    except FileNotFoundError as error:
        raise ValueError(f"The checkpoint {name} is not whole: {error} Copy it again.") from error
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        kind = re.match(
            r"Unrecognized configuration class <class '[\w.]*?(\w+)'> for this kind of AutoModel: (\w+)", str(error)
        )
        if kind is None:
            raise
        raise ValueError(f"The checkpoint {name} has a {kind[1]}, for which there is no {kind[2]}.") from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if "ignore_mismatched_sizes" in reason:
            reason = "some weights have other shapes than config.json says."
        raise ValueError(
            f"The checkpoint {name} cannot be loaded, its configuration (config.json) and its weights are not of one model, "
            f"or of none: {reason}"
        ) from error


def _damaged_file(directory: Path) -> str | None:
    """The first file of a directory that is damaged, and how."""
    for path in sorted(directory.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            return f"{path} is not JSON: {error}."
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path} is damaged or cut off ({error})."
    return None
