# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Small files of real handwritten digits, in all the ways that run_image_classification.py reads."""

import gzip
import io
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel


SCRIPTS = Path(__file__).parents[1] / "image_classification"
CLASSES = ("zero", "one", "two")
TINY_VIT = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


@cache
def digits(label: int) -> np.ndarray:
    """All images of a digit, (images, 8, 8), unsigned bytes."""
    bunch = load_digits()
    return np.round(bunch.images[bunch.target == label] * (255 / 16)).astype(np.uint8)


def write_folders(directory: Path, count: int, start: int = 0, suffix: str = ".png") -> str:
    """Writes so many images of each class, in a folder for each; returns the directory as a string."""
    for label, name in enumerate(CLASSES):
        folder = directory / name
        folder.mkdir(parents=True)
        for index in range(start, start + count):
            Image.fromarray(digits(label)[index]).save(folder / f"{index}{suffix}")
    return str(directory)


def write_idx(path: Path, values: np.ndarray) -> Path:
    """Writes an IDX file of unsigned bytes, packed if its name ends with .gz."""
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(directory: Path, train: int = 20, test: int = 5, suffix: str = ".gz") -> str:
    """Writes the four files of MNIST with so many digits of each class; returns the directory as a string."""
    for stem, start, count in (("train", 0, train), ("t10k", train, test)):
        images = np.concatenate([digits(label)[start : start + count] for label in range(len(CLASSES))])
        labels = np.repeat(np.arange(len(CLASSES)), count)
        write_idx(directory / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(directory / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return str(directory)


def write_hub(directory: Path, damaged: bool = False) -> str:
    """Writes a data set in the layout that it has on the Hub; the last training image may be damaged."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    for name, start, count in (("train", 0, 9), ("validation", 9, 4), ("test", 13, 3)):
        rows = [(label, index) for index in range(start, start + count) for label in range(len(CLASSES))]
        images = [{"bytes": encode(Image.fromarray(digits(label)[index])), "path": None} for label, index in rows]
        if damaged and name == "train":
            images[-1] = {"bytes": images[-1]["bytes"][:50], "path": None}
        table = datasets.Dataset.from_dict({"image": images, "label": [label for label, _ in rows]}, features=features)
        directory.mkdir(parents=True, exist_ok=True)
        table.to_parquet(directory / f"{name}-00000-of-00001.parquet")
    return str(directory)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_checkpoint(directory: Path) -> str:
    """Writes a random vanilla ViT without head, with its image processor; returns the directory as a string."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY_VIT, initializer_range=0.2)).save_pretrained(directory)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.3], image_std=[0.4])
    processor.save_pretrained(directory)
    return str(directory)
