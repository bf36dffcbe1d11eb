# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What breaks when an undocumented name of PyTorch or Transformers is gone or means something else."""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ea_hf.models import undocumented


def test_a_backward_pass_is_noticed():
    """Else a replayed layer would count a batch twice in the running statistics of batch normalization."""
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        seen.append(undocumented.is_in_backward())
        return x.square()

    x = torch.ones(3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert seen == [False, True]


def test_function_transforms_are_noticed():
    """Else the fast paths, which write in place, would run under `torch.func`."""
    seen = []
    torch.func.vmap(lambda x: seen.append(undocumented.is_in_function_transform()) or x)(torch.ones(2))
    assert seen == [True] and not undocumented.is_in_function_transform()


def test_hooks_are_noticed():
    """Else the fast paths would read a weight past offloading, adapters and whatever else hooks in."""
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        module = nn.Linear(2, 2)
        assert not undocumented.has_hooks(module)
        handle = getattr(module, register)(lambda *args: None)
        assert undocumented.has_hooks(module)
        handle.remove()
        assert not undocumented.has_hooks(module)
        handle = getattr(nn.modules.module, register.replace("register_", "register_module_"))(lambda *args: None)
        assert undocumented.has_hooks(module)
        handle.remove()


def test_an_attention_function_is_found_by_the_name_set():
    """Else an attention module would run plain attention."""
    config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=9)
    model, called = BertModel(config), []
    eager = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS.register("noted", lambda *args, **kwargs: called.append(1) or eager(*args, **kwargs))
    attention = model.encoder.layer[0].attention.self
    attention.config = copy.copy(attention.config)
    undocumented.set_attention_function(attention.config, "noted")
    model(torch.tensor([[1, 2]]))
    assert called == [1] and model.config._attn_implementation != "noted"


def test_models_that_changed_their_class_record_outputs():
    """Else `output_hidden_states=True` would return nothing."""

    class Changed(BertModel):
        pass

    config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8, vocab_size=9)
    model = BertModel(config)
    model.__class__ = Changed
    undocumented.record_outputs(model)
    assert len(model(torch.tensor([[1, 2]]), output_hidden_states=True).hidden_states) == 3


def test_auto_classes_tell_their_models():
    """Else the Auto classes would not know evolved models."""
    assert undocumented.model_mapping(AutoModel)[BertConfig] is BertModel
    assert undocumented.model_mapping(AutoTokenizer) is None


def test_static_tensors_and_renamed_weights():
    undocumented.keep_in_place(torch.zeros(1))
    model = nn.Linear(1, 1)
    model._weight_conversions = ["renamed"]
    undocumented.forget_renamed_weights(model)
    assert "_weight_conversions" not in vars(model)
