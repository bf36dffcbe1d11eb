# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`ea-hf compare`: what it finds and what it does not make up, on stand-ins of scripts that end at once."""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_bert

from ea_hf import PRESETS, compare
from ea_hf.compare_report import Results, choose_metric, read_json
from ea_hf.compare_report import compare as compare_results
from ea_hf.training.command_line import RunError
from ea_hf.training.script import add_evolution_arguments, evolution_overrides


# A script whose accuracy is that of its seed, with an effect of the convolution's weight that is told it.
STUB = """
import argparse, json, pathlib, random, sys, time
parser = argparse.ArgumentParser()
for name in ("seed", "output_dir", "ea_conv_weight", "ea_residual_weight", "ea_preset", "ea_mixing"):
    parser.add_argument(f"--{name}", default=0)
for name in ("effect", "fails_with_seed", "hangs_with_seed"):
    parser.add_argument(f"--{name}", type=float, default=0)
parser.add_argument("--overwrite_output_dir", action="store_true")
args = parser.parse_args()
seed, conv, out = int(args.seed), float(args.ea_conv_weight), pathlib.Path(args.output_dir)
if out.exists() and not args.overwrite_output_dir:
    sys.exit("it holds a run")
out.mkdir(exist_ok=True)
with open(out.parent / "calls", "a") as file:
    print(out.name, file=file)
if seed == args.fails_with_seed and conv:
    sys.exit("the disk is full")
while seed == args.hangs_with_seed:
    time.sleep(0.1)
noise = random.Random(f"{seed} {conv} {args.ea_mixing} {args.ea_preset}").gauss(0, 0.002)
accuracy = 0.8 + seed / 100 + noise + args.effect * 10 * conv
results = {"eval_accuracy": accuracy, "eval_loss": 1 - accuracy, "train_samples_per_second": 50 if conv else 100}
(out / "all_results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return [sys.executable, "-S", str(path)]


def run(directory: Path, stub: list[str], *words: str, seeds: str = "1 2 3", variants: str = "evolving", options=()):
    """Runs the command in this process, and returns the numbers that it left."""
    own = ["--output_dir", str(directory), "--seeds", *seeds.split(), "--variants", *variants.split(), *options]
    compare.main([*own, "--", *stub, *words])
    return read_json(directory / "results.json")


def calls(directory: Path) -> list[str]:
    return (directory / "calls").read_text().split()


def simulated(values: dict[str, np.ndarray], lower_is_better: bool = False) -> Results:
    by_seed = {name: dict(enumerate(map(float, of))) for name, of in values.items()}
    return Results("eval_accuracy", lower_is_better, by_seed, {name: {} for name in values}, [])


def test_a_planted_effect_is_found_with_its_size_and_its_price(tmp_path, stub, capsys):
    found = run(tmp_path / "out", stub, "--effect", "0.05", seeds="1 2 3 4 5", variants="evolving learned")
    evolving, learned = (found["comparisons"][name] for name in ("evolving", "learned"))
    assert evolving["found"] == "gain" and evolving["cost"] == 2
    assert evolving["difference"]["mean"] == pytest.approx(0.05, abs=0.004)
    assert learned["found"] == "no difference" and "would have seen" not in learned["verdict"]
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.md").read_text() in printed
    assert "- evolving: gain of +0.0" in printed and "an effect of 0.0" in printed and "2.00 times" in printed
    assert "eval_loss" in printed.split("Compared by eval_accuracy")[1]


def test_an_effect_the_other_way_is_a_loss_and_of_a_loss_a_gain(tmp_path, stub):
    found = run(tmp_path / "out", stub, "--effect", "-0.05")
    assert found["comparisons"]["evolving"]["found"] == "loss"
    again = run(tmp_path / "out", stub, "--effect", "-0.05", options=("--metric", "eval_loss"))
    assert again["lower_is_better"] and again["comparisons"]["evolving"]["found"] == "loss"
    told = run(tmp_path / "out", stub, "--effect", "-0.05", options=("--metric", "eval_accuracy", "--lower_is_better"))
    assert told["comparisons"]["evolving"]["found"] == "gain"
    assert len(calls(tmp_path / "out")) == 6  # another metric runs nothing again


def test_without_an_effect_at_most_one_in_twenty_comparisons_sounds_an_alarm():
    """Test sets of 500 examples, whose labels have nothing to do with the variants."""
    generator, alarms, tries = np.random.default_rng(0), 0, 2000
    for _ in range(tries):
        level = generator.normal(0.8, 0.02, size=5)
        values = {name: generator.binomial(500, level) / 500 for name in ("vanilla", "evolving", "learned")}
        alarms += any(one.found in ("gain", "loss") for one in compare_results(simulated(values)).values())
    assert alarms <= 0.05 * tries


def test_a_coarse_metric_sounds_no_alarm_because_its_differences_happen_to_be_equal():
    generator, alarms, tries = np.random.default_rng(1), 0, 2000
    for _ in range(tries):
        values = {name: generator.binomial(20, 0.9, size=3) / 20 for name in ("vanilla", "evolving")}
        alarms += compare_results(simulated(values))["evolving"].found in ("gain", "loss")
    assert alarms <= 0.05 * tries
    same = simulated({"vanilla": np.array([0.5, 0.6, 0.7]), "evolving": np.array([0.55, 0.65, 0.75])})
    one = compare_results(same)["evolving"]
    assert one.found == "no verdict" and "by the same +0.05" in one.verdict(2)
    equal = compare_results(simulated({"vanilla": np.ones(3), "evolving": np.ones(3)}))["evolving"]
    assert equal.found == "no verdict" and "equal vanilla's" in equal.verdict(2)


def test_eighty_of_a_hundred_comparisons_find_the_effect_that_is_said_to_be_visible():
    generator = np.random.default_rng(2)
    vanilla = generator.normal(0.8, 0.02, size=(500, 5))
    noise = generator.normal(0, 0.01, size=(500, 5))
    visible = np.median([compare_results(simulated({"vanilla": v, "x": v + n}))["x"].difference.visible
                         for v, n in zip(vanilla, noise, strict=True)])  # fmt: skip
    found = [compare_results(simulated({"vanilla": v, "x": v + n + visible}))["x"].found == "gain"
             for v, n in zip(vanilla, noise, strict=True)]  # fmt: skip
    assert 0.65 < np.mean(found) < 0.9


def test_what_cannot_be_tested_helps_no_other_variant():
    vanilla, noise = np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.01, 0.02, 0.03, 0.01])
    alone = compare_results(simulated({"vanilla": vanilla, "x": vanilla + noise}))["x"].p
    beside = compare_results(simulated({"vanilla": vanilla, "x": vanilla + noise, "same": vanilla + 0.1}))
    assert beside["same"].p is None and beside["x"].p == pytest.approx(2 * alone)


def test_too_few_seeds_give_no_verdict(tmp_path, stub):
    for seeds in ("1", "1 2"):
        one = run(tmp_path / "out", stub, "--effect", "0.05", seeds=seeds)["comparisons"]["evolving"]
        assert one["found"] == "no verdict" and one["p"] is None and "at least 3" in one["verdict"]


def test_a_run_without_a_number_gives_no_verdict_instead_of_being_left_out():
    values = {"vanilla": np.arange(4.0), "x": np.array([1.0, 2.1, np.nan, 4.2])}
    one = compare_results(simulated(values))["x"]
    assert one.found == "no verdict" and "seed 2" in one.verdict(2) and "diverge" in one.verdict(2)


def test_runs_go_seed_by_seed_and_finished_ones_are_not_run_again(tmp_path, stub):
    directory = tmp_path / "out"
    run(directory, stub, seeds="1 2")
    assert calls(directory) == ["vanilla-1", "evolving-1", "vanilla-2", "evolving-2"]
    (directory / "evolving-1" / "all_results.json").unlink()  # as a kill within the run leaves it
    run(directory, stub, seeds="1 2 3", variants="evolving learned")
    assert calls(directory)[4:] == ["evolving-1", "learned-1", "learned-2", "vanilla-3", "evolving-3", "learned-3"]


def test_a_comparison_goes_on_where_it_was_killed_and_leaves_no_run_behind(tmp_path, stub):
    directory = tmp_path / "out"
    own = [sys.executable, "-m", "ea_hf.compare", "--output_dir", str(directory), "--variants", "evolving"]
    process = subprocess.Popen([*own, "--seeds", "1", "2", "--", *stub, "--hangs_with_seed", "2"])
    deadline = time.monotonic() + 120
    while not (directory / "vanilla-2").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert subprocess.run(["pgrep", "-f", str(directory / "vanilla-2")]).returncode == 1
    with pytest.raises(ValueError, match="hangs_with_seed"):  # its command is not the same
        run(directory, stub, seeds="1 2")
    command = json.loads((directory / "command.json").read_text())
    command["command"] = stub
    (directory / "command.json").write_text(json.dumps(command))
    run(directory, stub, seeds="1 2")
    assert calls(directory) == ["vanilla-1", "evolving-1", "vanilla-2", "vanilla-2", "evolving-2"]


def test_another_command_in_the_same_directory_is_refused_with_the_difference(tmp_path, stub, monkeypatch):
    directory = tmp_path / "out"
    run(directory, stub, "--effect", "0.05", seeds="1")
    with pytest.raises(ValueError, match=r"it had '0.05' where there is '0.06' now.*another --output_dir"):
        run(directory, stub, "--effect", "0.06", seeds="1")
    half = "half=--ea_conv_weight 0.{}"
    for weight in (5, 5):
        compare.main(
            ["--output_dir", str(directory), "--variants", half.format(weight), "--", *stub, "--effect", "0.05"]
        )
    with pytest.raises(ValueError, match=r"half was '--ea_conv_weight 0.5', now it is '--ea_conv_weight 0.6'"):
        compare.main(["--output_dir", str(directory), "--variants", half.format(6), "--", *stub, "--effect", "0.05"])
    # A variant that was tried before still counts, though it is not named again.
    assert read_json(directory / "results.json")["comparisons"].keys() == {"evolving", "half"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="was run in"):
        run(directory, stub, "--effect", "0.05", seeds="1")


def test_a_failing_run_is_told_with_its_log_and_the_others_go_on(tmp_path, stub, capsys):
    directory = tmp_path / "out"
    with pytest.raises(RunError, match=r"1 runs failed.*evolving, seed 2, ended with status 1: see .*evolving-2.log"):
        run(directory, stub, "--fails_with_seed", "2")
    assert (
        "the disk is full" in capsys.readouterr().err
        and "the disk is full" in (directory / "evolving-2.log").read_text()
    )
    assert len(calls(directory)) == 6
    assert "no verdict from 2 seeds" in read_json(directory / "results.json")["comparisons"]["evolving"]["verdict"]
    with pytest.raises(RunError, match=r"wrote no all_results.json"):
        compare.main(["--output_dir", str(tmp_path / "two"), "--", sys.executable, "-c", "print()"])
    assert not (tmp_path / "two" / "results.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_dir", "out"], 'behind "--"'),
        (["--output_dir", "out", "--", "no_such_program"], "'no_such_program' is no program"),
        (["--output_dir", "out", "--", "python", "x.py", "--seed", "1"], "leave --seed out"),
        (["--output_dir", "out", "--", "python", "x.py", "--output=x"], "leave --output out"),
        (["--output_dir", "out", "--", "python", "x.py", "--ea_conv_weight=1"], "leave --ea_conv_weight out"),
        (["--output_dir", "out", "--seeds", "1", "1", "--", "python"], "--seeds are 1 1"),
        (["--output_dir", "out", "--seeds", "-1", "--", "python"], "--seeds has -1"),
        (["--output_dir", "out", "--variants", "fast", "--", "python"], "'fast' is none of vanilla, evolving"),
        (["--output_dir", "out", "--variants", "vanilla", "--", "python"], "nothing beside vanilla"),
        (["--output_dir", "out", "--variants", "learned=--x 1", "--", "python"], "'learned' cannot be"),
        (["--output_dir", "out", "--variants", "own=0.5", "--", "python"], "needs arguments"),
        (["--output_dir", "out", "--variants", "own=--seed 5", "--", "python"], "needs arguments"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        compare.main(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1 and not Path("out").exists()


def test_the_metric_is_of_test_data_and_no_loss_where_there_is_a_choice():
    results = {"eval_accuracy": 0.5, "eval_loss": 1.0, "test_rmse": 0.1, "test_rmse_std": 0.1, "train_loss": 1.0}
    assert choose_metric(results) == ("test_rmse", ["eval_accuracy", "eval_loss"])
    assert choose_metric({"eval_loss": 1.0, "eval_runtime": 2.0, "eval_perplexity": 3.0})[0] == "eval_loss"
    assert choose_metric({"eval_loss": 1.0, "eval_gen_len": 9.0, "eval_bleu": 3.0})[0] == "eval_bleu"
    with pytest.raises(ValueError, match=r"has no metric.*train_loss"):
        choose_metric({"train_loss": 1.0})


@pytest.mark.parametrize(
    ("metric", "lower"), [("eval_loss", True), ("test_rmse", True), ("eval_perplexity", True), ("eval_f1", False)]
)
def test_the_name_of_a_metric_says_what_is_better(tmp_path, metric, lower):
    for name, value in ("vanilla", 1.0), ("evolving", 2.0):
        (tmp_path / f"{name}-1").mkdir()
        (tmp_path / f"{name}-1" / "all_results.json").write_text(json.dumps({metric: value, "eval_beauty": 3.0}))
    results = Results.read(tmp_path, ["vanilla", "evolving"], [1], metric, None)
    assert results.lower_is_better is lower and results.gains("evolving") == {1: -1.0 if lower else 1.0}
    assert not results.notes
    (note,) = Results.read(tmp_path, ["vanilla", "evolving"], [1], "eval_beauty", None).notes
    assert "--lower_is_better" in note
    with pytest.raises(ValueError, match=r"has no number 'eval_size'.*eval_beauty"):
        Results.read(tmp_path, ["vanilla", "evolving"], [1], "eval_size", None)


def test_two_comparisons_do_not_share_a_directory(tmp_path, stub):
    lock = compare.FileLock(tmp_path / ".lock")
    with lock, pytest.raises(ValueError, match="Another comparison"):
        run(tmp_path, stub)


def test_the_scripts_take_the_arguments_of_each_variant():
    parser = argparse.ArgumentParser()
    add_evolution_arguments(parser)
    fields = {
        name: evolution_overrides(parser.parse_args(shlex.split(words))) for name, words in compare.VARIANTS.items()
    }
    assert fields["vanilla"]["ea_residual_weight"] == fields["vanilla"]["ea_conv_weight"] == 0
    assert fields["vanilla"]["ea_mixing"] == "convex" and fields["vanilla"]["ea_post_mixing"] == "none"
    assert fields["learned"]["ea_mixing"] == "learned" and fields["evolving"]["ea_conv_weight"] == 0.1
    assert {*PRESETS, "vanilla"} == fields.keys()


def test_a_metric_that_is_not_there_is_told_after_the_first_run(tmp_path, stub):
    with pytest.raises(ValueError, match="has no number 'eval_size'"):
        run(tmp_path / "out", stub, options=("--metric", "eval_size"))
    assert calls(tmp_path / "out") == ["vanilla-1"]


@pytest.mark.slow
def test_the_real_script_with_two_seeds(tmp_path):
    model = tiny_bert.write_checkpoint(tmp_path / "bert")
    data = [
        tiny_bert.write_rows(tmp_path / f"{split}.csv", tiny_bert.sentences()) for split in ("train", "validation")
    ]
    words = [sys.executable, str(tiny_bert.SCRIPT), "--model_name_or_path", model, "--max_train_steps", "2"]
    words += ["--train_file", data[0], "--validation_file", data[1], "--checkpointing_steps", "no"]
    found = run(tmp_path / "out", words, seeds="1 2")
    one = found["comparisons"]["evolving"]
    assert found["metric"] == "eval_accuracy" and one["cost"] > 0 and one["gains"].keys() == {"1", "2"}
    for name, weight in ("vanilla", 0), ("evolving", 0.1):
        config = json.loads((tmp_path / "out" / f"{name}-2" / "config.json").read_text())
        assert config["ea_residual_weight"] == config["ea_conv_weight"] == weight
