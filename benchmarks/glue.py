# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-BERT with the same model with learned weights, and with both weights 0, which is BERT, on the three offline tasks.

    python benchmarks/glue.py                   # the table of docs/examples.md
    python benchmarks/glue.py --report_only     # the table of the runs that are finished

All get the same data, budget, hyperparameters and seeds. Nothing is chosen by the test sets. A run that is finished
is not repeated, so several processes can share the work (--shard).
"""

import argparse
import json
import sys
from pathlib import Path

import _script_folders  # noqa: F401 -- must come first
import glue_offline
import prepare_data
from comparison import VANILLA, comparison_table, create_parser, own_runs


# Mixing, residual weight and convolution's weight; gates of "learned" start at them, and learn at a rate of their own.
VARIANTS = {
    "EA-BERT (0.1, 0.1)": ("convex", 0.1, 0.1),
    "EA-BERT learned": ("learned", 0.0, 0.0),
    VANILLA: ("convex", 0.0, 0.0),
}
LEARNED_RATE = 0.01
METRICS = {"film_sentiment": "accuracy", "film_rating": "pearson", "verse_pairs": "accuracy"}


def run(args: argparse.Namespace, task: str, variant: str, seed: int) -> None:
    file = result_file(args, task, variant, seed)
    if file.exists():
        return
    mixing, residual, conv = VARIANTS[variant]
    extra = ["--ea_residual_weight", str(residual), "--ea_conv_weight", str(conv), "--seed", str(seed)]
    if mixing == "learned":
        extra += ["--ea_mixing", mixing, "--ea_learning_rate", str(LEARNED_RATE)]
    extra += ["--max_train_samples", str(args.max_train_samples), "--checkpointing_steps", "no", "--eval_steps", "no"]
    _, test = glue_offline.fine_tune(args.data_dir, task, file.parent, extra)
    file.write_text(json.dumps(test))
    (file.parent / "model.safetensors").unlink()


def result_file(args: argparse.Namespace, task: str, variant: str, seed: int) -> Path:
    mixing, residual, conv = VARIANTS[variant]
    name = "" if mixing == "convex" else f"{mixing}-"
    return args.output_dir / f"{task}-{name}{residual:g}-{conv:g}-{seed}" / "test_metrics.json"


def scores(args: argparse.Namespace, task: str, variant: str) -> dict[int, float]:
    files = {seed: result_file(args, task, variant, seed) for seed in args.seeds}
    return {seed: json.loads(file.read_text())[METRICS[task]] for seed, file in files.items() if file.exists()}


def main() -> None:
    parser = create_parser(__doc__, seeds=[1, 2, 3, 4, 5])
    parser.add_argument("--tasks", nargs="+", choices=list(METRICS), default=list(METRICS))
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    if not args.report_only and prepare_data.main(["--output_dir", str(args.data_dir)]):
        sys.exit(1)
    runs = ((task, variant, seed) for seed in args.seeds for task in args.tasks for variant in VARIANTS)
    for names in own_runs(args, runs):
        run(args, *names)
    rows = {(task, METRICS[task]): {v: scores(args, task, v) for v in VARIANTS} for task in args.tasks}
    print(comparison_table(("task", "metric"), list(VARIANTS), rows))


if __name__ == "__main__":
    main()
