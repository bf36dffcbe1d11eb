# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The training loop: what an optimizer step is, which checkpoints stay, and that a resumed run is the same run."""

import argparse
import copy
import math
from typing import Any

import pytest
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.utils import clip_grad_norm_
from training_runs import (
    NO_DROPOUT,
    ScriptedEvaluation,
    assert_equal,
    classes,
    collate,
    run,
    tagged_tokens,
    tiny_model,
    token_examples,
)
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler
from transformers.models.t5.modeling_t5 import T5LayerNorm

import ea_hf
from ea_hf.training.arguments import SCHEDULES, add_training_arguments
from ea_hf.training.batching import TrainingBatches
from ea_hf.training.checkpoints import find_fault
from ea_hf.training.optimizer_step import NonFiniteLossError
from ea_hf.training.optimizers import create_optimizer


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.mark.parametrize(
    ("model_class", "examples"),
    [(ea_hf.EABertForSequenceClassification, classes), (ea_hf.EABertForTokenClassification, tagged_tokens)],
    ids=["sentences", "tokens"],
)
@pytest.mark.slow_but("tokens")
def test_accumulated_batches_equal_one_batch(model_class, examples, tmp_path):
    """Also for the last step of an epoch, which is not full, and where labels are ignored."""
    runs = {}
    for size, accumulation_steps in ((16, 1), (4, 4), (1, 16)):
        runs[size] = run(
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation_steps,
            num_train_epochs=2,
            logging_steps=1,
            learning_rate=1e-3,
        )
        runs[size](tiny_model(model_class, **NO_DROPOUT), examples(37))
    losses = {size: [report["loss"] for report in run.state(6)["log_history"]] for size, run in runs.items()}
    assert len(losses[16]) == 6
    for size in (4, 1):
        assert losses[size] == pytest.approx(losses[16], rel=1e-4)
        assert_equal(runs[size].weights(), runs[16].weights(), rtol=0, atol=1e-4)


def test_optimizer_and_its_arguments():
    model = tiny_model()
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)

    def optimizer(*words: str) -> torch.optim.Optimizer:
        return create_optimizer(parser.parse_args(["--output_dir", "x", *words]), model)

    assert type(optimizer()) is torch.optim.AdamW
    assert optimizer("--optim_args", "betas=(0.9, 0.98)").defaults["betas"] == (0.9, 0.98)
    adafactor = optimizer("--optim", "adafactor", "--optim_args", "scale_parameter=true", "--learning_rate", "0.01")
    assert type(adafactor) is transformers.Adafactor
    assert [group["lr"] for group in adafactor.param_groups] == [0.01, 0.01]
    assert adafactor.defaults["scale_parameter"] is True and adafactor.defaults["relative_step"] is False
    sgd = optimizer("--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true")
    assert type(sgd) is torch.optim.SGD and sgd.defaults["nesterov"] is True
    with pytest.raises(ValueError, match=r"--optim sgd does not take .*betas"):
        optimizer("--optim", "sgd", "--optim_args", "betas=1")
    with pytest.raises(SystemExit):
        optimizer("--optim_args", "momentum")


@pytest.mark.parametrize(("num_warmup_steps", "told"), [(9, False), (10, True)])
def test_a_warm_up_that_never_ends_is_told(num_warmup_steps, told, tmp_path, caplog):
    run(tmp_path, num_train_epochs=2, num_warmup_steps=num_warmup_steps, per_device_train_batch_size=8)(
        tiny_model(ea_hf.EABertForSequenceClassification), classes(37)
    )
    assert (f"--num_warmup_steps is {num_warmup_steps} and the run has 10 steps" in caplog.text) == told


def test_trackers_get_a_summary_of_the_maps_at_each_evaluation_and_training_is_the_same(tmp_path):
    runs = {}
    for tracking in (True, False):
        options = {"with_tracking": True} if tracking else {}
        runs[tracking] = run(tmp_path / str(tracking), per_device_train_batch_size=4, num_train_epochs=2, **options)
        model = tiny_model(ea_mixing="learned", ea_residual_weight=0.3)
        runs[tracking](model, classes(8), lambda model: {"accuracy": 0.5})
    assert_equal(runs[True].weights(), runs[False].weights())
    events = EventAccumulator(str(tmp_path / "True" / "logs")).Reload()
    for name in ("distance", "residual", "convolution", "residual_gate"):
        assert [event.step for event in events.Scalars(f"evolution/self/layer_2/{name}")] == [2, 4]
    assert events.Scalars("evolution/self/layer_2/residual_gate")[0].value == pytest.approx(0.3, abs=1e-2)
    assert events.Scalars("evolution/self/layer_2/distance")[0].value > 0


def test_evolution_has_its_own_learning_rate_and_its_weights_no_decay():
    model = tiny_model(ea_mixing="learned")
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    words = ["--output_dir", "x", "--weight_decay", "0.1", "--learning_rate", "0.001"]
    optimizer = create_optimizer(parser.parse_args([*words, "--ea_learning_rate", "0.01"]), model)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        decay = 0.1 if parameter.ndim > 1 else 0.0
        assert found[id(parameter)] == (0.01 if ".evolution." in name else 0.001, decay), name
    plain = tiny_model(ea_residual_weight=0.0, ea_conv_weight=0.0)
    with pytest.raises(ValueError, match="trains no parameter of evolving attention"):
        create_optimizer(parser.parse_args([*words, "--ea_learning_rate", "0.01"]), plain)


def test_a_run_equals_a_plain_loop(tmp_path):
    """Schedule, warm-up, clipping and weight decay act once per optimizer step."""
    dataset, total_steps = classes(22), 9
    this = run(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_train_steps=total_steps,
        num_warmup_steps=3,
        lr_scheduler_type="cosine",
        learning_rate=0.01,
        weight_decay=0.1,
        max_grad_norm=0.3,
        logging_steps=1,
        seed=7,
    )
    model = tiny_model(**NO_DROPOUT)
    plain = copy.deepcopy(model)
    this(model, dataset)

    decayed = [parameter for parameter in plain.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in plain.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.01
    )
    scheduler = get_scheduler("cosine", optimizer, 3, total_steps)
    rates, norms = [], []
    batches = TrainingBatches(22, 6, seed=7)
    for step in [step for epoch in range(3) for step in batches.steps(epoch)][:total_steps]:
        plain(**collate([dataset[index] for index in step[0].indices])).loss.backward()
        norms.append(clip_grad_norm_(plain.parameters(), 0.3).item())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert max(norms) > 0.6  # clipping matters
    assert [report["learning_rate"] for report in this.state(total_steps)["log_history"]] == rates
    assert_equal(this.weights(), plain.state_dict(), rtol=0, atol=2e-5)


def test_a_reported_loss_is_the_mean_since_the_report_before(tmp_path):
    losses = {}
    for logging_steps in (1, 3):
        this = run(tmp_path / str(logging_steps), logging_steps=logging_steps, max_train_steps=8, learning_rate=1e-3)
        this(tiny_model(), classes(40))
        losses[logging_steps] = [report["loss"] for report in this.state(8)["log_history"]]
    single = losses[1]
    assert losses[3] == pytest.approx([sum(single[:3]) / 3, sum(single[3:6]) / 3, sum(single[6:]) / 2])


def test_gradient_clipping_can_be_switched_off(tmp_path):
    weights = {}
    for norm in (0, 1e9, 0.01):
        this = run(tmp_path / str(norm), max_grad_norm=norm, max_train_steps=3, learning_rate=0.01)
        this(tiny_model(**NO_DROPOUT), classes(24))
        weights[norm] = this.weights()
    assert_equal(weights[0], weights[1e9])
    with pytest.raises(AssertionError):
        assert_equal(weights[0], weights[0.01], rtol=0, atol=1e-4)


def test_a_model_that_was_loaded_for_inference_is_trained_with_dropout(tmp_path):
    result = run(tmp_path, max_train_steps=2)(tiny_model().eval(), classes(16), lambda model: {"on": model.training})
    assert result.evaluation == {"on": True}


def test_biases_and_normalization_do_not_decay(tmp_path):
    model = tiny_model()
    model.t5_norm = T5LayerNorm(8)
    optimizer = create_optimizer(run(tmp_path, weight_decay=0.1).args, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay.keys() == dict(model.named_parameters()).keys()
    for name, value in decay.items():
        excluded = name.endswith("bias") or "LayerNorm" in name or "t5_norm" in name
        assert value == (0.0 if excluded else 0.1), name
    assert decay["bert.encoder.layer.1.attention.self.evolution.conv.weight"] == 0.1


@pytest.mark.parametrize("preset", ["learned", "talking_heads", "multi_token", "evolving"])
def test_weight_decay_leaves_gates_and_what_starts_as_the_identity(preset, tmp_path):
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = ea_hf.evolve(LlamaForCausalLM(config), preset=preset)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    create_optimizer(run(tmp_path, weight_decay=0.1, learning_rate=0.5).args, model).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    kernels = {name for name in before if name.endswith("evolution.conv.weight")}
    own = {name for name in before if ".evolution." in name}
    assert moved & own == (kernels if preset in ("learned", "evolving") else set()) and kernels < own
    assert own - kernels <= ea_hf.names_without_decay(model) and moved.isdisjoint(ea_hf.names_without_decay(model))
    # The recipe for `Trainer`.
    trainer = EvolvingTrainer(model, transformers.TrainingArguments(str(tmp_path / "trainer"), report_to=[]))
    assert {*trainer.get_decay_parameter_names(model)} & own == moved & own


class EvolvingTrainer(transformers.Trainer):
    def get_decay_parameter_names(self, model):
        return sorted({*super().get_decay_parameter_names(model)} - ea_hf.names_without_decay(model))


def test_bfloat16_trains_float32_weights(tmp_path):
    losses = {}
    for precision in ("no", "bf16"):
        this = run(tmp_path / precision, mixed_precision=precision, max_train_steps=4, logging_steps=1)
        result = this(tiny_model(**NO_DROPOUT), classes(32))
        assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
        losses[precision] = [report["loss"] for report in this.state(4)["log_history"]]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)
    assert losses["bf16"] != losses["no"]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    weights = []
    for options in ({}, {"gradient_checkpointing": True}):
        this = run(tmp_path / str(len(weights)), max_train_steps=4, learning_rate=1e-3, **options)
        model = tiny_model()
        result = this(model, classes(32))
        assert result.model.is_activation_checkpointing == bool(options)
        weights.append(this.weights())
    assert_equal(weights[1], weights[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("greater_is_better", "best"), [(True, 4), (False, 6)], ids=["greatest", "smallest"])
@pytest.mark.parametrize("load_best", [False, True], ids=["last_weights", "best_weights"])
def test_the_best_checkpoint_stays_and_can_become_the_model(greater_is_better, best, load_best, tmp_path):
    options = {"load_best_model_at_end": True} if load_best else {}
    this = run(
        tmp_path,
        max_train_steps=10,
        eval_steps=2,
        checkpointing_steps=1,
        save_total_limit=1,
        learning_rate=1e-3,
        **options,
    )
    evaluation = ScriptedEvaluation([0.5, 0.9, 0.1, 0.9, 0.6])  # the first of two equal ones is the best
    result = this(
        tiny_model(),
        classes(40),
        evaluation,
        metric_for_best_model="score",
        greater_is_better=greater_is_better,
    )
    assert this.checkpoints == [best, 10]
    assert this.state(10)["best_checkpoint"] == f"checkpoint-{best}"
    expected = best if load_best else 10
    assert result.evaluation == {"score": evaluation.scores[expected // 2 - 1]}
    assert torch.equal(this.weights()["classifier.weight"], evaluation.seen[expected // 2 - 1])
    assert_equal(this.weights(), this.weights(expected))
    assert result.metrics["global_step"] == 10


def test_evaluations_and_checkpoints_come_when_asked_for(tmp_path):
    """48 examples are 6 steps an epoch; the last step counts as asked for, unless nothing is."""
    for eval_steps, checkpointing_steps, evaluated, saved in (
        ("epoch", "epoch", [6, 12, 16], [6, 12, 16]),
        (5, 7, [5, 10, 15, 16], [7, 14, 16]),
        ("no", "epoch", [], [6, 12, 16]),
        (8, "no", [8, 16], []),
    ):
        this = run(
            tmp_path / f"{eval_steps}_{checkpointing_steps}",
            eval_steps=eval_steps,
            checkpointing_steps=checkpointing_steps,
            max_train_steps=16,
            save_total_limit=9,
        )
        evaluation = ScriptedEvaluation([0.5] * 16)
        result = this(tiny_model(), classes(48), evaluation)
        assert this.checkpoints == saved
        assert len(evaluation.seen) == len(evaluated)
        if saved:
            assert sorted(map(int, this.state(16)["evaluations"])) == evaluated
        assert result.evaluation == ({"score": 0.5} if evaluated else None)


def test_max_train_steps_overrides_epochs(tmp_path):
    this = run(tmp_path, max_train_steps=4, num_train_epochs=1)
    assert this(tiny_model(), classes(17)).metrics["epoch"] == pytest.approx(4 / 3)
    assert this.checkpoints == [3, 4]


def test_an_unknown_metric_is_named(tmp_path):
    this = run(tmp_path, max_train_steps=2)
    with pytest.raises(ValueError, match="'f2', but the evaluation gives score"):
        this(tiny_model(), classes(16), ScriptedEvaluation([0.5]), metric_for_best_model="f2")


def test_a_nan_score_is_not_the_best(tmp_path):
    this = run(tmp_path, max_train_steps=3, eval_steps=1, checkpointing_steps=1)
    this(tiny_model(), classes(24), ScriptedEvaluation([math.nan, 0.2, math.nan]), metric_for_best_model="score")
    assert this.state(3)["best_checkpoint"] == "checkpoint-2"


def regressions(count: int) -> list[dict[str, Any]]:
    return token_examples(count, lambda ids: ids.float().mean().item() / 25)


def test_a_non_finite_loss_stops_with_step_and_examples(tmp_path):
    dataset = regressions(24)
    dataset[17]["labels"] = 1e38
    order = TrainingBatches(24, 2, 2, seed=42).order(0)
    position = order.index(17)
    batch = sorted(order[position // 2 * 2 :][:2])
    this = run(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        checkpointing_steps=1,
        save_total_limit=9,
    )
    model = tiny_model(num_labels=1)
    with pytest.raises(
        NonFiniteLossError, match=rf"inf at step {position // 4 + 1}, .*examples \[{batch[0]}, {batch[1]}\]"
    ):
        this(model, dataset)
    good = list(range(1, position // 4 + 1))
    assert good and this.checkpoints == good
    assert all(find_fault(tmp_path / f"checkpoint-{step}") is None for step in good)
    assert_equal(model.state_dict(), this.weights(good[-1]))


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.inf


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_non_finite_gradient_stops_before_it_spoils_the_weights(max_grad_norm, tmp_path):
    model = tiny_model()
    calls = 0

    def spoil(module, inputs, outputs):
        nonlocal calls
        calls += 1
        return InfiniteGradient.apply(outputs) if calls == 3 else outputs

    model.classifier.register_forward_hook(spoil)
    this = run(tmp_path, checkpointing_steps=1, max_grad_norm=max_grad_norm)
    with pytest.raises(
        NonFiniteLossError, match=r"gradient's norm is (nan|inf) at step 3, in the training examples \["
    ):
        this(model, classes(48))
    assert this.checkpoints == [1, 2]
    assert_equal(model.state_dict(), this.weights(2))


def test_an_empty_training_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="training set is empty"):
        run(tmp_path)(tiny_model(), [])


def test_a_directory_with_a_run_is_refused_or_emptied(tmp_path):
    first = run(tmp_path, max_train_steps=2, checkpointing_steps=1)
    first(tiny_model(), classes(16))
    second = {"max_train_steps": 1, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"already holds a run.*--resume_from_checkpoint.*--overwrite_output_dir"):
        run(tmp_path, **second)(tiny_model(), classes(16))
    assert first.checkpoints == [1, 2]
    with pytest.raises(ValueError, match="exclude each other"):
        run(tmp_path, **second, overwrite_output_dir=True, resume_from_checkpoint="latest")(tiny_model(), classes(16))
    assert first.checkpoints == [1, 2]
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, **second, overwrite_output_dir=True)(tiny_model(), classes(16))
    assert first.checkpoints == [1]
    assert first.state(1)["run"]["learning_rate"] == 0.1
    broken = run(tmp_path, **second, overwrite_output_dir=True, load_best_model_at_end=True)
    with pytest.raises(ValueError, match="--load_best_model_at_end needs data to evaluate on"):
        broken(tiny_model(), classes(16), evaluate=None)
    assert not [*tmp_path.glob("model.*"), *tmp_path.glob("config.json")]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_directory_with_a_foreign_model_is_refused(tmp_path):
    tiny_model(hidden_size=16).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"already holds a .*--overwrite_output_dir"):
        run(tmp_path, max_train_steps=1)(tiny_model(), classes(16))
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size is 0; it must be at least 1"),
        ({"gradient_accumulation_steps": -1}, "--gradient_accumulation_steps is -1"),
        ({"max_train_steps": 0}, "--max_train_steps is 0"),
        ({"save_total_limit": 0}, "--save_total_limit is 0"),
        ({"learning_rate": "nan"}, "--learning_rate is nan; it must be a finite number"),
        ({"weight_decay": -0.1}, "--weight_decay is -0.1"),
        ({"max_grad_norm": "inf"}, "--max_grad_norm is inf"),
        ({"num_warmup_steps": -1}, "--num_warmup_steps is -1"),
        ({"seed": 2**32}, "--seed is 4294967296"),
        ({"load_best_model_at_end": True, "eval_steps": "no"}, '--eval_steps is "no"'),
        ({"mixed_precision": "fp16"}, "--mixed_precision bf16 or no"),
        ({"with_tracking": True, "report_to": "telepathy"}, "telepathy"),
        ({"ddp_timeout": 0}, "--ddp_timeout is 0"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers is -1"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_a_value_that_no_run_can_have_is_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "output", **options)(tiny_model(), classes(8))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_steps": 0}, "'0' is neither a positive number of steps"),
        ({"checkpointing_steps": "2.5"}, "'2.5' is neither a positive number of steps"),
        ({"lr_scheduler_type": "sawtooth"}, "cosine_with_restarts"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau"),
        ({"mixed_precision": "int2"}, "choose from"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_of_the_wrong_kind_is_named(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, **options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_that_may_be_chosen_runs(name, tmp_path):
    this = run(tmp_path, lr_scheduler_type=name, max_train_steps=4, num_warmup_steps=2, logging_steps=1)
    this(tiny_model(), classes(32))
    rates = [report["learning_rate"] for report in this.state(4)["log_history"]]
    assert len(rates) == 4 and max(rates) <= 5e-5
