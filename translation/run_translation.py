# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes an evolving-attention model for translation, or trains a T5 from scratch.

    python translation/run_translation.py --model_name_or_path google-t5/t5-small --dataset_name wmt16 \\
        --dataset_config_name ro-en --source_lang en --target_lang ro --output_dir output/en-ro
    python translation/run_translation.py --tokenizer_name output/tokenizer --config_overrides d_model=256,num_layers=3 \\
        --train_file train.en train.de --validation_file valid.jsonl --source_lang en --target_lang de \\
        --output_dir output/en-de
    torchrun --nproc_per_node 2 translation/run_translation.py ...      # several processes, on GPUs or on CPUs

A vanilla T5 becomes an EA-T5 on the fly, and any other model that `ea_hf.evolve` takes, such as Marian, BART or mBART, an
evolving model of its kind; an evolving checkpoint is loaded as it is. If the tokenizer has language codes, such as en_XX,
--source_lang and --target_lang take these; the data may use the part before the underscore.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from pair_encoding import check_tokens, column_of, make_stream, tokenize
from parallel_text import FILES_HELP, load_files, load_hub, stream_files
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from translation_evaluation import IGNORED, METRICS, PREDICTIONS_FILE, TranslationTask, make_metrics

from ea_hf import EAT5Config, evolving_config_from_pretrained
from ea_hf.models.pipeline_translation import find_task
from ea_hf.training.arguments import add_config_overrides, add_split_arguments, add_training_arguments, check_files
from ea_hf.training.command_line import run_main, script_parser
from ea_hf.training.config_overrides import check_overrides, overrides_told
from ea_hf.training.generation_settings import check_generation
from ea_hf.training.languages import has_languages, set_first_tokens, set_languages, takes_last_token_first
from ea_hf.training.local_files import check_not_an_input
from ea_hf.training.loop import create_accelerator
from ea_hf.training.model_card import ScoredData, translation_widget
from ea_hf.training.model_loading import check_vocabulary, load_evolving_model, longest_input
from ea_hf.training.output_dir import prepare_output_dir
from ea_hf.training.script import (
    add_evolution_arguments,
    add_streaming_arguments,
    check_arguments,
    evolution_overrides,
    run,
)
from ea_hf.training.task import find_best_metric
from ea_hf.training.terminal import script_logger
from ea_hf.training.tokenizer_loading import check_location, load_own_tokenizer


logger = script_logger(__name__)

# What `T5Config` derives from other fields, and saves beside them.
DERIVED_FIELDS = ("dense_act_fn", "is_gated_act")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    group = parser.add_argument_group("data")
    group.add_argument("--source_lang", required=True, help='Such as "en".')
    group.add_argument("--target_lang", required=True, help='Such as "de".')
    group.add_argument("--dataset_name", help='On the Hub, such as "wmt16", or a local copy of its repository.')
    group.add_argument("--dataset_config_name", help='Such as "ro-en".')
    group.add_argument("--train_file", nargs="+", help=FILES_HELP)
    group.add_argument("--validation_file", nargs="+", help="Likewise.")
    group.add_argument("--test_file", nargs="+", help="Likewise.")
    group.add_argument(
        "--source_prefix", help="Put before each source. Default: the checkpoint's for these languages."
    )
    group.add_argument(
        "--max_source_length",
        type=int,
        help="Longer sources are cut; in tokens. Default: 1024, or as many as the model takes.",
    )
    group.add_argument("--max_target_length", type=int, default=128, help="Longer targets are cut; in tokens.")
    group.add_argument("--val_max_target_length", type=int, help="Of generated text. Default: --max_target_length.")
    group.add_argument(
        "--ignore_pad_token_for_loss",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Do not count padding in the loss.",
    )
    group.add_argument("--preprocessing_num_workers", type=int, help="Processes that tokenize.")
    group.add_argument("--overwrite_cache", action="store_true", help="Tokenize anew.")
    add_streaming_arguments(group)
    add_split_arguments(
        group, "Use the first so many {} examples.", predictions="Translate the test set, and score it."
    )
    group.add_argument(
        "--forced_bos_token",
        help="Token that translations begin with. Default: the target language's if targets do, or the checkpoint's.",
    )
    group.add_argument("--num_beams", type=int, default=4, help="Of the beam search; 1 is greedy search.")

    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name_or_path",
        help="To fine-tune: any model that `ea_hf.evolve` takes. Default: train a T5 from scratch.",
    )
    group.add_argument("--config_name", help="Configuration of a model from scratch. Default: that of `EAT5Config`.")
    add_config_overrides(group, 'Changes of it, such as "d_model=256,num_layers=3".')
    group.add_argument("--tokenizer_name", help="Default: --model_name_or_path.")
    group.add_argument("--label_smoothing_factor", type=float, default=0.0, help="In [0, 1).")
    add_evolution_arguments(group, chains=("ea_encoder", "ea_decoder", "ea_cross_attention"))
    group.add_argument("--use_slow_tokenizer", action="store_true")
    group.add_argument("--trust_remote_code", action="store_true")
    add_training_arguments(parser)
    args = parser.parse_args(argv)

    check_files(parser, args, "dataset_name")
    if args.eval_only and args.model_name_or_path is None:
        parser.error("--eval_only needs --model_name_or_path")
    if args.model_name_or_path is None and args.tokenizer_name is None:
        parser.error("pass --model_name_or_path, or --tokenizer_name (train_tokenizer.py makes one) for a new model")
    if args.model_name_or_path is not None and (args.config_name is not None or args.config_overrides):
        parser.error("--config_name and --config_overrides are for a new model, without --model_name_or_path")
    if args.metric_for_best_model not in (None, *METRICS):
        parser.error(f"--metric_for_best_model is {args.metric_for_best_model!r}; choose one of {', '.join(METRICS)}")
    if not 0 <= args.label_smoothing_factor < 1:
        parser.error(f"--label_smoothing_factor is {args.label_smoothing_factor}; it must be in [0, 1)")
    if args.source_lang == args.target_lang:
        parser.error(f"--source_lang and --target_lang are both {args.source_lang!r}")
    args.val_max_target_length = args.val_max_target_length or args.max_target_length
    numbers = ("max_source_length", "max_target_length", "val_max_target_length", "preprocessing_num_workers")
    numbers += ("max_train_samples", "max_eval_samples", "max_predict_samples", "num_beams")
    check_arguments(parser, args, numbers)
    return args


def load_data(args: argparse.Namespace) -> dict[str, Dataset | IterableDataset]:
    """The splits that are needed, with the columns `source` and `target`; with `--streaming`, `train` is a stream."""
    limits = {
        "train": None if args.eval_only else args.max_train_samples,
        "validation": args.max_eval_samples,
        "test": args.max_predict_samples,
    }
    wanted = [*([] if args.eval_only else ["train"]), "validation", *(["test"] if args.do_predict else [])]
    if args.dataset_name is not None:
        splits = load_hub(
            args.dataset_name, args.dataset_config_name, args.source_lang, args.target_lang, args.streaming
        )
        missing = [name for name in wanted if name not in splits and name != "validation"]
        if missing:
            raise ValueError(f"{args.dataset_name} has no split {missing[0]!r}, but {', '.join(splits)}.")
    else:
        files = {name: getattr(args, f"{name}_file") for name in wanted if getattr(args, f"{name}_file") is not None}
        train_file = files.pop("train", None) if args.streaming else None
        splits = load_files(files, args.source_lang, args.target_lang)
        if train_file is not None:
            splits["train"] = stream_files(train_file, args.source_lang, args.target_lang)
    chosen = {}
    for name in wanted:
        split = splits.get(name)
        if isinstance(split, IterableDataset):
            split = split if limits[name] is None else split.take(limits[name])
            # What is evaluated on is small, and needed more than once.
            rows = [] if name == "train" else list(split)
            if rows:
                split = Dataset.from_list(rows, features=split.features)
            elif name != "train":
                raise ValueError(f"The split {name!r} of {args.dataset_name} is empty.")
            chosen[name] = split
        elif split is not None:
            chosen[name] = split.select(range(min(limits[name] or len(split), len(split))))
    empty = [name for name, split in chosen.items() if isinstance(split, Dataset) and len(split) == 0]
    if empty:
        raise ValueError(f"The split {empty[0]!r} of {args.dataset_name or 'the files'} is empty.")
    if not chosen:
        raise ValueError(f"{args.dataset_name} has no split 'validation' to evaluate on, but {', '.join(splits)}.")
    return chosen


def load_model(args: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The evolving model with its settings for generation, and its tokenizer."""
    tokenizer, tokenizer_name = load_own_tokenizer(args)
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(
                f"The tokenizer of {tokenizer_name} has no {name}, which a model that translates needs; choose another one."
            )
    set_languages(tokenizer, args.source_lang, args.target_lang)
    if args.model_name_or_path is not None:
        model, _ = load_evolving_model(AutoModelForSeq2SeqLM, args)
    else:
        with overrides_told(args.config_overrides):
            model = AutoModelForSeq2SeqLM.from_config(new_config(args, tokenizer))
    check_vocabulary(model, tokenizer, tokenizer_name)
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(model.config, name) != getattr(tokenizer, name):
            raise ValueError(
                f"{name} is {getattr(tokenizer, name)} in the tokenizer of {tokenizer_name}, but "
                f"{getattr(model.config, name)} in the model: they do not belong together."
            )
    if args.source_prefix is None:
        args.source_prefix = find_task(model.config, args.source_lang, args.target_lang).get("prefix", "")
        if args.source_prefix:
            logger.info(f"Source prefix of the checkpoint: {args.source_prefix!r}")
    check_lengths(args, longest_input(model))
    set_first_tokens(model, tokenizer, args.forced_bos_token)
    # What translate.py takes.
    settings = {"prefix": args.source_prefix, "max_source_length": args.max_source_length}
    if has_languages(tokenizer):
        settings |= {"source_lang": args.source_lang, "target_lang": args.target_lang}
    model.config.task_specific_params = {f"translation_{args.source_lang}_to_{args.target_lang}": settings}
    model.generation_config.num_beams = args.num_beams
    model.generation_config.max_length = None
    model.generation_config.max_new_tokens = args.val_max_target_length
    check_generation(model, args.model_name_or_path or "The new model")
    return model, tokenizer


def check_lengths(args: argparse.Namespace, longest: int | None) -> None:
    """Completes the lengths of texts, in tokens; raises ValueError if the model takes fewer."""
    args.max_source_length = args.max_source_length or min(1024, longest or 1024)
    for name in ("max_source_length", "max_target_length", "val_max_target_length"):
        if longest is not None and getattr(args, name) > longest:
            raise ValueError(
                f"--{name} is {getattr(args, name)}, but {args.model_name_or_path} ends at {longest} tokens."
            )


def new_config(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> EAT5Config:
    """The configuration of a model from scratch; the tokenizer tells its vocabulary."""
    values: dict[str, Any] = {}
    if args.config_name is not None:
        config = evolving_config_from_pretrained(args.config_name, trust_remote_code=args.trust_remote_code)
        values = {name: value for name, value in config.to_dict().items() if name not in DERIVED_FIELDS}
    known = EAT5Config()
    check_overrides(args.config_overrides, known)
    values |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return EAT5Config(**{**values, **args.config_overrides, **evolution_overrides(args)})


class Collator:
    """Makes a batch; a class and not a function in a function, because spawned data workers get it pickled."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, model: PreTrainedModel):
        self.pad_id, self.start_id = model.config.pad_token_id, model.config.decoder_start_token_id
        self.last_token_first = takes_last_token_first(model)
        self.label_pad_id = IGNORED if args.ignore_pad_token_for_loss else self.pad_id
        # Multiples of 8 suit the tensor cores of mixed precision.
        self.multiple = 8 if accelerator.mixed_precision != "no" else 1

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = self._pad([row["input_ids"] for row in examples], self.pad_id)
        labels = self._pad([row["labels"] for row in examples], self.label_pad_id)
        lengths = torch.tensor([len(row["input_ids"]) for row in examples])
        decoder_input_ids = labels.roll(1, dims=1)
        decoder_input_ids[:, 0] = self.start_id
        if self.last_token_first:
            decoder_input_ids[:, 0] = torch.tensor([row["labels"][-1] for row in examples])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "decoder_input_ids": decoder_input_ids.masked_fill(decoder_input_ids == IGNORED, self.pad_id),
            "labels": labels,
        }

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        """(rows, length of the longest)"""
        width = -(-max(map(len, rows)) // self.multiple) * self.multiple
        padded = torch.full((len(rows), width), value)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return padded


def smoothed_loss(
    label_smoothing_factor: float, model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The mean over all labels of the cross-entropy with smoothed labels."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits
    return cross_entropy(
        logits.float().flatten(0, 1), batch["labels"].flatten(), label_smoothing=label_smoothing_factor
    )


def scored_data(args: argparse.Namespace, splits: dict[str, Dataset]) -> list[ScoredData]:
    found = []
    for name, prefix in (("validation", ""), ("test", "test_")):
        if name in splits:
            source = args.dataset_name or ", ".join(Path(path).name for path in getattr(args, f"{name}_file"))
            found.append(ScoredData(name, source, len(splits[name]), "pairs", prefix))
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    for name in filter(None, (args.model_name_or_path, args.tokenizer_name, args.config_name)):
        check_location(name)
    inputs = [path for files in (args.train_file, args.validation_file, args.test_file) for path in files or ()]
    check_not_an_input(args.output_dir / PREDICTIONS_FILE, inputs)
    accelerator = create_accelerator(args)
    # Bad data and a bad model are told before the output directory is touched.
    metrics = make_metrics(args.target_lang)
    with accelerator.local_main_process_first():
        data = load_data(args)
    sizes = ", ".join(f"{name} {len(s) if isinstance(s, Dataset) else 'as a stream'}" for name, s in data.items())
    logger.info(f"Source texts are {args.source_lang!r}, targets {args.target_lang!r}; pairs: {sizes}.")
    model, tokenizer = load_model(args)
    check_tokens(args, data, tokenizer)
    splits = tokenize(args, accelerator, data, tokenizer)
    lock = prepare_output_dir(accelerator, args)
    lengths = None
    if "train" in splits:
        lengths = column_of(splits["train"], "source_length") + column_of(splits["train"], "target_length")
        splits["train"] = splits["train"].select_columns(["input_ids", "labels"])
    elif "train" in data:
        splits["train"] = make_stream(args, data["train"], tokenizer)
    best_metric = find_best_metric(args, METRICS if "validation" in splits else ())
    return run(
        TranslationTask(args, accelerator, splits, Collator(args, accelerator, model), tokenizer, metrics),
        model,
        tokenizer,
        model_card={
            "auto_class": "AutoModelForSeq2SeqLM",
            "task_type": "translation",
            "task_name": f"translation from {args.source_lang} to {args.target_lang}",
            "dataset_name": args.dataset_name
            or Path((args.train_file or args.test_file or args.validation_file)[0]).name,
            "base_model": args.model_name_or_path,
            "language": [args.source_lang, args.target_lang],
            "evaluated_on": scored_data(args, splits),
            "hub_dataset": args.dataset_name,
            "widget": translation_widget(args.source_lang, args.source_prefix or ""),
        },
        metric_details={f"{name}_signature": str(metric.get_signature()) for name, metric in metrics.items()},
        lock=lock,
        metric_for_best_model=best_metric,
        greater_is_better=best_metric != "loss",
        lengths=lengths,
        compute_loss=partial(smoothed_loss, args.label_smoothing_factor),
    )


if __name__ == "__main__":
    logging.captureWarnings(True)
    run_main(main)
