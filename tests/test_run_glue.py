# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_glue.py on small files of real sentences: what it reads, what it writes, and what it says about bad input."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import datasets
import evaluate
import huggingface_hub
import numpy as np
import pytest
import run_glue
import scipy.stats
import sklearn.metrics
import tiny_roberta
import torch
from glue_metric import METRICS
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from task_data import TASK_COLUMNS, load_files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_bert import (
    GLUE_LABELS,
    arguments,
    pairs,
    reset_accelerator,
    run_script,
    sentences,
    write_checkpoint,
    write_glue,
    write_rows,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import ea_hf


pytestmark = pytest.mark.usefixtures("isolated")


def fine_tune(output_dir: Path, **options: Any) -> dict[str, float]:
    """Runs the script in this process, for two steps unless said otherwise."""
    reset_accelerator()
    steps = {} if "num_train_epochs" in options else {"max_train_steps": 2}
    return run_glue.main(arguments(output_dir=output_dir, **{**steps, **options}))


def files(directory: Path, kind: str = "sign", suffix: str = ".csv") -> dict[str, str]:
    """Writes training, validation and test files; returns them as options."""
    make = pairs if kind == "pairs" else lambda *size: sentences(kind, *size)
    return {
        "train_file": write_rows(directory / f"train{suffix}", make(29)),
        "validation_file": write_rows(directory / f"validation{suffix}", make(13, 20)),
        "test_file": write_rows(directory / f"test{suffix}", make(7, 5)),
    }


def read_predictions(path: Path) -> list[str]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert header == ["index", "prediction"]
    assert [int(index) for index, _ in rows] == list(range(len(rows)))
    return [prediction for _, prediction in rows]


def logits_one_by_one(directory: Path, texts: list[tuple[str, ...]]) -> torch.Tensor:
    """(examples, labels), each example alone, with nothing of the script."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*text, return_tensors="pt")).logits for text in texts])


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """The directory of a vanilla BERT without head."""
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"))


# What a run reads and writes


def test_a_user_trains_pushes_in_vain_and_evaluates(vanilla, tmp_path):
    """The script as a process of its own: the push fails without a network, and nothing is lost."""
    data, output_dir = files(tmp_path), tmp_path / "output"
    words = arguments(
        model_name_or_path=vanilla, **data, output_dir=output_dir, num_train_epochs=2, learning_rate=1e-3,
        do_predict=True, with_tracking=True, push_to_hub=True, hub_token="hf_secret", logging_steps=2,
    )  # fmt: skip
    status, printed = run_script(words, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 1, printed
    assert f"saved in {output_dir}, but pushing it to output failed" in printed
    assert f"hf upload output {output_dir}" in printed
    assert re.search(r"step 8/8: loss .* examples/s, 0:00:00 left", printed) and "accuracy" in printed
    assert "new evolution weights" in printed and "LOAD REPORT" not in printed
    assert f"Model: {output_dir}" in printed and "Load it: import ea_hf" in printed

    results = json.loads((output_dir / "all_results.json").read_text(), parse_constant=pytest.fail)
    assert results["global_step"] == 8 and results["epoch"] == 2
    logits = logits_one_by_one(output_dir, [(row["sentence"],) for row in sentences(count=13, start=20)])
    labels = [row["label"] for row in sentences(count=13, start=20)]
    model = AutoModelForSequenceClassification.from_pretrained(output_dir)
    assert model.config.id2label == {0: "bad", 1: "good"}
    predicted = [model.config.id2label[index] for index in logits.argmax(1).tolist()]
    assert results["eval_accuracy"] == sklearn.metrics.accuracy_score(labels, predicted)
    assert results["eval_macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    logits = logits_one_by_one(output_dir, [(row["sentence"],) for row in sentences(count=7, start=5)])
    expected = [model.config.id2label[index] for index in logits.argmax(1).tolist()]
    assert read_predictions(output_dir / "predictions.tsv") == expected

    for directory in (output_dir / "checkpoint-4", output_dir / "checkpoint-8", output_dir):
        loaded = AutoModelForSequenceClassification.from_pretrained(directory)
        assert type(loaded) is ea_hf.EABertForSequenceClassification
        assert AutoTokenizer.from_pretrained(directory)("Go and see it!")["input_ids"]
    assert torch.equal(
        loaded.classifier.weight, load_file(output_dir / "checkpoint-8/model.safetensors")["classifier.weight"]
    )

    events = EventAccumulator(str(output_dir / "logs")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    assert [event.value for event in events.Scalars("eval/accuracy")][-1] == pytest.approx(results["eval_accuracy"])
    assert not [path for path in output_dir.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]

    words = arguments(
        model_name_or_path=output_dir, eval_only=True, validation_file=data["validation_file"],
        test_file=data["test_file"], do_predict=True, output_dir=tmp_path / "evaluated",
    )  # fmt: skip
    status, printed = run_script(words)
    assert status == 0, printed
    evaluated = json.loads((tmp_path / "evaluated/all_results.json").read_text())
    assert evaluated == {name: value for name, value in results.items() if name.startswith("eval_")}
    assert read_predictions(tmp_path / "evaluated/predictions.tsv") == expected
    assert not (tmp_path / "evaluated/model.safetensors").exists()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_file_format_gives_the_same_run(suffix, vanilla, tmp_path):
    for kind in ("sign", "stars", "pairs"):
        expected = load_files(files_by_split(files(tmp_path / "csv", kind)))
        actual = load_files(files_by_split(files(tmp_path / suffix, kind, suffix)))
        assert actual.labels == expected.labels and actual.text_columns == expected.text_columns
        assert {split: table.to_dict() for split, table in actual.splits.items()} == {
            split: table.to_dict() for split, table in expected.splits.items()
        }
    results = fine_tune(tmp_path / "output", model_name_or_path=vanilla, **files(tmp_path / suffix, "sign", suffix))
    assert results["eval_accuracy"] * 13 == pytest.approx(round(results["eval_accuracy"] * 13))


def files_by_split(options: dict[str, str]) -> dict[str, str]:
    return {name.removesuffix("_file"): path for name, path in options.items()}


def test_pairs_are_told_apart_by_token_types(vanilla, tmp_path):
    data, output_dir = files(tmp_path, "pairs", ".jsonl"), tmp_path / "output"
    fine_tune(output_dir, model_name_or_path=vanilla, **data, do_predict=True, learning_rate=1e-3, num_train_epochs=3)
    texts = [(row["sentence1"], row["sentence2"]) for row in pairs(7, 5)]
    expected = [str(index) for index in logits_one_by_one(output_dir, texts).argmax(1).tolist()]
    assert read_predictions(output_dir / "predictions.tsv") == expected


def test_regression_is_known_by_its_labels(vanilla, tmp_path):
    data, output_dir = files(tmp_path, "stars"), tmp_path / "output"
    results = fine_tune(
        output_dir,
        model_name_or_path=vanilla,
        **data,
        do_predict=True,
        per_device_eval_batch_size=3,
        num_train_epochs=2,
    )
    rows = sentences("stars", 13, 20)
    predicted = logits_one_by_one(output_dir, [(row["sentence"],) for row in rows]).squeeze(1).double().numpy()
    stars = [row["label"] for row in rows]
    assert results["eval_pearson"] == pytest.approx(scipy.stats.pearsonr(predicted, stars)[0], abs=1e-5)
    assert results["eval_spearmanr"] == pytest.approx(scipy.stats.spearmanr(predicted, stars)[0], abs=1e-5)
    assert results["eval_mse"] == pytest.approx(np.mean((predicted - stars) ** 2), rel=1e-5)
    predicted = logits_one_by_one(output_dir, [(row["sentence"],) for row in sentences("stars", 7, 5)]).squeeze(1)
    written = [float(value) for value in read_predictions(output_dir / "predictions.tsv")]
    assert written == pytest.approx(predicted.tolist(), abs=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(output_dir).config.problem_type == "regression"
    evaluated = fine_tune(
        tmp_path / "evaluated", model_name_or_path=output_dir, eval_only=True, validation_file=data["validation_file"]
    )
    assert evaluated["eval_mse"] == pytest.approx(results["eval_mse"])


def test_whole_numbers_are_a_regression_if_asked_for(vanilla, tmp_path):
    results = fine_tune(
        tmp_path / "output", model_name_or_path=vanilla, **files(tmp_path, "pairs"), problem_type="regression"
    )
    assert "eval_mse" in results


def test_columns_can_be_named(vanilla, tmp_path):
    rows = [
        {"id": str(i), "remark": row["sentence"], "author": "a friend", "verdict": row["label"], "label": "unused"}
        for i, row in enumerate(sentences())
    ]
    data = {name: write_rows(tmp_path / f"{name}.csv", rows) for name in ("train_file", "validation_file")}
    data |= {"text_column_names": "author, remark", "label_column_name": "verdict"}
    results = fine_tune(tmp_path / "output", model_name_or_path=vanilla, **data)
    assert results["eval_accuracy"] > 0
    loaded = load_files({"train": data["train_file"]}, data["text_column_names"], "verdict")
    assert loaded.text_columns == ("author", "remark") and loaded.labels == ["bad", "good"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("question", "sentence"), ("question", "sentence")),  # of QNLI, not SST-2's "sentence" alone
        (("question1", "question2"), ("question1", "question2")),
        (("premise", "hypothesis"), ("premise", "hypothesis")),
        (("text",), ("text",)),
        (("review",), ("review",)),
        (("first", "second"), ("first", "second")),
    ],
    ids=lambda names: "_".join(names),
)
def test_text_columns_are_found(columns, expected, tmp_path):
    rows = [
        {"idx": i, **dict.fromkeys(columns, row["sentence"]), "label": row["label"]}
        for i, row in enumerate(sentences())
    ]
    assert load_files({"train": write_rows(tmp_path / "train.csv", rows)}).text_columns == expected


def test_a_vanilla_checkpoint_is_converted_and_an_evolving_one_continued(vanilla, tmp_path):
    data = files(tmp_path)
    fine_tune(
        tmp_path / "first", model_name_or_path=vanilla, **data, ea_residual_weight=0.3, ea_conv_weight=0.2,
        ea_kernel_size=5, ea_activation="gelu", learning_rate=0.0,
    )  # fmt: skip
    first = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    config = first.config
    assert (config.ea_residual_weight, config.ea_conv_weight) == (0.3, 0.2)
    assert (config.ea_kernel_size, config.ea_activation, config.model_type) == (5, "gelu", "ea_bert")
    pretrained = load_file(Path(vanilla) / "model.safetensors")
    weights = load_file(tmp_path / "first/model.safetensors")
    assert all(torch.equal(weights[f"bert.{name}"], value) for name, value in pretrained.items())
    new = {name for name in weights if name.removeprefix("bert.") not in pretrained}
    assert all("evolution.conv" in name or name.startswith("classifier") for name in new)

    fine_tune(
        tmp_path / "second", model_name_or_path=tmp_path / "first", **data, ea_conv_weight=0.4, learning_rate=0.0
    )
    continued = load_file(tmp_path / "second/model.safetensors")
    assert all(torch.equal(continued[name], value) for name, value in weights.items())
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second").config
    assert (config.ea_residual_weight, config.ea_conv_weight, config.ea_kernel_size) == (0.3, 0.4, 5)


def test_a_half_precision_checkpoint_is_trained_in_float32(vanilla, tmp_path):
    model = ea_hf.EABertForSequenceClassification.from_pretrained(vanilla).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(vanilla).save_pretrained(tmp_path / "half")
    fine_tune(tmp_path / "output", model_name_or_path=tmp_path / "half", **files(tmp_path))
    weights = load_file(tmp_path / "output/model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_sample_limits_take_the_first(vanilla, tmp_path):
    data = files(tmp_path)
    fine_tune(
        tmp_path / "output", model_name_or_path=vanilla, **data, do_predict=True, max_train_samples=9,
        max_eval_samples=3, max_predict_samples=2, num_train_epochs=1, pad_to_max_length=True, max_length=16,
    )  # fmt: skip
    run = json.loads((tmp_path / "output/checkpoint-2/trainer_state.json").read_text())["run"]
    assert run["train_dataset"].startswith("9 examples")
    assert len(read_predictions(tmp_path / "output/predictions.tsv")) == 2


def test_padding_to_the_maximum_changes_no_prediction(vanilla, tmp_path):
    data = files(tmp_path, "stars")
    written = []
    for name, options in (("longest", {}), ("maximum", {"pad_to_max_length": True, "max_length": 40})):
        fine_tune(tmp_path / name, model_name_or_path=vanilla, **data, do_predict=True, learning_rate=0.0, **options)
        written.append([float(value) for value in read_predictions(tmp_path / name / "predictions.tsv")])
    assert written[1] == pytest.approx(written[0], abs=1e-5)
    assert np.std(written[0]) > 0.01


def test_the_model_card_tells_the_run_and_its_code_runs(vanilla, tmp_path):
    data, output_dir = files(tmp_path), tmp_path / "my_model"
    results = fine_tune(output_dir, model_name_or_path=vanilla, **data, ea_conv_weight=0.25, learning_rate=3e-4)
    card = ModelCard.load(output_dir / "README.md")
    assert card.data.library_name == "transformers" and "evolving-attention" in card.data.tags
    assert card.data.model_name == "my_model"
    reported = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert {f"eval_{name}": value for name, value in reported.items()} == {
        name: value for name, value in results.items() if name.startswith("eval_")
    }
    for line in (
        "| ea_conv_weight | 0.2500 |",
        "| learning_rate | 0.0003 |",
        f"| accuracy | {reported['accuracy']:.4f} |",
    ):
        assert line in card.text
    assert "nyu-mll/glue" not in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["model"](**names["tokenizer"]("Go and see it!", return_tensors="pt")).logits.shape == (1, 2)


# GLUE's tasks


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> str:
    return write_glue(tmp_path_factory.mktemp("glue"), TASK_COLUMNS)


GLUE_METRICS = {
    "cola": {"matthews_correlation"},
    "mnli": {"accuracy", "accuracy_mismatched"},
    "mrpc": {"accuracy", "f1"},
    "qqp": {"accuracy", "f1"},
    "stsb": {"pearson", "spearmanr"},
}
GLUE_FILES = {
    "cola": {"CoLA.tsv": 9},
    "sst2": {"SST-2.tsv": 9},
    "mrpc": {"MRPC.tsv": 9},
    "qqp": {"QQP.tsv": 9},
    "stsb": {"STS-B.tsv": 9},
    "mnli": {"MNLI-m.tsv": 17, "MNLI-mm.tsv": 20, "AX.tsv": 7},
    "qnli": {"QNLI.tsv": 9},
    "rte": {"RTE.tsv": 9},
    "wnli": {"WNLI.tsv": 9},
}


@pytest.mark.parametrize("task", TASK_COLUMNS)
def test_every_task_of_glue_is_scored_and_written_for_the_server(task, glue, vanilla, tmp_path):
    output_dir = tmp_path / "output"
    results = fine_tune(
        output_dir, model_name_or_path=vanilla, task_name=task, dataset_name=glue, do_predict=True,
        load_best_model_at_end=True, eval_steps=1, max_train_steps=3, learning_rate=1e-3,
    )  # fmt: skip
    scores = {name.removeprefix("eval_") for name in results if name.startswith("eval_")}
    assert scores == GLUE_METRICS.get(task, {"accuracy"})
    state = json.loads((output_dir / "checkpoint-3/trainer_state.json").read_text())
    main_metric = {"cola": "matthews_correlation", "stsb": "pearson"}.get(task, "accuracy")
    assert state["best_metric"] == max(metrics[main_metric] for metrics in state["evaluations"].values())
    assert results[f"eval_{main_metric}"] == state["best_metric"]

    labels = GLUE_LABELS[task]
    config = AutoModelForSequenceClassification.from_pretrained(output_dir).config
    assert list(config.id2label.values()) == (["LABEL_0"] if labels is None else list(labels))
    assert {path.name for path in output_dir.glob("*.tsv")} == set(GLUE_FILES[task])
    for name, count in GLUE_FILES[task].items():
        predictions = read_predictions(output_dir / name)
        assert len(predictions) == count
        if task == "stsb":
            assert all(re.fullmatch(r"[0-5]\.\d{3}", value) and float(value) <= 5 for value in predictions)
        else:
            allowed = labels if task in ("mnli", "qnli", "rte") else ("0", "1")
            assert set(predictions) <= set(allowed)
    card = ModelCard.load(output_dir / "README.md")
    assert card.data.eval_results[0].dataset_name == f"GLUE {task.upper()}"


def test_similarities_are_written_as_the_server_takes_them(glue, vanilla, tmp_path, monkeypatch):
    logits = np.array([[-1.0], [2.34567], [9.0]])
    monkeypatch.setattr(run_glue, "predict_logits", lambda *_: logits)
    model = ea_hf.EABertForSequenceClassification.from_pretrained(vanilla, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(vanilla).save_pretrained(tmp_path / "model")
    fine_tune(
        tmp_path / "output", model_name_or_path=tmp_path / "model", task_name="stsb", dataset_name=glue,
        eval_only=True, do_predict=True, max_eval_samples=3,
    )  # fmt: skip
    assert read_predictions(tmp_path / "output/STS-B.tsv") == ["0.000", "2.346", "5.000"]


def test_mnli_scores_each_validation_set_by_itself(glue, vanilla, tmp_path):
    results = fine_tune(tmp_path / "output", model_name_or_path=vanilla, task_name="mnli", dataset_name=glue)
    for kind, suffix in (("matched", ""), ("mismatched", "_mismatched")):
        split = datasets.load_dataset(glue, "mnli", split=f"validation_{kind}")
        texts = list(zip(split["premise"], split["hypothesis"], strict=True))
        predicted = logits_one_by_one(tmp_path / "output", texts).argmax(1).tolist()
        assert results[f"eval_accuracy{suffix}"] == sklearn.metrics.accuracy_score(split["label"], predicted)


def test_a_checkpoint_with_other_label_order_is_scored_and_written_in_that_of_glue(glue, vanilla, tmp_path):
    """GLUE's F1 is that of its class 1, and the server takes GLUE's indices."""
    model = ea_hf.EABertForSequenceClassification.from_pretrained(
        vanilla, id2label={0: "EQUIVALENT", 1: "NOT_EQUIVALENT"}, label2id={"EQUIVALENT": 0, "NOT_EQUIVALENT": 1}
    )
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(vanilla).save_pretrained(tmp_path / "model")
    options = {"model_name_or_path": tmp_path / "model", "task_name": "mrpc", "dataset_name": glue, "do_predict": True}
    results = fine_tune(tmp_path / "output", eval_only=True, **options)
    for split in ("validation", "test"):
        table = datasets.load_dataset(glue, "mrpc", split=split)
        texts = list(zip(table["sentence1"], table["sentence2"], strict=True))
        predicted = [1 - index for index in logits_one_by_one(tmp_path / "model", texts).argmax(1).tolist()]
        if split == "validation":
            assert results["eval_accuracy"] == sklearn.metrics.accuracy_score(table["label"], predicted)
            assert results["eval_f1"] == pytest.approx(sklearn.metrics.f1_score(table["label"], predicted))
            assert results["eval_f1"] != pytest.approx(
                sklearn.metrics.f1_score(table["label"], predicted, pos_label=0)
            )
    assert read_predictions(tmp_path / "output/MRPC.tsv") == [str(index) for index in predicted]
    fine_tune(tmp_path / "trained", learning_rate=0.0, **options)
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert [label.lower() for label in trained.config.id2label.values()] == ["equivalent", "not_equivalent"]
    assert torch.equal(trained.classifier.weight, model.classifier.weight)


def test_an_unreachable_task_says_what_to_do_without_a_network(vanilla, tmp_path):
    with pytest.raises(ConnectionError, match=r"no_such_copy.*mrpc.*(?s:.*)--train_file"):
        fine_tune(
            tmp_path / "output",
            model_name_or_path=vanilla,
            task_name="mrpc",
            dataset_name=str(tmp_path / "no_such_copy"),
        )
    assert not (tmp_path / "output").exists()


# Bad input


def rows_with(**changes: dict[int, Any]) -> list[dict[str, Any]]:
    """Good rows, but for the given values of a column, by row counted from 1."""
    rows = sentences(count=12)
    for column, values in changes.items():
        for row, value in values.items():
            rows[row - 1][column] = value
    return rows


BAD_FILES = {
    "empty": ("train.csv", b"", "train.csv is empty"),
    "header_only": ("train.csv", b"sentence,label\n", "train.csv has no rows"),
    "unknown_extension": ("train.xlsx", b"PK", r"train.xlsx is none of .jsonl, .json, .csv, .tsv"),
    "truncated_json": ("train.json", b'[{"sentence": "Avoid.", "lab', "train.json is not JSON"),
    "truncated_parquet": ("train.parquet", b"PAR1", "train.parquet cannot be read"),
    "latin1_csv": ("train.csv", "sentence,label\nAvoid.,0\nThe café.,1\n".encode("latin-1"), r"train.csv, line 3 .*caf\\xe9"),
    "latin1_json": ("train.jsonl", '{"sentence": "The café."}\n'.encode("latin-1"), r"train.jsonl, line 1 .*caf\\xe9"),
    "ragged": ("train.csv", b"sentence,label\nAvoid.,0\nLoud, long and empty.,0\n", "train.csv, row 2 has 3 fields, but the header names 2"),
    "all_ragged": ("train.csv", b"sentence,label\nLoud, long,0\nSharp, honest,1\n", "train.csv, row 1 has 3 fields"),
    "short_row": ("train.csv", b"sentence,label\nAvoid.,0\nSuperb.,1\nLoud\n", "train.csv, row 3 has 1 fields"),
    "missing_text_column": ("train.csv", b"remark,label\nAvoid.,0\nSuperb.,1\n", "train.csv has no column 'sentence'; it has 'remark', 'label'.*--text_column_names"),
    "missing_label_column": ("train.csv", b"sentence,stars\nAvoid.,0\nSuperb.,1\n", "train.csv has no column 'label'; it has 'sentence', 'stars'.*--label_column_name"),
    "no_text_at_all": ("train.csv", b"height,width,label\n1,2,0\n3,4,1\n", "train.csv has the columns 'height', 'width', 'label'.*--text_column_names"),
    "one_class": ("train.csv", b"sentence,label\nAvoid.,bad\nLoud.,bad\n", "train.csv, column 'label' has only one class, 'bad'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_its_fault(name, tmp_path):
    file_name, content, message = BAD_FILES[name]
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_files(
            {"train": str(tmp_path / file_name)},
            text_column_names="sentence" if name == "missing_text_column" else None,
        )


NAN = float("nan")
BAD_ROWS = {
    "empty_text": (".csv", {"sentence": {3: "", 5: "  "}}, {}, r"train.csv, column 'sentence': 2 .*rows 3, 5\b.*--allow_empty_text"),
    "missing_text": (".jsonl", {"sentence": {4: None}}, {}, r"train.jsonl, column 'sentence': 1 .*row 4\b"),
    "number_as_text": (".jsonl", {"sentence": {2: 7}}, {}, r"column 'sentence': .*row 2: 7 is int"),
    "list_as_text": (".jsonl", {"sentence": {row: ["Avoid."] for row in range(1, 13)}}, {"text_column_names": "sentence"}, r"'sentence': 12 .*rows 1, 2, 3, 4, 5, \.\.\.: \['Avoid\.'\] is list"),
    "missing_class": (".csv", {"label": {6: ""}}, {}, r"train.csv, column 'label': 1 .*row 6\b"),
    "null_class": (".jsonl", {"label": {6: None}}, {}, r"column 'label': 1 .*row 6: None"),
    "list_as_class": (".jsonl", {"label": {row: [1] for row in range(1, 13)}}, {}, r"column 'label': 12 .*\[1\]"),
    "nan_label": (".parquet", {"label": {**dict.fromkeys(range(1, 13), 1.5), 2: NAN}}, {}, r"column 'label': 1 .*row 2: "),
    "infinite_label": (".csv", {"label": {**dict.fromkeys(range(1, 13), 1.5), 9: "inf"}}, {}, r"column 'label': 1 .*row 9: 'inf'"),
    "words_for_regression": (".csv", {}, {"problem_type": "regression"}, r"column 'label': 12 .*'good'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_file_column_and_value(name, tmp_path):
    suffix, changes, options, message = BAD_ROWS[name]
    path = write_rows(tmp_path / f"train{suffix}", rows_with(**changes))
    with pytest.raises(ValueError, match=message):
        load_files({"train": path}, **options)


def test_unseen_validation_labels_are_named(tmp_path):
    train = write_rows(tmp_path / "train.csv", rows_with())
    validation = write_rows(tmp_path / "validation.csv", rows_with(label={2: "ugly", 7: "ugly", 8: "odd"}))
    with pytest.raises(
        ValueError, match=r"validation.csv, column 'label': 3 .*'odd', 'ugly'.*rows 2, 7, 8.*'bad', 'good'"
    ):
        load_files({"train": train, "validation": validation})


def test_empty_texts_can_be_allowed(vanilla, tmp_path):
    data = {
        "train_file": write_rows(tmp_path / "train.jsonl", rows_with(sentence={1: None, 2: "", 3: " "})),
        "validation_file": write_rows(tmp_path / "validation.csv", rows_with(sentence={5: ""})),
    }
    results = fine_tune(tmp_path / "output", model_name_or_path=vanilla, **data, allow_empty_text=True)
    assert math.isfinite(results["train_loss"])


def test_words_like_null_are_text(tmp_path):
    words = ["null", "NA", "nan", "None", "N/A", "true"]
    for suffix in (".csv", ".tsv"):
        path = write_rows(tmp_path / f"train{suffix}", [{"sentence": w, "label": w} for w in words])
        data = load_files({"train": path})
        assert data.splits["train"]["sentence"][:] == words
        assert [data.labels[i] for i in data.splits["train"]["label"]] == words


def test_quotation_marks_mean_nothing_in_tsv_files(tmp_path):
    texts = ['"Nice", he said.', 'An "unclosed quote', "It's 7\" tall", "a, b"]
    lines = ["sentence\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(texts))]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    assert load_files({"train": str(tmp_path / "train.tsv")}).splits["train"]["sentence"][:] == texts


def test_a_column_has_one_type_however_long_its_file(tmp_path):
    """Readers in pieces take the first piece's type, and stumble over the first decimal number after it."""
    rows = [{"sentence": f"Take {i}.", "label": i % 5} for i in range(10_100)]
    path = write_rows(tmp_path / "train.csv", [*rows, {"sentence": "The last take.", "label": 4.5}])
    data = load_files({"train": path})
    assert data.labels is None and data.splits["train"]["label"][-1] == 4.5


def test_a_rewritten_file_is_read_anew(tmp_path):
    for suffix in (".csv", ".jsonl", ".parquet"):
        for text in ("Before.", "After."):
            path = write_rows(tmp_path / f"train{suffix}", [{"sentence": text, "label": i} for i in (0, 1)])
            assert load_files({"train": path}).splits["train"]["sentence"][0] == text


def test_labels_are_sorted_by_value(tmp_path):
    path = write_rows(tmp_path / "train.csv", [{"sentence": "Avoid.", "label": label} for label in (10, 2, -1, 2)])
    data = load_files({"train": path})
    assert data.labels == ["-1", "2", "10"]
    assert data.splits["train"]["label"][:] == [2, 1, 0, 1]


BAD_ARGUMENTS = {
    "no_data": ({}, "pass --task_name, or --train_file"),
    "unknown_task": ({"task_name": "sst3"}, "invalid choice: 'sst3'.*'sst2'"),
    "task_and_files": ({"task_name": "sst2", "train_file": "a.csv"}, "exclude each other"),
    "no_training_file": ({"validation_file": "a.csv"}, "pass --train_file, or --eval_only"),
    "nothing_to_evaluate": ({"eval_only": True, "test_file": "a.csv"}, "--eval_only needs --validation_file"),
    "nothing_to_predict": ({"train_file": "a.csv", "do_predict": True}, "--do_predict needs --test_file"),
    "no_best": ({"train_file": "a.csv", "load_best_model_at_end": True}, "needs --validation_file"),
    "no_metric": ({"train_file": "a.csv", "metric_for_best_model": "accuracy"}, "needs --validation_file"),
    "max_length": ({"train_file": "a.csv", "max_length": 0}, "--max_length is 0"),
    "max_eval_samples": ({"train_file": "a.csv", "max_eval_samples": -1}, "--max_eval_samples is -1"),
    "abbreviated": ({"train_file": "a.csv", "hub_tok": "hf_secret"}, "unrecognized arguments"),  # would not be masked
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_named(name, vanilla, tmp_path, capsys):
    options, message = BAD_ARGUMENTS[name]
    with pytest.raises(SystemExit) as stop:
        run_glue.main(arguments(model_name_or_path=vanilla, output_dir=tmp_path / "output", **options))
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "output").exists()


def test_a_checkpoint_without_a_head_is_not_scored(vanilla, tmp_path):
    path = write_rows(tmp_path / "validation.csv", [{"sentence": "Avoid.", "label": f"LABEL_{i}"} for i in (0, 1)])
    with pytest.raises(
        ValueError, match=r"no weights classifier.bias, classifier.weight: .*not trained for this task"
    ):
        fine_tune(tmp_path / "output", model_name_or_path=vanilla, validation_file=path, eval_only=True)


def test_cut_texts_are_counted(vanilla, tmp_path, caplog):
    rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(("Go.", "Avoid it!", "Go and see it!"))]
    data = {"train_file": write_rows(tmp_path / "train.csv", rows)}
    for padded in (None, True):
        caplog.clear()
        with caplog.at_level("INFO"):
            options = {"max_length": 5, "pad_to_max_length": padded, "max_train_steps": 1}
            fine_tune(tmp_path / f"output{padded}", model_name_or_path=vanilla, **data, **options)
        # of five tokens two are special: the second text fits, the third does not
        assert "train: 1 of 3 texts have more than 5 tokens" in caplog.text


def test_roberta_takes_two_tokens_less_than_it_has_positions(tmp_path):
    vanilla, data = tiny_roberta.write_checkpoint(tmp_path / "vanilla", max_position_embeddings=40), files(tmp_path)
    with pytest.raises(ValueError, match=r"--max_length is 39, but .* ends at 38 tokens"):
        fine_tune(tmp_path / "output", model_name_or_path=vanilla, **data, max_length=39)
    fine_tune(tmp_path / "output", model_name_or_path=vanilla, **data, max_length=38, pad_to_max_length=True)


BAD_MODELS = {
    "too_long": ({"max_length": 129}, ValueError, "--max_length is 129, but .* ends at 128 tokens"),
    "residual_weight": ({"ea_residual_weight": 1.5}, Exception, "`ea_residual_weight` is 1.5"),
    "kernel_size": ({"ea_kernel_size": 4}, Exception, "`ea_kernel_size` is 4"),
    "batch_size": ({"per_device_train_batch_size": 0}, ValueError, "--per_device_train_batch_size is 0"),
    "metric": ({"metric_for_best_model": "f2"}, ValueError, "'f2', but the evaluation gives accuracy, macro_f1"),
    "missing_file": ({"train_file": "nowhere.csv"}, FileNotFoundError, "nowhere.csv does not exist"),
    "text_columns": ({"text_column_names": "a,b,c"}, ValueError, "--text_column_names is 'a,b,c'"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_what_cannot_be_trained_is_told_before_anything_is_written(name, vanilla, tmp_path):
    options, kind, message = BAD_MODELS[name]
    with pytest.raises(kind, match=message):
        fine_tune(tmp_path / "output", **{"model_name_or_path": vanilla, **files(tmp_path), **options})
    assert not (tmp_path / "output").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    model = write_checkpoint(tmp_path / "model", vocab_size=100)
    with pytest.raises(ValueError, match=r"has .* tokens, but the model only 100 embeddings"):
        fine_tune(tmp_path / "output", model_name_or_path=model, **files(tmp_path))


def test_a_run_does_not_destroy_the_model_that_it_starts_from(vanilla, tmp_path, capsys):
    data, output_dir = files(tmp_path), tmp_path / "output"
    fine_tune(output_dir, model_name_or_path=vanilla, **data)
    before = sorted(path.name for path in output_dir.rglob("*"))
    for model in (output_dir, output_dir / "checkpoint-2"):
        for options in ({"overwrite_output_dir": True}, {"eval_only": True}):
            with pytest.raises(SystemExit):
                fine_tune(output_dir, model_name_or_path=model, **data, **options)
            assert "choose another --output_dir" in capsys.readouterr().err
    assert sorted(path.name for path in output_dir.rglob("*")) == before
    fine_tune(output_dir / "more", model_name_or_path=output_dir, **data, overwrite_output_dir=True)


def test_a_model_that_gives_nan_is_not_scored(vanilla, tmp_path):
    model = ea_hf.EABertForSequenceClassification.from_pretrained(vanilla)
    torch.nn.init.constant_(model.classifier.bias, NAN)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(vanilla).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"13 of 13 .*validation"):
        fine_tune(
            tmp_path / "output", model_name_or_path=tmp_path / "model", eval_only=True,
            validation_file=write_rows(tmp_path / "named.csv", [
                {**row, "label": f"LABEL_{int(row['label'] == 'good')}"} for row in sentences(count=13)
            ]),
        )  # fmt: skip


def test_a_non_finite_loss_ends_the_script_with_an_error_and_keeps_the_checkpoints(vanilla, tmp_path):
    rows = sentences("stars", 24)
    rows[11]["label"] = 1e38
    train_file = write_rows(tmp_path / "train.csv", rows)
    words = arguments(
        model_name_or_path=vanilla, train_file=train_file, output_dir=tmp_path / "output", checkpointing_steps=1,
        per_device_train_batch_size=2, learning_rate=1e-6,
    )  # fmt: skip
    status, printed = run_script(words)
    assert status == 1
    ((step, indices),) = re.findall(r"The loss is inf at step (\d+), in the training examples \[(.*?)\]", printed)
    assert "11" in indices.split(", ")
    assert not (tmp_path / "output/model.safetensors").exists()
    checkpoints = sorted(path.name for path in (tmp_path / "output").glob("checkpoint-*"))
    assert checkpoints == sorted(f"checkpoint-{int(step) - i}" for i in (1, 2) if int(step) > i)


def test_a_push_sends_the_model_but_not_the_checkpoints(vanilla, tmp_path, monkeypatch):
    sent = {}

    class Hub:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            sent["private"] = private
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            paths = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
            sent["paths"] = set(huggingface_hub.utils.filter_repo_objects(paths, ignore_patterns=ignore_patterns))

    monkeypatch.setattr("ea_hf.training.publishing.HfApi", Hub)
    fine_tune(
        tmp_path / "output", model_name_or_path=vanilla, **files(tmp_path), push_to_hub=True, with_tracking=True,
        hub_model_id="someone/film-remarks", hub_token="hf_secret", hub_private_repo=True,
    )  # fmt: skip
    assert sent["token"] == "hf_secret" and sent["private"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "all_results.json"} <= sent["paths"]
    assert not [path for path in sent["paths"] if path.startswith(("checkpoint", "logs", "."))]
    card = (tmp_path / "output/README.md").read_text()
    assert 'from_pretrained("someone/film-remarks")' in card and "hf_secret" not in card


# GLUE's metrics


def metric(task: str, predictions: list, references: list) -> dict[str, float]:
    return evaluate.load(run_glue.METRIC_MODULE, task).compute(predictions=predictions, references=references)


PREDICTED, TRUE = [1, 0, 1, 1, 0, 1, 0, 1], [1, 0, 0, 1, 0, 1, 1, 0]  # 3 true and 2 false positives, 1 false negative
VALUES, TRUE_VALUES = [0.1, 2.5, 2.4, 4.0, -1.0, 5.5], [0.0, 3.0, 2.0, 2.0, 1.0, 5.0]


def test_metrics_equal_scikit_learn_and_scipy():
    accuracy, f1 = 5 / 8, 2 * 3 / (2 * 3 + 2 + 1)
    for task in ("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli"):
        assert metric(task, PREDICTED, TRUE) == {"accuracy": accuracy}
    for task in ("mrpc", "qqp"):
        assert metric(task, PREDICTED, TRUE) == pytest.approx({"accuracy": accuracy, "f1": f1})
    assert f1 == pytest.approx(sklearn.metrics.f1_score(TRUE, PREDICTED))
    matthews = (3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3)
    assert matthews == pytest.approx(sklearn.metrics.matthews_corrcoef(TRUE, PREDICTED))
    assert metric("cola", PREDICTED, TRUE) == {"matthews_correlation": pytest.approx(matthews)}
    correlations = {
        "pearson": np.corrcoef(VALUES, TRUE_VALUES)[0, 1],
        "spearmanr": np.corrcoef(scipy.stats.rankdata(VALUES), scipy.stats.rankdata(TRUE_VALUES))[0, 1],
    }
    assert metric("stsb", VALUES, TRUE_VALUES) == pytest.approx(correlations)
    error = sum((a - b) ** 2 for a, b in zip(VALUES, TRUE_VALUES, strict=True)) / 6
    assert metric("regression", VALUES, TRUE_VALUES) == pytest.approx({**correlations, "mse": error})
    three, true_three = [0, 1, 2, 2, 1, 0], [0, 2, 2, 1, 1, 1]
    f1s = [2 * 1 / (2 + 1), 2 * 1 / (2 + 3), 2 * 1 / (2 + 2)]
    assert metric("classification", three, true_three) == pytest.approx({"accuracy": 3 / 6, "macro_f1": sum(f1s) / 3})


@pytest.mark.parametrize("task", METRICS)
def test_constant_predictions_have_a_score(task):
    for predictions, references in (([1] * 4, [0, 1, 1, 0]), ([0, 1, 1, 0], [0] * 4), ([1] * 4, [1] * 4)):
        scores = metric(task, predictions, references)
        assert all(math.isfinite(value) for value in scores.values())
        if "pearson" in scores:
            assert scores["pearson"] == scores["spearmanr"] == 0


def test_nothing_to_score_and_an_unknown_task_are_errors():
    with pytest.raises(ValueError, match="no predictions to score"):
        metric("sst2", [], [])
    with pytest.raises(KeyError, match="no GLUE task 'sst3'; choose one of cola, sst2"):
        metric("sst3", [1], [1])
