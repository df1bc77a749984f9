"""DistBelief on Dask: train neural networks where chunked Zarr data and a Dask cluster are.

Names are loaded when they are first used, so that models and update rules load without Dask.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dbdask.version import __version__ as __version__

_PLACES = {
    "Examples": "dbdask.data.examples",
    "Network": "dbdask.models.network",
    "Dense": "dbdask.models.layers",
    "LocallyConnected": "dbdask.models.locally_connected",
    "L2Pool": "dbdask.models.pooling",
    "LocalContrastNorm": "dbdask.models.contrast",
    "Layer": "dbdask.models.layers",
    "Constant": "dbdask.models.drawing",
    "Uniform": "dbdask.models.drawing",
    "Normal": "dbdask.models.drawing",
    "Layout": "dbdask.models.layout",
    "Parameter": "dbdask.models.layout",
    "Model": "dbdask.models.model",
    "check_model": "dbdask.run.checking",
    "Optimizer": "dbdask.optim.optimizers",
    "sgd": "dbdask.optim.optimizers",
    "momentum": "dbdask.optim.optimizers",
    "nesterov": "dbdask.optim.optimizers",
    "adagrad": "dbdask.optim.optimizers",
    "adam": "dbdask.optim.optimizers",
    "Record": "dbdask.metrics.history",
    "Status": "dbdask.status",
    "downpour": "dbdask.algorithms.downpour",
    "sandblaster": "dbdask.algorithms.sandblaster",
    "Result": "dbdask.result",
    "load": "dbdask.result",
    "ShardLost": "dbdask.errors",
    "DataError": "dbdask.errors",
    "ModelError": "dbdask.errors",
    "CheckpointError": "dbdask.errors",
    "ResultError": "dbdask.errors",
    "WorkerError": "dbdask.errors",
    "TrainingWarning": "dbdask.errors",
}

_PACKAGES = ("sklearn", "torch")  # need the extras of these names

__all__ = [*_PLACES, "__version__"]

if TYPE_CHECKING:
    from dbdask.algorithms.downpour import downpour as downpour
    from dbdask.algorithms.sandblaster import sandblaster as sandblaster
    from dbdask.data.examples import Examples as Examples
    from dbdask.errors import CheckpointError as CheckpointError
    from dbdask.errors import DataError as DataError
    from dbdask.errors import ModelError as ModelError
    from dbdask.errors import ResultError as ResultError
    from dbdask.errors import ShardLost as ShardLost
    from dbdask.errors import TrainingWarning as TrainingWarning
    from dbdask.errors import WorkerError as WorkerError
    from dbdask.metrics.history import Record as Record
    from dbdask.models.contrast import LocalContrastNorm as LocalContrastNorm
    from dbdask.models.drawing import Constant as Constant
    from dbdask.models.drawing import Normal as Normal
    from dbdask.models.drawing import Uniform as Uniform
    from dbdask.models.layers import Dense as Dense
    from dbdask.models.layers import Layer as Layer
    from dbdask.models.layout import Layout as Layout
    from dbdask.models.layout import Parameter as Parameter
    from dbdask.models.locally_connected import LocallyConnected as LocallyConnected
    from dbdask.models.model import Model as Model
    from dbdask.models.network import Network as Network
    from dbdask.models.pooling import L2Pool as L2Pool
    from dbdask.optim.optimizers import Optimizer as Optimizer
    from dbdask.optim.optimizers import adagrad as adagrad
    from dbdask.optim.optimizers import adam as adam
    from dbdask.optim.optimizers import momentum as momentum
    from dbdask.optim.optimizers import nesterov as nesterov
    from dbdask.optim.optimizers import sgd as sgd
    from dbdask.result import Result as Result
    from dbdask.result import load as load
    from dbdask.run.checking import check_model as check_model
    from dbdask.status import Status as Status


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"dbdask.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'dbdask' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
