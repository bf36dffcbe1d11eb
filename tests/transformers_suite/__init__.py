# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformers' own model and configuration tests, run on the models of `ea_hf`.

`fetch.py` downloads the tests of the installed Transformers version, `stand_ins/` holds what its source distribution
leaves out, `skips.py` is the complete list of what may be skipped, `common.py` is what the families share.
"""
