# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws how an attention map flows from layer to layer, for a sentence and a checkpoint.

python docs/draw_map_flow.py output/film_sentiment "A film that never quite finds its feet." --head 2
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from transformers import AutoModel, AutoTokenizer

import ea_hf
from ea_hf.visualization import ExampleMaps, draw_map, text_maps


ROWS = ("scores", "mixed", "evolved")
TITLES = {
    "scores": r"$S_{%d}$: raw scores $QK^T/\sqrt{d}$",
    "mixed": r"$M_{%d}$: with the previous map",
    "evolved": r"$A_{%d}$: with the convolution",
}


def arrow(figure, start, end, start_at, end_at, color, label="", label_at=(0.0, 0.0)):
    """An arrow between two panels; places are fractions of a panel, the label's too, from its left end."""
    figure.add_artist(
        ConnectionPatch(
            start_at,
            end_at,
            "axes fraction",
            "axes fraction",
            axesA=start,
            axesB=end,
            arrowstyle="-|>",
            mutation_scale=14,
            linewidth=1.6,
            color=color,
        )
    )
    start.annotate(label, label_at, xycoords="axes fraction", va="center", fontsize=10, color=color)


def draw(maps: ExampleMaps, model_config: ea_hf.EABertConfig) -> Figure:
    """The layers side by side, one head."""
    (chain,), (head,) = maps.chains, maps.heads
    figure = Figure(figsize=(4.1 * len(chain.layers), 11.2))
    axes = figure.subplots(3, len(chain.layers), squeeze=False)
    figure.subplots_adjust(left=0.09, right=0.985, top=0.94, bottom=0.085, wspace=0.42, hspace=0.34)
    residual, conv = model_config.ea_residual_weight, model_config.ea_conv_weight
    limit = max(getattr(layer, name).abs().max().item() for layer in chain.layers for name in ROWS)
    for column, layer in enumerate(chain.layers):
        number = layer.number
        for row, name in enumerate(ROWS):
            axis = axes[row, column]
            image = draw_map(axis, getattr(layer, name)[0], limit=limit, queries=chain.queries, keys=chain.keys)
            title = TITLES[name] % number
            if number == 1 and name != "scores":
                title = rf"${'M' if name == 'mixed' else 'A'}_1 = S_1$: the first layer"
            axis.set_title(title, fontsize=10.5)
            if row < 2:
                axis.set_xticklabels([])
                axis.set_xlabel("")
            if column > 0:
                axis.set_yticklabels([])
                axis.set_ylabel("")
        top, middle, bottom = axes[:, column]
        down = ((0.05, -0.03), (0.05, 1.03), "black")
        if number > 1:
            arrow(figure, top, middle, *down, f"$\\times$ {1 - residual:g}", (0.09, -0.1))
            arrow(figure, middle, bottom, *down, f"{1 - conv:g} M + {conv:g} ReLU(Conv2d(M))", (0.09, -0.1))
        else:
            arrow(figure, top, middle, *down)
            arrow(figure, middle, bottom, *down)
        if column + 1 < len(chain.layers):
            label = f"$\\times$ {residual:g}"
            arrow(figure, bottom, axes[1, column + 1], (1.02, 0.5), (-0.03, 0.5), "tab:red", label, (1.05, 0.95))
    colors = figure.colorbar(image, ax=axes, orientation="horizontal", fraction=0.018, pad=0.075, aspect=60)
    colors.set_label(f"attention score before the softmax, head {head}; the heads are the convolution's channels")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", nargs="?", default="output/film_sentiment")
    parser.add_argument("sentence", nargs="?", default="A film that never quite finds its feet.")
    parser.add_argument("--head", type=int, default=3, help="From 1.")
    parser.add_argument("--first_layer", type=int, default=1, help="From 1; three layers are shown.")
    parser.add_argument("--output", type=Path, default=Path("docs/map_flow.png"))
    args = parser.parse_args()
    config = ea_hf.evolving_config_from_pretrained(args.checkpoint)
    model = AutoModel.from_pretrained(args.checkpoint, config=config).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    layers = range(args.first_layer, args.first_layer + 3)
    maps = text_maps(model, tokenizer, args.sentence, layers=layers, heads=[args.head])
    draw(maps, model.config).savefig(args.output, dpi=110)
    print(f"Drew {args.output}")


if __name__ == "__main__":
    main()
