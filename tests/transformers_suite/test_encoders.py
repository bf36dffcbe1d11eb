# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformers' tests on every encoder of text of `tests/models.py`; a test class for each, such as `EABertModelTest`."""

import inspect
import unittest

from model_inputs import TokenSequences
from models import BASE_CASES, CASES, Case
from transformers import AutoModelForMaskedLM

from .common import ENCODERS_LACK, EvolvingModelTesterMixin, TextModelTester, ids_tensor


class EncoderModelTester(TextModelTester):
    """Our sizes for what all encoders have; what else a family's tiny configuration names is as it says."""

    config_values: dict
    type_vocab_size = 2

    def config_fields(self):
        return {
            **self.config_values,  # without dropout: a compiled model draws other masks, and gradients are compared
            **super().config_fields(),
            "intermediate_size": 37,
            "max_position_embeddings": 64,
            "type_vocab_size": self.type_vocab_size,
        }

    def prepare_config_and_inputs_for_common(self):
        """No padding token among the inputs: RoBERTa counts positions without it, which embeddings do not show."""
        config, inputs = super().prepare_config_and_inputs_for_common()
        input_ids = inputs["input_ids"]
        inputs["input_ids"] = input_ids + (input_ids == config.pad_token_id)
        inputs["token_type_ids"] = ids_tensor((self.batch_size, self.seq_length), self.type_vocab_size)
        return config, inputs


class EncoderTesterMixin(EvolvingModelTesterMixin):
    lacks = (*ENCODERS_LACK, "renamed weights")

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Transformers' tests have no labels for pretraining: tokens, or whether one was replaced, and the next sentence."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            inputs["labels"] = inputs["input_ids"] % 2
            if "next_sentence_label" in inspect.signature(model_class.forward).parameters:
                inputs["next_sentence_label"] = inputs["input_ids"][:, 0] % 2
        return inputs


def suite_of(base: Case) -> type[unittest.TestCase]:
    """The tests of all classes of the family that has this base model."""
    config_class = base.model_class.config_class
    cases = [case for case in CASES if case.model_class.config_class is config_class]
    values = {"config_class": config_class, "config_values": base.config_values}
    masked = next(case.model_class for case in cases if case.auto_class is AutoModelForMaskedLM)
    attributes = {
        "__module__": __name__,
        "model_tester_class": type(f"{base}Tester", (EncoderModelTester,), values),
        "all_model_classes": tuple(case.model_class for case in cases),
        "_torch_compile_train_cls": masked,
    }
    return type(f"{base}Test", (EncoderTesterMixin, unittest.TestCase), attributes)


globals().update({f"{base}Test": suite_of(base) for base in BASE_CASES if type(base.inputs) is TokenSequences})
