# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws how an attention map flows from layer to layer, for a sentence and a checkpoint; `make figures` also trains the latter.

python docs/draw_map_flow.py output/map_flow "God created the heavens and the earth." --head 1
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from transformers import AutoModel, AutoTokenizer

import ea_hf
from ea_hf.visualization import ExampleMaps, draw_map, text_maps


ROWS = {
    "scores": r"scores  $S_{%d} = QK^T/\sqrt{d}$",
    "mixed": r"$M_{%d}$: with $A_{%d}$",
    "evolved": r"$A_{%d}$: with the convolution",
}
# The README shows the picture 900 pixels wide, so that a point is a little more than a pixel.
WIDTH, HEIGHT, DPI = 9.0, 9.2, 200
# Ink that is read on white as well as on GitHub's black; the picture's ground is transparent.
INK, ARROW = "#757d86", "#d9534f"


def arrow(figure, start, end, start_at, end_at, color):
    """An arrow between two panels; places are fractions of a panel."""
    figure.add_artist(
        ConnectionPatch(
            start_at,
            end_at,
            "axes fraction",
            "axes fraction",
            axesA=start,
            axesB=end,
            arrowstyle="-|>",
            mutation_scale=16,
            linewidth=2,
            color=color,
        )
    )


def draw(maps: ExampleMaps, config: ea_hf.EABertConfig) -> Figure:
    """The layers side by side, one head, each panel on a scale of its own."""
    (chain,) = maps.chains
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.subplots(3, len(chain.layers), squeeze=False)
    figure.subplots_adjust(left=0.125, right=0.97, top=0.94, bottom=0.13, wspace=0.34, hspace=0.5)
    residual, conv = config.ea_residual_weight, config.ea_conv_weight
    for column, layer in enumerate(chain.layers):
        number = layer.number
        for row, (name, title) in enumerate(ROWS.items()):
            axis, values = axes[row, column], getattr(layer, name)[0]
            draw_map(axis, values, queries=chain.queries, keys=chain.keys)
            if number == 1 and name != "scores":
                text = rf"${'M' if name == 'mixed' else 'A'}_1 = S_1$: first layer"
            else:
                text = title % ((number, number - 1) if name == "mixed" else number)
            axis.set_title(text, fontsize=12, color=INK, pad=20)
            largest = values.abs().max().item()
            axis.text(0.5, 1.035, f"colours: {-largest:.1f} to {largest:.1f}", transform=axis.transAxes, ha="center",
                      fontsize=10, color=INK)  # fmt: skip
            axis.set_xlabel("")
            axis.set_ylabel("")
            axis.tick_params(labelsize=10, colors=INK, labelbottom=row == 2, labelleft=column == 0)
            axis.tick_params(axis="x", labelrotation=90)
            for spine in axis.spines.values():
                spine.set_color(INK)
        top, middle, bottom = axes[:, column]
        for above, below, label in (
            (top, middle, rf"$\times$ {1 - residual:g}"),
            (middle, bottom, f"{1 - conv:g} M + {conv:g} ReLU(Conv(M))"),
        ):
            arrow(figure, above, below, (0.06, -0.04), (0.06, 1.22), INK)
            if number > 1:
                above.annotate(label, (0.1, -0.12), xycoords="axes fraction", va="center", fontsize=10, color=INK)
        if column + 1 < len(chain.layers):
            right = axes[1, column + 1]
            arrow(figure, bottom, right, (1.01, 0.9), (-0.02, 0.1), ARROW)
            right.annotate(rf"$\times$ {residual:g}", (-0.3, 0.12), xycoords="axes fraction", fontsize=11, color=ARROW)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", nargs="?", default="output/map_flow")
    parser.add_argument("sentence", nargs="?", default="God created the heavens and the earth.")
    parser.add_argument("--head", type=int, default=1, help="From 1.")
    parser.add_argument("--first_layer", type=int, default=1, help="From 1; three layers are shown.")
    parser.add_argument("--output", type=Path, default=Path("docs/map_flow.png"))
    args = parser.parse_args()
    config = ea_hf.evolving_config_from_pretrained(args.checkpoint)
    model = AutoModel.from_pretrained(args.checkpoint, config=config).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    layers = range(args.first_layer, args.first_layer + 3)
    maps = text_maps(model, tokenizer, args.sentence, layers=layers, heads=[args.head])
    draw(maps, model.config).savefig(args.output, dpi=DPI, transparent=True)
    for layer in maps.chains[0].layers:
        if layer.number > 1:
            convolved = layer.evolved - (1 - model.config.ea_conv_weight) * layer.mixed
            share = convolved.norm() / (convolved.norm() + (layer.evolved - convolved).norm())
            print(f"Layer {layer.number}: {share:.0%} of the map are the convolution's")
    print(f"Drew {args.output}")


if __name__ == "__main__":
    main()
