# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs notebooks from top to bottom without Jupyter, and writes what their cells print and show into them.

python docs/run_notebooks.py                                             # all of docs/notebooks
python docs/run_notebooks.py docs/notebooks/quickstart.ipynb --keep      # runs it, and leaves the file as it is
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any


NOTEBOOKS = Path(__file__).parent / "notebooks"


def run_cell(source: str, namespace: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Runs a cell as Jupyter does, which shows the value of a last line that is an expression; returns the outputs."""
    tree = ast.parse(source, name)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        value = None if last is None else eval(compile(last, name, "eval"), namespace)
    outputs = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())})
    if value is not None and not source.rstrip().endswith(";"):
        data = {"text/plain": lines(repr(value))}
        if hasattr(value, "savefig"):
            value.savefig(picture := io.BytesIO(), format="png", dpi=72)
            data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["figure"]}
        outputs.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return outputs


def lines(text: str) -> list[str]:
    """Text as notebooks hold it."""
    return text.splitlines(keepends=True)


def run(path: Path, keep: bool = False) -> None:
    """Runs the code of a notebook in its own folder, in one namespace; a cell that fails ends it.

    Args:
        keep: whether the file stays as it is.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(path.parent):
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(code, start=1):
            outputs = run_cell("".join(cell["source"]), namespace, f"{path.name}, cell {number}")
            cell["outputs"], cell["execution_count"] = outputs, number
            for output in outputs:
                if "execution_count" in output:
                    output["execution_count"] = number
    if not keep:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(NOTEBOOKS.glob("*.ipynb")))
    parser.add_argument("--keep", action="store_true", help="Leave the files as they are.")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # before a cell imports what reads it
    for path in args.notebooks:
        run(path.resolve(), args.keep)
        print(f"Ran {path}")


if __name__ == "__main__":
    main()
