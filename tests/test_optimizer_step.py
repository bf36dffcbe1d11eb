# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A step of the training loop makes an accelerator wait once, and refuses wrong masks all the same."""

import traceback
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from models import CASES
from tiny_bert import reset_accelerator
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import ea_hf
from ea_hf.models.evolution_state import deferred_mask_checks
from ea_hf.training import optimizer_step
from ea_hf.training.batching import MicroBatch, Step
from ea_hf.training.optimizer_step import take_step
from ea_hf.training.optimizers import OPTIMIZERS


READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")
SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
ARGS = SimpleNamespace(
    seed=0, gradient_accumulation_steps=4, max_grad_norm=1.0, output_dir="output", learning_rate=1e-3
)


def bert():
    torch.manual_seed(0)
    return ea_hf.EABertForSequenceClassification(ea_hf.EABertConfig(**SIZES))


def llama():
    torch.manual_seed(0)
    return ea_hf.evolve(LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)))


def t5():
    case = next(case for case in CASES if case.model_class is ea_hf.EAT5ForConditionalGeneration)
    torch.manual_seed(0)
    return case.model_class(case.config())


def batch(model, length=7, **inputs):
    ids = torch.randint(4, 30, (2, length))
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - 2 :] = 0
    labels = torch.tensor([0, 1]) if isinstance(model, ea_hf.EABertForSequenceClassification) else ids
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **inputs}


def prepared(model, optim="adamw_torch"):
    reset_accelerator()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    optimizer_class, defaults = OPTIMIZERS[optim]
    optimizer = optimizer_class(model.parameters(), lr=1e-3, **defaults)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    return accelerator, ARGS, model, optimizer, SimpleNamespace(step=lambda: None)


def step_of(batches):
    return Step([MicroBatch([2 * i, 2 * i + 1]) for i in range(len(batches))], batches, ends_epoch=False)


@pytest.mark.parametrize("make", [bert, llama, t5], ids=["EA-BERT", "evolved Llama", "EA-T5"])
def test_an_accelerator_is_waited_for_once_a_step(make, monkeypatch):
    model = make()
    run = prepared(model)
    step = step_of([batch(model, length) for length in (7, 5, 9, 6)])
    found = []
    count_labels, optimizer_class = optimizer_step.count_labels, type(run[3])

    def uncounted(function):
        def call(*args, **kwargs):
            before = len(found)
            result = function(*args, **kwargs)
            del found[before:]
            return result

        return call

    # Labels are counted before they are sent to the accelerator; how the optimizer works is PyTorch's affair.
    monkeypatch.setattr(optimizer_step, "count_labels", uncounted(count_labels))
    monkeypatch.setattr(optimizer_class, "step", uncounted(optimizer_class.step))

    def noted(read):
        def call(*args, **kwargs):
            found.append("".join(traceback.format_stack(limit=4)[:-1]))
            return read(*args, **kwargs)

        return call

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, noted(getattr(torch.Tensor, name)))
    take_step(*run, step, 0, optimizer_step.model_loss)
    assert len(found) == 1, "\n\n".join(found)


def block_diagonal(length):
    block = torch.arange(length) // 3
    return (block[:, None] == block).expand(2, 1, length, length)


def test_a_wrong_mask_ends_the_step_before_weights_move():
    model = bert()
    run = prepared(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = batch(model)
    step = step_of([good, good, {**good, "attention_mask": block_diagonal(7)}, good])
    with pytest.raises(ValueError, match="hides more or less than padding"):
        take_step(*run, step, 0, optimizer_step.model_loss)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_deferred_checks_find_what_immediate_ones_raise():
    model = bert().eval()
    inputs = {**batch(model), "attention_mask": block_diagonal(7)}
    with deferred_mask_checks() as checks:
        model(**inputs)
        model(**batch(model))
    assert checks.found(torch.zeros(())) == 1
    with pytest.raises(ValueError, match="hides more or less"):
        checks.raise_if_any()
    with pytest.raises(ValueError, match="hides more or less"):
        model(**inputs)


def test_vanilla_models_take_steps_too():
    model = BertForSequenceClassification(BertConfig(**SIZES))
    run = prepared(model, "adafactor")
    loss, signals = take_step(
        *run, step_of([batch(model, 5) | {"labels": torch.tensor([0, 1])}]), 0, optimizer_step.model_loss
    )
    assert loss == pytest.approx(0.69, abs=0.1) and not any(signals)
