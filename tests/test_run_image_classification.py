# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_image_classification.py on small files of real digits: what it reads, what it writes, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_image_classification
import torch
from image_batches import Augmentation, Collator, ImageDataset, random_box
from image_classifier import new_processor
from image_data import ImageSplit
from image_evaluation import accuracies
from PIL import Image
from run_image_classification import cross_entropy
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from stranger import run_stranger
from tiny_bert import arguments, reset_accelerator, run_script
from tiny_images import (
    CLASSES,
    SCRIPTS,
    TINY_VIT,
    digits,
    write_checkpoint,
    write_folders,
    write_hub,
    write_mnist,
)
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import ea_hf
from ea_hf.training.optimizers import create_optimizer


SCRIPT = SCRIPTS / "run_image_classification.py"
NEW_VIT = ",".join(f"{name}={value}" for name, value in TINY_VIT.items() if name != "image_size")
NEW_RESNET = "num_channels=1,stem_stride=1,embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic,"
NEW_RESNET += "attention_poolings=[0],num_attention_heads=2"


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """The directory of a vanilla ViT without head, with its image processor."""
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"))


def classify(output_dir: Path, **options: Any) -> dict[str, float]:
    """Runs the script in this process, for two steps unless said otherwise; a new EA-ViT unless said otherwise."""
    reset_accelerator()
    if "model_name_or_path" not in options:
        options = {"model_type": "ea_vit", "config_overrides": NEW_VIT, "image_size": 8, **options}
    steps = {} if {"num_train_epochs", "max_train_steps", "eval_only"} & set(options) else {"max_train_steps": 2}
    return run_image_classification.main(arguments(output_dir=output_dir, **{**steps, **options}))


def folders(directory: Path) -> dict[str, str]:
    sizes = {"train": (9, 0), "validation": (4, 9), "test": (3, 13)}
    return {f"{name}_dir": write_folders(directory / name, *size) for name, size in sizes.items()}


def logits_one_by_one(directory: Path, images: list[np.ndarray]) -> torch.Tensor:
    """(images, classes), each image alone, with nothing of the script."""
    model = AutoModelForImageClassification.from_pretrained(directory).eval()
    processor = AutoImageProcessor.from_pretrained(directory)
    with torch.no_grad():
        inputs = (processor(Image.fromarray(image), return_tensors="pt") for image in images)
        return torch.cat([model(**values).logits for values in inputs])


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


# What a run reads and writes


def test_a_user_trains_from_folders_predicts_and_evaluates(tmp_path):
    """The script as a process of its own; its figures follow from the saved model and image processor."""
    data, output_dir = folders(tmp_path), tmp_path / "output"
    words = arguments(
        model_type="ea_vit", config_overrides=NEW_VIT, image_size=8, **data, output_dir=output_dir, num_train_epochs=3,
        learning_rate=3e-3, random_resized_crop=0.5, mixup_alpha=0.2, label_smoothing_factor=0.1, do_predict=True,
    )  # fmt: skip
    status, printed = run_script(words, script=SCRIPT)
    assert status == 0, printed
    assert "Classified 12 images of validation in" in printed and "per second" in printed
    results = json.loads((output_dir / "all_results.json").read_text())
    assert results["train_samples_per_second"] > 0 and results["global_step"] == 12

    labels = sorted(CLASSES)
    truth = [label for label in labels for _ in range(4)]
    images = [image for name in labels for image in digits(CLASSES.index(name))[9:13]]
    predicted = [labels[index] for index in logits_one_by_one(output_dir, images).argmax(1)]
    assert results["eval_accuracy"] == accuracy_score(truth, predicted)
    images = [image for name in labels for image in digits(CLASSES.index(name))[13:16]]
    predicted = [labels[index] for index in logits_one_by_one(output_dir, images).argmax(1)]
    with (output_dir / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == predicted
    assert [Path(row["image"]).parent.name for row in rows] == [row["label"] for row in rows]
    assert results["test_accuracy"] == accuracy_score([row["label"] for row in rows], predicted)
    card = (output_dir / "README.md").read_text()
    assert "trained from scratch" in card and "AutoImageProcessor" in card and "image-classification" in card
    assert "| validation | validation | 12 images |" in card and "| test | test | 9 images |" in card
    assert type(AutoModelForImageClassification.from_pretrained(output_dir)) is ea_hf.EAViTForImageClassification

    evaluated = classify(
        tmp_path / "evaluated", model_name_or_path=output_dir, eval_only=True, validation_dir=data["validation_dir"]
    )
    assert evaluated == {"eval_accuracy": results["eval_accuracy"]}


@pytest.mark.parametrize("source", ["hub", "idx", "digits"])
@pytest.mark.parametrize("model", ["ea_vit", "ea_resnet"])
@pytest.mark.slow_but("ea_vit-digits", "ea_resnet-idx")
def test_every_source_trains_every_model(source, model, tmp_path):
    options = {
        "hub": lambda: {"dataset_name": write_hub(tmp_path / "data")},
        "idx": lambda: {"idx_dir": write_mnist(tmp_path / "data"), "label_names": ",".join(CLASSES)},
        "digits": lambda: {"dataset_name": "digits", "max_eval_samples": 50, "max_predict_samples": 20},
    }[source]()
    overrides = {"ea_vit": NEW_VIT, "ea_resnet": NEW_RESNET}[model]
    results = classify(
        tmp_path / "output", model_type=model, config_overrides=overrides, do_predict=True, optim="sgd", **options
    )
    assert 0 <= results["eval_accuracy"] <= 1 and 0 <= results["test_accuracy"] <= 1
    assert ("eval_top5_accuracy" in results) == (source == "digits")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "output")
    assert loaded.config.model_type == model
    assert list(loaded.config.id2label.values()) == list(CLASSES if source != "digits" else "0123456789")


@pytest.mark.slow
def test_a_vanilla_vit_is_fine_tuned_at_another_size(vanilla, tmp_path):
    data = folders(tmp_path)
    classify(tmp_path / "same", model_name_or_path=vanilla, **data)
    saved, before = (
        json.loads(Path(directory, "preprocessor_config.json").read_text())
        for directory in (tmp_path / "same", vanilla)
    )
    assert saved.pop("auto_map") and saved.pop("image_processor_type") == "EAImageProcessor"
    assert before.pop("image_processor_type") == "ViTImageProcessor" and saved == before
    classify(tmp_path / "larger", model_name_or_path=vanilla, image_size=12, ea_residual_weight=0.4, **data)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "larger")
    assert model.config.image_size == 12 and model.config.ea_residual_weight == 0.4
    processor = AutoImageProcessor.from_pretrained(tmp_path / "larger")
    assert (processor.size["height"], processor.size["width"]) == (12, 12) and list(processor.image_mean) == [0.3]
    with pytest.raises(ValueError, match="`image_size` is 9, which `patch_size`, 2, does not divide"):
        classify(tmp_path / "odd", model_name_or_path=vanilla, image_size=9, **data)
    assert not (tmp_path / "odd").exists()


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_images(tmp_path):
    """Crops, flips and mixup follow from the seed, the epoch and the image; with worker processes as without."""
    options = {
        "train_dir": write_folders(tmp_path / "train", 9), "random_resized_crop": 0.3, "horizontal_flip": True,
        "mixup_alpha": 0.4, "learning_rate": 3e-3, "checkpointing_steps": 2, "max_train_steps": 6,
        "save_total_limit": 5, "config_overrides": f"{NEW_VIT},hidden_dropout_prob=0.1",
    }  # fmt: skip
    classify(tmp_path / "whole", **options)
    expected = weights_of(tmp_path / "whole")
    # In the middle of the second epoch of three steps.
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    classify(tmp_path / "resumed", resume_from_checkpoint="latest", **options)
    classify(tmp_path / "workers", dataloader_num_workers=2, **options)
    classify(tmp_path / "seed", seed=1, **options)
    for name, value in expected.items():
        assert torch.equal(weights_of(tmp_path / "resumed")[name], value), name
        assert torch.equal(weights_of(tmp_path / "workers")[name], value), name
    assert not torch.equal(weights_of(tmp_path / "seed")["classifier.weight"], expected["classifier.weight"])
    with pytest.raises(ValueError, match="its optim is 'adamw_torch', now it is 'sgd'"):
        classify(tmp_path / "resumed", resume_from_checkpoint="latest", optim="sgd", **options)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    options = {
        "model_type": "ea_vit", "config_overrides": NEW_VIT, "image_size": 8, "max_train_steps": 3, "do_predict": True,
        "train_dir": write_folders(tmp_path / "train", 8), "test_dir": write_folders(tmp_path / "test", 3, 8),
        "random_resized_crop": 0.3, "learning_rate": 1e-2,
    }  # fmt: skip
    classify(tmp_path / "one", per_device_train_batch_size=8, **options)
    words = arguments(output_dir=tmp_path / "two", per_device_train_batch_size=4, **options)
    status, printed = run_script(words, processes=2, script=SCRIPT)
    assert status == 0, printed
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], value, atol=2e-4, rtol=1e-3)
    assert (tmp_path / "two" / "predictions.csv").read_text().count("\n") == 10


# Augmentation, loss and metrics


def test_random_boxes_keep_to_their_limits():
    generator = np.random.default_rng(0)
    shares, ratios, rows = [], [], set()
    for _ in range(500):
        left, upper, right, lower = random_box((80, 60), 0.2, generator)
        rows.add(upper)
        assert 0 <= left < right <= 80 and 0 <= upper < lower <= 60
        shares.append((right - left) * (lower - upper) / 4800)
        ratios.append((right - left) / (lower - upper))
    assert 0.19 < min(shares) < 0.25 and max(shares) > 0.85
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.4
    assert len(rows) > 400  # between pixels too
    assert random_box((2, 40), 0.9, generator) == (0, 0, 2, 40)  # no box of such proportions is large enough


def test_augmentation_flips_every_other_image_and_resizes():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    generator = np.random.default_rng(0)
    plain = Augmentation((8, 8), Image.Resampling.BILINEAR, None, False)(image, generator)
    assert np.array_equal(plain, image)
    flip = Augmentation((8, 8), Image.Resampling.BILINEAR, None, True)
    flipped = [np.array_equal(np.asarray(flip(image, generator)), np.asarray(image)[:, ::-1]) for _ in range(200)]
    assert 70 < sum(flipped) < 130
    crop = Augmentation((6, 4), Image.Resampling.BILINEAR, 0.01, True)
    for _ in range(200):  # parts smaller than a pixel, and parts that reach the edge
        assert crop(image, generator).size == (4, 6)


def test_mixup_blends_images_and_classes_alike():
    examples = [
        {"pixel_values": np.full((1, 2, 2), index, dtype=np.float32), "labels": index, "seed": (0, 0, index)}
        for index in range(5)
    ]
    mixed = Collator(5, 0.4)(examples)
    blended = mixed["labels"] @ torch.arange(5.0)
    torch.testing.assert_close(mixed["pixel_values"][:, 0, 0, 0], blended)
    torch.testing.assert_close(mixed["labels"].sum(1), torch.ones(5))
    assert ((mixed["labels"] > 0.01).sum(1) == 2).any()
    again = Collator(5, 0.4)(examples)
    assert torch.equal(again["labels"], mixed["labels"])
    for example in examples:
        example["seed"] = (0, 1, example["labels"])
    assert not torch.equal(Collator(5, 0.4)(examples)["labels"], mixed["labels"])
    for example in examples:
        del example["seed"]  # in evaluation
    assert Collator(5, 0.4)(examples)["labels"].tolist() == [0, 1, 2, 3, 4]


def test_loss_is_smoothed_cross_entropy():
    config = ea_hf.EAViTConfig(**TINY_VIT, num_labels=3, initializer_range=0.5)
    model = ea_hf.EAViTForImageClassification(config).eval()
    batch = {"pixel_values": torch.randn(2, 1, 8, 8), "labels": torch.tensor([2, 0])}
    logs = model(batch["pixel_values"]).logits.log_softmax(-1)
    target = torch.tensor([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    torch.testing.assert_close(cross_entropy(0.3, model, batch), -(target * logs).sum(-1).mean())
    torch.testing.assert_close(cross_entropy(0.0, model, batch), model(**batch).loss)
    batch["labels"] = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(cross_entropy(0.0, model, batch), -(batch["labels"] * logs).sum(-1).mean())


def test_accuracies_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(200, 8)), generator.integers(8, size=200)
    ranks = (scores > scores[np.arange(200), labels][:, None]).sum(1)
    metrics = accuracies(np.stack([scores.argmax(1), ranks], axis=1), labels, 8)
    assert metrics["accuracy"] == accuracy_score(labels, scores.argmax(1))
    assert metrics["top5_accuracy"] == top_k_accuracy_score(labels, scores, k=5)


def test_optimizers_spare_biases_and_normalization(tmp_path):
    model = ea_hf.EAResNetForImageClassification(ea_hf.EAResNetConfig.from_depth(18))
    for optim, kind in (("sgd", torch.optim.SGD), ("adamw_torch", torch.optim.AdamW)):
        words = arguments(
            output_dir=tmp_path, model_type="ea_resnet", dataset_name="x", optim=optim, learning_rate=0.1,
            weight_decay=0.01,
        )  # fmt: skip
        optimizer = create_optimizer(run_image_classification.parse_args(words), model)
        assert type(optimizer) is kind and (optim != "sgd" or optimizer.defaults["momentum"] == 0.9)
        decayed, spared = optimizer.param_groups
        assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
        assert all(parameter.ndim == 1 for parameter in spared["params"]) and decayed["lr"] == 0.1


def test_a_model_that_gives_nan_is_told(tmp_path):
    config = ea_hf.EAViTConfig(**TINY_VIT, id2label=dict(enumerate(sorted(CLASSES))))
    model = ea_hf.EAViTForImageClassification(config)
    # All weights are finite numbers, or the checkpoint would be refused.
    torch.nn.init.zeros_(model.vit.layernorm.weight)
    torch.nn.init.ones_(model.vit.layernorm.bias)
    torch.nn.init.constant_(model.classifier.weight[1], 3e38)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"NaN or infinity for 6 of 6 images of validation, first for .*0.png"):
        classify(tmp_path / "x", model_name_or_path=tmp_path / "model", eval_only=True,
                 validation_dir=write_folders(tmp_path / "validation", 2))  # fmt: skip


def test_selected_images_keep_their_names_and_classes():
    split = ImageSplit(list("abcd"), np.array([0, 1, 0, 1]), [f"image {index}" for index in range(4)])
    part = split.select([3, 0, 2]).select([2, 0])
    assert [part.images[index] for index in range(2)] == ["c", "d"]
    assert part.labels.tolist() == [0, 1] and [part.names[index] for index in range(2)] == ["image 2", "image 3"]


def test_the_image_processor_of_a_new_model_takes_every_kind_of_image():
    """Also from users who know nothing of this script's reader."""
    processor = new_processor(ea_hf.EAViTConfig(**{**TINY_VIT, "num_channels": 3}))
    pixels = digits(3)[0]
    for mode in ("L", "RGB", "RGBA", "CMYK"):
        image = Image.fromarray(pixels).resize((9, 7)).convert(mode)
        assert processor(image, return_tensors="np")["pixel_values"].shape == (1, 3, 8, 8), mode


# What was trained is served


def write_strange_images(directory: Path) -> list[str]:
    """Pixels of 16 bits, transparent ones in several modes, CMYK, and a camera held sideways."""
    generator = np.random.default_rng(0)
    directory.mkdir()
    colors = Image.fromarray(generator.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    alpha = Image.fromarray(generator.integers(0, 256, (12, 10), dtype=np.uint8))
    clear = colors.convert("RGBA")
    clear.putalpha(alpha)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(generator.integers(0, 2**16, (12, 10), dtype=np.uint16)).save(directory / "deep.png")
    Image.fromarray(generator.integers(0, 2**16, (12, 10), dtype=np.int32)).save(directory / "deep.tiff")
    clear.save(directory / "clear.png")
    clear.convert("LA").save(directory / "grey.png")
    clear.quantize(32).save(directory / "palette.png")
    colors.convert("CMYK").save(directory / "cmyk.jpg")
    colors.save(directory / "turned.png", exif=exif)
    return sorted(map(str, directory.iterdir()))


@pytest.mark.parametrize(("model_type", "num_channels"), [("vit", 3), ("vit", 1), ("resnet", 1)])
@pytest.mark.slow_but("resnet-1")
def test_pipelines_do_with_pictures_what_training_does(model_type, num_channels, tmp_path):
    """With ea_hf, and with the code that travels with the checkpoint."""
    torch.manual_seed(0)
    if model_type == "vit":
        config = ea_hf.EAViTConfig(**{**TINY_VIT, "num_channels": num_channels, "initializer_range": 0.5})
        model = ea_hf.EAViTForImageClassification(config).eval()
    else:
        config = ea_hf.EAResNetConfig(
            num_channels=1, stem_stride=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
            attention_poolings=[0], num_attention_heads=2, image_size=8,
        )  # fmt: skip
        model = ea_hf.EAResNetForImageClassification(config).eval()
    processor = new_processor(config)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    paths = write_strange_images(tmp_path / "images")
    dataset = ImageDataset(ImageSplit(paths, None, paths), processor, num_channels)
    with torch.no_grad():
        inputs = torch.stack([torch.from_numpy(dataset[index]["pixel_values"]) for index in range(len(paths))])
        expected = model(inputs).logits.softmax(-1)
        assert expected.std(dim=0).max() > 1e-3  # the pictures matter

    def scores(found: list) -> torch.Tensor:
        return torch.tensor([[one["score"] for one in sorted(row, key=lambda one: one["label"])] for row in found])

    pipe = pipeline("image-classification", model=str(tmp_path / "model"))
    assert type(pipe.image_processor) is ea_hf.EAImageProcessor
    torch.testing.assert_close(scores(pipe(paths)), expected)
    torch.testing.assert_close(scores(pipe([Image.open(path) for path in paths])), expected)
    code = f"""
import json, sys
from transformers import pipeline
pipe = pipeline("image-classification", model={str(tmp_path / "model")!r}, trust_remote_code=True)
assert type(pipe.image_processor).__module__.startswith("transformers_modules.")
print("RESULT", json.dumps(pipe({paths!r})))
"""
    printed = run_stranger(code, tmp_path)
    (result,) = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    torch.testing.assert_close(scores(json.loads(result.removeprefix("RESULT "))), expected)


def test_arrays_are_pictures_too():
    processor = ea_hf.EAImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    for same in (pixels, np.moveaxis(pixels, -1, 0), torch.from_numpy(pixels), pixels.astype(np.uint16) * 257):
        np.testing.assert_array_equal(processor(same, return_tensors="np")["pixel_values"], expected)
    clear = np.concatenate([pixels, np.zeros((9, 9, 1), np.uint8)], axis=-1)
    assert (processor(clear, return_tensors="np")["pixel_values"] == 1).all()


def test_the_image_processor_of_a_pretrained_model_serves_what_is_trained(vanilla, tmp_path):
    classify(tmp_path / "out", model_name_or_path=vanilla, **folders(tmp_path), max_train_steps=1)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is ea_hf.EAImageProcessor
    assert list(processor.image_mean) == [0.3] and list(processor.image_std) == [0.4]
    assert (tmp_path / "out" / "image_processing_ea.py").exists()


@pytest.mark.slow
def test_a_finished_model_predicts_a_flat_folder_of_pictures(tmp_path):
    data = folders(tmp_path)
    classify(tmp_path / "model", **data, do_predict=True)
    with (tmp_path / "model" / "predictions.csv").open(newline="") as file:
        expected = [row["prediction"] for row in csv.DictReader(file)]
    (tmp_path / "flat").mkdir()
    for index, path in enumerate(sorted(Path(data["test_dir"]).rglob("*.png"))):
        shutil.copy(path, tmp_path / "flat" / f"{index}.png")
    classify(
        tmp_path / "out", model_name_or_path=tmp_path / "model", eval_only=True, do_predict=True,
        test_dir=tmp_path / "flat",
    )  # fmt: skip
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == expected and list(rows[0]) == ["image", "prediction"]
