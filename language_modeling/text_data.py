# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Documents of local files or of the Hub, as blocks of tokens; on disk, or as they are read.

A document is a line of a text file (`--document_unit` says what else), or a row of a table. What is held out is told by
its content: a document of which a copy is in the validation data is never trained on, wherever it stands.
"""

import argparse
import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as ListOf
from transformers import PreTrainedTokenizerBase

from ea_hf.training.hub_data import load_hub_data
from ea_hf.training.local_files import (
    FILE_TYPES,
    describe_files,
    file_versions,
    name_without_compression,
    read_line_parts,
    read_rows,
)
from ea_hf.training.mapped_rows import mapped_dataset
from ea_hf.training.sharded_streaming import CHARACTERS_AT_ONCE, ROWS_AT_ONCE
from ea_hf.training.terminal import script_logger
from ea_hf.training.tokenizer_loading import TEXTS_SAMPLED, check_known
from ea_hf.undocumented import fingerprint


logger = script_logger(__name__)

FILES_HELP = (
    "Text, jsonl, json, csv, tsv or parquet files, with a document in each line or row; also directories, and patterns such "
    'as "data/*.txt". All but parquet may be compressed (.gz, .zst).'
)
TEXT_TYPES = (".txt", ".text")
UNITS = ("line", "paragraph", "file")
# Longer documents are read as several ones, so that a tokenizer never gets a whole book.
LONGEST_DOCUMENT = 100_000
DOCUMENT = Features({"text": Value("string")})
BLOCK = Features({"input_ids": ListOf(Value("int32")), "words": ListOf(Value("int32"))})
# Of each text that is looked at to see whether a tokenizer knows it.
CHARACTERS_SAMPLED = 1000
_told_long: set[str] = set()
# Of `--validation_split_percentage`: what is held out is one of so many kinds of content.
KINDS_OF_CONTENT = 10_000


@dataclass
class Source:
    """Documents.

    Attributes:
        rows: with the column `text`, read when they are asked for.
        name: for messages.
        identity: what the documents depend on.
        description: identifies them by their content; a function, because it reads all of local files.
    """

    rows: IterableDataset
    name: str
    identity: Any
    files: Sequence[str] = ()

    def description(self) -> str:
        return describe_files(self.files) if self.files else f"{self.name} {self.identity}"


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that names, patterns and directories mean, each once.

    Raises:
        FileNotFoundError: nothing is there. ValueError: a directory holds no text.
    """
    found: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(str(file) for file in path.rglob("*") if file.is_file() and _is_readable(str(file)))
            if not files:
                raise ValueError(f"{pattern} holds no file of the types {', '.join(TEXT_TYPES + FILE_TYPES)}.")
        elif path.is_file():
            files = [pattern]
        else:
            files = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
        if not files:
            raise FileNotFoundError(f"{pattern} does not exist, and no file matches it as a pattern.")
        found += files
    return list(dict.fromkeys(found))


def _is_readable(path: str) -> bool:
    return name_without_compression(path).endswith(TEXT_TYPES + FILE_TYPES)


def read_documents(path: str, column: str | None = None, unit: str = "line") -> Iterator[str]:
    """The documents of a file; what is neither a table nor compressed text is read as text.

    Raises:
        ValueError: the file is binary, malformed, or has no such column.
    """
    if not name_without_compression(path).endswith(FILE_TYPES):
        yield from _read_text(path, unit)
        return
    for number, row in enumerate(read_rows(path), 1):
        column = column or _find_column(row, path)
        if column not in row:
            known = ", ".join(map(repr, row))
            raise ValueError(f"{path}, row {number} has no column {column!r}, but {known}; see --text_column_name.")
        text = row[column]
        if not isinstance(text, str | None):
            raise ValueError(f"{path}, row {number}, column {column!r}: {text!r} is {type(text).__name__}, not text.")
        yield text or ""


def _find_column(row: dict[str, Any], path: str) -> str:
    names = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in row or len(names) == 1:
        return "text" if "text" in row else names[0]
    known = ", ".join(map(repr, row))
    raise ValueError(f"{path} has the columns {known}; name the one with the text with --text_column_name.")


def _read_text(path: str, unit: str) -> Iterator[str]:
    """Documents; a long one comes in the pieces that `pieces` makes, and is never whole in memory."""
    document, cut, line_so_far = "", False, ""
    for _, part in read_line_parts(path, LONGEST_DOCUMENT):
        line_so_far = line_so_far or part.strip()[:1]
        ends_line = part.endswith("\n")
        ends = ends_line and (unit == "line" or (unit == "paragraph" and not line_so_far))
        document += part
        if ends:
            # Of an empty line between paragraphs nothing belongs to a document.
            document = document.rstrip("\r\n") if unit == "line" else document.removesuffix(part)
        while len(document) > LONGEST_DOCUMENT:
            end = end_of_piece(document)
            yield document[:end]
            document, cut = document[end:], True
            _tell_long(path)
        if ends:
            if document.strip() or (unit == "line" and not cut):
                yield document
            document, cut = "", False
        if ends_line:
            line_so_far = ""
    if document.strip() or (document and not cut):
        yield document


def _tell_long(path: str) -> None:
    if path not in _told_long:
        _told_long.add(path)
        logger.warning(
            f"{path}: documents of more than {LONGEST_DOCUMENT} characters are read in pieces, each as a document."
        )


def _rows(paths: Sequence[str], column: str | None, unit: str) -> Iterator[dict[str, str]]:
    for path in paths:
        for text in read_documents(path, column, unit):
            if len(text) <= LONGEST_DOCUMENT:
                yield {"text": text}
                continue
            # Here already, so that the pieces can be shared, and are never all tokens in memory.
            _tell_long(path)
            for piece in pieces(text):
                yield {"text": piece}


def file_source(patterns: Sequence[str], column: str | None, unit: str) -> Source:
    paths = find_files(patterns)
    # A list among the arguments is taken for shards, one for each file.
    rows = IterableDataset.from_generator(
        _rows, features=DOCUMENT, gen_kwargs={"paths": paths, "column": column, "unit": unit}
    )
    name = paths[0] if len(paths) == 1 else f"{', '.join(patterns)} ({len(paths)} files)"
    return Source(rows, name, [file_versions(paths), column, unit], paths)


def hub_sources(name: str, config: str | None, column: str | None, streaming: bool) -> dict[str, Source]:
    """The splits of a data set on the Hub, or of a local copy of its repository.

    Raises:
        ConnectionError: the Hub cannot be reached. ValueError: there is no such column.
    """
    instead = "local files with --train_file"
    splits = load_hub_data(name, config, described=f"{name} ({config})", instead=instead, streaming=streaming)
    sources = {}
    for split_name, split in splits.items():
        first = next(iter(split), None)
        place = f"{name}, {split_name}"
        if first is None:
            raise ValueError(f"{place} is empty.")
        chosen = column or _find_column(first, place)
        if not isinstance(first.get(chosen), str | None) or chosen not in first:
            raise ValueError(f"{place} has no text in {chosen!r}; it has {', '.join(map(repr, first))}.")
        identity = f"{config} {chosen} {fingerprint(split)}"
        rows = split if isinstance(split, IterableDataset) else split.to_iterable_dataset()
        rows = rows.select_columns([chosen])
        sources[split_name] = Source(rows if chosen == "text" else rows.rename_column(chosen, "text"), place, identity)
    return sources


# What is trained on and what is held out


def content(text: str) -> int:
    """A number that tells documents apart by their words; white space does not count."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest())


@dataclass
class Admission:
    """Which documents a split takes.

    Args:
        held_out: contents of documents that are left out.
        share: of `KINDS_OF_CONTENT` kinds of content, how many are held out; whether a document is, its content decides.
        takes_share: take these instead of the others.
    """

    held_out: frozenset[int] = frozenset()
    share: int = 0
    takes_share: bool = False

    def admit(self, texts: Iterable[str], counts: Counter) -> Iterator[str]:
        """The documents to take, long ones in pieces. `counts` notes what was left out."""
        for text in texts:
            text = text or ""
            number = content(text)
            if not text.strip():
                counts["empty"] += 1
            elif (number % KINDS_OF_CONTENT < self.share) != self.takes_share:
                counts["of the other split"] += 1
            elif number in self.held_out:
                counts["held out"] += 1
            else:
                counts["taken"] += 1
                counts["long"] += len(text) > LONGEST_DOCUMENT
                yield from pieces(text)


def pieces(text: str, longest: int = LONGEST_DOCUMENT) -> Iterator[str]:
    """A text in pieces of at most so many characters, cut before white space where there is some."""
    start = 0
    while len(text) - start > longest:
        cut = end_of_piece(text, start, longest)
        yield text[start:cut]
        start = cut
    if text[start:].strip():
        yield text[start:]


def end_of_piece(text: str, start: int = 0, longest: int = LONGEST_DOCUMENT) -> int:
    """Where a piece that begins at `start` ends: before the last white space of its second half, if there is some."""
    end = max(text.rfind(space, start + longest // 2, start + longest) for space in " \n\t")
    return end if end > 0 else start + longest


def tell_counts(counts: Counter, place: str) -> None:
    """Says what was left out of a split."""
    if counts["held out"]:
        logger.warning(
            f"{place}: dropped {counts['held out']} documents that are part of the validation data (told by content)."
        )
    if counts["empty"]:
        logger.warning(f"{place}: skipped {counts['empty']} empty documents.")
    if counts["long"]:
        logger.warning(
            f"{place}: {counts['long']} documents have more than {LONGEST_DOCUMENT} characters and were read in pieces, each "
            "as a document."
        )


# Blocks


@dataclass
class BlockMaker:
    """Cuts documents into blocks of tokens.

    A block never holds tokens of two documents, unless `concatenate`: then the documents follow each other as one text.
    `words` numbers the words of a block from 0; special tokens have -1.

    Args:
        block_size: tokens of a block, at most.
        block_prefix, block_suffix: special tokens around each block.
        document_prefix, document_suffix: special tokens around each document.
    """

    tokenizer: PreTrainedTokenizerBase
    block_size: int
    block_prefix: Sequence[int] = ()
    block_suffix: Sequence[int] = ()
    document_prefix: Sequence[int] = ()
    document_suffix: Sequence[int] = ()
    concatenate: bool = False

    def __call__(
        self, texts: Sequence[str], rest: list[list[int]] | None = None
    ) -> tuple[list[dict[str, Any]], list[list[int]] | None]:
        """Blocks, and of concatenated documents what remains (ids, and 1 where a word begins, 0 within, -1 special)."""
        if not texts:
            return [], rest
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        blocks, size = [], self.block_size - len(self.block_prefix) - len(self.block_suffix)
        ids, starts = map(list, rest) if rest else ([], [])
        for number, tokens in enumerate(encoded["input_ids"]):
            if not tokens:
                continue
            words = encoded.word_ids(number)
            begins = [int(place == 0 or word is None or word != words[place - 1]) for place, word in enumerate(words)]
            ids += [*self.document_prefix, *tokens, *self.document_suffix]
            starts += [*[-1] * len(self.document_prefix), *begins, *[-1] * len(self.document_suffix)]
            # The last tokens of a document are a shorter block, or go on into the next document.
            end = len(ids) - len(ids) % size if self.concatenate else len(ids)
            blocks += [self._block(ids[i : i + size], starts[i : i + size]) for i in range(0, end, size)]
            ids, starts = ids[end:], starts[end:]
        return blocks, [ids, starts] if ids else None

    def _block(self, ids: list[int], starts: list[int]) -> dict[str, Any]:
        words, word = [], -1
        for start in starts:
            # A block may begin within a word.
            word += start == 1 or (start == 0 and word == -1)
            words.append(word if start >= 0 else -1)
        return {
            "input_ids": [*self.block_prefix, *ids, *self.block_suffix],
            "words": [*[-1] * len(self.block_prefix), *words, *[-1] * len(self.block_suffix)],
        }

    def finish(self, rest: list[list[int]] | None) -> list[dict[str, Any]]:
        """What remains at the end of a corpus, as a shorter block."""
        return [self._block(*rest)] if rest else []


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    before = mask.index(0) if 0 in mask else len(mask)
    after = mask[::-1].index(0) if 0 in mask else 0
    return ids[:before], ids[len(ids) - after :]


@dataclass
class StreamEncoder:
    """Makes blocks of the documents of a stream; a class, because spawned data workers get it pickled."""

    make_blocks: BlockMaker
    admission: Admission
    place: str = "train"
    told: bool = False

    def __call__(self, texts: list[str], rest: Any) -> tuple[list[dict[str, Any]], Any]:
        counts: Counter = Counter()
        admitted = list(self.admission.admit(texts, counts))
        if counts["held out"] + counts["empty"] + counts["long"] and not self.told:
            self.told = True
            tell_counts(counts, f"{self.place}, among the first {len(texts)} documents of those with such")
        return self.make_blocks(admitted, rest)


def load_blocks(
    source: Source, make_blocks: BlockMaker, admission: Admission, limit: int | None, place: str
) -> Dataset:
    """All blocks of a source, memory-mapped from the cache on disk; what was left out is told.

    Args:
        limit: take the first so many documents.

    Raises:
        ValueError: there is none.
    """
    counts: Counter = Counter()

    def generate(place: str) -> Iterator[dict[str, Any]]:
        rest = None
        documents = admission.admit((row["text"] for row in source.rows), counts)
        documents = documents if limit is None else islice(documents, limit)
        for texts in _chunks(documents):
            blocks, rest = make_blocks(texts, rest)
            yield from blocks
        yield from make_blocks.finish(rest)
        if counts["taken"] == 0:
            tell_counts(counts, place)
            advice = " Give --validation_file, or another --validation_split_percentage." if admission.share else ""
            raise ValueError(f"{source.name} has no document for {place}.{advice}")

    settings = {name: value for name, value in vars(make_blocks).items() if name != "tokenizer"}
    tokenizer = make_blocks.tokenizer.backend_tokenizer.to_str()
    identity = [
        source.identity,
        settings,
        tokenizer,
        sorted(admission.held_out),
        admission.share,
        admission.takes_share,
    ]
    source.rows.load_state_dict(None)
    blocks = mapped_dataset(generate, BLOCK, {"place": place}, [*identity, limit, LONGEST_DOCUMENT])
    # What was counted when the blocks were made, which may have been in an earlier run.
    notes = Path(blocks.cache_files[0]["filename"]).with_suffix(".counts.json")
    if counts:
        notes.write_text(json.dumps(counts))
    elif notes.exists():
        counts = Counter(json.loads(notes.read_text()))
    tell_counts(counts, place)
    logger.info(f"{place}: {counts['taken']} documents of {source.name}, {len(blocks)} blocks.")
    return blocks


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk, length = [], 0
    for text in documents:
        chunk.append(text)
        length += len(text)
        if len(chunk) >= ROWS_AT_ONCE or length >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


# The splits of a run


@dataclass
class Splits:
    """Where the splits of a run come from; `share` as in `Admission`, if the validation data are part of the source."""

    train: Source | None
    validation: Source | None
    share: int = 0


def load_sources(args: argparse.Namespace) -> Splits:
    """The sources that the arguments name."""
    if args.dataset_name is not None:
        found = hub_sources(args.dataset_name, args.dataset_config_name, args.text_column_name, args.streaming)
        train, validation = found.get("train"), found.get("validation")
        if train is None and not args.eval_only:
            raise ValueError(f"{args.dataset_name} has no split 'train', but {', '.join(found)}.")
    else:
        train, validation = (
            file_source(files, args.text_column_name, args.document_unit) if files else None
            for files in (args.train_file, args.validation_file)
        )
    share = 0
    if validation is None and train is not None:
        share = round(args.validation_split_percentage * KINDS_OF_CONTENT / 100)
        validation = train if share else None
    return Splits(None if args.eval_only else train, validation, share)


def held_out_contents(splits: Splits) -> frozenset[int]:
    """The contents of all documents to evaluate on; those held out by their share need none."""
    if splits.validation is None or splits.share:
        return frozenset()
    splits.validation.rows.load_state_dict(None)
    return frozenset(content(row["text"]) for row in splits.validation.rows if (row["text"] or "").strip())


def check_tokens(splits: Splits, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises ValueError if the tokenizer does not know most of a split's text."""
    for place, source in (("train", splits.train), ("validation", splits.validation)):
        if source is not None:
            source.rows.load_state_dict(None)
            texts = [(row["text"] or "")[:CHARACTERS_SAMPLED] for row in islice(source.rows, TEXTS_SAMPLED)]
            check_known(tokenizer, name, texts, place)
