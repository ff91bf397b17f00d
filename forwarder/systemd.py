"""What systemd is told (sd_notify(3)): a datagram to the socket that NOTIFY_SOCKET names, if it names one."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from forwarder.logs import one_line

STATUS_LENGTH: Final = 200


class Notifier:
    """Says what the service does. Without a socket, or when nobody reads it, nothing happens: a service manager that
    does not listen is no reason to stop.
    """

    def __init__(self, environ: Mapping[str, str], *, pid: int | None = None) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL of an abstract name. systemd may also name a vsock, for whole machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address if address.startswith("/") else ""
        mine = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid() if pid is None else pid))
        self.watchdog: Final = _seconds(environ.get("WATCHDOG_USEC", "")) if self._address and mine else None
        self._status = ""

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        # The time is how systemd tells this reload from an earlier one (Type=notify-reload).
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """`seconds`: how long that may take. TimeoutStopSec, where it is shorter, is extended to it."""
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def alive(self) -> None:
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; told when it differs from the last."""
        if text != self._status:
            self._status = text
            self._send("STATUS=" + one_line(text)[:STATUS_LENGTH])

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.setblocking(False)
                connection.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            return


def _seconds(microseconds: str) -> float | None:
    """A positive number of them, or None."""
    return int(microseconds) / 1e6 if microseconds.isascii() and microseconds.isdigit() and int(microseconds) else None
