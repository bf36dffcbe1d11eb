# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-BERT with the same model with both weights 0, which is BERT, on the three offline tasks.

    python benchmarks/glue.py                   # the table of the README
    python benchmarks/glue.py --report_only     # the table of the runs that are finished

Both get the same data, budget, hyperparameters and seeds. Nothing is chosen by the test sets. A run that is finished
is not repeated, so several processes can share the work (--shard).
"""

import argparse
import json
import statistics
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "glue"))

import offline
import prepare_data


# Residual weight and convolution weight.
VARIANTS = {"EA-BERT (0.1, 0.1)": (0.1, 0.1), "both weights 0": (0.0, 0.0)}
METRICS = {"film_sentiment": "accuracy", "film_rating": "pearson", "verse_pairs": "accuracy"}


def run(args: argparse.Namespace, task: str, variant: str, seed: int) -> None:
    residual, conv = VARIANTS[variant]
    output_dir = args.output_dir / f"{task}-{residual:g}-{conv:g}-{seed}"
    if result_file(output_dir).exists():
        return
    extra = ["--ea_residual_weight", str(residual), "--ea_conv_weight", str(conv), "--seed", str(seed)]
    extra += ["--max_train_samples", str(args.max_train_samples), "--checkpointing_steps", "no", "--eval_steps", "no"]
    _, test = offline.fine_tune(args.data_dir, task, output_dir, extra)
    result_file(output_dir).write_text(json.dumps(test))
    (output_dir / "model.safetensors").unlink()


def result_file(output_dir: Path) -> Path:
    return output_dir / "test_metrics.json"


def table(args: argparse.Namespace) -> str:
    lines = [
        "| task | metric | " + " | ".join(VARIANTS) + " | difference |",
        "|---|---|" + "---|" * (len(VARIANTS) + 1),
    ]
    for task in args.tasks:
        metric = METRICS[task]
        scores = {}
        for variant, (residual, conv) in VARIANTS.items():
            files = [result_file(args.output_dir / f"{task}-{residual:g}-{conv:g}-{seed}") for seed in args.seeds]
            scores[variant] = [json.loads(file.read_text())[metric] for file in files if file.exists()]
        counts = [len(values) for values in scores.values()]
        if min(counts) < 2:
            continue
        evolving, vanilla = scores.values()
        cells = [f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" for values in scores.values()]
        # Seed by seed: both variants see the same order of examples.
        differences = [a - b for a, b in zip(evolving, vanilla, strict=False)]
        cells.append(f"{statistics.mean(differences):+.4f} ± {statistics.stdev(differences):.4f}")
        lines.append(f"| {task} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--output_dir", type=Path, default=Path("output/benchmark"))
    parser.add_argument(
        "--shard", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="Every N-th run from I."
    )
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args()
    if not args.report_only:
        if prepare_data.main(["--output_dir", str(args.data_dir)]):
            sys.exit(1)
        runs = [(task, variant, seed) for seed in args.seeds for task in args.tasks for variant in VARIANTS]
        for task, variant, seed in runs[args.shard[0] :: args.shard[1]]:
            run(args, task, variant, seed)
    print(table(args))


if __name__ == "__main__":
    main()
