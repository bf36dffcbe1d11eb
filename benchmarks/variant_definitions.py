# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/variants.py` compares: each variant by the configuration fields in which it differs from vanilla."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from ea_hf import PRESETS


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of attention.

    Args:
        about: a few words for the tables.
        fields: `ea_` fields of a configuration; `None` is the vanilla model, without the mechanism.
        length: how many times as many steps it is trained.
        wider: whether the feed-forward layers get as many more parameters as the variant "evolving" has.
        rate: how many times as high the learning rate is.
    """

    about: str
    fields: dict[str, Any] | None = None
    length: float = 1
    wider: bool = False
    rate: float = 1


def weights(residual: float, conv: float, **fields: Any) -> dict[str, Any]:
    return {
        "ea_residual_weight": residual,
        "ea_conv_weight": conv,
        **{f"ea_{name}": value for name, value in fields.items()},
    }


VANILLA, EVOLVING, MULTI_TOKEN, LONGER = "vanilla", "evolving", "multi_token", "vanilla_longer"
VARIANTS = {
    VANILLA: Variant("plain attention"),
    EVOLVING: Variant("the papers' form, weights (0.1, 0.1)", weights(0.1, 0.1)),
    "learned": Variant("learned gates that start at 0", weights(0.0, 0.0, mixing="learned")),
    "realformer": Variant("additive (1, 0), which is RealFormer", weights(1.0, 0.0, mixing="additive")),
    LONGER: Variant("plain attention, twice as many steps", length=2),
    "evolving_half": Variant("the papers' form, weights (0.5, 0.5)", weights(0.5, 0.5)),
    "zero_weights": Variant("the papers' form with both weights 0", weights(0.0, 0.0)),
    "residual_alone": Variant("residual alone (0.1, 0): maps are passed on, without a convolution", weights(0.1, 0.0)),
    "convolution_alone": Variant(
        "convolution alone (0, 0.1): no map is passed on to the next layer", weights(0.0, 0.1)
    ),
    "kernel_1": Variant("(0.1, 0.1), kernel of size 1: heads mixed only", weights(0.1, 0.1, kernel_size=1)),
    "linear": Variant("(0.1, 0.1), no activation", weights(0.1, 0.1, activation="linear")),
    "learned_started": Variant("learned gates that start at 0.3", weights(0.3, 0.3, mixing="learned")),
    "additive": Variant("additive (0.1, 0.1)", weights(0.1, 0.1, mixing="additive")),
    "vanilla_wider": Variant("plain attention, wider by as many parameters as `evolving` adds", wider=True),
    "encoder_chain": Variant(
        "(0.1, 0.1) in the encoder alone", weights(0.1, 0.1, decoder=False, cross_attention=False)
    ),
    "decoder_chain": Variant(
        "(0.1, 0.1) in the decoder alone", weights(0.1, 0.1, encoder=False, cross_attention=False)
    ),
    "cross_chain": Variant("(0.1, 0.1) in the cross-attention alone", weights(0.1, 0.1, encoder=False, decoder=False)),
    "separate_heads": Variant("(0.1, 0.1), each head its own kernel", weights(0.1, 0.1, conv_groups="heads")),
    "separate_heads_linear": Variant(
        "each head its own kernel, no activation: attention with convolved queries and keys",
        weights(0.1, 0.1, conv_groups="heads", activation="linear"),
    ),
    "rows_only": Variant("(0.1, 0.1), kernel of 3 rows and 1 column", weights(0.1, 0.1, kernel_size=(3, 1))),
    "columns_only": Variant("(0.1, 0.1), kernel of 1 row and 3 columns", weights(0.1, 0.1, kernel_size=(1, 3))),
    "talking_heads": Variant("talking-heads attention", dict(PRESETS["talking_heads"])),
    # The paper's even number of rows is for causal attention alone.
    MULTI_TOKEN: Variant(
        'multi-token attention, 5 rows instead of 6: the preset "multi_token_bidirectional"',
        dict(PRESETS["multi_token_bidirectional"]),
    ),
}
# What every task compares; the others are the ablation of a few tasks.
HEAD_TO_HEAD = (
    *(VANILLA, EVOLVING, "evolving_half", "learned", "realformer"),
    *("talking_heads", MULTI_TOKEN, "separate_heads_linear", LONGER),
)
TRANSLATION_ONLY = ("encoder_chain", "decoder_chain", "cross_chain", "multi_token_cross")


def multi_token(**fields: Any) -> dict[str, Any]:
    """Multi-token attention with other `ea_` fields."""
    return VARIANTS[MULTI_TOKEN].fields | {f"ea_{name}": value for name, value in fields.items()}


# Multi-token attention with one part less, or another one.
PARTS = {
    "multi_token_convolution_alone": Variant(
        "multi-token attention without the mixing of heads", multi_token(post_mixing="none")
    ),
    "multi_token_heads_alone": Variant(
        "multi-token attention without the convolution: heads are mixed after the softmax",
        multi_token(conv_weight=0.0),
    ),
    "multi_token_rows": Variant(
        "multi-token attention, kernel of 5 rows and 1 column", multi_token(kernel_size=(5, 1))
    ),
    "multi_token_columns": Variant(
        "multi-token attention, kernel of 1 row and 11 columns", multi_token(kernel_size=(1, 11))
    ),
    "multi_token_small": Variant("multi-token attention, kernel of 3 rows and 3 columns", multi_token(kernel_size=3)),
    "multi_token_encoder": Variant(
        "multi-token attention in the encoder alone", multi_token(decoder=False, cross_attention=False)
    ),
    "multi_token_decoder": Variant(
        "multi-token attention in the decoder's self-attention alone",
        multi_token(encoder=False, cross_attention=False),
    ),
    "multi_token_cross": Variant(
        "multi-token attention in the cross-attention alone", multi_token(encoder=False, decoder=False)
    ),
    "multi_token_every_layer": Variant(
        "multi-token attention with a convolution in every layer, not in one of four", multi_token(conv_every=1)
    ),
}
# What most tasks lack; `multi_token_cross` is tried on a second task, as it keeps the whole gain of the first.
ABLATION = (*(name for name in VARIANTS if name != VANILLA), "multi_token_cross")
VARIANTS |= PARTS

# The most telling ones again, three times as long.
LONG = {
    name: f"{name}_long"
    for name in (VANILLA, EVOLVING, "evolving_half", "learned_started", MULTI_TOKEN, "multi_token_cross", "realformer")
}
VARIANTS |= {
    long: dataclasses.replace(VARIANTS[name], about=f"{VARIANTS[name].about}; three times as many steps", length=3)
    for name, long in LONG.items()
}
# Vanilla, the papers' form and what gains most, with half and twice the learning rate; with the one that all have, they choose the best of three.
SEARCH = {name: (f"{name}_half_rate", name, f"{name}_double_rate") for name in (VANILLA, EVOLVING, MULTI_TOKEN)}
VARIANTS |= {
    searched: dataclasses.replace(VARIANTS[name], about=f"{VARIANTS[name].about}; {word} the learning rate", rate=rate)
    for name, (half, _, double) in SEARCH.items()
    for searched, word, rate in ((half, "half", 0.5), (double, "twice", 2.0))
}


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def make_model(make: Callable[[dict[str, Any] | None, int], torch.nn.Module], name: str, seed: int) -> torch.nn.Module:
    """The model of a variant. Whatever a seed and a task share with vanilla starts with the same values.

    Args:
        make: makes a task's model from `ea_` fields, or a vanilla one from `None`, with so many more feed-forward units
            per layer.
    """

    def seeded(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return make(fields, width)

    variant = VARIANTS[name]
    if not variant.wider:
        return seeded(variant.fields, 0)
    vanilla = parameters(seeded(None, 0))
    missing = parameters(seeded(VARIANTS[EVOLVING].fields, 0)) - vanilla
    return seeded(None, math.ceil(missing / (parameters(seeded(None, 1)) - vanilla)))
