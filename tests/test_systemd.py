"""What the service manager is told, over a real datagram socket."""

import asyncio
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from backends.litellm import FakeLiteLLM
from program import agent, write_config

from forwarder.systemd import Notifier


class Manager:
    """systemd's end of the socket. `told` is each message as its lines."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.told: list[list[str]] = []

    def take(self) -> list[list[str]]:
        """Everything it was told so far."""
        while True:
            try:
                self.told.append(self._socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return self.told

    def names(self) -> list[str]:
        """The first word of each message, without repeats of the watchdog and the status."""
        firsts = [lines[0] for lines in self.take()]
        return [first for first in firsts if not first.startswith(("WATCHDOG", "STATUS"))]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@forwarder-{uuid.uuid4()}" if request.param == "abstract" else str(tmp_path / "notify")
    manager = Manager(name)
    yield manager
    manager.close()


def test_each_message_is_what_the_manual_asks_for(manager: Manager) -> None:
    """sd_notify(3): one datagram each; a reload carries the time that tells it from the one before."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000"})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready()
    notifier.reloading()
    notifier.stopping(2.5)
    notifier.alive()
    notifier.status("a\nREADY=0")
    ready, reloading, stopping, alive, status = manager.take()
    assert (ready, alive) == (["READY=1"], ["WATCHDOG=1"])
    assert reloading[0] == "RELOADING=1"
    assert before <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) <= before + 10**9
    assert stopping == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=2500000"]
    assert status == [r"STATUS=a\nREADY=0"]
    assert notifier.watchdog == 3.0


def test_a_status_is_told_when_it_changes(manager: Manager) -> None:
    """Not every two seconds."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for text in ("a", "a", "b", "b", "a"):
        notifier.status(text)
    assert manager.take() == [["STATUS=a"], ["STATUS=b"], ["STATUS=a"]]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "relative", "/" + "long" * 100, "@"])
def test_without_a_listener_nothing_happens(address: str) -> None:
    """A terminal, a container, a manager that is gone."""
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    notifier.ready()
    notifier.alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_it_names(environ: dict[str, str], seconds: float | None) -> None:
    """A child that inherited the variables must not speak for its parent."""
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environ}, pid=7).watchdog == seconds


def test_a_full_socket_does_not_block(tmp_path: Path) -> None:
    """A service manager that does not read holds nothing up."""
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for number in range(5000):
        notifier.status(str(number))
    assert manager.take()[0] == ["STATUS=0"]
    manager.close()


async def test_the_life_of_the_agent_as_systemd_sees_it(tmp_path: Path, manager: Manager) -> None:
    """Ready when it works, reloading and ready again (for a bad file too), fed all along, stopping."""
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], 'interval = "1s"')
        env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
        async with agent(tmp_path, env=env) as running:
            await running.until(lambda: manager.names() == ["READY=1"])
            assert "started" in running.err()
            await running.until(lambda: ["STATUS=1 of 1 targets up; sinks deliver"] in manager.take())
            running.signal(signal.SIGHUP)
            await running.until(lambda: manager.names() == ["READY=1", "RELOADING=1", "READY=1"])
            (tmp_path / "config.toml").write_text("nonsense")
            running.signal(signal.SIGHUP)
            await running.until(lambda: manager.names()[3:] == ["RELOADING=1", "READY=1"])
            fed = manager.take().count(["WATCHDOG=1"])
            await running.until(lambda: manager.take().count(["WATCHDOG=1"]) > fed + 5)
            running.signal(signal.SIGTERM)
            assert await running.ended() == 0
    assert manager.names()[-1] == "STOPPING=1"


async def test_a_process_that_is_frozen_does_not_feed_the_watchdog(tmp_path: Path) -> None:
    """Nor does one whose pid the variables do not name."""
    manager = Manager(str(tmp_path / "notify"))
    async with FakeLiteLLM() as proxy:
        write_config(tmp_path, [proxy.url], 'interval = "1s"')
        env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}
        async with agent(tmp_path, env=env) as running:
            await running.until(lambda: "READY=1" in manager.names())
            await asyncio.sleep(0.5)
            assert ["WATCHDOG=1"] not in manager.take()
    manager.close()
