"""Why a run stopped, as data."""

from dataclasses import dataclass

GOOD = frozenset({"epochs", "iterations", "target", "tolerance", "precision", "callback"})
BAD = frozenset({"search_failed", "interrupted", "bad_gradients", "diverged"})


@dataclass(frozen=True)
class Status:
    """The reason why a run stopped, and a sentence that explains it."""

    reason: str
    """One of `epochs`, `iterations`, `target`, `tolerance`, `precision`, `search_failed`,
    `callback`, `interrupted`, `bad_gradients`, `diverged`."""
    message: str
    """The reason in words; if the run is not `ok`, with the remedy."""

    def __post_init__(self) -> None:
        assert self.reason in GOOD | BAD, self.reason

    @property
    def ok(self) -> bool:
        """Whether the run ended as it was asked to."""
        return self.reason in GOOD

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
