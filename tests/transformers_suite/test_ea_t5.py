# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0

import unittest
from unittest.mock import patch

from transformers import AutoModelForTextEncoding
from transformers_tests.generation.test_utils import GenerationTesterMixin

from ea_hf import (
    EAT5Config,
    EAT5EncoderModel,
    EAT5ForConditionalGeneration,
    EAT5ForSequenceClassification,
    EAT5Model,
)

from .common import EvolvingModelTesterMixin, TextModelTester, random_attention_mask


class EAT5EncoderModelTester(TextModelTester):
    config_class = EAT5Config
    is_training = False
    is_encoder_decoder = False
    d_kv = 8
    # T5 divides by the root of the width by itself.
    initializer_factor = 1.0
    eos_token_id = 1

    def config_fields(self):
        fields = super().config_fields()
        del fields["initializer_range"]
        return {
            **{"d_model": fields.pop("hidden_size"), "num_layers": fields.pop("num_hidden_layers")},
            **{"num_heads": fields.pop("num_attention_heads"), "d_kv": self.d_kv, "d_ff": 37},
            **fields,
            "initializer_factor": self.initializer_factor,
            "decoder_start_token_id": 0,
            "is_encoder_decoder": self.is_encoder_decoder,
            # A compiled model draws other dropout masks than an eager one, and their gradients are compared.
            "dropout_rate": 0.0,
        }

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"] = inputs["input_ids"].clamp(min=2)
        inputs["input_ids"][:, -1] = self.eos_token_id  # where the classification head reads
        inputs["attention_mask"][:, -1] = 1
        return config, inputs


class EAT5ModelTester(EAT5EncoderModelTester):
    is_training = True
    is_encoder_decoder = True
    encoder_seq_length = decoder_seq_length = TextModelTester.seq_length

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["decoder_input_ids"] = inputs["input_ids"].roll(1, dims=0)
        inputs["decoder_attention_mask"] = random_attention_mask(inputs["input_ids"].shape)
        return config, inputs


LACKS = (
    "a decoder-only head",
    "a sliding window",
    "a tensor-parallel plan",
    "experts",
    "renamed weights",
    "resizable position embeddings",
    "rotary positions",
    "sub-configurations",
)


class EAT5ModelTest(GenerationTesterMixin, EvolvingModelTesterMixin, unittest.TestCase):
    model_tester_class = EAT5ModelTester
    is_encoder_decoder = True
    all_model_classes = (EAT5Model, EAT5ForConditionalGeneration, EAT5ForSequenceClassification)
    all_generative_model_classes = (EAT5ForConditionalGeneration,)
    lacks = (*LACKS, "hidden states of one name")

    _torch_compile_train_cls = EAT5ForConditionalGeneration

    def test_inputs_embeds(self):
        """T5's classification head finds the end token in the token ids, so it takes no embeddings."""
        with patch.object(type(self), "all_model_classes", (EAT5Model, EAT5ForConditionalGeneration)):
            super().test_inputs_embeds()

    def test_model_base_model_prefix(self):
        """T5's model for generation owns encoder and decoder itself, without a base model in between."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = EAT5ForConditionalGeneration(config)
        self.assertIs(model.base_model, model)


class EAT5EncoderModelTest(EvolvingModelTesterMixin, unittest.TestCase):
    model_tester_class = EAT5EncoderModelTester
    all_model_classes = (EAT5EncoderModel,)
    lacks = (*LACKS, "a loss", "an encoder-decoder head")

    def test_every_model_class_is_registered(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        self.assertIs(type(AutoModelForTextEncoding.from_config(config)), EAT5EncoderModel)
