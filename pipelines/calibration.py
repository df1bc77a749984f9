"""Calibration: whether events come as often as probabilities say, as numbers and as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

BINS = 15
LEAST = 1e-4  # probabilities below are drawn here: rare events need a logarithmic axis


def without_weights(probability: np.ndarray, ratio: float) -> np.ndarray:
    """Return the probabilities that a training without class weights would have aimed at.

    Parameters
    ----------
    probability
        Of the rare class, (rows,), by a model for which each of its examples counted `ratio` times
        as much as one of the common class. Its odds are `ratio` times too high.

    Examples
    --------
    >>> without_weights(np.array([0.5]), 9.0)
    array([0.1])
    """
    return probability / (probability + ratio * (1 - probability))


def scores(targets: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Return AUC, Brier score, and the mean distance of the calibration curve from the diagonal.

    Both arrays are (rows,); a target is 1 in the rare class.
    """
    observed, predicted = calibration_curve(targets, probability, n_bins=BINS, strategy="quantile")
    return {
        "AUC": float(roc_auc_score(targets, probability)),
        "Brier score": float(brier_score_loss(targets, probability)),
        "calibration error": float(np.abs(observed - predicted).mean()),
    }


def draw(path: Path, targets: np.ndarray, predicted: Mapping[str, np.ndarray]) -> None:
    """Write a picture of how often events came where a model gave them a probability.

    Parameters
    ----------
    path
        The PNG file.
    targets
        (rows,), 1 in the rare class.
    predicted
        Probabilities, (rows,), by the name of the model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6.5), layout="constrained")
    curve, counts = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    ends = [float(np.clip(p, LEAST, 1).min()) for p in predicted.values()]
    edges = np.geomspace(min(ends), 1, 61)
    for name, probability in predicted.items():
        observed, mean = calibration_curve(targets, probability, n_bins=BINS, strategy="quantile")
        curve.plot(mean, observed, "o-", markersize=4, label=name)
        counts.hist(np.clip(probability, LEAST, 1), bins=edges, histtype="step", label=name)
    curve.plot([min(ends), 1], [min(ends), 1], color="grey", linewidth=0.8, label="perfect")
    curve.set(
        ylabel="share of events",
        title=f"Calibration on {len(targets):,} held-out rows, {targets.mean():.1%} events",
        xscale="log",
        yscale="log",
    )
    curve.legend()
    counts.set(xlabel="predicted probability", ylabel="rows")
    figure.savefig(path, dpi=120)
