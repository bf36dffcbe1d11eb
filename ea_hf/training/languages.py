# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""How texts and translations begin and end: languages of tokenizers that know several, such as those of mBART and NLLB."""

import logging

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)


def column_names(language: str) -> tuple[str, ...]:
    """Under which names data may have a language: as it is, or, of a code such as "en_XX", what is before the line."""
    return tuple(dict.fromkeys((language, language.split("_")[0])))


def has_languages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer marks texts with their language."""
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")


def set_languages(tokenizer: PreTrainedTokenizerBase, source_lang: str | None, target_lang: str | None) -> None:
    """Makes a tokenizer mark sources and targets with their languages, if it does such a thing.

    Raises:
        ValueError: it does not know a language, or none is given.
    """
    if not has_languages(tokenizer):
        return
    codes = getattr(tokenizer, "lang_code_to_token", None) or getattr(tokenizer, "lang_code_to_id", None) or ()
    for name, code in (("source_lang", source_lang), ("target_lang", target_lang)):
        is_known = code in codes if codes else _token_id(tokenizer, code) is not None
        if not is_known:
            known = f" Its codes are {', '.join(codes)}." if codes else ""
            raise ValueError(
                f"--{name} is {code!r}, but the tokenizer, a {type(tokenizer).__name__}, needs a code that it knows.{known}"
            )
    tokenizer.src_lang, tokenizer.tgt_lang = source_lang, target_lang


def set_first_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, forced_bos_token: str | None = None
) -> None:
    """Makes translations begin as the targets of the training do; the tokenizer's languages are set.

    Raises:
        ValueError: the tokenizer does not know the token that is forced.
    """
    target = tokenizer(text_target="a", verbose=False)["input_ids"]
    if takes_last_token_first(model):  # mBART's decoder begins with the language that the target ends with
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = target[-1]
    forced = None
    if forced_bos_token is not None:
        forced = _token_id(tokenizer, forced_bos_token)
        if forced is None:
            raise ValueError(f"--forced_bos_token is {forced_bos_token!r}, which is no token of the tokenizer.")
    elif has_languages(tokenizer) and target[0] in tokenizer.all_special_ids:
        forced = target[0]
    if forced is not None:
        logger.info(f"Translations begin with {tokenizer.convert_ids_to_tokens(forced)!r}.")
        model.generation_config.forced_bos_token_id = forced


def takes_last_token_first(model: PreTrainedModel) -> bool:
    """Whether the last token of a target is put first, instead of one that is always the same."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is None:
        return False
    # Any token but padding and the one that may always be the same.
    others = {model.config.pad_token_id, model.config.decoder_start_token_id}
    last = next(token for token in range(3) if token not in others)
    try:
        return int(shift(labels=torch.tensor([[last, last]]))[0, 0]) == last
    except (TypeError, ValueError) as error:
        raise ValueError(f"The model does not say with which token its decoder begins: {error}") from error


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str | None) -> int | None:
    index = None if token is None else tokenizer.convert_tokens_to_ids(token)
    return None if index == tokenizer.unk_token_id and token != tokenizer.unk_token else index


def cut(ids: list[int], length: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first `length` ids, with what ends the sequence in place: its end, and mBART's language."""
    if len(ids) <= length:
        return ids
    special, added = set(tokenizer.all_special_ids), tokenizer.num_special_tokens_to_add()
    tail = 1
    while tail < min(added, length) and ids[-1 - tail] in special:
        tail += 1
    return [*ids[: length - tail], *ids[-tail:]]
