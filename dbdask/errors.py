"""The errors and warnings of this library, one type for each kind of failure."""


class ShardLost(RuntimeError):
    """A parameter shard is gone: its worker left, was killed, or answers no ping."""


class Stale(RuntimeError):
    """A message of an older generation reached a shard, which refused it."""


class RaisedInShard(Exception):
    """A method of a shard raised the error that this one carries; the shard is not lost."""

    @property
    def error(self) -> Exception:
        """The error that the method raised."""
        error: Exception = self.args[0]
        return error


RECOVERABLE = (ShardLost, Stale)
"""Errors of a call to the shards after which the run recovers instead of failing."""


class DataError(ValueError):
    """Values are wrong, or cannot be read; found when their chunk was read."""


class StoreFailed(DataError):
    """A store failed each time that values were read from it; another try may succeed."""


class ModelError(ValueError):
    """A model does not keep the `dbdask.Model` contract; another worker would find the same."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, exists already, belongs to another run, or is damaged."""


class ResultError(ValueError):
    """A saved result is missing, damaged, or belongs to another model."""


class WorkerError(RuntimeError):
    """A worker cannot take part in a run; the message names it and the remedy."""


class TrainingWarning(UserWarning):
    """A run ended early, or its data hinder training."""


class SchedulerLost(RuntimeError):
    """The cluster's scheduler is gone, and no recovery is possible; a run raises `ShardLost`."""
