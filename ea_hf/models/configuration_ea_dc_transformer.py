# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EA-DC-Transformer configuration."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_evolving import EvolvingConfig


@strict
class EADCTransformerConfig(EvolvingConfig, PreTrainedConfig):
    """Configuration of the EA-DC-Transformer, with the fields of `EvolvingConfig`. Names are PatchTST's where it has them.

    Args:
        num_input_channels: number of channels (variables) of a series.
        context_length: number of steps of the longest series that the model takes.
        num_labels: number of classes, for classification.
        num_targets: number of targets, for regression.
        d_model: channels within the model.
        num_hidden_layers: number of blocks, each of two attention-augmented convolutions and two feed-forward layers.
            The release has its `num_layers`, 3, and one more.
        num_attention_heads: number of attention heads.
        ffn_dim: channels within a feed-forward layer.
        activation_function: activation within a feed-forward layer.
        attention_key_ratio: channels of all keys, as a share of `d_model`.
        attention_value_ratio: channels that attention gives, likewise; the convolution gives the others. With 0 there is
            no attention, with 1 no convolution.
        conv_kernel_size: steps that the dilated convolution sees.
        use_dilation: whether block i (from 0) has dilation 2^i; otherwise all have dilation 1.
        causal_attention: whether a step attends to itself and earlier steps only, as the dilated convolution does anyway.
        use_relative_positions: whether attention has relative position logits.
        norm_type: "batchnorm" or "layernorm".
        norm_eps: added to the variance.
        norm_momentum: share of a batch in the running statistics of batch normalization.
        pooling_type: what the head of a classifier or regressor reads: `None` for all steps, each with weights of its own,
            as in the release; "mean" or "max" for that of the observed steps, which does not depend on where in the
            series something happens.
        sync_batch_norm: whether the statistics of a batch are those of all processes of `torch.distributed` together,
            so that several processes train as one does (`torch.nn.SyncBatchNorm` cannot leave padding out); otherwise
            each process has its own, as with `torch.nn.BatchNorm1d`. Set it to `False` where the processes train
            different models.
        positional_dropout, attention_dropout, ff_dropout, head_dropout: probability of dropping a value of the
            embedded series, an attention weight, a value within a feed-forward layer and a value before the head.
        random_mask_ratio: share of the values that masked imputation hides in training.
        mean_mask_length: how many consecutive steps of a channel it hides at once, on average.
        ea_residual_weight, ea_conv_weight: see `EvolvingConfig`. The defaults are the released values.

    Raises:
        ValueError: see `EvolvingConfig`; also for a value that no model can have.
    """

    model_type = "ea_dc_transformer"
    default_weights = (0.3, 0.5)
    attribute_map = {"hidden_size": "d_model"}

    num_input_channels: int = 1
    context_length: int = 32
    num_targets: int = 1
    d_model: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    ffn_dim: int = 256
    activation_function: str = "leaky_relu"
    attention_key_ratio: float | int = 0.25
    attention_value_ratio: float | int = 0.25
    conv_kernel_size: int = 3
    use_dilation: bool = True
    causal_attention: bool = False
    use_relative_positions: bool = True
    norm_type: str = "batchnorm"
    norm_eps: float = 1e-5
    norm_momentum: float | int = 0.1
    pooling_type: str | None = None
    sync_batch_norm: bool = True
    positional_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    ff_dropout: float | int = 0.1
    head_dropout: float | int = 0.1
    random_mask_ratio: float | int = 0.15
    mean_mask_length: float | int = 3

    @property
    def key_channels(self) -> int:
        """Channels of all keys."""
        return int(self.attention_key_ratio * self.d_model)

    @property
    def value_channels(self) -> int:
        """Channels of all values, which is what attention gives."""
        return int(self.attention_value_ratio * self.d_model)

    @property
    def has_only_causal_maps(self) -> bool:
        return self.causal_attention

    def dilation(self, block: int) -> int:
        """Steps between those that the convolutions of a block see."""
        return 2**block if self.use_dilation else 1

    def check(self) -> None:
        super().check()
        for name in (
            "num_input_channels",
            "context_length",
            "num_targets",
            "d_model",
            "num_hidden_layers",
            "num_attention_heads",
            "ffn_dim",
            "conv_kernel_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; choose a positive integer.")
        for name in ("positional_dropout", "attention_dropout", "ff_dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; choose a probability of at least 0 and below 1.")
        for name in ("attention_key_ratio", "attention_value_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; choose a share between 0 and 1.")
        if self.value_channels > 0:
            for name, channels in (
                ("attention_key_ratio", self.key_channels),
                ("attention_value_ratio", self.value_channels),
            ):
                if channels < 1 or channels % self.num_attention_heads:
                    raise ValueError(
                        f"`{name}` is {getattr(self, name)}, which makes {channels} of {self.d_model} channels "
                        "(`d_model`); choose it so that they are a positive multiple of `num_attention_heads`, "
                        f"{self.num_attention_heads}."
                    )
        elif self.attention_value_ratio > 0:
            raise ValueError(
                f"`attention_value_ratio` is {self.attention_value_ratio}, which makes none of {self.d_model} channels "
                "(`d_model`); choose 0 for a model without attention, or a larger share."
            )
        if self.activation_function not in ACT2FN:
            raise ValueError(
                f"`activation_function` is {self.activation_function!r}; choose one of {', '.join(sorted(ACT2FN))}."
            )
        if self.norm_type not in ("batchnorm", "layernorm"):
            raise ValueError(f'`norm_type` is {self.norm_type!r}; choose "batchnorm" or "layernorm".')
        if self.pooling_type not in (None, "mean", "max"):
            raise ValueError(f'`pooling_type` is {self.pooling_type!r}; choose "mean", "max" or `None`.')
        if not self.norm_eps > 0:
            raise ValueError(f"`norm_eps` is {self.norm_eps}; choose a small positive number.")
        if not 0 <= self.norm_momentum <= 1:
            raise ValueError(f"`norm_momentum` is {self.norm_momentum}; choose a number between 0 and 1.")
        if not 0 < self.random_mask_ratio < 1:
            raise ValueError(f"`random_mask_ratio` is {self.random_mask_ratio}; choose a share between 0 and 1.")
        shortest = max(1, 1 / (1 - self.random_mask_ratio))
        if self.mean_mask_length < shortest:
            raise ValueError(
                f"`mean_mask_length` is {self.mean_mask_length}; with `random_mask_ratio` {self.random_mask_ratio} choose "
                f"at least {shortest:.2f}, the mean if each value is hidden independently of the others."
            )


__all__ = ["EADCTransformerConfig"]
