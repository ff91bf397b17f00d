"""Where the notify sink delivers: a mail server (aiosmtpd) that wants TLS and a log-in, and a webhook. In a thread of
their own, because the sink blocks.
"""

import asyncio
import email
import json
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.message import EmailMessage
from email.policy import default
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from backends.facts import Fact, Fault
from backends.http_server import Answer, Request, Response, ScriptedServer, endless, hang, raw
from forwarder.config_notify import mailbox
from forwarder.events import Batch
from forwarder.secrets import Secret
from forwarder.sinks.base import Limits, Outcome
from forwarder.sinks.notify import folding, planning
from forwarder.sinks.notify.courier import Courier
from forwarder.sinks.notify.mail import Mail
from forwarder.sinks.notify.memory import Memory
from forwarder.sinks.notify.rules import Rules
from forwarder.sinks.notify.service import Service, harmless
from forwarder.sinks.notify.sink import NotifySink, Style
from forwarder.sinks.notify.texts import Message, compose
from forwarder.transport import tls_context

T = TypeVar("T")
Mode = Literal["starttls", "ssl", "plain"]
USER: Final = "agent@example.test"
PASSWORD: Final = "canary-5f1d0c2e"
RULES: Final = Rules(group=0.0)
STYLE: Final = Style(UTC)


class InThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass(frozen=True)
class Received:
    """One e-mail as it arrived, with the addresses of its envelope."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage

    def part(self, kind: str) -> str:
        part = self.message.get_body((kind,))
        assert part is not None
        return str(part.get_content()).replace("\r\n", "\n")


class MailServer:
    """Takes e-mail from who logs in over TLS. `refuse`: the answer that a command (`RCPT ops@…`, `DATA`) gets."""

    def __init__(
        self, mode: Mode = "starttls", *, password: str = PASSWORD, names: Sequence[str] = ("127.0.0.1",)
    ) -> None:
        self.mode = mode
        self.received: list[Received] = []
        self.connections = 0
        self.refuse: dict[str, str] = {}
        self.fault: bytes | Literal["hang", "slow", "close"] | None = None
        self._password = password
        self._folder = Path(tempfile.mkdtemp())
        self.ca_file = self._folder / "ca.pem"
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self.ca_file))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names).configure_cert(self._tls)
        self._thread = InThread()
        self._transports: set[asyncio.BaseTransport] = set()
        self._server = self._thread.run(self._listen(0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self, port: int) -> asyncio.Server:
        implicit = self._tls if self.mode == "ssl" else None
        return await self._thread.loop.create_server(self._connection, "127.0.0.1", port, ssl=implicit)

    def url(self, more: str = "", *, user: str = USER, password: str | None = None) -> str:
        scheme, mode = ("mailto", "") if self.mode == "plain" else ("mailtos", f"&mode={self.mode}")
        login = "" if self.mode == "plain" else f"{user.replace('@', '%40')}:{password or PASSWORD}@"
        return f"{scheme}://{login}127.0.0.1:{self.port}/?from={USER}{mode}{more or '&to=ops@example.test'}"

    def away(self) -> None:
        """Nothing listens any more."""
        self._thread.run(self._close())

    def back(self) -> None:
        self._server = self._thread.run(self._listen(self.port))

    async def _close(self) -> None:
        self._server.close()
        for transport in self._transports:
            if isinstance(transport, asyncio.Transport):
                transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def close(self) -> None:
        self._thread.run(self._close())
        self._thread.close()
        shutil.rmtree(self._folder)

    def take(self) -> list[Received]:
        taken, self.received = self.received, []
        return taken

    def _connection(self) -> asyncio.BaseProtocol:
        self.connections += 1
        if self.fault is not None:
            return _Odd(self)
        guarded = self.mode != "plain"
        server = _Server(
            _Handler(self),
            hostname="mail.test",
            tls_context=self._tls if self.mode == "starttls" else None,
            require_starttls=self.mode == "starttls",
            auth_required=self.mode == "starttls",
            auth_require_tls=self.mode == "starttls",
            authenticator=self._authenticate if guarded else None,
            loop=self._thread.loop,
        )
        server.owner = self
        return server

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data == LoginPassword(USER.encode(), self._password.encode())
        return AuthResult(success=good, handled=False)


class _Server(SMTP):
    owner: MailServer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.owner._transports.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is not None:
            self.owner._transports.discard(self.transport)
        super().connection_lost(error)


class _Odd(asyncio.Protocol):
    """What is no mail server, or a very slow one."""

    def __init__(self, owner: MailServer) -> None:
        self._owner = owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._owner._transports.add(transport)
        match self._owner.fault:
            case bytes(said):
                transport.write(said)
            case "close":
                transport.abort()
            case "slow":
                self._drip(transport)
            case _:
                pass

    def _drip(self, transport: asyncio.Transport) -> None:
        if not transport.is_closing():
            transport.write(b"220-and more\r\n")
            self._owner._thread.loop.call_later(0.02, self._drip, transport)


class _Handler:
    def __init__(self, owner: MailServer) -> None:
        self._owner = owner

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name and arguments
        self, _server: SMTP, session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self._owner.mode != "plain" and not session.authenticated:
            return "530 5.7.0 Authentication required"
        if "MAIL" in self._owner.refuse:
            return self._owner.refuse["MAIL"]
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - as above
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if answer := self._owner.refuse.get(f"RCPT {address}"):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        if "DATA" in self._owner.refuse:
            return self._owner.refuse["DATA"]
        content = envelope.content
        assert isinstance(content, bytes)
        message = email.message_from_bytes(content, policy=default)
        assert isinstance(message, EmailMessage)
        self._owner.received.append(Received(envelope.mail_from or "", tuple(envelope.rcpt_tos), message))
        return "250 OK"


class Webhook:
    """Takes what Apprise's json:// posts."""

    def __init__(self) -> None:
        self.answer: Answer = Response(200)
        self._thread = InThread()
        self.server = ScriptedServer(lambda _: self.answer)
        self._thread.run(self.server.__aenter__())

    def url(self, more: str = "") -> str:
        return f"json://agent:{PASSWORD}@127.0.0.1:{self.server.port}/hook{more}"

    @property
    def requests(self) -> list[Request]:
        return self.server.requests

    def take(self) -> list[dict[str, Any]]:
        taken = [json.loads(request.body) for request in self.server.requests]
        self.server.requests.clear()
        return taken

    def close(self) -> None:
        self._thread.run(self.server.stop())
        self._thread.close()


# --- for the contract suite ---------------------------------------------------------------------------------------

FAULTS: Final[dict[Fault, bytes | Literal["hang", "slow", "close"]]] = {
    "hang": "hang",
    "slow": "slow",
    "close": "close",
    "refuse": b"554 mail.test takes nothing from you\r\n",
    "garbage": b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
}


class MailAddress(NamedTuple):
    url: str
    ca_file: str


class MailReceiver:
    fds: tuple[int, ...] = ()
    broken = 0

    def __init__(self, mode: Mode) -> None:
        self._server = MailServer(mode)
        self.address = MailAddress(self._server.url(), str(self._server.ca_file))
        self.attempts = 0

    def misbehave(self, fault: Fault | None) -> None:
        self._server.fault = FAULTS[fault] if fault else None

    def take(self, at_least: int = 0) -> list[Fact]:  # noqa: ARG002 - a mail has arrived when it was taken
        self.attempts, self._server.connections = self._server.connections, 0
        return [
            Fact("mail", [one.message["subject"], one.part("plain"), one.part("html")], {"to": one.recipients[0]}, 0)
            for one in self._server.take()
        ]

    def close(self) -> None:
        self._server.close()


class HookReceiver:
    fds: tuple[int, ...] = ()
    broken = 0
    answers: Final[dict[Fault, Answer]] = {
        "hang": hang(),
        "slow": endless(b"HTTP/1.1 200 OK\r\nx: ", b"y", every=0.02),
        "refuse": Response(403),
        "close": raw(),
        "garbage": raw(b"220 mail.test ESMTP\r\n"),
    }

    def __init__(self) -> None:
        self._hook = Webhook()
        self.address = self._hook.url()
        self.attempts = 0

    def misbehave(self, fault: Fault | None) -> None:
        self._hook.answer = self.answers[fault] if fault else Response(200)

    def take(self, at_least: int = 0) -> list[Fact]:  # noqa: ARG002 - it has arrived when it was answered
        self.attempts = self._hook.server.connections
        self._hook.server.connections = 0
        return [Fact("webhook", [one["title"], one["message"]], {"type": one["type"]}, 0) for one in self._hook.take()]

    def close(self) -> None:
        self._hook.close()


class Forgetting:
    """The sink as it is after its first start, for every send: what the suite sends again it wants told again."""

    def __init__(self, courier: Courier) -> None:
        self._sink = NotifySink("people", courier, RULES, STYLE, clock=_long_ago)
        self.name = self._sink.name
        self.limits: Limits = self._sink.limits

    def __repr__(self) -> str:
        return f"Forgetting({self._sink!r}, {vars(self._sink)!r})"

    def send(self, batches: Sequence[Batch], *, timeout: float) -> Outcome:
        self._sink.recall(b"")
        outcome = self._sink.send(batches, timeout=timeout)
        assert isinstance(self._sink.memo, bytes), "what is remembered can be stored"
        return outcome

    def close(self) -> None:
        self._sink.close()


def _long_ago() -> int:
    """Before every event, so that none is late."""
    return 0


@cache
def _context(ca_file: str) -> ssl.SSLContext:
    return tls_context(Path(ca_file), None, None)


def build_mail(address: MailAddress) -> Forgetting:
    box = mailbox(Secret(address.url))
    assert box is not None
    return Forgetting(Mail(box, _context(address.ca_file), clock=_long_ago))


def build_webhook(address: str) -> Forgetting:
    return Forgetting(Service(Secret(address)))


def _message(batches: Sequence[Batch]) -> Message | None:
    plan = planning.plan(folding.fold(Memory(), batches, RULES, 0), RULES, 0)
    return None if plan is None else compose(plan, sink="people", zone=UTC)


def expect_mail(batches: Sequence[Batch]) -> list[Fact]:
    """One mail with the words of the message, whole; how they are chosen is what test_notify_texts.py is about."""
    said = _message(batches)
    return [] if said is None else [Fact("mail", [said.subject, said.text, said.html], {"to": "ops@example.test"}, 0)]


def expect_webhook(batches: Sequence[Batch]) -> list[Fact]:
    said = _message(batches)
    if said is None:
        return []
    kind = "success" if said.good else {"error": "failure"}.get(said.severity, said.severity)
    return [Fact("webhook", [harmless(said.subject), harmless(said.text).rstrip()], {"type": kind}, 0)]


RECEIVERS: Final[dict[str, Callable[[], Any]]] = {
    "mail": lambda: MailReceiver("starttls"),
    "mail-ssl": lambda: MailReceiver("ssl"),
    "webhook": HookReceiver,
}
