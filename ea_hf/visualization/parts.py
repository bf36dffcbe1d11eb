# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What is shown of a layer, in words and colours: the same in figures and on pages."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..map_recording import LayerMaps


# From the lowest over 0 to the highest value, and from 0 to the highest probability.
LOGIT_COLORS = ("#0b3c7d", "#3f7fc1", "#a9cdea", "#f7f7f7", "#f6bfa3", "#d2604a", "#8a0f1e")
PROBABILITY_COLORS = ("#f7f7f7", "#cfd3ec", "#9c97cd", "#6a4fa3", "#33115a")
LOGIT_UNIT = "logit before mask and softmax, no unit"
PROBABILITY_UNIT = "probability"


@dataclass(frozen=True)
class Part:
    """One of the maps that are shown of a layer.

    Attributes:
        name: short, for programs.
        title: for a reader.
        values: takes it from a layer, (heads, query, key).
        vanilla: takes what stands beside it from the same layer in the vanilla model.
        is_probability: whether it is a probability; otherwise a logit.
    """

    name: str
    title: str
    values: Callable[[LayerMaps], torch.Tensor]
    vanilla: Callable[[LayerMaps], torch.Tensor] = lambda layer: layer.evolved
    is_probability: bool = False

    @property
    def unit(self) -> str:
        return PROBABILITY_UNIT if self.is_probability else LOGIT_UNIT

    @property
    def colors(self) -> tuple[str, ...]:
        return PROBABILITY_COLORS if self.is_probability else LOGIT_COLORS


SCORES = Part("scores", "from the scores", lambda layer: layer.from_scores)
PREVIOUS = Part("previous", "from the previous layer", lambda layer: layer.from_previous)
CONVOLUTION = Part("convolution", "from the convolution", lambda layer: layer.from_convolution)
EVOLVED = Part("evolved", "evolved map", lambda layer: layer.evolved)
ATTENTION = Part(
    "attention", "attention", lambda layer: layer.attention, lambda layer: layer.attention, is_probability=True
)
# The first three add up to the fourth.
PARTS = (SCORES, PREVIOUS, CONVOLUTION, EVOLVED, ATTENTION)


def subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def weight_of(part: Part, layer: LayerMaps, head: int) -> float | None:
    """How much of its source a part is for one of a layer's heads, by its place; `None` of what is no part of the sum."""
    weights = {
        SCORES.name: layer.score_weight,
        PREVIOUS.name: layer.previous_weight,
        CONVOLUTION.name: layer.conv_weight,
    }
    weight = weights.get(part.name)
    return weight[head].item() if isinstance(weight, torch.Tensor) else weight


def formula(part: Part, layer: LayerMaps, activation: str, head: int = 0) -> str:
    """What a part is in this layer, for one of its heads, by its place; such as "0.81 × S₄"."""
    here = subscript(layer.number)
    sources = {
        SCORES.name: f"S{here}",
        PREVIOUS.name: f"A{subscript(layer.number - 1)}",
        CONVOLUTION.name: f"{activation}(Conv2d(M{here}))",
    }
    if part.name not in sources:
        return f"A{here}" if part is EVOLVED else f"P{here} = softmax(A{here})"
    weight, source = weight_of(part, layer, head), sources[part.name]
    if weight == 0:
        return "nothing: the first layer" if layer.number == 1 and part is not SCORES else "nothing: weight 0"
    return source if weight == 1 else f"{weight:.4g} × {source}"


def vanilla_formula(part: Part, layer: LayerMaps) -> str:
    """What stands beside a part, in the vanilla model."""
    here = subscript(layer.number)
    return f"P{here} = softmax(S{here})" if part.is_probability else f"S{here}"
