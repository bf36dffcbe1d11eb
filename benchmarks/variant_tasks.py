# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks of `benchmarks/variants.py`, and which runs are planned, in which order."""

from functools import partial

from variant_definitions import (
    ABLATION,
    EVOLVING,
    HEAD_TO_HEAD,
    LONG,
    LONGER,
    MULTI_TOKEN,
    PARTS,
    SEARCH,
    TRANSLATION_ONLY,
    VANILLA,
    VARIANTS,
)
from variant_text_tasks import (
    help_pairs,
    load_characters,
    load_fine_tuning,
    load_masked,
    load_translation,
    verse_pairs,
)
from variant_training import Problem, Task
from variant_vector_tasks import load_images, load_letters, load_mnist1d, load_series


LANGUAGE, TRANSLATION, FINE_TUNING = "language modelling", "translation", "fine-tuning"
IMAGES, SERIES, SYNTHETIC = "images", "time series", "synthetic"
ABLATION_SEEDS = 3  # of what is not in the head-to-head
EXPLAINED = "translation_en_de"
TAKEN_APART = "translation_web_kjv"  # where multi-token attention gains most


def load_help(task: Task) -> Problem:
    """Short sentences, so that a run of some minutes comes to where the losses part, which is after 600 steps."""
    return load_translation(task, help_pairs(), "en-de", 4000, length=20)


def load_verse_translation(task: Task) -> Problem:
    return load_translation(task, verse_pairs(), "web-kjv", 2000, length=32)


def series_task(name: str, steps: int = 200, search: bool = False) -> Task:
    return Task(SERIES, "accuracy", False, steps, 16, 3e-3, partial(load_series, name=name), search=search)


def fine_tuning_task(name: str, metric: str, columns: tuple[str, ...], steps: int, batch_size: int) -> Task:
    load = partial(load_fine_tuning, name=name, columns=columns, is_regression=metric == "pearson")
    return Task(FINE_TUNING, metric, False, steps, batch_size, 1e-4, load)


TASKS = {
    "characters": Task(LANGUAGE, "loss", True, 800, 8, 1e-3, load_characters, ablation=True),
    "digits": Task(
        IMAGES, "accuracy", False, 800, 64, 1.5e-3, partial(load_images, name="digits", patch_size=2), search=True
    ),
    "JapaneseVowels": series_task("JapaneseVowels", search=True),
    "ArrowHead": series_task("ArrowHead"),
    "BasicMotions": series_task("BasicMotions"),
    "GunPoint": series_task("GunPoint"),
    "ItalyPowerDemand": series_task("ItalyPowerDemand"),
    "OSULeaf": series_task("OSULeaf"),
    "mnist1d": Task(SERIES, "accuracy", False, 600, 32, 2e-3, load_mnist1d),
    "masked_verses": Task(LANGUAGE, "loss", True, 600, 16, 1e-3, load_masked, search=True),
    "fashion_mnist": Task(
        IMAGES, "accuracy", False, 800, 32, 1.5e-3, partial(load_images, name="fashion-mnist", patch_size=4)
    ),
    # Some runs leave a plateau before the end, others do not.
    "letters_in_block": Task(
        *(SYNTHETIC, "accuracy", False, 1500, 32, 1e-3, load_letters), long=(VANILLA, MULTI_TOKEN, "realformer")
    ),
    "film_sentiment": fine_tuning_task("film_sentiment", "accuracy", ("sentence",), 80, 8),
    "film_rating": fine_tuning_task("film_rating", "pearson", ("sentence",), 80, 8),
    "verse_pairs": fine_tuning_task("verse_pairs", "accuracy", ("sentence1", "sentence2"), 80, 8),
    TAKEN_APART: Task(
        TRANSLATION, "loss", True, 500, 16, 0.03, load_verse_translation, "adafactor", search=True, parts=True
    ),
    EXPLAINED: Task(
        *(TRANSLATION, "loss", True, 1000, 32, 0.03, load_help, "adafactor"),
        seeds=3,
        ablation=True,
        long=(VANILLA, EVOLVING, "evolving_half", "learned_started", MULTI_TOKEN, "multi_token_cross"),
    ),
}


def variants_of(name: str) -> list[str]:
    """The variants that a task compares."""
    task = TASKS[name]
    left_out = set() if task.kind == TRANSLATION else set(TRANSLATION_ONLY)
    if task.kind == FINE_TUNING:
        left_out.add(LONGER)  # its steps are few beside those of the pretraining
    chosen = {*HEAD_TO_HEAD, *(ABLATION if task.ablation else ()), *(LONG[long] for long in task.long)}
    if task.parts:
        chosen.update(PARTS)
    if task.search:
        chosen.update(*SEARCH.values())
    return [variant for variant in VARIANTS if variant in chosen - left_out]


def seeds_of(name: str, variant: str) -> int:
    return TASKS[name].seeds if variant in HEAD_TO_HEAD else min(TASKS[name].seeds, ABLATION_SEEDS)


def runs() -> list[tuple[str, str, int]]:
    """All runs: translation's ablation first, whose gain is to be explained; then the head-to-head; then all else.

    Within each of these a seed of all tasks and variants comes before the next.
    """
    planned = [
        (name, variant, seed)
        for seed in range(max(task.seeds for task in TASKS.values()))
        for name in TASKS
        for variant in variants_of(name)
        if seed < seeds_of(name, variant)
    ]

    def place(run: tuple[str, str, int]) -> tuple[int, int]:
        name, variant, seed = run
        if name == EXPLAINED and (variant == VANILLA or variant in ABLATION):
            return 0, seed
        return 1 if variant in HEAD_TO_HEAD else 2, seed

    return sorted(planned, key=place)
