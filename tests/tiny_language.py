# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Small corpora of real sentences, and where the scripts of language modeling are."""

from pathlib import Path
from typing import Any

from tiny_bert import REMARKS, arguments, reset_accelerator


LANGUAGE_MODELING = Path(__file__).parents[1] / "language_modeling"

TEXTS = [text for text, _ in REMARKS]
# Of a BERT, and of a RoBERTa and others with the same names.
TINY = (
    "hidden_size=32,num_hidden_layers=2,num_attention_heads=4,intermediate_size=48,initializer_range=0.2,"
    "max_position_embeddings=66"
)


def documents(count: int, start: int = 0) -> list[str]:
    """Documents of two or three remarks, all different."""
    size = len(TEXTS)
    return [
        " ".join(TEXTS[place % size] for place in (i, 3 * i + 7 * (i // size) + 1, 5 * i)[: 2 + i % 2])
        for i in range(start, start + count)
    ]


def write_text(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def new_model(model_type: str, overrides: str, tokenizer: str, output_dir: Path, **more: Any) -> dict[str, Any]:
    """Options of a short run that trains a new model."""
    return {
        "model_type": model_type,
        "config_overrides": overrides,
        "tokenizer_name": tokenizer,
        "output_dir": output_dir,
        "max_train_steps": 3,
        "learning_rate": 1e-3,
        "validation_split_percentage": 0,
        **more,
    }


def run_main(script: Any, train_file: Any, **options: Any) -> dict[str, Any]:
    """Runs a script in this process; `train_file` is one path or several."""
    reset_accelerator()
    files = train_file if isinstance(train_file, list) else [train_file]
    return script.main([*arguments(**options), *(["--train_file", *map(str, files)] if train_file else [])])
