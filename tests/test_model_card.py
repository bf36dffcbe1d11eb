# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of a run, without a run."""

import argparse
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import BertTokenizer

import ea_hf
from ea_hf.training import model_card
from ea_hf.training.model_card import (
    ScoredData,
    language_widget,
    save_model_card,
    text_widget,
    translation_widget,
    without_directories,
)


CITATION = Path(__file__).parents[1] / "CITATION.cff"


def write(directory: Path, monkeypatch, metrics=None, evaluated_on=(), hub_model_id=None, **options) -> ModelCard:
    words = ["/home/me/glue/run_glue.py", "--train_file", "/home/me/data/my train.csv", "--logging_dir=/home/me/logs"]
    monkeypatch.setattr(model_card.sys, "argv", words)
    config = ea_hf.EABertConfig(ea_conv_weight=0.25, architectures=["EABertForSequenceClassification"])
    args = argparse.Namespace(
        hub_model_id=hub_model_id, hub_token="hf_secret", seed=7, learning_rate=3e-4, output_dir=directory,
        train_file="/home/me/data/my train.csv", per_device_train_batch_size=8, num_train_epochs=3, max_train_steps=9,
        weight_decay=0.1, lr_scheduler_type="linear", gradient_accumulation_steps=2, tracker_args={"dir": ["/home/me/logs"]}, files="/home/me/a.csv,/home/me/b.csv",
    )  # fmt: skip
    settings = {
        "auto_class": "AutoModelForSequenceClassification", "task_type": "text-classification", "task_name": "films",
        "dataset_name": "train.csv", "base_model": None,
    }  # fmt: skip
    directory.mkdir(exist_ok=True)
    metrics = {"accuracy": 0.5} if metrics is None else metrics
    save_model_card(directory, args, config, metrics=metrics, evaluated_on=evaluated_on, **settings | options)
    return ModelCard.load(directory / "README.md")


def test_each_score_names_its_split_data_and_size(tmp_path, monkeypatch):
    scored = [
        ScoredData("validation_matched", "nyu-mll/glue", 9815),
        ScoredData("validation_mismatched", "nyu-mll/glue", 9832, suffix="_mismatched"),
        ScoredData("test", "test.csv", 12, "pairs", prefix="test_"),
    ]
    metrics = {"accuracy": 0.5, "accuracy_mismatched": 0.25, "test_accuracy": 0.75, "signature": "a|b"}
    card = write(tmp_path, monkeypatch, metrics, scored)
    for line in (
        "| accuracy | 0.5000 | validation_matched | nyu-mll/glue | 9815 examples |",
        "| accuracy_mismatched | 0.2500 | validation_mismatched | nyu-mll/glue | 9832 examples |",
        "| test_accuracy | 0.7500 | test | test.csv | 12 pairs |",
        "| signature | a\\|b |",
    ):
        assert line in card.text
    found = {(r.metric_type, r.dataset_split, r.metric_value, r.dataset_args["size"]) for r in card.data.eval_results}
    assert found == {
        ("accuracy", "validation_matched", 0.5, 9815),
        ("accuracy_mismatched", "validation_mismatched", 0.25, 9832),
        ("accuracy", "test", 0.75, 12),
    }
    assert "seed 7" in card.text


def test_the_card_names_no_directory_of_this_machine(tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    scored = [ScoredData("validation", str(tmp_path / "data.csv"), 3)]
    options = {"dataset_name": str(tmp_path), "hub_dataset": str(tmp_path), "task_name": str(tmp_path)}
    card = write(tmp_path / "mine", monkeypatch, None, scored, base_model=str(base), **options)
    text = str(card)
    assert "/home/me" not in text and str(tmp_path) not in text and str(tmp_path.parent) not in text
    assert "fine-tuned from `base`" in text and "run_glue.py --train_file 'my train.csv' --logging_dir=logs" in text
    assert "hf_secret" not in text and card.data.get("datasets") is None and card.data.get("base_model") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a/b/c d.csv", "c d.csv"),
        ("--json={'x': '/a/b/c'}", "--json={'x': 'c'}"),
        ("--train_file=/a/b=c/d.csv", "--train_file=d.csv"),
        ("/a/b.csv,/c/d.csv", "b.csv,d.csv"),
        ("file:///a/b.csv", "b.csv"),
        ("C:\\Users\\me\\b.csv", "b.csv"),
        ("output/mine", "output/mine"),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("https://example.org/a/b.csv", "https://example.org/a/b.csv"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("yes and/or no", "yes and/or no"),
        ([Path("/a/b"), 3], ["b", 3]),
    ],
)
def test_only_directories_of_this_machine_are_left_out(value, expected):
    assert without_directories(value) == expected


def test_eight_settings_are_shown_and_the_rest_folded(tmp_path, monkeypatch):
    card = write(tmp_path, monkeypatch)
    shown, folded = card.text.split("## Settings")[1].split("<details>")
    assert len(re.findall(r"^\| \w+ \| \S+ \|$", shown, re.MULTILINE)) == 1 + 8
    assert "| ea_conv_weight | 0.2500 |" in shown and "| train_file | my train.csv |" in folded.split("</details>")[0]


def test_versions_and_limits_are_told_and_both_papers_are_cited_as_in_citation_cff(tmp_path, monkeypatch):
    card = write(tmp_path, monkeypatch)
    assert re.search(r"Versions: Python 3\.\S+, ea_hf \S+, transformers \S+, torch ", card.text)
    assert "## Limits" in card.text
    (bibtex,) = re.findall(r"```bibtex\n(.*?)```", card.text, re.DOTALL)
    bibtex = " ".join(bibtex.split())
    for paper in yaml.safe_load(CITATION.read_text())["references"]:
        authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        for field in (paper["title"], authors, str(paper["year"]), paper["url"]):
            assert f"{{{field}}}" in bibtex
        assert paper.get("collection-title") or paper["journal"] in bibtex


def test_the_head_holds_what_the_hub_takes_and_no_more(tmp_path, monkeypatch):
    card = write(
        tmp_path, monkeypatch, {"accuracy": 0.5, "perplexity": float("inf")}, base_model="nobody/nothing", license="mit",
        hub_dataset="nyu-mll/glue", language=["en_XX", "eng_Latn", "English"], widget={"text": "Hello."},
    )  # fmt: skip
    head = yaml.safe_load(str(card).split("---\n")[1])
    assert head["base_model"] == "nobody/nothing" and head["datasets"] == ["nyu-mll/glue"]
    assert head["language"] == ["en", "eng"] and head["widget"] == [{"text": "Hello."}]
    assert head["pipeline_tag"] == "text-classification" and head["license"] == "mit"
    (result,) = head["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["accuracy"]
    assert result["dataset"]["type"] == "train.csv"
    head = write(tmp_path, monkeypatch, task_type="time-series-regression").data
    assert head.pipeline_tag is None and "time-series-regression" in head.tags


def test_the_code_names_the_repository_or_the_folder_beside(tmp_path, monkeypatch):
    card = write(tmp_path / "mine", monkeypatch)
    assert 'from_pretrained("./mine", trust_remote_code=True)' in card.text and model_card.LOCAL_NOTE in card.text
    card = write(tmp_path / "mine", monkeypatch, hub_model_id="me/mine")
    assert 'from_pretrained("me/mine")' in card.text and model_card.LOCAL_NOTE not in card.text


def test_the_examples_of_language_models_and_pairs_have_the_tokenizer_s_own_tokens():
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    tokenizer = BertTokenizer(vocab=words)
    assert language_widget(tokenizer, "fill-mask") == {"text": "Paris is the [MASK] of France."}
    assert language_widget(tokenizer, "text2text-generation") == {"text": "Paris is the <extra_id_0> of France."}
    assert text_widget(tokenizer, 2) == {"text": "The house is small. [SEP] It is not large."}


def test_translators_get_an_example_in_their_language_alone():
    assert translation_widget("en_XX", "to German: ") == {"text": "to German: The house is small."}
    assert translation_widget("xx") is translation_widget("") is None
