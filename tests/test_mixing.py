# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The mixings "additive" and "learned": their equations, where they start, what they refuse."""

import copy
import json

import pytest
import torch
from models import CASES, EXTENDING_CASES, every_family
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import ea_hf
from ea_hf import AttentionEvolution


TINY_LLAMA = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def run(model, inputs, **kwargs):
    return [value for value in model(**inputs, **kwargs).values() if isinstance(value, torch.Tensor)]


def tiny_llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA, attn_implementation="eager")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def evolutions_of(model):
    return [module for module in model.modules() if isinstance(module, AttentionEvolution)]


def randomize_gates(model):
    """Every gate anywhere in [-1, 1]."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    with torch.no_grad():
        for evolution in evolutions_of(model):
            for gate in (evolution.residual_gate, evolution.conv_gate):
                if gate is not None:
                    gate.copy_(2 * torch.rand(gate.shape, generator=generator) - 1)
    return model


@pytest.mark.parametrize("is_causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("mixing", ["additive", "learned"])
def test_a_layer_computes_its_equations(mixing, is_causal):
    evolution = AttentionEvolution(3, 1, -0.7, 1.3, is_causal=is_causal, mixing=mixing)
    scores, previous = torch.randn(2, 2, 3, 5, 5).unbind()
    residual, conv = -0.7, 1.3
    if mixing == "learned":
        residual, conv = randomize_gates(evolution).residual_gate[:, None, None], evolution.conv_gate[:, None, None]
    mixed = scores + residual * previous
    image = torch.nn.functional.pad(mixed, (1, 1, 2, 0) if is_causal else (1, 1, 1, 1))
    convolved = torch.nn.functional.conv2d(image, evolution.conv.weight, evolution.conv.bias).relu()
    torch.testing.assert_close(evolution(scores, previous), mixed + conv * convolved)


def test_gates_are_where_they_act():
    names = {name for name, _ in AttentionEvolution(3, 0, mixing="learned").named_parameters()}
    assert names == set()
    later = AttentionEvolution(3, 2, 0.0, 0.0, mixing="learned")
    gates = {name: values.shape for name, values in later.named_parameters() if "gate" in name}
    assert gates == {"residual_gate": (3,), "conv_gate": (3,)} and later.conv is not None
    assert AttentionEvolution(3, 2, 0.5, 0.0, mixing="additive").conv is None


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", [case for case in EXTENDING_CASES if case.pooled or not case.means], ids=str)
def test_learned_starts_as_the_vanilla_model_bit_for_bit(case, grad, tmp_path):
    vanilla = case.vanilla_model()
    vanilla.save_pretrained(tmp_path)
    model = case.model_class.from_pretrained(tmp_path, ea_mixing="learned").eval()
    assert (model.config.ea_residual_weight, model.config.ea_conv_weight) == (0.0, 0.0)
    inputs = case.batch().inputs
    with torch.set_grad_enabled(grad):
        for one, other in zip(run(model, inputs), run(vanilla, inputs), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_learned_llama_starts_as_the_vanilla_model_bit_for_bit(grad):
    vanilla = tiny_llama()
    model = ea_hf.evolve(copy.deepcopy(vanilla), mixing="learned")
    inputs = {"input_ids": torch.arange(1, 13).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    inputs["attention_mask"][0, :2] = 0
    with torch.set_grad_enabled(grad):
        actual, expected = (run(m, inputs, use_cache=False) for m in (model, vanilla))
        real = inputs["attention_mask"].bool()  # a padded query may attend nowhere
        assert torch.equal(actual[0][real], expected[0][real])


@every_family
def test_learned_gates_and_kernels_move_from_the_start(case):
    torch.manual_seed(0)
    model = case.model_class(case.config(ea_mixing="learned", ea_residual_weight=None, ea_conv_weight=None)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evolutions = [evolution for evolution in evolutions_of(model) if evolution.conv is not None]
    assert all(0.05 < evolution.conv.weight.std() < 0.15 for evolution in evolutions)
    assert not any(evolution.residual_gate.any() or evolution.conv_gate.any() for evolution in evolutions)
    for step in range(2):
        optimizer.zero_grad()
        loss = sum(
            (value * torch.arange(value.numel()).sin().view_as(value)).sum()
            for value in run(model, case.batch().inputs)
        )
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        for evolution in evolutions:
            kernel = (
                [evolution.conv.weight, evolution.conv.bias] if step > 0 else []
            )  # gates of 0 let no gradient through
            for parameter in (evolution.residual_gate, evolution.conv_gate, *kernel):
                assert parameter.grad.any()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert all(evolution.residual_gate.any() and evolution.conv_gate.any() for evolution in evolutions)


@pytest.mark.parametrize("mixing", ["additive", "learned"])
@every_family
def test_padding_changes_nothing(case, mixing):
    weights = {"ea_residual_weight": -0.6, "ea_conv_weight": 0.8}
    model = randomize_gates(case.model(ea_mixing=mixing, **weights)).double()
    batch = case.batch()
    examples = case.inputs.examples(model.config, (9, 1, 4, 6))
    with torch.no_grad():
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                together = model(**{k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()})
                for row, (example, positions) in enumerate(zip(examples, batch.positions, strict=True)):
                    example = {k: (v.double() if v.is_floating_point() else v)[None] for k, v in example.items()}
                    alone = model(**example)[0][0]
                    actual = together[0][row]
                    for axis, width in enumerate(actual.shape):
                        if width in positions:
                            actual = actual.index_select(axis, positions[width])
                    torch.testing.assert_close(actual, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mixing", ["additive", "learned"])
def test_decoding_step_by_step_equals_the_full_pass_and_is_causal(mixing):
    model = randomize_gates(ea_hf.evolve(tiny_llama(), -0.6, 0.8, mixing=mixing)).eval()
    tokens = torch.arange(1, 17).view(2, 8)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        changed = model(torch.cat([tokens[:, :5], tokens[:, 5:] + 20], dim=1), use_cache=False).logits
        torch.testing.assert_close(changed[:, :5], expected[:, :5], rtol=1e-5, atol=1e-5)
        outputs = model(tokens[:, :3], use_cache=True)
        logits = [outputs.logits]
        for position in range(3, 8):
            outputs = model(
                tokens[:, position : position + 1], past_key_values=outputs.past_key_values, use_cache=True
            )
            logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixing", ["additive", "learned"])
@every_family
def test_activation_checkpointing_changes_no_gradient(case, mixing):
    model = randomize_gates(case.model(ea_mixing=mixing, ea_residual_weight=-0.6)).double().train()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in case.batch().inputs.items()}

    def gradients():
        model.zero_grad()
        sum(value.square().sum() for value in run(model, inputs)).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    model.activation_checkpointing_enable()
    scale = max(gradient.abs().max() for gradient in expected)
    for gradient, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10 * scale)


@every_family
def test_learned_checkpoint_is_loaded_again_bit_for_bit(case, tmp_path):
    model = randomize_gates(case.model(ea_mixing="learned", ea_residual_weight=0.3, ea_conv_weight=-0.2))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["ea_mixing"], saved["ea_residual_weight"], saved["ea_conv_weight"]) == ("learned", 0.3, -0.2)
    loaded, info = case.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values)


def test_evolved_learned_checkpoint_is_loaded_again(tmp_path):
    model = randomize_gates(ea_hf.evolve(tiny_llama(), mixing="learned"))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], values) for name, values in model.state_dict().items())


def save_tiny(directory, **values):
    config = ea_hf.EABertConfig(**{**CASES[0].config_values, **values})
    ea_hf.EABertModel(config).save_pretrained(directory)
    return config


@pytest.mark.parametrize(
    ("saved", "asked"),
    [("learned", "convex"), ("learned", "additive"), ("convex", "learned"), ("additive", "learned")],
)
def test_a_checkpoint_is_not_loaded_with_other_gates(saved, asked, tmp_path):
    save_tiny(tmp_path, ea_mixing=saved)
    with pytest.raises(ValueError, match=f"'{asked}', but the checkpoint's is '{saved}'"):
        ea_hf.EABertModel.from_pretrained(tmp_path, ea_mixing=asked)
    with pytest.raises(ValueError, match=f"'{asked}', but the checkpoint's is '{saved}'"):
        AutoConfig.from_pretrained(tmp_path, ea_mixing=asked)
    config = ea_hf.EABertConfig(**CASES[0].config_values, ea_mixing=asked)
    with pytest.raises(ValueError, match=f"'{asked}', but the checkpoint's is '{saved}'"):
        ea_hf.EABertModel.from_pretrained(tmp_path, config=config)


def test_gates_of_a_checkpoint_do_not_start_anew(tmp_path):
    save_tiny(tmp_path, ea_mixing="learned")
    with pytest.raises(ValueError, match=r"`ea_conv_weight` is 0\.5, but it only says where gates start"):
        ea_hf.EABertModel.from_pretrained(tmp_path, ea_conv_weight=0.5)


def test_checkpoints_that_name_no_mixing_are_convex(tmp_path):
    save_tiny(tmp_path, ea_residual_weight=0.3)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["ea_mixing"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ea_hf.EABertModel.from_pretrained(tmp_path).config.ea_mixing == "convex"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ea_mixing": "concave"}, "'concave'; choose one of convex, additive, learned"),
        ({"ea_residual_weight": -0.1}, "`ea_residual_weight` is -0.1"),
        ({"ea_conv_weight": 1.5}, "`ea_conv_weight` is 1.5"),
        ({"ea_mixing": "additive", "ea_conv_weight": float("nan")}, "`ea_conv_weight` is nan"),
        ({"ea_mixing": "learned", "ea_residual_weight": float("inf")}, "`ea_residual_weight` is inf"),
    ],
    ids=str,
)
def test_what_a_mixing_does_not_have_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ea_hf.EABertConfig(**values)


@pytest.mark.parametrize(
    ("name", "value"), [("ea_residual_weight", 0.7), ("ea_mixing", "learned"), ("ea_kernel_size", 5)]
)
def test_a_changed_configuration_of_a_built_model_is_not_saved(name, value, tmp_path):
    for model in (
        ea_hf.EABertModel(ea_hf.EABertConfig(**CASES[0].config_values)),
        ea_hf.EAT5Model(ea_hf.EAT5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=9)),
        ea_hf.evolve(tiny_llama()),
    ):
        setattr(model.config, name, value)
        with pytest.raises(ValueError, match=f"`config.{name}` is {value!r}, but the model was built with"):
            model.save_pretrained(tmp_path)


def test_peft_trains_and_saves_the_learned_weights(tmp_path):
    peft = pytest.importorskip("peft")
    case = next(case for case in CASES if case.model_class is ea_hf.EABertForSequenceClassification)
    inputs = case.batch().inputs

    def base():
        torch.manual_seed(0)
        fields = {"ea_mixing": "learned", "ea_residual_weight": None, "ea_conv_weight": None}
        return case.model_class(case.config(**fields))

    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["evolution", "classifier"])
    model = peft.get_peft_model(base(), config).train()
    model(**inputs).logits.square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    gates = [p for name, p in model.named_parameters() if "_gate" in name and p.requires_grad]
    assert len(gates) == 6 and all(gate.any() for gate in gates)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
