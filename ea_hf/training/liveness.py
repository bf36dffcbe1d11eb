# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Notices when another process of a run is gone, and ends this one with a message that names it.

torchrun ends the processes of its own machine when one of them dies. Those of other machines would wait for it in the
next collective operation: until their connection breaks, or, with NCCL or a machine that lost its power, for the whole
timeout. So each process counts up a number in the store of the process group every few seconds, in a thread of its own.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator

from .interruptions import received


INTERVAL = 2.0
# Without a sign for so many seconds, a process counts as dead. Long enough for a machine that is busy or swaps.
PATIENCE = 30.0
LEFT = "left"


@contextmanager
def processes_watched(accelerator: Accelerator) -> Iterator[None]:
    """Watches the other processes while it is open; all processes open it together.

    A process whose block ends, in whatever way, is no longer waited for. One that ends by an error tells the others.
    """
    if accelerator.num_processes == 1 or "MASTER_PORT" not in os.environ:
        yield
        return
    watch = _Watch(accelerator.process_index, accelerator.num_processes)
    accelerator.wait_for_everyone()
    watch.start()
    try:
        yield
    except BaseException as error:
        if _lost_connection(error):
            # The thread soon knows who is missing, and ends this process with its name; unless torchrun, which knows
            # already, wants this process to end.
            deadline = time.monotonic() + PATIENCE + 5 * INTERVAL
            while watch.is_alive() and time.monotonic() < deadline and not any(received()):
                watch.join(0.2)
        watch.leave(error)
        raise
    watch.leave()


def _lost_connection(error: BaseException) -> bool:
    # Gloo raises nothing more special than a RuntimeError.
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class _Watch(threading.Thread):
    def __init__(self, rank: int, num_processes: int):
        super().__init__(name="liveness", daemon=True)
        self.rank, self.num_processes = rank, num_processes
        self.ended = threading.Event()
        # A connection of its own: that of the process group is taken while the main thread waits in it.
        self.store = torch.distributed.PrefixStore(
            f"ea_hf/liveness/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}",
            torch.distributed.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=timedelta(seconds=PATIENCE),
            ),
        )
        self.store.set(f"where/{rank}", f"{socket.gethostname()}, pid {os.getpid()}")
        self._beat(0)

    def run(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}
        beats = 0
        while not self.ended.wait(INTERVAL):
            beats += 1
            # Without an answer, the store's own calls wait for ever, whatever its timeout: a machine that lost its power
            # does not close the connection.
            silence = threading.Timer(PATIENCE, self._end, [self._store_is_gone("it does not answer")])
            silence.daemon = True
            silence.start()
            try:
                self._beat(beats)
                # The first process watches all, and all watch the first: so many look-ups as processes.
                ranks = [rank for rank in (range(self.num_processes) if self.rank == 0 else (0,)) if rank != self.rank]
                values = self.store.multi_get([f"beat/{rank}" for rank in ranks])
                verdict = self.store.get("verdict").decode() if self.store.check(["verdict"]) else None
            except torch.distributed.DistError as error:
                if self.ended.is_set() or seen.get(0, (None, 0))[0] == LEFT.encode():
                    return  # at the end of the run, the first process may go before the others
                self._end(self._store_is_gone(error))
            finally:
                silence.cancel()
            if verdict is not None:
                self._end(verdict)
            now = time.monotonic()
            dead = []
            for rank, value in zip(ranks, values, strict=True):
                if seen.get(rank, (None, 0))[0] != value:
                    seen[rank] = (value, now)
                elif value != LEFT.encode() and now - seen[rank][1] > PATIENCE:
                    dead.append(f"rank {rank} ({self.store.get(f'where/{rank}').decode()})")
            if dead:
                verdict = f"No sign for {PATIENCE:.0f} seconds of {', '.join(dead)}: dead, or stuck."
                self.store.set("verdict", verdict)
                self._end(verdict)

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the thread, and lets the others know."""
        self.ended.set()
        self.join(PATIENCE)
        if self.is_alive():
            return  # the store does not answer
        try:
            if error is not None and not isinstance(error, SystemExit) and not self.store.check(["verdict"]):
                where = self.store.get(f"where/{self.rank}").decode()
                self.store.set("verdict", f"rank {self.rank} ({where}) ended with {type(error).__name__}: {error}")
            self.store.set(f"beat/{self.rank}", LEFT)
        except torch.distributed.DistError:
            pass  # the store went with the process that held it; there is nobody left to tell

    def _beat(self, beats: int) -> None:
        self.store.set(f"beat/{self.rank}", str(beats))

    def _store_is_gone(self, reason: Any) -> str:
        return f"The store of the processes at {os.environ['MASTER_ADDR']} is gone, and rank 0 with it: {reason}."

    def _end(self, verdict: str) -> None:
        if self.ended.is_set():
            return
        sys.stderr.write(
            f"rank {self.rank} ends: {verdict} Start the run again with --resume_from_checkpoint latest; at most the steps "
            "since the last checkpoint are lost.\n"
        )
        sys.stderr.flush()
        os._exit(1)  # the main thread may wait for ever
