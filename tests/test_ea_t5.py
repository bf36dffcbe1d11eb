# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What an encoder-decoder model adds: causality, a cache that changes nothing, and a switch for each chain."""

import copy
import itertools
import json

import pytest
import torch
from models import CASES, TINY_T5, randomize
from torch.testing import assert_close
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    MT5Config,
    MT5ForConditionalGeneration,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from ea_hf import EAT5Config, EAT5ForConditionalGeneration, EAT5ForSequenceClassification
from ea_hf.models import evolution as evolution_module
from ea_hf.models.evolution_cache import CROPPABLE_ROWS, EvolvingDynamicLayer, EvolvingStaticLayer


CASE = next(case for case in CASES if case.model_class is EAT5ForConditionalGeneration)
every_kernel = pytest.mark.parametrize("kernel_size", [1, 3, 5], ids="kernel{}".format)


def make_model(**values):
    """Large weights, and no end token, so that every row decodes to the full length."""
    model = CASE.model(**{"num_decoder_layers": 5, **values})
    model.generation_config.eos_token_id = None
    return model


def make_source(rows=3, seed=0):
    """Padded on the right, on the left and not at all."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, 67, (3, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 4:] = 0
    attention_mask[2, :2] = 0
    return {"input_ids": input_ids[:rows], "attention_mask": attention_mask[:rows]}


def make_target(length, rows=3, padding=None):
    """The first row padded on the left, if asked for."""
    ids = torch.randint(2, 67, (rows, length), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    if padding == "left":
        mask[0, : length // 2] = 0
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


@torch.no_grad()
def full_logits(model, source, target):
    return model(**source, **target, use_cache=False).logits


@torch.no_grad()
def decode(model, source, target, steps, cache=None):
    """Logits of all target tokens, decoded in steps of so many tokens."""
    encoder_outputs = model.get_encoder()(**source)
    logits, start = [], 0
    for step in steps:
        outputs = model(
            encoder_outputs=encoder_outputs,
            attention_mask=source["attention_mask"],
            decoder_input_ids=target["decoder_input_ids"][:, start : start + step],
            decoder_attention_mask=target["decoder_attention_mask"][:, : start + step],
            past_key_values=cache,
            use_cache=True,
        )
        cache = outputs.past_key_values
        logits.append(outputs.logits)
        start += step
    return torch.cat(logits, dim=1), cache


def assert_generates_the_same(model, source, **options):
    """With and without cache: identical tokens, and logits but for rounding."""
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        keep = {} if use_cache else {"cache_implementation": None}
        results.append(
            model.generate(
                **source,
                **{**options, **keep},
                use_cache=use_cache,
                output_logits=True,
                return_dict_in_generate=True,
            )
        )
    cached, uncached = results
    assert cached.past_key_values is not None and uncached.past_key_values is None
    assert torch.equal(cached.sequences, uncached.sequences)
    for actual, expected in zip(cached.logits, uncached.logits, strict=True):
        assert_close(actual, expected, atol=1e-4, rtol=0)
    return cached


# Causality


@pytest.mark.parametrize("path", ["inference", "training", "memory-saving", "reference"])
@every_kernel
def test_future_target_tokens_change_no_earlier_logit(kernel_size, path):
    model = make_model(ea_kernel_size=kernel_size, ea_memory_efficient=path == "memory-saving")
    source, target = make_source(), make_target(10)
    options = {"output_attention_maps": True} if path == "reference" else {}
    with torch.set_grad_enabled(path in ("training", "memory-saving")):
        expected = model(**source, **target, **options).logits
        for position in (1, 4, 9):
            changed = copy.deepcopy(target)
            changed["decoder_input_ids"][:, position:] = changed["decoder_input_ids"][:, position:].roll(1, dims=0)
            logits = model(**source, **changed, **options).logits
            assert torch.equal(logits[:, :position], expected[:, :position])
            assert not torch.equal(logits[:, position:], expected[:, position:])


# Generation with and without cache


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        *({"num_beams": beams, "length_penalty": 2.0 - beams / 2} for beams in (2, 3, 4, 5)),
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "temperature": 2.0},
        {"do_sample": True, "num_return_sequences": 4, "top_k": 0},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "num_beams": 3},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
@pytest.mark.parametrize("kernel_size", [3, 5], ids="kernel{}".format)
@pytest.mark.slow_but("kernel3")
def test_cache_changes_no_generated_token(kernel_size, options):
    model = make_model(ea_kernel_size=kernel_size)
    assert_generates_the_same(model, make_source(), max_new_tokens=24, **options)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("new_tokens", [1, 2, 200])
@pytest.mark.slow_but("2-{")
def test_cache_changes_nothing_in_short_and_long_texts(new_tokens, options):
    model = make_model()
    result = assert_generates_the_same(model, make_source(), max_new_tokens=new_tokens, **options)
    assert result.sequences.shape[1] == 1 + new_tokens


@pytest.mark.parametrize("implementation", [None, "static"])
@pytest.mark.parametrize("padding", [None, "left"], ids="padding-{}".format)
@pytest.mark.parametrize("length", [1, 2, 6, 2 * CROPPABLE_ROWS])
@pytest.mark.slow_but("6-padding")
def test_cache_changes_nothing_after_a_prompt(length, padding, implementation):
    source = {**make_source(), **make_target(length, padding=padding)}
    assert_generates_the_same(make_model(), source, max_new_tokens=10, cache_implementation=implementation)


def test_left_padding_of_a_prompt_changes_nothing():
    model = make_model()
    source, target = make_source(), make_target(6, padding="left")
    target["decoder_input_ids"][:, 0] = target["decoder_input_ids"][0, :4] = model.config.decoder_start_token_id
    together = model.generate(
        **source, **target, max_new_tokens=12, output_logits=True, return_dict_in_generate=True
    ).logits
    alone = {name: values[:1] for name, values in source.items()}
    prompt = target["decoder_input_ids"][:1, 3:]
    expected = model.generate(
        **alone, decoder_input_ids=prompt, max_new_tokens=12, output_logits=True, return_dict_in_generate=True
    ).logits
    for actual, logits in zip(together, expected, strict=True):
        assert_close(actual[:1], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("assistant", ["evolving", "vanilla", "prompt-lookup"])
@pytest.mark.parametrize("kernel_size", [3, 5], ids="kernel{}".format)
@pytest.mark.slow_but("kernel3-vanilla")
def test_assisted_decoding_generates_the_same(kernel_size, assistant):
    model = make_model(ea_kernel_size=kernel_size)
    source = make_source(rows=1)
    options = {"prompt_lookup_num_tokens": 4}
    if assistant != "prompt-lookup":
        # A noisy copy, which is right now and then.
        other = make_model(ea_kernel_size=5)
        if assistant == "vanilla":
            other = T5ForConditionalGeneration(T5Config(**{**CASE.config_values, "num_decoder_layers": 4})).eval()
        state = {name: values for name, values in model.state_dict().items() if name in other.state_dict()}
        state = {name: values for name, values in state.items() if ".evolution." not in name}
        other.load_state_dict(state, strict=False)
        other.generation_config.eos_token_id = None
        other.generation_config.num_assistant_tokens = 7
        options = {"assistant_model": other}
    keep = {"max_new_tokens": 40, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(**source, use_cache=False, **keep)
    actual = model.generate(**source, **options, **keep)
    assert torch.equal(actual.sequences, expected.sequences)
    assert_close(torch.stack(actual.logits), torch.stack(expected.logits), atol=1e-4, rtol=0)


# Step by step


@pytest.mark.parametrize("padding", [None, "left"], ids="padding-{}".format)
@pytest.mark.parametrize("steps", [(1,) * 12, (12,), (5, 1, 1, 5), (1, 11), (3, 3, 3, 3)], ids=str)
@every_kernel
def test_decoding_in_steps_equals_the_full_pass(kernel_size, steps, padding):
    model = make_model(ea_kernel_size=kernel_size).double()
    source, target = make_source(), make_target(12, padding=padding)
    logits, _ = decode(model, source, target, steps)
    real = target["decoder_attention_mask"].bool()
    assert_close(logits[real], full_logits(model, source, target)[real], atol=1e-10, rtol=0)


def step_logits(model, encoder_outputs, source, target, position, cache):
    return model(
        encoder_outputs=encoder_outputs,
        attention_mask=source["attention_mask"],
        decoder_input_ids=target["decoder_input_ids"][:, position : position + 1],
        past_key_values=cache,
    ).logits


@pytest.mark.parametrize("recording", [False, True], ids=["", "recording"])
@pytest.mark.parametrize("removed", [0, 1, 5, 6])
def test_cropped_tokens_leave_no_trace(removed, recording):
    model = make_model(ea_kernel_size=5).double()
    source, target = make_source(), make_target(12)
    wrong = {**target, "decoder_input_ids": target["decoder_input_ids"].clone()}
    if removed:
        wrong["decoder_input_ids"][:, 8 - removed : 8] = 3
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    if recording:
        cache.activate_past_recording()
    _, cache = decode(model, source, wrong, (2, *((1,) * 6 if recording else (6,))), cache)
    cache.crop(-removed)
    expected = full_logits(model, source, target)
    encoder_outputs = model.get_encoder()(**source)
    for start in range(8 - removed, 12):
        with torch.no_grad():
            logits = step_logits(model, encoder_outputs, source, target, start, cache)
        assert_close(logits[:, 0], expected[:, start], atol=1e-10, rtol=0)


def test_cropping_more_than_the_cache_remembers_raises():
    model = make_model()
    source, target = make_source(), make_target(12)
    _, cache = decode(model, source, target, (1,) * 8)
    cache.crop(-5)
    with pytest.raises(RuntimeError, match=r"3 earlier tokens, but .*activate_past_recording\(\)"):
        model(**source, decoder_input_ids=target["decoder_input_ids"][:, :1], past_key_values=cache)


def test_rows_follow_repeat_select_and_reorder():
    model = make_model(ea_kernel_size=5).double()
    source, target = make_source(), make_target(9)
    _, cache = decode(model, source, target, (4, 1))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([5, 4, 3, 2, 1, 0]))
    cache.batch_select_indices(torch.tensor([0, 3]))  # now rows 2 and 1
    rows = [2, 1]
    encoder_outputs = model.get_encoder()(**{name: values[rows] for name, values in source.items()})
    with torch.no_grad():
        logits = model(
            encoder_outputs=encoder_outputs,
            attention_mask=source["attention_mask"][rows],
            decoder_input_ids=target["decoder_input_ids"][rows, 5:],
            past_key_values=cache,
        ).logits
    assert_close(logits, full_logits(model, source, target)[rows, 5:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_reset_cache_starts_anew(kind):
    model = make_model().double()
    source, target = make_source(), make_target(7)
    cache = CACHES[kind](model)
    first, cache = decode(model, source, target, (3, 1, 1, 1, 1), cache)
    cache.reset()
    other_source, other_target = make_source(seed=7), make_target(7, padding="left")
    logits, _ = decode(model, other_source, other_target, (2, 1, 1, 3), cache)
    expected = full_logits(model, other_source, other_target)
    real = other_target["decoder_attention_mask"].bool()
    assert_close(logits[real], expected[real], atol=1e-10, rtol=0)
    assert not torch.allclose(first, logits)


def test_a_copied_cache_goes_its_own_way():
    model = make_model().double()
    source, target = make_source(), make_target(9)
    _, cache = decode(model, source, target, (4,))
    other = copy.deepcopy(cache)
    expected = full_logits(model, source, target)
    for branch in (cache, other):
        with torch.no_grad():
            logits = model(
                **source, decoder_input_ids=target["decoder_input_ids"][:, 4:], past_key_values=branch
            ).logits
        assert_close(logits, expected[:, 4:], atol=1e-10, rtol=0)


def test_rows_stay_on_their_device_when_keys_are_offloaded():
    """Transformers sends keys and values away before the attention function needs the rows."""
    layer = EvolvingDynamicLayer()
    layer.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    layer.keep_rows("self", torch.zeros(1, 2, 3, 3, device="meta"), 2)  # stands for an accelerator
    layer.offload()
    layer.prefetch()
    assert layer.map_rows["self"].device.type == "meta"


# Caches that a caller hands in

CACHES = {
    "dynamic": lambda model: EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config)),
    "dynamic-without-config": lambda model: EncoderDecoderCache(DynamicCache(), DynamicCache()),
    "static": lambda model: EncoderDecoderCache(
        StaticCache(config=model.config, max_cache_len=16), StaticCache(config=model.config, max_cache_len=9)
    ),
}


@pytest.mark.parametrize("kind", CACHES)
def test_a_given_cache_gives_the_same(kind):
    model = make_model(ea_kernel_size=5).double()
    source, target = make_source(), make_target(12, padding="left")
    cache = CACHES[kind](model)
    logits, returned = decode(model, source, target, (4, 1, 1, 6), cache)
    assert returned is cache
    layer_class = EvolvingStaticLayer if kind == "static" else EvolvingDynamicLayer
    assert {type(layer) for layer in cache.self_attention_cache.layers} == {layer_class}
    real = target["decoder_attention_mask"].bool()
    assert_close(logits[real], full_logits(model, source, target)[real], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "dynamic-without-config"])
def test_generate_takes_a_given_cache(kind):
    model = make_model()
    source = make_source()
    expected = model.generate(**source, max_new_tokens=8)
    assert torch.equal(model.generate(**source, max_new_tokens=8, past_key_values=CACHES[kind](model)), expected)


def test_a_cache_that_another_model_filled_is_refused():
    model = make_model()
    vanilla = T5ForConditionalGeneration(T5Config(**{**CASE.config_values, "num_layers": 5, "num_decoder_layers": 5}))
    source, target = make_source(), make_target(4)
    cache = vanilla.eval()(**source, **target, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="4 tokens without the rows of their attention maps"):
        model(**source, decoder_input_ids=target["decoder_input_ids"][:, :1], past_key_values=cache)


def test_a_cache_that_cannot_hold_rows_is_refused():
    model = make_model()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache.layers = [DynamicSlidingWindowLayer(sliding_window=4) for _ in range(5)]
    with pytest.raises(ValueError, match=r"DynamicSlidingWindowLayer.*Use a `DynamicCache`"):
        model(**make_source(), **make_target(4), past_key_values=cache)


@pytest.mark.slow
def test_static_cache_compiles_without_graph_breaks():
    model = make_model()
    source, target = make_source(), make_target(8)
    expected = full_logits(model, source, target)
    cache = CACHES["static"](model)
    _, cache = decode(model, source, target, (3,), cache)
    encoder_outputs = model.get_encoder()(**source)
    step = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for position in range(3, 8):
            logits = step_logits(step, encoder_outputs, source, target, position, cache)
            assert_close(logits[:, 0], expected[:, position], atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


# Training


@pytest.mark.parametrize("use_cache", [None, True, False])
def test_training_takes_the_fast_path(use_cache, monkeypatch):
    """T5 fills a cache in training too, unless told otherwise."""
    model = make_model().train()
    monkeypatch.setattr(evolution_module, "_reference_attention", None)
    loss = model(**make_source(), labels=make_target(40)["decoder_input_ids"], use_cache=use_cache).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_flow_through_the_rows_of_a_cache():
    model = make_model().double().train()
    source, target = make_source(), make_target(9)
    labels = target["decoder_input_ids"].roll(2, dims=1)

    def gradients(*parts):
        model.zero_grad()
        encoder_outputs, cache, logits = model.get_encoder()(**source), None, []
        for part in parts:
            outputs = model(
                encoder_outputs=encoder_outputs,
                attention_mask=source["attention_mask"],
                decoder_input_ids=target["decoder_input_ids"][:, part],
                past_key_values=cache,
                use_cache=True,
            )
            cache = outputs.past_key_values
            logits.append(outputs.logits)
        torch.nn.functional.cross_entropy(torch.cat(logits, dim=1).flatten(0, 1), labels.flatten()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    expected = gradients(slice(None))
    assert_close(gradients(slice(0, 4), slice(4, 5), slice(5, 9)), expected, atol=1e-9, rtol=1e-6)


# Switches and checkpoints


SWITCHES = ("ea_encoder", "ea_decoder", "ea_cross_attention")
ATTENTIONS = (("encoder", "SelfAttention"), ("decoder", "SelfAttention"), ("decoder", "EncDecAttention"))


@pytest.mark.parametrize("on", list(itertools.product([False, True], repeat=3)), ids=str)
def test_each_chain_can_be_switched_off(on, tmp_path):
    values = dict(zip(SWITCHES, on, strict=True))
    model = make_model(**values)
    source, target = make_source(), make_target(6)
    # Such as ("decoder", "EncDecAttention").
    evolving = {
        (name.split(".")[0], name.split(".")[-4])
        for name in model.state_dict()
        if name.endswith("evolution.conv.weight")
    }
    assert evolving == {attention for attention, is_on in zip(ATTENTIONS, on, strict=True) if is_on}
    assert_generates_the_same(model, source, max_new_tokens=6)
    model.save_pretrained(tmp_path)
    loaded, info = EAT5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(full_logits(loaded, source, target), full_logits(model, source, target))
    if not any(on):
        vanilla = T5ForConditionalGeneration(T5Config(**{**CASE.config_values, "num_decoder_layers": 5})).eval()
        vanilla.load_state_dict(model.state_dict())
        assert_close(full_logits(model, source, target), full_logits(vanilla, source, target), atol=1e-5, rtol=0)


def test_mt5_checkpoint_loads(tmp_path):
    """Its feed-forward layers are gated, and its logits are not scaled; official files leave out what is the default."""
    values = {name: value for name, value in TINY_T5.items() if name != "relative_attention_max_distance"}
    vanilla = randomize(MT5ForConditionalGeneration(MT5Config(**values)), 0.2).eval()
    vanilla.set_attn_implementation("eager")
    vanilla.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["feed_forward_proj"], saved["relative_attention_max_distance"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    model, info = EAT5ForConditionalGeneration.from_pretrained(
        tmp_path, ea_residual_weight=0.0, ea_conv_weight=0.0, output_loading_info=True
    )
    assert not any(info.values())
    source, target = make_source(), make_target(6)
    assert_close(full_logits(model, source, target), full_logits(vanilla, source, target), atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "again")
    again = EAT5ForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(full_logits(again, source, target), full_logits(model, source, target))


def test_new_head_of_a_vanilla_checkpoint_has_t5_s_initialization(tmp_path):
    config = T5Config(**{**TINY_T5, "d_model": 400, "num_layers": 2, "num_decoder_layers": 2})
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = EAT5ForSequenceClassification.from_pretrained(tmp_path)
    assert model.classification_head.dense.weight.std().item() == pytest.approx(400**-0.5, rel=0.05)


def test_decoder_may_be_deeper_than_the_encoder():
    """Transformers' own T5 makes a cache of the encoder's depth, and fails."""
    model = make_model(num_layers=2, num_decoder_layers=6)
    result = assert_generates_the_same(model, make_source(), max_new_tokens=4)
    assert len(result.past_key_values.self_attention_cache.layers) == 6


def test_fields_that_are_not_of_t5_are_checked():
    with pytest.raises(ValueError, match=r"`ea_residual_weight` is 1\.5"):
        EAT5Config(ea_residual_weight=1.5)
