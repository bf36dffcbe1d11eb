# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The models. All that travels with a checkpoint lies flat in this folder, and imports as `from .name import x`."""
