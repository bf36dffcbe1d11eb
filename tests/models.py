# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The models under test. A class joins the whole suite with one line in `CASES`.

A family brings a dictionary of tiny configuration values and says which kind of inputs it takes. Inputs are made as
examples of different lengths, which a batch then pads; a kind of inputs without padding (images) stacks them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from model_inputs import Batch, Images, SequencePairs, Series, SingleSequences, TokenSequences
from transformers import (
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
    PreTrainedConfig,
    PreTrainedModel,
)

import ea_hf


@dataclass(frozen=True)
class Case:
    """One model class under test.

    Args:
        model_class: the evolving class.
        vanilla_class: the class of Transformers that it extends, if any.
        auto_class: the Auto class that must find it, if there is one.
        config_values: tiny configuration, valid for both classes; every dropout is listed, as 0.
        inputs: makes the inputs.
        pooled: outputs that the model reads from the first position, so that they mean nothing where padding is.
        means: outputs that are means over the batch, or do not depend on the weights.
        weight_std: standard deviation of the weights, such that raw scores are of order 1 to 10.
    """

    model_class: type[PreTrainedModel]
    vanilla_class: type[PreTrainedModel] | None
    auto_class: type | None
    config_values: dict[str, Any]
    inputs: TokenSequences | SequencePairs | Images | Series
    pooled: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    weight_std: float = 0.4

    def __str__(self) -> str:
        return self.model_class.__name__

    def config(self, **values: Any) -> PreTrainedConfig:
        evolution = {"ea_residual_weight": 0.5, "ea_conv_weight": 0.5}
        return self.model_class.config_class(**{**self.config_values, **evolution, **values})

    def vanilla_config(self, **values: Any) -> PreTrainedConfig:
        return self.vanilla_class.config_class(**{**self.config_values, **values})

    def model(self, **values: Any) -> PreTrainedModel:
        """The evolving model with large weights, in evaluation mode."""
        return randomize(self.model_class(self.config(**values)), self.weight_std).eval()

    def vanilla_model(self, **values: Any) -> PreTrainedModel:
        """The vanilla model with large weights and eager attention, in evaluation mode."""
        config = self.vanilla_config(**values, attn_implementation="eager")
        return randomize(self.vanilla_class(config), self.weight_std).eval()

    def plain_model(self) -> PreTrainedModel:
        """The vanilla model; if there is none, the model with both weights 0."""
        if self.vanilla_class is None:
            return self.model(ea_residual_weight=0.0, ea_conv_weight=0.0)
        return self.vanilla_model()

    def dropout(self, probability: float) -> dict[str, float]:
        """Configuration values that set every dropout."""
        return {name: probability for name in self.config_values if "dropout" in name}

    def vanilla_base_model(self) -> PreTrainedModel:
        """The vanilla model without head, as most checkpoints hold it."""
        return randomize(AutoModel.from_config(self.vanilla_config()), self.weight_std).eval()

    def batch(self, lengths: Sequence[int] = (9, 1, 4, 6), padding: str = "right", width: int = 11) -> Batch:
        """Padded examples; every row is padded, and no length is the width."""
        config = self.config()
        return self.inputs.batch(config, self.inputs.examples(config, lengths), padding, width)


def randomize(model: PreTrainedModel, weight_std: float) -> PreTrainedModel:
    """Weights so large that a wrong attention map shows; Transformers initializes with 0.02, where it hardly does."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # biases around 0 and normalization around 1
                parameter.add_(0.3 * noise)
            elif parameter.ndim == 4:  # convolutions keep the size of what they see
                parameter.copy_(1.5 * noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(weight_std * noise)
    return model


TINY_BERT = {
    "vocab_size": 67,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TINY_VIT = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 3,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "encoder_stride": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TINY_RESNET = {
    "embedding_size": 8,
    "hidden_sizes": (16, 32),
    "depths": (1, 2),
    "layer_type": "basic",
    "image_size": 12,
    "stem_stride": 1,
    "attention_poolings": (1,),
    "num_attention_heads": 2,
    "attention_key_ratio": 0.25,
    "attention_value_ratio": 0.125,
    "num_labels": 3,
}
IMAGES = Images()
MASKED_IMAGES = Images(has_masked_patches=True)

# Of an encoder's classes, by what their names end in: Auto class, further values, outputs of the first position.
ENCODER_HEADS = {
    "Model": (AutoModel, {}, ("pooler_output",)),
    "ForPreTraining": (AutoModelForPreTraining, {}, ("seq_relationship_logits",)),
    "ForMaskedLM": (AutoModelForMaskedLM, {}, ()),
    "ForSequenceClassification": (AutoModelForSequenceClassification, {"num_labels": 5}, ("logits",)),
    "ForTokenClassification": (AutoModelForTokenClassification, {"num_labels": 5}, ()),
    "ForQuestionAnswering": (AutoModelForQuestionAnswering, {}, ()),
    "ForMultipleChoice": (AutoModelForMultipleChoice, {}, ("logits",)),
}


def encoder_cases(name: str, config_values: dict[str, Any], first_position: int = 0) -> list[Case]:
    """Those of an encoder of text, for each of `ENCODER_HEADS` that the family has.

    Args:
        name: what Transformers' classes of the family begin with.
        first_position: position number of a sequence's first token.
    """
    tokens = TokenSequences(first_position=first_position)
    choices = TokenSequences(choices=2, first_position=first_position)
    return [
        Case(
            getattr(ea_hf, f"EA{name}{head}"),
            getattr(transformers, f"{name}{head}"),
            auto_class,
            {**config_values, **values},
            choices if head == "ForMultipleChoice" else tokens,
            pooled,
        )
        for head, (auto_class, values, pooled) in ENCODER_HEADS.items()
        if hasattr(ea_hf, f"EA{name}{head}")
    ]


CASES = [
    *encoder_cases("Bert", TINY_BERT),
    *encoder_cases("Roberta", {**TINY_BERT, "pad_token_id": 1}, first_position=2),  # the one after padding's
    Case(ea_hf.EAViTModel, transformers.ViTModel, AutoModel, TINY_VIT, IMAGES, weight_std=0.3),
    Case(
        ea_hf.EAViTForImageClassification,
        transformers.ViTForImageClassification,
        AutoModelForImageClassification,
        {**TINY_VIT, "num_labels": 5},
        IMAGES,
        weight_std=0.3,
    ),
    Case(
        ea_hf.EAViTForMaskedImageModeling,
        transformers.ViTForMaskedImageModeling,
        AutoModelForMaskedImageModeling,
        TINY_VIT,
        MASKED_IMAGES,
        means=("loss",),
        weight_std=0.3,
    ),
]
PAIRS = SequencePairs()
TINY_T5 = {
    "vocab_size": 67,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
CASES += [
    Case(ea_hf.EAT5Model, transformers.T5Model, AutoModel, TINY_T5, PAIRS, weight_std=0.2),
    Case(
        ea_hf.EAT5EncoderModel,
        transformers.T5EncoderModel,
        AutoModelForTextEncoding,
        TINY_T5,
        SingleSequences(),
        weight_std=0.2,
    ),
    Case(
        ea_hf.EAT5ForConditionalGeneration,
        transformers.T5ForConditionalGeneration,
        AutoModelForSeq2SeqLM,
        {**TINY_T5, "feed_forward_proj": "gated-gelu"},
        PAIRS,
        weight_std=0.2,
    ),
    Case(
        ea_hf.EAT5ForSequenceClassification,
        transformers.T5ForSequenceClassification,
        AutoModelForSequenceClassification,
        {**TINY_T5, "classifier_dropout": 0.0, "num_labels": 5},
        SingleSequences(ends=True),
        weight_std=0.2,
    ),
]
TINY_DC_TRANSFORMER = {
    "num_input_channels": 3,
    "context_length": 40,
    "d_model": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 40,
    "attention_key_ratio": 0.5,
    "attention_value_ratio": 0.5,
    **dict.fromkeys(("positional_dropout", "attention_dropout", "ff_dropout", "head_dropout"), 0.0),
}
SERIES = Series()
CASES += [
    Case(ea_hf.EADCTransformerModel, None, AutoModel, TINY_DC_TRANSFORMER, SERIES, weight_std=0.2),
    Case(
        ea_hf.EADCTransformerForClassification,
        None,
        None,
        {**TINY_DC_TRANSFORMER, "norm_type": "layernorm", "num_labels": 5},
        SERIES,
        weight_std=0.2,
    ),
    Case(
        ea_hf.EADCTransformerForRegression,
        None,
        None,
        {**TINY_DC_TRANSFORMER, "causal_attention": True, "num_targets": 4},
        SERIES,
        weight_std=0.2,
    ),
    Case(
        ea_hf.EADCTransformerForMaskedImputation,
        None,
        AutoModelForPreTraining,
        TINY_DC_TRANSFORMER,
        Series(has_hidden_values=True),
        means=("loss", "mask"),
        weight_std=0.2,
    ),
]
# Those that extend a model of Transformers.
EXTENDING_CASES = [case for case in CASES if case.vanilla_class is not None]
# One for each family, for what does not depend on the head.
BASE_CASES = [case for case in CASES if case.auto_class is AutoModel]

# Fields of evolving attention's other forms, as many at once as go together.
VARIANTS = {
    "own-kernels": {"ea_conv_groups": "heads", "ea_kernel_size": (1, 5), "ea_conv_every": 1},
    "flat-kernels": {"ea_kernel_size": (5, 3), "ea_conv_every": 2, "ea_mixing": "learned"},
    "mixed-heads": {
        "ea_post_mixing": "heads",
        "ea_activation": "linear",
        "ea_conv_groups": "heads",
        "ea_conv_weight": 1.0,
    },
    "one-head-groups": {"ea_post_mixing": "heads", "ea_head_kernel_size": 1, "ea_mixing": "additive"},
}

every_model = pytest.mark.parametrize("case", CASES, ids=str)
every_extending_model = pytest.mark.parametrize("case", EXTENDING_CASES, ids=str)
every_extending_family = pytest.mark.parametrize(
    "case", [case for case in BASE_CASES if case in EXTENDING_CASES], ids=str
)
every_family = pytest.mark.parametrize("case", BASE_CASES, ids=str)

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def cache_name(model: PreTrainedModel) -> str:
    """Newer versions of Transformers call the argument `cache`."""
    names = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"
