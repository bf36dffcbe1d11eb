# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What all scripts share about scores: the best metric, outputs that are not finite, classes, and what is shown."""

import argparse
import importlib
import logging

import numpy as np
import pytest
from transformers import BertConfig

from ea_hf.training.class_labels import class_names, name_classes, new_indices
from ea_hf.training.task import Task, check_finite, find_best_metric
from ea_hf.training.terminal import set_up_logging


def test_the_first_metric_is_the_best_one_unless_another_is_named():
    chosen = [
        find_best_metric(argparse.Namespace(metric_for_best_model=name), names)
        for name, names in ((None, ("f1", "loss")), ("loss", ("f1", "loss")), (None, ()), ("loss", ()))
    ]
    assert chosen == ["f1", "loss", None, None]
    with pytest.raises(ValueError, match="--metric_for_best_model is 'bleu', but the evaluation gives f1, loss"):
        find_best_metric(argparse.Namespace(metric_for_best_model="bleu"), ("f1", "loss"))


def test_outputs_that_are_not_finite_are_counted_and_the_first_is_named():
    check_finite(np.array([True, True]), "images of test", str)
    with pytest.raises(ValueError, match="NaN or infinity for 2 of 4 images of test, first for image 1\\."):
        check_finite(np.array([True, False, True, False]), "images of test", "image {}".format)


def test_names_of_classes_are_in_the_order_of_the_outputs():
    config = BertConfig()
    name_classes(config, [str(number) for number in range(12)])
    assert class_names(config) == [str(number) for number in range(12)] and config.label2id["10"] == 10
    assert new_indices(["a", "c"], ["c", "b", "a"]).tolist() == [2, 0]


def test_a_task_evaluates_where_there_is_validation_data():
    for names, can_evaluate in ((("train", "validation_matched"), True), (("train", "test"), False)):
        task = Task(argparse.Namespace(do_predict=False), None, dict.fromkeys(names), None)
        assert task.can_evaluate == can_evaluate and not task.can_predict


@pytest.mark.parametrize("kind", ["glue", "image", "series", "translation"])
def test_what_an_evaluation_tells_is_shown(kind):
    set_up_logging(True, True)
    assert importlib.import_module(f"{kind}_evaluation").logger.isEnabledFor(logging.INFO)
