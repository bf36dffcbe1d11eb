# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny vanilla T5 with its tokenizer, and files of real sentence pairs in all formats that the scripts read."""

import csv
import gzip
import json
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration


TRANSLATION = Path(__file__).parents[1] / "translation"
HELP_FILE = TRANSLATION / "data" / "libreoffice_help.en-de.jsonl.gz"
LANGUAGES = {"source_lang": "en", "target_lang": "de"}
TINY_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "num_heads": 2,
    "d_ff": 32,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "initializer_factor": 1.5,
    "dropout_rate": 0.0,
}


@cache
def help_rows(count: int = 400) -> list[dict[str, str]]:
    """The first rows of the LibreOffice help, with `en` and `de`."""
    with gzip.open(HELP_FILE, "rt", encoding="utf-8") as file:
        return [{name: row[name] for name in ("en", "de")} for row in map(json.loads, islice(file, count))]


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    return help_rows()[start : start + count]


def write_pairs(path: Path, rows: list[dict[str, Any]], nested: bool = False) -> list[str]:
    """Writes rows with `en` and `de` in the format of the path's name; returns the paths as strings.

    A path that ends with ".txt" becomes two text files; ".gz" may follow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.with_name(path.name.removesuffix(".gz")).suffix
    open_file = gzip.open if path.suffix == ".gz" else open
    if kind == ".txt":
        paths = [
            path.with_name(f"{path.name.split('.')[0]}.{name}.{path.name.split('.', 1)[1]}") for name in ("en", "de")
        ]
        for name, side in zip(("en", "de"), paths, strict=True):
            with open_file(side, "wt", encoding="utf-8", newline="") as file:
                file.writelines(row[name] + "\n" for row in rows)
        return list(map(str, paths))
    content = [{"id": i, "translation": row} for i, row in enumerate(rows)] if nested else rows
    if kind == ".parquet":
        pd.DataFrame(content).to_parquet(path)
        return [str(path)]
    with open_file(path, "wt", encoding="utf-8", newline="") as file:
        if kind == ".json":
            json.dump(content, file)
        elif kind == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        else:
            quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if kind == ".tsv" else {}
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", **quoting)
            writer.writeheader()
            writer.writerows(rows)
    return [str(path)]


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    from ea_hf.training.tokenizer_training import make_tokenizer, train_sentencepiece

    texts = [row[name] for row in help_rows() for name in ("en", "de")]
    return make_tokenizer(train_sentencepiece(texts, vocab_size=300), extra_ids=0)


def write_checkpoint(directory: Path, **config_values: Any) -> str:
    """Writes a random vanilla T5 and its tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = T5Config(**{"vocab_size": len(tokenizer) + 4, "decoder_start_token_id": 0, **TINY_T5, **config_values})
    T5ForConditionalGeneration(config).save_pretrained(directory)
    return str(directory)
