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
    `ea_conv_weight`. What a vanilla checkpoint lacks, convolutions and a head, starts from random values.
    Inputs are `input_ids` and `attention_mask`, (batch, sequence), and what a class names beside them. With
    `output_attention_maps=True` outputs have `attention_maps`, each layer's (batch, heads, query, key).

    Examples:
        ```python
        model = ea_hf.EABertModel.from_pretrained(name, ea_conv_weight=0.2)
        assert isinstance(model, ea_hf.EABertPreTrainedModel)
        ```
    """

    config: EABertConfig


class EABertModel(EABertPreTrainedModel, BertModel):
    """The encoder, with a pooler unless `add_pooling_layer=False`.

    Takes what [`EABertPreTrainedModel`][ea_hf.EABertPreTrainedModel] says.
    Returns `last_hidden_state`, (batch, sequence, hidden_size), and `pooler_output`, (batch, hidden_size).

    Examples:
        ```python
        model = ea_hf.EABertModel.from_pretrained(name)
        states = model(**inputs).last_hidden_state
        ```
    """

    def make_chains(self) -> None:
        attach_evolution(self.config, [layer.attention.self for layer in self.encoder.layer])


EABertPreTrainedModel.evolving_classes = {BertModel: EABertModel}


class EABertForPreTraining(EABertPreTrainedModel, BertForPreTraining):
    """Heads for masked language modeling and next-sentence prediction.

    Takes also `labels`, (batch, sequence), with -100 where nothing was masked, and `next_sentence_label`, (batch,), 0 where
    the second sentence follows.
    Returns `loss`, if there are labels, `prediction_logits`, (batch, sequence, vocab_size), and
    `seq_relationship_logits`, (batch, 2).

    Examples:
        ```python
        model = ea_hf.EABertForPreTraining.from_pretrained(name)
        pair = tokenizer("It drags.", "Then it drags some more.", return_tensors="pt")
        follows = model(**pair).seq_relationship_logits.softmax(dim=-1)[0, 0]
        ```
    """


class EABertForMaskedLM(EABertPreTrainedModel, BertForMaskedLM):
    """Head for masked language modeling.

    Takes also `labels`, (batch, sequence), with -100 where nothing was masked.
    Returns `loss`, if there are labels, and `logits`, (batch, sequence, vocab_size).

    Examples:
        ```python
        model = ea_hf.EABertForMaskedLM.from_pretrained(name)
        masked = tokenizer(f"A {tokenizer.mask_token} film.", return_tensors="pt")
        place = masked["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        word = tokenizer.decode([model(**masked).logits[0, place].argmax().item()])
        ```
    """


class EABertForSequenceClassification(EABertPreTrainedModel, BertForSequenceClassification):
    """Head for classification or regression of a sentence or a pair, such as GLUE's tasks.

    Takes also `labels`, (batch,): classes, or numbers if `num_labels` is 1.
    Returns `loss`, if there are labels, and `logits`, (batch, num_labels).

    Examples:
        ```python
        model = ea_hf.EABertForSequenceClassification.from_pretrained(name, num_labels=2)
        probabilities = model(**inputs).logits.softmax(dim=-1)
        ```
    """


class EABertForTokenClassification(EABertPreTrainedModel, BertForTokenClassification):
    """Head for the classification of each token, such as named entities.

    Takes also `labels`, (batch, sequence), with -100 where a token counts for nothing.
    Returns `loss`, if there are labels, and `logits`, (batch, sequence, num_labels).

    Examples:
        ```python
        names = {0: "O", 1: "PERSON", 2: "PLACE"}
        model = ea_hf.EABertForTokenClassification.from_pretrained(name, id2label=names)
        classes = [names[number] for number in model(**inputs).logits[0].argmax(dim=-1).tolist()]
        ```
    """


class EABertForQuestionAnswering(EABertPreTrainedModel, BertForQuestionAnswering):
    """Head for the start and the end of an answer in a text.

    Takes also `start_positions` and `end_positions`, (batch,); its `input_ids` are question and text.
    Returns `loss`, if there are positions, and `start_logits` and `end_logits`, (batch, sequence).

    Examples:
        ```python
        model = ea_hf.EABertForQuestionAnswering.from_pretrained(name)
        outputs = model(**tokenizer("Who left?", "I left after half an hour.", return_tensors="pt"))
        start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
        ```
    """


class EABertForMultipleChoice(EABertPreTrainedModel, BertForMultipleChoice):
    """Head for the choice among several continuations.

    Takes inputs of (batch, choices, sequence), and `labels`, (batch,), the number of the right choice from 0.
    Returns `loss`, if there are labels, and `logits`, (batch, choices). Maps have batch times choices rows.

    Examples:
        ```python
        model = ea_hf.EABertForMultipleChoice.from_pretrained(name)
        choices = ["Loud, long and", "Loud, long and"], ["empty.", "moving."]
        encoded = tokenizer(*choices, padding=True, return_tensors="pt")
        logits = model(**{key: value[None] for key, value in encoded.items()}).logits
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
