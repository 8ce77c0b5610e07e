"""Reliability and temperature scaling, against SciPy, scikit-learn and the definitions written as loops."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn import metrics
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from src.deploy.confidence import drawn_halves, fit_confidence
from src.deploy.verify import Expected
from src.evaluation.calibration import fit_temperature, fit_threshold
from src.evaluation.evaluate import softmax, summarize
from src.evaluation.reliability import reliability_of


@pytest.fixture(scope="module")
def overconfident():
    """Labels that are drawn with softmax(z), and the logits 2.5 z: the right temperature is 2.5."""
    generator = np.random.default_rng(3)
    z = generator.normal(size=(6000, 7)) * 1.5
    labels = (softmax(z).cumsum(1) > generator.random((6000, 1))).argmax(1)
    return (2.5 * z).astype(np.float32), labels


def test_temperature_is_found(overconfident):
    logits, labels = overconfident
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(2.5, rel=0.05)

    def loss(temperature):  # scikit-learn's loss, of labels that are smoothed by hand
        smoothed = np.full(logits.shape, 1 / (len(labels) + 2) / (logits.shape[1] - 1))
        smoothed[np.arange(len(labels)), labels] = 1 - 1 / (len(labels) + 2)
        return -(smoothed * log_softmax(logits.astype(np.float64) / temperature, axis=1)).sum(1).mean()

    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x, rel=1e-4)


def test_temperature_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1500, 5))
    labels = (x[:, :3] + generator.normal(size=(1500, 3))).argmax(1)
    model = LogisticRegression().fit(x[:500], labels[:500])
    model.coef_, model.intercept_ = model.coef_ * 4, model.intercept_ * 4
    calibrated = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[500:], labels[500:])
    temperature = fit_temperature(model.decision_function(x[500:]), labels[500:])
    expected = calibrated.predict_proba(x)
    np.testing.assert_allclose(softmax(model.decision_function(x) / temperature), expected, atol=3e-3)


def test_temperature_stays_finite_if_every_image_is_right():
    logits = np.eye(4, dtype=np.float32)[np.arange(40) % 4] * 3
    assert 1 / 20 < fit_temperature(logits, np.arange(40) % 4) < 1


def test_ece_is_its_definition(overconfident):
    logits, labels = overconfident
    probabilities = softmax(logits)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert reliability_of(confidence, right).ece == pytest.approx(ece)
    parts = [(None, labels[i : i + 500], logits[i : i + 500]) for i in range(0, 6000, 500)]
    assert summarize(parts).reliability.ece == pytest.approx(ece)
    row = summarize(parts).reliability.rows()[-1]
    inside = confidence > 14 / 15
    assert (row["images"], row["accuracy"]) == (inside.sum(), pytest.approx(right[inside].mean()))
    assert row["confidence"] == pytest.approx(confidence[inside].mean())


def test_threshold_keeps_the_stated_share():
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.95])
    right = np.array([True] * 10 + [False])
    assert fit_threshold(confidence, right, 0.8) == 0.3
    assert fit_threshold(confidence, right, 0.81) == 0.2
    assert fit_threshold(confidence, right, 1.0) == 0.1
    assert fit_threshold(confidence, right, 0.0) == 1.0


def test_confidence_is_tested_on_other_images(overconfident):
    logits, labels = overconfident
    found = fit_confidence(Expected(labels, logits), 0.9)
    assert (found.fitted_images, found.tested_images) == (3000, 3000)
    # Wrong labels of the images for the fit change the fit, and not the images for the test.
    (fitted, tested), temperature = drawn_halves(6000), found.temperature
    assert sorted([*fitted, *tested]) == list(range(6000))
    probabilities = softmax(logits[tested] / temperature)
    assert found.nll_after == pytest.approx(metrics.log_loss(labels[tested], probabilities, labels=range(7)))
    assert found.nll_before == pytest.approx(metrics.log_loss(labels[tested], softmax(logits[tested]), labels=range(7)))
    assert found.nll_after < found.nll_before
    assert found.ece_after < 0.03 < 0.1 < found.ece_before
    right, sure = probabilities.argmax(1) == labels[tested], probabilities.max(1) >= found.threshold
    assert found.tested_kept_right == pytest.approx(sure[right].mean())
    assert found.tested_kept_right == pytest.approx(0.9, abs=0.02)
    assert found.tested_refused_wrong == pytest.approx((~sure)[~right].mean())
    assert fit_confidence(Expected(labels[:199], logits[:199]), 0.9) is None


def test_both_halves_have_images_of_all_classes():
    """The classes alternate, as they do where a tool has sorted the images in turns."""
    labels = np.tile([0, 1], 150)
    for half in drawn_halves(300):
        assert 50 < labels[half].sum() < 100
