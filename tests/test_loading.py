# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of evolving attention is loaded with its own weights of it, or not at all."""

import json

import pytest
import torch
from models import CASES
from safetensors.torch import load_file, save_file
from test_presets import tiny_llama
from transformers import AutoModelForCausalLM, CLIPConfig, CLIPModel

import ea_hf


HEADS = 4
# What is saved, what is asked for, and the field that the message names.
CONTRADICTIONS = {
    "head mixing dropped": ({"post_mixing": "heads"}, {"post_mixing": "none"}, "post_mixing"),
    "head mixing made up": ({}, {"post_mixing": "heads"}, "post_mixing"),
    "other groups of heads": (
        {"post_mixing": "heads"},
        {"post_mixing": "heads", "head_kernel_size": 2},
        "head_kernel_size",
    ),
    "kernels in other layers": ({"conv_every": 1}, {"conv_every": 2}, "conv_every"),
    "kernels in all layers": ({"conv_every": 2}, {"conv_every": None}, "conv_every"),
    "own kernels": ({}, {"conv_groups": "heads"}, "conv_groups"),
    "another size": ({}, {"kernel_size": 5}, "kernel_size"),
    "fewer rows": ({}, {"kernel_size": (1, 3)}, "kernel_size"),
    "gates dropped": ({"mixing": "learned"}, {"mixing": "additive"}, "mixing"),
}
every_contradiction = pytest.mark.parametrize(
    ("saved", "asked", "field"), CONTRADICTIONS.values(), ids=list(CONTRADICTIONS)
)
BERT = CASES[0].config_values | {"num_attention_heads": HEADS, "hidden_size": 24, "num_hidden_layers": 3}


def fields(values):
    return {f"ea_{name}": value for name, value in values.items()}


def save_bert(directory, **values):
    model = ea_hf.EABertModel(ea_hf.EABertConfig(**BERT, **fields(values)))
    model.save_pretrained(directory)
    return model


@every_contradiction
def test_a_family_is_not_loaded_with_weights_of_another_form(saved, asked, field, tmp_path):
    save_bert(tmp_path, **saved)
    message = f"`ea_{field}` is .*, but the checkpoint's is"
    with pytest.raises(ValueError, match=message):
        ea_hf.EABertModel.from_pretrained(tmp_path, **fields(asked))
    config = ea_hf.EABertConfig(**BERT, **fields({**saved, **asked}))
    with pytest.raises(ValueError, match=message):
        ea_hf.EABertModel.from_pretrained(tmp_path, config=config)


@every_contradiction
def test_an_evolved_model_is_not_loaded_with_weights_of_another_form(saved, asked, field, tmp_path):
    model = ea_hf.evolve(tiny_llama(), **saved)
    model.save_pretrained(tmp_path)
    message = f"`ea_{field}` is .*, but the checkpoint's is"
    for load in (AutoModelForCausalLM.from_pretrained, type(model).from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, **fields(asked))


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ({}, {"kernel_size": [3, 3]}),
        ({"conv_groups": "heads"}, {"conv_groups": HEADS}),
        ({"post_mixing": "heads"}, {"post_mixing": "heads", "head_kernel_size": HEADS}),
        ({}, {"activation": "gelu", "residual_weight": 0.5, "conv_weight": 0.2, "mixing": "additive"}),
        ({}, {"conv_weight": 0.0}),  # without its kernels
        ({"conv_weight": 0.0}, {"conv_weight": 0.1, "kernel_size": 5}),  # kernels that it never had
    ],
)
def test_fields_that_mean_the_same_weights_may_be_given(saved, asked, tmp_path):
    model = save_bert(tmp_path, **saved)
    loaded = ea_hf.EABertModel.from_pretrained(tmp_path, **fields(asked))
    own = model.state_dict()
    assert all(torch.equal(values, own[name]) for name, values in loaded.state_dict().items() if name in own)


@pytest.mark.parametrize("change", ["missing", "left over", "missing in head mixing"])
def test_weights_that_do_not_fit_their_own_configuration_are_refused(change, tmp_path):
    save_bert(tmp_path, mixing="learned", post_mixing="heads")
    weights = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.attention.self.evolution." + (
        "residual_gate" if change == "missing" else "post_mixing.weight"
    )
    if change == "left over":
        weights["encoder.layer.0.attention.self.evolution.residual_gate"] = torch.zeros(HEADS)
    else:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for model_class in (ea_hf.EABertModel, ea_hf.EABertForSequenceClassification):
        with pytest.raises(ValueError, match="1 of the weights of its evolving attention are missing or left over"):
            model_class.from_pretrained(tmp_path)


def test_fewer_and_more_layers_may_be_loaded_and_chains_of_their_own(tmp_path):
    save_bert(tmp_path, mixing="learned", post_mixing="heads")
    for layers in (2, 4):
        model, info = ea_hf.EABertModel.from_pretrained(tmp_path, num_hidden_layers=layers, output_loading_info=True)
        assert len(model.encoder.layer) == layers and bool(info["missing_keys"]) == (layers == 4)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 30}
    text = {"vocab_size": 67, "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 1, **sizes}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={"image_size": 8, "patch_size": 4, **sizes}))
    clip = ea_hf.evolve(clip, preset="learned")
    clip.save_pretrained(tmp_path / "clip")
    assert type(clip).from_pretrained(tmp_path / "clip").config.ea_mixing == "learned"


def test_a_vanilla_checkpoint_may_be_loaded_in_each_form(tmp_path):
    vanilla = CASES[0].vanilla_class(CASES[0].vanilla_class.config_class(**BERT))
    vanilla.save_pretrained(tmp_path)
    assert "ea_mixing" not in json.loads((tmp_path / "config.json").read_text())
    for name in ("learned", "talking_heads", "realformer", "evolving"):
        model = ea_hf.EABertModel.from_pretrained(tmp_path, ea_preset=name)
        assert torch.equal(model.pooler.dense.weight, vanilla.pooler.dense.weight)
