# Copyright 2026 The ea_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""EADCTransformerClassifier and EADCTransformerRegressor: aeon's checks, and what they promise beyond."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone


pytest.importorskip("aeon")

from aeon.testing.estimator_checking import check_estimator

from ea_hf import EADCTransformerClassifier, EADCTransformerRegressor


ESTIMATORS = (EADCTransformerClassifier, EADCTransformerRegressor)
TINY = {
    "n_epochs": 3, "d_model": 16, "n_blocks": 2, "n_heads": 2, "ffn_dim": 16, "batch_size": 4, "learning_rate": 1e-2,
    "random_state": 0,
}  # fmt: skip


def make_series(count: int = 12, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Series of 3 to 14 steps and two channels, with gaps; their class is the sign of the slope."""
    generator = np.random.default_rng(seed)
    series, labels = [], np.arange(count) % 2
    for label in labels:
        length = int(generator.integers(3, 15))
        values = generator.normal(0, 0.3, (2, length)) + (2 * label - 1) * np.linspace(0, 2, length)
        values[0, generator.integers(length)] = np.nan
        series.append(values)
    return series, labels


def labels_for(estimator: type, labels: np.ndarray) -> np.ndarray:
    """Classes, or numbers of many values, which aeon asks of a regression."""
    return labels if estimator is EADCTransformerClassifier else labels + np.arange(len(labels)) / len(labels)


def outputs_of(estimator: EADCTransformerClassifier | EADCTransformerRegressor, series: list) -> np.ndarray:
    return estimator.predict_proba(series) if hasattr(estimator, "predict_proba") else estimator.predict(series)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.slow_but("Regressor")
def test_checks_of_aeon(estimator):
    results = check_estimator(estimator, raise_exceptions=True)
    assert len(results) > 20 and all(str(result) == "PASSED" for result in results.values())


@pytest.mark.parametrize(
    ("estimator", "n_epochs", "learning_rate"),
    [(EADCTransformerClassifier, 100, 3e-3), (EADCTransformerRegressor, 30, 1e-3)],
)
@pytest.mark.slow_but("Regressor")
def test_recipe_by_default(estimator, n_epochs, learning_rate, monkeypatch):
    """As many epochs, at rates that fall along a cosine from the first one."""
    rates = []

    class NotedRAdam(torch.optim.RAdam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "RAdam", NotedRAdam)
    series, labels = make_series()
    default = TINY | {"n_epochs": None, "learning_rate": None, "n_blocks": 1}
    fitted = estimator(**default).fit(series, labels_for(estimator, labels))
    assert len(fitted.losses_) == n_epochs
    steps = 3 * n_epochs  # of 12 series, 4 each
    expected = learning_rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)
    assert fitted.model_.config.pooling_type == "mean"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_series_is_predicted_as_in_a_batch(estimator):
    series, labels = make_series()
    fitted = estimator(**TINY).fit(series, labels_for(estimator, labels))
    together = outputs_of(fitted, series)
    assert np.isfinite(together).all() and together.std(axis=0).min() > 1e-3
    alone = np.concatenate([outputs_of(fitted, [one]) for one in series])
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.slow_but("Regressor")
def test_random_state_decides_everything(estimator):
    series, labels = make_series()
    labels = labels_for(estimator, labels)
    state = torch.get_rng_state()
    first = estimator(**TINY).fit(series, labels)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = clone(first).fit(series, labels)
    other = estimator(**TINY | {"random_state": 1}).fit(series, labels)
    assert np.array_equal(outputs_of(first, series), outputs_of(again, series))
    assert not np.array_equal(outputs_of(first, series), outputs_of(other, series))
    copied = pickle.loads(pickle.dumps(first))
    assert np.array_equal(outputs_of(first, series), outputs_of(copied, series))


@pytest.mark.slow
def test_a_classifier_learns_and_keeps_names_of_classes():
    series, labels = make_series(40)
    names = np.array(["down", "up"])
    fitted = EADCTransformerClassifier(**TINY | {"n_epochs": 15}).fit(series, names[labels])
    test, truth = make_series(40, seed=1)
    assert fitted.score(test, names[truth]) > 0.9
    assert fitted.predict_proba(test).sum(axis=1) == pytest.approx(1)
    assert fitted.losses_[-1] < fitted.losses_[0]


def test_a_regressor_predicts_in_the_units_of_its_targets():
    series, labels = make_series(40)
    targets = 1000 + 50.0 * labels + np.arange(40) / 40
    fitted = EADCTransformerRegressor(**TINY | {"n_epochs": 15}).fit(series, targets)
    test, truth = make_series(40, seed=1)
    assert fitted.score(test, 1000 + 50.0 * truth + np.arange(40) / 40) > 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hard_series_give_finite_outputs(estimator):
    """Of one step, longer than in training, constant, and with a channel or everything missing."""
    series, labels = make_series()
    fitted = estimator(**TINY).fit([*series, np.full((2, 1), 3.0)], labels_for(estimator, np.append(labels, 1)))
    hard = [np.ones((2, 1)), np.ones((2, 40)), np.full((2, 5), np.nan), np.array([[np.nan] * 3, [1.0, 2, 3]])]
    assert np.isfinite(outputs_of(fitted, hard)).all()
    constant = estimator(**TINY).fit([np.ones((1, 4))] * 4, labels_for(estimator, np.array([0, 1, 0, 1])))
    assert np.isfinite(outputs_of(constant, [np.ones((1, 4))])).all()


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"n_epochs": 0}, "`n_epochs` is 0; it must be a whole number, at least 1"),
        ({"n_epochs": "3"}, "`n_epochs` is '3'; it must be a whole number, at least 1"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5; it must be a whole number, at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; it must be a positive number"),
        ({"weight_decay": -1.0}, "`weight_decay` is -1.0"),
        ({"attention_ratio": 1.5}, "`attention_key_ratio` is 1.5"),
        ({"ea_conv_weight": 2.0}, "`ea_conv_weight` is 2.0"),
        ({"max_steps": 0}, "`max_steps` is 0"),
    ],
)
def test_values_that_no_model_can_have(parameters, message):
    series, labels = make_series()
    with pytest.raises(ValueError, match=message):
        EADCTransformerClassifier(**TINY | parameters).fit(series, labels)


def test_series_that_cannot_be_used():
    series, labels = make_series()
    with pytest.raises(ValueError, match=r"Series 1 has the value inf at step 0 \(counted from 0\) in channel 1"):
        EADCTransformerClassifier(**TINY).fit([series[0], np.array([[0.0], [np.inf]]), *series[2:]], labels)
    fitted = EADCTransformerClassifier(**TINY).fit(series, labels)
    with pytest.raises(ValueError, match="different number of channels"):
        fitted.predict([np.zeros((3, 5))])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("empty", "message"),
    [
        ([], "X holds no series"),
        (np.zeros((0, 2, 5)), r"X holds no series, its shape is \(0, 2, 5\)"),
        (np.zeros((12, 2, 0)), r"Series 0 of X has the shape \(2, 0\)"),
        (np.zeros((12, 0, 5)), r"Series 0 of X has the shape \(0, 5\)"),
        ([np.ones((2, 3))] * 11 + [np.zeros((2, 0))], r"Series 11 of X has the shape \(2, 0\)"),
    ],
)
def test_without_series_or_values_nothing_is_learned_or_predicted(estimator, empty, message):
    series, labels = make_series()
    with pytest.raises(ValueError, match=message):
        estimator(**TINY).fit(empty, labels[: len(empty)])
    fitted = estimator(**TINY | {"n_epochs": 1}).fit(series, labels_for(estimator, labels))
    with pytest.raises(ValueError, match=message):
        fitted.predict(empty)
    with pytest.raises(ValueError, match="All values of X are missing"):
        estimator(**TINY).fit(np.full((12, 2, 5), np.nan), labels_for(estimator, labels))


@pytest.mark.slow
def test_the_package_does_not_need_aeon():
    code = (
        "import sys; sys.modules['aeon'] = None\n"
        "import ea_hf; ea_hf.EADCTransformerForClassification\n"
        "try: ea_hf.EADCTransformerClassifier\n"
        "except ImportError as error: print('needs', 'aeon' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "needs True\n"
