# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""As `models/undocumented.py`, for what does not travel with checkpoints: training, plans and estimators."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves


# What a configuration of generation says of itself.
SAYS_WHERE_IT_IS_FROM = "_from_model_config"


def storage_key(storage: torch.UntypedStorage) -> int:
    """The same for all tensors that share their memory."""
    return storage._cdata


def was_loaded(parameter: nn.Parameter) -> bool:
    """Whether Transformers has read it from a checkpoint."""
    return getattr(parameter, "_is_hf_initialized", False)


def generate_in_step(model: nn.Module) -> None:
    """Tells `generate` of a sharded model that all processes must make the same number of steps."""
    model._is_fsdp_managed_module = True


def fingerprint(dataset: Any) -> str:
    """What tells a data set from another; empty if it has none."""
    return getattr(dataset, "_fingerprint", "")


def written_auto_name(processor: Any) -> str | None:
    """Under which name of `auto_map` a tokenizer or the like is saved with its code; `None` if it is saved without."""
    return getattr(processor, "_auto_class", None)
