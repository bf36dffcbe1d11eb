# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's own settings for generation: whether they can be saved, and what they change."""

import logging

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..undocumented import SAYS_WHERE_IT_IS_FROM


logger = logging.getLogger(__name__)

# Settings without an effect, with which Transformers does not save a model, unless it samples, has several beams, or
# returns more than tokens.
ONLY_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
ONLY_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints")
ONLY_DICTIONARIES = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# These do not change what is generated.
ROUTINE = (
    "num_beams", "max_length", "max_new_tokens", "bos_token_id", "eos_token_id", "pad_token_id",
    "decoder_start_token_id", "transformers_version", SAYS_WHERE_IT_IS_FROM, "use_cache",
)  # fmt: skip


def check_generation(model: PreTrainedModel, name: str) -> None:
    """Settles the model's own settings, and tries them, so that no evaluation fails on them after a training.

    Raises:
        ValueError: see `settle_generation`; also if the model cannot generate with them.
    """
    settings = model.generation_config
    settle_generation(settings, name)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.generate(
                torch.tensor([[0]], device=model.device),
                max_new_tokens=1,
                num_return_sequences=1,
                return_dict_in_generate=False,
            )
    except (ValueError, TypeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} cannot generate with its own settings: {reason} Change its generation_config.json."
        ) from error


def settle_generation(settings: GenerationConfig, name: str) -> None:
    """Unsets what has no effect and would keep the model from being saved, and tells what changes an evaluation.

    Args:
        settings: are changed.
        name: of the checkpoint, for the messages.

    Raises:
        ValueError: the settings contradict each other, and the model could not be saved after its training.
    """
    groups = {"it does not sample": () if settings.do_sample else ONLY_SAMPLING}
    groups["it has one beam only"] = ONLY_BEAMS if settings.num_beams in (None, 1) else ()
    groups["it returns tokens only"] = () if settings.return_dict_in_generate else ONLY_DICTIONARIES
    defaults = GenerationConfig()
    for reason, names in groups.items():
        unset = {}
        for setting in names:
            value = getattr(settings, setting, None)
            if value is not None and value != getattr(defaults, setting, None):
                unset[setting] = value
                setattr(settings, setting, getattr(defaults, setting, None))
        if unset:
            logger.warning(
                f"Generation settings of {name} without an effect, as {reason}, were unset: {_list(unset)}."
            )
    beams = settings.num_beams or 1
    if (settings.num_return_sequences or 1) > max(beams, 1) and not settings.do_sample:
        raise ValueError(
            f"The generation settings of {name} ask for num_return_sequences={settings.num_return_sequences}, more than "
            f"--num_beams {beams}. Pass more beams, or change generation_config.json."
        )
    try:
        settings.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The generation settings of {name} contradict each other, and a model with them cannot be saved: {reason} "
            "Change its generation_config.json."
        ) from error
    own = {key: value for key, value in settings.to_diff_dict().items() if key not in ROUTINE}
    if settings.do_sample:
        logger.warning(f"{name} samples when it generates (do_sample): each evaluation gives other scores.")
    if (settings.num_return_sequences or 1) > 1:
        logger.warning(f"{name} gives {settings.num_return_sequences} sequences per text; the first one is evaluated.")
    if own:
        logger.info(f"Generation settings of {name}: {_list(own)}.")


def _list(settings: dict) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
