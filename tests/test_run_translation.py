# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""run_translation.py on small files of real sentences: what it reads, what it writes, and what it says about bad input."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import run_translation
import sacrebleu
import torch
from parallel_text import FEATURES, load_files, load_hub, read_pairs
from safetensors.torch import load_file
from tiny_bert import arguments, reset_accelerator, run_script, whole_and_resumed
from tiny_t5 import LANGUAGES, TINY_T5, TRANSLATION, pairs, tiny_tokenizer, write_checkpoint, write_pairs
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config

import ea_hf


SCRIPT = TRANSLATION / "run_translation.py"
NEW_MODEL = ",".join(f"{name}={value}" for name, value in TINY_T5.items())


pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture(scope="module")
def vanilla(tmp_path_factory) -> str:
    """The directory of a vanilla T5 with its tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("vanilla"))


def words_of(output_dir: Path, **options: Any) -> list[str]:
    """Arguments; lists become several words. Two steps unless said otherwise."""
    steps = {} if {"num_train_epochs", "eval_only", "max_train_steps"} & set(options) else {"max_train_steps": 2}
    files = {name: options.pop(name) for name in list(options) if isinstance(options[name], list)}
    options = {**LANGUAGES, "max_target_length": 24, **steps, **options}
    return [
        *arguments(output_dir=output_dir, **options),
        *(word for name, paths in files.items() for word in (f"--{name}", *paths)),
    ]


def translate(output_dir: Path, **options: Any) -> dict[str, Any]:
    """Runs the script in this process."""
    reset_accelerator()
    return run_translation.main(words_of(output_dir, **options))


def files(directory: Path, suffix: str = ".jsonl", nested: bool = True) -> dict[str, list[str]]:
    return {
        "train_file": write_pairs(directory / f"train{suffix}", pairs(29), nested),
        "validation_file": write_pairs(directory / f"validation{suffix}", pairs(13, 100), nested),
        "test_file": write_pairs(directory / f"test{suffix}", pairs(7, 200), nested),
    }


def read_predictions(directory: Path) -> list[dict[str, Any]]:
    with (directory / "predictions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def one_by_one(directory: Path, rows: list[dict[str, str]], prefix: str = "", length: int = 24, **generation):
    """Translations and the mean loss over all labels, each example alone, with nothing of the script."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    tokenizer, texts, losses, count = AutoTokenizer.from_pretrained(directory), [], 0.0, 0
    for row in rows:
        inputs = tokenizer(prefix + row["en"], return_tensors="pt")
        labels = tokenizer(row["de"], return_tensors="pt")["input_ids"]
        if labels.shape[1] > length:
            labels = torch.cat([labels[:, : length - 1], labels[:, -1:]], dim=1)
        with torch.no_grad():
            losses += model(**inputs, labels=labels).loss.item() * labels.numel()
            generated = model.generate(**inputs, **generation)
        count += labels.numel()
        texts.append(tokenizer.decode(generated[0], skip_special_tokens=True))
    return texts, losses / count


# What a run reads and writes


def test_a_new_model_is_trained_scored_and_loaded(tmp_path):
    data, output_dir = files(tmp_path), tmp_path / "output"
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = {
        **data, "tokenizer_name": tmp_path / "tokenizer", "config_overrides": NEW_MODEL, "ea_residual_weight": 0.4,
        "ea_conv_weight": 0.3, "num_train_epochs": 2, "learning_rate": 1e-3, "do_predict": True, "num_beams": 3,
        "per_device_eval_batch_size": 4, "source_prefix": "to German: ",
    }  # fmt: skip
    results = translate(output_dir, **options)
    assert results["global_step"] == 8

    model = AutoModelForSeq2SeqLM.from_pretrained(output_dir)
    assert type(model) is ea_hf.EAT5ForConditionalGeneration
    assert (model.config.ea_residual_weight, model.config.ea_conv_weight) == (0.4, 0.3)
    assert (model.config.d_model, model.config.vocab_size) == (TINY_T5["d_model"], len(tiny_tokenizer()))
    # A checkpoint generates with the run's settings by itself.
    for name, rows in (("eval", pairs(13, 100)), ("test", pairs(7, 200))):
        texts, loss = one_by_one(output_dir, rows, "to German: ")
        references = [[row["de"] for row in rows]]
        assert results[f"{name}_bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, references).score, abs=1e-9)
        assert results[f"{name}_chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, references).score, abs=1e-9)
        assert results[f"{name}_loss"] == pytest.approx(loss, rel=1e-5)
    assert read_predictions(output_dir) == [
        {"index": i, "source": row["en"], "reference": row["de"], "prediction": text}
        for i, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    assert len(set(texts)) > 3  # so that a wrong order would show
    assert model.generation_config.num_beams == 3 and model.generation_config.max_new_tokens == 24
    assert "tok:13a" in results["bleu_signature"] and "version:" in results["chrf_signature"]
    saved = json.loads((output_dir / "all_results.json").read_text(), parse_constant=pytest.fail)
    assert saved == results
    card = (output_dir / "README.md").read_text()
    assert "trained from scratch on translation from en to de" in card and results["bleu_signature"] in card.replace(
        "\\|", "|"
    )
    validation_file, test_file = (Path(data[f"{name}_file"][0]).name for name in ("validation", "test"))
    assert f"| validation | {validation_file} | 13 pairs |" in card and f"| test | {test_file} | 7 pairs |" in card

    for directory in (output_dir, output_dir / "checkpoint-8"):
        # The prefix is the checkpoint's own.
        options = {name: data[name] for name in ("validation_file", "test_file")}
        evaluated = translate(
            tmp_path / directory.name / "evaluated", **options, model_name_or_path=directory, eval_only=True,
            do_predict=True, num_beams=3, per_device_eval_batch_size=2,
        )  # fmt: skip
        assert evaluated == pytest.approx({name: results[name] for name in evaluated}, abs=1e-4)
        assert read_predictions(tmp_path / directory.name / "evaluated") == read_predictions(output_dir)


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".jsonl.gz", ".csv.gz", ".txt.gz"]
)
def test_every_file_format_gives_the_same_pairs(suffix, tmp_path):
    rows = pairs(40)
    rows[5] = {"en": 'A "quoted" word', "de": "NA"}
    expected = [(row["en"], row["de"]) for row in rows]
    for nested in (False, True):
        paths = write_pairs(tmp_path / f"{nested}{suffix}", rows, nested)
        assert list(read_pairs(paths, "en", "de")) == expected
        assert list(read_pairs(paths, "de", "en")) == [pair[::-1] for pair in expected] or suffix.startswith(".txt")
        loaded = load_files({"train": paths}, "en", "de")["train"]
        assert list(zip(loaded["source"], loaded["target"], strict=True)) == expected
        assert loaded.cache_files  # on disk, not in memory


def test_a_file_is_read_again_only_if_it_changed(tmp_path):
    cached = []
    for count, written in ((3, True), (3, False), (5, True)):
        if written:
            paths = write_pairs(tmp_path / "train.jsonl", pairs(count))
        loaded = load_files({"train": paths}, "en", "de")["train"]
        assert len(loaded) == count
        file = Path(loaded.cache_files[0]["filename"])
        cached.append((file, file.stat().st_mtime_ns))
    assert cached[0] == cached[1] != cached[2]


def test_a_repository_of_the_hub_is_read(vanilla, tmp_path):
    features = datasets.Features({"translation": datasets.Translation(("de", "en"))})
    for split, count, start in (("train", 19, 0), ("validation", 5, 100), ("test", 4, 200)):
        table = {"translation": pairs(count, start)}
        path = tmp_path / "hub/de-en" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(table, features=features).to_parquet(path)
    lines = ["---", "configs:", "- config_name: de-en", "  data_files:"]
    lines += [f"  - split: {name}\n    path: de-en/{name}-*" for name in ("train", "validation", "test")]
    (tmp_path / "hub/README.md").write_text("\n".join([*lines, "---", ""]))
    hub = {"dataset_name": tmp_path / "hub", "dataset_config_name": "de-en"}
    loaded = load_hub(str(tmp_path / "hub"), "de-en", "en", "de")
    assert loaded["train"].features == FEATURES and loaded["train"][3] == {
        "source": pairs(19)[3]["en"],
        "target": pairs(19)[3]["de"],
    }
    results = translate(tmp_path / "output", model_name_or_path=vanilla, **hub, do_predict=True, max_predict_samples=3)
    assert [row["reference"] for row in read_predictions(tmp_path / "output")] == [row["de"] for row in pairs(3, 200)]
    assert results["eval_loss"] > 0
    with pytest.raises(ValueError, match=r"has no language 'fr'; its columns are .*translation\.en"):
        load_hub(str(tmp_path / "hub"), "de-en", "en", "fr")


@pytest.mark.slow
def test_a_vanilla_checkpoint_is_converted_with_its_own_prefix(tmp_path):
    tasks = {"translation_en_to_de": {"prefix": "to German: "}, "translation_en_to_fr": {"prefix": "to French: "}}
    vanilla = write_checkpoint(tmp_path / "vanilla", task_specific_params=tasks, feed_forward_proj="gated-gelu")
    output_dir = tmp_path / "output"
    results = translate(
        output_dir, model_name_or_path=vanilla, **files(tmp_path), ea_residual_weight=0.3, learning_rate=0.0
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(output_dir)
    assert model.config.model_type == "ea_t5" and model.config.ea_residual_weight == 0.3
    assert model.config.feed_forward_proj == "gated-gelu"
    assert list(model.config.task_specific_params) == ["translation_en_to_de"]
    weights = load_file(output_dir / "model.safetensors")
    for name, value in load_file(Path(vanilla) / "model.safetensors").items():
        assert torch.equal(weights.get(name, value), value)
    assert all("evolution" in name for name in set(weights) - set(load_file(Path(vanilla) / "model.safetensors")))
    assert results["eval_loss"] == pytest.approx(one_by_one(output_dir, pairs(13, 100), "to German: ")[1], abs=1e-4)
    assert abs(results["eval_loss"] - one_by_one(output_dir, pairs(13, 100))[1]) > 1e-3


def test_chains_can_be_switched_off(vanilla, tmp_path):
    translate(tmp_path / "output", model_name_or_path=vanilla, **files(tmp_path), **{"no-ea_decoder": True})
    config = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "output").config
    assert (config.ea_encoder, config.ea_decoder, config.ea_cross_attention) == (True, False, True)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(vanilla, tmp_path):
    options = {
        **files(tmp_path), "model_name_or_path": vanilla, "max_train_steps": 6, "checkpointing_steps": 3, "group_by_length": True,
        "learning_rate": 1e-2, "label_smoothing_factor": 0.1, "save_total_limit": 5, "eval_steps": "no",
    }  # fmt: skip
    expected, actual = whole_and_resumed(translate, tmp_path, "checkpoint-6", **options)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    start = load_file(tmp_path / "whole/checkpoint-3/model.safetensors")
    assert not any(torch.equal(start[name], value) for name, value in expected.items() if "weight" in name)


@pytest.mark.slow
def test_the_best_checkpoint_is_chosen(vanilla, tmp_path):
    options = {
        **files(tmp_path), "model_name_or_path": vanilla, "max_train_steps": 3, "eval_steps": 1, "learning_rate": 3.0,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "lr_scheduler_type": "constant",
    }  # fmt: skip
    results = translate(tmp_path / "output", **options)
    state = json.loads((tmp_path / "output/checkpoint-3/trainer_state.json").read_text())
    losses = {int(step): metrics["loss"] for step, metrics in state["evaluations"].items()}
    assert len(losses) == 3 and results["eval_loss"] == min(losses.values())
    evaluated = translate(
        tmp_path / "evaluated",
        model_name_or_path=tmp_path / "output",
        validation_file=options["validation_file"],
        eval_only=True,
    )
    assert evaluated["eval_loss"] == pytest.approx(min(losses.values()), abs=1e-4)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path):
    """Neither 13 validation nor 7 test examples can be shared evenly in batches of 3."""
    data = files(tmp_path)
    options = {
        **data, "model_name_or_path": write_checkpoint(tmp_path / "model"), "do_predict": True, "num_train_epochs": 1,
        "per_device_eval_batch_size": 3, "learning_rate": 1e-3, "group_by_length": True, "label_smoothing_factor": 0.1,
        "num_beams": 2, "logging_steps": 1,
    }  # fmt: skip
    status, printed = run_script(words_of(tmp_path / "two", **options, per_device_train_batch_size=4), 2, SCRIPT)
    assert status == 0, printed
    translate(tmp_path / "one", **options, per_device_train_batch_size=8)
    losses = [
        [report["loss"] for report in json.loads((tmp_path / name).read_text())["log_history"]]
        for name in ("one/checkpoint-4/trainer_state.json", "two/checkpoint-4/trainer_state.json")
    ]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-5)

    options = {
        name: options[name] for name in ("validation_file", "test_file", "num_beams", "per_device_eval_batch_size")
    }
    evaluated = translate(
        tmp_path / "evaluated", **options, model_name_or_path=tmp_path / "two", eval_only=True, do_predict=True
    )
    results = json.loads((tmp_path / "two/all_results.json").read_text())
    assert evaluated == pytest.approx({name: results[name] for name in evaluated}, abs=1e-9)
    assert (tmp_path / "evaluated/predictions.jsonl").read_bytes() == (tmp_path / "two/predictions.jsonl").read_bytes()
    assert len(read_predictions(tmp_path / "two")) == 7


# Loss and batches


def test_label_smoothing_spreads_a_share_over_the_vocabulary():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [4, -100, -100]])

    class Model(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": logits})

    log_probabilities = logits.log_softmax(-1)
    expected = 0.0
    for row, column in ((0, 0), (0, 1), (1, 0)):
        scores = log_probabilities[row, column]
        expected -= (0.8 * scores[labels[row, column]] + 0.2 * scores.mean()) / 3
    loss = run_translation.smoothed_loss(0.2, Model(), {"input_ids": None, "labels": labels})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def collator(vanilla: str, precision: str = "no", ignore_pad: bool = True) -> run_translation.Collator:
    args = run_translation.parse_args(
        [
            *words_of(Path("x"), model_name_or_path=vanilla, train_file=["x"]),
            *([] if ignore_pad else ["--no-ignore_pad_token_for_loss"]),
        ]
    )
    accelerator = type("Accelerator", (), {"mixed_precision": precision})
    model = type("Model", (), {"config": T5Config(pad_token_id=0, decoder_start_token_id=9)})
    return run_translation.Collator(args, accelerator, model)


def test_a_batch_is_padded_and_shifted(vanilla):
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 1], "labels": [8, 9, 1]}]
    batch = {name: value.tolist() for name, value in collator(vanilla)(rows).items()}
    assert batch == {
        "input_ids": [[5, 6, 1], [5, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[7, 1, -100], [8, 9, 1]],
        "decoder_input_ids": [[9, 7, 1], [9, 8, 9]],
    }
    assert collator(vanilla, ignore_pad=False)(rows)["labels"].tolist() == [[7, 1, 0], [8, 9, 1]]
    assert {tuple(value.shape) for value in collator(vanilla, "bf16")(rows).values()} == {(2, 8)}


def new_config(tokenizer_name: str, **options: Any) -> ea_hf.EAT5Config:
    args = run_translation.parse_args(words_of(Path("x"), train_file=["x"], tokenizer_name=tokenizer_name, **options))
    return run_translation.new_config(args, tiny_tokenizer())


def test_a_new_configuration_follows_its_overrides(vanilla):
    config = new_config(
        vanilla, config_overrides="d_model=48,num_layers=2,feed_forward_proj=gated-gelu,use_cache=false"
    )
    assert (config.d_model, config.num_layers, config.num_decoder_layers) == (48, 2, 2)
    assert config.is_gated_act and config.dense_act_fn == "gelu_new" and config.use_cache is False
    assert config.vocab_size == len(tiny_tokenizer()) and config.decoder_start_token_id == 0
    config = new_config(
        vanilla, config_name=vanilla, config_overrides="feed_forward_proj=gated-gelu", ea_kernel_size=5
    )
    assert isinstance(config, ea_hf.EAT5Config) and config.d_model == TINY_T5["d_model"]
    assert config.is_gated_act and config.dense_act_fn == "gelu_new" and config.ea_kernel_size == 5
    with pytest.raises(ValueError, match="names 'hidden_layers', which EAT5Config does not have"):
        new_config(vanilla, config_overrides="hidden_layers=2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass --dataset_name, or --train_file"),
        ({"dataset_name": "wmt16", "train_file": "x"}, "exclude each other"),
        ({"validation_file": "x"}, "pass --train_file, or --eval_only"),
        ({"train_file": "x", "model_name_or_path": None}, "pass --model_name_or_path, or --tokenizer_name"),
        ({"train_file": "x", "config_overrides": "d_model=2"}, "are for a new model"),
        ({"train_file": "x", "config_overrides": "d_model"}, "'d_model' is not name=value"),
        ({"train_file": "x", "do_predict": True}, "--do_predict needs --test_file"),
        ({"train_file": "x", "load_best_model_at_end": True}, "--load_best_model_at_end needs --validation_file"),
        ({"validation_file": "x", "eval_only": True, "model_name_or_path": None}, "--eval_only needs --model_name_or_path"),
        ({"train_file": "x", "metric_for_best_model": "rouge"}, "choose one of bleu, chrf, loss"),
        ({"train_file": "x", "label_smoothing_factor": 1.0}, "--label_smoothing_factor is 1.0"),
        ({"train_file": "x", "max_target_length": 0}, "--max_target_length is 0"),
        ({"train_file": "x", "num_beams": 0}, "--num_beams is 0"),
        ({"train_file": "x", "source_lang": "de"}, "are both 'de'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(options, message, capsys):
    with pytest.raises(SystemExit):
        run_translation.parse_args(words_of(Path("x"), **{"model_name_or_path": "x", **options}))
    assert message in capsys.readouterr().err


def test_bleu_takes_the_tokenization_of_the_language():
    signatures = {
        language: str(run_translation.make_metrics(language)["bleu"].get_signature())
        for language in ("zh_CN", "de-AT")
    }
    assert "tok:zh" in signatures["zh_CN"] and "tok:13a" in signatures["de-AT"]
