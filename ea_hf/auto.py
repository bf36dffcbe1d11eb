# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Registers all families with Transformers' Auto classes, and finds the one of a checkpoint."""

from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
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
    T5Tokenizer,
    ViTImageProcessorPil,
)
from transformers.utils import is_vision_available

from .configuration_ea_bert import EABertConfig
from .configuration_ea_evolved import EvolvedConfig
from .configuration_ea_resnet import EAResNetConfig
from .configuration_ea_t5 import EAT5Config
from .configuration_ea_vit import EAViTConfig
from .configuration_evolving import EvolvingConfig
from .modeling_ea_bert import (
    EABertForMaskedLM,
    EABertForMultipleChoice,
    EABertForPreTraining,
    EABertForQuestionAnswering,
    EABertForSequenceClassification,
    EABertForTokenClassification,
    EABertModel,
)
from .modeling_ea_resnet import EAResNetBackbone, EAResNetForImageClassification, EAResNetModel
from .modeling_ea_t5 import (
    EAT5EncoderModel,
    EAT5ForConditionalGeneration,
    EAT5ForSequenceClassification,
    EAT5Model,
)
from .modeling_ea_vit import EAViTForImageClassification, EAViTForMaskedImageModeling, EAViTModel


# Configuration class, tokenizer class.
TEXT_FAMILIES = ((EABertConfig, BertTokenizer), (EAT5Config, T5Tokenizer))
# Configuration class, image processor class.
IMAGE_FAMILIES = ((EAViTConfig, ViTImageProcessorPil), (EAResNetConfig, ViTImageProcessorPil))
FAMILIES = (*TEXT_FAMILIES, *IMAGE_FAMILIES)

MODELS = (
    (AutoModel, EABertModel),
    (AutoModelForPreTraining, EABertForPreTraining),
    (AutoModelForMaskedLM, EABertForMaskedLM),
    (AutoModelForSequenceClassification, EABertForSequenceClassification),
    (AutoModelForTokenClassification, EABertForTokenClassification),
    (AutoModelForQuestionAnswering, EABertForQuestionAnswering),
    (AutoModelForMultipleChoice, EABertForMultipleChoice),
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
)


def register() -> None:
    """Makes Transformers' Auto classes know all families. Repeating it is harmless."""
    for config_class, _ in FAMILIES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoConfig.register(EvolvedConfig.model_type, EvolvedConfig, exist_ok=True)
    for config_class, tokenizer_class in TEXT_FAMILIES:
        AutoTokenizer.register(config_class, tokenizer_class=tokenizer_class, exist_ok=True)
    for config_class, processor_class in IMAGE_FAMILIES if is_vision_available() else ():
        AutoImageProcessor.register(config_class, image_processor_classes={"pil": processor_class}, exist_ok=True)
    for auto_class, model_class in MODELS:
        auto_class.register(model_class.config_class, model_class, exist_ok=True)


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
    for config_class, _ in FAMILIES:
        if config.model_type in config_class.vanilla_model_types:
            return config_class.from_pretrained(pretrained_model_name_or_path, **kwargs)
    known = sorted(name for config_class, _ in FAMILIES for name in config_class.vanilla_model_types)
    raise ValueError(
        f"{pretrained_model_name_or_path} is a {config.model_type!r} model, for which there is no evolving family. "
        f"Choose an evolving checkpoint or a vanilla one of the types {', '.join(known)}."
    )
