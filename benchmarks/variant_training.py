# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The training loop that all tasks of `benchmarks/variants.py` share, and what a task is."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers.optimization import Adafactor


WARMUP, DECAY = 0.1, 0.2  # shares of the steps: linear warm-up at first, linear decay to 0 at last
POINTS = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a task's steps, where the curve is measured
Batch = dict[str, torch.Tensor]


@dataclasses.dataclass
class Problem:
    """A task with its data.

    Args:
        make_model: from `ea_` fields (`None`: vanilla) and more feed-forward units per layer.
        batches: of a seed, without end, the same for all variants.
        evaluate: held-out measures of a model, by name.
        finish: further measures that are taken once, at the end.
    """

    make_model: Callable[[dict[str, Any] | None, int], torch.nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[[torch.nn.Module], dict[str, float]]
    finish: Callable[[torch.nn.Module], dict[str, float]] = lambda model: {}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is known of a task before its data are read.

    Args:
        kind: the row of the top table that it belongs to.
        metric: which measure decides.
        lower_is_better: whether that is a loss; differences are then in per cent of vanilla's, otherwise in points.
        steps, batch_size, learning_rate: vanilla's, and those of all variants.
        load: reads the data.
        seeds: how many are planned.
        ablation: whether all variants are compared, not the head-to-head alone.
        parts: whether the parts of multi-token attention are.
        search: whether learning rates are searched for some variants.
        long: the variants that are trained three times as long too.
    """

    kind: str
    metric: str
    lower_is_better: bool
    steps: int
    batch_size: int
    learning_rate: float
    load: Callable[["Task"], Problem]
    optimizer: str = "adamw"
    seeds: int = 5
    ablation: bool = False
    parts: bool = False
    search: bool = False
    long: tuple[str, ...] = ()


def epochs(size: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of batches, epoch after epoch in another order; what is left at an epoch's end is left out."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(size)
        for start in range(0, max(1, size - batch_size + 1), batch_size):
            yield order[start : start + batch_size]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate in a step, counted from 0."""
    return min(1.0, (step + 1) / (WARMUP * steps), (steps - step) / (DECAY * steps))


def make_optimizer(task: Task, model: torch.nn.Module) -> torch.optim.Optimizer:
    if task.optimizer == "adafactor":  # as translation/translation_offline.py
        return Adafactor(
            model.parameters(),
            lr=task.learning_rate,
            relative_step=False,
            scale_parameter=True,
            warmup_init=False,
        )
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=task.learning_rate)


def evaluated(model: torch.nn.Module, measure: Callable[[torch.nn.Module], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        values = measure(model)
    model.train()
    return values


def train(
    task: Task,
    problem: Problem,
    model: torch.nn.Module,
    seed: int,
    length: float = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, Any]:
    """Trains for `length` times the task's steps, with the task's own optimizer if there is no other.

    Returns:
        `value` and all other measures at the end, `curve` (pairs of a step and the value), `steps`, `examples`, and what
        training alone took: `seconds` and `cpu_seconds`.
    """
    steps = round(task.steps * length)
    points = {round(task.steps * point * factor) for factor in {1, length} for point in POINTS}
    points = {step for step in points if 0 < step < steps}
    optimizer = make_optimizer(task, model) if optimizer is None else optimizer
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    torch.manual_seed(seed)  # of dropout
    model.train()
    curve, examples, seconds, cpu_seconds = [], 0, 0.0, 0.0
    for step, batch in enumerate(itertools.islice(problem.batches(seed), steps), start=1):
        started, cpu_started = time.perf_counter(), time.process_time()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
        examples += len(next(iter(batch.values())))
        if step in points:
            curve.append([step, evaluated(model, problem.evaluate)[task.metric]])
    measures = evaluated(model, problem.evaluate) | evaluated(model, problem.finish)
    curve.append([steps, measures[task.metric]])
    return {
        "metric": task.metric,
        "value": measures.pop(task.metric),
        "measures": measures,
        "curve": curve,
        "steps": steps,
        "examples": examples,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
    }
