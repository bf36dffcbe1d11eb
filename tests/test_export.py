# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported encoders compute what PyTorch does, for other batch sizes, lengths and paddings than the example's."""

import copy
import subprocess
import sys

import pytest
from model_inputs import Images
from models import BASE_CASES, CASES, TINY_BERT
from test_ea_resnet import images, tiny_model
from transformers import ElectraConfig, ElectraForSequenceClassification

import ea_hf
from ea_hf import plan
from ea_hf.export import TOLERANCE, export, largest_difference, load_exported, main


# One for each family of encoders, and that of T5.
ENCODERS = [case for case in BASE_CASES if not case.config().is_encoder_decoder]
ENCODERS += [case for case in CASES if str(case) == "EAT5EncoderModel"]
every_encoder = pytest.mark.parametrize("case", ENCODERS, ids=str)


def without_convolution(model):
    """A copy whose convolutions give another map."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, ea_hf.AttentionEvolution) and module.conv is not None:
            module.conv.weight.data.neg_()
    return other


@every_encoder
@pytest.mark.slow_but("EAViTModel")
def test_exported_file_computes_the_same(case, tmp_path):
    model = case.model()
    example = case.batch([9, 4], width=11).inputs
    export(model, example, case.inputs.dynamic_shapes(example), tmp_path / "model.onnx")
    exported = load_exported(tmp_path / "model.onnx")
    sizes = (((9, 4), 11), ((5, 1, 7, 2, 3), 8), ((16, 17, 2), 19))
    for index, (lengths, width) in enumerate(sizes):
        inputs = case.batch(lengths, case.inputs.paddings[index % len(case.inputs.paddings)], width).inputs
        assert largest_difference(model, exported, inputs) <= TOLERANCE
        assert largest_difference(without_convolution(model), exported, inputs) > 10 * TOLERANCE


@pytest.mark.slow
def test_ea_resnet_computes_the_same(tmp_path):
    model = tiny_model()
    shapes = Images().dynamic_shapes({"pixel_values": images()})
    export(model, {"pixel_values": images()}, shapes, tmp_path / "model.onnx")
    exported = load_exported(tmp_path / "model.onnx")
    for count in (1, 2, 5):
        assert largest_difference(model, exported, {"pixel_values": images(count, seed=count)}) <= TOLERANCE


def test_the_script_exports_an_evolved_model(tmp_path, capsys):
    model = ea_hf.evolve(ElectraForSequenceClassification(ElectraConfig(**{**TINY_BERT, "embedding_size": 16})))
    model.save_pretrained(tmp_path / "electra")
    main([str(tmp_path / "electra"), "--output", str(tmp_path / "model.onnx")])
    assert "from input_ids, attention_mask, token_type_ids to logits" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_exports_the_encoder_of_a_checkpoint(tmp_path):
    case = next(case for case in CASES if str(case) == "EAT5ForConditionalGeneration")
    case.model().save_pretrained(tmp_path / "t5")
    command = [sys.executable, "-m", "ea_hf.export", str(tmp_path / "t5"), "--output", str(tmp_path / "encoder.pt2")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "from input_ids, attention_mask to last_hidden_state" in result.stdout
    assert (tmp_path / "encoder.pt2").is_file()


def test_what_cannot_be_exported_is_named(tmp_path):
    case = next(case for case in CASES if str(case) == "EAT5ForConditionalGeneration")
    model, inputs = case.model(), case.batch().inputs
    with pytest.raises(ValueError, match="decodes step by step"):
        export(model, inputs, case.inputs.dynamic_shapes(inputs), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"ends with \.onnx or \.pt2"):
        export(model, inputs, {}, tmp_path / "model.bin")


def test_a_checkpoint_that_cannot_be_exported_is_told_with_its_name(tmp_path):
    output = ["--output", str(tmp_path / "model.onnx")]
    for command in (lambda: main(["/no/where", *output]), lambda: plan.main(["--model_name_or_path", "/no/where"])):
        with pytest.raises(FileNotFoundError, match=r"^/no/where does not exist"):
            command()
    (tmp_path / "config.json").write_text('{"model_type": "ea_bert"}')
    with pytest.raises(ValueError, match="does not say of which class"):
        main([str(tmp_path), *output])
    ea_hf.EABertModel(ea_hf.EABertConfig(**TINY_BERT)).save_pretrained(tmp_path)
    for size, reason in ((-1, "at least 1"), (32, "takes no images")):
        with pytest.raises(ValueError, match=rf"--image_size is {size}; .*{reason}"):
            main([str(tmp_path), *output, "--image_size", str(size)])
