# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
import logging
import os

import pytest
import torch
from transformers.utils import logging as transformers_logging


# Tiny tensors gain nothing from threads, and the workers of pytest-xdist already use every core.
torch.set_num_threads(1)
# For a machine with a GPU: EA_HF_TEST_DEVICE=cuda; see docs/scaling.md.
if "EA_HF_TEST_DEVICE" in os.environ:
    torch.set_default_device(os.environ["EA_HF_TEST_DEVICE"])
elif not torch.cuda.is_available():  # before `ea_hf` is imported, and Triton with it
    os.environ.setdefault("TRITON_INTERPRET", "1")
# cuDNN's convolutions are in TF32 otherwise, whose rounding is above what the tests allow.
torch.backends.cudnn.allow_tf32 = False


@pytest.hookimpl(tryfirst=True)  # before pytest selects by `-m`
def pytest_collection_modifyitems(items):
    """Members of a parametrized test whose ids contain none of the texts that `slow_but` names become slow."""
    for item in items:
        mark = item.get_closest_marker("slow_but")
        if mark and not any(part in item.name for part in mark.args):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def isolated(tmp_path_factory):
    """For tests that run scripts: caches of their own, and nothing left of them; see `isolated_runs`."""
    from tiny_bert import isolated_runs  # imports `ea_hf`

    with isolated_runs(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture
def threads_kept():
    """For tests of programs that choose how many threads compute."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def transformers_log():
    """What Transformers tells the user at its default verbosity, as a list of messages."""
    messages = []

    class Recorder(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    logger = transformers_logging.get_logger("transformers")
    recorder = Recorder(level=logging.WARNING)
    verbosity = transformers_logging.get_verbosity()
    # Messages that another test has provoked already must be heard again.
    transformers_logging.warning_once.cache_clear()
    transformers_logging.set_verbosity_warning()
    logger.addHandler(recorder)
    yield messages
    logger.removeHandler(recorder)
    transformers_logging.set_verbosity(verbosity)
