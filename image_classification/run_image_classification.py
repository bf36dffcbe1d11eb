# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an evolving-attention model to classify images, or fine-tunes a pretrained one.

    python image_classification/run_image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \
        --train_dir flowers/train --validation_dir flowers/validation --output_dir output/flowers
    python image_classification/run_image_classification.py --model_type ea_resnet --config_overrides depth=50 \
        --dataset_name ILSVRC/imagenet-1k --output_dir output/imagenet
    torchrun --nproc_per_node 2 image_classification/run_image_classification.py ...
    accelerate launch image_classification/run_image_classification.py ...

A vanilla ViT becomes an EA-ViT on the fly, and any other model that `ea_hf.evolve` takes, such as DeiT, BEiT or DINOv2, an
evolving model of its kind; an evolving checkpoint is loaded as it is.
"""

import argparse
import logging
import math
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from image_batches import Augmentation, Collator, ImageDataset
from image_classifier import CONFIGS, load_model, processor_size
from image_data import (
    ImageData,
    check_classes,
    drop_unreadable,
    find_unreadable,
    limit,
    note_classes,
    split_off,
)
from image_evaluation import ImageTask, metric_names
from image_sources import load_digits, load_folders, load_hub, load_idx

from ea_hf import EAResNetConfig
from ea_hf.models.configuration_evolving import EvolvingConfig
from ea_hf.training.arguments import (
    ANY_MODEL,
    add_config_overrides,
    add_held_out,
    add_split_arguments,
    add_training_arguments,
)
from ea_hf.training.batching import TrainingBatches
from ea_hf.training.command_line import run_main, script_parser
from ea_hf.training.loop import create_accelerator
from ea_hf.training.model_card import IMAGE_WIDGET, ScoredData
from ea_hf.training.output_dir import prepare_output_dir
from ea_hf.training.script import add_evolution_arguments, check_arguments, run
from ea_hf.training.task import find_best_metric


DIGITS = "digits"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset_name", help=f'A data set on the Hub, a local copy of one, or "{DIGITS}", scikit-learn\'s.'
    )
    group.add_argument("--dataset_config_name")
    group.add_argument("--image_column_name", help="Default: the only column of images.")
    group.add_argument("--label_column_name", help='Default: "label" or "labels".')
    group.add_argument("--train_dir", help="A directory with a folder of images for each class.")
    group.add_argument("--validation_dir", help="Likewise.")
    group.add_argument("--test_dir", help="Likewise.")
    group.add_argument("--idx_dir", help="A directory with IDX files under MNIST's names.")
    group.add_argument("--label_names", help="Names of the classes of --idx_dir, with commas. Default: numbers.")
    share = "Share of the training images to validate on, if nothing else is there for it."
    add_held_out(group, 0.15, share)
    group.add_argument("--skip_unreadable_images", action="store_true", help="Leave them out, and name them.")
    group.add_argument(
        "--skip_empty_classes", action="store_true", help="Go on with classes that lack images, and name them."
    )
    add_split_arguments(group, "Use so many random {} images.", predictions="Write predictions of the test set.")

    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--random_resized_crop",
        type=float,
        metavar="MIN_SCALE",
        help="Train on random parts of the images, of at least this share of their area; 0.08 is usual for ImageNet.",
    )
    group.add_argument("--horizontal_flip", action="store_true", help="Mirror every other training image.")
    group.add_argument("--mixup_alpha", type=float, default=0.0, help="Blend pairs of training images; 0.2 is usual.")
    group.add_argument("--label_smoothing_factor", type=float, default=0.0, help="0.1 is usual.")

    group = parser.add_argument_group("model")
    group.add_argument("--model_name_or_path", help=ANY_MODEL)
    group.add_argument("--model_type", choices=sorted(CONFIGS), help="Train a new model of this type.")
    example = "hidden_size=64,patch_size=4; depth=50 is a usual ResNet"
    add_config_overrides(group, f"Values of a new model's configuration, such as {example}.")
    group.add_argument("--image_size", type=int, help="Height and width in pixels. Default: the model's.")
    add_evolution_arguments(group)
    group.add_argument("--trust_remote_code", action="store_true")
    group.add_argument("--ignore_mismatched_sizes", action="store_true", help="Take a new head if the sizes differ.")
    add_training_arguments(parser)
    args = parser.parse_args(argv)
    if args.label_names is not None:
        args.label_names = [name.strip() for name in args.label_names.split(",")]
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a message if arguments do not go together."""
    sources = ("dataset_name", "idx_dir", "train_dir", "validation_dir", "test_dir")
    given = [name for name in sources if getattr(args, name) is not None]
    if not given:
        parser.error("pass --dataset_name, --idx_dir, or --train_dir")
    for name in ("dataset_config_name", "image_column_name", "label_column_name"):
        if getattr(args, name) is not None and args.dataset_name in (None, DIGITS):
            parser.error(f"--{name} is for a --dataset_name of the Hub, or a local copy of one")
    if args.label_names is not None:
        if args.idx_dir is None:
            parser.error("--label_names is for --idx_dir")
        if len({*args.label_names, ""}) <= len(args.label_names):
            parser.error(f"--label_names is {args.label_names}; the names must differ, and none be empty")
    if len(given) > 1 and given[0] in ("dataset_name", "idx_dir"):
        parser.error(f"--{given[0]} and --{given[1]} exclude each other; choose one")
    if given[0] in ("validation_dir", "test_dir") and not args.eval_only:
        parser.error("pass --train_dir, or --eval_only")
    has_images = args.dataset_name or args.idx_dir or args.validation_dir or (args.test_dir and args.do_predict)
    if args.eval_only and not has_images:
        parser.error("--eval_only needs --validation_dir, or --test_dir and --do_predict")
    if (args.model_name_or_path is None) == (args.model_type is None):
        parser.error("pass --model_name_or_path, or --model_type for a new model")
    if args.eval_only and args.model_name_or_path is None:
        parser.error("--eval_only needs --model_name_or_path")
    if args.config_overrides and args.model_type is None:
        parser.error("--config_overrides is for a new model, of --model_type")
    if args.do_predict and given == ["validation_dir"]:
        parser.error("--do_predict needs --test_dir")
    if args.group_by_length:
        parser.error("--group_by_length is for texts; images have no length")
    if args.random_resized_crop is not None and not 0 < args.random_resized_crop <= 1:
        parser.error(f"--random_resized_crop is {args.random_resized_crop}; it must be above 0 and at most 1")
    if not 0 <= args.label_smoothing_factor < 1:
        parser.error(f"--label_smoothing_factor is {args.label_smoothing_factor}; it must be at least 0 and below 1")
    if not (math.isfinite(args.mixup_alpha) and args.mixup_alpha >= 0):
        parser.error(f"--mixup_alpha is {args.mixup_alpha}; it must be a finite number, at least 0")
    check_arguments(parser, args, ("image_size", "max_train_samples", "max_eval_samples", "max_predict_samples"))


# Data


def load_data(args: argparse.Namespace, accelerator: Accelerator) -> ImageData:
    """The splits as far as they are needed, checked image by image."""
    if args.dataset_name == DIGITS:
        data = load_digits()
    elif args.dataset_name is not None:
        data = load_hub(args.dataset_name, args.dataset_config_name, args.image_column_name, args.label_column_name)
    elif args.idx_dir is not None:
        data = load_idx(args.idx_dir, args.label_names)
    else:
        directories = {
            "train": None if args.eval_only else args.train_dir,
            "validation": args.validation_dir,
            "test": args.test_dir if args.do_predict else None,
        }
        data = load_folders({name: path for name, path in directories.items() if path is not None})
    if not args.eval_only and "train" not in data.splits:
        raise ValueError(f"{data.source} has no training split; it has {', '.join(data.splits)}.")
    for name, split in data.splits.items():
        if split.labels is None and name != "test":
            raise ValueError(f"The images of {name} of {data.source} have no classes.")
    if "validation" not in data.splits and "train" in data.splits:
        data.splits["train"], data.splits["validation"] = split_off(data.splits["train"], args.train_val_split)
    if args.eval_only:
        data.splits.pop("train", None)
    if not args.do_predict:
        data.splits.pop("test", None)
    elif "test" not in data.splits:
        raise ValueError(f"--do_predict needs test images, but {data.source} has only {', '.join(data.splits)}.")
    if not data.splits:
        raise ValueError(f"{data.source} has nothing to evaluate on but test images; pass --do_predict.")

    # Only those that will be used are read for the check.
    if not args.eval_only:
        check_classes(data, args.skip_empty_classes)
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    data.splits = {name: limit(split, limits[name]) for name, split in data.splits.items()}
    unreadable = [None]
    if accelerator.is_main_process:
        unreadable = [
            {name: find_unreadable(split, args.dataloader_num_workers, name) for name, split in data.splits.items()}
        ]
    unreadable = broadcast_object_list(unreadable)[0]
    drop_unreadable(data, unreadable, args.skip_unreadable_images)
    if any(unreadable.values()) and not args.eval_only and args.max_train_samples is None:
        check_classes(data, args.skip_empty_classes)
    empty = [name for name, split in data.splits.items() if len(split) == 0]
    if empty:
        raise ValueError(f"{data.source} has no images for {', '.join(empty)}.")
    note_classes(data)
    return data


def cross_entropy(label_smoothing: float, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss; labels are classes, or shares of classes."""
    logits = model(pixel_values=batch["pixel_values"]).logits.float()
    return torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=label_smoothing)


def check_batches(
    accelerator: Accelerator,
    args: argparse.Namespace,
    config: EvolvingConfig,
    size: tuple[int, int],
    num_examples: int,
) -> None:
    """Checks that batch normalization will always have two values or more to normalize.

    Args:
        size: height and width of the images.

    Raises:
        ValueError: a batch will have one image, of which the last stage makes one pixel.
    """
    if not isinstance(config, EAResNetConfig) or max(size) > config.stage_stride(len(config.depths) - 1):
        return
    for process_index in range(accelerator.num_processes):
        batches = TrainingBatches(
            num_examples,
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            accelerator.num_processes,
            process_index,
        )
        (last_step,) = batches.steps(epoch=0, first_step=batches.steps_per_epoch - 1)
        if any(len(micro_batch.indices) == 1 for micro_batch in last_step):
            raise ValueError(
                f"Of {num_examples} images, a batch of the last step of an epoch has only one, and the last stage makes "
                f"one pixel of its {size[0]} x {size[1]}; batch normalization needs two values or more. Choose another "
                f"--per_device_train_batch_size than {args.per_device_train_batch_size}, or a larger --image_size."
            )


def scored_data(args: argparse.Namespace, data: ImageData) -> list[ScoredData]:
    return [
        ScoredData(name, getattr(args, f"{name}_dir") or data.source, len(data.splits[name]), "images", prefix)
        for name, prefix in (("validation", ""), ("test", "test_"))
        if name in data.splits
    ]


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    accelerator = create_accelerator(args)
    # Bad data and a bad model are told before the output directory is touched.
    data = load_data(args, accelerator)
    model, processor = load_model(args, data)
    best_metric = find_best_metric(args, metric_names(len(data.labels)) if "validation" in data.splits else [])
    if not args.eval_only:
        check_batches(accelerator, args, model.config, processor_size(processor), len(data.splits["train"]))
    lock = prepare_output_dir(accelerator, args)
    augment = Augmentation(
        processor_size(processor), int(processor.resample), args.random_resized_crop, args.horizontal_flip
    )
    num_channels = model.config.num_channels
    datasets = {
        name: ImageDataset(split, processor, num_channels, augment if name == "train" else None, args.seed)
        for name, split in data.splits.items()
    }
    collate = Collator(len(data.labels), args.mixup_alpha)
    return run(
        ImageTask(args, accelerator, datasets, collate, data.labels),
        model,
        processor,
        model_card={
            "auto_class": "AutoModelForImageClassification",
            "processor_class": "AutoImageProcessor",
            "task_type": "image-classification",
            "task_name": data.source,
            "dataset_name": data.source,
            "base_model": args.model_name_or_path,
            "evaluated_on": scored_data(args, data),
            "hub_dataset": None if args.dataset_name == DIGITS else args.dataset_name,
            "widget": IMAGE_WIDGET,
        },
        lock=lock,
        metric_for_best_model=best_metric,
        compute_loss=partial(cross_entropy, args.label_smoothing_factor),
    )


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
