# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_translation.py and translate.py with models that have no family of their own, and tokenizers that know languages."""

import json
from pathlib import Path
from types import SimpleNamespace

import pair_encoding
import pytest
import run_translation
import torch
from safetensors.torch import load_file
from test_run_translation import SCRIPT, files, read_predictions, translate, words_of
from tiny_bert import run_script
from tiny_t5 import pairs, tiny_tokenizer
from tiny_translators import mbart_tokenizer, write_model
from transformers import (
    AutoModelForSeq2SeqLM,
    MBartTokenizer,
    pipeline,
)

from ea_hf import translate as translate_script


pytestmark = pytest.mark.usefixtures("isolated")


CODES = {"source_lang": "en_XX", "target_lang": "de_DE"}


@pytest.mark.parametrize("kind", ["marian", "mbart"])
@pytest.mark.slow
def test_a_model_without_a_family_is_trained_scored_and_translates_by_itself(kind, tmp_path):
    vanilla, data = write_model(tmp_path / "vanilla", kind), files(tmp_path)
    options = {**data, "num_beams": 2, "per_device_eval_batch_size": 4, "do_predict": True}
    options |= CODES if kind.startswith("mbart") else {}
    results = translate(
        tmp_path / "first", model_name_or_path=vanilla, **options, ea_residual_weight=0.3, ea_conv_weight=0.2,
        learning_rate=0.0,
    )  # fmt: skip
    first = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "first")
    assert type(first).__name__ == f"Evolved{type(AutoModelForSeq2SeqLM.from_pretrained(vanilla)).__name__}"
    assert (first.config.ea_residual_weight, first.config.ea_conv_weight) == (0.3, 0.2)
    pretrained, weights = (load_file(Path(path) / "model.safetensors") for path in (vanilla, tmp_path / "first"))
    assert all(torch.equal(weights[key], value) for key, value in pretrained.items())

    # What was evaluated is what translate.py serves.
    source = tmp_path / "source.txt"
    source.write_text("".join(row["en"] + "\n" for row in pairs(7, 200)), encoding="utf-8")
    translate_script.main([str(tmp_path / "first"), "--input", str(source), "--output", str(tmp_path / "target.txt")])
    expected = [row["prediction"] for row in read_predictions(tmp_path / "first")]
    assert (tmp_path / "target.txt").read_text(encoding="utf-8").split("\n")[:-1] == [
        " ".join(t.splitlines()) for t in expected
    ]
    served = pipeline("translation", str(tmp_path / "first"))
    assert [served(row["en"])[0]["translation_text"] for row in pairs(3, 200)] == expected[:3]

    again = translate(tmp_path / "second", model_name_or_path=tmp_path / "first", **options, learning_rate=0.0)
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)


@pytest.mark.parametrize("kind", ["marian", "bart", "mbart", "mbart50"])
def test_the_loss_and_the_first_token_are_those_of_the_model_itself(kind, tmp_path):
    directory = write_model(tmp_path / "vanilla", kind)
    codes = CODES if kind.startswith("mbart") else {"source_lang": "en", "target_lang": "de"}
    args = run_translation.parse_args(
        [
            "--model_name_or_path", directory, "--train_file", "x.jsonl", "--output_dir", str(tmp_path / "out"),
            *(word for name, code in codes.items() for word in (f"--{name}", code)),
        ]
    )  # fmt: skip
    model, tokenizer = run_translation.load_model(args)
    accelerator = SimpleNamespace(mixed_precision="no")
    rows = [row["de"] for row in pairs(3)]
    labels = tokenizer(text_target=rows)["input_ids"]
    batch = run_translation.Collator(args, accelerator, model)([{"input_ids": ids, "labels": ids} for ids in labels])
    shifted = model.prepare_decoder_input_ids_from_labels(
        labels=batch["labels"].masked_fill(batch["labels"] < 0, model.config.pad_token_id)
    )
    real = batch["labels"] >= 0
    assert torch.equal(batch["decoder_input_ids"][real], shifted[real])
    settings = model.generation_config
    target = tokenizer.convert_tokens_to_ids("de_DE")
    expected = {"mbart": (target, None), "mbart50": (tokenizer.eos_token_id, target)}
    if kind in expected:
        assert (settings.decoder_start_token_id, settings.forced_bos_token_id) == expected[kind]
        assert tokenizer.src_lang == "en_XX"


def test_the_end_and_the_language_remain_where_a_text_is_cut():
    tokenizer = mbart_tokenizer(MBartTokenizer)
    ids = tokenizer("abcdefgh")["input_ids"]
    assert pair_encoding.cut(ids, 5, tokenizer) == [*ids[:3], *ids[-2:]]
    ids = tiny_tokenizer()("Open the file in which the text is.")["input_ids"]
    assert pair_encoding.cut(ids, 5, tiny_tokenizer()) == [*ids[:4], ids[-1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_lang": "en", "target_lang": "de_DE"}, r"--source_lang is 'en', .*needs a code that it knows.*en_XX"),
        ({**CODES, "forced_bos_token": "<de>"}, "--forced_bos_token is '<de>'"),
        ({**CODES, "max_source_length": 300}, r"--max_source_length is 300, but .* ends at 200 tokens"),
        ({**CODES, "ea_encoder": True}, r"`ea_encoder` is True, but .*'mbart'.* no such field"),
    ],
)
def test_what_a_model_with_languages_cannot_do_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        translate(
            tmp_path / "out",
            model_name_or_path=write_model(tmp_path / "vanilla", "mbart"),
            **files(tmp_path),
            **options,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["marian", "mbart"])
def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(kind, tmp_path):
    options = {
        "model_name_or_path": write_model(tmp_path / "vanilla", kind), **files(tmp_path),
        **(CODES if kind == "mbart" else {}), "max_train_steps": 4, "checkpointing_steps": 2, "logging_steps": 1,
        "num_beams": 2, "per_device_eval_batch_size": 3, "do_predict": True,
    }  # fmt: skip

    def losses(name: str) -> list[float]:
        state = json.loads((tmp_path / name / "checkpoint-4/trainer_state.json").read_text())
        return [report["loss"] for report in state["log_history"] if "loss" in report]

    translate(tmp_path / "one", **options, per_device_train_batch_size=8)
    status, output = run_script(words_of(tmp_path / "two", **options, per_device_train_batch_size=4), 2, SCRIPT)
    assert status == 0, output
    expected = pytest.approx(losses("one"), rel=1e-4)
    assert len(losses("one")) == 4 and losses("two") == expected
    predictions = read_predictions(tmp_path / "two")
    assert len(predictions) == 7
    translate(
        tmp_path / "two", **options, per_device_train_batch_size=8,
        resume_from_checkpoint=tmp_path / "two/checkpoint-2",
    )  # fmt: skip
    assert losses("two") == expected
    assert len(read_predictions(tmp_path / "two")) == 7
