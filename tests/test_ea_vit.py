# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What EA-ViT has beside the suite of all models: image sizes, and checkpoints as they are on the Hub."""

import pytest
import torch
from models import TINY_VIT, randomize
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification

from ea_hf import EAViTConfig, EAViTForImageClassification, EAViTForMaskedImageModeling, EAViTModel


def tiny_model(model_class: type = EAViTForImageClassification, **values) -> torch.nn.Module:
    config = EAViTConfig(**{**TINY_VIT, "ea_residual_weight": 0.5, "ea_conv_weight": 0.5, **values})
    return randomize(model_class(config), weight_std=0.3).eval()


def images(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (4, 12)], ids=str)
def test_interpolated_positions_are_those_of_vanilla_vit(size):
    model = tiny_model(ea_residual_weight=0.0, ea_conv_weight=0.0)
    vanilla = ViTForImageClassification(ViTConfig(**TINY_VIT, attn_implementation="eager")).eval()
    vanilla.load_state_dict(model.state_dict())
    with torch.no_grad():
        actual, expected = (m(images(size), interpolate_pos_encoding=True).logits for m in (model, vanilla))
        evolved = tiny_model()(images(size), interpolate_pos_encoding=True, output_attention_maps=True).attention_maps
    assert_close(actual, expected, atol=1e-6, rtol=0)
    assert evolved[-1].shape[-1] == size[0] // 2 * (size[1] // 2) + 1


@pytest.mark.parametrize("model_class", [EAViTModel, EAViTForImageClassification, EAViTForMaskedImageModeling])
def test_resized_position_embeddings_are_the_interpolated_ones(model_class, tmp_path):
    """A resized model needs no interpolation any more, nor does it after saving and loading."""
    model, inputs = tiny_model(model_class), images((12, 12))
    with torch.no_grad():
        expected = model(inputs, interpolate_pos_encoding=True)[0]
        model.resize_position_embeddings(12)
        model.save_pretrained(tmp_path)
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()) and loaded.config.image_size == 12
        for resized in (model, loaded):
            assert torch.equal(resized(inputs)[0], expected)
        with pytest.raises(ValueError, match="doesn't match model"):
            loaded(images((8, 8)))
    (2 * model(inputs)[0]).sum().backward()
    assert model.base_model.embeddings.position_embeddings.grad.any()


def test_a_checkpoint_with_the_parameter_names_of_the_hub_loads(tmp_path):
    """Checkpoints on the Hub were saved by earlier versions of Transformers, with other names."""
    vanilla = randomize(ViTForImageClassification(ViTConfig(**TINY_VIT)), 0.3)
    vanilla.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    for model_class in (EAViTForImageClassification, EAViTModel):
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert torch.equal(
            model.base_model.layers[3].attention.q_proj.weight, vanilla.vit.layers[3].attention.q_proj.weight
        )
        assert {name.split(".attention.")[1] for name in info["missing_keys"] if "pooler" not in name} == {
            "evolution.conv.weight",
            "evolution.conv.bias",
        }


def test_a_checkpoint_with_a_distillation_token_is_refused(tmp_path):
    """Transformers would only warn, and all weights would be new: the names begin with "deit"."""
    DeiTForImageClassification(DeiTConfig(**TINY_VIT)).save_pretrained(tmp_path)
    for loader in (EAViTConfig, EAViTModel, EAViTForImageClassification):
        with pytest.raises(ValueError, match=f"{tmp_path} is of the type 'deit': its distillation token"):
            loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("size, patch", [(9, 2), (3, 4), ((8, 9), 2), (8, (4, 3)), (8, 0)], ids=str)
def test_an_image_size_that_the_patches_do_not_divide_is_refused(size, patch):
    values = {"image_size": size, "patch_size": patch}
    with pytest.raises(ValueError, match=r"`image_size` is .*, which `patch_size`, .*, does not divide"):
        EAViTConfig(**{**TINY_VIT, **values})
    model = tiny_model()
    with pytest.raises(ValueError, match="`image_size` is 9"):
        model.resize_position_embeddings(9)
    assert model.config.image_size == 8
