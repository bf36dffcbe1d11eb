# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""One process or several, started by plain torchrun without a GPU: the same run, and the same evaluation."""

import json

import pytest
import run_glue
from tiny_bert import arguments, reset_accelerator, run_script, sentences, write_checkpoint, write_rows


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize("kind", ["sign", "stars"], ids=["classification", "regression"])
@pytest.mark.slow_but("regression")
def test_two_processes_train_and_evaluate_as_one(kind, tmp_path):
    """37 examples make four steps of 8 and one of 5, which one process out of two ends without examples.

    Neither 13 validation nor 7 test examples can be shared evenly.
    """
    options = {
        "model_name_or_path": write_checkpoint(
            tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ),
        "train_file": write_rows(tmp_path / "train.csv", sentences(kind)),
        "validation_file": write_rows(tmp_path / "validation.csv", sentences(kind, 13)),
        "test_file": write_rows(tmp_path / "test.csv", sentences(kind, 7)),
        "do_predict": True,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "group_by_length": kind == "stars" or None,
    }
    two = tmp_path / "two"
    words = arguments(**options, output_dir=two, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    status, printed = run_script(words, processes=2)
    assert status == 0, printed
    assert "8 examples a step (2 x 2 accumulation steps x 2 processes), cpu" in printed

    reset_accelerator()
    run_glue.main(
        arguments(**options, output_dir=tmp_path / "one", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    )
    reports = [
        json.loads((tmp_path / name / "checkpoint-10/trainer_state.json").read_text())["log_history"]
        for name in ("one", "two")
    ]
    losses = [[report["loss"] for report in report_of_run] for report_of_run in reports]
    assert len(losses[0]) == 10 and losses[1] == pytest.approx(losses[0], abs=1e-4)
    rates = [[report["learning_rate"] for report in report_of_run] for report_of_run in reports]
    assert rates[1] == rates[0] and rates[0][-1] == 0

    reset_accelerator()
    names = ("validation_file", "test_file", "do_predict", "per_device_eval_batch_size")
    evaluated = run_glue.main(
        arguments(
            **{name: options[name] for name in names},
            model_name_or_path=two,
            eval_only=True,
            output_dir=tmp_path / "evaluated",
        )
    )
    results = json.loads((two / "all_results.json").read_text())
    scores = {name: value for name, value in results.items() if name.startswith("eval_")}
    assert evaluated == pytest.approx(scores, abs=1e-9)
    assert (tmp_path / "evaluated/predictions.tsv").read_bytes() == (two / "predictions.tsv").read_bytes()


@pytest.mark.slow
def test_a_fault_that_one_process_sees_ends_all(tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output/training_args.json").write_text("{}")
    words = arguments(
        model_name_or_path=write_checkpoint(tmp_path / "model"),
        train_file=write_rows(tmp_path / "train.csv", sentences()),
        output_dir=tmp_path / "output",
    )
    status, printed = run_script(words, processes=2)
    assert status != 0
    assert "output already holds a run" in printed
    assert (tmp_path / "output/training_args.json").read_text() == "{}"
