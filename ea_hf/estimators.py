# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""The EA-DC-Transformer as estimators of aeon, with the interface of scikit-learn.

    from ea_hf import EADCTransformerClassifier
    classifier = EADCTransformerClassifier(n_epochs=30, random_state=0).fit(X_train, y_train)
    classifier.predict_proba(X_test)

They take series of unequal length with missing values, as `EADCTransformerFeatureExtractor` treats them, and train with
the recipe of `time_series/run_time_series.py`, without a validation set: on all series, for `n_epochs`.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from aeon.classification import BaseClassifier
from aeon.regression import BaseRegressor
from sklearn.utils import check_random_state
from transformers import PreTrainedModel

from .models.configuration_ea_dc_transformer import EADCTransformerConfig
from .models.feature_extraction_ea_dc_transformer import EADCTransformerFeatureExtractor
from .models.modeling_ea_dc_transformer import EADCTransformerForClassification, EADCTransformerForRegression


TAGS = {
    "capability:multivariate": True,
    "capability:unequal_length": True,
    "capability:missing_values": True,
    "X_inner_type": ["np-list", "numpy3D"],
    "algorithm_type": "deeplearning",
    "python_dependencies": ["torch", "transformers"],
}
TEST_PARAMETERS = {"n_epochs": 2, "d_model": 16, "n_blocks": 1, "n_heads": 2, "ffn_dim": 16, "batch_size": 8}


class _Estimator:
    """What both estimators share: their parameters, the network, its training and its outputs."""

    # What stands for `None`.
    _n_epochs: int
    _learning_rate: float

    def __init__(
        self,
        n_epochs: int | None = None,
        batch_size: int = 16,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        max_grad_norm: float = 4.0,
        d_model: int = 64,
        n_blocks: int = 4,
        n_heads: int = 8,
        ffn_dim: int = 256,
        attention_ratio: float = 0.25,
        use_dilation: bool = True,
        causal_attention: bool = False,
        norm_type: str = "batchnorm",
        pooling_type: str | None = "mean",
        ea_residual_weight: float = 0.3,
        ea_conv_weight: float = 0.5,
        max_steps: int | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.d_model = d_model
        self.n_blocks = n_blocks
        self.n_heads = n_heads
        self.ffn_dim = ffn_dim
        self.attention_ratio = attention_ratio
        self.use_dilation = use_dilation
        self.causal_attention = causal_attention
        self.norm_type = norm_type
        self.pooling_type = pooling_type
        self.ea_residual_weight = ea_residual_weight
        self.ea_conv_weight = ea_conv_weight
        self.max_steps = max_steps
        self.device = device
        self.random_state = random_state
        super().__init__()

    def _preprocess_collection(self, X: Any, store_metadata: bool = True) -> Any:
        """What aeon calls first, in `fit` and in all predictions; it takes for granted that there are values."""
        _check_collection(X)
        return super()._preprocess_collection(X, store_metadata)

    def _check_parameters(self) -> None:
        for name in ("n_epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, numbers.Integral) and value >= 1):
                raise ValueError(f"`{name}` is {value!r}; it must be a whole number, at least 1.")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be a positive number.")
        if self.weight_decay < 0:
            raise ValueError(f"`weight_decay` is {self.weight_decay}; it must be at least 0.")

    def _train(
        self,
        model_class: type[PreTrainedModel],
        X: Sequence[np.ndarray],
        labels: np.ndarray,
        **config: Any,
    ) -> None:
        """Makes `feature_extractor_` and `model_`.

        Args:
            X: each (channels, time).
            labels: classes as indices, (series,), or targets, (series, 1).
        """
        self._check_parameters()
        n_epochs = self._n_epochs if self.n_epochs is None else self.n_epochs
        learning_rate = self._learning_rate if self.learning_rate is None else self.learning_rate
        series = [np.asarray(values).T for values in X]
        if all(np.isnan(values).all() for values in series):
            raise ValueError("All values of X are missing (NaN); there is nothing to learn from.")
        is_regression = labels.ndim == 2
        extractor = EADCTransformerFeatureExtractor.fit(series, labels if is_regression else None, self.max_steps)
        targets = torch.from_numpy(extractor.scale_targets(labels).astype(np.float32) if is_regression else labels)
        prepared = extractor.prepare(series)
        random_state = check_random_state(self.random_state)
        with torch.random.fork_rng():  # the caller's random numbers stay as they are
            torch.manual_seed(int(random_state.randint(2**31 - 1)))
            model = model_class(
                EADCTransformerConfig(
                    num_input_channels=extractor.num_channels,
                    context_length=extractor.max_length,
                    d_model=self.d_model,
                    num_hidden_layers=self.n_blocks,
                    num_attention_heads=self.n_heads,
                    ffn_dim=self.ffn_dim,
                    attention_key_ratio=self.attention_ratio,
                    attention_value_ratio=self.attention_ratio,
                    use_dilation=self.use_dilation,
                    causal_attention=self.causal_attention,
                    norm_type=self.norm_type,
                    pooling_type=self.pooling_type,
                    ea_residual_weight=self.ea_residual_weight,
                    ea_conv_weight=self.ea_conv_weight,
                    **config,
                )
            ).to(self._device())
            optimizer = torch.optim.RAdam(model.parameters(), lr=learning_rate, weight_decay=self.weight_decay)
            steps = n_epochs * math.ceil(len(prepared) / self.batch_size)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
            model.train()
            self.losses_ = []
            for _ in range(n_epochs):
                order = random_state.permutation(len(prepared))
                total = 0.0
                for start in range(0, len(order), self.batch_size):
                    indices = order[start : start + self.batch_size]
                    inputs = extractor.pad([prepared[index] for index in indices]).to(model.device)
                    loss = model(**inputs, labels=targets[indices].to(model.device)).loss
                    if not torch.isfinite(loss):
                        raise ValueError(
                            f"The loss is {loss.item()} in epoch {len(self.losses_) + 1}. Lower `learning_rate`, now "
                            f"{learning_rate}."
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
                    optimizer.step()
                    scheduler.step()
                    total += loss.item() * len(indices)
                self.losses_.append(total / len(order))
        self.feature_extractor_ = extractor
        self.model_ = model.eval().cpu()

    def _device(self) -> torch.device:
        if self.device is not None:
            return torch.device(self.device)
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    def _outputs(self, X: Sequence[np.ndarray]) -> np.ndarray:
        """Logits or standardized predictions, (series, outputs), float64."""
        prepared = self.feature_extractor_.prepare([np.asarray(values).T for values in X])
        device, rows = self._device(), []
        model = self.model_.to(device)
        with torch.no_grad():
            for start in range(0, len(prepared), self.batch_size):
                inputs = self.feature_extractor_.pad(prepared[start : start + self.batch_size]).to(device)
                rows.append(model(**inputs).logits.double().cpu())
        self.model_.cpu()
        return torch.cat(rows).numpy()

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return dict(TEST_PARAMETERS)


def _check_collection(X: Any) -> None:
    """Raises ValueError if there is no series, or one without a channel or a step; aeon checks everything else."""
    if not isinstance(X, np.ndarray | Sequence) or (isinstance(X, np.ndarray) and X.ndim == 0):
        return
    if len(X) == 0:
        raise ValueError(f"X holds no series{f', its shape is {X.shape}' if isinstance(X, np.ndarray) else ''}.")
    for index, values in enumerate(X):
        if np.size(values) == 0:
            raise ValueError(
                f"Series {index} of X has the shape {np.shape(values)}, (channels, time); each needs one of both at least."
            )


class EADCTransformerClassifier(_Estimator, BaseClassifier):
    """Classifies time series with an EA-DC-Transformer.

    Wang et al., "Convolution-enhanced Evolving Attention Networks", TPAMI 2023, https://arxiv.org/abs/2212.08330

    Args:
        n_epochs: passes over the training series; `None` for 100, in a regression 30.
        batch_size: series per step.
        learning_rate: of RAdam at first, from which it falls to 0 along a cosine; `None` for 3e-3, in a regression 1e-3.
        weight_decay: of RAdam.
        max_grad_norm: gradients are clipped to this norm.
        d_model, n_blocks, n_heads, ffn_dim: the size, see `d_model`, `num_hidden_layers`, `num_attention_heads` and
            `ffn_dim` of `EADCTransformerConfig`.
        attention_ratio: share of attention's channels, in [0, 1]; 0 leaves the dilated convolutions alone.
        use_dilation, causal_attention, norm_type, pooling_type: see `EADCTransformerConfig`.
        ea_residual_weight, ea_conv_weight: of evolving attention, in [0, 1]; both 0 make plain attention.
        max_steps: neighbouring steps of longer series are averaged until at most so many remain; `None` for none.
        device: of PyTorch; `None` for an accelerator if there is one, else the CPU.
        random_state: of the weights, the order of the series and dropout.

    Attributes:
        model_: the trained `EADCTransformerForClassification`.
        feature_extractor_: what turns series into its inputs.
        losses_: the mean training loss of each epoch.

    Raises:
        ValueError: in `fit`, for a value that no model can have, or series that cannot be used (infinite values, no
            steps, no value at all); in `predict`, for series of other channels than the training ones; in both, if there
            is no series.
    """

    _tags = TAGS
    _n_epochs, _learning_rate = 100, 3e-3

    def _fit(self, X: Sequence[np.ndarray], y: np.ndarray) -> "EADCTransformerClassifier":
        labels = np.array([self._class_dictionary[label] for label in y], dtype=np.int64)
        self._train(EADCTransformerForClassification, X, labels, num_labels=self.n_classes_)
        return self

    def _predict(self, X: Sequence[np.ndarray]) -> np.ndarray:
        return self.classes_[self._outputs(X).argmax(axis=1)]

    def _predict_proba(self, X: Sequence[np.ndarray]) -> np.ndarray:
        return torch.from_numpy(self._outputs(X)).softmax(dim=1).numpy()


class EADCTransformerRegressor(_Estimator, BaseRegressor):
    """Predicts a number of each time series with an EA-DC-Transformer.

    The network learns standardized targets. Arguments, attributes (`model_` is an `EADCTransformerForRegression`) and
    errors are those of `EADCTransformerClassifier`. `predict` returns an array of (series,).

    Examples:
        ```python
        series = np.random.default_rng(1).normal(size=(8, 2, 20))  # (series, channels, time)
        estimator = ea_hf.EADCTransformerRegressor(n_epochs=1)
        numbers = estimator.fit(series, series.mean(axis=(1, 2))).predict(series)
        ```
    """

    _tags = TAGS
    _n_epochs, _learning_rate = 30, 1e-3

    def _fit(self, X: Sequence[np.ndarray], y: np.ndarray) -> "EADCTransformerRegressor":
        self._train(EADCTransformerForRegression, X, np.asarray(y, dtype=np.float64)[:, None])
        return self

    def _predict(self, X: Sequence[np.ndarray]) -> np.ndarray:
        return self.feature_extractor_.restore_targets(self._outputs(X))[:, 0]
