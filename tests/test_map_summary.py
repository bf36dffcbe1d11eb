# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`ea_hf.summary`: its numbers are those of an independent reckoning, for each mixing and family."""

import re

import pytest
import tiny_evolving
import torch
from models import BASE_CASES, CASES, every_model, randomize
from test_visualization import one_example
from transformers import BertModel, CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

import ea_hf
from ea_hf.visualization import draw_layers, page, record_maps, text_maps
from ea_hf.visualization.parts import PARTS, PREVIOUS, SCORES, formula


MIXINGS = {
    "convex": {"ea_residual_weight": 0.3, "ea_conv_weight": 0.4},
    "additive": {"ea_mixing": "additive", "ea_residual_weight": -0.7, "ea_conv_weight": 0.6},
    "learned": {"ea_mixing": "learned"},
    "own kernels": {"ea_mixing": "additive", "ea_conv_groups": "heads", "ea_kernel_size": (1, 5), "ea_conv_every": 1},
    "mixed heads": {"ea_mixing": "learned", "ea_post_mixing": "heads", "ea_activation": "gelu"},
}
every_mixing = pytest.mark.parametrize("mixing", MIXINGS)
BERT = CASES[0]


def padded_batch(case, lengths=(9, 4)):
    return {**case.batch(lengths, padding=case.inputs.paddings[0]).inputs, **case.inputs.options}


def switched_off(case, model, **fields):
    """A model of its own with the same weights, without evolution."""
    plain = case.model(ea_residual_weight=0.0, ea_conv_weight=0.0, **fields)
    plain.load_state_dict(model.state_dict(), strict=False)
    return plain


def attentions_of(outputs):
    return {name: value for name, value in outputs.items() if name.endswith("attentions") and value is not None}


@every_mixing
def test_numbers_of_a_padded_batch_are_those_of_the_equations_row_by_row(mixing):
    model, lengths = BERT.model(**MIXINGS[mixing]), (9, 1, 4)
    plain = switched_off(BERT, model)
    squares, distances = {}, {}
    for example in BERT.inputs.examples(BERT.config(), lengths):
        inputs = {name: value[None] for name, value in example.items()}
        with torch.no_grad():
            outputs = model(**inputs, output_attention_maps=True, output_attentions=True, output_hidden_states=True)
            vanilla = plain(**inputs, output_attentions=True)
            previous = None
            for index, evolved in enumerate(outputs.attention_maps):
                attention = model.encoder.layer[index].attention.self
                evolution, state = attention.evolution, outputs.hidden_states[index]
                query, key = (
                    linear(state).unflatten(-1, (3, 8)).transpose(1, 2) for linear in (attention.query, attention.key)
                )
                scores = query @ key.mT * 8**-0.5
                parts = by_hand(evolution, scores, previous)
                torch.testing.assert_close(sum(parts), evolved, atol=1e-4, rtol=1e-4)
                for name, part in zip(("scores", "residual", "convolution", "whole"), (*parts, evolved), strict=True):
                    at = squares.setdefault((index, name), torch.zeros(3))
                    at += part.square().sum((0, 2, 3))
                change = (outputs.attentions[index] - vanilla.attentions[index]).abs().sum(-1) / 2
                distances.setdefault(index, []).append(change[0])
                previous = evolved
    found = ea_hf.summary(model, padded_batch(BERT, lengths))
    assert [layer.layer for layer in found.layers] == [1, 2, 3, 4] and found.model_name == "EABertModel"
    for index, layer in enumerate(found.layers):
        for name in ("scores", "residual", "convolution"):
            expected = (squares[index, name] / squares[index, "whole"]).sqrt()
            assert getattr(layer, name) == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
        assert layer.distance == pytest.approx(torch.cat(distances[index], 1).mean(1).tolist(), abs=1e-5)
        evolution = model.encoder.layer[index].attention.self.evolution
        for name in ("residual_gate", "conv_gate"):
            gate = getattr(evolution, name)
            assert getattr(layer, name) == (None if gate is None else pytest.approx(gate.tolist()))


def by_hand(evolution, scores, previous):
    residual = evolution.residual_weight if evolution.residual_gate is None else evolution.residual_gate.view(-1, 1, 1)
    conv = evolution.conv_weight if evolution.conv_gate is None else evolution.conv_gate.view(-1, 1, 1)
    nothing = torch.zeros_like(scores)
    is_convex = evolution.mixing == "convex"
    share = 1 - residual if is_convex and previous is not None else 1
    from_scores, from_previous = share * scores, nothing if previous is None else residual * previous
    if evolution.conv is None:
        return from_scores, from_previous, nothing
    kept = 1 - conv if is_convex else 1
    convolved = evolution.activation(evolution.conv(from_scores + from_previous))
    return kept * from_scores, kept * from_previous, conv * convolved


@every_model
def test_the_distance_is_to_the_same_weights_without_evolution(case):
    fields = {"ea_mixing": "additive", "ea_conv_groups": "heads"}
    model = case.model(**fields)
    plain, inputs = switched_off(case, model), padded_batch(case)
    found = ea_hf.summary(model, inputs)
    with torch.no_grad():
        evolving, vanilla = (attentions_of(one(**inputs, output_attentions=True)) for one in (model, plain))
    one = one_by_one(case, evolving), one_by_one(case, vanilla)
    assert len(found.layers) == sum(map(len, evolving.values()))
    for layer, left, right in zip(by_output(case, found.layers), *one, strict=True):
        change = (left - right).abs().sum(-1) / 2
        # Here padded queries are not told from others: the mean is within the range of all.
        least, most = change.amin((0, 2)).tolist(), change.amax((0, 2)).tolist()
        for low, distance, high in zip(least, layer.distance, most, strict=True):
            assert low - 1e-5 <= distance <= high + 1e-5
    assert any(max(layer.distance) > 1e-3 for layer in found.layers)


def one_by_one(case, outputs):
    return [attention for name in sorted(outputs) for attention in outputs[name]]


def by_output(case, layers):
    names = {"self": "attentions", "cross": "cross_attentions"}
    return sorted(layers, key=lambda layer: (names.get(layer.chain, f"{layer.chain}_attentions"), layer.layer))


@pytest.mark.parametrize("case", [case for case in BASE_CASES if case.inputs.paddings != ("none",)], ids=str)
@every_mixing
def test_padding_changes_no_number(case, mixing):
    model = case.model(**MIXINGS[mixing])
    alone = ea_hf.summary(model, one_example(case))
    example = case.inputs.examples(case.config(), [9])
    wide = {**case.inputs.batch(case.config(), example, case.inputs.paddings[0], 14).inputs, **case.inputs.options}
    for layer, other in zip(alone.layers, ea_hf.summary(model, wide).layers, strict=True):
        for name in ("scores", "residual", "convolution", "distance"):
            assert getattr(layer, name) == pytest.approx(getattr(other, name), abs=1e-4)


def test_chains_of_evolved_and_composite_models_each_have_their_layers():
    tokens = torch.randint(3, 60, (2, 7))
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 30}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=67, num_key_value_heads=3, **sizes))
    llama = randomize(ea_hf.evolve(llama, preset="multi_token"), 0.3)
    layers = ea_hf.summary(llama, {"input_ids": tokens}).layers
    assert [max(layer.convolution) > 0 for layer in layers] == [False, False, True]
    text = {"vocab_size": 67, "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 1, **sizes}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={"image_size": 8, "patch_size": 4, **sizes}))
    clip = randomize(ea_hf.evolve(clip, preset="learned"), 0.3)
    layers = ea_hf.summary(clip, {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 8, 8)}).layers
    assert sorted((layer.chain, layer.layer) for layer in layers) == [
        (chain, number) for chain in ("text", "vision") for number in (1, 2, 3)
    ]


def test_an_ea_resnet_has_its_chains_across_stages():
    model = ea_hf.EAResNetForImageClassification(ea_hf.EAResNetConfig(**tiny_evolving.RESNET, ea_mixing="learned"))
    found = ea_hf.summary(randomize(model, 0.3), {"pixel_values": torch.randn(2, 1, 8, 8)})
    assert len(found.layers) > 1 and any(layer.residual_gate for layer in found.layers)


def test_a_summary_leaves_no_trace():
    model, inputs = BERT.model(ea_mixing="learned", hidden_dropout_prob=0.5).train(), padded_batch(BERT)
    model.embeddings.eval()  # frozen
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    ea_hf.summary(model, inputs)
    assert torch.equal(torch.get_rng_state(), state) and modes == [module.training for module in model.modules()]
    evolutions = [module for module in model.modules() if isinstance(module, ea_hf.AttentionEvolution)]
    assert {evolution.mixing for evolution in evolutions} == {"learned"}
    assert not any(module._forward_hooks for evolution in evolutions for module in evolution.modules())


def test_learned_gates_at_0_are_vanilla_and_have_no_share():
    model = ea_hf.EABertModel(BERT.config(ea_mixing="learned", ea_residual_weight=0.0, ea_conv_weight=0.0)).eval()
    for layer in ea_hf.summary(model, padded_batch(BERT)).layers:
        assert set(layer.distance) == {0.0} and set(layer.residual) == set(layer.convolution) == {0.0}
        assert layer.scores == pytest.approx([1.0] * 3)


def test_table_scalars_and_picture_have_every_layer():
    found = ea_hf.summary(BERT.model(ea_mixing="learned"), padded_batch(BERT))
    table = str(found).splitlines()
    assert table[1].split("  ")[0] == "chain" and "residual gate" in table[1]
    assert [line.split()[:2] for line in table[3:7]] == [["self", str(number)] for number in (1, 2, 3, 4)]
    assert re.search(r"self +1 +100.0% \(100.0% to 100.0%\)", table[3])
    scalars = found.scalars()
    assert scalars["self/layer_2/convolution"] == pytest.approx(sum(found.layers[1].convolution) / 3)
    assert scalars["self/layer_2/conv_gate_abs"] == pytest.approx(sum(map(abs, found.layers[1].conv_gate)) / 3)
    assert "self/layer_1/conv_gate" not in scalars
    figure = found.plot()
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 6 and images[3].get_array()[2].tolist() == pytest.approx(found.layers[2].distance)
    assert images[4].get_array().mask[0].all() or images[4].get_array()[0, 0] != images[4].get_array()[0, 0]
    figure.canvas.draw()


def test_a_model_without_evolution_is_an_error():
    with pytest.raises(ValueError, match="no attention maps that evolve"):
        ea_hf.summary(BertModel(BERT.vanilla_config()), {})


# Pictures and pages of the other mixings


@every_mixing
def test_recorded_parts_add_up_in_every_mixing(mixing):
    model = BERT.model(**MIXINGS[mixing])
    for layer in record_maps(model, one_example(BERT), heads=[3, 1], vanilla=True)["self"]:
        parts = (layer.from_scores, layer.from_previous, layer.from_convolution)
        torch.testing.assert_close(sum(parts), layer.evolved, atol=1e-4, rtol=1e-4)
        assert torch.equal(layer.attention_change, layer.attention - layer.vanilla.attention)


def test_formulas_and_pages_show_the_weight_of_each_head(tmp_path):
    directory = tiny_evolving.write_bert(tmp_path).replace("ea_bert", "vanilla")
    model = ea_hf.EABertModel.from_pretrained(directory, ea_mixing="learned", ea_residual_weight=0.25)
    model.encoder.layer[1].attention.self.evolution.residual_gate.data[:] = torch.tensor([0.5, -0.25, 0.0, 1.0])
    tokenizer = tiny_evolving.AutoTokenizer.from_pretrained(directory)
    maps = text_maps(model, tokenizer, "A small film.", vanilla=True)
    second = maps.chains[0].layers[1]
    assert [formula(PREVIOUS, second, "ReLU", head) for head in range(4)] == [
        "0.5 × A₁", "-0.25 × A₁", "nothing: weight 0", "A₁",
    ]  # fmt: skip
    assert formula(SCORES, second, "ReLU", 2) == "S₂"
    layer = page._data(maps, page._packed_heads(maps))[0]["chains"][0]["layers"][1]
    assert layer["weights"]["previous"] == [0.5, -0.25, 0.0, 1.0] and layer["weights"]["evolved"] == [None] * 4
    assert layer["formulas"]["previous"][1] == "-0.25 × A₁" and len(layer["formulas"]) == len(PARTS)
    titles = [axis.get_title() for axis in draw_layers(maps, head=2).axes]
    assert any("-0.25 × A₁" in title for title in titles)
