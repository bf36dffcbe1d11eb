# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-BERT with the same model with learned weights, and with both weights 0, which is BERT, on the three offline tasks.

    python benchmarks/glue.py                   # the table of docs/examples.md
    python benchmarks/glue.py --report_only     # the table of the runs that are finished

All get the same data, budget, hyperparameters and seeds. Nothing is chosen by the test sets. A run that is finished
is not repeated, so several processes can share the work (--shard). The second table is `ea_hf.summary` of the models that
evolve, on the first rows of the validation set.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import _script_folders  # noqa: F401 -- must come first
import glue_offline
import prepare_data
from comparison import VANILLA, comparison_table, create_parser, mean_and_spread, own_runs
from datasets import load_dataset
from task_data import KNOWN_COLUMNS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import ea_hf


# Mixing, residual weight and convolution's weight; gates of "learned" start at them, and learn at a rate of their own.
VARIANTS = {
    "EA-BERT (0.1, 0.1)": ("convex", 0.1, 0.1),
    "EA-BERT learned": ("learned", 0.0, 0.0),
    VANILLA: ("convex", 0.0, 0.0),
}
LEARNED_RATE = 0.01
METRICS = {"film_sentiment": "accuracy", "film_rating": "pearson", "verse_pairs": "accuracy"}
# What a summary's scalars are called at their end, and what the table calls their mean over the layers.
SUMMARIZED = {
    "residual_gate_abs": "residual gate, absolute",
    "conv_gate_abs": "conv gate, absolute",
    "residual": "share of the residual",
    "convolution": "share of the convolution",
    "distance": "distance to vanilla attention",
}
SUMMARIZED_ROWS = 64


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
    if variant != VANILLA:
        summary_file(file).write_text(json.dumps(summarize(args, task, file.parent)))
    file.write_text(json.dumps(test))
    (file.parent / "model.safetensors").unlink()


def summarize(args: argparse.Namespace, task: str, model_dir: Path) -> dict[str, float]:
    """The scalars of a trained model's summary."""
    files = glue_offline.task_files(args.data_dir, task)
    rows = load_dataset("csv", data_files=files, split="validation", keep_default_na=False)[:SUMMARIZED_ROWS]
    columns = next(names for names in KNOWN_COLUMNS if all(name in rows for name in names))
    texts = [rows[name] for name in columns]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    inputs = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    return ea_hf.summary(AutoModelForSequenceClassification.from_pretrained(model_dir), inputs).scalars()


def summary_file(file: Path) -> Path:
    return file.with_name("summary.json")


def summary_table(args: argparse.Namespace) -> str:
    """What evolution does in the models, the mean over their layers; mean and standard deviation over the seeds."""
    lines = [f"| task | variant | {' | '.join(SUMMARIZED.values())} | seeds |", "|---" * (len(SUMMARIZED) + 3) + "|"]
    for task, variant in itertools.product(args.tasks, VARIANTS):
        files = [summary_file(result_file(args, task, variant, seed)) for seed in args.seeds]
        summaries = [json.loads(file.read_text()) for file in files if file.exists()]
        if len(summaries) > 1:
            cells = [layer_means(summaries, name) for name in SUMMARIZED]
            lines.append(f"| {' | '.join([task, variant, *cells, str(len(summaries))])} |")
    return "\n".join(lines)


def layer_means(summaries: Sequence[dict[str, float]], name: str) -> str:
    """A cell of the table: the mean over the layers that have a scalar, of each summary."""
    means = [[value for key, value in scalars.items() if key.split("/")[-1] == name] for scalars in summaries]
    return mean_and_spread([statistics.mean(values) for values in means], 4) if all(means) else "-"


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
    print(f"\n{summary_table(args)}")


if __name__ == "__main__":
    main()
