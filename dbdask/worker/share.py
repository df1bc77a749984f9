"""A task's share of its replica: the whole model, or one part of it beside its peers."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.metrics.time_spent import Spent
from dbdask.models.evaluation import Evaluated, Evaluator, Step
from dbdask.models.part import Part
from dbdask.models.part_evaluation import PartEvaluator
from dbdask.schedule.gangs import Member
from dbdask.worker.context import WorkerContext
from dbdask.worker.link import ServerHandle, ServerLink
from dbdask.worker.peers import Peers
from dbdask.worker.shard import Progress


class Beginning(NamedTuple):
    """Where a task begins in its portion."""

    first: int
    """The step after the last step that every shard has applied."""
    last: int
    """The last step that any shard has applied."""
    paused: bool
    """Whether the run is pausing."""


def beginning(progress: Sequence[Progress]) -> Beginning:
    """Return where to begin, from what all shards say of a portion.

    Examples
    --------
    >>> beginning([Progress(4, False), Progress(3, True)])
    Beginning(first=4, last=4, paused=True)
    """
    steps = [shard.last_step for shard in progress]
    return Beginning(min(steps) + 1, max(steps), any(shard.pause for shard in progress))


class Share(Protocol):
    """A task's share of its replica: what differs between a whole model and a part of one.

    Attributes
    ----------
    index
        Which part it is; 0 of a whole model.
    is_part
        Whether there are other parts.
    link
        Calls of the shards that hold the share.
    size
        Elements of its parameters.
    """

    index: int
    is_part: bool
    link: ServerLink
    size: int

    def begin(self, portion: tuple[int, int]) -> Beginning:
        """Return where to begin in a portion: the same in all parts."""

    def minibatch(
        self,
        parameters: Float32Array,
        batch: Step,
        portion: tuple[int, int],
        *,
        gradient: Float32Array,
        as_mean: bool,
    ) -> Evaluated:
        """Evaluate a minibatch, as `Evaluator.minibatch` does; the answer is the same in all parts.

        Parameters
        ----------
        parameters, gradient
            Of the share: float32 of shape (size,).
        """

    def note_pause(self, seen: bool) -> None:
        """Note whether a shard of this share has asked for a pause."""

    def is_pausing(self, seen: bool) -> bool:
        """Whether the replica is to pause, if this share has `seen` a request or not.

        After the decision of a step the answer is the same in all parts.
        """

    def agrees(self, fine: bool) -> bool:
        """Return whether all parts say that something is fine."""

    def write_buffers(self, vector: Float32Array) -> None:
        """Write the model's changed buffers into their places of a vector, float32 (n,)."""

    def copy_buffers(self, vector: Float32Array, source: Float32Array) -> None:
        """Copy the buffers of one vector into another, both float32 (n,)."""

    def write_change(self, vector: Float32Array, point: Float32Array, weight: float) -> None:
        """Set the buffers of a vector to `weight` times their change since a point.

        Both are float32 (n,).
        """


class Whole:
    """The share of a replica that is not partitioned: all of it.

    Parameters
    ----------
    context
        The run on this worker.
    handle
        Where the shards are.
    """

    index = 0
    is_part = False

    def __init__(self, context: WorkerContext, handle: ServerHandle) -> None:
        self.link = context.link(handle)
        self.size = handle.size
        self._evaluator = Evaluator(context.job.model, context.job.seed)

    def begin(self, portion: tuple[int, int]) -> Beginning:
        """Ask all shards."""
        return beginning(self.link.progress(*portion))

    def minibatch(
        self,
        parameters: Float32Array,
        batch: Step,
        portion: tuple[int, int],
        *,
        gradient: Float32Array,
        as_mean: bool,
    ) -> Evaluated:
        """Evaluate a minibatch with the model; arguments and shapes as `Share.minibatch`."""
        return self._evaluator.minibatch(
            parameters, batch, portion, gradient=gradient, as_mean=as_mean
        )

    def note_pause(self, seen: bool) -> None:
        """Do nothing: no other part has to know."""

    def is_pausing(self, seen: bool) -> bool:
        """Pause if a shard has asked for it."""
        return seen

    def agrees(self, fine: bool) -> bool:
        """Return what was given: no other part has a say."""
        return fine

    def write_buffers(self, vector: Float32Array) -> None:
        """Write what the model's last minibatch changed."""
        self._evaluator.updates.write(vector)

    def copy_buffers(self, vector: Float32Array, source: Float32Array) -> None:
        """Copy the elements of buffers."""
        self._evaluator.updates.copy(vector, source)

    def write_change(self, vector: Float32Array, point: Float32Array, weight: float) -> None:
        """Write the change that a batch method adds up."""
        self._evaluator.updates.write_change(vector, point, weight)


class PartOfGang:
    """One part of a replica, whose other parts are on the other workers of a gang.

    A model that is cut has no buffers.

    Parameters
    ----------
    context
        The run on this worker.
    handle
        Where the shards of all parts are.
    part
        The part.
    member
        Its place in the gang.
    portion
        Identity of the work.
    spent
        Counts the seconds of exchanges.
    """

    is_part = True

    def __init__(
        self,
        context: WorkerContext,
        handle: ServerHandle,
        part: Part,
        member: Member,
        portion: tuple[int, int],
        spent: Spent,
    ) -> None:
        self.index, self.size = part.index, part.size
        self._everything = context.link(handle)
        self.link = context.link(handle.part(*part.range))
        self.peers = Peers(
            member, portion, context.mailbox, self.link, context.routes, context, spent
        )
        self._evaluator = PartEvaluator(part, context.job.seed)

    def begin(self, portion: tuple[int, int]) -> Beginning:
        """Let the first part alone ask all shards, and tell the others.

        Parts that asked by themselves could see different answers, because an older attempt may
        still be pushing.
        """
        if self.index:
            return _from_numbers(self.peers.begin(None))
        asked = beginning(self._everything.progress(*portion))
        return _from_numbers(self.peers.begin(np.array(asked, np.int64)))

    def minibatch(
        self,
        parameters: Float32Array,
        batch: Step,
        portion: tuple[int, int],
        *,
        gradient: Float32Array,
        as_mean: bool,
    ) -> Evaluated:
        """Evaluate a minibatch with the peers; arguments and shapes as `Share.minibatch`."""
        self.peers.begin_step()
        work = self._evaluator.minibatch(
            parameters, batch, portion, gradient=gradient, as_mean=as_mean
        )
        return self.peers.drive(work, "model.loss_and_gradient")

    def note_pause(self, seen: bool) -> None:
        """Tell the peers with the next decision."""
        self.peers.mark = seen

    def is_pausing(self, seen: bool) -> bool:
        """Whether any part had seen a pause before the last decision."""
        return self.peers.is_marked

    def agrees(self, fine: bool) -> bool:
        """Ask the peers."""
        return self.peers.all_say(fine)

    def write_buffers(self, vector: Float32Array) -> None:
        """Do nothing: there are no buffers."""

    def copy_buffers(self, vector: Float32Array, source: Float32Array) -> None:
        """Do nothing: there are no buffers."""

    def write_change(self, vector: Float32Array, point: Float32Array, weight: float) -> None:
        """Do nothing: there are no buffers."""


def _from_numbers(numbers: np.ndarray) -> Beginning:
    first, last, paused = numbers.tolist()
    return Beginning(first, last, bool(paused))


def share_of(
    context: WorkerContext,
    handle: ServerHandle,
    member: Member | None,
    portion: tuple[int, int],
    spent: Spent,
) -> Share:
    """Return a task's share of its replica: all of it, or the part of a member of a gang."""
    if member is None:
        return Whole(context, handle)
    return PartOfGang(context, handle, context.part(member.index), member, portion, spent)
