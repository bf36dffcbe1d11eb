# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What EA-DC-Transformer's configuration asks for, imputation, and what is refused."""

import json

import pytest
import torch
from dc_transformer_reference import (
    every_head,
    every_option,
    labels_of,
    padded,
    series_of,
    tiny_config,
    tiny_model,
)
from exactness import assert_gradients_are_slopes, objective
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining
from transformers.models.auto import modeling_auto

from ea_hf import (
    EADCTransformerConfig,
    EADCTransformerForClassification,
    EADCTransformerForMaskedImputation,
    EADCTransformerForRegression,
    EADCTransformerModel,
)
from ea_hf.models.dc_transformer_layers import (
    EADCTransformerAttention,
)


# Options


@every_head
@every_option
def test_every_parameter_gets_a_gradient(model_class, options):
    model = tiny_model(model_class, **options).train()
    inputs = padded(series_of((12, 12, 5)), width=12)
    labels = labels_of(model, 3)
    if "bool_masked_pos" in labels:
        labels = {"bool_masked_pos": torch.arange(36).view(12, 3).expand(3, -1, -1) % 3 == 0}
    model(**inputs, **labels).loss.backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@every_head
@every_option
@pytest.mark.slow_but("Regression")
def test_a_saved_model_gives_the_same_output_twice(model_class, options, tmp_path):
    model = tiny_model(model_class, **options)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is EADCTransformerConfig
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
    with torch.no_grad():
        outputs = [other(**padded(series_of())).logits for other in (model, loaded, loaded)]
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


def test_auto_classes_find_the_models(tmp_path):
    tiny_model(EADCTransformerForMaskedImputation).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is EADCTransformerModel
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is EADCTransformerForMaskedImputation
    mapping = modeling_auto.MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING
    assert mapping[EADCTransformerConfig] is EADCTransformerForClassification
    mapping = modeling_auto.MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING
    assert mapping[EADCTransformerConfig] is EADCTransformerForRegression


def test_sizes_dilations_and_the_chain_follow_from_the_configuration():
    config = EADCTransformerConfig(d_model=64, num_attention_heads=8, context_length=20, num_hidden_layers=4)
    layers = [layer for block in EADCTransformerModel(config).blocks for layer in block.layers]
    assert [layer.convolution.dilation for layer in layers] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert all(tuple(layer.convolution.direction.shape) == (48, 64, 3) for layer in layers)
    assert all(layer.attention.qkv.out_features == 48 for layer in layers)
    assert all(tuple(layer.attention.relative_positions.shape) == (39, 2) for layer in layers)
    assert [layer.attention.evolution.layer_index for layer in layers] == list(range(8))
    assert [layer.attention.evolution.conv is None for layer in layers] == [True] + [False] * 7
    config.use_dilation = False
    assert {block.layers[1].convolution.dilation for block in EADCTransformerModel(config).blocks} == {1}
    config.attention_value_ratio = 1
    assert all(block.layers[0].convolution is None for block in EADCTransformerModel(config).blocks)
    config.attention_value_ratio = 0
    assert not any(isinstance(module, EADCTransformerAttention) for module in EADCTransformerModel(config).modules())


def test_new_weights_follow_the_release():
    model = EADCTransformerModel(EADCTransformerConfig(context_length=200, num_input_channels=4))
    layer = model.blocks[0].layers[0]
    with torch.no_grad():
        assert 0.019 < model.embedding.positions.abs().max() <= 0.02
        assert layer.attention.relative_positions.mean().abs() < 0.1
        assert layer.attention.relative_positions.std() == pytest.approx(2**-0.5, rel=0.2)
        # Weight normalization starts as the plain convolution.
        assert_close(layer.convolution.gain, layer.convolution.direction.norm(dim=(1, 2), keepdim=True))
        assert layer.attention.qkv.weight.std() == pytest.approx(64**-0.5 / 3**0.5, rel=0.1)


def test_each_dropout_drops_what_it_says():
    for name in ("positional_dropout", "attention_dropout", "ff_dropout", "head_dropout"):
        model = tiny_model(**{name: 0.5}).train()
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(model(**padded(series_of())).logits)
        assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2]), name
        assert torch.equal(model.eval()(**padded(series_of())).logits, model(**padded(series_of())).logits)


@pytest.mark.parametrize("options", [{}, {"ea_memory_efficient": True}, {"ea_activation": "gelu"}], ids=str)
def test_gradients_are_those_of_the_training_loss(options):
    """Against a difference quotient, part by part; batch normalization and relative embeddings included."""
    model = tiny_model(**options).double().train()
    inputs = {"past_values": torch.stack(series_of((12, 12))).double(), "past_observed_mask": torch.ones(2, 12)}
    inputs["past_observed_mask"][1, 7:] = 0

    def value_of(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return objective(torch.func.functional_call(model, parameters, kwargs=inputs))

    objective(model(**inputs)).backward()
    assert_gradients_are_slopes(model, value_of, ("relative_positions", "evolution", "norm", "gain", ""), 1e-7)


# Imputation


def test_imputation_hides_what_the_mask_says():
    model = tiny_model(EADCTransformerForMaskedImputation)
    values = torch.stack(series_of((9, 9)))
    hidden = torch.rand(2, 9, 3) < 0.4
    hidden[0, 3] = True  # a step that is hidden as a whole is still there
    with torch.no_grad():
        expected = model(values, bool_masked_pos=hidden)
        changed = model(values.where(~hidden, 100.0), bool_masked_pos=hidden)
        zeros = model(values.where(~hidden, 0.0))
    assert torch.equal(changed.logits, expected.logits) and torch.equal(zeros.logits, expected.logits)
    assert torch.equal(expected.mask, hidden.float()) and zeros.mask is None and zeros.loss is None
    assert expected.logits.shape == values.shape
    assert_close(expected.loss, ((expected.logits - values)[hidden] ** 2).mean())
    with torch.no_grad():
        steps = model(values, bool_masked_pos=torch.arange(9).expand(2, -1) == 4)
        labelled = model(values, bool_masked_pos=hidden, labels=values + 1)
    assert steps.mask[:, 4].all() and steps.mask.sum() == 6
    assert_close(labelled.loss, ((expected.logits - values - 1)[hidden] ** 2).mean())


def test_imputation_counts_observed_values_only():
    model = tiny_model(EADCTransformerForMaskedImputation)
    values = torch.stack(series_of((9, 9)))
    observed = torch.rand(2, 9, 3) < 0.7
    values[~observed] = torch.nan
    everything = torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        outputs = model(values, bool_masked_pos=everything)
        assert torch.equal(outputs.mask, observed.float())
        assert_close(outputs.loss, ((outputs.logits - values)[observed] ** 2).mean())
        assert model(values, bool_masked_pos=~everything).loss == 0
        assert model(values, torch.zeros(2, 9), bool_masked_pos=everything).loss == 0


def test_imputation_draws_its_masks_in_training():
    model = tiny_model(EADCTransformerForMaskedImputation, random_mask_ratio=0.3, mean_mask_length=4).train()
    values = torch.stack(series_of((9, 9)))
    first, second = model(values), model(values)
    assert not torch.equal(first.mask, second.mask) and first.loss > 0
    mask = model.draw_mask(torch.empty(200, 500, 3))
    assert mask.float().mean().item() == pytest.approx(0.3, abs=0.01)
    begins = mask[:, 1:] & ~mask[:, :-1]
    assert (mask.sum() / begins.sum()).item() == pytest.approx(4, rel=0.05)
    assert not torch.equal(mask[..., 0], mask[..., 1])  # each channel by itself


def test_a_pretrained_model_is_fine_tuned(tmp_path):
    pretrained = tiny_model(EADCTransformerForMaskedImputation)
    pretrained.save_pretrained(tmp_path)
    model, info = EADCTransformerForClassification.from_pretrained(tmp_path, output_loading_info=True, num_labels=7)
    assert info["missing_keys"] == {"head.linear.weight", "head.linear.bias"}
    for name, value in pretrained.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value), name


# Bad values


@pytest.mark.parametrize(
    "values, message",
    [
        ({"context_length": 0}, "`context_length` is 0; choose a positive integer"),
        ({"num_input_channels": -1}, "`num_input_channels` is -1"),
        ({"num_targets": 0}, "`num_targets` is 0"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0"),
        ({"conv_kernel_size": 0}, "`conv_kernel_size` is 0"),
        ({"attention_value_ratio": 1.2}, "`attention_value_ratio` is 1.2; choose a share between 0 and 1"),
        ({"attention_value_ratio": 0.01}, "`attention_value_ratio` is 0.01, which makes none of 24 channels"),
        (
            {"attention_value_ratio": 0.3},
            "`attention_value_ratio` is 0.3, which makes 7 of 24 .* `num_attention_heads`, 2",
        ),
        ({"attention_key_ratio": 0}, "`attention_key_ratio` is 0, which makes 0 of 24"),
        ({"num_attention_heads": 5}, "`attention_key_ratio` is 0.5, which makes 12 of 24 .* `num_attention_heads`, 5"),
        ({"norm_type": "rms"}, "`norm_type` is 'rms'; choose \"batchnorm\""),
        ({"pooling_type": "sum"}, "`pooling_type` is 'sum'; choose \"mean\""),
        ({"norm_eps": 0.0}, "`norm_eps` is 0.0"),
        ({"norm_momentum": 2}, "`norm_momentum` is 2"),
        ({"activation_function": "swoosh"}, "`activation_function` is 'swoosh'; choose one of .*leaky_relu"),
        ({"ff_dropout": 1.0}, "`ff_dropout` is 1.0"),
        ({"attention_dropout": -0.1}, "`attention_dropout` is -0.1"),
        ({"random_mask_ratio": 1.0}, "`random_mask_ratio` is 1.0"),
        ({"random_mask_ratio": 0.8}, "`mean_mask_length` is 3; with `random_mask_ratio` 0.8 choose at least 5.00"),
        ({"ea_kernel_size": 2}, "`ea_kernel_size` is 2"),
        ({"ea_residual_weight": 1.5}, "`ea_residual_weight` is 1.5"),
    ],
)
def test_bad_configurations_are_refused(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_config(**values)
    (tmp_path / "config.json").write_text(json.dumps({**tiny_config().to_dict(), **values}))
    with pytest.raises(ValueError, match=message):
        EADCTransformerConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "shape, mask, message",
    [
        ((2, 13, 3), None, r"13 steps; the model takes 1 to 12 \(`context_length`\)"),
        ((2, 0, 3), None, "0 steps; the model takes 1 to 12"),
        ((2, 9, 4), None, r"shape \(2, 9, 4\); the model takes \(batch, time, channels\) with 3 channels"),
        ((9, 3), None, r"shape \(9, 3\)"),
        (
            (2, 9, 3),
            (2, 8),
            r"`past_observed_mask` has the shape \(2, 8\); .* \(2, 9, 3\) it must have the same, or \(2, 9\)",
        ),
        ((2, 9, 3), (2, 9, 1), r"`past_observed_mask` has the shape \(2, 9, 1\)"),
    ],
)
@every_head
def test_bad_inputs_are_refused(model_class, shape, mask, message):
    model = tiny_model(model_class)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), None if mask is None else torch.ones(mask))


def test_labels_of_another_shape_are_refused():
    model = tiny_model(EADCTransformerForRegression)
    for labels in (torch.zeros(4), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match=r"`labels` has the shape .* \(4, 2\)"):
            model(**padded(series_of()), labels=labels)
    single = tiny_model(EADCTransformerForRegression, num_targets=1)
    inputs = padded(series_of())
    assert_close(
        single(**inputs, labels=torch.arange(4)).loss, single(**inputs, labels=torch.arange(4.0).view(4, 1)).loss
    )
    with pytest.raises(ValueError, match=r"`bool_masked_pos` has the shape \(4, 5\)"):
        tiny_model(EADCTransformerForMaskedImputation)(**inputs, bool_masked_pos=torch.ones(4, 5))
