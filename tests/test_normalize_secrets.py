"""No secret that a proxy sends gets past the normaliser.

Real proxies send them in many places (1.77.7: the upstream's key in clear; 1.53-1.80: every extra parameter; all: API
bases with passwords). So made-up secrets are planted in every place of every recorded reply, and looked for in
everything that is made of it: the reading, its events in their stored form, the changes and the stored state.
"""

import copy
import json

import pytest
from canaries import WORD as CANARY
from canaries import planted
from captured import NOW, Capture, captures

from forwarder import events
from forwarder.normalize import Reading, count_metrics, deployment_metrics, normalize
from forwarder.normalize.changes import ChangeState, encode, observe
from forwarder.reply import Reply

RECORDED = (b"LEAKTEST", b"FAKE", b"SECRET", b"http://", b"Traceback", b"/ok/v1", b"127.0.0.1")
WITH_CONTENT = [captured for captured in captures() if captured.content is not None]


def _made_of(reading: Reading) -> bytes:
    """Everything that leaves the normaliser, as bytes."""
    state = ChangeState()
    told: list[events.Event] = []
    for turn in (reading, Reading(deployments=()), reading):
        state, changes = observe(
            state, turn, NOW, target="eu", source="health", failure_threshold=1, success_threshold=1
        )
        told += changes
    made = (*reading.metrics, *count_metrics(reading, NOW), *deployment_metrics(reading.deployments or (), NOW), *told)
    stored = events.encode(events.Batch(events.Resource(), NOW, made))
    return stored + encode(state) + repr(reading).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("captured", WITH_CONTENT, ids=lambda c: c.path)
def test_recorded_secrets(captured: Capture) -> None:
    """The made-up secrets of the recordings, their API bases and their tracebacks stay behind."""
    made = _made_of(captured.reading())
    assert not [secret for secret in RECORDED if secret in made]


def test_the_recordings_hold_secrets() -> None:
    """Otherwise the test above would pass on nothing."""
    raw = {captured.path: json.dumps(captured.content).encode() for captured in WITH_CONTENT}
    for path in ("1.53.1/key/health.key", "1.80.17/key/health.key", "1.106.2/key/health.key"):
        assert all(secret in raw[path] for secret in RECORDED), path


@pytest.mark.parametrize("captured", WITH_CONTENT, ids=lambda c: c.path)
@pytest.mark.parametrize("status", [None, 200, 500, 503])
def test_planted_secrets(captured: Capture, status: int | None) -> None:
    """Whatever field a release adds or fills, with whatever status: it is not in the allow-list, so it stays."""
    body = json.dumps(planted(captured.content)).encode()
    assert CANARY.encode() in body or not isinstance(captured.content, dict | str)
    reply = Reply(NOW, 0.1, status or captured.status, content_type=captured.content_type, body=body)
    for keyed in (True, False):
        assert CANARY.encode() not in _made_of(normalize(captured.endpoint, reply, keyed=keyed))


@pytest.mark.parametrize("captured", [c for c in WITH_CONTENT if c.endpoint == "health"], ids=lambda c: c.path)
def test_secrets_instead_of_words(captured: Capture) -> None:
    """A secret in place of each word we look for: status, error, class, moment, release number."""
    content = copy.deepcopy(captured.content)
    content |= {"status": CANARY, "db": CANARY, "redis": CANARY, "litellm_version": f"{CANARY} 1.0"}
    for entry in content.get("healthy_endpoints", []) + content.get("unhealthy_endpoints", []):
        entry |= {"error": f"litellm.{CANARY}: x", "exception_status": CANARY, "last_check": CANARY, "status": CANARY}
        entry["model"] = f"huggingface/https://user:{CANARY}@host/{CANARY}?sig={CANARY}"
    reply = captured.reply(content=content)
    assert CANARY.encode() not in _made_of(normalize("health", reply, keyed=True))


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (f"openai/sk-{CANARY}1234", "openai/sk-***"),
        (f"azure/h?api-key=sk-{CANARY}4", "azure/h"),
        (f"azure/u:{CANARY}@h", "azure/***@h"),
        ("openai/gpt-4o:free", "openai/gpt-4o:free"),
        ("vertex_ai/claude-3-5-sonnet@20240620", "vertex_ai/claude-3-5-sonnet@20240620"),
        ("bedrock/anthropic.claude-3-sonnet-20240229-v1:0", "bedrock/anthropic.claude-3-sonnet-20240229-v1:0"),
        ("ollama/hf.co/bartowski/Llama-3.2-1B:Q4_K_M", "ollama/hf.co/bartowski/Llama-3.2-1B:Q4_K_M"),
    ],
)
def test_a_key_in_the_name_of_a_model_is_masked(model: str, shown: str) -> None:
    """People put keys into the strangest places; names without any stay as they are."""
    entry = {"model": model, "model_id": f"sk-{CANARY}1234"}
    body = json.dumps({"healthy_endpoints": [entry], "unhealthy_endpoints": []}).encode()
    reading = normalize("health", Reply(NOW, 0.1, 200, content_type="application/json", body=body), keyed=True)
    assert [each.model for each in reading.deployments or ()] == [shown]
    assert CANARY.encode() not in _made_of(reading)


@pytest.mark.parametrize(
    "body",
    [
        f"<html>{CANARY}</html>",
        f'{{"status": "{CANARY}',
        CANARY,
        f'"{CANARY}"',
        json.dumps({"detail": CANARY, "error": {"type": "no_db_connection", "message": CANARY}}),
    ],
)
@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 422, 429, 500, 503])
def test_secrets_in_what_is_not_an_answer(body: str, status: int) -> None:
    """A detail for the log is made by us; it quotes nothing, from whatever page or error the text may come."""
    for captured in {captured.endpoint: captured for captured in WITH_CONTENT}.values():
        reply = Reply(NOW, 0.1, status, content_type=f"text/{CANARY}", body=body.encode())
        for keyed in (True, False):
            assert CANARY.encode() not in _made_of(normalize(captured.endpoint, reply, keyed=keyed))
