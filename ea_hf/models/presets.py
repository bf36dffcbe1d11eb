# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolving attention's relatives, each as the fields of `EvolvingConfig` that make it. `docs/method.md` has their equations."""

from collections.abc import Mapping
from typing import Any


class Preset(dict):
    """Fields of a configuration by name, and the paper that describes what they make.

    A dictionary: `EABertConfig(**PRESETS["realformer"])` takes it as it is, and `preset_fields` does so with fields that override it.
    What a family or a mask does not allow is refused by the configuration or the model.

    Examples:
        ```python
        preset = ea_hf.PRESETS["realformer"]
        print(preset.source, dict(preset))
        config = ea_hf.EABertConfig(**preset)
        ```

    Attributes:
        source: the paper that describes it.
    """

    def __init__(self, source: str, **fields: Any):
        super().__init__(fields)
        self.source = source


# Each layer's map is what a linear convolution makes of its own scores alone, and heads are mixed after the softmax as well.
_MIXED_SCORES = {
    "ea_mixing": "convex",
    "ea_residual_weight": 0.0,
    "ea_conv_weight": 1.0,
    "ea_activation": "linear",
    "ea_conv_init": "identity",
    "ea_post_mixing": "heads",
    "ea_head_kernel_size": None,
}
_NO_POST_MIXING = {"ea_post_mixing": "none", "ea_head_kernel_size": None}
_PAPERS_CONVOLUTION = {
    "ea_kernel_size": 3,
    "ea_conv_groups": 1,
    "ea_conv_every": None,
    "ea_conv_init": "normal",
    "ea_activation": "relu",
}

PRESETS: dict[str, Preset] = {
    # The weights are the family's; in "learned" they say where gates start.
    "evolving": Preset(
        "Wang et al., ICML 2021, https://arxiv.org/abs/2102.12895",
        ea_mixing="convex",
        **_PAPERS_CONVOLUTION,
        **_NO_POST_MIXING,
    ),
    "learned": Preset(
        "this library, after Wang et al., ICML 2021, https://arxiv.org/abs/2102.12895",
        ea_mixing="learned",
        **_NO_POST_MIXING,
    ),
    "realformer": Preset(
        "He et al., Findings of ACL 2021, https://arxiv.org/abs/2012.11747",
        ea_mixing="additive",
        ea_residual_weight=1.0,
        ea_conv_weight=0.0,
        **_NO_POST_MIXING,
    ),
    "talking_heads": Preset(
        "Shazeer et al., 2020, https://arxiv.org/abs/2003.02436",
        ea_kernel_size=1,
        ea_conv_groups=1,
        ea_conv_every=1,
        **_MIXED_SCORES,
    ),
    "multi_token": Preset(
        "Golovneva et al., 2025, https://arxiv.org/abs/2504.00927",
        ea_kernel_size=(6, 11),
        ea_conv_groups="heads",
        ea_conv_every=4,
        **_MIXED_SCORES,
    ),
    # For models with an encoder, whose kernels have a row in the middle.
    "multi_token_bidirectional": Preset(
        "this library, after Golovneva et al., 2025, https://arxiv.org/abs/2504.00927",
        ea_kernel_size=(5, 11),
        ea_conv_groups="heads",
        ea_conv_every=4,
        **_MIXED_SCORES,
    ),
}


def preset_fields(name: str | None, **fields: Any) -> dict[str, Any]:
    """The fields of a preset together with others.

    Args:
        name: of the preset; `None` for none.
        fields: further fields of the configuration.

    Raises:
        ValueError: there is no such preset, or one of `fields` contradicts it.
    """
    if name is None:
        return fields
    if name not in PRESETS:
        raise ValueError(f"`ea_preset` is {name!r}; choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    for field, value in fields.items():
        if field in preset and _plain(value) != _plain(preset[field]):
            others = {key: value for key, value in preset.items() if key != field}
            raise ValueError(
                f"`{field}` is {value!r}, but the preset {name!r} says {preset[field]!r}. Leave one of them out; without the "
                f"preset its other fields are {others}."
            )
    return {**preset, **fields}


def _plain(value: Any) -> Any:
    """A value as it compares: JSON has lists for tuples."""
    return tuple(value) if isinstance(value, list) else value


def expand_preset(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of which one may be `ea_preset`, with those of the preset in its place; see `preset_fields`."""
    fields = dict(fields)
    return preset_fields(fields.pop("ea_preset", None), **fields)
