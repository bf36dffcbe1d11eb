# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of EA-ViT and EA-ResNet beside Transformers' ViT with eager attention and ResNet, in one run.

    python benchmarks/image_models.py     # images of 224 x 224 pixels, on one thread

Runs are interleaved, so that a change of the machine's speed meets all models; medians, and ratios to the vanilla one.
Weights are random.
"""

import argparse
import statistics

import torch
from attention import DTYPES, MODES, compare_times
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from ea_hf import EAResNetConfig, EAResNetModel, EAViTConfig, EAViTModel


# Batch size, and the models by name, the vanilla one first.
MODELS = {
    "ViT-Base": (
        4,
        {
            "ViT, eager": lambda: ViTModel(ViTConfig(attn_implementation="eager"), add_pooling_layer=False),
            "EA-ViT": lambda: EAViTModel(EAViTConfig(), add_pooling_layer=False),
        },
    ),
    "ResNet-50": (
        4,
        {
            "ResNet": lambda: ResNetModel(ResNetConfig()),
            "EA-ResNet": lambda: EAResNetModel(EAResNetConfig.from_depth(50)),
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="Rounds go on until they took as long together.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| | model | ms | ratio |\n|---|---|---:|---:|")
    for name in args.models:
        batch, makers = MODELS[name]
        inputs = {"pixel_values": torch.randn(batch, 3, 224, 224, device=args.device)}
        for mode in MODES:
            torch.manual_seed(0)
            models = {model: make().to(args.device).train(mode == "training") for model, make in makers.items()}
            rounds = compare_times(models, inputs, mode, args)
            times = {name: statistics.median(values["seconds"]) for name, values in rounds.items()}
            vanilla = next(iter(times.values()))
            for model, seconds in times.items():
                cells = f"{name} {batch} x 224 x 224 {mode} | {model} | {1000 * seconds:.0f} | {seconds / vanilla:.2f}"
                print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
