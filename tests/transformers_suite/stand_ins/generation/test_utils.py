# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Stand-in for the generation tests of Transformers, which its source distribution leaves out."""

import torch
from transformers.testing_utils import torch_device


class GenerationTesterMixin:
    """For the test class of a family that can `generate`: `ModelTesterMixin` asks for it there and only there."""

    new_tokens = 8

    def test_greedy_generation_with_and_without_cache(self):
        self.check_cache_changes_nothing(num_beams=1)

    def test_beam_search_with_and_without_cache(self):
        self.check_cache_changes_nothing(num_beams=3)

    def check_cache_changes_nothing(self, **options):
        self.assertGreater(len(self.all_generative_model_classes), 0)
        for model_class in self.all_generative_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            inputs = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
            model = model_class(config).to(torch_device).eval()
            model.generation_config.eos_token_id = None  # every row runs to the full length
            options = {
                "do_sample": False,
                "max_new_tokens": self.new_tokens,
                "output_scores": True,
                "return_dict_in_generate": True,
                **options,
            }
            with self.subTest(model_class.__name__):
                cached = model.generate(**inputs, use_cache=True, **options)
                uncached = model.generate(**inputs, use_cache=False, **options)
                self.assertIsNotNone(cached.past_key_values)
                self.assertIsNone(uncached.past_key_values)
                self.assertEqual(len(cached.scores), self.new_tokens)
                torch.testing.assert_close(cached.scores, uncached.scores, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(cached.sequences, uncached.sequences, rtol=0, atol=0)
