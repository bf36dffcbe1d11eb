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

    A base class to test for, not one to make models of. `from_pretrained` of each class that inherits from it takes
    checkpoints of EA-T5, and vanilla ones of T5 with the fields of `EvolvingConfig` as arguments, such as
    `ea_conv_weight`.
    There are three chains: the encoder's, the decoder's and the cross-attention's.

    Examples:
        ```python
        model = ea_hf.EAT5Model.from_pretrained("google-t5/t5-small", ea_conv_weight=0.2)
        assert isinstance(model, ea_hf.EAT5PreTrainedModel)
        ```
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
    Returns `last_hidden_state` of the decoder, (batch, target sequence, d_model), `encoder_last_hidden_state`, and
    with `output_attention_maps=True` also `encoder_attention_maps`, `decoder_attention_maps` and
    `cross_attention_maps`.

    Examples:
        ```python
        name = "google-t5/t5-small"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EAT5Model.from_pretrained(name)
        inputs = tokenizer("The house is small.", return_tensors="pt")
        target = tokenizer("Das Haus ist klein.", return_tensors="pt").input_ids
        states = model(**inputs, decoder_input_ids=target).last_hidden_state
        ```
    """


EAT5PreTrainedModel.evolving_classes = {T5Stack: EAT5Stack, T5Model: EAT5Model}


class EAT5ForConditionalGeneration(EAT5PreTrainedModel, T5ForConditionalGeneration, GenerationMixin):
    """Head for text to text, such as translation; `generate` decodes with or without cache to the same result.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels`, (batch, target sequence), with -100 where
    a token counts for nothing.
    Returns `loss`, if there are labels, `logits`, (batch, target sequence, vocab_size), and with
    `output_attention_maps=True` also `encoder_attention_maps`, `decoder_attention_maps` and `cross_attention_maps`.

    Examples:
        ```python
        name = "google-t5/t5-small"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(name)
        inputs = tokenizer("translate English to German: The house is small.", return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=20)
        translation = tokenizer.decode(written[0], skip_special_tokens=True)
        ```
    """


class EAT5EncoderModel(EAT5PreTrainedModel, T5EncoderModel):
    """The encoder alone.

    Takes `input_ids` and `attention_mask`, (batch, sequence).
    Returns `last_hidden_state`, (batch, sequence, d_model), and with `output_attention_maps=True` also
    `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-t5/t5-small"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EAT5EncoderModel.from_pretrained(name)
        states = model(**tokenizer("The house is small.", return_tensors="pt")).last_hidden_state
        ```
    """

    attention_map_names = EAT5Stack.attention_map_names


class EAT5ForSequenceClassification(EAT5PreTrainedModel, T5ForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, read from the decoder's last token.

    Takes `input_ids` and `attention_mask`, (batch, sequence), each row with an end-of-sequence token as the tokenizer
    sets it, and `labels`, (batch,): classes, or numbers if `num_labels` is 1.
    Returns `loss`, if there are labels, `logits`, (batch, num_labels), and with `output_attention_maps=True` also
    `encoder_attention_maps`, `decoder_attention_maps` and `cross_attention_maps`.

    Examples:
        ```python
        name = "google-t5/t5-small"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EAT5ForSequenceClassification.from_pretrained(name, num_labels=2)
        inputs = tokenizer("A film that never quite finds its feet.", return_tensors="pt")
        probabilities = model(**inputs).logits.softmax(dim=-1)
        ```
    """


__all__ = [
    "EAT5Config",
    "EAT5EncoderModel",
    "EAT5ForConditionalGeneration",
    "EAT5ForSequenceClassification",
    "EAT5Model",
    "EAT5PreTrainedModel",
]
