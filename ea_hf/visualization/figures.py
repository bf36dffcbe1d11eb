# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps as matplotlib figures. Only drawing imports matplotlib."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..map_recording import LayerMaps
from .examples import Chain, ExampleMaps
from .parts import ATTENTION, EVOLVED, PARTS, Part, formula, vanilla_formula


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INCHES_PER_NAME = 0.135
PANEL_INCHES = (2.0, 5.0)  # at least and at most


def draw_map(
    axis: "Axes",
    values: torch.Tensor,
    part: Part = EVOLVED,
    limit: float | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    blocked: torch.Tensor | None = None,
) -> "AxesImage":
    """Draws one map of one head.

    Args:
        values: (query, key).
        part: what it is, which tells the colours.
        limit: value of the strongest colour; the largest absolute value if `None`.
        queries: names of the rows, and `keys` of the columns; numbers if `None`. Of many, every so many is named.
        blocked: cells that stay empty.
    """
    from matplotlib.colors import LinearSegmentedColormap

    if limit is None:
        limit = values.abs().max().item() or 1.0
    if blocked is not None:
        values = values.masked_fill(blocked, torch.nan)
    colors = LinearSegmentedColormap.from_list(part.name, part.colors).with_extremes(bad="0.85")
    image = axis.imshow(
        values.numpy(), cmap=colors, vmin=0 if part.is_probability else -limit, vmax=limit, aspect="equal"
    )
    _name_axis(axis, "x", "key", keys, rotation=90)
    _name_axis(axis, "y", "query", queries, rotation=0)
    return image


def _name_axis(axis: "Axes", side: str, label: str, names: Sequence[str] | None, rotation: float) -> None:
    if names is None:
        getattr(axis, f"set_{side}label")(label, fontsize=8)
        axis.tick_params(axis=side, labelsize=7)
        return
    step = math.ceil(len(names) * INCHES_PER_NAME / PANEL_INCHES[1])
    shown = range(0, len(names), step)
    set_ticks = getattr(axis, f"set_{side}ticks")
    # A dollar sign in a token begins no formula.
    set_ticks(shown, [_shortened(names[i]) for i in shown], rotation=rotation, fontsize=7, parse_math=False)
    getattr(axis, f"set_{side}label")(label if step == 1 else f"{label} (one in {step} named)", fontsize=8)


def _shortened(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def draw_layers(maps: ExampleMaps, chain: str | None = None, head: int | None = None, query: int = 0) -> "Figure":
    """One head of all layers of a chain, a row for each: the three parts, the map that is their sum, and the attention.

    Beside the last two stands what the vanilla model has, if it was recorded. Of an image, one query is drawn, over the
    image, without the tokens that stand before the patches.

    Args:
        maps: of `text_maps` or `image_maps`.
        chain: name of the chain; the first one if `None`.
        head: number of the head, one of `maps.heads`; the first of these if `None`.
        query: of an image: whose row of the maps is drawn, from 0; by default the class token, if there is one.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no such chain, head or query.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "ea_hf[visualization]"') from error
    chains = {one.name: one for one in maps.chains}
    drawn = chains.get(maps.chains[0].name if chain is None else chain)
    head = maps.heads[0] if head is None else head
    if drawn is None:
        raise ValueError(f"There is no chain {chain!r}; choose one of {', '.join(chains)}.")
    if head not in maps.heads:
        raise ValueError(f"Head {head} is not among those that were recorded, {', '.join(map(str, maps.heads))}.")
    if not 0 <= query < len(drawn.queries):
        raise ValueError(f"There is no query {query}; choose from 0 to {len(drawn.queries) - 1}.")
    columns = [(part, False) for part in PARTS]
    if maps.has_vanilla:
        columns[4:] = [(EVOLVED, True), (ATTENTION, False), (ATTENTION, True)]
    logits = sum(not part.is_probability for part, _ in columns)
    first = 1 if drawn.grid else 0  # after the image
    width, height = _panel_inches(drawn)
    size = (1.0 + (width + 0.35) * (first + len(columns)) + 1.2, 0.8 + (height + 0.75) * len(drawn.layers))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(drawn.layers), first + len(columns), squeeze=False)
    index = maps.heads.index(head)
    for row, layer in zip(axes, drawn.layers, strict=True):
        if drawn.grid:
            _draw_image(row[0], maps, drawn, query)
        panels = [_values(drawn, layer, part, is_vanilla, index, query) for part, is_vanilla in columns]
        for (start, stop), unit in (((0, logits), "logit"), ((logits, len(columns)), "probability")):
            limit = max(values[~values.isnan()].abs().max().item() for values in panels[start:stop]) or 1.0
            for axis, values, (part, is_vanilla) in zip(
                row[first + start : first + stop], panels[start:stop], columns[start:stop], strict=True
            ):
                names = (None, None) if drawn.grid else (drawn.queries, drawn.keys)
                image = draw_map(axis, values, part, limit, *names)
                if drawn.grid:
                    _hide_ticks(axis)
                axis.set_title(_title(part, layer, is_vanilla, maps.activation, index), fontsize=8, parse_math=False)
            colors = figure.colorbar(image, ax=list(row[first + start : first + stop]), aspect=25, pad=0.01)
            colors.set_label(unit, fontsize=8)
            colors.ax.tick_params(labelsize=7)
        row[first].set_ylabel(f"layer {layer.number}\n{row[first].get_ylabel()}", fontsize=9)
    what = f"{drawn.title}, head {head}"
    if drawn.grid:
        what += f"; query: {drawn.queries[query]}; keys: parts of the image"
    elif (drawn.query_axis, drawn.key_axis) != ("query: token", "key: token"):
        what += f"; {drawn.query_axis}; {drawn.key_axis}"
    figure.suptitle(f"{what}\nLogits are before mask and softmax and have no unit.", fontsize=10)
    return figure


def save_figures(maps: ExampleMaps, path: str | Path) -> list[Path]:
    """Writes `draw_layers` of each chain and head. Of several, the names of chain and head follow the path's stem."""
    path = Path(path)
    paths = []
    for chain in maps.chains:
        for head in maps.heads:
            parts = [path.stem, chain.name] if len(maps.chains) > 1 else [path.stem]
            if len(maps.heads) > 1:
                parts.append(f"head{head}")
            figure = draw_layers(maps, chain.name, head)
            with warnings.catch_warnings():
                # What matplotlib's font lacks becomes a box.
                warnings.filterwarnings("ignore", message="Glyph .* missing from")
                figure.savefig(path.with_stem("-".join(parts)), dpi=110)
            paths.append(path.with_stem("-".join(parts)))
    return paths


def _panel_inches(chain: Chain) -> tuple[float, float]:
    smallest, largest = PANEL_INCHES
    if chain.grid:
        rows, columns = chain.grid
        return smallest * min(1.0, columns / rows), smallest * min(1.0, rows / columns)
    width, height = (
        min(largest, max(smallest, INCHES_PER_NAME * len(names))) for names in (chain.keys, chain.queries)
    )
    return width, height


def _values(chain: Chain, layer: LayerMaps, part: Part, is_vanilla: bool, head: int, query: int) -> torch.Tensor:
    """What a panel shows: a map, or one of its rows as parts of the image."""
    values = (part.vanilla(layer.vanilla) if is_vanilla else part.values(layer))[head]
    if layer.blocked is not None:
        values = values.masked_fill(layer.blocked, torch.nan)
    if chain.grid:
        rows, columns = chain.grid
        values = values[query, -rows * columns :].unflatten(0, (rows, columns))
    return values


def _title(part: Part, layer: LayerMaps, is_vanilla: bool, activation: str, head: int) -> str:
    if is_vanilla:
        return f"vanilla {'attention' if part.is_probability else 'scores'}\n{vanilla_formula(part, layer)}"
    return f"{part.title}\n{formula(part, layer, activation, head)}"


def _draw_image(axis: "Axes", maps: ExampleMaps, chain: Chain, query: int) -> None:
    """The image, with a frame around the part that the query stands for."""
    from matplotlib.patches import Rectangle

    height, width, channels = maps.image.shape
    axis.imshow(maps.image[..., 0] if channels == 1 else maps.image, cmap="gray", vmin=0, vmax=255)
    axis.set_title("what the model saw", fontsize=8)
    _hide_ticks(axis)
    rows, columns = chain.grid
    patch = query - (len(chain.queries) - rows * columns)
    if patch >= 0:
        row, column = divmod(patch, columns)
        corner = (column * width / columns - 0.5, row * height / rows - 0.5)
        axis.add_patch(Rectangle(corner, width / columns, height / rows, fill=False, edgecolor="orange", linewidth=2))


def _hide_ticks(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel("")
    axis.set_ylabel("")
