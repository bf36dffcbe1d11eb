# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an EA-DC-Transformer on JapaneseVowels, without a network: what `make time-series` runs.

    python time_series/time_series_offline.py                               # JapaneseVowels, which comes with aeon
    python time_series/time_series_offline.py --dataset_name BasicMotions   # or another data set of aeon
    python time_series/time_series_offline.py --seeds 1 2 3                 # as many trainings for each seed

Further arguments go to run_time_series.py. It leaves the evolving maps of one test series beside the models, as PNG; the
last lines compare the test series with published results.
"""

from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import run_time_series
import torch
from series_data import CLASSIFICATION, dataset_files, load_files

from ea_hf import EADCTransformerFeatureExtractor, EADCTransformerForClassification
from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.output_dir import RESULTS_FILE


# Later arguments override earlier ones.
ARGUMENTS = [
    *("--num_splits", "3", "--seeds", "1", "--num_train_epochs", "40"),
    *("--logging_steps", "1000"),
    "--refit",
    "--do_predict",
]
# Accuracy in percent, from Wang et al., "TimeMixer++", ICLR 2025, https://arxiv.org/abs/2410.16032, table 20.
PUBLISHED = {
    "JapaneseVowels": {
        "DTW": 94.9,
        "XGBoost": 86.5,
        "Rocket": 96.2,
        "LSTM": 79.7,
        "Transformer": 98.7,
        "Flowformer": 98.9,
        "TimesNet": 98.4,
        "TimeMixer++": 97.9,
    }
}
SHOWN_HEADS = 4


def train(dataset_name: str, output_dir: Path, extra: list[str]) -> dict:
    """Trains on the divisions of the training series, then on all of them, choosing nothing by the test series."""
    return run_time_series.main(
        [
            *("--dataset_name", dataset_name, *ARGUMENTS),
            *("--output_dir", str(output_dir), "--overwrite_output_dir", *extra),
        ]
    )


def draw_attention_maps(path: Path, model_dir: Path, dataset_name: str, heads: int = SHOWN_HEADS) -> None:
    """The evolved map of each layer and of the first heads, before the softmax, for the first test series."""
    model = EADCTransformerForClassification.from_pretrained(model_dir).eval()
    extractor = EADCTransformerFeatureExtractor.from_pretrained(model_dir)
    data = load_files(dataset_files(dataset_name))
    split = data.splits["test"]
    batch = extractor(split.series[:1])
    with torch.no_grad():
        outputs = model(**batch, output_attention_maps=True)
    maps = [evolved[0] for evolved in outputs.attention_maps]  # (heads, query, key)
    heads = min(heads, len(maps[0]))
    figure, axes = plt.subplots(
        heads, len(maps), figsize=(1.75 * len(maps) + 0.6, 1.8 * heads + 1.5), layout="constrained", squeeze=False
    )
    for column, evolved in enumerate(maps):
        # A scale for each layer, as the scores of early layers can be many times those of late ones.
        limit = evolved[:heads].abs().max().item()
        for head in range(heads):
            axis = axes[head, column]
            shown = axis.imshow(evolved[head].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.tick_params(labelsize=7)
            if head == 0:
                axis.set_title(f"layer {column + 1}, $A_{{{column + 1}}}$", fontsize=10)
            if head == heads - 1:
                axis.set_xlabel("key step", fontsize=8)
            if column == 0:
                axis.set_ylabel(f"head {head + 1}\nquery step", fontsize=8)
        bar = figure.colorbar(shown, ax=axes[:, column], orientation="horizontal", aspect=12, pad=0.02)
        bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.2g}", "0", f"{limit:.2g}"])
        bar.ax.tick_params(labelsize=7)
    predicted = model.config.id2label[outputs.logits[0].argmax().item()]
    figure.suptitle(
        f"{dataset_name}, first test series ({batch['past_values'].shape[1]} steps, {extractor.num_channels} channels), "
        f"class {data.labels[split.labels[0]]}, classified as {predicted}",
        fontsize=11,
    )
    figure.supxlabel("attention score before the softmax (no unit), a scale for each layer", fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def format_score(scores: dict[str, float], name: str) -> str:
    spread = scores.get(f"{name}_std")
    return f"{100 * scores[name]:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_name", default="JapaneseVowels")
    parser.add_argument("--output_dir", type=directory, help="Default: output/DATASET_NAME.")
    args, extra = parser.parse_known_args(argv)
    if load_files(dataset_files(args.dataset_name)).task != CLASSIFICATION:
        parser.error(f"--dataset_name {args.dataset_name} is no classification; use run_time_series.py")
    output_dir = args.output_dir or Path("output") / args.dataset_name
    torch.set_num_threads(1)  # tensors so small only lose by sharing
    results = train(args.dataset_name, output_dir, extra)
    model_dir = output_dir / next(iter(results["refit"]["runs"]))
    picture = output_dir / "attention_maps.png"
    draw_attention_maps(picture, model_dir, args.dataset_name)

    rows = {name: f"{value:.1f}" for name, value in PUBLISHED.get(args.dataset_name, {}).items()}
    runs, epochs = len(results["runs"]), results["refit"]["num_train_epochs"]
    rows[f"EA-DC-Transformer, chosen by validation, {runs} runs"] = format_score(results, "test_accuracy")
    rows[f"EA-DC-Transformer, all training series, {epochs} epochs"] = format_score(results["refit"], "test_accuracy")
    width = max(map(len, rows)) + 2
    print(f"\n{args.dataset_name}, official test series\n  {'':<{width}}accuracy in %")
    for name, value in rows.items():
        print(f"  {name:<{width}}{value}")
    seconds = sum(run["train_runtime"] for run in [*results["runs"].values(), *results["refit"]["runs"].values()])
    print(f"\nPicture: {picture}")
    print(f"The model is in {model_dir}, with a model card (README.md).")
    print(f"Training took {seconds / 60:.1f} minutes; all figures: {output_dir / RESULTS_FILE}")


if __name__ == "__main__":
    run_main(main)
