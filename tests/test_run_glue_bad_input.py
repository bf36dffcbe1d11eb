# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_glue.py tells what is wrong with its input, before it has cost anything."""

import math
import re
from typing import Any

import pytest
import run_glue
import tiny_roberta
import torch
from task_data import load_files
from test_run_glue import (
    files,
    fine_tune,
)
from tiny_bert import (
    arguments,
    run_script,
    sentences,
    write_checkpoint,
    write_rows,
)
from transformers import AutoTokenizer

import ea_hf


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """The directory of a vanilla BERT without head."""
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"))


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


@pytest.mark.slow
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
    # All weights are finite numbers, or the checkpoint would be refused.
    torch.nn.init.zeros_(model.bert.pooler.dense.weight)
    torch.nn.init.ones_(model.bert.pooler.dense.bias)
    torch.nn.init.constant_(model.classifier.weight, 3e38)
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
