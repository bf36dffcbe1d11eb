# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-T5: T5 whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

There are three chains: the encoder's self-attention, the decoder's self-attention and the cross-attention. T5's position
bias is part of the scores, and so of the maps. Each class is its vanilla counterpart with an `AttentionEvolution` in every
attention; inputs, outputs and parameter names are those of Transformers' T5. `output_attention_maps=True` adds the
pre-softmax maps of every layer, (batch, heads, query, key), to the output: `encoder_attention_maps`,
`decoder_attention_maps` and `cross_attention_maps`, or `attention_maps` from an encoder alone.
"""

from transformers import GenerationMixin
from transformers.models.t5.modeling_t5 import (
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    T5Model,
    T5PreTrainedModel,
    T5Stack,
)

from .configuration_ea_t5 import EAT5Config
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel


class EAT5PreTrainedModel(EvolvingPreTrainedModel, T5PreTrainedModel):
    """What all classes of EA-T5 share: loading, saving, initialization, and the chains of their layers.

    A base class as [`EABertPreTrainedModel`][ea_hf.EABertPreTrainedModel] is, for checkpoints of EA-T5 and of T5.
    With `output_attention_maps=True` outputs have `encoder_attention_maps`, `decoder_attention_maps` and
    `cross_attention_maps`, each layer's (batch, heads, query, key).
    """

    config: EAT5Config
    attention_map_names = {
        "encoder": "encoder_attention_maps",
        "decoder": "decoder_attention_maps",
        "cross": "cross_attention_maps",
    }


class EAT5Stack(EAT5PreTrainedModel, T5Stack):
    """The encoder or the decoder."""

    attention_map_names = {"encoder": "attention_maps", "decoder": "attention_maps", "cross": "cross_attention_maps"}

    def make_chains(self) -> None:
        config, is_decoder = self.config, self.is_decoder
        self_attentions = [block.layer[0].SelfAttention for block in self.block]
        if not is_decoder:
            attach_evolution(config, self_attentions, chain="encoder", is_on=config.ea_encoder)
            return
        cross_attentions = [block.layer[1].EncDecAttention for block in self.block]
        attach_evolution(config, self_attentions, chain="decoder", is_causal=True, is_on=config.ea_decoder)
        attach_evolution(
            config, cross_attentions, is_causal=True, is_cross_attention=True, is_on=config.ea_cross_attention
        )


class EAT5Model(EAT5PreTrainedModel, T5Model):
    """Encoder and decoder without a head.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `decoder_input_ids`, (batch, target sequence).
    Returns `last_hidden_state` of the decoder, (batch, target sequence, d_model), and `encoder_last_hidden_state`.

    Examples:
        ```python
        model = ea_hf.EAT5Model.from_pretrained(name)
        target = tokenizer("Das Haus ist klein.", return_tensors="pt").input_ids
        states = model(**inputs, decoder_input_ids=target).last_hidden_state
        ```
    """


EAT5PreTrainedModel.evolving_classes = {T5Stack: EAT5Stack, T5Model: EAT5Model}


class EAT5ForConditionalGeneration(EAT5PreTrainedModel, T5ForConditionalGeneration, GenerationMixin):
    """Head for text to text, such as translation; `generate` decodes with or without cache to the same result.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels`, (batch, target sequence), with -100 where
    a token counts for nothing.
    Returns `loss`, if there are labels, and `logits`, (batch, target sequence, vocab_size).

    Examples:
        ```python
        model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(name)
        written = model.generate(**inputs, max_new_tokens=20)
        translation = tokenizer.decode(written[0], skip_special_tokens=True)
        ```
    """


class EAT5EncoderModel(EAT5PreTrainedModel, T5EncoderModel):
    """The encoder alone.

    Takes `input_ids` and `attention_mask`, (batch, sequence).
    Returns `last_hidden_state`, (batch, sequence, d_model); the encoder's maps are `attention_maps`.

    Examples:
        ```python
        model = ea_hf.EAT5EncoderModel.from_pretrained(name)
        states = model(**inputs).last_hidden_state
        ```
    """

    attention_map_names = EAT5Stack.attention_map_names


class EAT5ForSequenceClassification(EAT5PreTrainedModel, T5ForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, read from the decoder's last token.

    Takes and returns what [`EABertForSequenceClassification`][ea_hf.EABertForSequenceClassification] does, but each row
    must have an end-of-sequence token, as the tokenizer sets it.
    """


__all__ = [
    "EAT5Config",
    "EAT5EncoderModel",
    "EAT5ForConditionalGeneration",
    "EAT5ForSequenceClassification",
    "EAT5Model",
    "EAT5PreTrainedModel",
]
