# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a SentencePiece unigram tokenizer on both sides of parallel text, and saves it as a T5 tokenizer.

    python translation/train_tokenizer.py --train_file train.en train.de --source_lang en --target_lang de \\
        --vocab_size 32000 --output_dir output/tokenizer

`AutoTokenizer.from_pretrained` loads it. The text is streamed to SentencePiece, which itself holds what it samples
(`--input_sentence_size`) in memory. Unlike SentencePiece, a T5 tokenizer takes any white space for a space.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator

from parallel_text import FILES_HELP, load_hub, read_pairs
from transformers import PreTrainedTokenizerFast

from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.output_dir import check_tokenizer_dir
from ea_hf.training.tokenizer_training import (
    add_sentencepiece_arguments,
    check_tokenizer_arguments,
    train_t5_tokenizer,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--source_lang", required=True, help='Such as "en".')
    parser.add_argument("--target_lang", required=True, help='Such as "de".')
    parser.add_argument("--dataset_name", help="On the Hub, or a local copy of its repository.")
    parser.add_argument("--dataset_config_name", help='Such as "ro-en".')
    parser.add_argument("--train_file", nargs="+", help=FILES_HELP)
    parser.add_argument("--output_dir", type=directory, required=True)
    parser.add_argument("--vocab_size", type=int, default=32000, help="Pieces, without the extra ids.")
    add_sentencepiece_arguments(parser)
    args = parser.parse_args(argv)
    if (args.dataset_name is None) == (args.train_file is None):
        parser.error("pass either --train_file or --dataset_name")
    check_tokenizer_arguments(parser, args, least_vocabulary=4)
    return args


def texts_of(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Both sides, without empty ones."""
    for pair in pairs:
        yield from (text for text in pair if text.strip())


def main(argv: list[str] | None = None) -> PreTrainedTokenizerFast:
    args = parse_args(argv)
    check_tokenizer_dir(args.output_dir)
    if args.dataset_name is not None:
        train = load_hub(args.dataset_name, args.dataset_config_name, args.source_lang, args.target_lang)["train"]
        pairs = ((row["source"], row["target"]) for row in train)
    else:
        pairs = read_pairs(args.train_file, args.source_lang, args.target_lang)
    return train_t5_tokenizer(texts_of(pairs), args)


if __name__ == "__main__":
    sys.exit(0 if run_main(main) is not None else 1)
