# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_glue.py on small files of real sentences: what it reads, what it writes, and what it says about bad input."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import run_glue
import scipy.stats
import sklearn.metrics
import torch
from glue_evaluation import GlueTask
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


@pytest.mark.slow
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
@pytest.mark.slow_but(".csv")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_padding_to_the_maximum_changes_no_prediction(vanilla, tmp_path):
    data = files(tmp_path, "stars")
    written = []
    for name, options in (("longest", {}), ("maximum", {"pad_to_max_length": True, "max_length": 40})):
        fine_tune(tmp_path / name, model_name_or_path=vanilla, **data, do_predict=True, learning_rate=0.0, **options)
        written.append([float(value) for value in read_predictions(tmp_path / name / "predictions.tsv")])
    assert written[1] == pytest.approx(written[0], abs=1e-5)
    assert np.std(written[0]) > 0.01


def test_the_model_card_tells_the_run_and_its_code_runs(vanilla, tmp_path, monkeypatch):
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
        f"| accuracy | {reported['accuracy']:.4f} | validation | validation.csv | 13 examples |",
    ):
        assert line in card.text
    assert "nyu-mll/glue" not in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert str(tmp_path) not in str(card)
    monkeypatch.chdir(tmp_path)
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
@pytest.mark.slow_but("mnli", "stsb")
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
    for score in card.data.eval_results:
        part = "_mismatched" if score.metric_type.endswith("_mismatched") else "_matched" if task == "mnli" else ""
        split = datasets.load_dataset(glue, task, split=f"validation{part}")
        assert (score.dataset_split, score.dataset_args) == (f"validation{part}", {"size": len(split)})


def test_similarities_are_written_as_the_server_takes_them(glue, vanilla, tmp_path, monkeypatch):
    logits = np.array([[-1.0], [2.34567], [9.0]])
    monkeypatch.setattr(GlueTask, "predict_logits", lambda *_: logits)
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
