# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrains a small EA-BERT and the same with vanilla attention on real text, then fine-tunes both: what `make pretrain` runs.

    python language_modeling/pretrain_offline.py
    python language_modeling/pretrain_offline.py --ea_preset learned     # evolving attention of another kind

Further arguments go to run_mlm.py, for both models. Text: Bible verses in two wordings, the English half of the LibreOffice
help, and film reviews; all of them without what validation and test sets of the other scripts hold. The held-out text is of
books and help pages of its own. Each model has a process and a core. The last lines compare the two models; a picture shows
their held-out losses.
"""

import argparse
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib


matplotlib.use("Agg")
sys.path.append(str(Path(__file__).resolve().parents[1] / "glue"))

import matplotlib.pyplot as plt
import numpy as np
import run_mlm
import torch
from baselines import baselines
from datasets import load_dataset
from pretraining import pretrain
from run_glue import main as run_glue
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from verses import kinds_of_books, read_verses

from ea_hf.models.presets import PRESETS
from ea_hf.training.command_line import ArgumentParser, directory, run_main
from ea_hf.training.script import has_bfloat16


ROOT = Path(__file__).resolve().parents[1]
TASKS = {"film_sentiment": ("sentence",), "verse_pairs": ("sentence1", "sentence2")}
VOCAB_SIZE = 4000
HELD_OUT_STEP = 4
# Without dropout, which costs more than it gives where all is seen but a few times.
MODEL = (
    "hidden_size=192,num_hidden_layers=4,num_attention_heads=6,intermediate_size=768,max_position_embeddings=128,"
    "hidden_dropout_prob=0,attention_probs_dropout_prob=0"
)
PRECISION = ["--mixed_precision", "bf16" if has_bfloat16() else "no"]
# Later arguments override earlier ones.
ARGUMENTS = [
    *("--model_type", "bert", "--config_overrides", MODEL),
    *("--max_seq_length", "64", "--group_by_length"),
    *("--mlm_probability", "0.25"),  # more to learn from each step
    *("--per_device_train_batch_size", "16", "--per_device_eval_batch_size", "64"),
    *("--learning_rate", "1e-3", "--weight_decay", "0.01"),
    *("--lr_scheduler_type", "cosine", "--num_warmup_steps", "100"),
    *("--max_train_steps", "1800", "--eval_steps", "150", "--logging_steps", "50", "--checkpointing_steps", "no"),
    *PRECISION,
]
FINE_TUNING = [
    *("--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "64", "--group_by_length"),
    *("--learning_rate", "3e-4", "--weight_decay", "0.01", "--num_warmup_steps", "50", "--logging_steps", "100"),
    *("--checkpointing_steps", "no", *PRECISION),
]
NO_EVOLUTION = ["--ea_residual_weight", "0", "--ea_conv_weight", "0"]
VANILLA, EVOLVING = "vanilla BERT", "EA-BERT"


def load_script(folder: str, name: str) -> ModuleType:
    """A script by its path: several folders have one of the same name."""
    specification = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where a dataclass looks for the module that it is of
    specification.loader.exec_module(module)
    return module


def help_pages(split: str) -> list[str]:
    """The English help, each page a document; no sentence of a held-out page is in the training pages."""
    translation = load_script("translation", "prepare_data")
    pages: dict[str, list[str]] = {}
    for row in translation.split_by_page(translation.read_help())[split]:
        pages.setdefault(row["page"], []).append(row["translation"]["en"])
    return [" ".join(sentences) for sentences in pages.values()]


def verses(split: str) -> list[str]:
    """The verses of a split's books, each a document of both wordings; which is first changes from verse to verse."""
    books = kinds_of_books(split)
    chosen = [verse for verse in read_verses() if verse.book in books]
    return [f"{v.kjv} {v.web}" if place % 2 else f"{v.web} {v.kjv}" for place, v in enumerate(chosen)]


def prepare(data_dir: Path, folder: Path) -> None:
    """Writes the text and the tasks, and trains the tokenizer.

    Raises:
        SystemExit: the film reviews could not be obtained.
    """
    glue = load_script("glue", "prepare_data")
    status = glue.main(["--output_dir", str(data_dir), "--no-model", "--tasks", *TASKS])
    if status:
        raise SystemExit(status)
    reviews = load_dataset(
        "csv", data_files=str(data_dir / "film_sentiment" / "train.csv"), split="train", keep_default_na=False
    )["sentence"]
    documents = {
        "train": [*help_pages("train"), *verses("train"), *reviews],
        # A part of them, or evaluation would take as long as training.
        "held_out": [*help_pages("validation"), *verses("validation")][::HELD_OUT_STEP],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in documents.items():
        aside = folder / f".{name}.partial"  # so that what has the name is whole
        aside.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
        os.replace(aside, folder / f"{name}.jsonl")
        print(f"{folder / name}.jsonl: {len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f} million characters")
    load_script("language_modeling", "train_tokenizer").main(
        [
            *("--algorithm", "wordpiece", "--vocab_size", str(VOCAB_SIZE)),
            *("--train_file", str(folder / "train.jsonl"), "--output_dir", str(folder / "tokenizer")),
        ]
    )


def unigram_loss(tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """The mean loss over all tokens of the held-out text if each is predicted by how often it stands in the training text."""

    def tokens(name: str) -> Counter:
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return Counter(token for ids in encoded for token in ids)

    train, held_out = tokens("train"), tokens("held_out")
    whole = train.total() + len(tokenizer)  # each token once more than it stands there, so that none is impossible
    loss = sum(count * -math.log((train[token] + 1) / whole) for token, count in held_out.items())
    return loss / held_out.total()


def pretrain_model(folder: Path, output_dir: Path, extra: list[str]) -> tuple[dict[str, Any], dict[int, float]]:
    """The results of a run, and the held-out loss by step."""
    losses: dict[int, float] = {}
    args = run_mlm.parse_args(
        [
            *("--tokenizer_name", str(folder / "tokenizer"), *ARGUMENTS),
            *("--train_file", str(folder / "train.jsonl"), "--validation_file", str(folder / "held_out.jsonl")),
            *("--output_dir", str(output_dir), "--overwrite_output_dir", *extra),
        ]
    )
    results = pretrain(
        args,
        run_mlm.OBJECTIVE,
        lambda evaluations: losses.update({step: metrics["loss"] for step, metrics in evaluations.items()}),
    )
    return results, losses


def fine_tune(model_dir: Path, task_dir: Path, output_dir: Path, epochs: int) -> float:
    """The accuracy on the test set, by which nothing was chosen."""
    run_glue(
        [
            *("--model_name_or_path", str(model_dir), *FINE_TUNING, "--num_train_epochs", str(epochs)),
            *("--train_file", str(task_dir / "train.csv"), "--validation_file", str(task_dir / "validation.csv")),
            *("--output_dir", str(output_dir), "--overwrite_output_dir"),
        ]
    )
    test = run_glue(
        [
            *("--eval_only", "--model_name_or_path", str(output_dir), "--validation_file", str(task_dir / "test.csv")),
            *("--per_device_eval_batch_size", "64", *PRECISION),
            *("--output_dir", str(output_dir / "test"), "--overwrite_output_dir"),
        ]
    )
    return test["eval_accuracy"]


def baseline_scores(data_dir: Path) -> dict[str, dict[str, float]]:
    """The accuracy of simple models on the test sets, by model and task."""
    scores: dict[str, dict[str, float]] = {}
    for task, columns in TASKS.items():
        train, test = (
            load_dataset("csv", data_files=str(data_dir / task / f"{split}.csv"), split="train", keep_default_na=False)
            for split in ("train", "test")
        )
        for name, metrics in baselines(train, test, columns).items():
            scores.setdefault(name, {})[task] = metrics["accuracy"]
    return scores


def draw_losses(path: Path, losses: dict[str, dict[int, float]], unigram: float) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, values), style in zip(losses.items(), ("C0o-", "C1s-"), strict=True):
        axis.plot(list(values), list(values.values()), style, markersize=4, label=name)
    axis.axhline(unigram, color="gray", linestyle="--", label="unigram model")
    axis.set_xlabel("steps")
    axis.set_ylabel("held-out loss (nats per masked token)")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(losses: dict[str, dict[int, float]], unigram: float, scores: dict[str, dict[str, float]]) -> str:
    lines = ["Held-out loss, nats per masked token", f"  {'step':<16}" + "".join(f"{name:>16}" for name in losses)]
    for step in sorted(set.intersection(*map(set, losses.values()))):
        lines.append(f"  {step:<16}" + "".join(f"{values[step]:>16.3f}" for values in losses.values()))
    lines += [f"  {'unigram model':<16}" + f"{unigram:>16.3f}" * len(losses), ""]
    lines += ["Accuracy on the test sets after fine-tuning", f"  {'':<16}" + "".join(f"{task:>16}" for task in TASKS)]
    for name, values in scores.items():
        lines.append(f"  {name:<16}" + "".join(f"{values.get(task, np.nan):>16.3f}" for task in TASKS))
    return "\n".join(lines)


def train_one(name: str, arguments: list[str], args: argparse.Namespace, extra: list[str]) -> dict[str, Any]:
    """Pretrains a model and fine-tunes it on the tasks; in a process of its own, on one core."""
    torch.set_num_threads(1)
    logging.basicConfig(format=f"%(asctime)s {name}: %(message)s", datefmt="%H:%M:%S")
    model_dir = model_directory(args, name)
    results, losses = pretrain_model(args.data_dir / "pretraining", model_dir, [*extra, *arguments])
    scores = {
        task: fine_tune(model_dir, args.data_dir / task, model_dir / task, args.num_fine_tuning_epochs)
        for task in TASKS
    }
    return {"losses": losses, "scores": scores, "minutes": results["train_runtime"] / 60}


def model_directory(args: argparse.Namespace, name: str) -> Path:
    return args.output_dir / name.lower().replace(" ", "-")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--output_dir", type=directory, default=Path("output/pretraining"))
    parser.add_argument("--ea_preset", choices=PRESETS, help="Of the evolving model. Default: as EA-BERT has it.")
    parser.add_argument("--num_fine_tuning_epochs", type=int, default=2)
    args, extra = parser.parse_known_args(argv)
    started = time.perf_counter()
    folder = args.data_dir / "pretraining"
    prepare(args.data_dir, folder)
    unigram = unigram_loss(AutoTokenizer.from_pretrained(folder / "tokenizer"), folder)
    kinds = {VANILLA: NO_EVOLUTION, EVOLVING: ["--ea_preset", args.ea_preset] if args.ea_preset else []}
    os.environ["TQDM_DISABLE"] = "1"  # the bars of two processes would overwrite each other
    # Spawned: what has used threads must not be forked.
    with ProcessPoolExecutor(len(kinds), multiprocessing.get_context("spawn")) as processes:
        runs = {name: processes.submit(train_one, name, kinds[name], args, extra) for name in kinds}
        scores = baseline_scores(args.data_dir)
        done = {name: run.result() for name, run in runs.items()}
    losses = {name: result["losses"] for name, result in done.items()}
    scores |= {name: result["scores"] for name, result in done.items()}
    picture = args.output_dir / "held_out_loss.png"
    draw_losses(picture, losses, unigram)
    print("\n" + report(losses, unigram, scores))
    print(f"\nPicture: {picture}")
    print(f"The models are in {args.output_dir}, each with a model card (README.md); try one:\n")
    print("  import ea_hf\n  from transformers import pipeline")
    print(f'  pipeline("fill-mask", "{model_directory(args, EVOLVING)}")("Click the [MASK].")')
    minutes = ", ".join(f"{result['minutes']:.1f} ({name})" for name, result in done.items())
    whole = (time.perf_counter() - started) / 60
    print(f"\nPretraining took {minutes} minutes side by side, all together {whole:.1f} minutes.")
    return {"losses": losses, "unigram": unigram, "scores": scores}


if __name__ == "__main__":
    sys.exit(0 if run_main(main) is not None else 1)
