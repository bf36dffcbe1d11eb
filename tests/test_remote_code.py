# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of every model class travels with its code: who has no `ea_hf` loads it with `trust_remote_code=True`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CASES
from stranger import run_stranger
from test_ea_resnet import images, tiny_model
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForMaskedLM

import ea_hf
from ea_hf.models.auto import CONFIGS
from ea_hf.models.auto import MODELS as REGISTERED


MODELS = [(auto_class, model_class) for auto_class, model_class in REGISTERED if isinstance(auto_class, type)]
MODEL_CLASSES = list(dict.fromkeys(model_class for _, model_class in MODELS))
# Where Transformers has a table but no Auto class for a task, `AutoModel` loads what was saved.
WITHOUT_AUTO_CLASS = [model_class for auto_class, model_class in REGISTERED if not isinstance(auto_class, type)]
SHARED_FILES = {
    "configuration_evolving.py",
    "evolution.py",
    "evolution_cache.py",
    "evolution_layer.py",
    "evolution_state.py",
    "undocumented.py",
    "evolution_blocks.py",
    "evolution_flags.py",
    "evolution_fast.py",
    "evolution_operators.py",
    "evolution_triton.py",
    "triton_launches.py",
    "triton_kernels.py",
    "modeling_evolving.py",
    "presets.py",
    "remote_code.py",
}
# Reads the examples, and compares with what the saved model gave.
COMPARE = """
import json, pathlib, sys
import torch, transformers
from torch.utils._pytree import tree_leaves
from transformers.dynamic_module_utils import get_class_from_dynamic_module

def load(directory, auto_name):
    if auto_name != "AutoBackbone":
        return getattr(transformers, auto_name).from_pretrained(directory, trust_remote_code=True, ignore_mismatched_sizes=True)
    # AutoBackbone loads from the Hub only.
    config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
    reference = type(config).family_auto_map or config.auto_map
    return get_class_from_dynamic_module(reference[auto_name], directory).from_pretrained(directory, config=config)

def outputs_of(model, inputs, options):
    with torch.no_grad():
        outputs = tree_leaves(model(**inputs, **options).to_tuple())
        if model.can_generate():
            prompt = inputs["input_ids"]
            for use_cache in (True, False):
                outputs.append(model.generate(prompt, num_beams=2, max_new_tokens=9, use_cache=use_cache))
    return [value for value in outputs if isinstance(value, torch.Tensor)]

def is_equal(model, example):
    outputs = outputs_of(model.eval(), example["inputs"], example["options"])
    return len(outputs) == len(example["outputs"]) and all(map(torch.equal, outputs, example["outputs"]))
"""
exec(COMPARE)


def example(model_class: type) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """A model with large weights, inputs, and options of its forward."""
    for case in CASES:
        if case.model_class is model_class:
            return case.model(), case.batch().inputs, {**case.inputs.options, "output_attention_maps": True}
    return tiny_model(model_class), {"pixel_values": images()}, {}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A directory with a checkpoint of every model class, and beside it its inputs and outputs."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for model_class in MODEL_CLASSES + WITHOUT_AUTO_CLASS:
        model, inputs, options = example(model_class)
        model.save_pretrained(directory / model_class.__name__)
        outputs = outputs_of(model, inputs, options)  # noqa: F821  (of COMPARE)
        torch.save(
            {"inputs": inputs, "options": options, "outputs": outputs}, directory / f"{model_class.__name__}.pt"
        )
    return directory


@pytest.fixture(scope="module")
def loaded_by_a_stranger(checkpoints, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What a process without `ea_hf` finds, by model class: it loads each checkpoint, saves it, and loads it again."""
    home = tmp_path_factory.mktemp("home")
    auto_classes = {model_class.__name__: auto_class.__name__ for auto_class, model_class in MODELS}
    auto_classes |= {model_class.__name__: "AutoModel" for model_class in WITHOUT_AUTO_CLASS}
    code = f"""
{COMPARE}
found = {{}}
for name, auto_name in {auto_classes}.items():
    example = torch.load(f"{checkpoints}/{{name}}.pt")
    model = load(f"{checkpoints}/{{name}}", auto_name)
    model.save_pretrained(f"saved/{{name}}")
    again = load(f"saved/{{name}}", auto_name)
    found[name] = {{
        "class": type(model).__name__, "module": type(model).__module__,
        "equal": is_equal(model, example), "equal again": is_equal(again, example),
        "saved": sorted(path.name for path in pathlib.Path("saved", name).iterdir()),
    }}
print(json.dumps(found))
"""
    return json.loads(run_stranger(code, home).splitlines()[-1])


def parametrize(model_classes: list[type]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model_class", model_classes, ids=lambda model_class: model_class.__name__)


every_model_class = parametrize(MODEL_CLASSES)
every_saved_class = parametrize(MODEL_CLASSES + WITHOUT_AUTO_CLASS)


@every_saved_class
@pytest.mark.slow_but("EABertForPreTraining")
def test_a_stranger_loads_it_bit_by_bit(model_class, loaded_by_a_stranger):
    found = loaded_by_a_stranger[model_class.__name__]
    assert found["class"] == model_class.__name__ and found["module"].startswith("transformers_modules.")
    assert found["equal"]


@every_saved_class
def test_what_a_stranger_saves_is_complete(model_class, loaded_by_a_stranger, checkpoints):
    found = loaded_by_a_stranger[model_class.__name__]
    assert found["saved"] == sorted(path.name for path in (checkpoints / model_class.__name__).iterdir())
    assert found["equal again"]


@every_model_class
def test_who_has_ea_hf_needs_no_remote_code(model_class, checkpoints):
    directory = checkpoints / model_class.__name__
    auto_class = next(auto for auto, known in MODELS if known is model_class)
    if auto_class is AutoBackbone:  # loads from the Hub only
        auto_class = AutoModel
        model_class = ea_hf.EAResNetModel
    for trust in (None, False, True):
        assert type(auto_class.from_pretrained(directory, trust_remote_code=trust)) is model_class


@pytest.mark.slow
def test_every_auto_class_of_a_family_loads_from_any_of_its_checkpoints(checkpoints, tmp_path):
    jobs = []
    for config_class in CONFIGS:
        family = [(auto.__name__, known.__name__) for auto, known in MODELS if known.config_class is config_class]
        jobs += [(str(checkpoints / family[-1][1]), auto_name, name) for auto_name, name in family]
    code = f"""
{COMPARE}
transformers.utils.logging.set_verbosity_error()
for directory, auto_name, name in {jobs}:
    model = load(directory, auto_name)
    assert type(model).__name__ == name, (directory, auto_name, type(model))
"""
    run_stranger(code, tmp_path)


@pytest.mark.parametrize(
    ("model_class", "own_files"),
    [
        (ea_hf.EABertForMaskedLM, {"configuration_ea_bert.py", "modeling_ea_bert.py"}),
        (
            ea_hf.EAT5EncoderModel,
            {"configuration_ea_t5.py", "modeling_ea_t5.py", "pipeline_translation.py"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_the_files_that_a_family_needs_travel(model_class, own_files, checkpoints):
    found = {path.name for path in (checkpoints / model_class.__name__).glob("*.py")}
    assert found == own_files | SHARED_FILES


def test_without_the_flag_there_is_transformers_usual_message(checkpoints, tmp_path):
    code = f"""
import transformers
for auto_class in (transformers.AutoConfig, transformers.AutoModelForMaskedLM):
    for trust in (None, False):
        try:
            auto_class.from_pretrained("{checkpoints}/EABertForMaskedLM", trust_remote_code=trust)
        except ValueError as error:
            print(str(error).replace("\\n", " "))
"""
    lines = run_stranger(code, tmp_path).splitlines()
    messages = [line for line in lines if "contains custom code which must be executed" in line]
    assert sum("pass the argument `trust_remote_code=True` to allow custom code to be run" in m for m in messages) == 4


@pytest.mark.slow
def test_a_configuration_alone_travels_with_the_code_of_its_models(checkpoints, tmp_path):
    name = "EAT5ForConditionalGeneration"
    code = f"""
{COMPARE}
config = transformers.AutoConfig.from_pretrained("{checkpoints}/{name}", trust_remote_code=True)
config.save_pretrained("alone")
model = transformers.AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=True)
model.save_pretrained("new")
print(json.dumps([sorted(path.name for path in pathlib.Path(d).glob("*.py")) for d in ("alone", "new")]))
"""
    expected = sorted(path.name for path in (checkpoints / name).glob("*.py"))
    assert json.loads(run_stranger(code, tmp_path).splitlines()[-1]) == [expected, expected]


@pytest.mark.slow
def test_remote_code_and_ea_hf_work_side_by_side(checkpoints, tmp_path):
    """Each copy of the mechanism keeps to its own models, whichever was imported last."""
    names = {known.config_class.model_type: (auto.__name__, known.__name__) for auto, known in reversed(MODELS)}
    names["ea_t5"] = ("AutoModelForSeq2SeqLM", "EAT5ForConditionalGeneration")
    code = f"""
{COMPARE}
def load_all():
    return [(load(f"{checkpoints}/{{name}}", auto_name), name) for auto_name, name in {list(names.values())}]

remote = load_all()
import ea_hf
from ea_hf.models.evolution import AttentionEvolution, evolving_attention_forward
own = load_all()
assert all(type(model).__module__.startswith("transformers_modules.") for model, _ in remote)
assert all(type(model).__module__.startswith("ea_hf.") for model, _ in own)
for model, name in own:
    reference = model.config.family_auto_map["AutoModel"].split(".")[0] + "." + name
    late = get_class_from_dynamic_module(reference, f"{checkpoints}/{{name}}").from_pretrained(f"{checkpoints}/{{name}}")
    assert not isinstance(late, type(model)) and not any(isinstance(m, AttentionEvolution) for m in late.modules())
    remote.append((late, name))
for models in (own, remote, own):
    for model, name in models:
        assert is_equal(model, torch.load(f"{checkpoints}/{{name}}.pt")), (name, type(model))
for (model, name), (other, _) in zip(own, remote):
    crossed = type(model)(other.config).eval()
    crossed.load_state_dict(model.state_dict())
    assert is_equal(crossed, torch.load(f"{checkpoints}/{{name}}.pt")), name
"""
    run_stranger(code, tmp_path, has_ea_hf=True)


def test_remote_code_of_another_version_changes_nothing_here(checkpoints, tmp_path):
    """What one copy registers with Transformers, the attention function above all, is found by its own models only."""
    shutil.copytree(checkpoints / "EABertForMaskedLM", tmp_path / "other")
    file = tmp_path / "other/evolution.py"
    start = "def evolving_attention_forward("
    other = (
        "def evolving_attention_forward(*args, **kwargs):\n    raise RuntimeError('other version')\n\n\ndef unused("
    )
    assert file.read_text().count(start) == 1
    file.write_text(file.read_text().replace(start, other))
    code = f"""
{COMPARE}
example = torch.load("{checkpoints}/EABertForMaskedLM.pt")
other = load("{tmp_path}/other", "AutoModelForMaskedLM")
import ea_hf
own = load("{checkpoints}/EABertForMaskedLM", "AutoModelForMaskedLM")
late = get_class_from_dynamic_module("modeling_ea_bert.EABertForMaskedLM", "{tmp_path}/other", force_download=True)
for model in (other, late.from_pretrained("{tmp_path}/other")):
    try:
        is_equal(model, example)
    except RuntimeError as error:
        assert str(error) == "other version"
    else:
        raise AssertionError("the other version did not run")
    assert is_equal(own, example)
"""
    run_stranger(code, tmp_path, has_ea_hf=True)


def test_what_the_configuration_in_memory_says_is_the_same_before_and_after_saving(tmp_path):
    for config_class in CONFIGS:
        config = config_class()
        config.save_pretrained(tmp_path / config.model_type)
        loaded = AutoConfig.from_pretrained(tmp_path / config.model_type)
        assert type(loaded) is config_class and loaded.to_diff_dict() == config.to_diff_dict()
        saved = json.loads((tmp_path / config.model_type / "config.json").read_text())
        assert saved["auto_map"]["AutoConfig"].endswith(f".{config_class.__name__}")


def test_code_of_another_repository_is_saved_beside_the_checkpoint(checkpoints, tmp_path):
    """Where `auto_map` names a repository, as in "user/model--module.Class", a copy no longer does."""
    home, split = tmp_path / "home", tmp_path / "split"
    home.mkdir()
    code_directory = checkpoints / "EABertForMaskedLM"
    split.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(code_directory / name, split)
    config = json.loads((split / "config.json").read_text())
    config["auto_map"] = {name: f"{code_directory}--{found}" for name, found in config["auto_map"].items()}
    (split / "config.json").write_text(json.dumps(config))
    code = f"""
{COMPARE}
model = transformers.AutoModelForMaskedLM.from_pretrained("{split}", trust_remote_code=True)
model.save_pretrained("whole")
model = transformers.AutoModelForMaskedLM.from_pretrained("whole", trust_remote_code=True)
assert is_equal(model, torch.load("{checkpoints}/EABertForMaskedLM.pt"))
assert "--" not in pathlib.Path("whole/config.json").read_text()
"""
    run_stranger(code, home)


def test_a_vanilla_model_becomes_a_checkpoint_with_code(tmp_path):
    case = next(case for case in CASES if case.model_class is ea_hf.EABertForMaskedLM)
    case.vanilla_model().save_pretrained(tmp_path / "vanilla")
    case.model_class.from_pretrained(tmp_path / "vanilla").save_pretrained(tmp_path / "evolving")
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "evolving")) is case.model_class
    assert type(AutoModel.from_pretrained(tmp_path / "evolving")) is ea_hf.EABertModel
    assert (tmp_path / "evolving/modeling_ea_bert.py").exists()
    assert not list((tmp_path / "vanilla").glob("*.py"))
