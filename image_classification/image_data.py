# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads images with classes, and finds what is wrong with them before anything is trained."""

import gzip
import hashlib
import io
import logging
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, load_dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageOps


logger = logging.getLogger(__name__)

# How many images or classes a message names.
NAMED = 5
CHECKED_AT_ONCE = 256
# IDX files (http://yann.lecun.com/exdb/mnist): the third byte says the type of the values, the fourth how many sizes
# follow.
IDX_UNSIGNED_BYTES = 8
IDX_FILES = {
    "train": ("train-images", "train-labels"),
    "test": ("t10k-images", "t10k-labels"),
}
# Pixels of 16 bits, in units of those of 8 bits.
DEEP_PIXEL = 257


class UnreadableImageError(ValueError):
    """An image cannot be read, or is not one that a model can learn from."""


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
    """Reads an image as grey (`num_channels` 1) or as RGB, with 8 bits per channel.

    Pixels of 16 bits are scaled and not clipped, transparent ones stand before white, and a camera's note on how it was
    held is obeyed. Of several frames it takes the first.

    Args:
        source: a path, the bytes of a file, or an array of unsigned bytes.

    Raises:
        UnreadableImageError: with what is wrong.
    """
    try:
        if isinstance(source, np.ndarray):
            image = Image.fromarray(source)
        else:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                image = ImageOps.exif_transpose(file)
        if min(image.size) < 2:
            raise UnreadableImageError(f"it has {image.width} x {image.height} pixels")
        image = _to_8_bits(image)
        if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode not in ("1", "L"):
            image = image.convert("RGB")  # Pillow knows the way to grey from here only, for some modes
        return image.convert("L" if num_channels == 1 else "RGB")
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise UnreadableImageError(_without_path(error, source)) from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey images of more than 8 bits, which Pillow's `convert` would clip to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise UnreadableImageError("its pixels are decimal numbers, and not all of them are from 0 to 1")
        return Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    if pixels.min() < 0 or pixels.max() > 255 * DEEP_PIXEL:
        raise UnreadableImageError(f"its pixels are integers from {pixels.min()} to {pixels.max()}")
    return Image.fromarray(np.round(pixels / DEEP_PIXEL).astype(np.uint8))


def _without_path(error: Exception, source: Any) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image of a format that Pillow knows"
    return text.replace(repr(str(source)), "the file") if isinstance(source, str | Path) else text


def find_unreadable(split: ImageSplit, num_workers: int = 0) -> dict[int, str]:
    """Reads all images; returns what is wrong with those that cannot be read, by index."""

    def faults(start: int) -> dict[int, str]:
        found = {}
        for index in range(start, min(start + CHECKED_AT_ONCE, len(split))):
            try:
                open_image(split.images[index], num_channels=3)
            except UnreadableImageError as error:
                found[index] = str(error)
        return found

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        parts = pool.map(faults, range(0, len(split), CHECKED_AT_ONCE))
        return {index: fault for part in parts for index, fault in part.items()}


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
    new_index = np.array([labels.index(label) for label in data.labels], dtype=int)
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


# Where images come from


def load_folders(directories: dict[str, str]) -> ImageData:
    """Reads directories with a folder of images for each class.

    Args:
        directories: split name to path. The classes are those of the first one that knows them.

    Raises:
        FileNotFoundError, ValueError: a directory is missing, has no class folders, or one of a class that training
            does not have.
    """
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    labels: list[str] = []
    splits = {}
    for name, path in directories.items():
        directory = Path(path)
        if not directory.is_dir():
            raise FileNotFoundError(f"--{name}_dir {path} does not exist or is not a directory.")
        folders = sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not folders:
            raise ValueError(f"--{name}_dir {path} has no folders; it needs one with images for each class.")
        labels = labels or folders
        unknown = [folder for folder in folders if folder not in labels]
        if unknown:
            raise ValueError(
                f"--{name}_dir {path} has class folders that {next(iter(directories.values()))} does not have: "
                f"{', '.join(map(repr, unknown[:NAMED]))}."
            )
        files, indices, others = [], [], []
        for folder in folders:
            for file in sorted(path for path in (directory / folder).rglob("*") if path.is_file()):
                if file.name.startswith("."):
                    continue
                if file.suffix.lower() not in extensions:
                    others.append(file)
                    continue
                files.append(str(file))
                indices.append(labels.index(folder))
        if others:
            logger.warning(f"{path}: {len(others)} files are no images by their names, such as {others[0]}.")
        splits[name] = ImageSplit(files, np.array(indices, dtype=int), files)
    return ImageData(splits, labels, next(iter(directories.values())))


def load_hub(
    dataset_name: str,
    dataset_config_name: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
) -> ImageData:
    """Reads a data set from the Hub, or a local copy of its repository.

    Raises:
        ConnectionError: the Hub cannot be reached.
        ValueError: there is no column of images or of classes.
    """
    try:
        raw = load_dataset(dataset_name, dataset_config_name)
    except (ConnectionError, OSError) as error:
        raise ConnectionError(
            f"{dataset_name} could not be loaded: {error}\nWithout a network, pass folders of images with --train_dir "
            "and --validation_dir, IDX files with --idx_dir, or a local copy of the repository with --dataset_name."
        ) from error
    names = {"validation": ("validation", "val", "dev", "valid"), "train": ("train",), "test": ("test",)}
    found = {name: next((raw[other] for other in others if other in raw), None) for name, others in names.items()}
    found = {name: found[name] for name in ("train", "validation", "test") if found[name] is not None}
    if not found:
        raise ValueError(
            f"{dataset_name} has the splits {', '.join(raw)}; it needs one called train, validation or test."
        )
    first = next(iter(found.values()))
    image_column = _find_column(
        first,
        image_column_name,
        "--image_column_name",
        [name for name, feature in first.features.items() if isinstance(feature, ImageFeature)],
    )
    label_column = _find_column(
        first,
        label_column_name,
        "--label_column_name",
        [name for name in ("label", "labels", "fine_label") if name in first.features]
        or [name for name, feature in first.features.items() if isinstance(feature, ClassLabel)],
    )
    feature = first.features[label_column]
    if isinstance(feature, ClassLabel):
        labels = list(feature.names)
    else:
        values = {value for value in first[label_column] if value is not None}
        labels = [str(value) for value in sorted(values, key=lambda value: (str(type(value)), value))]
    splits = {}
    for name, split in found.items():
        values = split[label_column] if label_column in split.column_names else None
        # On the Hub, -1 stands for a label that is kept secret.
        if values is not None and all(value in (-1, None) for value in values):
            values = None
        indices = None if values is None else _indices(values, labels, feature, f"{dataset_name}, {name}")
        undecoded = split.cast_column(image_column, ImageFeature(decode=False)).select_columns([image_column])
        splits[name] = ImageSplit(
            HubImages(undecoded, image_column), indices, Numbered(f"{dataset_name}, {name}, row", len(split))
        )
    return ImageData(splits, labels, dataset_name)


def _find_column(dataset: Dataset, name: str | None, option: str, candidates: list[str]) -> str:
    if name is not None and name in dataset.column_names:
        return name
    if name is None and len(candidates) == 1:
        return candidates[0]
    raise ValueError(
        f"The data set has the columns {', '.join(map(repr, dataset.column_names))}"
        + (f", but no {name!r}" if name is not None else f", and {len(candidates) or 'none'} of them could be the one")
        + f". Name the right one with {option}."
    )


def _indices(values: Sequence[Any], labels: list[str], feature: Any, source: str) -> np.ndarray:
    if not isinstance(feature, ClassLabel):
        values = [labels.index(str(value)) if str(value) in labels else None for value in values]
    wrong = [row for row, value in enumerate(values, 1) if value is None or not 0 <= value < len(labels)]
    if wrong:
        rows = ", ".join(map(str, wrong[:NAMED])) + (", ..." if len(wrong) > NAMED else "")
        raise ValueError(f"{source}: {len(wrong)} rows have no class, or one that training does not have: {rows}.")
    return np.array(values, dtype=int)


def load_idx(idx_dir: str, label_names: list[str] | None = None) -> ImageData:
    """Reads the IDX files of MNIST and its likes, packed by gzip or not.

    Args:
        idx_dir: a directory with the files train-images-idx3-ubyte, train-labels-idx1-ubyte, and perhaps those of
            t10k, the test set.
        label_names: of the classes; numbers by default.

    Raises:
        FileNotFoundError, ValueError: with what is wrong with which file.
    """
    directory = Path(idx_dir)
    if not directory.is_dir():
        raise FileNotFoundError(f"--idx_dir {idx_dir} does not exist or is not a directory.")
    splits: dict[str, ImageSplit] = {}
    for name, (image_stem, label_stem) in IDX_FILES.items():
        image_file, label_file = (_find_idx(directory, stem) for stem in (image_stem, label_stem))
        if image_file is None or label_file is None:
            if name == "train" or image_file is not label_file:
                missing = image_stem if image_file is None else label_stem
                raise FileNotFoundError(f"{idx_dir} has no file {missing}-idx*-ubyte, packed (.gz) or not.")
            continue
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if len(images) != len(labels):
            raise ValueError(f"{image_file} has {len(images)} images, but {label_file} has {len(labels)} labels.")
        splits[name] = ImageSplit(images, labels.astype(int), Numbered(f"{image_file}, image", len(images)))
    count = int(splits["train"].labels.max(initial=0)) + 1
    names = label_names or [str(index) for index in range(count)]
    for split in splits.values():
        if split.labels.max(initial=0) >= len(names):
            raise ValueError(
                f"{idx_dir} has the label {split.labels.max()}, but there are only {len(names)} classes: "
                f"{', '.join(names[:20])}."
            )
    return ImageData(splits, names, idx_dir)


def _find_idx(directory: Path, stem: str) -> Path | None:
    # Some writers put a dot in the place of the last hyphen.
    found = sorted(
        path for path in directory.glob(f"*{stem}*idx*") if path.suffix in ("", ".gz", ".idx3-ubyte", ".idx1-ubyte")
    )
    if len(found) > 1 and {path.name.removesuffix(".gz") for path in found} != {found[0].name.removesuffix(".gz")}:
        raise ValueError(f"{directory} has several files {stem}: {', '.join(path.name for path in found)}.")
    return found[0] if found else None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
        dimensions: 3 for images, 1 for labels.

    Raises:
        ValueError: the file is not of that kind, or not complete.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}. Fetch it again.") from error
    header = 4 + 4 * dimensions
    expected = bytes((0, 0, IDX_UNSIGNED_BYTES, dimensions))
    if content[:4] != expected:
        raise ValueError(
            f"{path} begins with the bytes {content[:4].hex(' ') or 'of an empty file'}, but an IDX file of "
            f"{'images' if dimensions == 3 else 'labels'} begins with {expected.hex(' ')}."
        )
    if len(content) < header:
        raise ValueError(f"{path} ends within its header of {header} bytes. Fetch it again.")
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist()
    size = math.prod(shape)  # of Python's integers, which do not overflow
    if len(content) != header + size:
        raise ValueError(
            f"{path} has {len(content) - header} bytes of data, but its header tells of "
            f"{' x '.join(map(str, shape))} = {size}. Fetch it again."
        )
    if size == 0:
        raise ValueError(f"{path} is empty.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_digits() -> ImageData:
    """The handwritten digits of scikit-learn, 8 x 8 pixels; a fifth of them is for the test."""
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    every = ImageSplit(images, digits.target.astype(int), Numbered("digit", len(images)))
    train, test = split_off(every, 0.2)
    return ImageData(
        {"train": train, "test": test}, [str(name) for name in digits.target_names], "scikit-learn's digits"
    )
