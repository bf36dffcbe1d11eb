# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""sentence-transformers trains and serves evolving models as it does vanilla ones."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import TINY_BERT
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_bert import write_checkpoint
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, ElectraConfig, ElectraModel

import ea_hf


pytestmark = pytest.mark.usefixtures("isolated")

SENTENCES = ["Go and see it!", "Avoid.", "It is a film that never quite finds its feet, and does not mind.", ""]


@pytest.fixture(params=["EA-BERT", "learned", "evolved ELECTRA"])
def directory(request, tmp_path) -> str:
    """A saved evolving model with the tokenizer of a tiny BERT."""
    path = write_checkpoint(tmp_path / "vanilla")
    fields = {"ea_residual_weight": 0.3, "ea_conv_weight": 0.4}
    if request.param == "evolved ELECTRA":
        size = AutoConfig.from_pretrained(path).vocab_size
        model = ea_hf.evolve(ElectraModel(ElectraConfig(**{**TINY_BERT, "vocab_size": size})), 0.3, 0.4)
    else:
        mixing = "learned" if request.param == "learned" else "convex"
        model = ea_hf.EABertModel.from_pretrained(path, ea_mixing=mixing, **fields)
    model.save_pretrained(path)
    return str(path)


def new_sentence_transformer(directory: str) -> SentenceTransformer:
    module = Transformer(directory, max_seq_length=24)
    return SentenceTransformer(modules=[module, Pooling(module.get_embedding_dimension())], device="cpu")


def test_sentences_are_encoded_alone_as_in_a_batch(directory):
    encoder = new_sentence_transformer(directory)
    together = encoder.encode(SENTENCES, batch_size=4)
    alone = np.stack([encoder.encode([sentence])[0] for sentence in SENTENCES])
    assert_close(torch.from_numpy(together), torch.from_numpy(alone), atol=1e-5, rtol=0)
    assert not np.allclose(together[0], together[1])


def test_a_trained_encoder_is_loaded_as_it_was(directory, tmp_path):
    encoder = new_sentence_transformer(directory)
    before = encoder.encode(SENTENCES)
    kernel = next(p for name, p in encoder.named_parameters() if "evolution.conv.weight" in name)
    start = kernel.detach().clone()
    rows = Dataset.from_dict({"first": SENTENCES[:2] * 8, "second": SENTENCES[1:3] * 8, "score": [0.1, 0.9] * 8})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2,
        gradient_accumulation_steps=2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(encoder, arguments, train_dataset=rows, loss=CosineSimilarityLoss(encoder)).train()
    after = encoder.eval().encode(SENTENCES)
    assert not np.allclose(before, after, atol=1e-4) and not torch.equal(kernel, start)
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again[0].auto_model, type(AutoModel.from_pretrained(directory)))
    np.testing.assert_array_equal(again.encode(SENTENCES), after)
