# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads the tokenizer of a checkpoint, and finds out whether it knows the text that it is to read.

Transformers makes a tokenizer of special tokens only where a checkpoint has no tokenizer files, without a word.
"""

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin

from ..undocumented import written_auto_name


logger = logging.getLogger(__name__)

# Shares of unknown tokens from which on a text is not worth reading, or worth a warning.
MOST_UNKNOWN = 0.5
MANY_UNKNOWN = 0.05
# How many texts are looked at.
TEXTS_SAMPLED = 1000
# Where code of others lives once it was loaded with trust.
REMOTE_CODE_PACKAGE = "transformers_modules"


def check_location(name: str) -> None:
    """Raises FileNotFoundError if a checkpoint is neither a directory nor possibly a name on the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return
    if path.exists():
        raise FileNotFoundError(f"{name} is a file, not the directory of a checkpoint.")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(
            f"{name} does not exist, and is no name on the Hub either (such as 'user/model')."
        ) from None


def load_tokenizer(
    name: str, *, trust_remote_code: bool, use_fast: bool = True, has_option: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; it forgets references to code that was not loaded.

    Args:
        has_option: whether the script has `--tokenizer_name`, for the message.

    Raises:
        FileNotFoundError: see `check_location`.
        ValueError: the tokenizer's files are missing, empty or damaged.
    """
    check_location(name)
    remedy = f"Copy the files of the right tokenizer (tokenizer.json, tokenizer_config.json) to {name}"
    remedy += ", or name another tokenizer with --tokenizer_name." if has_option else "."
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=use_fast, trust_remote_code=trust_remote_code)
    except ImportError:
        raise
    except Exception as error:  # the readers of tokenizer files raise all kinds
        if not Path(name).is_dir():
            raise
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"The tokenizer in {name} cannot be read ({message}). {remedy}") from error
    ordinary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - set(tokenizer.get_added_vocab())
    if len(ordinary) < 2:  # T5's knows the space by itself
        raise ValueError(f"{name} has no tokenizer: its vocabulary is empty, and all text would be unknown. {remedy}")
    forget_foreign_code(tokenizer)
    return tokenizer


def load_own_tokenizer(args: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer of `--tokenizer_name` or `--model_name_or_path`, and its name."""
    name = args.tokenizer_name or args.model_name_or_path
    options = {"use_fast": not args.use_slow_tokenizer, "trust_remote_code": args.trust_remote_code}
    return load_tokenizer(name, **options, has_option=True), name


def forget_foreign_code(processor: Any) -> None:
    """Takes references to code that was not loaded out of a tokenizer, image processor or the like, and out of its parts."""
    for part in vars(processor).values():
        if isinstance(part, PushToHubMixin):  # of a processor that has several parts
            forget_foreign_code(part)
    if type(processor).__module__.startswith(REMOTE_CODE_PACKAGE):
        return
    # Tokenizers save what they were made with, the others their attributes.
    for attributes in (vars(processor), getattr(processor, "init_kwargs", {})):
        references = attributes.pop("auto_map", {})
        # That of a class that travels with what is saved is written again.
        if set(references) - {written_auto_name(processor)}:
            logger.info(
                f"The {type(processor).__name__} refers to code that was not loaded, {references}; what is saved does not."
            )


def count_unknown(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> tuple[int, int]:
    """How many tokens of the texts are unknown, and how many there are."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
    return unknown, sum(map(len, encoded))


def check_known(tokenizer: PreTrainedTokenizerBase, name: str, texts: Iterable[str], place: str) -> None:
    """Warns if the tokenizer does not know many tokens of a text.

    Args:
        name: of the tokenizer, for the message.
        texts: a sample; those without a text are skipped.
        place: where they are from, such as "train".

    Raises:
        ValueError: it does not know most of them.
    """
    texts = [text for text in texts if text and text.strip()]
    if not texts or tokenizer.unk_token_id is None:
        return
    unknown, count = count_unknown(tokenizer, texts)
    share = unknown / max(count, 1)
    message = f"{share:.0%} of the tokens of {place} are unknown to the tokenizer of {name} ({len(texts)} texts were looked at)"
    if share > MOST_UNKNOWN:
        raise ValueError(f"{message}: they do not belong together. Choose a tokenizer of that language and script.")
    if share > MANY_UNKNOWN:
        logger.warning(f"{message}; another tokenizer may suit it better.")


def sample(length: int) -> range:
    """At most `TEXTS_SAMPLED` rows, spread over all."""
    return range(0, length, -(-length // TEXTS_SAMPLED) or 1)
