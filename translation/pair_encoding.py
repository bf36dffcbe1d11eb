# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes token ids out of pairs of texts: of data on disk, or of a stream."""

import argparse
from itertools import islice
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as ListOf
from parallel_text import check_text
from transformers import PreTrainedTokenizerBase

from ea_hf.training.languages import cut
from ea_hf.training.local_files import describe_files
from ea_hf.training.streaming import CutTexts, Stream
from ea_hf.training.terminal import script_logger
from ea_hf.training.tokenizer_loading import TEXTS_SAMPLED, check_known, sample


logger = script_logger(__name__)


def check_tokens(
    args: argparse.Namespace, data: dict[str, Dataset | IterableDataset], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ValueError if the tokenizer does not know most of one side of a split."""
    name = args.tokenizer_name or args.model_name_or_path
    for split, pairs in data.items():
        rows = pairs.select(sample(len(pairs))) if isinstance(pairs, Dataset) else list(islice(pairs, TEXTS_SAMPLED))
        for side in ("source", "target"):
            check_known(tokenizer, name, [row[side] for row in rows], f"the {side}s of {split}")


class PairEncoder:
    """Makes examples out of pairs of a stream; a class, because spawned data workers get it pickled."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase):
        self.args, self.tokenizer = args, tokenizer
        limits = {f"--{name}": getattr(args, name) for name in ("max_source_length", "max_target_length")}
        self.cut_texts = CutTexts(limits)

    def __call__(self, pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
        columns = {name: [pair[name] for pair in pairs] for name in ("source", "target")}
        encoded = encode(
            columns,
            list(range(len(pairs))),
            self.tokenizer,
            (self.args.source_lang, self.args.target_lang),
            self.args.source_prefix,
            self.args.max_source_length,
            self.args.max_target_length,
            "train",
            ["input_ids", "labels", "source_length", "target_length"],
        )
        self.cut_texts.note("--max_source_length", encoded.pop("source_length"))
        self.cut_texts.note("--max_target_length", encoded.pop("target_length"))
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def has_two_sides(pair: dict[str, str]) -> bool:
    return bool(pair["source"].strip() and pair["target"].strip())


def make_stream(args: argparse.Namespace, pairs: IterableDataset, tokenizer: PreTrainedTokenizerBase) -> Stream:
    """The pairs to train on; those with an empty side are left out."""
    if args.dataset_name is not None:
        description = f"{args.dataset_name} ({args.dataset_config_name}), train"
    else:
        description = describe_files(args.train_file)
    languages = f"{args.source_lang} to {args.target_lang}"
    return Stream(
        pairs, PairEncoder(args, tokenizer), args.shuffle_buffer_size, f"{description}, {languages}", has_two_sides
    )


def tokenize(
    args: argparse.Namespace,
    accelerator: Accelerator,
    data: dict[str, Dataset | IterableDataset],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Dataset]:
    """The splits as token ids, on disk. Pairs with an empty side are left out; they and what is cut are told.

    Columns: `input_ids`, `labels`; `source_length` and `target_length` before they are cut; for evaluation also `index`
    in the data, `source` and `reference`.
    """
    splits = {}
    for name, split in data.items():
        if isinstance(split, IterableDataset):
            continue
        columns = {"input_ids": ListOf(Value("int32")), "labels": ListOf(Value("int32"))}
        columns |= dict.fromkeys(("source_length", "target_length"), Value("int32"))
        if name != "train":
            columns |= {"index": Value("int64"), "source": Value("string"), "reference": Value("string")}
        with accelerator.main_process_first():
            splits[name] = split.map(
                encode,
                batched=True,
                with_indices=True,
                fn_kwargs={
                    "tokenizer": tokenizer,
                    "languages": (args.source_lang, args.target_lang),
                    "source_prefix": args.source_prefix,
                    "max_source_length": args.max_source_length,
                    "max_target_length": args.max_target_length,
                    "split": name,
                    "columns": list(columns),
                },
                features=Features(columns),
                remove_columns=split.column_names,
                num_proc=args.preprocessing_num_workers,
                load_from_cache_file=not (args.overwrite_cache and accelerator.is_main_process),
                desc=f"Tokenizing {name}",
            )
        skipped = len(split) - len(splits[name])
        if len(splits[name]) == 0:
            raise ValueError(f"All {skipped} pairs of {name} have an empty side.")
        if skipped:
            logger.warning(f"{name}: skipped {skipped} of {len(split)} pairs, which have an empty side.")
        for column, limit in (("source_length", args.max_source_length), ("target_length", args.max_target_length)):
            too_long = int((column_of(splits[name], column) > limit).sum())
            if too_long:
                side = column.removesuffix("_length")
                logger.warning(
                    f"{name}: {too_long} of {len(splits[name])} {side}s have more than {limit} tokens and were cut "
                    f"(--max_{side}_length)."
                )
    return splits


def encode(
    examples: dict[str, list],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    languages: tuple[str, str],
    source_prefix: str,
    max_source_length: int,
    max_target_length: int,
    split: str,
    columns: list[str],
) -> dict[str, list]:
    """A batch of `tokenize`."""
    rows: dict[str, list] = {name: [] for name in columns}
    pairs = []
    for index, source, target in zip(indices, examples["source"], examples["target"], strict=True):
        for text, language in zip((source, target), languages, strict=True):
            check_text(text, language, f"{split}, row {index + 1}")
        if source.strip() and target.strip():
            pairs.append((index, source, target))
    if not pairs:
        return rows
    # `verbose=False`: a T5 has no greatest length. Cut here, so that the tokenizer's own state, which is part of the
    # cache's key, stays as it is.
    inputs = tokenizer([source_prefix + source for _, source, _ in pairs], verbose=False)["input_ids"]
    labels = tokenizer(text_target=[target for _, _, target in pairs], verbose=False)["input_ids"]
    for (index, source, target), input_ids, label_ids in zip(pairs, inputs, labels, strict=True):
        row = {
            "input_ids": cut(input_ids, max_source_length, tokenizer),
            "labels": cut(label_ids, max_target_length, tokenizer),
            "source_length": len(input_ids),
            "target_length": len(label_ids),
            "index": index,
            "source": source,
            "reference": target,
        }
        for name, values in rows.items():
            values.append(row[name])
    return rows


def column_of(dataset: Dataset, name: str) -> np.ndarray:
    """A column of numbers; never a list of Python's."""
    return dataset.select_columns([name]).with_format("numpy")[:][name]
