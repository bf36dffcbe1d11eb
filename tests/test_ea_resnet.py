# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-ResNet: its layers against a plain transcription, its sizes and chains, and what it does beside classifying."""

import copy
import json

import numpy as np
import pytest
import torch
from exactness import assert_gradients_are_slopes
from models import randomize
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from ea_hf import EAResNetBackbone, EAResNetConfig, EAResNetForImageClassification, EAResNetModel
from ea_hf.models.configuration_ea_resnet import DEPTHS
from ea_hf.models.evolution_state import EvolutionState
from ea_hf.models.modeling_ea_resnet import EAResNetAttention, EAResNetConvLayer


# Three stages, all but the first with attention, at 3 x 3, 3 x 3 and 2 x 2 pixels: two chains.
TINY = {
    "embedding_size": 8,
    "hidden_sizes": (16, 32, 64),
    "depths": (1, 2, 2),
    "layer_type": "basic",
    "image_size": 12,
    "stem_stride": 1,
    "attention_poolings": (1, 1),
    "num_attention_heads": 2,
    "attention_key_ratio": 0.25,
    "attention_value_ratio": 0.125,
    "num_labels": 5,
}


def tiny_config(**values) -> EAResNetConfig:
    return EAResNetConfig(**{**TINY, **values})


def large_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Weights and statistics so large that a wrong map shows, in evaluation mode."""
    randomize(model, weight_std=1.0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def tiny_model(model_class: type = EAResNetForImageClassification, **values) -> torch.nn.Module:
    return large_weights(model_class(tiny_config(**values)))


def images(count: int = 3, size: tuple[int, int] = (12, 12), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


# A transcription with loops, of one image, (channels, height, width)


def convolve(image: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, stride: int) -> np.ndarray:
    margin = kernel.shape[-1] // 2
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * margin, width + 2 * margin))
    padded[:, margin : margin + height, margin : margin + width] = image
    output = np.zeros((len(kernel), -(-height // stride), -(-width // stride)))
    for filter_index, row, column in np.ndindex(output.shape):
        top, left = row * stride, column * stride
        window = padded[:, top : top + kernel.shape[-2], left : left + kernel.shape[-1]]
        output[filter_index, row, column] = (window * kernel[filter_index]).sum()
        if bias is not None:
            output[filter_index, row, column] += bias[filter_index]
    return output


def pool(image: np.ndarray) -> np.ndarray:
    """The mean of the 3 x 3 pixels around every other pixel, as far as they are within the image."""
    channels, height, width = image.shape
    output = np.zeros((channels, -(-height // 2), -(-width // 2)))
    for channel, row, column in np.ndindex(output.shape):
        rows, columns = slice(max(0, 2 * row - 1), 2 * row + 2), slice(max(0, 2 * column - 1), 2 * column + 2)
        output[channel, row, column] = image[channel, rows, columns].mean()
    return output


def upsample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixels as areas."""

    def neighbours(position: int, size: int, old_size: int) -> tuple[int, int, float]:
        place = max(0.0, (position + 0.5) * old_size / size - 0.5)
        before = int(place)
        return before, min(before + 1, old_size - 1), place - before

    output = np.zeros((len(image), height, width))
    for row, column in np.ndindex(height, width):
        top, bottom, down = neighbours(row, height, image.shape[1])
        left, right, across = neighbours(column, width, image.shape[2])
        upper = (1 - across) * image[:, top, left] + across * image[:, top, right]
        lower = (1 - across) * image[:, bottom, left] + across * image[:, bottom, right]
        output[:, row, column] = (1 - down) * upper + down * lower
    return output


def transcribe(
    layer: EAResNetConvLayer, config: EAResNetConfig, image: np.ndarray, previous: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """An attention-augmented convolution with normalization and ReLU; returns its output and A_l."""
    weights = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    stride = layer.convolution.stride[0]
    convolved = convolve(image, weights["convolution.weight"], None, stride)

    pooled = image
    for _ in range(len(layer.attention.pool)):
        pooled = pool(pooled)
    _, height, width = pooled.shape
    heads, (key_channels, _, value_channels) = config.num_attention_heads, layer.attention.channels
    per_head = key_channels // heads
    qkv = np.zeros((2 * key_channels + value_channels, height, width))
    for row, column in np.ndindex(height, width):
        qkv[:, row, column] = weights["attention.qkv.weight"][:, :, 0, 0] @ pooled[:, row, column]
    queries, keys, values = np.split(qkv, [key_channels, 2 * key_channels])

    by_row, by_column = weights["attention.relative_height"], weights["attention.relative_width"]
    pixels = list(np.ndindex(height, width))
    scores = np.zeros((heads, len(pixels), len(pixels)))
    for head in range(heads):
        channels = slice(head * per_head, (head + 1) * per_head)
        for i, (row, column) in enumerate(pixels):
            query = queries[channels, row, column] * per_head**-0.5
            for j, (other_row, other_column) in enumerate(pixels):
                down = min(max(other_row - row, -(len(by_row) // 2)), len(by_row) // 2)
                across = min(max(other_column - column, -(len(by_column) // 2)), len(by_column) // 2)
                scores[head, i, j] = (
                    query @ keys[channels, other_row, other_column]
                    + query @ by_row[down + len(by_row) // 2]
                    + query @ by_column[across + len(by_column) // 2]
                )

    evolved = scores
    if previous is not None:
        residual, share = config.ea_residual_weight, config.ea_conv_weight
        mixed = residual * previous + (1 - residual) * scores
        kernel, bias = (weights[f"attention.evolution.conv.{name}"] for name in ("weight", "bias"))
        evolved = share * np.maximum(convolve(mixed, kernel, bias, 1), 0) + (1 - share) * mixed

    attended = np.zeros((value_channels, height, width))
    value_dim = value_channels // heads
    for head in range(heads):
        for i, (row, column) in enumerate(pixels):
            exponentials = np.exp(evolved[head, i] - evolved[head, i].max())
            for j, (other_row, other_column) in enumerate(pixels):
                channels = slice(head * value_dim, (head + 1) * value_dim)
                share = exponentials[j] / exponentials.sum()
                attended[channels, row, column] += share * values[channels, other_row, other_column]
    projected = np.zeros_like(attended)
    for row, column in pixels:
        projected[:, row, column] = weights["attention.projection.weight"][:, :, 0, 0] @ attended[:, row, column]
    projected = upsample(projected, *convolved.shape[1:])

    output = np.concatenate([convolved, projected])
    for channel in range(len(output)):
        mean, variance = (weights[f"normalization.running_{name}"][channel] for name in ("mean", "var"))
        scale = weights["normalization.weight"][channel] / np.sqrt(variance + layer.normalization.eps)
        output[channel] = (output[channel] - mean) * scale + weights["normalization.bias"][channel]
    return np.maximum(output, 0), evolved


@pytest.mark.parametrize("size", [(12, 12), (9, 7), (20, 13)], ids=str)
@pytest.mark.parametrize("residual_weight, conv_weight", [(0.5, 0.5), (0.3, 1.0)])
def test_augmented_layers_equal_the_transcription(residual_weight, conv_weight, size):
    """Two layers of a chain, the first of which strides; sizes that the relative embeddings reach, and beyond."""
    config = tiny_config(ea_residual_weight=residual_weight, ea_conv_weight=conv_weight)
    model = large_weights(EAResNetModel(config)).double()
    stage = model.encoder.stages[1]
    first, second = (layer.layer[0] for layer in stage.layers)
    hidden_states = [images(2, size, seed).double() for seed in (1, 2)]
    hidden_states = [
        torch.cat([states] * 11, dim=1)[:, :channels]
        * torch.linspace(-3, 3, channels, dtype=torch.double)[:, None, None]
        for states, channels in zip(hidden_states, (16, 32), strict=True)
    ]
    hidden_states[1] = hidden_states[1][..., : -(-size[0] // 2), : -(-size[1] // 2)]
    for fast in (True, False):
        state = EvolutionState(keep_maps=not fast)
        with torch.no_grad():
            outputs = [state.run(layer, x)[0] for layer, x in zip((first, second), hidden_states, strict=True)]
        for row in range(2):
            expected, evolved = transcribe(first, config, hidden_states[0][row].numpy(), None)
            assert_close(outputs[0][row].numpy(), expected, atol=1e-10, rtol=0)
            expected, evolved = transcribe(second, config, hidden_states[1][row].numpy(), evolved)
            assert_close(outputs[1][row].numpy(), expected, atol=1e-10, rtol=0)
            if not fast:
                assert_close(state.maps("chain0")[1][row].numpy(), evolved, atol=1e-10, rtol=0)
                assert evolved.std() > 0.5  # large enough to matter


# Sizes and chains


def layers_of(model: torch.nn.Module) -> list[EAResNetAttention]:
    return [module for module in model.modules() if isinstance(module, EAResNetAttention)]


def test_resnet_50_at_224_pixels_has_the_published_sizes():
    with torch.device("meta"):
        model = EAResNetForImageClassification(EAResNetConfig.from_depth(50, num_labels=1000))
        maps = model(torch.empty(1, 3, 224, 224), output_attention_maps=True).attention_maps
    layers = layers_of(model)
    assert len(layers) == 13
    assert [tuple(evolved.shape) for evolved in maps] == [(1, 8, 196, 196)] * 10 + [(1, 8, 49, 49)] * 3
    # One chain through the stages of 28 x 28 and 14 x 14 pixels, another one at 7 x 7.
    assert [layer.evolution.chain for layer in layers] == ["chain0"] * 10 + ["chain1"] * 3
    assert [layer.evolution.layer_index for layer in layers] == [*range(10), *range(3)]
    evolution = {name: value for name, value in model.named_parameters() if ".evolution." in name}
    assert len(evolution) == 2 * 11 and sum(value.numel() for value in evolution.values()) == 6424
    assert [tuple(layer.relative_height.shape) for layer in layers] == [(27, 4)] * 4 + [(27, 8)] * 6 + [(13, 16)] * 3
    augmented = [module for module in model.modules() if isinstance(module, EAResNetConvLayer)]
    assert [layer.convolution.out_channels for layer in augmented] == [112] * 4 + [224] * 6 + [448] * 3


@pytest.mark.parametrize("depth, layers", [(18, 6), (26, 6), (34, 13), (50, 13), (101, 30), (152, 47)])
@pytest.mark.slow_but("34-13", "50-13")
def test_every_depth_runs_at_any_size(depth, layers):
    """As a backbone, which gives the features of several stages."""
    with torch.device("meta"):
        config = EAResNetConfig.from_depth(depth, out_features=["stage1", "stage2", "stage4"])
        backbone = EAResNetBackbone(config)
        assert len(layers_of(backbone)) == layers
        for height, width in ((224, 224), (97, 161), (33, 400)):
            maps = backbone(torch.empty(2, 3, height, width)).feature_maps
            assert backbone.channels == [config.hidden_sizes[stage] for stage in (0, 1, 3)]
            for features, channels, stride in zip(maps, backbone.channels, (4, 8, 32), strict=True):
                assert features.shape == (2, channels, -(-height // stride), -(-width // stride))
    assert {*DEPTHS} == {18, 26, 34, 50, 101, 152}


def test_chains_follow_from_the_configuration():
    for poolings, expected in (
        ((1, 1), ["chain0"] * 2 + ["chain1"] * 2),
        ((1, 0), ["chain0"] * 4),
        ((0, 1, 0), ["chain0"] + ["chain1"] * 2 + ["chain1"] * 2),
        ((), []),
    ):
        layers = layers_of(EAResNetModel(tiny_config(attention_poolings=poolings)))
        assert [layer.evolution.chain for layer in layers] == expected


def test_a_chain_carries_maps_from_stage_to_stage():
    """Through the residual alone: without convolutions, the maps of a stage depend on those of the stage before."""
    model = tiny_model(attention_poolings=(1, 0), ea_conv_weight=0.0)
    first, third = layers_of(model)[0], layers_of(model)[2]
    inputs = images()
    with torch.no_grad():
        before = model(inputs, output_attention_maps=True).attention_maps
        first.relative_height.zero_()
        after = model(inputs, output_attention_maps=True).attention_maps
        third.evolution.residual_weight = 0.0
        cut = model(inputs, output_attention_maps=True).attention_maps
    assert (before[2] - after[2]).abs().max() > 0.1 and (after[2] - cut[2]).abs().max() > 0.1


def test_both_weights_zero_is_plain_attention_and_no_attention_is_resnet():
    model = tiny_model(ea_residual_weight=0.0, ea_conv_weight=0.0)
    inputs = images()
    with torch.no_grad():
        outputs = model(inputs, output_attentions=True, output_attention_maps=True)
    assert not any("evolution" in name for name in model.state_dict())
    for attentions, maps in zip(outputs.attentions, outputs.attention_maps, strict=True):
        assert torch.equal(maps.softmax(-1), attentions)
    model = tiny_model(attention_poolings=(), stem_stride=4)
    fields = {name: TINY[name] for name in ("embedding_size", "hidden_sizes", "depths", "layer_type", "num_labels")}
    vanilla = ResNetForImageClassification(ResNetConfig(**fields)).eval()
    vanilla.load_state_dict(model.state_dict())
    with torch.no_grad():
        for size in ((32, 32), (45, 61)):
            assert torch.equal(model(images(size=size)).logits, vanilla(images(size=size)).logits)


# Gradients


@pytest.mark.parametrize("fields", [{}, {"ea_memory_efficient": True}, {"ea_activation": "gelu"}], ids=str)
def test_every_parameter_gets_the_gradient_of_the_outputs(fields):
    """Against a difference quotient along a random direction; relative embeddings and convolutions included."""
    model = tiny_model(**fields).double().train()
    inputs = images().double()
    weights = torch.randn(3, 5, dtype=torch.double)

    def objective(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return (torch.func.functional_call(model, parameters, (inputs,)).logits * weights).sum()

    (model(inputs).logits * weights).sum().backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []
    assert_gradients_are_slopes(model, objective, ("relative_", "evolution", ""), 1e-8)


def test_relative_embeddings_are_initialized_around_zero():
    model = EAResNetModel(EAResNetConfig.from_depth(18))
    for layer in layers_of(model.requires_grad_(False)):
        assert layer.relative_width.mean().abs() < 0.3 * layer.scaling
        assert layer.relative_width.std() == pytest.approx(layer.scaling, rel=0.3)


# Use


@pytest.mark.parametrize(
    "model_class, auto_class",
    [
        (EAResNetModel, AutoModel),
        (EAResNetForImageClassification, AutoModelForImageClassification),
        (EAResNetBackbone, None),  # AutoBackbone loads from the Hub only
    ],
)
def test_a_saved_model_gives_the_same_output_twice(model_class, auto_class, tmp_path):
    model = tiny_model(model_class, ea_residual_weight=0.3, ea_conv_weight=0.7)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EAResNetConfig
    for loader in filter(None, (model_class, auto_class)):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is model_class and not any(info.values())
        assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
        with torch.no_grad():
            outputs = [other(images(size=(17, 12))).to_tuple() for other in (model, loaded, loaded)]
        for expected, *actual in zip(*outputs, strict=True):
            expected, *actual = (value if isinstance(value, tuple) else (value,) for value in (expected, *actual))
            for values in actual:
                assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))


def test_each_image_of_a_batch_gets_what_it_gets_alone():
    model = tiny_model().double()
    inputs = images(4).double()
    with torch.no_grad():
        together = model(inputs).logits
        alone = torch.cat([model(image[None]).logits for image in inputs])
    assert_close(together, alone, atol=1e-10, rtol=0)


def test_paths_agree_and_outputs_have_their_names():
    model = tiny_model()
    inputs = images()
    with torch.no_grad():
        plain = model(inputs)
        options = {"output_attentions": True, "output_attention_maps": True, "output_hidden_states": True}
        outputs = model(inputs, **options)
        as_tuple = model(inputs, return_dict=False, **options)
    assert list(plain) == ["logits"]
    assert list(outputs) == ["logits", "hidden_states", "attentions", "attention_maps"]
    assert_close(outputs.logits, plain.logits, atol=1e-5, rtol=1e-5)
    assert_close(model(inputs).logits.detach(), plain.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(as_tuple[0], outputs.logits) and len(as_tuple) == 4
    assert [tuple(states.shape[1:]) for states in outputs.hidden_states] == [
        (8, 12, 12),
        (16, 12, 12),
        (32, 6, 6),
        (64, 3, 3),
    ]
    for attentions, maps in zip(outputs.attentions, outputs.attention_maps, strict=True):
        assert_close(maps.softmax(-1), attentions)


def test_backbone_gives_the_features_of_the_model():
    model = tiny_model(EAResNetModel)
    backbone = AutoBackbone.from_config(tiny_config(out_features=["stem", "stage1", "stage3"])).eval()
    assert type(backbone) is EAResNetBackbone
    backbone.load_state_dict(model.state_dict())
    with torch.no_grad():
        hidden_states = model(images(), output_hidden_states=True).hidden_states
        outputs = backbone(images(), output_attention_maps=True)
    assert backbone.channels == [8, 16, 64]
    assert len(outputs.attention_maps) == 4 and outputs.hidden_states is None
    for actual, index in zip(outputs.feature_maps, (0, 1, 3), strict=True):
        assert_close(actual, hidden_states[index], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiles_and_exports():
    model = tiny_model()
    inputs = images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    exported = torch.export.export(
        model, (), {"pixel_values": inputs}, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", max=64)}}
    ).module()
    with torch.no_grad():
        for count in (3, 5):
            expected = model(images(count)).logits
            assert_close(compiled(images(count)).logits, expected, atol=1e-5, rtol=1e-5)
            assert_close(exported(pixel_values=images(count)).logits, expected, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near_float32(dtype):
    model, inputs = tiny_model(), images()
    with torch.no_grad():
        expected = model(inputs).logits
        with torch.autocast("cpu", dtype=dtype):
            actual = model(inputs).logits.float()
    assert (actual - expected).norm() < 0.05 * expected.norm()


# Bad values


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"attention_value_ratio": 0.05},
            "`attention_value_ratio` is 0.05, which makes 1 of the 32 channels of stage 2",
        ),
        ({"attention_key_ratio": 1.0}, "`attention_key_ratio` is 1.0, which makes 32 of the 32"),
        ({"num_attention_heads": 3}, "`attention_key_ratio` is 0.25, .* multiple of `num_attention_heads`, 3"),
        ({"attention_poolings": (0, 0, 0, 0)}, r"`attention_poolings` is \[0, 0, 0, 0\]; list at most 3"),
        ({"attention_poolings": (-1, 0)}, r"`attention_poolings` is \[-1, 0\]; .* none of them negative"),
        ({"stem_stride": 2}, "`stem_stride` is 2; choose 4, or 1"),
        ({"hidden_sizes": (16, 32)}, "`hidden_sizes` has 2 stages and `depths` 3"),
        ({"image_size": 0}, "`image_size` is 0"),
        ({"ea_conv_weight": 1.5}, "`ea_conv_weight` is 1.5"),
    ],
)
def test_bad_values_are_refused(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_config(**values)
    saved = {**tiny_config().to_dict(), **values}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message):
        EAResNetConfig.from_pretrained(tmp_path)


def test_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="`depth` is 51; choose one of 18, 26, 34, 50, 101, 152"):
        EAResNetConfig.from_depth(51)


def test_activation_checkpointing_changes_no_gradient_and_no_statistic():
    """A block runs twice, but its batch counts once in the running statistics."""
    models = [tiny_model().double().train()]
    models.append(copy.deepcopy(models[0]))
    before = copy.deepcopy(models[0].state_dict())
    models[1].activation_checkpointing_enable()
    labels = torch.arange(3)
    for model in models:
        for seed in range(2):
            model(images(seed=seed).double(), labels=labels).loss.backward()
    for (name, parameter), expected in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        assert_close(parameter.grad, expected.grad, msg=f"{name}: ".__add__)
    for name, expected in models[0].named_buffers():
        assert_close(models[1].get_buffer(name), expected, rtol=0, atol=0)
        assert not torch.equal(expected, before[name])
