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
from torch.optim.lr_scheduler import LambdaLR

from ea_hf.training import checkpoints, training_state
from ea_hf.training.checkpoints import (
    CheckpointError,
    checkpoint_steps,
    find_checkpoint,
    find_fault,
    recover,
    save_checkpoint,
    save_final_model,
    write_json,
)


pytestmark = pytest.mark.usefixtures("isolated")


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


# All that changes the file system or asks it to, whoever calls it.
OPERATIONS = ["rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "open"]


def stop_at_each_operation(prepare: Callable, action: Callable, check: Callable, tmp_path: Path, monkeypatch) -> None:
    """Kills `action` before, and again after, each operation of the file system in turn, until it passes undisturbed.

    Args:
        prepare, action, check: each takes the output directory.
    """
    for moment in ("before", "after"):
        stops = 0
        while True:
            output_dir = tmp_path / f"{moment}-{stops}"
            output_dir.mkdir()
            prepare(output_dir)
            calls = 0

            def stop(original, stop_at=stops, moment=moment):
                def stopping(*args, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls > stop_at and moment == "before":
                        raise Killed
                    result = original(*args, **kwargs)
                    if calls > stop_at:
                        raise Killed
                    return result

                return stopping

            with monkeypatch.context() as patch:
                for name in OPERATIONS:
                    patch.setattr(os, name, stop(getattr(os, name)))
                try:
                    action(output_dir)
                except Killed:
                    stops += 1
                else:
                    break
            check(output_dir)
            shutil.rmtree(output_dir)
        assert stops > 10


# The steps that are there, and the one that is written: a further one, one again, and the only one again.
REWRITES = {"a_further_one": ((3, 6), 9), "the_newest_again": ((3, 6), 6), "the_only_one_again": ((6,), 6)}


@pytest.mark.parametrize(("steps", "written"), REWRITES.values(), ids=REWRITES)
@pytest.mark.slow_but("the_only_one_again")
def test_a_save_that_is_killed_leaves_a_whole_checkpoint(accelerator, tmp_path, steps, written, monkeypatch):
    def prepare(output_dir: Path) -> None:
        for step in steps:
            save(accelerator, output_dir, step, limit=2)

    def check(output_dir: Path) -> None:
        recover(output_dir)
        latest = find_checkpoint(accelerator, output_dir, "latest")
        assert latest is not None and int(latest.name.split("-")[1]) >= max(steps)
        assert all(find_fault(output_dir / f"checkpoint-{step}") is None for step in checkpoint_steps(output_dir))
        assert not [name for name in names(output_dir) if name.startswith(".")]
        # The next save is not in the way of what is left.
        save(accelerator, output_dir, 9, limit=2)
        assert names(output_dir)[-1] == "checkpoint-9" and len(names(output_dir)) == 2

    stop_at_each_operation(
        prepare, lambda output_dir: save(accelerator, output_dir, written, limit=2), check, tmp_path, monkeypatch
    )


def test_recovering_can_be_killed_too(accelerator, tmp_path, monkeypatch):
    def prepare(output_dir: Path) -> None:
        save(accelerator, output_dir, 6)
        shutil.copytree(output_dir / "checkpoint-6", output_dir / ".checkpoint-6.replaced")
        (output_dir / "checkpoint-6").rename(output_dir / ".checkpoint-6.incomplete")

    def check(output_dir: Path) -> None:
        recover(output_dir)
        assert names(output_dir) == ["checkpoint-6"] and find_fault(output_dir / "checkpoint-6") is None

    stop_at_each_operation(prepare, recover, check, tmp_path, monkeypatch)


def test_what_is_whole_beside_a_damaged_checkpoint_takes_its_place(accelerator, tmp_path):
    save(accelerator, tmp_path, 6)
    for aside in (".checkpoint-6.incomplete", ".checkpoint-6.replaced"):
        (tmp_path / "checkpoint-6").rename(tmp_path / aside)
        if aside.endswith("replaced"):
            (tmp_path / ".checkpoint-6.incomplete").mkdir()  # half written
        (tmp_path / "checkpoint-6").mkdir()
        recover(tmp_path)
        assert names(tmp_path) == ["checkpoint-6"] and find_fault(tmp_path / "checkpoint-6") is None


def test_a_final_model_that_is_killed_is_whole_after_recovering(accelerator, tmp_path, monkeypatch):
    def write(output_dir: Path, text: str, files: tuple[str, ...]) -> None:
        save_final_model(accelerator, output_dir, lambda d: [(d / file).write_text(text) for file in files] and None)

    old = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    new = ("config.json", "model.safetensors")

    def check(output_dir: Path) -> None:
        recover(output_dir)
        found = {name: (output_dir / name).read_text() for name in names(output_dir)}
        assert found in (dict.fromkeys(old, "old"), dict.fromkeys(new, "new"))

    stop_at_each_operation(
        lambda output_dir: write(output_dir, "old", old),
        lambda output_dir: write(output_dir, "new", new),
        check,
        tmp_path,
        monkeypatch,
    )


def test_a_rename_that_fails_leaves_the_checkpoint_that_was_to_be_replaced(accelerator, tmp_path, monkeypatch):
    save(accelerator, tmp_path, 6)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == ".checkpoint-6.incomplete":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(CheckpointError, match=r"The last good checkpoint is .*checkpoint-6"):
            save(accelerator, tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-6"] and find_fault(tmp_path / "checkpoint-6") is None


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
