"""Blocking calls that hang hold up neither the others nor the end."""

import asyncio
import threading
import time

import pytest

from forwarder.threads import DaemonThreads


def test_hanging_calls_delay_neither_others_nor_the_end() -> None:
    """Fifty lookups that never return: a fifty-first call goes through, and the loop closes at once."""
    never = threading.Event()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreads())
        for _ in range(50):
            loop.run_in_executor(None, never.wait)
        return await asyncio.to_thread(lambda: 7)

    began = time.monotonic()
    assert asyncio.run(main()) == 7
    assert time.monotonic() - began < 20  # the calls would wait for ever
    never.set()


async def test_errors_reach_the_caller() -> None:
    """As with any executor."""
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)
