# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What the training scripts share: one Accelerate loop with checkpoints, resuming, tracking, model card and Hub."""
