# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-BERT: BERT whose attention maps evolve from layer to layer (https://arxiv.org/abs/2102.12895).

Each class is its vanilla counterpart with an `AttentionEvolution` in every self-attention. Inputs, outputs and
parameter names are those of Transformers' BERT; `output_attention_maps=True` adds `attention_maps` to the output, the
pre-softmax map of every layer, (batch, heads, query, key).
"""

from transformers.models.bert.modeling_bert import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)

from .configuration_ea_bert import EABertConfig
from .evolution import attach_evolution
from .modeling_evolving import EvolvingPreTrainedModel


class EABertPreTrainedModel(EvolvingPreTrainedModel, BertPreTrainedModel):
    """What all classes of EA-BERT share: loading, saving, initialization, and the chain of their layers.

    A base class to test for, not one to make models of. `from_pretrained` of each class that inherits from it takes
    checkpoints of EA-BERT, and vanilla ones of BERT with the fields of `EvolvingConfig` as arguments, such as
    `ea_conv_weight`.
    What a vanilla checkpoint lacks, convolutions and a head, starts from random values.

    Examples:
        ```python
        model = ea_hf.EABertModel.from_pretrained("google-bert/bert-base-uncased", ea_conv_weight=0.2)
        assert isinstance(model, ea_hf.EABertPreTrainedModel)
        ```
    """

    config: EABertConfig


class EABertModel(EABertPreTrainedModel, BertModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`.

    Takes `input_ids` and `attention_mask`, (batch, sequence).
    Returns `last_hidden_state`, (batch, sequence, hidden_size), `pooler_output`, (batch, hidden_size), and with
    `output_attention_maps=True` also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertModel.from_pretrained(name)
        inputs = tokenizer("A film that never quite finds its feet.", return_tensors="pt")
        states = model(**inputs).last_hidden_state
        ```
    """

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention.self for layer in self.encoder.layer])


EABertPreTrainedModel.evolving_classes = {BertModel: EABertModel}


class EABertForPreTraining(EABertPreTrainedModel, BertForPreTraining):
    """Heads for masked language modeling and next-sentence prediction.

    Takes `input_ids` and `attention_mask`, (batch, sequence), `labels` of the same shape with -100 where nothing was
    masked, and `next_sentence_label`, (batch,), 0 where the second sentence follows.
    Returns `loss`, `prediction_logits`, (batch, sequence, vocab_size), `seq_relationship_logits`, (batch, 2), and with
    `output_attention_maps=True` also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertForPreTraining.from_pretrained(name)
        inputs = tokenizer("It drags.", "Then it drags some more.", return_tensors="pt")
        follows = model(**inputs).seq_relationship_logits.softmax(dim=-1)[0, 0]
        ```
    """


class EABertForMaskedLM(EABertPreTrainedModel, BertForMaskedLM):
    """Head for masked language modeling.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels` of the same shape, with -100 where nothing
    was masked.
    Returns `loss`, if there are labels, `logits`, (batch, sequence, vocab_size), and with `output_attention_maps=True`
    also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertForMaskedLM.from_pretrained(name)
        inputs = tokenizer("A [MASK] film.", return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        word = tokenizer.decode([model(**inputs).logits[0, place].argmax().item()])
        ```
    """


class EABertForSequenceClassification(EABertPreTrainedModel, BertForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, such as GLUE's tasks.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels`, (batch,): classes, or numbers if
    `num_labels` is 1.
    Returns `loss`, if there are labels, `logits`, (batch, num_labels), and with `output_attention_maps=True` also
    `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertForSequenceClassification.from_pretrained(name, num_labels=2)
        inputs = tokenizer("A film that never quite finds its feet.", return_tensors="pt")
        probabilities = model(**inputs).logits.softmax(dim=-1)
        ```
    """


class EABertForTokenClassification(EABertPreTrainedModel, BertForTokenClassification):
    """Head for the classification of each token, such as named entities.

    Takes `input_ids` and `attention_mask`, (batch, sequence), and `labels` of the same shape, with -100 where a token
    counts for nothing.
    Returns `loss`, if there are labels, `logits`, (batch, sequence, num_labels), and with `output_attention_maps=True`
    also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertForTokenClassification.from_pretrained(name, num_labels=3)
        inputs = tokenizer("Ada lives in London.", return_tensors="pt")
        classes = model(**inputs).logits.argmax(dim=-1)
        ```
    """


class EABertForQuestionAnswering(EABertPreTrainedModel, BertForQuestionAnswering):
    """Head for the start and the end of an answer in a text.

    Takes `input_ids` and `attention_mask`, (batch, sequence), of question and text, and `start_positions` and
    `end_positions`, (batch,).
    Returns `loss`, if there are positions, `start_logits` and `end_logits`, (batch, sequence), and with
    `output_attention_maps=True` also `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertForQuestionAnswering.from_pretrained(name)
        inputs = tokenizer("Who left?", "I left after half an hour.", return_tensors="pt")
        outputs = model(**inputs)
        start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
        ```
    """


class EABertForMultipleChoice(EABertPreTrainedModel, BertForMultipleChoice):
    """Head for the choice among several continuations.

    Takes `input_ids` and `attention_mask`, (batch, choices, sequence), and `labels`, (batch,), the number of the right
    choice from 0.
    Returns `loss`, if there are labels, `logits`, (batch, choices), and with `output_attention_maps=True` also
    `attention_maps`, each layer's (batch times choices, heads, query, key).

    Examples:
        ```python
        name = "google-bert/bert-base-uncased"
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = ea_hf.EABertForMultipleChoice.from_pretrained(name)
        choices = ["Loud, long and", "Loud, long and"], ["empty.", "moving."]
        inputs = tokenizer(*choices, padding=True, return_tensors="pt")
        logits = model(**{key: value[None] for key, value in inputs.items()}).logits
        ```
    """


__all__ = [
    "EABertConfig",
    "EABertForMaskedLM",
    "EABertForMultipleChoice",
    "EABertForPreTraining",
    "EABertForQuestionAnswering",
    "EABertForSequenceClassification",
    "EABertForTokenClassification",
    "EABertModel",
    "EABertPreTrainedModel",
]
