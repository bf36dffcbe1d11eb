# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads pairs of a text and its translation from local files or the Hub, one after the other, and names what is wrong.

Nothing is held in memory but the pair at hand; only a .json file that is one large array is read as a whole.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from ea_hf.training.hub_data import load_hub_data
from ea_hf.training.languages import column_names
from ea_hf.training.local_files import (
    FILE_TYPES,
    file_versions,
    name_without_compression,
    read_lines,
    read_rows,
)
from ea_hf.training.mapped_rows import mapped_dataset


FILES_HELP = (
    "A jsonl, json, csv, tsv or parquet file with a `translation` column ({language: text}) or a column per language; "
    "or two text files, the source language's first. All but parquet may be compressed (.gz, .zst)."
)
FEATURES = Features({"source": Value("string"), "target": Value("string")})


def read_pairs(paths: Sequence[str], source_lang: str, target_lang: str) -> Iterator[tuple[str, str]]:
    """Yields (source, target) of one file with both languages, or of two text files whose lines correspond.

    Args:
        paths: one file of `FILE_TYPES`, or the source's text file and the target's; ".gz" or ".zst" may follow.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed, with its row or line (counted from 1, without a
            header).
    """
    check_paths(paths)
    if len(paths) == 2:
        yield from _read_lines_of_two(*paths)
        return
    (path,) = paths
    for number, row in enumerate(read_rows(path), 1):
        texts = row.get("translation", row)
        if not isinstance(texts, dict):
            raise ValueError(f"{path}, row {number}: `translation` is {texts!r}, not {{language: text}}.")
        yield (
            check_text(_find(texts, source_lang), source_lang, f"{path}, row {number}", texts),
            check_text(_find(texts, target_lang), target_lang, f"{path}, row {number}", texts),
        )


def check_paths(paths: Sequence[str]) -> None:
    """Raises FileNotFoundError or ValueError unless there is one table with both languages, or a text file for each."""
    if len(paths) not in (1, 2):
        raise ValueError(f"{len(paths)} files, {', '.join(paths)}: pass one with both languages, or two text files.")
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist or is not a file.")
    tables = [path for path in paths if name_without_compression(path).endswith(FILE_TYPES)]
    if len(paths) == 1 and not tables:
        raise ValueError(
            f"{paths[0]} is none of {', '.join(FILE_TYPES)}, so it is taken for the text of one language; pass two text "
            "files, the source language's first, or one table with both languages."
        )
    if len(paths) == 2 and tables:
        raise ValueError(
            f"{tables[0]} is a table, but of two files each must be the plain text of one language. Pass one table with "
            "both languages, or two text files."
        )
    if len(paths) == 2 and Path(paths[0]).samefile(paths[1]):
        raise ValueError(f"{paths[0]} and {paths[1]} are the same file; pass the source's text and the target's.")


def check_text(text: Any, language: str, place: str, known: Sequence[str] = ()) -> str:
    """The text itself.

    Raises:
        ValueError: it is missing, or something else.
    """
    if text is None:
        others = f"; it has {', '.join(map(repr, known))}" if known else ""
        raise ValueError(
            f"{place} has no text for {language!r}{others}. Name the languages with --source_lang and --target_lang, or "
            "remove the row."
        )
    if not isinstance(text, str):
        raise ValueError(f"{place}, language {language!r}: {text!r} is {type(text).__name__}, not text.")
    return text


def load_files(files: dict[str, Sequence[str]], source_lang: str, target_lang: str) -> DatasetDict:
    """Data sets with the columns `source` and `target`, memory-mapped from the cache on disk.

    Args:
        files: the paths of each split, as for `read_pairs`, which tells the errors.
    """
    splits = DatasetDict()
    for split, paths in files.items():
        arguments = {"paths": tuple(paths), "source_lang": source_lang, "target_lang": target_lang}
        identity = [arguments, file_versions(paths)]
        splits[split] = mapped_dataset(_generate, FEATURES, arguments, identity)
    return splits


def stream_files(paths: Sequence[str], source_lang: str, target_lang: str) -> IterableDataset:
    """The pairs of files as they are read, with the columns `source` and `target`; errors are told when they come.

    Args:
        paths: as for `read_pairs`.
    """
    check_paths(paths)
    return IterableDataset.from_generator(
        _generate,
        features=FEATURES,
        gen_kwargs={"paths": tuple(paths), "source_lang": source_lang, "target_lang": target_lang},
    )


def load_hub(
    dataset_name: str, config_name: str | None, source_lang: str, target_lang: str, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """The same from the Hub, or from a local copy of a repository; without copying anything.

    Args:
        streaming: leave the data where it is, and read it when it is asked for.

    Raises:
        ConnectionError: the Hub cannot be reached.
        ValueError: a language is missing.
    """
    instead = "local files with --train_file and --validation_file"
    described = f"{dataset_name} ({config_name})"
    raw = load_hub_data(dataset_name, config_name, described=described, instead=instead, streaming=streaming)
    splits = IterableDatasetDict() if streaming else DatasetDict()
    for name, split in raw.items():
        if streaming:
            languages = {"source_lang": source_lang, "target_lang": target_lang, "place": f"{dataset_name}, {name}"}
            # Before a row is read, nobody knows the columns of json and csv files.
            columns = split.column_names or list(next(iter(split), {}))
            splits[name] = split.map(_to_pair, remove_columns=columns, features=FEATURES, fn_kwargs=languages)
            continue
        split = split.flatten()
        columns = {}
        for role, language in (("source", source_lang), ("target", target_lang)):
            names = [place + name for name in column_names(language) for place in ("translation.", "")]
            found = [column for column in names if column in split.column_names]
            if not found:
                raise ValueError(
                    f"{dataset_name} ({config_name}) has no language {language!r}; its columns are "
                    f"{', '.join(map(repr, split.column_names))}. Name the languages with --source_lang and --target_lang."
                )
            columns[found[0]] = role
        splits[name] = split.select_columns(list(columns)).rename_columns(columns)
    return splits


def _to_pair(row: dict[str, Any], source_lang: str, target_lang: str, place: str) -> dict[str, str]:
    texts = row.get("translation", row)
    return {
        "source": check_text(_find(texts, source_lang), source_lang, f"A row of {place}", texts),
        "target": check_text(_find(texts, target_lang), target_lang, f"A row of {place}", texts),
    }


def _find(texts: dict[str, Any], language: str) -> Any:
    return next((texts[name] for name in column_names(language) if texts.get(name) is not None), None)


def _generate(paths: Sequence[str], source_lang: str, target_lang: str) -> Iterator[dict[str, str]]:
    empty = True
    for source, target in read_pairs(paths, source_lang, target_lang):
        empty = False
        yield {"source": source, "target": target}
    if empty:
        raise ValueError(f"{' and '.join(paths)}: no rows.")


def _read_lines_of_two(*paths: str) -> Iterator[tuple[str, str]]:
    for texts in itertools.zip_longest(*map(read_lines, paths)):
        if None in texts:
            counts = [f"{path} has {sum(1 for _ in read_lines(path))} lines" for path in paths]
            raise ValueError(
                f"{' and '.join(counts)}; each line must have its translation in the same line of the other file."
            )
        yield tuple(text.rstrip("\r\n") for text in texts)
