# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Processes of someone else: with caches of their own, and maybe without `ea_hf`."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ea_hf":
            raise ModuleNotFoundError("No module named 'ea_hf'")

sys.meta_path.insert(0, Blocked())
"""


def run_stranger(code: str, home: Path, has_ea_hf: bool = False, **environment: str) -> str:
    """Runs Python code in a process without standard input; returns what it prints.

    Args:
        home: where it keeps its Hugging Face caches.
        has_ea_hf: whether it can import `ea_hf`.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    own = {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT) if has_ea_hf else "",
    }
    result = subprocess.run(
        [sys.executable, "-c", code if has_ea_hf else BLOCK + code],
        env={**inherited, **own, **environment},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
