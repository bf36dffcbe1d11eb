# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a stream: no row lost or repeated, in whatever way processes share it and wherever a run goes on."""

import argparse
import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pair_encoding
import pytest
import run_glue
import run_translation
import tiny_t5
from accelerate import Accelerator
from task_data import TASK_COLUMNS, load_files
from tiny_bert import (
    Moment,
    arguments,
    pairs,
    reset_accelerator,
    run_script,
    sentences,
    start_run,
    write_checkpoint,
    write_glue,
    write_rows,
)
from transformers import AutoTokenizer

from ea_hf.training.streaming import CutTexts, Stream, StreamedBatches


pytestmark = pytest.mark.usefixtures("isolated")


def numbers(count: int):
    for number in range(count):
        yield {"number": number}


def source(kind: str, count: int, tmp_path: Path) -> datasets.IterableDataset:
    """Rows that are numbered, from a generator, or as the library reads them from files of several shards."""
    if kind == "generator":
        return datasets.IterableDataset.from_generator(numbers, gen_kwargs={"count": count})
    writer = {"parquet": "to_parquet", "json": "to_json", "csv": "to_csv"}[kind]
    for part, start in enumerate(range(0, count, 90)):
        rows = datasets.Dataset.from_list([{"number": number} for number in range(start, min(start + 90, count))])
        getattr(rows, writer)(tmp_path / f"{part:02}.{kind}")
    files = sorted(map(str, tmp_path.glob(f"*.{kind}")))
    return datasets.load_dataset(kind, data_files={"train": files}, split="train", streaming=True)


def identity(rows: list[dict[str, Any]]) -> list[int]:
    return [row["number"] for row in rows]


def batches_of(rows: datasets.IterableDataset, buffer_size: int = 50, **share: int) -> list[StreamedBatches]:
    """Of all processes."""
    stream = Stream(rows, identity, buffer_size, "numbers")
    return [
        StreamedBatches(stream, **{"num_processes": 1, "seed": 3, **share, "process_index": process_index})
        for process_index in range(share.get("num_processes", 1))
    ]


def load(batches: StreamedBatches, epoch: int = 0, position: Any = None, num_workers: int = 0, **options: Any) -> list:
    steps = batches.load(batches.stream, list, num_workers, epoch=epoch, position=position, **options)
    return [
        (
            [
                number
                for micro_batch, values in zip(step.micro_batches, step.inputs, strict=True)
                if micro_batch.counts
                for number in values
            ],
            step,
        )
        for step in steps
    ]


def whole_steps(processes: list[StreamedBatches], **options: Any) -> list[list[int]]:
    shares = [[examples for examples, _ in load(batches, **options)] for batches in processes]
    return [sorted(chain.from_iterable(step)) for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("count", [1, 95, 96, 97, 331])
def test_every_row_once_per_epoch_and_shuffled(count, tmp_path):
    (batches,) = batches_of(source("generator", count, tmp_path), per_device_batch_size=12, accumulation_steps=2)
    epochs = [load(batches, epoch=epoch) for epoch in range(2)]
    for steps in epochs:
        order = [number for examples, _ in steps for number in examples]
        assert sorted(order) == list(range(count))
        assert [step.ends_epoch for _, step in steps] == [False] * (len(steps) - 1) + [True]
        assert all(abs(number - place) < 50 for place, number in enumerate(order))  # within the buffer
        assert count < 90 or order != sorted(order)
    assert count < 90 or [examples for examples, _ in epochs[0]] != [examples for examples, _ in epochs[1]]


def test_a_step_does_not_depend_on_how_it_is_shared(tmp_path):
    rows = source("generator", 331, tmp_path)
    whole = whole_steps(batches_of(rows, per_device_batch_size=24))
    assert len(whole) == 14
    for size, accumulation_steps, num_processes in ((12, 2, 1), (6, 1, 4), (4, 3, 2), (12, 1, 2)):
        share = {"accumulation_steps": accumulation_steps, "num_processes": num_processes}
        assert whole_steps(batches_of(rows, per_device_batch_size=size, **share)) == whole


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["generator", "parquet", "json", "csv"])
def test_an_epoch_goes_on_from_any_step(kind, num_workers, tmp_path):
    (batches,) = batches_of(source(kind, 331, tmp_path), per_device_batch_size=24)
    whole = load(batches, num_workers=num_workers)
    expected = [examples for examples, _ in whole]
    assert sorted(chain.from_iterable(expected)) == list(range(331))
    for number, (_, step) in enumerate(whole[:-1] if num_workers == 0 else whole[4:6], 1 if num_workers == 0 else 5):
        position = json.loads(json.dumps(step.next_position))
        rest = load(batches, position=position, num_workers=num_workers)
        assert [examples for examples, _ in rest] == expected[number:], number


def test_at_most_as_many_steps_as_wanted(tmp_path):
    (batches,) = batches_of(source("generator", 331, tmp_path), per_device_batch_size=24)
    assert len(load(batches, limit=5)) == 5


def test_an_empty_stream_is_refused(tmp_path):
    (batches,) = batches_of(source("generator", 0, tmp_path), per_device_batch_size=24)
    with pytest.raises(ValueError, match="stream is empty: numbers"):
        load(batches)


def glue_options(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": write_checkpoint(tmp_path / "model"),
        "train_file": write_rows(tmp_path / "train.csv", sentences()),
        "streaming": True,
        "shuffle_buffer_size": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "max_train_steps": 13,  # 37 rows are ten steps
        "checkpointing_steps": 4,
        "logging_steps": 1,
        "save_total_limit": 9,
        **options,
    }


def losses(output_dir: Path, step: int = 13) -> list[float]:
    state = json.loads((output_dir / f"checkpoint-{step}/trainer_state.json").read_text())
    return [report["loss"] for report in state["log_history"]]


@pytest.mark.parametrize("moment", [3, 7, 12])
@pytest.mark.slow_but("7")
def test_a_killed_run_on_a_stream_ends_as_an_undisturbed_one(moment, tmp_path):
    options = glue_options(tmp_path, dataloader_num_workers=1 if moment == 7 else None)
    run_glue.main(arguments(**options, output_dir=tmp_path / "whole"))
    words = arguments(**options, output_dir=tmp_path / "killed", resume_from_checkpoint="latest")
    process = start_run(words, tmp_path / "log", Moment("ea_hf.training.loop", "take_step", moment))
    process.join()
    assert process.exitcode == -9
    reset_accelerator()
    run_glue.main(words)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("model.safetensors", "checkpoint-13/optimizer.bin"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_take_a_stream_over_from_one(tmp_path):
    """With dropout: a batch has the same random numbers on whichever process."""
    options = glue_options(tmp_path, gradient_accumulation_steps=2, max_train_steps=7, checkpointing_steps=3)
    run_glue.main(arguments(**options, output_dir=tmp_path / "whole"))
    words = arguments(**options, output_dir=tmp_path / "moved", resume_from_checkpoint="latest")
    process = start_run(words, tmp_path / "log", Moment("ea_hf.training.loop", "take_step", 4))
    process.join()
    options |= {"gradient_accumulation_steps": 1, "resume_from_checkpoint": "latest"}
    status, printed = run_script(arguments(**options, output_dir=tmp_path / "moved"), processes=2)
    assert status == 0, printed
    assert "Resuming from" in printed
    assert losses(tmp_path / "moved", 7) == pytest.approx(losses(tmp_path / "whole", 7), abs=1e-4)


def test_a_run_on_another_stream_is_refused(tmp_path):
    options = glue_options(tmp_path, max_train_steps=2) | {"output_dir": tmp_path / "output"}
    run_glue.main(arguments(**options))
    rows = sentences()
    rows[20]["sentence"] += " Or is it?"
    write_rows(tmp_path / "train.csv", rows)
    reset_accelerator()
    with pytest.raises(ValueError, match="belongs to another run: its train_dataset"):
        run_glue.main(arguments(**options, resume_from_checkpoint="latest"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.gz"])
@pytest.mark.parametrize("labels", ["sign", "stars", "pairs"])
def test_a_streamed_file_has_the_rows_of_a_loaded_one(kind, labels, tmp_path):
    rows = pairs() if labels == "pairs" else sentences(labels)
    file = write_rows(tmp_path / f"train.{kind.removesuffix('.gz')}", rows)
    loaded = load_files({"train": file, "validation": file})
    if kind.endswith(".gz"):
        import gzip

        Path(file + ".gz").write_bytes(gzip.compress(Path(file).read_bytes()))
    streamed = load_files({"train": str(tmp_path / f"train.{kind}"), "validation": file}, stream_training=True)
    assert streamed.labels == loaded.labels and streamed.text_columns == loaded.text_columns
    expected = list(loaded.splits["train"])
    actual = list(streamed.train_stream)
    if loaded.labels is not None:
        actual = [{**row, "label": loaded.labels.index(row["label"])} for row in actual]
    assert actual == expected
    assert streamed.splits["validation"][:] == loaded.splits["validation"][:]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"sentence": "a", "label": "x"}, {"sentence": " ", "label": "y"}], {}, r"1 rows have no text, row 2"),
        ([{"sentence": "a", "label": "x"}, {"sentence": "b", "label": ""}], {}, r"1 rows have no class, row 2"),
        ([{"sentence": "a", "label": "x"}], {}, r"only one class, 'x'"),
        ([{"sentence": "a", "label": "x"}], {"problem_type": "regression"}, r"not finite numbers, row 1: 'x'"),
        ([{"text": "a", "label": "x"}], {"label_column_name": "class"}, r"no column 'class'; it has 'text', 'label'"),
    ],
    ids=["text", "label", "classes", "numbers", "column"],
)
def test_faults_of_a_streamed_file_are_told_before_training(rows, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_files({"train": write_rows(tmp_path / "train.csv", rows)}, **options, stream_training=True)


def test_a_task_of_the_hub_is_streamed(tmp_path):
    repository = write_glue(tmp_path / "glue", TASK_COLUMNS)
    options = glue_options(tmp_path, train_file=None, task_name="mrpc", dataset_name=repository, max_train_steps=6)
    assert run_glue.main(arguments(**options, output_dir=tmp_path / "output"))["global_step"] == 6


@pytest.mark.parametrize("kind", ["jsonl", "txt.gz", "parquet"])
@pytest.mark.slow_but("jsonl")
def test_translation_of_a_stream(kind, tmp_path):
    """One short sentence among the first has no translation."""
    rows = tiny_t5.pairs(21)
    rows[3] = {**rows[3], "de": " "}
    options = {
        "model_name_or_path": tiny_t5.write_checkpoint(tmp_path / "model"),
        **tiny_t5.LANGUAGES,
        "streaming": True,
        "per_device_train_batch_size": 4,
        "max_train_steps": 5,
        "logging_steps": 1,
        "shuffle_buffer_size": 1,
        "max_source_length": 40,
        "max_target_length": 40,
    }
    files = tiny_t5.write_pairs(tmp_path / f"train.{kind}", rows)
    words = ["--train_file", *files, *arguments(**options, output_dir=tmp_path / "output")]
    assert run_translation.main(words)["global_step"] == 5
    state = json.loads((tmp_path / "output/checkpoint-5/trainer_state.json").read_text())
    assert state["epoch"] == 1 and state["position"] is None


@pytest.mark.parametrize(("kind", "nested"), [("parquet", True), ("jsonl", True), ("csv", False)])
@pytest.mark.slow
def test_a_repository_of_translations_is_streamed_and_gone_on_with(kind, nested, tmp_path):
    for name, rows in (("train", tiny_t5.pairs(29)), ("validation", tiny_t5.pairs(3, 100))):
        tiny_t5.write_pairs(tmp_path / f"repository/{name}.{kind}", rows, nested)
    options = {
        "model_name_or_path": tiny_t5.write_checkpoint(tmp_path / "model"),
        "dataset_name": tmp_path / "repository",
        **tiny_t5.LANGUAGES,
        "streaming": True,
        "shuffle_buffer_size": 7,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant",
        "num_beams": 1,
        "max_target_length": 16,
    }

    def translate(name: str, steps: int, **more: Any) -> dict[str, Any]:
        reset_accelerator()
        return run_translation.main(
            arguments(**options, output_dir=tmp_path / name, max_train_steps=steps, eval_steps=steps, **more)
        )

    whole = translate("whole", 5)
    translate("halves", 3)
    halves = translate("halves", 5, resume_from_checkpoint="latest")
    assert halves["eval_loss"] == whole["eval_loss"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_train_steps": None}, "--streaming needs --max_train_steps"),
        ({"group_by_length": True}, "--group_by_length needs the lengths"),
        ({"dataloader_num_workers": 2}, "--dataloader_num_workers is 2"),
        ({"shuffle_buffer_size": 0}, "--shuffle_buffer_size is 0"),
        ({"eval_only": True, "do_predict": None}, "--streaming is for training"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_what_a_stream_cannot_do_is_named(options, message, tmp_path, capsys):
    options = glue_options(tmp_path, validation_file="validation.csv") | options
    with pytest.raises(SystemExit):
        run_glue.parse_args(arguments(**options, output_dir=tmp_path / "output"))
    assert message in capsys.readouterr().err


def test_texts_of_a_stream_that_are_cut_are_told_once(tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(write_checkpoint(tmp_path / "bert"))
    args = argparse.Namespace(max_length=6, pad_to_max_length=False)
    data = argparse.Namespace(text_columns=["text"], labels=["no", "yes"])
    encoder = run_glue.RowEncoder(args, data, tokenizer)
    short, long = ({"text": " ".join(["film"] * count), "label": "yes"} for count in (4, 20))
    with caplog.at_level(logging.WARNING):
        assert len(encoder([short])[0]["input_ids"]) == 6 and not caplog.records
        assert len(encoder([short, long])[1]["input_ids"]) == 6
        encoder([long])
    assert len(caplog.records) == 1 and "texts of more than 6 tokens" in caplog.text and "--max_length" in caplog.text

    caplog.clear()
    tokenizer = AutoTokenizer.from_pretrained(tiny_t5.write_checkpoint(tmp_path / "t5"))
    names = {"source_lang": "en", "target_lang": "de", "source_prefix": ""}
    args = argparse.Namespace(**names, max_source_length=5, max_target_length=500)
    encoder = pair_encoding.PairEncoder(args, tokenizer)
    pair = {"source": "Open the file and close it again. " * 3, "target": "Ja."}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [set(row) for row in encoder([pair])] == [{"input_ids", "labels"}]
    assert len(caplog.records) == 1 and "--max_source_length" in caplog.text


class Lengths:
    """Encodes rows of numbers as texts of so many tokens."""

    def __init__(self):
        self.cut_texts = CutTexts({"--max_length": 5})

    def __call__(self, rows: list[dict[str, Any]]) -> list[int]:
        self.cut_texts.note("--max_length", [row["number"] for row in rows])
        return [row["number"] for row in rows]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_cut_texts_of_a_stream_are_counted(num_workers, tmp_path, caplog, isolated):
    """Each once, whoever reads them: examples that fill up a short step, here one of 1, do not count."""
    encoders = []
    for process in range(2):
        encoders.append(Lengths())
        stream = Stream(source("generator", 13, tmp_path), encoders[-1], 4, "numbers")
        batches = StreamedBatches(stream, 3, 2, 2, process)
        assert len(list(batches.load(stream, list, num_workers, epoch=0))) == 2
    counts = [encoder.cut_texts.counts["--max_length"].tolist() for encoder in encoders]
    assert [sum(column) for column in zip(*counts, strict=True)] == [13, 7]
    with caplog.at_level(logging.INFO):
        encoders[0].cut_texts.tell(Accelerator(cpu=True))
    texts, cut = counts[0]
    assert f"train: {cut} of {texts} texts that this run read from the stream have more than 5 tokens" in caplog.text
