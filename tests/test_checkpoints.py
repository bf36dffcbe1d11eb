# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is there whole or not at all, and what is damaged is never taken for one."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_bert import isolated_runs
from torch.optim.lr_scheduler import LambdaLR

from ea_hf.training import checkpoints, training_state
from ea_hf.training.checkpoints import (
    CheckpointError,
    checkpoint_steps,
    find_checkpoint,
    find_fault,
    save_checkpoint,
    save_final_model,
    write_json,
)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory):
    with isolated_runs(tmp_path_factory.mktemp("cache")):
        yield


class Killed(BaseException):
    """Nothing in between catches it, as nothing catches kill -9."""


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    return accelerator


def save_assets(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def save(accelerator: Accelerator, output_dir: Path, step: int, best: int | None = None, limit: int | None = None):
    state = {"global_step": step, "best_checkpoint": best and f"checkpoint-{best}"}
    (model,), (optimizer,) = accelerator._models, accelerator._optimizers
    save_checkpoint(
        accelerator,
        output_dir,
        state,
        lambda directory: training_state.save_training_state(
            accelerator, model, optimizer, LambdaLR(optimizer.optimizer, lambda step: 1.0), directory
        ),
        save_assets,
        limit,
    )


def names(output_dir: Path) -> list[str]:
    """All that is in a directory, hidden files included."""
    return sorted(path.name for path in output_dir.iterdir())


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.bin"
    file.write_bytes(file.read_bytes()[:-1])


def alter(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def truncate_the_manifest(checkpoint: Path) -> None:
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text()[:50])


def empty_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("{}")


def replace_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('[{"name": "another program", "files": ["model.safetensors"]}]')


def replace_its_entries(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(dict.fromkeys(manifest, "sha256:abc")))


DAMAGES = {
    truncate: "optimizer.bin has",
    alter: "model.safetensors is not the one",
    lose_a_file: "trainer_state.json is missing",
    lose_the_manifest: "no manifest.json",
    truncate_the_manifest: "manifest.json cannot be read",
    empty_the_manifest: "manifest.json",
    replace_the_manifest: "manifest.json",
    replace_its_entries: "manifest.json",
}
every_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@every_damage
def test_a_damaged_checkpoint_is_named_and_the_previous_one_taken(accelerator, tmp_path, damage, caplog):
    for step in (3, 6, 10):
        save(accelerator, tmp_path, step)
    damage(tmp_path / "checkpoint-10")
    assert DAMAGES[damage] in find_fault(tmp_path / "checkpoint-10")
    assert find_fault(tmp_path / "checkpoint-6") is None
    with caplog.at_level(logging.WARNING, logger="ea_hf"):
        assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-6"
    assert "checkpoint-10" in caplog.text and DAMAGES[damage] in caplog.text


def test_no_good_checkpoint_is_an_error_that_names_all(accelerator, tmp_path):
    for step in (3, 6):
        save(accelerator, tmp_path, step)
        truncate(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"None of .*checkpoint-6.*checkpoint-3.*--overwrite_output_dir"):
        find_checkpoint(accelerator, tmp_path, "latest")


def test_a_directory_of_another_program_is_no_checkpoint(accelerator, tmp_path):
    foreign = tmp_path / "checkpoint-500"
    foreign.mkdir()
    (foreign / "trainer_state.json").write_text('{"global_step": 500}')
    (foreign / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(ValueError, match="checkpoint-500"):
        find_checkpoint(accelerator, tmp_path, "latest")
    save(accelerator, tmp_path, 3)
    assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-3"


def test_a_named_checkpoint_falls_back_to_older_ones_only(accelerator, tmp_path):
    for step in (3, 6, 10):
        save(accelerator, tmp_path, step)
    named = str(tmp_path / "checkpoint-6")
    assert find_checkpoint(accelerator, tmp_path, named) == tmp_path / "checkpoint-6"
    alter(tmp_path / "checkpoint-6")
    assert find_checkpoint(accelerator, tmp_path, named) == tmp_path / "checkpoint-3"


def test_latest_goes_by_number_and_may_be_nothing(accelerator, tmp_path):
    assert find_checkpoint(accelerator, tmp_path, "latest") is None
    for step in (9, 10, 100):
        save(accelerator, tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-100"


def test_a_missing_checkpoint_is_named(accelerator, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_checkpoint(accelerator, tmp_path, str(tmp_path / "nowhere"))


def test_the_oldest_go_but_never_the_best(accelerator, tmp_path):
    for step in (3, 6, 9, 12):
        save(accelerator, tmp_path, step, best=3, limit=2)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-3", "checkpoint-9"]


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(accelerator, tmp_path):
    for step in (3, 6, 9, 12):
        save(accelerator, tmp_path, step)
    truncate(tmp_path / "checkpoint-12")
    truncate(tmp_path / "checkpoint-9")
    save(accelerator, tmp_path, 9, limit=1)  # the run went on from 6
    assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-9"


MOMENTS = [
    (Accelerator, "save"),
    (checkpoints, "write_json"),
    (checkpoints, "_fingerprint"),
    (checkpoints, "_sync"),
    (Path, "replace"),
    (Path, "rename"),
    (checkpoints, "_delete_oldest"),
    (shutil, "rmtree"),
    (os, "unlink"),
]


@pytest.mark.parametrize(("owner", "name"), MOMENTS, ids=[name for _, name in MOMENTS])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_save_that_stops_halfway_leaves_good_checkpoints_only(
    accelerator, tmp_path, owner, name, moment, monkeypatch
):
    """Stops at each call of each function that matters, one after the other, until a save passes undisturbed."""
    original, stops = getattr(owner, name), 0
    while True:
        output_dir = tmp_path / str(stops)
        for step in (3, 6):
            save(accelerator, output_dir, step, limit=2)
        calls = 0

        def stop(*args, stop_at=stops, **kwargs):
            nonlocal calls
            calls += 1
            result = original(*args, **kwargs) if moment == "after" or calls <= stop_at else None
            if calls > stop_at:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            try:
                save(accelerator, output_dir, 9, limit=2)
            except Killed:
                stops += 1
            else:
                break
        latest = find_checkpoint(accelerator, output_dir, "latest")
        assert latest.name in ("checkpoint-6", "checkpoint-9")
        assert all(find_fault(output_dir / f"checkpoint-{step}") is None for step in checkpoint_steps(output_dir))
        # The next save is not in the way of what is left, and clears it up.
        save(accelerator, output_dir, 9, limit=2)
        assert names(output_dir) == ["checkpoint-6", "checkpoint-9"]
        assert find_fault(output_dir / "checkpoint-9") is None
    assert stops > 0


def test_a_final_model_replaces_the_one_before_as_a_whole(accelerator, tmp_path):
    def write(**files: str) -> Callable[[Path], None]:
        return lambda directory: (
            [(directory / name.replace("_", ".")).write_text(text) for name, text in files.items()] and None
        )

    def fail_halfway(directory: Path) -> None:
        write(model_safetensors="ne")(directory)
        raise OSError(errno.ENOSPC, "No space left on device")

    for part in ("1", "2"):
        (tmp_path / f"model-0000{part}-of-00002.safetensors").write_text("older")
    save_final_model(accelerator, tmp_path, write(model_safetensors="old", config_json="{}"))
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    with pytest.raises(CheckpointError, match=r"The model in .* could not be written: OSError: .*No space left"):
        save_final_model(accelerator, tmp_path, fail_halfway)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "old"
    save_final_model(accelerator, tmp_path, write(model_safetensors="new"))
    assert (tmp_path / "model.safetensors").read_text() == "new"


def test_a_json_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_json(file, {"accuracy": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_sync", lambda path: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            write_json(file, {"accuracy": 0.75})
    assert json.loads(file.read_text()) == {"accuracy": 0.5}
    write_json(file, {"accuracy": 0.75})
    assert json.loads(file.read_text()) == {"accuracy": 0.75}
    assert names(tmp_path) == ["results.json"]
