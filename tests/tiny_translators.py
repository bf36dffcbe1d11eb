# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Tiny vanilla models that translate, with tokenizers of their kinds."""

import json
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tiny_t5 import help_rows, tiny_tokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    MarianConfig,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
)


SIZES = {
    "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 200, "init_std": 0.3, "dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip


def mbart_tokenizer(tokenizer_class: type):
    """A tokenizer that knows languages, with all characters of the help."""
    characters = sorted({character for row in help_rows() for text in row.values() for character in text} - {" "})
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -3.0) for character in characters]
    return tokenizer_class(
        vocab=[*pieces, ("en_XX", 0.0), ("de_DE", 0.0), ("ro_RO", 0.0), ("<mask>", 0.0)],
        src_lang="en_XX",
        tgt_lang="de_DE",
    )


def marian_tokenizer(directory: Path) -> MarianTokenizer:
    """A tokenizer with a model of pieces for each language, as the published ones have."""
    pieces: dict[str, None] = {}
    for language in ("en", "de"):
        SentencePieceTrainer.train(
            sentence_iterator=iter([row[language] for row in help_rows()]),
            model_prefix=str(directory / language),
            vocab_size=200,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        model = SentencePieceProcessor(model_file=str(directory / f"{language}.model"))
        pieces |= dict.fromkeys(map(model.id_to_piece, range(3, len(model))))
    vocabulary = {piece: index for index, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return MarianTokenizer(*(str(directory / name) for name in ("en.model", "de.model", "vocab.json")))


def write_model(directory: Path, kind: str) -> str:
    """Writes a random vanilla model that translates, and its tokenizer."""
    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "marian":
        tokenizer, config_class = marian_tokenizer(directory), MarianConfig
        # As in the published models.
        values = {"decoder_start_token_id": tokenizer.pad_token_id, "decoder_vocab_size": len(tokenizer)}
        values |= {"bos_token_id": 0, "forced_eos_token_id": 0}
    elif kind == "bart":
        tokenizer, config_class = tiny_tokenizer(), BartConfig
        values = {"decoder_start_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        values |= {"forced_bos_token_id": None, "forced_eos_token_id": None}
    else:
        tokenizer = mbart_tokenizer({"mbart": MBartTokenizer, "mbart50": MBart50Tokenizer}[kind])
        config_class, values = MBartConfig, {"forced_eos_token_id": None, "bos_token_id": 0}
        if kind == "mbart50":
            values["decoder_start_token_id"] = tokenizer.eos_token_id
    values |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(**SIZES, **values, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(directory)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(directory)
    return str(directory)
