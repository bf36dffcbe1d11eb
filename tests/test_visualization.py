# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps of an example: their parts add up to what the model computes, and figures and command line show them."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny_evolving
import torch
from models import BASE_CASES, CASES, every_family
from PIL import Image
from tiny_images import digits
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertModel

import ea_hf
from ea_hf.visualization import draw_layers, image_maps, packing, page, record_maps, text_maps
from ea_hf.visualization.__main__ import main
from ea_hf.visualization.examples import checkpoint_name, readable
from ea_hf.visualization.parts import CONVOLUTION, PARTS, PREVIOUS, SCORES, formula


SENTENCE = "A small film with a very big heart."
SECOND = "Avoid."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    return {
        "bert": tiny_evolving.write_bert(directory),
        "t5": tiny_evolving.write_t5(directory),
        "vit": tiny_evolving.write_vit(directory),
        "resnet": tiny_evolving.write_resnet(directory),
        "vanilla": str(directory / "vanilla"),
        "image": tiny_evolving.write_image(directory / "two.png"),
        "wordless": without(directory, "wordless", "tokenizer.json"),
        "damaged": without(directory, "damaged", "model.safetensors", b"damaged"),
    }


def without(directory, name, file, content=None):
    """A copy of the EA-BERT that lacks a file, or has one with another content."""
    copy = shutil.copytree(directory / "ea_bert", directory / name)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    return str(copy)


@pytest.fixture(scope="module")
def bert(checkpoints):
    return AutoModel.from_pretrained(checkpoints["bert"]), AutoTokenizer.from_pretrained(checkpoints["bert"])


@pytest.fixture(scope="module")
def t5(checkpoints):
    model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(checkpoints["t5"])
    return model, AutoTokenizer.from_pretrained(checkpoints["t5"])


def images(checkpoints, name):
    auto_class = {"vit": ea_hf.EAViTModel, "resnet": ea_hf.EAResNetForImageClassification}[name]
    return auto_class.from_pretrained(checkpoints[name]), AutoImageProcessor.from_pretrained(checkpoints[name])


def one_example(case):
    inputs = {name: value[:1] for name, value in case.batch([9, 4], width=9).inputs.items()}
    return {**inputs, **case.inputs.options}


def resnet_case():
    model = ea_hf.EAResNetModel(ea_hf.EAResNetConfig(**{**tiny_evolving.RESNET, **tiny_evolving.WEIGHTS}))
    return tiny_evolving.randomize(model, 0.3).eval(), {"pixel_values": torch.randn(1, 1, 8, 12)}


def assert_parts_add_up(model, inputs):
    with torch.no_grad():
        outputs = model(**inputs, output_attention_maps=True, output_attentions=True)
    left = {name: list(value) for name, value in outputs.items() if "attention" in name}
    for chain, layers in record_maps(model, inputs).items():
        name = model.attention_map_names.get(chain, "attention_maps")
        assert [layer.number for layer in layers] == list(range(1, len(layers) + 1))
        for previous, layer in zip([None, *layers], layers, strict=False):
            evolved, attention = left[name].pop(0)[0], left[name.replace("_maps", "s")].pop(0)[0]
            assert_close(layer.evolved, evolved)
            assert_close(layer.attention, attention)
            parts = (layer.from_scores, layer.from_previous, layer.from_convolution)
            assert_close(sum(parts), evolved, atol=1e-5, rtol=0)
            if layer.number == 1:
                assert layer.previous is None and layer.convolved is None
                assert_close(layer.scores, evolved)
            else:
                assert_close(layer.previous, previous.evolved)
                assert all(part.abs().max() > 0.02 * evolved.abs().max() for part in parts)
    assert not any(left.values())


@every_family
def test_parts_add_up_to_the_map(case):
    assert_parts_add_up(case.model(), one_example(case))


def test_parts_of_an_ea_resnet_add_up_to_the_map():
    assert_parts_add_up(*resnet_case())


def test_scores_are_those_of_query_and_key(bert):
    model, tokenizer = bert
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    for index, layer in enumerate(record_maps(model, inputs)["self"]):
        attention = model.encoder.layer[index].attention.self
        query, key = (
            linear(states[index])[0].unflatten(-1, (4, 8)).transpose(0, 1)
            for linear in (attention.query, attention.key)
        )
        assert_close(layer.scores, (query @ key.mT * 8**-0.5).detach(), atol=1e-5, rtol=0)


def test_the_convolution_part_is_the_convolution_of_the_mixture(bert):
    model, tokenizer = bert
    for index, layer in enumerate(record_maps(model, tokenizer(SENTENCE, return_tensors="pt"))["self"]):
        evolution = model.encoder.layer[index].attention.self.evolution
        if index > 0:
            assert_close(layer.convolved, evolution.conv(layer.mixed).relu().detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weights", [(0.5, 0.0), (0.0, 0.5), (0.0, 0.0), (1.0, 1.0)], ids=str)
def test_parts_add_up_where_a_weight_is_0_or_1(weights):
    case = CASES[0]
    model = case.model(ea_residual_weight=weights[0], ea_conv_weight=weights[1])
    for layer in record_maps(model, one_example(case))["self"]:
        assert (layer.residual_weight, layer.conv_weight) == (weights if layer.number > 1 else (0, 0))
        total = layer.from_scores + layer.from_previous + layer.from_convolution
        assert_close(total, layer.evolved, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", [case for case in BASE_CASES if case.vanilla_class is not None], ids=str)
def test_vanilla_maps_are_those_of_the_vanilla_model(case):
    model, vanilla = case.model(), case.vanilla_model()
    vanilla.load_state_dict(model.state_dict(), strict=False)
    inputs = one_example(case)
    with torch.no_grad():
        outputs = vanilla(**inputs, output_attentions=True)
    names = {"self": "attentions", "cross": "cross_attentions"}
    before = model(**inputs)[0]
    for chain, layers in record_maps(model, inputs, vanilla=True).items():
        attentions = outputs[names.get(chain, f"{chain}_attentions")]
        for layer, attention in zip(layers, attentions, strict=True):
            assert_close(layer.vanilla.attention, attention[0], atol=1e-5, rtol=0)
            assert_close(layer.vanilla.evolved, layer.vanilla.scores)
            assert layer.number == 1 or (layer.vanilla.attention - layer.attention).abs().max() > 1e-2
    assert torch.equal(model(**inputs)[0], before)  # its weights are back


def test_recording_leaves_no_trace():
    case = CASES[0]
    model, inputs = case.model().train(), one_example(case)
    before = model(**inputs)[0]
    record_maps(model, inputs, vanilla=True)
    assert model.training and torch.equal(model(**inputs)[0], before)
    # Transformers leaves hooks of its own where it returns attentions.
    evolutions = [module for module in model.modules() if isinstance(module, ea_hf.AttentionEvolution)]
    assert not any(module._forward_hooks for evolution in evolutions for module in evolution.modules())


def test_layers_and_heads_are_chosen_by_number(t5):
    model, tokenizer = t5
    every = text_maps(model, tokenizer, SENTENCE, target=SECOND)
    chosen = text_maps(model, tokenizer, SENTENCE, target=SECOND, layers=[2, 3], heads=[2], vanilla=True)
    assert chosen.heads == [2] and every.heads == [1, 2] and chosen.has_vanilla and not every.has_vanilla
    # The encoder has three layers, the decoder two.
    for chain, other, numbers in zip(chosen.chains, every.chains, ([2, 3], [2], [2]), strict=True):
        assert [layer.number for layer in chain.layers] == numbers
        for layer in chain.layers:
            assert torch.equal(layer.evolved, other.layers[layer.number - 1].evolved[1:])
    only_encoder = text_maps(model, tokenizer, SENTENCE, target=SECOND, layers=[3])
    assert [chain.name for chain in only_encoder.chains] == ["encoder"]


def test_what_cannot_be_recorded_is_an_error(bert, t5, checkpoints):
    model, tokenizer = bert
    for options, message in (
        ({"layers": [4]}, "There is no layer 4; choose from 1 to 3"),
        ({"layers": [0]}, "There is no layer 0"),
        ({"layers": []}, "No layer is chosen"),
        ({"heads": [1, 5]}, "There is no head 5; choose from 1 to 4"),
        ({"text_pair": " "}, "`text_pair` is empty"),
        ({"target": SECOND}, "EABertModel has no decoder"),
        ({"text": "film " * 200}, "The text has 202 tokens, but the model takes 128 at most"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            text_maps(model, tokenizer, **{"text": SENTENCE, **options})
    with pytest.raises(ValueError, match="BertModel has no attention maps that evolve"):
        text_maps(BertModel.from_pretrained(checkpoints["vanilla"]), tokenizer, SENTENCE)
    with pytest.raises(ValueError, match="`input_ids` has 2 examples"):
        record_maps(model, tokenizer([SENTENCE, SECOND], padding=True, return_tensors="pt"))
    base = ea_hf.EAT5Model.from_pretrained(checkpoints["t5"])
    with pytest.raises(ValueError, match="EAT5Model cannot write a text by itself; give it a target"):
        text_maps(base, t5[1], SENTENCE)
    broken = AutoModel.from_pretrained(checkpoints["bert"])
    broken.encoder.layer[1].attention.self.query.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="map of layer 2 has infinite or undefined values"):
        text_maps(broken, tokenizer, SENTENCE)


# What the axes say


def test_a_pair_of_sentences_knows_where_the_second_begins(bert):
    model, tokenizer = bert
    (chain,) = text_maps(model, tokenizer, SENTENCE, SECOND).chains
    assert chain.queries == chain.keys == tokenizer.tokenize(SENTENCE, SECOND, add_special_tokens=True)
    assert chain.queries[chain.second_query] == "avoid" and chain.second_key == chain.second_query
    assert [chain.keys[place] for place in chain.special_keys] == ["[CLS]", "[SEP]", "[SEP]"]
    assert text_maps(model, tokenizer, SENTENCE).chains[0].second_query is None


def test_a_translation_has_three_chains(t5):
    model, tokenizer = t5
    maps = text_maps(model, tokenizer, "Open the file.", target="Das Menü.")
    encoder, decoder, cross = maps.chains
    source = tokenizer.convert_ids_to_tokens(tokenizer("Open the file.").input_ids)
    read = ["<pad>", *tokenizer.convert_ids_to_tokens(tokenizer("Das Menü.").input_ids)][:-1]
    assert (encoder.queries, encoder.keys) == (source, source)
    assert (decoder.queries, decoder.keys) == (read, read)
    assert (cross.queries, cross.keys) == (read, source)
    for chain in maps.chains:
        for layer in chain.layers:
            assert layer.evolved.shape == (2, len(chain.queries), len(chain.keys))
    # Nobody sees the future, in this chain only.
    assert torch.equal(decoder.layers[0].blocked, torch.ones(len(read), len(read)).triu(1).bool())
    assert all(chain.layers[0].blocked is None for chain in (encoder, cross))


def test_what_a_model_writes_by_itself_is_its_target(t5):
    model, tokenizer = t5
    maps = text_maps(model, tokenizer, "Open the file.")
    inputs = tokenizer("Open the file.", return_tensors="pt")
    written = model.generate(**inputs)[0]
    assert maps.texts["written by the model"] == tokenizer.decode(written, skip_special_tokens=True)
    assert maps.chains[1].queries == [readable(t) for t in tokenizer.convert_ids_to_tokens(written[:-1])]


def test_an_image_is_cut_into_its_patches(checkpoints):
    model, processor = images(checkpoints, "vit")
    maps = image_maps(model, processor, Image.fromarray(digits(2)[3]))
    (chain,) = maps.chains
    assert chain.grid == (4, 4) and len(chain.queries) == 17
    assert chain.queries[:2] == ["class token", "row 1, column 1"] and chain.queries[-1] == "row 4, column 4"
    assert np.array_equal(maps.image[..., 0], digits(2)[3])  # the model sees what was given, but for its scale


def test_an_ea_resnet_has_a_grid_for_each_chain(checkpoints):
    model, processor = images(checkpoints, "resnet")
    maps = image_maps(model, processor, Image.fromarray(digits(2)[3]))
    assert [chain.grid for chain in maps.chains] == [(8, 8), (4, 4)]
    for chain in maps.chains:
        rows, columns = chain.grid
        assert (
            chain.layers[0].evolved.shape == (2, rows * columns, rows * columns) and len(chain.keys) == rows * columns
        )


def test_tokens_without_a_shape_are_written_out():
    assert readable("film") == "film" and readable("") == "(empty)" and readable(" a ") == "␣a␣"
    assert readable("\n\x07") == r"\n\x07" and readable("\u2028") == r"\u2028"
    assert readable("שלום") == "שלום" and readable("👩‍👧") == "👩‍👧"


def test_formulas_name_weights_and_layers(bert):
    first, second, _ = record_maps(bert[0], bert[1](SENTENCE, return_tensors="pt"))["self"]
    assert [formula(part, second, "ReLU") for part in PARTS] == [
        "0.42 × S₂",
        "0.18 × A₁",
        "0.4 × ReLU(Conv2d(M₂))",
        "A₂",
        "P₂ = softmax(A₂)",
    ]
    assert formula(SCORES, first, "ReLU") == "S₁" and formula(PREVIOUS, first, "ReLU") == "nothing: the first layer"
    assert formula(CONVOLUTION, replace(second, conv_weight=0.0), "ReLU") == "nothing: weight 0"


# Figures


def panels(figure):
    return [axis for axis in figure.axes if axis.images]


def test_a_figure_shows_each_part_of_each_layer(bert):
    pytest.importorskip("matplotlib")
    maps = text_maps(*bert, SENTENCE, layers=[2, 3], heads=[3, 4], vanilla=True)
    figure = draw_layers(maps, head=4)
    drawn = panels(figure)
    assert len(drawn) == 2 * 7
    for row, layer in enumerate(maps.chains[0].layers):
        expected = [
            layer.from_scores,
            layer.from_previous,
            layer.from_convolution,
            layer.evolved,
            layer.vanilla.evolved,
        ]
        expected += [layer.attention, layer.vanilla.attention]
        for axis, values in zip(drawn[7 * row : 7 * row + 7], expected, strict=True):
            assert_close(torch.tensor(axis.images[0].get_array().data), values[1])
            assert [label.get_text() for label in axis.get_xticklabels()] == maps.chains[0].keys
            assert axis.get_xlabel() == "key" and axis.get_ylabel().endswith("query")
        assert f"layer {layer.number}" in drawn[7 * row].get_ylabel()
    bars = [axis.get_ylabel() for axis in figure.axes if axis not in drawn]
    assert bars == ["logit", "probability"] * 2
    assert "head 4" in figure.get_suptitle() and "no unit" in figure.get_suptitle()


def test_a_figure_of_an_image_shows_one_query_over_its_patches(checkpoints):
    pytest.importorskip("matplotlib")
    maps = image_maps(*images(checkpoints, "vit"), Image.fromarray(digits(2)[3]))
    image, *parts = panels(draw_layers(maps, query=6))[:6]
    assert_close(
        torch.tensor(parts[3].images[0].get_array().data), maps.chains[0].layers[0].evolved[0][6, 1:].view(4, 4)
    )
    (frame,) = image.patches  # around the second patch of the second row, two by two pixels
    assert frame.get_xy() == (1.5, 1.5) and frame.get_width() == frame.get_height() == 2
    with pytest.raises(ValueError, match="There is no query 17"):
        draw_layers(maps, query=17)


def test_masked_cells_stay_empty(t5):
    pytest.importorskip("matplotlib")
    maps = text_maps(*t5, SENTENCE, target=SENTENCE)
    for axis in panels(draw_layers(maps, "decoder")):
        values = axis.images[0].get_array()
        assert np.array_equal(np.ma.getmaskarray(values), np.triu(np.ones(values.shape, bool), 1))


def test_a_figure_takes_any_token(bert, tmp_path):
    pytest.importorskip("matplotlib")
    maps = text_maps(*bert, SENTENCE, layers=[1], heads=[1])
    odd = ["$x_$", "\\frac{$", "שלום", "😀", "a" * 99, "%", "{}", "#", "~", "^", "&"][: len(maps.chains[0].keys)]
    chain = replace(maps.chains[0], keys=odd, queries=odd)
    draw_layers(replace(maps, chains=[chain])).savefig(tmp_path / "odd.png")
    with pytest.raises(ValueError, match="There is no chain 'cross'; choose one of self"):
        draw_layers(maps, "cross")
    with pytest.raises(ValueError, match="Head 2 is not among those that were recorded, 1"):
        draw_layers(maps, head=2)


def test_many_tokens_are_named_one_in_so_many(bert):
    pytest.importorskip("matplotlib")
    maps = text_maps(*bert, "film " * 110, layers=[1], heads=[1])
    axis = panels(draw_layers(maps))[0]
    assert axis.get_xlabel() == "key (one in 4 named)" and len(axis.get_xticklabels()) == 28
    inches = axis.figure.get_size_inches()[0] / 5
    assert inches * 72 / 28 > 7  # points between the names, which are 7 points high


def test_only_figures_need_matplotlib(checkpoints, tmp_path):
    code = f"""
import sys
sys.modules["matplotlib"] = None  # importing it raises ImportError
from ea_hf.visualization.__main__ import main
main([{checkpoints["bert"]!r}, "A film.", "--output", {str(tmp_path / "maps.html")!r}])
assert {str(tmp_path / "maps.html")!r}
main([{checkpoints["bert"]!r}, "A film.", "--heads", "1", "--png", {str(tmp_path / "maps.png")!r}])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and (tmp_path / "maps.html").stat().st_size > 10_000
    assert 'Figures need matplotlib: pip install "ea_hf[visualization]"' in run.stderr
    assert "Traceback" not in run.stderr


# The page's data


def test_a_page_that_would_be_too_large_says_what_fits(bert, tmp_path, monkeypatch):
    maps = text_maps(*bert, SENTENCE)
    page.write_page(maps, tmp_path / "maps.html")
    sizes = [
        sum(
            len(packing.as_text(content).encode())
            for _, content in packing.pack_head(maps.chains[0], head, packing.FINE)
        )
        for head in range(4)
    ]
    monkeypatch.setattr(page, "MAX_BYTES", sum(sizes[:2]) + sizes[2] / 2)
    with pytest.raises(ValueError, match=r"Choose at most 2 of the 4 heads"):
        page.write_page(maps, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()
    page.write_page(text_maps(*bert, SENTENCE, heads=[1, 2]), tmp_path / "two.html")
    monkeypatch.setattr(page, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"Choose fewer layers, or a shorter text"):
        page.write_page(maps, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_a_checkpoint_is_named_without_where_it_lies(bert, tmp_path):
    assert text_maps(*bert, SENTENCE).model_name == "ea_bert"
    assert checkpoint_name("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert checkpoint_name(str(tmp_path / "made" / "here")) == "here" and checkpoint_name("") == ""


def test_a_prediction_is_that_of_the_head(checkpoints, bert):
    model = ea_hf.EABertForSequenceClassification.from_pretrained(checkpoints["bert"])
    model.config.id2label = {0: "dull", 1: "moving"}
    maps = text_maps(model.train(), bert[1], SENTENCE)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(**bert[1](SENTENCE, return_tensors="pt")).logits[0].softmax(-1).tolist()
    assert maps.prediction == pytest.approx(dict(zip(["dull", "moving"], expected, strict=True)))
    assert text_maps(*bert, SENTENCE).prediction is None


# The command line


def run(capsys, *words):
    main([*map(str, words)])
    return capsys.readouterr()


@pytest.mark.slow
def test_the_command_writes_page_and_pictures(checkpoints, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output, png = tmp_path / "new" / "maps.html", tmp_path / "maps.png"
    options = ("--layers", 2, "--heads", 1, "--vanilla", "--output", output, "--png", png)
    printed = run(capsys, checkpoints["t5"], SENTENCE, "--target", SECOND, *options).out
    names = ["maps-encoder.png", "maps-decoder.png", "maps-cross.png"]
    assert output.exists() and sorted(p.name for p in tmp_path.glob("*.png")) == sorted(names)
    assert str(output) in printed and all(name in printed for name in names)
    run(capsys, checkpoints["bert"], SENTENCE, SECOND, "--heads", 2, 3, "--png", png)
    assert (tmp_path / "maps-head2.png").exists() and (tmp_path / "maps-head3.png").exists()
    run(capsys, checkpoints["resnet"], "--image", checkpoints["image"], "--output", output)
    run(capsys, checkpoints["vit"], "--image", checkpoints["image"], "--heads", 1, "--png", png.with_suffix(".svg"))
    assert "<svg" in png.with_suffix(".svg").read_text()


def test_the_command_takes_the_heads_that_fit_and_says_so(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "MAX_BYTES", 3_000)
    output = tmp_path / "maps.html"
    printed = run(capsys, checkpoints["bert"], SENTENCE, "--output", output).err
    assert "The page has room for 2 of 4 heads; choose others with --heads" in printed and output.exists()
    with pytest.raises(SystemExit, match="Choose at most 2 of the 3 heads"):
        main([checkpoints["bert"], SENTENCE, "--heads", "1", "2", "3", "--output", str(output)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "A film."], "nowhere holds no checkpoint that can be loaded: give a directory"),
        (["{damaged}", "A film."], "damaged holds no checkpoint that can be loaded: give a directory"),
        (["{wordless}", "A film."], "wordless has no tokenizer that can be loaded; save one there"),
        (["{vanilla}", "A film."], "vanilla: BertModel has no attention maps that evolve"),
        (["{bert}", "film " * 200], "The text has 202 tokens, but the model takes 128 at most; shorten it"),
        (["{bert}", "A film.", "--layers", "4"], "There is no layer 4; choose from 1 to 3"),
        (["{bert}", "A film.", "--heads", "0"], "There is no head 0; choose from 1 to 4"),
        (["{bert}", "A film.", "--target", "Avoid."], "has no decoder; leave the target out"),
        (["{bert}", "--image", "{image}"], "is a model of text: give a sentence instead of --image"),
        (["{vit}", "A film."], "is a model of images: give one with --image"),
        (["{vit}", "--image", "missing.png"], "missing.png cannot be read as an image"),
        (["{vit}", "--image", __file__], "cannot be read as an image"),
        (["{bert}", "  "], "`text` is empty; write a sentence"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_the_command_says_what_to_do(checkpoints, words, message, tmp_path):
    output = tmp_path / "maps.html"
    with pytest.raises(SystemExit, match=re.escape(message)):
        main([*(word.format(**checkpoints) for word in words), "--output", str(output)])
    assert not output.exists()


def test_what_cannot_be_written_is_said(checkpoints, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"This cannot be written: .*file"):
        main([checkpoints["bert"], "A film.", "--output", str(tmp_path / "file" / "maps.html")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "A film."], "say where to write: --output maps.html"),
        (["x", "--output", "maps.html"], "give a sentence after the checkpoint, or --image"),
        (["x", "A film.", "--image", "x.png", "--output", "maps.html"], "not both"),
        (["x", "--image", "x.png", "--target", "y", "--output", "maps.html"], "--target is for models of text"),
        (["x", "A film.", "--output", "maps.png"], "maps.png should end with .html"),
        (["x", "A film.", "--png", "maps"], "maps should end with .png or .svg or .pdf"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_arguments_that_do_not_go_together(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2 and message in capsys.readouterr().err
