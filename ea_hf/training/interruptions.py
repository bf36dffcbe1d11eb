# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT, which a cluster sends before it takes a machine away: all processes stop at the same place.

A signal is only noted. The loop asks at places where all processes pass, and where a checkpoint can be written; whichever
process got the signal, all of them learn of it there.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator


SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A cluster and torchrun may both pass on the same signal; they do so at once.
SECONDS_OF_ONE_SIGNAL = 1.0


class Interrupted(SystemExit):
    """The run was asked to stop. Ends the program with the status that a shell gives a signal: 128 plus its number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


_received: int = 0
_received_at: float = 0.0


@contextmanager
def signals_noted() -> Iterator[None]:
    """Notes SIGTERM and SIGINT while it is open, instead of ending at once; a second one ends the process at once."""
    global _received
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    _received = 0
    try:
        yield
    finally:
        _received = 0
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    now = time.monotonic()
    if _received and now - _received_at > SECONDS_OF_ONE_SIGNAL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif not _received:
        _received, _received_at = number, now
        name = signal.Signals(number).name
        # Not by logging, whose locks the interrupted code may hold.
        os.write(2, f"{name}: a checkpoint is written after this step. A second signal ends at once.\n".encode())


def received() -> list[int]:
    """For each of `SIGNALS`, whether this process got it. Processes exchange and add it up."""
    return [int(_received == number) for number in SIGNALS]


def raise_if_any(counts: list[float]) -> None:
    """Raises `Interrupted` if some process got a signal.

    Args:
        counts: for each of `SIGNALS`, how many processes got it.
    """
    for number, count in zip(SIGNALS, counts, strict=True):
        if count > 0:
            raise Interrupted(number)


def stop_together(accelerator: Accelerator) -> None:
    """Raises `Interrupted` on all processes if one of them got a signal. All processes call it."""
    counts = torch.tensor(received(), dtype=torch.float32, device=accelerator.device)
    raise_if_any(accelerator.reduce(counts, "sum").tolist())


def ignore_signals(worker: int) -> None:
    """For processes that load data: they end when the process that they serve wants it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
