# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Registers all families with Transformers' Auto classes, and finds the one of a checkpoint."""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
    RobertaTokenizer,
    T5Tokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING,
    MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS
from transformers.utils import is_vision_available

from .configuration_ea_bert import EABertConfig
from .configuration_ea_dc_transformer import EADCTransformerConfig
from .configuration_ea_evolved import EvolvedConfig
from .configuration_ea_resnet import EAResNetConfig
from .configuration_ea_roberta import EARobertaConfig
from .configuration_ea_t5 import EAT5Config
from .configuration_ea_vit import EAViTConfig
from .configuration_evolving import EvolvingConfig
from .feature_extraction_ea_dc_transformer import EADCTransformerFeatureExtractor
from .image_processing_ea import EAImageProcessor
from .modeling_ea_bert import (
    EABertForMaskedLM,
    EABertForMultipleChoice,
    EABertForPreTraining,
    EABertForQuestionAnswering,
    EABertForSequenceClassification,
    EABertForTokenClassification,
    EABertModel,
)
from .modeling_ea_dc_transformer import (
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
    EADCTransformerModel,
)
from .modeling_ea_resnet import EAResNetBackbone, EAResNetForImageClassification, EAResNetModel
from .modeling_ea_roberta import (
    EARobertaForMaskedLM,
    EARobertaForMultipleChoice,
    EARobertaForQuestionAnswering,
    EARobertaForSequenceClassification,
    EARobertaForTokenClassification,
    EARobertaModel,
)
from .modeling_ea_t5 import (
    EAT5EncoderModel,
    EAT5ForConditionalGeneration,
    EAT5ForSequenceClassification,
    EAT5Model,
)
from .modeling_ea_vit import EAViTForImageClassification, EAViTForMaskedImageModeling, EAViTModel
from .pipeline_image_classification import EAImageClassificationPipeline
from .pipeline_translation import TranslationPipeline


# Configuration class, tokenizer class.
TEXT_FAMILIES = ((EABertConfig, BertTokenizer), (EARobertaConfig, RobertaTokenizer), (EAT5Config, T5Tokenizer))
# Configuration class, image processor class.
IMAGE_FAMILIES = ((EAViTConfig, EAImageProcessor), (EAResNetConfig, EAImageProcessor))
CONFIGS = (*(config_class for config_class, _ in TEXT_FAMILIES + IMAGE_FAMILIES), EADCTransformerConfig)

# Auto class, or its table where Transformers has no such class, and model class.
MODELS = (
    (AutoModel, EABertModel),
    (AutoModelForPreTraining, EABertForPreTraining),
    (AutoModelForMaskedLM, EABertForMaskedLM),
    (AutoModelForSequenceClassification, EABertForSequenceClassification),
    (AutoModelForTokenClassification, EABertForTokenClassification),
    (AutoModelForQuestionAnswering, EABertForQuestionAnswering),
    (AutoModelForMultipleChoice, EABertForMultipleChoice),
    (AutoModel, EARobertaModel),
    (AutoModelForPreTraining, EARobertaForMaskedLM),
    (AutoModelForMaskedLM, EARobertaForMaskedLM),
    (AutoModelForSequenceClassification, EARobertaForSequenceClassification),
    (AutoModelForTokenClassification, EARobertaForTokenClassification),
    (AutoModelForQuestionAnswering, EARobertaForQuestionAnswering),
    (AutoModelForMultipleChoice, EARobertaForMultipleChoice),
    (AutoModel, EAT5Model),
    (AutoModelForPreTraining, EAT5ForConditionalGeneration),
    (AutoModelForSeq2SeqLM, EAT5ForConditionalGeneration),
    (AutoModelForTextEncoding, EAT5EncoderModel),
    (AutoModelForSequenceClassification, EAT5ForSequenceClassification),
    (AutoModel, EAViTModel),
    (AutoModelForImageClassification, EAViTForImageClassification),
    (AutoModelForMaskedImageModeling, EAViTForMaskedImageModeling),
    (AutoModel, EAResNetModel),
    (AutoModelForImageClassification, EAResNetForImageClassification),
    (AutoBackbone, EAResNetBackbone),
    (AutoModel, EADCTransformerModel),
    (AutoModelForPreTraining, EADCTransformerForMaskedImputation),
    (MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING, EADCTransformerForClassification),
    (MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING, EADCTransformerForRegression),
)

# Task, pipeline class, Auto class that loads the model, what it takes.
PIPELINES = (
    ("translation", TranslationPipeline, AutoModelForSeq2SeqLM, "text"),
    ("image-classification", EAImageClassificationPipeline, AutoModelForImageClassification, "image"),
)


def register() -> None:
    """Makes Transformers' Auto classes and pipelines know all families, and checkpoints travel with their code.

    Repeating it is harmless.
    """
    for config_class in CONFIGS:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.family_auto_map, config_class.family_pipelines = _code_references(config_class)
    AutoConfig.register(EvolvedConfig.model_type, EvolvedConfig, exist_ok=True)
    for config_class, tokenizer_class in TEXT_FAMILIES:
        AutoTokenizer.register(config_class, tokenizer_class=tokenizer_class, exist_ok=True)
    for config_class, processor_class in IMAGE_FAMILIES if is_vision_available() else ():
        # The same class for both ways of computing, which differ a little: a model is served as it was trained.
        classes = {"pil": processor_class, "torchvision": processor_class}
        AutoImageProcessor.register(config_class, image_processor_classes=classes, exist_ok=True)
    AutoFeatureExtractor.register(EADCTransformerConfig, EADCTransformerFeatureExtractor, exist_ok=True)
    for auto_class, model_class in MODELS:
        auto_class.register(model_class.config_class, model_class, exist_ok=True)
    for task, pipeline_class, auto_class, kind in PIPELINES:
        if task in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline_class
        else:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, auto_class, type=kind)
            REMOVED_TASKS.pop(task, None)  # Transformers refuses these names before it looks into its registry


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
    for config_class in CONFIGS:
        if config.model_type in config_class.vanilla_model_types:
            return config_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
    known = sorted(name for config_class in CONFIGS for name in config_class.vanilla_model_types)
    raise ValueError(
        f"{pretrained_model_name_or_path} is a {config.model_type!r} model, for which there is no evolving family. "
        f"Choose a vanilla checkpoint of the types {', '.join(known)}, or an evolving one, such as `ea_hf.evolve` makes of "
        "other models."
    )
