# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Importing this module lets the modules of the scripts be found, which are no packages."""

import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
for folder in ("glue", "translation", "image_classification", "time_series"):
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))
