# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws how an attention map flows from layer to layer, for a sentence and a checkpoint.

python docs/draw_map_flow.py output/film_sentiment "A film that never quite finds its feet." --head 2
"""

import argparse
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import ConnectionPatch
from transformers import AutoModel, AutoTokenizer

import ea_hf


ROWS = ("scores", "mixed", "evolved")
TITLES = {
    "scores": r"$S_{%d}$: raw scores $QK^T/\sqrt{d}$",
    "mixed": r"$M_{%d}$: with the previous map",
    "evolved": r"$A_{%d}$: with the convolution",
}


def record_maps(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """S_l, M_l and A_l of each layer, each (heads, query, key)."""
    layers = []

    def record(evolution, args, evolved):
        scores, previous = args[0], args[1]
        weight = evolution.residual_weight
        mixed = scores if previous is None else weight * previous + (1 - weight) * scores
        layers.append({"scores": scores[0], "mixed": mixed[0], "evolved": evolved[0]})

    evolutions = [module for module in model.modules() if isinstance(module, ea_hf.AttentionEvolution)]
    hooks = [evolution.register_forward_hook(record) for evolution in evolutions]
    with torch.no_grad():
        model(**inputs, output_attention_maps=True)  # asked for its maps, it calls the modules
    for hook in hooks:
        hook.remove()
    return layers


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


def draw(layers: list[dict[str, torch.Tensor]], tokens: list[str], head: int, first: int, model_config) -> plt.Figure:
    """Three layers side by side, one head."""
    shown = layers[first : first + 3]
    figure, axes = plt.subplots(3, len(shown), figsize=(4.1 * len(shown), 11.2))
    figure.subplots_adjust(left=0.09, right=0.985, top=0.94, bottom=0.085, wspace=0.42, hspace=0.34)
    residual, conv = model_config.ea_residual_weight, model_config.ea_conv_weight
    limit = max(layer[name][head].abs().max().item() for layer in shown for name in ROWS)
    for column, layer in enumerate(shown):
        number = first + column + 1
        for row, name in enumerate(ROWS):
            axis = axes[row, column]
            image = axis.imshow(layer[name][head], cmap="RdBu_r", vmin=-limit, vmax=limit)
            title = TITLES[name] % number
            if number == 1 and name != "scores":
                title = rf"${'M' if name == 'mixed' else 'A'}_1 = S_1$: the first layer"
            axis.set_title(title, fontsize=10.5)
            axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
            axis.set_yticks(range(len(tokens)), tokens, fontsize=7)
            if row == 2:
                axis.set_xlabel("key")
            else:
                axis.set_xticklabels([])
            if column == 0:
                axis.set_ylabel("query")
            else:
                axis.set_yticklabels([])
        top, middle, bottom = axes[:, column]
        down = ((0.05, -0.03), (0.05, 1.03), "black")
        if number > 1:
            arrow(figure, top, middle, *down, f"$\\times$ {1 - residual:g}", (0.09, -0.1))
            arrow(figure, middle, bottom, *down, f"{1 - conv:g} M + {conv:g} ReLU(Conv2d(M))", (0.09, -0.1))
        else:
            arrow(figure, top, middle, *down)
            arrow(figure, middle, bottom, *down)
        if column + 1 < len(shown):
            label = f"$\\times$ {residual:g}"
            arrow(figure, bottom, axes[1, column + 1], (1.02, 0.5), (-0.03, 0.5), "tab:red", label, (1.05, 0.95))
    colors = figure.colorbar(image, ax=axes, orientation="horizontal", fraction=0.018, pad=0.075, aspect=60)
    colors.set_label(f"attention score before the softmax, head {head + 1}; the heads are the convolution's channels")
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
    inputs = tokenizer(args.sentence, return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    figure = draw(record_maps(model, inputs), tokens, args.head - 1, args.first_layer - 1, model.config)
    figure.savefig(args.output, dpi=110)
    print(f"Drew {args.output}")


if __name__ == "__main__":
    main()
