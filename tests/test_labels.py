# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels are the text that stands in a file, whatever its kind and however it is read; a head's are matched by name."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import task_data
from head_labels import fit_labels
from labels import match_labels, sorted_labels
from task_data import TaskData, find_text_columns, load_files
from tiny_bert import SCRIPT, isolated_runs, write_rows  # noqa: F401  (tells where the script's modules are)
from transformers import BertConfig

from ea_hf.training import hub_data
from ea_hf.training.local_files import read_rows


KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


pytestmark = pytest.mark.usefixtures("isolated")


def write_labels(path: Path, labels: list[Any]) -> str:
    return write_rows(path, [{"sentence": f"Take {i}, then.", "label": label} for i, label in enumerate(labels)])


def read(path: str, streaming: bool, **options: Any) -> tuple[list[str] | None, list]:
    """The classes, and what each row has."""
    data = load_files({"train": path, "validation": path}, **options, stream_training=streaming)
    if streaming:
        rows = [row["label"] for row in data.train_stream]
    else:
        rows = data.splits["train"]["label"][:]
        rows = rows if data.labels is None else [data.labels[index] for index in rows]
    validation = data.splits["validation"]["label"][:]
    assert rows == (validation if data.labels is None else [data.labels[index] for index in validation])
    return data.labels, rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "labels",
    [
        ["true", "false"], ["True", "False"], ["01", "02"], ["1", "01", "+1", "-1"], ["007", "7"], ["nan", "NA", "word"],
        ["None", "null", "N/A", "NaN", "-"], ["1_0", "10", "1e3x"], ["inf", "-inf"], ["yes", "no", "yes"], ["²", "2"],
        [" a", "a"], ["1.0", "b", "c"],
    ],
    ids="_".join,
)  # fmt: skip
def test_a_class_is_the_text_that_stands_in_the_file(labels, kind, streaming, tmp_path):
    classes, rows = read(write_labels(tmp_path / f"train{kind}", labels), streaming)
    assert rows == labels and sorted(classes) == sorted(set(labels))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("values", "expected"),
    [([True, False], ["true", "false"]), ([1, -1], ["1", "-1"]), (["a", 1], ["a", "1"])],
    ids=["truth", "integers", "mixed"],
)
def test_values_of_json_are_as_the_file_has_them(values, expected, streaming, tmp_path):
    assert read(write_labels(tmp_path / "train.jsonl", values), streaming)[1] == expected
    if values[0] != "a":
        assert read(write_labels(tmp_path / "train.parquet", values), streaming)[1] == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_classes_or_values_alike(kind, streaming, tmp_path):
    path = write_labels(tmp_path / f"train{kind}", [0.5, 1.0, 2.0, 1.0])
    assert read(path, streaming) == (None, [0.5, 1.0, 2.0, 1.0])
    classes = (["0.5", "1.0", "2.0"], ["0.5", "1.0", "2.0", "1.0"])
    assert read(path, streaming, problem_type="single_label_classification") == classes
    path = write_labels(tmp_path / f"integers{kind}", [10, 2, -1])
    assert read(path, streaming)[0] == ["-1", "2", "10"]
    assert read(path, streaming, problem_type="regression") == (None, [10.0, 2.0, -1.0])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "null", "inf", "", "n/a", "1,5", "1e999"])
def test_a_word_among_decimal_labels_is_an_error_with_its_row(word, kind, streaming, tmp_path):
    labels = [f"{i}.5" for i in range(50)]
    path = write_labels(tmp_path / f"train{kind}", [*labels[:20], word, *labels[20:]])
    with pytest.raises(ValueError, match=rf"train{kind}, column 'label': 1 rows are not finite numbers, row 21: .*"):
        read(path, streaming)


def test_labels_have_one_order():
    assert sorted_labels(["1", "01", "+1", "10", "-2"]) == ["-2", "+1", "01", "1", "10"]
    assert sorted_labels(["²", "2", "10"]) == ["10", "2", "²"]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_was_guessed_is_told(streaming, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        read(write_labels(tmp_path / "train.csv", ["a", "b", "a"]), streaming)
        read(write_labels(tmp_path / "train.csv", [0.5, -1.5]), streaming)
    lines = [record.message for record in caplog.records if record.name == "ea_hf.task_data"]
    assert "text in 'sentence', label in 'label'; classification, 2 classes: a (2), b (1)." in lines[0]
    assert "regression, 2 labels from -1.5 to 0.5." in lines[1]


# Files


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "sentence;label\nGo, see.;x\n", {}, "only one column, 'sentence;label'; .* separated by ';'"),
        ("a.csv", "sentence\tlabel\nGo\tx\n", {}, r"separated by '\\t', not by ','"),
        ("a.tsv", "sentence,label\nGo,x\n", {}, r"separated by ',', not by '\\t'"),
        ("a.csv", "sentence,label,label\nGo,x,y\n", {}, "two columns 'label'"),
        ("a.csv", "label,b\nGo,x\n", {"text_column_names": "label"}, "'label' cannot be both text and label"),
        ("a.csv", "a,label\nGo,x\n", {"text_column_names": "a,a"}, "--text_column_names is 'a,a'"),
        ("a.jsonl", '{"sentence": "a", "label": 0}\n{"sentence": "\\ud83d!", "label": 1}\n', {}, r"a.jsonl, line 2 has half of a surrogate pair, '\\ud83d'"),
        ("a.json", '[{"sentence": "a", "label": "\\udc00"}]', {}, "a.json, row 1 has half of a surrogate pair"),
        ("a.jsonl", '{"sentence": "a", "\\udc00": 1}', {}, "a.jsonl, line 1 has half of a surrogate pair"),
        ("a.jsonl", "", {}, "a.jsonl is empty"),
        ("a.jsonl", "\n\n", {}, "a.jsonl has no rows"),
    ],
)  # fmt: skip
def test_a_file_s_fault_is_one_line(name, content, options, message, streaming, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_files({"train": str(tmp_path / name)}, **options, stream_training=streaming)
    assert "\n" not in str(error.value)


def test_a_pair_of_surrogates_is_a_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sentence": "\\ud83d\\ude00", "label": 0}\n')
    assert next(read_rows(str(tmp_path / "a.jsonl")))["sentence"] == "😀"


def test_bytes_that_are_no_text_in_parquet_are_told(tmp_path):
    column = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
    )
    pyarrow.parquet.write_table(pyarrow.table({"sentence": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read"):
        list(read_rows(str(tmp_path / "a.parquet")))


def test_an_empty_split_of_a_task_is_told(monkeypatch):
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    full = datasets.Dataset.from_dict({"sentence": ["Go."], "label": [0]}, features=features)
    streams = [
        datasets.IterableDataset.from_generator(lambda count=count: iter([full[0]] * count), features=features)
        for count in (1, 0)
    ]
    for train, validation in ((full, full.select([])), streams):
        monkeypatch.setattr(
            hub_data, "load_dataset", lambda *_, t=train, v=validation, **__: {"train": t, "validation": v}
        )
        with pytest.raises(ValueError, match=r"The split 'validation' of glue \(sst2\) is empty"):
            task_data.load_task("glue", "sst2", streaming=train is not full)


def test_a_column_of_text_is_none_of_numbers_whatever_the_file(tmp_path):
    rows = [{"id": i, "score": str(i / 3), "seen": "true", "review": "7 of 9.", "label": "x"} for i in range(3)]
    for kind in KINDS:
        assert find_text_columns(write_rows(tmp_path / f"a{kind}", rows), None, "label") == ("review",)


# Heads


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (["contradiction", "neutral", "entailment"], ["contradiction", "neutral", "entailment"]),
        (["CONTRADICTION", "Entailment ", "Neutral"], ["contradiction", "entailment", "neutral"]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (["entailment", "neutral"], None),
        (["entailment", "neutral", "neutral"], None),
    ],
)
def test_a_head_s_classes_are_matched_by_name(head, expected):
    assert match_labels(["entailment", "neutral", "contradiction"], head) == expected
    assert match_labels(["not_entailment", "-1"], ["-1", "Not-Entailment"]) == ["-1", "not_entailment"]
    assert match_labels(["A", "a"], ["a", "A"]) == ["a", "A"]


def fit(
    head: list[str], labels: list[str] | None, has_head: bool = True, **options: Any
) -> tuple[BertConfig, TaskData]:
    config = BertConfig(id2label=dict(enumerate(head)), label2id={name: i for i, name in enumerate(head)})
    config.architectures = ["BertForSequenceClassification" if has_head else "BertModel"]
    settings = {"checkpoint_labels": None, "eval_only": False, "ignore_mismatched_sizes": False, **options}
    data = TaskData({}, ("sentence",), labels, {})
    fit_labels(argparse.Namespace(model_name_or_path="model", **settings), config, data)
    return config, data


def test_a_head_with_other_names_is_not_scored_by_place(caplog):
    task = ["entailment", "neutral", "contradiction"]
    for head in (["LABEL_0", "LABEL_1", "LABEL_2"], ["c", "n", "e"]):
        with pytest.raises(
            ValueError, match=rf"classes of model are {head[0]}.*--checkpoint_labels entailment,neutral"
        ):
            fit(head, task, eval_only=True)
        config, data = fit(head, task, eval_only=True, checkpoint_labels="contradiction, neutral, entailment")
        assert data.labels == ["contradiction", "neutral", "entailment"] and data.task_labels == task
        assert config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
        assert not caplog.records
        fit(head, task)
        assert f"classes of model are {head[0]}" in caplog.text and "--checkpoint_labels" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match="must name the same"):
        fit(["c", "n", "e"], task, checkpoint_labels="c,n,e")
    fit(["LABEL_0", "LABEL_1"], task, has_head=False)
    assert not caplog.records


def test_a_head_of_another_size_is_told():
    with pytest.raises(ValueError, match=r"model has 3 outputs \(a, b, c\), but the task needs 2. .*mismatched_sizes"):
        fit(["a", "b", "c"], ["a", "b"])
    with pytest.raises(ValueError, match=r"3 outputs .* needs 1\.$"):
        fit(["a", "b", "c"], None, eval_only=True)
    assert fit(["a", "b", "c"], ["a", "b"], ignore_mismatched_sizes=True)[0].num_labels == 2


def test_columns_and_labels_are_saved_and_used_again(tmp_path, capsys):
    import run_glue
    from tiny_bert import arguments, reset_accelerator, sentences, write_checkpoint

    rows = [
        {"author": "a friend", "remark": row["sentence"], "verdict": row["label"], "label": "7 of 9"}
        for row in sentences()
    ]
    files = {f"{name}_file": write_rows(tmp_path / f"{name}.csv", rows) for name in ("train", "validation")}
    columns = {"text_column_names": "remark,author", "label_column_name": "verdict"}
    options = {**files, **columns, "model_name_or_path": write_checkpoint(tmp_path / "model"), "max_train_steps": 2}
    trained = run_glue.main(arguments(**options, max_length=12, output_dir=tmp_path / "output"))
    config = json.loads((tmp_path / "output/config.json").read_text())
    assert config["text_columns"] == ["remark", "author"] and config["label_column"] == "verdict"
    reset_accelerator()
    words = arguments(
        model_name_or_path=tmp_path / "output", validation_file=files["validation_file"], eval_only=True,
        max_length=12, output_dir=tmp_path / "evaluated",
    )  # fmt: skip
    assert run_glue.main(words)["eval_accuracy"] == trained["eval_accuracy"]
