# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The notebooks of the documentation run offline, hold small outputs, and are pages of its site."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
LARGEST = 200_000  # bytes


def name_of(path: Path) -> str:
    return path.stem


def outputs_of(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_offline(path, tmp_path):
    before = path.read_bytes()
    environment = {"HF_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(DOCS / "run_notebooks.py"), str(path), "--keep"],
        env={**os.environ, "PYTHONPATH": str(DOCS.parent), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_small_outputs_of_every_run_cell(path):
    assert path.stat().st_size < LARGEST
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert outputs_of(path) and not [o for o in outputs_of(path) if o["output_type"] == "error"]
    # No directory of the machine where it ran.
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(outputs_of(path)))


def test_outputs_are_what_jupyter_would_show(tmp_path):
    sys.path.insert(0, str(DOCS))
    try:
        import run_notebooks
    finally:
        sys.path.remove(str(DOCS))
    cells = [["print('a')\n", "1 + 1"], ["x = [2];"], ["x"], ["x.append(3) or x;"], ["x"]]
    notebook = {
        "cells": [{"cell_type": "markdown", "source": ["# Title"]}]
        + [{"cell_type": "code", "source": source, "outputs": [], "execution_count": None} for source in cells]
    }
    (path := tmp_path / "small.ipynb").write_text(json.dumps(notebook))
    run_notebooks.run(path)
    texts = [output.get("text") or output["data"]["text/plain"] for output in outputs_of(path)]
    assert texts == [["a\n"], ["2"], ["[2]"], ["[2, 3]"]]
    notebook["cells"].append({"cell_type": "code", "source": ["1 / 0"], "outputs": []})
    path.write_text(json.dumps(notebook))
    with pytest.raises(ZeroDivisionError):
        run_notebooks.run(path)
