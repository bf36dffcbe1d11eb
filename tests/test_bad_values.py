# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What a file, a configuration or a checkpoint should not hold is told with its place, and never taken for something else."""

import argparse
import gzip
import json
import os
from pathlib import Path

import image_classifier
import pyarrow
import pyarrow.parquet
import pytest
import run_t5_mlm
import torch
from image_data import check_classes, drop_unreadable, find_unreadable
from image_sources import load_folders, load_hub
from labels import LabelScan, label_text
from safetensors.torch import load_file, save_file
from series_data import load_files
from series_table import read_table
from tiny_bert import TINY_BERT
from tiny_images import write_checkpoint, write_folders, write_hub
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, BertConfig, BertModel

from ea_hf import EABertConfig, EABertModel, EAT5Config, EAT5Model, summary
from ea_hf.models.auto import evolving_model_from_pretrained
from ea_hf.models.loading_faults import loading_told
from ea_hf.training.arguments import add_training_arguments, check_training_arguments
from ea_hf.training.config_overrides import check_overrides, overrides_told
from ea_hf.training.local_files import read_line_parts, read_lines, read_rows
from ea_hf.training.script import _tell_shared_files


# Files


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_text_in_utf16_without_a_mark_is_refused(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("One two.\n".encode(encoding))
    for read in (read_lines, lambda path: read_line_parts(path, 4)):
        with pytest.raises(ValueError, match=r"a\.txt, line 1 has a null character: .*UTF-16"):
            list(read(str(path)))


def test_what_a_crash_left_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"sentence,label\nGood.,1\n\0\0\0\0\0\0\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 3 has a null character.*damaged"):
        list(read_rows(str(tmp_path / "a.csv")))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"a,b\n1,2\n"), r"gzip; let its name end in \.gz"),
        (b"PAR1\x15\x04\xf0\n", "parquet"),
        (b"PK\x03\x04\xff\n", "zip archive or an Excel file"),
    ],
    ids=["utf-16", "gzip", "parquet", "zip"],
)
def test_a_file_of_another_kind_is_told_what_it_is(content, kind, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.csv, line 1 is not UTF-8: it is .*{kind}"):
        list(read_rows(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("row", ['{"label": 1, "text": "a", "label": 2}', '{"translation": {"en": "a", "en": "b"}}'])
def test_a_name_that_stands_twice_in_json_is_refused(row, tmp_path):
    """Python takes the last one."""
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 has two values named '(label|en)'"):
        list(read_rows(str(tmp_path / "a.jsonl")))


def test_json_that_nests_too_deep_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1 is not JSON"):
        list(read_rows(str(tmp_path / "a.jsonl")))


def test_columns_of_one_name_are_refused_in_parquet(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has two columns 'text'"):
        list(read_rows(str(tmp_path / "a.parquet")))


def test_columns_of_one_name_are_refused_in_a_table_of_series(tmp_path):
    """pandas calls the second "one.1", which would be a channel."""
    (tmp_path / "a.csv").write_text("series,one,one,label\ns,1.5,2.5,x\n")
    with pytest.raises(ValueError, match=r"a\.csv has two columns 'one'"):
        read_table(str(tmp_path / "a.csv"))


def test_a_table_of_series_without_rows_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("series,one,label\n")
    with pytest.raises(ValueError, match=r"a\.csv has no rows"):
        read_table(str(tmp_path / "a.csv"))


# Names of classes


def test_classes_that_differ_by_white_space_alone_are_told(caplog):
    scan = LabelScan("a.csv", "label")
    scan.add(["good", "bad", "good "], 1)
    assert scan.finish() == ["bad", "good", "good "]
    assert (
        "a.csv, column 'label': 'good' and 'good ' are two classes, which differ by white space alone" in caplog.text
    )


def test_a_label_of_white_space_is_a_missing_one():
    assert label_text("  ") is None and label_text(" a ") == " a "


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("s,1.5,x\nt,2.5,y\nu,0.5,x \n", "the classes 'x' and 'x '"),
        ("s,1.5,x\n s,2.5,y\n", "the series 's' and ' s'"),
        ("s,1.5,x\nt,2.5,  \n", "must have one label"),
    ],
)
def test_names_in_tables_of_series_are_told_apart_as_a_reader_would(rows, message, tmp_path):
    (tmp_path / "a.csv").write_text("series,one,label\n" + rows)
    with pytest.raises(ValueError, match=message):
        load_files({"train": str(tmp_path / "a.csv")})


# Images


def test_class_folders_that_differ_by_white_space_alone_are_refused(tmp_path):
    train = Path(write_folders(tmp_path / "train", 2))
    (train / "one").rename(train / "two ")
    with pytest.raises(ValueError, match="the classes 'two' and 'two ' differ by white space"):
        check_classes(load_folders({"train": str(train)}), skip_empty=False)


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    train = Path(write_folders(tmp_path / "train", 2))
    (train / "one" / "9.png").symlink_to(tmp_path / "gone.png")
    data = load_folders({"train": str(train)})
    with pytest.raises(ValueError, match=r"(?s)1 of 7 images of train cannot be read:.*one/9\.png"):
        drop_unreadable(data, {"train": find_unreadable(data.splits["train"])}, skip=False)


@pytest.mark.parametrize(("option", "column"), [("label_column_name", "image"), ("image_column_name", "label")])
def test_columns_of_a_data_set_that_are_mixed_up_are_told(option, column, tmp_path):
    with pytest.raises(ValueError, match=rf"The column '{column}' of .* holds no .*--{option}"):
        load_hub(write_hub(tmp_path / "hub"), **{option: column})


@pytest.mark.parametrize(
    ("change", "message"),
    [("{", r"preprocessor_config\.json cannot be read"), ({"image_std": [0.0]}, r"divides by `image_std`, \[0\.0\]")],
)
def test_an_image_processor_that_is_damaged_is_not_replaced(change, message, tmp_path):
    checkpoint = Path(write_checkpoint(tmp_path / "vit"))
    file = checkpoint / "preprocessor_config.json"
    file.write_text(change if isinstance(change, str) else json.dumps({**json.loads(file.read_text()), **change}))
    args = argparse.Namespace(
        model_type=None, model_name_or_path=str(checkpoint), ignore_mismatched_sizes=False, trust_remote_code=False,
        image_size=None, eval_only=False,
    )  # fmt: skip
    data = load_folders({"train": write_folders(tmp_path / "train", 2)})
    with pytest.raises(ValueError, match=message):
        image_classifier.load_model(args, data)


# Configurations


@pytest.mark.parametrize(
    "values",
    [{"hidden_size": -32}, {"hidden_act": "swush"}, {"pad_token_id": 99999}, {"intermediate_size": -1}],
)
def test_values_that_no_model_can_have_are_told_by_name(values):
    message = rf"No model can be made with --config_overrides {next(iter(values))}="
    with pytest.raises(ValueError, match=message), overrides_told(values):
        BertModel(BertConfig(**{**TINY_BERT, **values}))


def test_a_fault_of_the_code_stays_one():
    with pytest.raises(KeyError), overrides_told({}):
        raise KeyError("x")


@pytest.mark.parametrize("name", ["hidden_sizes", "num_labels", "id2label"])
def test_overrides_that_have_no_effect_are_refused(name):
    with pytest.raises(ValueError, match=f"--config_overrides names '{name}'"):
        check_overrides({name: 3}, EABertConfig())


@pytest.mark.parametrize(
    ("config_class", "name"),
    [(EABertConfig, "num_hidden_layers"), (EABertConfig, "num_attention_heads"), (EAT5Config, "num_layers"),
     (EAT5Config, "num_decoder_layers")],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1])
def test_a_model_has_layers_and_heads(config_class, name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}; choose a positive integer"):
        config_class(**{name: value})


@pytest.mark.parametrize("number", [0, 1, 3])
def test_t5_has_buckets_of_both_directions_near_and_far(number):
    with pytest.raises(ValueError, match=f"`relative_attention_num_buckets` is {number}; choose at least 4"):
        EAT5Config(relative_attention_num_buckets=number)
    sizes = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 2}
    model = EAT5Model(EAT5Config(**sizes, relative_attention_num_buckets=4))
    model(input_ids=torch.ones(1, 20, dtype=torch.long), decoder_input_ids=torch.ones(1, 20, dtype=torch.long))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_in_which_nothing_can_evolve_is_told(layers, caplog):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    with caplog.at_level("WARNING"):
        EABertModel(EABertConfig(**sizes, num_hidden_layers=layers, ea_residual_weight=0.0, ea_conv_weight=0.0))
        assert "one layer only" not in caplog.text
        EABertModel(EABertConfig(**sizes, num_hidden_layers=layers))
    assert ("one layer only" in caplog.text) == (layers == 1)


def test_a_summary_needs_the_names_of_its_inputs():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    with pytest.raises(TypeError, match="`inputs` is a str; give the model's arguments by name"):
        summary(EABertModel(EABertConfig(**sizes, num_hidden_layers=2)), "A film.")


# Arguments


def test_a_file_that_is_trained_on_and_scored_is_told(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("text,label\nGo,x\n")
    (tmp_path / "b.csv").write_text("text,label\nGo,x\n")
    (tmp_path / "c.csv").write_text("text,label\nGo,y\n")
    files = {"train_file": str(tmp_path / "a.csv"), "validation_file": str(tmp_path / "c.csv"), "test_file": None}
    _tell_shared_files(argparse.Namespace(**files))
    assert not caplog.text
    _tell_shared_files(
        argparse.Namespace(**{**files, "validation_file": [str(tmp_path / "c.csv"), str(tmp_path / "b.csv")]})
    )
    assert "b.csv holds what" in caplog.text and "c.csv holds" not in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ddp_timeout", "1000000000000000"], r"--ddp_timeout is 1000000000000000; it must be at most"),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], r"'a/b/c'.*Choose a --hub_model_id"),
        (["--push_to_hub", "--output_dir", "my film"], r"'my film'.*Choose a --hub_model_id"),
        (["--optim_args", "eps=-1"], r"--optim adamw_torch does not take --optim_args \{'eps': -1\}: Invalid epsilon"),
        (["--optim", "sgd", "--optim_args", "betas=1"], r"--optim sgd does not take --optim_args \{'betas': 1\}"),
    ],
)
def test_arguments_that_would_fail_later_are_told_at_once(words, message):
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    with pytest.raises(ValueError, match=message):
        check_training_arguments(parser.parse_args(["--output_dir", "x", *words]))


@pytest.mark.parametrize("length", ["nan", "inf", "0.5"])
def test_spans_have_a_length(length, capsys):
    with pytest.raises(SystemExit):
        run_t5_mlm.parse_args(["--output_dir", "x", "--train_file", "x", "--model_name_or_path", "x",
                               "--mean_noise_span_length", length])  # fmt: skip
    assert f"--mean_noise_span_length is {length}" in capsys.readouterr().err


def test_a_length_is_told_by_the_name_that_was_given(capsys):
    with pytest.raises(SystemExit):
        run_t5_mlm.parse_args(["--output_dir", "x", "--train_file", "x", "--model_name_or_path", "x",
                               "--max_seq_length", "0"])  # fmt: skip
    assert "--max_seq_length is 0; it must be at least 1" in capsys.readouterr().err


# Checkpoints


def cut(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_part(directory):
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    save_file(weights, directory / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    parts = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(weights)}
    index = {"metadata": {"total_size": 1}, "weight_map": parts}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_the_index(directory):
    lose_a_part(directory)
    (directory / "model.safetensors.index.json").write_text("{")


def lose_a_weight(directory):
    """Of one that has an index, which names it no more."""
    lose_a_part(directory)
    name = "embeddings.word_embeddings.weight"
    weights = load_file(directory / "model-00001-of-00002.safetensors")
    save_file(weights, directory / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    parts = {1: {}, 2: {}}
    for one, file in index["weight_map"].items():
        parts[int(file[10])][one] = weights[one]
    for number, part in parts.items():
        part.pop(name, None)
        save_file(part, directory / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    del index["weight_map"][name]
    path.write_text(json.dumps(index))


def set_weight(name, value):
    def write(directory):
        weights = load_file(directory / "model.safetensors")
        if value is None:
            del weights[name]
        else:
            weights[name].view(-1)[0] = value
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return write


def change(**values):
    def write(directory):
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"cannot be read: .*model\.safetensors is damaged or cut off"),
        (lambda directory: (directory / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged or cut off"),
        (lose_a_part, r"is not whole: .*model-00002-of-00002"),
        (damage_the_index, r"index\.json is not JSON"),
        (change(vocab_size=7), "some weights have other shapes than config.json says"),
        (change(hidden_act="swush"), "KeyError: 'swush'"),
        (change(num_hidden_layers=4), r"lack encoder\.layer\.3\..* and 1\d more, which EABertModel has"),
        (change(num_hidden_layers=2), r"more layers than its config.json says: encoder\.layer\.2\..* and 1\d more"),
        (lose_a_weight, r"lack embeddings\.word_embeddings\.weight, which"),
        (set_weight("encoder.layer.1.attention.self.evolution.conv.weight", None), r"missing or left over, such as .encoder\.layer\.1\..*conv.weight"),
        (set_weight("encoder.layer.0.output.dense.bias", float("nan")), r"NaN or infinite: encoder\.layer\.0\.output\."),
        (set_weight("encoder.layer.0.output.dense.bias", float("-inf")), r"NaN or infinite: encoder\.layer\.0\.output\."),
    ],
    ids=["cut", "empty", "part", "index", "shapes", "activation", "layers", "fewer", "weight", "kernel", "nan", "inf"],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_loaded_is_told_with_its_fault(damage, message, tmp_path):
    EABertModel(EABertConfig(**TINY_BERT, vocab_size=50)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        evolving_model_from_pretrained(AutoModel, str(tmp_path))


def test_a_checkpoint_of_another_task_is_told_in_one_sentence(tmp_path):
    EABertModel(EABertConfig(**TINY_BERT)).save_pretrained(tmp_path)
    message = "has a EABertConfig, for which there is no AutoModelForSeq2SeqLM.$"
    with pytest.raises(ValueError, match=message), loading_told(str(tmp_path)):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path)


def test_weights_that_are_no_pickle_are_told(tmp_path):
    with pytest.raises(ValueError, match=f"The checkpoint {tmp_path} cannot be read"), loading_told(str(tmp_path)):
        raise EOFError(os.fspath(tmp_path))


@pytest.mark.parametrize("vanilla", [True, False])
def test_heads_pooler_and_evolution_of_another_kind_may_be_new(vanilla, tmp_path):
    model = BertModel(BertConfig(**TINY_BERT)) if vanilla else EABertModel(EABertConfig(**TINY_BERT))
    model.save_pretrained(tmp_path)
    set_weight("pooler.dense.bias", None)(tmp_path)
    fields = None if vanilla else {"ea_conv_weight": 0.4}
    _, missing = evolving_model_from_pretrained(AutoModelForSequenceClassification, str(tmp_path), fields)
    assert missing == {"bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
