# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a model with evolving attention goes, beside sdpa: by kinds of operation, in one run.

    python benchmarks/attention_profile.py --models minilm base
    python benchmarks/speed_report.py                 # docs/speed.md

PyTorch's profiler, time of the operations themselves on one CPU; medians over the steps, models interleaved. The convolution is
also compared with what a matrix product of 1024 x 1024 reaches on the same thread: a faster convolution than that would need
fewer multiply-adds.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from attention import MODELS, build, environment, make_inputs, parse_shape, step
from torch.profiler import ProfilerActivity, profile


IMPLEMENTATIONS = ("sdpa", "evolving")
KINDS = ("linear layers", "sdpa", "products with maps", "convolution", "softmax", "other")
# By how an operation's name begins, after "aten::".
BEGINNINGS = {
    **{"addmm": "linear layers", "mm": "linear layers", "mkldnn_linear": "linear layers"},
    **{
        "_scaled_dot_product": "sdpa",
        "_softmax": "softmax",
        "mkldnn_convolution": "convolution",
        "conv": "convolution",
    },
    **{"bmm": "products with maps", "baddbmm": "products with maps"},
}


def kind_of(name: str) -> str:
    name = name.removeprefix("aten::")
    return next((kind for beginning, kind in BEGINNINGS.items() if name.startswith(beginning)), "other")


def milliseconds_by_kind(model: torch.nn.Module, inputs: dict[str, torch.Tensor], mode: str) -> dict[str, float]:
    """Of one step."""
    found: dict[str, float] = defaultdict(float)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step(model, inputs, mode, "float32")
    for event in recorded.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1000
    return {kind: found[kind] for kind in KINDS}


def product_rate(size: int = 1024, repeats: int = 20) -> float:
    """Multiply-adds per second of a matrix product, the median."""
    matrix, seconds = torch.randn(size, size), []
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(matrix, matrix)
        seconds.append(time.process_time() - start)
    return size**3 / statistics.median(seconds)


def convolution_products(fields: dict[str, int], batch: int, length: int) -> int:
    """Multiply-adds of all convolutions of a forward pass."""
    return (fields["num_hidden_layers"] - 1) * 9 * fields["num_attention_heads"] ** 2 * batch * length**2


def measure(name: str, shape: str, mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per implementation."""
    batch, length = parse_shape(shape)
    inputs = make_inputs(batch, length, "cpu", padding=False)
    models = {implementation: build(implementation, MODELS[name], mode, args) for implementation in IMPLEMENTATIONS}
    steps: dict[str, list[dict[str, float]]] = {implementation: [] for implementation in IMPLEMENTATIONS}
    for number in range(args.repeats + 1):
        for implementation, model in models.items():
            times = milliseconds_by_kind(model, inputs, mode)
            if number > 0:  # the first warms up
                steps[implementation].append(times)
    rows = []
    for implementation, found in steps.items():
        kinds = {kind: statistics.median(times[kind] for times in found) for kind in KINDS}
        rows.append({"model": name, "shape": shape, "mode": mode, "implementation": implementation, "kinds": kinds})
    if mode == "inference":
        seconds = rows[-1]["kinds"]["convolution"] / 1000
        products = convolution_products(MODELS[name], batch, length)
        rows[-1]["convolution_to_product_rate"] = products / seconds / product_rate()
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    lines = [["", "implementation", *(f"{kind}, ms" for kind in KINDS), "all, ms", "to sdpa"]]
    lines.append(["---"] * 2 + ["---:"] * (len(KINDS) + 2))
    for row in rows:
        total, values = sum(row["kinds"].values()), [row["kinds"][kind] for kind in KINDS]
        if row["implementation"] == "sdpa":
            base = total
        cells = [f"{value:.0f}" for value in (*values, total)]
        lines.append(
            [f"{row['model']} {row['shape']} {row['mode']}", row["implementation"], *cells, f"{total / base:.2f}"]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """What an evolving model would take in inference if nothing but its convolutions came to sdpa, and these at full rate."""
    said = []
    for row in rows:
        if "convolution_to_product_rate" in row:
            plain = next(
                sum(other["kinds"].values())
                for other in rows
                if (other["model"], other["shape"], other["mode"], other["implementation"])
                == (row["model"], row["shape"], row["mode"], "sdpa")
            )
            rate = row["convolution_to_product_rate"]
            least = 1 + row["kinds"]["convolution"] * min(1.0, rate) / plain
            said.append(f"{row['model']} {row['shape']}: {100 * rate:.0f} %, at least {least:.2f} times sdpa")
    return (
        "How fast the convolution multiplies, to a matrix product of 1024 x 1024 on the same thread; and what inference would "
        f"take if the rest took no more than sdpa does, and the convolution as long as such a product: {'; '.join(said)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", default=["8x128", "2x512"], help="BATCHxLENGTH.")
    parser.add_argument("--modes", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--repeats", type=int, default=7, help="Steps.")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/attention_profile.json"))
    parser.set_defaults(device="cpu", dtype="float32", dropout=0.1, threads=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = environment(args)
    print(", ".join(f"{name}: {value}" for name, value in settings.items()), flush=True)
    rows = []
    for name in args.models:
        for shape in args.shapes:
            for mode in args.modes:
                rows += measure(name, shape, mode, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"environment": settings, "rows": rows}, indent=2) + "\n")
    print(f"{format_table(rows)}\n\n{summary(rows)}")


if __name__ == "__main__":
    main()
