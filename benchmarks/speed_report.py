# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/speed.md from the figures of the benchmarks `attention.py`, `attention_profile.py` and `generation.py`, and from nothing else.

Each section of the page names the command that measures it.

    python benchmarks/speed_report.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

import attention_profile
from attention import DTYPES, MODELS, format_table, parse_shape


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# File of figures, title, and what is to be said before its table.
SECTIONS = {
    "attention.json": (
        "Uncompiled",
        "Models as they are. Peak memory is beyond what the process held before the step; saved is what autograd keeps for the "
        "backward pass.",
    ),
    "attention_long.json": ("2,048 tokens", "As above, with one long sequence."),
    "attention_compiled.json": (
        "Compiled",
        "Both with `torch.compile`. Memory is not measured. Compare the milliseconds with those above before you compile: a step "
        "of training with dropout may take longer compiled, with sdpa too.",
    ),
    "attention_bfloat16.json": (
        "bfloat16",
        "Weights in bfloat16 for inference, training under autocast, on a processor that multiplies bfloat16 numbers.",
    ),
    "generation.json": (
        "Decoding",
        "T5 of T5-small's shape (t5) and a Llama of its size (llama), those of them that were measured. Prefill: a forward pass that fills the cache; step: one more token.",
    ),
    "generation_long.json": ("Decoding after 2,048 tokens", "As above, after a longer text."),
}
PROFILE = "attention_profile.json"
HEAD = """# What it costs

Time and memory of whole models with random weights, beside vanilla models of the same shape (batch x tokens) in the same
run. CPU time is what the process had of the CPU: on a machine that others use too, compare that, not the time of the
clock. An interval is for the median of the ratios of all rounds: at 95 % from six rounds on, the least and the greatest of fewer.
Beside eager attention: [another page](speed_beside_eager.md).
"""
SECTION = """
## {title}

{text} Ratios are to {base}, of {rounds} rounds or more.{ranges}

{environment}.

{table}

Measured by `{command}`.
"""


PROFILE_SECTION = """
## Where the time goes

Milliseconds of one uncompiled step by kinds of operation, as PyTorch's profiler counts them; medians. sdpa with dropout, in training, is
made of products, softmax and others. {summary}

{environment}.

{table}

Measured by `{command}`.
"""


def ranges(rows: list[dict[str, Any]]) -> str:
    """The least and the greatest ratio of evolving attention, by mode."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["implementation"] in ("evolving", "evolving, compiled"):
            ratios.setdefault(row["mode"], []).append(row.get("cpu_seconds_to_base", row["seconds_to_base"]))
    said = [
        f"{mode} {' to '.join(sorted({f'{value:.2f}' for value in (min(found), max(found))}))}"
        for mode, found in ratios.items()
    ]
    return f" **CPU time of evolving attention: {', '.join(said)} times that of {rows[0]['base']}.**" if said else ""


def peak_with_a_map(rows: list[dict[str, Any]], dtype: str) -> str:
    """What keeping a map for the next layer adds to the peak of inference."""
    said = []
    for row in rows:
        if row["mode"] == "inference" and row["implementation"] == "sdpa" and "peak_bytes" in row:
            batch, length = parse_shape(row["shape"])
            size = DTYPES[dtype].itemsize * MODELS[row["model"]]["num_attention_heads"] * batch * length**2
            said.append(f"{row['model']} {row['shape']} {1 + size / row['peak_bytes']:.2f}")
    if not said:
        return ""
    return f" In inference a map is kept from each layer to the next. With a map added to it, sdpa's own peak would be so many times as high: {', '.join(said)}."


def section(name: str, results: dict[str, Any]) -> str:
    rows, environment = results["rows"], results["environment"]
    if not rows:
        raise ValueError(f"{name} has no rows. Measure with `python benchmarks/attention.py --output {name}`.")
    title, text = SECTIONS[name]
    return SECTION.format(
        title=title,
        text=text,
        base=rows[0]["base"],
        ranges=ranges(rows) + peak_with_a_map(rows, environment["dtype"]),
        rounds=min(row["rounds"] for row in rows),
        environment=describe(environment),
        table=format_table(rows, environment.get("kind of device", "cpu")),
        command=environment["command"],
    )


def describe(environment: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value}" for key, value in environment.items() if key not in ("kind of device", "command")
    )


def profile_section(results: dict[str, Any]) -> str:
    return PROFILE_SECTION.format(
        summary=attention_profile.summary(results["rows"]),
        environment=describe(results["environment"]),
        table=attention_profile.format_table(results["rows"]),
        command=results["environment"]["command"],
    )


def page(directory: Path) -> str:
    """Of the files of figures that are in a directory."""
    files = [directory / name for name in SECTIONS if (directory / name).exists()]
    if not files:
        raise ValueError(f"{directory} has none of {', '.join(SECTIONS)}.")
    sections = [section(file.name, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    if (directory / PROFILE).exists():
        sections.append(profile_section(json.loads((directory / PROFILE).read_text(encoding="utf-8"))))
    return HEAD + "".join(sections) + "\nWritten by `python benchmarks/speed_report.py` from `benchmarks/results/`.\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="A directory.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/speed.md")
    args = parser.parse_args()
    args.output.write_text(page(args.results), encoding="utf-8")


if __name__ == "__main__":
    main()
