# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Documents of all kinds of files as blocks of tokens, on disk and as a stream that processes share."""

import gzip
import itertools
import json
import logging
import tracemalloc
from argparse import Namespace
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest
import text_data
from datasets import IterableDataset
from text_data import Admission, BlockMaker, file_source, find_files, read_documents
from tiny_bert import write_checkpoint
from tiny_language import documents, write_text
from transformers import AutoTokenizer

from ea_hf.training.sharded_streaming import ShardedBatches, ShardedStream


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    return AutoTokenizer.from_pretrained(write_checkpoint(tmp_path_factory.mktemp("vanilla")))


# Files


def write(path: Path, texts: list[str]) -> Path:
    kind = path.with_name(path.name.removesuffix(".gz").removesuffix(".zst")).suffix
    if kind == ".parquet":
        pd.DataFrame({"text": texts}).to_parquet(path)
        return path
    if kind == ".csv":
        content = pd.DataFrame({"text": texts}).to_csv(index=False)
    else:
        content = "".join((json.dumps({"text": t, "id": 1}) if kind == ".jsonl" else t) + "\n" for t in texts)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    elif path.suffix == ".zst":
        with pyarrow.output_stream(path, compression="zstd") as file:
            file.write(content.encode())
    else:
        path.write_text(content)
    return path


KINDS = ["txt", "jsonl", "csv", "parquet", "txt.gz", "jsonl.gz", "txt.zst", "jsonl.zst", "csv.zst"]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_all_kinds_of_files(kind, tmp_path):
    texts = [*documents(5), "größer, and “quoted”"]
    path = write(tmp_path / f"texts.{kind}", texts)
    assert list(read_documents(str(path))) == texts
    assert [row["text"] for row in file_source([str(tmp_path)], None, "line").rows] == texts


def test_directories_and_patterns_name_each_file_once(tmp_path):
    for name in ("a/one.txt", "a/b/two.jsonl", "a/picture.png", "three.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [str(tmp_path / "a"), str(tmp_path / "*.txt"), str(tmp_path / "three.txt")]
    expected = ["a/b/two.jsonl", "a/one.txt", "three.txt"]
    assert [str(Path(file).relative_to(tmp_path)) for file in find_files(names)] == expected
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_files([str(tmp_path / "*.csv")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file of the types"):
        find_files([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["one", "two", "", "three", " ", "four"]),
        ("paragraph", ["one\ntwo\n", "three\n", "four"]),
        ("file", ["one\ntwo\n\nthree\n \nfour"]),
    ],
)
def test_units_of_a_text_file(unit, expected, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n \nfour")
    assert list(read_documents(str(tmp_path / "a.txt"), unit=unit)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\x7fELF\x00\x01\n", "a.txt, line 1 has a null character: it is a binary file"),
        ("a.txt", b"text\n\xff\xfe\n", "a.txt, line 2 is not UTF-8"),
        ("a.txt", b"text\nhalf: \xed\xa0\x80\n", "a.txt, line 2 is not UTF-8: it has half of a surrogate pair"),
        ("a.txt", b"text\n" + b"y" * 250_000 + b"\xe4 rest", "a.txt, line 2 is not UTF-8"),
        ("a.txt", b"text\ncut off: \xe2\x82", "a.txt, line 2 is not UTF-8"),
        ("a.txt", b"\xff\xfea\x00\n\x00", "a.txt, line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b \\ud800"}\n', "a.jsonl, line 3 has half of a surrogate pair"),
        ("a.txt.zst", b"no zstandard", "a.txt.zst cannot be read"),
        ("a.txt.gz", gzip.compress(b"text that ends early\n" * 1000, mtime=0)[:-20], "a.txt.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-20], "a.jsonl.gz cannot be read"),
        ("a.jsonl", b'{"title": "a", "body": "b"}\n', "has the columns 'title', 'body'; name the one"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, row 1, column 'text': 3 is int"),
    ],
)
def test_files_that_cannot_be_read_are_told(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_documents(str(tmp_path / name)))


# Which documents


def test_what_is_left_out_is_counted_and_nothing_of_it_comes_through(caplog):
    held_out = documents(3)
    texts = ["", "  ", None, *documents(10), held_out[0] + " \n"]
    counts: Counter = Counter()
    admitted = list(Admission(frozenset(map(text_data.content, held_out))).admit(texts, counts))
    assert admitted == documents(7, start=3)
    assert counts == {"empty": 3, "held out": 4, "taken": 7, "long": 0}
    with caplog.at_level(logging.WARNING):
        text_data.tell_counts(counts, "train")
    assert "train: dropped 4 documents" in caplog.text and "train: skipped 3 empty documents" in caplog.text


def test_a_huge_document_comes_in_pieces_and_nothing_of_it_is_lost():
    text = " ".join(documents(60_000 // 50)) * 20
    assert len(text) > 1_000_000
    counts: Counter = Counter()
    parts = list(Admission().admit([text, "x" * 250_000], counts))
    assert "".join(parts) == text + "x" * 250_000 and counts["long"] == 2
    assert max(map(len, parts)) <= text_data.LONGEST_DOCUMENT
    assert all(part.startswith(" ") for part in parts[1:8])


def test_one_huge_line_is_shared_as_pieces_and_told(tmp_path, tokenizer, caplog):
    text = " ".join(documents(1200)) * 20
    file = write_text(tmp_path / "huge.txt", [text, "Avoid."])
    with caplog.at_level(logging.WARNING):
        rows = [row["text"] for row in file_source([str(file)], None, "line").rows]
    assert "".join(rows[:-1]) == text and max(map(len, rows)) <= text_data.LONGEST_DOCUMENT
    assert "documents of more than 100000 characters are read in pieces" in caplog.text
    batches = ShardedBatches(stream_of([file], tokenizer), 8)
    assert len(steps_of(batches, 1)[0][0]) == 8 and len(rows) > batches.num_lanes


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_text_files_come_in_the_pieces_that_their_whole_documents_have(unit, tmp_path, monkeypatch):
    """Whatever the place where a part of a line ends: within a character, before the line's end, in white space."""
    text = "\ufeffgrüße €𝄞 end\n  \nxxxxxxxxxxxxxxxxxxxxxx\r\n\n\na b c d e f g h i j k\nlast\r\n\nno end €"
    (tmp_path / "a.txt").write_bytes(text.encode())
    text = text[1:]
    lines = [line.rstrip("\r\n") for line in text.split("\n")]
    paragraphs = ["".join(group) for blank, group in itertools.groupby(text.splitlines(True), lambda line: not line.strip())
                  if not blank]  # fmt: skip
    for longest in range(4, 40):
        monkeypatch.setattr(text_data, "LONGEST_DOCUMENT", longest)
        monkeypatch.setattr(text_data.end_of_piece, "__defaults__", (0, longest))
        wholes = {"line": lines, "paragraph": paragraphs, "file": [text]}[unit]
        expected = [
            piece for whole in wholes for piece in (text_data.pieces(whole, longest) if whole.strip() else [whole])
        ]
        assert list(read_documents(str(tmp_path / "a.txt"), unit=unit)) == expected, longest


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_memory_is_flat_on_one_huge_line(unit, tmp_path):
    with (tmp_path / "huge.txt").open("w") as file:
        for _ in range(200):
            file.write("A word or two. " * 10_000)  # 30 million characters in all
    tracemalloc.start()
    try:
        count = sum(len(text) for text in read_documents(str(tmp_path / "huge.txt"), unit=unit))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 29_999_000 < count <= 30_000_000 and peak < 3_000_000


# Blocks


def test_blocks_end_with_their_document(tokenizer):
    texts = documents(9)
    blocks, rest = BlockMaker(tokenizer, 12, [2], [3])(texts)
    expected = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected += [[2, *ids[i : i + 10], 3] for i in range(0, len(ids), 10)]
    assert [block["input_ids"] for block in blocks] == expected and rest is None
    for block in blocks:
        assert block["words"][0] == block["words"][-1] == -1 and block["words"][1] == 0
        assert all(0 <= b - a <= 1 for a, b in zip(block["words"][1:-1], block["words"][2:-1], strict=False))


def test_concatenated_documents_follow_each_other(tokenizer):
    texts = documents(9)
    make_blocks = BlockMaker(tokenizer, 12, [2], [3], document_suffix=[3], concatenate=True)
    blocks, rest = make_blocks(texts[:4])
    more, rest = make_blocks(texts[4:], rest)
    blocks += more + make_blocks.finish(rest)
    whole = list(chain.from_iterable([*tokenizer(t, add_special_tokens=False)["input_ids"], 3] for t in texts))
    assert list(chain.from_iterable(block["input_ids"][1:-1] for block in blocks)) == whole
    assert {len(block["input_ids"]) for block in blocks[:-1]} == {12}
    assert all((i == 3) == (w == -1) for b in blocks for i, w in zip(b["input_ids"][1:], b["words"][1:], strict=True))


def test_what_was_left_out_is_told_again_when_blocks_come_from_the_cache(tokenizer, tmp_path, caplog):
    source = file_source([str(write_text(tmp_path / "a.txt", [*documents(5), ""]))], None, "line")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            blocks = text_data.load_blocks(source, BlockMaker(tokenizer, 12, [2], [3]), Admission(), None, "train")
        assert "train: skipped 1 empty documents" in caplog.text and "5 documents" in caplog.text
    with (tmp_path / "a.txt").open("a") as file:
        file.write("A small film.\n")
    source = file_source([str(tmp_path / "a.txt")], None, "line")
    again = text_data.load_blocks(source, BlockMaker(tokenizer, 12, [2], [3]), Admission(), None, "train")
    assert len(again) == len(blocks) + 1


# Streams


def stream_of(files: list[Path], tokenizer: Any, buffer_size: int = 40) -> ShardedStream:
    source = file_source([str(file) for file in files], None, "line")
    encoder = text_data.StreamEncoder(BlockMaker(tokenizer, 24, [2], [3]), Admission())
    return ShardedStream(source.rows, encoder, buffer_size, "texts")


def steps_of(batches: ShardedBatches, count: int, first_step: int = 0, position: Any = None, workers: int = 0) -> list:
    steps = batches.load(batches.stream, list, workers, epoch=0, first_step=first_step, position=position, limit=count)
    return [({e["key"]: tuple(e["input_ids"]) for part in step.inputs for e in part}, step) for step in steps]


@pytest.fixture
def corpora(tmp_path):
    """Two files, and as many as make each lane read its own."""
    few = [write_text(tmp_path / f"few/{i}.txt", documents(60, 60 * i)) for i in range(2)]
    many = [write_text(tmp_path / f"many/{i:02}.txt", documents(4, 4 * i)) for i in range(40)]
    return {"few": few, "many": many}


@pytest.mark.parametrize("kind", ["few", "many"])
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (2, 2), (4, 1), (8, 1), (1, 8)])
def test_processes_share_a_stream_and_its_examples(kind, processes, accumulation, corpora, tokenizer):
    stream = stream_of(corpora[kind], tokenizer)
    whole = [examples for examples, _ in steps_of(ShardedBatches(stream, 8), 9)]
    shares = [
        steps_of(ShardedBatches(stream, 8 // processes // accumulation, accumulation, processes, rank), 9)
        for rank in range(processes)
    ]
    for number, step in enumerate(whole):
        parts = [share[number][0] for share in shares]
        assert sum(map(len, parts)) == 8 and dict(chain.from_iterable(part.items() for part in parts)) == step
    positions = [set(share[-1][1].next_position) for share in shares]
    assert sum(map(len, positions)) == 8 or accumulation > 1  # no part is read by two


def test_processes_open_only_their_own_files(corpora, tokenizer):
    stream = stream_of(corpora["many"], tokenizer)
    seen = []
    for rank in range(2):
        batches = ShardedBatches(stream, 4, 1, 2, rank)
        lanes = {place // (8 // batches.num_lanes) for part in batches.places() for place in part}
        seen.append({row["text"] for lane in lanes for row in batches.source(lane)[0]})
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 160


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["few", "many"])
def test_a_stream_goes_on_from_any_step(kind, workers, corpora, tokenizer):
    """Also beyond the end of the corpus, where it begins again."""
    stream = stream_of(corpora[kind], tokenizer, buffer_size=24)
    steps = steps_of(ShardedBatches(stream, 4, 2), 60, workers=workers)
    assert max(state["pass"] for state in steps[-1][1].next_position.values()) >= 1
    for done in (1, 7, 29, 45):
        position = json.loads(json.dumps(steps[done - 1][1].next_position))
        again = steps_of(ShardedBatches(stream, 4, 2), 5, done, position, workers)
        assert [examples for examples, _ in again] == [examples for examples, _ in steps[done : done + 5]]


def test_every_document_comes_once_in_a_pass_and_a_second_pass_is_told(corpora, tokenizer, caplog):
    stream = stream_of(corpora["few"], tokenizer)
    batches = ShardedBatches(stream, 8)
    found: list[tuple] = []
    with caplog.at_level(logging.WARNING):
        for lane in range(8):
            first = (example for example, position in batches.examples(lane, None) if position["pass"] == 0)
            blocks, _ = stream.encode([t for i, t in enumerate(documents(120)) if i % 8 == lane], None)
            found += [tuple(block["input_ids"]) for block in islice(first, len(blocks))]
        next(islice(batches.examples(0, None), 100, None))
    expected, _ = stream.encode(documents(120), None)
    assert sorted(found) == sorted(tuple(block["input_ids"]) for block in expected)
    assert "read again from its beginning" in caplog.text


def test_a_stream_of_too_few_documents_is_told(tmp_path, tokenizer):
    stream = stream_of([write_text(tmp_path / "a.txt", documents(3))], tokenizer)
    with pytest.raises(ValueError, match="nothing to train on in part 4 of 8"):
        steps_of(ShardedBatches(stream, 8), 1)


def test_sources_of_a_data_set_in_a_directory(tmp_path):
    write(tmp_path / "train.jsonl", documents(5))
    write(tmp_path / "validation.jsonl", documents(2, 9))
    for streaming in (False, True):
        args = Namespace(
            dataset_name=str(tmp_path), dataset_config_name=None, text_column_name=None, streaming=streaming, eval_only=False
        )  # fmt: skip
        splits = text_data.load_sources(args)
        assert isinstance(splits.train.rows, IterableDataset)
        assert [row["text"] for row in splits.train.rows] == documents(5)
        assert text_data.held_out_contents(splits) == set(map(text_data.content, documents(2, 9)))
