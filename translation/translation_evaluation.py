# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model that translates is worth: its translations and their scores."""

import json
from dataclasses import dataclass

import torch
from datasets import Dataset
from pair_encoding import column_of
from sacrebleu.metrics import BLEU, CHRF
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from ea_hf.training.local_files import written_whole
from ea_hf.training.loop import format_metrics
from ea_hf.training.task import Task
from ea_hf.training.terminal import script_logger


logger = script_logger(__name__)

METRICS = ("bleu", "chrf", "loss")
IGNORED = -100
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass
class TranslationTask(Task):
    """Pairs of texts; `datasets` have them as tokens and as text."""

    tokenizer: PreTrainedTokenizerBase
    metrics: dict[str, BLEU | CHRF]

    def translate(self, model: torch.nn.Module, name: str) -> tuple[list[str], float]:
        """The translations in the order of the split, and the mean loss over all its labels, without smoothing."""

        def forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> list[tuple[list[int], float, int]]:
            labels = batch.pop("labels")
            logits = model(**batch, use_cache=False).logits.float()
            losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
            counts = (labels != IGNORED).sum(1)
            generated = self.accelerator.unwrap_model(model).generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                num_return_sequences=1,  # a checkpoint's own settings may ask for more
                return_dict_in_generate=False,
            )
            return list(zip(generated.tolist(), losses.tolist(), counts.tolist(), strict=True))

        lengths = column_of(self.datasets[name], "source_length")
        rows = self.run_model(model, name, forward, lengths, description="translating")
        texts = self.tokenizer.batch_decode([ids for ids, _, _ in rows], skip_special_tokens=True)
        loss = sum(loss for _, loss, _ in rows) / sum(count for _, _, count in rows)
        return texts, loss

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """BLEU, chrF and loss."""
        return compute_scores(self.datasets["validation"], *self.translate(model, "validation"), self.metrics)

    def predict(self, model: torch.nn.Module) -> dict[str, float]:
        """Writes predictions.jsonl, in the order of the test set; returns its scores."""
        split = self.datasets["test"]
        texts, loss = self.translate(model, "test")
        path = self.args.output_dir / PREDICTIONS_FILE
        if self.accelerator.is_main_process:
            with written_whole(path) as file:
                for row, text in zip(split.select_columns(["index", "source", "reference"]), texts, strict=True):
                    file.write(json.dumps({**row, "prediction": text}, ensure_ascii=False) + "\n")
        logger.info(f"Predictions of test: {path}")
        scores = compute_scores(split, texts, loss, self.metrics)
        logger.info(f"Test: {format_metrics(scores)}")
        return {f"test_{name}": value for name, value in scores.items()}


def make_metrics(target_lang: str) -> dict[str, BLEU | CHRF]:
    """sacreBLEU's BLEU, with its tokenization for the language, and chrF."""
    try:
        metrics = {"bleu": BLEU(trg_lang=target_lang.replace("_", "-").split("-")[0].lower()), "chrf": CHRF()}
    except RuntimeError as error:  # the tokenization needs a package
        raise ValueError(f"sacreBLEU cannot tokenize --target_lang {target_lang}: {error}") from error
    for metric in metrics.values():
        metric.corpus_score(["text"], [["text"]])  # there is no signature before a score
    return metrics


def compute_scores(split: Dataset, texts: list[str], loss: float, metrics: dict[str, BLEU | CHRF]) -> dict[str, float]:
    references = [list(split["reference"])]
    return {name: metric.corpus_score(texts, references).score for name, metric in metrics.items()} | {"loss": loss}
