# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run shows in a terminal, and in a pipe."""

import io
import logging
import sys
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from ea_hf.models import load_report
from ea_hf.models.auto import evolving_model_from_pretrained
from ea_hf.training import terminal
from ea_hf.training.script import closing_lines


ROOT = Path(__file__).resolve().parents[1]
TINY = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_line_stands_above_an_open_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    root, handler = logging.getLogger(), logging.StreamHandler(screen)
    monkeypatch.setattr(root, "handlers", [handler])
    with terminal.lines_beside_bars(), tqdm(total=3, file=screen, leave=False) as bar:
        bar.update()
        logging.getLogger("ea_hf").warning("a line")
    # The bar was wiped before the line, which begins and ends a line of the screen.
    assert "\ra line\n" in screen.getvalue()
    assert root.handlers == [handler]


@pytest.mark.parametrize("name", ["__main__", "task_data", "ea_hf.training.loop"])
@pytest.mark.parametrize(("is_main", "shown"), [(True, True), (False, False)], ids=["main", "other"])
def test_lines_of_every_module_of_a_script_are_shown_by_the_main_process(name, is_main, shown):
    levels = {ours: logging.getLogger(ours).level for ours in terminal.OURS}
    try:
        terminal.set_up_logging(is_main=is_main, is_local_main=True)
        assert terminal.script_logger(name).isEnabledFor(logging.INFO) == shown
    finally:
        for ours, level in levels.items():
            logging.getLogger(ours).setLevel(level)


@pytest.mark.parametrize("folder", ["glue", "image_classification", "language_modeling", "time_series", "translation"])
def test_no_module_of_a_script_has_a_logger_whose_lines_are_lost(folder):
    files = list((ROOT / folder).glob("*.py"))
    assert files
    assert not [file.name for file in files if "getLogger" in file.read_text()]


def test_without_a_terminal_handlers_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    before = list(logging.getLogger().handlers)
    with terminal.lines_beside_bars():
        assert logging.getLogger().handlers == before


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO(), False), (Terminal(), True)], ids=["pipe", "terminal"])
def test_the_libraries_bars_are_for_terminals(stream, shown, monkeypatch):
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        terminal.set_up_logging(is_main=True, is_local_main=True)
        assert transformers.utils.logging.is_progress_bar_enabled() == shown
        assert datasets.are_progress_bars_disabled() != shown
    finally:
        transformers.utils.logging.enable_progress_bar()
        datasets.enable_progress_bars()


def test_the_pace_leaves_evaluations_out_of_the_speed_and_not_out_of_the_time_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: clock[0])
    pace = terminal.Pace(step=10, last_step=30, examples_per_step=8)
    clock[0] += 4
    with pace.pause():
        clock[0] += 6
    assert pace.describe(15) == "10 examples/s, 0:00:30 left"
    clock[0] += 10
    assert pace.describe(20) == "4 examples/s, 0:00:20 left"


@pytest.fixture
def lines():
    """What ea_hf and Transformers log."""
    caught: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: caught.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("ea_hf", load_report.REPORTER)]
    level = loggers[0].level
    loggers[0].setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    yield caught
    loggers[0].setLevel(level)
    for logger in loggers:
        logger.removeHandler(handler)


def test_a_vanilla_checkpoint_takes_one_line(tmp_path, lines):
    BertForMaskedLM(TINY).save_pretrained(tmp_path)
    evolving_model_from_pretrained(AutoModelForSequenceClassification, str(tmp_path))
    (line,) = lines
    for kind in ("new evolution weights", "new head", "unused head"):
        assert kind in line
    assert "LOAD REPORT" not in line and "\n" not in line


def test_what_is_of_no_usual_kind_and_debugging_get_the_whole_report(tmp_path, lines, monkeypatch):
    model = BertForMaskedLM(TINY)
    state = model.state_dict()
    state["bert.encoder.layer.0.attention.self.surplus.weight"] = torch.ones(2)
    model.save_pretrained(tmp_path, state_dict=state)
    evolving_model_from_pretrained(AutoModelForSequenceClassification, str(tmp_path))
    (report,) = lines
    assert "LOAD REPORT" in report and "surplus" in report
    lines.clear()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(load_report.logger, "level", logging.DEBUG)
    load_report.logger.manager._clear_cache()
    evolving_model_from_pretrained(AutoModelForSequenceClassification, str(tmp_path))
    assert any("LOAD REPORT" in line for line in lines)


def test_the_last_lines_load_the_model(tmp_path):
    BertForMaskedLM(TINY).save_pretrained(tmp_path)
    lines = closing_lines(tmp_path, {"auto_class": "AutoModelForMaskedLM"}, "checkpoint-3", 0.5)
    assert str(tmp_path / "checkpoint-3") in lines[0] and str(tmp_path) in lines[1]
    names: dict = {}
    exec(lines[-1].removeprefix("Load it: "), names)
    assert isinstance(names["model"], BertForMaskedLM)
