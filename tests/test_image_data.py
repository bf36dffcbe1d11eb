# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading images with classes: every kind of pixel, every source, and what is said about bad ones."""

import gc
import gzip
import logging
import re
import shutil
from pathlib import Path

import image_data
import numpy as np
import pytest
from datasets import Dataset
from image_data import (
    ImageData,
    ImageSplit,
    UnreadableImageError,
    check_classes,
    drop_unreadable,
    find_unreadable,
    open_image,
    split_off,
)
from image_sources import load_digits, load_folders, load_hub, load_idx, read_idx
from PIL import Image, ImageCms
from tiny_images import CLASSES, digits, encode, write_folders, write_hub, write_idx, write_mnist

from ea_hf.training import hub_data


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(autouse=True)
def warnings_are_caught(caplog):
    caplog.set_level(logging.WARNING)


GRADIENT = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
SRGB, LAB = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
COLORS = np.stack([GRADIENT, 255 - GRADIENT, GRADIENT.T], axis=-1)


def pixels(source, num_channels: int) -> np.ndarray:
    return np.asarray(open_image(source, num_channels)).astype(int)


# Kinds of pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_grey_images_of_every_format(kind):
    tolerance = 6 if kind == "WEBP" else 0  # it loses something
    source = encode(Image.fromarray(GRADIENT), kind)
    assert np.abs(pixels(source, 1) - GRADIENT).max() <= tolerance
    assert np.abs(pixels(source, 3) - GRADIENT[..., None]).max() <= tolerance


def test_pixels_of_16_bits_are_scaled_and_not_clipped():
    deep = GRADIENT.astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        source = encode(Image.fromarray(deep), kind)
        assert Image.open(image_data.io.BytesIO(source)).mode == "I;16"
        assert np.array_equal(pixels(source, 1), GRADIENT)
        assert np.array_equal(pixels(source, 3), np.stack([GRADIENT] * 3, axis=-1))
    assert np.array_equal(pixels(encode(Image.fromarray(deep.astype(np.int32)), "TIFF"), 1), GRADIENT)
    assert np.array_equal(pixels(encode(Image.fromarray((GRADIENT / 255).astype(np.float32)), "TIFF"), 1), GRADIENT)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_stand_before_white(mode):
    image = Image.fromarray(COLORS).convert("RGBA")
    alpha = np.full((8, 8), 255, dtype=np.uint8)
    alpha[:, :4] = 0
    image.putalpha(Image.fromarray(alpha))
    source = encode(image.quantize(64) if mode == "P" else image.convert(mode))
    for num_channels in (1, 3):
        found = pixels(source, num_channels)
        assert (found[:, :4] == 255).all() and found[:, 4:].std() > 10


def test_cmyk_is_the_picture_that_it_was():
    source = encode(Image.fromarray(COLORS).resize((64, 64)).convert("CMYK"), "JPEG")
    expected = np.asarray(Image.fromarray(COLORS).resize((64, 64))).astype(int)
    assert np.abs(pixels(source, 3) - expected).mean() < 6


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "CMYK", "P", "RGBA", "1"])
@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_grey_is_that_of_the_colours_in_every_mode_and_no_file_stays_open(mode, tmp_path):
    path = tmp_path / "image.tiff"
    image = Image.fromarray(COLORS)
    (ImageCms.profileToProfile(image, SRGB, LAB, outputMode="LAB") if mode == "LAB" else image.convert(mode)).save(
        path
    )
    with Image.open(path) as file:
        assert file.mode == mode
    expected = np.asarray(Image.fromarray(pixels(path, 3).astype(np.uint8)).convert("L"))
    assert np.array_equal(pixels(path, 1), expected)
    gc.collect()


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.fromarray(GRADIENT), Image.fromarray(255 - GRADIENT)]
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels(tmp_path / "animation.gif", 1), GRADIENT)


def test_bits_and_arrays_and_a_camera_held_upright():
    assert set(np.unique(pixels(encode(Image.fromarray(GRADIENT > 100)), 1))) == {0, 255}
    assert np.array_equal(pixels(COLORS, 3), COLORS)
    exif = Image.Exif()
    exif[274] = 6  # turn right by a quarter to look at it
    buffer = image_data.io.BytesIO()
    Image.fromarray(GRADIENT[:4]).save(buffer, "PNG", exif=exif)
    assert np.array_equal(pixels(buffer.getvalue(), 1), np.rot90(GRADIENT[:4], -1))


# What cannot be read

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
DAMAGED = {
    "truncated.jpg": (encode(Image.fromarray(NOISE), "JPEG")[:2000], "truncated"),
    "truncated.png": (encode(Image.fromarray(NOISE))[:2000], "truncated"),
    "text.jpg": (b"<html>not found</html>", "not an image of a format"),
    "empty.png": (b"", "not an image of a format"),
    "pixel.png": (encode(Image.fromarray(NOISE[:1, :1])), "1 x 1 pixels"),
    "line.png": (encode(Image.fromarray(NOISE[:1])), "64 x 1 pixels"),
    "decimal.tiff": (encode(Image.fromarray(np.full((4, 4), 7.0, dtype=np.float32)), "TIFF"), "decimal numbers"),
    "deep.tiff": (encode(Image.fromarray(np.full((4, 4), 10**6, dtype=np.int32)), "TIFF"), "1000000"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_is_told(name, tmp_path):
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    for source in (content, str(tmp_path / name)):
        with pytest.raises(UnreadableImageError, match=message):
            open_image(source, 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_images_are_counted_named_and_left_out_on_demand(num_workers, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(image_data, "CHECKED_AT_ONCE", 4)
    train = write_folders(tmp_path / "train", 5)
    for name, (content, _) in DAMAGED.items():
        (tmp_path / "train" / "one" / name).write_bytes(content)
    (tmp_path / "train" / "one" / "notes.txt").write_text("not an image by its name either")
    data = load_folders({"train": train})
    assert "1 files are no images by their names" in caplog.text and "notes.txt" in caplog.text
    assert len(data.splits["train"]) == 15 + len(DAMAGED)
    unreadable = {"train": find_unreadable(data.splits["train"], num_workers)}
    with pytest.raises(
        ValueError, match=r"(?s)8 of 23 images of train cannot be read:.*one/.*\.\.\.\n.*--skip_unread"
    ):
        drop_unreadable(data, unreadable, skip=False)
    drop_unreadable(data, unreadable, skip=True)
    assert "Leaving out 8 of 23 images of train" in caplog.text
    kept = data.splits["train"]
    assert len(kept) == 15 and find_unreadable(kept) == {}
    assert kept.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert all(data.labels[kept.labels[index]] == Path(kept.names[index]).parent.name for index in range(15))


# Folders


def test_folders_of_classes(tmp_path):
    data = load_folders(
        {"train": write_folders(tmp_path / "train", 3), "validation": write_folders(tmp_path / "validation", 2, 3)}
    )
    assert data.labels == sorted(CLASSES)
    assert len(data.splits["train"]) == 9 and len(data.splits["validation"]) == 6
    index = data.splits["train"].names[4]
    assert index.endswith("two/1.png")
    assert np.array_equal(pixels(data.splits["train"].images[4], 1), digits(2)[1])


def test_faults_of_folders(tmp_path):
    train = write_folders(tmp_path / "train", 2)
    with pytest.raises(FileNotFoundError, match=r"--train_dir .*nowhere does not exist"):
        load_folders({"train": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match=r"--train_dir .*/zero has no folders"):
        load_folders({"train": f"{train}/zero"})
    validation = write_folders(tmp_path / "validation", 2)
    (tmp_path / "validation" / "three").mkdir()
    with pytest.raises(ValueError, match=r"--validation_dir .* has class folders that .*train does not have: 'three'"):
        load_folders({"train": train, "validation": validation})


def test_a_class_without_images_is_named(tmp_path, caplog):
    train, validation = (write_folders(tmp_path / name, 3) for name in ("train", "validation"))
    for path in Path(validation, "two").iterdir():
        path.unlink()
    directories = {"train": train, "validation": validation}
    with pytest.raises(ValueError, match=r"1 of 3 classes have no image in validation: 'two'.*--skip_empty_classes"):
        check_classes(load_folders(directories), skip_empty=False)
    Path(validation, "two").rmdir()
    data = load_folders(directories)
    check_classes(data, skip_empty=True)
    assert data.labels == ["one", "two", "zero"] and "no image in validation: 'two'" in caplog.text

    for path in Path(train, "one").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="1 of 3 classes have no image in train: 'one'"):
        check_classes(load_folders(directories), skip_empty=False)
    data = load_folders(directories)
    check_classes(data, skip_empty=True)
    assert data.labels == ["two", "zero"] and "Leaving out 3 images of validation" in caplog.text
    assert data.splits["train"].labels.tolist() == [0] * 3 + [1] * 3
    assert data.splits["validation"].labels.tolist() == [1] * 3
    for path in Path(train, "two").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="has 1 class for training"):
        check_classes(load_folders(directories), skip_empty=True)


# IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(suffix, tmp_path):
    data = load_idx(write_mnist(tmp_path, 4, 2, suffix))
    assert data.labels == ["0", "1", "2"]
    assert data.splits["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and len(data.splits["test"]) == 6
    assert np.array_equal(pixels(data.splits["test"].images[2], 1), digits(1)[4])
    assert load_idx(str(tmp_path), ["a", "b", "c", "d"]).labels == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="has the label 2, but there are only 2 classes: a, b"):
        load_idx(str(tmp_path), ["a", "b"])


def damage(content: bytes, how: str) -> bytes:
    return {
        "truncated": content[:-1],
        "too long": content + b"0",
        "within the header": content[:10],
        "another type": content[:2] + b"\x0d" + content[3:],
        "labels": content[:3] + b"\x01" + content[4:],
        "empty file": b"",
        "no images": content[:4] + bytes(12),
        "enormous": content[:4] + b"\xff" * 12 + content[16:],
    }[how]


@pytest.mark.parametrize(
    "how, message",
    [
        ("truncated", "has 767 bytes of data, but its header tells of 12 x 8 x 8 = 768"),
        ("too long", "has 769 bytes"),
        ("within the header", "ends within its header of 16 bytes"),
        ("another type", "begins with the bytes 00 00 0d 03, but an IDX file of images begins with 00 00 08 03"),
        ("labels", "begins with the bytes 00 00 08 01"),
        ("empty file", "begins with the bytes of an empty file"),
        ("no images", "is empty"),
        ("enormous", f"= {(2**32 - 1) ** 3}. Fetch it again"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_corrupt_idx_file_is_told(how, message, suffix, tmp_path):
    write_mnist(tmp_path, 4, 2, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    content = path.read_bytes()
    damaged = damage(gzip.decompress(content) if suffix else content, how)
    path.write_bytes(gzip.compress(damaged) if suffix else damaged)
    with pytest.raises(ValueError, match=f"train-images.*{re.escape(message)}"):
        load_idx(str(tmp_path))


def test_faults_of_idx_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--idx_dir .*nowhere does not exist"):
        load_idx(str(tmp_path / "nowhere"))
    write_mnist(tmp_path, 4, 2)
    packed = tmp_path / "train-labels-idx1-ubyte.gz"
    content = packed.read_bytes()
    packed.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"train-labels.* cannot be unpacked"):
        load_idx(str(tmp_path))
    write_idx(packed, np.zeros(11, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train-images.* has 12 images, but .*train-labels.* has 11 labels"):
        load_idx(str(tmp_path))
    packed.unlink()
    with pytest.raises(FileNotFoundError, match="has no file train-labels-idx"):
        load_idx(str(tmp_path))
    packed.write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="has no file t10k-labels-idx"):
        load_idx(str(tmp_path))
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    assert list(load_idx(str(tmp_path)).splits) == ["train"]
    write_idx(tmp_path / "emnist-train-images-idx3-ubyte", np.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="has several files train-images"):
        load_idx(str(tmp_path))
    assert read_idx(packed, 1).tolist() == [0] * 4 + [1] * 4 + [2] * 4


# Folders


def test_what_is_hidden_or_left_behind_is_no_image(tmp_path, caplog):
    write_folders(tmp_path / "data", 2)
    expected = load_folders({"train": str(tmp_path / "data")})
    picture = Path(expected.splits["train"].images[0])
    for name in (
        ".hidden/a.png",
        ".ipynb_checkpoints/a.png",
        "deep/.cache/a.png",
        "__MACOSX/a.png",
        "Thumbs.db",
        "._a.png",
    ):
        for folder in (tmp_path / "data", picture.parent):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name != "deep/.cache/a.png" or folder == picture.parent:
                shutil.copy(picture, folder / name)
    shutil.rmtree(tmp_path / "data" / "deep")
    data = load_folders({"train": str(tmp_path / "data")})
    assert data.labels == expected.labels and data.splits["train"].images == expected.splits["train"].images
    assert not caplog.records


def test_folders_of_splits_are_no_classes(tmp_path):
    for name, start in (("train", 0), ("val", 3), ("Test", 6)):
        write_folders(tmp_path / "data" / name, 2, start)
    data = load_folders({"train": str(tmp_path / "data")})
    assert data.labels == sorted(CLASSES) and list(data.splits) == ["train", "validation", "test"]
    assert [Path(split.images[0]).name for split in data.splits.values()] == ["0.png", "3.png", "6.png"]
    assert list(load_folders({"test": str(tmp_path / "data")}).splits) == ["test"]
    (tmp_path / "data" / "cats").mkdir()
    with pytest.raises(ValueError, match=r"has the folders 'Test', 'cats', 'train', 'val', which are splits"):
        load_folders({"train": str(tmp_path / "data")})
    write_folders(tmp_path / "transport", 2)
    (tmp_path / "transport" / "zero").rename(tmp_path / "transport" / "train")  # as a vehicle
    assert load_folders({"train": str(tmp_path / "transport")}).labels == ["one", "train", "two"]


def test_images_beside_class_folders_are_told(tmp_path, caplog):
    write_folders(tmp_path, 2)
    shutil.copy(tmp_path / "one" / "0.png", tmp_path / "loose.png")
    assert len(load_folders({"train": str(tmp_path)}).splits["train"]) == 6
    assert "1 images are in no class folder" in caplog.text


def test_the_log_tells_which_images_are_converted(caplog):
    caplog.set_level(logging.INFO)
    deep = encode(Image.fromarray(GRADIENT.astype(np.uint16) * 257))
    clear = encode(Image.fromarray(COLORS).convert("RGBA"))
    images = [
        deep,
        clear,
        encode(Image.fromarray(COLORS)),
        deep,
        encode(Image.fromarray(COLORS).convert("CMYK"), "JPEG"),
    ]
    assert find_unreadable(ImageSplit(images, None, list("abcde")), name="train") == {}
    for line in (
        "2 of 5 images of train are scaled to 8 bits, such as a.",
        "1 of 5 images of train are put on white, such as b.",
        "1 of 5 images of train are made RGB from CMYK, such as e.",
    ):
        assert line in caplog.text


# Data sets of the Hub, and of scikit-learn


def test_hub_data_sets(tmp_path, monkeypatch):
    data = load_hub(write_hub(tmp_path / "good"))
    assert data.labels == list(CLASSES)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 27, "validation": 12, "test": 9}
    assert np.array_equal(pixels(data.splits["validation"].images[1], 1), digits(1)[9])
    assert data.splits["validation"].labels.tolist() == [0, 1, 2] * 4
    damaged = load_hub(write_hub(tmp_path / "damaged", damaged=True)).splits["train"]
    (index,) = find_unreadable(damaged)
    assert index == 26 and damaged.names[index].endswith("train, row 27")
    with pytest.raises(
        ValueError, match=r"'image', 'label', but no 'picture'. Name the right one with --image_column"
    ):
        load_hub(str(tmp_path / "good"), image_column_name="picture")

    table = Dataset.from_parquet(str(tmp_path / "good" / "test-00000-of-00001.parquet"))
    (tmp_path / "unlabelled").mkdir()
    table.remove_columns("label").add_column("label", ["a", None, "b"] * 3).to_parquet(
        tmp_path / "unlabelled" / "train-00000-of-00001.parquet"
    )
    with pytest.raises(ValueError, match="train: 3 rows have no class, or one that training does not have: 2, 5, 8"):
        load_hub(str(tmp_path / "unlabelled"))

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub_data, "load_dataset", offline)
    with pytest.raises(ConnectionError, match=r"(?s)nobody/nothing could not be loaded.*--train_dir"):
        load_hub("nobody/nothing")


def test_digits_are_split_by_class():
    data = load_digits()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1438, "test": 359}
    assert pixels(data.splits["test"].images[0], 1).shape == (8, 8)
    names = [{split.names[index] for index in range(len(split))} for split in data.splits.values()]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 1797
    counts = [np.bincount(split.labels) for split in data.splits.values()]
    assert np.abs(counts[0] / 4 - counts[1]).max() < 1
    assert [load_digits().splits["test"].names[index] for index in (0, 50)] == [
        data.splits["test"].names[index] for index in (0, 50)
    ]


def test_a_split_takes_from_every_class_that_can_spare_one():
    split = ImageSplit(list(range(8)), np.array([0, 0, 0, 0, 0, 1, 1, 2]), list("abcdefgh"))
    first, second = split_off(split, 0.1)
    assert sorted(second.labels.tolist()) == [0, 1] and sorted(first.labels.tolist()) == [0, 0, 0, 0, 1, 2]
    with pytest.raises(ValueError, match="no image in validation: 'c'"):
        check_classes(ImageData({"train": first, "validation": second}, ["a", "b", "c"], "x"), skip_empty=False)


def test_every_image_and_every_class_tells_splits_apart(tmp_path):
    """Wherever their files lie."""
    write_folders(tmp_path / "here", 3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (load_folders({"train": str(tmp_path / name)}).splits["train"] for name in ("here", "there"))
    assert here.fingerprint() == there.fingerprint()
    path = Path(there.images[len(there) // 2])
    path.write_bytes(path.read_bytes() + b"more")
    arrays = load_digits().splits["train"]
    changed = ImageSplit([np.array(image) for image in arrays.images], arrays.labels, arrays.names)
    fingerprints = {here.fingerprint(), there.fingerprint(), arrays.fingerprint(), changed.fingerprint()}
    assert len(fingerprints) == 3
    changed.images[100][4, 4] ^= 1
    relabelled = ImageSplit(arrays.images, arrays.labels[::-1].copy(), arrays.names)
    assert len(fingerprints | {changed.fingerprint(), relabelled.fingerprint()}) == 5
