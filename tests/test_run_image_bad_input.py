# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_image_classification.py tells what is wrong with its input."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import run_image_classification
from test_run_image_classification import NEW_VIT, classify
from tiny_bert import arguments
from tiny_images import TINY_VIT, write_checkpoint, write_folders

import ea_hf


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """The directory of a vanilla ViT without head, with its image processor."""
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"))


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "pass --dataset_name, --idx_dir, or --train_dir"),
        ({"dataset_name": "x", "idx_dir": "y"}, "--dataset_name and --idx_dir exclude each other"),
        ({"validation_dir": "x"}, "pass --train_dir, or --eval_only"),
        ({"train_dir": "x", "model_name_or_path": "y"}, "pass --model_name_or_path, or --model_type for a new model"),
        ({"validation_dir": "x", "eval_only": True}, "--eval_only needs --model_name_or_path"),
        ({"test_dir": "x", "eval_only": True}, "--eval_only needs --validation_dir, or"),
        ({"train_dir": "x", "train_val_split": 1.0}, "--train_val_split is 1.0"),
        ({"train_dir": "x", "random_resized_crop": 0.0}, "--random_resized_crop is 0.0"),
        ({"train_dir": "x", "label_smoothing_factor": 1.0}, "--label_smoothing_factor is 1.0"),
        ({"train_dir": "x", "mixup_alpha": "nan"}, "--mixup_alpha is nan"),
        ({"train_dir": "x", "image_size": 0}, "--image_size is 0"),
        ({"train_dir": "x", "label_names": "a,b"}, "--label_names is for --idx_dir"),
        ({"idx_dir": "x", "label_names": "a, b,a"}, "--label_names is ['a', 'b', 'a']; the names must differ"),
        ({"idx_dir": "x", "label_names": "a,,b"}, "and none be empty"),
        (
            {"dataset_name": "digits", "image_column_name": "x"},
            "--image_column_name is for a --dataset_name of the Hub",
        ),
        ({"train_dir": "x", "group_by_length": True}, "images have no length"),
        ({"train_dir": "x", "config_overrides": "hidden_size"}, "'hidden_size' is not name=value"),
    ],
)
def test_bad_arguments(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_image_classification.parse_args(arguments(output_dir=tmp_path, model_type="ea_vit", **options))
    assert message in capsys.readouterr().err


def test_predictions_need_test_images(tmp_path, capsys):
    words = arguments(output_dir=tmp_path, model_name_or_path="x", validation_dir="x", eval_only=True, do_predict=True)
    with pytest.raises(SystemExit):
        run_image_classification.parse_args(words)
    assert "--do_predict needs --test_dir" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--do_predict needs test images, but .* has only train, validation"):
        classify(tmp_path / "out", train_dir=write_folders(tmp_path / "train", 4), do_predict=True)


def test_bad_data_and_models_are_told_before_anything_is_written(vanilla, tmp_path):
    train, output_dir = write_folders(tmp_path / "train", 4), tmp_path / "output"

    def refused(message: str, kind: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            classify(output_dir, **{"train_dir": train, **options})
        assert not output_dir.exists()

    refused("names 'hidden_sizes', which EAViTConfig does not have", config_overrides="hidden_sizes=[2]")
    refused("`image_size` is 9, which `patch_size`, 2, does not divide", image_size=9)
    refused("`num_channels` is 2; images have 1", config_overrides=NEW_VIT.replace("channels=1", "channels=2"))
    refused("`depth` is 51", model_type="ea_resnet", config_overrides="depth=51")
    refused("--metric_for_best_model is 'loss'", metric_for_best_model="loss")
    processor = json.loads(Path(vanilla, "preprocessor_config.json").read_text())
    for name, value, message in (
        ("size", {"height": 6, "width": 6}, r"makes images of \(6, 6\) pixels, but the model takes \(8, 8\)"),
        ("image_mean", [0.5] * 3, "normalizes 3 channels, but the model has 1"),
    ):
        other = shutil.copytree(vanilla, tmp_path / name)
        (other / "preprocessor_config.json").write_text(json.dumps({**processor, name: value}))
        refused(message, model_name_or_path=other)

    for path in sorted(Path(train, "two").iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:60])
    refused("(?s)2 of .* images of train cannot be read:.*--skip_unreadable_images", train_val_split=0.3)
    classify(output_dir, train_dir=train, skip_unreadable_images=True)
    shutil.rmtree(output_dir)
    validation = write_folders(tmp_path / "validation", 2, 5)
    shutil.rmtree(Path(validation, "one"))
    refused(
        "1 of 3 classes have no image in validation: 'one'", validation_dir=validation, skip_unreadable_images=True
    )
    results = classify(output_dir, train_dir=train, validation_dir=validation, skip_unreadable_images=True,
                       skip_empty_classes=True)  # fmt: skip
    assert 0 <= results["eval_accuracy"] <= 1


@pytest.mark.parametrize("batch_size, accumulation_steps, fits", [(10, 1, False), (8, 1, True), (4, 3, False)])
@pytest.mark.slow_but("10-1-False")
def test_a_batch_of_one_image_and_one_pixel_is_told_before_training(batch_size, accumulation_steps, fits, tmp_path):
    """Batch normalization would fail in the last step of the first epoch. There are 21 images; in the last case the last
    step's 9 make batches of 4, 4 and 1."""
    options = {
        "model_type": "ea_resnet",
        "config_overrides": "num_channels=1,stem_stride=1,layer_type=basic,embedding_size=4,hidden_sizes=[8,8,8,16],"
        "depths=[1,1,1,1],attention_poolings=[0],num_attention_heads=2",
        "dataset_name": "digits",
        "max_train_samples": 21,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "num_train_epochs": 1,
    }
    if fits:
        assert classify(tmp_path / "output", **options)["global_step"] == 3
    else:
        with pytest.raises(ValueError, match=r"Of 21 images, .* only one, .* one pixel of its 8 x 8; batch norm"):
            classify(tmp_path / "output", **options)
        assert not (tmp_path / "output").exists()
    assert classify(tmp_path / "larger", **{**options, "image_size": 9})["global_step"] > 0


def test_a_checkpoint_keeps_the_order_of_its_classes(tmp_path):
    train = write_folders(tmp_path / "train", 4)
    names = {"id2label": {0: "two", 1: "one", 2: "zero"}, "label2id": {"two": 0, "one": 1, "zero": 2}}
    config = ea_hf.EAViTConfig(**TINY_VIT, **names)
    ea_hf.EAViTForImageClassification(config).save_pretrained(tmp_path / "model")
    classify(tmp_path / "output", model_name_or_path=tmp_path / "model", train_dir=train, do_predict=True,
             test_dir=write_folders(tmp_path / "test", 2, 4))  # fmt: skip
    assert ea_hf.EAViTConfig.from_pretrained(tmp_path / "output").id2label == names["id2label"]
    with (tmp_path / "output" / "predictions.csv").open(newline="") as file:
        assert all(Path(row["image"]).parent.name == row["label"] for row in csv.DictReader(file))
    write_folders(tmp_path / "more", 1)
    (tmp_path / "more" / "zero").rename(tmp_path / "more" / "three")
    with pytest.raises(ValueError, match="classes that the checkpoint does not know, 'three'; it knows 'two', 'one'"):
        classify(tmp_path / "x", model_name_or_path=tmp_path / "output", eval_only=True,
                 validation_dir=tmp_path / "more")  # fmt: skip
