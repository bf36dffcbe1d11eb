# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The training loop: what an optimizer step is, which checkpoints stay, and that a resumed run is the same run."""

import argparse
import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_bert import arguments, isolated_runs, reset_accelerator
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, get_scheduler
from transformers.models.t5.modeling_t5 import T5LayerNorm

import ea_hf
from ea_hf.training.arguments import SCHEDULES, add_training_arguments
from ea_hf.training.batching import TrainingBatches
from ea_hf.training.checkpoints import checkpoint_steps, find_fault
from ea_hf.training.loop import TrainingResult, copy_weights_from_file, create_accelerator, save_model, train
from ea_hf.training.optimizer_step import NonFiniteLossError
from ea_hf.training.optimizers import create_optimizer
from ea_hf.training.output_dir import prepare_output_dir
from ea_hf.training.run_state import describe_dataset, describe_model


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory):
    with isolated_runs(tmp_path_factory.mktemp("cache")):
        yield


TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Stopped(Exception):
    """Ends a run where a test wants it."""


def tiny_model(model_class: type = ea_hf.EABertForSequenceClassification, **values: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**TINY, **values}))


def token_examples(count: int, make_labels: Callable[[torch.Tensor], Any]) -> list[dict[str, Any]]:
    """Random token sequences of 2 to 12 tokens."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for length in torch.randint(2, 13, (count,), generator=generator).tolist():
        ids = torch.randint(1, 50, (length,), generator=generator)
        examples.append({"input_ids": ids.tolist(), "labels": make_labels(ids)})
    return examples


def classes(count: int) -> list[dict[str, Any]]:
    return token_examples(count, lambda ids: int(ids[0] > 25))


def tagged_tokens(count: int) -> list[dict[str, Any]]:
    """A label for each token; every third token is ignored, and so are all of some examples."""
    return token_examples(count, lambda ids: [-100 if i % 3 == len(ids) % 3 else i % 2 for i in ids.tolist()])


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(example["input_ids"]) for example in examples)

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    ids, labels = ([example[name] for example in examples] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "labels": pad(labels, -100) if isinstance(labels[0], list) else torch.tensor(labels),
    }


@dataclass
class Run:
    """A run of `train` in a directory; `**options` are command-line options with their values."""

    output_dir: Path
    options: dict[str, Any]
    args: argparse.Namespace = field(init=False)

    def __post_init__(self):
        parser = argparse.ArgumentParser()
        add_training_arguments(parser)
        self.args = parser.parse_args(arguments(output_dir=self.output_dir, **self.options))

    def __call__(
        self,
        model: torch.nn.Module,
        dataset: list,
        evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> TrainingResult:
        reset_accelerator()
        accelerator = create_accelerator(self.args)
        lock = prepare_output_dir(accelerator, self.args)
        if self.args.group_by_length:
            kwargs["lengths"] = [len(example["input_ids"]) for example in dataset]
        try:
            result = train(
                accelerator, self.args, model, dataset, collate, evaluate, model.config.save_pretrained, **kwargs
            )
            save_model(accelerator, result.model, self.output_dir)
        finally:
            lock.close()
        return result

    @property
    def checkpoints(self) -> list[int]:
        return checkpoint_steps(self.output_dir)

    def state(self, step: int) -> dict[str, Any]:
        return json.loads((self.output_dir / f"checkpoint-{step}" / "trainer_state.json").read_text())

    def weights(self, step: int | None = None) -> dict[str, torch.Tensor]:
        """Of a checkpoint, or the final ones."""
        directory = self.output_dir if step is None else self.output_dir / f"checkpoint-{step}"
        return load_file(directory / "model.safetensors")


def run(output_dir: Path, **options: Any) -> Run:
    return Run(output_dir, options)


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerances: float) -> None:
    tolerances = tolerances or {"rtol": 0, "atol": 0}
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("model_class", "examples"),
    [(ea_hf.EABertForSequenceClassification, classes), (ea_hf.EABertForTokenClassification, tagged_tokens)],
    ids=["sentences", "tokens"],
)
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


@dataclass
class ScriptedEvaluation:
    """Gives a prepared score at each evaluation, and notes the weights that it saw. Without a score, the run stops."""

    scores: list[float]
    name: str = "score"
    losses: list[float] | None = None
    seen: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        if len(self.seen) == len(self.scores):
            raise Stopped
        index = len(self.seen)
        self.seen.append(model.classifier.weight.detach().clone())
        losses = {} if self.losses is None else {"loss": self.losses[index]}
        return {self.name: self.scores[index], **losses}


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


class StopsAt:
    """An evaluation after each step, that ends the run at one of them."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        self.step -= 1
        if self.step == 0:
            raise Stopped
        return {"score": model.classifier.weight.detach().sum().item()}


RESUMABLE = {
    "eval_steps": 1,
    "checkpointing_steps": 2,
    "max_train_steps": 8,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "num_warmup_steps": 3,
    "logging_steps": 3,
}


def stopped_run(output_dir: Path, step: int = 6, dataset: list | None = None, **options: Any) -> None:
    """A run that ends while evaluating after a step; there are checkpoints of the even steps before."""
    with pytest.raises(Stopped):
        run(output_dir, **{**RESUMABLE, **options})(tiny_model(), dataset or classes(40), StopsAt(step))


def resumed_run(output_dir: Path, dataset: list | None = None, model: torch.nn.Module | None = None, **options: Any):
    this = run(output_dir, **{**RESUMABLE, "resume_from_checkpoint": "latest", **options})
    return this, this(model or tiny_model(), dataset or classes(40), StopsAt(99))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"group_by_length": True, "lr_scheduler_type": "cosine"},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"dataloader_num_workers": 1},
        {"optim": "adafactor", "optim_args": "scale_parameter=true"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
    ],
    ids=["plain", "accumulated", "by_length", "bf16", "workers", "adafactor", "sgd"],
)
def test_a_resumed_run_is_the_same_run(options, tmp_path):
    whole = run(tmp_path / "whole", **{**RESUMABLE, **options})
    expected = whole(tiny_model(), classes(40), StopsAt(99))
    stopped_run(tmp_path / "resumed", **options)
    other_weights = tiny_model()
    torch.nn.init.zeros_(other_weights.classifier.weight)
    torch.rand(5)  # another random state
    resumed, actual = resumed_run(tmp_path / "resumed", model=other_weights, **options)
    assert_equal(resumed.weights(), whole.weights())
    assert resumed.state(8) == whole.state(8)
    assert actual.evaluation == expected.evaluation
    assert actual.metrics["train_loss"] == expected.metrics["train_loss"]


def test_random_numbers_of_a_step_do_not_depend_on_what_was_drawn_before(tmp_path):
    weights = []
    for draws in (0, 7):
        this = run(tmp_path / str(draws), **RESUMABLE)
        this(tiny_model(), classes(40), lambda model, draws=draws: {"sum": torch.rand(draws).sum().item()})
        weights.append(this.weights())
    assert_equal(weights[0], weights[1])


def test_a_resumed_run_may_share_its_steps_differently(tmp_path):
    """As when the first try ran out of memory. The step count is odd on purpose."""
    whole = run(tmp_path / "whole", **RESUMABLE)
    torch.manual_seed(0)
    whole(tiny_model(**NO_DROPOUT), classes(40), StopsAt(99))
    with pytest.raises(Stopped):
        run(tmp_path / "resumed", **{**RESUMABLE, "checkpointing_steps": 3})(
            tiny_model(**NO_DROPOUT), classes(40), StopsAt(4)
        )
    resumed, _ = resumed_run(
        tmp_path / "resumed",
        model=tiny_model(**NO_DROPOUT),
        gradient_accumulation_steps=4,
        per_device_train_batch_size=2,
    )
    assert_equal(resumed.weights(), whole.weights(), rtol=0, atol=1e-4)


def test_a_finished_run_resumes_to_the_same_results(tmp_path):
    finished = run(tmp_path, **RESUMABLE)
    expected = finished(tiny_model(), classes(40), StopsAt(99))
    weights = finished.weights()
    again, actual = resumed_run(tmp_path)
    assert_equal(again.weights(), weights)
    assert actual.evaluation == expected.evaluation
    assert actual.metrics["train_loss"] == expected.metrics["train_loss"]


def test_a_resumed_run_can_be_cut_short(tmp_path):
    stopped_run(tmp_path, logging_steps=50)
    this, result = resumed_run(tmp_path, logging_steps=50, max_train_steps=4)
    assert result.metrics["global_step"] == 4
    assert_equal(this.weights(), this.weights(4))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed", {"seed": 1}),
        ("total_batch_size", {"per_device_train_batch_size": 4}),
        ("train_dataset", {"dataset": classes(41)}),
        ("train_dataset", {"dataset": [{**example, "labels": 0} for example in classes(40)]}),
        ("model", {"model": tiny_model(hidden_size=16)}),
        ("model", {"model": tiny_model(ea_conv_weight=0.3)}),
        ("model", {"model": tiny_model(ea_hf.EABertForTokenClassification), "dataset": classes(40)}),
        ("learning_rate", {"learning_rate": 5e-4}),
        ("weight_decay", {"weight_decay": 0.2}),
        ("optim", {"optim": "adafactor"}),
        ("optim_args", {"optim_args": "betas=(0.9, 0.98)"}),
        ("group_by_length", {"group_by_length": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_refused(name, changes, tmp_path):
    """What would go on with the old value, or end nowhere near where one undisturbed run ends."""
    stopped_run(tmp_path)
    with pytest.raises(ValueError, match=rf"checkpoint-4 belongs to another run: its {name} is .* now it is"):
        resumed_run(tmp_path, **changes)


def test_every_example_and_every_loaded_weight_tells_runs_apart(tmp_path):
    """The rows lie between those that a sample would take; new weights may differ, as between processors."""
    rows = [{"input_ids": [number, 1], "labels": number % 2} for number in range(1000)]
    descriptions = {describe_dataset(Dataset.from_list(rows)), describe_dataset(Dataset.from_list(rows[::-1]))}
    for number in (1, 500, 999):
        changed = [{**row, "labels": 7} if index == number else row for index, row in enumerate(rows)]
        descriptions |= {describe_dataset(Dataset.from_list(changed)), describe_dataset(changed)}
    assert len(descriptions) == 2 + 6
    # However the rows lie in memory or on disk.
    selected = Dataset.from_list([*rows[:1], *rows]).select(range(1, 1001))
    assert describe_dataset(selected) == describe_dataset(Dataset.from_list(rows))

    # A large array as a whole, though it is not printed as a whole.
    images = [[{"pixel_values": np.zeros((64, 64), dtype=np.float32)}] for _ in range(2)]
    images[1][0]["pixel_values"][30, 30] = 1
    assert describe_dataset(images[0]) != describe_dataset(images[1])

    vanilla = transformers.BertModel(transformers.BertConfig(**TINY))
    models = {}
    for name in ("first", "again", "other"):
        if name == "other":
            torch.nn.init.normal_(vanilla.encoder.layer[1].output.dense.bias)
        vanilla.save_pretrained(tmp_path)
        models[name] = ea_hf.EABertForSequenceClassification.from_pretrained(tmp_path)
        copy_weights_from_file(models[name])
    assert not torch.equal(models["first"].classifier.weight, models["again"].classifier.weight)
    assert describe_model(models["first"]) == describe_model(models["again"]) != describe_model(models["other"])


def test_a_change_that_is_allowed_is_said_and_takes_effect(tmp_path, caplog):
    stopped_run(tmp_path)
    this, result = resumed_run(tmp_path, max_train_steps=9, num_warmup_steps=0, max_grad_norm=0.5)
    for name, before, now in (("max_train_steps", 8, 9), ("num_warmup_steps", 3, 0), ("max_grad_norm", 1.0, 0.5)):
        assert f"Resuming with {name} {now}; until now it was {before}" in caplog.text
    assert result.metrics["global_step"] == 9
    assert this.state(9)["log_history"][1]["learning_rate"] == pytest.approx(1e-3 * 3 / 9)
    assert this.state(9)["run"]["max_grad_norm"] == 0.5


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_previous_one(tmp_path, caplog):
    whole = run(tmp_path / "whole", **RESUMABLE)
    whole(tiny_model(), classes(40), StopsAt(99))
    stopped_run(tmp_path / "resumed", step=5)
    with (tmp_path / "resumed" / "checkpoint-4" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    resumed, _ = resumed_run(tmp_path / "resumed")
    assert "checkpoint-4: its file model.safetensors has 1000 bytes" in caplog.text
    assert_equal(resumed.weights(), whole.weights())


def test_of_equal_scores_the_one_with_the_smallest_loss_is_the_best(tmp_path):
    evaluation = ScriptedEvaluation([0.1, 0.9, 0.9, 0.9, 0.8], losses=[0.1, 0.5, 0.3, 0.4, 0.2])
    this = run(tmp_path, max_train_steps=10, eval_steps=2, checkpointing_steps=2, load_best_model_at_end=True)
    this(tiny_model(), classes(40), evaluation, metric_for_best_model="score")
    assert this.state(10)["best_checkpoint"] == "checkpoint-6"
    assert torch.equal(this.weights()["classifier.weight"], evaluation.seen[2])


@pytest.mark.parametrize("damage", ["lost", "truncated"])
def test_a_lost_best_checkpoint_is_said_and_another_one_chosen(damage, tmp_path, caplog):
    options = {**RESUMABLE, "load_best_model_at_end": True}
    with pytest.raises(Stopped):
        run(tmp_path, **options)(
            tiny_model(), classes(40), ScriptedEvaluation([0.1, 0.9, 0.2, 0.3]), metric_for_best_model="score"
        )
    best = tmp_path / "checkpoint-2"
    if damage == "lost":
        shutil.rmtree(best)
    else:
        (best / "model.safetensors").write_bytes(b"")
    this = run(tmp_path, **options, resume_from_checkpoint="latest")
    assert this.state(4)["best_checkpoint"] == "checkpoint-2"
    result = this(tiny_model(), classes(40), ScriptedEvaluation([0.4, 0.6, 0.5, 0.5]), metric_for_best_model="score")
    assert "best checkpoint so far, checkpoint-2, cannot be used" in caplog.text
    assert result.evaluation == {"score": 0.6}
    assert_equal(this.weights(), this.weights(6))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (shutil.rmtree, "it has no manifest.json"),
        (lambda best: (best / "model.safetensors").unlink(), "its file model.safetensors is missing"),
        (lambda best: (best / "optimizer.bin").write_bytes(b""), "its file optimizer.bin has 0 bytes"),
        (lambda best: (best / "manifest.json").write_text("{"), "its manifest.json cannot be read"),
    ],
    ids=["lost", "without-weights", "truncated", "without-manifest"],
)
def test_a_best_checkpoint_that_cannot_be_read_leaves_the_last_weights(damage, fault, tmp_path, caplog):
    class DamagesTheBest(ScriptedEvaluation):
        def __call__(self, model):
            if len(self.seen) == 3:
                damage(tmp_path / "checkpoint-2")
            return super().__call__(model)

    this = run(tmp_path, max_train_steps=4, eval_steps=1, checkpointing_steps=1, load_best_model_at_end=True)
    evaluation = DamagesTheBest([0.1, 0.9, 0.2, 0.3])
    result = this(tiny_model(), classes(40), evaluation, metric_for_best_model="score")
    assert f"The best checkpoint so far, checkpoint-2, cannot be used: {fault}" in caplog.text
    assert "The last weights are kept" in caplog.text
    assert result.evaluation == {"score": 0.3}
    assert_equal(this.weights(), this.weights(4))


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
