# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of greedy decoding with EA-T5 beside Transformers' T5 with eager attention, and without the cache.

    python benchmarks/generation.py                   # T5-small's shape, batch 8, 64 new tokens
    python benchmarks/generation.py --new_tokens 128 --uncached

Runs are interleaved; medians. Weights are random, and no sequence ends early.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from attention import environment, time_step
from transformers import T5Config, T5ForConditionalGeneration

from ea_hf import EAT5Config, EAT5ForConditionalGeneration


def build(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    shape = {"num_layers": args.num_layers, "d_model": args.d_model, "num_heads": args.num_heads, "d_ff": args.d_ff}
    shape["decoder_start_token_id"] = 0
    models = {
        "eager": T5ForConditionalGeneration(T5Config(**shape, attn_implementation="eager")),
        "evolving": EAT5ForConditionalGeneration(EAT5Config(**shape, ea_kernel_size=args.kernel_size)),
    }
    for model in models.values():
        model.to(args.device).eval().generation_config.eos_token_id = None
    return models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--source_length", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--num_layers", type=int, default=6)
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--num_heads", type=int, default=8)
    parser.add_argument("--d_ff", type=int, default=2048)
    parser.add_argument("--kernel_size", type=int, default=3)
    parser.add_argument("--uncached", action="store_true", help="Also decode without the cache.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/generation.json"))
    parser.set_defaults(dtype="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(", ".join(f"{name}: {value}" for name, value in environment(args).items()), flush=True)

    models = build(args)
    input_ids = torch.randint(2, 32000, (args.batch_size, args.source_length), device=args.device)
    runs = {(name, True): model for name, model in models.items()}
    if args.uncached:
        runs[("evolving", False)] = models["evolving"]
    times: dict[tuple[str, bool], list[float]] = {run: [] for run in runs}
    for repeat in range(args.repeats + 1):
        for (name, use_cache), model in runs.items():
            seconds = time_step(
                lambda model=model, use_cache=use_cache: model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    do_sample=False,
                    max_new_tokens=args.new_tokens,
                    num_beams=args.num_beams,
                    use_cache=use_cache,
                ),
                args.device,
            )
            if repeat > 0:  # the first round warms up
                times[name, use_cache].append(seconds)
    medians = {run: statistics.median(values) for run, values in times.items()}
    rows = [
        {
            "implementation": name,
            "cache": use_cache,
            "seconds": seconds,
            "ms_per_token": 1000 * seconds / args.new_tokens,
            "to_eager": seconds / medians["eager", True],
        }
        for (name, use_cache), seconds in medians.items()
    ]
    print("| implementation | cache | s | ms per token | to eager |\n|---|---|---:|---:|---:|")
    for row in rows:
        cache = "yes" if row["cache"] else "no"
        cells = (row["implementation"], cache, f"{row['seconds']:.2f}", f"{row['ms_per_token']:.1f}")
        print("| " + " | ".join(cells) + f" | {row['to_eager']:.2f} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"environment": environment(args), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
