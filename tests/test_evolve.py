# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""`evolve` on vanilla models of many families: what a family of the package keeps to the last digits, they keep too."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from evolved_families import (
    FAMILIES,
    TEXT,
    assert_same,
    every_family,
    every_generator,
    gradients,
    main_output,
    one_of_each_kind,
    without_dropout,
)
from exactness import run
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraTokenizer,
    pipeline,
)

import ea_hf


@every_family
def test_both_weights_zero_is_the_vanilla_model(family):
    vanilla = family.vanilla()
    model = ea_hf.evolve(copy.deepcopy(vanilla), residual_weight=0.0, conv_weight=0.0)
    assert model.state_dict().keys() == vanilla.state_dict().keys()
    for inputs in (family.inputs(), {name: x for name, x in family.inputs().items() if "mask" not in name}):
        actual, expected = run(model, inputs), run(vanilla, inputs)
        assert_same(actual, expected, atol=1e-5)


@every_family
def test_maps_evolve_in_every_chain(family):
    outputs = run(family.evolving(), family.inputs(), output_attention_maps=True)
    assert tuple(name for name in outputs if "attention_maps" in name) == family.chains
    for name in family.chains:
        maps = outputs[name]
        assert len(maps) > 2 and maps[0].std() > 0.3 and torch.isfinite(torch.stack(maps)).all()
        assert maps[0].abs().max() < 1e4  # no mask has leaked in
    expected = main_output(outputs)
    for change in ({"residual_weight": 0.0}, {"conv_weight": 0.0}, {"kernel_size": 1}):
        other = family.evolving(**change)
        assert (main_output(run(other, family.inputs())) - expected).abs().max() > 1e-3, change


@pytest.mark.parametrize("kernel_size", [3, 5], ids="kernel{}".format)
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.kind not in ("images", "text-and-images")], ids=str
)
def test_padding_changes_nothing(family, kernel_size):
    model = family.evolving(kernel_size=kernel_size).double()
    lengths = (9, 4, 6)
    together = main_output(run(model, double(family.inputs(lengths, width=12))))
    for row in range(len(lengths)):
        alone = {name: values[row : row + 1] for name, values in double(family.inputs(lengths, width=12)).items()}
        for name in list(alone):
            if "mask" in name:
                real = int(alone[name].sum())
                for other in (name, name.replace("attention_mask", "input_ids"), "input_values"):
                    if other in alone and (other != "input_values" or family.kind == "audio"):
                        alone[other] = alone[other][:, :real]
        alone = {name: values for name, values in alone.items() if "mask" not in name}
        expected = main_output(run(model, alone))
        actual = together[row : row + 1]
        if family.kind == "audio":
            real = expected.shape[1]
            expected, actual = expected[:, : real - 1], actual[:, : real - 1]  # the last frame sees beyond
        elif expected.ndim == 3:
            actual = actual[:, : expected.shape[1]]
        assert expected.numel() > 0
        assert_close(actual, expected, atol=1e-10, rtol=0, msg=f"row {row}: ".__add__)


def double(inputs):
    return {name: values.double() if values.is_floating_point() else values for name, values in inputs.items()}


@every_generator
def test_future_tokens_change_nothing_earlier(family):
    model = family.evolving()
    inputs = family.inputs((9, 9), 9)
    name = "input_ids" if family.kind == "causal" else "decoder_input_ids"
    inputs = {key: values for key, values in inputs.items() if "mask" not in key}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected = model(**inputs).logits
            changed = {**inputs, name: inputs[name].clone()}
            changed[name][:, 5:] = changed[name][:, 5:].roll(1, dims=0)
            logits = model(**changed).logits
        assert torch.equal(logits[:, :5], expected[:, :5])
        assert not torch.equal(logits[:, 5:], expected[:, 5:])


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"do_sample": True, "num_return_sequences": 2}],
    ids=str,
)
@every_generator
@pytest.mark.slow_but("Llama", "Bart")
def test_cache_changes_no_generated_token(family, options):
    model = family.evolving(kernel_size=5)
    inputs = {name: values for name, values in family.inputs((6, 6), 6).items() if not name.startswith("decoder")}
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        keep = {**options} if use_cache else {**options, "cache_implementation": None}
        results.append(
            model.generate(
                **inputs,
                **keep,
                use_cache=use_cache,
                max_new_tokens=12,
                output_logits=True,
                return_dict_in_generate=True,
            )
        )
    cached, uncached = results
    assert torch.equal(cached.sequences, uncached.sequences)
    for actual, expected in zip(cached.logits, uncached.logits, strict=True):
        assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.kind == "causal"], ids=str)
def test_left_padding_of_a_prompt_changes_nothing(family):
    model = family.evolving(kernel_size=5)
    prompt = family.inputs((7, 7), 7)["input_ids"]
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    options = {"max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(input_ids=prompt, attention_mask=mask, **options).logits
    alone = model.generate(input_ids=prompt[:1, 4:], attention_mask=mask[:1, 4:], **options).logits
    for actual, expected in zip(together, alone, strict=True):
        assert_close(actual[:1], expected, atol=1e-4, rtol=0)


@every_family
def test_activation_checkpointing_changes_no_gradient(family):
    model = without_dropout(family.evolving().double().train())
    inputs = double(family.inputs())
    expected = gradients(model, inputs)
    convolutions = [name for name in model.state_dict() if ".evolution.conv.weight" in name]
    assert convolutions and all(expected[name].any() for name in convolutions)
    model.activation_checkpointing_enable()
    actual = gradients(model, inputs)
    assert actual.keys() == expected.keys()
    for name in expected:
        scale = max(expected[name].norm(), 1e-3 * max(gradient.norm() for gradient in expected.values()))
        assert (actual[name] - expected[name]).norm() <= 1e-9 * scale, name


# Saving and loading


@every_family
def test_save_and_load_is_bit_equal(family, tmp_path):
    model = family.evolving(residual_weight=0.3, conv_weight=0.7, kernel_size=5, activation="gelu")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "ea_evolved"
    assert saved["vanilla_model_type"] == family.model_class.config_class.model_type
    inputs = family.inputs()
    expected = run(model, inputs, output_attention_maps=True)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(info.values()), info
    assert {name: saved[name] for name in saved if name.startswith("ea_")} == {
        "ea_residual_weight": 0.3,
        "ea_conv_weight": 0.7,
        "ea_kernel_size": 5,
        "ea_activation": "gelu",
        "ea_memory_efficient": False,
        "ea_mixing": "convex",
    }
    assert all(getattr(loaded.config, name) == saved[name] for name in saved if name.startswith("ea_"))
    assert_same(run(loaded, inputs, output_attention_maps=True), expected)


@one_of_each_kind
@pytest.mark.slow_but("LlamaForCausalLM")
def test_a_fresh_process_loads_it_by_the_auto_classes_with_ea_hf_and_by_its_own_code(family, tmp_path):
    model = family.evolving()
    model.save_pretrained(tmp_path)
    inputs = family.inputs()
    torch.save({"inputs": inputs, "expected": main_output(run(model, inputs))}, tmp_path / "expected.pt")
    pickle.dump(model, (tmp_path / "model.pickle").open("wb"))
    code = f"""
import pickle, torch, transformers
from pathlib import Path
torch.set_num_threads(1)
folder = Path({str(tmp_path)!r})
saved = torch.load(folder / "expected.pt")
def check(model):
    with torch.no_grad():
        outputs = model.eval()(**saved["inputs"])
    actual = outputs.logits if "logits" in outputs else outputs.logits_per_image
    assert torch.equal(actual, saved["expected"])
def load(**options):
    architecture = transformers.AutoConfig.from_pretrained(folder, **options).architectures[0]
    for auto in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM"):
        if (auto == "AutoModel") == {family.model_class is CLIPModel!r}:
            try:
                model = getattr(transformers, auto).from_pretrained(folder, **options)
            except ValueError:
                continue
            if type(model).__name__ == architecture:
                return model
    raise SystemExit("no Auto class loads it")
try:
    transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise SystemExit("loaded without ea_hf")
remote = load(trust_remote_code=True)
assert type(remote).__module__.startswith("transformers_modules"), type(remote)
check(remote)
import ea_hf
own = load()
assert type(own).__module__.startswith("ea_hf"), type(own)
check(own)
check(remote)
check(pickle.loads((folder / "model.pickle").read_bytes()))
"""
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        # Not all of `sys.path`, to which Transformers may have added this process's own copies of remote code.
        "PYTHONPATH": str(Path(ea_hf.__file__).parents[1]),
    }
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_base_model_of_a_checkpoint_loads(tmp_path):
    model = FAMILIES[0].evolving()
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    inputs = FAMILIES[0].inputs()
    assert_same(run(base, inputs), run(model.electra, inputs))


def test_the_tokenizer_of_a_checkpoint_is_found_and_a_pipeline_runs(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    tokenizer = ElectraTokenizer(str(tmp_path / "vocab.txt"))
    config = ElectraConfig(**{**TEXT, "embedding_size": 16, "vocab_size": len(tokenizer)})
    ea_hf.evolve(ElectraForMaskedLM(config)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    fill_mask = pipeline("fill-mask", model=str(tmp_path / "model"))
    assert type(fill_mask.model).__name__ == "EvolvedElectraForMaskedLM"
    assert fill_mask.tokenizer.vocab_size == len(tokenizer)
    assert len(fill_mask("a b [MASK] c")) == 5


def test_vanilla_classes_report_an_evolving_checkpoint(tmp_path, transformers_log):
    model = FAMILIES[0].evolving()
    model.save_pretrained(tmp_path)
    ElectraForMaskedLM.from_pretrained(tmp_path)
    assert any("`ea_evolved`" in message for message in transformers_log)
    assert any(".evolution.conv.weight" in message for message in transformers_log)


def test_unknown_vanilla_type_in_a_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ea_evolved", "vanilla_model_type": "electro"}))
    with pytest.raises(ValueError, match="`vanilla_model_type` is 'electro'"):
        AutoConfig.from_pretrained(tmp_path)


def test_configuration_of_a_vanilla_checkpoint_is_refused_with_what_to_do(tmp_path):
    ElectraConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'electra' model, which does not evolve\..*`ea_hf\.evolve`"):
        ea_hf.EvolvedConfig.from_pretrained(tmp_path)


def test_a_part_with_a_configuration_of_its_own_is_not_saved_alone(tmp_path):
    clip = next(family for family in FAMILIES if family.model_class is CLIPModel).evolving()
    with pytest.raises(ValueError, match="part of an evolving model"):
        clip.vision_model.save_pretrained(tmp_path)


def test_a_model_that_was_loaded_is_saved_once_it_evolves(tmp_path):
    """A configuration that comes from a file says its vanilla type itself."""
    sizes = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "vocab_size": 67}
    transformers.DistilBertModel(transformers.DistilBertConfig(**sizes)).save_pretrained(tmp_path / "vanilla")
    model = ea_hf.evolve(transformers.AutoModel.from_pretrained(tmp_path / "vanilla"))
    model.save_pretrained(tmp_path / "evolved")
    again = transformers.AutoModel.from_pretrained(tmp_path / "evolved")
    assert type(again) is type(model) and again.config.model_type == ea_hf.EvolvedConfig.model_type
