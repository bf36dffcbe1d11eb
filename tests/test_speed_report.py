# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/attention.py: how its measurements are summed up; benchmarks/speed_report.py: the page written from them."""

import math
from pathlib import Path

import attention
import pytest
import speed_report


ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9, 20, 101])
def test_interval_of_the_median_leaves_out_as_much_as_its_confidence_allows(count):
    low, high = attention.median_interval([float(value) for value in reversed(range(count))])
    assert (low, high) == (low, count - 1 - low)

    def outside(skipped: int) -> float:
        return 2 * sum(math.comb(count, number) for number in range(skipped + 1)) / 2**count

    assert low == 0 or outside(int(low)) <= 0.05
    assert outside(int(low) + 1) > 0.05


def test_ratios_are_of_the_same_round():
    """So a round in which the machine was slow changes none of them."""
    base = {"seconds": [1.0, 10.0, 2.0], "cpu_seconds": [1.0, 5.0, 1.0]}
    row = attention.summarize({"seconds": [2.0, 20.0, 4.0], "cpu_seconds": [3.0, 15.0, 3.0]}, base)
    assert row["seconds_to_base"] == 2 and row["seconds_to_base_interval"] == (2, 2)
    assert row["cpu_seconds_to_base"] == 3 and row["rounds"] == 3


def test_page_on_speed_is_the_one_that_its_figures_give():
    assert speed_report.page(speed_report.RESULTS) == (ROOT / "docs/speed.md").read_text(encoding="utf-8")


def test_page_on_speed_needs_figures(tmp_path):
    with pytest.raises(ValueError, match="has none of"):
        speed_report.page(tmp_path)
    (tmp_path / "attention.json").write_text('{"rows": [], "environment": {}}')
    with pytest.raises(ValueError, match="no rows"):
        speed_report.page(tmp_path)


def test_the_peak_with_a_map_of_inference_is_that_of_a_map_beside_sdpa():
    row = {"model": "base", "shape": "2x512", "mode": "inference", "implementation": "sdpa", "peak_bytes": 12 * 2**21}
    # A map has 2 x 12 x 512 x 512 numbers, in float32 of 4 bytes.
    assert "base 2x512 2.00." in speed_report.peak_with_a_map([row], "float32")
    assert "base 2x512 1.50." in speed_report.peak_with_a_map([row], "bfloat16")
    assert speed_report.peak_with_a_map([row | {"mode": "training"}], "float32") == ""
