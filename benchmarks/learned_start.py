# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""How "learned" is best started: kernels, gates and their learning rate, by held-out loss on a task of `benchmarks/variants.py`.

    python benchmarks/learned_start.py                          # the table of docs/method.md
    python benchmarks/learned_start.py --kernels normal:0.1 --gates 0 --rates 0.001 0.01

Everything else is as in `benchmarks/variants.py`: data, model, batches and schedule. The file of results keeps what is
finished, and a run in it is not repeated.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from pathlib import Path

import torch
import variant_training
from variant_definitions import make_model
from variant_tasks import TASKS

from ea_hf.models import evolution_layer


# The three differ in one thing each from the first: the kernels of "learned", its gates, and their learning rate.
KERNELS = ("normal:0.1", "normal:0.02", "normal:0.3", "identity")
GATES = (0.0, 0.1, 0.3)
RATES = (0.001, 0.003, 0.01, 0.03)


def fields(kernel: str, gate: float) -> dict:
    """The `ea_` fields of a start. Sets the standard deviation that new kernels take, which is no field."""
    name, _, std = kernel.partition(":")
    evolution_layer.LEARNED_KERNEL_STD = float(std or 0.1)
    weights = {"ea_residual_weight": gate, "ea_conv_weight": gate}
    return {"ea_mixing": "learned", "ea_conv_init": name, **weights}


def make_optimizer(task: variant_training.Task, model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    """That of all variants, but for the rate of what belongs to evolving attention."""
    modules = [module for module in model.modules() if isinstance(module, evolution_layer.AttentionEvolution)]
    own = {parameter for module in modules for parameter in module.parameters()}
    optimizer = variant_training.make_optimizer(task, model)
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in own]
    optimizer.add_param_group({"params": list(own), "lr": rate, "weight_decay": 0.0})
    return optimizer


def run(args: argparse.Namespace, kernel: str | None, gate: float, rate: float, seed: int) -> float:
    """The held-out measure; of the vanilla model without a kernel."""
    task = dataclasses.replace(TASKS[args.task], steps=args.steps)
    problem = task.load(task)
    torch.manual_seed(seed)
    if kernel is None:
        model = make_model(problem.make_model, "vanilla", seed)
        return variant_training.train(task, problem, model, seed)["value"]
    model = problem.make_model(fields(kernel, gate), 0)
    optimizer = make_optimizer(task, model, rate)
    return variant_training.train(task, problem, model, seed, optimizer=optimizer)["value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="characters")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--kernels", nargs="+", default=KERNELS)
    parser.add_argument("--gates", nargs="+", type=float, default=GATES)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/learned_start.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(args.output.read_text()) if args.output.exists() else {}
    # Not the whole product: all kernels and gates at the rate in the middle, all rates with the first of both.
    middle = args.rates[len(args.rates) // 2]
    starts = [(kernel, gate, middle) for kernel, gate in itertools.product(args.kernels, args.gates)]
    starts += [(args.kernels[0], args.gates[0], rate) for rate in args.rates]
    starts = [(None, 0.0, 0.0), *dict.fromkeys(starts)]
    print(
        f"| {args.task}, {args.steps} steps: kernels | gates | their rate | held out, mean | seeds |\n|---|---|---|---|---|"
    )
    for start in starts:
        values = []
        for seed in args.seeds:
            key = f"{args.task} {args.steps} {start} {seed}"
            if key not in done:
                done[key] = run(args, *start, seed)
                args.output.write_text(json.dumps(done, indent=1))
            values.append(done[key])
        kernel, gate, rate = start
        cells = ["vanilla", "-", "-"] if kernel is None else [kernel, f"{gate:g}", f"{rate:g}"]
        print(f"| {' | '.join(cells)} | {statistics.mean(values):.4f} | {len(values)} |", flush=True)


if __name__ == "__main__":
    main()
