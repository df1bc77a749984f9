"""The status of a Sandblaster run: why it stopped."""

import math

from dbdask.algorithms.gradient_pass import PassStatistics
from dbdask.optim.lbfgs import Settings, State
from dbdask.status import Status


def batch_status(reason: str, method: Settings, state: State, statistics: PassStatistics) -> Status:
    """Return the status for a reason; a search that bad gradients ended is `bad_gradients`."""
    if (
        reason == "search_failed"
        and statistics.refused_since_start
        and not math.isfinite(state.loss)
    ):
        reason = "bad_gradients"  # at the first point: no other is gone to
    refused = f"{statistics.refused_since_start} gradients were refused"
    searched = "the line search found no lower point"
    if statistics.last_refusal:
        refused += f", the last in {statistics.last_refusal}"
        searched += f"; {refused}"
    else:
        searched += ": is the loss smooth and finite?"
    messages = {
        "iterations": f"all {method.iterations} iterations are done",
        "tolerance": (
            f"the largest component of the gradient is {state.largest:.3g}, at most "
            f"tolerance={method.tolerance:g}"
        ),
        "precision": "the loss has converged to float32 precision",
        "search_failed": searched,
        "bad_gradients": refused,
        "callback": "a callback stopped the run",
        "interrupted": "the run was interrupted",
    }
    reached = f"loss {state.loss:.6g}" if statistics.passes else "no pass has ended"
    return Status(reason, f"{messages[reason]} (iteration {state.iteration}, {reached})")
