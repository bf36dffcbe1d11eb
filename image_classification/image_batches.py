# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Images one by one, augmented at random, and batches of them."""

import math
from typing import Any

import numpy as np
import torch
from image_data import ImageSplit, open_image
from PIL import Image


class ImageDataset:
    """Images as a model takes them: `pixel_values`, (channels, height, width), and `labels`.

    Args:
        augment: makes a training image out of an image and random numbers; `None` for evaluation.
        seed: of the random numbers, which follow from it, the epoch and the image alone, however many processes and
            workers there are.
    """

    def __init__(self, split: ImageSplit, processor: Any, num_channels: int, augment: Any = None, seed: int = 0):
        self.split = split
        self.processor = processor
        self.num_channels = num_channels
        self.augment = augment
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def fingerprint(self) -> str:
        return self.split.fingerprint()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = open_image(self.split.images[index], self.num_channels)
        example: dict[str, Any] = {}
        if self.augment is None:
            pixel_values = self.processor(image, return_tensors="np")["pixel_values"][0]
        else:
            example["seed"] = (self.seed, self.epoch, index)
            image = self.augment(image, np.random.default_rng(example["seed"]))
            pixel_values = self.processor(image, do_resize=False, do_center_crop=False, return_tensors="np")
            pixel_values = pixel_values["pixel_values"][0]
        example["pixel_values"] = pixel_values.astype(np.float32)
        if self.split.labels is not None:
            example["labels"] = int(self.split.labels[index])
        return example


class Augmentation:
    """Random crop and flip, or only the size that the model takes.

    Args:
        size: height and width that the model takes.
        resample: Pillow's way of interpolation.
        min_scale: least share of the area in a crop; `None` for no crops.
    """

    def __init__(self, size: tuple[int, int], resample: int, min_scale: float | None, horizontal_flip: bool):
        self.size = size
        self.resample = resample
        self.min_scale = min_scale
        self.horizontal_flip = horizontal_flip

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        height, width = self.size
        box = None if self.min_scale is None else random_box(image.size, self.min_scale, generator)
        if box is not None or image.size != (width, height):
            image = image.resize((width, height), resample=self.resample, box=box)
        if self.horizontal_flip and generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def random_box(
    size: tuple[int, int], min_scale: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of an image (left, upper, right, lower), of proportions between 3:4 and 4:3.

    Its edges lie between pixels too: of whole pixels, an image of 8 x 8 has but few parts.
    """
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(min_scale, 1)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left = generator.uniform(0, width - box_width)
            upper = generator.uniform(0, height - box_height)
            # Rounding must not lead out of the image.
            return left, upper, min(left + box_width, width), min(upper + box_height, height)
    return 0, 0, width, height


class Collator:
    """Makes a batch; with mixup, each image is blended with another one of the batch, and so are their classes.

    Mixup: Zhang et al., https://arxiv.org/abs/1710.09412

    Args:
        mixup_alpha: of the beta distribution of the shares; 0 for none.
    """

    def __init__(self, num_labels: int, mixup_alpha: float = 0.0):
        self.num_labels = num_labels
        self.mixup_alpha = mixup_alpha

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"pixel_values": torch.from_numpy(np.stack([example["pixel_values"] for example in examples]))}
        if "labels" not in examples[0]:
            return batch
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
        if self.mixup_alpha > 0 and "seed" in examples[0]:
            seed, epoch, _ = examples[0]["seed"]
            generator = np.random.default_rng([seed, epoch, *(example["seed"][-1] for example in examples)])
            share = float(generator.beta(self.mixup_alpha, self.mixup_alpha))
            order = torch.from_numpy(generator.permutation(len(examples)))
            labels = torch.nn.functional.one_hot(batch["labels"], self.num_labels).float()
            batch["pixel_values"] = share * batch["pixel_values"] + (1 - share) * batch["pixel_values"][order]
            batch["labels"] = share * labels + (1 - share) * labels[order]
        return batch
