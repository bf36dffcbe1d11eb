# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What breaks when an undocumented name of PyTorch or Transformers is gone or means something else."""

import ast
import copy
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    conversion_mapping,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ea_hf
from ea_hf import undocumented as undocumented_beside_models
from ea_hf.models import undocumented
from ea_hf.models.pipeline_translation import TranslationPipeline


ROOT = Path(__file__).parents[1]
TINY = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}
# Packages whose undocumented names are kept together.
OTHERS = ("torch", "transformers", "accelerate", "huggingface_hub", "peft", "aeon", "datasets")
# Methods that Transformers, PyTorch and aeon call, which classes of theirs must have under these names; and cache layers' kind.
OVERRIDDEN = {"_init_weights", "_set_gradient_checkpointing", "_preprocess_collection", "_layer_type", "_replace"}
# Modules without documentation.
UNDOCUMENTED_MODULES = {
    "transformers.conversion_mapping",
    "transformers.dynamic_module_utils",
    "transformers.loss.loss_utils",
    "transformers.masking_utils",
    "transformers.utils.generic",
    "transformers.utils.output_capturing",
}
SOURCES = [
    path
    for folder in ("ea_hf", "glue", "translation", "language_modeling", "time_series", "image_classification")
    for path in sorted(ROOT.joinpath(folder).rglob("*.py"))
    if path.name != "undocumented.py"
]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_undocumented_names_stand_in_their_files_only(path):
    found = []
    tree = ast.parse(path.read_text())
    own = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in OTHERS:
            parts = (*node.module.split("."), *(alias.name for alias in node.names))
            if any(map(is_private, parts)) or node.module in UNDOCUMENTED_MODULES:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if node.attr not in OVERRIDDEN | own and owner not in ("self", "cls", "argparse", "os"):
                found.append(f"{owner}.{node.attr}")
    assert not found


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


def test_recording_is_noticed():
    """Else what is recorded would depend on numbers, which `make_fx` refuses."""
    seen = []
    make_fx(lambda x: seen.append(undocumented.is_recorded()) or x + 1)(torch.ones(2))
    assert seen == [True] and not undocumented.is_recorded()


def test_own_parameters_are_found():
    """Else the fast paths would read weights that something else has put in the place of a module's."""
    module = nn.Sequential(nn.Linear(2, 3))
    module.register_parameter("given", nn.Parameter(torch.ones(1)))
    module.register_parameter("absent", None)
    assert list(undocumented.own_parameters(module)) == [module.given, None]
    assert list(undocumented.own_parameters(module[0])) == list(module[0].parameters())


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


def test_graphs_raise_what_they_are_told_to():
    """Else compiled models would compute something with masks that uncompiled ones refuse."""
    compiled = torch.compile(
        lambda flag: undocumented.assert_in_graph(flag, "told"), backend="aot_eager", fullgraph=True
    )
    compiled(torch.tensor(True))
    with pytest.raises(RuntimeError, match="told"):
        compiled(torch.tensor(False))


def test_pipelines_are_found_by_the_names_of_models():
    """Else `pipeline` would say that it does not support the model."""
    names = transformers.models.auto.modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    before = dict(names)
    undocumented.name_model_class(AutoModelForSeq2SeqLM, "named", "Named")
    assert names["named"] == "Named"
    names.clear()
    names.update(before)
    undocumented.name_model_class(AutoTokenizer, "named", "Named")  # has no models


def test_a_task_that_was_removed_is_registered():
    """Else `pipeline("translation")` would be refused by its name."""
    ea_hf.models.auto.register()
    assert transformers.pipelines.check_task("translation")[1]["impl"] is TranslationPipeline


def test_old_checkpoints_are_converted_as_those_of_the_vanilla_class():
    """Else a checkpoint of an older ViT would lose its weights."""
    undocumented.convert_checkpoints_as("Renamed", "ViTModel")
    assert conversion_mapping.get_checkpoint_conversion_mapping("Renamed")


def test_files_of_code_are_found_by_their_imports(tmp_path):
    """Else code would travel in part."""
    for name, text in (("a", "from .b import x"), ("b", "from .c import x"), ("c", "x = 1"), ("d", "")):
        (tmp_path / f"{name}.py").write_text(text)
    assert {path.name for path in undocumented.imported_files(tmp_path / "a.py")} == {"b.py", "c.py"}
    fetched = undocumented.fetch_code(str(tmp_path), "a.py")
    assert fetched.read_text() == "from .b import x" and "transformers_modules" in str(fetched)


def test_the_gradient_of_softmax():
    """Else training on the fast path would have no backward pass."""
    scores = torch.randn(2, 5, requires_grad=True)
    weights, grad = scores.softmax(dim=-1), torch.randn(2, 5)
    (expected,) = torch.autograd.grad(weights, scores, grad)
    assert_close(undocumented.softmax_backward(grad, weights.detach()), expected)


def test_a_tensor_s_version_grows_with_writing():
    """Else what was learned from a gate's values would be kept after they changed."""
    tensor = torch.zeros(2)
    before = undocumented.version_of(tensor)
    tensor.add_(1)
    assert undocumented.version_of(tensor) > before


def test_sums_over_processes_have_a_gradient(tmp_path):
    """Else batch normalization over processes would train on other gradients than one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        total = torch.tensor([2.0], requires_grad=True)
        assert_close(undocumented.sum_over_processes(total), total)
    finally:
        torch.distributed.destroy_process_group()


def test_modules_tell_with_what_they_checkpoint():
    """Else reentrant checkpointing, which cuts the gradient of maps, would not be noticed."""
    model = BertModel(BertConfig(**TINY))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    modules = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert modules and undocumented.checkpointing_function(modules[0]).keywords["use_reentrant"]


def test_losses_that_count_are_those_of_models():
    """Else `Trainer` would divide a loss twice, or not at all, under accumulation."""
    assert set(undocumented.COUNTING_LOSSES) <= set(transformers.loss.loss_utils.LOSS_MAPPING.values())


def test_outputs_are_captured_and_masks_made():
    """Else EA-DC-Transformer would return no hidden states, and masks of later tokens would not be told from others."""
    from ea_hf.models import evolution, modeling_ea_dc_transformer

    for name in ("OutputRecorder", "capture_outputs", "can_return_tuple", "merge_with_config_defaults"):
        assert getattr(modeling_ea_dc_transformer, name) is getattr(undocumented, name)
    assert evolution.sdpa_mask is undocumented.sdpa_mask


# Beside models


def test_storages_have_a_key():
    """Else a plan would count memory that tensors share twice."""
    tensor = torch.zeros(4)
    key = undocumented_beside_models.storage_key
    assert key(tensor.untyped_storage()) == key(tensor[1:].untyped_storage())
    assert key(tensor.untyped_storage()) != key(torch.zeros(4).untyped_storage())


def test_fake_tensors_and_calls_are_seen():
    """Else a plan would allocate what it counts, or count nothing."""
    seen = []

    class Noted(undocumented_beside_models.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            outputs = function(*args, **(kwargs or {}))
            seen.extend(undocumented_beside_models.tree_leaves([outputs]))
            return outputs

    with undocumented_beside_models.FakeTensorMode(), Noted():
        made = torch.empty(2**50).add(1)
    assert not undocumented.has_numbers(made) and len(seen) >= 2


def test_every_batch_normalization_is_one():
    """Else stand-ins of a short step would count in running statistics."""
    for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm):
        assert issubclass(norm, undocumented_beside_models.AnyBatchNorm)
    assert not issubclass(nn.LayerNorm, undocumented_beside_models.AnyBatchNorm)


def test_loaded_weights_are_told_from_new_ones(tmp_path):
    """Else a run would go on with other weights to start from."""
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path)
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    was_loaded = undocumented_beside_models.was_loaded
    assert was_loaded(loaded.bert.embeddings.word_embeddings.weight) and not was_loaded(loaded.classifier.weight)


def test_sharded_models_generate_in_step():
    """Else a process that is finished would leave the others waiting."""
    model = BertModel(BertConfig(**TINY))
    undocumented_beside_models.generate_in_step(model)
    assert transformers.integrations.fsdp.is_fsdp_managed_module(model)


def test_data_sets_have_fingerprints():
    """Else a run would go on with other data."""
    fingerprint = undocumented_beside_models.fingerprint
    rows = [datasets.Dataset.from_dict({"text": [text]}) for text in "ab"]
    assert fingerprint(rows[0]) and fingerprint(rows[0]) != fingerprint(rows[1]) and fingerprint(None) == ""


def test_configurations_of_generation_say_where_they_are_from():
    """Else that would be told as a setting that changes what is generated."""
    config = GenerationConfig.from_model_config(BertConfig())
    assert undocumented_beside_models.SAYS_WHERE_IT_IS_FROM in config.to_dict()


def test_processors_say_under_which_name_they_are_saved():
    """Else the reference to an extractor's own code would be told as one to the code of others."""
    written = undocumented_beside_models.written_auto_name
    assert written(ea_hf.EADCTransformerFeatureExtractor()) == "AutoFeatureExtractor" and written(None) is None
