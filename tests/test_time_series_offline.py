# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `make time-series` runs: its table, its picture, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import time_series_offline
from PIL import Image
from tiny_bert import arguments


pytest.importorskip("aeon")
pytest.importorskip("matplotlib")
SCRIPTS = Path(__file__).resolve().parents[1] / "time_series"


pytestmark = pytest.mark.usefixtures("isolated", "threads_kept")


def test_a_run_leaves_a_table_and_a_picture(tmp_path, capsys):
    options = {"num_splits": 1, "num_train_epochs": 2, "config_overrides": "d_model=16,num_hidden_layers=1,ffn_dim=16,"
               "num_attention_heads=2,attention_value_ratio=0.5"}  # fmt: skip
    time_series_offline.main(arguments(output_dir=tmp_path, **options))
    printed = capsys.readouterr().out
    rows = [line.rsplit(maxsplit=1) for line in printed.splitlines() if line.startswith("  ")][1:]
    scores = {name.strip(): float(value) for name, value in rows}
    assert scores["Rocket"] == 96.2 and scores["Flowformer"] == 98.9 and len(scores) == 10
    assert "EA-DC-Transformer, chosen by validation, 1 runs" in scores
    assert any("all training series" in name for name in scores)
    assert str(tmp_path / "whole-seed-1") in printed
    picture = np.asarray(Image.open(tmp_path / "attention_maps.png").convert("RGB"))
    assert min(picture.shape[:2]) > 400 and picture.std() > 10


def test_a_regression_is_refused(capsys):
    with pytest.raises(SystemExit):
        time_series_offline.main(["--dataset_name", "Covid3Month"])
    assert "--dataset_name Covid3Month is no classification; use run_time_series.py" in capsys.readouterr().err
