"""E-mail, by a real mail server on loopback that wants TLS and a log-in."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from backends.notify import PASSWORD, USER, MailServer, Mode
from notify_support import START, batch, down, unhealthy

from forwarder.config_notify import mailbox
from forwarder.secrets import Secret
from forwarder.sinks.notify import folding, planning
from forwarder.sinks.notify.courier import Failed, Sent
from forwarder.sinks.notify.mail import Mail
from forwarder.sinks.notify.memory import Memory
from forwarder.sinks.notify.rules import Rules
from forwarder.sinks.notify.texts import Message, compose
from forwarder.transport import tls_context

ENOUGH = 20.0  # seconds


@pytest.fixture
def server() -> Iterator[MailServer]:
    made = MailServer()
    yield made
    made.close()


def courier(server: MailServer, url: str = "", *, ca_file: Path | None = None) -> Mail:
    box = mailbox(Secret(url or server.url()))
    assert box is not None
    return Mail(box, tls_context(ca_file or server.ca_file, None, None), clock=lambda: START)


def message(*changes: object) -> Message:
    events = changes or (down(),)
    plan = planning.plan(folding.fold(Memory(), [batch(*events)], Rules(group=0), START), Rules(group=0), START)  # type: ignore[arg-type]
    assert plan is not None
    return compose(plan, sink="mail", zone=ZoneInfo("Europe/Berlin"), link="https://status.example.com/?a=1&b=2")


@pytest.mark.parametrize("mode", ["starttls", "ssl", "plain"])
def test_a_mail_arrives_whole(mode: Mode) -> None:
    """Plain text and HTML, to everybody, with the headers that mail programs go by."""
    server = MailServer(mode)
    try:
        said = message(unhealthy(1), unhealthy(2))
        assert (
            courier(server, server.url("&to=ops@example.test,on-call%2Blitellm@example.test")).deliver(
                said, timeout=ENOUGH
            )
            == Sent()
        )
        (mail,) = server.take()
    finally:
        server.close()
    assert mail.sender == USER
    assert mail.recipients == ("ops@example.test", "on-call+litellm@example.test")
    assert mail.part("plain") == said.text
    assert mail.part("html") == said.html
    assert "a=1&amp;b=2" in mail.part("html")
    assert mail.message["subject"] == "[LiteLLM] eu: deployments unhealthy"
    assert mail.message["message-id"] == f"<{said.id}@example.test>"
    assert mail.message["auto-submitted"] == "auto-generated"
    assert str(mail.message["date"]).startswith("Tue, 10 Mar 2026 12:00:00")


@pytest.mark.parametrize(
    "subject",
    [
        "[LiteLLM] eu: \u00e9t\u00e9 caf\u00e9, " * 6 + "fin",
        "[LiteLLM] =?utf-8?q?forged=0D=0ABcc=3A_x?=",
        "[LiteLLM] " + "x" * 500,
        "[LiteLLM] \U0001f600 " * 20 + "end",
        "[LiteLLM] z, \xf0\xe6 \xf6\xf9\xa4J\xf5 \xab, \xf0\xe6 \xf6\xf9\xa4J\xf5 \xab",
    ],
)
def test_any_subject_arrives_as_it_was(server: MailServer, subject: str) -> None:
    """No space is lost where it is folded, and nothing is decoded that only looks encoded."""
    plain = message()
    said = Message(subject, "info", good=True, sections=plain.sections, notes=[], id="x")
    assert courier(server).deliver(said, timeout=ENOUGH) == Sent()
    (mail,) = server.take()
    assert mail.message["subject"] == subject
    assert mail.message["bcc"] is None


def test_later_messages_follow_the_first(server: MailServer) -> None:
    """A mail program shows an outage and its end together."""
    said = message()
    follower = Message(said.subject, "info", True, said.sections, (), id="second", follows=[said.id, "other"])
    assert courier(server).deliver(follower, timeout=ENOUGH) == Sent()
    (mail,) = server.take()
    assert mail.message["in-reply-to"] == f"<{said.id}@example.test>"
    assert mail.message["references"].strip() == f"<{said.id}@example.test> <other@example.test>"


@pytest.mark.parametrize(
    ("refuse", "reason", "wrong"),
    [
        ({"MAIL": "550 5.1.0 secret words"}, "the mail server refuses the sender (550)", True),
        ({"MAIL": "451 4.3.0 secret words"}, "the mail server refuses the sender for now (451)", False),
        ({"RCPT ops@example.test": "550 no"}, "the mail server refuses every recipient (550)", True),
        ({"RCPT ops@example.test": "450 later"}, "the mail server refuses every recipient for now (450)", False),
        ({"DATA": "554 5.7.1 spam"}, "the mail server refuses the message (554)", True),
        ({"DATA": "452 4.3.1 full"}, "the mail server refuses the message for now (452)", False),
    ],
)
def test_refusals_are_told_by_their_code(server: MailServer, refuse: dict[str, str], reason: str, wrong: bool) -> None:
    """What passes by itself and what does not, in our words and never the server's."""
    server.refuse = refuse
    outcome = courier(server).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.wrong) == (reason, wrong)
    assert server.take() == []


def test_who_was_refused_among_others_is_told_by_number(server: MailServer) -> None:
    """The others have the message, so it is not sent again; no address stands in a log."""
    server.refuse = {"RCPT b@example.test": "550 no such user"}
    outcome = courier(server, server.url("&to=a@example.test,b@example.test")).deliver(message(), timeout=ENOUGH)
    assert outcome == Sent("of 2 recipients the mail server refused number 2 (550)")
    (mail,) = server.take()
    assert mail.recipients == ("a@example.test",)


def test_a_wrong_password_is_told_as_such(server: MailServer) -> None:
    outcome = courier(server, server.url(password="another")).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the mail server refuses user name or password (535)"
    assert outcome.wrong
    assert "another" not in repr(outcome)


def test_a_certificate_of_nobody_we_trust_gets_no_password(server: MailServer, authority_of_others: Path) -> None:
    """Nor one for another name."""
    outcome = courier(server, ca_file=authority_of_others).deliver(message(), timeout=ENOUGH)
    assert outcome == Failed(
        "the mail server's certificate is not trusted", "set ca_file, or correct the host", wrong=True
    )
    other = MailServer(names=["mail.example.test"])
    try:
        outcome = courier(other).deliver(message(), timeout=ENOUGH)
    finally:
        other.close()
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the mail server's certificate is not trusted"


@pytest.fixture
def authority_of_others(tmp_path: Path) -> Path:
    import trustme

    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    return tmp_path / "other.pem"


def test_without_starttls_nothing_is_said_in_the_clear() -> None:
    """A server, or somebody between, that leaves STARTTLS out gets neither log-in nor message."""
    server = MailServer("plain")
    try:
        url = server.url().replace("mailto://", f"mailtos://{USER.replace('@', '%40')}:{PASSWORD}@")
        outcome = courier(server, url).deliver(message(), timeout=ENOUGH)
        assert server.take() == []
    finally:
        server.close()
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the mail server offers no STARTTLS"
    assert outcome.wrong


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("hang", "the mail server did not answer in time"),
        ("slow", "the mail server did not answer in time"),
        ("close", "the connection to the mail server broke"),
        (b"", "the mail server did not answer in time"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the mail server answers what is not SMTP"),
        (b"421 too busy\r\n", "the mail server takes nobody for now (421)"),
        (b"554 go away\r\n", "the mail server takes nobody (554)"),
        (b"220-x\r\n" * 60_000, "the mail server answers what is not SMTP"),
        (b"x" * 300_000, "the mail server answers what is not SMTP"),
    ],
)
def test_what_is_no_mail_server_is_told_in_time(server: MailServer, fault: Any, reason: str) -> None:
    """Whatever it says, however slowly, and however much of it."""
    server.fault = fault
    begun = time.monotonic()
    outcome = courier(server).deliver(message(), timeout=1.0)
    assert time.monotonic() - begun < 3
    assert isinstance(outcome, Failed)
    allowed = {reason, "the mail server ended the connection"} if fault == "close" else {reason}
    assert outcome.reason in allowed
    assert outcome.hint or "takes nobody" in outcome.reason


def test_where_nothing_listens(server: MailServer) -> None:
    server.away()
    outcome = courier(server).deliver(message(), timeout=ENOUGH)
    server.back()
    assert isinstance(outcome, Failed)
    assert outcome.reason == "nothing listens where the mail server should"
    assert not outcome.wrong
    assert courier(server).deliver(message(), timeout=ENOUGH) == Sent()


def test_no_name_of_this_machine_is_looked_up(server: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smtplib would ask DNS for it, which may take for ever."""

    def never(*_: object) -> str:
        raise AssertionError("looked up")

    for name in ("getfqdn", "gethostbyname"):
        monkeypatch.setattr(f"smtplib.socket.{name}", never)
    assert courier(server).deliver(message(), timeout=ENOUGH) == Sent()


def test_nothing_of_a_mailbox_is_shown() -> None:
    box = mailbox(Secret(f"mailtos://me%40example.test:{PASSWORD}@smtp.example.test/?to=you@example.test"))
    assert "example.test" not in repr(box)
    assert PASSWORD not in repr(box)
    assert box is not None
    assert (box.server, box.port, box.user, box.sender) == (
        "smtp.example.test",
        587,
        "me@example.test",
        "me@example.test",
    )


@pytest.fixture(autouse=True)
def _no_thread_stays(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert not [one for one in recwarn if issubclass(one.category, ResourceWarning)]
