# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""What an attention map is made of, recorded while a model runs.

With M_l = r A_{l-1} + (1 - r) S_l put into A_l = c act(Conv2d(M_l)) + (1 - c) M_l (see `ea_hf.models.evolution`), a map is the sum
of three parts, r being the residual weight and c the convolution's:

    A_l = (1 - c) (1 - r) S_l  +  (1 - c) r A_{l-1}  +  c act(Conv2d(M_l))

In the first layer of a chain, and where the layer has no convolution, r or c is 0 here, as it acts.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.evolution import AttentionEvolution


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one layer of a chain, for one example; tensors are (heads, query, key), float32, on the CPU.

    All but the attention weights are logits, before mask and softmax, and have no unit.

    Attributes:
        number: of the layer within its chain, from 1 as in the equations.
        residual_weight: r as it acts in this layer.
        conv_weight: c as it acts in this layer.
        scores: S_l.
        previous: A_{l-1}, `None` where r is 0.
        convolved: act(Conv2d(M_l)), `None` where c is 0.
        evolved: A_l.
        attention: P_l, the probabilities with which a query attends to the keys; where heads are mixed after the softmax
            (`ea_post_mixing`), what that gives.
        blocked: where a query may not attend, boolean, (query, key); `None` where it may attend everywhere.
        vanilla: the same layer in the same model with both weights 0, if that was asked for.
    """

    number: int
    residual_weight: float
    conv_weight: float
    scores: torch.Tensor
    previous: torch.Tensor | None
    convolved: torch.Tensor | None
    evolved: torch.Tensor
    attention: torch.Tensor
    blocked: torch.Tensor | None = None
    vanilla: "LayerMaps | None" = None

    @property
    def score_weight(self) -> float:
        """How much of S_l is in A_l."""
        return (1 - self.conv_weight) * (1 - self.residual_weight)

    @property
    def previous_weight(self) -> float:
        """How much of A_{l-1} is in A_l."""
        return (1 - self.conv_weight) * self.residual_weight

    @property
    def mixed(self) -> torch.Tensor:
        """M_l."""
        mixed = (1 - self.residual_weight) * self.scores
        return mixed if self.previous is None else mixed + self.residual_weight * self.previous

    @property
    def from_scores(self) -> torch.Tensor:
        """The part of A_l that comes from this layer's scores."""
        return self.score_weight * self.scores

    @property
    def from_previous(self) -> torch.Tensor:
        """The part of A_l that comes from the previous layer's map."""
        return torch.zeros_like(self.scores) if self.previous is None else self.previous_weight * self.previous

    @property
    def from_convolution(self) -> torch.Tensor:
        """The part of A_l that comes from the convolution."""
        return torch.zeros_like(self.scores) if self.convolved is None else self.conv_weight * self.convolved


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
    other = {evolution.mixing for evolution in evolutions} - {"convex"}
    if other:
        raise ValueError(
            f'The mixing (`ea_mixing`) is {other.pop()!r}, but pictures so far show the parts of a map for "convex" only.'
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
        with _without_evolution(evolutions):
            plain = _record(model, evolutions, inputs, layers, heads)
        recorded = {
            chain: [
                LayerMaps(**{**vars(layer), "vanilla": other})
                for layer, other in zip(chain_layers, plain[chain], strict=True)
            ]
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
    convolved: dict[AttentionEvolution, torch.Tensor] = {}
    calls: list[tuple[AttentionEvolution, dict[str, Any]]] = []

    def pick(maps: torch.Tensor | None) -> torch.Tensor | None:
        return None if maps is None else maps[0, channels].float().cpu()

    def record(evolution, args, evolved):
        scores, previous, blocked = args[:3]
        _check_numbers("head", heads, scores.shape[1])
        maps = {
            "scores": pick(scores),
            "previous": pick(previous),
            "convolved": pick(convolved.pop(evolution, None)),
            "evolved": pick(evolved),
            "blocked": None if blocked is None or not blocked.any() else blocked[0, 0].cpu(),
        }
        calls.append((evolution, maps))

    with ExitStack() as stack:
        for evolution in evolutions:
            stack.callback(evolution.register_forward_hook(record).remove)
            if evolution.conv is not None:
                keep = _keep_convolved(evolution, convolved)
                stack.callback(evolution.conv.register_forward_hook(keep).remove)
        stack.enter_context(_evaluation(model))
        # Asked for maps, a model calls its evolution modules, which faster paths go around.
        outputs = model(**inputs, output_attention_maps=True, output_attentions=True)

    names = getattr(model, "attention_map_names", {})
    # The attention weights of the chains that share an output stand there in the order of the calls.
    weights = {
        name: iter(outputs[f"{name.removesuffix('_maps')}s"])
        for name in {names.get(evolution.chain, "attention_maps") for evolution, _ in calls}
    }
    chains: dict[str, list[LayerMaps]] = {}
    for evolution, maps in calls:
        attention = pick(next(weights[names.get(evolution.chain, "attention_maps")]))
        if not maps["evolved"].isfinite().all():
            raise ValueError(
                f"The map of layer {evolution.layer_index + 1} has infinite or undefined values. Load the model in float32, "
                "and look at its weights if that does not help."
            )
        number = evolution.layer_index + 1
        if layers is None or number in layers:
            chains.setdefault(evolution.chain, []).append(
                LayerMaps(
                    number=number,
                    residual_weight=0.0 if maps["previous"] is None else evolution.residual_weight,
                    conv_weight=0.0 if maps["convolved"] is None else evolution.conv_weight,
                    attention=attention,
                    **maps,
                )
            )
    return chains


def _keep_convolved(evolution: AttentionEvolution, convolved: dict[AttentionEvolution, torch.Tensor]):
    def keep(module, args, output):
        convolved[evolution] = evolution.activation(output)

    return keep


@contextmanager
def _evaluation(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _without_evolution(evolutions: Sequence[AttentionEvolution]) -> Iterator[None]:
    """Both weights are 0 for the time being."""
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
