"""Blocking calls that hang hold up neither the others nor the end."""

import asyncio
import threading
import time

import pytest

from forwarder.threads import MOST, DaemonThreads


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


async def test_there_is_a_limit_to_threads() -> None:
    """Beyond it a call fails at once, as an unreachable name server would have it fail."""
    never = threading.Event()
    executor = DaemonThreads()
    hanging = [executor.submit(never.wait) for _ in range(MOST)]
    with pytest.raises(OSError, match="hang already"):
        await asyncio.wrap_future(executor.submit(lambda: 1))
    never.set()
    for future in hanging:
        assert future.result(timeout=20)
    for _ in range(200):  # a thread gives its place back just after its result
        if await asyncio.sleep(0.01, executor.submit(lambda: 1).exception()) is None:
            break
    assert executor.submit(lambda: 2).result(timeout=20) == 2


async def test_errors_reach_the_caller() -> None:
    """As with any executor."""
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)
