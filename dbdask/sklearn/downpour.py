"""Downpour SGD as estimators of scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import xarray as xr
from distributed import Client

from dbdask.algorithms.downpour import downpour
from dbdask.data.examples import Examples
from dbdask.models.model import Model
from dbdask.optim.optimizers import Optimizer, adagrad
from dbdask.result import Result
from dbdask.run.slow_callbacks import Callback
from dbdask.sklearn.estimator import ModelOf, NetworkEstimator
from dbdask.sklearn.kinds import NetworkClassifier, NetworkRegressor

RATE = 0.03  # of Adagrad on scaled features: learns a small table in the default epochs
MOST_ROWS, LEAST_ROWS = 128, 4
STEPS = 32
"""Minibatches that an epoch of a small table has, where the batch size is "auto"."""


class DownpourEstimator(NetworkEstimator):
    """An estimator that `dbdask.downpour` trains."""

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        model: Model | ModelOf | None = None,
        standardize: bool = True,
        optimizer: Optimizer | None = None,
        batch_size: int | str = "auto",
        epochs: int = 20,
        n_fetch: int = 1,
        n_push: int = 1,
        local_optimizer: Optimizer | None = None,
        warmstart: int = 0,
        target_loss: float | None = None,
        clip_norm: float | None = None,
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
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.epochs = epochs
        self.n_fetch = n_fetch
        self.n_push = n_push
        self.local_optimizer = local_optimizer
        self.warmstart = warmstart
        self.target_loss = target_loss
        self.clip_norm = clip_norm
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
        if once and self.checkpoint is not None:
            raise ValueError(
                f"partial_fit keeps no checkpoint, got checkpoint={self.checkpoint!r}: pickle the "
                "estimator, or save its result_"
            )
        return downpour(
            model,
            examples,
            client=client,
            parameters=parameters,
            optimizer=adagrad(RATE) if self.optimizer is None else self.optimizer,
            batch_size=batch_size_for(self.batch_size, len(examples)),
            epochs=1 if once else self.epochs,
            n_fetch=self.n_fetch,
            n_push=self.n_push,
            local_optimizer=self.local_optimizer,
            warmstart=self.warmstart,
            target_loss=self.target_loss,
            replicas=replicas,
            shards=self.shards,
            shard_copies=self.shard_copies,
            workers=self.workers,
            shard_workers=self.shard_workers,
            checkpoint=self.checkpoint,
            snapshot_every=self.snapshot_every,
            resume=self.resume,
            clip_norm=self.clip_norm,
            callbacks=self.callbacks,
            progress=self.progress,
            seed=seed,
        )

    def _curve(self, history: xr.Dataset) -> list[float]:
        return loss_of_epochs(history)


def batch_size_for(batch_size: int | str, samples: int) -> int:
    """Return the batch size: of "auto" 128, but less if an epoch has few minibatches.

    Raises
    ------
    ValueError
        It is neither "auto" nor a number.

    Examples
    --------
    >>> batch_size_for("auto", 100_000), batch_size_for("auto", 1000), batch_size_for(64, 1000)
    (128, 31, 64)
    """
    if not isinstance(batch_size, str):
        return batch_size
    if batch_size != "auto":
        raise ValueError(f"batch_size must be a whole number or 'auto', got {batch_size!r}")
    return min(MOST_ROWS, max(LEAST_ROWS, samples // STEPS))


def loss_of_epochs(history: xr.Dataset) -> list[float]:
    """Return the mean loss of each epoch of a run that has one, from its records.

    Examples
    --------
    >>> history = xr.Dataset(
    ...     {"loss": ("record", [4.0, 1.0, 0.5, np.nan])},
    ...     coords={"epoch": ("record", [0, 0, 1, 1]), "examples": ("record", [10, 30, 40, 40])},
    ... )
    >>> loss_of_epochs(history)
    [2.0, 0.5]
    """
    loss, epoch = history["loss"].values, history["epoch"].values
    count = np.diff(history["examples"].values, prepend=0)
    known = np.isfinite(loss) & (count > 0)
    sums = np.bincount(epoch[known], loss[known] * count[known])
    totals = np.bincount(epoch[known], count[known])
    means: list[float] = (sums[totals > 0] / totals[totals > 0]).tolist()
    return means


class DownpourClassifier(NetworkClassifier, DownpourEstimator):
    """A classifier whose network is trained by `dbdask.downpour`, asynchronous SGD on a cluster.

    Parameters
    ----------
    hidden_layer_sizes, activation
        Units of each hidden dense layer, and their activation: "relu", "sigmoid", "tanh" or
        "linear". The last layer and its loss follow from y.
    model
        Instead of dense layers: any `dbdask.Model`, or a function `(input_shape, outputs)` that
        returns one.
    standardize
        Whether each feature is scaled to mean 0 and deviation 1, measured on the data of `fit` (of
        the first `partial_fit`) and applied to all data that are predicted.
    batch_size
        Examples of a minibatch; "auto" is 128, but less where an epoch would have fewer than 32.
    optimizer
        The update rule of the shards, as for `dbdask.downpour`; None is `adagrad(0.03)`.
    epochs, n_fetch, n_push, local_optimizer, warmstart, target_loss, clip_norm
        As for `dbdask.downpour`: how it trains, and how long.
    class_weight
        A mapping from labels to weights, or "balanced"; None: each sample counts alike.
    parameters
        Where to start: as for `dbdask.downpour`, such as another estimator's `result_`.
    client
        The Dask client; None takes the current one, else a cluster of one worker in this process,
        which is kept for later fits. Clones share it, and pickles do not carry it.
    replicas
        Model replicas; None is one a worker, and one in this process.
    shards, shard_copies, workers, shard_workers
        As for `dbdask.downpour`: where the parameters and the model replicas are.
    checkpoint, snapshot_every, resume
        As for `dbdask.downpour`: what survives a crash.
    callbacks, progress
        As for `dbdask.downpour`, but that nothing is shown by default.
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
        Epochs that were trained.
    loss_curve_, loss_
        The mean loss of each epoch, and of the last one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = DownpourClassifier(epochs=30, batch_size=16, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        model: Model | ModelOf | None = None,
        standardize: bool = True,
        optimizer: Optimizer | None = None,
        batch_size: int | str = "auto",
        epochs: int = 20,
        n_fetch: int = 1,
        n_push: int = 1,
        local_optimizer: Optimizer | None = None,
        warmstart: int = 0,
        target_loss: float | None = None,
        clip_norm: float | None = None,
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
        super().__init__(
            hidden_layer_sizes,
            activation,
            model=model,
            standardize=standardize,
            optimizer=optimizer,
            batch_size=batch_size,
            epochs=epochs,
            n_fetch=n_fetch,
            n_push=n_push,
            local_optimizer=local_optimizer,
            warmstart=warmstart,
            target_loss=target_loss,
            clip_norm=clip_norm,
            parameters=parameters,
            client=client,
            replicas=replicas,
            shards=shards,
            shard_copies=shard_copies,
            workers=workers,
            shard_workers=shard_workers,
            checkpoint=checkpoint,
            snapshot_every=snapshot_every,
            resume=resume,
            callbacks=callbacks,
            progress=progress,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on more data, from where the training before has ended.

        The scaling stays that of the first data. The optimiser's own state, such as Adagrad's
        sums, begins anew with each call.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes
            All labels that will come; needed by the first call, unless `fit` came before.

        Raises
        ------
        ValueError
            As for `fit`; or `classes` are missing, or others than before; or
            `class_weight="balanced"`, which needs all data, or a `checkpoint` was given.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all data, which partial_fit does not see: give a "
                "weight for each label"
            )
        if hasattr(self, "result_"):
            if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                raise ValueError(
                    f"classes must be those of the first call, {self.classes_.tolist()}, got "
                    f"{np.unique(classes).tolist()}"
                )
        elif classes is None:
            raise ValueError("classes must be given in the first call of partial_fit")
        return self._fit(X, y, sample_weight, classes=classes, once=True)


class DownpourRegressor(NetworkRegressor, DownpourEstimator):
    """A regressor whose network is trained by `dbdask.downpour`, asynchronous SGD on a cluster.

    Its loss is the squared error. With `standardize`, the targets are scaled as well while it
    trains; predictions are in the units of y. All parameters and attributes are those of
    `DownpourClassifier`, without `class_weight` and `classes_`.

    Examples
    --------
    >>> X = np.linspace(-2, 2, 400)[:, np.newaxis]
    >>> model = DownpourRegressor(epochs=30, batch_size=16, random_state=0)
    >>> model.fit(X, np.sin(X[:, 0])).score(X, np.sin(X[:, 0])) > 0.9
    True
    """

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on more data, from where the training before has ended.

        The scaling stays that of the first data. The optimiser's own state, such as Adagrad's
        sums, begins anew with each call.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Raises
        ------
        ValueError
            As for `fit`; or a `checkpoint` was given.
        """
        return self._fit(X, y, sample_weight, once=True)
