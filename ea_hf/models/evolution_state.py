# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What one forward pass of a model hands from attention layer to attention layer, and how it gets there.

Transformers' models do not all pass keyword arguments down to their attention modules, and some leave them out between
stacks. So the state of the forward pass that is running is kept beside it, one for each thread. Whatever lies between a
model and its attention finds it there: compiled, compiled layer by layer, and with broken graphs as well. A layer that
gradient checkpointing runs again, perhaps in another thread, finds its own forward pass; see `EvolutionState.replayable`.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import transformers
from transformers.cache_utils import Cache

from .evolution_blocks import Tensors
from .evolution_layer import AttentionEvolution
from .evolution_operators import hold
from .undocumented import assert_in_graph, has_numbers, is_in_backward, is_in_function_transform


# An additive mask's value at or below this one means "may not attend"; older code writes -10000 for minus infinity.
BLOCKED_BIAS = -1e4
# Without quotes, since it becomes part of compiled code. Uncompiled models say more.
REFUSED_WHEN_COMPILED = (
    "An attention mask hides more or less than padding and later tokens, as packed sequences and sliding windows do, or adds a "
    "bias to the scores, with which evolving attention is not exact. Call the model uncompiled to see which mask it is."
)


class _Running(threading.local):  # torch.compile traces it, and guards on it by thread; a ContextVar it does not
    def __init__(self):  # once for each thread; a compiler would not know what to make of a missing attribute
        self.state: EvolutionState | None = None
        self.deferred: DeferredMaskChecks | None = None


_running = _Running()


def running_state() -> "EvolutionState | None":
    """The state of the model call that this thread is in; the innermost one's, if a model calls another."""
    return _running.state


class DeferredMaskChecks:
    """What was found out about masks, but not yet looked at; see `deferred_mask_checks`."""

    def __init__(self) -> None:
        self._checks: list[tuple[torch.Tensor, Callable[[], None]]] = []

    def add(self, wrong: torch.Tensor, refuse: Callable[[], None]) -> None:
        self._checks.append((wrong, refuse))

    def found(self, like: torch.Tensor) -> torch.Tensor:
        """How many masks are wrong: a number of the type and on the device of another tensor, which nobody waits for."""
        return sum((wrong.to(like) for wrong, _ in self._checks), torch.zeros_like(like))

    def raise_if_any(self) -> None:
        """Raises what the first wrong mask would have raised."""
        for wrong, refuse in self._checks:
            if wrong:
                refuse()


@contextmanager
def deferred_mask_checks() -> Iterator[DeferredMaskChecks]:
    """While it is open, models of this thread check masks without looking at the result.

    Looking makes the program wait for an accelerator, at each mask. The caller looks later, before it uses what the models
    have computed, as the training loop does before it updates weights.
    """
    before = _running.deferred
    checks = _running.deferred = DeferredMaskChecks()
    try:
        yield checks
    finally:
        _running.deferred = before


def mask_checks_are_deferred() -> bool:
    return _running.deferred is not None


class EvolutionState:
    """What one call of one model, such as an encoder, hands from layer to layer: maps, and where convolutions see zeros.

    A map is dropped as soon as the next layer has used it.

    Args:
        keep_maps: keep the maps of all layers, for the caller to return.
        keep_weights: return the attention weights of all layers.
        check_masks: refuse masks with which the convolution is not exact; see `check_mask`.

    Attributes:
        outer: the state of the model that has called this one.
        cache: the cache that the attention module now running has filled, if any.
    """

    def __init__(self, keep_maps: bool = False, keep_weights: bool = False, check_masks: bool = True):
        self.outer = _running.state
        self.keep_maps = keep_maps or (self.outer is not None and self.outer.keep_maps)
        self.keep_weights = keep_weights or (self.outer is not None and self.outer.keep_weights)
        self.check_masks = check_masks
        self.cache: Cache | None = None
        # All by chain. The map of the layer that ran last, until the next one has taken it.
        self._maps: dict[str, torch.Tensor] = {}
        # Which layer that was; `None` where a compiler has recorded it, which would make a graph for each number.
        self._last_layer: dict[str, int | None] = {}
        self._kept: dict[str, tuple[torch.Tensor, ...]] = {}
        # The mask, and what follows from it.
        self._blocked: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
        # Two masks, and what `hold` gives of them.
        self._held: dict[str, tuple[torch.Tensor | None, ...]] = {}
        # The mask that was checked last.
        self._checked: dict[str, torch.Tensor] = {}
        self._padded_queries: torch.Tensor | None = None

    def run(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Calls a function whose attention modules get this state."""
        before = _running.state
        _running.state = self
        try:
            return function(*args, **kwargs)
        finally:
            _running.state = before

    def replayable(self, function: Callable) -> Callable:
        """For gradient checkpointing: a function that runs with this state once, and later with it as it is now."""
        return _Replayable(self, function)

    def copy(self) -> "EvolutionState":
        """A state from which as many layers can go on; what they keep is their own."""
        copied = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(copied, name, dict(value) if isinstance(value, dict) else value)
        return copied

    def hand_out(self) -> None:
        """At the end of a call: the model that has called this one returns the maps with its own."""
        if self.outer is not None and self.keep_maps:
            self.outer._kept.update(self._kept)

    def maps(self, chain: str = "self") -> tuple[torch.Tensor, ...]:
        """The maps A_l of a chain from its first to its last layer, each (batch, heads, query, key), if they are kept."""
        return self._kept.get(chain, ())

    def previous(self, evolution: AttentionEvolution, device: torch.device) -> torch.Tensor | None:
        """A_{l-1}, or `None` where the layer takes nothing from the previous one.

        A layer that LayerDrop leaves out hands on the map that it would have got.

        Raises:
            RuntimeError: the layers do not run in order, each once.
        """
        chain, last_layer = evolution.chain, None
        if is_traced():
            self._last_layer[chain] = None
        else:
            last_layer = self._last_layer.get(chain, -1)
            self._last_layer[chain] = evolution.layer_index
        if last_layer is not None and evolution.layer_index <= last_layer:
            raise RuntimeError(
                f"Attention module {evolution.layer_index} of the chain {chain!r} was called after module {last_layer} in one "
                "forward pass. Layers must run in order and once; such that share their weights, as in ALBERT, cannot evolve."
            )
        if evolution.is_first or not evolution.takes_maps:
            return None
        is_missing = chain not in self._maps if last_layer is None else evolution.layer_index > last_layer + 1
        if is_missing and not (evolution.may_be_dropped and evolution.training):
            raise RuntimeError(
                f"Layer {evolution.layer_index} found no map of layer {evolution.layer_index - 1}. Layers of evolving attention "
                "must run in order within one forward pass of the model."
            )
        previous = self._maps.pop(chain, None)
        # Where layers are on different devices, the map follows the hidden states.
        return None if previous is None else previous.to(device)

    def store(self, evolution: AttentionEvolution, evolved: torch.Tensor) -> None:
        """Takes A_l for the next layer."""
        if evolution.takes_maps:
            self._maps[evolution.chain] = evolved
        if self.keep_maps:
            self._kept[evolution.chain] = (*self._kept.get(evolution.chain, ()), evolved)

    def where_blocked(
        self,
        evolution: AttentionEvolution,
        queries: int,
        keys: int,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Where the convolution must see zeros: wherever a query may not attend, and in the rows of padded queries.

        Args:
            past_length: number of keys before the first query, which a cache knows; `None` without one.

        Raises:
            RuntimeError: self-attention gets more or fewer keys than queries, and no cache that could hold the rows of the
                maps above them; causal attention gets no mask.
            ValueError: see `check_mask`; only where a convolution would look across the hidden cells.
        """
        if not evolution.is_cross_attention and queries != keys and (past_length is None or not evolution.is_causal):
            kind = "causal " if evolution.is_causal else ""
            raise RuntimeError(
                f"Evolving {kind}self-attention (chain {evolution.chain!r}, layer {evolution.layer_index}) got {queries} queries "
                f"and {keys} keys, but no cache that holds the rows of the maps above them. "
                + (
                    f"If a cache is in use, this version of Transformers ({transformers.__version__}) hands it down in a way "
                    "that ea_hf does not know: decode with `use_cache=False`, or install a version that setup.cfg names."
                    if evolution.is_causal
                    else "Prefixes of keys and caches are not for attention that is not causal."
                )
            )
        looks_around = self.check_masks and evolution.looks_around
        if looks_around and attention_mask is not None and self._checked.get(evolution.chain) is not attention_mask:
            if _can_check(attention_mask):
                check_mask(evolution, queries, keys, attention_mask, past_length)
            self._checked[evolution.chain] = attention_mask
        cached = self._blocked.get(evolution.chain)
        if cached is not None and cached[0] is attention_mask:
            return cached[1]
        blocked = None
        if attention_mask is not None:
            blocked = is_blocked(attention_mask)
            blocked = blocked.expand(*blocked.shape[:-2], queries, keys)
        if not evolution.is_cross_attention:
            if evolution.is_causal and blocked is None and queries > 1:
                raise RuntimeError(
                    "Causal evolving attention got no mask, and would mix later tokens into earlier ones. Do not "
                    "change the model's attention implementation, and do not call its layers on their own."
                )
            # A query that may not attend to itself is padding.
            self._padded_queries = None
            if blocked is not None:
                query_index = torch.arange(queries, device=blocked.device)
                key_index = query_index + (0 if past_length is None else past_length)
                self._padded_queries = blocked[..., query_index, key_index].unsqueeze(-1)
        if self._padded_queries is not None:
            blocked = self._padded_queries if blocked is None else blocked | self._padded_queries
        # In a step of decoding the number of operations counts. To look at an accelerator's mask would wait for it.
        if blocked is not None and queries == 1 and blocked.device.type == "cpu" and has_numbers(blocked):
            blocked = None if not is_traced() and not blocked.any() else blocked
        self._blocked[evolution.chain] = (attention_mask, blocked)
        return blocked

    def with_held_masks(self, evolution: AttentionEvolution, tensors: Tensors) -> Tensors:
        """For operators in a compiled model: with masks that are computed once for all layers."""
        masks = (tensors.attention_mask, tensors.blocked)
        held = self._held.get(evolution.chain)
        if held is None or held[0] is not masks[0] or held[1] is not masks[1]:
            held = (*masks, *(None if mask is None else hold(mask) for mask in masks))
            self._held[evolution.chain] = held
        return tensors._replace(attention_mask=held[2], blocked=held[3])


def _can_check(attention_mask: torch.Tensor) -> bool:
    """Whether `check_mask` can look at a mask. Compiled models do so on a CPU only: elsewhere it was not tried."""
    if torch.compiler.is_compiling():
        is_checked = not torch.compiler.is_exporting() and not is_in_function_transform()
        return is_checked and attention_mask.device.type == "cpu"
    return not is_traced() and has_numbers(attention_mask)


class _Replayable:
    """See `EvolutionState.replayable`."""

    def __init__(self, state: EvolutionState, function: Callable):
        self.state: EvolutionState | None = state
        self.before = state.copy()
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state, self.state = self.state, None
        return (self.before.copy() if state is None else state).run(self.function, *args, **kwargs)


def check_mask(
    evolution: AttentionEvolution,
    queries: int,
    keys: int,
    attention_mask: torch.Tensor,
    past_length: int | torch.Tensor | None,
) -> None:
    """Checks that a mask hides padding, and later tokens in causal self-attention, and nothing else.

    Elsewhere the convolution would carry scores from one part of a map to another which the mask keeps apart.

    Raises:
        ValueError: it hides more or less, or it adds a bias to the scores.
    """
    is_bias = attention_mask.is_floating_point()
    allowed = ~is_blocked(attention_mask)
    biased = ((attention_mask != 0) & allowed).any() if is_bias else None
    is_causal = evolution.is_causal and not evolution.is_cross_attention
    if queries == 1 or (allowed.shape[-2] == 1 and not is_causal):
        differs = None
    else:
        allowed = allowed.expand(*allowed.shape[:-2], queries, keys)
        real = torch.ones((), dtype=torch.bool, device=allowed.device)
        if not evolution.is_cross_attention:
            query_index = torch.arange(queries, device=allowed.device)
            position = query_index + (0 if past_length is None else past_length)
            real = allowed[..., query_index, position].unsqueeze(
                -1
            )  # a query that may not attend to itself is padding
        expected = (allowed & real).any(dim=-2, keepdim=True)
        if is_causal:
            expected = expected & (torch.arange(keys, device=allowed.device) <= position[:, None])
        differs = (allowed != expected) & real
        if evolution.is_cross_attention:
            differs = differs & allowed.any(dim=-1, keepdim=True)
        differs = differs.any()
    found = [flag for flag in (biased, differs) if flag is not None]
    if not found:
        return
    wrong = torch.stack(found).any()
    if torch.compiler.is_compiling():  # a graph can neither choose its words nor wait
        assert_in_graph(~wrong, REFUSED_WHEN_COMPILED)
        return
    refuse = functools.partial(_refuse_mask, evolution, biased)
    if _running.deferred is not None:
        _running.deferred.add(wrong, refuse)
    elif wrong:  # an accelerator is waited for, once for each mask
        refuse()


def _refuse_mask(evolution: AttentionEvolution, biased: torch.Tensor | None) -> NoReturn:
    if biased is not None and biased:
        raise ValueError(
            f"The attention mask of the chain {evolution.chain!r} has values between {BLOCKED_BIAS} and 0, or above, such as a "
            "position bias (ALiBi). Evolving attention needs it in the scores, and this model adds it to the mask."
        )
    kind = "padding and later tokens" if evolution.is_causal and not evolution.is_cross_attention else "padding"
    raise ValueError(
        f"The attention mask of the chain {evolution.chain!r} hides more or less than {kind}. Evolving attention is not "
        "exact with packed sequences (`position_ids` that start anew within a row, block-diagonal masks), sliding windows, "
        "chunked or prefix attention; give each sequence a row of its own, with an `attention_mask`."
    )


def is_replayed() -> bool:
    """Whether gradient checkpointing runs a layer again, in the backward pass."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and is_in_backward()


def is_traced() -> bool:
    """Whether the operations are recorded (compile, export, trace, function transforms) rather than just run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_function_transform()


def is_blocked(attention_mask: torch.Tensor) -> torch.Tensor:
    if not (attention_mask.dtype == torch.bool or attention_mask.is_floating_point()):
        raise ValueError(
            f"The attention mask {tuple(attention_mask.shape)} is of the type {attention_mask.dtype}, which leaves open whether "
            "its numbers are flags or added to the scores. For flags of which True may be attended to, use `mask.bool()`."
        )
    return ~attention_mask if attention_mask.dtype == torch.bool else attention_mask <= BLOCKED_BIAS
