# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolving language models from scratch or from a checkpoint, of the families and of whatever `evolve` takes."""

import argparse
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ea_hf import evolve
from ea_hf.models.auto import family_of
from ea_hf.models.undocumented import model_mapping
from ea_hf.training.config_overrides import check_overrides, overrides_told
from ea_hf.training.model_loading import check_vocabulary, load_evolving_model, longest_input
from ea_hf.training.script import evolution_overrides
from ea_hf.training.terminal import script_logger
from ea_hf.training.tokenizer_loading import check_location, load_tokenizer


logger = script_logger(__name__)

LONGEST_DEFAULT = 512
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


def load_model_and_tokenizer(
    args: argparse.Namespace, auto_class: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The evolving model and its tokenizer; `args.block_size` becomes a number.

    Raises:
        ValueError: the tokenizer and the model do not belong together, or the blocks are longer than the model's positions.
    """
    for name in filter(None, (args.model_name_or_path, args.tokenizer_name, args.config_name)):
        check_location(name)
    tokenizer_name = args.tokenizer_name or args.model_name_or_path
    tokenizer = load_tokenizer(tokenizer_name, trust_remote_code=args.trust_remote_code, has_option=True)
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {tokenizer_name} has no fast version, which is needed to tell words apart."
        )
    model = (
        _from_checkpoint(args, auto_class) if args.model_name_or_path else _from_scratch(args, auto_class, tokenizer)
    )
    check_vocabulary(model, tokenizer, tokenizer_name)
    longest = longest_input(model)
    if args.block_size is None:
        args.block_size = min(LONGEST_DEFAULT, longest or LONGEST_DEFAULT)
        logger.info(f"Blocks have up to {args.block_size} tokens.")
    elif longest is not None and args.block_size > longest:
        name = args.model_name_or_path or f"The new {type(model).__name__}"
        raise ValueError(f"Blocks of {args.block_size} tokens are asked for, but {name} ends at {longest} positions.")
    return model, tokenizer


def _overrides_of_evolve(args: argparse.Namespace) -> dict[str, Any]:
    overrides = {name.removeprefix("ea_"): value for name, value in evolution_overrides(args).items()}
    chains = [name for name in ("encoder", "decoder", "cross_attention") if name in overrides]
    if chains:
        raise ValueError(f"--ea_{chains[0]} is of EA-T5; what `evolve` makes has all its chains.")
    return overrides


def _from_checkpoint(args: argparse.Namespace, auto_class: Any) -> PreTrainedModel:
    model, _ = load_evolving_model(auto_class, args)
    return model


def _from_scratch(args: argparse.Namespace, auto_class: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    values: dict[str, Any] = {}
    if args.config_name is not None:
        saved = AutoConfig.from_pretrained(args.config_name, trust_remote_code=args.trust_remote_code)
        model_type = getattr(saved, "vanilla_model_type", saved.model_type)
        values = saved.to_diff_dict() | {name: value for name, value in saved.to_dict().items() if name[:3] == "ea_"}
        for name in ("model_type", "architectures", "transformers_version", "vanilla_model_type", "auto_map"):
            values.pop(name, None)
    else:
        model_type = args.model_type
    family = family_of(model_type)
    if family is None and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"--model_type is {model_type!r}, which Transformers does not know; such as bert, electra, gpt2."
        )
    config_class: type[PreTrainedConfig] = family or CONFIG_MAPPING[model_type]
    _check_task(config_class, auto_class, model_type)
    known = config_class()
    check_overrides(args.config_overrides, known)
    values["vocab_size"] = len(tokenizer)
    for name in SPECIAL_IDS:
        if hasattr(known, name):
            values[name] = getattr(tokenizer, name)
    if getattr(known, "is_encoder_decoder", False):
        values["decoder_start_token_id"] = tokenizer.pad_token_id
    saved_weights = {name: values.pop(name) for name in list(values) if name.startswith("ea_")}
    values |= args.config_overrides
    with overrides_told(args.config_overrides):
        if family is not None:
            return auto_class.from_config(family(**{**saved_weights, **values, **evolution_overrides(args)}))
        model = auto_class.from_config(config_class(**values), dtype=torch.float32)
    weights = {name.removeprefix("ea_"): value for name, value in saved_weights.items()}
    return evolve(model, **{**weights, **_overrides_of_evolve(args)})


def _check_task(config_class: type[PreTrainedConfig], auto_class: Any, name: str) -> None:
    if config_class not in model_mapping(auto_class):
        raise ValueError(f"{name} is of a kind ({config_class.__name__}) that has no {auto_class.__name__}.")
