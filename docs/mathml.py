# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns the formulas of the documentation into MathML, which browsers show without a script from another server."""

import html
import re
from typing import Any

from latex2mathml.converter import convert


FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **kwargs: Any) -> str:
    """What MkDocs calls with the HTML of each page."""

    def to_mathml(match: re.Match) -> str:
        tag, formula = match.groups()
        if tag == "div":
            return f"<p>{convert(html.unescape(formula), display='block')}</p>"
        return convert(html.unescape(formula))

    return FORMULA.sub(to_mathml, content)
