# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains an evolving causal language model on text, from scratch or from a checkpoint.

    python language_modeling/run_clm.py --model_name_or_path openai-community/gpt2 --train_file "texts/*.txt" \\
        --output_dir output/ea-gpt2
    python language_modeling/run_clm.py --model_type llama --config_overrides hidden_size=256,num_hidden_layers=4 \\
        --tokenizer_name output/tokenizer --dataset_name wikitext --dataset_config_name wikitext-2-raw-v1 \\
        --output_dir output/ea-llama
    torchrun --nproc_per_node 2 language_modeling/run_clm.py ...      # several processes, on GPUs or on CPUs

`ea_hf.evolve` makes the models evolving. A block never crosses the end of its document, except with `--concatenate_documents`:
then a document's tokens attend to those of earlier documents in the block, as in Transformers' script.
"""

import argparse
import logging
from typing import Any

import torch
from arguments import make_parser, parse
from pretraining import IGNORED, Objective, pad, pad_inputs, pretrain
from text_data import BlockMaker, special_tokens_around
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ea_hf.training.command_line import run_main
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return parse(make_parser(__doc__, "block_size"), argv)


class Collator:
    """Makes a batch; a class, because spawned data workers get it pickled."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel):
        self.args = args
        # Padding comes last, where no token sees it, and has no label: any token will do.
        self.pad_id = tokenizer.pad_token_id or 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(example["input_ids"]) for example in examples]
        width = self.args.block_size if self.args.pad_to_max_length else None
        labels = pad(rows, IGNORED, width, self.args.pad_multiple)
        # Nothing predicts the first token; without a label it does not count in the mean over processes either.
        labels[:, 0] = IGNORED
        return {**pad_inputs(rows, self.pad_id, width, self.args.pad_multiple), "labels": labels}


def make_blocks(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> BlockMaker:
    """Documents begin as the tokenizer begins a text, and end with its end token, if it has one."""
    if args.block_size < 2:
        raise ValueError(
            f"--block_size is {args.block_size}, but the first token of a block predicts at least one more."
        )
    before, after = special_tokens_around(tokenizer)
    if not after and tokenizer.eos_token_id is not None:
        after = [tokenizer.eos_token_id]
        logger.info(f"Each document ends with {tokenizer.eos_token!r}.")
    settings = {"document_prefix": before, "document_suffix": after, "concatenate": args.concatenate_documents}
    return BlockMaker(tokenizer, args.block_size, **settings)


OBJECTIVE = Objective(
    AutoModelForCausalLM,
    "text-generation",
    "causal language modeling",
    make_blocks,
    Collator,
    forward_options={"use_cache": False},
    shifts_labels=True,
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return pretrain(parse_args(argv), OBJECTIVE)


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
