"""Numbered commands: each is carried out once, and a repeat gets the first answer again."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from dbdask.errors import Stale

REMEMBERED = 64  # commands whose answers are kept for a repeat


@dataclass
class Answers:
    """The answers to the last commands, by number. They are part of an actor's state."""

    kept: dict[int, Any] = field(default_factory=dict)
    forgotten: int = -1
    """The newest command whose answer is kept no more."""

    def __contains__(self, number: int) -> bool:
        return number in self.kept

    def remember(self, number: int, answer: Any) -> None:
        """Keep an answer, and forget the oldest if there are too many."""
        self.kept[number] = answer
        if len(self.kept) > REMEMBERED:
            self.forgotten = min(self.kept)
            del self.kept[self.forgotten]

    def copy(self) -> "Answers":
        """Return answers that change independently of these."""
        return Answers(dict(self.kept), self.forgotten)


class Commands:
    """The commands that an actor is carrying out, on its event loop."""

    def __init__(self) -> None:
        self._under_way: dict[int, asyncio.Future[Any]] = {}

    async def once(
        self,
        answers: Answers,
        number: int,
        name: str,
        carry_out: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Return the answer to a command; carry it out if that was not done before.

        A command that has begun goes on to its end, even if its caller is cancelled.

        Raises
        ------
        Stale
            The command is older than those whose answers are kept.
        """
        if number in answers:
            return answers.kept[number]
        if number not in self._under_way:
            if number <= answers.forgotten:
                raise Stale(f"command {number} ({name}) is older than those that a shard remembers")
            self._under_way[number] = asyncio.ensure_future(self._do(answers, number, carry_out))
        return await asyncio.shield(self._under_way[number])

    async def _do(
        self, answers: Answers, number: int, carry_out: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Any:
        try:
            answer = await carry_out()
            answers.remember(number, answer)
            return answer
        finally:
            del self._under_way[number]

    async def ended(self) -> None:
        """Wait until the commands that are under way have ended, however they end."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
