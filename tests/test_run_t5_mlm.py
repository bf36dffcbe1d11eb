# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_t5_mlm.py: which spans are left out, and what inputs and labels say of them."""

import math

import numpy as np
import pytest
import run_t5_mlm
import tiny_t5
import torch
from pretraining import example_seed
from test_run_mlm import assert_goes_on_after_a_kill
from tiny_bert import arguments
from tiny_language import new_model, run_main, write_text
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import ea_hf
from ea_hf.training.tokenizer_training import make_tokenizer, train_sentencepiece


TINY = "d_model=16,d_kv=8,num_heads=2,d_ff=32,num_layers=2,num_decoder_layers=2,initializer_factor=1.5"


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(train_sentencepiece(texts(200), 300), extra_ids=20).save_pretrained(directory)
    return str(directory)


def texts(count: int, start: int = 0) -> list[str]:
    return list(dict.fromkeys(row["en"] for row in tiny_t5.pairs(count, start) if row["en"].strip()))


def options(tokenizer, output_dir, **more):
    return new_model("t5", TINY, tokenizer, output_dir, max_seq_length=32, learning_rate=1e-2) | more


@pytest.mark.parametrize("length", [1, 2, 3, 7, 30, 511])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.01, 3.0), (0.99, 5.0)])
def test_spans_have_the_wanted_number_and_length(length, density, mean):
    for seed in range(20):
        mask = run_t5_mlm.noise_mask(length, density, mean, np.random.default_rng(seed))
        assert len(mask) == length and (length == 1) == (not mask.any())
        if length > 1:
            noise = min(max(round(length * density), 1), length - 1)
            spans = int(np.sum(mask & ~np.concatenate([[False], mask[:-1]])))
            assert mask.sum() == noise and not mask[0] and mask[-1]
            assert spans == min(max(round(noise / mean), 1), noise, length - noise)


def test_inputs_and_labels_together_are_the_text():
    ids, sentinels = np.arange(100, 160), [99, 98, 97, 96, 95, 94, 93]
    mask = run_t5_mlm.noise_mask(60, 0.3, 3.0, np.random.default_rng(0))
    inputs, labels = run_t5_mlm.corrupt(ids, mask, sentinels, 1)
    assert inputs[-1] == labels[-1] == 1
    spans: dict[int, list[int]] = {}
    for token in labels[:-1]:
        if token in sentinels:
            spans[token] = current = []
        else:
            current.append(token)
    assert list(spans) == sentinels[: len(spans)]
    whole = [part for token in inputs[:-1] for part in spans.get(token, [token])]
    assert whole == ids.tolist()
    with pytest.raises(ValueError, match="more than 2 spans"):
        run_t5_mlm.corrupt(ids, mask, sentinels[:2], 1)


def test_loss_equals_an_independent_reckoning(tokenizer, tmp_path):
    validation = texts(12, start=300)
    results = run_main(
        run_t5_mlm,
        write_text(tmp_path / "train.txt", texts(60)),
        **options(tokenizer, tmp_path / "output", ea_cross_attention=True, per_device_eval_batch_size=3),
        validation_file=write_text(tmp_path / "validation.txt", validation),
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "output").eval()
    assert type(model) is ea_hf.EAT5ForConditionalGeneration
    tokens = AutoTokenizer.from_pretrained(tmp_path / "output")
    sentinels = tokens.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(20)])
    total = count = number = 0
    for text in validation:
        ids = np.array(tokens(text, add_special_tokens=False)["input_ids"])
        for start in range(0, len(ids), 31):
            block = ids[start : start + 31]
            random = np.random.default_rng(example_seed(42, ("evaluation 0", number)))
            inputs, labels = run_t5_mlm.corrupt(
                block, run_t5_mlm.noise_mask(len(block), 0.15, 3.0, random), sentinels, 1
            )
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([inputs]), labels=torch.tensor([labels])).loss.item()
            total, count, number = total + loss * len(labels), count + len(labels), number + 1
    assert results["eval_loss"] == pytest.approx(total / count, abs=1e-5)
    assert results["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(tokenizer, tmp_path, monkeypatch):
    file = write_text(tmp_path / "train.txt", texts(60))
    settings = options(
        tokenizer, tmp_path, streaming=True, max_train_steps=7, checkpointing_steps=3, shuffle_buffer_size=16
    )
    assert_goes_on_after_a_kill(run_t5_mlm, 4, monkeypatch, file, tmp_path, **settings)


def test_a_tokenizer_without_sentinels_is_told(tmp_path):
    directory = tmp_path / "plain"
    make_tokenizer(train_sentencepiece(texts(200), 300), extra_ids=0).save_pretrained(directory)
    args = run_t5_mlm.parse_args([*arguments(**options(directory, tmp_path)), "--train_file", "x"])
    with pytest.raises(ValueError, match="has no sentinel tokens"):
        run_t5_mlm.Collator(args, AutoTokenizer.from_pretrained(directory), None)
