"""Blocking calls that hang hold up neither the others nor the end."""

import asyncio
import signal
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from backends.litellm import FakeLiteLLM
from http_support import until
from lookups_support import Resolver
from program import agent

from forwarder.threads import MOST_NAMES, DaemonThreads, Lookups, TooManyLookups


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
    """Beyond it a call fails at once."""
    never = threading.Event()
    executor = DaemonThreads(20)
    hanging = [executor.submit(never.wait) for _ in range(20)]
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


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_name_is_looked_up_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks meanwhile gets the same answer, those apart who have given up; whoever asks later, a new one."""
    resolver = Resolver(monkeypatch)
    lookups = Lookups()
    waiting = [lookups.submit("a.slow.test", 80) for _ in range(300)]
    others = [lookups.submit("b.slow.test", 80), lookups.submit("fast.test", 80)]
    assert others[1].result(timeout=20)[0][4] == ("127.0.0.1", 80)
    assert waiting[7].cancel()
    resolver.answer.set()
    for future in (*waiting[:7], *waiting[8:], others[0]):
        assert future.result(timeout=20)[0][4] == ("127.0.0.1", 80)
    assert sorted(resolver.asked) == ["a.slow.test", "b.slow.test", "fast.test"]
    resolver.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(socket.gaierror):
        lookups.submit("a.slow.test", 80).result(timeout=20)


async def test_names_that_hang_delay_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many as there may be, one more name fails at once, and says why; work goes on; all is well after it."""
    resolver = Resolver(monkeypatch)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads())
    hanging = [asyncio.ensure_future(loop.getaddrinfo(f"{n}.slow.test", 80)) for n in range(MOST_NAMES)]
    await until(lambda: len(resolver.asked) == MOST_NAMES)
    with pytest.raises(TooManyLookups):
        await loop.getaddrinfo("good.test", 80)
    again = asyncio.ensure_future(loop.getaddrinfo("7.slow.test", 80))
    assert await asyncio.gather(*(asyncio.to_thread(lambda n: n, n) for n in range(300))) == list(range(300))
    resolver.answer.set()
    await asyncio.gather(*hanging, again)
    assert len(resolver.asked) == MOST_NAMES
    assert await loop.getaddrinfo("good.test", 80)


def test_a_machine_without_threads_is_no_failed_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told apart, and the name can be asked for again."""
    Resolver(monkeypatch)
    lookups = Lookups()

    def start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", start)
        failed: Future[Any] = lookups.submit("good.test", 80)
        assert isinstance(failed.exception(timeout=20), TooManyLookups)
    assert lookups.submit("good.test", 80).result(timeout=20)


# Names that hang until a file is there; each lookup leaves a line.
HANGING = """
import os, pathlib, socket, time
here, right = pathlib.Path(__file__).parent, socket.getaddrinfo

def getaddrinfo(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    if not (name or "").endswith(".slow.test"):
        return right(host, *rest, **more)
    with (here / "asked").open("a") as file:
        file.write(name + chr(10))
    while not (here / "answer").exists():
        time.sleep(0.05)
    return right("127.0.0.1", *rest, **more)

socket.getaddrinfo = getaddrinfo
"""


async def test_an_agent_whose_names_hang_polls_the_others_and_reloads(tmp_path: Path) -> None:
    """Many targets whose names hang: one that answers stays up, a hang-up is heard, and they recover by themselves."""
    names = [f"n{n}.slow.test" for n in range(20)]
    async with FakeLiteLLM() as proxy:
        port = proxy.url.rpartition(":")[2]
        urls = {name: f"http://{name}:{port}" for name in names} | {"good": f"http://localhost:{port}"}
        text = '[agent]\nstate_dir = "state"\nlisten = "off"\n[sinks.out]\ntype = "console"\n'
        for name, url in urls.items():
            text += f'[[targets]]\nname = "{name}"\nurl = "{url}"\ninterval = "1s"\ntimeout = "1s"\n'
            text += "health = { enabled = false }\nmetrics = { enabled = false }\n"
        (tmp_path / "config.toml").write_text(text)
        (tmp_path / "sitecustomize.py").write_text(HANGING)
        async with agent(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as running:

            def up() -> dict[str, list[float]]:
                """What was said of each target, in order."""
                found: dict[str, list[float]] = {name: [] for name in urls}
                for event in running.events():
                    if event["name"] == "litellm.up":
                        found[event["resource"]["litellm.target"]].append(event["value"])
                return found

            await running.until(lambda: len(up()["good"]) >= 6 and all(len(each) >= 3 for each in up().values()))
            running.signal(signal.SIGHUP)
            await running.until(lambda: "reloaded" in running.err())
            found = up()
            assert set(found.pop("good")) == {1.0}
            assert all(set(each) == {0.0} for each in found.values())
            assert sorted((tmp_path / "asked").read_text().split()) == sorted(names)
            (tmp_path / "answer").touch()
            await running.until(lambda: all(each[-1] == 1.0 for each in up().values()))
            assert "bug in" not in running.err()
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
