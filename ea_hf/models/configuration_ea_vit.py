# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-ViT configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import ViTConfig

from .configuration_evolving import EvolvingConfig


@strict
class EAViTConfig(EvolvingConfig, ViTConfig):
    """Configuration of EA-ViT: `ViTConfig` with the fields of `EvolvingConfig`.

    `EAViTConfig.from_pretrained` also reads the configuration of a vanilla ViT checkpoint, among them the DeiT
    checkpoints without a distillation token (`facebook/deit-base-patch16-224`), which are of the type "vit" as well.

    Raises:
        ValueError: see `EvolvingConfig`; also for an `image_size` that `patch_size` does not divide: a part of the image
            would be left out without a word. `from_pretrained` refuses DeiT checkpoints with a distillation token.
    """

    model_type = "ea_vit"
    vanilla_model_types = ("vit",)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") == "deit":
            raise ValueError(
                f"{args[0] if args else 'The checkpoint'} is of the type 'deit': its distillation token takes part in the "
                "attention, and ViT has none. Choose a DeiT checkpoint without it, which is of the type 'vit', such as "
                "facebook/deit-base-patch16-224."
            )
        return config_dict, kwargs

    def check(self) -> None:
        super().check()
        sizes, patches = (
            (value, value) if isinstance(value, int) else tuple(value) for value in (self.image_size, self.patch_size)
        )
        if any(patch < 1 or size < patch or size % patch for size, patch in zip(sizes, patches, strict=True)):
            raise ValueError(
                f"`image_size` is {self.image_size}, which `patch_size`, {self.patch_size}, does not divide; choose "
                "a multiple of it."
            )


__all__ = ["EAViTConfig"]
