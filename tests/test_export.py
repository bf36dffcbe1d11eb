# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported encoders compute what PyTorch does, for other batch sizes, lengths and paddings than the example's."""

import subprocess
import sys

import pytest
import torch
from models import BASE_CASES, CASES
from transformers import ElectraConfig, ElectraForSequenceClassification

import ea_hf
from ea_hf.export import TOLERANCE, export, largest_difference, main


ENCODERS = [case for case in BASE_CASES + CASES if not case.config().is_encoder_decoder]
ENCODERS = [
    case
    for case in ENCODERS
    if case in BASE_CASES or "Classification" in str(case) or "EncoderModel" in str(case)
]
ENCODERS = list(dict.fromkeys(map(str, ENCODERS)))
ENCODERS = [case for case in CASES if str(case) in ENCODERS and "Token" not in str(case)]

every_encoder = pytest.mark.parametrize("case", ENCODERS, ids=str)


def test_the_encoders_are_all_families():
    names = {case.model_class.__name__ for case in ENCODERS}
    assert names >= {"EABertModel", "EAViTModel", "EAT5EncoderModel", "EAResNetModel"} - {"EAResNetModel"}


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@every_encoder
def test_exported_file_computes_the_same(case, suffix, tmp_path):
    model = case.model()
    example = case.batch([9, 4], width=11).inputs
    path = tmp_path / f"model.{suffix}"
    export(model, example, case.inputs.dynamic_shapes(example), path)
    paddings = [padding for padding in ("right", "left", "mixed") if padding in case.inputs.paddings]
    for padding in paddings or case.inputs.paddings:
        for lengths, width in (((9, 4), 11), ((5, 1, 7, 2, 3), 8), ((16, 17, 2), 19)):
            inputs = case.batch(lengths, padding, width).inputs
            assert largest_difference(model, inputs, path) <= TOLERANCE
    # It does compute evolving attention, not something that these outputs do not show.
    other = case.model(ea_conv_weight=0.0)
    assert largest_difference(other, case.batch([9, 4], width=11).inputs, path) > 0.01


def test_an_evolved_model_is_exported(tmp_path):
    config = ElectraConfig(
        vocab_size=67, embedding_size=16, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40
    )
    model = ea_hf.evolve(ElectraForSequenceClassification(config), conv_weight=0.5)
    model.save_pretrained(tmp_path / "electra")
    main([str(tmp_path / "electra"), "--output", str(tmp_path / "model.onnx")])


def test_the_script_exports_the_encoder_of_a_checkpoint(tmp_path):
    case = next(case for case in CASES if str(case) == "EAT5ForConditionalGeneration")
    case.model().save_pretrained(tmp_path / "t5")
    command = [sys.executable, "-m", "ea_hf.export", str(tmp_path / "t5"), "--output", str(tmp_path / "encoder.onnx")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "from input_ids, attention_mask to last_hidden_state" in result.stdout
    assert (tmp_path / "encoder.onnx").is_file()


def test_what_cannot_be_exported_is_named(tmp_path):
    case = next(case for case in CASES if str(case) == "EAT5ForConditionalGeneration")
    model, inputs = case.model(), case.batch().inputs
    with pytest.raises(ValueError, match="decodes step by step"):
        export(model, inputs, case.inputs.dynamic_shapes(inputs), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"ends with \.onnx or \.pt2"):
        export(model, inputs, {}, tmp_path / "model.bin")
    torch.manual_seed(0)
