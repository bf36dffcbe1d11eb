# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any moment, then `--resume_from_checkpoint latest`: the same weights as those of an undisturbed run."""

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import run_glue
from tiny_bert import Moment, arguments, reset_accelerator, run_of_15_steps, start_run, wait_for_ever

from ea_hf.training.checkpoints import checkpoint_steps, find_fault


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def options(tmp_path) -> dict[str, Any]:
    """A run of 15 steps with everything that has a state: dropout, accumulation, warm-up, batches by length."""
    settings = {"weight_decay": 0.01, "num_warmup_steps": 4, "group_by_length": True}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    return run_of_15_steps(tmp_path, **settings, checkpointing_steps=3, save_total_limit=1, logging_steps=4)


def finish(words: Sequence[str], log: Path) -> None:
    process = start_run(words, log)
    process.join()
    assert process.exitcode == 0, log.read_text()


def is_whole(output_dir: Path) -> bool:
    return all(find_fault(output_dir / f"checkpoint-{step}") is None for step in checkpoint_steps(output_dir))


def assert_same_end(actual: Path, expected: Path) -> None:
    for name in ("model.safetensors", "checkpoint-15/model.safetensors", "checkpoint-15/optimizer.bin"):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name
    results = [json.loads((path / "all_results.json").read_text()) for path in (actual, expected)]
    for name, value in results[1].items():
        assert results[0][name] == value or name in ("train_runtime", "train_samples_per_second"), name
    states = [json.loads((path / "checkpoint-15/trainer_state.json").read_text()) for path in (actual, expected)]
    assert states[0] == states[1]
    assert not list(actual.glob(".checkpoint-*"))


# In the order of a run, which goes on from one to the next.
BY_STEPS = (
    Moment("ea_hf.training.loop", "take_step", 2),  # before there is a checkpoint
    Moment("ea_hf.training.checkpoints", "_sync", 1),
    Moment("accelerate:Accelerator", "save", 1, after=True),
    Moment("ea_hf.training.checkpoints", "_fingerprint", 3),
    Moment("pathlib:Path", "rename", 1),
    Moment("pathlib:Path", "rename", 1, after=True),  # from now on, there is a checkpoint
    Moment("glue_evaluation:GlueTask", "predict_logits", 1),
    Moment("ea_hf.training.loop", "take_step", 5, after=True),
    Moment("ea_hf.training.checkpoints", "_delete_oldest", 2),
    Moment("shutil", "rmtree", 2),
    Moment("ea_hf.training.checkpoints", "write_json", 1),
    Moment("ea_hf.training.script", "save_model", 1),
    Moment("ea_hf.training.script", "save_model", 1, after=True),
    Moment("ea_hf.training.script", "write_json", 1),
)
BY_EPOCHS = (
    Moment("ea_hf.training.loop", "take_step", 7),  # after the first epoch
    Moment("ea_hf.training.loop", "save_training_state", 1, after=True),
    Moment("pathlib:Path", "rename", 2),
    Moment("glue_evaluation:GlueTask", "predict_logits", 2, after=True),
    Moment("ea_hf.training.loop", "load_training_state", 2, after=True),  # of the best checkpoint, at the end
    Moment("ea_hf.training.script", "save_model", 1),
)
BEST = {"load_best_model_at_end": True, "checkpointing_steps": "epoch", "mixed_precision": "bf16"}


@pytest.mark.parametrize(("changes", "moments"), [({}, BY_STEPS), (BEST, BY_EPOCHS)], ids=["steps", "epochs"])
@pytest.mark.slow_but("epochs")
def test_a_run_that_is_killed_at_many_moments_ends_as_an_undisturbed_one(changes, moments, options, tmp_path):
    options |= changes
    finish(arguments(**options, output_dir=tmp_path / "whole"), tmp_path / "whole.log")
    output_dir, log = tmp_path / "killed", tmp_path / "killed.log"
    words = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest")
    for moment in moments:
        process = start_run(words, log, moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{moment}: {log.read_text()}"
        assert is_whole(output_dir), moment
    finish(words, log)
    assert_same_end(output_dir, tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(options, tmp_path):
    """By the clock, wherever it is."""
    options |= {"checkpointing_steps": 1}
    finish(arguments(**options, output_dir=tmp_path / "whole"), tmp_path / "whole.log")
    output_dir, log = tmp_path / "killed", tmp_path / "killed.log"
    words, patience, kills = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest"), 0.5, 0
    while True:
        process = start_run(words, log)
        process.join(patience)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        assert is_whole(output_dir)
        patience, kills = patience * 1.3, kills + 1
    assert process.exitcode == 0, log.read_text()
    assert kills > 0
    assert_same_end(output_dir, tmp_path / "whole")


def test_two_runs_do_not_share_a_directory(options, tmp_path):
    """The lock goes with its run, also if a worker that loads data survives it for a while."""
    options |= {"dataloader_num_workers": 1, "output_dir": tmp_path / "output", "resume_from_checkpoint": "latest"}
    words, log = arguments(**options), tmp_path / "first.log"
    first = start_run(words, log, Moment("ea_hf.training.loop", "take_step", 5), wait_for_ever)
    try:
        while "waiting" not in (log.read_text() if log.exists() else ""):
            assert first.is_alive(), log.read_text()
            time.sleep(0.05)
        before = (tmp_path / "output/training_args.json").stat().st_mtime_ns
        for changes in ({}, {"overwrite_output_dir": True, "resume_from_checkpoint": None}):
            reset_accelerator()
            with pytest.raises(ValueError, match=r"Another run is using .*output"):
                run_glue.main(arguments(**{**options, **changes}))
        assert checkpoint_steps(tmp_path / "output") == [2, 3]  # the best, and the last
        assert (tmp_path / "output/training_args.json").stat().st_mtime_ns == before
    finally:
        first.kill()
        first.join()
    reset_accelerator()
    assert run_glue.main(words)["global_step"] == 15
