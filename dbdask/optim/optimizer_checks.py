"""Update rules of users: checks before a run, their slots, and one update."""

from collections.abc import Callable, Sequence
from inspect import signature

import cloudpickle
import numpy as np

from dbdask.arrays import Float32Array
from dbdask.json_types import JsonObject
from dbdask.optim.optimizers import Optimizer, Slots, UpdateRule, is_own

RESERVED = ("parameters", "best", "commit")  # a snapshot has these beside the slots

Update = Callable[[Float32Array, Float32Array, Slots], None]


def checked_optimizer(given: object, argument: str = "optimizer") -> Optimizer:
    """Return an update rule, given as `argument`, that a run can use.

    A rule of a user is tried on a few numbers, in a pickled copy.

    Raises
    ------
    TypeError, ValueError
        It lacks `slots` or `update`, cannot be pickled, changes nothing, or returns arrays
        instead of changing its own in place. An error that the rule raises gets a note.
    """
    if isinstance(given, UpdateRule) and not is_own(given):
        return given
    if isinstance(given, type) or not isinstance(given, Optimizer) or not callable(given.update):
        raise TypeError(
            f"{argument} must be dbdask.sgd, momentum, nesterov, adagrad or adam with a learning "
            "rate, or an object with slots and update(parameters, gradient, slots, step), "
            f"got {given!r}"
        )
    _check_slots(given.slots, argument)
    _check_signature(given, argument)
    _try(_travelled(given, argument), argument)
    return given


def _check_slots(slots: object, argument: str) -> None:
    if (
        not isinstance(slots, Sequence)
        or isinstance(slots, (str, bytes))
        or not all(isinstance(name, str) for name in slots)
    ):
        raise TypeError(f"{argument}.slots must be a tuple of names, got {slots!r}")
    wrong = [name for name in slots if name in RESERVED or not name.isidentifier()]
    if wrong or len(set(slots)) < len(slots):
        raise ValueError(
            f"{argument}.slots must be unique names of letters, digits and '_' other than "
            f"{', '.join(RESERVED)}, got {slots!r}"
        )


def _check_signature(rule: Optimizer, argument: str) -> None:
    try:
        signature(rule.update).bind(None, None, None, None)
    except ValueError:
        return  # compiled functions have no signature to check
    except TypeError as error:
        raise TypeError(
            f"{argument}.update must take (parameters, gradient, slots, step): {error}"
        ) from error


def _travelled(rule: Optimizer, argument: str) -> Optimizer:
    """Return the copy of a rule that a worker would get."""
    try:
        copy: Optimizer = cloudpickle.loads(cloudpickle.dumps(rule))
    except Exception as error:
        raise TypeError(
            f"{argument} must be picklable, because workers on other machines apply it: {error!r}"
        ) from error
    return copy


def _try(rule: Optimizer, argument: str) -> None:
    """Apply some updates of a rule to eight parameters; raise if it is no update in place."""
    parameters = np.array([0, 1, -1, 2, 0, 0.5, -3, 1], np.float32)
    gradient = np.array([1, -1, 0.5, 2, -2, 1, 1, -0.25], np.float32)
    update: Callable[..., object] = rule.update
    try:
        slots = initial_slots(rule, parameters.size)
        before = [vector.copy() for vector in (parameters, *slots.values())]
        for step in range(2):
            returned = update(parameters, _read_only(gradient), slots, step)
            if returned is not None:
                raise TypeError(
                    f"{argument}.update must change parameters and slots in place "
                    f"(parameters -= ...) and return None, it returned {_brief(returned)}"
                )
    except Exception as error:
        error.add_note(f"in a trial of {argument} on eight parameters, before training")
        raise
    if _is_unchanged(before, parameters, slots) and _still_moves_nothing(rule, parameters, slots):
        raise ValueError(
            f"{argument}.update changed neither parameters nor slots in a trial: it must change "
            "them in place (parameters -= ... or parameters[:] = ..., not parameters = ...)"
        )


def _still_moves_nothing(rule: Optimizer, parameters: Float32Array, slots: Slots) -> bool:
    """Whether a late step changes nothing, too; a rule may begin with a rate of zero."""
    before = [vector.copy() for vector in (parameters, *slots.values())]
    try:
        rule.update(parameters, _read_only(np.ones_like(parameters)), slots, 1000)
    except Exception:
        return False  # a list of rates may be shorter: nothing is known
    return _is_unchanged(before, parameters, slots)


def _is_unchanged(before: list[Float32Array], parameters: Float32Array, slots: Slots) -> bool:
    now = (parameters, *slots.values())
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, now, strict=True))


def _brief(value: object) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)


def _read_only(vector: Float32Array) -> Float32Array:
    view = vector[:]
    view.flags.writeable = False
    return view


def initial_slots(optimizer: Optimizer, size: int) -> Slots:
    """Return the first content of a rule's slots, float32 of shape (size,) each.

    Raises
    ------
    ValueError
        The rule's own `initial_slot` returns another shape.
    """
    make = getattr(optimizer, "initial_slot", None)
    slots: Slots = {}
    for name in optimizer.slots:
        vector = np.zeros(size, np.float32) if make is None else np.asarray(make(name, size))
        if vector.shape != (size,):
            raise ValueError(
                f"optimizer.initial_slot({name!r}, {size}) must have shape ({size},), "
                f"got {vector.shape}"
            )
        slots[name] = np.array(vector, np.float32)
    return slots


def prepared_update(optimizer: Optimizer, step: int) -> Update:
    """Return the update of one step, to be applied to one slice after another.

    A schedule is asked here, and once, so that it cannot fail between two slices.
    """
    if isinstance(optimizer, UpdateRule) and not is_own(optimizer):
        rate = optimizer.rate(step)
        return lambda parameters, gradient, slots: optimizer.apply(
            parameters, gradient, slots, step, rate
        )
    return lambda parameters, gradient, slots: optimizer.update(
        parameters, _read_only(gradient), slots, step
    )


def kept_of(optimizer: Optimizer) -> str | JsonObject:
    """Return what a checkpoint keeps of a rule: its name, or the class and slots of a user's.

    Its numbers are not kept, because the rule is given again when a run resumes.
    """
    if isinstance(optimizer, UpdateRule) and not is_own(optimizer):
        return optimizer.name
    return {"class": type(optimizer).__qualname__, "slots": list(optimizer.slots)}
