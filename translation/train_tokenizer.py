# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a SentencePiece unigram tokenizer on both sides of parallel text, and saves it as a T5 tokenizer.

    python translation/train_tokenizer.py --train_file train.en train.de --source_lang en --target_lang de \\
        --vocab_size 32000 --output_dir output/tokenizer

`AutoTokenizer.from_pretrained` loads it. The text is streamed to SentencePiece, which itself holds what it samples
(`--input_sentence_size`) in memory. Unlike SentencePiece, a T5 tokenizer takes any white space for a space.
"""

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from parallel_text import FILES_HELP, load_hub, read_pairs
from tokenizers import decoders
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from ea_hf.training.command_line import ArgumentParser, run_main


NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
MODEL_FILE = "spiece.model"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--source_lang", required=True, help='Such as "en".')
    parser.add_argument("--target_lang", required=True, help='Such as "de".')
    parser.add_argument("--dataset_name", help="On the Hub, or a local copy of its repository.")
    parser.add_argument("--dataset_config_name", help='Such as "ro-en".')
    parser.add_argument("--train_file", nargs="+", help=FILES_HELP)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=32000, help="Pieces, without the extra ids.")
    parser.add_argument("--extra_ids", type=int, default=100, help="Sentinel tokens, as T5's pre-training needs.")
    parser.add_argument(
        "--character_coverage",
        type=float,
        default=1.0,
        help="Of the text; rarer characters are unknown. 0.9995 suits languages of many characters, such as Chinese.",
    )
    parser.add_argument("--byte_fallback", action="store_true", help="Write unknown characters as UTF-8 bytes.")
    parser.add_argument(
        "--normalization_rule_name",
        choices=NORMALIZATIONS,
        default="nmt_nfkc",
        help="T5's is nmt_nfkc, which turns an ellipsis into three dots; identity keeps all characters.",
    )
    parser.add_argument(
        "--input_sentence_size", type=int, default=5_000_000, help="Train on a sample of so many sentences."
    )
    parser.add_argument("--num_threads", type=int, default=2)
    args = parser.parse_args(argv)
    if (args.dataset_name is None) == (args.train_file is None):
        parser.error("pass either --train_file or --dataset_name")
    for name, least in (("vocab_size", 4), ("extra_ids", 0), ("input_sentence_size", 1), ("num_threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    return args


def texts_of(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Both sides, without empty ones."""
    for pair in pairs:
        yield from (text for text in pair if text.strip())


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
    normalization_rule_name: str = "nmt_nfkc",
    input_sentence_size: int = 5_000_000,
    num_threads: int = 2,
) -> bytes:
    """A unigram model with T5's special pieces: <pad> 0, </s> 1, <unk> 2.

    Raises:
        ValueError: the text does not suffice for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            normalization_rule_name=normalization_rule_name,
            input_sentence_size=input_sentence_size,
            shuffle_input_sentence=True,
            num_threads=num_threads,
            max_sentence_length=16384,  # in bytes; longer ones are left out
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=1,
        )
    except RuntimeError as error:
        raise ValueError(f"SentencePiece cannot make a vocabulary of --vocab_size {vocab_size}: {error}") from error
    return model.getvalue()


def make_tokenizer(model: bytes, extra_ids: int = 100) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a SentencePiece model.

    Transformers' `T5Tokenizer` knows no byte fallback; a model with it becomes a general fast tokenizer.
    """
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / MODEL_FILE).write_bytes(model)
        tokenizer = T5Tokenizer.from_pretrained(directory, extra_ids=extra_ids)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    if not processor.is_byte(processor.piece_to_id("<0x00>")):
        return tokenizer
    backend = tokenizer.backend_tokenizer
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra_ids))]
    backend.model = Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{i}>" for i in range(extra_ids)],
    )


def main(argv: list[str] | None = None) -> PreTrainedTokenizerFast:
    args = parse_args(argv)
    if args.dataset_name is not None:
        train = load_hub(args.dataset_name, args.dataset_config_name, args.source_lang, args.target_lang)["train"]
        pairs = ((row["source"], row["target"]) for row in train)
    else:
        pairs = read_pairs(args.train_file, args.source_lang, args.target_lang)
    model = train_sentencepiece(
        texts_of(pairs),
        args.vocab_size,
        args.character_coverage,
        args.byte_fallback,
        args.normalization_rule_name,
        args.input_sentence_size,
        args.num_threads,
    )
    tokenizer = make_tokenizer(model, args.extra_ids)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    aside = args.output_dir / f".{MODEL_FILE}.partial"  # so that what has the name is whole
    aside.write_bytes(model)
    os.replace(aside, args.output_dir / MODEL_FILE)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{args.output_dir}: {len(tokenizer)} tokens, {args.extra_ids} of them extra ids.")
    return tokenizer


if __name__ == "__main__":
    sys.exit(0 if run_main(main) is not None else 1)
