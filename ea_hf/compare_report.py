# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `ea_hf.compare` says of its runs: differences paired by seed, their price, and a verdict for each variant."""

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

from .paired_statistics import LEVEL, MINIMUM_SEEDS, Difference, holm, paired
from .training.checkpoints import write_json
from .training.output_dir import RESULTS_FILE


REPORT_FILE, NUMBERS_FILE = "comparison.md", "results.json"
# Of test data before validation data.
PREFIXES = ("predict_", "test_", "eval_")
LOWER_IS_BETTER = {"loss", "perplexity", "rmse", "mse", "mae", "error", "wer", "cer", "ter"}
HIGHER_IS_BETTER = {
    *("accuracy", "f1", "bleu", "chrf", "pearson", "spearmanr", "correlation", "score", "precision", "recall", "auc"),
    *("r2", "rouge", "rouge1", "rouge2", "rougeL", "match"),
}
# Results that measure no quality.
NO_METRICS = {"samples", "steps", "runtime", "second", "tokens", "words", "bytes", "len", "length", "seconds", "std"}
SPEED = "train_samples_per_second"


@dataclasses.dataclass
class Results:
    """Of the runs that are finished.

    Args:
        metric: name of the compared result.
        lower_is_better: whether a smaller value is a gain.
        values: by variant, vanilla first, and seed.
        speeds: examples per second of training, likewise, where the script tells them.
        notes: what was guessed, for the reader.
    """

    metric: str
    lower_is_better: bool
    values: dict[str, dict[int, float]]
    speeds: dict[str, dict[int, float]]
    notes: list[str]

    @classmethod
    def read(
        cls, directory: Path, variants: list[str], seeds: list[int], metric: str | None, lower_is_better: bool | None
    ) -> "Results | None":
        """`None` if no run is finished.

        Raises:
            ValueError: a run's results cannot be read, or have no such metric.
        """
        files = {(v, seed): directory / f"{v}-{seed}" / RESULTS_FILE for v in variants for seed in seeds}
        found = {run: read_json(file) for run, file in files.items() if file.exists()}
        if not found:
            return None
        notes = []
        if metric is None:
            metric, others = choose_metric(next(iter(found.values())))
            notes.append(f"Compared by {metric}" + (f"; --metric takes {', '.join(others)} too." if others else "."))
        if lower_is_better is None:
            words = set(metric.split("_"))
            lower_is_better = bool(words & LOWER_IS_BETTER)
            if not words & (LOWER_IS_BETTER | HIGHER_IS_BETTER):
                notes.append(f"Higher {metric} is taken for better; if it is not, pass --lower_is_better.")
        values: dict[str, dict[int, float]] = {name: {} for name in variants}
        speeds: dict[str, dict[int, float]] = {name: {} for name in variants}
        for (name, seed), results in found.items():
            if metric not in results or not is_number(results[metric], or_none=True):
                numbers = ", ".join(key for key, value in results.items() if is_number(value))
                raise ValueError(f"{files[name, seed]} has no number {metric!r}; --metric takes one of: {numbers}.")
            # JSON has no NaN; a run that diverged may have none in its place.
            values[name][seed] = math.nan if results[metric] is None else float(results[metric])
            if is_number(results.get(SPEED)) and results[SPEED] > 0:
                speeds[name][seed] = results[SPEED]
        return cls(metric, lower_is_better, values, speeds, notes)

    @property
    def vanilla(self) -> str:
        return next(iter(self.values))

    def gains(self, variant: str) -> dict[int, float]:
        """By seed that both have finished; positive is better than vanilla."""
        own, reference = self.values[variant], self.values[self.vanilla]
        sign = -1 if self.lower_is_better else 1
        return {seed: sign * (own[seed] - reference[seed]) for seed in own if seed in reference}

    def cost(self, variant: str) -> float | None:
        """Time of a step as a multiple of vanilla's; the median over seeds."""
        own, reference = self.speeds[variant], self.speeds[self.vanilla]
        ratios = [reference[seed] / own[seed] for seed in own if seed in reference]
        return statistics.median(ratios) if ratios else None


def read_json(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Delete it, and the run is made again.") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds no results by name. Delete it, and the run is made again.")
    return results


def is_number(value: Any, or_none: bool = False) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or (or_none and value is None)


def choose_metric(results: dict[str, Any]) -> tuple[str, list[str]]:
    """The metric to compare by, and the others: of test data first, and no loss where there is something else."""
    names = [name for name in results if is_number(results[name], or_none=True) and name.startswith(PREFIXES)]
    names = [name for name in names if not set(name.split("_")) & NO_METRICS]
    if not names:
        raise ValueError(
            f"{RESULTS_FILE} has no metric that begins with {', '.join(PREFIXES)}, but {', '.join(results)}. Evaluate on "
            "validation data, or name one with --metric."
        )

    def order(name: str) -> tuple[int, bool]:
        place = next(place for place, prefix in enumerate(PREFIXES) if name.startswith(prefix))
        return place, bool(set(name.split("_")) & {"loss", "perplexity"})

    best = min(names, key=order)  # the first of equals
    return best, [name for name in names if name != best]


@dataclasses.dataclass
class Comparison:
    """One variant beside vanilla.

    Args:
        gains: by seed.
        difference: of the gains; `None` for fewer than two seeds, or where one is no number.
        p: Holm's over the variants, if it can be tested.
        cost: time of a step as a multiple of vanilla's.
    """

    gains: dict[int, float]
    difference: Difference | None
    p: float | None
    cost: float | None

    @property
    def found(self) -> str:
        """ "gain", "loss", "no difference" or "no verdict"."""
        if not self.can_be_tested:
            return "no verdict"
        if self.p >= LEVEL:
            return "no difference"
        return "gain" if self.difference.mean > 0 else "loss"

    @property
    def can_be_tested(self) -> bool:
        return self.difference is not None and self.difference.seeds >= MINIMUM_SEEDS and not self.has_no_spread

    @property
    def has_no_spread(self) -> bool:
        """Whether all seeds differ alike: a t test would be sure of it, though it has seen no chance at work."""
        return len(self.gains) > 1 and len({round(gain, 12) for gain in self.gains.values()}) == 1

    def verdict(self, digits: int) -> str:
        """In one sentence, and no more than can be said."""
        if not all(map(math.isfinite, self.gains.values())):
            bad = ", ".join(str(seed) for seed, gain in self.gains.items() if not math.isfinite(gain))
            return f"no verdict, because there is no number to compare with seed {bad}; did the training diverge?"
        if len(self.gains) < MINIMUM_SEEDS:
            return f"no verdict from {len(self.gains)} seeds that both have finished; pass at least {MINIMUM_SEEDS} --seeds."
        difference = self.difference
        if self.has_no_spread:
            same = (
                f"differ from vanilla by the same {difference.mean:+.{digits}f}"
                if difference.mean
                else "equal vanilla's"
            )
            return (
                f"no verdict, because the results of all {difference.seeds} seeds {same}, so that nothing tells what chance "
                "does; use more evaluation data, or another metric."
            )
        numbers = f"{interval(difference, digits)} (95 % interval, {difference.seeds} seeds, p = {self.p:.2g})"
        if self.found == "no difference":
            beyond = "; the interval leaves 0 out, but not after the correction for several variants"
            return (
                f"no difference beyond the seeds: {numbers}{beyond if difference.is_apart else ''}; an effect of "
                f"{difference.visible:.{digits}f} would have been seen in 80 of 100 such comparisons."
            )
        return f"{self.found} of {numbers}."


def compare(results: Results) -> dict[str, Comparison]:
    """Each variant beside vanilla, corrected for how many there are."""
    gains = {name: results.gains(name) for name in results.values if name != results.vanilla}
    differences = {
        name: paired(list(values.values())) if all(map(math.isfinite, values.values())) else None
        for name, values in gains.items()
    }
    found = {name: Comparison(gains[name], differences[name], None, results.cost(name)) for name in gains}
    # What cannot be tested counts as one of the variants, and must not help the others.
    p = {name: one.difference.p if one.can_be_tested else 1.0 for name, one in found.items()}
    corrected = holm(p)
    return {
        name: dataclasses.replace(one, p=corrected[name] if one.can_be_tested else None) for name, one in found.items()
    }


def interval(difference: Difference, digits: int) -> str:
    return f"{difference.mean:+.{digits}f} ± {difference.half_width:.{digits}f}"


def needed_digits(comparisons: dict[str, Comparison]) -> int:
    """So many that the narrowest interval has two significant ones."""
    widths = [
        c.difference.half_width for c in comparisons.values() if c.difference and c.difference.half_width > 1e-12
    ]
    return min(10, max(2, 1 - math.floor(math.log10(min(widths))))) if widths else 4


def render(results: Results, comparisons: dict[str, Comparison]) -> str:
    """The report, as text that is Markdown too."""
    digits = needed_digits(comparisons)
    metric = f"{results.metric} ({'lower' if results.lower_is_better else 'higher'} is better)"
    rows = [["variant", metric, "gain over vanilla", "p (Holm)", "visible", "time of a step", "seeds"]]
    for name, values in results.values.items():
        spread = f" ± {statistics.stdev(values.values()):.{digits}f}" if len(values) > 1 else ""
        cells = [name, f"{statistics.fmean(values.values()):.{digits}f}{spread}" if values else "-"]
        if name == results.vanilla:
            rows.append([*cells, "-", "-", "-", "1.00", str(len(values))])
            continue
        one = comparisons[name]
        difference, p = one.difference, one.p
        cells += (
            [interval(difference, digits), "-" if p is None else f"{p:.2g}", f"{difference.visible:.{digits}f}"]
            if difference
            else 3 * ["-"]
        )
        rows.append([*cells, f"{one.cost:.2f}" if one.cost else "-", str(len(one.gains))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    table = "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)
    sentences = [f"- {name}: {one.verdict(digits)}{price(one)}" for name, one in comparisons.items()]
    about = (
        "Gains are means of differences between runs of the same seed, with their 95 % interval (Student's t); positive is "
        "better than vanilla. p is corrected for the number of variants (Holm). Visible is the smallest true gain that 80 of "
        "100 such comparisons would find, before this correction. Vanilla's time of a step is 1."
    )
    return "\n\n".join([*results.notes, table, "\n".join(sentences), about]) + "\n"


def price(comparison: Comparison) -> str:
    return f" A step takes {comparison.cost:.2f} times vanilla's time." if comparison.cost else ""


def write_report(results: Results, directory: Path, command: list[str]) -> str:
    """Writes the report and its numbers; returns the report."""
    comparisons = compare(results)
    text, digits = render(results, comparisons), needed_digits(comparisons)
    (directory / REPORT_FILE).write_text(text, encoding="utf-8")
    numbers = {
        "command": command,
        "metric": results.metric,
        "lower_is_better": results.lower_is_better,
        "values": results.values,
        "train_samples_per_second": results.speeds,
        "comparisons": {
            name: {
                **dataclasses.asdict(comparison),
                "found": comparison.found,
                "verdict": comparison.verdict(digits),
            }
            for name, comparison in comparisons.items()
        },
    }
    write_json(directory / NUMBERS_FILE, without_nan(numbers))
    return text


def without_nan(value: Any) -> Any:
    """With `None` for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
