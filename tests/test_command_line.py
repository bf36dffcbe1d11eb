# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A user's mistake is told in one line, by every program."""

import re
import runpy
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import transformers

from ea_hf.__main__ import COMMANDS
from ea_hf.training import command_line
from ea_hf.training.command_line import ArgumentParser, Mistake, RunError, run_main
from ea_hf.training.interruptions import Interrupted
from ea_hf.training.script import add_evolution_arguments


REPOSITORY = Path(__file__).parents[1]
PROGRAMS = sorted(
    path
    for folder in ("ea_hf", "glue", "image_classification", "language_modeling", "time_series", "translation")
    for path in (REPOSITORY / folder).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def raising(error):
    def main():
        raise error

    return main


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/run_it.py", "--seed", "1"])
    for name in command_line.RANKS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--seed is 1;\n  choose   another one."), "--seed is 1; choose another one."),
        (
            FileNotFoundError(2, "No such file or directory", "a.csv"),
            r"\[Errno 2\] No such file or directory: 'a.csv'",
        ),
        (UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "bad"), ".*can't decode byte 0xfc.*"),
        (ValueError(), "ValueError"),
        (ValueError("row 3 is '\udcfc'"), r"row 3 is '\\udcfc'"),
        (Mistake("That is no model."), "That is no model."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_mistake_is_one_line_with_status_2(error, line, capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(raising(error))
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert re.fullmatch(f"run_it.py: error: {line}\n", printed.err)


def test_what_is_not_in_the_user_s_hands_has_status_1(capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(raising(RunError("The disk is full.")))
    assert ended.value.code == 1 and capsys.readouterr().err == "run_it.py: error: The disk is full.\n"


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), RunError("x"), Mistake("x")])
def test_debug_shows_the_traceback(error, command):
    command.setattr(sys, "argv", ["run_it.py", "--debug"])
    with pytest.raises(type(error)) as raised:
        run_main(raising(error))
    assert raised.value is error


@pytest.mark.parametrize(
    "error", [TypeError("x"), KeyError("x"), Interrupted(15), KeyboardInterrupt(), SystemExit("x")]
)
def test_a_fault_of_the_code_and_a_signal_pass(error):
    with pytest.raises(type(error)) as raised:
        run_main(raising(error))
    assert raised.value is error


def test_what_main_returns_is_returned():
    assert run_main(lambda: {"accuracy": 1.0}) == {"accuracy": 1.0}


@pytest.mark.parametrize("is_terminal", (False, True))
def test_transformers_draws_its_bars_into_terminals_alone(is_terminal, monkeypatch):
    transformers.utils.logging.enable_progress_bar()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    try:
        run_main(lambda: None)
        assert transformers.utils.logging.is_progress_bar_enabled() == is_terminal
    finally:
        transformers.utils.logging.enable_progress_bar()


@pytest.mark.parametrize("name", command_line.RANKS)
def test_of_several_processes_the_others_leave_the_word_to_the_first(name, command, capsys):
    """One that the launcher does not end meanwhile is alone with its mistake."""
    waited = []
    command.setattr(command_line.time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    for rank, waits in (("0", []), ("1", [(command_line.SECONDS_FOR_THE_FIRST, "")])):
        command.setenv(name, rank)
        with pytest.raises(SystemExit) as ended:
            run_main(raising(ValueError("bad")))
        assert ended.value.code == 2 and capsys.readouterr().err == "run_it.py: error: bad\n" and waited == waits


def test_bad_arguments_are_told_without_all_the_others(capsys):
    parser = ArgumentParser(prog="run_it.py")
    parser.add_argument("--seed", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--seed", "one"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "run_it.py: error: argument --seed: invalid int value: 'one'; see --help\n"


@pytest.mark.parametrize("words", [["--file", ""], ["--files", "a", ""], ["--number", ""]])
def test_an_empty_argument_is_no_missing_one(words, capsys):
    """As a variable of the shell that is not set leaves it."""
    parser = ArgumentParser(prog="run_it.py")
    parser.add_argument("--file")
    parser.add_argument("--files", nargs="+")
    parser.add_argument("--number", type=int)
    parser.add_argument("--source_prefix", default="translate: ")
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert f"argument {words[0]}: " in capsys.readouterr().err
    assert parser.parse_args(["--source_prefix", ""]).source_prefix == ""
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    with pytest.raises(SystemExit):
        parser.parse_args([""])
    assert "argument CHECKPOINT: it is empty" in capsys.readouterr().err


def test_debug_is_not_among_the_arguments_of_a_run():
    parser = ArgumentParser()
    assert vars(parser.parse_args(["--debug"])) == vars(parser.parse_args([])) == {}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_program_tells_mistakes_this_way(program):
    text = program.read_text()
    assert "run_main(main)" in text and "argparse.ArgumentParser(" not in text


def helps():
    commands = [(f"ea-hf {name}", module) for name, (module, _) in COMMANDS.items()]
    return [
        *(
            pytest.param(path, id=str(path.relative_to(REPOSITORY)))
            for path in PROGRAMS
            if path.relative_to(REPOSITORY).parts[0] != "ea_hf"
        ),
        *(pytest.param(module, id=name) for name, module in commands),
    ]


@pytest.mark.parametrize("program", helps())
def test_help_gives_every_default_and_an_example(program, capsys, command):
    """In this process, as starting each program takes seconds."""
    modules = set(sys.modules)
    if isinstance(program, Path):
        command.setattr(sys, "path", [str(program.parent), *sys.path])
        start = partial(runpy.run_path, str(program), run_name="__main__")
    else:
        start = partial(import_module(program).main, ["--help"])
    command.setattr(sys, "argv", [str(program), "--help"])
    with pytest.raises(SystemExit) as ended:
        start()
    for name in set(sys.modules) - modules:  # folders have modules of the same name
        if not name.startswith("ea_hf") and str(REPOSITORY) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    told = capsys.readouterr().out
    assert ended.value.code == 0 and not re.search("[Dd]efault: None", told)
    assert re.search(r"^ *(\$ )?(python|ea-hf) ", told.split("show this help")[-1], re.MULTILINE), "no example"
    for argument in re.findall(r"^  (-\S.*(?:\n {4,}.*)*)", told, re.MULTILINE):
        if not argument.startswith(("-h,", "--debug")):
            assert re.search("default|required", argument, re.IGNORECASE), argument


def test_help_tells_the_families_weights():
    parser = ArgumentParser()
    add_evolution_arguments(parser.add_argument_group("model"))
    told = " ".join(parser.format_help().split())
    assert "or 0.1 (ea_dc_transformer 0.3, ea_resnet 0.5)." in told


@pytest.mark.slow
def test_a_script_from_the_command_line(tmp_path):
    (tmp_path / "model").write_text("a file")
    script = REPOSITORY / "glue" / "run_glue.py"
    words = ["--model_name_or_path", "model", "--train_file", "no.csv", "--output_dir", str(tmp_path / "model")]
    for extra, lines in ([], 1), (["--debug"], 2):
        run = subprocess.run([sys.executable, script, *words, *extra], capture_output=True, text=True, cwd=tmp_path)
        told = [line for line in run.stderr.splitlines() if "INFO" not in line]
        assert run.returncode == (1 if extra else 2) and "model" in told[-1], run.stderr
        assert ("Traceback" in run.stderr) == bool(extra) and min(len(told), 2) == lines, run.stderr
