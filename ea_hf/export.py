# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Exports a model to ONNX, or to PyTorch's own format, and checks that the file computes the same.

    python -m ea_hf.export CHECKPOINT --output model.onnx
    python -m ea_hf.export CHECKPOINT --output model.pt2

Encoders of text take any number of sequences of any length, with their padding mask as an input; those of images any
number of images. Of an encoder-decoder model the encoder is exported. `export` does the same for any inputs.
"""

import argparse
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from .models.evolution_layer import AttentionEvolution
from .models.loading_faults import loading_told
from .models.undocumented import model_mapping
from .training.command_line import ArgumentParser, run_main
from .training.tokenizer_loading import check_location


# Largest difference between the outputs of the file and those of PyTorch, in float32.
TOLERANCE = 1e-4

Inputs = dict[str, torch.Tensor]


def export(
    model: PreTrainedModel, inputs: Inputs, dynamic_shapes: dict[str, dict[int, Any]], output: str | Path
) -> list[str]:
    """Writes a model to a file.

    Args:
        model: an encoder, in float32.
        inputs: example inputs by name. An axis that is to stay open must be 2 or longer.
        dynamic_shapes: for each input the axes that stay open, as for `torch.export.export`.
        output: the file; its suffix is `.onnx`, or `.pt2` for `torch.export.load`.

    Returns:
        The names of the outputs.

    Raises:
        ValueError: another suffix; the model decodes step by step.
    """
    output = Path(output)
    if output.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"`output` is {str(output)!r}; choose a name that ends with .onnx or .pt2.")
    if any(evolution.is_causal for evolution in model.modules() if isinstance(evolution, AttentionEvolution)):
        raise ValueError(
            f"{type(model).__name__} decodes step by step with a cache, which exported graphs do not have. Export an encoder, "
            "such as `model.get_encoder()`."
        )
    model = model.eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        names = list(model(**inputs))
        program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic_shapes, strict=False)
        if output.suffix == ".pt2":
            torch.export.save(program, output)
        else:
            torch.onnx.export(
                program,
                f=output,
                input_names=list(inputs),
                output_names=names,
                dynamo=True,
                verbose=False,
                external_data=False,
            )
    return names


def load_exported(path: str | Path) -> Callable[[Inputs], list[torch.Tensor]]:
    """An exported file as a function from inputs by name to outputs in order."""
    if Path(path).suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda inputs: list(module(**inputs).values())
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: [
        torch.from_numpy(array) for array in session.run(None, {name: x.numpy() for name, x in inputs.items()})
    ]


@torch.no_grad()
def largest_difference(
    model: PreTrainedModel, exported: Callable[[Inputs], list[torch.Tensor]], inputs: Inputs
) -> float:
    """The largest difference between the outputs of a model and of the file that was exported from it."""
    pairs = zip(exported(inputs), model(**inputs).values(), strict=True)
    return max((actual - expected).abs().max().item() for actual, expected in pairs)


def load_encoder(checkpoint: str) -> PreTrainedModel:
    """The model of a checkpoint, with the head that it was saved with; of an encoder-decoder model the encoder.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint's class is not known.
    """
    check_location(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    if not config.architectures:
        raise ValueError(
            f"The config.json of {checkpoint} does not say of which class the model is (`architectures`)."
        )
    architecture = config.architectures[0]
    mappings = [model_mapping(vars(modeling_auto)[name]) for name in modeling_auto.__all__ if name.startswith("Auto")]
    classes = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    found = [model_class for model_class in classes if getattr(model_class, "__name__", "") == architecture]
    if not found:
        raise ValueError(f"{checkpoint} holds a {architecture}, which no Auto class loads.")
    with loading_told(checkpoint):
        model = found[0].from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model.get_encoder() if config.is_encoder_decoder else model


def example_inputs(model: PreTrainedModel, batch: int = 2, length: int = 8, image_size: int | None = None) -> Inputs:
    """Random inputs of the model's kind; the last sequence has padding on the right.

    Args:
        batch: number of sequences or images.
        length: tokens of a sequence.
        image_size: side of an image; the configuration's, or 224, if `None`.

    Raises:
        ValueError: the model takes neither tokens nor images.
    """
    config: PreTrainedConfig = model.config
    if model.main_input_name == "input_ids":
        token_ids = torch.randint(2, config.vocab_size, (batch, length))
        attention_mask = torch.ones_like(token_ids)
        attention_mask[-1, (length + 1) // 2 :] = 0
        inputs = {"input_ids": token_ids, "attention_mask": attention_mask}
        if "token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["token_type_ids"] = torch.zeros_like(token_ids)
        return inputs
    if model.main_input_name == "pixel_values":
        size = image_size or getattr(config, "image_size", 224)
        return {"pixel_values": torch.randn(batch, config.num_channels, size, size)}
    raise ValueError(
        f"{type(model).__name__} takes {model.main_input_name!r}, for which there are no example inputs. Call "
        "`ea_hf.export.export` with inputs of your own."
    )


def open_axes(inputs: Inputs) -> dict[str, dict[int, Any]]:
    """The number of sequences or images stays open, and the length of sequences."""
    return {
        name: dict.fromkeys(range(2) if values.ndim == 2 else range(1), Dim.DYNAMIC) for name, values in inputs.items()
    }


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="directory, or name on the Hub")
    parser.add_argument(
        "--output", required=True, help="the file to write: model.onnx, or model.pt2 for torch.export.load"
    )
    parser.add_argument("--image_size", type=int, help="side of the images; the configuration's, or 224, if not given")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    # The exporters tell of their own internals.
    warnings.simplefilter("ignore")
    model = load_encoder(args.checkpoint)
    if args.image_size is not None and (args.image_size < 1 or model.main_input_name != "pixel_values"):
        reason = "it must be at least 1" if args.image_size < 1 else f"{args.checkpoint} takes no images"
        raise ValueError(f"--image_size is {args.image_size}; {reason}.")
    image: dict[str, Any] = {"image_size": args.image_size}
    inputs = example_inputs(model, **image)
    names = export(model, inputs, open_axes(inputs), args.output)
    sizes = ((2, 8), (1, 5), (3, 13))
    exported = load_exported(args.output)
    difference = max(
        largest_difference(model, exported, example_inputs(model, batch, length, **image)) for batch, length in sizes
    )
    print(f"{args.output}: from {', '.join(inputs)} to {', '.join(names)}")
    print(f"largest difference from PyTorch, with other numbers and lengths: {difference:.1e}")
    if not difference <= TOLERANCE:
        raise SystemExit(f"That is more than {TOLERANCE}: do not use {args.output}.")


if __name__ == "__main__":
    run_main(main)
