# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Make the tests of the installed Transformers version importable as the package `transformers_tests`.

They are in its source distribution only, so the first run downloads it. None of it belongs into this repository.
"""

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from importlib.machinery import ModuleSpec
from importlib.metadata import version as installed_version
from pathlib import Path

from filelock import FileLock


PACKAGE = "transformers_tests"
STAND_INS = Path(__file__).resolve().parent / "stand_ins"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "transformers_suite"


class SuiteUnavailable(RuntimeError):
    """The tests of the installed Transformers version are neither in the cache nor to be had."""


def install() -> None:
    """Define the package `transformers_tests`: Transformers' tests, completed by our stand-ins."""
    if PACKAGE in sys.modules:
        return
    spec = ModuleSpec(PACKAGE, loader=None, is_package=True)
    # Transformers' folder comes first: a file that a later source distribution includes replaces our stand-in.
    spec.submodule_search_locations = [str(fetch(installed_version("transformers"))), str(STAND_INS)]
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)


def fetch(version: str) -> Path:
    """Return the folder with the tests of Transformers `version`, and download them if they are not there yet."""
    tests = CACHE / version
    if tests.is_dir():
        return tests
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{version}.lock"):
        if not tests.is_dir():  # another process may have been first
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                archive = _download(version, Path(scratch))
                _unpack_tests(archive, Path(scratch)).rename(tests)
    return tests


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "2", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={version}"]
    process = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if process.returncode != 0 or len(archives) != 1:
        raise SuiteUnavailable(
            f"The tests of Transformers {version} could not be downloaded; they are part of its source distribution. "
            f"Run once where pip reaches a package index, or copy {CACHE / version} from a machine that has it. "
            f"pip said:\n{process.stderr.strip()}"
        )
    return archives[0]


def _unpack_tests(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as source:
        members = [member for member in source if member.name.split("/")[1:2] == ["tests"]]
        source.extractall(folder, members, filter="data")
    tests = folder / archive.name.removesuffix(".tar.gz") / "tests"
    if not (tests / "test_modeling_common.py").is_file():
        raise SuiteUnavailable(f"{archive.name} has no tests/test_modeling_common.py: its layout has changed.")
    # Transformers' configuration tests import Transformers by executing the `__init__.py` beside them.
    (tests / "__init__.py").touch()
    return tests
