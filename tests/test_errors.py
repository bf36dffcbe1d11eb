# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Bad input gets an error that echoes the value and says what to do."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import BASE_CASES, every_family, every_model
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from ea_hf import AttentionEvolution, EABertConfig, EABertModel
from ea_hf.models.configuration_evolving import EvolvingEncoderConfig
from ea_hf.models.evolution import EvolutionState, evolving_attention_forward


every_weight = pytest.mark.parametrize("name", ["ea_residual_weight", "ea_conv_weight"])
every_bad_weight = pytest.mark.parametrize("value", [-0.1, 1.1, 2, float("nan"), float("inf"), -float("inf")])
every_bad_kernel = pytest.mark.parametrize("value", [0, 2, 4, -1, -3])
every_fused_attention = pytest.mark.parametrize(
    "implementation",
    ["sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "paged|sdpa", "kernels-community/flash-attn"],
)


def refusal_of(implementation):
    return pytest.raises(
        ValueError, match=rf"`attn_implementation` is {re.escape(repr(implementation))}.*scores.*Leave it out"
    )


# Values of the configuration


@every_bad_weight
@every_weight
@every_family
def test_weight_outside_the_unit_interval(case, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` is {value}; choose a number between 0 and 1"):
        case.config(**{name: value})


@every_bad_kernel
@every_family
def test_kernel_size_that_has_no_middle(case, value):
    with pytest.raises(ValueError, match=rf"`ea_kernel_size` is {value}; choose an odd positive integer"):
        case.config(ea_kernel_size=value)


@every_family
def test_unknown_activation(case):
    with pytest.raises(ValueError, match=r"`ea_activation` is 'rellu'; choose one of .*gelu.*relu"):
        case.config(ea_activation="rellu")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ea_residual_weight", "much"), ("ea_conv_weight", [0.1]), ("ea_kernel_size", 3.0), ("ea_activation", 7)],
)
@every_family
def test_value_of_the_wrong_type(case, name, value):
    with pytest.raises((TypeError, StrictDataclassError), match=name):
        case.config(**{name: value})


@every_family
def test_bad_value_in_a_saved_configuration(case, tmp_path):
    values = {**case.config().to_dict(), "ea_kernel_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for config_class in (case.model_class.config_class, AutoConfig):
        with pytest.raises(ValueError, match="`ea_kernel_size` is 2"):
            config_class.from_pretrained(tmp_path)


@every_family
def test_bad_value_set_after_construction(case):
    config = case.config()
    config.ea_residual_weight = 1.5
    with pytest.raises(ValueError, match=r"`ea_residual_weight` is 1.5"):
        case.model_class(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"residual_weight": 1.5}, "`ea_residual_weight` is 1.5"),
        ({"conv_weight": float("nan")}, "`ea_conv_weight` is nan"),
        ({"kernel_size": 4}, "`ea_kernel_size` is 4"),
        ({"activation": "rellu"}, "`ea_activation` is 'rellu'"),
    ],
)
def test_bad_value_given_to_the_module(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionEvolution(2, 1, **arguments)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0])
def test_ends_of_the_unit_interval_are_fine(value):
    config = EABertConfig(ea_residual_weight=value, ea_conv_weight=value)
    assert (config.ea_residual_weight, config.ea_conv_weight) == (value, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ea_residual_weight", 7),
        ("ea_conv_weight", float("nan")),
        ("ea_kernel_size", 2),
        ("ea_activation", "rellu"),
    ],
)
@every_family
def test_bad_value_that_overrides_a_checkpoint(case, name, value, tmp_path):
    case.plain_model().save_pretrained(tmp_path)
    for loader in (case.model_class.config_class, case.model_class):
        with pytest.raises(ValueError, match=rf"`{name}` is {value!r}"):
            loader.from_pretrained(tmp_path, **{name: value})


every_encoder = pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case in BASE_CASES
        if issubclass(case.model_class.config_class, EvolvingEncoderConfig)
        for name in ("is_decoder", "add_cross_attention")
    ],
    ids=str,
)


def refusal_of_a_decoder(name):
    return pytest.raises(ValueError, match=rf"`{name}` is True, but EA-\w+ is an encoder. Set {name}=False")


@every_encoder
def test_an_encoder_is_no_decoder(case, name, tmp_path):
    with refusal_of_a_decoder(name):
        case.config(**{name: True})
    case.vanilla_config(**{name: True}).save_pretrained(tmp_path)
    with refusal_of_a_decoder(name):
        case.model_class.config_class.from_pretrained(tmp_path)


@every_encoder
def test_an_encoder_becomes_no_decoder(case, name, tmp_path):
    """Neither by an override of a checkpoint's configuration, nor by a value set later."""
    case.vanilla_model().save_pretrained(tmp_path)
    with refusal_of_a_decoder(name):
        case.model_class.from_pretrained(tmp_path, **{name: True})
    config = case.config()
    setattr(config, name, True)
    with refusal_of_a_decoder(name):
        case.model_class(config)


@every_encoder
def test_remedy_for_a_decoder_s_checkpoint_works(case, name, tmp_path):
    case.vanilla_config(**{name: True}).save_pretrained(tmp_path)
    assert getattr(case.model_class.config_class.from_pretrained(tmp_path, **{name: False}), name) is False


# Attention implementations that hide the scores


@every_fused_attention
@every_model
def test_fused_attention_in_the_configuration(case, implementation):
    with refusal_of(implementation):
        case.model_class(case.config(attn_implementation=implementation))
    if case.auto_class is not None:
        with refusal_of(implementation):
            case.auto_class.from_config(case.config(), attn_implementation=implementation)


@every_fused_attention
@every_family
def test_fused_attention_in_from_pretrained(case, implementation, tmp_path):
    case.model().save_pretrained(tmp_path)
    for loader in (case.model_class, case.auto_class):
        with refusal_of(implementation):
            loader.from_pretrained(tmp_path, attn_implementation=implementation)


@every_fused_attention
@every_model
def test_fused_attention_set_on_a_model(case, implementation):
    model = case.model()
    before = model.config._attn_implementation
    for request in (implementation, {"": implementation}):
        with refusal_of(implementation):
            model.set_attn_implementation(request)
    assert model.config._attn_implementation == before


# Checkpointing


@pytest.mark.parametrize("offload", [False, True], ids=["", "offload"])
@every_model
def test_reentrant_checkpointing(case, offload):
    model = case.model().train()
    with pytest.raises(ValueError, match=r'`use_reentrant=True` cuts the gradient.*"use_reentrant": False'):
        model.activation_checkpointing_enable({"use_reentrant": True}, offload=offload)
    with (
        pytest.raises(ValueError, match=r'`use_reentrant=True` cuts the gradient.*"use_reentrant": False'),
        pytest.warns(FutureWarning),
    ):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    assert not model.is_activation_checkpointing


@every_family
def test_checkpointing_that_is_reentrant_by_torch_s_default(case):
    """`torch.utils.checkpoint` takes a missing `use_reentrant` for True."""
    for kwargs in ({}, {"preserve_rng_state": True}):
        model = case.model().train()
        try:
            model.activation_checkpointing_enable(kwargs)
        except ValueError as error:
            assert '"use_reentrant": False' in str(error)
        else:
            model(**case.batch().inputs)[0].sum().backward()


# Checkpoints and layers that do not belong to the model


@pytest.mark.parametrize("source", ["evolving", "vanilla"])
@every_model
@pytest.mark.slow_but("Model-")
def test_head_count_that_is_not_the_checkpoint_s(case, source, tmp_path):
    (case.model() if source == "evolving" else case.plain_model()).save_pretrained(tmp_path)
    trained = case.config().num_attention_heads
    other = 2 * trained
    name = case.config().attribute_map.get("num_attention_heads", "num_attention_heads")
    message = rf"{name}={other}, but the checkpoint .* was trained with {trained}\. .*{type(case.config()).__name__}"
    refused = pytest.raises(ValueError, match=message)
    relative = ("relative_attention_num_buckets", "use_relative_positions")
    if any(hasattr(case.config(), name) for name in relative):  # its embeddings' shape tells Transformers
        refused = pytest.raises(RuntimeError, match="ignore_mismatched_sizes")
    config = case.config(num_attention_heads=other, ea_conv_weight=0.0)
    with refused:
        case.model_class.from_pretrained(tmp_path, config=config)
    with refused:
        (case.auto_class or case.model_class).from_pretrained(tmp_path, config=config, output_loading_info=True)
    with refused:
        case.model_class.from_pretrained(tmp_path, num_attention_heads=other, ea_conv_weight=0.0)
    case.model_class.from_pretrained(tmp_path)


def test_attention_function_without_state():
    model = EABertModel(EABertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8))
    layer = model.encoder.layer[0]
    with pytest.raises(
        RuntimeError, match=r"BertSelfAttention was called without a forward pass.*Call the model, not its layers"
    ):
        layer(torch.zeros(1, 3, 8))


def test_attention_function_in_a_vanilla_model():
    config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    for model in (BertModel(config), AutoModel.from_config(config)):
        model.set_attn_implementation("evolving")
        with pytest.raises(RuntimeError, match=r"BertSelfAttention .* no `evolution` module.*Use a model of `ea_hf`"):
            model(torch.ones(1, 3, dtype=torch.long))


def test_attention_function_with_a_state_but_no_evolution():
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match=r"Identity .* no `evolution` module"):
        EvolutionState().run(evolving_attention_forward, torch.nn.Identity(), query, query, query, None)
