# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-ViT and EA-ResNet with the same models with both weights 0, trained from scratch on small images.

    python benchmarks/image_classification.py                                # the table of the README
    python benchmarks/image_classification.py --datasets fashion-mnist       # the same on Fashion-MNIST
    python benchmarks/image_classification.py --report_only                  # the table of the runs that are finished

Both get the same data, budget, hyperparameters and seeds, those of image_classification/offline.py. Nothing is chosen
by the test images. A run that is finished is not repeated, so several processes can share the work (--shard).
"""

import argparse
import json
import statistics
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image_classification"))

import offline
import run_image_classification
import torch


# Residual weight and convolution weight; `None` for the family's own.
VARIANTS = {"evolving": None, "both weights 0": 0.0}
METRIC = "test_accuracy"


def run(args: argparse.Namespace, dataset: str, model_type: str, variant: str, seed: int) -> None:
    output_dir = output_dir_of(args, dataset, model_type, variant, seed)
    if (output_dir / "all_results.json").exists():
        return
    weight = VARIANTS[variant]
    extra = [] if weight is None else ["--ea_residual_weight", str(weight), "--ea_conv_weight", str(weight)]
    offline.train(dataset, model_type, args.data_dir, output_dir, [*extra, "--seed", str(seed)])
    (output_dir / "model.safetensors").unlink()


def output_dir_of(args: argparse.Namespace, dataset: str, model_type: str, variant: str, seed: int) -> Path:
    return args.output_dir / f"{dataset}-{model_type}-{variant.replace(' ', '_')}-{seed}"


def table(args: argparse.Namespace) -> str:
    lines = [
        "| data | model | " + " | ".join(VARIANTS) + " | difference | seeds |",
        "|---|---|" + "---|" * (len(VARIANTS) + 2),
    ]
    for dataset in args.datasets:
        for model_type in args.models:
            scores = {}
            for variant in VARIANTS:
                directories = [output_dir_of(args, dataset, model_type, variant, seed) for seed in args.seeds]
                files = [directory / "all_results.json" for directory in directories]
                scores[variant] = [json.loads(file.read_text())[METRIC] for file in files if file.exists()]
            if min(len(values) for values in scores.values()) < 2:
                continue
            # Seed by seed: both variants see the same images in the same order.
            differences = [a - b for a, b in zip(*scores.values(), strict=False)]
            cells = [f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}" for values in scores.values()]
            cells.append(f"{statistics.mean(differences):+.4f} ± {statistics.stdev(differences):.4f}")
            lines.append(f"| {dataset} | {model_type} | {' | '.join(cells)} | {len(differences)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    models = sorted(run_image_classification.CONFIGS)
    parser.add_argument("--datasets", nargs="+", choices=offline.DATASETS, default=["digits"])
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data_dir", type=Path, default=offline.FASHION_MNIST_DIR, help="Fashion-MNIST's files.")
    parser.add_argument("--output_dir", type=Path, default=Path("output/benchmark"))
    parser.add_argument(
        "--shard", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="Every N-th run from I."
    )
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args()
    if not args.report_only:
        torch.set_num_threads(1)
        runs = [
            (dataset, model_type, variant, seed)
            for seed in args.seeds
            for dataset in args.datasets
            for model_type in args.models
            for variant in VARIANTS
        ]
        for names in runs[args.shard[0] :: args.shard[1]]:
            run(args, *names)
    print(table(args))


if __name__ == "__main__":
    main()
