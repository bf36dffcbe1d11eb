# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of all three algorithms from the documents that the scripts of language modeling read."""

import importlib.util
import json

import pytest
import sentencepiece
import tiny_t5
from tiny_bert import arguments
from tiny_language import LANGUAGE_MODELING, write_text
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, BertConfig, BertTokenizer, RobertaConfig, RobertaTokenizer


specification = importlib.util.spec_from_file_location("language_tokenizer", LANGUAGE_MODELING / "train_tokenizer.py")
train_tokenizer = importlib.util.module_from_spec(specification)
specification.loader.exec_module(train_tokenizer)

TEXTS = [row["en"] for row in tiny_t5.pairs(400)]


@pytest.fixture
def train(tmp_path):
    def train(algorithm, *words, **options):
        file = write_text(tmp_path / "train.txt", [*TEXTS, "", "  "])
        options = {"vocab_size": 600, "output_dir": tmp_path / "tokenizer", **options}
        train_tokenizer.main([*arguments(algorithm=algorithm, **options), *words, "--train_file", str(file)])
        return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")

    return train


def test_wordpiece_is_a_bert_tokenizer(train, tmp_path):
    tokenizer = train("wordpiece")
    assert isinstance(tokenizer, BertTokenizer) and len(tokenizer) == 600
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    text = "Opens the selected document."
    tokens = tokenizer.tokenize(text)
    assert "".join(tokens).replace("##", "") == text.lower().replace(" ", "")
    assert tokenizer("the [MASK]")["input_ids"][2] == tokenizer.mask_token_id
    BertConfig().save_pretrained(tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(TEXTS[:9]) == tokenizer(TEXTS[:9])
    cased = train("wordpiece", "--no-lower_case", output_dir=tmp_path / "cased")
    cased = AutoTokenizer.from_pretrained(tmp_path / "cased")
    assert "".join(cased.tokenize(text)).replace("##", "") == text.replace(" ", "")


def test_byte_level_bpe_gives_the_ids_of_the_reference_and_writes_any_text(train, tmp_path):
    tokenizer = train("bpe")
    assert isinstance(tokenizer, RobertaTokenizer) and len(tokenizer) == 600
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    reference = ByteLevelBPETokenizer()
    reference.train_from_iterator(
        [text for text in TEXTS if text.strip()], 600, 2, special_tokens=tokenizer.all_special_tokens
    )
    assert len(reference.get_vocab()) == 600
    for text in [*TEXTS[:20], "Größe ☃ 日本", "  two  spaces\t"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
        ours = tokenizer.tokenize(text)
        assert ours and tokenizer.unk_token not in ours
    assert tokenizer("a <mask>")["input_ids"].count(tokenizer.mask_token_id) == 1
    RobertaConfig().save_pretrained(tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(TEXTS[:9]) == tokenizer(TEXTS[:9])


def test_unigram_is_sentencepiece_and_reads_long_documents(train, tmp_path):
    file = tmp_path / "long.jsonl"  # one document, far longer than SentencePiece takes a sentence to be
    file.write_text(json.dumps({"text": " ".join(TEXTS)}))
    words = arguments(algorithm="unigram", vocab_size=400, extra_ids=10, output_dir=tmp_path / "tokenizer")
    train_tokenizer.main([*words, "--train_file", str(file)])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer/spiece.model"))
    assert len(tokenizer) == 410
    assert [ids[:-1] for ids in tokenizer(TEXTS[:50])["input_ids"]] == reference.encode(TEXTS[:50])


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        ("bpe", {"vocab_size": 200}, "--vocab_size is 200; it must be at least 262"),
        ("wordpiece", {"dataset_name": "x"}, "exclude each other"),
        ("unigram", {"extra_ids": -1}, "--extra_ids is -1"),
    ],
)
def test_bad_arguments_are_told(algorithm, options, message, train, capsys):
    with pytest.raises(SystemExit):
        train(algorithm, **options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_no_text_is_told(algorithm, tmp_path):
    file = write_text(tmp_path / "train.txt", ["", " "])
    words = arguments(algorithm=algorithm, vocab_size=300, output_dir=tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="has no text"):
        train_tokenizer.main([*words, "--train_file", str(file)])
    assert not (tmp_path / "tokenizer").exists()
