# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares ways of attention: tasks x variants x seeds, with the same data, budget and hyperparameters.

    python benchmarks/variants.py --workers 2                             # all runs that the file of results lacks
    python benchmarks/variants.py --tasks characters --variants vanilla evolving --seeds 0 1
    python benchmarks/variants.py --list                                  # the runs, and which are finished
    python benchmarks/variants.py --report                                # docs/results.md, its picture, README's table

A run is a process with one thread, and a line of benchmarks/results/variants.jsonl; what has a line is not run again, so
the comparison may be killed and started at any moment. A run's values depend on its code, its seed and the machine alone.
The data come with the project but for `python glue/prepare_data.py --output_dir data` and Fashion-MNIST (`make vision`).
"""

import argparse
import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "variants.jsonl"
# What a run's values depend on.
CODE = ("ea_hf", "benchmarks", "translation", "time_series", "image_classification", "glue")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
Run = tuple[str, str, int]


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """The file of results, for this process alone. A line that a kill has cut off is taken away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        yield file


def read_results(path: Path) -> list[dict[str, Any]]:
    """The finished runs, without a line that is being written."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def run_of(line: dict[str, Any]) -> Run:
    return line["task"], line["variant"], line["seed"]


def finished(path: Path) -> set[Run]:
    return {run_of(line) for line in read_results(path)}


def append(path: Path, line: dict[str, Any]) -> bool:
    """Adds a line at once, unless its run has one; tells whether it did."""
    with locked(path) as file:
        if run_of(line) in finished(path):
            return False
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def commit() -> str:
    """The commit of the code, with a plus if it was changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", *CODE, ":!benchmarks/results")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


def execute(task_name: str, variant: str, seed: int) -> dict[str, Any]:
    """One run, in this process."""
    import numpy
    import torch
    import transformers
    from variant_definitions import VARIANTS, make_model, parameters
    from variant_tasks import TASKS
    from variant_training import train

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    code = commit()
    task = TASKS[task_name]
    task = dataclasses.replace(task, learning_rate=task.learning_rate * VARIANTS[variant].rate)
    problem = task.load(task)
    model = make_model(problem.make_model, variant, seed)
    results = train(task, problem, model, seed, VARIANTS[variant].length)
    modules = {"python": platform, "torch": torch, "transformers": transformers, "numpy": numpy}
    versions = {
        name: platform.python_version() if module is platform else module.__version__
        for name, module in modules.items()
    }
    return {
        "task": task_name,
        "variant": variant,
        "seed": seed,
        **results,
        "parameters": parameters(model),
        "versions": versions,
        "commit": code,
    }


def run_in_process(path: Path, run: Run) -> bool:
    """Runs in a process of its own, which writes the line itself; tells whether it did."""
    task, variant, seed = run
    if run in finished(path):
        return True
    words = [sys.executable, __file__, "--results", str(path), "--execute", task, variant, str(seed)]
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(words, env=environment, check=False).returncode == 0
    if not done:
        print(f"{task} {variant} {seed} failed", file=sys.stderr, flush=True)
    return done


def selected(args: argparse.Namespace) -> list[Run]:
    import variant_tasks

    return [
        (task, variant, seed)
        for task, variant, seed in variant_tasks.runs()
        if (not args.tasks or task in args.tasks)
        and (not args.variants or variant in args.variants)
        and (not args.seeds or seed in args.seeds)
    ]


def check_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from variant_definitions import VARIANTS
    from variant_tasks import TASKS

    for option, known in (("tasks", TASKS), ("variants", VARIANTS)):
        unknown = [name for name in getattr(args, option) if name not in known]
        if unknown:
            parser.error(f"--{option} has {', '.join(unknown)}; there are {', '.join(known)}.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--variants", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--workers", type=int, default=1, help="Runs side by side; one core each.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="Print the runs, and run nothing.")
    parser.add_argument("--report", action="store_true", help="Write docs/results.md, and run nothing.")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="Where --report writes.")
    parser.add_argument("--execute", nargs=3, metavar=("TASK", "VARIANT", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.execute:
        task, variant, seed = args.execute
        line = execute(task, variant, int(seed))
        append(args.results, line)
        print(
            f"{task} {variant} {seed}: {line['metric']} {line['value']:.4f}, {line['cpu_seconds']:.0f} s", flush=True
        )
        return 0
    if args.report:
        import variant_report

        variant_report.write(read_results(args.results), args.docs)
        return 0
    check_names(parser, args)
    runs = selected(args)
    if args.list:
        done = finished(args.results)
        for run in runs:
            print(*run, "finished" if run in done else "")
        return 0
    with ThreadPoolExecutor(args.workers) as pool:
        return 0 if all(list(pool.map(lambda run: run_in_process(args.results, run), runs))) else 1


if __name__ == "__main__":
    sys.exit(main())
