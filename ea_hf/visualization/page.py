# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps as one HTML page that needs nothing else: no network, no other file.

Texts and tokens are data of the page's script, which writes them as text and never as HTML; a content security policy
lets no other script run and nothing be loaded. Values are stored as 16-bit integers, a scale for each map: they are
rounded by no more than the largest absolute value of their map divided by 65534.
"""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .examples import Chain, ExampleMaps
from .parts import ATTENTION, CONVOLUTION, EVOLVED, PARTS, PREVIOUS, formula, vanilla_formula, weight_of
from .recording import LayerMaps


LARGEST_INTEGER = 32767
BYTES_PER_VALUE = 2 * 4 / 3  # in base64
MAX_BYTES = 32_000_000
TEMPLATE, STYLE, SCRIPT = (Path(__file__).with_name(f"page.{suffix}") for suffix in ("html", "css", "js"))


def write_page(maps: ExampleMaps, path: str | Path) -> None:
    """Writes the page.

    Raises:
        ValueError: it would have more than `MAX_BYTES`.
    """
    fitting = heads_that_fit(maps)
    if fitting < len(maps.heads):
        few = f"at most {fitting} of the {len(maps.heads)} heads" if fitting else "fewer layers, or a shorter text"
        raise ValueError(
            f"A page with these maps would have more than {MAX_BYTES / 1e6:g} MB. Choose {few} (`heads`), or fewer layers "
            "(`layers`)."
        )
    Path(path).write_text(make_page(maps), encoding="utf-8")


def heads_that_fit(maps: ExampleMaps) -> int:
    """How many heads of these maps a page may have."""
    values_per_head = sum(
        len(_shown(layer)) * layer.evolved[0].numel() for chain in maps.chains for layer in chain.layers
    )
    return min(len(maps.heads), int(MAX_BYTES / (BYTES_PER_VALUE * values_per_head)))


def make_page(maps: ExampleMaps) -> str:
    """The page, as HTML."""
    script = SCRIPT.read_text(encoding="utf-8")
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("SCRIPT_HASH", base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    page = page.replace("/* STYLE */", STYLE.read_text(encoding="utf-8")).replace("/* SCRIPT */", script)
    # As ASCII, and without the characters that could end the element or begin another one.
    data = json.dumps(_data(maps), separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return page.replace("/* DATA */", data)  # last, so that nothing in it is taken for a mark of the template


def _data(maps: ExampleMaps) -> dict[str, Any]:
    return {
        "model": maps.model_name,
        "texts": maps.texts,
        "heads": maps.heads,
        "activation": maps.activation,
        "hasVanilla": maps.has_vanilla,
        "image": None if maps.image is None else _data_url(maps.image),
        "parts": [
            {"name": part.name, "title": part.title, "unit": part.unit, "colors": part.colors}
            | {"isProbability": part.is_probability}
            for part in PARTS
        ],
        "chains": [_chain_data(chain, maps.activation) for chain in maps.chains],
    }


def _chain_data(chain: Chain, activation: str) -> dict[str, Any]:
    blocked = chain.layers[0].blocked
    return {
        "name": chain.name,
        "title": chain.title,
        "queryAxis": chain.query_axis,
        "keyAxis": chain.key_axis,
        "queries": chain.queries,
        "keys": chain.keys,
        "secondQuery": chain.second_query,
        "secondKey": chain.second_key,
        "grid": chain.grid,
        "blocked": None if blocked is None else _base64(blocked.numpy().astype(np.uint8)),
        "layers": [
            {
                "number": layer.number,
                # One for each head, whose weights may be learned.
                "weights": {
                    part.name: [weight_of(part, layer, head) for head in range(len(layer.scores))] for part in PARTS
                },
                "formulas": {
                    part.name: [formula(part, layer, activation, head) for head in range(len(layer.scores))]
                    for part in PARTS
                },
                "vanillaFormulas": {part.name: vanilla_formula(part, layer) for part in PARTS},
                "maps": {name: _packed(values, layer.blocked) for name, values in _shown(layer).items()},
            }
            for layer in chain.layers
        ],
    }


def _shown(layer: LayerMaps) -> dict[str, torch.Tensor]:
    """The maps of a layer by name, without those that are 0."""
    empty = [part for part, values in ((PREVIOUS, layer.previous), (CONVOLUTION, layer.convolved)) if values is None]
    shown = {part.name: part.values(layer) for part in PARTS if part not in empty}
    if layer.vanilla is not None:
        shown["vanilla"] = EVOLVED.vanilla(layer.vanilla)
        shown["vanilla attention"] = ATTENTION.vanilla(layer.vanilla)
    return shown


def _packed(values: torch.Tensor, blocked: torch.Tensor | None) -> dict[str, Any]:
    """Integers in base64, (heads, query, key), and by what to multiply those of each head."""
    if blocked is not None:
        values = values.masked_fill(blocked, 0.0)
    scales = values.abs().amax((1, 2)).double() / LARGEST_INTEGER
    integers = values.double() / scales.clamp_min(torch.finfo(torch.float64).tiny)[:, None, None]
    return {"scales": scales.tolist(), "integers": _base64(integers.round().numpy().astype("<i2"))}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _data_url(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
