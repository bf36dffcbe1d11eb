# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps in few bytes: what a page stores of a layer, and what it computes from that.

Stored are the scores, what the convolution adds, and the scores of the vanilla model; the page computes the other maps with
the same weights. Scores are products of queries and keys: where a map of them has a small rank, two factors are stored in its
place. All is rounded to integers and compressed. `pack_head` computes what the page will, and stores whatever map would
be further from the model's than the tolerance.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..map_recording import LayerMaps
from .examples import Chain
from .parts import ATTENTION, EVOLVED, PARTS, weight_of


# How far a value may be from the model's, as a share of the largest absolute value of its map: of pages with few values, and
# of large ones.
FINE, COARSE = 1e-4, 9.5e-4
MOST_FINE_CELLS = 1_000_000  # of all layers and heads together
LARGEST_INTEGER = 32767
SMALLEST_FACTORED = 32  # queries or keys; smaller maps are stored whole
SPECIAL = (0, 10, 13, ord("<"))
ATTEMPTS = 24  # at rounding less, before a map is stored that could have been computed


@dataclass
class Stored:
    """A map as it is stored: how to read it, its bytes, and the values that the page will have."""

    description: dict[str, Any]
    content: bytes
    values: np.ndarray


def tolerance_of(chains: list[Chain]) -> float:
    """How exact a page with these chains is."""
    cells = sum(layer.evolved.numel() for chain in chains for layer in chain.layers)
    return FINE if cells <= MOST_FINE_CELLS else COARSE


def shown_maps(layer: LayerMaps) -> dict[str, torch.Tensor]:
    """All maps that a page shows of a layer by name, (heads, query, key)."""
    shown = {part.name: part.values(layer) for part in PARTS}
    if layer.vanilla is not None:
        shown["vanilla"] = EVOLVED.vanilla(layer.vanilla)
        shown["vanilla attention"] = ATTENTION.vanilla(layer.vanilla)
    return shown


def pack_head(chain: Chain, head: int, tolerance: float) -> list[tuple[dict[str, Any], bytes]]:
    """Of each layer how to read the stored maps of a head, by its place, and their bytes, compressed."""
    is_open = None if chain.layers[0].blocked is None else ~chain.layers[0].blocked.numpy()
    packed = []
    before: tuple[int, np.ndarray] | None = None  # number and evolved map of the layer before, as the page has them
    for layer in chain.layers:
        previous = before[1] if before is not None and before[0] == layer.number - 1 else None
        stored, evolved = _pack(layer, head, previous, is_open, tolerance)
        before = (layer.number, evolved)
        content = _compressed([one.content for one in stored.values()])
        packed.append(({name: one.description for name, one in stored.items()}, content))
    return packed


def _pack(
    layer: LayerMaps, head: int, previous: np.ndarray | None, is_open: np.ndarray | None, tolerance: float
) -> tuple[dict[str, Stored], np.ndarray]:
    """The stored maps of one head by name, and the evolved map that the page will have."""
    true = {name: maps[head].double().numpy() for name, maps in shown_maps(layer).items()}
    weights = {part.name: weight_of(part, layer, head) for part in PARTS[:3]}
    allowed = {name: tolerance * _largest(values, is_open) for name, values in true.items()}
    error = {name: allowed[name] for name in ("scores", "convolution", "vanilla") if name in true}
    if "vanilla" in true and np.array_equal(true["vanilla"], true["scores"]):
        del error["vanilla"]  # as in a first layer
    if previous is None and weights["previous"]:
        error["previous"] = allowed["previous"]
    sources = {name: Source(values) for name, values in true.items()}
    stored: dict[str, Stored] = {}
    # What a softmax makes of rounded logits is the hardest to meet.
    for _ in range(ATTEMPTS):
        for name in error.keys() - stored.keys():
            if true[name].any():
                stored[name] = sources[name].store(error[name])
        wrong = _wrong(stored, true, allowed, weights, previous, is_open)
        if not wrong:
            break
        computed = {"vanilla": {"vanilla", "vanilla attention"}}
        for name in error:
            if wrong & computed.get(name, set(true) - computed["vanilla"]):
                error[name] *= 0.85
                stored.pop(name, None)
    for name in error.keys() - stored.keys():
        if true[name].any():
            stored[name] = sources[name].store(error[name])
    # One by one, as an exact evolved map may set its attention right.
    while wrong := _wrong(stored, true, allowed, weights, previous, is_open):
        name = min(wrong, key=list(true).index)
        stored[name] = sources[name].store(allowed[name])
        if _wrong(stored, true, allowed, weights, previous, is_open) >= {name}:
            raise ValueError(
                f"The map {name!r} of layer {layer.number} cannot be rounded to {tolerance:g} of its scale."
            )
    return stored, _computed(stored, true, weights, previous, is_open)["evolved"]


def _wrong(stored, true, allowed, weights, previous, is_open) -> set[str]:
    """The maps that the page would get wrong."""
    computed = _computed(stored, true, weights, previous, is_open)
    # A little more than half a step of rounding, for the arithmetic itself.
    return {
        name
        for name, values in true.items()
        if _largest(computed[name] - values, is_open) > max(allowed[name], 1.001 * _largest(values, is_open) / 65534)
    }


def _computed(
    stored: dict[str, Stored],
    like: dict[str, np.ndarray],
    weights: dict[str, float],
    previous: np.ndarray | None,
    is_open: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """All maps as the page computes them from those that are stored; `valuesOf` in page_values.js is the same."""
    nothing = np.zeros_like(like["evolved"])
    maps = {name: one.values for name, one in stored.items()}
    if "previous" not in maps:
        maps["previous"] = nothing if previous is None else weights["previous"] * previous
    for name in ("scores", "convolution"):
        maps.setdefault(name, nothing)
    maps.setdefault("vanilla", maps["scores"])
    maps.setdefault("evolved", maps["scores"] + maps["previous"] + maps["convolution"])
    maps.setdefault("attention", _softmax(maps["evolved"], is_open))
    maps.setdefault("vanilla attention", _softmax(maps["vanilla"], is_open))
    return maps


def _softmax(logits: np.ndarray, is_open: np.ndarray | None) -> np.ndarray:
    masked = logits if is_open is None else np.where(is_open, logits, -np.inf)
    most = masked.max(1, keepdims=True)
    powers = np.exp(masked - np.where(np.isfinite(most), most, 0.0))
    return powers / np.maximum(powers.sum(1, keepdims=True), np.finfo(float).tiny)


def _largest(values: np.ndarray, is_open: np.ndarray | None) -> float:
    return float(np.abs(values if is_open is None else np.where(is_open, values, 0.0)).max())


class Source:
    """A map that is to be stored, (query, key)."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @cached_property
    def decomposition(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.linalg.svd(self.values, full_matrices=False)

    def store(self, error: float) -> Stored:
        """Read back, no value is further off than `error`, or half a step of 16-bit integers if that is more."""
        return self._factors(error) or self._whole(error)

    def _whole(self, error: float) -> Stored:
        integers, step = _rounded(self.values.ravel(), 2 * error)
        values = integers.reshape(self.values.shape) * step
        return Stored({"rank": 0, "step": step, "nonzero": int(np.count_nonzero(integers))}, _bytes(integers), values)

    def _factors(self, error: float) -> Stored | None:
        """Two factors, if they are fewer numbers, and exact enough."""
        queries, keys = self.values.shape
        if min(queries, keys) < SMALLEST_FACTORED:
            return None
        left, singular, right = self.decomposition
        # The singular values left out change no value by more than the first one of them.
        rank = int((singular > error / 4).sum())
        if rank == 0 or rank * (queries + keys) > 0.8 * queries * keys:
            return None
        roots = np.sqrt(singular[:rank])
        factors = np.concatenate([(left[:, :rank] * roots).T.ravel(), (right[:rank] * roots[:, None]).ravel()])
        step = 2 * error / max(1.0, float(np.sqrt(np.abs(self.values).max())))
        while step >= np.abs(factors).max() / LARGEST_INTEGER:
            integers, step = _rounded(factors, step)
            first, second = np.split(integers * step, [rank * queries])
            found = first.reshape(rank, queries).T @ second.reshape(rank, keys)
            off = np.abs(found - self.values).max()
            if off <= error:
                return Stored(
                    {"rank": rank, "step": step, "nonzero": int(np.count_nonzero(integers))}, _bytes(integers), found
                )
            step *= min(0.95, error / off)
        return None


def _rounded(values: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    step = float(max(step, np.abs(values).max() / LARGEST_INTEGER, np.finfo(np.float32).tiny))
    return np.rint(values / step).astype(np.int16), step


def _bytes(integers: np.ndarray) -> bytes:
    """A bit for each integer, whether it is not 0, then the low bytes of these and their high bytes: they compress apart."""
    integers = integers.ravel()
    shifted = (integers[integers != 0].astype(np.int32) + 32768).astype(np.uint16)
    planes = (np.packbits(integers != 0), (shifted & 255).astype(np.uint8), (shifted >> 8).astype(np.uint8))
    return b"".join(plane.tobytes() for plane in planes)


def _compressed(contents: list[bytes]) -> bytes:
    """As gzip, by whichever of two strategies is shorter: rounded noise repeats nothing."""
    found = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        compressor = zlib.compressobj(6, zlib.DEFLATED, 31, 9, strategy)
        found.append(b"".join(map(compressor.compress, contents)) + compressor.flush())
    return min(found, key=len)


def as_text(content: bytes) -> str:
    """Seven bits in each character, of which four, that HTML would change or understand, are 128 higher: 12 % shorter than base64."""
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    sevens = np.packbits(np.pad(bits, (0, -len(bits) % 7)).reshape(-1, 7), axis=1).ravel() >> 1
    return np.where(np.isin(sevens, SPECIAL), sevens + 128, sevens).astype(np.uint8).tobytes().decode("latin-1")
