# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Models with evolving attention saved, compiled, exported, copied and in half precision, and what they return."""

import copy
import json
import pickle
import re

import pytest
import torch
from exactness import (
    assert_rows_equal_alone,
    assert_same_gradients,
    assert_same_outputs,
    every_padding,
    gradients,
    maps_of,
    objective,
    run,
    tensors,
)
from models import (
    BASE_CASES,
    VARIANTS,
    every_extending_family,
    every_extending_model,
    every_family,
    every_model,
    every_variant,
)
from torch.testing import assert_close
from transformers import AutoConfig


# Checkpoints


@every_model
def test_save_and_load_is_bit_equal(case, tmp_path):
    values = {"ea_residual_weight": 0.3, "ea_conv_weight": 0.7, "ea_kernel_size": 5, "ea_activation": "gelu"}
    model = case.model(**values)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == case.model_class.config_class.model_type
    assert {name: saved[name] for name in values} == values
    inputs = case.batch().inputs
    expected = run(model, inputs, output_attentions=True, output_attention_maps=True)
    assert type(AutoConfig.from_pretrained(tmp_path)) is case.model_class.config_class
    for loader in filter(None, (case.model_class, case.auto_class)):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is case.model_class
        assert not any(info.values()), info
        expected_config = {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
        assert loaded.config.to_dict() == expected_config
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, values in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], values), name
        assert_same_outputs(run(loaded, inputs, output_attentions=True, output_attention_maps=True), expected)


@pytest.mark.parametrize("source", ["same-head", "without-head"])
@every_extending_model
def test_vanilla_checkpoint_loads_and_only_evolution_is_new(case, source, tmp_path, transformers_log):
    vanilla = case.vanilla_model() if source == "same-head" else case.vanilla_base_model()
    vanilla.save_pretrained(tmp_path)
    _, vanilla_info = case.vanilla_class.from_pretrained(tmp_path, output_loading_info=True)
    vanilla_messages = [message for message in transformers_log if "LOAD REPORT" not in message]
    config_class = case.model_class.config_class
    values = {"ea_residual_weight": 0.3, "ea_conv_weight": 0.6}
    if "num_labels" in case.config_values:
        values["num_labels"] = case.config_values["num_labels"]

    def load(loader, **kwargs):
        transformers_log.clear()
        return loader.from_pretrained(tmp_path, output_loading_info=True, **kwargs)

    def check(model, info):
        assert type(model) is case.model_class
        assert model.config.model_type == config_class.model_type
        assert (model.config.ea_residual_weight, model.config.ea_conv_weight) == (0.3, 0.6)
        state = model.state_dict()
        evolution = {name for name in state if ".evolution." in name}
        assert evolution
        assert set(info["missing_keys"]) == evolution | set(vanilla_info["missing_keys"])
        assert set(info["unexpected_keys"]) == set(vanilla_info["unexpected_keys"])
        assert not info["mismatched_keys"] and not info["error_msgs"]
        for name, expected in vanilla.state_dict().items():
            ignored = model._keys_to_ignore_on_load_unexpected or []
            if name not in info["unexpected_keys"] and not any(re.search(pattern, name) for pattern in ignored):
                # A checkpoint without head has no prefix either.
                candidates = (name, f"{model.base_model_prefix}.{name}")
                assert torch.equal(next(state[candidate] for candidate in candidates if candidate in state), expected)
        # The report names the new modules; beside it there is nothing that the vanilla class would not say.
        reports = [message for message in transformers_log if "LOAD REPORT" in message]
        assert len(reports) == 1
        # A line for the weights and one for the biases of each chain.
        assert reports[0].count(".evolution.") == 2 * len(case.inputs.chains)
        assert not any("model of type" in message for message in transformers_log)
        assert [message for message in transformers_log if message not in reports] == vanilla_messages

    check(*load(case.model_class, **values))
    check(*load(case.model_class, config=config_class.from_pretrained(tmp_path, **values)))
    check(*load(case.auto_class, config=config_class.from_pretrained(tmp_path, **values)))


@every_family
def test_new_evolution_modules_are_initialized(case, tmp_path):
    """Not left as the memory happened to be, and in reach of the seed."""
    case.plain_model().save_pretrained(tmp_path)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(case.model_class.from_pretrained(tmp_path, ea_conv_weight=0.5))
    states = [
        {name: values for name, values in model.state_dict().items() if ".evolution." in name} for model in models
    ]
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name])
        if name.endswith("bias"):
            assert not values.any()
        else:
            assert 0 < values.std() < 0.1 and values.abs().max() < 1
            assert not torch.equal(values, states[2][name])


@every_model
def test_base_model_of_a_head_is_evolving_and_runs_alone(case, tmp_path):
    model = case.model()
    base_case = next(other for other in BASE_CASES if type(other.config()) is type(model.config))
    if model.base_model is model:
        pytest.skip("is a base model")
    base_class = base_case.model_class
    assert type(model.base_model) is base_class
    model.save_pretrained(tmp_path)
    loaded, info = base_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(".evolution." in name for name in info["missing_keys"] | info["unexpected_keys"])
    inputs = base_case.batch().inputs
    actual, expected = (run(base, inputs, output_attention_maps=True) for base in (model.base_model, loaded))
    # A head may have built its base model without a pooler.
    assert_same_outputs(actual, {name: value for name, value in expected.items() if name in actual})


@every_extending_family
def test_both_weights_zero_reports_nothing_new(case, tmp_path, transformers_log):
    vanilla = case.vanilla_model()
    vanilla.save_pretrained(tmp_path)
    model, info = case.model_class.from_pretrained(
        tmp_path, ea_residual_weight=0.0, ea_conv_weight=0.0, output_loading_info=True
    )
    assert not any(info.values()), info
    assert transformers_log == []
    inputs = case.batch().inputs
    assert_same_outputs(run(model, inputs), run(vanilla, inputs), atol=1e-6)


@every_family
def test_a_foreign_checkpoint_still_warns(case, tmp_path, transformers_log):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    case.model_class.config_class.from_pretrained(tmp_path)
    assert any("model of type `gpt2`" in message for message in transformers_log)


# torch.compile and torch.export


@every_model
@pytest.mark.slow_but("EABertModel", "EAT5ForConditionalGeneration")
def test_compiles_without_graph_breaks(case):
    # The backend "eager" records the graph as the default does, and leaves out the C++ compiler.
    model = case.model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for lengths, width in (((9, 1, 4), 11), ((3, 12), 13)):
        inputs = case.batch(lengths, width=width).inputs
        options = {"output_attentions": True, "output_attention_maps": True}
        # First without compilation: Transformers installs the hooks for attentions at the first request, under a lock.
        expected = run(model, inputs, **options)
        assert_same_outputs(run(compiled, inputs, **options), expected, atol=1e-5)
    torch.compiler.reset()


@every_family
@pytest.mark.slow
def test_default_compiler_agrees(case):
    model = case.model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for lengths, width in (((9, 1, 4), 11), ((3, 12), 13)):
        inputs = case.batch(lengths, width=width).inputs
        assert_same_outputs(run(compiled, inputs), run(model, inputs), atol=1e-5)
    torch.compiler.reset()


@every_family
@pytest.mark.slow_but("EABertModel")
def test_compiled_training_step_has_the_same_gradients(case):
    model = case.model().train()
    inputs = case.batch().inputs
    expected = gradients(model, inputs)
    model.zero_grad()
    objective(torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)).backward()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], atol=1e-5 * scale, rtol=0)
    torch.compiler.reset()


@every_model
@pytest.mark.slow_but("EABertModel", "EAT5Model")
def test_exports_with_dynamic_batch_and_length(case):
    model = case.model()
    example = case.batch([9, 4], width=11).inputs
    shapes = {**case.inputs.dynamic_shapes(example), **dict.fromkeys(case.inputs.options)}
    exported = torch.export.export(
        model, (), kwargs={**example, **case.inputs.options}, dynamic_shapes=shapes, strict=False
    ).module()
    for lengths, padding, width in (((9, 4), "right", 11), ((5, 1, 7, 2, 3), "left", 8), ((16, 17, 2), "mixed", 19)):
        inputs = case.batch(lengths, padding, width).inputs
        assert_same_outputs(exported(**inputs, **case.inputs.options), run(model, inputs), atol=1e-5)


# Outputs


@every_model
def test_attention_maps_are_what_the_attentions_come_from(case):
    model = case.model()
    inputs = case.batch().inputs
    outputs = run(model, inputs, output_attentions=True, output_attention_maps=True)
    heads = model.config.num_attention_heads
    for maps, attentions, mask in maps_of(case, outputs).values():
        assert len(attentions) == len(maps) > 1
        for layer_attentions, layer_maps in zip(attentions, maps, strict=True):
            assert layer_attentions.shape == layer_maps.shape and layer_maps.shape[1] == heads
            assert torch.isfinite(layer_maps).all() and layer_maps.abs().max() < 1e3  # no mask has leaked in
            logits = layer_maps
            if mask in inputs:
                logits = logits.masked_fill(inputs[mask].flatten(0, -2)[:, None, None] == 0, -torch.inf)
            if attentions is outputs.get("decoder_attentions") or getattr(model.config, "causal_attention", False):
                logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -torch.inf)
            # Rows without any key in sight are padding.
            seen = (logits > -torch.inf).any(-1)
            assert_close(logits.softmax(dim=-1)[seen], layer_attentions[seen], atol=1e-6, rtol=0)
            assert_close(layer_attentions.sum(-1), torch.ones_like(layer_attentions.sum(-1)))


@every_model
def test_attention_outputs_by_argument_and_by_config(case, tmp_path):
    inputs = case.batch().inputs
    model = case.model()
    plain = run(model, inputs)
    assert not any("attention" in name for name in tensors(plain))
    expected = run(model, inputs, output_attentions=True, output_attention_maps=True)
    # Another path computes where nothing is recorded.
    assert_same_outputs(plain, {name: expected[name] for name in plain}, atol=1e-5)

    model.config.output_attention_maps = True
    # Transformers' encoder-decoder models make copies of their configuration, and read attentions' from there.
    model.config.output_attentions = len(case.inputs.chains) == 1
    later = {} if model.config.output_attentions else {"output_attentions": True}
    assert_same_outputs(run(model, inputs, **later), expected)
    switched_off = run(model, inputs, output_attentions=False, output_attention_maps=False)
    assert_same_outputs(switched_off, plain)

    configured = case.model(output_attentions=True, output_attention_maps=True)
    assert_same_outputs(run(configured, inputs), expected)
    configured.save_pretrained(tmp_path)
    assert_same_outputs(run(case.model_class.from_pretrained(tmp_path), inputs), expected)
    # Transformers allows attention outputs with "eager" only.
    explicit = case.model(output_attentions=True, output_attention_maps=True, attn_implementation="evolving")
    assert_same_outputs(run(explicit, inputs), expected)


@every_model
def test_attention_outputs_with_and_without_return_dict(case):
    inputs = case.batch().inputs
    model = case.model()
    options = {"output_attentions": True, "output_attention_maps": True, "output_hidden_states": True}
    expected = run(model, inputs, **options)
    names = list(maps_of(case, expected))
    assert all(getattr(expected, name) is expected[name] for name in names)
    as_tuple = run(model, inputs, return_dict=False, **options)
    assert isinstance(as_tuple, tuple)
    # The maps come last, so they move no element that callers of the vanilla model know by its place.
    assert list(expected)[-len(names) :] == names
    assert_same_outputs(dict(zip(expected, as_tuple, strict=True)), expected)
    vanilla = case.plain_model()
    del options["output_attention_maps"]
    assert list(run(model, inputs, **options)) == list(run(vanilla, inputs, **options))
    assert len(run(model, inputs, return_dict=False)) == len(run(vanilla, inputs, return_dict=False))


@every_family
def test_attention_maps_carry_gradients(case):
    model = case.model().train()
    outputs = model(**case.batch().inputs, output_attention_maps=True)
    sum(maps[-1].sum() for maps, _, _ in maps_of(case, outputs).values()).backward()
    last_evolutions = {m.evolution.chain: m.evolution for m in model.modules() if hasattr(m, "evolution")}
    assert len(last_evolutions) == len(case.inputs.chains)
    assert all(evolution.conv.weight.grad.any() for evolution in last_evolutions.values())


@every_padding
def test_attention_called_eager_evolves_as_well(case, padding):
    """Transformers itself asks for "eager" where attentions are to be returned."""
    inputs = case.batch(padding=padding).inputs
    expected = run(case.model(), inputs)
    switched = case.model()
    switched.set_attn_implementation("eager")
    for model in (
        switched,
        case.model(attn_implementation="eager"),
        case.model(attn_implementation="evolving"),
        case.model(attn_implementation=None),
    ):
        assert_same_outputs(run(model, inputs), expected, atol=1e-5)


# Numerics and state


@every_model
def test_bfloat16_autocast_stays_within_its_precision(case):
    """As close to float32 as the vanilla model is, but for a factor that the two more operations may cost."""
    inputs = case.batch().inputs

    def error(model):
        expected = tensors(run(model, inputs))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = tensors(run(model, inputs))
        return {
            name: ((actual[name].float() - values).norm() / values.norm()).item() for name, values in expected.items()
        }

    vanilla = error(case.plain_model())
    for name, value in error(case.model()).items():
        assert value <= max(3 * vanilla[name], 0.05), name


@every_family
def test_bfloat16_autocast_trains(case):
    model = case.model().train()
    inputs = case.batch().inputs
    expected = gradients(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradients(model, inputs)
    for name, gradient in actual.items():
        assert gradient.dtype == torch.float32 and torch.isfinite(gradient).all(), name
    actual, expected = (torch.cat([value.flatten() for value in grads.values()]) for grads in (actual, expected))
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.95


@every_family
def test_bfloat16_weights_keep_their_type(case):
    model = case.model().to(torch.bfloat16)
    outputs = run(model, case.batch().inputs, output_attentions=True, output_attention_maps=True)
    for name, value in tensors(outputs).items():
        assert value.dtype == torch.bfloat16 and torch.isfinite(value).all(), name


@every_model
def test_runs_repeat_bit_for_bit_and_leave_no_trace(case):
    model = case.model()
    inputs, others = case.batch().inputs, case.batch([3, 12], "left", 13).inputs
    expected = run(model, inputs)
    run(model, others, output_attention_maps=True)
    objective(model(**others)).backward()
    assert_same_outputs(run(model, inputs), expected)
    with_gradients = model(**inputs)
    assert_same_outputs({name: value.detach() for name, value in tensors(with_gradients).items()}, expected)
    with torch.inference_mode():
        assert_same_outputs(model(**inputs), expected)


@every_family
def test_dropout_repeats_under_the_same_seed(case):
    model = case.model(**case.dropout(0.1)).train()
    inputs = case.batch().inputs
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(tensors(run(model, inputs)))
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name])
        assert not torch.equal(runs[0][name], runs[2][name])


@every_family
def test_dropout_stays_out_of_the_maps(case):
    """With dropout on the attention weights alone, the first two maps are those without."""
    model = case.model()
    inputs = case.batch().inputs
    expected = maps_of(case, run(model, inputs, output_attention_maps=True))
    for module in model.modules():
        if hasattr(module, "evolution"):
            module.train()
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
            elif isinstance(module.dropout, torch.nn.Module):
                module.dropout.p = 0.5
            else:
                module.dropout = 0.5
    for name, (maps, _, _) in maps_of(case, run(model, inputs, output_attention_maps=True)).items():
        # In cross-attention the first scores have seen a whole encoder.
        assert torch.equal(maps[0], expected[name][0][0]) or name.startswith("cross_")
        assert not torch.equal(maps[1], expected[name][0][1])  # these have seen dropped outputs of the first layer


@every_model
def test_copy_and_pickle_are_bit_equal(case):
    model = case.model()
    inputs = case.batch().inputs
    expected = run(model, inputs)
    pickled = pickle.loads(pickle.dumps(model))
    run(model, inputs, output_attentions=True)  # installs hooks, which a copy takes along
    for other in (pickled, copy.deepcopy(model)):
        assert type(other) is case.model_class
        assert_same_outputs(run(other, inputs), expected)
        with torch.no_grad():
            next(other.parameters()).add_(1)
    assert_same_outputs(run(model, inputs), expected)


# Other forms of the mechanism


@every_variant
@every_family
def test_padding_changes_nothing_in_another_form(case, variant):
    model = case.model(**VARIANTS[variant]).double()
    examples = case.inputs.examples(model.config, [9, 1, 4])
    batch = case.inputs.batch(model.config, examples, case.inputs.paddings[-1], width=11)
    assert_rows_equal_alone(case, model, examples, batch, tolerance=1e-10, output_attentions=True)
    if not case.inputs.takes_mask:
        return
    noisy = case.inputs.batch(model.config, [{**example} for example in examples], case.inputs.paddings[0], width=12)
    assert_rows_equal_alone(case, model, examples, noisy, tolerance=1e-10)


@every_variant
@every_family
def test_activation_checkpointing_changes_no_gradient_in_another_form(case, variant):
    model = case.model(**VARIANTS[variant]).double().train()
    inputs = case.batch().inputs
    expected = gradients(model, inputs)
    assert all(name in expected for name, _ in model.named_parameters())  # DistributedDataParallel waits for each
    model.activation_checkpointing_enable()
    assert_same_gradients(gradients(model, inputs), expected)


@every_variant
@every_family
def test_another_form_is_saved_and_loaded_bit_for_bit(case, variant, tmp_path):
    model = case.model(**VARIANTS[variant])
    model.save_pretrained(tmp_path)
    loaded, info = case.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, value in VARIANTS[variant].items():
        assert getattr(loaded.config, name) == value
    inputs = case.batch().inputs
    assert_same_outputs(run(loaded, inputs), run(model, inputs))


@every_family
@pytest.mark.slow_but("EABertModel")
def test_another_form_is_compiled_and_exported(case):
    model = case.model(**VARIANTS["mixed-heads"])
    inputs = case.batch().inputs
    expected = run(model, inputs)
    assert_same_outputs(run(torch.compile(model, fullgraph=True, backend="eager"), inputs), expected, atol=1e-5)
    torch.compiler.reset()
    kwargs = {**inputs, **case.inputs.options}
    exported = torch.export.export(model, (), kwargs=kwargs, strict=False).module()
    assert_same_outputs(exported(**kwargs), expected, atol=1e-5)
