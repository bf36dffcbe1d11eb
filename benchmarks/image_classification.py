# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-ViT and EA-ResNet with the same models with both weights 0, trained from scratch on small images.

    python benchmarks/image_classification.py                                # the table of docs/examples.md
    python benchmarks/image_classification.py --datasets fashion-mnist       # the same on Fashion-MNIST
    python benchmarks/image_classification.py --report_only                  # the table of the runs that are finished

Both get the same data, budget, hyperparameters and seeds, those of image_classification/image_offline.py. Nothing is chosen
by the test images. A run that is finished is not repeated, so several processes can share the work (--shard).
"""

import argparse
import json
from pathlib import Path

import _script_folders  # noqa: F401 -- must come first
import image_offline
import run_image_classification
import torch
from comparison import VANILLA, comparison_table, create_parser, own_runs


# Further arguments; the family's own weights if none.
VARIANTS = {"evolving": [], VANILLA: ["--ea_residual_weight", "0", "--ea_conv_weight", "0"]}
METRIC = "test_accuracy"


def run(args: argparse.Namespace, dataset: str, model_type: str, variant: str, seed: int) -> None:
    file = result_file(args, dataset, model_type, variant, seed)
    if file.exists():
        return
    image_offline.train(dataset, model_type, args.data_dir, file.parent, [*VARIANTS[variant], "--seed", str(seed)])
    (file.parent / "model.safetensors").unlink()


def result_file(args: argparse.Namespace, dataset: str, model_type: str, variant: str, seed: int) -> Path:
    return args.output_dir / f"{dataset}-{model_type}-{variant.replace(' ', '_')}-{seed}" / image_offline.RESULTS_FILE


def scores(args: argparse.Namespace, dataset: str, model_type: str, variant: str) -> dict[int, float]:
    files = {seed: result_file(args, dataset, model_type, variant, seed) for seed in args.seeds}
    return {seed: json.loads(file.read_text())[METRIC] for seed, file in files.items() if file.exists()}


def main() -> None:
    parser = create_parser(__doc__, seeds=[1, 2, 3])
    models = sorted(run_image_classification.CONFIGS)
    parser.add_argument("--datasets", nargs="+", choices=image_offline.DATASETS, default=["digits"])
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument(
        "--data_dir", type=Path, default=image_offline.FASHION_MNIST_DIR, help="Fashion-MNIST's files."
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(dataset, model_type) for dataset in args.datasets for model_type in args.models]
    runs = ((*case, variant, seed) for seed in args.seeds for case in cases for variant in VARIANTS)
    for names in own_runs(args, runs):
        run(args, *names)
    rows = {case: {variant: scores(args, *case, variant) for variant in VARIANTS} for case in cases}
    print(comparison_table(("data", "model"), list(VARIANTS), rows))


if __name__ == "__main__":
    main()
