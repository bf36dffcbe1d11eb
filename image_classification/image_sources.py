# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Where images with classes come from: folders, data sets of the Hub, IDX files and scikit-learn's digits."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value
from datasets import Image as ImageFeature
from image_data import NAMED, HubImages, ImageData, ImageSplit, Numbered, split_off
from PIL import Image

from ea_hf.training.hub_data import load_hub_data
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

# IDX files (http://yann.lecun.com/exdb/mnist): the third byte says the type of the values, the fourth how many sizes
# follow.
IDX_UNSIGNED_BYTES = 8
IDX_FILES = {
    "train": ("train-images", "train-labels"),
    "test": ("t10k-images", "t10k-labels"),
}
# How folders and splits are called, training first.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
# What systems leave behind, beside what is hidden.
IGNORED = ("__macosx", "thumbs.db", "desktop.ini")


def load_folders(directories: dict[str, str]) -> ImageData:
    """Reads directories with a folder of images for each class.

    A directory that holds train/ and test/ or validation/ instead gives these splits. Hidden files and folders, and
    what systems leave behind, are no images.

    Args:
        directories: split name to path. The classes are those of the first one that knows them. Images of "test" may
            stand in the directory itself, without classes.

    Raises:
        FileNotFoundError, ValueError: a directory is missing, has no class folders, or one of a class that training
            does not have.
    """
    labels: list[str] = []
    splits = {}
    directories = _find_splits(directories)
    for name, path in directories.items():
        directory = Path(path)
        folders = _folders(directory)
        loose = _find_images([entry for entry in sorted(directory.iterdir()) if entry.is_file()], path)
        if not folders and loose and name == "test":
            splits[name] = ImageSplit(loose, None, loose)
            continue
        if not folders:
            raise ValueError(f"--{name}_dir {path} has no folders; it needs one with images for each class.")
        if loose:
            logger.warning(
                f"{path}: {len(loose)} images are in no class folder, and are left out, such as {loose[0]}."
            )
        labels = labels or folders
        unknown = [folder for folder in folders if folder not in labels]
        if unknown:
            raise ValueError(
                f"--{name}_dir {path} has class folders that {next(iter(directories.values()))} does not have: "
                f"{', '.join(map(repr, unknown[:NAMED]))}."
            )
        files, indices = [], []
        for folder in folders:
            # A link that leads nowhere is an image that cannot be read.
            inside = [e for e in sorted((directory / folder).rglob("*")) if e.is_file() or e.is_symlink()]
            images = _find_images(inside, path)
            files += images
            indices += [labels.index(folder)] * len(images)
        splits[name] = ImageSplit(files, np.array(indices, dtype=int), files)
    return ImageData(splits, labels, next(iter(directories.values())))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _folders(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and not _is_ignored(entry.name))


def _find_images(files: list[Path], directory: str) -> list[str]:
    """Those that are images by their names; warns of the others."""
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [file for file in files if not any(map(_is_ignored, file.relative_to(directory).parts))]
    others = [file for file in files if file.suffix.lower() not in extensions]
    if others:
        logger.warning(f"{directory}: {len(others)} files are no images by their names, such as {others[0]}.")
    return [str(file) for file in files if file.suffix.lower() in extensions]


def _find_splits(directories: dict[str, str]) -> dict[str, str]:
    """Puts the folders of splits in the place of a directory that holds them."""
    found = {}
    for name, path in directories.items():
        directory = Path(path)
        if not directory.is_dir():
            raise FileNotFoundError(f"--{name}_dir {path} does not exist or is not a directory.")
        folders = _folders(directory)
        inside = {split: folder for folder in folders for split, names in SPLITS.items() if folder.lower() in names}
        if not inside or (len(inside) == 1 and len(folders) > 1):  # one class may be called "train"
            found[name] = path
            continue
        if len(inside) < len(folders) or name not in inside:
            raise ValueError(
                f"--{name}_dir {path} has the folders {', '.join(map(repr, folders[:NAMED]))}, which are splits by their "
                "names, and not only classes. Name the directory whose folders are the classes."
            )
        logger.info(
            f"{path}: the folders {', '.join(map(repr, inside.values()))} are splits by their names, not classes."
        )
        for split, folder in inside.items():
            if split == name or (name == "train" and split not in directories):
                found[split] = str(directory / folder)
    # The classes are those of training.
    return {name: found[name] for name in SPLITS if name in found}


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
    instead = "folders of images with --train_dir and --validation_dir, IDX files with --idx_dir"
    raw = load_hub_data(dataset_name, dataset_config_name, described=dataset_name, instead=instead)
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
    if not isinstance(feature, (ClassLabel, Value)):
        raise ValueError(
            f"The column {label_column!r} of {dataset_name} holds no classes, but {feature}; see --label_column_name."
        )
    image_feature = first.features[image_column]
    if not isinstance(image_feature, ImageFeature) and getattr(image_feature, "dtype", None) not in (
        "string",
        "binary",
    ):
        raise ValueError(
            f"The column {image_column!r} of {dataset_name} holds no images, but {image_feature}; see --image_column_name."
        )
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
