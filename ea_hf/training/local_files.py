# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads local files row by row or line by line, and names what is wrong.

Nothing is held in memory but the row at hand; only a .json file that is one large array is read as a whole.
"""

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet


SEPARATORS = (",", ";", "\t", "|")
FILE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
# How files of other kinds begin, and what to do with them.
OTHER_KINDS = {
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; let its name end in .zst",
    b"PAR1": "parquet; let its name end in .parquet",
    b"PK\x03\x04": "a zip archive or an Excel file; unpack it, or save it as UTF-8 text",
}


def name_without_compression(path: str) -> str:
    """A file's name without the ".gz" or ".zst" at its end."""
    return next((path.removesuffix(ending) for ending in COMPRESSIONS if path.endswith(ending)), path)


def file_versions(paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """What tells versions of files apart without reading them; a file that is missing is left out."""
    existing = [Path(path).resolve() for path in paths if Path(path).exists()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in existing]


def describe_files(paths: Sequence[str]) -> str:
    """Identifies files by their names, sizes and content."""
    parts = []
    for path in map(Path, paths):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        parts.append(f"{path.name}, {path.stat().st_size} bytes, {digest[:16]}")
    return "; ".join(parts)


def check_not_an_input(output: Path, inputs: Iterable[str | os.PathLike]) -> None:
    """Raises ValueError if a file that will be written is also read, be it through a link or under another name."""
    for path in map(Path, inputs):
        if output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"{output} would be written, but it is also the input {path}; choose another output.")


@contextmanager
def written_whole(path: Path, **options: Any) -> Iterator[IO[str]]:
    """Opens a text file that takes its name, and the place of what had it, only when all of it is written.

    A link stays a link. What is no regular file, such as a pipe, is written as it is.

    Args:
        options: as for `open`.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8", **options) as file:
            yield file
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with aside.open("w", encoding="utf-8", **options) as file:
            yield file
        if target.exists():
            aside.chmod(target.stat().st_mode)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def read_lines(path: str) -> Iterator[str]:
    """The lines of a UTF-8 file, maybe compressed (`COMPRESSIONS`), with their ends.

    Raises:
        ValueError: a line is not UTF-8, or the compressed file is damaged.
    """
    with _opened(path) as file:
        yield from decode_lines(file, path)


def read_line_parts(path: str, size: int) -> Iterator[tuple[int, str]]:
    """As `read_lines`, but long lines come in parts of at most `size` bytes, so that a huge one is never in memory.

    Yields:
        The line's number, counted from 1, and a part of it; the last one has its end.
    """
    with _opened(path) as file:
        number, decoder, before = 1, codecs.getincrementaldecoder("utf-8")(), b""
        while part := file.readline(size):
            ends = part.endswith(b"\n")
            try:
                text = decoder.decode(part, final=ends)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from None
            _check_binary(part, path, number)
            yield number, text.removeprefix("\ufeff") if number == 1 and not before else text
            number, before = (number + 1, b"") if ends else (number, part)
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error) from None


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A file to read bytes from; what is wrong with a compressed one is told as ValueError."""
    with _open(path) as file:
        try:
            yield file
        except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowException) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        except OSError as error:
            if not path.endswith(".zst"):
                raise
            raise ValueError(f"{path} cannot be read: {error}") from error


def _check_binary(line: bytes, name: str, number: int) -> None:
    """UTF-16 without a mark at its beginning is valid UTF-8 with null characters, as is what a crash left of a file."""
    if b"\0" in line:
        raise ValueError(
            f"{name}, line {number} has a null character: it is a binary file, text in UTF-16, or damaged. Save it as UTF-8."
        )


def _not_utf8(name: str, number: int, error: UnicodeDecodeError) -> ValueError:
    line, start = error.object, error.start
    if number == 1:
        kinds = (f": it is {kind}" for beginning, kind in OTHER_KINDS.items() if line.startswith(beginning))
        other = next(kinds, None)
        if other is not None:
            return ValueError(f"{name}, line 1 is not UTF-8{other}.")
    # UTF-8 cannot write half of a surrogate pair; programs that do so all the same write ED A0 to ED BF.
    half = line[start] == 0xED and 0xA0 <= line[start + 1 : start + 2].ljust(1)[0] <= 0xBF
    kind = ": it has half of a surrogate pair, which is no character" if half else ""
    return ValueError(f"{name}, line {number} is not UTF-8{kind}: {line[max(0, start - 20) :][:40]!r}")


def _open(path: str) -> Any:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def decode_lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Decodes the lines of a binary file; only a line feed ends a line, as in `wc -l`.

    Raises:
        ValueError: a line is not UTF-8.
    """
    for number, line in enumerate(file, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(name, number, error) from None
        _check_binary(line, name, number)
        yield text.removeprefix("\ufeff") if number == 1 else text


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of one file of `FILE_TYPES`; ".gz" or ".zst" may follow all but parquet's. Values of csv and tsv are text.

    Raises:
        ValueError: the file is of another type or malformed, with its row or line (counted from 1, without a header).
    """
    kind = Path(name_without_compression(path)).suffix
    if kind not in FILE_TYPES or (kind == ".parquet" and path.endswith(COMPRESSIONS)):
        raise ValueError(f"{path} is none of {', '.join(FILE_TYPES)}, all but parquet maybe with .gz or .zst.")
    if kind == ".parquet":
        try:
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            for batch in file.iter_batches(1000) if len(set(names)) == len(names) else ():
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        check_columns(names, path)
    elif kind in (".csv", ".tsv"):
        yield from _read_csv(path, "\t" if kind == ".tsv" else ",")
    else:
        lines = read_lines(path)
        first = next(lines, "")
        lines = itertools.chain([first], lines)
        if first.lstrip().startswith("["):
            rows = ((f"{path}, row {number}", row) for number, row in enumerate(_parse_json("".join(lines), path), 1))
        else:
            places = ((f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
            rows = ((place, _parse_json(line, place)) for place, line in places)
        for place, row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"{place} is {row!r}, not an object with a name for each value.")
            _check_characters(row, place)
            yield row


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _TwiceError as error:
        raise ValueError(f"{place} has two values named {error.args[0]!r}; rename or remove one.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from None


class _TwiceError(Exception):
    """A name stands twice in a JSON object, of which Python would take the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for place, name in enumerate(names) if name in names[:place]))
    return values


def _check_characters(row: dict[str, Any], place: str) -> None:
    """JSON can write half of a surrogate pair, which is no character; no tokenizer takes it."""
    for value in itertools.chain(row, row.values()):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{place} has half of a surrogate pair, {text[error.start]!r}, in {text[:80]!a}; it is no "
                "character. Remove it."
            ) from None


def _check_header(header: list[str], path: str, delimiter: str) -> None:
    others = [separator for separator in SEPARATORS if separator != delimiter]
    used = next((separator for separator in others if len(header) == 1 and separator in header[0]), None)
    if used is not None:
        raise ValueError(
            f"{path} has only one column, {header[0]!r}; its values seem to be separated by {used!r}, not by "
            f"{delimiter!r}. Save it with commas as .csv, or with tabs as .tsv."
        )
    check_columns(header, path)


def check_columns(names: Sequence[str], path: str) -> None:
    """Raises ValueError if two columns have one name: readers would take one of them, or invent a name."""
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}; rename or remove one.")


def _read_csv(path: str, delimiter: str) -> Iterator[dict[str, str]]:
    # As in GLUE's files, quotation marks have no meaning where tabs separate.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(read_lines(path), delimiter=delimiter, quoting=quoting)
    try:
        header = next(rows, [])
        _check_header(header, path, delimiter)
        for number, fields in enumerate(filter(None, rows), 1):
            if len(fields) != len(header):
                raise ValueError(
                    f"{path}, row {number} has {len(fields)} fields, but the header names {len(header)}; is a text with "
                    "a separator in it not quoted?"
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num} cannot be read: {error}") from error
