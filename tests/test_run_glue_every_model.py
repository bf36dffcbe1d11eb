# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_glue.py with models that have no family of their own: `evolve` makes them evolving, or says why it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_run_glue import files, fine_tune
from tiny_bert import arguments, run_script, write_checkpoint
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    DebertaConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedConfig,
    XLMRobertaConfig,
)


pytestmark = pytest.mark.usefixtures("isolated")


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
CONFIGS = {
    "electra": (ElectraConfig, {"embedding_size": 16, **SIZES}),
    "distilbert": (DistilBertConfig, {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}),
    "modernbert": (ModernBertConfig, {**SIZES, **SPECIAL, "layer_types": ["full_attention"] * 3}),
    "xlm_roberta": (XLMRobertaConfig, {**SIZES, "pad_token_id": 0}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4, "pad_token_id": 0}),
}
REFUSED = {
    "windows": (ModernBertConfig, {**SIZES, **SPECIAL}, "sliding window"),
    "deberta": (DebertaConfig, SIZES, "does not call Transformers' attention interface"),
    "albert": (AlbertConfig, {"embedding_size": 16, **SIZES}, "share a module"),
}


def write_model(directory: Path, config_class: type[PreTrainedConfig], values: dict[str, Any]) -> str:
    """Writes a random vanilla model without head, with the tokenizer of the tiny BERT."""
    write_checkpoint(directory)
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    AutoModel.from_config(config_class(vocab_size=size, **values)).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow_but("electra")
def test_a_model_without_a_family_evolves_with_its_weights_and_goes_on(name, tmp_path):
    vanilla, data = write_model(tmp_path / "vanilla", *CONFIGS[name]), files(tmp_path, "pairs")
    options = {**data, "max_length": 48, "learning_rate": 0.0}
    fine_tune(
        tmp_path / "first", model_name_or_path=vanilla, **options, ea_residual_weight=0.3, ea_conv_weight=0.2,
        ea_kernel_size=5,
    )  # fmt: skip
    first = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    assert type(first).__name__.startswith("Evolved")
    assert (first.config.ea_residual_weight, first.config.ea_conv_weight, first.config.ea_kernel_size) == (0.3, 0.2, 5)
    pretrained, weights = (
        load_file(Path(vanilla) / "model.safetensors"),
        load_file(tmp_path / "first/model.safetensors"),
    )
    prefix = f"{first.base_model_prefix}."
    kept = {key: value for key, value in pretrained.items() if "pooler" not in key}  # not every head has one
    assert all(torch.equal(weights[prefix + key], value) for key, value in kept.items())

    fine_tune(tmp_path / "second", model_name_or_path=tmp_path / "first", **options, ea_conv_weight=0.4)
    continued = load_file(tmp_path / "second/model.safetensors")
    assert continued.keys() == weights.keys()
    assert all(torch.equal(continued[key], value) for key, value in weights.items())
    second = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    assert (second.config.ea_residual_weight, second.config.ea_conv_weight) == (0.3, 0.4)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_evolve_is_refused_with_the_reason(name, tmp_path):
    config_class, values, reason = REFUSED[name]
    vanilla = write_model(tmp_path / "vanilla", config_class, values)
    with pytest.raises(
        ValueError, match=rf"vanilla, of the type '{config_class.model_type}', cannot evolve: .*{reason}"
    ):
        fine_tune(tmp_path / "output", model_name_or_path=vanilla, **files(tmp_path))
    assert not (tmp_path / "output").exists()


def test_positions_that_begin_after_the_padding_are_known_in_other_models_too(tmp_path):
    vanilla = write_model(
        tmp_path / "vanilla", XLMRobertaConfig, {**SIZES, "pad_token_id": 0, "max_position_embeddings": 40}
    )
    with pytest.raises(ValueError, match=r"--max_length is 40, but .* ends at 39 tokens"):
        fine_tune(tmp_path / "output", model_name_or_path=vanilla, **files(tmp_path), max_length=40)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["electra", "modernbert"])
def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(name, tmp_path):
    config_class, values = CONFIGS[name]
    if name == "electra":  # dropout depends on the micro-batches, which differ
        values = {**values, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = {
        "model_name_or_path": write_model(tmp_path / "vanilla", config_class, values), **files(tmp_path),
        "max_length": 32, "learning_rate": 1e-3, "max_train_steps": 4, "checkpointing_steps": 2, "logging_steps": 1,
    }  # fmt: skip

    def losses(name: str) -> list[float]:
        state = json.loads((tmp_path / name / "checkpoint-4/trainer_state.json").read_text())
        return [report["loss"] for report in state["log_history"] if "loss" in report]

    fine_tune(tmp_path / "one", **options, per_device_train_batch_size=8)
    words = arguments(**options, output_dir=tmp_path / "two", per_device_train_batch_size=4)
    status, output = run_script(words, processes=2)
    assert status == 0, output
    expected = pytest.approx(losses("one"), abs=1e-4)
    assert len(losses("one")) == 4 and losses("two") == expected
    fine_tune(
        tmp_path / "two", **options, per_device_train_batch_size=8,
        resume_from_checkpoint=tmp_path / "two/checkpoint-2",
    )  # fmt: skip
    assert losses("two") == expected
