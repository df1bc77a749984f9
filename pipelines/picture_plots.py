"""Pictures of what an image network has learnt: which classes it confuses, and its filters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MOST_SHOWN = 20
"""Classes whose numbers and names are shown."""
MOST_MAPS = 4
MOST_POSITIONS = 8
"""Positions a side at which filters are shown."""


def confusion(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many pictures of each class (rows) are taken for each class (columns).

    Parameters
    ----------
    targets, predicted
        Labels, (pictures,).
    classes
        How many there are.
    """
    pairs = targets.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def draw_confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix: of each class, which percentage is taken for which.

    Parameters
    ----------
    path
        Where the picture is written.
    counts
        Pictures by true class (rows) and predicted class (columns).
    classes
        Their names.
    """
    from matplotlib.figure import Figure

    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = min(12.0, 3.0 + 0.5 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    # Most pictures are on the diagonal: a root shows the few beside it, too.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="% of the pictures of a class")
    bar.set_ticks([0, 1, 3, 5, 7, 10], labels=["0", "1", "9", "25", "49", "100"])
    if len(classes) <= MOST_SHOWN:
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, classes)
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 40 else "black"
                text = f"{share:.1f}" if share < 10 else f"{share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    accuracy = np.trace(counts) / max(1, counts.sum())
    axes.set(
        xlabel="predicted", ylabel="true", title=f"held-out pictures, {accuracy:.1%} of them right"
    )
    figure.savefig(path, dpi=120)


def draw_filters(path: Path, weights: np.ndarray, start: np.ndarray) -> None:
    """Draw the filters of a locally connected layer, and what training has added to them.

    Unlike those of a convolution, the filters of a map differ from position to position: each is
    drawn where it looks at the picture. Colours are scaled to the largest weights of each panel;
    three channels are shown as red, green and blue.

    Parameters
    ----------
    path
        Where the picture is written.
    weights, start
        Now, and before training: (rows, columns, maps, rows of a patch, columns of a patch,
        channels).
    """
    from matplotlib.figure import Figure

    maps = min(MOST_MAPS, weights.shape[2])
    figure = Figure(figsize=(3.2 * maps, 7.2), layout="constrained")
    kinds = {"filters": weights, "added by training": weights - start}
    for row, (kind, values) in zip(
        figure.subplots(2, maps, squeeze=False), kinds.items(), strict=True
    ):
        for number, panel in enumerate(row):
            shown = mosaic(values[:, :, number])
            panel.imshow(shown, cmap="RdBu_r", vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(f"map {number}: {kind}", fontsize="medium")
            panel.set_axis_off()
    figure.suptitle("The first layer's filters, each where it looks at the picture; white is zero")
    figure.savefig(path, dpi=120)


def mosaic(weights: np.ndarray) -> np.ndarray:
    """Return filters side by side, from 0 to 1 with 0.5 for zero: (rows, columns, channels).

    There is one channel, or three.

    Parameters
    ----------
    weights
        (rows, columns, rows of a patch, columns of a patch, channels).
    """
    chosen = weights
    for axis in (0, 1):
        length = chosen.shape[axis]
        places = np.unique(np.linspace(0, length - 1, min(MOST_POSITIONS, length)).astype(int))
        chosen = chosen.take(places, axis=axis)
    if chosen.shape[-1] != 3:
        chosen = chosen.mean(axis=-1, keepdims=True)
    rows, columns, height, width, channels = chosen.shape
    bound = max(1e-12, float(np.quantile(np.abs(chosen), 0.99)))
    framed = np.full((rows, columns, height + 1, width + 1, channels), np.nan)
    framed[:, :, :height, :width] = np.clip(0.5 + chosen / (2 * bound), 0, 1)
    joined = framed.transpose(0, 2, 1, 3, 4).reshape(rows * (height + 1), -1, channels)
    if channels == 3:
        return np.nan_to_num(joined, nan=1.0)
    return joined
