"""Pictures of a run, with matplotlib where it is installed."""

from typing import Any

import numpy as np
import xarray as xr


def learning_curve(history: xr.Dataset) -> Any:
    """Draw loss, and the validation's scores, over the examples; returns the figure.

    Raises
    ------
    ImportError
        matplotlib is not installed: names the extra that brings it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'dbdask[plot]'") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
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
