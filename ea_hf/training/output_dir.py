# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Whose a directory of output is: one run at a time, and never another run's by mistake."""

import argparse
import errno
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from weakref import WeakValueDictionary

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers.utils import CONFIG_NAME

from .checkpoints import CHECKPOINT, checkpoint_steps, delete_leftovers, recover, write_json


ARGUMENTS_FILE = "training_args.json"
RESULTS_FILE = "all_results.json"
LOCK_FILE = ".lock"
_locks: WeakValueDictionary[str, FileLock] = WeakValueDictionary()


def output_dir_fault(args: argparse.Namespace) -> str | None:
    """Why a run cannot have `--output_dir`, or `None` if it can; nothing is changed there."""
    output_dir: Path = args.output_dir
    try:
        str(output_dir).encode()
    except UnicodeEncodeError:
        return f"--output_dir is {str(output_dir)!r}, which is no text in UTF-8. Choose another one."
    in_the_way = _file_in_the_way(output_dir)
    if in_the_way is not None:
        return f"--output_dir is {output_dir}, but {in_the_way} is a file. Choose another one."
    for path in output_dir.glob("checkpoint-*"):
        if CHECKPOINT.fullmatch(path.name) and not path.is_dir():
            return f"{path} is no directory, but has the name of a checkpoint. Move it away, or choose another --output_dir."
    if not _holds_run(output_dir):
        foreign_card = output_dir / "README.md"
        if foreign_card.exists() and not (args.overwrite_output_dir or getattr(args, "eval_only", False)):
            return (
                f"{output_dir} holds no run, but a README.md, which the model card would replace. Choose another "
                "--output_dir, or let it be replaced with --overwrite_output_dir."
            )
        return None
    if args.overwrite_output_dir and args.resume_from_checkpoint:
        return "--overwrite_output_dir and --resume_from_checkpoint exclude each other; choose one."
    if args.overwrite_output_dir or args.resume_from_checkpoint:
        return None
    return (
        f"{output_dir} already holds a run or a model. Go on with it (--resume_from_checkpoint latest), delete it "
        "(--overwrite_output_dir), or choose another --output_dir."
    )


def check_tokenizer_dir(output_dir: Path) -> None:
    """Raises ValueError if a tokenizer cannot be written there, or would take the place of a model's."""
    in_the_way = _file_in_the_way(output_dir)
    if in_the_way is not None:
        raise ValueError(f"--output_dir is {output_dir}, but {in_the_way} is a file. Choose another one.")
    if _holds_run(output_dir):
        raise ValueError(
            f"{output_dir} already holds a run or a model, whose tokenizer would be replaced. Choose another --output_dir."
        )


def _file_in_the_way(output_dir: Path) -> Path | None:
    return next((path for path in (output_dir, *output_dir.parents) if path.exists() and not path.is_dir()), None)


def lock_output_dir(accelerator: Accelerator, output_dir: Path) -> ExitStack | None:
    """Makes a directory, and keeps other processes out of it.

    Returns:
        On the main process, what holds the directory's lock as long as it lives and is not closed.

    Raises:
        ValueError: another process is running in it, it cannot be made, or its file system has no locks.
    """
    fault, lock = None, None
    if accelerator.is_main_process:
        try:
            lock = _lock(output_dir)
        except Timeout:
            fault = f"Another run is using {output_dir}. Wait for it, or choose another --output_dir."
        except OSError as error:
            fault = f"{output_dir} cannot be made or locked: {error}. Choose another --output_dir."
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                fault = (
                    f"The file system of {output_dir} has no locks ({error}), so that nothing would keep two runs apart. "
                    "Choose another --output_dir, such as one on a local disk."
                )
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise ValueError(fault)
    return lock


def _lock(output_dir: Path) -> ExitStack:
    output_dir.mkdir(parents=True, exist_ok=True)
    path = str(output_dir.resolve() / LOCK_FILE)
    if path in _locks:  # left by a run in this process that ended with an error; only other processes are kept out
        _locks[path].release(force=True)
    # A file that merely exists would outlive a run that was killed.
    lock = _locks[path] = FileLock(path, blocking=False, fallback_to_soft=False, thread_local=False)
    lock.acquire()
    stack = ExitStack()
    stack.callback(lock.release)
    return stack


def prepare_output_dir(accelerator: Accelerator, args: argparse.Namespace) -> ExitStack | None:
    """Makes the output directory this run's own, and writes the arguments into it.

    Returns:
        As `lock_output_dir`.

    Raises:
        ValueError: the directory holds another run, or another process is running in it.
    """
    lock = lock_output_dir(accelerator, args.output_dir)
    fault = None
    if accelerator.is_main_process:
        fault = output_dir_fault(args)  # once more: another run may have been here meanwhile
        if fault is None and args.overwrite_output_dir and _holds_run(args.output_dir):
            _delete_run(args.output_dir)
    fault = broadcast_object_list([fault])[0]
    if fault is not None:
        raise ValueError(fault)
    if accelerator.is_main_process:
        recover(args.output_dir)
        arguments = {name: value for name, value in vars(args).items() if name != "hub_token"}
        write_json(args.output_dir / ARGUMENTS_FILE, json.loads(json.dumps(arguments, default=str)))
    if args.with_tracking:
        values = {k: v for k, v in vars(args).items() if isinstance(v, (bool, int, float, str)) and k != "hub_token"}
        accelerator.init_trackers("logs", values)
    return lock


def _holds_run(output_dir: Path) -> bool:
    # A configuration is the sign of a model, of whatever program.
    named = any((output_dir / name).exists() for name in (ARGUMENTS_FILE, CONFIG_NAME))
    return named or bool(checkpoint_steps(output_dir))


def _delete_run(output_dir: Path) -> None:
    # The configuration first, so that what a kill leaves is not taken for a model; then all that would be taken for this
    # run's, should it end without a model.
    (output_dir / CONFIG_NAME).unlink(missing_ok=True)
    delete_leftovers(output_dir)
    for weights in output_dir.glob("model*.safetensors*"):
        weights.unlink()
    for step in checkpoint_steps(output_dir):
        shutil.rmtree(output_dir / f"checkpoint-{step}")
    shutil.rmtree(output_dir / "logs", ignore_errors=True)
    for name in (ARGUMENTS_FILE, RESULTS_FILE):
        (output_dir / name).unlink(missing_ok=True)
