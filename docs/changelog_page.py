# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Puts the changelog and the version, which stand elsewhere in the repository, into the site; a hook for MkDocs."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


REPOSITORY = Path(__file__).parents[1]


def on_config(config: Any, **kwargs: Any) -> Any:
    """What MkDocs calls first: the version stands in the foot of each page."""
    source = (REPOSITORY / "ea_hf" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)
    config.copyright = f"ea_hf {version}, Apache-2.0"
    return config


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """What MkDocs calls with all files: the changelog is a page."""
    content = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=content.replace("](docs/", "](")))
    return files
