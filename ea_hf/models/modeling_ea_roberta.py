# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-RoBERTa: RoBERTa whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

Each class is its vanilla counterpart with an `AttentionEvolution` in every self-attention. Inputs, outputs and
parameter names are those of Transformers' RoBERTa; `output_attention_maps=True` adds `attention_maps` to the output, the
pre-softmax map of every layer, (batch, heads, query, key).
"""

from transformers.models.roberta.modeling_roberta import (
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    RobertaPreTrainedModel,
)

from .configuration_ea_roberta import EARobertaConfig
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel


class EARobertaPreTrainedModel(EvolvingPreTrainedModel, RobertaPreTrainedModel):
    """What all classes of EA-RoBERTa share: loading, saving, initialization, and the chain of their layers.

    A base class to test for, not one to make models of. `from_pretrained` of each class that inherits from it takes
    checkpoints of EA-RoBERTa, and vanilla ones of RoBERTa with the fields of `EvolvingConfig` as arguments, such as
    `ea_conv_weight`.
    What a vanilla checkpoint lacks, convolutions and a head, starts from random values.

    Examples:
        ```python
        model = ea_hf.EARobertaModel.from_pretrained("FacebookAI/roberta-base", ea_conv_weight=0.2)
        assert isinstance(model, ea_hf.EARobertaPreTrainedModel)
        ```
    """

    config: EARobertaConfig


class EARobertaModel(EARobertaPreTrainedModel, RobertaModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`.

    Takes `input_ids` and `attention_mask`, (batch, sequence).
    Returns `last_hidden_state`, (batch, sequence, hidden_size), `pooler_output`, (batch, hidden_size), and with
    `output_attention_maps=True` also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "FacebookAI/roberta-base"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EARobertaModel.from_pretrained(name)
        inputs = tokenizer("A film that never quite finds its feet.", return_tensors="pt")
        states = model(**inputs).last_hidden_state
        ```
    """

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention.self for layer in self.encoder.layer])


EARobertaPreTrainedModel.evolving_classes = {RobertaModel: EARobertaModel}


class EARobertaForMaskedLM(EARobertaPreTrainedModel, RobertaForMaskedLM):
    """Head for masked language modeling.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels` of the same shape, with -100 where nothing
    was masked.
    Returns `loss`, if there are labels, `logits`, (batch, sequence, vocab_size), and with `output_attention_maps=True`
    also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "FacebookAI/roberta-base"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EARobertaForMaskedLM.from_pretrained(name)
        inputs = tokenizer("A <mask> film.", return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        word = tokenizer.decode([model(**inputs).logits[0, place].argmax().item()])
        ```
    """


class EARobertaForSequenceClassification(EARobertaPreTrainedModel, RobertaForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, such as GLUE's tasks.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels`, (batch,): classes, or numbers if
    `num_labels` is 1.
    Returns `loss`, if there are labels, `logits`, (batch, num_labels), and with `output_attention_maps=True` also
    `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "FacebookAI/roberta-base"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EARobertaForSequenceClassification.from_pretrained(name, num_labels=2)
        inputs = tokenizer("A film that never quite finds its feet.", return_tensors="pt")
        probabilities = model(**inputs).logits.softmax(dim=-1)
        ```
    """


class EARobertaForTokenClassification(EARobertaPreTrainedModel, RobertaForTokenClassification):
    """Head for the classification of each token, such as named entities.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels` of the same shape, with -100 where a token
    counts for nothing.
    Returns `loss`, if there are labels, `logits`, (batch, sequence, num_labels), and with `output_attention_maps=True`
    also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "FacebookAI/roberta-base"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EARobertaForTokenClassification.from_pretrained(name, num_labels=3)
        inputs = tokenizer("Ada lives in London.", return_tensors="pt")
        classes = model(**inputs).logits.argmax(dim=-1)
        ```
    """


class EARobertaForQuestionAnswering(EARobertaPreTrainedModel, RobertaForQuestionAnswering):
    """Head for the start and the end of an answer in a text.

    Takes `input_ids` and `attention_mask`, (batch, sequence), of question and text, and `start_positions` and
    `end_positions`, (batch,).
    Returns `loss`, if there are positions, `start_logits` and `end_logits`, (batch, sequence), and with
    `output_attention_maps=True` also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "FacebookAI/roberta-base"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EARobertaForQuestionAnswering.from_pretrained(name)
        inputs = tokenizer("Who left?", "I left after half an hour.", return_tensors="pt")
        outputs = model(**inputs)
        start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
        ```
    """


class EARobertaForMultipleChoice(EARobertaPreTrainedModel, RobertaForMultipleChoice):
    """Head for the choice among several continuations.

    Takes `input_ids` and `attention_mask`, (batch, choices, sequence), and `labels`, (batch,), the number of the right
    choice from 0.
    Returns `loss`, if there are labels, `logits`, (batch, choices), and with `output_attention_maps=True` also
    `attention_maps`, each layer's (batch times choices, heads, query, key).

    Examples:
        ```python
        name = "FacebookAI/roberta-base"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EARobertaForMultipleChoice.from_pretrained(name)
        choices = ["Loud, long and", "Loud, long and"], ["empty.", "moving."]
        inputs = tokenizer(*choices, padding=True, return_tensors="pt")
        logits = model(**{key: value[None] for key, value in inputs.items()}).logits
        ```
    """


__all__ = [
    "EARobertaConfig",
    "EARobertaForMaskedLM",
    "EARobertaForMultipleChoice",
    "EARobertaForQuestionAnswering",
    "EARobertaForSequenceClassification",
    "EARobertaForTokenClassification",
    "EARobertaModel",
    "EARobertaPreTrainedModel",
]
