# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Whatever stands around the evolution's modules, and whatever masks and caches are given: exact, or an error."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from models import cache_name
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from transformers import BertConfig, BertModel, DynamicCache, LlamaConfig, LlamaForCausalLM

from ea_hf import EABertConfig, EABertModel, EAT5Config, EAT5ForConditionalGeneration, evolve
from ea_hf._requirements import FIRST_UNTRIED, OLDEST, check_transformers
from ea_hf.models import evolution
from ea_hf.models.evolution_state import EvolutionState


BERT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
WEIGHTS = {"ea_residual_weight": 0.4, "ea_conv_weight": 0.6}


def randomize(model: nn.Module, scale: float = 0.4) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * scale + ("norm" in name.lower()))
    return model.eval()


def make_bert() -> EABertModel:
    return randomize(EABertModel(EABertConfig(**BERT, **WEIGHTS)))


def make_llama() -> LlamaForCausalLM:
    config = LlamaConfig(**BERT, num_key_value_heads=2, eos_token_id=None, pad_token_id=0)
    return randomize(evolve(LlamaForCausalLM(config), residual_weight=0.4, conv_weight=0.6))


def make_t5() -> EAT5ForConditionalGeneration:
    return randomize(EAT5ForConditionalGeneration(EAT5Config(**T5, **WEIGHTS, decoder_start_token_id=0)))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(1))


def convolutions(model: nn.Module) -> list[evolution.AttentionEvolution]:
    modules = (module for module in model.modules() if isinstance(module, evolution.AttentionEvolution))
    return [module for module in modules if module.conv is not None]


def hidden(model: nn.Module, ids: torch.Tensor, training: bool = False) -> torch.Tensor:
    with torch.set_grad_enabled(training):
        return model(ids).last_hidden_state.detach()


# Modules


def replace(module: evolution.AttentionEvolution) -> None:
    class Doubled(evolution.MapConvolution):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(image)

    conv = module.conv
    doubled = Doubled(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
    doubled.load_state_dict(conv.state_dict())
    module.conv = doubled


def hook(module: evolution.AttentionEvolution) -> None:
    module.conv.register_forward_hook(lambda *args: 2 * args[-1])


def hook_before(module: evolution.AttentionEvolution) -> None:
    module.conv.register_forward_pre_hook(lambda _, args: (2 * args[0],))


def hook_activation(module: evolution.AttentionEvolution) -> None:
    module.activation.register_forward_hook(lambda *args: 2 * args[-1])


def patch(module: evolution.AttentionEvolution) -> None:
    forward = module.conv.forward
    module.conv.forward = lambda image: 2 * forward(image)


def parametrize(module: evolution.AttentionEvolution) -> None:
    parametrizations.weight_norm(module.conv)
    module.conv.parametrizations.weight.original0.data.mul_(2)


@pytest.mark.parametrize("training", (False, True), ids=("inference", "training"))
@pytest.mark.parametrize("wrap", (replace, hook, hook_before, hook_activation, patch, parametrize))
def test_what_stands_around_a_convolution_is_run(wrap, training):
    model, ids = make_bert(), tokens(2, 7)
    plain = hidden(model, ids, training)
    for module in convolutions(model):
        wrap(module)
    wrapped = hidden(model, ids, training)
    assert (wrapped - plain).abs().max() > 1e-3
    with torch.no_grad():
        reference = model(ids, output_attention_maps=True).last_hidden_state  # maps come from the reference path
    assert_close(wrapped, reference, atol=1e-5, rtol=0)


def test_hook_on_the_evolution_itself_is_called():
    model, seen = make_bert(), []
    for module in model.modules():
        if isinstance(module, evolution.AttentionEvolution):
            module.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    hidden(model, tokens(2, 7))
    assert seen == [(2, 2, 7, 7)] * BERT["num_hidden_layers"]


@pytest.mark.parametrize("make", (make_bert, make_llama, make_t5))
@pytest.mark.parametrize("kind", ("cpu_offload", "disk_offload"))
def test_offloaded_models_compute_the_same(make, kind, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = make()
    arguments = {"input_ids": tokens(2, 7)}
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = tokens(2, 5)
    with torch.no_grad():
        expected = model(**arguments)[0]
        if kind == "cpu_offload":
            accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
        actual = model(**arguments)[0]
    assert_close(actual, expected, atol=1e-5, rtol=0)


def test_checkpoint_dispatched_to_disk_computes_the_same(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path / "model")
    # Accelerate 1.10 takes no whole model on disk.
    device_map = {"embeddings": "cpu", "encoder": "disk", "pooler": "disk"}
    offloaded = EABertModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
    )
    ids = tokens(2, 7)
    assert_close(hidden(offloaded.eval(), ids), hidden(model, ids), atol=1e-5, rtol=0)


def test_lora_on_the_convolution_is_trained_and_merged():
    peft = pytest.importorskip("peft")
    model, ids = make_bert(), tokens(2, 7)
    config = peft.LoraConfig(target_modules=r".*evolution\.conv", r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.train()
    adapted(ids).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_" in n)
    adapted.eval()
    expected = hidden(adapted, ids)
    assert_close(hidden(adapted.merge_and_unload(), ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", (make_bert, make_llama))
def test_second_derivatives_are_exact_or_refused(make):
    """On the fast path they would lack parts without a word; where maps are returned, they are those of the equations."""
    model, ids = make().double(), tokens(2, 7)
    embedded = model.get_input_embeddings()(ids).detach()
    direction = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def slope(values: torch.Tensor, create_graph: bool, **options: bool) -> tuple[torch.Tensor, torch.Tensor]:
        values = values.detach().requires_grad_()
        output = model(inputs_embeds=values, **options)[0].square().mean()
        (gradient,) = torch.autograd.grad(output, values, create_graph=create_graph)
        return values, gradient.square().sum()

    with pytest.raises(RuntimeError, match=r"no second derivatives .* `output_attention_maps=True`"):
        slope(embedded, create_graph=True)
    values, squared = slope(embedded, create_graph=True, output_attention_maps=True)
    (second,) = torch.autograd.grad(squared, values)
    step = 1e-6 * direction
    expected = (slope(embedded + step, False)[1] - slope(embedded - step, False)[1]) / 2e-6
    assert_close((second * direction).sum(), expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "task"), [(make_bert, "FEATURE_EXTRACTION"), (make_llama, "CAUSAL_LM"), (make_t5, "SEQ_2_SEQ_LM")]
)
def test_prefix_tuning_is_refused(make, task):
    """Its keys and values come from no layer, so there are no rows of maps above those of the text."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3, num_attention_heads=2)
    model = peft.get_peft_model(make(), config)
    arguments = {"decoder_input_ids": tokens(2, 5)} if task == "SEQ_2_SEQ_LM" else {}
    with pytest.raises(ValueError, match="prefix tuning"):
        model(input_ids=tokens(2, 7), **arguments)


# Masks


def test_packed_sequences_of_a_decoder_are_refused():
    """Transformers finds them by positions that start anew, where there is no cache."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with pytest.raises(ValueError, match="packed sequences"):
        make_llama()(tokens(1, 7), position_ids=positions, use_cache=False)


def test_packed_sequences_of_a_decoder_are_exact_without_a_convolution():
    config = LlamaConfig(**BERT, num_key_value_heads=2, eos_token_id=None, pad_token_id=0)
    model = randomize(evolve(LlamaForCausalLM(config), residual_weight=0.4, conv_weight=0.0))
    ids, positions = tokens(1, 7), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        together = model(ids, position_ids=positions, use_cache=False).logits
        alone = [model(part).logits for part in (ids[:, :3], ids[:, 3:])]
    assert_close(together, torch.cat(alone, dim=1), atol=1e-4, rtol=0)


def block_diagonal(size: int, *blocks: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    for start, end in zip((0, *blocks), (*blocks, size), strict=True):
        mask[..., start:end, start:end] = True
    return mask


@pytest.mark.parametrize("additive", (False, True), ids=("boolean", "additive"))
def test_block_diagonal_masks_are_refused(additive):
    mask = block_diagonal(7, 3)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with pytest.raises(ValueError, match="packed sequences"):
        make_bert()(tokens(1, 7), attention_mask=mask)
    with pytest.raises(ValueError, match="packed sequences"):
        make_t5()(input_ids=tokens(1, 7), attention_mask=mask, decoder_input_ids=tokens(1, 3))
    with pytest.raises(ValueError, match="packed sequences"):
        causal = block_diagonal(7, 3).tril()
        make_t5()(input_ids=tokens(1, 5), decoder_input_ids=tokens(1, 7), decoder_attention_mask=causal)


def test_band_in_a_mask_is_refused():
    with pytest.raises(ValueError, match="sliding windows"):
        make_bert()(tokens(1, 7), attention_mask=torch.ones(1, 1, 7, 7, dtype=torch.bool).triu(-2).tril(2))


def test_masks_of_keys_alone_are_refused_by_a_decoder():
    """They hide no later token. In an encoder, and for a single token, they are whole."""
    mask = torch.ones(1, 1, 1, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="less than padding and later tokens"):
        make_llama()(tokens(1, 7), attention_mask=mask)
    make_bert()(tokens(1, 7), attention_mask=mask)
    make_llama()(tokens(1, 1), attention_mask=mask[..., :1])


def test_function_transforms_of_padded_batches():
    model = make_bert().eval()
    ids, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0

    def alone(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(ids[None], attention_mask=mask[None])[0][0]

    with torch.no_grad():
        assert_close(torch.func.vmap(alone)(ids, mask), model(ids, attention_mask=mask)[0], atol=1e-4, rtol=1e-4)


def test_bias_in_a_mask_is_refused():
    with pytest.raises(ValueError, match="position bias"):
        make_bert()(tokens(1, 7), attention_mask=torch.randn(1, 1, 7, 7))


def test_block_diagonal_masks_are_exact_without_a_convolution():
    model = randomize(EABertModel(EABertConfig(**BERT, ea_residual_weight=0.4, ea_conv_weight=0.0)))
    ids, positions = tokens(1, 7), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        together = model(ids, attention_mask=block_diagonal(7, 3), position_ids=positions).last_hidden_state
        alone = [model(part).last_hidden_state for part in (ids[:, :3], ids[:, 3:])]
    assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


# Caches


def test_decoding_without_the_cache_s_keyword_raises(monkeypatch):
    """A version of Transformers that hands the cache down in another way must not decode to other tokens silently."""
    monkeypatch.setattr(evolution, "_note_cache", lambda *args: None)
    model, source = make_t5(), tokens(2, 6)
    with pytest.raises(RuntimeError, match="no cache that holds the rows"):
        model.generate(source, min_new_tokens=5, max_new_tokens=5)


@pytest.mark.parametrize("weights", ((0.4, 0.0), (0.4, 0.6)))
def test_keys_beyond_the_queries_need_a_cache(weights):
    llama = make_llama()
    with torch.no_grad():
        cache = llama(tokens(1, 5), use_cache=True).past_key_values
    vanilla_cache = DynamicCache()
    for layer in range(BERT["num_hidden_layers"]):
        vanilla_cache.update(cache.layers[layer].keys, cache.layers[layer].values, layer)
    with pytest.raises(ValueError, match="without the rows"):
        llama(tokens(1, 1), **{cache_name(llama): vanilla_cache})
    step = evolution.AttentionEvolution(2, 1, *weights, is_causal=True)
    with pytest.raises(RuntimeError, match="no cache"):
        EvolutionState().where_blocked(step, 1, 4, torch.ones(1, 1, 1, 4, dtype=torch.bool))


@pytest.mark.parametrize("prompt_length", (3, 5, 33))
@pytest.mark.parametrize("kind", ("assistant", "prompt_lookup"))
def test_assisted_decoding_of_evolved_decoders(kind, prompt_length):
    model = make_llama()
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for _ in range(3):
        prompt = torch.randint(3, 50, (1, prompt_length))
        options = {"assistant_model": assistant} if kind == "assistant" else {"prompt_lookup_num_tokens": 4}
        expected = model.generate(prompt, max_new_tokens=24, do_sample=False, use_cache=False)
        actual = model.generate(prompt, max_new_tokens=24, do_sample=False, **options)
        assert torch.equal(actual, expected)


def test_vanilla_limit_is_not_watched():
    """With both weights 0 a model is its vanilla counterpart, whatever the mask."""
    model = randomize(EABertModel(EABertConfig(**BERT, ea_residual_weight=0.0, ea_conv_weight=0.0)))
    vanilla = BertModel._from_config(BertConfig(**BERT), attn_implementation="eager").eval()
    vanilla.load_state_dict(model.state_dict())
    mask = block_diagonal(7, 3)
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert torch.equal(
        model(tokens(1, 7), attention_mask=bias).last_hidden_state,
        vanilla(tokens(1, 7), attention_mask=bias).last_hidden_state,
    )


# Versions


def test_an_older_transformers_is_named_with_what_is_needed():
    with pytest.raises(ImportError, match=r"needs Transformers 5\.23 or later, and 5\.2\.1 is installed"):
        check_transformers("5.2.1")


def test_a_newer_transformers_is_told(caplog):
    with caplog.at_level(logging.WARNING, logger="ea_hf"):
        check_transformers("5.24.3")
        assert not caplog.records
        check_transformers("6.0.0.dev0")
    assert "was not run with Transformers 6.0.0.dev0" in caplog.text


def test_ranges_are_those_of_setup_cfg():
    setup = Path(__file__).resolve().parents[1].joinpath("setup.cfg").read_text()
    oldest, untried = (".".join(map(str, release)) for release in (OLDEST, FIRST_UNTRIED))
    assert f"transformers >={oldest}, <{untried}\n" in setup
