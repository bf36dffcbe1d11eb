# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Signals, a full disk and processes that die: what is left, what is said, and that a resumed run ends as if undisturbed."""

import errno
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from test_checkpoints import names, save
from tiny_bert import (
    Moment,
    arguments,
    isolated_runs,
    reset_accelerator,
    run_script,
    sentences,
    start_run,
    start_script,
    write_checkpoint,
    write_rows,
)

from ea_hf import liveness
from ea_hf.checkpoints import CheckpointError, checkpoint_steps, find_checkpoint, find_fault


# isort: split
import run_glue  # tiny_bert has told where it is


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory):
    with isolated_runs(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture
def options(tmp_path) -> dict[str, Any]:
    """A run of 15 steps, with dropout; its evaluation has four batches."""
    return {
        "model_name_or_path": write_checkpoint(tmp_path / "model"),
        "train_file": write_rows(tmp_path / "train.csv", sentences()),
        "validation_file": write_rows(tmp_path / "validation.csv", sentences(count=13)),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "eval_steps": 2,
        "checkpointing_steps": 6,
        "save_total_limit": 2,
        "logging_steps": 1,
    }


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A directory on a disk of 8 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path, free_bytes: int) -> Path:
    """Leaves so many bytes free on a directory's disk; returns the file that takes the others."""
    path = directory / "filler"
    path.write_bytes(b"\0" * max(0, os.statvfs(directory).f_bavail * os.statvfs(directory).f_bsize - free_bytes))
    return path


def losses(output_dir: Path) -> list[float]:
    step = checkpoint_steps(output_dir)[-1]
    state = json.loads((output_dir / f"checkpoint-{step}/trainer_state.json").read_text())
    return [report["loss"] for report in state["log_history"]]


def assert_same_end(actual: Path, expected: Path) -> None:
    last = f"checkpoint-{checkpoint_steps(expected)[-1]}"
    for name in ("model.safetensors", f"{last}/model.safetensors", f"{last}/optimizer.bin"):
        assert (actual / name).read_bytes() == (expected / name).read_bytes(), name
    states = [json.loads((path / last / "trainer_state.json").read_text()) for path in (actual, expected)]
    assert states[0] == states[1]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate_twice() -> None:
    terminate()
    time.sleep(1.5)
    terminate()


MOMENTS = [
    (Moment("ea_hf.training", "_optimizer_step", 4), terminate, 4),
    (Moment("ea_hf.training", "_optimizer_step", 7, after=True), interrupt, 8),
    (Moment("run_glue", "predict_logits", 2), terminate, 4),  # in the middle of an evaluation
    (Moment("ea_hf.training", "save_training_state", 2), interrupt, 7),
    (Moment("ea_hf.training", "_optimizer_step", 15), terminate, 15),  # the last one
]


@pytest.mark.parametrize(
    ("moment", "action", "step"), MOMENTS, ids=["step", "after_a_step", "evaluation", "saving", "last_step"]
)
def test_a_signal_leaves_a_checkpoint_to_go_on_from(moment, action, step, options, tmp_path):
    run_glue.main(arguments(**options, output_dir=tmp_path / "whole"))
    output_dir, log = tmp_path / "stopped", tmp_path / "log"
    words = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest")
    process = start_run(words, log, moment, action)
    process.join()
    name = {terminate: "SIGTERM", interrupt: "SIGINT"}[action]
    assert process.exitcode == 128 + getattr(signal, name), log.read_text()
    assert checkpoint_steps(output_dir)[-1] == step
    assert find_fault(output_dir / f"checkpoint-{step}") is None
    assert f"Stopped by {name} after step {step} of 15. {output_dir}/checkpoint-{step} is written" in log.read_text()
    assert "--resume_from_checkpoint latest" in log.read_text()
    reset_accelerator()
    run_glue.main(words)
    assert_same_end(output_dir, tmp_path / "whole")


def test_a_second_signal_ends_at_once(options, tmp_path):
    words = arguments(**options, output_dir=tmp_path / "output")
    process = start_run(words, tmp_path / "log", Moment("ea_hf.training", "_optimizer_step", 4), terminate_twice)
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert checkpoint_steps(tmp_path / "output") == [2]  # the best one so far


def test_signals_are_as_before_when_a_run_is_over(options, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run_glue.main(arguments(**options, output_dir=tmp_path / "output", max_train_steps=1))
    assert signal.getsignal(signal.SIGINT) is before


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["save", "unwrap_model"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(name, tmp_path, monkeypatch):

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    save(accelerator, tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, name, no_space)
        with pytest.raises(CheckpointError, match=r"checkpoint-6 could not be written: OSError: .*No space left.*3"):
            save(accelerator, tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-3"]
    assert find_checkpoint(accelerator, tmp_path, "latest") == tmp_path / "checkpoint-3"
    save(accelerator, tmp_path, 6)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]


@pytest.mark.parametrize("room", [20_000, 150_000, 300_000])
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(room, options, small_disk, tmp_path):
    run_glue.main(arguments(**options, output_dir=tmp_path / "whole"))
    output_dir, log = small_disk / "output", tmp_path / "log"
    words = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest")
    process = start_run(words, log, Moment("ea_hf.training", "_optimizer_step", 10))
    process.join()
    filler = fill(small_disk, room)
    process = start_run(words, log)
    process.join()
    assert process.exitcode == 1
    text = log.read_text()
    assert "checkpoint-12 could not be written" in text, text
    assert f"The last good one is {output_dir}/checkpoint-6" in text
    assert checkpoint_steps(output_dir) == [4, 6] or checkpoint_steps(output_dir)[-1] == 6
    assert not list(output_dir.glob(".checkpoint-*"))
    filler.unlink()
    reset_accelerator()
    run_glue.main(words)
    assert_same_end(output_dir, tmp_path / "whole")


def beat(rank: int, port: int, die_at: float | None, log: Path) -> None:
    """A process that is watched, and that does nothing else."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    liveness.INTERVAL, liveness.PATIENCE = 0.1, 1.5
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    store = dist.TCPStore("127.0.0.1", port, is_master=False)

    class Group:
        process_index, num_processes = rank, 3

        def wait_for_everyone(self) -> None:
            store.add("ready", 1)
            while store.add("ready", 0) < 3:
                time.sleep(0.01)

    with liveness.processes_watched(Group()):
        time.sleep(die_at or 30)
        if rank == 2:
            raise ValueError("row 7 is empty")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("victim", "message"), [(0, "No sign for"), (1, "No sign for"), (2, "row 7 is empty")])
def test_a_process_that_is_gone_ends_the_others_which_name_it(victim, message, tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ea_hf.training", "ea_hf.publishing", "evaluate", "sklearn.metrics"])
    logs = [tmp_path / str(rank) for rank in range(3)]
    processes = [
        context.Process(target=beat, args=(rank, store.port, 0.5 if rank == victim else None, logs[rank]))
        for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    for rank in {0, 1, 2} - {victim}:
        assert processes[rank].exitcode == 1
        text = logs[rank].read_text()
        assert f"rank {victim} (" in text and f"pid {processes[victim].pid}" in text and message in text, text
        assert "--resume_from_checkpoint latest" in text


class Torchrun:
    """A run in two processes, as torchrun starts it, that does what a test wants at a line of its output."""

    def __init__(self, words: list[str]):
        self.process = start_script(words, processes=2, HF_DATASETS_CACHE=str(datasets.config.HF_DATASETS_CACHE))
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> bool:
        """Whether a line came before the run was over."""
        while not re.search(pattern, self.output):
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def workers(self) -> list[psutil.Process]:
        """By rank."""
        children = psutil.Process(self.process.pid).children()
        return sorted((c for c in children if "RANK" in c.environ()), key=lambda child: int(child.environ()["RANK"]))

    def wait(self, timeout: float = 300) -> int:
        status = self.process.wait(timeout)
        self.reader.join(10)
        return status


def test_two_processes_and_one_take_turns(options, tmp_path):
    """A signal to one rank stops both. With dropout, and with the losses of the run that nobody disturbed."""
    options |= {"num_train_epochs": 12, "eval_steps": "no", "checkpointing_steps": 1000}
    shared = {"per_device_train_batch_size": 4, "resume_from_checkpoint": "latest", "output_dir": tmp_path / "moved"}
    one = {**options, **shared, "gradient_accumulation_steps": 2}
    two = {**options, **shared}
    run_glue.main(arguments(**{**one, "output_dir": tmp_path / "whole"}))
    run = Torchrun(arguments(**two))
    assert run.wait_for("step 3:"), run.output
    run.workers()[1].terminate()
    assert run.wait() != 0
    assert "Stopped by SIGTERM" in run.output and "exitcode  : 143" in run.output
    stopped = checkpoint_steps(tmp_path / "moved")
    process = start_run(arguments(**one), tmp_path / "log", Moment("ea_hf.training", "_optimizer_step", 6), interrupt)
    process.join()
    assert process.exitcode == 130, (tmp_path / "log").read_text()
    assert checkpoint_steps(tmp_path / "moved") == [*stopped, stopped[0] + 6]
    status, printed = run_script(arguments(**two), processes=2)
    assert status == 0, printed
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


def test_a_rank_that_is_killed_ends_the_other_and_is_named(options, tmp_path):
    run = Torchrun(
        arguments(**options | {"num_train_epochs": 1000, "eval_steps": "no"}, output_dir=tmp_path / "output")
    )
    assert run.wait_for("step 8:"), run.output
    victim = run.workers()[0]
    victim.kill()
    started = time.monotonic()
    assert run.wait(60) != 0
    assert time.monotonic() - started < 60
    assert re.search(rf"Root Cause.*rank +: 0 .*exitcode +: -9 \(pid: {victim.pid}\)", run.output, re.DOTALL)
    assert checkpoint_steps(tmp_path / "output")[0] == 6


# Kills at random moments


def kill_all(run: Torchrun, chance: random.Random) -> None:
    for process in (*run.workers(), psutil.Process(run.process.pid)):
        process.kill()


def terminate_all(run: Torchrun, chance: random.Random) -> None:
    run.process.terminate()  # torchrun passes it on


def terminate_one(run: Torchrun, chance: random.Random) -> None:
    chance.choice(run.workers()).terminate()


def kill_one(run: Torchrun, chance: random.Random) -> None:
    chance.choice(run.workers()).kill()


KILLS: dict[str, Callable[[Torchrun, random.Random], None] | None] = {
    "kill -9 of all": kill_all,
    "SIGTERM": terminate_all,
    "SIGTERM of one rank": terminate_one,
    "kill -9 of one rank": kill_one,
    "kill -9 while a checkpoint is written": kill_all,
    "disk full": None,
}


@pytest.mark.slow
def test_twenty_kills_at_random_moments(options, small_disk, tmp_path):
    """Two processes; each kind of fault at least three times."""
    chance = random.Random(0)
    options |= {"num_train_epochs": 400, "per_device_train_batch_size": 4, "eval_steps": 100, "logging_steps": 10}
    options |= {"checkpointing_steps": 10}
    whole = Torchrun(arguments(**options, output_dir=tmp_path / "whole"))
    assert whole.wait() == 0, whole.output
    output_dir = small_disk / "output"
    words = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest")
    kinds = [*KILLS] * 3 + ["kill -9 of one rank", "SIGTERM"]
    chance.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        before = (checkpoint_steps(output_dir) or [0])[-1]
        filler = fill(small_disk, chance.randrange(50_000, 300_000)) if kind == "disk full" and before else None
        run = Torchrun(words)
        assert run.wait_for("Training on"), run.output
        resumed = re.search(r"Resuming from .*: step (\d+),", run.output)
        assert int(resumed.group(1)) if resumed else before == 0, run.output
        if filler is None:
            time.sleep(chance.uniform(0, 1.5))
            if "checkpoint" in kind:
                while not list(output_dir.glob(".checkpoint-*")) and run.process.poll() is None:
                    time.sleep(0.0005)
            assert run.process.poll() is None, f"over before kill {number}: {run.output}"
            (KILLS[kind] or kill_all)(run, chance)
        assert run.wait(90) != 0
        steps = checkpoint_steps(output_dir)
        reached = max([0, *map(int, re.findall(r"step (\d+):", run.output))])
        if kind.startswith("SIGTERM") and "Stopped by" in run.output:
            assert f"Stopped by SIGTERM after step {steps[-1]} " in run.output
        assert not steps or find_fault(output_dir / f"checkpoint-{steps[-1]}") is None
        last = (steps or [0])[-1]
        assert last >= before and last > reached - 20, run.output  # reports come every 10 steps, checkpoints too
        print(f"{number}: {kind}: resumed at {before}, reached {reached} or more, last checkpoint {last}", flush=True)
        if filler is not None:
            assert "could not be written" in run.output, run.output
            filler.unlink()
    run = Torchrun(words)
    assert run.wait() == 0, run.output
    assert_same_end(output_dir, tmp_path / "whole")
