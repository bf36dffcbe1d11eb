# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains tokenizers on text: SentencePiece unigram as T5 has it, WordPiece as BERT, byte-level BPE as RoBERTa and GPT-2.

The text is streamed; what a trainer holds in memory is its own (SentencePiece a sample, the others the counted words).
"""

import argparse
import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.models import Unigram
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, T5Tokenizer


NORMALIZATIONS = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
MODEL_FILE = "spiece.model"
LEAST_COVERAGE = 0.98  # that SentencePiece takes


def add_sentencepiece_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
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


def check_tokenizer_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, least_vocabulary: int
) -> None:
    """Ends the program with a message for a number that no tokenizer can have."""
    least = (("vocab_size", least_vocabulary), ("extra_ids", 0), ("input_sentence_size", 1), ("num_threads", 1))
    for name, number in least:
        if getattr(args, name) < number:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {number}")
    if not LEAST_COVERAGE <= args.character_coverage <= 1:
        parser.error(f"--character_coverage is {args.character_coverage}; it must be in [{LEAST_COVERAGE}, 1]")


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


def train_t5_tokenizer(texts: Iterable[str], args: argparse.Namespace) -> PreTrainedTokenizerFast:
    """Trains with the arguments of `add_sentencepiece_arguments`, and saves tokenizer and model in `--output_dir`."""
    model = train_sentencepiece(
        texts,
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


def train_wordpiece(texts: Iterable[str], vocab_size: int, lower_case: bool = True) -> BertTokenizer:
    """A BERT's tokenizer: WordPiece of words that white space and punctuation part."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    vocabulary = _trained_vocabulary(backend, len(special))
    return BertTokenizer(vocab=vocabulary, do_lower_case=lower_case)


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> RobertaTokenizer:
    """A RoBERTa's tokenizer: byte pairs, which write any text without unknown tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = _trained_vocabulary(backend, len(special) + len(alphabet))
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)  # takes the space before it, as RoBERTa's
    return RobertaTokenizer(vocab=vocabulary, merges=merges, mask_token=mask)


def _trained_vocabulary(backend: Tokenizer, size_without_text: int) -> dict[str, int]:
    vocabulary = backend.get_vocab()
    if len(vocabulary) <= size_without_text:
        raise ValueError("The text does not suffice for a vocabulary: not one token was learned from it.")
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))
