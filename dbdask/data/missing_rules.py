"""Rules for missing values: one for all variables, or one for some of them by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RULES = ("error", "drop", "mask")

MissingGiven = str | Mapping[str, str]
"""The rules, as a user gives them: one, or one for some variables, and "error" for the others."""

_LISTED = ", ".join(map(repr, RULES))


@dataclass(frozen=True)
class MissingRules:
    """The rule of every variable: that of its name, else the general one.

    Examples
    --------
    >>> rules = as_missing_rules({"sst": "drop"}, ["sst", "wind"])
    >>> rules.of("sst"), rules.of("wind"), rules.any("drop", ["wind"])
    ('drop', 'error', False)
    """

    general: str
    named: tuple[tuple[str, str], ...] = ()

    def of(self, name: str) -> str:
        """Return the rule of a variable."""
        return dict(self.named).get(name, self.general)

    def any(self, rule: str, names: Iterable[str]) -> bool:
        """Return whether some variable has a rule."""
        return any(self.of(name) == rule for name in names)

    def to_predict(self) -> "MissingRules":
        """Return the rules of a prediction, which leaves out what training does not mask."""
        kept = tuple((n, "mask" if rule == "mask" else "drop") for n, rule in self.named)
        return MissingRules("mask" if self.general == "mask" else "drop", kept)

    def to_json(self) -> str | dict[str, object]:
        """Return the rules as plain data: the general one, if it is the only one."""
        return {"general": self.general, "named": dict(self.named)} if self.named else self.general

    @classmethod
    def from_json(cls, table: str | dict[str, object]) -> "MissingRules":
        """Return the rules of `to_json`."""
        if isinstance(table, str):
            return cls(table)
        named = table["named"]
        assert isinstance(named, dict)
        return cls(str(table["general"]), tuple(named.items()))


def as_missing_rules(given: MissingGiven | MissingRules, names: Iterable[str]) -> MissingRules:
    """Check what a user gave as `missing=` for variables of some names.

    Raises
    ------
    ValueError, TypeError
        A rule is unknown, or a name is not one of the variables.
    """
    if isinstance(given, MissingRules):
        return given
    if isinstance(given, str):
        return MissingRules(_rule("missing", given))
    if not isinstance(given, Mapping):
        raise TypeError(
            f'missing must be one of {_LISTED}, or a mapping such as {{"sst": "drop"}}, got '
            f"{given!r}"
        )
    known = list(dict.fromkeys(names))
    for name in given:
        if name not in known:
            raise ValueError(
                f"missing: {name!r} is not a variable of these examples, which have "
                f"{', '.join(known)}"
            )
    rules = ((name, _rule(f"missing[{name!r}]", rule)) for name, rule in given.items())
    return MissingRules("error", tuple(rules))


def _rule(argument: str, given: str) -> str:
    if given not in RULES:
        raise ValueError(f"{argument} must be one of {_LISTED}, got {given!r}")
    return given
