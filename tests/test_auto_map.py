# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a configuration says of the code beside it: right after loading too, never of classes that are not there, nor of others' code."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from models import CASES
from stranger import run_stranger
from test_surroundings import make_llama, tokens
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    CLIPImageProcessorPil,
    ElectraConfig,
    ElectraForMaskedLM,
    FunnelConfig,
    FunnelModel,
    ViTImageProcessorPil,
)

import ea_hf
from ea_hf.models.auto import CONFIGS
from ea_hf.models.image_processing_ea import EAImageProcessor
from ea_hf.training.tokenizer_loading import forget_foreign_code


# As trainers of others find the class of a checkpoint of which they know the path only.
LOAD_BY_PATH = """
import transformers

def load_by_path(path, **options):
    config = transformers.AutoConfig.from_pretrained(path, **options)
    architecture = getattr(transformers, config.architectures[0], None)
    if architecture is None:
        assert "AutoModelForCausalLM" in (config.auto_map or {})
        architecture = transformers.AutoModelForCausalLM
    return architecture.from_pretrained(path, **options)
"""
exec(LOAD_BY_PATH)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    model = make_llama()
    model.save_pretrained(directory / "model")
    with torch.no_grad():
        torch.save((tokens(2, 7), model(tokens(2, 7)).logits), directory / "expected.pt")
    return directory


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}], ids=str)
def test_trainers_of_others_load_an_evolved_checkpoint_by_its_path(trust, llama, tmp_path):
    ids, expected = torch.load(llama / "expected.pt")
    model = load_by_path(llama / "model", **trust)  # noqa: F821  (of LOAD_BY_PATH)
    assert type(model).__module__.startswith("ea_hf.")
    model.save_pretrained(tmp_path)
    for loaded in (model, load_by_path(tmp_path, **trust)):  # noqa: F821
        with torch.no_grad():
            assert torch.equal(loaded.eval()(ids).logits, expected)


def test_trainers_of_others_without_ea_hf_load_an_evolved_checkpoint_by_its_path(llama, tmp_path):
    code = f"""
import torch
{LOAD_BY_PATH}
ids, expected = torch.load("{llama}/expected.pt")
for path in ("{llama}/model", "again"):
    model = load_by_path(path, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, expected)
    model.save_pretrained("again")
"""
    run_stranger(code, tmp_path)


def saved_auto_map(directory: Path) -> dict[str, str]:
    return json.loads((directory / "config.json").read_text())["auto_map"]


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_a_loaded_configuration_says_what_its_file_says(config_class, tmp_path):
    for case in [case for case in CASES if case.model_class.config_class is config_class][:2]:
        model = case.model()
        model.save_pretrained(tmp_path / case.model_class.__name__)
        config = AutoConfig.from_pretrained(tmp_path / case.model_class.__name__)
        assert config.auto_map == saved_auto_map(tmp_path / case.model_class.__name__) == model.config.auto_map
        assert "auto_map" not in vars(config) and "auto_map" not in config.to_dict()


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda config_class: config_class.__name__)
def test_no_class_is_named_that_does_not_travel(config_class, tmp_path):
    """`architectures` of a configuration of a vanilla checkpoint are Transformers' classes, or anything at all."""
    known = {reference.split(".")[-1] for reference in config_class.family_auto_map.values()}
    for architecture in ("BertForMaskedLM", "ViTModel", "Unheard", "EA.*"):
        config_class(architectures=[architecture]).save_pretrained(tmp_path)
        assert {reference.split(".")[-1] for reference in saved_auto_map(tmp_path).values()} <= known


def test_the_architecture_of_a_vanilla_checkpoint_is_not_named(tmp_path):
    BertConfig(architectures=["BertForNextSentencePrediction"]).save_pretrained(tmp_path)
    ea_hf.EABertConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert saved_auto_map(tmp_path)["AutoModel"] == "modeling_ea_bert.EABertModel"


def test_an_evolved_class_of_several_for_an_auto_class_is_loaded_without_ea_hf(tmp_path):
    """`AutoModel` has two classes for Funnel; the file names the one that was saved."""
    config = FunnelConfig(
        vocab_size=9, block_sizes=[1, 1], num_decoder_layers=1, d_model=8, n_head=2, d_head=4, d_inner=8
    )
    config.architectures = ["FunnelModel"]
    evolved = ea_hf.EvolvedConfig.from_dict(
        {**config.to_dict(), "model_type": "ea_evolved", "vanilla_model_type": "funnel"}
    )
    assert "AutoModel" not in evolved.auto_map
    evolved.architectures = [f"Evolved{FunnelModel.__name__}"]
    assert evolved.auto_map["AutoModel"] == "modeling_ea_evolved.EvolvedFunnelModel"


def test_code_of_others_does_not_go_on_from_a_model_that_evolves(tmp_path, caplog):
    config = ElectraConfig(
        hidden_size=8, embedding_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8
    )
    config.auto_map = {"AutoModel": "stranger--code.Model"}
    config.custom_pipelines = {"fill-mask": {"impl": "stranger--code.Pipeline", "pt": ["AutoModel"]}}
    with caplog.at_level(logging.INFO):
        model = ea_hf.evolve(ElectraForMaskedLM(config))
    model.save_pretrained(tmp_path)
    assert caplog.text.count("refers to code of others") == 2
    assert "stranger" not in (tmp_path / "config.json").read_text()
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "EvolvedElectraModel"


@pytest.mark.parametrize("processor_class", [ViTImageProcessorPil, CLIPImageProcessorPil, EAImageProcessor])
def test_code_of_others_does_not_go_on_with_an_image_processor(processor_class, tmp_path, caplog):
    processor_class().save_pretrained(tmp_path / "model")
    file = tmp_path / "model/preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings["auto_map"] = {"AutoFeatureExtractor": "stranger--code.Extractor", **settings.get("auto_map", {})}
    file.write_text(json.dumps(settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil", trust_remote_code=False)
    with caplog.at_level(logging.INFO):
        forget_foreign_code(processor)
    processor.save_pretrained(tmp_path / "saved")
    saved = (tmp_path / "saved/preprocessor_config.json").read_text()
    assert "stranger" not in saved and "code that was not loaded" in caplog.text
    assert ("image_processing_ea.EAImageProcessor" in saved) == (processor_class is EAImageProcessor)


def test_code_of_others_does_not_go_on_with_a_feature_extractor(tmp_path):
    extractor = ea_hf.EADCTransformerFeatureExtractor()
    extractor.auto_map = {"AutoProcessor": "stranger--code.Processor"}
    forget_foreign_code(extractor)
    extractor.save_pretrained(tmp_path)
    assert "stranger" not in (tmp_path / "preprocessor_config.json").read_text()
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is type(extractor)


def test_code_of_others_does_not_go_on_with_parts_of_a_processor(tmp_path):
    class Whole:
        def __init__(self, image_processor):
            self.image_processor = image_processor

    part = ViTImageProcessorPil()
    part.auto_map = {"AutoImageProcessor": "stranger--code.Processor"}
    forget_foreign_code(Whole(part))
    assert "auto_map" not in vars(part)


def test_no_class_of_transformers_is_taken_for_an_evolved_one(llama):
    config = AutoConfig.from_pretrained(llama / "model")
    assert getattr(transformers, config.architectures[0], None) is None
