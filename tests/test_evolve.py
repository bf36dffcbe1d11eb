# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`evolve` on vanilla models of many families: what a family of the package keeps to the last digits, they keep too."""

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exactness import run
from exactness import tensors as tensors_of_one
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from models import cache_name, randomize
from torch.testing import assert_close
from transformers import (
    CONFIG_MAPPING,
    AlbertModel,
    AutoConfig,
    AutoModel,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    CLIPModel,
    DebertaV2Model,
    DeiTForImageClassification,
    DistilBertForMaskedLM,
    DynamicCache,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraTokenizer,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    GptOssForCausalLM,
    LlamaForCausalLM,
    M2M100ForConditionalGeneration,
    MarianMTModel,
    MBartForConditionalGeneration,
    MistralForCausalLM,
    ModernBertForMaskedLM,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    RobertaForMaskedLM,
    StaticCache,
    T5ForConditionalGeneration,
    Wav2Vec2Model,
    WhisperForConditionalGeneration,
    pipeline,
)
from transformers.utils import ModelOutput

import ea_hf
from ea_hf.models.configuration_ea_evolved import evolved_config_class
from ea_hf.models.evolution import MapConvolution


ENCODER = {"num_hidden_layers": 4, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 40}
DECODER = {**ENCODER, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 67, "max_position_embeddings": 64}
SEQ2SEQ = {
    "vocab_size": 67,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "scale_embedding": False,
}
TEXT = {"vocab_size": 67, "max_position_embeddings": 40, **ENCODER}
WHISPER = {
    **{name: value for name, value in SEQ2SEQ.items() if name != "max_position_embeddings"},
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 64,
    "begin_suppress_tokens": None,
}


@dataclass(frozen=True)
class Family:
    """A vanilla model under test.

    Args:
        model_class: a class of Transformers.
        config_values: a tiny configuration.
        kind: which inputs it takes: "text", "causal", "seq2seq", "images", "audio", "speech" or "text-and-images".
        chains: under which names the maps are returned.
        std: standard deviation of the weights.
    """

    model_class: type[PreTrainedModel]
    config_values: dict[str, Any]
    kind: str
    chains: tuple[str, ...] = ("attention_maps",)
    std: float = 0.3

    def __str__(self) -> str:
        return self.model_class.__name__

    def vanilla(self, **values: Any) -> PreTrainedModel:
        """With large weights and eager attention, in evaluation mode."""
        config = self.model_class.config_class(**{**self.config_values, **values})
        model = self.model_class._from_config(config, attn_implementation="eager")
        positions = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        model = randomize(model, self.std)
        model.load_state_dict(positions, strict=False)  # sinusoids, which are not saved
        for name, setting in (("eos_token_id", None), ("forced_eos_token_id", None), ("pad_token_id", 1)):
            if getattr(model, "generation_config", None) is not None:
                setattr(model.generation_config, name, setting)
        return model.eval()

    def evolving(self, **values: Any) -> PreTrainedModel:
        values = {"residual_weight": 0.5, "conv_weight": 0.5, **values}
        return randomize_convolutions(ea_hf.evolve(self.vanilla(), **values))

    def inputs(self, lengths: tuple[int, ...] = (9, 4, 6), width: int | None = None) -> dict[str, torch.Tensor]:
        """Padded on the right; the examples are the same for every width, and padding is noise."""
        rows, width = len(lengths), width or max(lengths)
        generator = torch.Generator().manual_seed(0)
        if self.kind == "images":
            return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}
        if self.kind == "speech":
            features = torch.randn(rows, 8, 20, generator=generator)
            return {"input_features": features, **self._tokens(lengths, width, "decoder_")}
        if self.kind == "audio":
            values = torch.randn(rows, 40 * width, generator=generator)
            mask = torch.arange(40 * width) < 40 * torch.tensor(lengths)[:, None]
            return {"input_values": values * mask, "attention_mask": mask.long()}
        inputs = self._tokens(lengths, width, "")
        if self.kind == "text-and-images":
            inputs["pixel_values"] = torch.randn(rows, 3, 8, 8, generator=generator)
        if self.kind == "seq2seq":
            inputs.update(self._tokens([1 + 2 * length % 7 for length in lengths], width + 2, "decoder_"))
        return inputs

    @staticmethod
    def _tokens(lengths: tuple[int, ...] | list[int], width: int, prefix: str) -> dict[str, torch.Tensor]:
        tokens = torch.randint(3, 66, (len(lengths), 64), generator=torch.Generator().manual_seed(1 + len(prefix)))
        mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        # Noise that is another one for another width.
        noise = (tokens[:, :width] + width) % 60 + 3
        tokens = torch.where(mask, tokens[:, :width], noise)
        return {f"{prefix}input_ids": tokens, f"{prefix}attention_mask": mask.long()}


def randomize_convolutions(model: PreTrainedModel) -> PreTrainedModel:
    """New convolutions are so small that they hardly show."""
    for module in model.modules():
        if isinstance(module, MapConvolution):
            randomize(module, 1.0)
    return model


ENCODER_DECODER_MAPS = ("encoder_attention_maps", "decoder_attention_maps", "cross_attention_maps")
FAMILIES = [
    Family(ElectraForMaskedLM, {**TEXT, "embedding_size": 16}, "text"),
    Family(
        DistilBertForMaskedLM,
        {"vocab_size": 67, "dim": 24, "n_heads": 3, "n_layers": 4, "hidden_dim": 40, "max_position_embeddings": 40},
        "text",
    ),
    Family(BertForSequenceClassification, {**TEXT, "num_labels": 5}, "text"),
    Family(RobertaForMaskedLM, TEXT, "text"),
    Family(ModernBertForMaskedLM, {**TEXT, "layer_types": ["full_attention"] * 4, "pad_token_id": 1}, "text"),
    Family(DeiTForImageClassification, {**ENCODER, "image_size": 8, "patch_size": 2}, "images"),
    Family(
        CLIPModel,
        {
            "text_config": {**TEXT, "eos_token_id": 2},
            "vision_config": {**ENCODER, "image_size": 8, "patch_size": 2},
            "projection_dim": 16,
        },
        "text-and-images",
        ("text_attention_maps", "vision_attention_maps"),
    ),
    Family(
        Wav2Vec2Model,
        {
            **ENCODER,
            "conv_dim": (16, 16),
            "conv_kernel": (10, 4),
            "conv_stride": (10, 4),
            "feat_extract_norm": "layer",
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 4,
            "num_feat_extract_layers": 2,
            "layerdrop": 0.0,
            "mask_time_prob": 0.0,
        },
        "audio",
    ),
    Family(BartForConditionalGeneration, SEQ2SEQ, "seq2seq", ENCODER_DECODER_MAPS),
    Family(MarianMTModel, SEQ2SEQ, "seq2seq", ENCODER_DECODER_MAPS),
    Family(MBartForConditionalGeneration, SEQ2SEQ, "seq2seq", ENCODER_DECODER_MAPS),
    Family(
        M2M100ForConditionalGeneration,
        {**SEQ2SEQ, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
        "seq2seq",
        ENCODER_DECODER_MAPS,
    ),
    Family(
        T5ForConditionalGeneration,
        {
            "vocab_size": 67,
            "d_model": 24,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 3,
            "num_heads": 3,
            "decoder_start_token_id": 0,
        },
        "seq2seq",
        ENCODER_DECODER_MAPS,
        std=0.2,
    ),
    Family(WhisperForConditionalGeneration, WHISPER, "speech", ENCODER_DECODER_MAPS),
    Family(
        GPT2LMHeadModel,
        {"vocab_size": 67, "n_embd": 24, "n_layer": 4, "n_head": 3, "n_positions": 64},
        "causal",
    ),
    Family(LlamaForCausalLM, {**DECODER, "num_key_value_heads": 2}, "causal"),
    Family(Qwen2ForCausalLM, {**DECODER, "num_key_value_heads": 2}, "causal"),
    Family(Qwen3ForCausalLM, {**DECODER, "num_key_value_heads": 2, "head_dim": 8}, "causal"),
    Family(MistralForCausalLM, {**DECODER, "num_key_value_heads": 2, "sliding_window": None}, "causal"),
    Family(GPTNeoXForCausalLM, DECODER, "causal"),
    Family(
        OPTForCausalLM,
        {**DECODER, "ffn_dim": 40, "word_embed_proj_dim": 32},
        "causal",
    ),
]
for dropped in ("dropout", "attention_dropout", "activation_dropout"):
    SEQ2SEQ[dropped] = WHISPER[dropped] = 0.0

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
every_generator = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.kind in ("causal", "seq2seq", "speech")], ids=str
)
one_of_each_kind = pytest.mark.parametrize(
    "family",
    [
        family
        for family in FAMILIES
        if family.model_class in (ElectraForMaskedLM, BartForConditionalGeneration, LlamaForCausalLM, CLIPModel)
    ],
    ids=str,
)


def tensors(outputs):
    """The tensors of an output by name, also those within the outputs of parts."""
    found = tensors_of_one(outputs)
    for name, value in outputs.items():
        if isinstance(value, ModelOutput):
            found.update({f"{name}.{key}": item for key, item in tensors(value).items()})
    return found


def assert_same(actual, expected, atol=0.0):
    actual, expected = tensors(actual), tensors(expected)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], atol=atol, rtol=0, msg=f"{name}: ".__add__)


def main_output(outputs):
    """What a model computes for each position."""
    for name in ("logits", "last_hidden_state", "logits_per_image"):
        if name in outputs:
            return outputs[name]
    raise KeyError(list(outputs))


# Exactness


@every_family
def test_both_weights_zero_is_the_vanilla_model(family):
    vanilla = family.vanilla()
    model = ea_hf.evolve(copy.deepcopy(vanilla), residual_weight=0.0, conv_weight=0.0)
    assert model.state_dict().keys() == vanilla.state_dict().keys()
    for inputs in (family.inputs(), {name: x for name, x in family.inputs().items() if "mask" not in name}):
        actual, expected = run(model, inputs), run(vanilla, inputs)
        assert_same(actual, expected, atol=1e-5)


@every_family
def test_maps_evolve_in_every_chain(family):
    outputs = run(family.evolving(), family.inputs(), output_attention_maps=True)
    assert tuple(name for name in outputs if "attention_maps" in name) == family.chains
    for name in family.chains:
        maps = outputs[name]
        assert len(maps) > 2 and maps[0].std() > 0.3 and torch.isfinite(torch.stack(maps)).all()
        assert maps[0].abs().max() < 1e4  # no mask has leaked in
    expected = main_output(outputs)
    for change in ({"residual_weight": 0.0}, {"conv_weight": 0.0}, {"kernel_size": 1}):
        other = family.evolving(**change)
        assert (main_output(run(other, family.inputs())) - expected).abs().max() > 1e-3, change


@pytest.mark.parametrize("kernel_size", [3, 5], ids="kernel{}".format)
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.kind not in ("images", "text-and-images")], ids=str
)
def test_padding_changes_nothing(family, kernel_size):
    model = family.evolving(kernel_size=kernel_size).double()
    lengths = (9, 4, 6)
    together = main_output(run(model, double(family.inputs(lengths, width=12))))
    for row in range(len(lengths)):
        alone = {name: values[row : row + 1] for name, values in double(family.inputs(lengths, width=12)).items()}
        for name in list(alone):
            if "mask" in name:
                real = int(alone[name].sum())
                for other in (name, name.replace("attention_mask", "input_ids"), "input_values"):
                    if other in alone and (other != "input_values" or family.kind == "audio"):
                        alone[other] = alone[other][:, :real]
        alone = {name: values for name, values in alone.items() if "mask" not in name}
        expected = main_output(run(model, alone))
        actual = together[row : row + 1]
        if family.kind == "audio":
            real = expected.shape[1]
            expected, actual = expected[:, : real - 1], actual[:, : real - 1]  # the last frame sees beyond
        elif expected.ndim == 3:
            actual = actual[:, : expected.shape[1]]
        assert expected.numel() > 0
        assert_close(actual, expected, atol=1e-10, rtol=0, msg=f"row {row}: ".__add__)


def double(inputs):
    return {name: values.double() if values.is_floating_point() else values for name, values in inputs.items()}


@every_generator
def test_future_tokens_change_nothing_earlier(family):
    model = family.evolving()
    inputs = family.inputs((9, 9), 9)
    name = "input_ids" if family.kind == "causal" else "decoder_input_ids"
    inputs = {key: values for key, values in inputs.items() if "mask" not in key}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected = model(**inputs).logits
            changed = {**inputs, name: inputs[name].clone()}
            changed[name][:, 5:] = changed[name][:, 5:].roll(1, dims=0)
            logits = model(**changed).logits
        assert torch.equal(logits[:, :5], expected[:, :5])
        assert not torch.equal(logits[:, 5:], expected[:, 5:])


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"do_sample": True, "num_return_sequences": 2}],
    ids=str,
)
@every_generator
def test_cache_changes_no_generated_token(family, options):
    model = family.evolving(kernel_size=5)
    inputs = {name: values for name, values in family.inputs((6, 6), 6).items() if not name.startswith("decoder")}
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        keep = {**options} if use_cache else {**options, "cache_implementation": None}
        results.append(
            model.generate(
                **inputs,
                **keep,
                use_cache=use_cache,
                max_new_tokens=12,
                output_logits=True,
                return_dict_in_generate=True,
            )
        )
    cached, uncached = results
    assert torch.equal(cached.sequences, uncached.sequences)
    for actual, expected in zip(cached.logits, uncached.logits, strict=True):
        assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.kind == "causal"], ids=str)
def test_left_padding_of_a_prompt_changes_nothing(family):
    model = family.evolving(kernel_size=5)
    prompt = family.inputs((7, 7), 7)["input_ids"]
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    options = {"max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(input_ids=prompt, attention_mask=mask, **options).logits
    alone = model.generate(input_ids=prompt[:1, 4:], attention_mask=mask[:1, 4:], **options).logits
    for actual, expected in zip(together, alone, strict=True):
        assert_close(actual[:1], expected, atol=1e-4, rtol=0)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def gradients(model, inputs):
    model.zero_grad()
    output = main_output(model(**inputs))
    (output * torch.arange(output.numel()).sin().view_as(output)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_family
def test_activation_checkpointing_changes_no_gradient(family):
    model = without_dropout(family.evolving().double().train())
    inputs = double(family.inputs())
    expected = gradients(model, inputs)
    convolutions = [name for name in model.state_dict() if ".evolution.conv.weight" in name]
    assert convolutions and all(expected[name].any() for name in convolutions)
    model.activation_checkpointing_enable()
    actual = gradients(model, inputs)
    assert actual.keys() == expected.keys()
    for name in expected:
        scale = max(expected[name].norm(), 1e-3 * max(gradient.norm() for gradient in expected.values()))
        assert (actual[name] - expected[name]).norm() <= 1e-9 * scale, name


# Saving and loading


@every_family
def test_save_and_load_is_bit_equal(family, tmp_path):
    model = family.evolving(residual_weight=0.3, conv_weight=0.7, kernel_size=5, activation="gelu")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "ea_evolved"
    assert saved["vanilla_model_type"] == family.model_class.config_class.model_type
    inputs = family.inputs()
    expected = run(model, inputs, output_attention_maps=True)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(info.values()), info
    assert {name: saved[name] for name in saved if name.startswith("ea_")} == {
        "ea_residual_weight": 0.3,
        "ea_conv_weight": 0.7,
        "ea_kernel_size": 5,
        "ea_activation": "gelu",
        "ea_memory_efficient": False,
        "ea_mixing": "convex",
    }
    assert all(getattr(loaded.config, name) == saved[name] for name in saved if name.startswith("ea_"))
    assert_same(run(loaded, inputs, output_attention_maps=True), expected)


@one_of_each_kind
def test_a_fresh_process_loads_it_by_the_auto_classes_with_ea_hf_and_by_its_own_code(family, tmp_path):
    model = family.evolving()
    model.save_pretrained(tmp_path)
    inputs = family.inputs()
    torch.save({"inputs": inputs, "expected": main_output(run(model, inputs))}, tmp_path / "expected.pt")
    pickle.dump(model, (tmp_path / "model.pickle").open("wb"))
    code = f"""
import pickle, torch, transformers
from pathlib import Path
torch.set_num_threads(1)
folder = Path({str(tmp_path)!r})
saved = torch.load(folder / "expected.pt")
def check(model):
    with torch.no_grad():
        outputs = model.eval()(**saved["inputs"])
    actual = outputs.logits if "logits" in outputs else outputs.logits_per_image
    assert torch.equal(actual, saved["expected"])
def load(**options):
    architecture = transformers.AutoConfig.from_pretrained(folder, **options).architectures[0]
    for auto in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM"):
        if (auto == "AutoModel") == {family.model_class is CLIPModel!r}:
            try:
                model = getattr(transformers, auto).from_pretrained(folder, **options)
            except ValueError:
                continue
            if type(model).__name__ == architecture:
                return model
    raise SystemExit("no Auto class loads it")
try:
    transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise SystemExit("loaded without ea_hf")
remote = load(trust_remote_code=True)
assert type(remote).__module__.startswith("transformers_modules"), type(remote)
check(remote)
import ea_hf
own = load()
assert type(own).__module__.startswith("ea_hf"), type(own)
check(own)
check(remote)
check(pickle.loads((folder / "model.pickle").read_bytes()))
"""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_base_model_of_a_checkpoint_loads(tmp_path):
    model = FAMILIES[0].evolving()
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    inputs = FAMILIES[0].inputs()
    assert_same(run(base, inputs), run(model.electra, inputs))


def test_the_tokenizer_of_a_checkpoint_is_found_and_a_pipeline_runs(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    tokenizer = ElectraTokenizer(str(tmp_path / "vocab.txt"))
    config = ElectraConfig(**{**TEXT, "embedding_size": 16, "vocab_size": len(tokenizer)})
    ea_hf.evolve(ElectraForMaskedLM(config)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    fill_mask = pipeline("fill-mask", model=str(tmp_path / "model"))
    assert type(fill_mask.model).__name__ == "EvolvedElectraForMaskedLM"
    assert fill_mask.tokenizer.vocab_size == len(tokenizer)
    assert len(fill_mask("a b [MASK] c")) == 5


def test_vanilla_classes_report_an_evolving_checkpoint(tmp_path, transformers_log):
    model = FAMILIES[0].evolving()
    model.save_pretrained(tmp_path)
    ElectraForMaskedLM.from_pretrained(tmp_path)
    assert any("`ea_evolved`" in message for message in transformers_log)
    assert any(".evolution.conv.weight" in message for message in transformers_log)


def test_unknown_vanilla_type_in_a_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ea_evolved", "vanilla_model_type": "electro"}))
    with pytest.raises(ValueError, match="`vanilla_model_type` is 'electro'"):
        AutoConfig.from_pretrained(tmp_path)


def test_configuration_of_a_vanilla_checkpoint_is_refused_with_what_to_do(tmp_path):
    ElectraConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'electra' model, which does not evolve\..*`ea_hf\.evolve`"):
        ea_hf.EvolvedConfig.from_pretrained(tmp_path)


def test_a_part_with_a_configuration_of_its_own_is_not_saved_alone(tmp_path):
    clip = next(family for family in FAMILIES if family.model_class is CLIPModel).evolving()
    with pytest.raises(ValueError, match="part of an evolving model"):
        clip.vision_model.save_pretrained(tmp_path)


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
