# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Evolved models in use: state, generation, compilation, new convolutions, and what is refused."""

import copy
import pickle
import threading

import pytest
import torch
from evolved_families import (
    DECODER,
    ENCODER_DECODER_MAPS,
    FAMILIES,
    TEXT,
    assert_same,
    gradients,
    main_output,
    one_of_each_kind,
    randomize_convolutions,
    tensors,
    without_dropout,
)
from exactness import run
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from models import cache_name
from torch.testing import assert_close
from transformers import (
    CONFIG_MAPPING,
    AlbertModel,
    BartForConditionalGeneration,
    DebertaV2Model,
    DynamicCache,
    ElectraConfig,
    Gemma2ForCausalLM,
    GptOssForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    ModernBertForMaskedLM,
    Qwen2ForCausalLM,
    StaticCache,
)

import ea_hf
from ea_hf.models.configuration_ea_evolved import evolved_config_class


# Where the state comes from


@one_of_each_kind
def test_copy_and_pickle_are_bit_equal(family):
    model = family.evolving()
    inputs = family.inputs()
    expected = run(model, inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and type(other.config) is type(model.config)
        assert_same(run(other, inputs), expected)
        with torch.no_grad():
            next(other.parameters()).add_(1)
    assert_same(run(model, inputs), expected)


def test_parts_run_on_their_own():
    family = next(family for family in FAMILIES if family.model_class is BartForConditionalGeneration)
    model, inputs = family.evolving(), family.inputs()
    whole = run(model, inputs, output_attention_maps=True)
    encoder = run(
        model.get_encoder(),
        {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
        output_attention_maps=True,
    )
    assert torch.equal(encoder.last_hidden_state, whole.encoder_last_hidden_state)
    for actual, expected in zip(encoder.attention_maps, whole.encoder_attention_maps, strict=True):
        assert torch.equal(actual, expected)
    rest = {name: values for name, values in inputs.items() if name != "input_ids"}
    assert_close(run(model, rest, encoder_outputs=encoder).logits, whole.logits, atol=1e-5, rtol=0)
    base = run(model.model, inputs, output_attention_maps=True)
    for name in ENCODER_DECODER_MAPS:
        for actual, expected in zip(base[name], whole[name], strict=True):
            assert torch.equal(actual, expected)


def test_threads_do_not_meet():
    model = FAMILIES[0].evolving()
    inputs = [FAMILIES[0].inputs((9, 3)), FAMILIES[0].inputs((2, 12))]
    expected = [run(model, one) for one in inputs]
    failures = []

    def work(index):
        for _ in range(20):
            try:
                assert_same(run(model, inputs[index]), expected[index], atol=1e-6)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_generate_returns_the_maps_of_each_step():
    family = next(family for family in FAMILIES if family.model_class is LlamaForCausalLM)
    model, prompt = family.evolving(), family.inputs()["input_ids"][:1, :4]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    outputs = model.generate(prompt, output_attention_maps=True, **options)
    whole = model(outputs.sequences[:, :-1], output_attention_maps=True).attention_maps
    assert len(outputs.attention_maps) == 3
    for step, maps in enumerate(outputs.attention_maps):
        keys = prompt.shape[1] + step
        for layer, actual in enumerate(maps):
            assert_close(actual[:, :, -1], whole[layer][:, :, keys - 1, :keys], atol=1e-5, rtol=1e-5)
    assert "attention_maps" not in model.generate(prompt, **options)
    with pytest.raises(ValueError, match="return_dict_in_generate=True"):
        model.generate(prompt, output_attention_maps=True, max_new_tokens=2)


def test_an_error_within_a_forward_pass_leaves_no_trace():
    model, inputs = FAMILIES[0].evolving(), FAMILIES[0].inputs()
    expected = run(model, inputs)
    with pytest.raises(IndexError):
        run(model, {"input_ids": torch.full((1, 3), 1000)})
    assert_same(run(model, inputs), expected)
    with pytest.raises(RuntimeError, match="without a forward pass of its model"):
        model.electra.encoder.layer[1].attention.self(torch.zeros(1, 3, 24))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"residual_weight": "0.1"}, "`ea_residual_weight` is '0.1'"),
        ({"kernel_size": 3.0}, r"`ea_kernel_size` is 3\.0"),
        ({"memory_efficient": "yes"}, "ea_memory_efficient"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_of_the_wrong_type_changes_nothing(setting, message):
    model = FAMILIES[0].vanilla()
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        ea_hf.evolve(model, **setting)
    assert type(model.config) is ElectraConfig
    ea_hf.evolve(model)


@one_of_each_kind
def test_other_models_of_the_same_configuration_remain_vanilla(family):
    config = family.model_class.config_class(**family.config_values)
    before = config.to_dict()
    model, other = family.model_class(config).eval(), family.model_class(config).eval()
    inputs = family.inputs()
    expected = run(other, inputs)
    ea_hf.evolve(model)
    assert type(config) is family.model_class.config_class and config.to_dict() == before
    assert_same(run(other, inputs), expected)


def test_layer_drop_hands_the_map_on():
    family = next(family for family in FAMILIES if family.model_class is BartForConditionalGeneration)
    vanilla = family.vanilla(encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    model = randomize_convolutions(ea_hf.evolve(vanilla)).train()
    for seed in range(6):
        torch.manual_seed(seed)
        loss = model(**family.inputs()).logits.square().sum()
        loss.backward()
        assert torch.isfinite(loss)


@one_of_each_kind
def test_attention_called_eager_evolves_as_well_and_fused_is_refused(family):
    model, inputs = family.evolving(), family.inputs()
    expected = run(model, inputs)
    model.set_attn_implementation("eager")
    assert_same(run(model, inputs), expected, atol=1e-5)
    outputs = run(model, inputs, output_attentions=True)
    assert [name for name in tensors(outputs) if "attentions" in name]
    with pytest.raises(ValueError, match="sdpa"):
        model.set_attn_implementation("sdpa")


@one_of_each_kind
@pytest.mark.slow_but("LlamaForCausalLM")
def test_compiles_without_graph_breaks(family):
    model = family.evolving()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    options = {"use_cache": False} if family.kind in ("seq2seq", "causal") else {}
    for lengths in ((9, 4), (3, 7, 5)):
        inputs = family.inputs(lengths)
        expected = run(model, inputs, **options)
        assert_close(main_output(run(compiled, inputs, **options)), main_output(expected), atol=1e-5, rtol=0)
        assert_same(run(model, inputs, **options), expected)
    torch.compiler.reset()


# New convolutions


def test_new_convolutions_are_initialized_as_in_the_families():
    states = []
    for seed in (1, 1, 2):
        vanilla = FAMILIES[0].vanilla()
        torch.manual_seed(seed)
        model = ea_hf.evolve(vanilla)
        states.append({name: values for name, values in model.state_dict().items() if ".evolution." in name})
    assert len(states[0]) == 6
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name])
        if name.endswith("bias"):
            assert not values.any()
        else:
            assert 0.01 < values.std() < 0.03 and not torch.equal(values, states[2][name])


def test_frozen_and_half_precision_weights_keep_their_state():
    vanilla = FAMILIES[0].vanilla().to(torch.bfloat16)
    vanilla.requires_grad_(False)
    model = ea_hf.evolve(vanilla)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name in model.state_dict() if ".evolution." in name}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
    assert main_output(run(model, FAMILIES[0].inputs())).dtype == torch.bfloat16


def test_checkpointing_that_was_on_goes_on():
    family = FAMILIES[0]
    vanilla = without_dropout(family.vanilla().double().train())
    vanilla.activation_checkpointing_enable()
    model = randomize_convolutions(ea_hf.evolve(vanilla, 0.5, 0.5))
    actual = gradients(model, family.inputs())
    model.activation_checkpointing_disable()
    expected = gradients(model, family.inputs())
    for name in ("electra.encoder.layer.1.attention.self.evolution.conv.weight",):
        assert_close(actual[name], expected[name], atol=1e-9, rtol=0)
    vanilla = family.vanilla()
    vanilla.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        ea_hf.evolve(vanilla)


# What is refused


@pytest.mark.parametrize(
    ("model_class", "values", "message"),
    [
        (MistralForCausalLM, {"sliding_window": 8}, r"sliding window \(`sliding_window=8`\)"),
        (ModernBertForMaskedLM, {"pad_token_id": 1}, r"sliding window .* with `layer_types=\[\"full_attention\""),
        (Qwen2ForCausalLM, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, "sliding"),
        (Gemma2ForCausalLM, {"head_dim": 8}, "sliding"),
        (
            Gemma2ForCausalLM,
            {"head_dim": 8, "sliding_window": None, "layer_types": ["full_attention"] * 4},
            "attn_logit_softcapping",
        ),
        (
            GptOssForCausalLM,
            {
                "num_local_experts": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "sliding_window": None,
                "layer_types": ["full_attention"] * 4,
            },
            "sinks",
        ),
        (MistralForCausalLM, {"sliding_window": 8, "layer_types": ["full_attention"] * 4}, "sliding_window=None"),
        (DebertaV2Model, {}, "does not call Transformers' attention interface"),
        (AlbertModel, {"embedding_size": 8}, "share a module, as in ALBERT"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_not_exact_is_refused(model_class, values, message):
    config = model_class.config_class(**{**DECODER, **values})
    model = model_class(config)
    before = type(model), type(model.config), set(dict(model.named_modules()))
    with pytest.raises(ValueError, match=message):
        ea_hf.evolve(model)
    assert before == (type(model), type(model.config), set(dict(model.named_modules())))


def test_packed_sequences_are_refused():
    family = next(family for family in FAMILIES if family.model_class is LlamaForCausalLM)
    model = family.evolving()
    inputs = {"input_ids": family.inputs((9,))["input_ids"]}
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="packed sequences"):
        run(model, inputs, position_ids=positions, use_cache=False)
    blocks = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    blocks[..., :4, :4] = blocks[..., 4:, 4:] = True
    for mask in (blocks.tril(), torch.ones_like(blocks).tril().triu(-3)):  # two sequences; a window
        with pytest.raises(ValueError, match="packed sequences"):
            run(model, inputs, attention_mask=mask)
    encoder = FAMILIES[0].evolving()
    with pytest.raises(ValueError, match="packed sequences"):
        run(encoder, {"input_ids": inputs["input_ids"]}, attention_mask=blocks)
    run(model, inputs, position_ids=torch.arange(9)[None], use_cache=False)


def test_caches_that_cannot_hold_maps_are_refused():
    family = next(family for family in FAMILIES if family.model_class is LlamaForCausalLM)
    vanilla, model = family.vanilla(), family.evolving()
    inputs = {"input_ids": family.inputs((9,))["input_ids"]}
    cache = run(vanilla, inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="without the rows of their attention maps"):
        run(model, inputs, **{cache_name(model): cache})
    with pytest.raises(ValueError, match="paged"):
        model.set_attn_implementation("paged|eager")
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=12)):
        expected = run(model, inputs, use_cache=False).logits
        assert_close(run(model, inputs, **{cache_name(model): cache}).logits, expected, atol=1e-5, rtol=0)


def test_evolving_models_and_others_are_refused():
    model = FAMILIES[0].evolving()
    with pytest.raises(ValueError, match="evolving already"):
        ea_hf.evolve(model)
    tiny = {**TEXT, "num_hidden_layers": 2}
    with pytest.raises(ValueError, match="evolving already"):
        ea_hf.evolve(ea_hf.EABertModel(ea_hf.EABertConfig(**tiny)))
    with pytest.raises(TypeError, match="not a Linear"):
        ea_hf.evolve(torch.nn.Linear(2, 2))
    for values in ({"residual_weight": 1.5}, {"conv_weight": -0.1}, {"kernel_size": 2}, {"activation": "none"}):
        with pytest.raises(ValueError, match=f"`ea_{next(iter(values))}` is"):
            ea_hf.evolve(FAMILIES[0].vanilla(), **values)


def test_configurations_keep_the_vanilla_defaults():
    """Of all the configuration classes that Transformers knows, whatever models they have."""
    differing, compared = {}, 0
    for model_type, vanilla_class in CONFIG_MAPPING.items():
        if model_type.startswith("ea_"):
            continue
        try:
            vanilla = vanilla_class()
        except (StrictDataclassError, ValueError):  # Transformers' own defaults contradict each other
            continue
        try:
            evolved = evolved_config_class(vanilla_class)()
        except (ImportError, ValueError) as error:  # what Transformers itself cannot import here
            if isinstance(error, ImportError) or "Could not find" in str(error):
                continue
            raise
        compared += 1
        values = evolved.to_dict()
        for name, value in vanilla.to_dict().items():
            if name != "model_type" and values.get(name) != value:
                differing[f"{model_type}.{name}"] = (value, values.get(name))
    assert not differing and compared > 700
