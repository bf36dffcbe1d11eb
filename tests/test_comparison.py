# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The table that the comparisons print."""

import argparse

from comparison import VANILLA, comparison_table, create_parser, own_runs

import glue
from ea_hf.training.script import add_evolution_arguments, evolution_overrides


def test_differences_are_taken_between_runs_of_the_same_seed():
    scores = {"evolving": {1: 0.9, 2: 0.8, 3: 0.7}, VANILLA: {3: 0.6, 1: 0.8}}
    table = comparison_table(("task",), list(scores), {("mrpc",): scores}, digits=2)
    assert table.splitlines()[-1] == "| mrpc | 0.80 ± 0.14 | 0.70 ± 0.14 | +0.10 ± 0.00 | 2 |"


def test_a_row_with_one_common_seed_is_left_out():
    scores = {"evolving": {1: 0.9, 2: 0.8}, VANILLA: {2: 0.8, 3: 0.7}}
    assert len(comparison_table(("task",), list(scores), {("mrpc",): scores}).splitlines()) == 2


def test_each_of_several_variants_is_compared_with_the_vanilla_one():
    scores = {"evolving": {1: 0.9, 2: 0.8}, "learned": {1: 0.7, 2: 0.6, 3: 0.1}, VANILLA: {1: 0.8, 2: 0.7}}
    row = comparison_table(("task",), list(scores), {("mrpc",): scores}, digits=1).splitlines()[-1]
    assert row.endswith("| +0.1 ± 0.0 | -0.1 ± 0.0 | 2 |")


def test_shards_share_all_runs():
    parser = create_parser("A comparison.", seeds=[1])
    runs = [(number,) for number in range(7)]
    shards = [own_runs(parser.parse_args(["--shard", str(index), "3"]), runs) for index in range(3)]
    assert sorted(run for shard in shards for run in shard) == runs
    assert own_runs(parser.parse_args(["--report_only"]), runs) == []


def test_glue_has_a_column_of_learned_weights_which_the_script_takes(tmp_path, monkeypatch):
    asked = {}

    def fine_tune(data_dir, task, output_dir, extra):
        output_dir.mkdir(parents=True)
        (output_dir / "model.safetensors").touch()
        asked[output_dir.name] = extra
        return {}, {"accuracy": 0.5}

    scalars = {"self/layer_1/convolution": 0.0, "self/layer_2/convolution": 0.5, "self/layer_2/conv_gate_abs": 0.1}
    monkeypatch.setattr(glue.glue_offline, "fine_tune", fine_tune)
    monkeypatch.setattr(
        glue, "summarize", lambda *_: {**scalars, "self/layer_1/residual": 0, "self/layer_1/distance": 0}
    )
    args = argparse.Namespace(output_dir=tmp_path, data_dir=tmp_path, max_train_samples=8, seeds=[1])
    for variant in glue.VARIANTS:
        glue.run(args, "verse_pairs", variant, 1)
        assert glue.scores(args, "verse_pairs", variant) == {1: 0.5}
    assert glue.layer_means([scalars, scalars], "convolution") == "0.2500 ± 0.0000"
    assert glue.layer_means([scalars, scalars], "residual_gate_abs") == "-"
    assert list(asked) == ["verse_pairs-0.1-0.1-1", "verse_pairs-learned-0-0-1", "verse_pairs-0-0-1"]
    parser = argparse.ArgumentParser()
    add_evolution_arguments(parser)
    parsed = parser.parse_known_args(asked["verse_pairs-learned-0-0-1"])[0]
    assert evolution_overrides(parsed)["ea_mixing"] == "learned"
    assert "--ea_learning_rate" in asked["verse_pairs-learned-0-0-1"]
