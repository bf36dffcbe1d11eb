# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints that appear whole or not at all.

A checkpoint is written aside, synced to disk, listed in a manifest with sizes and SHA-256 sums, and renamed. Reading
checks the manifest first, so that a truncated, altered or foreign directory is never taken for a checkpoint. One that is
written again goes aside whole until the new one has its name; `recover` gives what a kill leaves aside its name back.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from .command_line import RunError


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# What lies aside: not yet renamed, to be replaced by what is not yet renamed, and on its way to be deleted.
INCOMPLETE, REPLACED, DELETED = ".incomplete", ".replaced", ".deleted"
MODEL_ASIDE, MODEL_COMPLETE, MODEL_FILES = f".model{INCOMPLETE}", ".model.complete", ".files.json"


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file aside and renames it, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.incomplete")
    aside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    _sync(aside)
    aside.replace(path)


def checkpoint_steps(output_dir: Path) -> list[int]:
    """The steps of the checkpoints in a directory, oldest first."""
    names = (CHECKPOINT.fullmatch(path.name) for path in output_dir.glob("checkpoint-*") if path.is_dir())
    return sorted(int(name.group(1)) for name in names if name)


def recover(output_dir: Path) -> None:
    """Sets right what a run that was killed has left: what is whole gets its name, and what is half is deleted.

    Can be killed itself at any moment, and called again.
    """
    for aside in (*output_dir.glob(f".checkpoint-*{INCOMPLETE}"), *output_dir.glob(f".checkpoint-*{REPLACED}")):
        final = output_dir / aside.stem.removeprefix(".")
        if find_fault(aside) is None and find_fault(final) is not None:
            logger.info(f"A run was killed while it wrote {final}; it lay aside, whole, as {aside.name}.")
            if final.exists():
                _move_away_and_delete(final)
            aside.rename(final)
            _sync(output_dir)
    if (output_dir / MODEL_COMPLETE).is_dir():
        _move_model(output_dir)
    delete_leftovers(output_dir)


def delete_leftovers(output_dir: Path) -> None:
    """Deletes what lies aside, whole or not. `recover` keeps what is whole."""
    for pattern in (f".*{INCOMPLETE}", f".checkpoint-*{REPLACED}", f".*{DELETED}", MODEL_COMPLETE):
        for path in output_dir.glob(pattern):
            _delete(path)


class CheckpointError(RunError):
    """A checkpoint or the final model could not be written; those that were there before are as they were."""


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    state: dict[str, Any],
    save_state: Callable[[Path], None],
    save_assets: Callable[[Path], None],
    limit: int | None = None,
) -> Path:
    """Writes `checkpoint-<global_step>` and deletes the oldest beyond the limit, but never the best one.

    Args:
        state: what `train` needs to go on; holds `global_step` and `best_checkpoint`.
        save_state: saves weights and optimizer state into a directory; called on all processes.
        save_assets: saves the configuration and the tokenizer or processor into a directory, so that
            `from_pretrained` can load a checkpoint's model.
        limit: how many checkpoints to keep.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: on every process, if one of them could not write. What is half written is deleted.
    """
    final = output_dir / f"checkpoint-{state['global_step']}"
    aside = output_dir / f".{final.name}{INCOMPLETE}"

    def start() -> None:
        recover(output_dir)
        aside.mkdir(parents=True)

    def finish() -> None:
        save_assets(aside)
        write_json(aside / TRAINER_STATE, state)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(aside)): _fingerprint(path) for path in files}
        for path in files:
            _sync(path)
        write_json(aside / MANIFEST, manifest)
        for directory in {aside, *(path.parent for path in files)}:
            _sync(directory)
        # One that is there is damaged, or of a run that was stopped before the evaluation of this step.
        replaced = output_dir / f".{final.name}{REPLACED}"
        if final.exists():
            final.rename(replaced)
        aside.rename(final)
        _sync(output_dir)
        if replaced.exists():
            _delete(replaced)
        _delete_oldest(output_dir, state["global_step"], limit, keep=state["best_checkpoint"])

    _or_undo(accelerator, output_dir, str(final), start if accelerator.is_main_process else None)
    _or_undo(accelerator, output_dir, str(final), lambda: save_state(aside))
    _or_undo(accelerator, output_dir, str(final), finish if accelerator.is_main_process else None)
    return final


def save_final_model(accelerator: Accelerator, output_dir: Path, save: Callable[[Path], None]) -> None:
    """Writes the files of a model aside, and moves them into the directory when all are on disk.

    A model that is there already stays until then. A kill while they are moved leaves whole files, some of them new;
    `recover` moves the others.

    Args:
        save: saves weights, configuration and tokenizer or processor into a directory; called on the main process.

    Raises:
        CheckpointError: on every process, if they could not be written. What is half written is deleted.
    """
    aside = output_dir / MODEL_ASIDE

    def write() -> None:
        recover(output_dir)
        aside.mkdir(parents=True)
        save(aside)
        write_json(aside / MODEL_FILES, [str(path.relative_to(aside)) for path in sorted(aside.rglob("*"))])
        for path in (aside, *aside.rglob("*")):
            _sync(path)
        aside.rename(output_dir / MODEL_COMPLETE)
        _sync(output_dir)
        _move_model(output_dir)

    _or_undo(accelerator, output_dir, f"The model in {output_dir}", write if accelerator.is_main_process else None)


def _move_model(output_dir: Path) -> None:
    """Moves a whole model, or what a kill has left of it, to its place."""
    complete = output_dir / MODEL_COMPLETE
    for path in sorted(complete.rglob("*")):
        file = path.relative_to(complete)
        if path.is_file() and file.name != MODEL_FILES:
            (output_dir / file).parent.mkdir(parents=True, exist_ok=True)
            path.replace(output_dir / file)
    _sync(output_dir)
    if (complete / MODEL_FILES).exists():
        files = json.loads((complete / MODEL_FILES).read_text())
        for weights in output_dir.glob("model*.safetensors*"):  # an earlier model may have been in other parts
            if weights.name not in files:
                weights.unlink()
    shutil.rmtree(complete)


def _or_undo(accelerator: Accelerator, output_dir: Path, what: str, action: Callable[[], None] | None) -> None:
    """Does a part of the writing, if it is this process's, and lets all processes know if it failed on one."""
    fault = cause = None
    if action is not None:
        try:
            action()
        except Exception as error:  # each library wraps a full disk in an error of its own
            cause, fault = error, f"{type(error).__name__}: {error}"
    fault = next((fault for fault in gather_object([fault]) if fault is not None), None)
    if fault is None:
        return
    message = None
    if accelerator.is_main_process:
        for path in output_dir.glob(f".*{INCOMPLETE}"):  # even a whole one: it may not have reached the disk
            _delete(path)
        with suppress(OSError):
            recover(output_dir)
        good = [step for step in checkpoint_steps(output_dir) if find_fault(output_dir / f"checkpoint-{step}") is None]
        remedy = (
            f"The last good checkpoint is {output_dir / f'checkpoint-{good[-1]}'}; go on from it with --resume_from_checkpoint "
            "latest when there is room."
            if good
            else "There is no good checkpoint before it."
        )
        free = shutil.disk_usage(output_dir).free
        message = (
            f"{what} could not be written: {fault}. {free / 1e6:.1f} MB are free there now, after deleting what was half "
            f"written. {remedy}"
        )
    raise CheckpointError(broadcast_object_list([message])[0]) from cause


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or `None` if nothing is."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written by this project or not completely"
    except ValueError as error:
        return f"its {MANIFEST} cannot be read ({error})"
    if not isinstance(manifest, dict) or TRAINER_STATE not in manifest:
        return f"its {MANIFEST} does not list {TRAINER_STATE}, so it was not written by this project"
    for name, expected in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"its file {name} is missing"
        if isinstance(expected, dict) and expected.get("bytes") != path.stat().st_size:
            return f"its file {name} has {path.stat().st_size} bytes instead of {expected.get('bytes')}"
        if _fingerprint(path) != expected:
            return f"its file {name} is not the one that {MANIFEST} lists: the SHA-256 sum differs"
    return None


def find_checkpoint(accelerator: Accelerator, output_dir: Path, requested: str) -> Path | None:
    """The checkpoint to resume from, the same on every process.

    Args:
        requested: "latest", or a checkpoint's directory. A damaged one is named in a warning, and the next older good
            one in the same directory is taken.

    Returns:
        The directory, or `None` if "latest" was requested and there is no checkpoint yet.

    Raises:
        FileNotFoundError: the requested directory does not exist.
        ValueError: there are checkpoints, but none is good.
    """
    found: list[Path | Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [_find_checkpoint(output_dir, requested)]
        except (FileNotFoundError, ValueError) as error:
            found = [error]
    found = broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _find_checkpoint(output_dir: Path, requested: str) -> Path | None:
    if requested == "latest":
        candidates = [output_dir / f"checkpoint-{step}" for step in reversed(checkpoint_steps(output_dir))]
        if not candidates:
            return None
    else:
        first = Path(requested)
        if not first.is_dir():
            raise FileNotFoundError(f"--resume_from_checkpoint {requested} is not a directory.")
        name = CHECKPOINT.fullmatch(first.resolve().name)
        older = [step for step in checkpoint_steps(first.parent) if name and step < int(name.group(1))]
        candidates = [first, *(first.parent / f"checkpoint-{step}" for step in reversed(older))]
    for candidate in candidates:
        fault = find_fault(candidate)
        if fault is None:
            return candidate
        logger.warning(f"Cannot resume from {candidate}: {fault}. Trying the previous checkpoint.")
    raise ValueError(
        f"None of {', '.join(str(candidate) for candidate in candidates)} is a good checkpoint. Start again with "
        "--overwrite_output_dir, or name a checkpoint with --resume_from_checkpoint."
    )


def _delete_oldest(output_dir: Path, newest: int, limit: int | None, keep: str | None) -> None:
    # Checkpoints beyond the newest are from before the run went back: damaged, or not asked for.
    names = [f"checkpoint-{step}" for step in checkpoint_steps(output_dir) if step <= newest]
    for name in names[:-limit] if limit else []:
        if name != keep:
            _move_away_and_delete(output_dir / name)


def _move_away_and_delete(path: Path) -> None:
    # Renamed first, so that a half-deleted one is not taken for a checkpoint.
    aside = path.with_name(f".{path.name}{DELETED}")
    if aside.exists():
        _delete(aside)
    _delete(path.rename(aside))


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
