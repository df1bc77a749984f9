"""A shard for batch methods: it carries out commands on vectors, and adds up a pass's gradient."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dbdask.errors import Stale
from dbdask.optim.vectors import Command, carry_out
from dbdask.worker.shard import ParameterShard
from dbdask.worker.shard_state import Contributions


class BatchShard(ParameterShard):
    """Named vectors of one slice, and the gradient of the pass that is open.

    The gradient is added up in float64: in whichever order the bundles come, the sum is the same
    but for the last bits, and a repeat of a bundle changes nothing.
    """

    requests = ParameterShard.requests | {"fetch_vector", "contribute"}

    @property
    def _pass(self) -> Contributions:
        if self.state.contributions is None:
            self.state.contributions = Contributions(np.empty(self.stop - self.start, np.float64))
        return self.state.contributions

    def fetch_vector(self, name: str, into: np.ndarray) -> None:
        """Copy one vector of this shard into `into`, float32 (stop - start,).

        Raises
        ------
        Stale
            The shard was made anew without the vector.
        """
        np.copyto(into, self._vector(name))

    def contribute(self, evaluation: int, bundle: int, gradient: np.ndarray) -> bool:
        """Add a bundle's gradient, float32 (stop - start,), once to the float64 sum of the pass.

        Returns False for a repeat, and for a pass that is not open.
        """
        held = self._pass
        if evaluation != held.evaluation or bundle in held.admitted:
            return False
        np.add(held.total, gradient, out=held.total)
        held.admitted.add(bundle)
        return True

    async def _carry_out(self, commands: Sequence[Command]) -> list[Any]:
        return await self._serve(self._obey, commands)

    def _obey(self, commands: Sequence[Command]) -> list[Any]:
        """Do commands; `Stale` if the shard was made anew without a vector of theirs."""
        try:
            answers = carry_out(commands, self.state.vectors)
        except KeyError as error:
            raise Stale(f"vector {error} is not in this shard") from error
        if any(getattr(command, "into", "") == "parameters" for command in commands):
            self._accept_buffers()
        return answers

    def _accept_buffers(self) -> None:
        """Change the buffers of the parameters as the last pass did; its point is accepted.

        Until then the point has the buffers of the one before, so that no step or pair of a method
        has anything in their places.
        """
        change, begin = self._pass.change, 0
        if change is None:
            return
        for part in self.buffers:
            size = part.stop - part.start
            self.state.vectors["parameters"][part] += change[begin : begin + size]
            begin += size
        self._pass.change = None

    async def _open_pass(self, evaluation: int, commands: Sequence[Command]) -> None:
        """Do commands, and begin to add up; the pass before is closed."""
        await self._serve(self._open, evaluation, commands)

    def _open(self, evaluation: int, commands: Sequence[Command]) -> None:
        self._obey(commands)
        held = self._pass
        held.total.fill(0.0)
        held.evaluation, held.admitted = evaluation, set()

    async def _close_pass(
        self,
        evaluation: int,
        bundles: int,
        weight: float,
        into: str,
        commands: Sequence[Command],
        point: str = "parameters",
    ) -> list[Any]:
        """Make the mean gradient of what was added up, and do commands; their answers come back.

        `point` names the vector at which the pass evaluated.
        """
        return await self._serve(self._close, evaluation, bundles, weight, into, commands, point)

    def _close(
        self,
        evaluation: int,
        bundles: int,
        weight: float,
        into: str,
        commands: Sequence[Command],
        point: str,
    ) -> list[Any]:
        held = self._pass
        if evaluation != held.evaluation or len(held.admitted) != bundles:
            raise Stale(f"evaluation {evaluation} is not whole in this shard")
        held.evaluation = -1
        vectors = self.state.vectors
        mean = vectors.setdefault(into, np.empty(held.total.size, np.float32))
        mean.fill(0.0)
        for part in self.trained:
            np.divide(held.total[part], weight, out=mean[part], casting="same_kind")
        if self.buffers:
            changes = [held.total[part] / weight for part in self.buffers]
            held.change = np.concatenate(changes).astype(np.float32)
        if point == "parameters":
            self._accept_buffers()
        return self._obey(commands)
