# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""From time series as they are measured to what EA-DC-Transformer takes."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin


logger = logging.getLogger(__name__)


class EADCTransformerFeatureExtractor(FeatureExtractionMixin):
    """Fills gaps, standardizes, and pads series of unequal length. All it knows comes from the training series (`fit`).

    - Missing values (NaN) are interpolated linearly in time, or by the number of the step if no times are given, within
      their series and channel; before the first and
      after the last value that is there, this value is repeated. A channel of which a series has no value at all
      gets the mean of the training series. A channel that has no value in any training series is always 0.
    - Each channel is standardized with the mean and the standard deviation of its training values. A channel that is
      constant in training is only centred, not divided by 0.
    - With `pooling`, as many neighbouring steps are averaged into one; what is left at the end makes one of its own.
    - Of a series longer than `max_length` the first steps are taken, and a warning counts such series.

    Args:
        feature_mean: of each channel.
        feature_scale: what each channel is divided by; 0 for a channel that is always 0.
        max_length: of a series after pooling, in steps.
        pooling: how many steps are averaged into one.
        target_mean: of each target of a regression, whose model predicts standardized targets; `None` for a
            classification.
        target_scale: likewise.
        channel_names: in order; `None` if they are known by their order only.
        target_names: of a regression, likewise.
    """

    model_input_names = ["past_values", "past_observed_mask"]
    _auto_class = "AutoFeatureExtractor"  # so that its code is saved beside it

    def __init__(
        self,
        feature_mean: Sequence[float] = (0.0,),
        feature_scale: Sequence[float] = (1.0,),
        max_length: int = 32,
        pooling: int = 1,
        target_mean: Sequence[float] | None = None,
        target_scale: Sequence[float] | None = None,
        channel_names: Sequence[str] | None = None,
        target_names: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if max_length < 1 or pooling < 1:
            raise ValueError(f"`max_length` is {max_length} and `pooling` {pooling}; both must be at least 1.")
        self.feature_mean = list(feature_mean)
        self.feature_scale = list(feature_scale)
        self.max_length = max_length
        self.pooling = pooling
        self.target_mean = None if target_mean is None else list(target_mean)
        self.target_scale = None if target_scale is None else list(target_scale)
        self.channel_names = None if channel_names is None else list(channel_names)
        self.target_names = None if target_names is None else list(target_names)

    @classmethod
    def fit(
        cls,
        series: Sequence[np.ndarray],
        targets: np.ndarray | None = None,
        max_steps: int | None = None,
        names: Sequence[str] | None = None,
    ) -> "EADCTransformerFeatureExtractor":
        """Learns means, standard deviations and the length from training series.

        Args:
            series: each (time, channels), of any length; NaN where a value is missing.
            targets: of a regression, (series, targets).
            max_steps: longer series are pooled until at most so many steps remain.
            names: what messages call each series.

        Raises:
            ValueError: there is no series; one of them has no step, another number of channels than the first, an
                infinite value, or values too large to be squared; a target is not finite; `max_steps` is below 1.
        """
        from sklearn.preprocessing import StandardScaler  # needed here only, not by a model that is loaded

        if max_steps is not None and max_steps < 1:
            raise ValueError(f"`max_steps` is {max_steps}; it must be at least 1.")
        if len(series) == 0:
            raise ValueError("There is no series to learn the standardization from.")
        num_channels = _as_matrix(series[0], None, "").shape[1]
        values = [_checked(one, num_channels, _name(names, index)) for index, one in enumerate(series)]
        joined = np.concatenate(values)
        missing = np.isnan(joined).all(axis=0)
        joined[:, missing] = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            scaler = StandardScaler().fit(joined)
        mean, scale = scaler.mean_, np.where(missing, 0.0, scaler.scale_)
        if missing.any():
            logger.warning(
                f"Channels without any value in training are taken as 0: {np.flatnonzero(missing).tolist()}."
            )
        overflowed = ~np.isfinite(scaler.var_)
        if overflowed.any():
            channel = int(np.flatnonzero(overflowed)[0])
            raise ValueError(
                f"Channel {channel} has values too large for a standard deviation, up to "
                f"{np.nanmax(np.abs(joined[:, channel])):.3g}. Rescale it."
            )
        longest = max(len(one) for one in values)
        pooling = 1 if max_steps is None else -(-longest // max_steps)
        target_mean = target_scale = None
        if targets is not None:
            targets = np.asarray(targets, dtype=np.float64)
            if not np.isfinite(targets).all():
                raise ValueError(
                    f"The target of {_name(names, int(np.argwhere(~np.isfinite(targets))[0, 0]))} is not a finite number."
                )
            target_scaler = StandardScaler().fit(targets)
            target_mean, target_scale = target_scaler.mean_.tolist(), target_scaler.scale_.tolist()
        return cls(
            feature_mean=mean.tolist(),
            feature_scale=scale.tolist(),
            max_length=-(-longest // pooling),
            pooling=pooling,
            target_mean=target_mean,
            target_scale=target_scale,
        )

    @property
    def num_channels(self) -> int:
        return len(self.feature_mean)

    def prepare(
        self,
        series: Sequence[np.ndarray],
        names: Sequence[str] | None = None,
        times: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Fills, standardizes and pools.

        Args:
            series: each (time, channels), or (time,) if there is one channel; NaN where a value is missing.
            names: what messages call each series.
            times: when the steps of each series were, (time,), increasing; `None` if they follow each other evenly.

        Returns:
            Each (at most `max_length`, channels), float32, finite.

        Raises:
            ValueError: a series has no step, another number of channels than the training series, or a value that is
                infinite or becomes so when it is standardized; times do not increase, or are not one for each step.
        """
        mean, scale = np.asarray(self.feature_mean), np.asarray(self.feature_scale)
        used = scale > 0
        prepared, cut = [], 0
        for index, one in enumerate(series):
            name = _name(names, index)
            values = _checked(one, self.num_channels, name)
            values = interpolate(values, mean, None if times is None else _checked_times(times[index], values, name))
            with np.errstate(over="ignore"):
                values = np.where(used, (values - mean) / np.where(used, scale, 1.0), 0.0)
                if self.pooling > 1:
                    starts = np.arange(0, len(values), self.pooling)
                    counts = np.diff(np.append(starts, len(values)))
                    values = np.add.reduceat(values, starts) / counts[:, None]
                result = values.astype(np.float32)
            if not np.isfinite(result).all():
                step, channel = np.argwhere(~np.isfinite(result))[0]
                raise ValueError(
                    f"{_name(names, index)} is too large near step {step * self.pooling} in channel {channel}: divided by "
                    f"the training series' standard deviation, {scale[channel]:.3g}, it is beyond single precision."
                )
            cut += len(result) > self.max_length
            prepared.append(result[: self.max_length])
        if cut:
            logger.warning(
                f"{cut} of {len(series)} series are longer than the longest of training; only their first "
                f"{self.max_length * self.pooling} steps are taken."
            )
        return prepared

    def pad(self, prepared: Sequence[np.ndarray]) -> BatchFeature:
        """Makes a batch of prepared series.

        Returns:
            `past_values`, (batch, time, channels), 0 beyond the end of a series, and `past_observed_mask`,
            (batch, time), True within it.
        """
        longest = max(len(one) for one in prepared)
        values = torch.zeros(len(prepared), longest, self.num_channels)
        mask = torch.zeros(len(prepared), longest, dtype=torch.bool)
        for row, one in enumerate(prepared):
            values[row, : len(one)] = torch.from_numpy(one)
            mask[row, : len(one)] = True
        return BatchFeature({"past_values": values, "past_observed_mask": mask})

    def __call__(
        self,
        series: Sequence[np.ndarray] | np.ndarray,
        return_tensors: str = "pt",
        times: Sequence[np.ndarray] | None = None,
    ) -> BatchFeature:
        """A batch of series as they were measured, see `prepare` and `pad`.

        Args:
            times: see `prepare`.
            return_tensors: "pt", the only kind.

        Raises:
            ValueError: see `prepare`.
        """
        if return_tensors != "pt":
            raise ValueError(f'`return_tensors` is {return_tensors!r}; only "pt" is there.')
        return self.pad(self.prepare(series, times=times))

    def scale_targets(self, targets: np.ndarray) -> np.ndarray:
        """Targets, (series, targets), as the model learns them."""
        return (np.asarray(targets) - self.target_mean) / self.target_scale

    def restore_targets(self, predictions: np.ndarray) -> np.ndarray:
        """Predictions, (series, targets), in the units of the training targets."""
        return np.asarray(predictions, dtype=np.float64) * self.target_scale + self.target_mean


def interpolate(values: np.ndarray, fallback: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Fills missing values linearly between their neighbours in time.

    Args:
        values: (time, channels), NaN where missing.
        fallback: (channels), for channels without any value.
        times: (time,), increasing; `None` if the steps follow each other evenly.
    """
    missing = np.isnan(values)
    if not missing.any():
        return values
    filled, steps = values.copy(), np.arange(len(values)) if times is None else times
    for channel in np.flatnonzero(missing.any(axis=0)):
        gaps = missing[:, channel]
        if gaps.all():
            filled[:, channel] = fallback[channel]
        else:
            filled[gaps, channel] = np.interp(steps[gaps], steps[~gaps], values[~gaps, channel])
    return filled


def _checked_times(times: np.ndarray, values: np.ndarray, name: str) -> np.ndarray:
    times = np.asarray(times, dtype=np.float64)
    if times.shape != values.shape[:1] or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError(f"{name} has {len(values)} steps; it needs as many times, finite and increasing.")
    return times


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"Series {index}" if names is None else names[index]


def _as_matrix(values: np.ndarray, num_channels: int | None, name: str) -> np.ndarray:
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds something else than numbers: {error}") from error
    if values.ndim == 1 and num_channels in (None, 1):
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(f"{name} has the shape {values.shape}; it must be (time, channels).")
    return values


def _checked(values: np.ndarray, num_channels: int, name: str) -> np.ndarray:
    values = _as_matrix(values, num_channels, name)
    if values.shape[1] != num_channels:
        raise ValueError(f"{name} has {values.shape[1]} channels, but the training series have {num_channels}.")
    if len(values) == 0:
        raise ValueError(f"{name} has no step.")
    if np.isinf(values).any():
        step, channel = np.argwhere(np.isinf(values))[0]
        raise ValueError(
            f"{name} has the value {values[step, channel]} at step {step} (counted from 0) in channel {channel}. Correct "
            "it, or make it a missing value (NaN)."
        )
    return values
