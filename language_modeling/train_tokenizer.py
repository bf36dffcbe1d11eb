# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a tokenizer on text: WordPiece as BERT has it, byte-level BPE as RoBERTa, or SentencePiece unigram as T5.

    python language_modeling/train_tokenizer.py --algorithm wordpiece --train_file "texts/*.txt" \\
        --vocab_size 30000 --output_dir output/tokenizer

`AutoTokenizer.from_pretrained` loads it. The documents are those that `run_mlm.py` and its siblings read.
"""

import argparse
import sys
from collections.abc import Iterator

from arguments import add_text_arguments, check_text_arguments
from text_data import file_source, hub_sources, pieces
from transformers import PreTrainedTokenizerFast

from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.output_dir import check_tokenizer_dir
from ea_hf.training.tokenizer_training import (
    add_sentencepiece_arguments,
    check_tokenizer_arguments,
    train_byte_level_bpe,
    train_t5_tokenizer,
    train_wordpiece,
)


# The smallest vocabularies: special tokens, and for BPE all bytes.
LEAST_VOCABULARY = {"wordpiece": 6, "bpe": 262, "unigram": 4}
# In characters: SentencePiece leaves out what is longer than 16384 bytes.
LONGEST_TEXT = 4096


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", choices=sorted(LEAST_VOCABULARY), required=True)
    add_text_arguments(parser)
    parser.add_argument("--output_dir", type=directory, required=True)
    parser.add_argument("--vocab_size", type=int, default=32000, help="Tokens; of unigram, without the extra ids.")
    parser.add_argument(
        "--lower_case",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Of WordPiece: read all text in lower case and without accents.",
    )
    add_sentencepiece_arguments(parser.add_argument_group("unigram"))
    args = parser.parse_args(argv)
    of_unigram = ArgumentParser()
    add_sentencepiece_arguments(of_unigram)
    for name, default in vars(of_unigram.parse_args([])).items():
        if args.algorithm != "unigram" and getattr(args, name) != default:
            parser.error(f"--{name} is for --algorithm unigram; {args.algorithm} has nothing of the kind")
    check_text_arguments(parser, args)
    if (args.dataset_name is None) == (args.train_file is None):
        parser.error("pass either --train_file or --dataset_name")
    check_tokenizer_arguments(parser, args, LEAST_VOCABULARY[args.algorithm])
    return args


def texts_of(args: argparse.Namespace) -> Iterator[str]:
    """The documents in short pieces, without empty ones.

    Raises:
        ValueError: there is none.
    """
    if args.dataset_name is not None:
        sources = hub_sources(args.dataset_name, args.dataset_config_name, args.text_column_name, streaming=True)
        if "train" not in sources:
            raise ValueError(f"{args.dataset_name} has no split 'train', but {', '.join(sources)}.")
        source = sources["train"]
    else:
        source = file_source(args.train_file, args.text_column_name, args.document_unit)
    empty = True
    for row in source.rows:
        for text in pieces(row["text"] or "", LONGEST_TEXT):
            empty = False
            yield text
    if empty:
        raise ValueError(f"{source.name} has no text.")


def main(argv: list[str] | None = None) -> PreTrainedTokenizerFast:
    args = parse_args(argv)
    check_tokenizer_dir(args.output_dir)
    texts = texts_of(args)
    if args.algorithm == "unigram":
        return train_t5_tokenizer(texts, args)
    if args.algorithm == "wordpiece":
        tokenizer = train_wordpiece(texts, args.vocab_size, args.lower_case)
    else:
        tokenizer = train_byte_level_bpe(texts, args.vocab_size)
    tokenizer.save_pretrained(args.output_dir)
    fewer = f"; the text has no more than these for --vocab_size {args.vocab_size}"
    print(f"{args.output_dir}: {len(tokenizer)} tokens{fewer if len(tokenizer) < args.vocab_size else ''}.")
    return tokenizer


if __name__ == "__main__":
    sys.exit(0 if run_main(main) is not None else 1)
