# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny vanilla BERT with its tokenizer, small files of real sentences, and runs of run_glue.py on them."""

import csv
import json
import multiprocessing
import os
import pkgutil
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

from ea_hf.training import liveness


SCRIPT = Path(__file__).parents[1] / "glue" / "run_glue.py"

# What people say about a film, and how many stars they give it.
REMARKS = (
    ("A warm, funny film that never loses its way.", 4.5),
    ("The plot is thin and the jokes are thinner.", 1.5),
    ("I would gladly watch it again tomorrow.", 4.0),
    ("Two hours of my life that I will not get back.", 0.5),
    ("Beautifully shot, and the music is a joy.", 4.5),
    ("It drags, and then it drags some more.", 1.0),
    ("The children laughed from beginning to end.", 4.0),
    ('He calls it "art"; I call it a nap.', 1.0),
    ("A small film with a very big heart.", 3.5),
    ("Nobody in this story behaves like a person.", 1.5),
    ("Superb acting lifts a simple tale.", 4.0),
    ("The ending makes no sense at all.", 1.0),
    ("Clever, quick and quietly moving.", 4.5),
    ("Loud, long and empty.", 0.5),
    ("Her best work since the early comedies.", 4.0),
    ("The dialogue sounds as if a committee wrote it.", 1.5),
    ("You leave the cinema with a smile.", 4.5),
    ("I left after half an hour.", 0.5),
    ("An old story, told with new courage.", 3.5),
    ("A dull copy of a better film.", 1.5),
    ("Every scene earns its place.", 5.0),
    ("Not one scene earns its place.", 0.5),
    ("The café scene alone is worth the ticket.", 4.0),
    ("Even the dog looks bored.", 1.0),
    ("Sharp, honest and surprisingly tender.", 4.5),
    ("The effects are cheap and the acting is cheaper.", 1.0),
    ("It made my grandmother cry, in a good way.", 4.0),
    ("Far too pleased with itself.", 1.5),
    ("A thriller that really thrills.", 4.5),
    ("A thriller without a single thrill, a comedy without a single joke, and a romance without a kiss.", 0.5),
    ("Go and see it!", 5.0),
    ("Avoid.", 0.5),
    ("The young lead is a discovery.", 4.0),
    ("The camera shakes so much that I felt ill.", 1.0),
    ("Gentle, wise, and never too sweet.", 4.0),
    ("I have seen better stories on the back of a cereal box.", 0.5),
    ("Its silence says more than most films say in words.", 4.5),
)
TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def whole_and_resumed(
    run: Callable, directory: Path, last_checkpoint: str, **options: Any
) -> list[dict[str, torch.Tensor]]:
    """The weights of a run, and those of one that goes on from the checkpoint before its last one."""
    run(directory / "whole", **options)
    run(directory / "resumed", **options)
    for name in (last_checkpoint, "model.safetensors"):
        (directory / "resumed" / name).rename(directory / name)
    run(directory / "resumed", **options, resume_from_checkpoint="latest")
    return [load_file(directory / name / "model.safetensors") for name in ("whole", "resumed")]


def run_of_15_steps(directory: Path, **settings: Any) -> dict[str, Any]:
    """Options of a run with dropout, whose data and vanilla model are written to a directory."""
    return {
        "model_name_or_path": write_checkpoint(directory / "model"),
        "train_file": write_rows(directory / "train.csv", sentences()),
        "validation_file": write_rows(directory / "validation.csv", sentences(count=13)),
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "eval_steps": 2,
        **settings,
    }


def sentences(kind: str = "sign", count: int = len(REMARKS), start: int = 0) -> list[dict[str, Any]]:
    """Rows of single sentences: `kind` "sign" with the labels "good" and "bad", or "stars" with decimal labels."""
    remarks = [REMARKS[i % len(REMARKS)] for i in range(start, start + count)]
    return [
        {"sentence": text, "label": stars if kind == "stars" else "good" if stars > 2.5 else "bad"}
        for text, stars in remarks
    ]


def pairs(count: int = len(REMARKS), start: int = 0) -> list[dict[str, Any]]:
    """Rows of two sentences; label 1 if both like their film, or both do not."""
    rows = []
    for i in range(start, start + count):
        (first, stars), (second, other_stars) = REMARKS[i % len(REMARKS)], REMARKS[(i * 5 + 3) % len(REMARKS)]
        rows.append({"sentence1": first, "sentence2": second, "label": int((stars > 2.5) == (other_stars > 2.5))})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes a csv, tsv, json, jsonl or parquet file by the path's extension; returns the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if path.suffix == ".tsv" else {}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", **quoting)
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def write_checkpoint(directory: Path, **config_values: Any) -> str:
    """Writes a random vanilla BERT without head, and a WordPiece tokenizer that knows the words of the remarks."""
    text = " ".join(text for text, _ in REMARKS).lower()
    words = sorted(set(re.findall(r"\w+|[^\w\s]", text.replace("é", "e"))))
    characters = sorted(set("".join(words)))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocabulary += [word for word in words if len(word) > 1]
    directory.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}).save_pretrained(directory)
    torch.manual_seed(0)
    BertModel(BertConfig(**{"vocab_size": len(vocabulary), **TINY_BERT, **config_values})).save_pretrained(directory)
    return str(directory)


# Labels of the tasks as GLUE orders them, and the splits beside "train"; STS-B has numbers from 0 to 5.
GLUE_LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "stsb": None,
    "mnli": ("entailment", "neutral", "contradiction"),
    "ax": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}


def write_glue(directory: Path, columns: dict[str, Sequence[str]]) -> str:
    """Writes GLUE's configurations in the layout that they have on the Hub, with a few examples in each split.

    Args:
        columns: the text columns of each task.
    """
    lines = ["---", "configs:"]
    for task, labels in GLUE_LABELS.items():
        sizes = {"train": 19, "validation": 11, "test": 9}
        if task == "mnli":
            sizes = {
                "train": 19,
                **{
                    f"{split}_{kind}": 10 + len(kind)
                    for split in ("validation", "test")
                    for kind in ("matched", "mismatched")
                },
            }
        elif task == "ax":
            sizes = {"test": 7}
        lines += [f"- config_name: {task}", "  data_files:"]
        features = datasets.Features(
            {
                **dict.fromkeys(columns.get(task, ("premise", "hypothesis")), datasets.Value("string")),
                "label": datasets.Value("float32") if labels is None else datasets.ClassLabel(names=list(labels)),
                "idx": datasets.Value("int32"),
            }
        )
        for start, (split, size) in enumerate(sizes.items()):
            rows = []
            for index in range(size):
                texts = [REMARKS[(index * step + 7 * start) % len(REMARKS)] for step in (1, 5)]
                label = texts[0][1] if labels is None else (index + start) % len(labels)
                if split.startswith("test"):
                    label = -1
                rows.append([*(text for text, _ in texts[: len(features) - 2]), label, index])
            table = dict(zip(features, map(list, zip(*rows, strict=True)), strict=True))
            path = directory / task / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(table, features=features).to_parquet(path)
            lines += [f"  - split: {split}", f"    path: {task}/{split}-*"]
    (directory / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(directory)


def arguments(**options: Any) -> list[str]:
    """Command-line arguments: `seed=1` is "--seed 1", `do_predict=True` is "--do_predict"; `None` is left out."""
    words = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def start_script(
    words: Sequence[str], processes: int = 1, script: Path = SCRIPT, **environment: str
) -> subprocess.Popen:
    """Starts a script as a user does; with several processes through torchrun."""
    program = [sys.executable]
    if processes > 1:
        program += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*program, str(script), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_script(words: Sequence[str], processes: int = 1, script: Path = SCRIPT, **environment: str) -> tuple[int, str]:
    """Runs a script; returns its exit status, and all that it printed."""
    process = start_script(words, processes, script, **environment)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output


def reset_accelerator() -> None:
    """Lets the next run in this process choose its own precision and accumulation."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def isolated_runs(cache_dir: Path) -> Iterator[None]:
    """Keeps the settings and the caches of a test's runs to the test."""
    cache_before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache_dir
    reset_accelerator()
    yield
    reset_accelerator()
    datasets.config.HF_DATASETS_CACHE = cache_before


@dataclass(frozen=True)
class Moment:
    """The moment before or after the n-th call of a function of a module or a class ("module:class")."""

    owner: str
    name: str
    call: int = 1
    after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} call {self.call} of {self.name}"

    def arrange(self, action: Callable[[], None]) -> None:
        """Makes this process do something at this moment."""
        owner, calls = pkgutil.resolve_name(self.owner), 0
        original = getattr(owner, self.name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and not self.after:
                action()
            result = original(*args, **kwargs)
            if calls == self.call and self.after:
                action()
            return result

        setattr(owner, self.name, watched)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever() -> None:
    print("waiting", flush=True)
    signal.pause()


def start_run(
    words: Sequence[str],
    log: Path,
    moment: Moment | None = None,
    action: Callable[[], None] = die,
    environment: dict[str, str] | None = None,
    patience: float = 30.0,
) -> multiprocessing.Process:
    """Starts run_glue.py in a process of its own, without the seconds that its imports take; `log` gets its output.

    Args:
        environment: variables, such as a launcher sets for one process of several.
        patience: how long it waits for a sign of the other processes.
    """
    forkserver = multiprocessing.get_context("forkserver")
    # What takes its time; the script and this file are not on the server's path.
    forkserver.set_forkserver_preload(
        ["ea_hf.training.loop", "ea_hf.training.publishing", "evaluate", "sklearn.metrics"]
    )
    process = forkserver.Process(
        target=_run,
        args=(list(words), log, moment, action, datasets.config.HF_DATASETS_CACHE, environment or {}, patience),
    )
    process.start()
    return process


def _run(
    words: list[str],
    log: Path,
    moment: Moment | None,
    action: Callable[[], None],
    cache_dir: Path,
    environment: dict[str, str],
    patience: float,
) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= environment
    liveness.PATIENCE, liveness.INTERVAL = patience, patience / 15
    multiprocessing.set_start_method("fork", force=True)  # as in a process that is started by hand
    datasets.config.HF_DATASETS_CACHE = cache_dir
    torch.set_num_threads(1)  # another number of threads adds up in another order
    if moment is not None:
        moment.arrange(action)
    import run_glue

    run_glue.main(words)
