# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The data and the recipe of `make translation`."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from tiny_t5 import TINY_T5, TRANSLATION


# By its path, since glue/ has a module of the same name.
specification = importlib.util.spec_from_file_location("translation_prepare_data", TRANSLATION / "prepare_data.py")
prepare_data = importlib.util.module_from_spec(specification)
specification.loader.exec_module(prepare_data)


def test_no_page_and_no_sentence_is_on_two_sides():
    rows = prepare_data.read_help()
    splits = prepare_data.split_by_page(rows)
    pages = {split: {row["page"] for row in part} for split, part in splits.items()}
    assert not pages["train"] & pages["validation"] and not (pages["train"] | pages["validation"]) & pages["test"]
    assert {split: len(part) for split, part in splits.items()} == {"train": 29090, "validation": 1107, "test": 2180}
    for language in ("en", "de"):
        texts = {split: {row["translation"][language] for row in part} for split, part in splits.items()}
        assert not texts["train"] & (texts["validation"] | texts["test"])
    # Neither the order of the file nor what else it holds moves a page.
    assert all(
        {row["page"] for row in part} <= pages[split] for split, part in prepare_data.split_by_page(rows[::-7]).items()
    )


@pytest.mark.slow
def test_the_recipe_ends_with_a_comparison(tmp_path):
    model = ",".join(f"{name}={value}" for name, value in TINY_T5.items())
    options = [
        "--max_train_samples",
        "64",
        "--max_predict_samples",
        "23",
        "--max_eval_samples",
        "5",
        "--num_beams",
        "2",
    ]
    run = subprocess.run(
        [
            *(sys.executable, str(TRANSLATION / "translation_offline.py"), "--config_overrides", model, *options),
            *(
                "--max_target_length",
                "12",
                "--data_dir",
                str(tmp_path / "data"),
                "--output_dir",
                str(tmp_path / "output"),
            ),
        ],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "output/all_results.json").read_text())
    assert "23 held-out sentences" in run.stdout and results["bleu_signature"] in run.stdout
    figures = {
        line.split()[0]: line.split()[-2:]
        for line in run.stdout.splitlines()
        if line.startswith("  ") and line.strip()
    }
    assert figures["model"] == [f"{results['test_bleu']:.1f}", f"{results['test_chrf']:.1f}"]
    assert float(figures["copied"][0]) > 0
    predictions = (tmp_path / "output/predictions.jsonl").read_text().splitlines()
    first = json.loads(predictions[0])
    assert len(predictions) == 23 and run.stdout.count("\ntranslation ") == run.stdout.count("\nsource ") == 8
    assert f"source      {first['source']}\nreference   {first['reference']}\n" in run.stdout
