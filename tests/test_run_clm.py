# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_clm.py: evolved decoders from scratch and onwards, and a loss that counts each predicted token once."""

import math

import pytest
import run_clm
import torch
from test_run_mlm import assert_goes_on_after_a_kill
from tiny_bert import arguments, write_checkpoint
from tiny_language import documents, new_model, run_main, write_text
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from ea_hf.training.batching import count_labels


GPT2 = "n_embd=32,n_layer=2,n_head=4,n_positions=48,initializer_range=0.2"
LLAMA = (
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=4,num_key_value_heads=2,intermediate_size=48,"
    "max_position_embeddings=48,initializer_range=0.2"
)


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("tokenizer"))


def options(tokenizer, output_dir, **more):
    return new_model("gpt2", GPT2, tokenizer, output_dir, block_size=16) | more


@pytest.mark.parametrize(("model_type", "overrides"), [("gpt2", GPT2), ("llama", LLAMA)])
@pytest.mark.slow_but("llama")
def test_loss_and_perplexity_equal_an_independent_reckoning(model_type, overrides, tokenizer, tmp_path):
    validation = documents(7, start=100)
    settings = options(tokenizer, tmp_path / "first", model_type=model_type, config_overrides=overrides)
    train = write_text(tmp_path / "train.txt", documents(20))
    validation_file = write_text(tmp_path / "validation.txt", validation)
    results = run_main(
        run_clm, train, **settings, validation_file=validation_file, ea_conv_weight=0.3, per_device_eval_batch_size=3
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first").eval()
    assert type(model).__name__.startswith("Evolved") and model.config.ea_conv_weight == 0.3
    tokens = AutoTokenizer.from_pretrained(tmp_path / "first")
    total = correct = count = 0
    for text in validation:
        ids = tokens(text)["input_ids"]
        for start in range(0, len(ids), 16):
            block = torch.tensor([ids[start : start + 16]])
            with torch.no_grad():
                logits = model(input_ids=block).logits[0, :-1].double()
            total -= logits.log_softmax(-1).gather(1, block[0, 1:, None]).sum().item()
            correct += (logits.argmax(-1) == block[0, 1:]).sum().item()
            count += block.shape[1] - 1
    assert results["eval_loss"] == pytest.approx(total / count, abs=1e-5)
    assert results["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert results["eval_accuracy"] == pytest.approx(correct / count)

    for name in ("model_type", "tokenizer_name", "config_overrides"):
        del settings[name]
    settings |= {"model_name_or_path": tmp_path / "first", "output_dir": tmp_path / "second"}
    run_main(run_clm, train, **settings, concatenate_documents=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "second").config.ea_conv_weight == 0.3


def test_the_labels_that_are_counted_are_those_that_are_predicted(tokenizer, tmp_path):
    """Else processes with blocks of other lengths would not weigh as one process does."""
    args = run_clm.parse_args([*arguments(**options(tokenizer, tmp_path)), "--train_file", "x"])
    args.pad_multiple = 8
    collate = run_clm.Collator(args, AutoTokenizer.from_pretrained(tokenizer), None)
    batch = collate([{"input_ids": list(range(5, 5 + length)), "key": ("", 0)} for length in (9, 4, 1)])
    assert count_labels(batch) == 8 + 3 and batch["input_ids"].shape == (3, 16)
    assert batch["attention_mask"].sum(1).tolist() == [9, 4, 1]


def test_documents_end_with_the_end_token_though_the_tokenizer_puts_none(tokenizer, tmp_path):
    backend = AutoTokenizer.from_pretrained(tokenizer).backend_tokenizer
    backend.post_processor = None
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]")
    args = run_clm.parse_args([*arguments(**options(tokenizer, tmp_path)), "--train_file", "x"])
    blocks, _ = run_clm.make_blocks(args, plain, None)(["Avoid.", "Even the dog looks bored."])
    assert [plain.decode(block["input_ids"]) for block in blocks] == [
        "avoid. [SEP]",
        "even the dog looks bored. [SEP]",
    ]


@pytest.mark.parametrize("streaming", [None, True], ids=["mapped", "streamed"])
@pytest.mark.slow_but("streamed")
def test_a_killed_run_goes_on_bit_by_bit(streaming, tokenizer, tmp_path, monkeypatch):
    file = write_text(tmp_path / "train.txt", documents(30))
    settings = options(
        tokenizer, tmp_path, streaming=streaming, max_train_steps=9, checkpointing_steps=3,
        shuffle_buffer_size=16, concatenate_documents=True,
    )  # fmt: skip
    assert_goes_on_after_a_kill(run_clm, 5, monkeypatch, file, tmp_path, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 49}, "49 tokens are asked for, but The new EvolvedGPT2LMHeadModel ends at 48 positions"),
        ({"block_size": 1}, "--block_size is 1"),
        ({"model_type": "t5", "config_overrides": None}, "has no AutoModelForCausalLM"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_trained(change, message, tokenizer, tmp_path):
    train = write_text(tmp_path / "train.txt", documents(12))
    with pytest.raises(ValueError, match=message):
        run_main(run_clm, train, **options(tokenizer, tmp_path / "output") | change)
    assert not (tmp_path / "output").exists()
