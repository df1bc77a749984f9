"""The device of a module on this worker, and torch's threads during a call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cloudpickle
import torch

from dbdask.errors import ModelError
from dbdask.rpc.local_workers import this_worker
from dbdask.worker.blas_limit import blas_limit

Device = str | Callable[[str], str]
"""A device such as "cpu" or "cuda:1", or a function from a worker's address to one."""

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
"""The dtype of autocast for each precision."""


def pickled_device(device: Device) -> bytes:
    """Return a device, or a function, as it travels.

    Raises
    ------
    TypeError, ValueError
        It is neither the name of a device nor a function, or cannot be pickled.
    """
    if not callable(device) and not isinstance(device, str):
        raise TypeError(
            "device must be a name such as 'cpu' or 'cuda:1', or a function of the worker's "
            f"address that returns one, got {device!r}"
        )
    if isinstance(device, str):
        _parsed(device)
    try:
        return cloudpickle.dumps(device)
    except Exception as error:
        raise TypeError(
            f"device cannot be pickled, and travels to every worker so: {error}; give a function "
            "that holds no open file or lock"
        ) from error


def check_precision(precision: str) -> None:
    """Raise ValueError if a precision is not offered."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}: "
            "'bfloat16' is mixed precision by autocast; float16 is not offered, because it needs a "
            "scale of the loss that all replicas share"
        )


def device_here(device: Device) -> torch.device:
    """Return the device to compute on in the calling thread.

    Outside a worker, as in `Result.evaluate`, it is the CPU if the device is a function, or is not
    there.

    Raises
    ------
    ModelError
        The worker does not have the device.
    """
    address = _address()
    if callable(device):
        if address is None:
            return torch.device("cpu")
        found = _parsed(device(address))
    else:
        found = _parsed(device)
    if _is_there(found):
        return found
    if address is None:
        return torch.device("cpu")
    raise ModelError(
        f"device={str(found)!r} is not on worker {address}: it has "
        f"{torch.cuda.device_count()} CUDA devices; give device='cpu', or a function of the "
        "worker's address that returns a device that is there"
    )


def _address() -> str | None:
    """Return the address of the worker that runs the calling task; None outside a task."""
    try:
        return str(this_worker().address)
    except ValueError:
        return None


def _parsed(name: object) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be the name of a torch device, such as 'cpu' or 'cuda:1', got {name!r}"
        ) from error


def _is_there(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()


@contextmanager
def replicas_threads() -> Iterator[None]:
    """Give torch, in the calling thread, as many threads as a replica of this process may use.

    Torch keeps a number of threads for each thread that calls it, and one for threads to come.
    """
    limit, before = blas_limit.limit, torch.get_num_threads()
    if limit is None or limit == before:
        yield
        return
    torch.set_num_threads(limit)
    try:
        yield
    finally:
        torch.set_num_threads(before)
