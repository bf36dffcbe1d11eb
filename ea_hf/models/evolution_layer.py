# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""One layer's step of evolving attention, from its scores to its map: equations (1) and (2) of `evolution.py`."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import nn
from transformers.activations import ACT2FN

from .evolution_cache import EvolvingCacheLayer
from .undocumented import version_of


MIXINGS = ("convex", "additive", "learned")
CONV_INITS = ("normal", "identity")
POST_MIXINGS = ("none", "heads")
KERNELS = ("torch", "triton")
# Of new kernels in "learned": where a convolution's weight starts at 0, its first gradient is what the kernel gives.
LEARNED_KERNEL_STD = 0.1


def check_evolution(
    residual_weight: float,
    conv_weight: float,
    kernel_size: int | tuple[int, int],
    activation: str,
    mixing: str = "convex",
    conv_groups: int | str = 1,
    conv_every: int | None = None,
    conv_init: str = "normal",
    post_mixing: str = "none",
    head_kernel_size: int | None = None,
    kernels: str = "torch",
    num_heads: int | None = None,
    is_causal: bool | None = None,
) -> None:
    """Checks the values of the mechanism; for all but the last two see `EvolvingConfig`.

    Args:
        num_heads: number of attention heads, `None` if it is not known yet.
        is_causal: whether all maps are causal, `None` if that is not known yet.

    Raises:
        ValueError: an unknown mixing; a weight that is no number in [0, 1] ("convex") or no finite number (otherwise); a
            kernel size that is no odd positive integer, nor (rows, columns) with odd columns and, unless all maps are causal,
            odd rows; an activation that `transformers.activations.ACT2FN` does not know; groups that are neither 1 nor the
            heads; another start of the kernels, head mixing or implementation than there is; groups of heads that do not divide the
            heads.
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
    _check_kernel_size(kernel_size, is_causal)
    if activation not in ACT2FN:
        raise ValueError(f"`ea_activation` is {activation!r}; choose one of {', '.join(sorted(ACT2FN))}.")
    if conv_groups != "heads" and not (
        _is_positive(conv_groups) and (num_heads is None or conv_groups in (1, num_heads))
    ):
        heads = "the number of heads" if num_heads is None else f"{num_heads}, the number of heads"
        raise ValueError(
            f'`ea_conv_groups` is {conv_groups!r}; choose 1, or {heads} ("heads"), with which each head has its own kernel.'
        )
    if conv_every is not None and not _is_positive(conv_every):
        raise ValueError(
            f"`ea_conv_every` is {conv_every!r}; choose a positive integer, or `None` for every layer but the first."
        )
    if conv_init not in CONV_INITS:
        raise ValueError(f"`ea_conv_init` is {conv_init!r}; choose one of {', '.join(CONV_INITS)}.")
    if post_mixing not in POST_MIXINGS:
        raise ValueError(f"`ea_post_mixing` is {post_mixing!r}; choose one of {', '.join(POST_MIXINGS)}.")
    if kernels not in KERNELS:
        raise ValueError(f"`ea_kernels` is {kernels!r}; choose one of {', '.join(KERNELS)}.")
    if head_kernel_size is not None:
        if post_mixing == "none":
            raise ValueError(
                f"`ea_head_kernel_size` is {head_kernel_size!r}, but `ea_post_mixing` is 'none'; choose 'heads' there, or "
                "leave it out."
            )
        if not _is_positive(head_kernel_size) or (num_heads is not None and num_heads % head_kernel_size):
            heads = "the number of heads" if num_heads is None else f"the {num_heads} heads"
            raise ValueError(
                f"`ea_head_kernel_size` is {head_kernel_size!r}; choose a number that divides {heads}, or `None` for all of them."
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_kernel_size(kernel_size: int | tuple[int, int], is_causal: bool | None) -> None:
    pair = isinstance(kernel_size, (tuple, list)) and len(kernel_size) == 2 and all(map(_is_positive, kernel_size))
    if not pair and not (_is_positive(kernel_size) and kernel_size % 2 == 1):
        raise ValueError(
            f"`ea_kernel_size` is {kernel_size!r}; choose an odd positive integer such as 3, or (rows, columns)."
        )
    rows, columns = kernel_rows_and_columns(kernel_size)
    if columns % 2 == 0:
        raise ValueError(
            f"`ea_kernel_size` is {kernel_size!r}, with {columns} columns; choose an odd number of columns."
        )
    if rows % 2 == 0 and is_causal is False:
        raise ValueError(
            f"`ea_kernel_size` is {kernel_size!r}, with {rows} rows; only where every chain that evolves is causal may they be "
            "even. Choose an odd number of rows."
        )


def kernel_rows_and_columns(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    """How many query rows and key columns a kernel has."""
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])


class MapConvolution(nn.Conv2d):
    """The convolution over maps, heads as channels. By its type it is known when weights are initialized.

    Attributes:
        initial_std: standard deviation of new kernels; the model's `initializer_range` if `None`.
        starts_as_identity: whether a new kernel gives what it gets.
    """

    initial_std: float | None = None
    starts_as_identity = False

    def identity(self) -> torch.Tensor:
        """The kernel that gives what it gets; in a causal chain the current row is the last one."""
        kernel = torch.zeros(self.weight.shape)
        row = kernel.shape[2] // 2 if self.padding[0] or kernel.shape[2] == 1 else kernel.shape[2] - 1
        heads = torch.arange(len(kernel))
        kernel[heads, heads % kernel.shape[1], row, kernel.shape[3] // 2] = 1.0
        return kernel


class HeadMixing(nn.Module):
    """Mixes the attention weights of groups of heads, cell by cell: P'_h = sum of w_hj P_j over the heads of its group.

    What is 0 in all heads remains 0, so that masks hold. Rows need not sum to 1 any more. It starts as the identity.

    Args:
        num_heads: number of attention heads.
        group_size: number of heads of a group, which are neighbors.
    """

    def __init__(self, num_heads: int, group_size: int):
        super().__init__()
        self.num_heads, self.group_size = num_heads, group_size
        self.weight = nn.Parameter(self.identity())

    def identity(self) -> torch.Tensor:
        return torch.eye(self.group_size).repeat(self.num_heads // self.group_size, 1)

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """(batch, heads, query, key) to the same shape."""
        groups = weights.unflatten(1, (-1, self.group_size))
        kernels = self.weight.to(weights.dtype).unflatten(0, (-1, self.group_size))
        return torch.einsum("gij,bgjqk->bgiqk", kernels, groups).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{self.num_heads}, group_size={self.group_size}"


class AttentionEvolution(nn.Module):
    """One layer's step of evolving attention: from raw scores S_l to the evolved map A_l, equations (1) and (2).

    Args:
        num_heads: number of attention heads, the channels of the convolution.
        layer_index: position in the chain, from 0. Unless `conv_every` is given, layer 0 passes its scores on as they are
            and owns no convolution, as in the authors' release; neither does a layer whose `conv_weight` is 0 and stays so.
            So every parameter gets a gradient, which DistributedDataParallel requires.
        residual_weight: share of the previous layer's map in M_l, in [0, 1] (called beta in the authors' code). With
            another mixing its factor, any number; in "learned" the one that `residual_gate` starts with.
        conv_weight: share of the convolution in A_l, in [0, 1] (called alpha in the authors' code). With another mixing
            its factor, any number; in "learned" the one that `conv_gate` starts with.
        kernel_size: side of the square kernel, odd, or (rows, columns). A kernel of 1 mixes heads only.
        activation: name of the activation after the convolution.
        is_causal: whether a query may see earlier query rows only (a decoder's self- and cross-attention). The
            convolution then sees the current row and those above it, and none below it; its rows may be even.
        is_cross_attention: whether the keys belong to another sequence than the queries.
        chain: name of the chain, for models that have several; "cross" or "self" if `None`.
        memory_efficient: whether training saves less and computes more; see `evolution_fast.EvolvingAttention`.
        mixing: "convex", equations (1) and (2), "additive" or "learned", equations (1') and (2').
        conv_groups: 1, or "heads" or their number: each head has its own kernel.
        conv_every: of so many layers one has a convolution, the middle one; see `has_convolution`. `None`: all but layer 0.
        conv_init: how kernels start, "normal" or "identity".
        post_mixing: "heads" mixes heads after the softmax, "none" does not.
        head_kernel_size: how many heads are mixed with each other, all if `None`.
        kernels: "torch" computes with PyTorch's operations; "triton", where it can, with the kernels of `evolution_triton`.

    Attributes:
        residual_gate: (heads,), the residual weights of "learned", in every layer but the first; otherwise `None`.
        conv_gate: (heads,), the convolution's weights of "learned", where there is one; otherwise `None`.
        kernel_rows, kernel_columns: of the kernel.
        may_be_dropped: whether the model may leave the layer out in training (LayerDrop); False, but where `evolve` sets it.
        post_mixing: the `HeadMixing` after the softmax, if there is one.

    Raises:
        ValueError: see `check_evolution`.
    """

    def __init__(
        self,
        num_heads: int,
        layer_index: int,
        residual_weight: float = 0.1,
        conv_weight: float = 0.1,
        kernel_size: int | tuple[int, int] = 3,
        activation: str = "relu",
        is_causal: bool = False,
        is_cross_attention: bool = False,
        chain: str | None = None,
        memory_efficient: bool = False,
        mixing: str = "convex",
        conv_groups: int | str = 1,
        conv_every: int | None = None,
        conv_init: str = "normal",
        post_mixing: str = "none",
        head_kernel_size: int | None = None,
        kernels: str = "torch",
    ):
        super().__init__()
        variant = (conv_groups, conv_every, conv_init, post_mixing, head_kernel_size, kernels)
        check_evolution(residual_weight, conv_weight, kernel_size, activation, mixing, *variant, num_heads, is_causal)
        self.mixing = mixing
        self.layer_index = layer_index
        self.residual_weight = residual_weight
        self.conv_weight = conv_weight
        self.memory_efficient = memory_efficient
        self.kernels = kernels
        self.kernel_rows, self.kernel_columns = kernel_rows_and_columns(kernel_size)
        self.is_causal = is_causal
        self.is_cross_attention = is_cross_attention
        self.chain = chain or ("cross" if is_cross_attention else "self")
        self.activation = ACT2FN[activation]
        self.is_relu = activation == "relu"
        self.num_heads = num_heads
        self.is_first = layer_index == 0
        self.may_be_dropped = False
        self.conv = self.residual_gate = self.conv_gate = self.post_mixing = None
        is_learned = mixing == "learned"
        if has_convolution(layer_index, conv_every) and (is_learned or conv_weight != 0):
            kernel = (self.kernel_rows, self.kernel_columns)
            padding = (0 if is_causal else kernel[0] // 2, kernel[1] // 2)
            groups = num_heads if conv_groups == "heads" else conv_groups
            self.conv = MapConvolution(num_heads, num_heads, kernel, padding=padding, groups=groups)
            self.conv.starts_as_identity = conv_init == "identity"
        if self.conv is not None and is_learned:
            self.conv.initial_std = LEARNED_KERNEL_STD
            self.conv_gate = nn.Parameter(torch.full((num_heads,), float(conv_weight)))
        if layer_index > 0 and is_learned:
            self.residual_gate = nn.Parameter(torch.full((num_heads,), float(residual_weight)))
        if post_mixing == "heads":
            self.post_mixing = HeadMixing(num_heads, head_kernel_size or num_heads)
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
            rows_above = self.kernel_rows - 1
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
        if not self.gates:  # such as the first layer, plain as long as the others are, of which it does not know
            return True
        return self._gates_are_zero()

    @property
    def gates(self) -> tuple[nn.Parameter, ...]:
        """The learned weights that this layer has."""
        return tuple(gate for gate in (self.residual_gate, self.conv_gate) if gate is not None)

    @property
    def looks_around(self) -> bool:
        """Whether a cell of a map gets something from other cells."""
        return self.conv is not None and max(self.kernel_rows, self.kernel_columns) > 1

    def _gates_are_zero(self) -> bool:
        """Looks at the gates only when they may have changed: a look makes an accelerator wait.

        In training not again once they have moved. Inference looks again at parameters that were written to.
        """
        gates = self.gates
        is_learning = torch.is_grad_enabled() and any(gate.requires_grad for gate in gates)
        if is_learning and self._gates_have_moved:
            return False
        key = None
        if not is_learning and not any(gate.is_inference() for gate in gates):
            key = tuple(number for gate in gates for number in (id(gate), version_of(gate)))
            if self._seen_gates is not None and self._seen_gates[0] == key:
                return self._seen_gates[1]
        are_zero = not any(gate.any() for gate in gates)
        self._gates_have_moved = not are_zero
        self._seen_gates = None if key is None else (key, are_zero)
        return are_zero

    @property
    def needs_cache(self) -> bool:
        """Whether a step of decoding needs rows of the steps before it."""
        return self.is_causal and self.conv is not None and self.kernel_rows > 1

    def extra_repr(self) -> str:
        return (
            f"{self.chain}, layer_index={self.layer_index}, mixing={self.mixing}, "
            f"residual_weight={self.residual_weight}, conv_weight={self.conv_weight}"
        )


def has_convolution(layer_index: int, conv_every: int | None) -> bool:
    """Whether a layer of a chain has a convolution, unless its weight is 0.

    With 4 these are the layers 2, 6, 10 and so on, counted from 0, as in the released configurations of Multi-Token Attention;
    with 1 all of them.
    """
    return layer_index > 0 if conv_every is None else layer_index % conv_every == conv_every // 2


def per_head(weight: float, gate: torch.Tensor | None, dtype: torch.dtype) -> float | torch.Tensor:
    """A weight that multiplies maps of a type; under autocast parameters have another."""
    return weight if gate is None else gate.to(dtype).view(-1, 1, 1)
