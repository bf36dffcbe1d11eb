# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Cache layers that hold, beside keys and values, the last rows of the attention maps.

A causal convolution of kernel size k looks at the k - 1 query rows above each row of M_l. So decoding step by step equals
the full forward pass only if these rows are kept from step to step, for each layer, in self- and in cross-attention. They
live in the layers of the self-attention cache, because Transformers repeats, reorders, selects and resets both caches of
an encoder-decoder model, but crops only that one.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, EncoderDecoderCache, StaticLayer

from .undocumented import keep_in_place


# How many rows of a long call a cache keeps beside those that it needs, so that as many tokens can be cropped.
CROPPABLE_ROWS = 32


class EvolvingCacheLayer(CacheLayerMixin):
    """What the cache layers of evolving attention have beside their vanilla methods. Comes first among the bases.

    Where keys and values are offloaded, the rows stay on their device: they are few, and needed after Transformers has
    sent keys and values away.

    Attributes:
        map_rows: rows of M_l by chain, zeros where blocked, (batch, heads, rows, key).
    """

    # Defaults of the class, since a vanilla layer may have become one of this class after it was made.
    map_rows: dict[str, torch.Tensor] = {}

    @abstractmethod
    def holds_rows(self, queries: int) -> bool:
        """Whether a call with so many queries, already in the cache, needs the rows of earlier ones."""

    @abstractmethod
    def prepend_rows(self, chain: str, image: torch.Tensor, rows_above: int) -> torch.Tensor:
        """Puts the rows before this call on top, zeros where there are none, and keeps the last ones for the next call.

        Args:
            chain: name of the chain.
            image: M_l with zeros where blocked, (batch, heads, query, key).
            rows_above: how many rows the convolution sees above each row.

        Returns:
            (batch, heads, rows_above + query, key).
        """

    def _change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.map_rows = {chain: change(rows) for chain, rows in self.map_rows.items()}

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._change_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))


class EvolvingDynamicLayer(EvolvingCacheLayer, DynamicLayer):
    """`DynamicLayer` with the rows of the maps.

    It keeps the rows that the next call needs, and those of the last call, up to `CROPPABLE_ROWS` of them, so that as
    many tokens can be cropped. After `activate_past_recording`, as in assisted decoding, it keeps all rows until the next crop.
    """

    _layer_type = "evolving_attention"  # under which `DynamicCache(config=...)` finds it
    record_past = False
    _rows_above = 0

    def activate_past_recording(self) -> None:
        self.record_past = True

    def holds_rows(self, queries: int) -> bool:
        return self.record_past or self.get_seq_length() > queries

    def prepend_rows(self, chain: str, image: torch.Tensor, rows_above: int) -> torch.Tensor:
        """See `EvolvingCacheLayer`.

        Raises:
            RuntimeError: rows are missing, because more tokens were cropped than the cache holds rows of.
        """
        queries = image.shape[2]
        rows = self.map_rows.get(chain)
        if rows is not None and rows.shape[2] >= rows_above and queries <= CROPPABLE_ROWS and not self.record_past:
            return self._append(chain, rows, image, rows_above)
        image = torch.cat([self._rows(chain, image), image], dim=2)
        held, past_length = image.shape[2] - queries, self.get_seq_length() - queries
        if held < min(rows_above, past_length):
            raise RuntimeError(
                f"The cache has {past_length} earlier tokens, but of the attention maps only the last {held} rows, where "
                f"a kernel of {rows_above + 1} rows needs {min(rows_above, past_length)}. Call "
                "`past_key_values.activate_past_recording()` before the tokens of which you will crop more than the last "
                f"call's or more than {CROPPABLE_ROWS}."
            )
        self._keep(chain, image, image.shape[2] if self.record_past else rows_above + min(queries, CROPPABLE_ROWS))
        self._rows_above = rows_above
        image = image[:, :, -(rows_above + queries) :]
        return nn.functional.pad(image, (0, 0, rows_above + queries - image.shape[2], 0))

    def keep_rows(self, chain: str, image: torch.Tensor, rows_above: int) -> None:
        """Takes the last rows of the first call, at least `rows_above + CROPPABLE_ROWS` if it has as many."""
        self._keep(chain, image, rows_above + CROPPABLE_ROWS)
        self._rows_above = rows_above

    def _append(self, chain: str, rows: torch.Tensor, image: torch.Tensor, rows_above: int) -> torch.Tensor:
        """`prepend_rows` where all rows are there, as in most steps: what the convolution sees is what is kept, and is
        written once. A larger buffer would save nothing, since the convolution would copy its part."""
        batch, heads, queries, keys = image.shape
        seen = min(rows.shape[3], keys)
        whole = image.new_empty(batch, heads, rows_above + queries, keys)
        whole[:, :, :rows_above, :seen] = rows[:, :, rows.shape[2] - rows_above :, :seen]
        if seen < keys:
            whole[:, :, :rows_above, seen:] = 0.0  # no row sees keys that were added later
        whole[:, :, rows_above:] = image
        self.map_rows = {**self.map_rows, chain: whole}
        self._rows_above = rows_above
        return whole

    def _rows(self, chain: str, image: torch.Tensor) -> torch.Tensor:
        """The rows held of a chain, as wide as `image`: no row sees keys that were added later or cropped since."""
        rows = self.map_rows.get(chain, image[:, :, :0])
        return nn.functional.pad(rows, (0, image.shape[3] - rows.shape[3]))

    def _keep(self, chain: str, image: torch.Tensor, rows: int) -> None:
        # A copy where rows are left out, since a view would hold all of them.
        self.map_rows = {**self.map_rows, chain: image[:, :, -rows:].contiguous()}

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        most = self._rows_above + CROPPABLE_ROWS
        self._change_rows(lambda rows: rows[:, :, : max(0, rows.shape[2] + tokens_to_remove)][:, :, -most:])

    def reset(self) -> None:
        super().reset()
        self.map_rows = {}

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._change_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._change_rows(lambda rows: rows[indices, ...])


class EvolvingStaticLayer(EvolvingCacheLayer, StaticLayer):
    """`StaticLayer` with the rows of the maps, as many as the next call needs, in tensors that never move."""

    _layer_type = "evolving_attention"

    def holds_rows(self, queries: int) -> bool:
        return True

    def prepend_rows(self, chain: str, image: torch.Tensor, rows_above: int) -> torch.Tensor:
        if chain not in self.map_rows:
            rows = image.new_zeros((*image.shape[:2], rows_above, image.shape[3]))
            if not torch.compiler.is_compiling():
                keep_in_place(rows)
            self.map_rows = {**self.map_rows, chain: rows}
        rows = self.map_rows[chain]
        image = torch.cat([rows, image], dim=2)
        rows.copy_(image[:, :, image.shape[2] - rows_above :])
        return image

    def reset(self) -> None:
        super().reset()
        for rows in self.map_rows.values():
            rows.zero_()


# Vanilla cache layers, each with the one that takes its place.
EVOLVING_LAYERS = {DynamicLayer: EvolvingDynamicLayer, StaticLayer: EvolvingStaticLayer}


def evolving_cache_layer(past_key_values: Cache, layer_idx: int, queries: int) -> EvolvingCacheLayer:
    """The layer of the self-attention cache, which becomes an evolving one if it is vanilla.

    Args:
        queries: number of tokens that this call has put into the cache.

    Raises:
        ValueError: the layer is of a kind that cannot hold rows of maps, or another model has filled it.
    """
    is_encoder_decoder = isinstance(past_key_values, EncoderDecoderCache)
    cache = past_key_values.self_attention_cache if is_encoder_decoder else past_key_values
    layer = cache.layers[layer_idx]
    if isinstance(layer, EvolvingCacheLayer):
        return layer
    if layer._layer_type == EvolvingDynamicLayer._layer_type:  # of another copy of this file, see `ATTENTION_NAME`
        layer.__class__ = EvolvingStaticLayer if isinstance(layer, StaticLayer) else EvolvingDynamicLayer
        return layer
    if type(layer) not in EVOLVING_LAYERS:
        raise ValueError(
            f"The cache has a {type(layer).__name__}, which cannot hold the rows of attention maps. Use a `DynamicCache` "
            "or a `StaticCache`, or leave `past_key_values` and `cache_implementation` out."
        )
    earlier = int(layer.get_seq_length()) - queries
    if earlier > 0:
        raise ValueError(
            f"The cache holds {earlier} tokens without the rows of their attention maps. Fill it with this model from its "
            "first token on. Prefixes that no layer has computed, as prefix tuning has them, cannot evolve."
        )
    layer.__class__ = EVOLVING_LAYERS[type(layer)]
    return layer
