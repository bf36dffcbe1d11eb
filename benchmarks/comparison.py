# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the comparisons of evolving attention with plain attention share: their arguments, and the table of a page."""

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


# What every comparison calls the model with plain attention.
VANILLA = "both weights 0"


def create_parser(description: str, seeds: Sequence[int], **kwargs: str) -> argparse.ArgumentParser:
    """A parser with the arguments of every comparison.

    Args:
        description: docstring of the script, whose first line is shown.
        seeds: those of docs/examples.md.
        kwargs: as for `ArgumentParser`.
    """
    parser = argparse.ArgumentParser(
        description=description.split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        **kwargs,
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--output_dir", type=Path, default=Path("output/benchmark"))
    parser.add_argument(
        "--shard", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="Every N-th run from I."
    )
    parser.add_argument("--report_only", action="store_true")
    return parser


def own_runs(args: argparse.Namespace, runs: Iterable[tuple]) -> list[tuple]:
    """The runs that are this process's part of the work."""
    return [] if args.report_only else list(runs)[args.shard[0] :: args.shard[1]]


def comparison_table(
    headers: Sequence[str],
    variants: Sequence[str],
    rows: Mapping[tuple[str, ...], Mapping[str, Mapping[int, float]]],
    digits: int = 4,
) -> str:
    """Mean and standard deviation of each variant, and of its difference to the last one, which are taken seed by seed.

    Args:
        headers: of the first columns.
        variants: names of the variants, the vanilla one last.
        rows: by the cells of the first columns, the score of each variant and seed. A row with fewer than two seeds
            that all variants have finished is left out.
        digits: after the point.
    """
    others, vanilla = variants[:-1], variants[-1]
    differences = ["difference"] if len(others) == 1 else [f"{name}: difference" for name in others]
    columns = [*headers, *variants, *differences, "seeds"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for labels, scores in rows.items():
        seeds = sorted(set.intersection(*(set(scores[name]) for name in variants)))
        if len(seeds) < 2:
            continue
        cells = [mean_and_spread([scores[name][seed] for seed in seeds], digits) for name in variants]
        for name in others:
            changes = [scores[name][seed] - scores[vanilla][seed] for seed in seeds]
            cells.append(mean_and_spread(changes, digits, "+"))
        lines.append(f"| {' | '.join([*labels, *cells, str(len(seeds))])} |")
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean and standard deviation, for a cell of a table."""
    return f"{statistics.mean(values):{sign}.{digits}f} ± {statistics.stdev(values):.{digits}f}"
