"""Pictures of a run, with matplotlib, if it is installed."""

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.metrics.bottleneck import bottleneck, exchanged
from dbdask.metrics.call_time import STAGES, CallSeconds
from dbdask.metrics.history import BY_PART
from dbdask.metrics.time_spent import seconds_by_activity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRIP_INCHES = 1.6
"""Height of a picture below the main one."""


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

    The title names what takes most time. Below are the stages of the call, and the seconds that
    each part of a partitioned replica has exchanged, if the history has them.

    Raises
    ------
    ImportError
        matplotlib is not installed: names the extra that installs it.
    """
    call = CallSeconds.from_attributes(history.attrs)
    strips = (call is not None) + (BY_PART in history)
    heights = [4.0] + [STRIP_INCHES] * strips
    figure = _new_figure(figsize=(7, sum(heights)), layout="constrained")
    axes, *below = figure.subplots(1 + strips, squeeze=False, height_ratios=heights)[:, 0]
    _draw_activities(axes, history)
    if call is not None:
        _draw_call(below.pop(0), call)
    if below:
        _draw_parts(below.pop(0), exchanged(history))
    return figure


def _draw_activities(axes: "Axes", history: xr.Dataset) -> None:
    """Draw the share of each activity over the seconds of the run."""
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


def _draw_call(axes: "Axes", call: CallSeconds) -> None:
    """Draw the stages of a call, one after the other."""
    begin = 0.0
    for number, name in enumerate(STAGES):
        seconds = getattr(call, name)
        label = f"{name.replace('_', ' ')}, {seconds:.2g} s"
        color = "lightgray" if name == "training" else f"C{number}"
        axes.barh(0, seconds, left=begin, label=label, color=color)
        begin += seconds
    axes.set(xlabel="seconds of the call", yticks=[], xlim=(0, max(begin, 1e-9)))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="x-small")


def _draw_parts(axes: "Axes", seconds: Float64Array) -> None:
    """Draw the seconds of exchanging by part: the slowest part has the fewest."""
    names = [f"part {number}" for number in range(len(seconds))]
    axes.barh(names, seconds)
    axes.invert_yaxis()
    axes.set(xlabel="seconds of waiting for the other parts, and of sending to them")


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
