# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The kinds of inputs of the models under test: examples of different lengths, and batches that pad them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim
from transformers import PreTrainedConfig


Example = dict[str, torch.Tensor]


@dataclass
class Batch:
    """Padded examples.

    `positions` holds, for each example, where its real tokens are along every padded axis. An axis is known by its
    width, so an input with several padded axes must pad them to different widths.
    """

    inputs: dict[str, torch.Tensor]
    positions: list[dict[int, torch.Tensor]]


def first_position(padding: str, row: int, missing: int) -> int:
    """Where a row begins that lacks so many positions."""
    return {"right": 0, "left": missing, "mixed": (0, missing, missing // 2)[row % 3]}[padding]


class TokenSequences:
    """Token sequences of different lengths, for the encoders of text.

    Args:
        choices: number of sequences in one example of multiple choice.
        first_position: position number of a sequence's first token.
    """

    # Inputs that need no padding have ("none",) here and False there.
    paddings = ("right", "left", "mixed")
    takes_mask = True
    # Chains: what the names of their outputs begin with, and which input masks their keys, `None` for none.
    chains: dict[str, str | None] = {"": "attention_mask"}
    # What makes an output of nothing but tensors.
    options: dict[str, Any] = {}

    def __init__(self, choices: int | None = None, first_position: int = 0):
        self.choices = choices
        self.first_position = first_position

    def examples(self, config: PreTrainedConfig, lengths: Sequence[int], seed: int = 0) -> list[Example]:
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        return [self._tokens(config, (length,), generator) for length in lengths]

    def batch(
        self, config: PreTrainedConfig, examples: Sequence[Example], padding: str = "right", width: int | None = None
    ) -> Batch:
        """Padding is noise: nothing may depend on what stands there."""
        lengths = [example["input_ids"].shape[-1] for example in examples]
        width = width or max(lengths)
        inputs = self._tokens(
            config, (width,), torch.Generator(torch.get_default_device()).manual_seed(99), batch_size=len(examples)
        )
        inputs["attention_mask"] = torch.zeros_like(inputs["input_ids"])
        inputs["position_ids"] = torch.full_like(inputs["input_ids"], self.first_position)
        positions = []
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            missing = width - length
            start = first_position(padding, row, missing)
            real = torch.arange(start, start + length)
            for name, values in example.items():
                inputs[name][row, ..., real] = values
            inputs["attention_mask"][row, ..., real] = 1
            inputs["position_ids"][row, ..., real] = torch.arange(length) + self.first_position
            positions.append({width: real})
        return Batch(inputs, positions)

    def dynamic_shapes(self, inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, Dim]]:
        """The axes that an exported model must leave open."""
        batch, length = Dim("batch", max=64), Dim("length", max=32)
        return {name: {0: batch, values.ndim - 1: length} for name, values in inputs.items()}

    def _tokens(
        self,
        config: PreTrainedConfig,
        shape: tuple[int, ...],
        generator: torch.Generator,
        batch_size: int | None = None,
    ) -> Example:
        if self.choices is not None:
            shape = (self.choices, *shape)
        if batch_size is not None:
            shape = (batch_size, *shape)
        tokens = torch.randint(config.vocab_size - 1, shape, generator=generator)
        return {
            # All tokens but the one for padding, whose embedding takes no gradient.
            "input_ids": tokens + (tokens >= config.pad_token_id),
            "token_type_ids": torch.randint(config.type_vocab_size, shape, generator=generator),
        }


class SequencePairs:
    """Source and target sequences of different lengths, for encoder-decoder models without absolute positions."""

    paddings = ("right", "left", "mixed")
    takes_mask = True
    chains: dict[str, str | None] = {
        "encoder_": "attention_mask",
        "decoder_": "decoder_attention_mask",
        "cross_": "attention_mask",
    }
    options: dict[str, Any] = {"use_cache": False}

    def examples(self, config: PreTrainedConfig, lengths: Sequence[int], seed: int = 0) -> list[Example]:
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        return [
            {
                "input_ids": self._tokens(config, (length,), generator),
                "decoder_input_ids": self._tokens(config, (1 + 2 * length % 7,), generator),
            }
            for length in lengths
        ]

    def batch(
        self, config: PreTrainedConfig, examples: Sequence[Example], padding: str = "right", width: int | None = None
    ) -> Batch:
        """Padding is noise: nothing may depend on what stands there."""
        width = width or max(example["input_ids"].shape[0] for example in examples)
        inputs, positions = {}, [{} for _ in examples]
        generator = torch.Generator(torch.get_default_device()).manual_seed(99)
        for prefix, padded_width in (("", width), ("decoder_", width + 3)):
            tokens = self._tokens(config, (len(examples), padded_width), generator)
            mask = torch.zeros_like(tokens)
            for row, example in enumerate(examples):
                values = example[f"{prefix}input_ids"]
                missing = padded_width - len(values)
                start = first_position(padding, row, missing)
                real = torch.arange(start, start + len(values))
                tokens[row, real] = values
                mask[row, real] = 1
                positions[row][padded_width] = real
            inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"] = tokens, mask
        return Batch(inputs, positions)

    def dynamic_shapes(self, inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, Dim]]:
        batch = Dim("batch", max=64)
        lengths = {"": Dim("length", min=3, max=32), "decoder_": Dim("decoder_length", min=3, max=32)}
        return {name: {0: batch, 1: lengths["decoder_" if "decoder_" in name else ""]} for name in inputs}

    @staticmethod
    def _tokens(config: PreTrainedConfig, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.randint(2, config.vocab_size, shape, generator=generator)  # neither padding nor end


class SingleSequences(SequencePairs):
    """Sequences of different lengths, for an encoder without absolute positions.

    Args:
        ends: whether each ends with the end token, from which an encoder-decoder model reads its logits. It feeds the
            sequence to its decoder as well, without a mask, so that only padding on the right changes nothing.
    """

    chains: dict[str, str | None] = {"": "attention_mask"}
    options: dict[str, Any] = {}

    def __init__(self, ends: bool = False):
        self.ends = ends
        if ends:
            self.paddings = ("right",)
            self.chains = {"encoder_": "attention_mask", "decoder_": None, "cross_": "attention_mask"}
            self.options = {"use_cache": False}

    def examples(self, config: PreTrainedConfig, lengths: Sequence[int], seed: int = 0) -> list[Example]:
        examples = [{"input_ids": e["input_ids"]} for e in super().examples(config, lengths, seed)]
        for example in examples if self.ends else ():
            example["input_ids"][-1] = config.eos_token_id
        return examples

    def batch(
        self, config: PreTrainedConfig, examples: Sequence[Example], padding: str = "right", width: int | None = None
    ) -> Batch:
        pairs = [{**example, "decoder_input_ids": example["input_ids"]} for example in examples]
        batch = super().batch(config, pairs, padding, width)
        width = batch.inputs["input_ids"].shape[1]
        inputs = {name: values for name, values in batch.inputs.items() if "decoder" not in name}
        return Batch(inputs, [{width: positions[width]} for positions in batch.positions])


class Images:
    """Images of one size, for which the lengths only say how many they are.

    Args:
        has_masked_patches: whether an example says which of its patches are masked.
    """

    paddings = ("none",)
    takes_mask = False
    chains: dict[str, str | None] = {"": None}
    options: dict[str, Any] = {}

    def __init__(self, has_masked_patches: bool = False):
        self.has_masked_patches = has_masked_patches

    def examples(self, config: PreTrainedConfig, lengths: Sequence[int], seed: int = 0) -> list[Example]:
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        shape = (config.num_channels, config.image_size, config.image_size)
        examples = []
        for _ in lengths:
            example = {"pixel_values": torch.randn(shape, generator=generator)}
            if self.has_masked_patches:
                patches = (config.image_size // config.patch_size) ** 2
                example["bool_masked_pos"] = torch.rand(patches, generator=generator) < 0.5
            examples.append(example)
        return examples

    def batch(
        self, config: PreTrainedConfig, examples: Sequence[Example], padding: str = "none", width: int | None = None
    ) -> Batch:
        inputs = {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
        return Batch(inputs, [{}] * len(examples))

    def dynamic_shapes(self, inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, Dim]]:
        batch = Dim("batch", max=64)
        return {name: {0: batch} for name in inputs}


class Series:
    """Time series of different lengths; their steps are numbered, so that only padding on the right changes nothing.

    Args:
        has_hidden_values: whether an example says which of its values are hidden.
    """

    paddings = ("right",)
    takes_mask = False  # in the forms that attention masks have
    chains: dict[str, str | None] = {"": "past_observed_mask"}
    options: dict[str, Any] = {}

    def __init__(self, has_hidden_values: bool = False):
        self.has_hidden_values = has_hidden_values

    def examples(self, config: PreTrainedConfig, lengths: Sequence[int], seed: int = 0) -> list[Example]:
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        return [self._values((length, config.num_input_channels), generator) for length in lengths]

    def batch(
        self, config: PreTrainedConfig, examples: Sequence[Example], padding: str = "right", width: int | None = None
    ) -> Batch:
        """Padding is noise: nothing may depend on what stands there."""
        lengths = [len(example["past_values"]) for example in examples]
        width = width or max(lengths)
        shape = (len(examples), width, config.num_input_channels)
        inputs = self._values(shape, torch.Generator(torch.get_default_device()).manual_seed(99))
        inputs["past_observed_mask"] = torch.zeros(shape[:2])
        positions = []
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            start = first_position(padding, row, width - length)
            real = torch.arange(start, start + length)
            for name, values in example.items():
                inputs[name][row, real] = values
            inputs["past_observed_mask"][row, real] = 1
            positions.append({width: real})
        return Batch(inputs, positions)

    def dynamic_shapes(self, inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, Dim]]:
        batch, length = Dim("batch", max=64), Dim("length", max=32)
        return {name: {0: batch, 1: length} for name in inputs}

    def _values(self, shape: tuple[int, ...], generator: torch.Generator) -> Example:
        values = {"past_values": torch.randn(shape, generator=generator)}
        if self.has_hidden_values:
            values["bool_masked_pos"] = torch.rand(shape, generator=generator) < 0.4
        return values
