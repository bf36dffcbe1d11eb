# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Pairs of Bible verses in two wordings: the same verse, or a neighbouring one that is hard to tell apart."""

import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


SPLITS = ("train", "validation", "test")
VERSES_FILE = Path(__file__).resolve().parent / "data" / "verses.jsonl.gz"
# Which book belongs to which kind of text and which split. Books that repeat each other stand in one split: Samuel,
# Kings and Chronicles; the first three gospels; Joshua and Judges; Ezra and Nehemiah.
BOOKS = {
    "law": {
        "train": "Genesis, Exodus, Deuteronomy",
        "validation": "Leviticus",
        "test": "Numbers",
    },
    "history": {
        "train": "I Samuel, II Samuel, I Kings, II Kings, I Chronicles, II Chronicles",
        "validation": "Joshua, Judges",
        "test": "Ruth, Ezra, Nehemiah, Esther",
    },
    "poetry": {
        "train": "Psalms, Proverbs",
        "validation": "Ecclesiastes, Song of Solomon, Lamentations",
        "test": "Job",
    },
    "prophets": {
        "train": "Isaiah, Jeremiah, Obadiah, Jonah, Micah, Nahum, Habakkuk, Zephaniah, Haggai, Malachi",
        "validation": "Daniel, Hosea, Joel, Amos",
        "test": "Ezekiel, Zechariah",
    },
    "gospels": {
        "train": "Matthew, Mark, Luke",
        "validation": "Acts",
        "test": "John",
    },
    "letters": {
        "train": "Romans, II Corinthians, Galatians, Ephesians, Philippians, Colossians, I Thessalonians, "
        "II Thessalonians, I Timothy, II Timothy, Titus, Philemon, II Peter, I John, II John, III John, Jude",
        "validation": "I Corinthians, James",
        "test": "Hebrews, I Peter, Revelation of John",
    },
}
PAIRS_PER_SPLIT = {"train": 4000, "validation": 800, "test": 800}  # MRPC has 3,668 / 408 / 1,725
# What makes a negative hard. For neighbours taken at random, shared words alone tell with 97 % accuracy which pair is
# true and which false, so neighbours are taken only if that overlap is little larger for the true pairs than for the
# false ones (on average at most by this margin), and if the texts are of similar length.
MAX_OVERLAP_MARGIN = 0.35
MIN_LENGTH_RATIO = 0.75


def digest(text: str) -> str:
    """A number that orders texts at random, yet in the same way everywhere; Python's own hash differs per process."""
    return hashlib.sha256(text.encode()).hexdigest()


def normalise(text: str) -> str:
    """What two snippets must share to count as identical: everything but case and white space."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Verse:
    book: str
    chapter: int
    verse: int
    web: str  # World English Bible
    kjv: str  # King James Version

    @property
    def place(self) -> tuple[str, int, int]:
        return self.book, self.chapter, self.verse


def read_verses(path: Path = VERSES_FILE) -> list[Verse]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Verse(**json.loads(line)) for line in file]


def word_overlap(first: str, second: str) -> float:
    """Shared words over all words of two texts (Jaccard)."""
    one, other = (set(re.findall(r"\w+", text.casefold())) for text in (first, second))
    return len(one & other) / max(1, len(one | other))


def are_hard_to_tell_apart(first: Verse, second: Verse) -> bool:
    """Whether word overlap and length say little about which wording belongs to which of two verses."""
    lengths = [len(text) for verse in (first, second) for text in (verse.web, verse.kjv)]
    if min(lengths) < MIN_LENGTH_RATIO * max(lengths):
        return False
    same = word_overlap(first.web, first.kjv) + word_overlap(second.web, second.kjv)
    other = word_overlap(first.web, second.kjv) + word_overlap(second.web, first.kjv)
    return 0 <= (same - other) / 2 <= MAX_OVERLAP_MARGIN


def hard_neighbours(verses: Iterable[Verse]) -> list[tuple[Verse, Verse]]:
    """All pairs of verses of one chapter, one or two apart, that are hard to tell apart."""
    at = {verse.place: verse for verse in verses}
    return [
        (verse, neighbour)
        for (book, chapter, number), verse in at.items()
        for distance in (1, 2)
        if (neighbour := at.get((book, chapter, number + distance))) and are_hard_to_tell_apart(verse, neighbour)
    ]


def kinds_of_books(split: str) -> dict[str, str]:
    """Maps every book of `split` to its kind of text."""
    return {book: kind for kind, books in BOOKS.items() for book in books[split].split(", ")}


def choose_neighbours(candidates: list[tuple[Verse, Verse]], books: dict[str, str], number: int) -> list:
    """Chooses `number` pairs of neighbours, evenly over the kinds of text as far as they last, no verse twice.

    `books` maps the books to choose from to their kind of text.
    """
    waiting: dict[str, list[tuple[Verse, Verse]]] = {kind: [] for kind in sorted(set(books.values()))}
    for pair in sorted(candidates, key=lambda pair: digest(f"{pair[0].place} {pair[1].place}"), reverse=True):
        if pair[0].book in books:
            waiting[books[pair[0].book]].append(pair)
    chosen: list[tuple[Verse, Verse]] = []
    used: set[tuple[str, int, int]] = set()
    for kind in itertools.cycle(list(waiting)):
        if len(chosen) == number or not any(waiting.values()):
            break
        while waiting[kind]:
            pair = waiting[kind].pop()
            if used.isdisjoint(verse.place for verse in pair):
                used.update(verse.place for verse in pair)
                chosen.append(pair)
                break
    return chosen


def pairs_of_neighbours(first: Verse, second: Verse, web_first: bool) -> list[tuple[str, str, str]]:
    """Four rows in which each text stands once in an equivalent and once in another pair, on the same side.

    So neither a text by itself, nor its side, nor its length says anything about the label.
    """
    rows = []
    for web, kjv in itertools.product((first, second), repeat=2):
        sentences = (web.web, kjv.kjv) if web_first else (kjv.kjv, web.web)
        rows.append((*sentences, "equivalent" if web is kjv else "not_equivalent"))
    return rows


def verse_pairs(verses: list[Verse]) -> dict[str, list[tuple]]:
    """Same verse or not, in two wordings; split by book."""
    candidates = hard_neighbours(verses)
    rows: dict[str, list[tuple]] = {}
    for split in SPLITS:
        books = kinds_of_books(split)
        chosen = choose_neighbours(candidates, books, PAIRS_PER_SPLIT[split] // 4)
        pairs = [
            row
            for index, (first, second) in enumerate(chosen)
            for row in pairs_of_neighbours(first, second, web_first=index // len(BOOKS) % 2 == 0)
        ]
        rows[split] = sorted(pairs, key=lambda row: digest("\t".join(row)))
    return rows
