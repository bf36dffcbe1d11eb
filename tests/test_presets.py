# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Each preset against a plain transcription of its paper, and what is refused."""

import argparse
import copy
import functools
import itertools
import json
import math

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AttentionInterface,
    AutoConfig,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
)

import ea_hf
from ea_hf import AttentionEvolution
from ea_hf.training.script import add_evolution_arguments, evolution_overrides


TINY_BERT = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TINY_LLAMA = {**TINY_BERT, "num_hidden_layers": 4, "num_key_value_heads": 2}
TOKENS = torch.arange(1, 27).view(2, 13)


def tiny_llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY_LLAMA, attn_implementation="eager")).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def evolved_llama(**arguments):
    """With new weights so large that they matter."""
    model = ea_hf.evolve(tiny_llama(), **arguments)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AttentionEvolution):
                for parameter in module.parameters():
                    parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


# Transcriptions: from the scores of a layer to its attention weights. `causal` is True where a query sees a key.


def evolving_paper(scores, causal, layer, previous):
    """Wang et al. 2021, equations 1 and 2, in one direction: zeros for the future, and no row below."""
    if layer.residual_gate is None and previous is None:
        return scores.masked_fill(~causal, -math.inf).softmax(-1), scores
    residual, conv = 0.1, 0.1
    mixed = residual * previous + (1 - residual) * scores
    image = torch.nn.functional.pad(mixed * causal, (1, 1, 2, 0))
    convolved = torch.nn.functional.conv2d(image, layer.conv.weight, layer.conv.bias).clamp(min=0)
    evolved = conv * convolved + (1 - conv) * mixed
    return evolved.masked_fill(~causal, -math.inf).softmax(-1), evolved


def learned_form(scores, causal, layer, previous):
    """The same with a weight per head, and nothing taken away from what is there."""
    if previous is None:
        return scores.masked_fill(~causal, -math.inf).softmax(-1), scores
    residual, conv = (gate[:, None, None] for gate in (layer.residual_gate, layer.conv_gate))
    mixed = scores + residual * previous
    image = torch.nn.functional.pad(mixed * causal, (1, 1, 2, 0))
    evolved = mixed + conv * torch.nn.functional.conv2d(image, layer.conv.weight, layer.conv.bias).clamp(min=0)
    return evolved.masked_fill(~causal, -math.inf).softmax(-1), evolved


def realformer_of_x_transformers(scores, causal, layer, previous):
    """`prev_attn` is added to the scores, then the mask is filled in, and the masked scores go on."""
    if previous is not None:
        scores = scores + previous
    scores = scores.masked_fill(~causal, -torch.finfo(scores.dtype).max)
    return scores.softmax(-1), scores


def talking_heads_paper(scores, causal, layer, previous):
    """Shazeer et al. 2020: J = einsum(Q, K), L = J P_l, W = softmax(L), U = W P_w."""
    logits = torch.einsum("bhnm,gh->bgnm", scores, layer.conv.weight[:, :, 0, 0])
    weights = logits.masked_fill(~causal, -math.inf).softmax(-1)
    return torch.einsum("bhnm,gh->bgnm", weights, layer.post_mixing.weight), None


def multi_token_paper(scores, causal, layer, previous, rows=6):
    """Golovneva et al. 2025, equation 4, written out as its sum: a_ij = sum theta[i', j'] 1[i-i' >= j-j'] s[i-i', j-j']."""
    if layer.layer_index == 2:  # as in the released configurations: 2, 6, 10, ...
        kernel = layer.conv.weight
        assert kernel.shape == (4, 1, rows, 11)
        heads, length = scores.shape[1], scores.shape[-1]
        convolved = torch.zeros_like(scores)
        for i in range(length):
            for j in range(length):
                for above in range(rows):
                    for left in range(-5, 6):
                        row, column = i - above, j - left
                        if 0 <= column <= row:
                            for head in range(heads):
                                weight = kernel[head, 0, rows - 1 - above, 5 - left]
                                convolved[:, head, i, j] += weight * scores[:, head, row, column]
        scores = convolved
    weights = scores.masked_fill(~causal, -math.inf).softmax(-1)
    return torch.einsum("bhnm,gh->bgnm", weights, layer.post_mixing.weight), None  # head convolution, all heads


TRANSCRIPTIONS = {
    "evolving": evolving_paper,
    "learned": learned_form,
    "realformer": realformer_of_x_transformers,
    "talking_heads": talking_heads_paper,
    "multi_token": multi_token_paper,
    "multi_token_bidirectional": functools.partial(multi_token_paper, rows=5),
}


def transcribed_logits(model, transcription, tokens):
    """What the vanilla model gives with the transcription as its attention, and the new weights of the evolved one."""
    layers = [module for module in model.modules() if isinstance(module, AttentionEvolution)]
    carried = {}

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        key, value = (states.repeat_interleave(2, dim=1) for states in (key, value))
        causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        scores = query @ key.transpose(-2, -1) * scaling
        index = module.layer_idx
        weights, carried[index] = transcription(scores, causal, layers[index], carried.get(index - 1))
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("transcription", attention)
    vanilla = tiny_llama()
    vanilla.set_attn_implementation("transcription")
    return vanilla(tokens, use_cache=False).logits


@pytest.mark.parametrize("name", ea_hf.PRESETS)
def test_a_preset_equals_a_transcription_of_its_paper(name):
    model = evolved_llama(preset=name)
    tokens = TOKENS[:, :9]
    with torch.no_grad():
        actual = model(tokens, use_cache=False).logits
        assert_close(actual, transcribed_logits(model, TRANSCRIPTIONS[name], tokens), rtol=0, atol=1e-10)
        assert (actual - tiny_llama()(tokens, use_cache=False).logits).abs().max() > 0.1


def test_realformer_is_the_residual_attention_of_x_transformers_itself():
    """Needs x-transformers, which the extra "dev" installs."""
    x_transformers = pytest.importorskip("x_transformers")
    torch.manual_seed(0)
    sizes = {**TINY_BERT, "intermediate_size": 48, "layer_norm_eps": 1e-5}
    model = ea_hf.EABertModel(ea_hf.EABertConfig(**sizes, **ea_hf.preset_fields("realformer"))).double().eval()
    # Norms come after each block; the projections of attention and the norms of x-transformers have no biases, and it adds 1
    # to the weights of norms.
    other = x_transformers.Encoder(
        dim=24, depth=3, heads=4, attn_dim_head=6, residual_attn=True, pre_norm=False, ff_mult=2
    ).double()
    weights = {}
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            is_feed_forward = "dense" in name and "attention" not in name
            if name.endswith("bias") and not is_feed_forward:
                parameter.zero_()
            elif "LayerNorm" not in name:
                parameter.normal_(std=0.3)
    for index, layer in enumerate(model.encoder.layer):
        attention, block = layer.attention, f"layers.{2 * index}"
        for name in ("query", "key", "value"):
            weights[f"{block}.1.to_{name[0]}.weight"] = getattr(attention.self, name).weight
        weights[f"{block}.1.to_out.weight"] = attention.output.dense.weight
        weights[f"{block}.0.2.gamma"] = attention.output.LayerNorm.weight - 1
        block = f"layers.{2 * index + 1}"
        for number, dense in (("0.0", layer.intermediate.dense), ("2", layer.output.dense)):
            weights |= {f"{block}.1.ff.{number}.{kind}": getattr(dense, kind) for kind in ("weight", "bias")}
        weights[f"{block}.0.2.gamma"] = layer.output.LayerNorm.weight - 1
    other.load_state_dict(weights)
    # x-transformers takes its softmax in single precision.
    mask = torch.arange(13) < torch.tensor([[13], [8]])
    with torch.no_grad():
        states = model.embeddings(TOKENS)
        expected = other.eval()(states, mask=mask)[mask]
        assert_close(model(TOKENS, attention_mask=mask.long())[0][mask], expected, rtol=0, atol=1e-6)
        other.residual_attn = False
        assert (other(states, mask=mask)[mask] - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", ea_hf.PRESETS)
def test_a_preset_decodes_with_a_cache_as_without_and_sees_no_later_token(name):
    model = evolved_llama(preset=name)
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
        changed = torch.cat([TOKENS[:, :9], TOKENS[:, 9:] + 20], dim=1)
        assert_close(model(changed, use_cache=False).logits[:, :9], expected[:, :9], rtol=0, atol=1e-10)
        outputs = model(TOKENS[:, :4], use_cache=True)
        logits = [outputs.logits]
        for start, end in ((4, 5), (5, 6), (6, 9), (9, 13)):
            outputs = model(TOKENS[:, start:end], past_key_values=outputs.past_key_values, use_cache=True)
            logits.append(outputs.logits)
    assert_close(torch.cat(logits, dim=1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ea_hf.PRESETS)
def test_left_padding_changes_nothing_with_a_preset(name):
    model = evolved_llama(preset=name)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        together = model(TOKENS, attention_mask=mask, position_ids=mask.cumsum(1) - 1, use_cache=False).logits
        alone = model(TOKENS[1:, 4:], use_cache=False).logits
    assert_close(together[1:, 4:], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["learned", "talking_heads", "multi_token"])
def test_what_starts_as_the_identity_is_vanilla_at_first(name):
    model, vanilla = ea_hf.evolve(tiny_llama(), preset=name), tiny_llama()
    with torch.no_grad():
        # Llama's eager attention takes the softmax in single precision.
        assert_close(model(TOKENS).logits, vanilla(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["talking_heads", "learned", "realformer", "evolving"])
def test_a_preset_is_for_a_vanilla_checkpoint_too(name, tmp_path):
    torch.manual_seed(0)
    vanilla = BertModel(BertConfig(**TINY_BERT, attn_implementation="eager")).eval()
    vanilla.save_pretrained(tmp_path)
    model = ea_hf.EABertModel.from_pretrained(tmp_path, ea_preset=name).eval()
    for field, value in ea_hf.PRESETS[name].items():
        assert getattr(model.config, field) == value
    assert ea_hf.evolving_config_from_pretrained(tmp_path, ea_preset=name).ea_mixing == model.config.ea_mixing
    same = ea_hf.EABertConfig(**TINY_BERT, **ea_hf.preset_fields(name))
    assert same.ea_post_mixing == model.config.ea_post_mixing
    model.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert all(getattr(again, field) == value for field, value in ea_hf.PRESETS[name].items())
    if name in ("talking_heads", "learned"):
        with torch.no_grad():
            assert_close(model(TOKENS)[0], vanilla(TOKENS)[0], rtol=0, atol=1e-6)


def test_presets_tell_their_source():
    assert all("https://arxiv.org/abs/" in preset.source for preset in ea_hf.PRESETS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "realformers"}, "'realformers'; choose one of evolving, learned, realformer"),
        (
            {"preset": "realformer", "mixing": "convex"},
            "`ea_mixing` is 'convex', but the preset 'realformer' says 'additive'",
        ),
        (
            {"preset": "multi_token", "kernel_size": 3},
            r"`ea_kernel_size` is 3, but the preset 'multi_token' says \(6, 11\)",
        ),
        ({"preset": "talking_heads", "residual_weight": 0.1}, "`ea_residual_weight` is 0.1, but"),
        ({"kernel_size": (3, 4)}, "with 4 columns; choose an odd number"),
        ({"kernel_size": 4}, "`ea_kernel_size` is 4"),
        ({"kernel_size": (3, 3, 3)}, r"`ea_kernel_size` is \(3, 3, 3\)"),
        ({"kernel_size": (0, 3)}, r"`ea_kernel_size` is \(0, 3\)"),
        ({"conv_groups": 3}, "`ea_conv_groups` is 3; choose 1, or 4, the number of heads"),
        ({"conv_groups": 2}, "`ea_conv_groups` is 2"),
        ({"conv_groups": "head"}, "`ea_conv_groups` is 'head'"),
        ({"conv_every": 0}, "`ea_conv_every` is 0"),
        ({"conv_every": 9}, "`ea_conv_every` is 9, but a chain has 4 layers.*at most 7"),
        ({"conv_init": "zero"}, "`ea_conv_init` is 'zero'"),
        ({"post_mixing": "talking"}, "`ea_post_mixing` is 'talking'; choose one of none, heads"),
        (
            {"post_mixing": "heads", "head_kernel_size": 3},
            "`ea_head_kernel_size` is 3; choose a number that divides the 4",
        ),
        ({"head_kernel_size": 2}, "`ea_head_kernel_size` is 2, but `ea_post_mixing` is 'none'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(arguments, message):
    model = tiny_llama()
    with pytest.raises(ValueError, match=message):
        ea_hf.evolve(model, **arguments)
    assert type(model) is LlamaForCausalLM  # as it was


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (ea_hf.EABertConfig, {"ea_kernel_size": (4, 3)}),
        (ea_hf.EARobertaConfig, {"ea_kernel_size": [4, 3]}),
        (ea_hf.EAViTConfig, {"ea_kernel_size": (2, 3)}),
        (ea_hf.EAResNetConfig, {"ea_kernel_size": (2, 3)}),
        (ea_hf.EAT5Config, {"ea_kernel_size": (2, 3)}),
        (ea_hf.EADCTransformerConfig, {"ea_kernel_size": (2, 3)}),
    ],
    ids=str,
)
def test_an_even_number_of_rows_is_for_causal_chains_alone(config_class, fields):
    with pytest.raises(ValueError, match="only where every chain that evolves is causal"):
        config_class(**fields)
    causal = {ea_hf.EAT5Config: {"ea_encoder": False}, ea_hf.EADCTransformerConfig: {"causal_attention": True}}
    if config_class in causal:
        assert config_class(**fields, **causal[config_class]).ea_kernel_size == (2, 3)


def test_even_rows_in_a_family_s_decoder_run_with_a_cache_as_without():
    config = ea_hf.EAT5Config(
        **{
            "d_model": 24,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 2,
            "num_heads": 3,
            "vocab_size": 67,
            "dropout_rate": 0.0,
        },
        **{"ea_encoder": False, "ea_kernel_size": (4, 3), "ea_conv_groups": 3, "ea_post_mixing": "heads"},
        **{"ea_residual_weight": 0.5, "ea_conv_weight": 0.5, "decoder_start_token_id": 0},
    )
    torch.manual_seed(0)
    model = ea_hf.EAT5ForConditionalGeneration(config).double().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if ".evolution." in name else 0.2)
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True}
    with_cache, without = (model.generate(TOKENS, use_cache=use, **options) for use in (True, False))
    for one, other in zip(with_cache.logits, without.logits, strict=True):
        assert_close(one, other, rtol=0, atol=1e-8)


def test_a_bidirectional_model_is_refused_the_causal_preset():
    with pytest.raises(ValueError, match="with 6 rows; only where every chain"):
        ea_hf.EABertConfig(**ea_hf.PRESETS["multi_token"])
    model = BertModel(BertConfig(**TINY_BERT))
    with pytest.raises(ValueError, match="with 6 rows; only where every chain"):
        ea_hf.evolve(model, preset="multi_token")


def test_multi_token_attention_of_an_encoder_sees_two_rows_above_and_below():
    fields = ea_hf.preset_fields("multi_token_bidirectional")
    layer = ea_hf.EABertModel(ea_hf.EABertConfig(**TINY_BERT, **fields)).encoder.layer[2].attention.self.evolution
    layer = layer.double()
    kernel = torch.nn.init.normal_(layer.conv.weight)
    assert kernel.shape == (4, 1, 5, 11)
    scores = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    expected = torch.zeros_like(scores) + layer.conv.bias[:, None, None]
    for i, j, k, m in itertools.product(range(7), range(7), range(5), range(11)):
        row, column = i + k - 2, j + m - 5
        if 0 <= row < 7 and 0 <= column < 7:
            expected[:, :, i, j] += kernel[:, 0, k, m] * scores[:, :, row, column]
    assert_close(layer(scores), expected, rtol=0, atol=1e-10)


def test_an_encoder_decoder_takes_multi_token_attention_by_one_name():
    config = ea_hf.EAT5Config.from_dict(
        {"d_model": 16, "num_heads": 4, "d_kv": 4, "num_layers": 3}, ea_preset="multi_token_bidirectional"
    )
    model = ea_hf.EAT5Model(config)
    kernels = [module.conv for module in model.modules() if getattr(module, "conv", None) is not None]
    assert [kernel.kernel_size for kernel in kernels] == 3 * [(5, 11)]  # encoder, decoder, cross-attention


def test_a_configuration_does_not_swallow_a_preset():
    with pytest.raises(ValueError, match=r"EABertConfig\(\*\*ea_hf.preset_fields\('learned'\)\)"):
        ea_hf.EABertConfig(ea_preset="learned")


def test_contradictions_are_refused_where_a_checkpoint_is_loaded(tmp_path):
    BertModel(BertConfig(**TINY_BERT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`ea_conv_weight` is 0\.5, but the preset .realformer. says 0\.0"):
        ea_hf.EABertModel.from_pretrained(tmp_path, ea_preset="realformer", ea_conv_weight=0.5)


def test_a_configuration_s_file_says_what_it_said_before(tmp_path):
    ea_hf.EABertConfig(**TINY_BERT).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {name for name in saved if name.startswith("ea_")} == {
        *(
            "ea_residual_weight",
            "ea_conv_weight",
            "ea_kernel_size",
            "ea_activation",
            "ea_memory_efficient",
            "ea_mixing",
        )
    }


def test_a_list_in_a_configuration_s_file_becomes_a_tuple(tmp_path):
    config = ea_hf.EAViTConfig(ea_kernel_size=[3, 5], ea_conv_groups=12)
    assert config.ea_kernel_size == (3, 5)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ea_kernel_size"] == [3, 5]
    loaded = ea_hf.EAViTConfig.from_pretrained(tmp_path)
    assert (loaded.ea_kernel_size, loaded.ea_conv_groups) == ((3, 5), 12)
    assert loaded.num_attention_heads == ViTConfig().num_attention_heads


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_evolution_arguments(parser.add_argument_group("evolution"))
    return evolution_overrides(parser.parse_args(arguments))


def test_scripts_take_presets_and_the_other_forms(capsys):
    assert parse() == {}
    assert parse("--ea_kernel_size", "5") == {"ea_kernel_size": 5}
    assert parse("--ea_kernel_size", "3", "5", "--ea_conv_groups", "heads") == {
        **{"ea_kernel_size": (3, 5), "ea_conv_groups": "heads"}
    }
    assert parse("--ea_conv_groups", "12") == {"ea_conv_groups": 12}
    assert parse("--ea_preset", "talking_heads", "--ea_kernel_size", "1") == ea_hf.PRESETS["talking_heads"]
    assert parse("--ea_preset", "learned", "--ea_residual_weight", "0.2")["ea_residual_weight"] == 0.2
    with pytest.raises(ValueError, match="`ea_post_mixing` is 'heads', but the preset 'realformer' says 'none'"):
        parse("--ea_preset", "realformer", "--ea_post_mixing", "heads")
    with pytest.raises(SystemExit):
        parse("--ea_kernel_size", "1", "2", "3")
    assert "takes one number, or two for rows and columns, not 1 2 3" in capsys.readouterr().err


def test_pictures_without_the_mechanism_are_without_head_mixing():
    from ea_hf.map_recording import record_maps

    torch.manual_seed(0)
    model = ea_hf.EABertModel(ea_hf.EABertConfig(**TINY_BERT, **ea_hf.PRESETS["talking_heads"])).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    state = copy.deepcopy(model.state_dict())
    layer = record_maps(model, {"input_ids": TOKENS[:1]}, vanilla=True)["self"][1]
    assert_close(layer.from_scores + layer.from_previous + layer.from_convolution, layer.evolved)
    assert_close(layer.vanilla.attention, layer.vanilla.scores.softmax(-1))
    mixing = model.encoder.layer[1].attention.self.evolution.post_mixing.weight.detach()
    assert_close(layer.attention, torch.einsum("gh,hqk->gqk", mixing, layer.evolved.softmax(-1)))
    assert model.state_dict().keys() == state.keys()
