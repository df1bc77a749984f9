"""A store whose reads of some keys fail: so often, or in one process alone."""

import os
from contextlib import suppress

from zarr.storage import LocalStore, WrapperStore


class FailingStore(WrapperStore):
    """A folder; a read of a key with `part` in it raises, if `fault` says so."""

    def __init__(self, root, part, fault, make=OSError):
        super().__init__(LocalStore(root, read_only=True))
        self.root, self.part, self.fault, self.make = str(root), part, fault, make

    def _with_store(self, store):
        return FailingStore(self.root, self.part, self.fault, self.make)

    def __reduce__(self):
        return FailingStore, (self.root, self.part, self.fault, self.make)

    def __eq__(self, other):
        return isinstance(other, FailingStore) and other.root == self.root

    async def get(self, key, prototype, byte_range=None):
        if self.part in key and self.fault():
            raise self.make("503 slow down")
        return await self._store.get(key, prototype, byte_range)


class Times:
    """Says yes so many times in all processes together: each time takes a file away."""

    def __init__(self, folder, count=0):
        self.folder = str(folder)
        os.makedirs(self.folder, exist_ok=True)
        self.add(count)

    def add(self, count):
        for number in range(count):
            with open(f"{self.folder}/{number}", "x"):
                pass

    @property
    def left(self):
        return len(os.listdir(self.folder))

    def __call__(self):
        for name in os.listdir(self.folder):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.folder}/{name}")
                return True
        return False


class Always:
    """Says yes."""

    def __call__(self):
        return True


class InOneProcess:
    """Says yes in the first process that asks."""

    def __init__(self, path):
        self.path = str(path)

    def __call__(self):
        with suppress(FileExistsError), open(self.path, "x") as file:
            file.write(str(os.getpid()))
        with open(self.path) as file:
            return file.read() == str(os.getpid())
