"""Sandblaster L-BFGS as an estimator of scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from dbdask.algorithms.sandblaster import sandblaster
from dbdask.data.examples import Examples
from dbdask.models.model import Model
from dbdask.result import Result
from dbdask.run.slow_callbacks import Callback
from dbdask.sklearn.estimator import ModelOf
from dbdask.sklearn.kinds import NetworkClassifier


class SandblasterClassifier(NetworkClassifier):
    """A classifier whose network is trained by `dbdask.sandblaster`, L-BFGS over all the data.

    There is no `partial_fit`: each step of L-BFGS needs all the data.

    Parameters
    ----------
    hidden_layer_sizes, activation
        Units of each hidden dense layer, and their activation: "relu", "sigmoid", "tanh" or
        "linear". The last layer and its loss follow from y.
    model
        Instead of dense layers: any `dbdask.Model`, or a function `(input_shape, outputs)` that
        returns one.
    standardize
        Whether each feature is scaled to mean 0 and deviation 1, measured on the data of `fit` and
        applied to all data that are predicted.
    iterations, history_length, tolerance, l2, portion_size
        As for `dbdask.sandblaster`: how it trains, and how long.
    class_weight
        A mapping from labels to weights, or "balanced"; None: each sample counts alike.
    parameters
        Where to start: as for `dbdask.sandblaster`, such as another estimator's `result_`.
    client
        The Dask client; None takes the current one, else a cluster of one worker in this process,
        which is kept for later fits. Clones share it, and pickles do not carry it.
    replicas
        Model replicas; None is one a worker, and one in this process.
    shards, shard_copies, workers, shard_workers
        As for `dbdask.sandblaster`: where the parameters and the model replicas are.
    checkpoint, snapshot_every, resume
        As for `dbdask.sandblaster`: what survives a crash.
    callbacks, progress
        As for `dbdask.sandblaster`, but that nothing is shown by default.
    random_state
        The seed, as scikit-learn takes it. With `replicas=1`, as without a client, the same whole
        number gives the same result, to the bit.

    Attributes
    ----------
    classes_
        The labels, sorted.
    n_features_in_, feature_names_in_
        Number of features, and their names if they have any.
    result_
        The `dbdask.Result`, on class indices, without the values of the training data.
    n_iter_
        Iterations of L-BFGS.
    loss_curve_, loss_
        The objective after each iteration, and after the last one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SandblasterClassifier((), iterations=30, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        model: Model | ModelOf | None = None,
        standardize: bool = True,
        iterations: int = 100,
        history_length: int = 10,
        tolerance: float = 1e-5,
        l2: float = 0.0,
        portion_size: int | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        parameters: Any = None,
        client: Client | None = None,
        replicas: int | None = None,
        shards: int | None = None,
        shard_copies: int = 1,
        workers: Sequence[str] | str | None = None,
        shard_workers: Sequence[str] | str | None = None,
        checkpoint: str | None = None,
        snapshot_every: str | float = "30s",
        resume: bool | str = False,
        callbacks: Sequence[Callback] = (),
        progress: bool | None = False,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.model = model
        self.standardize = standardize
        self.iterations = iterations
        self.history_length = history_length
        self.tolerance = tolerance
        self.l2 = l2
        self.portion_size = portion_size
        self.class_weight = class_weight
        self.parameters = parameters
        self.client = client
        self.replicas = replicas
        self.shards = shards
        self.shard_copies = shard_copies
        self.workers = workers
        self.shard_workers = shard_workers
        self.checkpoint = checkpoint
        self.snapshot_every = snapshot_every
        self.resume = resume
        self.callbacks = callbacks
        self.progress = progress
        self.random_state = random_state

    def _train(
        self,
        model: Model,
        examples: Examples,
        *,
        client: Client,
        replicas: int | None,
        parameters: Any,
        seed: int,
        once: bool,
    ) -> Result:
        assert not once
        return sandblaster(
            model,
            examples,
            client=client,
            parameters=parameters,
            iterations=self.iterations,
            history_length=self.history_length,
            tolerance=self.tolerance,
            l2=self.l2,
            portion_size=self.portion_size,
            replicas=replicas,
            shards=self.shards,
            shard_copies=self.shard_copies,
            workers=self.workers,
            shard_workers=self.shard_workers,
            checkpoint=self.checkpoint,
            snapshot_every=self.snapshot_every,
            resume=self.resume,
            callbacks=self.callbacks,
            progress=self.progress,
            seed=seed,
        )

    def _curve(self, history: xr.Dataset) -> list[float]:
        loss = history["loss"].values
        found: list[float] = loss[np.isfinite(loss)].tolist()
        return found
