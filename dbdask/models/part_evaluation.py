"""One minibatch through a part of a cut network, and the decision of all parts on it."""

import math

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.decision import decide
from dbdask.models.evaluation import (
    Evaluated,
    Step,
    is_unwritten,
    mark_unwritten,
    unwritten_message,
)
from dbdask.models.exchange import Exchanging
from dbdask.models.part import Part
from dbdask.optim.gradients import (
    divide_and_measure,
    first_bad_parameter,
    is_good,
    minibatch_seed,
    weight_of,
)

ELSEWHERE = "a parameter of another part"


class PartEvaluator:
    """Evaluates the minibatches of one task with a part, as `Evaluator` does with a whole model.

    Parameters
    ----------
    part
        The part.
    seed
        Of the run.
    """

    def __init__(self, part: Part, seed: int = 0) -> None:
        self.part, self.seed = part, seed
        self._is_first = True

    def minibatch(
        self,
        parameters: Float32Array,
        batch: Step,
        portion: tuple[int, int],
        *,
        gradient: Float32Array,
        as_mean: bool,
    ) -> Exchanging[Evaluated]:
        """Evaluate a minibatch of a portion; the value is the same in all parts.

        Loss and norm are those of the whole network. If any part has a number that is not finite,
        `bad` is set in all of them: either all parts push the step, or none does.

        Parameters
        ----------
        parameters, gradient
            The part's range of the cut vector, float32 (n,); `gradient` is overwritten.
        batch, portion, as_mean
            As for `Evaluator.minibatch`.

        Raises
        ------
        ModelError
            The first minibatch did not overwrite the gradient.
        """
        assert batch.targets is not None
        if self._is_first:
            mark_unwritten(gradient)
        loss = yield from self.part.loss_and_gradient(
            parameters,
            batch.inputs,
            batch.targets,
            weights=batch.weights,
            seed=minibatch_seed(self.seed, *portion, batch.step),
            gradient=gradient,
        )
        if self._is_first:
            self._check_written(gradient)
            self._is_first = False
        weight = weight_of(batch.weights, len(batch.inputs))
        norm = divide_and_measure(gradient, weight if as_mean else 1.0) if weight > 0 else 0.0
        decision = yield from decide(self.part.index, self.part.cut.parts, loss, norm)
        bad = "" if decision.counts else self._bad(loss, norm, gradient)
        return Evaluated(decision.loss, weight, decision.gradient_norm, bad)

    def _check_written(self, gradient: Float32Array) -> None:
        names = [name for name, start, stop in self._places() if is_unwritten(gradient[start:stop])]
        if names:
            raise ModelError(unwritten_message(names, len(self._places())))

    def _bad(self, loss: float, norm: float, gradient: Float32Array) -> str:
        """Name the culprit, if it is in this part."""
        if is_good(loss, norm):
            return ELSEWHERE
        if math.isfinite(norm):
            return "the loss"
        places = self._places()
        return first_bad_parameter(gradient, [p[0] for p in places], [p[1] for p in places])

    def _places(self) -> list[tuple[str, int, int]]:
        """Return name, first element and end of each parameter in the part's vector."""
        return [
            (f"{stage.name}_{piece.name}", piece.start, piece.stop)
            for stage, pieces in zip(self.part.network.stages, self.part.pieces, strict=True)
            for piece in pieces
        ]
