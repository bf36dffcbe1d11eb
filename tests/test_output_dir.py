# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""An output directory that a run cannot have is refused before anything is loaded, and left as it is."""

import argparse
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_glue
import run_time_series
from filelock import FileLock
from tiny_bert import reset_accelerator

from ea_hf.training.arguments import add_training_arguments
from ea_hf.training.loop import create_accelerator
from ea_hf.training.output_dir import check_tokenizer_dir, output_dir_fault, prepare_output_dir


def arguments(output_dir, *words):
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    return parser.parse_args(["--output_dir", str(output_dir), *words])


def occupy(directory, name):
    """Gives the directory a file, or a folder if the name ends in a slash."""
    directory.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        (directory / name).mkdir()
    else:
        (directory / name).write_text("{}")
    return directory


def contents(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


@pytest.fixture(autouse=True)
def fresh():
    reset_accelerator()


@pytest.mark.parametrize("name", ["config.json", "training_args.json", "checkpoint-3/"])
def test_one_that_holds_a_run_or_a_model(name, tmp_path):
    occupied = occupy(tmp_path / "out", name)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"out already holds a run.*--resume_from_checkpoint.*--overwrite_output_dir"):
        create_accelerator(arguments(occupied))
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="exclude each other"):
        create_accelerator(arguments(occupied, "--overwrite_output_dir", "--resume_from_checkpoint", "latest"))
    for words in (["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]):
        assert output_dir_fault(arguments(occupied, *words)) is None


def test_the_readme_of_something_else_is_not_replaced_unasked(tmp_path):
    project = occupy(tmp_path / "project", "README.md")
    with pytest.raises(
        ValueError, match=r"project holds no run, but a README\.md, which the model card would replace"
    ):
        create_accelerator(arguments(project))
    assert output_dir_fault(arguments(project, "--overwrite_output_dir")) is None


@pytest.mark.parametrize(
    ("value", "message"), [("", "it is empty"), (" ", "it is empty"), ("a\0b", "null byte"), ("loop", "oop")]
)
def test_what_is_no_path_is_told_when_it_is_read(value, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(SystemExit):
        arguments(value)
    assert re.search(f"--output_dir: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["config.json", "training_args.json", "checkpoint-3/"])
def test_a_tokenizer_does_not_take_the_place_of_a_model_s(name, tmp_path):
    with pytest.raises(ValueError, match="already holds a run or a model, whose tokenizer would be replaced"):
        check_tokenizer_dir(occupy(tmp_path / "model", name))
    check_tokenizer_dir(occupy(tmp_path / "tokenizer", "tokenizer.json"))  # is trained again
    with pytest.raises(ValueError, match=r"tokenizer\.json is a file"):
        check_tokenizer_dir(tmp_path / "tokenizer" / "tokenizer.json" / "below")


@pytest.mark.parametrize("words", [[], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]])
def test_a_file_with_the_name_of_a_checkpoint(words, tmp_path):
    occupied = occupy(tmp_path / "out", "checkpoint-99")
    with pytest.raises(ValueError, match=r"out/checkpoint-99 is no directory.*Move it away"):
        create_accelerator(arguments(occupied, *words))
    (occupied / "checkpoint-99").unlink()
    (occupied / "checkpoint-7").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"out/checkpoint-7 is no directory"):
        create_accelerator(arguments(occupied, *words))


def test_a_file(tmp_path):
    (tmp_path / "file").write_text("text")
    for output_dir in (tmp_path / "file", tmp_path / "file/below/it"):
        with pytest.raises(ValueError, match=r"--output_dir is .*, but .*/file is a file"):
            create_accelerator(arguments(output_dir))


def test_a_name_that_cannot_be_written_down(tmp_path):
    with pytest.raises(ValueError, match="no text in UTF-8"):
        create_accelerator(arguments(tmp_path / "out\udcfc"))


@pytest.mark.parametrize("name", [None, "notes.txt", "checkpoint-best", "checkpoint-1.zip"])
def test_others_are_taken(name, tmp_path):
    if name is not None:
        occupy(tmp_path / "out", name)
    args = arguments(tmp_path / "out")
    prepare_output_dir(create_accelerator(args), args).close()
    assert name is None or (tmp_path / "out" / name).exists()


def test_overwriting_deletes_only_what_a_run_has_left(tmp_path):
    """Weights of another's, without a configuration, are none."""
    occupied = occupy(tmp_path / "out", "model.safetensors")
    args = arguments(occupied, "--overwrite_output_dir")
    prepare_output_dir(create_accelerator(args), args).close()
    assert (occupied / "model.safetensors").exists()


def test_scripts_look_at_it_first(tmp_path, monkeypatch):
    def load(*args):
        pytest.fail("something was loaded")

    occupied = str(occupy(tmp_path / "out", "config.json"))
    for script in (run_glue, run_time_series):
        monkeypatch.setattr(script, "load_data", load)
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="already holds a run"):
        run_glue.main(
            ["--model_name_or_path", str(tmp_path / "model"), "--train_file", "a.csv", "--output_dir", occupied]
        )
    with pytest.raises(ValueError, match="already holds a run"):
        run_time_series.main(["--train_file", "a.csv", "--output_dir", occupied])


def test_all_directories_of_several_trainings_are_looked_at_before_the_first(tmp_path):
    occupy(tmp_path / "out/split-1-seed-2", "config.json")
    args = arguments(tmp_path / "out")
    with pytest.raises(ValueError, match="split-1-seed-2 already holds a run"):
        run_time_series.check_output_dirs(args, ["split-1-seed-1", "split-1-seed-2"])


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_another_run(number, tmp_path, monkeypatch):
    def acquire(self):
        raise OSError(number, os.strerror(number))

    args = arguments(tmp_path / "out")
    accelerator = create_accelerator(args)
    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(ValueError, match=r"The file system of .*out has no locks \(.*\).*another --output_dir"):
        prepare_output_dir(accelerator, args)


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "out/.lock").symlink_to(tmp_path / "notes.txt")
    args = arguments(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out cannot be made or locked: .*\.lock"):
        prepare_output_dir(create_accelerator(args), args)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone/further")
    args = arguments(tmp_path / "link")
    with pytest.raises(ValueError, match=r"link cannot be made or locked: .*another --output_dir"):
        prepare_output_dir(create_accelerator(args), args)


def is_free(output_dir):
    code = "import filelock, sys; filelock.FileLock(sys.argv[1], blocking=False).acquire()"
    words = [sys.executable, "-c", code, str(output_dir / ".lock")]
    return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0


def test_other_processes_are_kept_out_until_the_run_ends(tmp_path):
    args = arguments(tmp_path / "out")
    lock = prepare_output_dir(create_accelerator(args), args)
    assert not is_free(tmp_path / "out")
    lock.close()
    assert is_free(tmp_path / "out")
    again = arguments(tmp_path / "out", "--overwrite_output_dir")
    kept = prepare_output_dir(create_accelerator(again), again)  # as by an error whose traceback is looked at
    taken_over = prepare_output_dir(create_accelerator(again), again)
    assert not is_free(tmp_path / "out")
    taken_over.close()
    kept.close()
    assert is_free(tmp_path / "out")


def test_no_module_needs_what_only_unix_has():
    root = Path(__file__).parents[1]
    for folder in ("ea_hf", "glue", "image_classification", "language_modeling", "time_series", "translation"):
        for path in (root / folder).rglob("*.py"):
            assert not re.search(r"^(import|from) (fcntl|pwd|grp|resource|termios)\b", path.read_text(), re.M), path


WITHOUT = """
import importlib.machinery, sys
class Finder:
    find_distributions = importlib.machinery.PathFinder.find_distributions
    def find_spec(name, path=None, target=None):
        absent = name.split(".")[0] in ("accelerate", "datasets", "evaluate", "pandas", "peft", "sklearn")
        return None if absent else importlib.machinery.PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


@pytest.mark.parametrize("module", ["ea_hf.plan", "ea_hf.export", "ea_hf.visualization.__main__"])
@pytest.mark.slow
def test_a_plain_install_has_its_programs(module):
    code = f"{WITHOUT}\ntry:\n    import datasets\nexcept ImportError:\n    import {module}\nelse:\n    sys.exit(3)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
