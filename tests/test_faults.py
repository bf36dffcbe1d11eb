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
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest
import run_glue
import torch
import torch.distributed as dist
from accelerate import Accelerator
from test_checkpoints import names, save
from tiny_bert import (
    Moment,
    arguments,
    reset_accelerator,
    run_of_15_steps,
    run_script,
    start_run,
    start_script,
)

from ea_hf.training import liveness
from ea_hf.training.checkpoints import CheckpointError, checkpoint_steps, find_checkpoint, find_fault


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def options(tmp_path) -> dict[str, Any]:
    """A run of 15 steps, with dropout; its evaluation has four batches."""
    sizes = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 4}
    return run_of_15_steps(tmp_path, **sizes, checkpointing_steps=6, save_total_limit=2, logging_steps=1)


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
    (Moment("ea_hf.training.loop", "take_step", 4), terminate, 4),
    (Moment("ea_hf.training.loop", "take_step", 7, after=True), interrupt, 8),
    (Moment("glue_evaluation:GlueTask", "predict_logits", 2), terminate, 4),  # in the middle of an evaluation
    (Moment("ea_hf.training.loop", "save_training_state", 2), interrupt, 7),
    (Moment("ea_hf.training.loop", "take_step", 15), terminate, 15),  # the last one
]


@pytest.mark.parametrize(
    ("moment", "action", "step"), MOMENTS, ids=["step", "after_a_step", "evaluation", "saving", "last_step"]
)
@pytest.mark.slow_but("after_a_step")
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
    process = start_run(words, tmp_path / "log", Moment("ea_hf.training.loop", "take_step", 4), terminate_twice)
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
@pytest.mark.slow_but("300000")
def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(room, options, small_disk, tmp_path):
    run_glue.main(arguments(**options, output_dir=tmp_path / "whole"))
    output_dir, log = small_disk / "output", tmp_path / "log"
    words = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest")
    process = start_run(words, log, Moment("ea_hf.training.loop", "take_step", 10))
    process.join()
    filler = fill(small_disk, room)
    process = start_run(words, log)
    process.join()
    assert process.exitcode == 1
    text = log.read_text()
    assert "checkpoint-12 could not be written" in text, text
    assert f"The last good checkpoint is {output_dir}/checkpoint-6" in text
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
    context.set_forkserver_preload(["ea_hf.training.loop", "ea_hf.training.publishing", "evaluate", "sklearn.metrics"])
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


def hold_store(connection: Connection) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    connection.send(store.port)
    time.sleep(60)


def test_a_store_that_does_not_answer_ends_the_processes(tmp_path):
    """A machine that lost its power closes no connection."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    host = context.Process(target=hold_store, args=(there,), daemon=True)
    host.start()
    port = here.recv()
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    logs = [tmp_path / str(rank) for rank in range(3)]
    processes = [context.Process(target=beat, args=(rank, port, None, logs[rank])) for rank in range(3)]
    for process in processes:
        process.start()
    while min(int(store.get(f"ea_hf/liveness/0/beat/{rank}")) for rank in range(3)) == 0:
        time.sleep(0.05)
    os.kill(host.pid, signal.SIGSTOP)
    try:
        for process in processes:
            process.join(20)
    finally:
        host.kill()
    for process, log in zip(processes, logs, strict=True):
        assert process.exitcode == 1
        assert (
            "The store of the processes at 127.0.0.1 is gone, and rank 0 with it: it does not answer"
            in log.read_text()
        )


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


@pytest.mark.slow
def test_two_processes_and_one_take_turns(options, tmp_path):
    """A signal to one rank stops both. With dropout, and with the losses of the run that nobody disturbed."""
    options |= {"num_train_epochs": 12, "eval_steps": "no", "checkpointing_steps": 1000}
    shared = {"per_device_train_batch_size": 4, "resume_from_checkpoint": "latest", "output_dir": tmp_path / "moved"}
    one = {**options, **shared, "gradient_accumulation_steps": 2}
    two = {**options, **shared}
    run_glue.main(arguments(**{**one, "output_dir": tmp_path / "whole"}))
    run = Torchrun(arguments(**two))
    assert run.wait_for("step 3/"), run.output
    run.workers()[1].terminate()
    assert run.wait() != 0
    assert "Stopped by SIGTERM" in run.output and "exitcode  : 143" in run.output
    stopped = checkpoint_steps(tmp_path / "moved")
    process = start_run(arguments(**one), tmp_path / "log", Moment("ea_hf.training.loop", "take_step", 6), interrupt)
    process.join()
    assert process.exitcode == 130, (tmp_path / "log").read_text()
    assert checkpoint_steps(tmp_path / "moved") == [*stopped, stopped[0] + 6]
    status, printed = run_script(arguments(**two), processes=2)
    assert status == 0, printed
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other_and_is_named(options, tmp_path):
    run = Torchrun(
        arguments(**options | {"num_train_epochs": 1000, "eval_steps": "no"}, output_dir=tmp_path / "output")
    )
    assert run.wait_for("step 8/"), run.output
    victim = run.workers()[0]
    victim.kill()
    started = time.monotonic()
    assert run.wait(60) != 0
    assert time.monotonic() - started < 60
    assert re.search(rf"Root Cause.*rank +: 0 .*exitcode +: -9 \(pid: {victim.pid}\)", run.output, re.DOTALL)
    assert checkpoint_steps(tmp_path / "output")[0] == 6


# Kills at random moments


class Pair:
    """A run in two processes, as a launcher of another kind starts them: nobody ends the one if the other dies."""

    def __init__(self, words: list[str], directory: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        directory.mkdir()
        self.logs = [directory / str(rank) for rank in range(2)]
        self.ranks = []
        for rank, log in enumerate(self.logs):
            environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            self.ranks.append(start_run(words, log, environment=environment, patience=6.0))

    @property
    def output(self) -> str:
        return "".join(log.read_text() for log in self.logs if log.exists())

    def is_running(self) -> bool:
        return all(process.is_alive() for process in self.ranks)

    def wait_for(self, sign: Callable[[], Any]) -> bool:
        """Whether the sign came before one of the processes was gone."""
        while not sign():
            if not self.is_running():
                return False
            time.sleep(0.001)
        return True

    def wait(self) -> list[int | None]:
        """The exit codes; `None` for a process that does not end."""
        for process in self.ranks:
            process.join(300)
        return [process.exitcode for process in self.ranks]


def send(number: int, ranks: str) -> Callable[[Pair, random.Random], None]:
    def act(run: Pair, chance: random.Random) -> None:
        victims = run.ranks if ranks == "all" else [chance.choice(run.ranks)]
        for process in victims:
            os.kill(process.pid, number)

    return act


KILLS = {
    "kill -9 of all": send(signal.SIGKILL, "all"),
    "kill -9 of one rank": send(signal.SIGKILL, "one"),
    "SIGTERM to all": send(signal.SIGTERM, "all"),
    "SIGTERM to one rank": send(signal.SIGTERM, "one"),
    "kill -9 while a checkpoint is written": send(signal.SIGKILL, "all"),
    "kill -9 of one rank while a checkpoint is written": send(signal.SIGKILL, "one"),
    "disk full": None,
}


def is_writing(output_dir: Path) -> bool:
    return bool(list(output_dir.glob(".checkpoint-*")))


@pytest.mark.parametrize("count", [pytest.param(7, id="seven"), pytest.param(20, id="twenty")])
@pytest.mark.slow
def test_every_kill_at_a_random_moment_is_survived(count, options, small_disk, tmp_path):
    """Two processes. Each goes on from the last checkpoint; the end is that of a run which nobody disturbed."""
    chance = random.Random(count)
    options |= {"num_train_epochs": 8 * count, "per_device_train_batch_size": 4, "eval_steps": 50}
    options |= {"checkpointing_steps": 10, "logging_steps": 1}
    last_step = 5 * options["num_train_epochs"]
    whole = Pair(arguments(**options, output_dir=tmp_path / "whole"), tmp_path / "undisturbed")
    assert whole.wait() == [0, 0], whole.output
    output_dir = small_disk / "output"
    words = arguments(**options, output_dir=output_dir, resume_from_checkpoint="latest")
    kinds = [*KILLS] * (count // len(KILLS)) + list(KILLS)[: count % len(KILLS)]
    chance.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        before = (checkpoint_steps(output_dir) or [0])[-1]
        filler = fill(small_disk, chance.randrange(30_000, 250_000)) if kind == "disk full" else None
        run = Pair(words, tmp_path / f"logs_{number}")
        step = f"step {before + chance.randrange(1, 25)}/"
        run.wait_for(lambda run=run, step=step: step in run.output)
        resumed = re.search(r"Resuming from .*: step (\d+),", run.output)
        assert before == (int(resumed.group(1)) if resumed else 0) or filler is not None, run.output
        if filler is None:
            time.sleep(chance.uniform(0, 0.05))
            if "written" in kind:
                run.wait_for(lambda: is_writing(output_dir))
            assert run.is_running(), f"over before kill {number}: {run.output}"
            KILLS[kind](run, chance)
        codes = run.wait()
        assert 0 not in codes and None not in codes, (kind, codes, run.output)
        if filler is not None:
            assert "No space left" in run.output or "could not be written" in run.output, run.output
            filler.unlink()
        if kind.startswith("SIGTERM"):
            assert codes == [128 + signal.SIGTERM] * 2 and "Stopped by SIGTERM" in run.output, run.output
        if "one rank" in kind and "kill" in kind:
            assert re.search(r"rank \d \(|store of the processes", run.output), run.output
        after = (checkpoint_steps(output_dir) or [0])[-1]
        assert after == 0 or find_fault(output_dir / f"checkpoint-{after}") is None
        reached = max([0, *map(int, re.findall(r"step (\d+)/\d+: loss", run.output))])
        assert before <= after < last_step and reached - after <= 10, run.output
        print(f"{number}: {kind}: resumed at {before}, reached {reached}, last checkpoint {after}", flush=True)
    run = Pair(words, tmp_path / "logs_end")
    assert run.wait() == [0, 0], run.output
    assert_same_end(output_dir, tmp_path / "whole")
