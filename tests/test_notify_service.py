"""Everything but e-mail, by Apprise in a helper process, to a real webhook on loopback."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from backends.http_server import Answer, Response, endless, hang, raw, redirect
from backends.notify import PASSWORD, Webhook

from forwarder.secrets import Secret
from forwarder.sinks.notify.courier import Failed, Sent
from forwarder.sinks.notify.service import Service, harmless, understood
from forwarder.sinks.notify.texts import Item, Message, Section

ENOUGH = 30.0  # seconds


def message(head: str = "eu: the proxy is down") -> Message:
    return Message(
        "[LiteLLM] eu: proxy down", "error", good=False, sections=[Section("Problems", [Item(head)])], notes=[]
    )


@pytest.fixture
def hook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


def test_a_webhook_gets_the_message(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the credentials of its URL, and by no proxy that the environment names."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert Service(Secret(hook.url())).deliver(message(), timeout=ENOUGH) == Sent()
    (request,) = hook.requests
    assert request.method == "POST"
    assert request.path == "/hook"
    assert request.headers["authorization"].startswith("Basic ")
    (body,) = hook.take()
    assert body["title"] == "[LiteLLM] eu: proxy down"
    assert body["message"] == "PROBLEMS\n\neu: the proxy is down"
    assert body["type"] == "failure"


@pytest.mark.parametrize(
    ("answer", "reason", "wrong"),
    [
        (Response(401), "the service refuses the credentials (401)", True),
        (Response(404), "the service does not know the address (404)", True),
        (Response(400, b"secret words"), "the service refuses the message (400)", True),
        (Response(429), "the service asks to come later (429)", False),
        (Response(503), "the service fails (503)", False),
        (raw(), "the service cannot be reached, or did not take the message", False),
        (raw(b"220 mail.test ESMTP\r\n"), "the service cannot be reached, or did not take the message", False),
    ],
)
def test_failures_are_told_by_their_class(hook: Webhook, answer: Answer, reason: str, wrong: bool) -> None:
    """By the status, never by the words of the service; and one request is one attempt."""
    hook.answer = answer
    outcome = Service(Secret(hook.url("?retry=3"))).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.wrong) == (reason, wrong)
    assert outcome.hint
    assert len(hook.requests) == 1


def test_a_redirect_is_not_followed(hook: Webhook) -> None:
    """Nor where the URL asks for it: the credentials would go along."""
    hook.answer = redirect("/elsewhere")
    outcome = Service(Secret(hook.url("?redirect=yes"))).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the service redirects (307)"
    assert [request.path.partition("?")[0] for request in hook.requests] == ["/hook"]


@pytest.mark.parametrize("answer", [hang(), endless(b"HTTP/1.1 200 OK\r\nx: ", b"y", every=0.02)])
def test_a_service_that_does_not_come_to_an_end_is_left_in_time(hook: Webhook, answer: Answer) -> None:
    """The helper is ended then: nothing of it is left behind."""
    hook.answer = answer
    begun = time.monotonic()
    outcome = Service(Secret(hook.url())).deliver(message(), timeout=4.0)
    assert time.monotonic() - begun < 6
    assert isinstance(outcome, Failed)
    assert not outcome.wrong


def test_what_is_no_url_of_apprise_is_told(hook: Webhook) -> None:
    outcome = Service(Secret(f"nothing-known://{PASSWORD}@127.0.0.1/")).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.wrong) == ("Apprise does not know such a URL", True)
    assert PASSWORD not in repr(outcome)
    assert hook.requests == []


def test_a_helper_that_ends_without_a_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for it."""
    monkeypatch.setattr("forwarder.sinks.notify.service._HELPER", "this")
    outcome = Service(Secret("json://127.0.0.1/")).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "Apprise ended without an answer"
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    outcome = Service(Secret("json://127.0.0.1/")).deliver(message(), timeout=ENOUGH)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "the helper process cannot be run: No such file or directory"


def test_names_call_nobody() -> None:
    """A model whose name is a call to everybody wakes nobody; other names stay as they are."""
    assert (
        harmless("@everyone @here @channel <!here> <@U1>")
        == "@\u200beveryone @\u200bhere @\u200bchannel <\u200b!here> <\u200b@U1>"
    )
    assert harmless("vertex_ai/claude@20240229 <b> a@b.example") == "vertex_ai/claude@20240229 <b> a@b.example"


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b"null", b'{"why": "failed"}', b'{"why": [], "status": {}}'])
def test_any_answer_of_the_helper_is_understood(answer: bytes) -> None:
    outcome: Any = understood(answer)
    assert isinstance(outcome, Failed)
    assert outcome.reason
