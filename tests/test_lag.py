"""What the tests watch event loops with."""

import asyncio
import threading
import time

from lag import EVERY, Watch


def test_a_call_that_waits_on_a_loop_is_its_lag_and_a_wait_beside_it_is_none():
    async def story():
        watch = Watch()
        begun = time.monotonic()
        while watch.longest < 10 * EVERY:  # on the loop, which stands still meanwhile
            assert time.monotonic() - begun < 30
            threading.Event().wait(EVERY)
        assert watch.end() >= 10 * EVERY
        other = Watch()
        looks = threading.Event()
        await asyncio.to_thread(looks.wait, 20 * EVERY)
        return other.end()

    assert asyncio.run(story()) < 10 * EVERY
