# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run shows: log lines, the bars beside them, and the pace of the training."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import datasets
import transformers
from tqdm.contrib.logging import logging_redirect_tqdm

from .command_line import DEBUG


# The loggers that speak of a run, and all below them.
OURS = ("ea_hf", "__main__")
# Those whose lines appear during a run: the root, to which ours go, and libraries that have handlers of their own.
LOGGERS = (None, "transformers", "datasets", "huggingface_hub", "accelerate")


def set_up_logging(is_main: bool, is_local_main: bool) -> None:
    """Log lines of the main process; bars, those of the libraries too, if they go to a terminal."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.ERROR)
    if DEBUG in sys.argv[1:] and is_main:
        logging.getLogger("ea_hf.models.load_report").setLevel(logging.DEBUG)
    if not is_local_main:
        datasets.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()
    if not (is_local_main and sys.stderr.isatty()):
        transformers.utils.logging.disable_progress_bar()  # huggingface_hub's too
        datasets.disable_progress_bars()


def script_logger(name: str) -> logging.Logger:
    """The logger of a module beside a script, by its `__name__`. Its lines are shown as `ea_hf`'s own are."""
    return logging.getLogger(name if name.split(".")[0] in OURS else f"ea_hf.{name}")


def lines_beside_bars() -> AbstractContextManager:
    """Within it a log line is written above the bars that are open."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    streams = (sys.stdout, sys.stderr)
    loggers = [
        logger
        for logger in map(logging.getLogger, LOGGERS)
        # Without this, a logger that has no handler of the kind would get one.
        if any(isinstance(h, logging.StreamHandler) and h.stream in streams for h in logger.handlers)
    ]
    return logging_redirect_tqdm(loggers)


class Pace:
    """How fast the training goes, and how long it will still take.

    Args:
        step: where this process begins.
        last_step: where the run ends.
        examples_per_step: of all processes together.
    """

    def __init__(self, step: int, last_step: int, examples_per_step: int):
        self.first_step = self.reported_step = step
        self.last_step, self.examples_per_step = last_step, examples_per_step
        self.started = self.reported = time.perf_counter()
        self.paused = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Evaluations and checkpoints: they count for the time that is left, and not for the speed of the steps."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - started

    def describe(self, step: int) -> str:
        """The speed since the last report, and the time that is left."""
        now = time.perf_counter()
        seconds = max(now - self.reported - self.paused, 1e-9)
        speed = (step - self.reported_step) * self.examples_per_step / seconds
        left = (now - self.started) / max(step - self.first_step, 1) * (self.last_step - step)
        self.reported, self.reported_step, self.paused = now, step, 0.0
        return f"{speed:.4g} examples/s, {timedelta(seconds=round(left))} left"
