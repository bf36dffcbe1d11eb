# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolving models that classify images, from checkpoints or new, and their image processors."""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from image_data import ImageData, reorder_labels
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from ea_hf import EAImageProcessor, EAResNetConfig, EAViTConfig, EvolvedConfig
from ea_hf.models.configuration_evolving import EvolvingConfig
from ea_hf.training.class_labels import class_names, name_classes
from ea_hf.training.config_overrides import check_overrides, overrides_told
from ea_hf.training.model_loading import load_evolving_model
from ea_hf.training.script import evolution_overrides
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

CONFIGS = {config_class.model_type: config_class for config_class in (EAViTConfig, EAResNetConfig)}


def new_config(args: argparse.Namespace) -> EvolvingConfig:
    """The configuration of a new model.

    Raises:
        ValueError: --config_overrides names a value that the configuration does not have.
    """
    config_class = CONFIGS[args.model_type]
    values = dict(args.config_overrides)
    if args.image_size is not None:
        values["image_size"] = args.image_size
    depth = values.pop("depth", None) if config_class is EAResNetConfig else None
    check_overrides(values, config_class())
    values |= evolution_overrides(args)
    return config_class(**values) if depth is None else config_class.from_depth(depth, **values)


def load_model(args: argparse.Namespace, data: ImageData) -> tuple[PreTrainedModel, Any]:
    """The evolving model with a head for the classes, and its image processor. Gives the classes a checkpoint's order."""
    if args.model_type is not None:
        size = {} if args.image_size is None else {"image_size": args.image_size}
        with overrides_told({**args.config_overrides, **size}):
            config = new_config(args)
            fit_labels(args, data, config)
            model = AutoModelForImageClassification.from_config(config)
        return model, new_processor(config)
    fit, ignore = partial(fit_labels, args, data), args.ignore_mismatched_sizes
    model, _ = load_evolving_model(AutoModelForImageClassification, args, fit, ignore_mismatched_sizes=ignore)
    config = model.config
    if not hasattr(config, "num_channels"):
        raise ValueError(
            f"The configuration of {args.model_name_or_path}, of the type {config.model_type!r}, does not say how many channels "
            "images have (`num_channels`), as models of images and text do not; take a model of images alone."
        )
    try:
        processor = AutoImageProcessor.from_pretrained(
            args.model_name_or_path, trust_remote_code=args.trust_remote_code, backend="pil"
        )
    except OSError as error:
        damaged = next((p for p in Path(args.model_name_or_path).glob("p*processor_config.json")), None)
        if damaged is not None:
            raise ValueError(f"{damaged} cannot be read: {error}") from error
        processor = new_processor(config)
        settings = " ".join(processor.to_json_string().split())
        logger.warning(f"{args.model_name_or_path} has no image processor; taking {settings}.")
    processor = served_as_trained(processor)
    if args.image_size is not None:
        if isinstance(config, EAViTConfig) and config.image_size != args.image_size:
            model.resize_position_embeddings(args.image_size)
        if processor_size(processor) != (args.image_size, args.image_size):
            size = {"height": args.image_size, "width": args.image_size}
            processor = type(processor).from_dict({**processor.to_dict(), "size": size, "do_center_crop": False})
    if isinstance(config, EAViTConfig):
        expected = config.image_size if not isinstance(config.image_size, int) else (config.image_size,) * 2
        if processor_size(processor) != tuple(expected):
            raise ValueError(
                f"The image processor of {args.model_name_or_path} makes images of {processor_size(processor)} pixels, but "
                f"the model takes {tuple(expected)}. Choose a size with --image_size."
            )
    if isinstance(config, EvolvedConfig):
        check_size(model, processor, args.model_name_or_path)
    if len(processor.image_mean) != config.num_channels:
        raise ValueError(
            f"The image processor of {args.model_name_or_path} normalizes {len(processor.image_mean)} channels, but the "
            f"model has {config.num_channels}."
        )
    if not all(math.isfinite(value) and value != 0 for value in processor.image_std):
        raise ValueError(
            f"The image processor of {args.model_name_or_path} divides by `image_std`, {list(processor.image_std)}; correct it."
        )
    return model, processor


def fit_labels(args: argparse.Namespace, data: ImageData, config: PreTrainedConfig) -> None:
    """Gives the configuration the classes, and the classes the order of a checkpoint that has the same."""
    if args.model_type is None:
        known = class_names(config)
        if args.eval_only or sorted(known) == sorted(data.labels):
            reorder_labels(data, known)
    name_classes(config, data.labels)
    config.problem_type = "single_label_classification"


def check_size(model: PreTrainedModel, processor: Any, name: str) -> None:
    """Raises ValueError if the model does not take images of the processor's size."""
    height, width = processor_size(processor)
    try:
        with torch.no_grad():
            model.eval()(pixel_values=torch.zeros(1, model.config.num_channels, height, width))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} does not take images of {height} x {width} pixels and {model.config.num_channels} channels: {reason} "
            "Choose a size with --image_size."
        ) from error


def served_as_trained(processor: Any) -> Any:
    """The same image processor, which also does what this script's reader does with pictures of every kind."""
    if isinstance(processor, EAImageProcessor):
        return processor
    methods = ("preprocess", "_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize")
    if all(getattr(type(processor), name, None) is getattr(ViTImageProcessorPil, name) for name in methods):
        values = processor.to_dict()
        return EAImageProcessor.from_dict(
            {name: value for name, value in values.items() if name not in ("image_processor_type", "auto_map")}
        )
    logger.warning(
        f"The checkpoint's image processor is a {type(processor).__name__}, which is kept. Outside of this script it may "
        "treat pixels of 16 bits and transparent ones otherwise than in training."
    )
    return processor


def new_processor(config: EvolvingConfig) -> EAImageProcessor:
    """Resizes to the model's size, and brings pixels into [-1, 1]."""
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    if config.num_channels not in (1, 3):
        raise ValueError(f"`num_channels` is {config.num_channels}; images have 1 (grey) or 3 (colours).")
    half = [0.5] * config.num_channels
    return EAImageProcessor(
        size={"height": height, "width": width},
        image_mean=half,
        image_std=half,
        do_convert_rgb=config.num_channels == 3,
    )


def processor_size(processor: Any) -> tuple[int, int]:
    """Height and width of the images that an image processor makes."""
    size = processor.size
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    if size.get("height"):
        return size["height"], size["width"]
    return size["shortest_edge"], size["shortest_edge"]
