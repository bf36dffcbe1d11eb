# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Does it help on your data? Runs a script's command with variants of attention and several seeds, and says what can be said.

ea-hf compare --variants evolving learned --seeds 1 2 3 4 5 --output_dir output/compare -- \\
    python glue/run_glue.py --model_name_or_path google-bert/bert-base-uncased --train_file train.csv --validation_file validation.csv

Behind "--" stands the command as you would run it, without --seed, --output_dir and the arguments of evolving attention.
A run that has its results is not run again, so the comparison may be stopped and started at any moment.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from .compare_report import Results, write_report
from .models.presets import PRESETS
from .training.checkpoints import write_json
from .training.command_line import ArgumentParser, RunError, directory, program_name, run_main
from .training.output_dir import LOCK_FILE, RESULTS_FILE


VANILLA = "vanilla"
# The preset first, so that nothing is left of a checkpoint that evolves already, such as gates that learn.
VARIANTS = {
    VANILLA: "--ea_preset evolving --ea_residual_weight 0 --ea_conv_weight 0",
    "evolving": "--ea_mixing convex --ea_residual_weight 0.1 --ea_conv_weight 0.1",
    **{name: f"--ea_preset {name}" for name in PRESETS if name != "evolving"},
}
COMMAND_FILE = "command.json"
# What the comparison sets itself, or what cannot be done by several runs.
TAKEN = ("--seed", "--seeds", "--output_dir", "--push_to_hub")
# These change no model's attention.
ALLOWED = ("--ea_kernels", "--ea_learning_rate", "--ea_memory_efficient")


def variant(text: str) -> tuple[str, str]:
    """Parses the name of a variant, or NAME=ARGUMENTS."""
    name, is_own, arguments = text.partition("=")
    if not is_own:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {', '.join(VARIANTS)}, nor one of your own such as "
                '"half=--ea_residual_weight 0.5 --ea_conv_weight 0.5"'
            )
        return name, VARIANTS[name]
    if not re.fullmatch(r"\w[\w.]*", name) or name in VARIANTS:
        raise argparse.ArgumentTypeError(f"{name!r} cannot be the name of a variant of your own; choose another one")
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not words or not words[0].startswith("--") or taken(words, ()):
        raise argparse.ArgumentTypeError(
            f"{text!r} needs arguments of the script behind =, without {', '.join(TAKEN)}"
        )
    return name, shlex.join(words)


def taken(words: list[str], allowed: tuple[str, ...] = ALLOWED) -> list[str]:
    """Arguments of a command that belong to the comparison; argparse takes the beginning of a name for it."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [
        option
        for option in options
        if any(len(option) > 4 and name.startswith(option) for name in TAKEN)
        or (allowed and option.startswith(("--ea_", "--no-ea_")) and option not in allowed)
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    argv = sys.argv[1:] if argv is None else argv
    place = argv.index("--") if "--" in argv else len(argv)
    parser = ArgumentParser(
        prog=program_name("ea_hf.compare"),
        description=__doc__,
        usage="%(prog)s [arguments] --output_dir DIRECTORY -- COMMAND",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        type=variant,
        default=[variant(name) for name in ("evolving", "learned")],
        metavar="VARIANT",
        help=f'In addition to vanilla (both weights 0): {", ".join(list(VARIANTS)[1:])}, or "NAME=ARGUMENTS" of your own. '
        "Default: evolving learned.",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="Default: 1 2 3 4 5.")
    parser.add_argument("--output_dir", type=directory, required=True, help="Where runs, logs and the report go.")
    parser.add_argument(
        "--metric", help="Of all_results.json. Default: the first one, of test data if there are some."
    )
    parser.add_argument(
        "--lower_is_better",
        action=argparse.BooleanOptionalAction,
        help="Default: as the metric's name says, such as loss or rmse.",
    )
    args = parser.parse_args(argv[:place])
    args.command = argv[place + 1 :]
    if not args.command:
        parser.error('put the command of a script behind "--", such as: -- python glue/run_glue.py --train_file ...')
    if shutil.which(args.command[0]) is None:
        parser.error(f"{args.command[0]!r} is no program that can be run; begin the command with python or torchrun")
    if found := taken(args.command):
        parser.error(
            f"leave {', '.join(found)} out of the command: the comparison sets it, or it is not for many runs"
        )
    for name in ("variants", "seeds"):
        values = [value[0] if name == "variants" else value for value in getattr(args, name)]
        if len(set(values)) < len(values):
            parser.error(f"--{name} are {' '.join(map(str, values))}; each may stand there once")
    if min(args.seeds) < 0:
        parser.error(f"--seeds has {min(args.seeds)}; a seed is at least 0")
    args.variants = {VANILLA: VARIANTS[VANILLA], **dict(args.variants)}
    if len(args.variants) == 1:
        parser.error("--variants has nothing beside vanilla to compare it with")
    return args


def note_command(args: argparse.Namespace) -> list[str]:
    """Writes down what is compared, beside what was compared here before.

    Returns:
        All variants, vanilla first: each one more that is tried makes a false alarm likelier, so none may be left out.

    Raises:
        ValueError: the directory holds runs of another command, or of a variant with other arguments.
    """
    path = args.output_dir / COMMAND_FILE
    now: dict[str, Any] = {"command": args.command, "directory": os.getcwd(), "variants": args.variants}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        found = difference(before["command"], args.command)
        if before["directory"] != now["directory"]:
            found.append(f"it was run in {before['directory']}, now in {now['directory']}")
        for name in args.variants.keys() & before["variants"].keys():
            if before["variants"][name] != args.variants[name]:
                found.append(f"{name} was {before['variants'][name]!r}, now it is {args.variants[name]!r}")
        if found:
            raise ValueError(
                f"{args.output_dir} holds a comparison of another command: {'; '.join(found)}. Choose another --output_dir."
            )
        now["variants"] = args.variants | before["variants"]
    write_json(path, now)
    return list(now["variants"])


def difference(before: list[str], now: list[str]) -> list[str]:
    """In words, what two commands do not share."""
    changes = difflib.SequenceMatcher(a=before, b=now, autojunk=False).get_opcodes()
    return [
        f"it had {shlex.join(before[a:b]) or 'nothing'!r} where there is {shlex.join(now[c:d]) or 'nothing'!r} now"
        for kind, a, b, c, d in changes
        if kind != "equal"
    ]


def run_words(args: argparse.Namespace, name: str, seed: int) -> list[str]:
    """The whole command of one run."""
    directory = args.output_dir / f"{name}-{seed}"
    words = [*args.command, *shlex.split(args.variants[name]), "--seed", str(seed), "--output_dir", str(directory)]
    # The script deletes what a kill left, under its own lock; unless it is told to go on from there.
    told = {"--resume_from_checkpoint", "--overwrite_output_dir"} & {word.partition("=")[0] for word in args.command}
    return words if told or not directory.exists() else [*words, "--overwrite_output_dir"]


def execute(words: list[str], log: Path) -> int:
    """Runs a process to its end, which ours does not come before; returns its status."""
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        except BaseException:
            # A script answers SIGTERM with a checkpoint. At a terminal Ctrl-C has reached it as well.
            process.terminate()
            process.wait()
            raise


def run_all(args: argparse.Namespace) -> list[str]:
    """Runs what has no results yet, seed by seed; returns a line for each run that failed."""
    runs = [(name, seed) for seed in args.seeds for name in args.variants]
    failures = []
    for number, (name, seed) in enumerate(runs, start=1):
        place = f"[{number}/{len(runs)}] {name}, seed {seed}"
        results, log = (args.output_dir / f"{name}-{seed}" / RESULTS_FILE, args.output_dir / f"{name}-{seed}.log")
        if results.exists():
            print(f"{place}: finished before", flush=True)
            continue
        print(f"{place}: running; log: {log}", flush=True)
        status = execute(run_words(args, name, seed), log)
        if results.exists() and status == 0:
            # A metric that is not there is told after the first run, not after the last.
            Results.read(args.output_dir, [name], [seed], args.metric, args.lower_is_better)
            continue
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        # A script that ended badly after it wrote its results is not finished.
        results.unlink(missing_ok=True)
        ending = f"ended with status {status}" if status else f"wrote no {RESULTS_FILE}"
        failures.append(f"{name}, seed {seed}, {ending}: see {log}")
        print(f"{place}: {ending}: {last}", file=sys.stderr, flush=True)
    return failures


def _stop(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(args.output_dir / LOCK_FILE, blocking=False)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another comparison is using {args.output_dir}; wait for it, or choose another one."
        ) from error
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        variants = note_command(args)
        failures = run_all(args)
        results = Results.read(args.output_dir, variants, args.seeds, args.metric, args.lower_is_better)
        if results is not None:
            print(write_report(results, args.output_dir, args.command))
    finally:
        signal.signal(signal.SIGTERM, before)
        lock.release()
    if failures:
        raise RunError(f"{len(failures)} runs failed; the same command tries them again. {'; '.join(failures)}.")


if __name__ == "__main__":
    run_main(main)
