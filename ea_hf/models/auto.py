# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Registers all families with Transformers' Auto classes, and finds the one of a checkpoint.

A family is a file `modeling_ea_<family>.py` beside this one, found by its name. Its classes take the places that their vanilla
classes have in the Auto classes; those that stand for no vanilla class are named in `OTHER_MODELS`.
"""

import logging
import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING,
    MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING,
)
from transformers.utils import is_vision_available

from .configuration_ea_dc_transformer import EADCTransformerConfig
from .configuration_ea_evolved import EvolvedConfig
from .configuration_evolving import EvolvingConfig, register_processors
from .feature_extraction_ea_dc_transformer import EADCTransformerFeatureExtractor
from .image_processing_ea import EAImageProcessor
from .load_report import check_whole, one_line_report
from .loading_faults import loading_told
from .modeling_ea_dc_transformer import (
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
    EADCTransformerModel,
)
from .modeling_ea_evolved import evolve
from .modeling_ea_resnet import EAResNetBackbone, EAResNetForImageClassification, EAResNetModel
from .modeling_ea_vit import EAViTModel
from .modeling_evolving import auto_classes_of
from .pipeline_image_classification import EAImageClassificationPipeline
from .pipeline_translation import TranslationPipeline
from .undocumented import model_mapping, register_pipeline


logger = logging.getLogger(__name__)

FAMILIES = tuple(
    import_module(f"{__package__}.{module.name}")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if module.name.startswith("modeling_ea_") and module.name != "modeling_ea_evolved"
)
_CLASSES = tuple(getattr(family, name) for family in FAMILIES for name in family.__all__)
_MODEL_CLASSES = tuple(one for one in _CLASSES if issubclass(one, PreTrainedModel))
CONFIGS = tuple(dict.fromkeys(model_class.config_class for model_class in _MODEL_CLASSES))

# Auto class, or its table where Transformers has no such class, and model class.
OTHER_MODELS = (
    (AutoModel, EAResNetModel),
    (AutoModelForImageClassification, EAResNetForImageClassification),
    (AutoBackbone, EAResNetBackbone),
    (AutoModel, EADCTransformerModel),
    (AutoModelForPreTraining, EADCTransformerForMaskedImputation),
    (MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING, EADCTransformerForClassification),
    (MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING, EADCTransformerForRegression),
)
# Families whose image processor is not the vanilla one: a model is served as it was trained.
IMAGE_FAMILIES = (EAViTModel.config_class, EAResNetModel.config_class)

# Task, pipeline class, Auto class that loads the model, what it takes.
PIPELINES = (
    ("translation", TranslationPipeline, AutoModelForSeq2SeqLM, "text"),
    ("image-classification", EAImageClassificationPipeline, AutoModelForImageClassification, "image"),
)


def _models() -> tuple[tuple[Any, type[PreTrainedModel]], ...]:
    """Auto class, or its table, and model class, of all families."""
    models = [
        (auto_class, model_class)
        for model_class in _MODEL_CLASSES
        for config_class in model_class.config_class.__bases__
        for auto_class, vanilla_classes in auto_classes_of(config_class)
        if set(vanilla_classes) & set(model_class.__bases__)
    ]
    return (*models, *OTHER_MODELS)


MODELS = _models()


def register() -> None:
    """Makes Transformers' Auto classes and pipelines know all families, and checkpoints travel with their code.

    Repeating it is harmless.
    """
    for config_class in CONFIGS:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.family_auto_map, config_class.family_pipelines = _code_references(config_class)
        for vanilla_class in () if config_class in IMAGE_FAMILIES else config_class.__bases__:
            register_processors(config_class, vanilla_class)
    AutoConfig.register(EvolvedConfig.model_type, EvolvedConfig, exist_ok=True)
    for config_class in IMAGE_FAMILIES if is_vision_available() else ():
        # The same class for both ways of computing, which differ a little.
        classes = {"pil": EAImageProcessor, "torchvision": EAImageProcessor}
        AutoImageProcessor.register(config_class, image_processor_classes=classes, exist_ok=True)
    AutoFeatureExtractor.register(EADCTransformerConfig, EADCTransformerFeatureExtractor, exist_ok=True)
    for auto_class, model_class in MODELS:
        auto_class.register(model_class.config_class, model_class, exist_ok=True)
    for task, pipeline_class, auto_class, kind in PIPELINES:
        register_pipeline(task, pipeline_class, auto_class, kind)


def _code_references(config_class: type[EvolvingConfig]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """In which files beside a checkpoint Transformers finds a family's classes, and the pipelines that they serve."""

    def reference(code: type) -> str:
        return f"{code.__module__.split('.')[-1]}.{code.__name__}"

    auto_map = {
        auto_class.__name__: reference(model)
        for auto_class, model in MODELS
        if model.config_class is config_class and isinstance(auto_class, type)
    }
    pipelines = {
        task: {"impl": reference(pipeline_class), "pt": [auto_class.__name__], "type": kind}
        for task, pipeline_class, auto_class, kind in PIPELINES
        if auto_class.__name__ in auto_map
    }
    return {"AutoConfig": reference(config_class), **auto_map}, pipelines


def evolving_config_from_pretrained(pretrained_model_name_or_path: str, **kwargs: Any) -> EvolvingConfig:
    """The evolving configuration of a checkpoint, be it an evolving one or a vanilla one of a known family.

    Args:
        kwargs: as for `AutoConfig.from_pretrained`; `ea_residual_weight` and the like override the checkpoint's.

    Raises:
        ValueError: there is no evolving family for the checkpoint's model type.
    """
    config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **kwargs)
    if isinstance(config, EvolvingConfig):
        return config
    family = family_of(config.model_type)
    if family is not None:
        return family.from_pretrained(pretrained_model_name_or_path, **kwargs)
    known = sorted(name for config_class in CONFIGS for name in config_class.vanilla_model_types)
    raise ValueError(
        f"{pretrained_model_name_or_path} is a {config.model_type!r} model, for which there is no evolving family. "
        f"Choose a vanilla checkpoint of the types {', '.join(known)}, or an evolving one, such as `ea_hf.evolve` makes of "
        "other models."
    )


def family_of(model_type: str) -> type[EvolvingConfig] | None:
    """The configuration class of the family that a vanilla model type, or an evolving one, belongs to."""
    return next((family for family in CONFIGS if model_type in (family.model_type, *family.vanilla_model_types)), None)


def evolving_model_from_pretrained(
    auto_class: Any,
    pretrained_model_name_or_path: str,
    fields: dict[str, Any] | None = None,
    prepare_config: Callable[[PreTrainedConfig], None] | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, set[str]]:
    """The evolving model of a checkpoint, and which of its weights the checkpoint lacks, but for evolution's own.

    The checkpoint is an evolving one, a vanilla one of a family, or any other one, which then becomes evolving by `evolve`.

    Args:
        auto_class: Transformers' class for the task.
        fields: of `EvolvingConfig`; they override the checkpoint's.
        prepare_config: changes the configuration before the model is made of it.
        kwargs: as for `from_pretrained`.

    Raises:
        ValueError: the model cannot evolve exactly, see `evolve`; or it has no such field, or no class for the task; see also
            `loading_told` and `check_whole`.
    """
    name, fields = pretrained_model_name_or_path, fields or {}
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    is_other = not isinstance(config, EvolvingConfig) and family_of(config.model_type) is None
    if not is_other:
        config = evolving_config_from_pretrained(name, trust_remote_code=trust_remote_code, **fields)
    for field, value in fields.items():
        if not hasattr(EvolvedConfig if is_other else config, field):
            raise ValueError(
                f"`{field}` is {value!r}, but {name}, of the type {config.model_type!r}, has no such field."
            )
    if not trust_remote_code and type(config) not in model_mapping(auto_class):
        raise ValueError(f"{name} is of the type {config.model_type!r}, which has no {auto_class.__name__}.")
    if prepare_config is not None:
        prepare_config(config)
    with one_line_report() as explain, loading_told(name):
        model, loading = auto_class.from_pretrained(
            name, config=config, trust_remote_code=trust_remote_code, output_loading_info=True, **kwargs
        )
        explain(model, loading)
    check_whole(name, model, loading)
    if is_other:
        try:
            evolve(model, **{field.removeprefix("ea_"): value for field, value in fields.items()})
        except ValueError as error:
            raise ValueError(f"{name}, of the type {config.model_type!r}, cannot evolve: {error}") from error
        logger.info(f"{name} became an {type(model).__name__}.")
    return model, {key for key in loading["missing_keys"] if "evolution" not in key}
