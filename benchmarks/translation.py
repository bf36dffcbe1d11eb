# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-T5 with the same model with both weights 0, which is T5, on the LibreOffice help, trained from scratch.

    python benchmarks/translation.py                   # the table of the README
    python benchmarks/translation.py --report_only     # the table of the runs that are finished

Both get the same data, budget, hyperparameters and seeds. Nothing is chosen by the test pages. A run that is finished
is not repeated, so several processes can share the work (--shard), once one has prepared the data (--prepare_only).
"""

import argparse
import json
import statistics
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "translation"))

import offline


# Residual weight and convolution weight.
VARIANTS = {"EA-T5 (0.1, 0.1)": (0.1, 0.1), "both weights 0": (0.0, 0.0)}
METRICS = ("test_bleu", "test_chrf", "test_loss")


def output_dir(args: argparse.Namespace, variant: str, seed: int) -> Path:
    residual, conv = VARIANTS[variant]
    return args.output_dir / f"translation-{residual:g}-{conv:g}-{seed}"


def run(args: argparse.Namespace, variant: str, seed: int, extra: list[str]) -> None:
    directory = output_dir(args, variant, seed)
    if offline.is_finished(directory):
        return
    residual, conv = VARIANTS[variant]
    weights = ["--ea_residual_weight", str(residual), "--ea_conv_weight", str(conv)]
    offline.train(args.data_dir, directory, [*offline.SHORT, *weights, "--seed", str(seed), *extra])


def table(args: argparse.Namespace) -> str:
    lines = [
        "| metric | " + " | ".join(VARIANTS) + " | difference | seeds |",
        "|---|" + "---|" * (len(VARIANTS) + 2),
    ]
    results = {}
    for seed in args.seeds:
        directories = [output_dir(args, variant, seed) for variant in VARIANTS]
        if all(map(offline.is_finished, directories)):
            results[seed] = [json.loads((d / offline.RESULTS_FILE).read_text()) for d in directories]
    for metric in METRICS if len(results) > 1 else ():
        scores = list(zip(*([result[metric] for result in pair] for pair in results.values()), strict=True))
        # Seed by seed: both variants see the same order of examples.
        scores.append([evolving - vanilla for evolving, vanilla in zip(*scores, strict=True)])
        cells = [f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" for values in scores]
        lines.append(f"| {metric} | {' | '.join(cells)} | {len(results)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Further arguments go to run_translation.py.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--data_dir", type=Path, default=Path("data/libreoffice_help"))
    parser.add_argument("--output_dir", type=Path, default=Path("output/benchmark"))
    parser.add_argument(
        "--shard", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="Every N-th run from I."
    )
    parser.add_argument("--prepare_only", action="store_true")
    parser.add_argument("--report_only", action="store_true")
    args, extra = parser.parse_known_args()
    if not args.report_only:
        if args.prepare_only or args.shard[1] == 1:
            offline.prepare(args.data_dir)
        runs = [(variant, seed) for seed in args.seeds for variant in VARIANTS]
        for variant, seed in [] if args.prepare_only else runs[args.shard[0] :: args.shard[1]]:
            run(args, variant, seed, extra)
    print(table(args))


if __name__ == "__main__":
    main()
