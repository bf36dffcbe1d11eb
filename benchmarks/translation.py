# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-T5 with the same model with both weights 0, which is T5, on the LibreOffice help, trained from scratch.

    python benchmarks/translation.py                   # the table of docs/examples.md
    python benchmarks/translation.py --report_only     # the table of the runs that are finished

Both get the same data, budget, hyperparameters and seeds. Nothing is chosen by the test pages. A run that is finished
is not repeated, so several processes can share the work (--shard), once one has prepared the data (--prepare_only).
"""

import argparse
import json
from pathlib import Path

import _script_folders  # noqa: F401 -- must come first
import translation_offline
from comparison import VANILLA, comparison_table, create_parser, own_runs


VARIANTS = {"EA-T5 (0.1, 0.1)": (0.1, 0.1), VANILLA: (0.0, 0.0)}
METRICS = ("test_bleu", "test_chrf", "test_loss")


def output_dir(args: argparse.Namespace, variant: str, seed: int) -> Path:
    residual, conv = VARIANTS[variant]
    return args.output_dir / f"translation-{residual:g}-{conv:g}-{seed}"


def run(args: argparse.Namespace, variant: str, seed: int, extra: list[str]) -> None:
    directory = output_dir(args, variant, seed)
    if translation_offline.is_finished(directory):
        return
    residual, conv = VARIANTS[variant]
    weights = ["--ea_residual_weight", str(residual), "--ea_conv_weight", str(conv)]
    translation_offline.train(
        args.data_dir, directory, [*translation_offline.SHORT, *weights, "--seed", str(seed), *extra]
    )


def scores(args: argparse.Namespace, metric: str, variant: str) -> dict[int, float]:
    directories = {seed: output_dir(args, variant, seed) for seed in args.seeds}
    return {
        seed: json.loads((directory / translation_offline.RESULTS_FILE).read_text())[metric]
        for seed, directory in directories.items()
        if translation_offline.is_finished(directory)
    }


def main() -> None:
    parser = create_parser(__doc__, seeds=[1, 2, 3], epilog="Further arguments go to run_translation.py.")
    parser.add_argument("--data_dir", type=Path, default=Path("data/libreoffice_help"))
    parser.add_argument("--prepare_only", action="store_true")
    args, extra = parser.parse_known_args()
    if args.prepare_only or (args.shard[1] == 1 and not args.report_only):
        translation_offline.prepare(args.data_dir)
    runs = ((variant, seed) for seed in args.seeds for variant in VARIANTS)
    for variant, seed in [] if args.prepare_only else own_runs(args, runs):
        run(args, variant, seed, extra)
    rows = {(metric,): {variant: scores(args, metric, variant) for variant in VARIANTS} for metric in METRICS}
    print(comparison_table(("metric",), list(VARIANTS), rows, digits=2))


if __name__ == "__main__":
    main()
