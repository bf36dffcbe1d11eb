# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The table that the comparisons print."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from comparison import VANILLA, comparison_table, create_parser, own_runs


def test_differences_are_taken_between_runs_of_the_same_seed():
    scores = {"evolving": {1: 0.9, 2: 0.8, 3: 0.7}, VANILLA: {3: 0.6, 1: 0.8}}
    table = comparison_table(("task",), list(scores), {("mrpc",): scores}, digits=2)
    assert table.splitlines()[-1] == "| mrpc | 0.80 ± 0.14 | 0.70 ± 0.14 | +0.10 ± 0.00 | 2 |"


def test_a_row_with_one_common_seed_is_left_out():
    scores = {"evolving": {1: 0.9, 2: 0.8}, VANILLA: {2: 0.8, 3: 0.7}}
    assert len(comparison_table(("task",), list(scores), {("mrpc",): scores}).splitlines()) == 2


def test_shards_share_all_runs():
    parser = create_parser("A comparison.", seeds=[1])
    runs = [(number,) for number in range(7)]
    shards = [own_runs(parser.parse_args(["--shard", str(index), "3"]), runs) for index in range(3)]
    assert sorted(run for shard in shards for run in shard) == runs
    assert own_runs(parser.parse_args(["--report_only"]), runs) == []
