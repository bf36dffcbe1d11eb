# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the test classes of all families share."""

from dataclasses import fields
from unittest.mock import patch

import torch
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers_tests import test_modeling_common
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import (
    ModelTesterMixin,
    floats_tensor,
    ids_tensor,
    random_attention_mask,
)
from transformers_tests.utils.test_configuration_utils import config_common_kwargs


# What `lacks` has of every encoder.
ENCODERS_LACK = (
    "a decoder-only head",
    "a sliding window",
    "a tensor-parallel plan",
    "an encoder-decoder head",
    "experts",
    "modules kept in float32",
    "resizable position embeddings",
    "rotary positions",
    "sub-configurations",
)


class EvolvingModelTesterMixin(ModelTesterMixin):
    """Transformers' model and configuration tests, for one family of `ea_hf`.

    A family sets `all_model_classes`, `model_tester_class` and `lacks`. One test is replaced by ours, under the same
    name: reentrant checkpointing is refused, since it would cut the gradient through the maps.
    """

    model_tester_class: type
    lacks: tuple[str, ...] = ()  # headings of `skips.LACKS`
    # What the configuration tests expect of a configuration.
    has_text_modality = True
    common_properties: list[str] | None = None

    # Transformers excuses models that are older than 2023, and asks the year of a file's copyright line.
    test_can_init_all_missing_weights_before_2023 = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Transformers' tests choose labels, and whether they apply at all, by looking a class name up in the tables of
        # Transformers' own models, which know nothing of `AutoModel.register`. Add what is registered to the tables.
        config_class = cls.all_model_classes[0].config_class
        tables = {}
        for name, table in vars(test_modeling_common).items():
            if name.endswith("_MAPPING_NAMES"):
                registered = getattr(modeling_auto, name.removesuffix("_NAMES")).get(config_class, None)
                if registered is not None:
                    tables[name] = {**table, config_class.model_type: registered.__name__}
        cls.registered_names = {table[config_class.model_type] for table in tables.values()}
        patcher = patch.multiple(test_modeling_common, **tables)
        patcher.start()
        cls.addClassCleanup(patcher.stop)

    def setUp(self):
        super().setUp()
        self.model_tester = self.model_tester_class()
        self.config_tester = ConfigTester(
            self,
            config_class=self.all_model_classes[0].config_class,
            has_text_modality=self.has_text_modality,
            common_properties=self.common_properties,
            **self.model_tester.config_fields(),
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_config_tester_sets_every_shared_field(self):
        shared = {field.name for field in fields(PreTrainedConfig)} - {"transformers_version"}
        self.assertEqual(shared - config_common_kwargs.keys(), set())

    def test_every_model_class_is_registered(self):
        """Otherwise Transformers' tests give a class no labels, and pass without testing it."""
        self.assertEqual({model_class.__name__ for model_class in self.all_model_classes}, self.registered_names)

    def test_training_gradient_checkpointing_use_reentrant_true(self):
        """Reentrant checkpointing would cut the gradient through the maps, so it is refused and stays off."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                self.assertTrue(model_class.supports_gradient_checkpointing)
                model = model_class(config)
                with self.assertRaisesRegex(ValueError, '"use_reentrant": False'):
                    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
                self.assertFalse(model.is_activation_checkpointing)

    def check_attention_outputs(self, expected: list[tuple[int, ...]]) -> None:
        """The attentions have these shapes, asked for in two ways; otherwise there are none."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(config).eval()
                by_argument = model(**inputs, output_attentions=True).attentions
                model.config.output_attentions = True
                by_config = model(**inputs).attentions
                model.config.output_attentions = False
                self.assertIsNone(model(**inputs).attentions)
                for attentions in (by_argument, by_config):
                    self.assertEqual([tuple(weights.shape) for weights in attentions], expected)

    def check_there_are_no_embeddings(self) -> None:
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__), self.assertRaises(NotImplementedError):
                model_class(config).get_input_embeddings()


class EvolvingImageModelTesterMixin(EvolvingModelTesterMixin):
    """The same for a family that reads pixels, and so has no embeddings of tokens."""

    has_text_modality = False
    test_resize_embeddings = False


class ModelTester:
    """Tiny sizes; a family adds `config_class`, and lists in `names` what of the rest is in its configuration."""

    config_class: type[PreTrainedConfig]
    names: tuple[str, ...]
    is_training = True
    batch_size = 5
    ea_residual_weight = 0.5
    ea_conv_weight = 0.5

    def config_fields(self) -> dict:
        """Return the arguments of the family's configuration."""
        return {name: getattr(self, name) for name in (*self.names, "ea_residual_weight", "ea_conv_weight")}

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(**self.config_fields())


class TextModelTester(ModelTester):
    """Sizes and random inputs for a family that reads token ids."""

    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range")
    seq_length = 9
    num_choices = 4

    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    # Large enough that the maps matter: at the usual 0.02 all attention is uniform, and a wrong map passes.
    initializer_range = 0.2

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)  # (batch, sequence)
        return self.get_config(), {
            "input_ids": ids_tensor(shape, self.vocab_size),
            "attention_mask": random_attention_mask(shape),
        }


class ImageModelTester(ModelTester):
    """Sizes and random images for a family that reads pixels."""

    names = ("image_size", "num_channels")
    image_size = 12
    num_channels = 3

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": floats_tensor(shape)}
