# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Learned embeddings of the distance between a query and a key, for relative position logits."""

import torch


def embeddings_of_pairs(embeddings: torch.Tensor, size: int) -> torch.Tensor:
    """The embedding of each pair of positions along one axis, (query, key, channels).

    Args:
        embeddings: (2 * trained size - 1, channels), from the farthest key before the query to the farthest after it.
        size: of the axis; may differ from the trained one. A pair that is farther apart than those of the trained size
            has the embedding of the farthest pair.
    """
    farthest = len(embeddings) // 2
    positions = torch.arange(size, device=embeddings.device)
    distances = (positions[None, :] - positions[:, None]).clamp(-farthest, farthest)
    return embeddings[distances + farthest]
