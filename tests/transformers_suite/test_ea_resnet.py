# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0

import unittest

from ea_hf import EAResNetBackbone, EAResNetConfig, EAResNetForImageClassification, EAResNetModel

from .common import ENCODERS_LACK, EvolvingImageModelTesterMixin, ImageModelTester


class EAResNetModelTester(ImageModelTester):
    config_class = EAResNetConfig
    names = (*ImageModelTester.names, "stem_stride", "embedding_size", "hidden_sizes", "depths", "layer_type")
    names += ("num_attention_heads",)
    image_size = 16
    stem_stride = 1
    embedding_size = 8
    hidden_sizes = [8, 16, 32, 32]
    depths = [1, 2, 1, 1]
    layer_type = "basic"
    num_attention_heads = 2


class EAResNetModelTest(EvolvingImageModelTesterMixin, unittest.TestCase):
    model_tester_class = EAResNetModelTester
    all_model_classes = (EAResNetModel, EAResNetForImageClassification, EAResNetBackbone)
    common_properties = ["num_channels", "hidden_sizes", "num_attention_heads"]
    lacks = (*ENCODERS_LACK, "embeddings of tokens", "outputs recorded by hooks", "renamed weights")

    _torch_compile_train_cls = EAResNetForImageClassification

    def test_attention_outputs(self):
        """One attention per augmented layer, as many tokens as its stage has pixels; asked for in two ways."""
        tokens = [16, 16, 16, 4]  # pooled 8 x 8, 8 x 8 and 4 x 4 pixels, and 2 x 2
        expected = [(self.model_tester.batch_size, self.model_tester.num_attention_heads, n, n) for n in tokens]
        self.check_attention_outputs(expected)

    def test_hidden_states_output(self):
        """The stem's output and each stage's; asked for in two ways."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        expected = [(8, 16), (8, 16), (16, 8), (32, 4), (32, 2)]
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(config).eval()
                by_argument = model(**inputs, output_hidden_states=True).hidden_states
                model.config.output_hidden_states = True
                for hidden_states in (by_argument, model(**inputs).hidden_states):
                    self.assertEqual([(states.shape[1], states.shape[-1]) for states in hidden_states], expected)

    def test_model_get_set_embeddings(self):
        """Like Transformers' ResNet, it has no embeddings to get or set."""
        self.check_there_are_no_embeddings()
