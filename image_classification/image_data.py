# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads images with classes, and finds what is wrong with them before anything is trained."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ea_hf.models.image_processing_ea import UnreadableImageError, conversions, to_plain_image
from ea_hf.training.class_labels import new_indices
from ea_hf.training.distinct_names import check_names_differ
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

# How many images or classes a message names.
NAMED = 5
CHECKED_AT_ONCE = 256


@dataclass
class ImageSplit:
    """Images with their classes.

    Attributes:
        images: paths, bytes, or arrays of unsigned bytes, (height, width) or (height, width, channels).
        labels: index of each image's class; `None` if they are not known.
        names: what messages call each image.
    """

    images: Sequence[Any]
    labels: np.ndarray | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int]) -> "ImageSplit":
        return ImageSplit(
            Selection(self.images, indices),
            None if self.labels is None else self.labels[np.asarray(indices, dtype=int)],
            Selection(self.names, indices),
        )

    def fingerprint(self) -> str:
        """Identifies the images, in their order, and their classes: files by their names and sizes, others by content."""
        digest = hashlib.sha256(b"" if self.labels is None else self.labels.tobytes())
        for image in self.images:
            if isinstance(image, str | Path):
                digest.update(f"{Path(image).name} {Path(image).stat().st_size} ".encode())
            else:
                digest.update(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
        return digest.hexdigest()


@dataclass
class Selection(Sequence):
    """Some items of a sequence, taken when they are asked for."""

    items: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.items[int(self.indices[index])]


@dataclass
class Numbered(Sequence):
    """Names such as "digit 1", "digit 2"."""

    text: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        return f"{self.text} {index + 1}"


@dataclass
class HubImages(Sequence):
    """The column of images of a data set, undecoded."""

    dataset: Dataset
    column: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        value = self.dataset[int(index)][self.column]
        if value is None:
            raise UnreadableImageError("there is no image")
        return value["bytes"] if value["bytes"] is not None else value["path"]


@dataclass
class ImageData:
    """Checked data.

    Attributes:
        splits: by name, "train", "validation", "test".
        labels: the names of the classes in order of their index.
        source: where the data is from, for messages and the model card.
    """

    splits: dict[str, ImageSplit]
    labels: list[str]
    source: str


# Reading one image


def open_image(source: Any, num_channels: int) -> Image.Image:
    """Reads an image as grey (`num_channels` 1) or as RGB, with 8 bits per channel, see `to_plain_image`.

    Args:
        source: a path, the bytes of a file, or an array of unsigned bytes.

    Raises:
        UnreadableImageError: with what is wrong.
    """
    return _open(source, num_channels)[0]


def _open(source: Any, num_channels: int) -> tuple[Image.Image, list[str]]:
    """The image, and what was changed of it."""
    try:
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
            return to_plain_image(_checked(image), num_channels), []
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            changes = conversions(file)
            return to_plain_image(_checked(file), num_channels), changes
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise UnreadableImageError(_without_path(error, source)) from error


def _checked(image: Image.Image) -> Image.Image:
    if min(image.size) < 2:
        raise UnreadableImageError(f"it has {image.width} x {image.height} pixels")
    return image


def _without_path(error: Exception, source: Any) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image of a format that Pillow knows"
    return text.replace(repr(str(source)), "the file") if isinstance(source, str | Path) else text


def find_unreadable(split: ImageSplit, num_workers: int = 0, name: str = "images") -> dict[int, str]:
    """Reads all images; returns what is wrong with those that cannot be read, by index. Logs which others are changed.

    Args:
        name: of the split, for the log.
    """
    changed: dict[str, list[int]] = {}

    def faults(start: int) -> tuple[dict[int, str], list[tuple[str, int]]]:
        found, changes = {}, []
        for index in range(start, min(start + CHECKED_AT_ONCE, len(split))):
            try:
                changes += [(change, index) for change in _open(split.images[index], num_channels=3)[1]]
            except UnreadableImageError as error:
                found[index] = str(error)
        return found, changes

    unreadable = {}
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for found, changes in pool.map(faults, range(0, len(split), CHECKED_AT_ONCE)):
            unreadable |= found
            for change, index in changes:
                changed.setdefault(change, []).append(index)
    for change, indices in sorted(changed.items()):
        logger.info(
            f"{len(indices)} of {len(split)} images of {name} are {change}, such as {split.names[indices[0]]}."
        )
    return unreadable


def note_classes(data: ImageData) -> None:
    """Logs how many images each class has."""
    for name, split in data.splits.items():
        if split.labels is None:
            logger.info(f"Images of {name}: {len(split)}, of unknown classes.")
            continue
        counts = np.bincount(split.labels, minlength=len(data.labels)).tolist()
        listed = [f"{label!r} {count}" for label, count in zip(data.labels, counts, strict=True)][: 4 * NAMED]
        more = ", ..." if len(listed) < len(data.labels) else ""
        logger.info(f"Images of {name}: {len(split)}, of {len(data.labels)} classes; {', '.join(listed)}{more}.")


def drop_unreadable(data: ImageData, unreadable: dict[str, dict[int, str]], skip: bool) -> None:
    """Takes unreadable images out of the splits, or refuses them.

    Args:
        unreadable: by split, as `find_unreadable` returns them.
        skip: take them out and say so, instead of raising.

    Raises:
        ValueError: with how many there are, and the first of them by name.
    """
    for name, faults in unreadable.items():
        if not faults:
            continue
        split = data.splits[name]
        lines = [f"  {split.names[index]}: {fault}" for index, fault in list(faults.items())[:NAMED]]
        lines += ["  ..."] * (len(faults) > NAMED)
        listing = "\n".join(lines)
        if not skip:
            raise ValueError(
                f"{len(faults)} of {len(split)} images of {name} cannot be read:\n{listing}\nRepair or remove them, or "
                "leave them out with --skip_unreadable_images."
            )
        logger.warning(f"Leaving out {len(faults)} of {len(split)} images of {name} that cannot be read:\n{listing}")
        data.splits[name] = split.select([index for index in range(len(split)) if index not in faults])


def check_classes(data: ImageData, skip_empty: bool) -> None:
    """Checks that every class has images to learn from and to be evaluated with.

    Args:
        skip_empty: only say which have none, and take those that have none for training out of the classes.

    Raises:
        ValueError: with the classes by name.
    """
    check_names_differ(data.labels, data.source)
    for name in ("train", "validation"):
        split = data.splits.get(name)
        if split is None:
            continue
        counts = Counter(split.labels.tolist())
        empty = [label for index, label in enumerate(data.labels) if index not in counts]
        if not empty:
            continue
        listing = ", ".join(map(repr, empty[:NAMED])) + (", ..." if len(empty) > NAMED else "")
        message = f"{len(empty)} of {len(data.labels)} classes have no image in {name}: {listing}"
        if not skip_empty:
            raise ValueError(f"{message}. Add images, or go on without with --skip_empty_classes.")
        logger.warning(f"{message}.")
        if name == "train":
            _remove_classes(data, empty)
    if "train" in data.splits and len(data.labels) < 2:
        raise ValueError(f"{data.source} has {len(data.labels)} class for training; classification needs two.")


def _remove_classes(data: ImageData, removed: list[str]) -> None:
    kept = [label for label in data.labels if label not in removed]
    for name, split in data.splits.items():
        if split.labels is None:
            continue
        indices = [index for index, label in enumerate(split.labels) if data.labels[label] in kept]
        if len(indices) < len(split):
            logger.warning(f"Leaving out {len(split) - len(indices)} images of {name}, whose classes are not trained.")
        split = split.select(indices)
        split.labels = np.array([kept.index(data.labels[label]) for label in split.labels], dtype=int)
        data.splits[name] = split
    data.labels = kept


def reorder_labels(data: ImageData, labels: list[str]) -> None:
    """Gives the classes the order, and perhaps the larger number, that a checkpoint knows.

    Raises:
        ValueError: the checkpoint does not know one of the classes.
    """
    unknown = [label for label in data.labels if label not in labels]
    if unknown:
        raise ValueError(
            f"{data.source} has classes that the checkpoint does not know, {', '.join(map(repr, unknown[:NAMED]))}; it "
            f"knows {', '.join(map(repr, labels[:20]))}{', ...' if len(labels) > 20 else ''}."
        )
    new_index = new_indices(data.labels, labels)
    for split in data.splits.values():
        if split.labels is not None:
            split.labels = new_index[split.labels]
    data.labels = list(labels)


def split_off(split: ImageSplit, fraction: float) -> tuple[ImageSplit, ImageSplit]:
    """Divides a split in two, class by class, always in the same way.

    Args:
        fraction: share of the second part; a class of two images or more has at least one of them there.
    """
    generator = np.random.default_rng(0)
    second: list[int] = []
    for label in np.unique(split.labels):
        members = generator.permutation(np.flatnonzero(split.labels == label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        second += members[:count].tolist()
    chosen = set(second)
    first = [index for index in range(len(split)) if index not in chosen]
    return split.select(first), split.select(sorted(second))


def limit(split: ImageSplit, max_samples: int | None) -> ImageSplit:
    """A random part of a split, always the same."""
    if max_samples is None or max_samples >= len(split):
        return split
    return split.select(np.sort(np.random.default_rng(0).permutation(len(split))[:max_samples]).tolist())
