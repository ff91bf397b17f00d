"""A deployment keeps its id: from poll to poll, when neighbours fail, when keys are rotated."""

import json
from typing import Any

import pytest
from captured import NOW
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forwarder.normalize import Deployment, normalize
from forwarder.reply import Reply

Entry = dict[str, Any]


def _read(healthy: list[Entry], unhealthy: list[Entry]) -> tuple[Deployment, ...]:
    body = json.dumps({"healthy_endpoints": healthy, "unhealthy_endpoints": unhealthy}).encode()
    deployments = normalize("health", Reply(NOW, 0.1, 200, body=body), keyed=True).deployments
    assert deployments is not None
    return deployments


def _verdicts(configured: list[tuple[Entry, bool]]) -> dict[str, bool]:
    """By id whether it is up, when LiteLLM lists the configured deployments in their order in its two lists."""
    found = _read([entry for entry, up in configured if up], [entry for entry, up in configured if not up])
    verdicts = {deployment.id: deployment.up for deployment in found}
    assert len(verdicts) == len(configured), "two deployments with one id"
    return verdicts


def _id(**entry: Any) -> str:
    return _read([entry], [])[0].id


# An id that looks like one of ours, given by the proxy, is among the cases.
OURS = _id(model="openai/gpt-4o")
ENTRIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["openai/gpt-4o", "gpt-4"])},
    optional={
        "api_base": st.sampled_from(["http://a/v1", "http://b/v1", "http://user:pass@a/v1"]),
        "model_id": st.sampled_from(["x", "x#2", "x#2#2", OURS, "", "y"]),
    },
)
CONFIGURED = st.lists(st.tuples(ENTRIES, st.booleans()), min_size=1, max_size=12)


@settings(deadline=None)
@given(configured=CONFIGURED, data=st.data())
def test_a_neighbour_changes_side(configured: list[tuple[Entry, bool]], data: st.DataObject) -> None:
    """When one deployment fails or recovers, no id comes or goes and exactly one verdict changes: also among twins,
    and with ids that a proxy made to look like ours.
    """
    before = _verdicts(configured)
    place = data.draw(st.integers(0, len(configured) - 1))
    entry, up = configured[place]
    after = _verdicts([*configured[:place], (entry, not up), *configured[place + 1 :]])
    assert before.keys() == after.keys()
    assert sum(before[id_] != after[id_] for id_ in before) == 1


@settings(deadline=None)
@given(configured=CONFIGURED, shuffled=st.randoms())
@example(configured=[({"model": "m", "model_id": i}, True) for i in ("x", "x", "x#2")], shuffled=None)
def test_the_order_of_the_lists_does_not_matter(configured: list[tuple[Entry, bool]], shuffled: Any) -> None:
    """The set of ids follows from the set of deployments, in whatever order they are listed."""
    other = list(configured)
    shuffled.shuffle(other) if shuffled else other.reverse()
    assert _verdicts(configured).keys() == _verdicts(other).keys()


@settings(deadline=None)
@given(configured=CONFIGURED, more=st.tuples(ENTRIES, st.booleans()))
def test_a_new_deployment_renames_no_other(configured: list[tuple[Entry, bool]], more: tuple[Entry, bool]) -> None:
    """Adding a deployment that looks like nothing we make adds one id and keeps all others."""
    more[0].pop("model_id", None)
    assert _verdicts(configured).keys() < _verdicts([*configured, more]).keys()


def test_a_given_id_is_kept() -> None:
    """model_id (1.106 and later) is the id, whatever else changes."""
    assert _id(model="a/b", api_base="http://x", model_id="my-stable-id-1") == "my-stable-id-1"
    assert _id(model="c", model_id="my-stable-id-1") == "my-stable-id-1"


@pytest.mark.parametrize(
    "base",
    [
        "https://user:one@Example.COM/v1",
        "https://user:two@example.com/v1",
        "https://example.com/v1?sig=one",
        "https://example.com/v1#one",
        "HTTPS://EXAMPLE.com/v1?a=b&sig=two#three",
        "https://user:pass/word@example.com/v1",
        "https://a@b@example.com/v1",
    ],
)
def test_secrets_are_no_part_of_an_identity(base: str) -> None:
    """User, password, query and fragment do not enter the digest: it cannot be used to guess them, and rotating them
    renames nothing. A host is the same in any case.
    """
    assert _id(model="openai/gpt-4o", api_base=base) == _id(model="openai/gpt-4o", api_base="https://example.com/v1")


@pytest.mark.parametrize("base", ["https://user:pa?ss@host/v1", "https://host/v1?sig=a@b", "https://u:p#1@host"])
def test_where_it_is_doubtful_what_is_secret_nothing_is_digested(base: str) -> None:
    """An `@` after a `?` or `#` may end a password or stand in a query: both readings keep the secret out."""
    assert _id(model="m", api_base=base) == _id(model="m", api_base="https://")


@pytest.mark.parametrize(
    "base", ["http://[::1", "http://[::1]:4000/v1", "://", "@", "", "\ud800", "x" * 100_000, 7, None, ["a"]]
)
def test_odd_bases(base: Any) -> None:
    """No base breaks the digest, and the same one gives the same id."""
    assert _id(model="m", api_base=base) == _id(model="m", api_base=base)


def test_what_tells_deployments_apart() -> None:
    """Model, scheme, host, port and path do; they are not run together."""
    different = [
        {"model": "m", "api_base": "http://a/v1"},
        {"model": "m", "api_base": "https://a/v1"},
        {"model": "m", "api_base": "http://a/V1"},
        {"model": "m", "api_base": "http://a:1/v1"},
        {"model": "n", "api_base": "http://a/v1"},
        {"model": "mhttp:", "api_base": "//a/v1"},
        {"model": "m"},
        {"model": "huggingface/https://a/m"},
        {"model": "huggingface/https://b/m"},
    ]
    assert len({_id(**entry) for entry in different}) == len(different)


def test_an_id_of_ours_is_pinned() -> None:
    """The digest is API: a change of it would end every series of every deployment of the older releases."""
    assert _id(model="openai/gpt-4o", api_base="http://127.0.0.1:18081/ok/v1") == "0278478d8b5320f4-1"
