# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What an attention map is made of, recorded while a model runs.

With M_l = r A_{l-1} + (1 - r) S_l put into A_l = c act(Conv2d(M_l)) + (1 - c) M_l (see `ea_hf.models.evolution`), a map is the sum
of three parts, r being the residual weight and c the convolution's:

    A_l = (1 - c) (1 - r) S_l  +  (1 - c) r A_{l-1}  +  c act(Conv2d(M_l))

With another mixing than "convex" nothing is taken away from what is there already, and the sum is, with r and c one number
for each head where they are learned,

    A_l = S_l  +  r A_{l-1}  +  c act(Conv2d(M_l)),   M_l = S_l + r A_{l-1}

In the first layer of a chain, and where the layer has no convolution, r or c is 0 here, as it acts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .models.evolution_layer import AttentionEvolution


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer of a chain, for one example; tensors are (heads, query, key), float32, on the CPU.

    All but the attention weights are logits, before mask and softmax, and have no unit.

    Attributes:
        number: of the layer within its chain, from 1 as in the equations.
        residual_weight: r as it acts in this layer; (heads,) where it is learned.
        conv_weight: c as it acts in this layer; (heads,) where it is learned.
        scores: S_l.
        previous: A_{l-1}, `None` where r is 0.
        convolved: act(Conv2d(M_l)), `None` where c is 0.
        evolved: A_l.
        attention: P_l, the probabilities with which a query attends to the keys; where heads are mixed after the softmax
            (`ea_post_mixing`), what that gives.
        blocked: where a query may not attend, boolean, (query, key); `None` where it may attend everywhere.
        vanilla: the same layer in the same model with both weights 0, if that was asked for.
        mixing: how the parts are put together, as `ea_mixing`.
    """

    number: int
    residual_weight: float | torch.Tensor
    conv_weight: float | torch.Tensor
    scores: torch.Tensor
    previous: torch.Tensor | None
    convolved: torch.Tensor | None
    evolved: torch.Tensor
    attention: torch.Tensor
    blocked: torch.Tensor | None = None
    vanilla: "LayerMaps | None" = None
    mixing: str = "convex"

    @property
    def score_weight(self) -> float:
        """How much of S_l is in A_l."""
        return (1 - self.conv_weight) * (1 - self.residual_weight) if self.mixing == "convex" else 1.0

    @property
    def previous_weight(self) -> float | torch.Tensor:
        """How much of A_{l-1} is in A_l."""
        return (1 - self.conv_weight) * self.residual_weight if self.mixing == "convex" else self.residual_weight

    @property
    def mixed(self) -> torch.Tensor:
        """M_l."""
        mixed = (1 - self.residual_weight) * self.scores if self.mixing == "convex" else self.scores
        return mixed + _times(self.residual_weight, self.previous, self.scores)

    @property
    def from_scores(self) -> torch.Tensor:
        """The part of A_l that comes from this layer's scores."""
        return self.score_weight * self.scores

    @property
    def from_previous(self) -> torch.Tensor:
        """The part of A_l that comes from the previous layer's map."""
        return _times(self.previous_weight, self.previous, self.scores)

    @property
    def from_convolution(self) -> torch.Tensor:
        """The part of A_l that comes from the convolution."""
        return _times(self.conv_weight, self.convolved, self.scores)

    @property
    def attention_change(self) -> torch.Tensor:
        """The attention minus that of the vanilla model; its rows add up to 0 unless heads are mixed after the softmax.

        Raises:
            ValueError: the vanilla model was not recorded.
        """
        if self.vanilla is None:
            raise ValueError("The vanilla maps were not recorded; record with `vanilla=True`.")
        return self.attention - self.vanilla.attention


def shares_of(maps: LayerMaps) -> dict[str, torch.Tensor]:
    """The norm of each part divided by that of the evolved map, (heads,): over all cells that are not masked (Frobenius).

    Args:
        maps: (heads, query, key), or a batch of them.
    """

    def norm(part: torch.Tensor) -> torch.Tensor:
        part = part.float() if maps.blocked is None else part.float().masked_fill(maps.blocked, 0.0)
        return torch.linalg.vector_norm(part.reshape(-1, *part.shape[-3:]), dim=(0, 2, 3))

    whole = norm(maps.evolved)
    parts = {"scores": maps.from_scores, "residual": maps.from_previous, "convolution": maps.from_convolution}
    return {name: norm(part) / whole.clamp_min(torch.finfo(whole.dtype).tiny) for name, part in parts.items()}


def _times(weight: float | torch.Tensor, maps: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """A weight, of all heads or of each, times maps, (..., heads, query, key); where there are none, zeros."""
    if maps is None:
        return torch.zeros_like(like)
    return (weight.view(-1, 1, 1) if isinstance(weight, torch.Tensor) else weight) * maps


def evolutions_of(model: PreTrainedModel) -> list[AttentionEvolution]:
    """The steps of evolving attention in a model.

    Raises:
        ValueError: it has none.
    """
    evolutions = [module for module in model.modules() if isinstance(module, AttentionEvolution)]
    if not evolutions:
        raise ValueError(
            f"{type(model).__name__} has no attention maps that evolve. Load a checkpoint of an evolving class, such as "
            "`ea_hf.EABertModel`; `EABertModel.from_pretrained(...)` of a vanilla checkpoint, fine-tuned and saved, makes "
            "one."
        )
    return evolutions


def record_maps(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    vanilla: bool = False,
) -> dict[str, list[LayerMaps]]:
    """Runs a model on one example, and returns the maps of each of its chains, layer by layer.

    Args:
        model: an evolving model, with or without a head, which is left out. It runs in evaluation mode.
        inputs: its inputs, a batch of one.
        layers: which layers, numbered from 1 within each chain; all if `None`.
        heads: which heads, numbered from 1; all if `None`.
        vanilla: also run the model with both weights 0.

    Raises:
        ValueError: no evolving attention in the model, more than one example, a layer or head that is not there, or
            maps with infinite or undefined values.
    """
    model = model.base_model
    evolutions = evolutions_of(model)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and len(value) != 1:
            raise ValueError(f"`{name}` has {len(value)} examples; maps are drawn of one.")
    _check_numbers("layer", layers, 1 + max(evolution.layer_index for evolution in evolutions))
    recorded = _record(model, evolutions, inputs, layers, heads)
    if vanilla:
        with without_evolution(evolutions):
            plain = _record(model, evolutions, inputs, layers, heads)
        recorded = {
            chain: [replace(layer, vanilla=other) for layer, other in zip(chain_layers, plain[chain], strict=True)]
            for chain, chain_layers in recorded.items()
        }
    return recorded


def _check_numbers(kind: str, numbers: Sequence[int] | None, count: int) -> None:
    if numbers is not None and not numbers:
        raise ValueError(f"No {kind} is chosen; leave `{kind}s` out for all of them.")
    for number in numbers or ():
        if not 1 <= number <= count:
            raise ValueError(f"There is no {kind} {number}; choose from 1 to {count}.")


def _record(
    model: PreTrainedModel,
    evolutions: Sequence[AttentionEvolution],
    inputs: dict[str, Any],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> dict[str, list[LayerMaps]]:
    channels = slice(None) if heads is None else [head - 1 for head in heads]

    def see(evolution: AttentionEvolution, maps: LayerMaps) -> LayerMaps:
        _check_numbers("head", heads, maps.scores.shape[1])
        return _one_example(maps, channels)

    chains: dict[str, list[LayerMaps]] = {}
    for evolution, maps, attention in run_seen(model, evolutions, inputs, see):
        if layers is None or maps.number in layers:
            seen = replace(maps, attention=attention[0, channels].float().cpu())
            chains.setdefault(evolution.chain, []).append(seen)
    return chains


def _one_example(maps: LayerMaps, channels: slice | list[int]) -> LayerMaps:
    """The chosen heads of the first example, in float32, on the CPU."""
    names = ("scores", "previous", "convolved", "evolved")
    picked = {name: getattr(maps, name) for name in names}
    picked = {name: None if value is None else value[0, channels].float().cpu() for name, value in picked.items()}
    weights = {name: getattr(maps, name) for name in ("residual_weight", "conv_weight")}
    weights = {
        name: value[channels].cpu() if isinstance(value, torch.Tensor) else value for name, value in weights.items()
    }
    is_open = maps.blocked is None or not maps.blocked.any()
    return replace(maps, **picked, **weights, blocked=None if is_open else maps.blocked[0, 0].cpu())


def run_seen(
    model: PreTrainedModel,
    evolutions: Sequence[AttentionEvolution],
    inputs: dict[str, Any],
    see: Callable[[AttentionEvolution, LayerMaps], Any],
) -> list[tuple[AttentionEvolution, Any, torch.Tensor]]:
    """Runs a model without dropout, and shows each layer's maps as soon as they are there.

    Args:
        see: takes a layer's step and its maps of the whole batch, (batch, heads, query, key), still without attention, and
            returns what is to be kept of them.

    Returns:
        For each layer in the order of the calls its step, what `see` returned, and the attention, (batch, heads, query, key).

    Raises:
        ValueError: maps with infinite or undefined values, or attention weights that a module does not return.
    """
    convolved: dict[AttentionEvolution, torch.Tensor] = {}
    calls: list[tuple[AttentionEvolution, Any, torch.Size]] = []
    seen: list[tuple[AttentionEvolution, Any, torch.Tensor]] = []

    def record(evolution: AttentionEvolution, args: tuple, evolved: torch.Tensor) -> None:
        scores, previous, blocked = args[:3]
        if not evolved.isfinite().all():
            raise ValueError(
                f"The map of layer {evolution.layer_index + 1} has infinite or undefined values. Load the model in float32, "
                "and look at its weights if that does not help."
            )
        after_convolution = convolved.pop(evolution, None)
        # Copied here, as sharded parameters are whole only while their layer runs.
        gates = [
            None if gate is None else gate.detach().float().clone()
            for gate in (evolution.residual_gate, evolution.conv_gate)
        ]
        is_learned = evolution.mixing == "learned"
        maps = LayerMaps(
            number=evolution.layer_index + 1,
            residual_weight=0.0 if previous is None else gates[0] if is_learned else evolution.residual_weight,
            conv_weight=0.0 if after_convolution is None else gates[1] if is_learned else evolution.conv_weight,
            scores=scores,
            previous=previous,
            convolved=after_convolution,
            evolved=evolved,
            attention=None,
            blocked=blocked,
            mixing=evolution.mixing,
        )
        calls.append((evolution, see(evolution, maps), evolved.shape))

    def take_attention(module: nn.Module, args: tuple, output: Any) -> None:
        evolution, kept, shape = calls[-1]
        # T5 returns its position bias as well, before the weights.
        found = [value for value in output if isinstance(value, torch.Tensor) and value.shape == shape]
        if evolution is not module.evolution or not found:
            raise ValueError(
                f"{type(module).__name__} returns no attention weights, so that its maps cannot be recorded."
            )
        seen.append((evolution, kept, found[-1]))

    own = set(evolutions)
    with ExitStack() as stack:
        for module in model.modules():
            if getattr(module, "evolution", None) in own:
                stack.callback(module.register_forward_hook(take_attention).remove)
        for evolution in evolutions:
            stack.callback(evolution.register_forward_hook(record).remove)
            if evolution.conv is not None:
                keep = _keep_convolved(evolution, convolved)
                stack.callback(evolution.conv.register_forward_hook(keep).remove)
        stack.enter_context(_evaluation(model))
        # Asked for attention weights, a model calls its evolution modules, which faster paths go around.
        model(**inputs, output_attentions=True)
    return seen


def _keep_convolved(evolution: AttentionEvolution, convolved: dict[AttentionEvolution, torch.Tensor]):
    def keep(module, args, output):
        convolved[evolution] = evolution.activation(output)

    return keep


@contextmanager
def _evaluation(model: PreTrainedModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:  # frozen parts may be in another mode than the whole
            module.training = was_training


@contextmanager
def without_evolution(evolutions: Sequence[AttentionEvolution]) -> Iterator[None]:
    """For the time being both weights are 0, and no heads are mixed after the softmax."""
    names = ("mixing", "residual_weight", "conv_weight", "post_mixing")
    weights = [[getattr(evolution, name) for name in names] for evolution in evolutions]
    try:
        for evolution in evolutions:
            evolution.mixing, evolution.residual_weight, evolution.conv_weight = "convex", 0.0, 0.0
            evolution.post_mixing = None
        yield
    finally:
        for evolution, values in zip(evolutions, weights, strict=True):
            for name, value in zip(names, values, strict=True):
                setattr(evolution, name, value)
