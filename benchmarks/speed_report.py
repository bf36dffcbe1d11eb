# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/speed.md from the figures of `benchmarks/attention.py`, and from nothing else.

python benchmarks/attention.py --output benchmarks/results/attention.json
python benchmarks/speed_report.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from attention import format_table


ROOT = Path(__file__).resolve().parent.parent
PAGE = """# What it costs

Time and memory of whole models with random weights, beside Transformers' BERT of the same shape (batch x tokens) in the same
run. The ratios are to {base}. CPU time is what the process had of the CPU: on a machine that others use too, compare
that, not the time of the clock. An interval is for the median of the ratios of {rounds} rounds or more: at 95 % from six
rounds on, the least and the greatest of fewer. Peak memory is beyond what the process held before the step; saved is
what autograd keeps for the backward pass.

{environment}.

{table}

Written by `python benchmarks/speed_report.py` from `{source}`, which this command measured: `{command}`.
"""


def page(results: dict[str, Any], source: str) -> str:
    rows, environment = results["rows"], dict(results["environment"])
    command = environment.pop("command", "python benchmarks/attention.py")
    if not rows:
        raise ValueError(f"{source} has no rows. Measure with `python benchmarks/attention.py --output {source}`.")
    return PAGE.format(
        base=rows[0]["base"],
        rounds=min(row["rounds"] for row in rows),
        environment=", ".join(f"{name}: {value}" for name, value in environment.items()),
        table=format_table(rows, environment.get("kind of device", "cpu")),
        source=source,
        command=command,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=Path("benchmarks/results/attention.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs/speed.md")
    args = parser.parse_args()
    results = json.loads((ROOT / args.results).read_text(encoding="utf-8"))
    args.output.write_text(page(results, str(args.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
