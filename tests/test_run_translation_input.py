# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What run_translation.py says about its input."""

import gzip
import json
import logging
import re
from pathlib import Path

import datasets
import pytest
import run_translation
from parallel_text import FEATURES, load_hub
from test_run_translation import files, read_predictions, translate, words_of
from tiny_t5 import pairs, tiny_tokenizer, write_checkpoint, write_pairs


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """The directory of a vanilla T5 with its tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"))


# What is said about the input


def test_empty_and_long_texts_are_counted(vanilla, tmp_path, caplog):
    rows = pairs(20)
    rows[2], rows[7], rows[11] = (
        {"en": "", "de": "leer"},
        {"en": "empty", "de": " \t"},
        {"en": "word " * 50, "de": "Wort"},
    )
    data = {
        "train_file": write_pairs(tmp_path / "train.txt", rows),
        "test_file": write_pairs(tmp_path / "test.csv", rows),
    }
    with caplog.at_level(logging.INFO):
        translate(
            tmp_path / "output", model_name_or_path=vanilla, **data, do_predict=True, max_source_length=40,
            preprocessing_num_workers=2,
        )  # fmt: skip
    tokenizer, kept = tiny_tokenizer(), [i for i in range(20) if i not in (2, 7)]
    too_long = {
        name: sum(len(tokenizer(rows[i][name])["input_ids"]) > limit for i in kept)
        for name, limit in (("en", 40), ("de", 24))
    }
    assert too_long["en"] and too_long["de"]
    for split in ("train", "test"):
        assert f"{split}: skipped 2 of 20 pairs, which have an empty side." in caplog.text
        assert f"{split}: {too_long['en']} of 18 sources have more than 40 tokens and were cut" in caplog.text
        assert f"{split}: {too_long['de']} of 18 targets have more than 24 tokens and were cut" in caplog.text
    assert [row["index"] for row in read_predictions(tmp_path / "output")] == kept


@pytest.mark.slow
def test_tokenizing_is_cached_and_can_be_repeated(vanilla, tmp_path):
    options = {
        "validation_file": files(tmp_path)["validation_file"], "model_name_or_path": vanilla, "eval_only": True,
        "num_beams": 1,
    }  # fmt: skip

    def cached() -> dict[Path, int]:
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        return {path: path.stat().st_mtime_ns for path in cache.rglob("cache-*.arrow")}

    translate(tmp_path / "first", **options)
    first = cached()
    translate(tmp_path / "second", **options)
    assert first and cached() == first
    translate(tmp_path / "third", **options, overwrite_cache=True)
    assert cached().keys() == first.keys() and all(cached()[path] > first[path] for path in first)


NOT_UTF8 = b'{"en": "a", "de": "b"}\n{"en": "Gr\xfc\xdfe", "de": "c"}\n'


@pytest.mark.parametrize(
    ("names", "contents", "message"),
    [
        (["a.jsonl"], [b'{"en": "a", "de": "b"}\n{"en": "a", "fr": "b"}\n'], "a.jsonl, row 2 has no text for 'de'; it has 'en', 'fr'"),
        (["a.jsonl"], [b'{"translation": {"en": "a"}}\n'], "a.jsonl, row 1 has no text for 'de'"),
        (["a.jsonl"], [b'{"en": "a", "de": null}\n'], "a.jsonl, row 1 has no text for 'de'"),
        (["a.jsonl"], [b'{"en": "a", "de": 5}\n'], "a.jsonl, row 1, language 'de': 5 is int, not text"),
        (["a.jsonl"], [b'{"translation": "a"}\n'], "a.jsonl, row 1: `translation` is 'a'"),
        (["a.jsonl"], [b'{"en": "a", "de": "b"}\n\n{"en":\n'], "a.jsonl, line 3 is not JSON"),
        (["a.json"], [b'["a"]'], "a.json, row 1 is 'a', not an object"),
        (["a.jsonl"], [NOT_UTF8], "a.jsonl, line 2 is not UTF-8: b'{\"en\": \"Gr\\xfc"),
        (["a.jsonl.gz"], [gzip.compress(NOT_UTF8, mtime=0)], "a.jsonl.gz, line 2 is not UTF-8"),
        (["a.jsonl.gz"], [gzip.compress(NOT_UTF8 * 99, mtime=0)[:60]], "a.jsonl.gz cannot be read"),
        (["a.jsonl.gz"], [b"no gzip"], "a.jsonl.gz cannot be read"),
        (["a.csv"], [b"en,de\na,b\na,b,c\n"], "a.csv, row 2 has 3 fields, but the header names 2"),
        (["a.csv"], [b"en,fr\na,b\n"], "a.csv, row 1 has no text for 'de'"),
        (["a.parquet"], [b"no parquet"], "a.parquet cannot be read"),
        (["a.jsonl"], [b""], "a.jsonl: no rows"),
        (["a.txt"], [b"a\n"], "a.txt is none of .jsonl"),
        (["a.en"], [b"a\n"], "taken for the text of one language; pass two text files"),
        (["a.jsonl", "b.jsonl"], [b"a\n", b"b\n"], "a.jsonl is a table, but of two files each must be the plain text"),
        (["a.en", "a.tsv.gz"], [b"a\n", gzip.compress(b"b\n", mtime=0)], "a.tsv.gz is a table"),
        (["a.en", "./a.en"], [b"a\n", b"a\n"], "are the same file"),
        (["a.csv"], [b"en;de\na;b\n"], "a.csv has only one column, 'en;de'; its values seem to be separated by ';'"),
        (["a.jsonl"], [b'{"en": "a", "de": "b"}\n{"en": "\\udc00", "de": "b"}\n'], "a.jsonl, line 2 has half of a surrogate pair"),
        (["a.jsonl"], [b'{"translation": {"en": "\\ud800", "de": "b"}}\n'], "a.jsonl, line 1 has half of a surrogate pair"),
        (["a.en", "a.de"], [b"a\nb\nc\n", b"a\n"], "a.en has 3 lines and a.de has 1 lines"),
        (["a.en", "a.de"], [b"a\n", b"a\nb\n"], "a.en has 1 lines and a.de has 2 lines"),
        (["a.en", "a.de"], [b"a\n", b"\xff\n"], "a.de, line 1 is not UTF-8"),
        (["a", "b", "c"], [b"", b"", b""], "3 files"),
        (["nowhere.csv"], [None], "nowhere.csv does not exist"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_before_anything_is_written(names, contents, message, vanilla, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in zip(names, contents, strict=True):
        if content is not None:
            Path(name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        translate(tmp_path / "output", model_name_or_path=vanilla, train_file=names)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("names", [["a.jsonl"], ["a.en", "a.de"]])
def test_a_fault_of_a_stream_is_told_before_training(names, vanilla, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path(name).write_text('{"en": "\\ud800", "de": "b"}\n' if name == "a.jsonl" else "")
    message = "line 1 has half of a surrogate pair" if names == ["a.jsonl"] else "no rows"
    with pytest.raises(ValueError, match=message):
        translate(tmp_path / "output", model_name_or_path=vanilla, train_file=names, streaming=True, max_train_steps=1)
    assert not (tmp_path / "output").exists()


def test_a_split_without_rows_is_told(tmp_path, monkeypatch):
    args = run_translation.parse_args(words_of(tmp_path / "output", model_name_or_path="x", dataset_name="wmt16"))
    full, empty = ({"source": ["a"] * count, "target": ["b"] * count} for count in (3, 0))
    splits = {"train": datasets.Dataset.from_dict(full), "validation": datasets.Dataset.from_dict(empty)}
    streamed = datasets.IterableDataset.from_generator(lambda: iter(()), features=FEATURES)
    for kind in (splits, {**splits, "validation": streamed}):
        monkeypatch.setattr(run_translation, "load_hub", lambda *_, kind=kind: kind)
        with pytest.raises(ValueError, match=r"The split 'validation' of wmt16 is empty"):
            run_translation.load_data(args)


def test_a_damaged_repository_is_told_with_its_cause(tmp_path):
    write_pairs(tmp_path / "repository/train.jsonl", pairs(3))
    (tmp_path / "repository/validation.jsonl").write_text('{"en": ')
    with pytest.raises(ValueError, match=r"repository \(None\) cannot be read: .*JSON"):
        load_hub(str(tmp_path / "repository"), None, "en", "de")


def test_nothing_but_empty_pairs_is_told(vanilla, tmp_path):
    data = {"train_file": write_pairs(tmp_path / "train.csv", [{"en": "", "de": "a"}] * 3)}
    with pytest.raises(ValueError, match="All 3 pairs of train have an empty side"):
        translate(tmp_path / "output", model_name_or_path=vanilla, **data)


def test_a_tokenizer_that_does_not_fit_is_told(tmp_path):
    data = {"train_file": write_pairs(tmp_path / "train.csv", pairs(5))}
    small = write_checkpoint(tmp_path / "small", vocab_size=100)
    with pytest.raises(ValueError, match=f"has {len(tiny_tokenizer())} tokens, but the model only 100 embeddings"):
        translate(tmp_path / "output", model_name_or_path=small, **data)
    shifted = write_checkpoint(tmp_path / "shifted", eos_token_id=5)
    with pytest.raises(ValueError, match=r"eos_token_id is 1 in the tokenizer .* but 5 in the model"):
        translate(tmp_path / "output", model_name_or_path=shifted, **data)
    fits = write_checkpoint(tmp_path / "fits")
    settings = json.loads((Path(fits) / "tokenizer_config.json").read_text())
    settings["tokenizer_class"], settings["pad_token"] = "PreTrainedTokenizerFast", None
    (Path(fits) / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no pad_token, which a model that translates needs"):
        translate(tmp_path / "output", model_name_or_path=fits, **data)
    assert not (tmp_path / "output").exists()
