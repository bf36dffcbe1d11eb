# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps as a page stores them: few bytes, and no value further from the model's than is allowed."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from ea_hf.visualization import Chain, LayerMaps, packing
from ea_hf.visualization.parts import PARTS, weight_of


def read_back(text, maps, shape):
    """Packed maps as a page reads them."""
    sevens = np.array([ord(character) & 127 for character in text], np.uint8)
    bits = np.unpackbits(sevens[:, None], axis=1)[:, 1:].ravel()
    content = zlib.decompressobj(31).decompress(np.packbits(bits).tobytes())
    found = {}
    for name, how in maps.items():
        count = how["rank"] * sum(shape) if how["rank"] else shape[0] * shape[1]
        bits, planes = content[: -(-count // 8)], content[-(-count // 8) :]
        is_nonzero = np.unpackbits(np.frombuffer(bits, np.uint8))[:count].astype(bool)
        low, high = (np.frombuffer(planes[i * how["nonzero"] :][: how["nonzero"]], np.uint8) for i in (0, 1))
        numbers = np.zeros(count)
        numbers[is_nonzero] = (low + 256.0 * high - 32768) * how["step"]
        content = planes[2 * how["nonzero"] :]
        if how["rank"]:
            left, right = np.split(numbers, [how["rank"] * shape[0]])
            numbers = left.reshape(-1, shape[0]).T @ right.reshape(-1, shape[1])
        found[name] = numbers.reshape(shape)
    return found


def smooth_maps(tokens=60, rank=6, layers=3, mixing="convex", weights=(0.3, 0.4), skipped=()):
    """A chain of maps that are products of few queries and keys, and so can be stored as factors."""
    generator = np.random.default_rng(0)
    found, previous = [], None
    for number in range(1, layers + 1):
        scores, vanilla = (
            torch.tensor(generator.normal(size=(2, tokens, rank)) @ generator.normal(size=(2, rank, tokens))).float()
            for _ in range(2)
        )
        is_first = previous is None
        layer = LayerMaps(
            number=number,
            residual_weight=0.0 if is_first else weights[0],
            conv_weight=0.0 if is_first else weights[1],
            scores=scores,
            previous=previous,
            convolved=None if is_first else scores.roll(1, -1).relu(),
            evolved=scores,
            attention=scores,
            mixing=mixing,
        )
        evolved = layer.from_scores + layer.from_previous + layer.from_convolution
        plain = LayerMaps(number, 0.0, 0.0, vanilla, None, None, vanilla, vanilla.softmax(-1))
        if number not in skipped:
            found.append(replace(layer, evolved=evolved, attention=evolved.softmax(-1), vanilla=plain))
        previous = evolved
    names = list(map(str, range(tokens)))
    return Chain("self", "self-attention", "query", "key", names, names, found)


@pytest.mark.parametrize("tolerance", [packing.FINE, packing.COARSE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixing": "additive", "weights": (1.0, 0.01)},
        {"weights": (torch.tensor([0.2, -0.5]), torch.tensor([0.0, 2.0])), "mixing": "learned"},
        {"skipped": (1,)},
        {"layers": 4, "skipped": (2,)},
    ],
    ids=str,
)
def test_every_map_of_a_page_is_within_the_tolerance_of_its_scale(options, tolerance):
    chain = smooth_maps(**options)
    for head in range(2):
        before = None
        for layer, (maps, content) in zip(chain.layers, packing.pack_head(chain, head, tolerance), strict=True):
            stored = read_back(packing.as_text(content), maps, (60, 60))
            stored = {name: packing.Stored({}, b"", values) for name, values in stored.items()}
            true = {name: values[head].numpy() for name, values in packing.shown_maps(layer).items()}
            weights = {part.name: weight_of(part, layer, head) for part in PARTS[:3]}
            previous = before[1] if before and before[0] == layer.number - 1 else None
            computed = packing._computed(stored, true, weights, previous, None)
            before = (layer.number, computed["evolved"])
            for name, values in true.items():
                assert np.abs(computed[name] - values).max() <= 1.01 * tolerance * np.abs(values).max(), name


def test_scores_are_stored_as_queries_and_keys():
    chain = smooth_maps()
    for maps, _ in packing.pack_head(chain, 0, packing.COARSE):
        assert maps["scores"]["rank"] == 6 and maps.keys() <= {"scores", "convolution", "vanilla"}


def test_attention_that_is_no_softmax_of_the_map_is_stored():
    chain = smooth_maps()
    layers = [replace(layer, attention=layer.attention.flip(0)) for layer in chain.layers]  # as mixed heads
    for maps, _ in packing.pack_head(replace(chain, layers=layers), 0, packing.COARSE):
        assert "attention" in maps and "evolved" not in maps


def test_characters_of_packed_bytes_are_none_that_html_changes():
    content = np.random.default_rng(0).integers(0, 256, 9999, np.uint8).tobytes() + bytes(64)
    text = packing.as_text(content)
    assert not set(text) & set("\0\n\r<") and len(text.encode()) < 1.2 * len(content)
