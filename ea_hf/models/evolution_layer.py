# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's step of evolving attention, from its scores to its map: equations (1) and (2) of `evolution.py`."""

import math
from numbers import Real

import torch
from torch import nn
from transformers.activations import ACT2FN

from .evolution_cache import EvolvingCacheLayer


MIXINGS = ("convex", "additive", "learned")
# Of new kernels in "learned": where a convolution's weight starts at 0, its first gradient is what the kernel gives.
LEARNED_KERNEL_STD = 0.1


def check_evolution(
    residual_weight: float, conv_weight: float, kernel_size: int, activation: str, mixing: str = "convex"
) -> None:
    """Checks the values of the mechanism.

    Raises:
        ValueError: an unknown mixing; a weight that is no number in [0, 1] ("convex") or no finite number (otherwise); a
            kernel size that is no odd positive integer; an activation that `transformers.activations.ACT2FN` does not know.
    """
    if mixing not in MIXINGS:
        raise ValueError(f"`ea_mixing` is {mixing!r}; choose one of {', '.join(MIXINGS)}.")
    for name, weight in (("ea_residual_weight", residual_weight), ("ea_conv_weight", conv_weight)):
        if not (isinstance(weight, Real) and math.isfinite(weight)):
            raise ValueError(
                f"`{name}` is {weight!r}; choose a {'number between 0 and 1' if mixing == 'convex' else 'finite number'}."
            )
        if mixing == "convex" and not 0.0 <= weight <= 1.0:
            raise ValueError(
                f'`{name}` is {weight!r}; choose a number between 0 and 1, or the mixing "additive" (`ea_mixing`).'
            )
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"`ea_kernel_size` is {kernel_size!r}; choose an odd positive integer such as 3.")
    if activation not in ACT2FN:
        raise ValueError(f"`ea_activation` is {activation!r}; choose one of {', '.join(sorted(ACT2FN))}.")


class MapConvolution(nn.Conv2d):
    """The convolution over maps, heads as channels. By its type it is known when weights are initialized."""

    initial_std: float | None = None  # the model's `initializer_range`


class AttentionEvolution(nn.Module):
    """One layer's step of evolving attention: from raw scores S_l to the evolved map A_l, equations (1) and (2).

    Args:
        num_heads: number of attention heads, the channels of the convolution.
        layer_index: position in the chain, from 0. Layer 0 passes its scores on as they are and owns no convolution,
            as in the authors' release; neither does a layer whose `conv_weight` is 0 and stays so. So every parameter
            gets a gradient, which DistributedDataParallel requires.
        residual_weight: share of the previous layer's map in M_l, in [0, 1] (called beta in the authors' code). With
            another mixing its factor, any number; in "learned" the one that `residual_gate` starts with.
        conv_weight: share of the convolution in A_l, in [0, 1] (called alpha in the authors' code). With another mixing
            its factor, any number; in "learned" the one that `conv_gate` starts with.
        kernel_size: side of the square kernel, odd. A kernel of 1 mixes heads only.
        activation: name of the activation after the convolution.
        is_causal: whether a query may see earlier query rows only (a decoder's self- and cross-attention). The
            convolution then has `kernel_size - 1` rows of padding above the map and none below it.
        is_cross_attention: whether the keys belong to another sequence than the queries.
        chain: name of the chain, for models that have several; "cross" or "self" if `None`.
        memory_efficient: whether training saves less and computes more; see `evolution_fast.EvolvingAttention`.
        mixing: "convex", equations (1) and (2), "additive" or "learned", equations (1') and (2').

    Attributes:
        residual_gate, conv_gate: (heads,), the weights of "learned", in every layer but the first; otherwise `None`.

    Raises:
        ValueError: see `check_evolution`.
    """

    def __init__(
        self,
        num_heads: int,
        layer_index: int,
        residual_weight: float = 0.1,
        conv_weight: float = 0.1,
        kernel_size: int = 3,
        activation: str = "relu",
        is_causal: bool = False,
        is_cross_attention: bool = False,
        chain: str | None = None,
        memory_efficient: bool = False,
        mixing: str = "convex",
    ):
        super().__init__()
        check_evolution(residual_weight, conv_weight, kernel_size, activation, mixing)
        self.mixing = mixing
        self.layer_index = layer_index
        self.residual_weight = residual_weight
        self.conv_weight = conv_weight
        self.memory_efficient = memory_efficient
        self.kernel_size = kernel_size
        self.is_causal = is_causal
        self.is_cross_attention = is_cross_attention
        self.chain = chain or ("cross" if is_cross_attention else "self")
        self.activation = ACT2FN[activation]
        self.is_relu = activation == "relu"
        self.conv = self.residual_gate = self.conv_gate = None
        is_learned = mixing == "learned"
        if layer_index > 0 and (is_learned or conv_weight != 0):
            padding = (0 if is_causal else kernel_size // 2, kernel_size // 2)
            self.conv = MapConvolution(num_heads, num_heads, kernel_size, padding=padding)
        if layer_index > 0 and is_learned:
            self.conv.initial_std = LEARNED_KERNEL_STD
            self.residual_gate = nn.Parameter(torch.full((num_heads,), float(residual_weight)))
            self.conv_gate = nn.Parameter(torch.full((num_heads,), float(conv_weight)))
        self._gates_have_moved = False
        self._seen_gates: tuple[tuple[int, ...], bool] | None = None

    def forward(
        self,
        scores: torch.Tensor,
        previous: torch.Tensor | None = None,
        blocked: torch.Tensor | None = None,
        cache: EvolvingCacheLayer | None = None,
    ) -> torch.Tensor:
        """
        Args:
            scores: S_l, (batch, heads, query, key).
            previous: A_{l-1}, same shape; `None` in the first layer, and where the layer takes none.
            blocked: boolean, broadcastable to (batch, 1, query, key); True where the convolution must see zeros.
            cache: holds the rows of M_l before this call, where a causal layer decodes step by step.

        Returns:
            A_l, (batch, heads, query, key).
        """
        mixed = self.mix(scores, previous)
        if self.conv is None:
            return mixed
        image = mixed if blocked is None else mixed.masked_fill(blocked, 0.0)
        if self.is_causal:
            rows_above = self.kernel_size - 1
            if cache is None:
                image = nn.functional.pad(image, (0, 0, rows_above, 0))
            else:
                image = cache.prepend_rows(self.chain, image, rows_above)
        convolved = self.activation(self.conv(image))
        if self.mixing == "convex":
            return self.conv_weight * convolved + (1 - self.conv_weight) * mixed
        return mixed + per_head(self.conv_weight, self.conv_gate, mixed.dtype) * convolved

    def mix(self, scores: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        """M_l, equation (1); arguments as for `forward`."""
        if previous is None:
            return scores
        if self.mixing == "convex":
            return self.residual_weight * previous + (1 - self.residual_weight) * scores
        return scores + per_head(self.residual_weight, self.residual_gate, scores.dtype) * previous

    @property
    def takes_maps(self) -> bool:
        """Whether a layer of this chain takes the map of the one before it."""
        return self.mixing == "learned" or self.residual_weight != 0

    @property
    def is_vanilla(self) -> bool:
        """Whether the layer's attention is plain, which then is to be so to the last bits."""
        if self.mixing != "learned":
            return self.residual_weight == self.conv_weight == 0
        if self.residual_gate is None:  # the first layer, plain as long as the others are, of which it does not know
            return True
        return self._gates_are_zero()

    def _gates_are_zero(self) -> bool:
        """Looks at the gates only when they may have changed: a look makes an accelerator wait.

        In training not again once they have moved. Inference looks again at parameters that were written to.
        """
        gates = (self.residual_gate, self.conv_gate)
        is_learning = torch.is_grad_enabled() and any(gate.requires_grad for gate in gates)
        if is_learning and self._gates_have_moved:
            return False
        key = None
        if not is_learning and not any(gate.is_inference() for gate in gates):
            key = tuple(number for gate in gates for number in (id(gate), gate._version))
            if self._seen_gates is not None and self._seen_gates[0] == key:
                return self._seen_gates[1]
        are_zero = not any(gate.any() for gate in gates)
        self._gates_have_moved = not are_zero
        self._seen_gates = None if key is None else (key, are_zero)
        return are_zero

    @property
    def needs_cache(self) -> bool:
        """Whether a step of decoding needs rows of the steps before it."""
        return self.is_causal and self.conv is not None and self.kernel_size > 1

    def extra_repr(self) -> str:
        return (
            f"{self.chain}, layer_index={self.layer_index}, mixing={self.mixing}, "
            f"residual_weight={self.residual_weight}, conv_weight={self.conv_weight}"
        )


def per_head(weight: float, gate: torch.Tensor | None, dtype: torch.dtype) -> float | torch.Tensor:
    """A weight that multiplies maps of a type; under autocast parameters have another."""
    return weight if gate is None else gate.to(dtype).view(-1, 1, 1)
