# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped goes on as if it had not been, or is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from training_runs import (
    NO_DROPOUT,
    TINY,
    ScriptedEvaluation,
    Stopped,
    assert_equal,
    classes,
    run,
    tiny_model,
)

import ea_hf
from ea_hf.training.loop import copy_weights_from_file
from ea_hf.training.run_state import describe_dataset, describe_model


pytestmark = pytest.mark.usefixtures("isolated")


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
