# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The recipe of `make pretrain`."""

import csv
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny_language  # noqa: F401  puts language_modeling/ on the path
import verses
from tiny_bert import write_checkpoint
from transformers import AutoTokenizer


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pretrain_offline():
    import pretrain_offline

    return pretrain_offline


def test_what_is_held_out_is_no_part_of_what_is_trained_on(pretrain_offline):
    for part in (pretrain_offline.help_pages, pretrain_offline.verses):
        train, held_out, test = (part(split) for split in ("train", "validation", "test"))
        assert len(train) > len(held_out) > 50
        assert not set(train) & {*held_out, *test}
    # Nor any of the verses that the pairs are tested on, in either wording.
    train = "\n".join(pretrain_offline.verses("train"))
    books = verses.kinds_of_books("test")
    tested = [verse for verse in verses.read_verses() if verse.book in books and len(verse.web) > 80]
    assert len(tested) > 500 and sum(verse.web in train for verse in tested) <= 2  # a few verses stand in two books


def test_the_unigram_loss_is_that_of_counted_tokens(pretrain_offline, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path / "vanilla"))
    texts = {"train": ["a small film", "a small heart"], "held_out": ["a film", "unseen"]}
    for name, rows in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    counts = Counter(piece for row in texts["train"] for piece in tokenizer.tokenize(row))
    held_out = [piece for row in texts["held_out"] for piece in tokenizer.tokenize(row)]
    shares = [(counts[piece] + 1) / (sum(counts.values()) + len(tokenizer)) for piece in held_out]
    expected = -sum(map(math.log, shares)) / len(shares)
    assert pretrain_offline.unigram_loss(tokenizer, tmp_path) == pytest.approx(expected)


def test_the_report_has_the_steps_that_both_models_have(pretrain_offline):
    losses = {"vanilla BERT": {10: 5.0, 20: 4.0}, "EA-BERT": {10: 5.5, 20: 3.25}}
    text = pretrain_offline.report(losses, 6.5, {"majority class": {"film_sentiment": 0.5, "verse_pairs": 0.25}})
    lines = [line.split() for line in text.splitlines()]
    assert ["20", "4.000", "3.250"] in lines and ["unigram", "model", "6.500", "6.500"] in lines
    assert ["majority", "class", "0.500", "0.250"] in lines


@pytest.mark.slow
def test_the_recipe_runs_from_text_to_fine_tuned_models(pretrain_offline, tmp_path):
    for task, columns in pretrain_offline.TASKS.items():
        (tmp_path / "data" / task).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            with (tmp_path / "data" / task / f"{split}.csv").open("w", newline="") as file:
                rows = [
                    [*(f"{'good' if i % 2 else 'bad'} film {i}" for _ in columns), f"kind{i % 2}"] for i in range(8)
                ]
                csv.writer(file).writerows([[*columns, "label"], *rows])
    overrides = "hidden_size=24,num_hidden_layers=2,num_attention_heads=2,intermediate_size=24"
    command = [
        sys.executable,
        *(str(ROOT / "language_modeling/pretrain_offline.py"), "--data_dir", str(tmp_path / "data")),
        *("--output_dir", str(tmp_path / "output"), "--max_train_steps", "2", "--eval_steps", "1"),
        *("--max_eval_samples", "5", "--config_overrides", overrides),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Held-out loss" in result.stdout and "\n  EA-BERT   " in result.stdout
    for name in (
        "held_out_loss.png",
        "ea-bert/film_sentiment/model.safetensors",
        "vanilla-bert/verse_pairs/config.json",
    ):
        assert (tmp_path / "output" / name).exists()
