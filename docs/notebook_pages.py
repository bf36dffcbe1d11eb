# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes pages of the site of the notebooks, with the outputs that they hold; a hook for MkDocs."""

import json
import re
from typing import Any

from mkdocs.structure.files import File, Files


def page_of(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                parts.append(f"![What the cell above draws](data:image/png;base64,{data['image/png'].strip()})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """What MkDocs calls with all files: a page stands in the place of each notebook, which can be downloaded as well."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            name = file.src_uri.rpartition("/")[2]
            page = page_of(json.loads(file.content_string))
            note = f"\n---\n\nThis page is the notebook `docs/notebooks/{name}`, as it ran. "
            note += "`python docs/run_notebooks.py` runs it, and so does Jupyter.\n"
            files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=page + note))
            files.remove(file)
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """What MkDocs calls with the Markdown of each page: what links to a notebook leads to its page."""
    return re.sub(r"(\]\([^)\s]+)\.ipynb\)", r"\1.md)", markdown)
