# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The tasks of `benchmarks/variants.py` on text: language models and translation from scratch, and fine-tuning."""

import csv
import gzip
import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _script_folders  # noqa: F401 -- must come first
import numpy as np
import torch
from sacrebleu.metrics import BLEU
from scipy.stats import pearsonr
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from variant_training import Batch, Problem, Task, epochs

import ea_hf
from ea_hf.training.tokenizer_training import make_tokenizer, train_sentencepiece


ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
IGNORED = -100
CHARACTERS = 128  # of a window
MASKED_LENGTH, VOCABULARY, MASKED_SHARE = 48, 2000, 0.15
FINE_TUNING_LENGTH, FINE_TUNING_EXAMPLES, FINE_TUNING_TESTS = 32, 4000, 400
TESTS, TRANSLATED = 400, 100


def evolved(model: torch.nn.Module, fields: dict[str, Any] | None) -> torch.nn.Module:
    if fields is None:
        return model
    return ea_hf.evolve(model, **{name.removeprefix("ea_"): value for name, value in fields.items()})


def is_held_out(name: str, percent: int = 10) -> bool:
    """The same everywhere; Python's own hash differs per process."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < percent


def verses() -> dict[str, list[dict[str, str]]]:
    """Verses in two wordings; whole chapters are held out."""
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    with gzip.open(ROOT / "glue" / "data" / "verses.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            splits["test" if is_held_out(f"{row['book']} {row['chapter']}") else "train"].append(row)
    return splits


def token_loss(model: torch.nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Mean cross-entropy of the labels, in nats."""
    total = count = 0.0
    for batch in batches:
        labels = int((batch["labels"] != IGNORED).sum())
        total += model(**batch).loss.item() * labels
        count += labels
    return {"loss": total / count}


def load_characters(task: Task) -> Problem:
    splits = {name: "\n".join(row["web"] for row in rows) for name, rows in verses().items()}
    index = {character: number for number, character in enumerate(sorted(set("".join(splits.values()))))}
    ids = {name: torch.tensor([index[character] for character in text]) for name, text in splits.items()}
    held_out = ids["test"][: len(ids["test"]) // CHARACTERS * CHARACTERS].view(-1, CHARACTERS)[: TESTS // 2]

    def batches(seed: int) -> Iterator[Batch]:
        generator = np.random.default_rng(seed)
        while True:
            starts = generator.integers(len(ids["train"]) - CHARACTERS, size=task.batch_size)
            windows = torch.stack([ids["train"][start : start + CHARACTERS] for start in starts])
            yield {"input_ids": windows, "labels": windows}

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        return small_gpt2(len(index), CHARACTERS, fields, width)

    tests = [{"input_ids": part, "labels": part.clone()} for part in held_out.split(20)]
    # The first character of a window is not predicted, in all windows alike.
    return Problem(make_model, batches, lambda model: token_loss(model, tests))


def small_gpt2(vocab_size: int, length: int, fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=length,
        **{"n_embd": 128, "n_layer": 4, "n_head": 4, "n_inner": 512 + width},
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    config.loss_type = "ForCausalLM"
    return evolved(GPT2LMHeadModel(config), fields)


def load_masked(task: Task) -> Problem:
    splits = {
        name: [re.findall(r"\w+|[^\w\s]", row["web"].lower())[:MASKED_LENGTH] for row in rows]
        for name, rows in verses().items()
    }
    counts = Counter(word for row in splits["train"] for word in row)
    padding, unknown, mask = range(3)
    words = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 3]
    index = {word: number for number, word in enumerate(words, start=3)}

    def batch_of(rows: list[list[str]], generator: np.random.Generator) -> Batch:
        ids = torch.full((len(rows), MASKED_LENGTH), padding)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor([index.get(word, unknown) for word in row])
        chosen = torch.from_numpy(generator.random(ids.shape) < MASKED_SHARE) & (ids > mask)
        return {
            "input_ids": ids.masked_fill(chosen, mask),
            "attention_mask": (ids != padding).long(),
            "labels": ids.masked_fill(~chosen, IGNORED),
        }

    def batches(seed: int) -> Iterator[Batch]:
        generator = np.random.default_rng([seed, 1])
        for indices in epochs(len(splits["train"]), task.batch_size, seed):
            yield batch_of([splits["train"][number] for number in indices], generator)

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512 + width,
            max_position_embeddings=MASKED_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=padding,
        )
        return evolved(BertForMaskedLM(config), fields)

    generator = np.random.default_rng(0)
    rows = splits["test"]
    tests = [batch_of(rows[start : start + 50], generator) for start in range(0, len(rows), 50)]
    return Problem(make_model, batches, lambda model: token_loss(model, tests))


def help_pairs() -> dict[str, list[tuple[str, str]]]:
    """English and German sentences of the LibreOffice help, split as translation/translation_offline.py does."""
    specification = importlib.util.spec_from_file_location(
        "help_data", ROOT / "translation" / "prepare_data.py"
    )  # glue/ has a prepare_data.py as well
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    splits = module.split_by_page(module.read_help())
    pairs = {
        name: [(row["translation"]["en"], row["translation"]["de"]) for row in rows] for name, rows in splits.items()
    }
    return {"train": pairs["train"], "test": pairs["validation"]}


def verse_pairs() -> dict[str, list[tuple[str, str]]]:
    """Verses of the World English Bible, and of the King James Version."""
    return {name: [(row["web"], row["kjv"]) for row in rows] for name, rows in verses().items()}


def tokenizer_of(name: str, texts: list[str], size: int) -> Any:
    """A SentencePiece tokenizer of the training texts, made once."""
    path = DATA / "variants" / f"{name}.model"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = train_sentencepiece(
            texts, size, normalization_rule_name="identity", num_threads=1, input_sentence_size=len(texts)
        )
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(model)
        aside.replace(path)
    return make_tokenizer(path.read_bytes(), extra_ids=0)


def load_translation(
    task: Task, pairs: dict[str, list[tuple[str, str]]], name: str, vocabulary: int, length: int
) -> Problem:
    """A small T5 from scratch, on the pairs that have at most `length` tokens on each side."""
    tokenizer = tokenizer_of(name, [text for pair in pairs["train"] for text in pair], vocabulary)

    def encode(rows: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        return list(zip(*(tokenizer([row[side] for row in rows]).input_ids for side in (0, 1)), strict=True))

    def short(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [row for row, sides in zip(rows, encode(rows), strict=True) if max(map(len, sides)) <= length]

    pairs = {split: short(rows) for split, rows in pairs.items()}
    train = encode(pairs["train"])
    held_out = sorted(pairs["test"], key=lambda pair: hashlib.sha256(repr(pair).encode()).hexdigest())[:TESTS]
    tests = sorted(encode(held_out), key=lambda sides: (len(sides[0]), sides))

    def batch_of(rows: list[tuple[list[int], list[int]]]) -> Batch:
        sources, targets = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[side]) for row in rows], batch_first=True, padding_value=tokenizer.pad_token_id
            )
            for side in (0, 1)
        )
        return {
            "input_ids": sources,
            "attention_mask": (sources != tokenizer.pad_token_id).long(),
            "labels": targets.masked_fill(targets == tokenizer.pad_token_id, IGNORED),
        }

    def batches(seed: int) -> Iterator[Batch]:
        # Sentences of similar length together, as --group_by_length does: within pools of twenty batches.
        for pool in epochs(len(train), 20 * task.batch_size, seed):
            order = sorted(pool.tolist(), key=lambda number: (len(train[number][0]), number))
            parts = [order[start : start + task.batch_size] for start in range(0, len(order), task.batch_size)]
            for part in np.random.default_rng([seed, int(pool[0])]).permutation(len(parts)):
                yield batch_of([train[number] for number in parts[part]])

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        options = {
            "vocab_size": len(tokenizer),
            "d_model": 128,
            "d_kv": 16,
            "d_ff": 384 + width,
            "num_layers": 3,
            "num_heads": 8,
            "decoder_start_token_id": tokenizer.pad_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        vanilla = T5ForConditionalGeneration(T5Config(**options))
        if fields is None:
            return vanilla
        return with_weights_of(vanilla, ea_hf.EAT5ForConditionalGeneration(ea_hf.EAT5Config(**options, **fields)))

    def bleu(model: torch.nn.Module) -> dict[str, float]:
        texts, references = [], [target for _, target in held_out[:TRANSLATED]]
        encoded = encode(held_out[:TRANSLATED])
        for start in range(0, TRANSLATED, 25):
            batch = batch_of(encoded[start : start + 25])
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            ids = model.generate(**inputs, max_new_tokens=2 * length, num_beams=1, do_sample=False)
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return {"bleu": BLEU().corpus_score(texts, [references]).score}

    held_out_batches = [batch_of(tests[start : start + 40]) for start in range(0, len(tests), 40)]
    return Problem(make_model, batches, lambda model: token_loss(model, held_out_batches), bleu)


def with_weights_of(vanilla: torch.nn.Module, model: torch.nn.Module) -> torch.nn.Module:
    """The model with vanilla's weights where it has them, so that both start alike."""
    unknown = model.load_state_dict(vanilla.state_dict(), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{type(model).__name__} lacks weights of {type(vanilla).__name__}: {unknown[:5]}")
    return model


def read_table(task_name: str, split: str) -> list[dict[str, str]]:
    path = DATA / task_name / f"{split}.csv"
    if not path.exists():
        raise SystemExit(f"{path} is not there; run `python glue/prepare_data.py --output_dir {DATA}`.")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load_fine_tuning(task: Task, name: str, columns: tuple[str, ...], is_regression: bool = False) -> Problem:
    """One of glue/glue_offline.py's tasks, with its pretrained model and a part of its examples."""
    tables = {
        "train": read_table(name, "train")[:FINE_TUNING_EXAMPLES],
        "test": read_table(name, "validation")[: FINE_TUNING_TESTS // len(columns)],
    }
    tokenizer = AutoTokenizer.from_pretrained(DATA / "all-MiniLM-L6-v2")
    classes = sorted({row["label"] for row in tables["train"]})

    def batch_of(rows: list[dict[str, str]]) -> Batch:
        texts = [[row[column] for row in rows] for column in columns]
        encoded = tokenizer(
            *texts, truncation=True, max_length=FINE_TUNING_LENGTH * len(columns), padding=True, return_tensors="pt"
        )
        labels = [float(row["label"]) if is_regression else classes.index(row["label"]) for row in rows]
        return {**encoded, "labels": torch.tensor(labels)}

    def batches(seed: int) -> Iterator[Batch]:
        for indices in epochs(len(tables["train"]), task.batch_size, seed):
            yield batch_of([tables["train"][number] for number in indices])

    def make_model(fields: dict[str, Any] | None, width: int) -> torch.nn.Module:
        if width:
            raise ValueError("A pretrained model cannot be made wider; leave `vanilla_wider` out of fine-tuning.")
        model = BertForSequenceClassification.from_pretrained(
            DATA / "all-MiniLM-L6-v2", num_labels=1 if is_regression else len(classes), hidden_dropout_prob=0.1
        )
        return evolved(model, fields)

    order = sorted(tables["test"], key=lambda row: sum(len(row[column]) for column in columns))
    tests = [batch_of(order[start : start + 50]) for start in range(0, len(order), 50)]

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        outputs = [model(**batch) for batch in tests]
        logits = torch.cat([output.logits for output in outputs])
        labels = torch.cat([batch["labels"] for batch in tests])
        if is_regression:
            loss = torch.nn.functional.mse_loss(logits[:, 0], labels)
            measure = {"pearson": float(pearsonr(logits[:, 0].numpy(), labels.numpy()).statistic)}
        else:
            loss = torch.nn.functional.cross_entropy(logits, labels)
            measure = {"accuracy": (logits.argmax(dim=-1) == labels).float().mean().item()}
        return {**measure, "loss": loss.item()}

    return Problem(make_model, batches, evaluate)
