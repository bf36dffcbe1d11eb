# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints without a tokenizer, outputs that are inputs, and other things that would spoil a text in silence."""

import json
import logging
import os
from pathlib import Path

import pytest
import run_glue  # tiny_bert and tiny_t5 have told where they are
import run_translation
import tiny_bert
import tiny_roberta
import tiny_t5
import translate
from tiny_bert import arguments, sentences, write_rows
from transformers import AutoTokenizer

import ea_hf
from ea_hf.training import tokenizer_loading
from ea_hf.training.local_files import written_whole
from ea_hf.training.tokenizer_loading import load_tokenizer


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


pytestmark = pytest.mark.usefixtures("isolated")


def glue_words(model: str, tmp_path: Path, **options) -> list[str]:
    files = {"train_file": write_rows(tmp_path / "train.csv", sentences())}
    return arguments(model_name_or_path=model, output_dir=tmp_path / "output", **{**files, **options})


# Tokenizers


@pytest.mark.parametrize("family", [tiny_bert, tiny_roberta, tiny_t5])
@pytest.mark.parametrize("damage", ["missing", "empty", "no_object", "no_vocabulary", "truncated"])
def test_a_checkpoint_without_a_tokenizer_is_refused(family, damage, tmp_path):
    model = Path(family.write_checkpoint(tmp_path / "model"))
    load_tokenizer(str(model), trust_remote_code=False)
    file = model / "tokenizer.json"
    if damage == "missing":
        for name in TOKENIZER_FILES:
            (model / name).unlink()
    elif damage == "no_vocabulary":
        content = json.loads(file.read_text())
        content["model"]["vocab"] = content["model"]["vocab"][:4] if family is tiny_t5 else {}
        if family is tiny_roberta:
            content["model"]["merges"] = []
        file.write_text(json.dumps(content))
    else:
        file.write_text({"empty": "", "no_object": "{}", "truncated": file.read_text()[:300]}[damage])
    with pytest.raises(ValueError, match=f"{model}.*(?s:.*)tokenizer.json.*--tokenizer_name"):
        load_tokenizer(str(model), trust_remote_code=False, has_option=True)


def test_the_scripts_refuse_a_checkpoint_without_a_tokenizer(tmp_path):
    bert, t5 = tiny_bert.write_checkpoint(tmp_path / "bert"), tiny_t5.write_checkpoint(tmp_path / "t5")
    for name in TOKENIZER_FILES:
        (Path(bert) / name).rename(tmp_path / name)
        (Path(t5) / name).unlink()
    with pytest.raises(ValueError, match=f"{bert} has no tokenizer"):
        run_glue.main(glue_words(bert, tmp_path, max_train_steps=1))
    files = tiny_t5.write_pairs(tmp_path / "pairs.jsonl", tiny_t5.pairs(4))
    words = ["--train_file", *files, *arguments(**tiny_t5.LANGUAGES, model_name_or_path=t5)]
    with pytest.raises(ValueError, match=f"{t5} has no tokenizer"):
        run_translation.main([*words, "--output_dir", str(tmp_path / "output")])
    (tmp_path / "input.txt").write_text("a\n")
    with pytest.raises(ValueError, match=f"{t5} has no tokenizer"):
        translate.main([t5, "--input", str(tmp_path / "input.txt")])
    assert not (tmp_path / "output").exists()
    tiny_bert.reset_accelerator()
    run_glue.main(glue_words(bert, tmp_path, max_train_steps=1, tokenizer_name=tmp_path))


def test_unknown_tokens_are_told_with_their_share(tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert.write_checkpoint(tmp_path / "model"))
    known = ["I left after half an hour."]
    tokenizer_loading.check_known(tokenizer, "model", known, "train")
    assert not caplog.records
    tokenizer_loading.check_known(tokenizer, "model", [*known, "日"], "train")
    assert "12% of the tokens of train are unknown to the tokenizer of model" in caplog.text
    with pytest.raises(ValueError, match="100% of the tokens of train are unknown"):
        tokenizer_loading.check_known(tokenizer, "model", ["日本", "語"], "train")


@pytest.mark.parametrize("streaming", [None, True])
def test_a_text_of_another_script_is_refused(streaming, tmp_path):
    rows = [{"sentence": text, "label": i} for i, text in enumerate(("日本", "語", "水"))]
    model = tiny_bert.write_checkpoint(tmp_path / "model")
    words = glue_words(model, tmp_path, train_file=write_rows(tmp_path / "other.csv", rows), streaming=streaming)
    with pytest.raises(ValueError, match="100% of the tokens of train are unknown"):
        run_glue.main([*words, "--max_train_steps", "1"])


@pytest.mark.parametrize("name", ["/no/where", "../no/where/at/all", "a/b/c"])
def test_a_missing_directory_is_called_missing(name):
    with pytest.raises(FileNotFoundError, match=f"^{name} does not exist"):
        load_tokenizer(name, trust_remote_code=False)
    with pytest.raises(FileNotFoundError, match=r"is a file, not the directory"):
        load_tokenizer(__file__, trust_remote_code=False)


def test_a_tokenizer_s_unloaded_code_does_not_go_on(tmp_path, caplog):
    model = Path(tiny_bert.write_checkpoint(tmp_path / "model"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["stranger--code.Tokenizer", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.INFO):
        load_tokenizer(str(model), trust_remote_code=False).save_pretrained(tmp_path / "saved")
    assert "code that was not loaded" in caplog.text
    assert "stranger" not in (tmp_path / "saved/tokenizer_config.json").read_text()


# Outputs


@pytest.mark.parametrize("kind", ["itself", "symbolic", "hard", "dots"])
def test_an_output_that_is_the_input_is_refused(kind, tmp_path):
    path, output = tmp_path / "input.txt", tmp_path / "output.txt"
    path.write_text("Open the file.\n")
    if kind == "symbolic":
        output.symlink_to(path)
    elif kind == "hard":
        os.link(path, output)
    else:
        output = path if kind == "itself" else tmp_path / ".." / tmp_path.name / "input.txt"
    with pytest.raises(ValueError, match=r"also the input .*choose another"):
        translate.main(["no/model", "--input", str(path), "--output", str(output)])
    assert path.read_text() == "Open the file.\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/predictions.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(ValueError, match="also the input"):
        run_glue.main(
            glue_words(str(tmp_path), tmp_path, train_file=tmp_path / "run/predictions.tsv")
            + ["--output_dir", str(tmp_path / "run")]
        )


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path, link = tmp_path / "output.txt", tmp_path / "link.txt"
    path.write_text("old")
    link.symlink_to(path)
    with pytest.raises(KeyError), written_whole(link) as file:
        file.write("half")
        raise KeyError
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    with written_whole(link) as file:
        file.write("new")
    assert path.read_text() == "new" and link.is_symlink() and len(os.listdir(tmp_path)) == 2


def test_a_bad_line_leaves_an_existing_translation_alone(tmp_path):
    model = tiny_t5.write_checkpoint(tmp_path / "model")
    (tmp_path / "input.txt").write_bytes(b"Open\n\xff\n")
    (tmp_path / "output.txt").write_text("old")
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8"):
        translate.main([model, *arguments(input=tmp_path / "input.txt", output=tmp_path / "output.txt", device="cpu")])
    assert (tmp_path / "output.txt").read_text() == "old"


# Settings and code of a checkpoint


def translation_args(model: str, tmp_path: Path, **options):
    words = arguments(**tiny_t5.LANGUAGES, model_name_or_path=model, output_dir=tmp_path / "output", **options)
    return run_translation.parse_args(["--train_file", "x", *words])


@pytest.mark.parametrize(
    ("settings", "beams", "told"),
    [
        ({"temperature": 0.7}, 4, "it does not sample, were unset: temperature=0.7"),
        ({"top_p": 0.9, "top_k": 3, "min_p": 0.1}, 4, "top_k=3, top_p=0.9, min_p=0.1"),
        ({"early_stopping": True}, 1, "it has one beam only, were unset: early_stopping=True"),
        ({"num_beams": 4, "length_penalty": 2.0}, 1, "were unset: length_penalty=2.0"),
        ({"num_beams": 4, "early_stopping": True}, 4, "early_stopping=True"),
        ({"output_scores": True}, 4, "it returns tokens only, were unset: output_scores=True"),
        ({"do_sample": True, "temperature": 0.7}, 4, "each evaluation gives other scores"),
        ({"num_beams": 4, "num_return_sequences": 3}, 4, "gives 3 sequences per text; the first one is evaluated"),
        ({"no_repeat_ngram_size": 2}, 4, "Generation settings of"),
    ],
)
def test_generation_settings_can_be_saved_and_are_told(settings, beams, told, tmp_path, caplog):
    model = Path(tiny_t5.write_checkpoint(tmp_path / "model"))
    file = model / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with caplog.at_level(logging.INFO):
        loaded, _ = run_translation.load_model(translation_args(str(model), tmp_path, num_beams=beams))
    assert told in caplog.text
    loaded.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("settings", "beams", "message"),
    [
        ({"num_beams": 4, "num_return_sequences": 3}, 2, "num_return_sequences=3, more than --num_beams 2"),
        ({"do_sample": True, "temperature": -1.0}, 4, "`temperature`"),
        ({"pad_token_id": -3}, 4, "pad_token_id"),
    ],
)
def test_generation_settings_that_cannot_be_are_refused_before_training(settings, beams, message, tmp_path):
    model = Path(tiny_t5.write_checkpoint(tmp_path / "model"))
    file = model / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ValueError, match=f"{message}.*generation_config.json"):
        run_translation.load_model(translation_args(str(model), tmp_path, num_beams=beams))


@pytest.mark.parametrize("settings", [{"num_beams": 4, "num_return_sequences": 3}, {"return_dict_in_generate": True}])
def test_settings_that_return_more_than_a_translation_do_not_stop_translate(settings, tmp_path):
    model = Path(tiny_t5.write_checkpoint(tmp_path / "model"))
    file = model / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    (tmp_path / "input.txt").write_text("Open the file.\nClose it.\n")
    words = arguments(input=tmp_path / "input.txt", output=tmp_path / "output.txt", device="cpu", max_target_length=4)
    translate.main([str(model), *words])
    assert len((tmp_path / "output.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("family", [tiny_bert, tiny_t5])
def test_a_stranger_s_code_does_not_go_on(family, tmp_path, caplog):
    model = Path(family.write_checkpoint(tmp_path / "model"))
    saved = json.loads((model / "config.json").read_text())
    saved["auto_map"] = {"AutoModel": "stranger--code.Model", "AutoConfig": "stranger--code.Config"}
    saved["custom_pipelines"] = {"text-classification": {"impl": "stranger--code.Pipeline", "pt": ["AutoModel"]}}
    (model / "config.json").write_text(json.dumps(saved))
    with caplog.at_level(logging.INFO):
        config = ea_hf.evolving_config_from_pretrained(str(model))
    config.save_pretrained(tmp_path / "saved")
    assert "stranger" not in (tmp_path / "saved/config.json").read_text()
    assert "refers to code of others" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ea_hf.evolving_config_from_pretrained(str(tmp_path / "saved")).save_pretrained(tmp_path / "again")
    assert "code of others" not in caplog.text
    assert json.loads((tmp_path / "again/config.json").read_text())["auto_map"]
