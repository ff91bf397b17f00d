"""Chat, pagers, webhooks and the rest, by Apprise, in a process of its own for each message.

Why not in this process: Apprise's plugins (2.3.0, through requests) have a time limit for each read only, which a slow
server resets with every byte, and sleep between requests to the same service; they read proxies and passwords from the
environment and ~/.netrc; they log URLs, and answers of services with them. A process can be ended at the deadline
whatever it does, has the environment that it is given, and takes Apprise's 40 MB with it when it goes. It costs half a
second of computing for each message, of which there are few.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from forwarder.secrets import Secret
from forwarder.sinks.notify.courier import Failed, Sent
from forwarder.sinks.notify.texts import Message

INSTALL: Final = "pip install 'litellm-forwarder[notify]'"
# What chat services take for a call to everybody, or for markup of their own, when a name happens to hold it.
_CALLS: Final = re.compile(r"@(?=(everyone|here|channel|all)\b)|<(?=[!@#&])", re.IGNORECASE)
_HELPER: Final = "forwarder.sinks.notify.child"


class Service:
    """Delivers to what one Apprise URL names. `proxy`: a forward proxy; `ca_file`: authorities to trust."""

    def __init__(
        self,
        url: Secret,
        *,
        proxy: str | None = None,
        ca_file: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._proxy = proxy
        self._ca_file = ca_file
        self._monotonic = monotonic

    def deliver(self, message: Message, *, timeout: float) -> Sent | Failed:
        request = {
            "url": self._url.reveal(),
            "title": harmless(message.subject),
            "body": harmless(message.text),
            "type": "success" if message.good else {"error": "failure"}.get(message.severity, message.severity),
            "timeout": timeout,
        }
        try:
            answer = self._ask(json.dumps(request).encode(), self._monotonic() + timeout)
        except TimeoutError:
            return Failed("the service did not answer in time", "correct the address, or raise the timeout")
        except OSError as error:
            return Failed(f"the helper process cannot be run: {os.strerror(error.errno or 0)}", "mend the machine")
        return understood(answer)

    def _ask(self, request: bytes, until: float) -> bytes:
        """Start the helper, hand it the request and read its answer to the end. The secret goes through the socket,
        because arguments and environments of processes can be seen. Raises OSError.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                helper = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of ours
                    [sys.executable, "-P", "-m", _HELPER],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=self._environment(),
                    start_new_session=True,  # Ctrl-C in a terminal is for the agent, which drains first
                )
            try:
                ours.settimeout(max(until - self._monotonic(), 0.001))
                ours.sendall(request)
                ours.shutdown(socket.SHUT_WR)
                answer = b""
                while data := _received(ours, until - self._monotonic()):
                    answer += data
                return answer
            finally:
                helper.kill()
                # Not with a timeout, for which subprocess sleeps and looks; what is killed ends.
                helper.wait()

    def _environment(self) -> dict[str, str]:
        """Only what is needed, so that nothing else decides where messages go."""
        given = {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
            "HOME": "/nonexistent",
            "NETRC": os.devnull,
            "NO_PROXY": "" if self._proxy else "*",
        }
        if self._proxy:
            given |= {"HTTP_PROXY": self._proxy, "HTTPS_PROXY": self._proxy}
        if self._ca_file:
            given |= {"REQUESTS_CA_BUNDLE": str(self._ca_file), "SSL_CERT_FILE": str(self._ca_file)}
        return given


def _received(ours: socket.socket, left: float) -> bytes:
    if left <= 0:
        raise TimeoutError
    ours.settimeout(left)
    with contextlib.suppress(ConnectionError):  # the helper was ended from outside
        return ours.recv(4096)
    return b""


def harmless(text: str) -> str:
    """The text without what chat services act on: a zero-width space parts it."""
    return _CALLS.sub(lambda found: f"{found[0]}\u200b", text)


def understood(answer: bytes) -> Sent | Failed:
    """What the helper's answer means."""
    try:
        said: Any = json.loads(answer)
        why, status = said["why"], said["status"]
    except (ValueError, KeyError, TypeError):
        return Failed("Apprise ended without an answer", "try `litellm-forwarder notify test`; look at memory limits")
    if why == "failed" and isinstance(status, int):
        return _told(status)
    return Sent() if why == "taken" else _SAID.get(str(why), _NO_WORD)


_NO_WORD: Final = Failed(
    "the service cannot be reached, or did not take the message", "check the host, proxy and ca_file"
)
_SAID: Final = {
    "missing": Failed("Apprise is not installed", INSTALL, wrong=True),
    "url": Failed("Apprise does not know such a URL", "see github.com/caronc/apprise/wiki for its form", wrong=True),
}


def _told(status: int) -> Failed:
    match status:
        case 401 | 403 | 407:
            return Failed(f"the service refuses the credentials ({status})", "renew those in the URL", wrong=True)
        case 404 | 410:
            return Failed(f"the service does not know the address ({status})", "correct the URL", wrong=True)
        case 408 | 425 | 429:
            return Failed(f"the service asks to come later ({status})", "it is tried again")
        case _ if 300 <= status <= 399:
            return Failed(f"the service redirects ({status})", "put where it leads to into the URL", wrong=True)
        case _ if 400 <= status <= 499:
            return Failed(f"the service refuses the message ({status})", "look at what the URL asks for", wrong=True)
        case _:
            return Failed(f"the service fails ({status})", "it is tried again")
