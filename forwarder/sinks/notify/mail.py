"""E-mail over SMTP: one message, one attempt, one deadline for all of it.

Not by Apprise (2.3.0), because its e-mail does not keep the contract: it says yes or no and not what failed, so that a
wrong password cannot be told from a server that is away; its time limit is for each read, which a slow server resets
with every byte; the plain text is converted from the HTML; each message gets a random Message-ID; and it logs who was
written to.

Traps of smtplib (CPython 3.11 to 3.13) that this steps round: without `local_hostname` its constructor looks up this
machine's name in DNS, without a limit; its timeout holds for each read; a reply may have any number of lines; a QUIT
that is not answered would make a failure of a message that was taken; and exceptions hold the server's words.
"""

import contextlib
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Final

from forwarder.config_notify import Mailbox
from forwarder.sinks.notify.courier import Failed, Sent
from forwarder.sinks.notify.texts import Message

MAX_REPLIES: Final = 256 * 1024  # bytes of all replies of one session; real ones are a few hundred
_POLICY: Final = SMTP.clone(cte_type="7bit")  # nothing depends on what a server can take
_NAME: Final = "litellm-forwarder"


class Mail:
    """Delivers to one mailbox. `context` is for TLS; the constructor does no I/O."""

    def __init__(
        self,
        mailbox: Mailbox,
        context: ssl.SSLContext,
        *,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._to = mailbox
        self._context = context
        self._clock = clock
        self._monotonic = monotonic

    def deliver(self, message: Message, *, timeout: float) -> Sent | Failed:
        written = self.write(message)
        session = _Session(self._monotonic() + timeout, self._monotonic)
        try:
            return self._converse(session, written)
        except (_Given, OSError, ValueError) as error:  # an SMTPException is an OSError
            return _failed(error)
        finally:
            session.close()

    def write(self, message: Message) -> bytes:
        """Plain text and HTML, with the headers by which mail programs keep the messages of an outage together."""
        mail = EmailMessage(_POLICY)
        mail["From"] = self._to.sender
        mail["To"] = ", ".join(self._to.recipients)
        mail["Date"] = format_datetime(datetime.fromtimestamp(self._clock() / 1e9, UTC))
        # The same content has the same id, so that a repeat after a crash can be recognised by servers and programs.
        mail["Message-ID"] = self._id(message.id)
        if message.follows:
            mail["In-Reply-To"] = self._id(message.follows[0])
            mail["References"] = " ".join(self._id(one) for one in message.follows[:20])
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no absence notes, please
        if message.severity == "error":
            mail["Importance"] = "high"
        mail.set_content(message.text)
        mail.add_alternative(message.html, subtype="html")
        return b"Subject: " + _encoded(message.subject) + b"\r\n" + mail.as_bytes()

    def _id(self, digest: str) -> str:
        return f"<{digest}@{self._to.sender.rpartition('@')[2] or _NAME}>"

    def _converse(self, session: "_Session", written: bytes) -> Sent | Failed:
        box = self._to
        session.begin(box.server, box.port, self._context if box.mode == "ssl" else None)
        session.ehlo_or_helo_if_needed()
        if box.mode == "starttls":
            if not session.has_extn("starttls"):
                return Failed(
                    "the mail server offers no STARTTLS", "add mode=ssl to the URL, or correct its port", wrong=True
                )
            session.starttls(context=self._context)
            session.ehlo_or_helo_if_needed()
        if box.user is not None and box.password is not None:
            try:
                session.login(box.user, box.password.reveal())
            except smtplib.SMTPNotSupportedError:
                return Failed(
                    "the mail server offers no log-in that is known", "correct the port or the mode", wrong=True
                )
            except smtplib.SMTPAuthenticationError as error:
                return _refused("the mail server refuses user name or password", error.smtp_code, _PASSWORD)
        return self._hand_over(session, written)

    def _hand_over(self, session: "_Session", written: bytes) -> Sent | Failed:
        box = self._to
        code, _ = session.mail(box.sender)
        if code != 250:
            return _refused("the mail server refuses the sender", code, "correct from=… in the URL")
        codes = [session.rcpt(recipient)[0] for recipient in box.recipients]
        refused = [(number, code) for number, code in enumerate(codes, 1) if code not in (250, 251)]
        if len(refused) == len(codes):
            # One that is only put off (greylisting, a full mailbox) may be taken later.
            worst = min(code for _, code in refused)
            return _refused("the mail server refuses every recipient", worst, "correct to=… in the URL")
        code, _ = session.data(written)
        if code != 250:
            return _refused("the mail server refuses the message", code, "look into its log for the reason")
        session.leave()
        return Sent(_which(refused, len(codes)))


def _encoded(subject: str) -> bytes:
    """As RFC 2047 has it. Not by EmailMessage, which loses spaces where it folds what is not ASCII (Python 3.11).
    What only looks encoded is encoded too, so that nobody decodes it.
    """
    charset = "us-ascii" if subject.isascii() and "=?" not in subject else "utf-8"
    return Header(subject, charset, maxlinelen=76, header_name="Subject").encode(linesep="\r\n").encode("ascii")


def _which(refused: list[tuple[int, int]], count: int) -> str:
    """By number, because addresses of people are nothing for a log."""
    if not refused:
        return ""
    said = ", ".join(f"{number} ({code})" for number, code in refused[:10])
    return f"of {count} recipients the mail server refused number {said}"


class _Given(Exception):  # noqa: N818 - carries an outcome out of smtplib's calls
    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.reason)
        self.failed = failed


class _Session(smtplib.SMTP):
    """One conversation, of which everything together ends at `until`."""

    def __init__(self, until: float, monotonic: Callable[[], float]) -> None:
        name = socket.gethostname()
        # As smtplib does where DNS knows no full name, without asking DNS.
        super().__init__(local_hostname=name if "." in name and name.isascii() else "[127.0.0.1]")
        self._until = until
        self._monotonic = monotonic
        self._read = 0

    def left(self) -> float:
        left = self._until - self._monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def begin(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._host = host  # smtplib's starttls verifies the certificate against it
        self.sock = self._connected(host, port)
        if context is not None:
            # The time of a handshake is one for all of it (CPython, Modules/_ssl.c).
            self.sock.settimeout(self.left())
            self.sock = context.wrap_socket(self.sock, server_hostname=host)
        code, _ = self.getreply()
        if code != 220:
            raise _Given(_refused("the mail server takes nobody", code))

    def _connected(self, host: str, port: int) -> socket.socket:
        last: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.left())
                connection.connect(address)
            except OSError as error:
                connection.close()
                if isinstance(error, TimeoutError):
                    raise
                last = error
            else:
                return connection
        raise last or OSError

    def send(self, s: str | bytes) -> None:  # type: ignore[override] # typeshed takes any buffer
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected
        data = s.encode(self.command_encoding) if isinstance(s, str) else s
        try:
            self.sock.settimeout(self.left())  # that of sendall is one for all of it (since Python 3.5)
            self.sock.sendall(data)
        except OSError as error:
            raise _Given(_broken(error)) from None

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None:
            self.file = _Lines(self)
        return super().getreply()

    def receive(self) -> bytes:
        if self.sock is None:
            return b""
        try:
            self.sock.settimeout(self.left())
            data = self.sock.recv(8192)
        except OSError as error:  # which smtplib would take for the end of the connection, whatever it was
            raise _Given(_broken(error)) from None
        self._read += len(data)
        if self._read > MAX_REPLIES:
            raise _Given(_NOT_SMTP)
        return data

    def leave(self) -> None:
        """Say goodbye, and do not wait for the answer: the message is taken whatever it is."""
        with contextlib.suppress(_Given, OSError):
            self.send(b"QUIT\r\n")


class _Lines:
    """What smtplib reads replies from: lines of a socket, each byte within the session's time."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._got = b""

    def readline(self, limit: int) -> bytes:
        while b"\n" not in self._got:
            if len(self._got) >= limit:  # which smtplib would tell like a refusal of the server (500)
                raise _Given(_NOT_SMTP)
            data = self._session.receive()
            if not data:
                break
            self._got += data
        end = min(self._got.find(b"\n") + 1 or len(self._got), limit)
        line, self._got = self._got[:end], self._got[end:]
        return line

    def close(self) -> None:
        self._got = b""


_WRONG_PORT: Final = "correct the host, the port or the mode in the URL"
_NOT_SMTP: Final = Failed("the mail server answers what is not SMTP", _WRONG_PORT, wrong=True)
_PASSWORD: Final = "renew the password; many providers want one made for this application"  # noqa: S105 - a hint


def _refused(what: str, code: int, hint: str = "") -> Failed:
    """A reply that is not the one hoped for. 4xx passes by itself (RFC 5321, 4.2.1); anything else is no SMTP."""
    if 400 <= code <= 499:
        return Failed(f"{what} for now ({code})", "it is tried again")
    if 200 <= code <= 599:
        return Failed(f"{what} ({code})", hint or "look into its log for the reason", wrong=True)
    return _NOT_SMTP


def _failed(error: Exception) -> Failed:
    match error:
        case _Given(failed=failed):
            return failed
        case smtplib.SMTPServerDisconnected():
            return Failed("the mail server ended the connection", "look into its log for the reason")
        case smtplib.SMTPResponseException():
            return _refused("the mail server refuses", error.smtp_code)
        case smtplib.SMTPException():
            return _NOT_SMTP
        case OSError():
            return _broken(error)
        case _:
            return _NOT_SMTP


def _broken(error: OSError) -> Failed:
    match error:
        case TimeoutError():
            return Failed("the mail server did not answer in time", "correct host and port, or raise the timeout")
        case ssl.SSLCertVerificationError():
            return Failed(
                "the mail server's certificate is not trusted", "set ca_file, or correct the host", wrong=True
            )
        case ssl.SSLError():
            return Failed("TLS with the mail server failed", _WRONG_PORT, wrong=True)
        case socket.gaierror():
            return Failed("the mail server's name cannot be looked up", "correct the host, or mend DNS")
        case ConnectionRefusedError():
            return Failed("nothing listens where the mail server should", "correct host and port, or start it")
        case _:
            return Failed("the connection to the mail server broke", "correct host and port, or mend the network")
