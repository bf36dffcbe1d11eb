# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps of a sentence, a pair, a translation or an image, with what a reader needs to know about their axes."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..map_recording import LayerMaps, evolutions_of, record_maps


TITLES = {
    "self": "self-attention",
    "encoder": "encoder, self-attention",
    "decoder": "decoder, self-attention",
    "cross": "cross-attention, from decoder to encoder",
}
# Tokens that stand before the patches of an image.
LEADING_TOKENS = ("class token", "distillation token")
# Where the checkpoint sets no other limit.
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Chain:
    """The maps of one chain, and the names of their rows and columns.

    Attributes:
        name: as the model calls it.
        title: the same for a reader.
        query_axis: what the rows are, and `key_axis` the columns.
        queries: the name of each row, and `keys` of each column.
        layers: the chosen layers, in order.
        grid: rows and columns of the patches of an image; `None` for text. Its patches are the last queries and keys.
        special_queries: rows of special tokens such as [CLS], and `special_keys` their columns.
        second_query: the first row of a second sentence, and `second_key` its first column.
    """

    name: str
    title: str
    query_axis: str
    key_axis: str
    queries: list[str]
    keys: list[str]
    layers: list[LayerMaps]
    grid: tuple[int, int] | None = None
    second_query: int | None = None
    second_key: int | None = None
    special_queries: list[int] = field(default_factory=list)
    special_keys: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ExampleMaps:
    """The maps of one example.

    Attributes:
        model_name: name of the checkpoint, of a directory without where it lies, or the class of the model.
        heads: which heads the maps hold, numbered from 1.
        activation: the function after the convolutions.
        chains: of the model.
        texts: what went into the model, by what it is.
        image: what the model saw, (height, width, channels), bytes; `None` for text.
        prediction: what a model with a head for classes or one number says, by label; `None` of other models.
    """

    model_name: str
    heads: list[int]
    activation: str
    chains: list[Chain]
    texts: dict[str, str] = field(default_factory=dict)
    image: np.ndarray | None = None
    prediction: dict[str, float] | None = None

    @property
    def has_vanilla(self) -> bool:
        return all(layer.vanilla is not None for chain in self.chains for layer in chain.layers)


def readable(token: str) -> str:
    """A token with what has no shape of its own, such as spaces and line ends, written out."""
    shown = "".join(
        repr(character)[1:-1]
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else ("␣" if character.isspace() else character)
        for character in token
    )
    return shown or "(empty)"


def text_maps(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str,
    text_pair: str | None = None,
    target: str | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    vanilla: bool = False,
) -> ExampleMaps:
    """The maps of a sentence, of a pair of sentences, or of a translation.

    Args:
        model: an evolving model of text, an encoder or an encoder-decoder.
        tokenizer: its tokenizer.
        text: the sentence, with the prefix that the model wants, if any.
        text_pair: the second sentence of a pair.
        target: what an encoder-decoder is to have written; `None` for what it writes by itself.
        layers: as for `record_maps`, and so are `heads` and `vanilla`.

    Raises:
        ValueError: nothing to read, more tokens than the model takes, a target for a model that writes nothing or none
            for one that cannot write by itself, and what `record_maps` raises.
    """
    evolutions_of(model)
    for name, value in (("text", text), ("text_pair", text_pair), ("target", target)):
        if value is not None and not value.strip():
            raise ValueError(f"`{name}` is empty; write a sentence.")
    encoding = tokenizer(text, text_pair, return_tensors="pt", verbose=False)
    _check_length(model, tokenizer, encoding["input_ids"].shape[1])
    inputs = {name: value.to(model.device) for name, value in encoding.items()}
    texts = {"sentence": text} if text_pair is None else {"first sentence": text, "second sentence": text_pair}
    tokens, special = _tokens(tokenizer, encoding["input_ids"]), _special(tokenizer, encoding["input_ids"])
    second = None
    if text_pair is not None and encoding.is_fast and 1 in (sides := encoding.sequence_ids(0)):
        second = sides.index(1)
    decoder_tokens, decoder_special = None, []
    is_encoder_decoder = any(evolution.is_cross_attention for evolution in evolutions_of(model.base_model))
    if is_encoder_decoder:
        if target is None:
            written = _write(model, inputs)
            texts["written by the model"] = tokenizer.decode(written[0], skip_special_tokens=True)
        else:
            written = _with_start(model, tokenizer, target)
            texts["target"] = target
        # The decoder reads all but the last token, which nothing follows.
        inputs.update(decoder_input_ids=written[:, :-1], use_cache=False)
        decoder_tokens, decoder_special = _tokens(tokenizer, written[:, :-1]), _special(tokenizer, written[:, :-1])
    elif target is not None:
        raise ValueError(f"{type(model).__name__} has no decoder; leave the target out.")
    chains = []
    for name, chain_layers in record_maps(model, inputs, layers, heads, vanilla).items():
        has_decoder_queries = is_encoder_decoder and name in ("decoder", "cross")
        has_decoder_keys = is_encoder_decoder and name == "decoder"
        key_axis = "key: token of the source" if name == "cross" else "key: token"
        chains.append(
            Chain(
                name=name,
                title=TITLES.get(name, name),
                query_axis="query: token that the decoder has read" if has_decoder_queries else "query: token",
                key_axis="key: token that the decoder has read" if has_decoder_keys else key_axis,
                queries=decoder_tokens if has_decoder_queries else tokens,
                keys=decoder_tokens if has_decoder_keys else tokens,
                layers=chain_layers,
                second_query=None if has_decoder_queries else second,
                second_key=None if has_decoder_keys else second,
                special_queries=decoder_special if has_decoder_queries else special,
                special_keys=decoder_special if has_decoder_keys else special,
            )
        )
    return _example(model, heads, chains, texts=texts, prediction=prediction_of(model, inputs))


def image_maps(
    model: PreTrainedModel,
    processor: Any,
    image: Any,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    vanilla: bool = False,
) -> ExampleMaps:
    """The maps of an image over its patches, or over the pixels of an EA-ResNet's features.

    Args:
        model: an evolving model of images.
        processor: its image processor.
        image: a PIL image, or what else the processor takes.
        layers: as for `record_maps`, and so are `heads` and `vanilla`.

    Raises:
        ValueError: what `record_maps` raises.
    """
    evolutions = evolutions_of(model)
    pixels = processor(image, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    strides = {
        module.evolution: _patch_size(module, model.config)
        for module in model.modules()
        if hasattr(module, "evolution")
    }
    chain_strides = {evolution.chain: strides[evolution] for evolution in evolutions}
    chains = []
    recorded = record_maps(model, {"pixel_values": pixels}, layers, heads, vanilla)
    for number, (name, chain_layers) in enumerate(recorded.items(), start=1):
        height, width = (
            -(-size // stride) for size, stride in zip(pixels.shape[-2:], chain_strides[name], strict=True)
        )
        leading = chain_layers[0].evolved.shape[-1] - height * width
        patches = [f"row {row + 1}, column {column + 1}" for row in range(height) for column in range(width)]
        names = [*LEADING_TOKENS[:leading], *patches]
        title = TITLES.get(name, f"chain {number}, {height} x {width} parts of the image")
        chains.append(
            Chain(
                name,
                title,
                "query: part of the image",
                "key: part of the image",
                names,
                names,
                chain_layers,
                (height, width),
            )
        )
    prediction = prediction_of(model, {"pixel_values": pixels})
    return _example(model, heads, chains, image=_as_seen(processor, pixels), prediction=prediction)


def _example(model: PreTrainedModel, heads: Sequence[int] | None, chains: list[Chain], **what: Any) -> ExampleMaps:
    return ExampleMaps(
        model_name=checkpoint_name(model.config.name_or_path) or type(model).__name__,
        heads=list(heads or range(1, len(chains[0].layers[0].evolved) + 1)),
        activation=type(evolutions_of(model)[0].activation).__name__.removesuffix("Activation"),
        chains=chains,
        **what,
    )


def checkpoint_name(name_or_path: str) -> str:
    """The name of a checkpoint: on the Hub with its owner, of a directory its own without what it lies in."""
    is_on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) and not Path(name_or_path).exists()
    return name_or_path if is_on_hub or not name_or_path else Path(name_or_path).resolve().name


def prediction_of(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, float] | None:
    """What a model with a head for classes or one number says of one example, by label; `None` of other models."""
    if not type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
        return None
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0].float().cpu()
    model.train(was_training)
    if len(logits) == 1 or model.config.problem_type == "regression":
        values = logits
    elif model.config.problem_type == "multi_label_classification":
        values = logits.sigmoid()
    else:
        values = logits.softmax(-1)
    return {model.config.id2label[index]: value for index, value in enumerate(values.tolist())}


def _special(tokenizer: Any, ids: torch.Tensor) -> list[int]:
    """The places of special tokens; unknown words are none."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [place for place, token in enumerate(ids[0].tolist()) if token in special]


def _tokens(tokenizer: Any, ids: torch.Tensor) -> list[str]:
    return [readable(token) for token in tokenizer.convert_ids_to_tokens(ids[0].tolist())]


def _check_length(model: PreTrainedModel, tokenizer: Any, length: int) -> None:
    limits = [tokenizer.model_max_length]
    if getattr(model.config, "max_position_embeddings", None) is not None:
        limits.append(model.config.max_position_embeddings)
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if positions is not None:
        # RoBERTa's positions begin after the one for padding.
        before_first = 0 if positions.padding_idx is None else positions.padding_idx + 1
        limits.append(positions.num_embeddings - before_first)
    if length > min(limits):
        raise ValueError(f"The text has {length} tokens, but the model takes {min(limits)} at most; shorten it.")


def _with_start(model: PreTrainedModel, tokenizer: Any, target: str) -> torch.Tensor:
    """The start token and the tokens of a target, (1, tokens)."""
    ids = tokenizer(text_target=target, return_tensors="pt", verbose=False)["input_ids"].to(model.device)
    _check_length(model, tokenizer, ids.shape[1])
    return torch.cat([ids.new_full((1, 1), model.config.decoder_start_token_id), ids], dim=1)


def _write(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The start token and what the model writes, (1, tokens)."""
    if not model.can_generate():
        raise ValueError(f"{type(model).__name__} cannot write a text by itself; give it a target.")
    return model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=model.generation_config.max_new_tokens or MAX_NEW_TOKENS,
    )


def _patch_size(attention: torch.nn.Module, config: Any) -> tuple[int, int]:
    """Height and width of what one query stands for, in pixels."""
    size = attention.total_stride if hasattr(attention, "total_stride") else config.patch_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _as_seen(processor: Any, pixels: torch.Tensor) -> np.ndarray:
    """The pixels that went into the model as a picture: (height, width, 1 or 3), bytes."""
    picture = pixels[0].float().cpu().movedim(0, -1)
    if getattr(processor, "do_normalize", False):
        picture = picture * torch.tensor(processor.image_std) + torch.tensor(processor.image_mean)
    return (picture * 255).round().clamp(0, 255).to(torch.uint8).numpy()
