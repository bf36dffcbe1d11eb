# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Models of many families, evolved, with inputs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from exactness import assert_same_outputs
from exactness import tensors as tensors_of_one
from models import randomize
from transformers import (
    BartForConditionalGeneration,
    BertForSequenceClassification,
    CLIPModel,
    DeiTForImageClassification,
    DistilBertForMaskedLM,
    ElectraForMaskedLM,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
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
    T5ForConditionalGeneration,
    Wav2Vec2Model,
    WhisperForConditionalGeneration,
)
from transformers.utils import ModelOutput

import ea_hf
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
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)
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
        tokens = torch.randint(
            3,
            66,
            (len(lengths), 64),
            generator=torch.Generator(torch.get_default_device()).manual_seed(1 + len(prefix)),
        )
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


assert_same = partial(assert_same_outputs, tensors=tensors)


def main_output(outputs):
    """What a model computes for each position."""
    for name in ("logits", "last_hidden_state", "logits_per_image"):
        if name in outputs:
            return outputs[name]
    raise KeyError(list(outputs))


# Exactness


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
