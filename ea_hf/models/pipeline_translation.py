# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The translation pipeline, which Transformers no longer has; it travels with checkpoints that can translate."""

from typing import Any

from transformers import Pipeline


# Where neither the call nor the checkpoint says how long a translation may get, in tokens.
DEFAULT_MAX_NEW_TOKENS = 128


def find_task(config: Any, source_lang: str | None, target_lang: str | None) -> dict[str, Any]:
    """A checkpoint's own settings for two languages, such as T5's prefix."""
    return (getattr(config, "task_specific_params", None) or {}).get(f"translation_{source_lang}_to_{target_lang}", {})


def find_settings(config: Any, source_lang: str | None, target_lang: str | None) -> dict[str, Any]:
    """The checkpoint's settings for two languages, or for its only pair of languages; empty if it has none at all.

    Raises:
        ValueError: it has others, or several.
    """
    tasks = getattr(config, "task_specific_params", None) or {}
    names = [name for name in tasks if name.startswith("translation_")]
    if source_lang is not None or target_lang is not None:
        settings = find_task(config, source_lang, target_lang)
    else:
        settings = tasks[names[0]] if len(names) == 1 else {}
    if names and not settings:
        raise ValueError(
            f"The checkpoint knows {', '.join(names)}, but the source language is {source_lang} and the target language "
            f"{target_lang}. Choose both from these (`src_lang` and `tgt_lang`; of a script --source_lang and --target_lang, or "
            "--source_prefix)."
        )
    return settings


class TranslationPipeline(Pipeline):
    """`pipeline("translation", model=...)`: takes a text or a list of texts, gives `[{"translation_text": ...}]`.

    Args:
        src_lang, tgt_lang: only for a checkpoint that knows several pairs of languages. The pair's settings, such as a
            prefix, come from `task_specific_params` of the configuration.
        generation: as for `generate`, such as `num_beams` and `max_new_tokens`.

    Raises:
        ValueError: see `find_settings`.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def _sanitize_parameters(
        self, src_lang: str | None = None, tgt_lang: str | None = None, **generation: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        return {name: value for name, value in languages.items() if value is not None}, generation, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(inputs, **kwargs)
        return [outputs] if isinstance(inputs, str) else outputs

    def preprocess(self, text: str, src_lang: str | None = None, tgt_lang: str | None = None) -> dict[str, Any]:
        settings = find_settings(self.model.config, src_lang, tgt_lang)
        length = settings.get("max_source_length")
        if hasattr(self.tokenizer, "src_lang"):  # it marks texts with their language
            self.tokenizer.src_lang = src_lang or settings.get("source_lang", self.tokenizer.src_lang)
        encoded = self.tokenizer(
            settings.get("prefix", "") + text, truncation=length is not None, max_length=length, return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _forward(self, inputs: dict[str, Any], **generation: Any) -> dict[str, Any]:
        own = self.model.generation_config
        if own.max_new_tokens is None and not {"max_new_tokens", "max_length"} & generation.keys():
            generation = {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, "max_length": None, **generation}
        return {"output_ids": self.model.generate(**inputs, **generation)}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, str]:
        return {"translation_text": self.tokenizer.decode(outputs["output_ids"][0], skip_special_tokens=True)}


__all__ = ["TranslationPipeline"]
