# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolving attention for Hugging Face Transformers.

Importing this package registers its configurations and models with Transformers' Auto classes.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from . import _requirements  # noqa: F401  (first: it says which versions are needed)
from .map_summary import LayerSummary, Summary, summary
from .models.auto import FAMILIES, evolving_config_from_pretrained, register
from .models.configuration_ea_evolved import EvolvedConfig
from .models.evolution_layer import AttentionEvolution
from .models.feature_extraction_ea_dc_transformer import EADCTransformerFeatureExtractor
from .models.image_processing_ea import EAImageProcessor
from .models.modeling_ea_bert import *
from .models.modeling_ea_dc_transformer import *
from .models.modeling_ea_evolved import evolve
from .models.modeling_ea_resnet import *
from .models.modeling_ea_roberta import *
from .models.modeling_ea_t5 import *
from .models.modeling_ea_vit import *
from .models.presets import PRESETS, Preset, preset_fields
from .training.optimizers import names_without_decay


__version__ = "0.1.0"

register()


ESTIMATORS = ("EADCTransformerClassifier", "EADCTransformerRegressor")


def __getattr__(name: str) -> Any:
    """The estimators come when they are asked for, since they need aeon."""
    if name not in ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(".estimators", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs {error.name}: pip install 'ea_hf[time_series]'") from error


__all__ = [
    "PRESETS",
    "AttentionEvolution",
    "EADCTransformerFeatureExtractor",
    "EAImageProcessor",
    "EvolvedConfig",
    "LayerSummary",
    "Preset",
    "Summary",
    "evolve",
    "evolving_config_from_pretrained",
    "names_without_decay",
    "preset_fields",
    "summary",
    *(name for family in FAMILIES for name in family.__all__),
]
if find_spec("aeon") is not None:
    __all__ += ESTIMATORS
