# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The lines of `benchmarks/variants.py` as gains over vanilla, paired by seed, and how tables show them."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from variant_definitions import LONGER, VANILLA, VARIANTS
from variant_statistics import time_matched
from variant_tasks import TASKS

from ea_hf.paired_statistics import MINIMUM_SEEDS, Difference


ABOUT = {name: variant.about for name, variant in VARIANTS.items()}
Line = dict[str, Any]


@dataclasses.dataclass
class Results:
    """Finished runs: by task and variant, those of each seed."""

    lines: dict[tuple[str, str], dict[int, Line]]

    @classmethod
    def of(cls, lines: Iterable[Line]) -> "Results":
        table: dict[tuple[str, str], dict[int, Line]] = defaultdict(dict)
        for line in lines:
            if line["task"] in TASKS and line["variant"] in ABOUT:
                table[line["task"], line["variant"]][line["seed"]] = line
        return cls(table)

    def seeds(self, task: str, *variants: str) -> list[int]:
        """Those that all of the variants have finished."""
        finished = [set(self.lines.get((task, name), {})) for name in (VANILLA, *variants)]
        return sorted(set.intersection(*finished))

    def values(self, task: str, variant: str) -> dict[int, float]:
        """By seed."""
        return {seed: line["value"] for seed, line in self.lines.get((task, variant), {}).items()}

    def value(self, task: str, variant: str, seed: int) -> float:
        return self.lines[task, variant][seed]["value"]

    def cost(self, task: str, variant: str) -> float | None:
        """CPU time of a step, as a multiple of vanilla's; the median over seeds."""
        ratios = [
            math.prod(
                (own["cpu_seconds"] / own["steps"]) ** sign
                for own, sign in ((self.lines[task, variant][seed], 1), (self.lines[task, VANILLA][seed], -1))
            )
            for seed in self.seeds(task, variant)
        ]
        return statistics.median(ratios) if ratios else None

    def gains(self, task: str, variant: str, matched: bool = False) -> dict[int, float]:
        """By seed: per cent of a lower loss, or points of a higher score; positive is better than vanilla.

        Args:
            matched: compare with vanilla trained for the time that the variant takes.
        """
        cost, gains = self.cost(task, variant), {}
        for seed in self.seeds(task, variant, *((LONGER,) if matched else ())):
            reference = self.value(task, VANILLA, seed)
            if matched:
                longer = self.value(task, LONGER, seed)
                reference = time_matched(reference, longer, VARIANTS[LONGER].length, cost)
            gains[seed] = gain(task, self.value(task, variant, seed), reference)
        return gains

    def kind_gains(self, kind: str, variant: str, matched: bool = False) -> dict[str, list[float]]:
        """Gains by task and seed. Tasks of fewer than `MINIMUM_SEEDS` seeds are left out, unless none has more."""
        gains = {task: list(self.gains(task, variant, matched).values()) for task in TASKS if TASKS[task].kind == kind}
        fewest = min(MINIMUM_SEEDS, max(map(len, gains.values())))
        return {task: values for task, values in gains.items() if values and len(values) >= fewest}


def gain(task: str, value: float, reference: float) -> float:
    return 100 * (1 - value / reference) if TASKS[task].lower_is_better else 100 * (value - reference)


def kinds() -> list[str]:
    return list(dict.fromkeys(task.kind for task in TASKS.values()))


def unit(kind: str) -> str:
    return "% lower loss" if any(t.lower_is_better for t in TASKS.values() if t.kind == kind) else "points"


def cell(difference: Difference | None, corrected: float | None = None, digits: int = 2) -> str:
    if difference is None:
        return "-"
    if difference.half_width == 0 and difference.mean != 0:  # scores of few test items are often the same
        return f"{difference.mean:+.{digits}f} (no spread)"
    text = f"{difference.mean:+.{digits}f} ± {difference.half_width:.{digits}f}"
    is_apart = corrected is not None and corrected < 0.05 and difference.seeds >= MINIMUM_SEEDS
    return f"**{text}**" if is_apart else text


def table(headers: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [headers, ["---"] * len(headers), *rows])
