# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""translate.py gives each line the translation that it has alone, in the order of the lines."""

import subprocess
import sys
import threading

import pytest
import torch
from tiny_bert import arguments
from tiny_t5 import TRANSLATION, pairs, tiny_tokenizer, write_checkpoint
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

import ea_hf
from ea_hf import translate


TASK = {"translation_en_to_de": {"prefix": "to German: ", "max_source_length": 40}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """An EA-T5 with settings for one pair of languages."""
    directory = tmp_path_factory.mktemp("checkpoint")
    vanilla = write_checkpoint(directory / "vanilla")
    config = ea_hf.EAT5Config.from_pretrained(vanilla, ea_residual_weight=0.4, ea_conv_weight=0.5)
    config.task_specific_params = TASK
    model = ea_hf.EAT5ForConditionalGeneration.from_pretrained(vanilla, config=config)
    model.generation_config = GenerationConfig(
        num_beams=3, max_new_tokens=12, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    model.save_pretrained(directory / "ea")
    tiny_tokenizer().save_pretrained(directory / "ea")
    return str(directory / "ea")


def one_by_one(checkpoint: str, lines: list[str], prefix: str = "to German: ", **generation) -> list[str]:
    """With nothing of the script."""
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    tokenizer, texts = tiny_tokenizer(), []
    for line in lines:
        if not line.strip():
            texts.append("")
            continue
        ids = tokenizer(prefix + line)["input_ids"]
        ids = ids if len(ids) <= 40 else ids[:39] + [1]
        with torch.no_grad():
            generated = model.generate(torch.tensor([ids]), **generation)
        texts.append(tokenizer.decode(generated[0], skip_special_tokens=True))
    return texts


def run(checkpoint: str, tmp_path, lines: list[str], **options) -> list[str]:
    (tmp_path / "input.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    words = arguments(input=tmp_path / "input.txt", output=tmp_path / "output.txt", device="cpu", **options)
    translate.main([checkpoint, *words])
    return (tmp_path / "output.txt").read_text(encoding="utf-8").split("\n")[:-1]


def test_lines_keep_their_order_and_empty_ones_stay_empty(checkpoint, tmp_path, capsys):
    lines = [row["en"] for row in pairs(17)]
    lines[3:3], lines[9:9] = ["", "  \t"], ["word " * 60]
    expected = one_by_one(checkpoint, lines)
    assert len(set(expected)) > 8  # so that a wrong order would show
    assert run(checkpoint, tmp_path, lines, batch_size=4, window=10) == expected
    cut = sum(len(tiny_tokenizer()("to German: " + line)["input_ids"]) > 40 for line in lines if line.strip())
    assert f"{cut} lines have more than 40 tokens" in capsys.readouterr().err


def test_arguments_override_the_checkpoint(checkpoint, tmp_path):
    lines = [row["en"] for row in pairs(6)]
    options = {"source_prefix": "x: ", "num_beams": 1, "max_target_length": 5}
    expected = one_by_one(checkpoint, lines, "x: ", num_beams=1, max_new_tokens=5)
    assert run(checkpoint, tmp_path, lines, **options) == expected


@pytest.mark.parametrize(
    ("tasks", "languages", "expected"),
    [
        ({}, (None, None), {}),
        (TASK, (None, None), TASK["translation_en_to_de"]),
        ({**TASK, "summarization": {"prefix": "summarize: "}}, (None, None), TASK["translation_en_to_de"]),
        ({**TASK, "translation_en_to_fr": {"prefix": "f"}}, ("en", "fr"), {"prefix": "f"}),
    ],
)
def test_settings_are_found(tasks, languages, expected):
    config = ea_hf.EAT5Config()
    config.task_specific_params = tasks
    assert translate.find_settings(config, *languages) == expected


@pytest.mark.parametrize("languages", [(None, None), ("en", "ro"), ("en", None)])
def test_an_unclear_pair_of_languages_is_told(languages):
    config = ea_hf.EAT5Config()
    config.task_specific_params = {**TASK, "translation_en_to_fr": {"prefix": "f"}}
    with pytest.raises(ValueError, match=r"knows translation_en_to_de, translation_en_to_fr.*--source_prefix"):
        translate.find_settings(config, *languages)


def test_standard_input_is_translated_as_it_comes(checkpoint):
    """A line's translation is there before the input ends; a line that is not UTF-8 is told."""
    process = subprocess.Popen(
        [sys.executable, str(TRANSLATION / "translate.py"), checkpoint, "--window", "1", "--device", "cpu"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    try:
        lines = [row["en"] for row in pairs(2)]
        for line, expected in zip(lines, one_by_one(checkpoint, lines), strict=True):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().decode() == expected + "\n"
        output, errors = process.communicate(b"Gr\xfc\xdfe\n")
    finally:
        deadline.cancel()
        process.kill()
    assert process.returncode == 2 and output == b""
    assert "standard input, line 3 is not UTF-8: b'Gr" in errors.decode()


def test_a_bad_number_is_told(checkpoint, capsys):
    with pytest.raises(SystemExit):
        translate.main([checkpoint, "--window", "0"])
    assert "--window is 0" in capsys.readouterr().err
