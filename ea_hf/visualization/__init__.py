# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention maps as they evolve, as figures (with matplotlib) and as an HTML page (without).

    python -m ea_hf.visualization output/film_sentiment "A film that never quite finds its feet." --output maps.html

`text_maps` and `image_maps` run a model on one example; `write_page` and `draw_layers` show what they found.
"""

from ..map_recording import LayerMaps, record_maps
from .examples import Chain, ExampleMaps, image_maps, text_maps
from .figures import draw_layers, draw_map
from .page import write_page


__all__ = [
    "Chain",
    "ExampleMaps",
    "LayerMaps",
    "draw_layers",
    "draw_map",
    "image_maps",
    "record_maps",
    "text_maps",
    "write_page",
]
