# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What is installed, and what a source distribution holds."""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import ea_hf
from ea_hf.__main__ import COMMANDS, main


ROOT = Path(__file__).parent.parent


def test_a_source_distribution_holds_all_that_its_own_tests_need(tmp_path):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {file for file in listed.splitlines() if (ROOT / file).exists()}
    copy = tmp_path / "copy"
    for file in files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, copy / file)
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    only_for_git = {file for file in files if file.startswith((".ci/", ".git"))}
    assert not files - held - only_for_git
    assert archive.name == f"ea_hf-{ea_hf.__version__}.tar.gz"


def test_types_are_announced_and_the_command_is_installed():
    assert (Path(ea_hf.__file__).parent / "py.typed").exists()
    (command,) = entry_points(group="console_scripts", name="ea-hf")
    assert command.value == "ea_hf.__main__:run"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_its_own_arguments(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ea-hf", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: ea-hf {command}")


def test_an_unknown_command_is_told_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["fly"])
    assert "'fly'" in (error := capsys.readouterr().err) and all(command in error for command in COMMANDS)


def test_public_names_are_there():
    assert len(set(ea_hf.__all__)) == len(ea_hf.__all__)
    for name in ea_hf.__all__:
        assert getattr(ea_hf, name) is not None


def test_estimators_name_the_extra_that_they_need(monkeypatch):
    assert ("EADCTransformerClassifier" in ea_hf.__all__) == (importlib.util.find_spec("aeon") is not None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "aeon"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aeon", None)
    monkeypatch.delitem(sys.modules, "ea_hf.estimators", raising=False)
    with pytest.raises(ImportError, match=r"EADCTransformerRegressor.*ea_hf\[time_series\]"):
        ea_hf.EADCTransformerRegressor  # noqa: B018
