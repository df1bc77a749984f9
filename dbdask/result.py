"""The result of a run: a trained model that predicts, scores, and can be saved."""

import math
import os
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import delayed

from dbdask.arrays import Float32Array
from dbdask.data.examples import Examples
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Data, Source
from dbdask.meanings import label_meaning, probability_meaning, value_meanings
from dbdask.metrics.history import History
from dbdask.metrics.scores import (
    Determination,
    Score,
    means_classes,
    score_minibatch,
)
from dbdask.models.layout import as_layout
from dbdask.models.model import Model
from dbdask.models.piecewise import PiecewiseNetwork
from dbdask.prediction import Predictor, chunks_of, may_have_gaps, predict_array
from dbdask.saving import Parts, SavedVector, save
from dbdask.saving import load as load_parts
from dbdask.status import Status
from dbdask.storage.checkpoint import VectorReference
from dbdask.stored_parameters import model_with, read_parameters, read_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EAGER_BYTES = 64 * 2**20  # parameters up to this size are read at once
BATCH_SIZE = 256
PORTION_ROWS = 64 * BATCH_SIZE


class Result:
    """A trained model, its training examples, and the history of the run.

    It works without any cluster, and after the cluster that trained it is gone.

    Attributes
    ----------
    model
        The model.
    status
        Why the run stopped: `.reason`, `.message`, `.ok`.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        parameters: Float32Array | VectorReference,
        history: History,
        status: Status,
    ) -> None:
        self.model = model
        self.examples = examples
        self.status = status
        self._vector = parameters
        self._history = history

    def __repr__(self) -> str:
        count = as_layout(self.model.layout).size
        return f"<dbdask.Result of {count:,} parameters, {self.status.reason}>"

    @property
    def history(self) -> xr.Dataset:
        """The records of the run, over `record`; `help(dbdask.Record)` explains the variables.

        Attributes have the seconds of the call that made the result: `seconds_starting` before the
        first minibatch, `seconds_training`, and `seconds_ending` after the training, which add up
        to the time of the whole call. The start is divided into `seconds_starting_checking`,
        `_cluster`, `_workers`, `_shards` and `_first_task`, the end into
        `seconds_ending_concluding`, `_parameters` and `_releasing`. A call that resumes a
        checkpoint begins them anew: `first_record` is its first record.
        """
        return self._history.to_dataset()

    def plot(self, what: str = "loss") -> "Figure":
        """Draw the run with matplotlib; return the figure, which notebooks show.

        Parameters
        ----------
        what
            "loss": the learning curve. "time": where the time went, with a sentence that names
            the bottleneck and what to change; below it the start and the end of the call, and for
            how long each part of a partitioned replica waited for the others.

        Raises
        ------
        ValueError
            `what` is neither.
        ImportError
            matplotlib is not installed.
        """
        if what not in ("loss", "time"):
            raise ValueError(f"what must be 'loss' or 'time', got {what!r}")
        from dbdask.plotting import learning_curve, time_spent

        return (time_spent if what == "time" else learning_curve)(self.history)

    @property
    def parameters(self) -> xr.Dataset:
        """One float32 variable for each named parameter, lazy if the model is above 64 MiB."""
        layout = as_layout(self.model.layout)
        vector = self._vector
        if isinstance(vector, VectorReference) and 4 * layout.size <= EAGER_BYTES:
            vector = read_part(vector, 0, layout.size)
        variables = {}
        for parameter, offset in zip(layout.parameters, layout.offsets, strict=True):
            if isinstance(vector, VectorReference):
                values: da.Array | Float32Array = _lazy(vector, offset, parameter.shape)
            else:
                values = vector[offset : offset + parameter.size].reshape(parameter.shape)
            variables[parameter.name] = (parameter.dims, values)
        return xr.Dataset(variables)

    @property
    def stored(self) -> VectorReference | None:
        """Where the flat vector is stored; None if this process holds it."""
        return self._vector if isinstance(self._vector, VectorReference) else None

    def vector(self) -> Float32Array:
        """Return the flat vector of all parameters: float32, (parameters,)."""
        return read_parameters(self._vector, as_layout(self.model.layout).size)

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """Score the model on examples, in this process.

        Returns
        -------
        dict
            `loss`: the mean loss as trained, without the penalty; and `accuracy` for labels, or
            `rmse` and `r2` for values, or neither if a model of your own has another number of
            outputs than the targets have elements. `loss` of classes is in nats. `rmse` is one
            number over all elements of all targets, each in its own units, so that the largest
            one dominates. `r2` has no units: it is found for each element, and averaged over the
            elements whose targets vary.

        Raises
        ------
        TypeError, ValueError
            `examples` are none, have no targets, or do not fit the training examples.
        DataError
            A value is wrong, or no example has a weight above 0.
        """
        if not isinstance(examples, Examples):
            raise TypeError(f"examples must be dbdask.Examples, got {type(examples).__name__}")
        prepared = examples.prepared_like(self.examples)
        if prepared.target_shape is None:
            raise ValueError("examples has no targets: evaluate needs targets to compare with")
        if prepared.has_labels and not self._tells_classes and not prepared.output_classes:
            prepared = prepared.with_classes(None)  # whole numbers, and one output: values
        model, vector = model_with(self.model, self._vector)
        batch_size = BATCH_SIZE
        if isinstance(model, PiecewiseNetwork):  # the fewer minibatches, the fewer reads
            batch_size = min(PORTION_ROWS, model.examples_at_once)
        portions = prepared.cut(PORTION_ROWS // batch_size * batch_size, batch_size).contiguous()
        scaling = self.examples.target_scaling
        deviation = 1.0 if scaling is None else scaling[1].ravel()
        determination = Determination()
        scratch, score = np.empty_like(vector), Score()
        with prepared.reader() as reader:
            for portion in portions:
                for batch in reader.minibatches(portion, batch_size):
                    score += score_minibatch(
                        model, vector, batch, scratch, deviation, determination
                    )
        summary = score.summary()
        return summary | ({"r2": determination.mean()} if "rmse" in summary else {})

    def predict(self, data: Data) -> xr.DataArray | xr.Dataset:
        """Predict lazily on data: a store, a Dataset or a DataFrame with the training inputs.

        Returns
        -------
        DataArray
            Named after the target, on the data's own dimensions, order, chunks and coordinates: the
            decoded label, or the value in the target's own units. It is NaN (or the declared
            missing label, which is written as such) at a position where no example can be formed.
            Numbers as labels are float64 if there may be such positions; a missing text is "".
            Integers that float64 cannot hold stay integers, and the attribute `missing_label` names
            the value that means missing. Values are float64 if scaled targets need it, else
            float32. Several targets give a Dataset. A model of your own with another number of
            outputs than the targets have elements gives an `output` dimension. The attributes
            `flag_values` and `flag_meanings` say what labels stand for, if the target had them. The
            prediction can be written as it is: it has none of the data's encodings, and where the
            lengths of the data's chunks differ, its chunks have the longest of them.

        Raises
        ------
        ValueError, TypeError
            `data` lacks an input, or has it in another shape.
        """
        recipe, source, predictor = self._on(data)
        chunks = chunks_of(data, recipe)
        if self._tells_classes:
            meaning = label_meaning(self.examples, self._loss, self._outputs, may_have_gaps(recipe))
            return predict_array(predictor, recipe, source, meaning, chunks)
        meanings = value_meanings(self.examples, self._outputs)
        arrays = {m.name: predict_array(predictor, recipe, source, m, chunks) for m in meanings}
        if len(arrays) == 1:
            return next(iter(arrays.values()))
        # A target that is a coordinate of the data is predicted, and so no coordinate here.
        return xr.Dataset({n: a.drop_vars(arrays, errors="ignore") for n, a in arrays.items()})

    def predict_proba(self, data: Data) -> xr.DataArray:
        """Predict the probability of every class lazily: as `predict`, with a `class` dimension.

        The probabilities are float32. Those of a model of your own are its outputs.

        Raises
        ------
        ValueError
            The model has no classes, or `data` does not fit it.
        """
        if not self._tells_classes:
            raise ValueError(
                "predict_proba needs a model of one label an example, whose loss is 'softmax' or "
                "'logistic'; predict gives the values of this one"
            )
        recipe, source, predictor = self._on(data)
        if "class" in recipe.along:
            raise ValueError(
                "predict_proba adds a dimension 'class', which is a sample dimension of data: "
                "rename that one with data.rename"
            )
        meaning = probability_meaning(self.examples, self._loss, self._outputs)
        return predict_array(predictor, recipe, source, meaning, chunks_of(data, recipe))

    def _on(self, data: Data) -> tuple[Recipe, Source, Predictor]:
        examples = self.examples.rebind(data)
        assert examples.source is not None
        predictor = Predictor(self.model, examples.worker_side(), self._vector)
        return examples.recipe, examples.source, predictor

    @property
    def _loss(self) -> str | None:
        return getattr(self.model, "loss", None)

    @property
    def _tells_classes(self) -> bool:
        """Whether the outputs are those of classes; one output of a user's loss is a value."""
        return self.examples.has_labels and means_classes(self._loss, self._outputs)

    @cached_property
    def _outputs(self) -> int:
        """The number of outputs for one example, by a trial if the model does not declare it."""
        declared = getattr(self.model, "output_shape", None)
        if declared is not None:
            return math.prod(declared)
        one = np.zeros((1, *self.examples.input_shape), np.float32)
        return np.asarray(self.model.predict(self.vector(), one)).size

    def detached(self) -> "Result":
        """Return the same result without the values of its examples: small when pickled.

        It predicts and scores as this one does, as a loaded result would.
        """
        examples = Examples.from_description(self.examples.description())
        return Result(self.model, examples, self._vector, self._history, self.status)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save the result as a Zarr group: parameters, layers, the description of the examples.

        A result that was loaded from `path` reads its parameters from the new group afterwards.

        Raises
        ------
        FileExistsError
            Something lies at `path` and `overwrite` is False; or it is no saved result.
        OSError
            `path` cannot be written, or its store hangs (then it is a `TimeoutError`).
        """
        parts = Parts(self.model, self.examples, self._vector, self._history, self.status)
        saved = save(parts, path, overwrite=overwrite)
        if isinstance(self._vector, SavedVector) and self._vector.is_beside(saved):
            self._vector = saved  # what it was loaded from is deleted


def load(path: str | os.PathLike[str], *, model: Model | None = None) -> Result:
    """Load a result that `Result.save` saved. It is data only: nothing in it is executed.

    Parameters
    ----------
    path
        Path or URL of the Zarr group.
    model
        The model, if it is not a `dbdask.Network`.

    Raises
    ------
    ResultError
        `path` holds no saved result, or a damaged one, or one of another model.
    """
    parts = load_parts(path, model=model)
    return Result(parts.model, parts.examples, parts.parameters, parts.history, parts.status)


def _lazy(reference: VectorReference, offset: int, shape: tuple[int, ...]) -> da.Array:
    """Return one parameter as a dask array, of which each piece is read and checked when needed.

    All pieces but the last have one length along the first dimension, as Zarr needs it.
    """
    rows = shape[0] if shape else 1
    width = math.prod(shape[1:])
    step = max(1, EAGER_BYTES // 4 // max(1, width))
    cuts = [*range(0, rows, step), rows]
    pieces = [
        da.from_delayed(
            delayed(read_part)(reference, offset + first * width, offset + last * width),
            ((last - first) * width,),
            np.float32,
        ).reshape((last - first, *shape[1:]) if shape else ())
        for first, last in pairwise(cuts)
    ]
    whole: da.Array = da.concatenate(pieces) if shape else pieces[0]
    return whole


__all__ = ["Result", "load"]
