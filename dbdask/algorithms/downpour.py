"""Downpour SGD: model replicas train on portions and push to the parameter server (section 4.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Client

from dbdask.algorithms.downpour_method import Downpour
from dbdask.data.examples import Examples
from dbdask.metrics.call_time import CallClock
from dbdask.models.model import Model
from dbdask.models.partition import partition_of
from dbdask.optim.optimizer_checks import checked_optimizer, kept_of
from dbdask.optim.optimizers import Optimizer, Sgd, adagrad
from dbdask.progress import Progress
from dbdask.result import Result
from dbdask.run import arguments
from dbdask.run.concluding import ScaleNotice, conclude, setting_of
from dbdask.run.planning import plan_of, shared_arguments
from dbdask.run.resuming import digest_of, open_checkpoint, settings_of
from dbdask.run.run import Run
from dbdask.run.session import client_for, watch
from dbdask.run.shared_arguments import Parameters, check_what_was_left_out, deviation_of
from dbdask.run.slow_callbacks import Callback
from dbdask.run.training import train
from dbdask.schedule import policies
from dbdask.schedule.portions import suggest_portion_rows
from dbdask.worker.portion_order import DownpourJob


def downpour(
    model: Model,
    examples: Examples,
    *,
    client: Client | None = None,
    parameters: Parameters | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int = 128,
    epochs: int = 1,
    n_fetch: int = 1,
    n_push: int = 1,
    local_learning_rate: float | None = None,
    local_optimizer: Optimizer | None = None,
    warmstart: int = 0,
    target_loss: float | None = None,
    replicas: int | None = None,
    shards: int | None = None,
    partitions: int = 1,
    shard_copies: int = 1,
    workers: Sequence[str] | str | None = None,
    shard_workers: Sequence[str] | str | None = None,
    validation: Examples | None = None,
    validate_every: int | str | None = None,
    keep: str = "last",
    checkpoint: str | None = None,
    snapshot_every: str | float = "30s",
    resume: bool | str = False,
    clip_norm: float | None = None,
    max_refused: int = 10,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    seed: int = 0,
) -> Result:
    """Train a model by asynchronous stochastic gradient descent over the cluster.

    Replicas fetch parameters from the shards, compute the mean gradient of a minibatch, and push
    it; each shard applies the optimiser to its own slice. Nothing waits for another replica.

    Parameters
    ----------
    model
        A `dbdask.Network`, or anything that keeps the `dbdask.Model` contract.
    examples
        What to train on.
    client
        The Dask client; None takes the current one, else a LocalCluster of one process a core.
    parameters
        Where to start: a `Result`, its `.parameters`, or a flat vector; None asks the model. Of a
        `Result` above 64 MiB that is stored where the workers can read it, each shard reads its
        slice, and this process nothing.
    optimizer
        `sgd`, `momentum`, `nesterov`, `adagrad` or `adam`, or an object of your own that keeps
        `dbdask.Optimizer`; None is `adagrad(0.01)`.
    batch_size
        Examples of a minibatch.
    epochs
        Passes over the data, in all: also those before a `resume`.
    n_fetch, n_push
        Minibatches between two fetches, and between two pushes of the accrued gradient.
    local_learning_rate
        Rate of the replica's own steps between two fetches; None is the optimiser's rate for
        `sgd` (of a schedule, its first one) and none for the others. Without effect if
        `n_fetch` is 1.
    local_optimizer
        None: replicas push accrued gradients, as the paper does. A rule such as `adam(1e-3)`:
        each replica steps its own copy of the parameters with it, and pushes the displacement
        (fetched minus local parameters), to which the shards apply `optimizer`. With
        `sgd(1.0)` in the shards, one replica makes the steps of a single process; with
        `nesterov(0.7, momentum=0.9)` and `n_fetch = n_push` of some dozens this is DiLoCo's
        outer step, without waiting for other replicas. The rule's state belongs to the replica:
        a checkpoint does not keep it.
    warmstart
        Minibatches that one lone replica trains before the others are released.
    target_loss
        Stop when the validation loss (else the training loss) is at most this.
    replicas
        Model replicas; None is one a worker, following workers that come and go.
    shards
        Slices of the parameter server; None chooses by the size of the model.
    partitions
        Workers that one replica is cut over: each holds a part of the model, and they exchange what
        crosses the cuts. Only a `dbdask.Network` can be cut. With partitions, `replicas` counts
        such groups of workers, and is the most that work at a time. A model that takes more than a
        quarter of a process's memory is validated, and predicts, with pieces of its parameters;
        `checkpoint` keeps one above 1 GiB.
    shard_copies
        Copies of every shard, each on another worker. With 2 the loss of a worker loses no update
        that was acknowledged; every push then travels twice.
    workers, shard_workers
        Where replicas and shards may live, as in `client.submit(workers=)`.
    validation
        Examples to validate on, beside training.
    validate_every
        None is each epoch; a duration, or a number of minibatches.
    keep
        "last", or "best" by validation loss: which parameters the result has.
    checkpoint
        Path or URL of the checkpoint, a Zarr group that every worker can write: of one run at a
        time.
    snapshot_every
        Time between two snapshots.
    resume
        False, True (the checkpoint must exist), or "auto" (go on if it exists).
    clip_norm
        Largest Euclidean norm of a minibatch's mean gradient.
    max_refused
        Bad gradients (not finite) after which the run stops.
    callbacks
        Called with each `Record`, on the client; a callback that returns True stops the run.
    progress
        None: a bar on a terminal or in a notebook, else a line each 20 s to the logger `dbdask`,
        or to standard error if the program has not configured logging.
    seed
        Decides initial parameters, the order of portions, and every minibatch.

    Returns
    -------
    Result
        The trained model with its history and the reason why the run stopped.

    Warns
    -----
    TrainingWarning
        The run ended otherwise than it was asked to, or the inputs should be scaled: with what to
        change.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, or does not fit the others: before work begins.
    DataError
        Values were found wrong when they were read.
    ModelError
        The model does not keep its contract, or a layer of it; `dbdask.check_model` says more.
    WorkerError
        A worker cannot take part, none is left, or some work failed wherever it was tried.
    CheckpointError
        The checkpoint is there, is not, is of another run or in use by one, is damaged, or cannot
        be read or written.
    ShardLost
        A shard was lost with all its copies, and there is no `checkpoint` to rebuild it from; or
        the scheduler was lost.
    """
    call = CallClock()
    optimizer = adagrad(0.01) if optimizer is None else optimizer
    _check_own(locals())
    shared = shared_arguments(locals())
    examples, validation, layout = shared.examples, shared.validation, shared.layout
    partition = partition_of(model, partitions, batch_size)
    local_rate = _local_rate(local_learning_rate, optimizer)
    job = DownpourJob(
        model,
        examples.worker_side(),
        validation.worker_side() if validation is not None else None,
        deviation_of(examples),
        batch_size,
        n_fetch,
        n_push,
        local_rate,
        local_optimizer,
        layout.trained,
        clip_norm,
        max_refused,
        seed,
        optimizer,
        None if partition is None else partition.cut,
    )
    portion_rows = suggest_portion_rows(len(examples), examples.row_bytes, layout.size, batch_size)
    settings = settings_of("downpour", model, examples) | {
        "optimizer": kept_of(optimizer),
        "batch_size": batch_size,
        "seed": seed,
        "portion_rows": portion_rows,
        "cut": digest_of(examples.cut(portion_rows, batch_size)),
    }
    with (
        open_checkpoint(checkpoint, resume, settings) as opened,
        client_for(client, call) as connected,
    ):
        last = opened.last
        portion_rows = last.state["portion_rows"] if last else portion_rows
        plan = plan_of(
            shared,
            connected,
            opened,
            job=job,
            batch_size=batch_size,
            settings=settings | {"portion_rows": portion_rows},
            target_loss=target_loss,
            partition=partition,
        )
        method = Downpour(
            optimizer,
            examples.cut(portion_rows, batch_size),
            seed,
            epochs=epochs,
            warmstart=warmstart,
            target_loss=target_loss if validation is None else None,
            max_refused=max_refused,
            replica_bytes=policies.replica_bytes(
                plan.replica_size,
                n_fetch,
                n_push,
                None if local_optimizer is None else len(local_optimizer.slots),
            ),
            last=last,
        )
        run = Run(connected, plan, method, call)
        shown = Progress(progress, epochs * len(examples))
        watched: Sequence[Callback] = (ScaleNotice(run.tally), *callbacks)
        outcome = watch(connected, run, train(run), watched, shown)
    check_what_was_left_out(outcome)
    has_snapshot = run.snapshots.committed is not None
    outcome = conclude(
        outcome,
        setting_of("downpour", model, examples, run.tally, plan.path, keep, has_snapshot),
    )
    run.tally.note_call()
    return Result(model, examples, outcome.parameters, outcome.history, outcome.status)


def _check_own(given: Mapping[str, Any]) -> None:
    """Check the arguments that only Downpour has."""
    for name in ("batch_size", "epochs", "n_fetch", "n_push", "max_refused"):
        arguments.at_least(name, given[name], 1)
    arguments.at_least("warmstart", given["warmstart"], 0)
    for name in ("clip_norm", "local_learning_rate"):
        if given[name] is not None:
            arguments.positive(name, given[name])
    if given["target_loss"] is not None:
        arguments.finite("target_loss", given["target_loss"])
    checked_optimizer(given["optimizer"])
    if given["local_optimizer"] is not None:
        checked_optimizer(given["local_optimizer"], "local_optimizer")
        if given["local_learning_rate"] is not None:
            raise ValueError(
                "local_learning_rate is of steps without local_optimizer, got "
                f"local_learning_rate={given['local_learning_rate']} and "
                f"local_optimizer={given['local_optimizer']!r}: give one of them"
            )


def _local_rate(given: float | None, optimizer: Optimizer) -> float:
    """The rate of a replica's local steps: the shards' rule is not known to replicas."""
    if given is not None:
        return float(given)
    return optimizer.rate(0) if type(optimizer) is Sgd else 0.0
