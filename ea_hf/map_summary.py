# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What evolving attention does in a model, in numbers: by layer and head, on a batch of inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from .map_recording import LayerMaps, evolutions_of, run_seen, shares_of, without_evolution
from .models.evolution_layer import AttentionEvolution


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By the attribute of `LayerSummary`: what stands over a column or picture.
SHARES = {"scores": "from scores", "residual": "from residual", "convolution": "from convolution"}
QUANTITIES = {**SHARES, "distance": "distance to vanilla", "residual_gate": "residual gate", "conv_gate": "conv gate"}


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a chain; all numbers are one for each head.

    A share is the norm of a part of A_l divided by the norm of A_l, both over all cells of the batch where a query may attend
    (Frobenius). The parts add up to the map, but their norms do not: where parts cancel out, shares are above 1.

    Attributes:
        chain: name of the chain.
        layer: number of the layer within its chain, from 1.
        scores: the share of what comes from this layer's own scores.
        residual: the share of what comes from the previous layer's map.
        convolution: the share of what comes from the convolution.
        distance: total variation between the attention and that of the same model with its evolution switched off,
            1/2 sum over the keys of |P - P_vanilla|, the mean over all queries that are no padding. 0 is equal, 1 disjoint.
        residual_gate: the learned weights of the residual; `None` where there are none.
        conv_gate: the learned weights of the convolution; `None` where there are none.
    """

    chain: str
    layer: int
    scores: tuple[float, ...]
    residual: tuple[float, ...]
    convolution: tuple[float, ...]
    distance: tuple[float, ...]
    residual_gate: tuple[float, ...] | None = None
    conv_gate: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Summary:
    """What `summary` returns; printed, it is a table.

    Attributes:
        model_name: class of the model.
        mixing: as `ea_mixing`.
        layers: of all chains, in the order in which the model runs them.
    """

    model_name: str
    mixing: str
    layers: list[LayerSummary]

    @property
    def quantities(self) -> list[str]:
        """The attributes that some layer has."""
        return [name for name in QUANTITIES if any(getattr(layer, name) is not None for layer in self.layers)]

    def __str__(self) -> str:
        header = ["chain", "layer", *(QUANTITIES[name] for name in self.quantities)]
        rows = [header]
        for layer in self.layers:
            rows.append(
                [layer.chain, str(layer.layer), *(_cell(name, getattr(layer, name)) for name in self.quantities)]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join(
            [
                f"{self.model_name}, mixing {self.mixing!r}: mean over the heads (least to most)",
                lines[0],
                "-" * max(map(len, lines)),
                *lines[1:],
                "A share is the norm of a part of the map divided by the map's; parts may cancel out. The distance is the total",
                "variation to the attention of the same model with its evolution switched off, from 0 to 1.",
            ]
        )

    def scalars(self) -> dict[str, float]:
        """For a tracker: the mean over the heads of each layer, by names such as "self/layer_2/convolution".

        Of learned gates, which may cancel out, also their mean absolute value: "self/layer_2/conv_gate_abs".
        """
        values = {}
        for layer in self.layers:
            for name in self.quantities:
                numbers = getattr(layer, name)
                if numbers is None:
                    continue
                key = f"{layer.chain}/layer_{layer.layer}/{name}"
                values[key] = sum(numbers) / len(numbers)
                if name.endswith("gate"):
                    values[f"{key}_abs"] = sum(map(abs, numbers)) / len(numbers)
        return values

    def plot(self) -> "Figure":
        """A picture of layers x heads for each chain (rows) and quantity (columns).

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('Figures need matplotlib: pip install "ea_hf[visualization]"') from error
        chains = list(dict.fromkeys(layer.chain for layer in self.layers))
        figure = Figure(figsize=(0.6 + 2.9 * len(self.quantities), 0.6 + 2.6 * len(chains)), layout="constrained")
        axes = figure.subplots(len(chains), len(self.quantities), squeeze=False)
        for chain, row in zip(chains, axes, strict=True):
            layers = [layer for layer in self.layers if layer.chain == chain]
            for name, axis in zip(self.quantities, row, strict=True):
                _draw_quantity(axis, name, layers)
                axis.set_title(f"{chain}: {QUANTITIES[name]}" if len(chains) > 1 else QUANTITIES[name], fontsize=9)
        return figure


def _cell(name: str, numbers: tuple[float, ...] | None) -> str:
    if numbers is None:
        return "-"
    form = "{:.1%}" if name in SHARES else "{:.3f}"
    mean, least, most = (form.format(value) for value in (sum(numbers) / len(numbers), min(numbers), max(numbers)))
    return f"{mean} ({least} to {most})"


def _draw_quantity(axis: Any, name: str, layers: list[LayerSummary]) -> None:
    heads = max(len(layer.scores) for layer in layers)
    numbers = torch.full((len(layers), heads), torch.nan)
    for row, layer in enumerate(layers):
        if getattr(layer, name) is not None:
            numbers[row, : len(layer.scores)] = torch.tensor(getattr(layer, name))
    largest = numbers[~numbers.isnan()].abs().max().item() if not numbers.isnan().all() else 1.0
    is_gate = name.endswith("gate")
    # From 1, as in the equations; what is not there stays white.
    extent = (0.5, heads + 0.5, len(layers) + 0.5, 0.5)
    colors, least, most = ("RdBu_r", -largest or -1.0, largest or 1.0) if is_gate else ("viridis", 0.0, largest or 1.0)
    image = axis.imshow(numbers.numpy(), cmap=colors, vmin=least, vmax=most, aspect="auto", extent=extent)
    axis.set_yticks(range(1, len(layers) + 1), [str(layer.layer) for layer in layers])
    axis.set_xticks(sorted({1, heads, *range(1, heads + 1, max(1, heads // 6))}))
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.figure.colorbar(image, ax=axis).ax.tick_params(labelsize=7)


def summary(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Summary:
    """How much of each attention map comes from where, how far the attention is from vanilla, and what was learned.

    The model runs twice, without dropout and without gradients: as it is, and with its evolution switched off (both weights 0,
    no head mixing after the softmax), which is the vanilla model with the same weights and not another training. It is left
    as it was. The attention of the whole batch is held, of all layers and twice.

    Args:
        model: any evolving model, with or without a head.
        inputs: of the model, a batch as it would be called with; padding is left out of all numbers by its mask.

    Raises:
        TypeError: `inputs` are not the arguments of the model by their names.
        ValueError: no attention in the model evolves, or maps have infinite or undefined values.
    """
    evolutions = evolutions_of(model)
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"`inputs` is a {type(inputs).__name__}; give the model's arguments by name, such as "
            '`tokenizer("A film.", return_tensors="pt")`.'
        )
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with without_evolution(evolutions):
        plain = [attention for _, _, attention in run_seen(model, evolutions, inputs, lambda evolution, maps: None)]
    layers = []
    for (evolution, (values, real), attention), vanilla in zip(
        run_seen(model, evolutions, inputs, _measure), plain, strict=True
    ):
        distances = (attention.float() - vanilla.float()).abs().sum(-1, keepdim=True) / 2
        # (batch or 1, 1, query or 1, 1) to (batch, heads, query, 1)
        real = real.to(distances).expand_as(distances)
        distance = (distances * real).sum((0, 2, 3)) / real.sum((0, 2, 3)).clamp_min(1)
        layers.append(
            LayerSummary(
                chain=evolution.chain, layer=evolution.layer_index + 1, distance=tuple(distance.tolist()), **values
            )
        )
    mixings = sorted({evolution.mixing for evolution in evolutions})
    return Summary(type(model).__name__, ", ".join(mixings), layers)


def _measure(evolution: AttentionEvolution, maps: LayerMaps) -> tuple[dict[str, Any], torch.Tensor]:
    """The shares and gates of a layer, and which queries are no padding, (batch or 1, 1, query or 1, 1)."""
    blocked = (
        torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=maps.scores.device) if maps.blocked is None else maps.blocked
    )

    values: dict[str, Any] = {name: tuple(share.tolist()) for name, share in shares_of(maps).items()}
    for name in ("residual_gate", "conv_gate"):
        gate = getattr(evolution, name)  # whole, while its layer runs
        values[name] = None if gate is None else tuple(gate.detach().float().tolist())
    return values, ~blocked.all(-1, keepdim=True)
