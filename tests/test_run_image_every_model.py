# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_image_classification.py with models that have no family of their own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run_image_classification import classify, folders
from tiny_bert import whole_and_resumed
from tiny_images import TINY_VIT, write_checkpoint
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitConfig,
    CLIPConfig,
    DeiTConfig,
    Dinov2Config,
    PreTrainedConfig,
    SwinConfig,
)


pytestmark = pytest.mark.usefixtures("isolated")


CONFIGS = {"deit": DeiTConfig, "beit": BeitConfig, "dinov2": Dinov2Config}


def write_model(directory: Path, config: PreTrainedConfig) -> str:
    """Writes a random vanilla model without head, with the image processor of the tiny ViT."""
    write_checkpoint(directory)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_a_model_without_a_family_evolves_with_its_weights_and_goes_on(name, tmp_path):
    vanilla, data = write_model(tmp_path / "vanilla", CONFIGS[name](**TINY_VIT)), folders(tmp_path)
    options = {**data, "learning_rate": 0.0}
    classify(tmp_path / "first", model_name_or_path=vanilla, **options, ea_residual_weight=0.3, ea_conv_weight=0.2)
    first = AutoModelForImageClassification.from_pretrained(tmp_path / "first")
    assert type(first).__name__.startswith("Evolved")
    assert (first.config.ea_residual_weight, first.config.ea_conv_weight) == (0.3, 0.2)
    # Not the files: Transformers saves some weights of vanilla models under their older names.
    pretrained, base = AutoModel.from_pretrained(vanilla).state_dict(), first.base_model.state_dict()
    kept = {key: value for key, value in pretrained.items() if key in base}  # not every head has a pooler
    assert len(kept) > 20 and all(torch.equal(base[key], value) for key, value in kept.items())
    weights = load_file(tmp_path / "first/model.safetensors")
    classify(tmp_path / "second", model_name_or_path=tmp_path / "first", **options, ea_conv_weight=0.4)
    continued = load_file(tmp_path / "second/model.safetensors")
    assert continued.keys() == weights.keys()
    assert all(torch.equal(continued[key], value) for key, value in weights.items())


def test_a_model_that_cannot_evolve_is_refused_with_the_reason(tmp_path):
    config = SwinConfig(
        image_size=8, patch_size=1, num_channels=1, embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=4
    )
    with pytest.raises(ValueError, match=r"'swin', cannot evolve: .*\[2, 4\] heads"):
        classify(
            tmp_path / "output", model_name_or_path=write_model(tmp_path / "vanilla", config), **folders(tmp_path)
        )


def test_a_model_whose_images_have_a_configuration_of_their_own_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 9}, vision_config={**sizes, "image_size": 8, "patch_size": 4}
    )
    with pytest.raises(ValueError, match=r"does not say how many channels.*num_channels"):
        classify(
            tmp_path / "output", model_name_or_path=write_model(tmp_path / "vanilla", config), **folders(tmp_path)
        )


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path):
    vanilla = write_model(tmp_path / "vanilla", DeiTConfig(**TINY_VIT))
    with pytest.raises(ValueError, match=r"does not take images of 12 x 12 pixels and 1 channels.*--image_size"):
        classify(tmp_path / "output", model_name_or_path=vanilla, **folders(tmp_path), image_size=12)


@pytest.mark.slow
def test_a_parameter_that_no_loss_depends_on_remains_and_a_run_with_it_is_resumed(tmp_path):
    """DINOv2's mask token."""
    vanilla = write_model(tmp_path / "vanilla", Dinov2Config(**TINY_VIT))
    options = {**folders(tmp_path), "model_name_or_path": vanilla, "max_train_steps": 4, "checkpointing_steps": 2}
    expected, actual = whole_and_resumed(classify, tmp_path, "checkpoint-4", **options)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    name = "dinov2.embeddings.mask_token"
    before = AutoModelForImageClassification.from_pretrained(vanilla).state_dict()
    assert torch.equal(expected[name], before[name])
    moments = [torch.load(path / "checkpoint-4/optimizer.bin") for path in (tmp_path / "whole", tmp_path / "resumed")]
    assert all(name not in saved["state"] for saved in moments)
    assert moments[0]["state"].keys() == moments[1]["state"].keys()
