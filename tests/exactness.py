# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of exactness compare, and how."""

import pytest
import torch
from models import (
    BASE_CASES,
    CASES,
    EXTENDING_CASES,
)
from torch.testing import assert_close


every_kernel = pytest.mark.parametrize("kernel_size", [1, 3, 5], ids="kernel{}".format)


def parametrize_paddings(cases):
    cases_and_paddings = [(case, padding) for case in cases for padding in case.inputs.paddings]
    return pytest.mark.parametrize(("case", "padding"), cases_and_paddings, ids=str)


every_padding = parametrize_paddings(CASES)
every_padding_of_an_extending_model = parametrize_paddings(EXTENDING_CASES)
every_padding_of_a_mask = parametrize_paddings([case for case in CASES if case.inputs.takes_mask])
every_padding_of_a_family_s_mask = parametrize_paddings([case for case in BASE_CASES if case.inputs.takes_mask])


def run(model, inputs, **kwargs):
    inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        return model(**inputs, **kwargs)


def without_mask(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def tensors(outputs):
    """The tensors of a model's output by name, those of a tuple as `attentions.0` and so on."""
    found = {}
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, tuple):
            found.update({f"{name}.{index}": item for index, item in enumerate(value)})
    return found


def assert_same_outputs(actual, expected, atol=0.0, tensors=tensors):
    actual, expected = tensors(actual), tensors(expected)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], atol=atol, rtol=0, msg=f"{name}: ".__add__)


def assert_gradients_are_slopes(model, value_of, parts, step):
    """The gradients of a model against the difference quotient of `value_of`, which takes parameters.

    Args:
        parts: of the names of the parameters that change together.
        step: of the difference, along a random direction.
    """
    for part in parts:
        direction = {name: torch.randn_like(value) * (part in name) for name, value in model.named_parameters()}
        slope = sum((direction[name] * value.grad).sum() for name, value in model.named_parameters()).item()
        with torch.no_grad():
            ends = [
                value_of({name: value + signed * direction[name] for name, value in model.named_parameters()})
                for signed in (step, -step)
            ]
        assert slope == pytest.approx((ends[0] - ends[1]).item() / (2 * step), rel=1e-4), part


def maps_of(case, outputs):
    """The attention maps of all chains, each with its attention weights and the mask of its keys, if any."""
    return {
        f"{chain}attention_maps": (
            outputs[f"{chain}attention_maps"],
            outputs.get("cross_attentions" if chain == "cross_" else f"{chain}attentions"),
            mask,
        )
        for chain, mask in case.inputs.chains.items()
    }


def pick(value, positions):
    """The real tokens along each axis that has the width of a padded one."""
    for axis, width in enumerate(value.shape):
        if width in positions:
            value = value.index_select(axis, positions[width])
    return value


def assert_rows_equal_alone(case, model, examples, batch, tolerance=1e-5, **kwargs):
    """Each row's real tokens get from a padded batch what they get alone, without any mask."""
    together = tensors(run(model, batch.inputs, **kwargs))
    for row, (example, positions) in enumerate(zip(examples, batch.positions, strict=True)):
        alone = run(model, {name: values[None] for name, values in example.items()}, **kwargs)
        for name, expected in tensors(alone).items():
            if name in case.means or (name in case.pooled and any(real[0] > 0 for real in positions.values())):
                continue
            # Multiple choice folds its choices into the batch of hidden states and attention maps.
            actual = pick(together[name].unflatten(0, (len(examples), -1))[row], positions)
            expected = expected.unflatten(0, (1, -1))[0]
            note = f"row {row}, {name}: "
            assert_close(actual, expected, atol=tolerance, rtol=tolerance, msg=note.__add__)


def objective(outputs):
    """A number that every element of every output changes, by a different amount."""
    return sum((value * torch.arange(value.numel()).sin().view_as(value)).sum() for value in tensors(outputs).values())


def gradients(model, inputs):
    model.zero_grad()
    objective(model(**inputs)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:
        # The gradient of a key's bias is zero but for rounding, so what counts there is the scale of all of them.
        own_scale = max(expected[name].norm(), 1e-3 * scale)
        assert (actual[name] - expected[name]).norm() <= 1e-6 * own_scale, name


# The suite itself
