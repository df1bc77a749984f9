"""The report of `Examples.check`, for which everything is read once as training would."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dbdask.data.fills import fill_warnings
from dbdask.data.measures import BlockCount, measure_block
from dbdask.data.recipe import Recipe
from dbdask.data.sweeps import sweep
from dbdask.schedule.left_out import LeftOut

if TYPE_CHECKING:
    from distributed import Client

WORTH_A_WARNING = 0.01
"""The share of the examples that may be left out without a warning."""


@dataclass(frozen=True)
class Report:
    """The result of `Examples.check`.

    Parameters
    ----------
    examples
        Examples that can be formed.
    dropped
        Examples left out: a value is missing, or the window leaves its group.
    first_dropped
        Where the first missing value is; empty if there is none.
    class_counts
        Examples of each class index; None if the targets are no labels.
    lost_classes
        Indices of the classes of which every example is left out.
    filled_chunks
        How many chunks of a variable are not in the store and were read as its fill value;
        variables without such chunks are not in it.
    """

    examples: int
    dropped: int
    first_dropped: str
    class_counts: dict[int, int] | None
    lost_classes: tuple[int, ...]
    filled_chunks: dict[str, int] = field(default_factory=dict)


def report(recipe: Recipe, client: "Client | None" = None) -> Report:
    """Return the report of every block; warn, as training does, if much is left out."""
    counts: list[BlockCount] = list(sweep(recipe, measure_block, client))
    rows, dropped = sum(c.rows for c in counts), sum(c.dropped for c in counts)
    missing = sum(c.missing for c in counts)
    found, kept = _sum(c.classes for c in counts), _sum(c.kept_classes for c in counts)
    lost = tuple(sorted(label for label in found if not kept.get(label)))
    place = next((c.place for c in counts if c.place), "")
    classes = recipe.classes
    labels = None if classes is None else classes.of_outputs()
    named = tuple(label if labels is None else labels[label] for label in lost)
    message = drop_warning(rows, missing, place, named)
    fills = LeftOut()
    for count in counts:
        fills.add(LeftOut(fills=count.fills))
    for words in ([message] if message else []) + fill_warnings(fills.fills):
        warnings.warn(words, UserWarning, stacklevel=3)
    labelled = {label: kept[label] for label in sorted(kept)}
    filled = {name: len(one.chunks) for name, one in sorted(fills.fills.items())}
    return Report(
        rows - dropped, dropped, place, None if classes is None else labelled, lost, filled
    )


def drop_warning(rows: int, missing: int, place: str, lost: tuple[object, ...] = ()) -> str:
    """Return the warning about examples that are left out as missing; empty if they are few.

    Examples
    --------
    >>> drop_warning(1000, 20, "x at time=3")
    '20 of 1000 examples (2.0 %) are left out as missing, the first for x at time=3'
    >>> drop_warning(1000, 5, "")
    ''
    """
    if not missing or (missing <= WORTH_A_WARNING * rows and not lost):
        return ""
    first = f", the first for {place}" if place else ""
    classes = f"; no example is left of class {', '.join(map(str, lost))}" if lost else ""
    part = 100 * missing / rows
    return f"{missing} of {rows} examples ({part:.1f} %) are left out as missing{first}{classes}"


def _sum(counts: Iterable[dict[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for one in counts:
        for label, count in one.items():
            total[label] = total.get(label, 0) + count
    return total
