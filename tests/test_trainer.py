# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformers' own `Trainer` and `Seq2SeqTrainer` train every family."""

import pytest
import torch
from models import CASES, TINY_BERT, TINY_RESNET, TINY_T5, TINY_VIT, randomize
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import ea_hf


TINY_LLAMA = {
    "vocab_size": 67,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def tokens(*shape):
    return torch.randint(1, 67, shape, generator=torch.Generator().manual_seed(0))


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CLASSES = torch.arange(8) % 3
MODELS = {
    "EA-BERT": (
        lambda: ea_hf.EABertForSequenceClassification(ea_hf.EABertConfig(**TINY_BERT, num_labels=3)),
        {"input_ids": tokens(8, 6), "labels": CLASSES},
    ),
    "EA-T5": (
        lambda: ea_hf.EAT5ForConditionalGeneration(ea_hf.EAT5Config(**TINY_T5)),
        {"input_ids": tokens(8, 6), "labels": tokens(8, 5)},
    ),
    "EA-ViT": (
        lambda: ea_hf.EAViTForImageClassification(ea_hf.EAViTConfig(**TINY_VIT, num_labels=3)),
        {"pixel_values": numbers(8, 3, 8, 8), "labels": CLASSES},
    ),
    "EA-ResNet": (
        lambda: ea_hf.EAResNetForImageClassification(ea_hf.EAResNetConfig(**TINY_RESNET)),
        {"pixel_values": numbers(8, 3, 12, 12), "labels": CLASSES},
    ),
    "EA-DC-Transformer": (
        lambda: next(case for case in CASES if case.model_class is ea_hf.EADCTransformerForClassification).model(),
        {"past_values": numbers(8, 20, 3), "labels": CLASSES},
    ),
    "evolved Llama": (
        lambda: ea_hf.evolve(LlamaForCausalLM(LlamaConfig(**TINY_LLAMA))),
        {"input_ids": tokens(8, 6), "labels": tokens(8, 6).where(tokens(8, 6) % 3 > 0, -100)},
    ),
}


def rows(columns):
    return [{name: values[row] for name, values in columns.items()} for row in range(8)]


def arguments(directory, arguments_class=TrainingArguments, **options):
    defaults = {
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
    }  # fmt: skip
    return arguments_class(output_dir=str(directory), **{**defaults, **options})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(actual, expected, **tolerances):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow_but("EA-BERT", "evolved Llama")
def test_accumulated_batches_equal_one_batch(name, tmp_path, monkeypatch):
    make, columns = MODELS[name]
    losses, trained = {}, {}
    for size in (8, 2):
        torch.manual_seed(0)
        model = make()
        # Without dropout and the statistics of a batch, which are another matter.
        model.eval()
        monkeypatch.setattr(model, "train", lambda mode=True, model=model: model)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 1}
        trainer = Trainer(model, arguments(tmp_path, optim="sgd", **options), train_dataset=rows(columns))
        before = weights(model)
        trainer.train()
        losses[size], trained[size] = trainer.state.log_history[0]["loss"], weights(model)
        assert any(not torch.equal(value, before[key]) for key, value in trained[size].items())
    assert losses[2] == pytest.approx(losses[8], rel=1e-3)
    assert_same(trained[2], trained[8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**TINY_LLAMA)), True),
        (lambda: LlamaForTokenClassification(LlamaConfig(**TINY_LLAMA)), False),
        (lambda: BertForMaskedLM(BertConfig(**TINY_BERT)), False),
        (
            lambda: BartForConditionalGeneration(
                BartConfig(
                    vocab_size=67, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                    decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
                )
            ),
            False,
        ),
    ],
    ids=["LlamaForCausalLM", "LlamaForTokenClassification", "BertForMaskedLM", "Bart"],
)  # fmt: skip
def test_an_evolved_model_says_whether_its_loss_counts_all_labels(make, counts):
    assert ea_hf.evolve(make()).accepts_loss_kwargs is counts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_head_of_a_family_counts_all_labels(case):
    model = case.model()
    assert model.accepts_loss_kwargs is False
    model.accepts_loss_kwargs = True  # for who knows better
    assert model.accepts_loss_kwargs is True


def test_generation_while_training(tmp_path):
    make, columns = MODELS["EA-T5"]
    model = randomize(make(), 0.2)
    trainer = Seq2SeqTrainer(
        model,
        arguments(
            tmp_path, Seq2SeqTrainingArguments, max_steps=2, eval_strategy="steps", eval_steps=1,
            predict_with_generate=True, generation_max_length=7, generation_num_beams=2,
        ),
        train_dataset=rows(columns),
        eval_dataset=rows(columns),
        compute_metrics=lambda prediction: {"length": (prediction.predictions != 0).sum(-1).max()},
    )  # fmt: skip
    trainer.train()
    # The token that generation starts with is the one for padding.
    assert [log["eval_length"] for log in trainer.state.log_history if "eval_length" in log] == [6, 6]
    predicted = torch.from_numpy(trainer.predict(rows(columns)).predictions)
    expected = model.eval().generate(input_ids=columns["input_ids"], max_length=7, num_beams=2)
    assert predicted[:, :7].equal(expected) and not predicted[:, 7:].any()


def bert_trainer(directory, **options):
    make, columns = MODELS["EA-BERT"]
    torch.manual_seed(0)
    options = {"per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 1e-2, **options}
    return Trainer(make(), arguments(directory, **options), train_dataset=rows(columns), eval_dataset=rows(columns))


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    whole = bert_trainer(tmp_path, save_strategy="steps", save_steps=3)
    whole.train()
    resumed = bert_trainer(tmp_path, save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights(resumed.model), weights(whole.model), rtol=0, atol=0)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    """The learning rate is so large that the last model is not the best one."""
    trainer = bert_trainer(
        tmp_path, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        learning_rate=0.3,
    )  # fmt: skip
    trainer.train()
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(losses, key=losses.get)
    assert best != 6 and trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_checkpointing_changes_nothing(tmp_path):
    plain = bert_trainer(tmp_path)
    checkpointed = bert_trainer(
        tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    for trainer in (plain, checkpointed):
        trainer.train()
    assert_same(weights(checkpointed.model), weights(plain.model), rtol=1e-5, atol=1e-6)
