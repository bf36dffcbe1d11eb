# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`pipeline` works with EA checkpoints, with `ea_hf` imported and through remote code, and has nothing to warn of."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_bert
import tiny_images
import tiny_roberta
import tiny_t5
import torch
from models import CASES
from PIL import Image
from stranger import run_stranger
from test_ea_resnet import tiny_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, ViTImageProcessorPil, pipeline

import ea_hf


TEXT = "A small film with a very big heart."
LANGUAGES = {"translation_en_to_de": {"prefix": "translate: ", "max_source_length": 20}}
# Task, checkpoint, input and options.
JOBS: tuple[tuple[str, str, Any, dict[str, Any]], ...] = (
    ("text-classification", "bert-classifier", TEXT, {}),
    ("text-classification", "bert-classifier", [{"text": TEXT, "text_pair": "Avoid."}], {"top_k": 2}),
    ("text-classification", "roberta-classifier", [TEXT, "Avoid."], {"batch_size": 2}),
    ("zero-shot-classification", "bert-classifier", TEXT, {"candidate_labels": ["film", "dog"]}),
    ("token-classification", "bert-tagger", TEXT, {}),
    ("token-classification", "roberta-tagger", TEXT, {"aggregation_strategy": "simple"}),
    ("fill-mask", "bert-masked", "A small [MASK] with a very big heart.", {}),
    ("fill-mask", "roberta-masked", "A small <mask> with a very big heart.", {"top_k": 3}),
    ("feature-extraction", "bert-masked", TEXT, {}),
    ("feature-extraction", "roberta-masked", TEXT, {}),
    ("translation", "t5", TEXT, {"max_new_tokens": 8}),
    ("translation", "t5", [TEXT, "Avoid."], {"num_beams": 2, "max_new_tokens": 8, "batch_size": 2}),
    ("image-classification", "vit", "IMAGE", {"top_k": 3}),
    ("image-classification", "resnet", "IMAGE", {}),
    ("image-feature-extraction", "vit", "IMAGE", {}),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    for family, tiny in (("Bert", tiny_bert), ("Roberta", tiny_roberta)):
        vanilla = tiny.write_checkpoint(directory / f"vanilla-{family}")
        for name, head in (
            ("classifier", "SequenceClassification"),
            ("tagger", "TokenClassification"),
            ("masked", "MaskedLM"),
        ):
            names = ("contradiction", "neutral", "entailment")
            labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
            model_class = getattr(ea_hf, f"EA{family}For{head}")
            torch.manual_seed(0)
            model = model_class.from_pretrained(
                vanilla, ea_residual_weight=0.5, ea_conv_weight=0.5, **(labels if name != "masked" else {})
            )
            model.save_pretrained(directory / f"{family.lower()}-{name}")
            AutoTokenizer.from_pretrained(vanilla).save_pretrained(directory / f"{family.lower()}-{name}")
    vanilla = tiny_t5.write_checkpoint(directory / "vanilla-T5")
    model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(vanilla, ea_residual_weight=0.5, ea_conv_weight=0.5)
    model.config.task_specific_params = LANGUAGES
    model.save_pretrained(directory / "t5")
    AutoTokenizer.from_pretrained(vanilla).save_pretrained(directory / "t5")
    case = next(case for case in CASES if case.model_class is ea_hf.EAViTForImageClassification)
    case.model().save_pretrained(directory / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(directory / "vit")
    tiny_model().save_pretrained(directory / "resnet")
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(directory / "resnet")
    Image.fromarray(tiny_images.digits(7)[0]).convert("RGB").save(directory / "digit.png")
    return directory


def results_of(checkpoints: Path, **kwargs: Any) -> list[str]:
    results = []
    for task, name, inputs, options in JOBS:
        pipe = pipeline(task, model=f"{checkpoints}/{name}", **kwargs)
        results.append(
            json.dumps(pipe(f"{checkpoints}/digit.png" if inputs == "IMAGE" else inputs, **options), default=float)
        )
    return results


@pytest.fixture(scope="module")
def results(checkpoints) -> list[str]:
    return results_of(checkpoints)


def test_no_pipeline_warns(checkpoints, transformers_log):
    for task, name, _, _ in JOBS:
        pipe = pipeline(task, model=f"{checkpoints}/{name}")
        assert type(pipe.model).__module__.startswith("ea_hf.")
    assert not [message for message in transformers_log if "not supported" in message]
    assert not [message for message in transformers_log if "remote code" in message or "trust" in message]


@pytest.mark.slow
def test_remote_code_gives_the_same_without_a_warning(checkpoints, results, tmp_path):
    code = f"""
import json, sys, warnings
sys.stderr = sys.stdout
from transformers import pipeline
for task, name, inputs, options in {JOBS}:
    pipe = pipeline(task, model=f"{checkpoints}/{{name}}", trust_remote_code=True)
    assert type(pipe.model).__module__.startswith("transformers_modules.")
    result = pipe(f"{checkpoints}/digit.png" if inputs == "IMAGE" else inputs, **options)
    print("RESULT", json.dumps(result, default=float))
    pipe.save_pretrained(f"saved/{{name}}")
pipe = pipeline("translation", model="saved/t5", trust_remote_code=True)
print("RESULT", json.dumps(pipe({JOBS[10][2]!r}, **{JOBS[10][3]})))
"""
    printed = run_stranger(code, tmp_path)
    assert "not supported" not in printed
    found = [line.removeprefix("RESULT ") for line in printed.splitlines() if line.startswith("RESULT ")]
    assert found == [*results, results[10]]


def test_translations_are_what_the_model_generates(checkpoints, results):
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoints / "t5")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints / "t5")
    translations = []
    for text in (TEXT, "Avoid."):
        encoded = tokenizer("translate: " + text, truncation=True, max_length=20, return_tensors="pt")
        ids = model.generate(encoded["input_ids"], num_beams=2, max_new_tokens=8)
        translations.append({"translation_text": tokenizer.decode(ids[0], skip_special_tokens=True)})
    assert json.loads(results[11]) == translations
    assert len(json.loads(results[10])) == 1  # a single text gives a list as well


def test_a_pair_of_languages_is_chosen(checkpoints):
    pipe = pipeline("translation", model=f"{checkpoints}/t5")
    pipe.model.config.task_specific_params = {**LANGUAGES, "translation_en_to_fr": {"prefix": "French: "}}
    german = pipe(TEXT, src_lang="en", tgt_lang="de", max_new_tokens=8)
    french = pipe(TEXT, src_lang="en", tgt_lang="fr", max_new_tokens=8)
    assert german != french
    with pytest.raises(ValueError, match=r"knows translation_en_to_de, translation_en_to_fr, but the source"):
        pipe(TEXT)


def test_a_translation_ends_though_nobody_says_when(checkpoints):
    pipe = pipeline("translation", model=f"{checkpoints}/t5")
    pipe.model.generation_config.eos_token_id = None
    inputs = pipe.preprocess(TEXT)
    assert pipe.forward(inputs)["output_ids"].shape == (1, 129)


def test_a_pipeline_of_ea_hf_is_saved_whole(checkpoints, tmp_path):
    pipe = pipeline("translation", model=f"{checkpoints}/t5")
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "pipeline_translation.py").exists()
    again = pipeline("translation", model=str(tmp_path))
    assert again(TEXT, max_new_tokens=8) == pipe(TEXT, max_new_tokens=8)
