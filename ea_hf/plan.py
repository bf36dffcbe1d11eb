# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training run needs: parameters, FLOPs, memory, what fits a device, and what several devices give.

    python -m ea_hf.plan --model_name_or_path google-bert/bert-base-uncased --batch_size 32 --length 128
    python -m ea_hf.plan --model_type ea_resnet --config_overrides depth=50 --memory 24 80 --devices 1 8

Nothing is computed: the model's own forward, backward and optimizer step run on fake tensors, which have a shape and no
numbers. `torch.utils.flop_counter` counts their operations, and every tensor's memory is counted from when it is made
until it is freed. So the figures are those of the code that trains, in any family. They are for batches without padding.
"""

import argparse
import json
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING

from .models.auto import CONFIGS, MODELS, evolving_config_from_pretrained
from .models.configuration_evolving import EvolvingConfig
from .models.evolution import AttentionEvolution
from .plan_report import GB, RESERVED_SHARE, format_plan, verdict
from .training.command_line import ArgumentParser, program_name, run_main
from .training.config_overrides import overrides_told
from .training.optimizers import OPTIMIZERS, create_optimizer, parse_values
from .training.tokenizer_loading import check_location
from .undocumented import FakeTensorMode, TorchDispatchMode, storage_key, tree_leaves


# Beside the heads for text to text, those that the scripts train.
CLASSIFIERS = (
    AutoModelForSequenceClassification,
    AutoModelForImageClassification,
    MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING,
)
MODES = {
    "default": {},
    "memory-efficient": {"ea_memory_efficient": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LiveBytes(TorchDispatchMode):
    """Counts the memory of the tensors that are made within it, until they are freed.

    Args:
        model: its parameters and buffers do not count.
        inputs: nor do they.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, torch.Tensor]):
        super().__init__()
        self.now = self.peak = 0
        held = (*model.parameters(), *model.buffers(), *inputs.values())
        self._bytes = {storage_key(tensor.untyped_storage()): 0 for tensor in held}

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage_key(storage) not in self._bytes:
            self._bytes[storage_key(storage)] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage_key(storage))

    def _free(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


@dataclass(frozen=True)
class Model:
    """What does not depend on the batch.

    Attributes:
        name: of the class.
        parameters, evolution_parameters: how many there are in all, and in the convolutions over maps.
        layer_parameters: in the largest layer, which FSDP2 gathers at once.
        root_parameters: outside of all layers, which FSDP2 keeps gathered.
        optimizer_bytes: of the optimizer's states.
    """

    name: str
    parameters: int
    evolution_parameters: int
    layer_parameters: int
    root_parameters: int
    optimizer_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Of the weights in float32, in which the scripts keep them; their gradients have as many."""
        return 4 * self.parameters


@dataclass(frozen=True)
class Step:
    """What one step of training needs on one device, beside weights, gradients and optimizer states.

    Attributes:
        forward_flops, training_flops: floating-point operations; a multiply-add is two.
        map_bytes: of the maps A_l of all layers.
        saved_bytes: what is kept from the forward for the backward pass.
        peak_bytes: what is held at once at most, gradients not counted once they are complete.
    """

    forward_flops: int
    training_flops: int
    map_bytes: int
    saved_bytes: int
    peak_bytes: int


def make_inputs(
    config: EvolvingConfig, model: nn.Module, batch_size: int, length: int, target_length: int | None = None
) -> dict[str, torch.Tensor]:
    """A batch without padding. Lengths are for text; of images and series, the configuration gives the size."""
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
        inputs = {"pixel_values": torch.zeros(batch_size, config.num_channels, *size)}
    elif model.main_input_name == "past_values":
        inputs = {"past_values": torch.zeros(batch_size, config.context_length, config.num_input_channels)}
    else:
        inputs = {"input_ids": torch.zeros(batch_size, length, dtype=torch.long)}
        if config.is_encoder_decoder and isinstance(model, _head_classes(AutoModelForSeq2SeqLM)):
            inputs["labels"] = torch.zeros(batch_size, target_length or length, dtype=torch.long)
    if isinstance(model, _head_classes(*CLASSIFIERS)):
        inputs["labels"] = torch.zeros(batch_size, dtype=torch.long)
    return inputs


def _head_classes(*auto_classes: Any) -> tuple[type, ...]:
    return tuple(model_class for auto_class, model_class in MODELS if any(auto_class is auto for auto in auto_classes))


def model_class(config: EvolvingConfig) -> type:
    """The class that the scripts train, of a configuration's family."""
    candidates = (*_head_classes(AutoModelForSeq2SeqLM, *CLASSIFIERS), *(model_class for _, model_class in MODELS))
    return next(model_class for model_class in candidates if model_class.config_class is type(config))


def _build_for(config: EvolvingConfig, mode: str) -> nn.Module:
    options = dict(MODES[mode])
    gradient_checkpointing = options.pop("gradient_checkpointing", False)
    return build(type(config).from_dict({**config.to_dict(), **options}), gradient_checkpointing)


def build(config: EvolvingConfig, gradient_checkpointing: bool = False) -> nn.Module:
    """A model in training mode whose weights nobody has initialized."""
    with init.no_init_weights():
        model = model_class(config)(config).train()
    model.tie_weights()
    if gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def run_forward(model: nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The loss, or the sum of the outputs if there is none."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        outputs = model(**inputs)
        if outputs.get("loss") is not None:
            return outputs["loss"]
        return sum(value.float().sum() for value in outputs.values() if isinstance(value, torch.Tensor))


def plan_model(config: EvolvingConfig, optim: str = "adamw_torch") -> Model:
    """Counts parameters and the optimizer's states."""
    with FakeTensorMode():
        model = build(config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        arguments = argparse.Namespace(optim=optim, optim_args={}, learning_rate=1e-3, weight_decay=0.0)
        optimizer = create_optimizer(arguments, model)
        optimizer.step()
        states = [
            tensor
            for state in optimizer.state.values()
            for tensor in state.values()
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 0
        ]
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        layer_sizes = [_count(layer) for layer in layers]
        return Model(
            name=type(model).__name__,
            parameters=_count(model),
            evolution_parameters=sum(_count(m) for m in model.modules() if isinstance(m, AttentionEvolution)),
            layer_parameters=max(layer_sizes, default=0),
            root_parameters=_count(model) - sum(layer_sizes),
            optimizer_bytes=sum(tensor.numel() * tensor.element_size() for tensor in states),
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def plan_step(
    config: EvolvingConfig,
    batch_size: int,
    length: int,
    target_length: int | None = None,
    mode: str = "default",
    precision: str = "fp32",
) -> Step:
    """Plans one forward and backward pass of a batch.

    Args:
        length, target_length: of the texts, in tokens; not looked at for images and series.
        mode: one of `MODES`.
        precision: "fp32", or "bf16" for mixed precision.
    """
    dtype = PRECISIONS[precision]
    with FakeTensorMode():
        model = _build_for(config, mode)
        inputs = make_inputs(config, model, batch_size, length, target_length)
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            outputs = model.eval()(**inputs, output_attention_maps=True)
        maps = [value for name, values in outputs.items() if name.endswith("attention_maps") for value in values]
        map_bytes = dtype.itemsize * sum(
            value.numel() for value in maps
        )  # recorded ones may be wider than those carried
        del outputs, maps
        model.train()
        with FlopCounterMode(display=False) as flops:
            loss = run_forward(model, inputs, dtype)
            forward_flops = flops.get_total_flops()
            loss.backward()
        return Step(forward_flops, flops.get_total_flops(), map_bytes, *_run_step(model, inputs, dtype))


def _run_step(model: nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> tuple[int, int]:
    """The saved bytes and the peak bytes; see `Step`. The counter of operations would keep what is replayed alive."""

    def drop_gradient(parameter: nn.Parameter) -> None:
        parameter.grad = None

    for parameter in model.parameters():
        parameter.grad = None
        parameter.register_post_accumulate_grad_hook(drop_gradient)
    with LiveBytes(model, inputs) as live:
        loss = run_forward(model, inputs, dtype)
        saved_bytes = live.now
        loss.backward()
    return saved_bytes, live.peak


def peak_bytes(config: EvolvingConfig, *sizes: int | None, mode: str = "default", precision: str = "fp32") -> int:
    """The peak bytes of `plan_step` alone, in half the time; `sizes` are of the batch and the texts, as there."""
    with FakeTensorMode():
        model = _build_for(config, mode)
        inputs = make_inputs(config, model, *sizes)
        return _run_step(model, inputs, PRECISIONS[precision])[1]


def device_bytes(model: Model, peak: int, devices: int = 1, sharding: str = "ddp", precision: str = "fp32") -> int:
    """What one of several devices holds at most.

    Args:
        peak: `Step.peak_bytes`.
        sharding: "ddp": each has everything, and a copy of the gradients for the exchange. "fsdp2": each has a share,
            the weights outside of the layers, and two layers' weights and one layer's gradients at a time.
    """
    if devices == 1:
        return 2 * model.weight_bytes + model.optimizer_bytes + peak
    if sharding == "ddp":
        return 3 * model.weight_bytes + model.optimizer_bytes + peak
    share = (2 * model.weight_bytes + model.optimizer_bytes) // devices
    gathered = PRECISIONS[precision].itemsize * (2 * model.root_parameters + 3 * model.layer_parameters)
    return share + gathered + peak


def sent_bytes(model: Model, devices: int, sharding: str, precision: str = "fp32") -> int:
    """What each device sends in a step, with ring algorithms.

    DDP: the gradients, reduced and gathered, in float32. FSDP2: the weights, gathered for the forward and for the
    backward pass, and the gradients, reduced, in the precision of the layers.
    """
    if sharding == "ddp":
        return 2 * (devices - 1) * model.weight_bytes // devices
    return 3 * (devices - 1) * PRECISIONS[precision].itemsize * model.parameters // devices


def largest_batch(bytes_of: Callable[[int], int], memory: int) -> int:
    """The largest batch per device that fits, 0 if none does.

    Args:
        bytes_of: what a batch of so many examples needs: a straight line but for small batches, which it goes above.
    """
    low, high = bytes_of(32), bytes_of(64)
    size = max(0, int((memory - low) / ((high - low) / 32) + 32))
    while 0 < size < 32 and bytes_of(size) > memory:
        size -= 1
    return size


def plan(args: argparse.Namespace, config: EvolvingConfig) -> dict[str, Any]:
    """All tables, as `--json` prints them: rows of figures in bytes, FLOPs, examples and seconds.

    Raises:
        ValueError: the model takes no texts of such a length.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and max(args.length) > longest:
        raise ValueError(
            f"--length is {max(args.length)}, but the model ends at {longest} tokens. Lower it, or plan a longer model with "
            f"--config_overrides max_position_embeddings={max(args.length)}."
        )
    model = plan_model(config, args.optim)

    @cache
    def peak_of(size: int, length: int, mode: str, precision: str) -> int:
        return peak_bytes(config, size, length, args.target_length, mode=mode, precision=precision)

    rows_of_steps, rows_of_devices = [], []
    for length in args.length:
        for precision in args.precision:
            for mode in args.mode:
                key = {"length": length, "precision": precision, "mode": mode}
                step = plan_step(config, args.batch_size, length, args.target_length, mode, precision)
                rows_of_steps.append({**key, **asdict(step), "total_bytes": device_bytes(model, step.peak_bytes)})
                for devices in args.devices:
                    for sharding in ("ddp", "fsdp2") if devices > 1 else ("one device",):
                        used = device_bytes(model, step.peak_bytes, devices, sharding, precision)
                        row = {**key, "devices": devices, "sharding": sharding, "bytes_per_device": used}
                        row |= _speed(args, model, step, devices, sharding, precision)
                        for memory in args.memory:
                            row[f"largest_batch_of_{memory:g}_GB"] = largest_batch(
                                lambda size, k=(length, mode, precision), d=devices, w=sharding: device_bytes(
                                    model, peak_of(size, *k), d, w, k[-1]
                                ),
                                int(memory * GB * (1 - RESERVED_SHARE)),
                            )
                        rows_of_devices.append(row)
    return {
        "model": {**asdict(model), "weight_bytes": model.weight_bytes, "optim": args.optim},
        "batch_size": args.batch_size,
        "steps": rows_of_steps,
        "devices": rows_of_devices,
    }


def _speed(
    args: argparse.Namespace, model: Model, step: Step, devices: int, sharding: str, precision: str
) -> dict[str, float]:
    """What several devices give at best: computing and sending at the same time."""
    sent = sent_bytes(model, devices, sharding, precision) if devices > 1 else 0
    figures: dict[str, float] = {"examples_per_step": args.batch_size * devices, "sent_bytes_per_step": sent}
    if args.tflops is not None:
        computing = step.training_flops / (args.tflops * 1e12)
        sending = sent / (args.bandwidth * 1e9)
        seconds = max(computing, sending)
        figures |= {
            "seconds_per_step": seconds,
            "examples_per_second": args.batch_size * devices / seconds,
            "efficiency": computing / seconds,
        }
    return figures


def load_config(args: argparse.Namespace) -> EvolvingConfig:
    """The configuration that the arguments name.

    Raises:
        ValueError: the model type is unknown, or the configuration has no such field.
    """
    overrides = dict(args.config_overrides)
    if args.model_name_or_path is not None:
        check_location(args.model_name_or_path)
        config = evolving_config_from_pretrained(args.model_name_or_path)
        make = type(config).from_dict
        values = config.to_dict()
    else:
        classes = {config_class.model_type: config_class for config_class in CONFIGS}
        if args.model_type not in classes:
            raise ValueError(f"--model_type is {args.model_type!r}; choose one of {', '.join(sorted(classes))}.")
        config_class, values = classes[args.model_type], {}
        config = config_class()
        make = config_class.from_dict
        if "depth" in overrides and hasattr(config_class, "from_depth"):
            depth = overrides.pop("depth")
            values = config_class.from_depth(depth).to_dict()
    unknown = [name for name in overrides if not hasattr(config, name)]
    if unknown:
        raise ValueError(f"--config_overrides names {unknown[0]!r}, which {type(config).__name__} does not have.")
    return make({**values, **overrides})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog=program_name("ea_hf.plan"),
        description=__doc__,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model_name_or_path", help="A checkpoint, of which only the configuration is read.")
    source.add_argument("--model_type", help="Such as ea_bert, for a new model.")
    parser.add_argument("--config_overrides", type=parse_values, default={}, help='As "num_hidden_layers=24".')
    parser.add_argument("--batch_size", type=int, default=8, help="Examples per device.")
    parser.add_argument(
        "--length", type=int, nargs="+", default=[128], help="Of texts, in tokens; several are compared."
    )
    parser.add_argument("--target_length", type=int, help="Of an encoder-decoder's targets. Default: --length.")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--optim", choices=OPTIMIZERS, default="adamw_torch")
    parser.add_argument("--memory", type=float, nargs="*", default=[], help="Of a device, in GB: what fits.")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--tflops", type=float, help="That a device sustains, in 10^12 operations per second: how fast."
    )
    parser.add_argument("--bandwidth", type=float, default=50.0, help="Between devices, in 10^9 bytes per second.")
    parser.add_argument("--json", action="store_true", help="Print figures in bytes and operations, not tables.")
    args = parser.parse_args(argv)
    for name in ("batch_size", "length", "target_length", "memory", "devices", "tflops", "bandwidth"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not value > 0:
                parser.error(f"--{name} is {value}; it must be more than 0")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with overrides_told(args.config_overrides):
        figures = plan(args, load_config(args))
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        print(format_plan(figures), *verdict(figures, args.memory), sep="\n")


if __name__ == "__main__":
    run_main(main)
