"""The owner of a checkpoint: the run that writes to it, as an empty Zarr group in it says.

While its run lives, the owner rewrites the group's only key with a higher count. A run that wants
the checkpoint watches whether the key changes, so no clocks of two machines are compared.
"""

import json
import os
import socket
import threading
import uuid
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from dbdask.storage import sealed
from dbdask.storage.sealed import Place

GROUP = "owner"
KEY = f"{GROUP}/zarr.json"
KIND = "dbdask_owner"

_here: set[str] = set()  # tokens of the owners that this process is
_lock = threading.Lock()


@dataclass(frozen=True)
class Owner:
    """A run that writes to a checkpoint: which process it is part of, and how often it said so."""

    patience: float
    """Seconds without a change of the key after which the owner counts as dead."""
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    machine: str = ""
    """The boot and the process namespace in which `process` is unique; "" if none is known."""
    started: str = ""
    """When the process started, in the machine's own count."""
    since: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    beats: int = 0

    def __str__(self) -> str:
        return f"a run of process {self.process} on {self.host} that began at {self.since}"

    def next(self) -> "Owner":
        """Return the same owner, seen alive once more."""
        return replace(self, beats=self.beats + 1)

    @property
    def is_here(self) -> bool:
        """Whether a run of this very process is the owner, and has not ended."""
        with _lock:
            return self.token in _here

    @property
    def is_gone(self) -> bool:
        """Whether the owner is known to be dead: its process ran on this machine and has ended.

        False says nothing: the process may run elsewhere, or live while its run has ended.
        """
        if not self.machine or self.machine != _machine():
            return False
        if self.process == os.getpid() and self.started == _started(self.process):
            return not self.is_here
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it is there, and another user's
        started = _started(self.process)
        return bool(started) and started != self.started


def this_process(patience: float) -> Owner:
    """Return a new owner that is a run of this process."""
    owner = Owner(patience, machine=_machine(), started=_started(os.getpid()))
    with _lock:
        _here.add(owner.token)
    return owner


def has_ended(owner: Owner) -> None:
    """Note that a run of this process has ended, whether or not its key could be deleted."""
    with _lock:
        _here.discard(owner.token)


def _machine() -> str:
    """Return what tells this boot of this machine, and this namespace of processes, from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """Return when a process started; "" if that cannot be read."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def read(place: Place) -> Owner | None:
    """Return the owner that a store names; None if it names none.

    An owner that cannot be read, because it was changed or is being written, counts as an unknown
    owner that may change.
    """
    try:
        found = sync(sealed.open_store(place).get(KEY, prototype=default_buffer_prototype()))
    except FileNotFoundError:
        return None
    return None if found is None else _owner_of(found.to_bytes())


def _owner_of(content: bytes) -> Owner:
    try:
        values: dict[str, Any] = json.loads(content)["attributes"][KIND]
        return Owner(**values)
    except (ValueError, TypeError, LookupError):
        return Owner(0.0, "an unknown host", 0, since="an unknown time", token=content.hex())


def write(place: Place, owner: Owner) -> None:
    """Name the owner, in place of any that was named before."""
    sync(sealed.open_store(place).set(KEY, _buffer(owner)))


def write_first(place: Place, owner: Owner) -> None:
    """Name the owner if the store names none; on a file system, of several only one is."""
    sync(sealed.open_store(place).set_if_not_exists(KEY, _buffer(owner)))


def _buffer(owner: Owner) -> Any:
    group = {"zarr_format": 3, "node_type": "group", "attributes": {KIND: asdict(owner)}}
    return default_buffer_prototype().buffer.from_bytes(json.dumps(group).encode())


def delete(place: Place) -> None:
    """Name no owner any more."""
    sync(sealed.open_store(place).delete_dir(GROUP))
