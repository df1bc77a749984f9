"""Sandblaster L-BFGS: a coordinator that never holds the parameters (section 4.2)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import Client

from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.data.examples import Examples
from dbdask.metrics.call_time import CallClock
from dbdask.models.model import Model
from dbdask.models.partition import partition_of
from dbdask.optim.lbfgs import Settings
from dbdask.progress import Progress
from dbdask.result import Result
from dbdask.run import arguments
from dbdask.run.concluding import ScaleNotice, conclude, setting_of
from dbdask.run.planning import plan_of, shared_arguments
from dbdask.run.resuming import open_checkpoint, settings_of
from dbdask.run.run import Run
from dbdask.run.session import client_for, watch
from dbdask.run.shared_arguments import Parameters, check_what_was_left_out, deviation_of
from dbdask.run.slow_callbacks import Callback
from dbdask.run.training import train
from dbdask.worker.batch_replica import SandblasterJob

PORTIONS = 64  # of a pass, if portion_size is not given: much less than 1/N of it each
LEAST_ROWS = 256  # of a portion: with fewer, adding up the gradients of a large model shows
MOST_ROWS = 1024  # of a minibatch: what the model sees at once
PORTION_BYTES = 32 * 2**20  # most stored bytes of a suggested portion


def sandblaster(
    model: Model,
    examples: Examples,
    *,
    client: Client | None = None,
    parameters: Parameters | None = None,
    iterations: int = 100,
    history_length: int = 10,
    tolerance: float = 1e-5,
    l2: float = 0.0,
    portion_size: int | None = None,
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
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    seed: int = 0,
) -> Result:
    """Train a model by L-BFGS over the whole data, spread over the cluster.

    Each evaluation is a pass: bundles of small portions go to whichever worker is free, what is
    late gets a backup copy elsewhere, and every example counts exactly once. Vectors stay in the
    shards; the coordinator sees their inner products.

    Parameters
    ----------
    model
        A `dbdask.Network`, or anything that keeps the `dbdask.Model` contract.
    examples
        What to train on.
    client
        The Dask client; None takes the current one, else a LocalCluster of one process a core.
    parameters
        Where to start, as in `downpour`; None asks the model.
    iterations
        Steps of L-BFGS, in all: also those before a `resume`.
    history_length
        Pairs of steps and changes of gradient that the method remembers.
    tolerance
        Stop when no component of the objective's gradient is larger in magnitude.
    l2
        The objective is the weighted mean loss plus `l2 / 2` times the squared norm of all
        parameters, biases included.
    portion_size
        Rows of a portion; None is a 64th of the data, within reason.
    replicas
        Model replicas; None is one a worker, following workers that come and go.
    shards
        Slices of the parameter server; None chooses by the size of the model.
    partitions
        Workers that one replica is cut over, as in `downpour`.
    shard_copies
        Copies of every shard, each on another worker. With 2 the loss of a worker costs one pass,
        not the iterations since the last snapshot; every bundle's gradient then travels twice.
    workers, shard_workers
        Where replicas and shards may live, as in `client.submit(workers=)`.
    validation
        Examples to validate on, beside training.
    validate_every
        None is each iteration; a duration, or a number of iterations.
    keep
        "last", or "best" by validation loss: which parameters the result has.
    checkpoint
        Path or URL of the checkpoint, a Zarr group that every worker can write: of one run at a
        time. It holds the
        history of L-BFGS too: a resumed run goes on as if it had not been broken off.
    snapshot_every
        Time between two snapshots.
    resume
        False, True (the checkpoint must exist), or "auto" (go on if it exists).
    callbacks
        Called with each `Record`, on the client; a callback that returns True stops the run.
    progress
        None: a bar on a terminal or in a notebook, else a line each 20 s to the logger `dbdask`,
        or to standard error if the program has not configured logging.
    seed
        Decides the initial parameters, and all that is random in the model.

    Returns
    -------
    Result
        The trained model with its history and the reason why the run stopped: `tolerance`,
        `iterations`, `precision` (the loss has converged to what float32 can tell apart),
        `search_failed`, `bad_gradients` (at the first point), `callback` or `interrupted`.

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
    _check_own(locals())
    shared = shared_arguments(locals())
    examples, validation, layout = shared.examples, shared.validation, shared.layout
    if l2 and layout.trained != ((0, layout.size),):
        raise ValueError(
            f"l2 must be 0 for a model with buffers, which no penalty may change, got {l2}"
        )
    portion_rows = portion_size or suggest_rows(len(examples), examples.row_bytes)
    batch_size = min(portion_rows, MOST_ROWS)
    partition = partition_of(model, partitions, batch_size)
    job = SandblasterJob(
        model,
        examples.worker_side(),
        validation.worker_side() if validation is not None else None,
        deviation_of(examples),
        batch_size,
        seed,
        None if partition is None else partition.cut,
    )
    settings = settings_of("sandblaster", model, examples) | {
        "history_length": history_length,
        "l2": l2,
        "seed": seed,
    }
    with (
        open_checkpoint(checkpoint, resume, settings) as opened,
        client_for(client, call) as connected,
    ):
        plan = plan_of(
            shared,
            connected,
            opened,
            job=job,
            batch_size=batch_size,
            settings=settings,
            partition=partition,
        )
        numbers = Settings(iterations, history_length, tolerance, l2)
        method = Sandblaster(numbers, examples.cut(portion_rows, 1), opened.last)
        run = Run(connected, plan, method, call)
        shown = Progress(progress, iterations, "iterations")
        watched: Sequence[Callback] = (ScaleNotice(run.tally), *callbacks)
        outcome = watch(connected, run, train(run), watched, shown)
    check_what_was_left_out(outcome)
    has_snapshot = run.snapshots.committed is not None
    outcome = conclude(
        outcome,
        setting_of("sandblaster", model, examples, run.tally, plan.path, keep, has_snapshot),
    )
    run.tally.note_call()
    return Result(model, examples, outcome.parameters, outcome.history, outcome.status)


def suggest_rows(rows: int, row_bytes: float) -> int:
    """Return the rows of a portion: a 64th of the data, but at least 256, and at most 32 MiB.

    Examples
    --------
    >>> suggest_rows(60_000, 785), suggest_rows(500, 785), suggest_rows(10**9, 785)
    (938, 256, 42744)
    """
    most = max(1, int(PORTION_BYTES / max(row_bytes, 1)))
    return min(max(LEAST_ROWS, math.ceil(rows / PORTIONS)), most)


def _check_own(given: Mapping[str, Any]) -> None:
    """Check the arguments that only Sandblaster has."""
    for name in ("iterations", "history_length"):
        arguments.at_least(name, given[name], 1)
    for name in ("tolerance", "l2"):
        arguments.not_negative(name, given[name])
    if given["portion_size"] is not None:
        arguments.at_least("portion_size", given["portion_size"], 1)
