# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps as one HTML page that needs nothing else: no network, no other file.

Texts and tokens are data of the page's script, which writes them as text and never as HTML; a content security policy
lets no other script run and nothing be loaded. How values are stored is told in `packing`.
"""

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..map_recording import LayerMaps, shares_of
from .examples import Chain, ExampleMaps
from .packing import as_text, pack_head, shown_maps, tolerance_of
from .parts import PARTS, formula, vanilla_formula, weight_of


MAX_BYTES = 32_000_000
TEMPLATE, STYLE = (Path(__file__).with_name(f"page.{suffix}") for suffix in ("html", "css"))
SCRIPTS = [Path(__file__).with_name(f"page{name}.js") for name in ("_values", "_colours", "_views", "_export", "")]
# Maps of a layer and head, by the place of the head: how to read those of each layer, and their bytes.
PackedHead = list[list[tuple[dict[str, Any], bytes]]]


def write_page(maps: ExampleMaps, path: str | Path, *, drop_heads: bool = False) -> int:
    """Writes the page, and returns how many heads it has.

    Args:
        drop_heads: leave out the last heads, where the page would have more than `MAX_BYTES`.

    Raises:
        ValueError: it would have more than `MAX_BYTES`.
    """
    packed = _packed_heads(maps)
    if len(packed) < len(maps.heads) and (not packed or not drop_heads):
        few = f"at most {len(packed)} of the {len(maps.heads)} heads" if packed else "fewer layers, or a shorter text"
        raise ValueError(
            f"A page with these maps would have more than {MAX_BYTES / 1e6:g} MB. Choose {few} (`heads`), or fewer layers "
            "(`layers`)."
        )
    # Line ends stay as they are on every system, which packed values need.
    Path(path).write_bytes(_page(maps, packed).encode("utf-8"))
    return len(packed)


def make_page(maps: ExampleMaps) -> str:
    """The page, as HTML."""
    return _page(maps, _packed_heads(maps))


def _packed_heads(maps: ExampleMaps) -> list[PackedHead]:
    """The first heads, as many as a page has room for; of each a list of chains."""
    tolerance, count, packed = tolerance_of(maps.chains), 0, []
    for head in range(len(maps.heads)):
        chains = [pack_head(chain, head, tolerance) for chain in maps.chains]
        count += sum(len(as_text(content).encode()) for layers in chains for _, content in layers)
        if count > MAX_BYTES:
            break
        packed.append(chains)
    return packed


def _page(maps: ExampleMaps, packed: list[PackedHead]) -> str:
    script = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("SCRIPT_HASH", base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    page = page.replace("/* STYLE */", STYLE.read_text(encoding="utf-8")).replace("/* SCRIPT */", script)
    # As ASCII, and without the characters that could end the element or begin another one.
    data, content = _data(maps, packed)
    data = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    # Last, so that nothing in them is taken for a mark of the template.
    start, middle, end = re.split(re.escape("/* CONTENT */") + "|" + re.escape("/* DATA */"), page)
    return "".join((start, content, middle, data, end))


def _data(maps: ExampleMaps, packed: list[PackedHead]) -> tuple[dict[str, Any], str]:
    """What the script reads, and all packed values as one text, which it points into."""
    texts: list[str] = []
    chains = [
        _chain_data(chain, maps.activation, [head[place] for head in packed], texts)
        for place, chain in enumerate(maps.chains)
    ]
    data = {
        "model": maps.model_name,
        "texts": maps.texts,
        "prediction": maps.prediction,
        "heads": maps.heads[: len(packed)],
        "activation": maps.activation,
        "hasVanilla": maps.has_vanilla,
        "tolerance": tolerance_of(maps.chains),
        "image": None if maps.image is None else _data_url(maps.image),
        "parts": [
            {"name": part.name, "title": part.title, "unit": part.unit, "colors": part.colors}
            | {"isProbability": part.is_probability}
            for part in PARTS
        ],
        "chains": chains,
    }
    return data, "".join(texts)


def _chain_data(chain: Chain, activation: str, packed: list, texts: list[str]) -> dict[str, Any]:
    blocked = chain.layers[0].blocked
    return {
        "name": chain.name,
        "title": chain.title,
        "queryAxis": chain.query_axis,
        "keyAxis": chain.key_axis,
        "queries": chain.queries,
        "keys": chain.keys,
        "specialQueries": chain.special_queries,
        "specialKeys": chain.special_keys,
        "secondQuery": chain.second_query,
        "secondKey": chain.second_key,
        "grid": chain.grid,
        "blocked": None if blocked is None else _base64(blocked.numpy().astype(np.uint8)),
        "layers": [
            {
                "number": layer.number,
                # One for each head, whose weights may be learned.
                "weights": {
                    part.name: [weight_of(part, layer, head) for head in range(len(packed))] for part in PARTS
                },
                "formulas": {
                    part.name: [formula(part, layer, activation, head) for head in range(len(packed))]
                    for part in PARTS
                },
                "vanillaFormulas": {part.name: vanilla_formula(part, layer) for part in PARTS},
                "figures": _figures(layer),
                "largest": _largest(chain, layer),
                "heads": [_place(*head[place], texts) for head in packed],
            }
            for place, layer in enumerate(chain.layers)
        ],
    }


def _place(maps: dict[str, Any], content: bytes, texts: list[str]) -> dict[str, Any]:
    """Puts bytes at the end of the texts, and says where they are: start, characters, bytes."""
    start, text = sum(map(len, texts)), as_text(content)
    texts.append(text)
    return {"maps": maps, "content": [start, len(text), len(content)]}


def _figures(layer: LayerMaps) -> dict[str, list[float]]:
    """Of each head the shares of the parts, and the distance to vanilla attention if there is one."""
    figures = {name: share.tolist() for name, share in shares_of(layer).items()}
    if layer.vanilla is not None:
        distances = layer.attention_change.abs().sum(-1) / 2  # (heads, query)
        real = ~(torch.zeros_like(layer.scores[0], dtype=torch.bool) if layer.blocked is None else layer.blocked).all(
            -1
        )
        figures["distance"] = distances[:, real].mean(-1).tolist()
    return {name: [float(f"{value:.5g}") for value in values] for name, values in figures.items()}


def _largest(chain: Chain, layer: LayerMaps) -> dict[str, list[float]]:
    """The largest logit and probability of all heads, of all tokens and of those that are not special."""
    shown = shown_maps(layer)
    if layer.blocked is not None:
        shown = {name: values.masked_fill(layer.blocked, 0.0) for name, values in shown.items()}
    plain = [
        [index for index in range(len(names)) if index not in special] or list(range(len(names)))
        for names, special in ((chain.queries, chain.special_queries), (chain.keys, chain.special_keys))
    ]
    found: dict[str, list[float]] = {}
    for kind, names in (
        ("probability", [name for name in shown if name.endswith("attention")]),
        ("logit", [name for name in shown if not name.endswith("attention")]),
    ):
        every = torch.stack([shown[name] for name in names]).abs()
        found[kind] = [every.max().item(), every[..., plain[0], :][..., plain[1]].max().item()]
    return found


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _data_url(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
