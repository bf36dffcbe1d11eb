# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares EA-DC-Transformer with other methods on the labelled data sets that come with aeon.

    python benchmarks/time_series.py                                    # the table and the picture of docs/examples.md
    python benchmarks/time_series.py --datasets JapaneseVowels --max_train_steps 600 --num_hidden_layers 4
    python benchmarks/time_series.py --report_only                      # of the runs that are finished

All methods get the same series (standardized with the training part's statistics, neighbouring steps averaged where they
are longer than --max_steps) and the same three divisions of the training file, of which they learn from the larger part;
the networks keep the checkpoint that is best on the other part. The official test file is used once, for the table.
A run that is finished is not repeated, so several processes can share the work (--shard).
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import _script_folders  # noqa: F401 -- must come first
import matplotlib
import numpy as np


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import run_time_series
import torch
from aeon.classification.convolution_based import MiniRocketClassifier
from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier
from aeon.regression.convolution_based import MiniRocketRegressor
from aeon.regression.distance_based import KNeighborsTimeSeriesRegressor
from aeon.visualisation import plot_critical_difference
from comparison import VANILLA, create_parser, mean_and_spread, own_runs
from series_data import CLASSIFICATION, REGRESSION, SeriesData, bundled_datasets, dataset_files, load_files
from series_evaluation import compute_metrics
from series_models import Run
from transformers import PatchTSTConfig, PatchTSTForClassification, PatchTSTForRegression
from transformers.modeling_outputs import SequenceClassifierOutput

from ea_hf import EADCTransformerFeatureExtractor
from ea_hf.training.checkpoints import write_json


EVOLVING, CONVOLUTIONS, PATCHTST = "EA-DC-Transformer", "without attention", "PatchTST"
ROCKET, NEIGHBOUR = "MiniRocket", "1-NN DTW"
# Further arguments of the networks.
NETWORKS = {
    EVOLVING: [],
    VANILLA: ["--ea_residual_weight", "0", "--ea_conv_weight", "0"],
    CONVOLUTIONS: ["--config_overrides", "attention_value_ratio=0"],
    PATCHTST: ["--learning_rate", "1e-3"],
}
METHODS = (*NETWORKS, ROCKET, NEIGHBOUR)
NUM_SPLITS = 3


class _PatchTSTNames:
    """PatchTST with the names of EA-DC-Transformer's inputs and outputs."""

    def forward(self, past_values, past_observed_mask=None, labels=None, **kwargs: Any) -> SequenceClassifierOutput:
        outputs = super().forward(past_values, target_values=labels, **kwargs)
        logits = outputs["prediction_logits" if "prediction_logits" in outputs else "regression_outputs"]
        return SequenceClassifierOutput(loss=outputs.loss, logits=logits)


class PatchTSTClassifier(_PatchTSTNames, PatchTSTForClassification):
    """For series of equal length, without missing values."""


class PatchTSTRegressor(_PatchTSTNames, PatchTSTForRegression):
    """Likewise."""


def load_patchtst(
    args: argparse.Namespace, data: SeriesData, run: Run
) -> tuple[torch.nn.Module, EADCTransformerFeatureExtractor]:
    """A new PatchTST of EA-DC-Transformer's width and depth, with eight patches or so."""
    is_classification = data.task == CLASSIFICATION
    extractor = fit_extractor(args, data, run)
    patch_length = max(1, extractor.max_length // 8)
    config = PatchTSTConfig(
        num_input_channels=extractor.num_channels,
        context_length=extractor.max_length,
        patch_length=patch_length,
        patch_stride=patch_length,
        d_model=64,
        num_attention_heads=8,
        ffn_dim=256,
        num_hidden_layers=args.config_overrides["num_hidden_layers"],
        use_cls_token=True,
        num_targets=len(data.labels),
        loss="mse",
        **({"num_labels": len(data.labels)} if is_classification else {}),
    )
    return (PatchTSTClassifier if is_classification else PatchTSTRegressor)(config), extractor


def fit_extractor(args: argparse.Namespace, data: SeriesData, run: Run) -> EADCTransformerFeatureExtractor:
    targets = None if data.task == CLASSIFICATION else run.train.labels
    return EADCTransformerFeatureExtractor.fit(run.train.series, targets, args.max_steps, run.train.names)


def fit_aeon(args: argparse.Namespace, data: SeriesData, run: Run, method: str) -> dict[str, float]:
    """MiniRocket, for which shorter series are padded with zeros, or the nearest neighbour by DTW."""
    extractor = fit_extractor(args, data, run)
    is_classification = data.task == CLASSIFICATION
    if method == ROCKET:
        estimator = (MiniRocketClassifier if is_classification else MiniRocketRegressor)(random_state=run.seed)
    else:
        kind = KNeighborsTimeSeriesClassifier if is_classification else KNeighborsTimeSeriesRegressor
        estimator = kind(distance="dtw", n_neighbors=1)

    def inputs(series: list[np.ndarray]) -> Any:
        prepared = extractor.prepare(series)
        if method == ROCKET:
            length = max(extractor.max_length, 9)  # its kernels'
            prepared = [np.pad(values, ((0, length - len(values)), (0, 0))) for values in prepared]
        prepared = [values.T.astype(np.float64) for values in prepared]
        return np.stack(prepared) if len({values.shape for values in prepared}) == 1 else prepared

    labels = run.train.labels if is_classification else run.train.labels[:, 0]
    estimator.fit(inputs(run.train.series), labels)
    predicted = estimator.predict(inputs(run.test.series))
    outputs = np.eye(len(data.labels))[predicted.astype(int)] if is_classification else predicted[:, None]
    return {f"test_{name}": value for name, value in compute_metrics(data.task, outputs, run.test.labels).items()}


def fits(data: SeriesData, method: str) -> bool:
    """PatchTST takes series of one length only."""
    lengths = {len(values) for split in data.splits.values() for values in split.series}
    return method != PATCHTST or len(lengths) == 1


def run(args: argparse.Namespace, dataset: str, method: str, number: int) -> None:
    file = result_file(args, dataset, method, number)
    data = load_files(dataset_files(dataset))
    if file.exists() or not fits(data, method):
        return
    depth = f"num_hidden_layers={args.num_hidden_layers}"
    words = [*NETWORKS.get(method, [])]
    if "--config_overrides" in words:
        words[words.index("--config_overrides") + 1] += f",{depth}"
    else:
        words += ["--config_overrides", depth]
    own = run_time_series.parse_args(
        [
            *("--dataset_name", dataset, "--do_predict", "--overwrite_output_dir", "--seeds", str(number)),
            *("--num_splits", str(NUM_SPLITS), "--max_steps", str(args.max_steps)),
            *("--max_train_steps", str(args.max_train_steps), "--eval_steps", "10", "--logging_steps", "100"),
            *("--per_device_train_batch_size", "16", "--learning_rate", "3e-3"),
            *("--output_dir", str(file.parent), *words),
        ]
    )
    run_time_series.set_task_defaults(own, data.task)
    planned = run_time_series.plan_runs(own, data)[number - 1]
    planned.name = ""
    if method in NETWORKS:
        load = load_patchtst if method == PATCHTST else run_time_series.load_model
        results = run_time_series.execute(own, data, planned, last=False, load=load)
        for path in file.parent.glob("checkpoint-*"):
            shutil.rmtree(path)
        (file.parent / "model.safetensors").unlink()
    else:
        results = fit_aeon(own, data, planned, method)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {name: value for name, value in results.items() if name.startswith("test_")})


def result_file(args: argparse.Namespace, dataset: str, method: str, number: int) -> Path:
    return args.output_dir / f"{dataset}-{method.replace(' ', '_')}-{number}" / "test.json"


def collect(args: argparse.Namespace) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """The scores of each data set and method, over the divisions, and the metric of each data set."""
    scores: dict[str, dict[str, list[float]]] = {}
    metrics = {}
    for dataset in args.datasets:
        scores[dataset] = {}
        for method in METHODS:
            files = [result_file(args, dataset, method, number) for number in range(1, NUM_SPLITS + 1)]
            if not all(file.exists() for file in files):
                continue
            found = [json.loads(file.read_text()) for file in files]
            metrics[dataset] = "accuracy" if "test_accuracy" in found[0] else "rmse"
            scores[dataset][method] = [result[f"test_{metrics[dataset]}"] for result in found]
    return scores, metrics


def table(scores: dict[str, dict[str, list[float]]], metrics: dict[str, str]) -> str:
    """Mean and standard deviation over the divisions; a dash where a method does not fit or is not finished."""
    lines = [f"| {' | '.join(('data', 'metric', *METHODS))} |", "|---" * (2 + len(METHODS)) + "|"]
    for dataset, methods in scores.items():
        if not methods:
            continue
        cells = [mean_and_spread(methods[method], 3) if method in methods else "-" for method in METHODS]
        lines.append(f"| {' | '.join((dataset, metrics[dataset], *cells))} |")
    return "\n".join(lines)


def rmse_of_mean(dataset: str) -> float:
    """Of the mean of the training file's targets, on the test file: what a regression has to beat."""
    splits = load_files(dataset_files(dataset)).splits
    predicted = np.broadcast_to(splits["train"].labels.mean(axis=0), splits["test"].labels.shape)
    return compute_metrics(REGRESSION, predicted, splits["test"].labels)["rmse"]


def draw_critical_differences(path: Path, scores: dict[str, dict[str, list[float]]], metrics: dict[str, str]) -> int:
    """Mean ranks over the data sets that all methods have finished; returns how many these are."""
    complete = [dataset for dataset, methods in scores.items() if len(methods) == len(METHODS)]
    if len(complete) < 2:
        return len(complete)
    sign = {dataset: 1 if metrics[dataset] == "accuracy" else -1 for dataset in complete}
    values = [[sign[dataset] * np.mean(scores[dataset][method]) for method in METHODS] for dataset in complete]
    figure, _ = plot_critical_difference(np.array(values), list(METHODS), alpha=0.05)
    figure.suptitle(
        f"Mean rank on {len(complete)} data sets of equal length (1 is best)\na bar joins methods that do not differ "
        "(Wilcoxon tests with Holm's correction, 5 %)",
        fontsize=9,
        y=1.08,
    )
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)
    return len(complete)


def main() -> None:
    parser = create_parser(__doc__, seeds=range(1, NUM_SPLITS + 1))
    parser.set_defaults(output_dir=Path("output/benchmark/time_series"))
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=bundled_datasets(),
        # Two have copies with series of equal length.
        default=[name for name in bundled_datasets() if not name.endswith("_eq")],
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--max_steps", type=int, default=32, help="Longer series are averaged to so many steps.")
    parser.add_argument("--max_train_steps", type=int, default=300, help="Of the networks, 16 series each.")
    parser.add_argument("--num_hidden_layers", type=int, default=2, help="Of the networks.")
    parser.add_argument("--picture", type=Path, default=Path("docs/time_series_ranks.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = [(dataset, method, number) for dataset in args.datasets for method in args.methods for number in args.seeds]
    for names in own_runs(args, runs):
        run(args, *names)
    scores, metrics = collect(args)
    print(table(scores, metrics), end="\n\n")
    for dataset, metric in metrics.items():
        if metric == "rmse":
            print(f"{dataset}: the mean of the training file's targets has an RMSE of {rmse_of_mean(dataset):.4f}")
    count = draw_critical_differences(args.picture, scores, metrics)
    print(f"\n{count} data sets were finished by all methods" + (f": {args.picture}" if count > 1 else ""))


if __name__ == "__main__":
    main()
