"""The plan of a run, made from the arguments that `downpour` and `sandblaster` share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
from distributed import Client

from dbdask.data.block_provider import BlockProvider
from dbdask.data.examples import Examples
from dbdask.models.buffers import updated_ranges
from dbdask.models.layout import Layout, as_layout
from dbdask.models.model import Model
from dbdask.models.partition import Partition, can_be_cut, partition_of
from dbdask.rpc.clients import check_client
from dbdask.run import arguments
from dbdask.run.concluding import blind_loss
from dbdask.run.fitting import check_fit, targets_for
from dbdask.run.plan import Plan, SavedState
from dbdask.run.resuming import OpenCheckpoint, check_can_begin
from dbdask.run.shared_arguments import (
    check_named,
    check_shared,
    starting_point,
    validation_cut,
    validation_interval,
    worker_names,
)
from dbdask.worker.initial import FromStored


@dataclass(frozen=True, kw_only=True)
class SharedArguments:
    """The arguments of both algorithms, checked and converted. Nothing has touched the cluster."""

    model: Model
    layout: Layout
    """How the model's parameters lie in the flat vector."""
    examples: Examples
    """With targets as the model's loss takes them."""
    validation: Examples | None
    """Scaled and labelled as `examples` are."""
    start: np.ndarray | FromStored | None
    """First parameters, float32 of shape (layout.size,), or where they are stored; None asks the
    model."""
    replicas: int | None
    shards: int | None
    shard_copies: int
    workers: tuple[str, ...] | None
    shard_workers: tuple[str, ...] | None
    validate_steps: int | None
    validate_seconds: float | None
    keep: str
    snapshot_seconds: float
    seed: int


def shared_arguments(given: Mapping[str, Any]) -> SharedArguments:
    """Check and convert the arguments that both algorithms have.

    Parameters
    ----------
    given
        The arguments of an algorithm by name, as the user gave them.

    Raises
    ------
    TypeError, ValueError
        An argument is not what it must be, or does not fit the others.
    CheckpointError
        The store of the first parameters hangs.
    """
    check_shared(given)
    model: Model = given["model"]
    validation: Examples | None = given["validation"]
    validate_steps, validate_seconds = validation_interval(given["validate_every"], validation)
    layout = as_layout(model.layout)
    check_fit(model, given["examples"], validation)
    examples = targets_for(model, given["examples"])
    _find_means(examples, given)
    return SharedArguments(
        model=model,
        layout=layout,
        examples=examples,
        validation=validation.prepared_like(examples) if validation is not None else None,
        start=starting_point(given["parameters"], model, layout),
        replicas=given["replicas"],
        shards=given["shards"],
        shard_copies=given["shard_copies"],
        workers=worker_names("workers", given["workers"]),
        shard_workers=worker_names("shard_workers", given["shard_workers"]),
        validate_steps=validate_steps,
        validate_seconds=validate_seconds,
        keep=given["keep"],
        snapshot_seconds=arguments.duration("snapshot_every", given["snapshot_every"]),
        seed=given["seed"],
    )


def _find_means(examples: Examples, given: Mapping[str, Any]) -> None:
    """Find the means that stand for missing inputs, on the given client.

    What is wrong with other arguments is said before anything is read.
    """
    if not examples.lacks_means:
        return
    client: Client | None = given["client"]
    partition_of(given["model"], given["partitions"], 1)
    if client is not None:
        check_client(client)
        for name in ("workers", "shard_workers"):
            check_named(name, worker_names(name, given[name]), client)
    check_can_begin(given["checkpoint"], given["resume"])
    examples.with_means(client)


def plan_of(
    shared: SharedArguments,
    client: Client,
    opened: OpenCheckpoint,
    *,
    job: object,
    batch_size: int,
    settings: SavedState,
    target_loss: float | None = None,
    partition: Partition | None = None,
) -> Plan:
    """Return the plan of a run.

    Parameters
    ----------
    shared
        The arguments that both algorithms have.
    client
        The client of the cluster on which the run works.
    opened
        The checkpoint, and the snapshot from which the run goes on.
    job
        The job of the method's tasks.
    batch_size
        Examples of a minibatch.
    settings
        The settings that a checkpoint keeps, and compares when a run resumes.
    target_loss
        A validation loss of at most this stops the run.
    partition
        How replicas are cut over workers; None if they are not.

    Raises
    ------
    WorkerError
        `workers` or `shard_workers` names no running worker.
    """
    check_named("workers", shared.workers, client)
    check_named("shard_workers", shared.shard_workers, client)
    model, examples, validation = shared.model, shared.examples, shared.validation
    return Plan(
        job=cloudpickle.dumps(job),
        model=cloudpickle.dumps(model),
        size=shared.layout.size,
        trained=shared.layout.trained,
        buffers=updated_ranges(model, shared.layout),
        validation_cut=validation_cut(validation, shared.layout.size, batch_size),
        provider=BlockProvider(examples.recipe, client),
        validation_provider=(
            BlockProvider(validation.recipe, client) if validation is not None else None
        ),
        start=_in_order_of(partition, shared.start),
        target_loss=target_loss,
        partition=partition,
        can_be_cut=can_be_cut(model, 2 if partition is None else partition.parts + 1),
        replicas=shared.replicas,
        shards=shared.shards,
        shard_copies=shared.shard_copies,
        workers=shared.workers,
        shard_workers=shared.shard_workers,
        validate_steps=shared.validate_steps,
        validate_seconds=shared.validate_seconds,
        keep=shared.keep,
        path=opened.path,
        last=opened.last,
        ownership=opened.ownership,
        blind_loss=partial(blind_loss, model, examples),
        snapshot_seconds=shared.snapshot_seconds,
        seed=shared.seed,
        settings=settings,
    )


def _in_order_of(
    partition: Partition | None, start: np.ndarray | FromStored | None
) -> np.ndarray | FromStored | None:
    """Return first parameters in the order of the shards."""
    if partition is None or start is None:
        return start
    if isinstance(start, FromStored):
        return replace(start, table=partition.table)
    return partition.table.to_cut(start)
