"""Numbered commands: repeats, commands that are too old, and callers that give up."""

import asyncio

import pytest

from dbdask.errors import Stale
from dbdask.worker.commands import REMEMBERED, Answers, Commands


def counting():
    """A command that answers how often it was carried out."""
    times = []

    async def carry_out():
        times.append(0)
        return len(times)

    return carry_out


def test_a_repeat_that_comes_while_the_command_is_under_way_gets_its_answer():
    async def live():
        commands, answers, carry_out = Commands(), Answers(), counting()
        calls = [commands.once(answers, 1, "count", carry_out) for _ in range(3)]
        assert await asyncio.gather(*calls) == [1, 1, 1]
        assert await commands.once(answers, 1, "count", carry_out) == 1
        assert await commands.once(answers, 2, "count", carry_out) == 2

    asyncio.run(live())


def test_a_command_that_failed_is_carried_out_by_its_repeat():
    async def live():
        commands, answers = Commands(), Answers()

        async def fail():
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await commands.once(answers, 1, "fail", fail)
        assert await commands.once(answers, 1, "count", counting()) == 1

    asyncio.run(live())


def test_a_command_goes_on_though_its_caller_is_cancelled():
    async def live():
        commands, answers, released = Commands(), Answers(), asyncio.Event()

        async def carry_out():
            await released.wait()
            return "done"

        call = asyncio.ensure_future(commands.once(answers, 1, "wait", carry_out))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled() and 1 not in answers
        released.set()
        await commands.ended()
        assert await commands.once(answers, 1, "wait", counting()) == "done"

    asyncio.run(live())


def test_a_command_whose_answer_is_forgotten_is_refused():
    async def live():
        commands, answers, carry_out = Commands(), Answers(), counting()
        for number in range(REMEMBERED + 1):
            await commands.once(answers, number, "count", carry_out)
        assert 0 not in answers and 1 in answers
        with pytest.raises(Stale, match=r"command 0 \(count\) is older"):
            await commands.once(answers, 0, "count", carry_out)

    asyncio.run(live())


def test_copied_answers_change_independently():
    answers = Answers()
    answers.remember(1, "one")
    copy = answers.copy()
    answers.remember(2, "two")
    assert 1 in copy and 2 not in copy
