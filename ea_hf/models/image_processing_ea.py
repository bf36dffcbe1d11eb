# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""From pictures of every kind to what the image models take, the same in training and wherever a checkpoint goes."""

from typing import Any

import numpy as np
from transformers import ViTImageProcessorPil
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.utils import is_vision_available


if is_vision_available():
    from PIL import Image, ImageOps


# Pixels of 16 bits, in units of those of 8 bits.
DEEP_PIXEL = 257
ORIENTATION = 274  # the tag by which a camera says how it was held; 1 is upright


class UnreadableImageError(ValueError):
    """An image cannot be read, or is not one that a model can learn from."""


def to_plain_image(image: "Image.Image", num_channels: int) -> "Image.Image":
    """Makes an image grey (`num_channels` 1) or RGB, with 8 bits per channel; one that is so already stays as it is.

    Pixels of 16 bits are scaled and not clipped, transparent ones stand before white, and a camera's note on how it was
    held is obeyed. Of several frames it takes the first.

    Raises:
        UnreadableImageError: its pixels are numbers of an unknown range.
    """
    image = _to_8_bits(ImageOps.exif_transpose(image))
    if is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # Pillow knows the way to grey from here only, for some modes
    return image.convert("L" if num_channels == 1 else "RGB")


def conversions(image: "Image.Image") -> list[str]:
    """What `to_plain_image` will change of an image, in words; not that grey becomes RGB, or RGB grey."""
    found = []
    if is_deep(image):
        found.append("scaled to 8 bits")
    elif is_transparent(image):
        found.append("put on white")
    elif image.mode not in ("1", "L", "P", "RGB"):
        found.append(f"made RGB from {image.mode}")
    if image.getexif().get(ORIENTATION, 1) != 1:
        found.append("turned upright")
    return found


def is_deep(image: "Image.Image") -> bool:
    return image.mode.startswith(("I", "F"))


def is_transparent(image: "Image.Image") -> bool:
    return image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info


def _to_8_bits(image: "Image.Image") -> "Image.Image":
    """Scales grey images of more than 8 bits, which Pillow's `convert` would clip to white."""
    if not is_deep(image):
        return image
    pixels = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise UnreadableImageError("its pixels are decimal numbers, and not all of them are from 0 to 1")
        return Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    if pixels.min() < 0 or pixels.max() > 255 * DEEP_PIXEL:
        raise UnreadableImageError(f"its pixels are integers from {pixels.min()} to {pixels.max()}")
    return Image.fromarray(np.round(pixels / DEEP_PIXEL).astype(np.uint8))


class EAImageProcessor(ViTImageProcessorPil):
    """`ViTImageProcessorPil` that takes pictures of every kind, as `to_plain_image` does, grey ones for a grey model.

    How many channels an image gets, 1 or 3, follows from `image_mean`. Arrays of unsigned integers of 8 or 16 bits are
    pictures too; others are taken as they are.
    """

    _auto_class = "AutoImageProcessor"  # so that its code is saved beside it
    takes_every_image = True  # so that a pipeline leaves pictures as they are

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        if not isinstance(image, Image.Image):
            image = _to_picture(np.asarray(image), input_data_format)
        if isinstance(image, Image.Image):
            image = to_plain_image(image, len(self.image_mean))
            input_data_format = None
        return super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)


def _to_picture(pixels: np.ndarray, input_data_format: str | ChannelDimension | None) -> "Image.Image | np.ndarray":
    if pixels.dtype not in (np.uint8, np.uint16, np.bool_) or pixels.ndim not in (2, 3):
        return pixels
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / DEEP_PIXEL).astype(np.uint8)
    if pixels.ndim == 3:
        channels = input_data_format or infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
        if channels == ChannelDimension.FIRST:
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


__all__ = ["EAImageProcessor"]
