# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained tokenizer gives SentencePiece's own ids, whoever saves and loads it."""

import pytest
import sentencepiece
import train_tokenizer
from tiny_bert import arguments
from tiny_t5 import LANGUAGES, help_rows, pairs, write_pairs
from transformers import AutoTokenizer, T5Config, T5Tokenizer

import ea_hf


UNUSUAL = ["Größe ändern", "ß und Übergrößen", " two  spaces ", "", "日本 ☃☃ x", "½ ﬁve"]


def train(tmp_path, **options):
    data = write_pairs(tmp_path / "train.txt.gz", pairs(400))
    words = arguments(**LANGUAGES, **{"vocab_size": 400, "output_dir": tmp_path / "tokenizer", **options})
    train_tokenizer.main([*words, "--train_file", *data])
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("coverage", ["2", "nan", "0.5"])
def test_a_coverage_that_sentencepiece_does_not_take_is_told_by_its_name(coverage, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path, character_coverage=coverage)
    assert f"--character_coverage is {float(coverage)}; it must be in [0.98, 1]" in capsys.readouterr().err


@pytest.mark.parametrize("extra_ids", [0, 100])
@pytest.mark.parametrize("byte_fallback", [None, True], ids=["unknown", "bytes"])
@pytest.mark.parametrize("normalization", ["nmt_nfkc", "identity"])
def test_ids_agree_with_sentencepiece(normalization, byte_fallback, extra_ids, tmp_path):
    directory = train(
        tmp_path, extra_ids=extra_ids, byte_fallback=byte_fallback, normalization_rule_name=normalization
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model"))
    texts = [row[name] for row in help_rows() for name in ("en", "de")] + UNUSUAL
    expected = [[*reference.encode(text), 1] for text in texts]
    # The configuration of a model beside it must not choose another class of tokenizer.
    for config in (None, T5Config(), ea_hf.EAT5Config()):
        if config is not None:
            config.save_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert tokenizer.is_fast and isinstance(tokenizer, T5Tokenizer) == (not byte_fallback)
        assert tokenizer(texts)["input_ids"] == expected
        tokenizer.save_pretrained(tmp_path / "again")
        again = AutoTokenizer.from_pretrained(tmp_path / "again")
        assert again(texts)["input_ids"] == expected
    assert len(tokenizer) == reference.get_piece_size() + extra_ids == 400 + extra_ids
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    if extra_ids:
        assert tokenizer("<extra_id_0> <extra_id_99>")["input_ids"] == [499, 400, 1]
    unknown = tokenizer("☃")["input_ids"]
    assert (2 in unknown) == (not byte_fallback)
    for text in ["Größe ändern, Übergröße.", "Schließen Sie den Dialog."] + (["☃ 日本"] if byte_fallback else []):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_normalization_identity_keeps_an_ellipsis(tmp_path):
    for normalization, expected in (("identity", "Öffnen…"), ("nmt_nfkc", "Öffnen...")):
        tokenizer = AutoTokenizer.from_pretrained(train(tmp_path, normalization_rule_name=normalization))
        assert tokenizer.decode(tokenizer("Öffnen…")["input_ids"], skip_special_tokens=True) == expected


def test_too_large_a_vocabulary_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"--vocab_size 50000.*<= \d+"):
        train(tmp_path, vocab_size=50000)
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 3}, "--vocab_size is 3"),
        ({"extra_ids": -1}, "--extra_ids is -1"),
        ({"dataset_name": "x"}, "either"),
    ],
)
def test_bad_arguments_are_told(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path, **options)
    assert message in capsys.readouterr().err
