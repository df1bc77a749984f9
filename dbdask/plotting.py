"""Pictures of a run, with matplotlib where it is installed."""

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.metrics.time_spent import bottleneck, seconds_by_activity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_curve(history: xr.Dataset) -> "Figure":
    """Draw the loss and the scores of validation over the examples; return the figure.

    Raises
    ------
    ImportError
        matplotlib is not installed: names the extra that installs it.
    """
    figure = _new_figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    examples = history["examples"].values
    for name, style in (("loss", "-"), ("validation_loss", "o-")):
        if name in history:
            good = np.isfinite(history[name].values)
            values, label = history[name].values[good], name.replace("_", " ")
            axes.plot(examples[good], values, style, label=label)
    axes.set(xlabel="examples", ylabel="loss")
    handles, labels = axes.get_legend_handles_labels()
    for name in ("validation_accuracy", "validation_rmse"):
        if name in history:
            right = axes.twinx()
            good = np.isfinite(history[name].values)
            label = name.replace("_", " ")
            (line,) = right.plot(examples[good], history[name].values[good], "s--C2", label=label)
            right.set_ylabel(label)
            handles, labels = [*handles, line], [*labels, label]
    axes.legend(handles, labels, loc="center right")
    axes.grid(alpha=0.3)
    return figure


def time_spent(history: xr.Dataset) -> "Figure":
    """Draw the share of each activity in the time of a run; return the figure.

    The title names what takes most time.

    Raises
    ------
    ImportError
        matplotlib is not installed: names the extra that installs it.
    """
    figure = _new_figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    parts = seconds_by_activity(history)
    edges = np.linspace(0, len(history["record"]), min(50, len(history["record"])) + 1).astype(int)
    spent = {name: np.diff(_at(values, edges)) for name, values in parts.items()}
    total = np.maximum(np.sum(list(spent.values()), axis=0), 1e-12)
    begin = np.concatenate([[0.0], history["seconds"].values])[edges]
    below = np.zeros(len(edges) - 1)
    for name, values in spent.items():
        share = 100 * values / total
        axes.bar(
            begin[:-1], share, np.diff(begin), bottom=below, align="edge", label=name, linewidth=0
        )
        below += share
    axes.set(xlabel="seconds", ylabel="share of the time (%)", ylim=(0, 100))
    axes.set_title(bottleneck(history), fontsize="medium", wrap=True)
    if spent:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _at(values: Float64Array, edges: np.ndarray) -> Float64Array:
    """Return running totals at the edges between groups of records, 0 before the first."""
    return np.concatenate([np.zeros(1), values]).take(edges)


def _new_figure(**options: Any) -> "Figure":
    """Return a figure that shows itself once in a notebook, and needs no display elsewhere."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'dbdask[plot]'") from error

    class Curve(Figure):
        """A figure that a notebook shows, also if matplotlib was not set up there."""

        def _ipython_display_(self) -> None:
            from IPython.display import Image, display

            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            display(Image(buffer.getvalue()))
            if "matplotlib.pyplot" in sys.modules:
                # The backend shows all open figures after a cell, and must not show this again.
                sys.modules["matplotlib.pyplot"].close(self)

    if not _is_inline():
        return Curve(**options)
    from matplotlib import pyplot

    return pyplot.figure(FigureClass=Curve, **options)


def _is_inline() -> bool:
    """Whether this is a notebook whose backend shows pyplot's figures after each cell."""
    if "ipykernel" not in sys.modules:
        return False
    import matplotlib

    return "inline" in matplotlib.get_backend()
