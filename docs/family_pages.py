# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes pages of the site of the families of models that have no page in `docs/api`; a hook for MkDocs."""

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File, Files

import ea_hf


LAST = "Seeing maps"  # in the site's navigation and in the table of docs/api.md; families stand before it


def families() -> dict[str, ModuleType]:
    """Path of the page, and the family."""
    paths = {f"api/{family.__name__.partition('.modeling_ea_')[2]}.md": family for family in ea_hf.FAMILIES}
    return {path: family for path, family in paths.items() if not (Path(__file__).parent / path).exists()}


def parts(family: ModuleType) -> tuple[str, str]:
    """The family's name, and what its file says of it."""
    name, _, text = inspect.getdoc(family).partition(": ")
    return name, text


def page_of(family: ModuleType) -> str:
    """The page: what the family's file says, and all that it lists."""
    name, text = parts(family)
    return "\n\n".join([f"# {name}", text, *(f"::: ea_hf.{public}" for public in family.__all__)]) + "\n"


def on_config(config: Any, **kwargs: Any) -> Any:
    """What MkDocs calls first: the pages stand in the navigation."""
    reference = next(entry["API reference"] for entry in config.nav if "API reference" in entry)
    place = next(place for place, entry in enumerate(reference) if LAST in entry)
    reference[place:place] = [{parts(family)[0]: path} for path, family in families().items()]
    return config


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """What MkDocs calls with all files."""
    for path, family in families().items():
        files.append(File.generated(config, path, content=page_of(family)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """What MkDocs calls with the Markdown of each page: the families stand in the table of the API reference."""
    if page.file.src_uri != "api.md":
        return markdown
    rows = []
    for path, family in families().items():
        name, text = parts(family)
        rows.append(f"| [{name}]({path}) | {text.partition(' (')[0].splitlines()[0]} |\n")
    before, last, after = markdown.partition(f"| [{LAST}]")
    return before + "".join(rows) + last + after
