# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an evolving masked language model on text, from scratch or from a checkpoint.

    python language_modeling/run_mlm.py --model_type bert --tokenizer_name output/tokenizer \\
        --train_file "texts/*.jsonl.gz" --whole_word_mask --output_dir output/ea-bert
    python language_modeling/run_mlm.py --model_name_or_path google-bert/bert-base-uncased \\
        --dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 --output_dir output/adapted
    torchrun --nproc_per_node 2 language_modeling/run_mlm.py ...      # several processes, on GPUs or on CPUs

BERT and RoBERTa become EA-BERT and EA-RoBERTa; `ea_hf.evolve` makes other encoders evolving.
"""

import argparse
import logging
from typing import Any

import torch
from arguments import make_parser, parse
from pretraining import IGNORED, Objective, example_seed, pad, pad_inputs, pretrain
from text_data import BlockMaker, special_tokens_around
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ea_hf.training.command_line import run_main


# Of the chosen tokens: how many become the mask token, and how many of the others another token, as in BERT.
MASKED, RANDOM_OF_OTHERS = 0.8, 0.5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, "max_seq_length")
    group = parser.add_argument_group("masks")
    group.add_argument("--mlm_probability", type=float, default=0.15, help="Share of the tokens to predict.")
    group.add_argument("--whole_word_mask", action="store_true", help="Choose words with all their tokens.")
    args = parse(parser, argv)
    if not 0 < args.mlm_probability <= 1:
        parser.error(f"--mlm_probability is {args.mlm_probability}; it must be in (0, 1]")
    return args


def mask_tokens(
    ids: torch.Tensor,
    words: torch.Tensor,
    probability: float,
    mask_id: int,
    vocabulary: int,
    generator: torch.Generator,
    whole_words: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of one block; draws as `DataCollatorForLanguageModeling` does, for words if they are to be whole.

    Args:
        words: which word each token belongs to; -1 for special tokens, which are never chosen.
    """
    begins = words != torch.cat([words.new_full((1,), -2), words[:-1]]) if whole_words else torch.ones_like(words)
    probabilities = torch.where((words >= 0) & begins.bool(), probability, 0.0)
    chosen = torch.bernoulli(probabilities[None], generator=generator)[0].bool()
    if whole_words:
        chosen = torch.isin(words, words[chosen])
    labels = torch.where(chosen, ids, IGNORED)
    draw = torch.full((1, len(ids)), MASKED)
    masked = torch.bernoulli(draw, generator=generator)[0].bool() & chosen
    other = torch.bernoulli(torch.full_like(draw, RANDOM_OF_OTHERS), generator=generator)[0].bool() & chosen & ~masked
    replacements = torch.randint(vocabulary, (1, len(ids)), generator=generator)[0]
    inputs = torch.where(masked, mask_id, torch.where(other, replacements, ids))
    return inputs, labels


class Collator:
    """Makes a masked batch; a class, because spawned data workers get it pickled."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel):
        if tokenizer.mask_token_id is None:
            name = args.tokenizer_name or args.model_name_or_path
            raise ValueError(
                f"The tokenizer of {name} has no mask token, which masked language modeling needs. Choose another one, or "
                "run_clm.py."
            )
        self.args, self.mask_id, self.vocabulary = args, tokenizer.mask_token_id, len(tokenizer)
        self.pad_id = tokenizer.pad_token_id or 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = []
        for example in examples:
            generator = torch.Generator().manual_seed(example_seed(self.args.seed, example["key"]))
            ids, words = torch.tensor(example["input_ids"]), torch.tensor(example["words"])
            settings = (self.args.mlm_probability, self.mask_id, self.vocabulary, generator)
            rows.append(mask_tokens(ids, words, *settings, self.args.whole_word_mask))
        width = self.args.block_size if self.args.pad_to_max_length else None
        inputs = pad_inputs([row[0] for row in rows], self.pad_id, width, self.args.pad_multiple)
        labels = pad([row[1] for row in rows], IGNORED, width, self.args.pad_multiple)
        return {**inputs, "labels": labels}


def make_blocks(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> BlockMaker:
    """Each block stands between the tokenizer's special tokens; concatenated documents have the last of them between them."""
    before, after = special_tokens_around(tokenizer)
    if args.block_size <= len(before) + len(after):
        raise ValueError(
            f"--max_seq_length is {args.block_size}, but {len(before) + len(after)} tokens of each block are special ones."
        )
    between = after if args.concatenate_documents else []
    return BlockMaker(
        tokenizer, args.block_size, before, after, document_suffix=between, concatenate=args.concatenate_documents
    )


OBJECTIVE = Objective(AutoModelForMaskedLM, "fill-mask", "masked language modeling", make_blocks, Collator)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return pretrain(parse_args(argv), OBJECTIVE)


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
