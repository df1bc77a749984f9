"""Edges: what a window sees where it leaves the data, a cut or a group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RULES = ("repeat", "drop", "wrap")

EdgesGiven = str | Mapping[str, str]
"""The edges, as a user gives them: one rule, or one for some of the dimensions."""


@dataclass(frozen=True)
class Edges:
    """The rule of every sample dimension.

    "repeat" shows the edge value again, and "drop" leaves out an example whose window is not
    whole. "wrap" makes a circle of the dimension, whose last position is a neighbour of the first.

    Examples
    --------
    >>> edges = as_edges({"lon": "wrap"}, ("time", "lon"))
    >>> edges.of("lon"), edges.of("time")
    ('wrap', 'repeat')
    """

    rules: tuple[tuple[str, str], ...]

    def of(self, dim: str) -> str:
        """Return the rule of a dimension."""
        return dict(self.rules)[dim]

    def drops(self, dims: Sequence[str]) -> bool:
        """Return whether examples are left out at the edges of any of some dimensions."""
        return any(self.of(dim) == "drop" for dim in dims)

    def to_json(self) -> str | dict[str, str]:
        """Return the rules as plain data: one if all are the same."""
        different = {rule for _, rule in self.rules}
        return different.pop() if len(different) == 1 else dict(self.rules)


def as_edges(given: EdgesGiven, along: Sequence[str]) -> Edges:
    """Check what a user gave as `edges=`; a dimension that is not named repeats its edge value.

    Raises
    ------
    ValueError, TypeError
        A rule is unknown, or a dimension is not in `along`.
    """
    if isinstance(given, str):
        return Edges(tuple((dim, _rule("edges", given)) for dim in along))
    if not isinstance(given, Mapping):
        raise TypeError(
            f'edges must be one of {_RULES}, or a mapping such as {{"{along[0]}": "drop"}}, got '
            f"{given!r}"
        )
    for dim in given:
        if dim not in along:
            raise ValueError(
                f"edges: dimension {dim!r} is not in along={tuple(along)}; windows, and so edges, "
                "are along sample dimensions only"
            )
    return Edges(tuple((dim, _rule(f"edges[{dim!r}]", given.get(dim, "repeat"))) for dim in along))


_RULES = ", ".join(map(repr, RULES))


def _rule(argument: str, given: str) -> str:
    if given not in RULES:
        raise ValueError(f"{argument} must be one of {_RULES}, got {given!r}")
    return given


def check_circle(edges: Edges, groups: str, dims: Sequence[str]) -> None:
    """Raise ValueError if a dimension that wraps is one of `dims`, along which groups lie."""
    for dim in dims:
        if edges.of(dim) == "wrap":
            raise ValueError(
                f'edges: {dim!r} cannot be "wrap", because the groups {groups!r} lie along it and '
                'windows do not leave a group; give "repeat" or "drop"'
            )
