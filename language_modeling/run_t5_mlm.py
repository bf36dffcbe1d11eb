# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an evolving T5 on text by span corruption (https://arxiv.org/abs/1910.10683), from scratch or from a checkpoint.

    python language_modeling/run_t5_mlm.py --model_type t5 --tokenizer_name output/tokenizer \\
        --config_overrides d_model=256,num_layers=4 --train_file "texts/*.txt" --output_dir output/ea-t5
    torchrun --nproc_per_node 2 language_modeling/run_t5_mlm.py ...      # several processes, on GPUs or on CPUs

Spans of a block are removed from the encoder's input, each marked by a sentinel token (`<extra_id_0>`, ...); the decoder
writes each sentinel and its span.
"""

import argparse
import logging
import math
from typing import Any

import numpy as np
import torch
from arguments import make_parser, parse
from pretraining import IGNORED, Objective, example_seed, pad, pad_inputs, pretrain
from text_data import BlockMaker
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from ea_hf.training.command_line import run_main


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, "max_seq_length", chains=("ea_encoder", "ea_decoder", "ea_cross_attention"))
    group = parser.add_argument_group("spans")
    group.add_argument("--mlm_probability", type=float, default=0.15, help="Share of the tokens that are left out.")
    group.add_argument("--mean_noise_span_length", type=float, default=3.0, help="Tokens of a span, on average.")
    args = parse(parser, argv)
    if not 0 < args.mlm_probability < 1:
        parser.error(f"--mlm_probability is {args.mlm_probability}; it must be between 0 and 1")
    if not 1 <= args.mean_noise_span_length < math.inf:
        parser.error(f"--mean_noise_span_length is {args.mean_noise_span_length}; it must be a number, at least 1")
    return args


def noise_mask(length: int, density: float, mean_span_length: float, random: np.random.Generator) -> np.ndarray:
    """Which tokens are left out: spans of random lengths, with others before, and between them.

    At least one token is left out, and at least one kept; of a single token, none is left out.
    """
    if length < 2:
        return np.zeros(length, dtype=bool)
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span_length), 1), noise, length - noise)

    def split(total: int) -> np.ndarray:
        """Random parts of a number, none of them 0."""
        ends = np.sort(random.choice(total - 1, spans - 1, replace=False)) + 1
        return np.diff(np.concatenate([[0], ends, [total]]))

    lengths = np.stack([split(length - noise), split(noise)], axis=1).flatten()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def corrupt(ids: np.ndarray, mask: np.ndarray, sentinels: list[int], end_id: int) -> tuple[list[int], list[int]]:
    """Inputs and labels of a block: in each a sentinel stands for what is in the other; both end with `end_id`.

    Raises:
        ValueError: there are more spans than sentinels.
    """
    inputs, labels, span = [], [], -1
    for place, (token, is_noise) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        if is_noise and (place == 0 or not mask[place - 1]):
            span += 1
            if span == len(sentinels):
                raise ValueError(
                    f"A block has more than {len(sentinels)} spans, for which the tokenizer has no sentinels. Lower "
                    "--max_seq_length or --mlm_probability, or raise --mean_noise_span_length."
                )
            inputs.append(sentinels[span])
            labels.append(sentinels[span])
        (labels if is_noise else inputs).append(token)
    return [*inputs, end_id], [*labels, end_id]


class Collator:
    """Makes a batch with spans left out; a class, because spawned data workers get it pickled."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel):
        name = args.tokenizer_name or args.model_name_or_path
        vocabulary = tokenizer.get_vocab()
        count = next(i for i in range(len(vocabulary) + 1) if f"<extra_id_{i}>" not in vocabulary)
        if count == 0:
            raise ValueError(
                f"The tokenizer of {name} has no sentinel tokens (<extra_id_0>, ...), which span corruption needs. Choose "
                "one that has, such as train_tokenizer.py makes with --extra_ids 100."
            )
        for token in ("pad_token", "eos_token"):
            if getattr(tokenizer, token) is None:
                raise ValueError(f"The tokenizer of {name} has no {token}, which a T5 needs; choose another one.")
        self.args, self.pad_id, self.end_id = args, tokenizer.pad_token_id, tokenizer.eos_token_id
        self.start_id = model.config.decoder_start_token_id
        self.sentinels = [vocabulary[f"<extra_id_{i}>"] for i in range(count)]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = []
        for example in examples:
            random = np.random.default_rng(example_seed(self.args.seed, example["key"]))
            ids = np.array(example["input_ids"])
            mask = noise_mask(len(ids), self.args.mlm_probability, self.args.mean_noise_span_length, random)
            rows.append([torch.tensor(part) for part in corrupt(ids, mask, self.sentinels, self.end_id)])
        width = self.args.block_size if self.args.pad_to_max_length else None
        inputs = pad_inputs([row[0] for row in rows], self.pad_id, width, self.args.pad_multiple)
        labels = pad([row[1] for row in rows], IGNORED, None, self.args.pad_multiple)
        decoder_input_ids = labels.roll(1, dims=1)
        decoder_input_ids[:, 0] = self.start_id
        decoder_input_ids = decoder_input_ids.masked_fill(decoder_input_ids == IGNORED, self.pad_id)
        return {**inputs, "decoder_input_ids": decoder_input_ids, "labels": labels}


def make_blocks(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> BlockMaker:
    """Blocks leave room for the end token. Concatenated documents have one between them."""
    if args.block_size < 3:
        raise ValueError(f"--max_seq_length is {args.block_size}; two tokens and the end need at least 3.")
    between = [tokenizer.eos_token_id] if args.concatenate_documents else []
    return BlockMaker(tokenizer, args.block_size - 1, document_suffix=between, concatenate=args.concatenate_documents)


OBJECTIVE = Objective(
    AutoModelForSeq2SeqLM,
    "text2text-generation",
    "span corruption",
    make_blocks,
    Collator,
    forward_options={"use_cache": False},
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return pretrain(parse_args(argv), OBJECTIVE)


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
