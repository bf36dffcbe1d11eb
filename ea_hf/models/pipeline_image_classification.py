# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Image classification with the image processor's own treatment of pictures; it travels with checkpoints."""

import base64
import binascii
import io
import os
import urllib.request
from typing import Any

from transformers import ImageClassificationPipeline
from transformers.image_utils import load_image
from transformers.utils import is_vision_available


if is_vision_available():
    from PIL import Image, UnidentifiedImageError


class EAImageClassificationPipeline(ImageClassificationPipeline):
    """`pipeline("image-classification", model=...)`, as Transformers has it.

    Transformers makes RGB of a picture before the image processor sees it, which clips pixels of 16 bits and drops
    transparency. An image processor that `takes_every_image` gets it as it is; for any other, nothing changes.
    """

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:
        if not getattr(self.image_processor, "takes_every_image", False):
            return super().preprocess(image, timeout=timeout)
        if isinstance(image, str):
            image = open_image(image, timeout)
        return self.image_processor(images=image, return_tensors="pt").to(self.dtype)


def open_image(source: str, timeout: float | None = None) -> "Image.Image":
    """Opens a file, an address or the text of base64, in the picture's own mode."""
    if source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=timeout) as response:
            return Image.open(io.BytesIO(response.read()))
    if os.path.isfile(source):
        return Image.open(source)
    try:
        text = source.split(",")[1] if source.startswith("data:image/") else source
        return Image.open(io.BytesIO(base64.decodebytes(text.encode())))
    except (binascii.Error, UnidentifiedImageError):
        return load_image(source)  # it tells what a source may be


__all__ = ["EAImageClassificationPipeline"]
