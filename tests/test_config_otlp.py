"""The table of an OTLP sink: what it takes, what it refuses, and what the environment fills."""

from pathlib import Path

import pytest
from backends.otlp import instance
from config_text import Parts, lines, load

from forwarder.config_otlp import OtlpSink
from forwarder.secrets import Secret
from forwarder.sinks.otlp.build import build
from forwarder.sinks.otlp.grpc import OtlpGrpc
from forwarder.sinks.otlp.http import OtlpHttp

GRAFANA = "https://otlp-gateway-prod-eu-west-0.grafana.net/otlp"
TOKEN = "glc_canary"
INSTEAD = '(write { env = "NAME" } or { file = "/path" } instead)'


def sink(folder: Path, keys: str, **environ: str) -> OtlpSink:
    config = load(folder, Parts(more=f'[sinks.out]\ntype = "otlp"\n{keys}').text(), environ)
    found = config.sinks["out"]
    assert isinstance(found, OtlpSink)
    return found


def wrong(folder: Path, keys: str, **environ: str) -> list[str]:
    return lines(folder, Parts(more=f'[sinks.out]\ntype = "otlp"\n{keys}').text(), environ)


def test_grafana_cloud_as_its_page_gives_it(tmp_path: Path) -> None:
    """Endpoint, instance and token; the hour past which Mimir takes nothing is known."""
    keys = f'endpoint = "{GRAFANA}"\nusername = "123456"\npassword = {{ env = "TOKEN" }}'
    found = sink(tmp_path, keys, TOKEN=TOKEN)
    assert found.request_headers() == {"authorization": Secret("Basic MTIzNDU2OmdsY19jYW5hcnk=")}
    assert found.oldest == 3600
    assert sink(tmp_path, keys + '\nmax_age = "2h"', TOKEN=TOKEN).oldest == 7200
    assert TOKEN not in repr(found)
    made = build("out", found, instance)
    assert isinstance(made, OtlpHttp)
    assert made.limits.max_age == 3600
    made.close()


def test_a_sidecar_needs_an_address_and_nothing_else(tmp_path: Path) -> None:
    """Plain HTTP to a collector on this machine."""
    found = sink(tmp_path, 'endpoint = "http://localhost:4318"')
    assert (found.protocol, found.compression, found.changes, found.oldest) == ("http", "gzip", True, None)
    assert found.request_headers() == {}


def test_headers_are_texts_or_secrets(tmp_path: Path) -> None:
    """A tenant is no secret; a key is one, and comes by reference."""
    keys = 'endpoint = "http://h"\nheaders = { "X-Scope-OrgID" = "a", "api-key" = { env = "KEY" } }'
    assert sink(tmp_path, keys, KEY=TOKEN).request_headers() == {"x-scope-orgid": "a", "api-key": Secret(TOKEN)}
    assert sink(tmp_path, 'endpoint = "http://h"\ntoken = { env = "KEY" }', KEY=TOKEN).request_headers() == {
        "authorization": Secret(f"Bearer {TOKEN}")
    }


def test_grpc_is_host_and_port(tmp_path: Path) -> None:
    """The scheme says whether there is TLS."""
    for scheme, secure in (("http", False), ("https", True)):
        made = build("out", sink(tmp_path, f'endpoint = "{scheme}://h:4317"\nprotocol = "grpc"'), instance)
        assert isinstance(made, OtlpGrpc)
        assert repr(made) == "OtlpGrpc('out', 'h:4317')"
        assert (made._credentials is not None) is secure
        made.close()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("", 'sinks.out.endpoint: is missing (as in "http://localhost:4318")'),
        (
            'endpoint = "http://h/v1/metrics"',
            "sinks.out.endpoint: must be the base address (leave out /v1/…; the agent adds it)",
        ),
        (
            'endpoint = "h:4317"',
            'sinks.out.endpoint: must begin with http:// or https:// (as in "http://localhost:4000")',
        ),
        (
            'endpoint = "https://u:p@h"',
            "sinks.out.endpoint: must not carry a user name or password (use username and password, or token)",
        ),
        (
            'endpoint = "https://otlp-gateway-prod-eu-west-0.grafana.net"',
            "sinks.out.endpoint: is not what Grafana Cloud gives (it ends in .grafana.net/otlp)",
        ),
        (
            f'endpoint = "{GRAFANA}"\nprotocol = "grpc"',
            'sinks.out.protocol: must be "http" here: Grafana Cloud takes no gRPC',
        ),
        (
            'endpoint = "http://h:1/otlp"\nprotocol = "grpc"',
            'sinks.out.endpoint: must have no path with protocol = "grpc" (host and port are enough)',
        ),
        (
            'endpoint = "http://h"\nprotocol = "grpc"',
            'sinks.out.endpoint: needs a port with protocol = "grpc" (which is 4317 as a rule)',
        ),
        ('endpoint = "http://h"\nprotocol = "json"', 'sinks.out.protocol: must be "http" or "grpc"'),
        (
            'endpoint = "http://h"\nusername = "a"',
            "sinks.out.password: is missing beside username (Basic authentication needs both)",
        ),
        (
            'endpoint = "http://h"\npassword = { env = "KEY" }',
            "sinks.out.username: is missing beside password (Basic authentication needs both)",
        ),
        (
            'endpoint = "http://h"\nusername = "a b"',
            "sinks.out.username: is not a user name (printable ASCII in quotes, without colons and spaces)",
        ),
        (
            'endpoint = "http://h"\ntoken = { env = "KEY" }\nheaders = { Authorization = { env = "KEY" } }',
            "sinks.out: says twice how to authenticate (username and password, or token, or a header)",
        ),
        (
            f'endpoint = "http://h"\nheaders = {{ "api-key" = "{TOKEN}" }}',
            f"sinks.out.headers.api-key: looks like a secret, which is never written into the configuration {INSTEAD}",
        ),
        (
            'endpoint = "http://h"\nheaders = { a = "1", A = "2" }',
            "sinks.out.headers.a: is there twice (letter case does not tell headers apart)",
        ),
        (
            'endpoint = "http://h"\nheaders = { Content-Type = "a" }',
            "sinks.out.headers.Content-Type: is the agent's own (leave it out)",
        ),
        (
            'endpoint = "http://h"\nheaders = { a = "b\\nc" }',
            "sinks.out.headers.a: holds what no HTTP header can carry (printable ASCII, without spaces around it)",
        ),
        (
            'endpoint = "http://h:1"\nprotocol = "grpc"\nheaders = { x-bin = "b" }',
            "sinks.out.headers: names one that is gRPC's own (grpc-… and …-bin cannot be set)",
        ),
    ],
)
def test_a_mistake_is_told_with_its_fix(tmp_path: Path, keys: str, told: str) -> None:
    """And never with a secret."""
    assert wrong(tmp_path, keys, KEY=TOKEN) == [told]


def test_the_environment_fills_what_the_file_leaves_out(tmp_path: Path) -> None:
    """As OpenTelemetry names it; what was taken is known by name."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://h:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Basic%20{TOKEN},x-scope-orgid=a",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "",
    }
    found = sink(tmp_path, "", **environ)
    assert (found.endpoint, found.timeout, found.compression) == ("https://h:4318", 2.5, "none")
    assert found.request_headers() == {"authorization": Secret(f"Basic {TOKEN}"), "x-scope-orgid": "a"} | {
        "x-scope-orgid": Secret("a")
    }
    assert found.from_environment == (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    )


def test_the_file_comes_first(tmp_path: Path) -> None:
    """Headers of the environment, which may be for elsewhere, are left alone where the file says how to get in."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://elsewhere",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=other",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/missing",
        "KEY": TOKEN,
    }
    del environ["OTEL_EXPORTER_OTLP_CLIENT_KEY"]
    for access in ('token = { env = "KEY" }', 'headers = { "x-team" = "a" }'):
        found = sink(tmp_path, f'endpoint = "http://h"\n{access}', **environ)
        assert found.endpoint == "http://h"
        assert Secret("other") not in found.request_headers().values()
        assert found.from_environment == ()


def test_an_endpoint_for_metrics_is_its_base(tmp_path: Path) -> None:
    """OpenTelemetry wants the whole path in the variable that is for metrics alone."""
    name = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
    assert sink(tmp_path, "", **{name: "http://h/api/v1/otlp/v1/metrics"}).endpoint == "http://h/api/v1/otlp"
    told = f"sinks.out.endpoint: is left out, and {name} does not end in /v1/metrics (or set endpoint)"
    assert wrong(tmp_path, "", **{name: "http://h/otlp"}) == [told]


@pytest.mark.parametrize(
    ("suffix", "value", "told"),
    [
        (
            "ENDPOINT",
            f"h:4317/{TOKEN}",
            'endpoint: {} must begin with http:// or https:// (as in "http://localhost:4000")',
        ),
        ("PROTOCOL", "http/json", 'protocol: {} must be "http/protobuf" or "grpc" (or set protocol)'),
        ("TIMEOUT", "10", "timeout: {} must be 100 to 300000 milliseconds (as in 10000 for ten seconds)"),
        ("COMPRESSION", "zstd", 'compression: {} must be "gzip" or "none" (or set compression)'),
        ("CERTIFICATE", "/nowhere/ca.pem", "ca_file: {} names no file (or set ca_file)"),
        ("HEADERS", TOKEN, "headers: {} is not name=value,name=value (a space in a value is written %20)"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(tmp_path: Path, suffix: str, value: str, told: str) -> None:
    """Not by its value, which may be a secret."""
    name = f"OTEL_EXPORTER_OTLP_{suffix}"
    keys = "" if suffix == "ENDPOINT" else 'endpoint = "http://h"'
    assert wrong(tmp_path, keys, **{name: value}) == ["sinks.out." + told.format(f"is left out, and {name}")]
