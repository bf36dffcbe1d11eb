# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Time of decoding with EA-T5 and an evolved Llama beside the vanilla models with eager attention and sdpa, in one run.

    python benchmarks/generation.py                   # T5-small's shape and a Llama of its size, batch 8
    python benchmarks/generation.py --models t5 --lengths 64 512 --num_beams 1
    python benchmarks/speed_report.py                 # docs/speed.md

Prefill: a forward pass over as many tokens as the row says (of T5: of the decoder), which fills the cache. Step: a forward pass
over one more token, after so many; with several beams the cache is reordered too. Runs are interleaved; medians, and ratios to
the base of the same round, with an interval for their median. Weights are random.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from attention import environment, format_table, summarize, time_step
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

import ea_hf


SHAPE = {"vocab_size": 32128, "num_heads": 8, "d_model": 512, "d_ff": 2048, "num_layers": 6}
SOURCE_LENGTH = 32  # of T5's encoder
VANILLA = ("eager", "sdpa")
EVOLVING = "evolving"


def t5(implementation: str) -> PreTrainedModel:
    if implementation == EVOLVING:
        return ea_hf.EAT5ForConditionalGeneration(ea_hf.EAT5Config(**SHAPE, decoder_start_token_id=0))
    config = T5Config(**SHAPE, decoder_start_token_id=0, attn_implementation=implementation)
    return T5ForConditionalGeneration(config)


def llama(implementation: str) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["d_model"],
        num_attention_heads=SHAPE["num_heads"],
        num_hidden_layers=SHAPE["num_layers"],
        intermediate_size=SHAPE["d_ff"],
        max_position_embeddings=4096,
        attn_implementation="eager" if implementation == EVOLVING else implementation,
    )
    model = LlamaForCausalLM(config)
    return ea_hf.evolve(model) if implementation == EVOLVING else model


MODELS = {"t5": t5, "llama": llama}


class Decoding:
    """One model at one place of its decoding."""

    def __init__(self, model: PreTrainedModel, length: int, args: argparse.Namespace):
        self.model, self.device = model.to(args.device).eval(), args.device
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(2, 32000, (args.batch_size, length), generator=generator).to(args.device)
        self.arguments: dict[str, Any] = {"use_cache": True}
        if model.config.is_encoder_decoder:
            source = torch.randint(2, 32000, (args.batch_size, SOURCE_LENGTH), generator=generator).to(args.device)
            self.arguments["encoder_outputs"] = model.get_encoder()(input_ids=source)
        self.name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        self.cache = None

    def prefill(self) -> None:
        outputs = self.model(**{self.name: self.tokens}, **self.arguments, **self.logits_of_one_token())
        self.cache = outputs.past_key_values

    def logits_of_one_token(self) -> dict[str, int]:
        return {} if self.model.config.is_encoder_decoder else {"logits_to_keep": 1}

    def widen(self, num_beams: int) -> None:
        """Each sequence becomes as many beams."""
        if num_beams > 1:
            self.cache.batch_repeat_interleave(num_beams)
            self.tokens = self.tokens.repeat_interleave(num_beams, dim=0)
            if "encoder_outputs" in self.arguments:
                outputs = self.arguments["encoder_outputs"]
                outputs["last_hidden_state"] = outputs.last_hidden_state.repeat_interleave(num_beams, dim=0)
        self.num_beams = num_beams

    def step(self) -> None:
        self.model(**{self.name: self.tokens[:, :1]}, past_key_values=self.cache, **self.arguments)
        if self.num_beams > 1:
            self.cache.reorder_cache(torch.arange(len(self.tokens), device=self.device))


def timed(runs: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of each by rounds, of the clock and of the process on the CPU; one round more warms up."""
    times: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            cpu_start = time.process_time()
            seconds = time_step(run, device)
            if number > 0:
                times[name]["seconds"].append(seconds)
                times[name]["cpu_seconds"].append(time.process_time() - cpu_start)
    return times


@torch.no_grad()
def measure(name: str, length: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the prefill, and of the steps after it for each number of beams."""
    models = {implementation: MODELS[name](implementation) for implementation in args.implementations}

    def rows(mode: str, times: dict[str, dict[str, list[float]]]) -> Iterator[dict[str, Any]]:
        for implementation, values in times.items():
            row = {"model": name, "shape": f"{args.batch_size}x{length}", "mode": mode, "base": args.base}
            yield {**row, "implementation": implementation, **summarize(values, times.get(args.base))}

    for num_beams in args.num_beams:
        decodings = {implementation: Decoding(model, length, args) for implementation, model in models.items()}
        prefills = {implementation: decoding.prefill for implementation, decoding in decodings.items()}
        times = timed(prefills, args.repeats if num_beams == args.num_beams[0] else 0, args.device)
        if num_beams == args.num_beams[0]:
            yield from rows("prefill", times)
        for decoding in decodings.values():
            decoding.widen(num_beams)
        steps = {implementation: decoding.step for implementation, decoding in decodings.items()}
        beams = f", {num_beams} beams" if num_beams > 1 else ""
        yield from rows(f"step{beams}", timed(steps, args.steps, args.device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 512, 2048], help="In tokens.")
    parser.add_argument("--num_beams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--implementations", nargs="+", choices=(*VANILLA, EVOLVING), default=[*VANILLA, EVOLVING])
    parser.add_argument("--base", choices=(*VANILLA, EVOLVING), default="eager", help="What ratios are to.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="Prefills.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/generation.json"))
    parser.set_defaults(dtype="float32", dropout=0.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = environment(args)
    print(", ".join(f"{name}: {value}" for name, value in settings.items()), flush=True)
    found = []
    for name in args.models:
        for length in args.lengths:
            new = list(measure(name, length, args))
            print(f"\n{format_table(new, args.device)}", flush=True)
            found += new
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps({"environment": settings, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
