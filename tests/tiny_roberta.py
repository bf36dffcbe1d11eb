# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny vanilla RoBERTa with its tokenizer, which has no token types."""

import json
from pathlib import Path

import torch
from tiny_bert import REMARKS, TINY_BERT
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaTokenizer


def write_checkpoint(directory: Path, model_class: type = RobertaForMaskedLM, **config_values) -> str:
    """Writes a random vanilla RoBERTa with a head, and a byte-level tokenizer that was trained on the remarks."""
    bpe = ByteLevelBPETokenizer()
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([text for text, _ in REMARKS], vocab_size=400, special_tokens=special_tokens)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    RobertaTokenizer(vocab=model["vocab"], merges=merges).save_pretrained(directory)
    torch.manual_seed(0)
    # Positions are counted from 2, the one after padding's.
    values = {**TINY_BERT, "max_position_embeddings": 130, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    values |= config_values
    model_class(RobertaConfig(vocab_size=len(model["vocab"]), **values)).save_pretrained(directory)
    return str(directory)
