# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Processes of one gloo group, which run what a test sends them."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist


class Processes:
    """A group of processes; a context manager.

    The group lives as long as its processes: one destroyed before a `DistributedDataParallel` that a test has left hangs,
    which `ea_hf.training.loop.end_training` explains.

    Args:
        count: how many.
    """

    def __init__(self, count: int):
        self.count = count

    def __enter__(self) -> Self:
        forkserver = multiprocessing.get_context("forkserver")
        # What takes its time to import.
        forkserver.set_forkserver_preload(
            ["ea_hf.training.loop", "ea_hf.training.publishing", "evaluate", "sklearn.metrics"]
        )
        self.directory = tempfile.TemporaryDirectory()
        self.connections, self.processes = [], []
        for rank in range(self.count):
            connection, other_end = forkserver.Pipe()
            rendezvous = Path(self.directory.name) / "rendezvous"
            process = forkserver.Process(target=_serve, args=(other_end, rank, self.count, rendezvous), daemon=True)
            process.start()
            self.connections.append(connection)
            self.processes.append(process)
        return self

    def __exit__(self, *exception: Any) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.directory.cleanup()

    def run(self, function: Callable, *args: Any, timeout: float = 120) -> list[Any]:
        """Calls a function of a module in every process; returns what each returned, by rank.

        Raises:
            RuntimeError: a process raised, died, or did not end in so many seconds.
        """
        for connection in self.connections:
            connection.send((function, args))
        results, faults = [], []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(timeout):
                raise RuntimeError(f"Process {rank} of {self.count} did not end within {timeout} s.")
            result, fault = connection.recv()
            results.append(result)
            if fault is not None:
                faults.append(f"Process {rank} of {self.count}:\n{fault}")
        if faults:
            raise RuntimeError("\n".join(faults))
        return results


def _serve(connection: Connection, rank: int, count: int, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            connection.send((function(*args), None))
        except Exception:
            connection.send((None, traceback.format_exc()))
