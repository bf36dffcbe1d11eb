# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/time_series.py: its table and its picture, and that all methods see the same series."""

import argparse

import numpy as np
import pytest
from PIL import Image


pytest.importorskip("aeon")

from series_data import dataset_files, load_files

import time_series as benchmark


def test_the_table_has_a_dash_where_a_method_is_missing():
    scores = {"A": {method: [0.5, 0.7, 0.6] for method in benchmark.METHODS}, "B": {benchmark.ROCKET: [1.0, 2.0, 3.0]}}
    lines = benchmark.table(scores, {"A": "accuracy", "B": "rmse"}).splitlines()
    assert lines[2] == "| A | accuracy |" + " 0.600 ± 0.100 |" * 6
    assert lines[3] == "| B | rmse | - | - | - | - | 2.000 ± 1.000 | - |"


def test_ranks_are_of_complete_data_sets_and_a_lower_error_is_better(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    metrics = {f"set {index}": ("accuracy", "rmse")[index % 2] for index in range(8)}
    scores = {name: {method: [generator.random()] for method in benchmark.METHODS} for name in metrics}
    del scores["set 7"][benchmark.PATCHTST]
    seen = []
    draw = benchmark.plot_critical_difference
    monkeypatch.setattr(
        benchmark, "plot_critical_difference", lambda values, *a, **k: seen.append(values) or draw(values, *a, **k)
    )
    assert benchmark.draw_critical_differences(tmp_path / "ranks.png", scores, metrics) == 7
    assert seen[0].shape == (7, 6) and (seen[0][::2] > 0).all() and (seen[0][1::2] < 0).all()
    picture = np.asarray(Image.open(tmp_path / "ranks.png").convert("RGB"))
    assert min(picture.shape[:2]) > 150 and picture.std() > 10
    assert benchmark.draw_critical_differences(tmp_path / "none.png", {"set 7": scores["set 7"]}, metrics) == 0


@pytest.mark.parametrize("method", [benchmark.ROCKET, benchmark.NEIGHBOUR])
@pytest.mark.slow_but(benchmark.NEIGHBOUR)
def test_series_of_unequal_length_fit_all_but_patchtst(method):
    data = load_files(dataset_files("PickupGestureWiimoteZ"))
    assert not benchmark.fits(data, benchmark.PATCHTST) and benchmark.fits(data, method)
    run = benchmark.Run("", 1, data.splits["train"].sample(30), None, data.splits["test"].sample(6))
    scores = benchmark.fit_aeon(argparse.Namespace(max_steps=16), data, run, method)
    assert 0 <= scores["test_accuracy"] <= 1
