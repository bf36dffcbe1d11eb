# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What EA-RoBERTa has beside the suite of all models: it numbers its positions by what is not padding."""

import pytest
import torch
from models import BASE_CASES
from torch.testing import assert_close


CASE = next(case for case in BASE_CASES if case.model_class.__name__ == "EARobertaModel")


@pytest.mark.parametrize("padding", ["left", "right", "mixed"])
def test_positions_are_found_in_padded_token_ids(padding):
    """Without `position_ids`, a row gets from a padded batch what it gets alone, and the vanilla model's output."""
    model, plain = CASE.model(), CASE.model(ea_residual_weight=0.0, ea_conv_weight=0.0)
    vanilla = CASE.vanilla_model()
    vanilla.load_state_dict(plain.state_dict())
    examples = CASE.inputs.examples(model.config, [9, 1, 4])
    batch = CASE.inputs.batch(model.config, examples, padding, width=11)
    mask = batch.inputs["attention_mask"]
    token_ids = batch.inputs["input_ids"].masked_fill(mask == 0, model.config.pad_token_id)
    with torch.no_grad():
        together = model(token_ids, mask).last_hidden_state
        for row, example in enumerate(examples):
            alone = model(example["input_ids"][None]).last_hidden_state[0]
            assert_close(together[row, mask[row] == 1], alone, atol=1e-5, rtol=1e-5)
        real = mask == 1
        expected = vanilla(token_ids, mask).last_hidden_state
        assert_close(plain(token_ids, mask).last_hidden_state[real], expected[real], atol=1e-6, rtol=0)
