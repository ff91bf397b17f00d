"""What a client refuses: paths with side effects, however written, and settings no request can be made from."""

from urllib.parse import quote

import pytest
from backends.http_server import ScriptedServer
from http_support import KEY, MIB, PLAIN_TLS, client_for
from hypothesis import given
from hypothesis import strategies as st

from forwarder.http import Client, ForbiddenEndpoint
from forwarder.secrets import Secret
from forwarder.transport import HttpProblem

FORBIDDEN = [
    "/health/drain",
    "/health/test_connection",
    "/cache/ping",
    "/health/services?service=slack",
    "/health/services?",
    "/health/services?x",
]
DISGUISED = [
    "/health/drain/",
    "/health/drain?x=y",
    "/HEALTH/Drain",
    "/gw/health/drain",
    "/health/drain/now",
    "//health//drain",
    "/health//drain",
    "/health/./drain",
    "/health/x/../drain",
    "/./health/drain",
    "/x/%2e%2e/health/drain",
    "/health/%64rain",
    "/health%2fdrain",
    "/health%252fdrain",
    "/health\\drain",
    "/health/drain;x",
    "/health;x/drain",
    "/health/drain%00",
    "/health/drain\r\n",
    "/health/drain#x",
    "/health/drain%3f",
    "/health/services/?service=slack",
    "/health/services%3fservice=slack",
    "/health/services#?service=slack",
    "/Cache/Ping",
    "/health/ｄrain",  # noqa: RUF001 - a full-width letter, which NFKC makes an ordinary one
    "/health\u2215drain",
    "health/drain",
    "http://127.0.0.1/health/drain",
    "",
]


def ask(base_url: str, path: str) -> None:
    """Run `get` up to its first wait: a refusal must come before it, so before any connection."""
    client_for(base_url).get(path, timeout=1).send(None)


@pytest.mark.parametrize("path", FORBIDDEN + DISGUISED)
def test_paths_with_side_effects_are_never_requested(path: str) -> None:
    """Nothing that drains a worker, sends alerts or writes keys can be asked for, in whatever spelling."""
    with pytest.raises(ForbiddenEndpoint):
        ask("http://127.0.0.1:1/", path)


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("/health", "/drain"), ("/gw/Health/", "/drain/"), ("/cache", "/ping"), ("/health/services", "/x?y")],
)
def test_a_base_url_cannot_complete_a_forbidden_path(prefix: str, path: str) -> None:
    """What counts is the path as it is sent, wherever its parts come from."""
    with pytest.raises(ForbiddenEndpoint):
        ask("http://127.0.0.1:1" + prefix, path)


@st.composite
def disguises(draw: st.DrawFn) -> str:
    """A forbidden path in a random mixture of spellings that some server somewhere takes for the same."""
    path = draw(st.sampled_from(FORBIDDEN))
    spelling = {
        "/": st.sampled_from(["/", "//", "/./", "/x/../", "\\", "%2f", "%2F", "%252f", ";a=b/"]),
        "?": st.sampled_from(["?", "/?", "%3f", "?a=b&"]),
    }
    letters = []
    for each in path[1:]:
        code = f"%{ord(each):02x}"
        spellings = spelling.get(each, st.sampled_from([each, each, each.upper(), code, quote(code)]))
        letters.append(draw(spellings))
    prefix = draw(st.sampled_from(["/", "//", "/gw/", "/a/b/", "/%2e/"]))
    return prefix + "".join(letters) + draw(st.sampled_from(["", "/"]))


@given(disguises())
def test_no_disguise_helps(path: str) -> None:
    """The guard does not depend on having thought of a spelling: what is not plain is refused."""
    with pytest.raises(ForbiddenEndpoint):
        ask("http://127.0.0.1:1", path)


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/health?model_id=a%2Fb",
        "/health/readiness",
        "/health/readiness/details",
        "/health/liveliness",
        "/health/services",
        "/health/services/",
        "/metrics/",
        "/model/info",
        "/drain/health",
        "/",
    ],
)
async def test_everything_else_may_be_asked(path: str) -> None:
    """The guard stands in nobody's way, with and without a prefix, and the path is sent as given."""
    async with ScriptedServer() as server:
        for prefix in ("", "/lite_llm-1.0/~x"):
            client = client_for(server.url + prefix)
            assert (await client.get(path, timeout=5)).status == 200
            await client.close()
            assert server.requests[-1].path == prefix + path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:4000",
        "ftp://localhost",
        "http://",
        "http:///x",
        "http://a b",
        "http://[zz]",
        "http://[zz/",
        "http://a:0",
        "http://a:99999",
        "http://a:b",
        f"http://{'a' * 64}.test",
        f"http://{'a.' * 130}test",
        "http://a..b",
        "http://\u0000",
        "http://xn--\xe9",
        "http://a\nb",
        "http://user:hunter2@a",
        "http://a/?key=hunter2",
        "http://a/#x",
        "http://a/%2e%2e",
        "http://a//b",
        "http://a/b;c",
        "http://a/health/drain",
    ],
)
def test_a_url_that_cannot_work_is_told_at_once(url: str) -> None:
    """Not at the first poll, not as another kind of exception, and without repeating what may be a secret."""
    with pytest.raises(HttpProblem) as caught:
        client_for(url)
    assert "hunter2" not in f"{caught.value.reason} {caught.value.hint} {caught.value!r}"
    assert caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://localhost:4000", "https://gw.test/litellm/", "http://[::1]:4000", "http://bücher.test"]
)
def test_ordinary_urls_are_taken(url: str) -> None:
    """Prefixes, IPv6 and international names are ordinary."""
    assert KEY not in repr(client_for(url))


@pytest.mark.parametrize("proxy", ["squid:3128", "socks5://a:1", "http://user:hunter2@a b:1"])
def test_a_proxy_that_cannot_work_is_told_at_once(proxy: str) -> None:
    """As for the URL; its password least of all is repeated."""
    with pytest.raises(HttpProblem) as caught:
        client_for("http://a", proxy=proxy)
    assert "hunter2" not in f"{caught.value.reason} {caught.value.hint} {caught.value!r}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X Y", "a"),
        ("X:", "a"),
        ("", "a"),
        ("x", f"{KEY}\r\nX-Evil: 1"),
        ("x", f"{KEY}\u2013"),
        ("x", f" {KEY}"),
        ("Accept-Encoding", "br"),
        ("transfer-encoding", "chunked"),
    ],
)
def test_a_header_that_cannot_be_sent_is_told_at_once(name: str, value: str) -> None:
    """A pasted key with a line break neither fails at every poll nor forges a header nor is printed."""
    with pytest.raises(HttpProblem) as caught:
        Client("http://a", {name: Secret(value)}, PLAIN_TLS, max_body=MIB)
    assert KEY not in f"{caught.value.reason} {caught.value.hint} {caught.value!r}"
