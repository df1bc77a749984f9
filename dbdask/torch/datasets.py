"""Examples as a PyTorch dataset, for a training loop of one's own."""

from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dbdask.data.examples import Examples
from dbdask.data.minibatches import Arrays, minibatches
from dbdask.models.model import Model
from dbdask.torch.losses import as_tensor

MOST_WORKERS = 1024
"""The most processes of one DataLoader."""


class MinibatchDataset(IterableDataset):
    """Minibatches of examples as tensors; `dataset` makes one and says more.

    Each pass over it is an epoch with an order of its own. In a `DataLoader` with workers, each
    worker reads portions of its own.
    """

    def __init__(
        self, examples: Examples, batch_size: int, *, seed: int = 0, model: Model | None = None
    ) -> None:
        super().__init__()
        if not isinstance(examples, Examples):
            raise TypeError(f"examples must be dbdask.Examples, got {type(examples).__name__}")
        self.examples, self.batch_size, self.seed, self.model = examples, batch_size, seed, model
        self._part(0, (0, 1))  # raises for arguments that are wrong
        # The processes of a DataLoader share it; each counts its own passes, and the last element
        # is for passes without workers.
        self._passes = torch.zeros(MOST_WORKERS + 1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch, counted from 0; later passes count on from it."""
        self._passes.fill_(epoch)

    def __iter__(self) -> Iterator[torch.Tensor | tuple[torch.Tensor, ...]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > MOST_WORKERS:
            raise ValueError(f"num_workers must be at most {MOST_WORKERS}, got {workers}")
        place = MOST_WORKERS if info is None else worker
        epoch = int(self._passes[place])
        self._passes[place] += 1
        return map(self._tensors, self._part(epoch, (worker, workers)))

    def _part(self, epoch: int, part: tuple[int, int]) -> Iterator[Arrays]:
        return minibatches(
            self.examples,
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            model=self.model,
            part=part,
        )

    def _tensors(self, arrays: Arrays) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return one item: as many tensors for every minibatch of a dataset."""
        inputs, targets, weights = arrays
        if targets is None:
            return as_tensor(inputs)
        found = as_tensor(inputs), as_tensor(targets)
        recipe = self.examples.recipe
        masks = recipe.targets is not None and recipe.missing.any("mask", recipe.targets.names)
        if recipe.weights is None and not masks:
            return found
        ones = torch.ones(len(inputs))
        return (*found, ones if weights is None else as_tensor(weights))


def dataset(
    examples: Examples, batch_size: int = 128, *, seed: int = 0, model: Model | None = None
) -> MinibatchDataset:
    """Return examples as an `IterableDataset` of minibatches, for a loop of one's own.

    Give it to a `DataLoader` with ``batch_size=None``, because its items are minibatches already.
    Every pass is another epoch, in the order in which training would see it. The workers of a
    DataLoader share the portions out without overlap, so each has a short last minibatch.

    Parameters
    ----------
    examples
        What to train on.
    batch_size
        Examples of a minibatch.
    seed
        Decides the order.
    model
        Prepares targets for its loss; None leaves them as declared, with integers as labels.

    Returns
    -------
    MinibatchDataset
        Yields (inputs, targets), or (inputs, targets, weights) for examples that have weights, or
        targets of which missing elements are masked, or inputs alone for examples without targets.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dbdask
    >>> from torch.utils.data import DataLoader
    >>> data = xr.Dataset({"x": ("t", np.ones(20, "f4")), "y": ("t", np.arange(20) % 2)})
    >>> examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    >>> loader = DataLoader(dataset(examples, 8), batch_size=None)
    >>> [len(inputs) for inputs, targets in loader]
    [8, 8, 4]
    """
    return MinibatchDataset(examples, batch_size, seed=seed, model=model)
