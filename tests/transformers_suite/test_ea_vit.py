# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0

import unittest

import torch

from ea_hf import EAViTConfig, EAViTForImageClassification, EAViTForMaskedImageModeling, EAViTModel

from .common import ENCODERS_LACK, EvolvingImageModelTesterMixin, ImageModelTester


class EAViTModelTester(ImageModelTester):
    config_class = EAViTConfig
    patch_size = 4
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    @property
    def seq_length(self):
        return (self.image_size // self.patch_size) ** 2 + 1

    def config_fields(self):
        return {
            **super().config_fields(),
            "patch_size": self.patch_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 37,
            "encoder_stride": self.patch_size,
            "initializer_range": 0.2,
        }


class EAViTModelTest(EvolvingImageModelTesterMixin, unittest.TestCase):
    model_tester_class = EAViTModelTester
    all_model_classes = (EAViTModel, EAViTForImageClassification, EAViTForMaskedImageModeling)
    lacks = (*ENCODERS_LACK, "embeddings of tokens")

    _torch_compile_train_cls = EAViTForImageClassification

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class is EAViTForMaskedImageModeling:
            patches = self.model_tester.seq_length - 1
            inputs["bool_masked_pos"] = torch.arange(self.model_tester.batch_size * patches).view(-1, patches) % 3 == 0
        return inputs

    def test_model_get_set_embeddings(self):
        """What takes the place of the embeddings of tokens is a convolution, and can be replaced."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(config)
                self.assertTrue(
                    any(isinstance(module, torch.nn.Conv2d) for module in model.get_input_embeddings().modules())
                )
                other = torch.nn.Identity()
                model.set_input_embeddings(other)
                self.assertIs(model.get_input_embeddings(), other)
                self.assertIsNone(model.get_output_embeddings())
