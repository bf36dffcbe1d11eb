# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_mlm.py: what is masked, what is trained on, what is measured, and that runs can be shared and resumed."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import run_glue
import run_mlm
import text_data
import tiny_roberta
import torch
from datasets import Dataset
from pretraining import MappedBlocks, PretrainingTask, example_seed, scored_data
from safetensors.torch import load_file
from stranger import run_stranger
from tiny_bert import arguments, run_script, sentences, write_checkpoint, write_rows
from tiny_language import LANGUAGE_MODELING, TEXTS, TINY, documents, run_main, write_text
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    pipeline,
)

import ea_hf
from ea_hf.training import loop
from ea_hf.training.optimizer_step import NonFiniteLossError


SCRIPT = LANGUAGE_MODELING / "run_mlm.py"


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"), hidden_dropout_prob=0.0, num_hidden_layers=2)


def options(vanilla: str, output_dir: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "tokenizer_name": vanilla,
        "config_overrides": TINY,
        "output_dir": output_dir,
        "max_seq_length": 24,
        "max_train_steps": 4,
        "learning_rate": 1e-3,
        **more,
    }


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


# Masks


def test_masks_are_those_of_transformers(vanilla):
    tokenizer = AutoTokenizer.from_pretrained(vanilla)
    encoded = tokenizer(" ".join(TEXTS[:8]), return_special_tokens_mask=True)
    ids, special = torch.tensor(encoded["input_ids"]), torch.tensor(encoded["special_tokens_mask"])
    reference = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4)
    reference.generator = torch.Generator().manual_seed(5)
    expected, labels = reference.torch_mask_tokens(ids[None].clone(), special_tokens_mask=special[None])
    words = torch.where(special.bool(), -1, torch.arange(len(ids)))
    generator = torch.Generator().manual_seed(5)
    ours = run_mlm.mask_tokens(ids, words, 0.4, tokenizer.mask_token_id, len(tokenizer), generator)
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], labels[0])
    assert (ours[1] != -100).sum() > 10


def test_whole_words_are_masked_whole(vanilla):
    tokenizer = AutoTokenizer.from_pretrained(vanilla)
    text = "unfortunately watchable, watchful filmmakers."  # of several pieces each
    blocks, rest = text_data.BlockMaker(tokenizer, 64, [2], [3])([text])
    assert rest is None and len(blocks) == 1
    ids, words = (torch.tensor(blocks[0][name]) for name in ("input_ids", "words"))
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    begins = [not piece.startswith("##") for piece in pieces[1:-1]]
    assert words.tolist() == [-1, *(sum(begins[: i + 1]) - 1 for i in range(len(begins))), -1]
    chosen = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        _, labels = run_mlm.mask_tokens(ids, words, 0.3, 4, len(tokenizer), generator, whole_words=True)
        for word in range(int(words.max()) + 1):
            kinds = {bool(kind) for kind in labels[words == word] != -100}
            assert len(kinds) == 1
            chosen += kinds
        assert (labels[[0, -1]] == -100).all()
    assert 0.25 < sum(chosen) / len(chosen) < 0.35


def test_masks_differ_from_epoch_to_epoch_and_follow_from_the_seed(vanilla, tmp_path):
    args = run_mlm.parse_args(arguments(**options(vanilla, tmp_path)) + ["--train_file", "x"])
    args.pad_multiple = 1
    collate = run_mlm.Collator(args, AutoTokenizer.from_pretrained(vanilla), None)
    block = {"input_ids": list(range(5, 25)), "words": list(range(20))}
    first, second = ({**block, "key": (f"epoch {epoch}", 3)} for epoch in range(2))
    assert not torch.equal(collate([first])["labels"], collate([second])["labels"])
    alone, together = collate([first]), collate([second, first])
    assert torch.equal(alone["labels"][0], together["labels"][1])
    assert torch.equal(alone["input_ids"][0], together["input_ids"][1])
    assert example_seed(1, first["key"]) != example_seed(2, first["key"])


# What is measured


def test_loss_perplexity_and_accuracy_equal_an_independent_reckoning(vanilla, tmp_path):
    """Each block alone; the labels of all blocks count the same, though the blocks are of different lengths."""
    train = write_text(tmp_path / "train.txt", documents(30))
    validation = documents(11, start=200)
    results = run_main(
        run_mlm,
        train,
        **options(vanilla, tmp_path / "output", per_device_eval_batch_size=3),
        validation_file=write_text(tmp_path / "validation.txt", validation),
        max_train_samples=20,
    )
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "output").eval()
    assert type(model) is ea_hf.EABertForMaskedLM and model.config.max_position_embeddings == 66
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "output")
    total = correct = count = number = 0
    for text in validation:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), 22):
            body = ids[start : start + 22]
            block = torch.tensor([[tokenizer.cls_token_id, *body, tokenizer.sep_token_id]])
            collator = DataCollatorForLanguageModeling(tokenizer)
            collator.generator = torch.Generator().manual_seed(example_seed(42, ("evaluation 0", number)))
            special = torch.tensor([[1, *[0] * len(body), 1]])
            inputs, labels = collator.torch_mask_tokens(block, special_tokens_mask=special)
            chosen = labels[0] != -100
            if chosen.any():
                with torch.no_grad():
                    logits = model(input_ids=inputs).logits[0, chosen].double()
                total -= logits.log_softmax(-1).gather(1, labels[0, chosen, None]).sum().item()
                correct += (logits.argmax(-1) == labels[0, chosen]).sum().item()
                count += int(chosen.sum())
            number += 1
    assert count > 20 and number > 11
    assert results["eval_loss"] == pytest.approx(total / count, abs=1e-5)
    assert results["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert results["eval_accuracy"] == pytest.approx(correct / count)
    assert results["train_tokens_per_second"] > 0


# What is trained on


@pytest.mark.parametrize("streaming", [None, True], ids=["mapped", "streamed"])
def test_no_held_out_document_is_trained_on(streaming, vanilla, tmp_path, monkeypatch, caplog):
    texts = documents(40)
    held_out = [texts[3], "  " + texts[17].replace(" ", "  "), texts[30]]
    seen: list[list[int]] = []
    plain = run_mlm.Collator.__call__

    def watched(self, examples):
        seen.extend(example["input_ids"] for example in examples if example["key"][0] != "evaluation 0")
        return plain(self, examples)

    monkeypatch.setattr(run_mlm.Collator, "__call__", watched)
    settings = options(vanilla, tmp_path / "output", streaming=streaming, max_train_steps=12, eval_steps=6)
    validation = write_text(tmp_path / "validation.txt", held_out)
    with caplog.at_level(logging.WARNING):
        run_main(run_mlm, write_text(tmp_path / "train.txt", texts), **settings, validation_file=validation)
    tokenizer = AutoTokenizer.from_pretrained(vanilla)
    blocks, _ = text_data.BlockMaker(tokenizer, 24, [2], [3])(held_out)
    trained = {tuple(ids) for ids in seen}
    others, _ = text_data.BlockMaker(tokenizer, 24, [2], [3])([t for i, t in enumerate(texts) if i not in (3, 17, 30)])
    expected = {tuple(block["input_ids"]) for block in others}
    assert trained == expected and not {tuple(b["input_ids"]) for b in blocks} <= trained
    assert "dropped 3 documents that are part of the validation data" in caplog.text or streaming
    assert "part of the validation data" in caplog.text


def test_without_validation_data_documents_are_held_out_by_content(vanilla, tmp_path):
    texts = documents(60)
    file = write_text(tmp_path / "train.txt", texts + texts)  # every document twice
    args = run_mlm.parse_args(
        [*arguments(**options(vanilla, tmp_path), validation_split_percentage=20), "--train_file", str(file)]
    )
    splits = text_data.load_sources(args)
    train = list(text_data.Admission(share=splits.share).admit(texts + texts, text_data.Counter()))
    held_out = list(
        text_data.Admission(share=splits.share, takes_share=True).admit(texts + texts, text_data.Counter())
    )
    assert not set(train) & set(held_out) and set(train) | set(held_out) == set(texts)
    assert 2 < len(set(held_out)) < 25
    scored = scored_data(args, splits, "train.txt", held_out)
    assert (scored.source, scored.size) == ("train.txt, 20 % held out of train", len(held_out))


# Going on, and several processes


def interrupted(script: Any, steps: int, monkeypatch: pytest.MonkeyPatch, train_file: Any, **settings: Any) -> None:
    """Ends a run in the middle of a step, as a kill does."""
    plain, calls = loop.take_step, 0

    def step(*args):
        nonlocal calls
        calls += 1
        if calls > steps:
            raise KeyboardInterrupt
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        with pytest.raises(KeyboardInterrupt):
            run_main(script, train_file, **settings)


def assert_goes_on_after_a_kill(
    script: Any, steps: int, monkeypatch: pytest.MonkeyPatch, train_file: Any, directory: Path, **settings: Any
) -> None:
    """A run that was ended after so many steps and resumed has the weights of one that was not."""
    run_main(script, train_file, **settings | {"output_dir": directory / "whole"})
    settings["output_dir"] = directory / "killed"
    interrupted(script, steps, monkeypatch, train_file, **settings)
    run_main(script, train_file, **settings, resume_from_checkpoint="latest")
    whole, again = weights(directory / "whole"), weights(directory / "killed")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("streaming", [None, True], ids=["mapped", "streamed"])
@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(streaming, vanilla, tmp_path, monkeypatch):
    files = [write_text(tmp_path / f"{part}.txt", documents(17, 17 * part)) for part in range(3)]
    settings = options(
        vanilla, tmp_path, streaming=streaming, max_train_steps=11, checkpointing_steps=4,
        shuffle_buffer_size=20, whole_word_mask=True, validation_split_percentage=10, logging_steps=1,
    )  # fmt: skip
    assert_goes_on_after_a_kill(run_mlm, 6, monkeypatch, files, tmp_path, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [None, True], ids=["mapped", "streamed"])
def test_two_processes_train_as_one(streaming, vanilla, tmp_path):
    files = [write_text(tmp_path / f"{part}.txt", documents(17, 17 * part)) for part in range(3)]
    settings = options(
        vanilla, tmp_path / "two", streaming=streaming, max_train_steps=6, logging_steps=1, validation_split_percentage=20,
    ) | {"config_overrides": TINY + ",hidden_dropout_prob=0.0,attention_probs_dropout_prob=0.0"}  # fmt: skip
    words = [*arguments(**settings, per_device_train_batch_size=2, gradient_accumulation_steps=2), "--train_file"]
    status, printed = run_script([*words, *map(str, files)], processes=2, script=SCRIPT)
    assert status == 0, printed
    settings["output_dir"] = tmp_path / "one"
    run_main(run_mlm, files, **settings, per_device_train_batch_size=8)
    states = [json.loads((tmp_path / name / "checkpoint-6/trainer_state.json").read_text()) for name in ("one", "two")]
    one, two = ([entry["loss"] for entry in state["log_history"]] for state in states)
    assert len(one) == 6 and two == pytest.approx(one, abs=1e-4)
    assert states[1]["evaluations"]["6"] == pytest.approx(states[0]["evaluations"]["6"], abs=1e-3)
    assert states[0]["position"] == states[1]["position"]


# Models


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("ea_bert", "EABertForMaskedLM"),
        ("roberta", "EARobertaForMaskedLM"),
        ("electra", "EvolvedElectraForMaskedLM"),
        ("distilbert", "EvolvedDistilBertForMaskedLM"),
        ("modernbert", "EvolvedModernBertForMaskedLM"),
    ],
)
@pytest.mark.slow_but("ea_bert", "electra")
def test_models_from_scratch_and_onwards(model_type, expected, vanilla, tmp_path):
    tokenizer = vanilla
    if model_type == "roberta":
        tokenizer = tiny_roberta.write_checkpoint(tmp_path / "roberta")
    train = write_text(tmp_path / "train.txt", documents(20))
    settings = options(tokenizer, tmp_path / "first", model_type=model_type, ea_conv_weight=0.2)
    if model_type == "distilbert":
        settings["config_overrides"] = "dim=32,n_layers=2,n_heads=4,hidden_dim=48"
    if model_type == "modernbert":
        del settings["model_type"]
        settings |= {"config_name": write_modern_bert(tmp_path / "configuration"), "config_overrides": None}
    run_main(run_mlm, train, **settings, validation_split_percentage=0)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "first")
    assert type(model).__name__ == expected and model.config.ea_conv_weight == 0.2
    for name in ("model_type", "config_name", "tokenizer_name", "config_overrides"):
        settings.pop(name, None)
    settings |= {"model_name_or_path": tmp_path / "first", "output_dir": tmp_path / "second"}
    run_main(run_mlm, train, **settings | {"ea_conv_weight": None}, validation_split_percentage=0)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "second")
    assert type(again).__name__ == expected and again.config.ea_conv_weight == 0.2


def write_modern_bert(directory: Path, **values: Any) -> Path:
    """A tiny configuration whose layers all have full attention."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ModernBertConfig(**sizes, **{"layer_types": ["full_attention"] * 2} | values).save_pretrained(directory)
    return directory


def test_windows_of_modern_bert_are_refused_with_what_to_do(vanilla, tmp_path):
    settings = options(vanilla, tmp_path / "output", config_overrides=None)
    del settings["model_type"]
    settings["config_name"] = write_modern_bert(tmp_path, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(ValueError, match=r"sliding window.*load the model with `layer_types=\[\"full_attention"):
        run_main(run_mlm, write_text(tmp_path / "train.txt", documents(12)), **settings)


def test_what_was_pretrained_loads_with_its_code_alone_and_embeds_sentences(vanilla, tmp_path):
    train = write_text(tmp_path / "train.txt", documents(20))
    run_main(run_mlm, train, **options(vanilla, tmp_path / "pretrained"), validation_split_percentage=0)
    code = """
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
model = AutoModelForMaskedLM.from_pretrained(DIRECTORY, trust_remote_code=True).eval()
with torch.no_grad():
    print(model(**tokenizer("A small [MASK].", return_tensors="pt")).logits.double().abs().sum().item())
""".replace("DIRECTORY", repr(str(tmp_path / "pretrained")))
    printed = run_stranger(code, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pretrained")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "pretrained").eval()
    with torch.no_grad():
        expected = model(**tokenizer("A small [MASK].", return_tensors="pt")).logits.double().abs().sum().item()
    assert float(printed.split()[-1]) == pytest.approx(expected, rel=1e-6)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    embedded = sentence_transformers.SentenceTransformer(str(tmp_path / "pretrained")).encode(["A small film."])
    assert embedded.shape == (1, 32)


def test_what_was_pretrained_fills_masks_and_is_fine_tuned(vanilla, tmp_path):
    train = write_text(tmp_path / "train.txt", documents(20))
    run_main(run_mlm, train, **options(vanilla, tmp_path / "pretrained"), validation_split_percentage=0)
    filled = pipeline("fill-mask", model=str(tmp_path / "pretrained"))("A small [MASK] with a very big heart.")
    assert len(filled) == 5 and all(0 <= entry["score"] <= 1 for entry in filled)
    run_glue.main(
        arguments(
            model_name_or_path=tmp_path / "pretrained",
            train_file=write_rows(tmp_path / "rows.csv", sentences(count=16)),
            output_dir=tmp_path / "tuned",
            max_length=32,
            max_train_steps=1,
        )
    )
    assert (tmp_path / "tuned/model.safetensors").exists()


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_length": 67}, "67 tokens are asked for, but The new EABertForMaskedLM ends at 66 positions"),
        ({"max_seq_length": 2}, "--max_seq_length is 2, but 2 tokens"),
        ({"config_overrides": TINY + ",vocab_size=50"}, "but the model only 50 embeddings"),
        ({"config_overrides": TINY + ",layers=2"}, "names 'layers', which EABertConfig does not have"),
        ({"model_type": "gpt2"}, "has no AutoModelForMaskedLM"),
        ({"model_type": "nothing"}, "--model_type is 'nothing'"),
        ({"validation_file": "same"}, "has no document for train"),
        ({"train_file": "missing*.txt"}, "no file matches"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_trained(change, message, vanilla, tmp_path):
    train = write_text(tmp_path / "train.txt", documents(12))
    settings = options(vanilla, tmp_path / "output") | change
    if settings.get("validation_file") == "same":
        settings["validation_file"] = train
    train = settings.pop("train_file", train)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_main(run_mlm, train, **settings)
    assert not (tmp_path / "output").exists()


def test_a_tokenizer_without_mask_token_is_told(vanilla, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(vanilla)
    tokenizer.mask_token = None
    args = run_mlm.parse_args([*arguments(**options(vanilla, tmp_path)), "--train_file", "x"])
    with pytest.raises(ValueError, match=r"has no mask token.*run_clm\.py"):
        run_mlm.Collator(args, tokenizer, None)


def test_a_loss_that_is_no_number_ends_the_run(vanilla, tmp_path):
    train = write_text(tmp_path / "train.txt", documents(12))
    settings = options(vanilla, tmp_path / "output", learning_rate=1e38, validation_split_percentage=0)
    with pytest.raises(NonFiniteLossError):
        run_main(run_mlm, train, **settings)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1.0, 0, 2), (math.nan, 0, 2)], "The loss of the validation data is nan; look at --learning_rate"),
        ([(math.inf, 0, 2)], "The loss of the validation data is inf"),
        ([(0.0, 0, 0)], "Not one token of the validation data is to be predicted"),
    ],
    ids=["nan", "infinite", "no label"],
)
def test_a_score_that_is_no_number_is_refused(rows, message, vanilla, tmp_path, monkeypatch):
    args = run_mlm.parse_args([*arguments(**options(vanilla, tmp_path)), "--train_file", "x"])
    monkeypatch.setattr(PretrainingTask, "run_model", lambda *args, **kwargs: rows)
    blocks = MappedBlocks(Dataset.from_dict({"input_ids": [[1]] * len(rows)}), "evaluation")
    task = object.__new__(PretrainingTask)
    task.args, task.datasets = args, {"validation": blocks}
    with pytest.raises(ValueError, match=message):
        task.evaluate(None)
