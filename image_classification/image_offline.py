# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a classifier of small images from scratch, without the Hugging Face Hub: what `make vision` runs.

    python image_classification/image_offline.py                              # EA-ViT on scikit-learn's digits
    python image_classification/image_offline.py --model_type ea_resnet       # EA-ResNet on them
    python image_classification/image_offline.py --dataset fashion-mnist      # Fashion-MNIST, if its files are there
    python image_classification/image_offline.py --ea_residual_weight 0 --ea_conv_weight 0 --output_dir output/vit

Further arguments go to run_image_classification.py. It leaves a confusion matrix and the evolving maps of a few test
images beside the model, as PNG; the last lines compare the test set with two simple guesses.
"""

import csv
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import run_image_classification
import torch
from image_data import ImageData, open_image
from image_sources import load_digits, load_idx
from sklearn.metrics import confusion_matrix
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.output_dir import RESULTS_FILE
from ea_hf.training.script import has_bfloat16
from ea_hf.visualization import draw_map, image_maps


FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Later arguments override earlier ones.
ARGUMENTS = [
    *("--per_device_eval_batch_size", "250"),
    *("--weight_decay", "0.05"),
    *("--lr_scheduler_type", "cosine"),
    *("--num_warmup_steps", "100"),
    *("--label_smoothing_factor", "0.1"),
    *("--eval_steps", "no", "--checkpointing_steps", "no", "--logging_steps", "200"),
    "--do_predict",
]
# New weights have a standard deviation of about hidden_size ** -0.5. With ViT's 0.02, made for a width of 768, so narrow
# a model learns slowly.
VIT = "num_channels=1,hidden_size=96,num_hidden_layers=4,intermediate_size=192,initializer_range=0.1"
RESNET = (
    "num_channels=1,stem_stride=1,layer_type=basic,num_attention_heads=4,embedding_size=32,attention_poolings=[0,0]"
)
RECIPES = {
    ("digits", "ea_vit"): [
        *("--config_overrides", f"{VIT},num_attention_heads=6,patch_size=2", "--image_size", "8"),
        *("--num_train_epochs", "80", "--per_device_train_batch_size", "64", "--learning_rate", "1.5e-3"),
        *("--train_val_split", "0.05", "--mixup_alpha", "0.4", "--random_resized_crop", "0.75"),
    ],
    ("digits", "ea_resnet"): [
        *("--config_overrides", f"{RESNET},hidden_sizes=[32,64,128],depths=[1,2,2]"),
        *("--image_size", "8"),
        *("--num_train_epochs", "30", "--per_device_train_batch_size", "64", "--learning_rate", "2e-3"),
        *("--train_val_split", "0.05", "--mixup_alpha", "0.4"),
    ],
    ("fashion-mnist", "ea_vit"): [
        *("--config_overrides", f"{VIT},num_attention_heads=4,patch_size=4"),
        *("--image_size", "28", "--horizontal_flip"),
        *("--num_train_epochs", "12", "--per_device_train_batch_size", "64", "--learning_rate", "1.5e-3"),
        *("--train_val_split", "0.05", "--mixed_precision", "bf16" if has_bfloat16() else "no"),
    ],
    ("fashion-mnist", "ea_resnet"): [
        *("--config_overrides", f"{RESNET},downsample_in_first_stage=True,hidden_sizes=[32,64,128],depths=[1,2,1]"),
        *("--image_size", "28", "--horizontal_flip"),
        *("--num_train_epochs", "4", "--per_device_train_batch_size", "64", "--learning_rate", "2e-3"),
        *("--train_val_split", "0.05", "--mixed_precision", "bf16" if has_bfloat16() else "no"),
    ],
}
DATASETS = ("digits", "fashion-mnist")
SHOWN_IMAGES = 4
SHOWN_LAYERS = 4


def data_arguments(dataset: str, data_dir: Path) -> list[str]:
    """Where run_image_classification.py finds the data.

    Raises:
        SystemExit: it is not there; with what to do.
    """
    if dataset == "digits":
        return ["--dataset_name", run_image_classification.DIGITS]
    if not data_dir.is_dir():
        raise SystemExit(
            f"Fashion-MNIST is not in {data_dir}. Install it with `sudo apt-get install dataset-fashion-mnist` (Debian, "
            "Ubuntu), or put its four IDX files (https://github.com/zalandoresearch/fashion-mnist) into a directory and "
            "name it with --data_dir."
        )
    return ["--idx_dir", str(data_dir), "--label_names", ",".join(FASHION_MNIST_LABELS)]


def train(dataset: str, model_type: str, data_dir: Path, output_dir: Path, extra: list[str]) -> dict[str, float]:
    """Trains a new model, choosing nothing by the test images; returns the results of the run, theirs among them."""
    return run_image_classification.main(
        [
            *("--model_type", model_type, *data_arguments(dataset, data_dir), *ARGUMENTS),
            *RECIPES[dataset, model_type],
            *("--output_dir", str(output_dir), "--overwrite_output_dir", *extra),
        ]
    )


def load_data(dataset: str, data_dir: Path) -> ImageData:
    return load_digits() if dataset == "digits" else load_idx(str(data_dir), list(FASHION_MNIST_LABELS))


def simple_guesses(data: ImageData) -> dict[str, float]:
    """Accuracy of the most frequent class, and of the class with the nearest mean image."""
    pixels = {
        name: np.stack([np.ravel(image) for image in split.images]).astype(np.float32)
        for name, split in data.splits.items()
    }
    train, test = data.splits["train"].labels, data.splits["test"].labels
    means = np.stack([pixels["train"][train == label].mean(axis=0) for label in range(len(data.labels))])
    distances = (means**2).sum(axis=1) - 2 * pixels["test"] @ means.T  # but for what is the same for all classes
    return {
        "majority class": float((test == np.bincount(train).argmax()).mean()),
        "nearest class mean": float((test == distances.argmin(axis=1)).mean()),
    }


def draw_confusion_matrix(path: Path, labels: list[str], truth: list[str], predicted: list[str]) -> None:
    counts = confusion_matrix(truth, predicted, labels=labels)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure, axis = plt.subplots(figsize=(7.2, 6.4), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if max(map(len, labels)) > 3:
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    else:
        axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("right class")
    for row, column in np.argwhere(counts > 0):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=9)
    right = np.trace(counts)
    axis.set_title(f"{counts.sum()} test images, {right} of them right ({right / counts.sum():.1%})")
    figure.colorbar(image, ax=axis, label="share of the images of the right class")
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def draw_attention_maps(path: Path, model_dir: Path, data: ImageData) -> None:
    """A few test images, and the map of each of the first layers of the longest chain, before the softmax."""
    model = AutoModelForImageClassification.from_pretrained(model_dir).eval()
    processor = AutoImageProcessor.from_pretrained(model_dir, backend="pil")
    split = data.splits["test"]
    indices = [int(np.flatnonzero(split.labels == label)[0]) for label in range(SHOWN_IMAGES)]
    images = [open_image(split.images[index], model.config.num_channels) for index in indices]
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    examples = [image_maps(model, processor, image) for image in images]
    longest = [max(example.chains, key=lambda chain: len(chain.layers)).layers[:SHOWN_LAYERS] for example in examples]
    maps = [[layer.evolved.mean(dim=0) for layer in layers] for layers in longest]  # over the heads
    limit = max(evolved.abs().max().item() for layers in maps for evolved in layers)
    columns = 1 + len(maps[0])
    figure, axes = plt.subplots(
        len(images), columns, figsize=(2.6 * columns, 2.65 * len(images) + 0.6), layout="constrained", squeeze=False
    )
    for row, (index, image) in enumerate(zip(indices, images, strict=True)):
        axes[row, 0].imshow(np.asarray(image), cmap="gray")
        predicted = model.config.id2label[logits[row].argmax().item()]
        axes[row, 0].set_title(f"{data.labels[split.labels[index]]}, classified as {predicted}", fontsize=9)
        axes[row, 0].set_xlabel("pixel", fontsize=8)
        axes[row, 0].set_ylabel("pixel", fontsize=8)
        for axis, layer, evolved in zip(axes[row, 1:], longest[row], maps[row], strict=True):
            shown = draw_map(axis, evolved, limit=limit)
            if row == 0:
                axis.set_title(f"$A_{{{layer.number}}}$", fontsize=11)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
    tokens = "0 is the class token, then come" if model.config.model_type == "ea_vit" else "these are"
    figure.colorbar(
        shown,
        ax=axes,
        orientation="horizontal",
        shrink=0.7,
        label=f"attention score before the softmax, mean of the heads\nqueries and keys: {tokens} parts of the image, "
        "row by row",
    )
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.15)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument("--model_type", choices=sorted(run_image_classification.CONFIGS), default="ea_vit")
    parser.add_argument("--data_dir", type=Path, default=FASHION_MNIST_DIR, help="With the files of Fashion-MNIST.")
    parser.add_argument("--output_dir", type=directory, help="Default: output/DATASET-MODEL_TYPE.")
    args, extra = parser.parse_known_args(argv)
    output_dir = args.output_dir or Path("output") / f"{args.dataset}-{args.model_type}"
    if args.dataset == "digits":
        torch.set_num_threads(1)  # tensors so small only lose by sharing
    results = train(args.dataset, args.model_type, args.data_dir, output_dir, extra)
    data = load_data(args.dataset, args.data_dir)
    with (output_dir / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth, predicted = ([row[name] for row in rows] for name in ("label", "prediction"))
    draw_confusion_matrix(output_dir / "confusion_matrix.png", data.labels, truth, predicted)
    draw_attention_maps(output_dir / "attention_maps.png", output_dir, data)

    print(f"\n{args.dataset}, {len(rows)} test images\n  {'':<20}{'accuracy':>10}")
    for name, value in {**simple_guesses(data), args.model_type: results["test_accuracy"]}.items():
        print(f"  {name:<20}{value:>10.3f}")
    print(f"\nPictures: {output_dir / 'confusion_matrix.png'}, {output_dir / 'attention_maps.png'}")
    print(f"The model is in {output_dir}, with a model card (README.md).")
    print(
        f"Training took {results['train_runtime'] / 60:.1f} minutes, {results['train_samples_per_second']:.0f} images per "
        f"second; all figures: {output_dir / RESULTS_FILE}"
    )


if __name__ == "__main__":
    run_main(main)
