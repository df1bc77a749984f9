"""The places on which work can begin: how many replicas each has, and what they are at."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dbdask.run.failures import TRAIN, VALIDATION, Failures
from dbdask.run.gangs import Gangs
from dbdask.run.outstanding import Outstanding
from dbdask.run.roster import Roster
from dbdask.schedule.policies import places_for, tasks_for

VALIDATION_TASKS = 4
"""Validation tasks that a worker has at once: small ones then do not wait for the client."""


class ReplicaPlaces:
    """Which places want work. A place is a worker, or a gang of workers by its name.

    Attributes
    ----------
    roster
        The workers.
    gangs
        Their gangs; None if every worker is a place.
    outstanding
        The work under way.
    failures
        The failures of work so far.
    """

    roster: Roster
    gangs: Gangs | None
    outstanding: list[Outstanding[Any]]
    failures: Failures

    def idle_places(self, replicas: int | None) -> list[str]:
        """List places without training work, once for each replica that could begin there."""
        places, busy = self._places_for(replicas), self._busy(TRAIN)
        wanted = [worker for worker, n in places.items() for _ in range(n - busy[worker])]
        return self._that_read(wanted, places)

    def free_places(self, replicas: int | None) -> list[str]:
        """List places that want a portion, the emptiest first, once for each portion wanted."""
        places = self._places_for(replicas)
        most = {worker: tasks_for(count, replicas) for worker, count in places.items()}
        return self._emptiest_first(most, TRAIN)

    def validation_places(self) -> list[str]:
        """List workers that want a validation portion, as `free_places` does for training.

        A worker has few of them at once, however small they are.
        """
        return self._emptiest_first(
            dict.fromkeys(self.roster.workers, VALIDATION_TASKS), VALIDATION
        )

    def _emptiest_first(self, most: Mapping[str, int], examples: str) -> list[str]:
        """List each worker once for each task that it lacks of `most`, the emptiest first."""
        busy = self._busy(examples)
        wanted = [(n, w) for w, count in most.items() for n in range(busy[w], count)]
        return self._that_read([worker for _, worker in sorted(wanted)], most)

    def _that_read(self, wanted: list[str], places: Iterable[str]) -> list[str]:
        """Leave out workers for which a store fails, until others have done their work.

        A worker that fails is idle before the others are: the work would come back to it. If a
        store fails for all workers at `places`, none is left out.
        """
        cut_off = self.failures.cut_off
        if cut_off.issuperset(places):
            return wanted
        return [place for place in wanted if place not in cut_off]

    def places(self, place: str, replicas: int | None) -> int:
        """Return how many replicas run at once at a place."""
        return max(1, self._places_for(replicas).get(place, 1))

    def replicas_at_once(self, replicas: int | None) -> int:
        """Return how many replicas run at once in all."""
        return sum(self._places_for(replicas).values())

    @property
    def lack(self) -> str:
        """The workers that are missing to train on, for an error; '' if none are."""
        return self.roster.lack or ("" if self.gangs is None else self.gangs.lack)

    @property
    def teams(self) -> list[str]:
        """The places on which a replica can work now: workers, or gangs of workers by name."""
        return self.roster.workers if self.gangs is None else self.gangs.places

    def workers_of(self, places: Iterable[str]) -> list[str]:
        """Return the workers of some places."""
        if self.gangs is None:
            return list(places)
        return [worker for place in places for worker in self.gangs.workers_of(place)]

    def _places_for(self, replicas: int | None) -> dict[str, int]:
        """Return how many replicas work at each place."""
        if self.gangs is not None:
            replicas = self.gangs.most_replicas(replicas)
        return places_for(replicas, self.teams)

    def _busy(self, examples: str) -> Counter[str]:
        """Count the pieces of work under way at each place."""
        held = [out for out in self.outstanding if out.work.examples == examples]
        return Counter(place for place, _ in {(out.place, id(out.joint or out)) for out in held})
