"""What can go wrong, as types that a caller can tell apart."""


class ShardLost(RuntimeError):
    """A parameter shard is gone: its worker left, was killed, or answers no ping."""


class Stale(RuntimeError):
    """A message of an older generation reached a shard, which refused it."""


class RaisedInShard(Exception):
    """A method of a shard raised the error that this one carries: no shard is lost by that."""

    @property
    def error(self) -> Exception:
        """What the method raised."""
        error: Exception = self.args[0]
        return error


RECOVERABLE = (ShardLost, Stale)
"""What a call to the shards ends in when the run has to recover, rather than fail."""


class DataError(ValueError):
    """Values found wrong when the chunk that holds them was read."""


class ModelError(ValueError):
    """A model does not keep the `dbdask.Model` contract: no other worker would find it right."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, already there, of another run, or damaged."""


class ResultError(ValueError):
    """A saved result is missing, damaged, or of another model."""


class WorkerError(RuntimeError):
    """A worker cannot take part: it is named together with the remedy."""


class TrainingWarning(UserWarning):
    """A run ended otherwise than it was asked to, or trains on what hinders it."""


class SchedulerLost(RuntimeError):
    """The cluster's scheduler is gone, and no recovery helps: verbs end in `ShardLost`."""
