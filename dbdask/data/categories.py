"""Categories: inputs that are labels, shown to a model as one-hot vectors or as codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbdask.arrays import BoolArray, Float32Array
from dbdask.data.labels import MISSING, Classes, Label
from dbdask.data.sources import Variable
from dbdask.json_types import JsonObject

CategoriesGiven = Mapping[str, str]
"""How inputs that are labels are shown, as a user gives it: "one-hot" or "codes" by name."""

MOST_LABELS = {"one-hot": 2**16, "codes": 2**24 - 1}
"""The most different labels: a one-hot vector takes memory, and float32 holds codes up to 2**24."""


@dataclass(frozen=True)
class Category:
    """How one input that is a label is shown.

    A label that is not known, or is missing and masked, is all zeros, or the code 0. Known labels
    have the codes from 1 on.

    Parameters
    ----------
    how
        "one-hot" or "codes".
    classes
        The labels in their order; None: not known yet.

    Examples
    --------
    >>> colour = Category("one-hot", Classes(("blue", "red")))
    >>> colour.shown(colour.encode(np.array(["red", "green"]), None)).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """

    how: str
    classes: Classes | None = None

    @property
    def labels(self) -> list[Label] | None:
        """The labels in their order; None if they are not known yet."""
        return None if self.classes is None else list(self.classes.labels or ())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value as it is shown; the labels are known, or shown as codes."""
        return () if self.how == "codes" else (len(self.labels or ()),)

    def encode(self, values: np.ndarray, missing: BoolArray | None) -> np.ndarray:
        """Return places in `labels`, int32 of the shape of `values`; below 0 for none.

        `MISSING` stands for a missing label. `missing` is bool, of the same shape, or None.
        """
        assert self.classes is not None
        return self.classes.encode(values, missing).astype(np.int32)

    def shown(self, places: np.ndarray) -> Float32Array:
        """Return places as a model is shown them: float32, (*shape of places, *shape)."""
        if self.how == "codes":
            codes: Float32Array = (np.maximum(places, -1) + 1).astype(np.float32)
            return codes
        found: Float32Array = (places[..., None] == np.arange(self.shape[0])).astype(np.float32)
        return found

    def to_json(self) -> JsonObject:
        """Return the category as JSON."""
        return {"how": self.how, "labels": None if self.classes is None else self.classes.to_json()}

    @classmethod
    def from_json(cls, table: JsonObject) -> "Category":
        """Return the category of `to_json`."""
        labels = table["labels"]
        return cls(table["how"], None if labels is None else Classes.from_json(labels))


def as_categories(
    given: CategoriesGiven | None, variables: Sequence[Variable]
) -> tuple[Category | None, ...]:
    """Return how each of some inputs is shown, from what a user gave as `categories=`.

    Raises
    ------
    ValueError, TypeError
        A name is no input, or is not to be shown as "one-hot" or "codes".
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise TypeError(f'categories must be a mapping such as {{"job": "one-hot"}}, got {given!r}')
    names = [variable.name for variable in variables]
    for name, how in given.items():
        if name not in names:
            raise ValueError(f"categories: {name!r} is not one of the inputs {', '.join(names)}")
        if how not in MOST_LABELS:
            raise ValueError(f"categories[{name!r}] must be 'one-hot' or 'codes', got {how!r}")
    return tuple(Category(given[name]) if name in given else None for name in names)


def check_labels(variable: Variable, category: Category) -> None:
    """Raise TypeError if a variable's values can be no labels, or are not like those known."""
    kind = variable.value_dtype.kind
    if kind not in "iufbUO":
        raise TypeError(
            f"categories: variable {variable.name!r} has dtype {variable.shown_dtype}; labels are "
            "numbers or text: give array.astype(str)"
        )
    labels = category.labels
    if labels and kind != "O" and (kind == "U") != isinstance(labels[0], str):
        raise TypeError(
            f"categories: the labels of {variable.name!r} were like {labels[0]!r} in training, "
            f"here it has dtype {variable.shown_dtype}; give labels of the same kind"
        )


def check_known(names: Sequence[str], categories: Sequence[Category | None]) -> None:
    """Raise ValueError if labels of a category are not known yet."""
    for name, category in zip(names, categories, strict=False):
        if category is not None and category.classes is None:
            raise ValueError(
                f"categories: the labels of {name!r} are not known yet; call "
                "train.fit_categories(), or train.standardize(), on the examples to train on"
            )


def fitted(
    categories: Sequence[Category | None], found: Mapping[int, Classes]
) -> tuple[Category | None, ...]:
    """Return the categories with the labels that were found for some of them, by place."""
    return tuple(
        replace(one, classes=found[place]) if one is not None and place in found else one
        for place, one in enumerate(categories)
    )


def missing_places(places: np.ndarray) -> BoolArray:
    """Return which rows of places, (rows, features), have a missing label: bool, (rows,)."""
    absent: BoolArray = (places == MISSING).any(axis=1)
    return absent
