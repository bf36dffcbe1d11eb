# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Splits the LibreOffice help in English and German (translation/data/README.md) into training, validation and test.

    python translation/prepare_data.py --output_dir data/libreoffice_help

Whole pages go to one split, since a page repeats itself, and a page's split depends on its name only. Training pairs of
which a side also occurs in validation or test are left out. What is there already is written again.
"""

import gzip
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ea_hf.training.command_line import ArgumentParser, directory, run_main


SPLITS = ("train", "validation", "test")
HELP_FILE = Path(__file__).resolve().parent / "data" / "libreoffice_help.en-de.jsonl.gz"
# Of a hundred pages.
HELD_OUT_PAGES = {"validation": 4, "test": 6}


def read_help(path: Path = HELP_FILE) -> list[dict[str, str]]:
    """Rows with `page`, `en`, `de`."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def split_of_page(page: str) -> str:
    """The same everywhere; Python's own hash differs per process."""
    number = int(hashlib.sha256(page.encode()).hexdigest(), 16) % 100
    for split, pages in HELD_OUT_PAGES.items():
        if number < pages:
            return split
        number -= pages
    return "train"


def split_by_page(rows: list[dict[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """Rows with `page` and `translation`."""
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for row in rows:
        translation = {language: row[language] for language in ("en", "de")}
        splits[split_of_page(row["page"])].append({"page": row["page"], "translation": translation})
    held_out = {
        (language, text.casefold())
        for split in HELD_OUT_PAGES
        for row in splits[split]
        for language, text in row["translation"].items()
    }
    splits["train"] = [
        row
        for row in splits["train"]
        if not any((language, text.casefold()) in held_out for language, text in row["translation"].items())
    ]
    return splits


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=directory, default=Path("data") / "libreoffice_help")
    args = parser.parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    splits = split_by_page(read_help())
    for split, rows in splits.items():
        path = args.output_dir / f"{split}.jsonl"
        aside = path.with_name(f".{path.name}.partial")  # so that what has the name is whole
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(aside, path)
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    print(
        f"{args.output_dir}: {counts} pairs of {len({row['page'] for rows in splits.values() for row in rows}):,} pages"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
