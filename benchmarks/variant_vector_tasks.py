# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks of `benchmarks/variants.py` on images, on time series and on made-up letters, all trained from scratch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _script_folders  # noqa: F401 -- must come first
import image_sources
import numpy as np
import series_data
import torch
from transformers import ViTConfig, ViTForImageClassification
from variant_text_tasks import DATA, IGNORED, evolved, small_gpt2, with_weights_of
from variant_training import Batch, Problem, Task, epochs

import ea_hf


FASHION_DIRECTORIES = (DATA / "fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))
FASHION_EXAMPLES, IMAGE_TESTS = 10_000, 1_000
MAX_STEPS = 100  # of a series; neighbouring ones are averaged in longer series
LETTERS, BLOCKS, BLOCK_LENGTH, ASKED = 12, 4, 3, 2


def classification(model: torch.nn.Module, batches: list[Batch]) -> dict[str, float]:
    logits = torch.cat([model(**{k: v for k, v in batch.items() if k != "labels"}).logits for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    return {"accuracy": (logits.argmax(dim=-1) == labels).double().mean().item(), "loss": loss}


def load_images(task: Task, name: str, patch_size: int) -> Problem:
    if name == "digits":
        data = image_sources.load_digits()
    else:
        directory = next((path for path in FASHION_DIRECTORIES if path.is_dir()), None)
        if directory is None:
            raise SystemExit(
                f"Fashion-MNIST is in none of {', '.join(map(str, FASHION_DIRECTORIES))}; see `make vision`."
            )
        data = image_sources.load_idx(str(directory))
    sizes = {"train": FASHION_EXAMPLES, "test": IMAGE_TESTS}
    pixels, labels = {}, {}
    for split, size in sizes.items():
        part = data.splits[split]
        images = np.stack([np.asarray(part.images[number]) for number in range(min(size, len(part.labels)))])
        pixels[split] = torch.from_numpy(images.astype(np.float32) / 127.5 - 1)[:, None]
        labels[split] = torch.from_numpy(np.asarray(part.labels[:size]))

    def batches(seed: int) -> Iterator[Batch]:
        for indices in epochs(len(labels["train"]), task.batch_size, seed):
            yield {"pixel_values": pixels["train"][indices], "labels": labels["train"][indices]}

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        config = ViTConfig(
            num_channels=1,
            image_size=pixels["train"].shape[-1],
            patch_size=patch_size,
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=192 + width,
            initializer_range=0.1,
            num_labels=10,
        )
        return evolved(ViTForImageClassification(config), fields)

    tests = [
        {"pixel_values": part, "labels": own}
        for part, own in zip(pixels["test"].split(100), labels["test"].split(100), strict=True)
    ]
    return Problem(make_model, batches, lambda model: classification(model, tests))


def load_series(task: Task, name: str) -> Problem:
    data = series_data.load_files(series_data.dataset_files(name))
    return series_problem(
        task,
        {split: data.splits[split].series for split in ("train", "test")},
        {split: np.asarray(data.splits[split].labels) for split in ("train", "test")},
    )


def load_mnist1d(task: Task) -> Problem:
    """Its series are generated on the spot, always the same ones."""
    from mnist1d.data import get_dataset_args, make_dataset

    data = make_dataset(get_dataset_args())
    series = {"train": list(data["x"][:, :, None]), "test": list(data["x_test"][:, :, None])}
    return series_problem(task, series, {"train": data["y"], "test": data["y_test"]})


def series_problem(task: Task, series: dict[str, list[np.ndarray]], labels: dict[str, np.ndarray]) -> Problem:
    extractor = ea_hf.EADCTransformerFeatureExtractor.fit(series["train"], None, MAX_STEPS)
    prepared = {split: extractor.prepare(values) for split, values in series.items()}
    classes = int(max(values.max() for values in labels.values())) + 1

    def batch_of(split: str, indices: np.ndarray) -> Batch:
        batch = extractor.pad([prepared[split][number] for number in indices])
        return {**batch, "labels": torch.from_numpy(labels[split][indices]).long()}

    def batches(seed: int) -> Iterator[Batch]:
        for indices in epochs(len(labels["train"]), task.batch_size, seed):
            yield batch_of("train", indices)

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        def model(own: dict[str, Any]) -> torch.nn.Module:
            config = ea_hf.EADCTransformerConfig(
                num_input_channels=extractor.num_channels,
                context_length=extractor.max_length,
                num_labels=classes,
                num_hidden_layers=3,
                ffn_dim=256 + width,
                **own,
            )
            return ea_hf.EADCTransformerForClassification(config)

        vanilla = model({"ea_residual_weight": 0.0, "ea_conv_weight": 0.0})
        return vanilla if fields is None else with_weights_of(vanilla, model(fields))

    parts = np.array_split(np.arange(len(labels["test"])), max(1, len(labels["test"]) // 50))
    tests = [batch_of("test", part) for part in parts]
    return Problem(make_model, batches, lambda model: classification(model, tests))


def letters_batch(generator: np.random.Generator, size: int) -> Batch:
    """Blocks of letters, then some letters that only one block holds together; the answer is that block.

    After Golovneva et al., "Multi-Token Attention", https://arxiv.org/abs/2504.00927, section 4.1, on a smaller scale.
    """
    dot, question = LETTERS, LETTERS + 1
    rows, targets = [], []
    while len(rows) < size:
        blocks = np.stack([generator.permutation(LETTERS)[:BLOCK_LENGTH] for _ in range(BLOCKS)])
        target = int(generator.integers(BLOCKS))
        asked = generator.permutation(blocks[target])[:ASKED]
        if sum(set(asked) <= set(block) for block in blocks) > 1:
            continue
        context = np.concatenate([blocks, np.full((BLOCKS, 1), dot)], axis=1).ravel()
        rows.append(np.concatenate([context, asked, [question], blocks[target]]))
        targets.append(blocks[target])
    ids = torch.from_numpy(np.stack(rows))
    labels = torch.full_like(ids, IGNORED)
    labels[:, -BLOCK_LENGTH:] = ids[:, -BLOCK_LENGTH:]
    return {"input_ids": ids, "labels": labels}


def load_letters(task: Task) -> Problem:
    def batches(seed: int) -> Iterator[Batch]:
        generator = np.random.default_rng([seed, 1])
        while True:
            yield letters_batch(generator, task.batch_size)

    generator = np.random.default_rng(0)
    tests = [letters_batch(generator, 50) for _ in range(10)]
    length = tests[0]["input_ids"].shape[1]

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        """Share of the questions whose answer is right in every letter."""
        right, losses = [], []
        for batch in tests:
            outputs = model(**batch)
            answers = outputs.logits[:, -BLOCK_LENGTH - 1 : -1].argmax(dim=-1)
            right.append((answers == batch["labels"][:, -BLOCK_LENGTH:]).all(dim=1))
            losses.append(outputs.loss.item())
        return {"accuracy": torch.cat(right).double().mean().item(), "loss": float(np.mean(losses))}

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        return small_gpt2(LETTERS + 2, length, fields, width)

    return Problem(make_model, batches, evaluate)
