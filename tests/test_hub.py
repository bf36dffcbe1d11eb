# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Pushing to a server that speaks the Hub's protocol and loading from it, and pushes that fail in every way."""

import argparse
import json
import logging
import os
import re
import shlex
import subprocess
from pathlib import Path

import huggingface_hub
import offline_hub
import pytest
import tiny_roberta
import torch
from huggingface_hub import ModelCard
from local_hub import TOKEN, USER, Fault, LocalHub, running_hub
from models import CASES
from stranger import run_stranger
from test_ea_resnet import images, tiny_model
from tiny_bert import arguments, run_script, sentences, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import ea_hf
from ea_hf.training.model_card import LOCAL_NOTE, find_license
from ea_hf.training.publishing import push_to_hub


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture
def use_hub(monkeypatch, tmp_path):
    """Makes this process take a server for the Hub, with no token of its own and no patience."""

    def use(endpoint: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # Transformers keeps a client

    for name, value in (
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_TOKEN_PATH", str(tmp_path / "no")),
    ):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return use


CARD = """---
library_name: transformers
---

```python
model = AutoModelForMaskedLM.from_pretrained("output/film", trust_remote_code=True)
```
"""


@pytest.fixture
def finished_run(tmp_path) -> Path:
    """What a run leaves, in little."""
    case = next(case for case in CASES if case.model_class is ea_hf.EABertForMaskedLM)
    directory = tmp_path / "film"
    case.model().save_pretrained(directory)
    (directory / "README.md").write_text(CARD)
    (directory / ".lock").touch()
    for name in ("checkpoint-3/optimizer.bin", "logs/events"):
        (directory / name).parent.mkdir()
        (directory / name).write_bytes(b"large")
    return directory


def options(**values) -> argparse.Namespace:
    return argparse.Namespace(**{"hub_model_id": None, "hub_token": TOKEN, "hub_private_repo": False, **values})


def contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "README.md"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_a_push_sends_the_finished_run_and_nothing_else(hub, use_hub, finished_run):
    use_hub(hub.endpoint)
    push_to_hub(finished_run, options(hub_private_repo=True))
    repository = hub.repositories[f"{USER}/film"]
    assert repository.private
    assert set(repository.files) == {path.name for path in finished_run.iterdir() if path.is_file()} - {".lock"}
    for name, content in repository.files.items():
        assert content == (finished_run / name).read_bytes()
    assert repository.large == {"model.safetensors"}
    assert f'from_pretrained("{USER}/film", trust_remote_code=True)' in repository.files["README.md"].decode()
    push_to_hub(finished_run, options())  # again, to what is there already


def test_saving_with_push_to_hub_sends_the_code(hub, use_hub, tmp_path):
    use_hub(hub.endpoint)
    case = next(case for case in CASES if case.model_class is ea_hf.EABertForMaskedLM)
    for name, saved in (("model", case.model()), ("configuration", case.config())):
        saved.save_pretrained(str(tmp_path / name), push_to_hub=True, repo_id=name, token=TOKEN)
        pushed = set(hub.repositories[f"{USER}/{name}"].files)
        assert pushed >= {path.name for path in (tmp_path / name).iterdir()} > {"modeling_ea_bert.py"}


# What the server does or what the user says, and what the message then advises.
FAILURES = {
    "no network": ({}, None, "cannot be reached: check the network"),
    "offline": ({}, None, "HF_HUB_OFFLINE forbids the network"),
    "no token": ({"hub_token": None}, None, "token is missing, wrong or expired: run `hf auth login`"),
    "wrong token": ({"hub_token": "hf_wrong"}, None, "token is missing, wrong or expired"),
    "broken token": ({"hub_token": TOKEN[:9] + "\n" + TOKEN[9:]}, None, "characters that no token has"),
    "no such account": ({"hub_model_id": "nobody/film"}, None, "no such account or repository"),
    "bad name": ({"hub_model_id": "film of the year"}, None, "choose another --hub_model_id"),
    "forbidden": (
        {},
        Fault("POST", "preupload", 403, "Your token may only read"),
        "Your token may only read.*may not write",
    ),
    "not found": ({}, Fault("POST", "commit", 404), "no such account or repository"),
    "storage is full": ({}, Fault("POST", "batch", 413, "Storage limit reached"), "Storage limit reached.*too large"),
    "a file is too large": ({}, Fault("PUT", "/lfs/", 413), "model.safetensors.*413.*too large for the storage"),
    "too many requests": ({}, Fault("POST", "create", 429), "too many requests: wait"),
    "out of order": ({}, Fault("POST", "create", 500), "out of order: wait"),
    "out of order at the end": ({}, Fault("POST", "commit", 503), "out of order: wait"),
    "unheard of": ({}, Fault("POST", "commit", 418, "I am a teapot"), "I am a teapot.*Look at the message"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_push_that_fails_says_what_to_do(failure, hub, use_hub, finished_run, monkeypatch, caplog, capfd):
    values, fault, advice = FAILURES[failure]
    use_hub("http://127.0.0.1:9" if failure == "no network" else hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", failure == "offline")
    hub.fault = fault
    before = contents(finished_run)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as exit:
        push_to_hub(finished_run, options(**values))
    message = exit.value.code  # printed, with status 1
    assert f"finished and saved in {finished_run}" in message
    assert re.search(advice, message, re.DOTALL)
    assert contents(finished_run) == before
    token = values.get("hub_token", TOKEN) or TOKEN
    printed = message + caplog.text + "".join(capfd.readouterr())
    assert token not in printed and repr(token)[1:-1] not in printed
    if failure == "storage is full":
        assert_command_pushes(message.splitlines()[-1], hub, finished_run)


def assert_command_pushes(command: str, hub: LocalHub, finished_run: Path) -> None:
    """The command that the message advises does the rest, once the cause is gone."""
    hub.fault = None
    environment = {**os.environ, **hub.environment, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    words = shlex.split(command)
    words[0] = offline_hub.executable(words[0])
    result = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    expected = {path.name for path in finished_run.iterdir() if path.is_file()} - {".lock"}
    assert set(hub.repositories[f"{USER}/film"].files) == expected


@pytest.mark.slow
def test_every_family_is_pushed_and_loaded_by_a_stranger(hub, tmp_path):
    """With `push_to_hub` of the model alone; by every Auto class of the family that has a checkpoint of its own."""
    jobs = []
    for model_class, auto_name in (
        (ea_hf.EARobertaForMaskedLM, "AutoModelForMaskedLM"),
        (ea_hf.EAT5ForConditionalGeneration, "AutoModelForSeq2SeqLM"),
        (ea_hf.EAViTForImageClassification, "AutoModelForImageClassification"),
        (ea_hf.EAResNetBackbone, "AutoBackbone"),
    ):
        name = model_class.__name__
        case = next((case for case in CASES if case.model_class is model_class), None)
        model, inputs = (
            (case.model(), case.batch().inputs) if case else (tiny_model(model_class), {"pixel_values": images()})
        )
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            expected = model(**inputs)[0]
            expected = expected[0] if isinstance(expected, tuple) else expected
        torch.save((inputs, expected), tmp_path / f"{name}.pt")
        jobs.append((name, auto_name))
    push = f"""
import ea_hf, huggingface_hub
for name, _ in {jobs}:
    model_class = getattr(ea_hf, name)
    url = model_class.from_pretrained(f"{tmp_path}/{{name}}").push_to_hub(name)
"""
    (tmp_path / "mine").mkdir()
    run_stranger(push, tmp_path / "mine", has_ea_hf=True, HF_TOKEN=TOKEN, **hub.environment)
    load = f"""
import torch, transformers
for name, auto_name in {jobs}:
    inputs, expected = torch.load(f"{tmp_path}/{{name}}.pt")
    model = getattr(transformers, auto_name).from_pretrained(f"{USER}/{{name}}", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        output = model(**inputs)[0]
    assert torch.equal(output[0] if isinstance(output, tuple) else output, expected), name
    model.save_pretrained(f"saved/{{name}}")
    assert list(__import__("pathlib").Path("saved", name).glob("modeling_ea_*.py"))
    try:
        getattr(transformers, auto_name).from_pretrained(f"{USER}/{{name}}")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error)
    else:
        raise AssertionError(name)
"""
    (tmp_path / "theirs").mkdir()
    run_stranger(load, tmp_path / "theirs", **hub.environment)


@pytest.mark.slow
def test_a_run_of_the_script_is_pushed_and_used_by_a_stranger(hub, tmp_path):
    """From a vanilla RoBERTa to a classifier that someone else loads with its tokenizer, as the card says."""
    vanilla = Path(tiny_roberta.write_checkpoint(tmp_path / "vanilla"))
    (vanilla / "README.md").write_text("---\nlicense: mit\n---\n")
    train, validation = (
        write_rows(tmp_path / f"{n}.csv", sentences("sign", 20, start)) for n, start in (("a", 0), ("b", 12))
    )
    words = arguments(
        model_name_or_path=vanilla, train_file=train, validation_file=validation, max_train_steps=3,
        learning_rate=1e-3, ea_conv_weight=0.25, output_dir=tmp_path / "films", push_to_hub=True, hub_token=TOKEN,
    )  # fmt: skip
    status, printed = run_script(words, **hub.environment)
    assert status == 0 and f"Pushed to {USER}/films" in printed, printed
    repository = hub.repositories[f"{USER}/films"]
    assert {"model.safetensors", "tokenizer.json", "modeling_ea_roberta.py", "all_results.json"} <= set(
        repository.files
    )
    secret = TOKEN.encode()
    assert secret not in printed.encode() and not any(secret in content for content in repository.files.values())
    assert not any(secret in content for content in contents(tmp_path / "films").values())
    assert json.loads(repository.files["training_args.json"])["ea_conv_weight"] == 0.25

    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.license == "mit" and card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == "transformers" and card.data.eval_results[0].metric_type == "accuracy"
    assert "| ea_conv_weight | 0.2500 |" in card.text and "--max_train_steps 3" in card.text
    assert f"fine-tuned from `{vanilla.name}`" in card.text and "| learning_rate | 0.0010 |" in card.text
    assert "The license is that of the base model, `mit`." in card.text
    assert LOCAL_NOTE not in card.text and str(tmp_path) not in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    code += """
import torch
with torch.no_grad():
    print(model.eval()(**tokenizer("Go and see it!", return_tensors="pt")).logits.tolist())
"""
    (tmp_path / "home").mkdir()
    logits = json.loads(run_stranger(code, tmp_path / "home", **hub.environment).splitlines()[-1])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "films").eval()
    encoded = AutoTokenizer.from_pretrained(tmp_path / "films")("Go and see it!", return_tensors="pt")
    assert set(encoded) == {"input_ids", "attention_mask"}  # RoBERTa has no token types
    with torch.no_grad():
        assert torch.equal(model(**encoded).logits, torch.tensor(logits))


def test_the_license_of_a_base_model(tmp_path, hub, use_hub):
    use_hub(hub.endpoint)
    assert find_license(str(tmp_path)) is None  # no card
    (tmp_path / "README.md").write_text("---\nlanguage: en\n---\n")
    assert find_license(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert find_license(str(tmp_path)) == "apache-2.0"
    assert find_license("nobody/nothing") is None
