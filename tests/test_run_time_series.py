# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_time_series.py on small data: what it reads, what it writes, how it chooses, and what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, root_mean_squared_error
from tiny_bert import arguments, reset_accelerator, run_script

import ea_hf
from ea_hf.training import script
from ea_hf.training.checkpoints import write_json


pytest.importorskip("aeon")

import run_time_series
from run_time_series import TASK_DEFAULTS, load_data, parse_args, set_task_defaults
from series_data import dataset_files, load_files
from series_evaluation import compute_metrics
from series_runs import choose_epochs, plan_runs


SCRIPT = Path(run_time_series.__file__)
TINY = "d_model=16,num_hidden_layers=2,num_attention_heads=2,ffn_dim=16"


pytestmark = pytest.mark.usefixtures("isolated")


def learn(output_dir: Path, **options: Any) -> dict[str, Any]:
    """Runs the script in this process; a new tiny model on UnitTest for two epochs, unless said otherwise."""
    reset_accelerator()
    seeds = options.pop("seeds", None)
    words = {"num_train_epochs": 2, "logging_steps": 100, **options}
    if not {"train_file", "validation_file", "test_file", "dataset_name"} & set(options):
        words["dataset_name"] = "UnitTest"
    if "model_name_or_path" not in options:
        words.setdefault("config_overrides", TINY)
    return run_time_series.main(
        arguments(output_dir=output_dir, **words) + (["--seeds", *map(str, seeds)] if seeds else [])
    )


def write_table(path: Path, targets: int = 0, count: int = 16, start: int = 0) -> str:
    """Series of 2 to 6 steps and two channels with gaps, and their classes or targets, in long format."""
    generator = np.random.default_rng(start)
    rows = []
    for index in range(start, start + count):
        label = index % 2
        labels = (
            {f"target_{number}": 10.0 * label + number + index / 100 for number in range(targets)}
            if targets
            else {"label": ("low", "high")[label]}
        )
        for _ in range(2 + index % 5):
            value = None if generator.random() < 0.1 else generator.normal(3 * label)
            rows.append({"series": f"s{index}", "one": value, "two": generator.normal(), **labels})
    table = pd.DataFrame(rows)
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return str(path)


def read_predictions(directory: Path) -> list[dict[str, str]]:
    with (directory / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# What a run reads and writes


@pytest.mark.slow
def test_divisions_and_seeds_are_trained_each_and_summarized(tmp_path):
    """The figures follow from the saved models and feature extractors, series by series."""
    results = learn(
        tmp_path / "out",
        num_splits=2,
        seeds=[1, 2],
        refit=True,
        do_predict=True,
        num_train_epochs=4,
        learning_rate=0.01,
    )
    names = ["split-1-seed-1", "split-1-seed-2", "split-2-seed-1", "split-2-seed-2"]
    assert list(results["runs"]) == names and list(results["refit"]["runs"]) == ["whole-seed-1", "whole-seed-2"]
    assert json.loads((tmp_path / "out" / "all_results.json").read_text()) == json.loads(json.dumps(results))
    for score in ("eval_accuracy", "test_accuracy", "test_f1"):
        values = [run[score] for run in results["runs"].values()]
        assert results[score] == pytest.approx(np.mean(values))
        assert results[f"{score}_std"] == pytest.approx(np.std(values, ddof=1))

    data = load_files(dataset_files("UnitTest"))
    for name, run in {**results["runs"], **results["refit"]["runs"]}.items():
        directory = tmp_path / "out" / name
        model = ea_hf.EADCTransformerForClassification.from_pretrained(directory).eval()
        extractor = ea_hf.EADCTransformerFeatureExtractor.from_pretrained(directory)
        with torch.no_grad():
            logits = torch.cat([model(**extractor([series])).logits for series in data.splits["test"].series])
        predicted, truth = logits.argmax(1).numpy(), data.splits["test"].labels
        assert run["test_accuracy"] == accuracy_score(truth, predicted)
        assert run["test_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
        rows = read_predictions(directory)
        assert [row["prediction"] for row in rows] == [data.labels[index] for index in predicted]
        assert [row["label"] for row in rows] == [data.labels[index] for index in truth]
    # The statistics are those of the series that were trained on: a part, or all of them.
    whole = ea_hf.EADCTransformerFeatureExtractor.from_pretrained(tmp_path / "out" / "whole-seed-1")
    part = ea_hf.EADCTransformerFeatureExtractor.from_pretrained(tmp_path / "out" / "split-1-seed-1")
    assert whole.feature_mean == pytest.approx([np.concatenate(data.splits["train"].series).mean()])
    assert part.feature_mean != whole.feature_mean
    assert results["refit"]["runs"]["whole-seed-1"]["epoch"] == results["refit"]["num_train_epochs"]
    card = (tmp_path / "out" / "whole-seed-1" / "README.md").read_text()
    assert "from transformers import AutoModel, AutoFeatureExtractor" in card
    assert "`ea_hf.EADCTransformerForClassification.from_pretrained(" in card
    assert f"| test | UnitTest | {len(data.splits['test'])} series |" in card
    card = (tmp_path / "out" / "split-1-seed-1" / "README.md").read_text()
    assert "| validation | UnitTest, held out of train | " in card and "one of the runs with seeds 1, " in card


def test_validation_series_choose_the_checkpoint_of_each_division(tmp_path):
    learn(tmp_path / "out", num_splits=2, num_train_epochs=6, learning_rate=0.02, do_predict=True)
    for name in ("split-1-seed-42", "split-2-seed-42"):
        directory = tmp_path / "out" / name
        evaluations = json.loads((directory / "evaluations.json").read_text())
        accuracies = [evaluations[step]["accuracy"] for step in sorted(evaluations, key=int)]
        results = json.loads((directory / "all_results.json").read_text())
        assert len(accuracies) == 6 and results["eval_accuracy"] == max(accuracies)


def test_the_epochs_of_the_refit_are_those_of_the_best_mean(tmp_path):
    args = parse_args(arguments(output_dir=tmp_path, dataset_name="UnitTest", num_splits=2, refit=True))
    data = load_data(args)
    runs = plan_runs(args, data)
    curves = [[(0.5, 1.0), (0.9, 0.6), (0.8, 0.5), (0.8, 0.4)], [(0.5, 1.0), (0.6, 0.6), (0.8, 0.5), (0.8, 0.6)]]
    for run, curve in zip(runs, curves, strict=True):
        (tmp_path / run.name).mkdir()
        content = {str(10 * (step + 1)): {"accuracy": a, "loss": loss} for step, (a, loss) in enumerate(curve)}
        (tmp_path / run.name / "evaluations.json").write_text(json.dumps(content))
    assert choose_epochs(args, data, runs) == 3
    args.metric_for_best_model = "loss"
    assert choose_epochs(args, data, runs) == 3


@pytest.mark.parametrize("task", TASK_DEFAULTS)
def test_the_task_sets_what_the_command_line_leaves_to_it(task, tmp_path):
    command = ["--dataset_name", "UnitTest", "--output_dir", str(tmp_path)]
    args = parse_args(command)
    set_task_defaults(args, task)
    expected = (30, 1e-3) if task == "regression" else (100, 3e-3)
    assert (args.num_train_epochs, args.learning_rate) == expected
    args = parse_args([*command, "--num_train_epochs", "7"])
    set_task_defaults(args, task)
    assert (args.num_train_epochs, args.learning_rate) == (7, expected[1])


@pytest.mark.parametrize(("overrides", "pooling_type"), [(TINY, "mean"), (f"{TINY},pooling_type=None", None)])
def test_the_head_of_a_new_model_reads_the_mean_unless_told(overrides, pooling_type, tmp_path):
    learn(tmp_path, num_splits=1, num_train_epochs=1, config_overrides=overrides)
    assert ea_hf.EADCTransformerForClassification.from_pretrained(tmp_path).config.pooling_type == pooling_type


def test_several_targets_of_a_table(tmp_path):
    train = write_table(tmp_path / "train.parquet", targets=2)
    test = write_table(tmp_path / "test.parquet", targets=2, count=8, start=100)
    reset_accelerator()
    words = arguments(train_file=train, test_file=test, num_splits=1, num_train_epochs=3, config_overrides=TINY)
    results = run_time_series.main(
        [*words, "--do_predict", "--label_column_name", "target_0", "target_1", "--output_dir", str(tmp_path / "out")]
    )
    model = ea_hf.EADCTransformerForRegression.from_pretrained(tmp_path / "out")
    assert model.config.num_targets == 2
    rows = read_predictions(tmp_path / "out")
    predicted, truth = (
        np.array([[float(row[f"{kind}_target_{number}"]) for number in range(2)] for row in rows])
        for kind in ("prediction", "label")
    )
    assert [row["series"] for row in rows] == [f"s{index}" for index in range(100, 108)]
    assert results["test_rmse"] == pytest.approx(root_mean_squared_error(truth, predicted))
    assert results["test_mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert truth[:, 0].tolist() == pytest.approx([10.0 * (index % 2) + index / 100 for index in range(100, 108)])


@pytest.mark.slow
def test_pretraining_by_imputation_is_gone_on_with(tmp_path):
    pretrained = tmp_path / "pretrained"
    results = learn(pretrained, task="masked_imputation", num_splits=1, num_train_epochs=3, learning_rate=0.01)
    assert set(results) >= {"eval_loss"} and np.isfinite(results["eval_loss"])
    assert not [name for name in results if "accuracy" in name]
    again = learn(tmp_path / "again", task="masked_imputation", num_splits=1, num_train_epochs=3, learning_rate=0.01)
    assert again["eval_loss"] == results["eval_loss"]  # the hidden values are always the same

    learn(tmp_path / "tuned", model_name_or_path=pretrained, num_splits=1, learning_rate=1e-9, num_train_epochs=1)
    before, after = (load_file(path / "model.safetensors") for path in (pretrained, tmp_path / "tuned"))
    kept = [
        name for name in before if name.startswith("model.") and not name.endswith(("running_mean", "running_var"))
    ]
    assert len(kept) > 20 and all(
        torch.allclose(before[name].float(), after[name].float(), atol=1e-5)
        for name in kept
        if "num_batches" not in name
    )
    extractors = [
        ea_hf.EADCTransformerFeatureExtractor.from_pretrained(path) for path in (pretrained, tmp_path / "tuned")
    ]
    assert extractors[0].feature_mean == extractors[1].feature_mean
    with pytest.raises(ValueError, match=r"takes series of 1 channels, but CardanoSentiment has 2"):
        learn(tmp_path / "other", model_name_or_path=pretrained, dataset_name="CardanoSentiment")
    with pytest.raises(ValueError, match="is a EADCTransformerForMaskedImputation; the task is classification"):
        learn(tmp_path / "other", model_name_or_path=pretrained, eval_only=True, do_predict=True)


@pytest.mark.slow
def test_a_saved_model_is_evaluated_with_its_own_classes(tmp_path):
    train, test = write_table(tmp_path / "train.csv"), write_table(tmp_path / "test.csv", count=6, start=50)
    trained = learn(tmp_path / "out", train_file=train, test_file=test, num_splits=1, do_predict=True)
    rows = pd.read_csv(test)
    rows = rows[rows["label"] == "low"]  # one class only, the second in the model
    rows.to_csv(tmp_path / "low.csv", index=False)
    evaluated = learn(
        tmp_path / "eval", model_name_or_path=tmp_path / "out", eval_only=True, test_file=tmp_path / "low.csv",
        do_predict=True,
    )  # fmt: skip
    expected = [row for row in read_predictions(tmp_path / "out") if row["label"] == "low"]
    assert read_predictions(tmp_path / "eval") == expected
    assert set(evaluated) == {"test_accuracy", "test_f1", "test_loss"} and trained["test_accuracy"] >= 0


def test_a_validation_file_and_tests_without_labels(tmp_path):
    train, validation = write_table(tmp_path / "train.csv"), write_table(tmp_path / "validation.csv", start=60)
    pd.read_csv(validation).drop(columns="label").to_csv(tmp_path / "test.csv", index=False)
    results = learn(
        tmp_path / "out",
        train_file=train,
        validation_file=validation,
        test_file=tmp_path / "test.csv",
        do_predict=True,
    )
    assert "eval_accuracy" in results and "test_accuracy" not in results
    assert list(read_predictions(tmp_path / "out")[0]) == ["series", "prediction"]


@pytest.mark.slow
def test_finished_runs_are_not_repeated_on_resuming(tmp_path):
    options = {"num_splits": 2, "learning_rate": 0.01}
    first = learn(tmp_path / "out", **options)
    (tmp_path / "out" / "split-2-seed-42" / "all_results.json").unlink()
    stamp = (tmp_path / "out" / "split-1-seed-42" / "model.safetensors").stat().st_mtime_ns
    resumed = learn(tmp_path / "out", resume_from_checkpoint="latest", **options)
    assert (tmp_path / "out" / "split-1-seed-42" / "model.safetensors").stat().st_mtime_ns == stamp
    assert resumed["eval_accuracy"] == first["eval_accuracy"] and resumed["eval_loss"] == first["eval_loss"]
    with pytest.raises(ValueError, match=r"split-1-seed-42 was finished with learning_rate 0.01, now it is 0.1"):
        learn(tmp_path / "out", resume_from_checkpoint="latest", **options | {"learning_rate": 0.1})


def test_a_signal_at_the_end_of_a_training_keeps_the_others_from_starting(tmp_path, monkeypatch):
    options = {"num_splits": 2, "resume_from_checkpoint": "latest", "output_dir": tmp_path / "out"}

    def write_and_signal(path: Path, content: Any) -> None:
        write_json(path, content)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(script, "write_json", write_and_signal)
        with pytest.raises(SystemExit) as interruption:
            learn(**options)
    assert interruption.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "out/split-1-seed-42/all_results.json").exists()
    assert not (tmp_path / "out/split-2-seed-42").exists()
    assert set(learn(**options)["runs"]) == {"split-1-seed-42", "split-2-seed-42"}


def test_another_process_is_kept_out_of_all_trainings(tmp_path):
    """Also out of those that are finished."""
    (tmp_path / "out").mkdir()
    hold = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    words = [sys.executable, "-c", hold, str(tmp_path / "out/.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=r"Another run is using .*out"):
            learn(tmp_path / "out", num_splits=2, overwrite_output_dir=True)
        other.communicate(b"\n")


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path):
    # Dropout and the statistics of a batch are those of a process.
    options = {
        "dataset_name": "UnitTest", "num_splits": 2, "max_train_steps": 3, "do_predict": True,
        "config_overrides": f"{TINY},norm_type=layernorm,positional_dropout=0,attention_dropout=0,ff_dropout=0,"
        "head_dropout=0",
    }  # fmt: skip
    one = learn(tmp_path / "one", per_device_train_batch_size=8, **options)
    words = arguments(output_dir=tmp_path / "two", per_device_train_batch_size=4, **options)
    status, printed = run_script(words, processes=2, script=SCRIPT)
    assert status == 0, printed
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    for name in ("eval_loss", "test_loss", "test_accuracy"):
        assert two[name] == pytest.approx(one[name], abs=1e-4)


# Metrics


def test_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(size=(50, 4)), generator.integers(3, size=50)
    metrics = compute_metrics("classification", outputs, labels)
    predicted = outputs.argmax(1)
    assert metrics["accuracy"] == accuracy_score(labels, predicted)
    assert metrics["f1"] == pytest.approx(f1_score(labels, predicted, labels=[0, 1, 2], average="macro"))
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert metrics["loss"] == pytest.approx(loss.item())


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "pass --dataset_name or --train_file"),
        ({"dataset_name": "x", "train_file": "y"}, "--dataset_name and --train_file exclude each other"),
        ({"train_file": "x", "dataset_dir": "y"}, "--dataset_dir needs --dataset_name"),
        ({"train_file": "x", "do_predict": True}, "--do_predict needs --test_file"),
        ({"train_file": "x", "eval_only": True}, "--eval_only needs --model_name_or_path"),
        ({"train_file": "x", "num_splits": -1}, "--num_splits is -1"),
        ({"train_file": "x", "train_val_split": 1.0}, "--train_val_split is 1.0"),
        ({"train_file": "x", "refit": True, "num_splits": 0}, "--refit needs --num_splits above 0"),
        ({"train_file": "x", "refit": True, "eval_steps": 5}, "--refit counts epochs"),
        ({"train_file": "x", "push_to_hub": True}, "--push_to_hub is for one model"),
        ({"train_file": "x", "max_steps": 0}, "--max_steps is 0"),
        ({"train_file": "x", "resume_from_checkpoint": "checkpoint-1"}, "--resume_from_checkpoint takes only"),
        ({"train_file": "x", "model_name_or_path": "y", "config_overrides": "d_model=8"}, "is for a new model"),
        ({"dataset_name": "x", "task": "masked_imputation", "do_predict": True}, "--do_predict is for classes"),
    ],
)
def test_arguments_that_make_no_sense(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments(output_dir=tmp_path, **options))
    assert message in capsys.readouterr().err


def test_bad_data_and_models_are_told_before_anything_is_written(tmp_path):
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            learn(tmp_path / "out", **options)
        assert {path.name for path in (tmp_path / "out").glob("*")} <= {".lock"}  # which hinders no other run

    refused("names 'hidden_size_', which EADCTransformerConfig does not have", config_overrides="hidden_size_=4")
    refused("`ea_conv_weight` is 2.0", ea_conv_weight=2.0)
    refused("--metric_for_best_model is 'rmse', but the evaluation gives accuracy", metric_for_best_model="rmse")
    train = pd.read_csv(write_table(tmp_path / "train.csv"))
    train.drop(columns="label").to_csv(tmp_path / "unlabelled.csv", index=False)
    refused("The series of train of .* have no labels", train_file=tmp_path / "unlabelled.csv")
    train.assign(label="low").to_csv(tmp_path / "one_class.csv", index=False)
    refused("has 1 class for training; classification needs two", train_file=tmp_path / "one_class.csv")
    train.loc[3, "two"] = np.inf
    train.to_csv(tmp_path / "infinite.csv", index=False)
    refused("has the value inf at step", train_file=tmp_path / "infinite.csv")


# What a saved model knows


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.slow_but("0")
def test_a_saved_model_predicts_series_without_labels_whatever_the_order_of_their_columns(targets, tmp_path):
    names = [f"target_{number}" for number in range(targets)] or ["label"]
    train = write_table(tmp_path / "train.csv", targets)
    test = write_table(tmp_path / "test.csv", targets, start=16)

    def run_with(output_dir: Path, **options: Any) -> None:
        reset_accelerator()
        run_time_series.main(
            [*arguments(output_dir=output_dir, logging_steps=100, **options), "--label_column_name", *names]
        )

    run_with(
        tmp_path / "model", train_file=train, test_file=test, do_predict=True, num_train_epochs=2, num_splits=1,
        config_overrides=TINY,
    )  # fmt: skip
    expected = read_predictions(tmp_path / "model")
    swapped = pd.read_csv(test).drop(columns=names)[["two", "one", "series"]]
    swapped.to_csv(tmp_path / "swapped.csv")  # with pandas' index
    options = {"model_name_or_path": tmp_path / "model", "eval_only": True, "do_predict": True}
    run_with(tmp_path / "predicted", test_file=tmp_path / "swapped.csv", **options)
    found = read_predictions(tmp_path / "predicted")
    predicted = [name for name in expected[0] if not name.startswith("label")]
    assert [list(row.values()) for row in found] == [[row[name] for name in predicted] for row in expected]
    assert list(found[0]) == predicted
    swapped.drop(columns="one").to_csv(tmp_path / "missing.csv", index=False)
    with pytest.raises(ValueError, match=r"missing\.csv has no column 'one'"):
        run_with(tmp_path / "missing", test_file=tmp_path / "missing.csv", **options)
    with pytest.raises(ValueError, match=r"--channel_columns are one, three; .* takes one, two"):
        load_data(
            parse_args(
                [*arguments(output_dir=tmp_path / "x", test_file=test, **options), "--channel_columns", "one", "three"]
            )
        )


@pytest.mark.slow
def test_the_log_tells_columns_and_classes(tmp_path):
    data = ["--train_file", write_table(tmp_path / "train.csv"), "--output_dir", str(tmp_path / "out")]
    tiny = ["--config_overrides", TINY, "--num_splits", "2", "--num_train_epochs", "1"]
    status, printed = run_script([*data, *tiny], script=SCRIPT)
    assert status == 0, printed
    assert printed.count("channels 'one', 'two'; series 'series'; no time") == 1
    assert printed.count("classification, 2 classes; 'high' 8, 'low' 8") == 1


@pytest.mark.slow
def test_a_finished_model_knows_the_names_of_its_table_s_columns(tmp_path):
    """Series, time and labels are found by the names of training, unless other ones are given."""
    names = {"series": "who", "label": "kind"}
    table = pd.read_csv(write_table(tmp_path / "plain.csv")).rename(columns=names)
    table["when"] = table.groupby("who").cumcount()
    shuffled = table.sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "table.csv", index=False)
    columns = ["--series_column_name", "who", "--time_column_name", "when", "--label_column_name", "kind"]

    def run_with(output_dir: Path, *words: str, **options: Any) -> dict[str, Any]:
        reset_accelerator()
        return run_time_series.main([*arguments(output_dir=output_dir, logging_steps=100, **options), *words])

    train = {"train_file": tmp_path / "table.csv", "validation_file": tmp_path / "table.csv"}
    trained = run_with(tmp_path / "model", *columns, **train, num_train_epochs=1, config_overrides=TINY)
    saved = json.loads((tmp_path / "model/config.json").read_text())
    assert (saved["series_column_name"], saved["time_column_name"]) == ("who", "when")
    assert saved["label_column_name"] == ["kind"]
    finished = {"model_name_or_path": tmp_path / "model", "eval_only": True}
    found = run_with(tmp_path / "found", validation_file=tmp_path / "table.csv", **finished)
    assert found["eval_loss"] == trained["eval_loss"]
    shuffled.rename(columns={"who": "person"}).to_csv(tmp_path / "other.csv", index=False)
    told = run_with(
        tmp_path / "told", "--series_column_name", "person", validation_file=tmp_path / "other.csv", **finished
    )
    assert told["eval_loss"] == trained["eval_loss"]
