"""The bottleneck of a call in words, with the argument, or the property of the data, to change."""

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.metrics.call_time import ENDING, STARTING, CallSeconds
from dbdask.metrics.time_spent import seconds_by_activity, seconds_of_replicas

WAITED_FOR = 0.1
"""The others wait for the slowest part if it waits less than they do by this share of the time."""

READING = (
    "a store with larger chunks along the dimensions of along= would help, or a larger "
    "memory_limit of the workers, which then keep more chunks for the next pass"
)
ADVICE = {
    "reading": READING,
    "computing": "more workers, or a larger batch_size on more cores, would help",
    "fetching": "a larger n_fetch would help, or workers on one host",
    "pushing": "a larger n_push would help, or local_optimizer with n_push of some dozens",
    "exchanging": "fewer partitions would help, or a larger batch_size, or workers on one host",
    "waiting": "longer portions would help: more data, or a larger snapshot_every",
}
"""What to change in a call of Downpour, by activity."""

ADVICE_FOR_PASSES = {
    "reading": READING,
    "computing": "more workers would help",
    "fetching": "workers on one host would help, or fewer of them with more threads each",
    "pushing": "shard_copies=1 would help, or workers on one host, or fewer with more threads each",
    "exchanging": "fewer partitions would help, or workers on one host",
    "waiting": "fewer workers would help if a pass takes less than a second, else a smaller "
    "portion_size, which divides it more evenly",
    "evaluating": "more workers would help",
    "commanding": "fewer shards, or a smaller history_length, would help",
    "other": "a larger snapshot_every, or validate_every, would help",
}
"""What to change in a call of Sandblaster, by activity."""

IN_WORDS = {
    "checking": "checking the arguments and opening the checkpoint",
    "cluster": "starting a cluster of the call's own",
    "workers": "waiting for workers, which import dbdask and open the data",
    "shards": "making the shards",
    "first_task": "opening the model on the workers",
    "concluding": "the last validation and what was under way",
    "parameters": "writing and reading the parameters",
    "releasing": "releasing the cluster",
}
OPEN_CLIENT = "a client= that stays open for several calls"
REMEDIES = {
    "cluster": OPEN_CLIENT,
    "workers": OPEN_CLIENT,
    "concluding": "fewer examples of validation=",
    "parameters": "a faster store of checkpoint=",
}
"""What else helps than fewer, longer calls, by the longest stage before or after the training."""


def bottleneck(history: xr.Dataset) -> str:
    """Return a sentence that names what takes most time, and what changes it.

    That may be the start and the end of a short call. A second sentence names the part of a
    partitioned replica for which the others wait. "" where the history tells nothing of it.
    """
    found = _most_time(history), _slowest_part(history)
    return " ".join(sentence for sentence in found if sentence)


def _most_time(history: xr.Dataset) -> str:
    call = CallSeconds.from_attributes(history.attrs)
    seconds = _of_call(seconds_by_activity(history), call)
    total = sum(seconds.values())
    most = max(seconds, key=lambda name: seconds[name], default="")
    share = seconds[most] / total if total else 1.0
    if call is not None and call.total:
        if call.starting + call.ending > share * call.training:
            return _of_start_and_end(call, "iterations" if "iteration" in history else "epochs")
        share *= call.training / call.total
    if not total:
        return ""
    is_of_passes = "seconds_evaluating" in history
    advice = (ADVICE_FOR_PASSES if is_of_passes else ADVICE)[most]
    what = f"waiting between {'bundles' if is_of_passes else 'portions'}"
    what = what if most == "waiting" else most
    return f"{what.capitalize()} takes {share:.0%} of the time: {advice}."


def _of_start_and_end(call: CallSeconds, unit: str) -> str:
    around = {name: getattr(call, name) for name in (*STARTING, *ENDING)}
    longest = max(around, key=lambda name: around[name])
    remedy = REMEDIES.get("cluster" if longest == "releasing" and call.cluster else longest)
    also = f", or {remedy}" if remedy else ""
    return (
        f"Starting and ending take {(call.starting + call.ending) / call.total:.0%} of the time "
        f"({call.starting:.2g} s and {call.ending:.2g} s), most of it {IN_WORDS[longest]}: fewer, "
        f"longer calls with more {unit} would help{also}."
    )


def _of_call(parts: dict[str, Float64Array], call: CallSeconds | None) -> dict[str, float]:
    """Return the seconds of the last call by activity; of all, if the history does not tell."""
    first = 0 if call is None else call.first_record
    return {
        name: float(values[-1] - (values[first - 1] if first else 0.0))
        for name, values in parts.items()
        if len(values)
    }


def _slowest_part(history: xr.Dataset) -> str:
    """Return a sentence on the part that waits least, if the others wait much for it; else ''."""
    exchanging = exchanged(history)
    call = CallSeconds.from_attributes(history.attrs)
    total = sum(_of_call(seconds_of_replicas(history), call).values())
    if len(exchanging) < 2 or not total:
        return ""
    slowest = int(np.argmin(exchanging))
    others = np.delete(exchanging, slowest)
    share = float(others.mean() - exchanging[slowest]) * len(exchanging) / total
    if share < WAITED_FOR:
        return ""
    wait = "part waits" if len(others) == 1 else "parts wait"
    return (
        f"Part {slowest} is the slowest: the other {wait} for it {share:.0%} of the time; workers "
        "of one speed, each with a core of its own (workers=), or layers whose rows partitions "
        "divides, would help."
    )


def exchanged(history: xr.Dataset) -> Float64Array:
    """Return the seconds that each part has exchanged in the last call: float64 (parts,).

    Empty if replicas have no parts.
    """
    if "seconds_exchanging_by_part" not in history:
        return np.zeros(0)
    call = CallSeconds.from_attributes(history.attrs)
    rows = history["seconds_exchanging_by_part"].values
    now, before = _last_known(rows), _last_known(rows[: 0 if call is None else call.first_record])
    return now - before if len(before) == len(now) else now  # another cut has begun anew


def _last_known(rows: Float64Array) -> Float64Array:
    """Return the numbers of the last row that has any; (records, parts) becomes (parts,)."""
    known = rows[np.isfinite(rows).any(axis=1)]
    if not len(known):
        return np.zeros(0)
    last: Float64Array = known[-1]
    return last[np.isfinite(last)]
