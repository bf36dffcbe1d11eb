# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/variants.py: its statistics, what a kill leaves, its report, and that a run repeats itself."""

import dataclasses
import json
import math
import random
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats


pytest.importorskip("aeon")

import variant_ablation
import variant_report
import variant_results
import variant_statistics
import variant_tasks
import variant_text_tasks
import variants
from variant_ablation import EVOLVING_TAKEN_APART, MULTI_TOKEN_TAKEN_APART
from variant_definitions import ABLATION, HEAD_TO_HEAD, LONG, PARTS, SEARCH, VARIANTS, make_model, parameters
from variant_training import evaluated, rate, train

from ea_hf import paired_statistics


def test_the_paired_interval_and_p_are_those_of_scipy():
    values = np.random.default_rng(0).normal(0.3, 1, size=5)
    found, expected = paired_statistics.paired(values), stats.ttest_1samp(values, 0)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(interval))
    assert paired_statistics.paired([1.0]) is None
    assert paired_statistics.paired([0.0, 0.0]).p == 1 and not paired_statistics.paired([0.0, 0.0]).is_apart


def test_equal_differences_have_the_p_of_a_sign_test():
    for values in ([0.3, 0.1 + 0.2], [-5.0] * 5):
        found = paired_statistics.paired(values)
        assert found.p == pytest.approx(stats.binomtest(len(values), len(values)).pvalue) and found.half_width == 0


def test_the_visible_effect_is_found_in_eighty_of_a_hundred_studies():
    effect = paired_statistics.visible_effect(2.0, 5)
    draws = np.random.default_rng(0).normal(effect, 2.0, size=(20_000, 5))
    assert np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert paired_statistics.power(1.0, 2.0, 10) == pytest.approx(
        stats.nct.sf(stats.t.ppf(0.975, 9), 9, math.sqrt(10) / 2)
        + stats.nct.cdf(-stats.t.ppf(0.975, 9), 9, math.sqrt(10) / 2),
        abs=1e-3,
    )


def test_holm_corrects_step_by_step():
    # 0.01 * 3, then 0.02 * 2, then the largest so far.
    corrected = paired_statistics.holm({"a": 0.02, "b": 0.01, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.04})


def test_the_mean_of_tasks_adds_their_errors_as_welch_does():
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.3, 1, size=5), generator.normal(0.6, 3, size=3)
    found, expected = variant_statistics.mean_of_tasks([one, other]), stats.ttest_ind(one, -other, equal_var=False)
    interval = expected.confidence_interval(0.95)  # of the sum of both means
    assert found.p == pytest.approx(expected.pvalue) and found.seeds == 3
    bounds = (found.mean - found.half_width, found.mean + found.half_width)
    assert bounds == pytest.approx((interval.low / 2, interval.high / 2))
    assert variant_statistics.mean_of_tasks([one]) == paired_statistics.paired(one)
    assert variant_statistics.mean_of_tasks([[1.0, 1.0], [3.0] * 4]).p == 0.5
    assert variant_statistics.mean_of_tasks([]) is None and variant_statistics.mean_of_tasks([one, [1.0]]) is None


def test_means_of_tasks_that_are_alike_are_rarely_told_apart_from_nothing():
    generator = np.random.default_rng(2)
    studies = [[generator.normal(0, scale, size=count) for scale, count in ((1, 3), (4, 5))] for _ in range(2000)]
    assert np.mean([variant_statistics.mean_of_tasks(study).p < 0.05 for study in studies]) <= 0.06


def test_ranks_and_their_critical_difference_are_demsars():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
    ranks, p, critical = variant_statistics.mean_ranks(scores)
    assert ranks.tolist() == pytest.approx([(1 + 1 + 1.5) / 3, (2 + 3 + 1.5) / 3, (3 + 2 + 3) / 3])
    assert p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    # Demšar 2006, table 5: q is 2.343 for three classifiers at 0.05.
    assert critical == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 3)), abs=2e-3)


def test_equal_time_lies_between_vanilla_and_the_longer_run():
    assert variant_statistics.time_matched(2.0, 1.0, 2, 1.0) == 2.0
    assert variant_statistics.time_matched(2.0, 1.0, 2, math.sqrt(2)) == pytest.approx(1.5)
    assert variant_statistics.time_matched(2.0, 1.0, 2, 3.0) == 1.0


def test_many_variants_of_few_seeds_tell_the_noise_together():
    """As least squares with a column for each seed and variant, of which scipy knows the balanced case."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(6, 3)) + np.array([0.0, 5.0, 1.0])
    found = variant_statistics.SeedsAndVariants({str(n): dict(enumerate(row)) for n, row in enumerate(values)})
    difference = found.difference("1", "0")
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    error = math.sqrt((residuals**2).sum() / 10 * 2 / 3)
    assert difference.mean == pytest.approx(values[1].mean() - values[0].mean())
    assert difference.half_width == pytest.approx(stats.t.ppf(0.975, 10) * error)
    assert difference.p == pytest.approx(2 * stats.t.sf(abs(difference.mean) / error, 10))
    # A seed that is hard for all does not matter to a variant that lacks it.
    sets = {"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 4.0}, "c": {0: 5.0}}
    found = variant_statistics.SeedsAndVariants(sets)
    assert found.difference("c", "a").mean == pytest.approx(4.0)
    assert found.difference("c", "none") is None
    assert variant_statistics.SeedsAndVariants({"a": {0: 1.0}, "b": {0: 2.0}}).difference("a", "b") is None


def test_variants_that_are_alike_are_rarely_told_apart():
    generator, false_alarms = np.random.default_rng(1), 0
    for _ in range(200):
        values = {f"{n}": dict(enumerate(row)) for n, row in enumerate(generator.normal(size=(12, 3)))}
        found = variant_statistics.SeedsAndVariants(values)
        p = paired_statistics.holm({name: found.difference(name, "0").p for name in list(values)[1:]})
        false_alarms += min(p.values()) < 0.05
    assert false_alarms <= 20  # 10 expected at most


def made_up_lines(seeds: int = 5) -> list[dict]:
    """ "evolving" is better by about 5, "learned" as good as vanilla; each step costs a tenth more."""
    generator = random.Random(0)
    lines = []
    for name, task in variant_tasks.TASKS.items():
        for seed in range(seeds):
            level = generator.gauss(0, 0.01)
            for variant, effect in (("vanilla", 0), ("evolving", 0.05), ("learned", 0), ("vanilla_longer", 0.01)):
                noise = level + generator.gauss(0, 0.003)
                value = 2 * (1 - effect + noise) if task.lower_is_better else 0.6 + effect + noise
                steps = task.steps * (2 if variant == "vanilla_longer" else 1)
                lines.append(
                    {
                        **{"task": name, "variant": variant, "seed": seed, "metric": task.metric, "value": value},
                        **{"steps": steps, "examples": 8 * steps, "parameters": 100, "measures": {}},
                        "curve": [[round(task.steps / 4), value], [steps, value]],
                        "seconds": steps / 10,
                        "cpu_seconds": steps / 10 * (1.0 if "vanilla" in variant else 1.1),
                        "versions": {"torch": "2"},
                        "commit": "0123456789",
                    }
                )
    return lines


def test_a_planted_effect_is_found_and_none_is_made_up():
    verdicts = variant_report.verdicts(variant_report.Results.of(made_up_lines())).splitlines()
    evolving, learned = (next(line for line in verdicts if f"`{name}`" in line) for name in ("evolving", "learned"))
    assert all(f"{kind} (+" in evolving for kind in variant_report.kinds())
    assert evolving.count("also at equal time") == len(variant_report.kinds()) and "do not" not in evolving
    assert "use it for" not in learned and learned.count("detectable from") == len(variant_report.kinds())


def made_up_ablation(effects: dict[str, float], task: str = variant_tasks.EXPLAINED) -> list[dict]:
    """Losses of three seeds, each lower than vanilla's by a share, but for noise of a tenth of a per cent."""
    generator = random.Random(0)
    length = {name: VARIANTS[name].length for name in effects}
    return [
        {
            **{"task": task, "variant": name, "seed": seed, "metric": "loss"},
            **{"value": 3 * (1 - effect + generator.gauss(0, 0.001)), "steps": round(1000 * length[name])},
            **{"measures": {"bleu": 1.0}, "curve": [], "parameters": 1, "cpu_seconds": 100.0 * length[name]},
        }
        for seed in range(3)
        for name, effect in effects.items()
    ]


def test_the_ablation_tells_what_the_gain_needs():
    effects = {"vanilla": 0, "evolving": 0.05, "linear": 0.05, "kernel_1": 0, "residual_alone": 0.025, "additive": 0.1}
    results = variant_results.Results.of(made_up_ablation({**effects, "encoder_chain": -0.05}))
    found = variant_ablation.ablation(results, EVOLVING_TAKEN_APART)
    verdicts = {name: found[name].verdict for name in effects if name not in ("vanilla", "evolving")}
    assert verdicts == {"linear": "keeps", "kernel_1": "none", "residual_alone": "part", "additive": "more"}
    assert found["encoder_chain"].verdict == "harm"
    text = "\n".join(variant_ablation.ablation_section(results, EVOLVING_TAKEN_APART))
    assert "The gain stays with `linear`, `additive` and it is gone with `kernel_1`, `encoder_chain`." in text
    assert "Not finished" in text  # `rows_only` and others


def test_multi_token_attention_is_taken_apart_beside_its_own_gain():
    effects = {
        "vanilla": 0,
        "multi_token": 0.3,
        "multi_token_rows": 0.3,
        "multi_token_heads_alone": 0,
        "evolving": 0.02,
    }
    lines = made_up_ablation(effects, variant_tasks.TAKEN_APART)
    found = variant_ablation.ablation(variant_results.Results.of(lines), MULTI_TOKEN_TAKEN_APART)
    assert found["multi_token_rows"].verdict == "keeps" and found["multi_token_heads_alone"].verdict == "none"
    assert found["evolving"].verdict == "part"
    named = {name for names in MULTI_TOKEN_TAKEN_APART.questions.values() for name in names}
    assert named == set(MULTI_TOKEN_TAKEN_APART.others)


def test_what_few_seeds_cannot_tell_is_not_told():
    """One seed of a variant, or an interval across half of the gain."""
    effects = {"vanilla": 0, "evolving": 0.05, "linear": 0.05, "kernel_1": 0, "rows_only": 0.028}
    lines = [
        line | {"value": line["value"] + 0.06 * ((line["seed"] * (index + 1)) % 3 - 1)}
        for index, line in enumerate(made_up_ablation(effects))
        if line["variant"] != "linear" or line["seed"] == 0
    ]
    found = variant_ablation.ablation(variant_results.Results.of(lines), EVOLVING_TAKEN_APART)
    assert found["linear"].verdict == "unknown" and found["rows_only"].verdict == "unknown"
    assert found["linear"].gain.seeds == 1


def test_no_cause_is_named_of_a_gain_that_is_not_there():
    lines = made_up_ablation({"vanilla": 0, "evolving": 0, "linear": 0})
    noise = {"vanilla": (0, 1, -1), "evolving": (1, -1, 0), "linear": (-1, 0, 1)}  # the same mean
    lines = [line | {"value": 3 + 0.01 * noise[line["variant"]][line["seed"]]} for line in lines]
    results = variant_results.Results.of(lines)
    assert "the gain itself is not shown" in variant_ablation.conclusion(
        EVOLVING_TAKEN_APART, variant_ablation.ablation(results, EVOLVING_TAKEN_APART)
    )
    assert (
        "fewer than two seeds"
        in variant_ablation.ablation_section(variant_results.Results.of([]), EVOLVING_TAKEN_APART)[0]
    )


def test_longer_runs_are_compared_with_a_vanilla_that_ran_as_long():
    effects = {"vanilla": 0, "evolving": 0.05, "vanilla_long": 0.3, "evolving_long": 0.31}
    text = variant_ablation.longer_section(variant_results.Results.of(made_up_ablation(effects)))
    after, longer = (float(part.strip().strip("*").split()[0]) for part in text.splitlines()[-1].split("|")[3:5])
    assert after == pytest.approx(5, abs=0.5) and longer == pytest.approx(100 / 70, abs=0.5)
    assert "Not finished" in variant_ablation.longer_section(variant_results.Results.of([]))


def test_a_variant_and_vanilla_both_choose_their_learning_rate():
    effects = {"vanilla": 0, "vanilla_half_rate": 0.1, "vanilla_double_rate": -1}
    effects |= {"evolving": 0.05, "evolving_half_rate": 0.02, "evolving_double_rate": 0.15}
    results = variant_results.Results.of(made_up_ablation(effects, "masked_verses"))
    row = variant_ablation.search_section(results).splitlines()[-1].split("|")
    assert [part.strip(" `") for part in row[1:5]] == [
        "masked_verses",
        "evolving",
        "vanilla_half_rate",
        "evolving_double_rate",
    ]
    assert float(row[5].strip(" *").split()[0]) == pytest.approx(100 * (1 - 0.85 / 0.9), abs=0.5)


def test_tasks_of_fewer_seeds_are_left_out_while_others_have_more():
    lines = [line for line in made_up_lines() if line["task"] != "GunPoint" or line["seed"] == 0]
    gains = variant_report.Results.of(lines).kind_gains("time series", "evolving")
    assert len(gains["ArrowHead"]) == 5 and "GunPoint" not in gains


def test_a_variant_or_task_that_is_hardly_begun_takes_no_rank_from_the_others():
    lines = [line for line in made_up_lines() if (line["task"], line["variant"]) != ("GunPoint", "learned")]
    begun = [line for line in lines if (line["task"], line["variant"]) == ("digits", "evolving")]
    results = variant_report.Results.of([*lines, *({**line, "variant": "realformer"} for line in begun)])
    variants, tasks = variant_report.ranked(results)
    assert variants == ["evolving", "learned"] and set(tasks) == variant_tasks.TASKS.keys() - {"GunPoint"}
    table = variant_report.rank_table(results)
    assert "without `GunPoint`, which some" in table and "`vanilla_longer`" not in table
    assert table.index("`evolving`") < min(table.index("`vanilla`"), table.index("`learned`"))


def test_a_loss_is_reported_as_a_gain_when_it_falls():
    results = variant_report.Results.of(made_up_lines())
    for task in ("characters", "digits"):
        assert np.mean(list(results.gains(task, "evolving").values())) == pytest.approx(5, abs=1)


def test_too_few_seeds_give_no_verdict():
    verdicts = variant_report.verdicts(variant_report.Results.of(made_up_lines(seeds=2)))
    assert "use it for" not in verdicts and "detectable from" not in verdicts


def test_the_report_is_the_same_whatever_the_order_of_its_lines(tmp_path):
    lines = made_up_lines()
    for name in ("one", "two"):
        variant_report.write(lines, tmp_path / name)
        random.Random(1).shuffle(lines)
    for file in ("results.md", "results.svg"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two and len(one) > 1000


def test_page_and_readme_are_those_that_the_finished_runs_give(tmp_path):
    shutil.copy(variants.ROOT / "README.md", tmp_path)
    variant_report.write(variants.read_results(variants.RESULTS), tmp_path / "docs")
    for name in ("README.md", "docs/results.md", "docs/results.svg"):
        assert (tmp_path / name).read_bytes() == (variants.ROOT / name).read_bytes(), (
            f"{name} is old: run `variants.py --report`."
        )


def test_readme_without_its_marks_is_left_alone():
    start, end = variant_report.README_MARKS
    assert variant_report.with_table(f"a\n{start}old{end}\nb", "new") == f"a\n{start}new{end}\nb"
    with pytest.raises(ValueError, match="has no lines"):
        variant_report.with_table("a\nb", "new")


def test_the_report_counts_what_is_missing(tmp_path):
    lines = made_up_lines()[:3]
    text = variant_report.render(lines)
    assert f"3 of {len(variant_tasks.runs())} planned runs" in text
    assert "`separate_heads`" in text.split("Not begun: ")[1].split(". ")[0]
    assert "0 of" in variant_report.render([])


def test_what_is_finished_is_not_run_again_after_a_kill(tmp_path, monkeypatch):
    path, executed = tmp_path / "variants.jsonl", []

    def killed_at(number):
        def execute(words, **kwargs):
            if len(executed) == number:
                raise KeyboardInterrupt
            task, variant, seed = words[-3:]
            executed.append((task, variant, int(seed)))
            assert variants.append(path, {"task": task, "variant": variant, "seed": int(seed), "value": 0.1})
            return subprocess.CompletedProcess(words, 0)

        return execute

    words = ["--results", str(path), "--tasks", "digits", "--seeds", "0", "1"]
    monkeypatch.setattr(variants.subprocess, "run", killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        variants.main(words)
    first = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"task": "digits", "variant": "van')  # a kill within a line
    monkeypatch.setattr(variants.subprocess, "run", killed_at(-1))
    assert variants.main(words) == 0
    assert len(executed) == len(set(executed)) == 2 * len(variant_tasks.variants_of("digits"))
    assert path.read_bytes().startswith(first)
    assert {variants.run_of(json.loads(line)) for line in path.read_text().splitlines()} == set(executed)


def test_a_run_has_one_line_though_two_processes_end_it(tmp_path):
    line = {"task": "digits", "variant": "vanilla", "seed": 0}
    assert variants.append(tmp_path / "lines", line) and not variants.append(tmp_path / "lines", line)


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variants.subprocess, "run", lambda words, **kwargs: subprocess.CompletedProcess(words, 1))
    assert variants.main(["--results", str(tmp_path / "lines"), "--tasks", "digits", "--seeds", "0"]) == 1
    assert capsys.readouterr().err.count("failed") == len(variant_tasks.variants_of("digits"))


def test_a_seed_of_all_variants_comes_before_the_next():
    runs = variant_tasks.runs()
    assert len(set(runs)) == len(runs) and set(HEAD_TO_HEAD) <= VARIANTS.keys()
    explained = [run for run in runs if run[0] == variant_tasks.EXPLAINED and run[1] in ("vanilla", *ABLATION)]
    head_to_head = [run for run in runs if run not in explained and run[1] in HEAD_TO_HEAD]
    others = [run for run in runs if run not in explained and run[1] not in HEAD_TO_HEAD]
    assert runs == explained + head_to_head + others and others
    for part in (explained, head_to_head, others):
        assert [seed for *_, seed in part] == sorted(seed for *_, seed in part)
    assert {name for _, name, _ in others} >= {*LONG.values(), *PARTS, *sum(SEARCH.values(), ())} - set(HEAD_TO_HEAD)
    assert {name for _, name, _ in runs} == VARIANTS.keys()


@pytest.mark.slow
def test_a_run_repeats_itself_and_starts_as_vanilla_does(monkeypatch):
    task = dataclasses.replace(variant_tasks.TASKS["GunPoint"], steps=2)
    problem = task.load(task)
    batch = next(problem.batches(5))
    problem.evaluate = lambda model: {"accuracy": 0.5, "loss": model(**batch).loss.item()}
    starts = [evaluated(make_model(problem.make_model, name, 0), problem.evaluate) for name in ("vanilla", "learned")]
    assert starts[0]["loss"] == pytest.approx(starts[1]["loss"], rel=1e-5)
    results = [train(task, problem, make_model(problem.make_model, "evolving", 0), 0) for _ in range(2)]
    assert results[0]["measures"] == results[1]["measures"]
    other = train(task, problem, make_model(problem.make_model, "evolving", 1), 1)
    assert other["measures"]["loss"] != results[0]["measures"]["loss"]
    assert [step for step, _ in results[0]["curve"]] == [1, 2]


def test_translation_starts_from_pairs_of_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(variant_text_tasks, "DATA", tmp_path)
    words = ["a", "few", "words", "that", "stand", "in", "another", "order", "each", "time"]
    texts = [" ".join(random.Random(seed).sample(words, 6)) for seed in range(120)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    task = dataclasses.replace(variant_tasks.TASKS[variant_tasks.EXPLAINED], steps=1, batch_size=4)
    problem = variant_text_tasks.load_translation(task, {"train": pairs, "test": pairs[:3]}, "made-up", 26, 12)
    monkeypatch.setattr(problem, "finish", lambda model: {})
    results = train(task, problem, make_model(problem.make_model, "evolving", 0), 0)
    assert results["metric"] == "loss" and 0 < results["value"] < 20


def test_the_wider_vanilla_has_about_as_many_parameters_as_the_evolving_model():
    task = variant_tasks.TASKS["digits"]
    make = task.load(task).make_model
    sizes = {name: parameters(make_model(make, name, 0)) for name in ("vanilla", "evolving", "vanilla_wider")}
    assert sizes["evolving"] <= sizes["vanilla_wider"] < sizes["evolving"] + 4 * 200


def test_the_learning_rate_rises_stays_and_falls():
    assert [round(rate(step, 10), 2) for step in range(10)] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]
    assert rate(0, 100) == pytest.approx(0.1)
