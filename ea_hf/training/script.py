# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the fine-tuning scripts share around the training loop: arguments of the model, and a run from end to end."""

import argparse
import filecmp
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..models.auto import CONFIGS
from ..models.evolution_layer import CONV_INITS, KERNELS, MIXINGS, POST_MIXINGS
from ..models.presets import PRESETS, preset_fields
from .checkpoints import write_json
from .interruptions import Interrupted, signals_noted, stop_together
from .liveness import processes_watched
from .loop import end_training, format_metrics, save_model, train
from .model_card import save_model_card
from .output_dir import RESULTS_FILE
from .publishing import push_to_hub
from .task import Task
from .terminal import lines_beside_bars
from .tokenizer_loading import forget_foreign_code


logger = logging.getLogger(__name__)


def add_evolution_arguments(group: argparse._ArgumentGroup, chains: Sequence[str] = ()) -> None:
    """Adds the fields of `EvolvingConfig` as arguments.

    Args:
        chains: the family's own fields that switch a chain of maps on and off.
    """
    weights = {name: _default_of(name) for name in ("ea_residual_weight", "ea_conv_weight")}
    group.add_argument(
        "--ea_preset",
        choices=PRESETS,
        help="Stands for several of the arguments below; see docs/method.md. Default: none.",
    )
    group.add_argument(
        "--ea_mixing",
        choices=MIXINGS,
        help='"learned" learns the two weights, which then start at 0 by default. Default: the checkpoint\'s, or convex.',
    )
    group.add_argument(
        "--ea_residual_weight",
        type=float,
        help=f"In [0, 1] if convex, otherwise any number. Default: the checkpoint's, or {weights['ea_residual_weight']}.",
    )
    group.add_argument(
        "--ea_conv_weight",
        type=float,
        help=f"As --ea_residual_weight. Default: the checkpoint's, or {weights['ea_conv_weight']}.",
    )
    group.add_argument(
        "--ea_kernel_size",
        type=int,
        nargs="+",
        action=_OneOrTwo,
        help="Odd, or rows and columns; where all is causal rows may be even. Default: the checkpoint's, or "
        f"{_default_of('ea_kernel_size')}.",
    )
    group.add_argument(
        "--ea_conv_groups",
        type=_number_or_name,
        help='1, or "heads": each has its own kernel. Default: the checkpoint\'s, or 1.',
    )
    group.add_argument(
        "--ea_conv_every",
        type=int,
        help="One layer of so many has a convolution. Default: the checkpoint's, or all but the first.",
    )
    group.add_argument("--ea_conv_init", choices=CONV_INITS, help="How new kernels start. Default: normal.")
    group.add_argument(
        "--ea_post_mixing",
        choices=POST_MIXINGS,
        help="What mixes heads after the softmax. Default: the checkpoint's, or none.",
    )
    group.add_argument("--ea_head_kernel_size", type=int, help="Heads that it mixes with each other. Default: all.")
    group.add_argument(
        "--ea_activation",
        help=f"Follows the convolution. Default: the checkpoint's, or {_default_of('ea_activation')}.",
    )
    group.add_argument(
        "--ea_memory_efficient",
        action="store_true",
        default=None,
        help="Save less for the backward pass, and compute more. Default: the checkpoint's, or off.",
    )
    group.add_argument(
        "--ea_kernels",
        choices=KERNELS,
        help="With what a GPU computes maps. Default: the checkpoint's, or torch.",
    )
    for name in chains:
        group.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, help="Default: the checkpoint's, or on."
        )


def _default_of(field: str) -> str:
    """What the families have by default: what most have, then the others by name."""
    values = {config_class.model_type: getattr(config_class(), field) for config_class in CONFIGS}
    (usual, _), *others = Counter(values.values()).most_common()
    exceptions = [f"{name} {value}" for name, value in values.items() if value != usual]
    return f"{usual} ({', '.join(exceptions)})" if others else str(usual)


class _OneOrTwo(argparse.Action):
    """Stores one number as it is, and two as a pair."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option=None
    ) -> None:
        if len(values) > 2:
            parser.error(f"{option} takes one number, or two for rows and columns, not {' '.join(map(str, values))}")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def _number_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def evolution_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that were given as arguments, by themselves or as a preset.

    Raises:
        ValueError: see `preset_fields`.
    """
    fields = {name: value for name, value in vars(args).items() if name.startswith("ea_") and value is not None}
    fields.pop("ea_learning_rate", None)  # the optimizer's
    return preset_fields(fields.pop("ea_preset", None), **fields)


def add_streaming_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of a script that can train on a stream of text."""
    group.add_argument(
        "--streaming",
        action="store_true",
        help="Read the training data while training, instead of preparing it on disk; needs --max_train_steps.",
    )
    group.add_argument(
        "--shuffle_buffer_size",
        type=int,
        default=10_000,
        help="Of a stream: rows that are shuffled at once, and held in memory; 1 keeps the order.",
    )


def _check_streaming_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with a message if a stream is asked for what it cannot do."""
    if not args.streaming:
        return
    if args.eval_only:
        parser.error("--streaming is for training, without --eval_only")
    if args.max_train_steps is None:
        parser.error("--streaming needs --max_train_steps, as nobody knows how long a stream is")
    if args.group_by_length:
        parser.error("--group_by_length needs the lengths of all examples, which --streaming does not know")
    if args.dataloader_num_workers > 1:
        parser.error(
            f"--dataloader_num_workers is {args.dataloader_num_workers}, but --streaming reads in order, with one at most"
        )
    if args.shuffle_buffer_size < 1:
        parser.error(f"--shuffle_buffer_size is {args.shuffle_buffer_size}; it must be at least 1")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, at_least_one: Sequence[str]) -> None:
    """Ends the program with a message if the output would replace the model to start from, or a number is below 1.

    Checks also what `add_streaming_arguments` and `add_held_out` added.

    Args:
        at_least_one: names of arguments that must be at least 1 if given.
    """
    if "streaming" in args:
        _check_streaming_arguments(parser, args)
    if "train_val_split" in args and not 0 < args.train_val_split < 1:
        parser.error(f"--train_val_split is {args.train_val_split}; it must be between 0 and 1")
    if args.model_name_or_path is not None:
        model, output_dir = Path(args.model_name_or_path).resolve(), args.output_dir.resolve()
        if (args.overwrite_output_dir or args.eval_only) and output_dir in (model, *model.parents) and model.exists():
            parser.error(f"--output_dir {args.output_dir} holds the model to start from; choose another --output_dir")
    for name in at_least_one:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"{parser.option_of(name)} is {getattr(args, name)}; it must be at least 1")


def has_bfloat16() -> bool:
    """Whether this machine multiplies matrices faster in bfloat16 than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def closing_lines(
    output_dir: Path, model_card: dict[str, Any], best_checkpoint: str | None, best_metric: float | None
) -> list[str]:
    """What a user looks for when a training is over: the best checkpoint, the model, and how to load it."""
    lines = []
    if best_checkpoint is not None and best_metric is not None:
        lines.append(f"Best checkpoint: {output_dir / best_checkpoint} ({best_metric:.4g})")
    auto_class, own_class = model_card["auto_class"], model_card.get("model_class")
    name = auto_class if own_class is None else f"ea_hf.{own_class}"
    imports = "import ea_hf" if own_class else f"import ea_hf; from transformers import {auto_class}"
    lines.append(f"Model: {output_dir}")
    # As JSON, which Python reads too, whatever the name of the directory holds.
    lines.append(f"Load it: {imports}; model = {name}.from_pretrained({json.dumps(str(output_dir))})")
    return lines


def _tell_shared_files(args: argparse.Namespace) -> None:
    """Warns of a file that is trained on and scored, under whichever name."""
    trained, *scored = (
        [path for path in ([files] if isinstance(files, str) else files or []) if Path(path).is_file()]
        for files in (getattr(args, name, None) for name in ("train_file", "validation_file", "test_file"))
    )
    for first, second in itertools.product(trained, itertools.chain.from_iterable(scored)):
        if filecmp.cmp(first, second, shallow=False):
            logger.warning(
                f"{second} holds what {first} does, which is trained on: its scores say nothing of other data."
            )


def run(
    task: Task,
    model: PreTrainedModel,
    processor: Any,
    *,
    model_card: dict[str, Any],
    metric_details: dict[str, str] | None = None,
    note_evaluations: Callable[[dict[int, dict[str, float]]], None] | None = None,
    last_run: bool = True,
    lock: ExitStack | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Trains unless `--eval_only`, evaluates, predicts, and leaves model, results and model card in `--output_dir`.

    Args:
        processor: the tokenizer or image processor that is saved beside the model.
        model_card: as for `save_model_card`, but for what is known here.
        metric_details: what belongs to the scores in results and model card, such as signatures.
        note_evaluations: takes the metrics of all evaluations of a training, by step.
        last_run: whether nothing follows in this process; several processes part then.
        lock: of `prepare_output_dir`; it is closed when all is done.
        training: as for `train`.

    Raises:
        Interrupted: SIGTERM or SIGINT came; the program ends with a non-zero status, and can go on from a checkpoint.
    """
    args, accelerator = task.args, task.accelerator
    evaluate = task.evaluate if task.can_evaluate else None
    config, details = model.config, metric_details or {}
    if accelerator.is_main_process and not args.eval_only:
        _tell_shared_files(args)
    forget_foreign_code(processor)
    save_assets = partial(_save_assets, model, processor)
    results: dict[str, Any] = dict(details)
    scores: dict[str, float] | None = None
    best: tuple[str | None, float | None] = (None, None)
    with signals_noted(), processes_watched(accelerator), lines_beside_bars():
        if args.eval_only:
            # Accelerate leaves it where it is under FSDP, which shards nothing here.
            model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
        else:
            trained = train(
                *(accelerator, args, model, task.datasets.get("train"), task.collate, evaluate, save_assets),
                **training,
            )
            model, scores = trained.model, trained.evaluation
            results |= trained.metrics
            if note_evaluations is not None:
                note_evaluations(trained.evaluations)
            best = trained.best_checkpoint, trained.best_metric
            del trained
            save_model(accelerator, model, args.output_dir, processor)
        scores, predicted = _score(task, model, scores)
        results |= {f"eval_{name}": value for name, value in scores.items()} | predicted
        if accelerator.is_main_process:
            if not args.eval_only:
                tested = {name: value for name, value in predicted.items() if name.startswith("test_")}
                metrics = scores | tested | details
                save_model_card(args.output_dir, args, config, metrics=metrics, license=args.license, **model_card)
            # At last: results are the sign of a run that is finished.
            write_json(args.output_dir / RESULTS_FILE, results)
            if not args.eval_only:
                for line in closing_lines(args.output_dir, model_card, *best):
                    logger.info(line)
        model = accelerator.unwrap_model(model)
        if last_run:
            end_training(accelerator)
        else:
            _part_from_training(accelerator)
    if accelerator.is_main_process and args.push_to_hub:
        push_to_hub(args.output_dir, args)
    if not last_run:
        accelerator.wait_for_everyone()  # what the main process has written may be read
    if lock is not None:
        lock.close()
    return results


def _save_assets(model: PreTrainedModel, processor: Any, directory: Path) -> None:
    """What stands beside the weights of a checkpoint."""
    for asset in (model.config, getattr(model, "generation_config", None), processor):
        if asset is not None:
            asset.save_pretrained(directory)


def _score(
    task: Task, model: PreTrainedModel, scores: dict[str, float] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of the evaluation, if the training has not left them, and those of the predictions."""
    try:
        if scores is None:
            scores = task.evaluate(model) if task.can_evaluate else {}
        if scores:
            logger.info(f"Final evaluation: {format_metrics(scores)}")
        return scores, (task.predict(model) or {}) if task.can_predict else {}
    except Interrupted as interruption:
        advice = "" if task.args.eval_only else ", when all was trained; go on with --resume_from_checkpoint latest"
        logger.warning(f"Stopped by {interruption.signal.name}{advice}.")
        raise


def _part_from_training(accelerator: Accelerator) -> None:
    """Leaves nothing of a training to the next one of this process, before which a signal may end it."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.free_memory()
    try:
        stop_together(accelerator)
    except Interrupted as interruption:
        logger.warning(
            f"Stopped by {interruption.signal.name} between two trainings; go on with the same command and "
            "--resume_from_checkpoint latest."
        )
        raise
