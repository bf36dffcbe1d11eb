# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs of the training loop on tiny models."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_bert import arguments, reset_accelerator

import ea_hf
from ea_hf.training.arguments import add_training_arguments
from ea_hf.training.checkpoints import checkpoint_steps
from ea_hf.training.loop import TrainingResult, create_accelerator, save_model, train
from ea_hf.training.output_dir import prepare_output_dir


TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Stopped(Exception):
    """Ends a run where a test wants it."""


def tiny_model(model_class: type = ea_hf.EABertForSequenceClassification, **values: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**TINY, **values}))


def token_examples(count: int, make_labels: Callable[[torch.Tensor], Any]) -> list[dict[str, Any]]:
    """Random token sequences of 2 to 12 tokens."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for length in torch.randint(2, 13, (count,), generator=generator).tolist():
        ids = torch.randint(1, 50, (length,), generator=generator)
        examples.append({"input_ids": ids.tolist(), "labels": make_labels(ids)})
    return examples


def classes(count: int) -> list[dict[str, Any]]:
    return token_examples(count, lambda ids: int(ids[0] > 25))


def tagged_tokens(count: int) -> list[dict[str, Any]]:
    """A label for each token; every third token is ignored, and so are all of some examples."""
    return token_examples(count, lambda ids: [-100 if i % 3 == len(ids) % 3 else i % 2 for i in ids.tolist()])


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(example["input_ids"]) for example in examples)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    ids, labels = ([example[name] for example in examples] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "labels": pad(labels, -100) if isinstance(labels[0], list) else torch.tensor(labels),
    }


@dataclass
class Run:
    """A run of `train` in a directory; `**options` are command-line options with their values."""

    output_dir: Path
    options: dict[str, Any]
    args: argparse.Namespace = field(init=False)

    def __post_init__(self):
        parser = argparse.ArgumentParser()
        add_training_arguments(parser)
        self.args = parser.parse_args(arguments(output_dir=self.output_dir, **self.options))

    def __call__(
        self,
        model: torch.nn.Module,
        dataset: list,
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> TrainingResult:
        reset_accelerator()
        accelerator = create_accelerator(self.args)
        lock = prepare_output_dir(accelerator, self.args)
        if self.args.group_by_length:
            kwargs["lengths"] = [len(example["input_ids"]) for example in dataset]
        try:
            result = train(
                accelerator, self.args, model, dataset, collate, evaluate, model.config.save_pretrained, **kwargs
            )
            save_model(accelerator, result.model, self.output_dir)
        finally:
            lock.close()
        return result

    @property
    def checkpoints(self) -> list[int]:
        return checkpoint_steps(self.output_dir)

    def state(self, step: int) -> dict[str, Any]:
        return json.loads((self.output_dir / f"checkpoint-{step}" / "trainer_state.json").read_text())

    def weights(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """Of a checkpoint, or the final ones."""
        directory = self.output_dir if step is None else self.output_dir / f"checkpoint-{step}"
        return load_file(directory / "model.safetensors")


def run(output_dir: Path, **options: Any) -> Run:
    return Run(output_dir, options)


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerances: float) -> None:
    tolerances = tolerances or {"rtol": 0, "atol": 0}
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@dataclass
class ScriptedEvaluation:
    """Gives a prepared score at each evaluation, and notes the weights that it saw. Without a score, the run stops."""

    scores: list[float]
    name: str = "score"
    losses: list[float] | None = None
    seen: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        if len(self.seen) == len(self.scores):
            raise Stopped
        index = len(self.seen)
        self.seen.append(model.classifier.weight.detach().clone())
        losses = {} if self.losses is None else {"loss": self.losses[index]}
        return {self.name: self.scores[index], **losses}
