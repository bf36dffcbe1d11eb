# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Stand-in for the values that Transformers' `ConfigTester` sets on every configuration and reads back.

They cover the fields that all configurations share, each with a value that is not its default.
"""

config_common_kwargs = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "negative", 1: "neutral", 2: "positive"},
    "is_encoder_decoder": True,
    "label2id": {"negative": 0, "neutral": 1, "positive": 2},
    "name_or_path": "somewhere/some-model",
    "num_labels": 3,
    "output_attentions": True,
    "output_hidden_states": True,
    "pad_token_id": 5,
    "problem_type": "regression",
    "return_dict": False,
}
