"""The table of an OTLP sink, and the variables of OpenTelemetry that fill what it leaves out."""

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from forwarder.config_references import ApiKey, HeaderValue, Surroundings
from forwarder.config_tables import Connection
from forwarder.config_values import HEADER_PATTERN, Duration, Header, OtlpUrl, otlp_url, problem, text_schema
from forwarder.secrets import Secret

GRAFANA_MAX_AGE: Final = 3600.0  # seconds behind the newest sample of a series; older ones are refused for good
_TIMEOUT: Final = Duration("1ms", "5m")
_SECRET_NAME: Final = re.compile(r"auth|cookie|credential|key|pass|secret|signature|token", re.IGNORECASE)
_USER_NAME: Final = r"^[!-9;-~]{1,200}$"
_OWN_HEADERS: Final = ("content-type", "content-encoding", "user-agent")
_HEADER_HINT: Final = 'write { env = "NAME" } or { file = "/path" } instead'


def _user_name(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(_USER_NAME, value):
        raise problem("is not a user name", "printable ASCII in quotes, without colons and spaces")
    return value


UserName = Annotated[str | None, PlainValidator(_user_name), text_schema(_USER_NAME, "text")]


class OtlpSink(Connection):
    """Any receiver of OTLP: Grafana Cloud, an OpenTelemetry Collector, Prometheus, VictoriaMetrics, …"""

    type: Literal["otlp"] = Field(description="Which backend this is.")
    endpoint: OtlpUrl = Field(
        default_factory=str,
        description="Base address of the receiver; `/v1/metrics` and `/v1/logs` are added. With "
        '`protocol = "grpc"` it is host and port, and `https://` means TLS. `OTEL_EXPORTER_OTLP_ENDPOINT` where it is '
        "left out, and likewise for other keys: [sinks.md](sinks.md#otlp).",
    )
    protocol: Literal["http", "grpc"] = Field(default="http", description="OTLP/HTTP with protobuf, or OTLP/gRPC.")
    username: UserName = Field(
        default=None, description="User name for Basic authentication; Grafana Cloud's is the instance ID."
    )
    password: ApiKey = Field(default=None, description="Its password; Grafana Cloud's is an access policy token.")
    token: ApiKey = Field(default=None, description="Bearer token, where the receiver wants one instead.")
    headers: Mapping[Header, HeaderValue] = Field(
        default_factory=dict,
        description='Headers of every request, such as `{ "x-scope-orgid" = "team", "api-key" = { env = "KEY" } }`.',
        json_schema_extra={"title": "table of texts and secrets", "additionalProperties": False},
    )
    compression: Literal["gzip", "none"] = Field(default="gzip", description="How requests are compressed.")
    changes: bool = Field(
        default=True,
        description="Whether changes are sent, as log records. With `false` they are passed over, and count as "
        "delivered.",
    )
    max_age: Annotated[float | None, Duration("1m", "365d")] = Field(
        default=None,
        description="Age past which events are not sent any more, and count as expired. Default: `1h` for "
        "addresses of grafana.net, else none.",
    )
    timeout: Annotated[float, _TIMEOUT] = Field(default=10.0, description="Time for one delivery attempt.")

    _from_environment: tuple[str, ...] = PrivateAttr(default=())

    @property
    def from_environment(self) -> tuple[str, ...]:
        """The variables that filled what the file leaves out, by name."""
        return self._from_environment

    @property
    def oldest(self) -> float | None:
        """Seconds past which the receiver takes no event; None: it takes any age."""
        return GRAFANA_MAX_AGE if self.max_age is None and self._grafana() else self.max_age

    def request_headers(self) -> dict[str, Secret | str]:
        """With names in lower case, the credentials among them."""
        found = {name.lower(): value for name, value in self.headers.items() if value is not None}
        if self.username is not None and self.password is not None:
            pair = f"{self.username}:{self.password.reveal()}".encode()
            found["authorization"] = Secret(f"Basic {base64.b64encode(pair).decode('ascii')}")
        elif self.token is not None:
            found["authorization"] = Secret(f"Bearer {self.token.reveal()}")
        return found

    def _grafana(self) -> bool:
        host = urlsplit(self.endpoint).hostname or ""
        return host == "grafana.net" or host.endswith(".grafana.net")

    @model_validator(mode="wrap")
    @classmethod
    def _filled(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        taken: dict[str, str] = {}
        if isinstance(data, dict) and isinstance(info.context, Surroundings):
            found = filling(data, info.context.environ)
            taken = {name: key for key, (name, _) in found.items()}
            data = data | {key: _READ[key](name, text) for key, (name, text) in found.items()}
            if not info.context.secrets and "headers" in found:
                del data["headers"]
        made = handler(data)
        made._from_environment = tuple(taken)  # noqa: SLF001 - its own
        return made

    @field_validator("headers", mode="after")
    @classmethod
    def _no_secrets(cls, value: Mapping[str, Secret | str | None]) -> Mapping[str, Secret | str | None]:
        lower = [name.lower() for name in value]
        for name, text in value.items():
            if lower.count(name.lower()) > 1:
                raise problem("is there twice", "letter case does not tell headers apart", key=name)
            if name.lower() in _OWN_HEADERS:
                raise problem("is the agent's own", "leave it out", key=name)
            if isinstance(text, str) and _SECRET_NAME.search(name):
                raise problem("looks like a secret, which is never written into the configuration",
                              _HEADER_HINT, key=name)  # fmt: skip
        return value

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Self:
        if not self.endpoint:
            raise problem("is missing", 'as in "http://localhost:4318"', key="endpoint")
        given = info.context.secrets if info.context else True
        if (self.username is None) != (self.password is None) and given:
            missing, other = ("password", "username") if self.password is None else ("username", "password")
            raise problem(f"is missing beside {other}", "Basic authentication needs both", key=missing)
        ways = [
            self.username is not None,
            self.token is not None,
            any(n.lower() == "authorization" for n in self.headers),
        ]
        if sum(ways) > 1:
            raise problem("says twice how to authenticate", "username and password, or token, or a header")
        if self.protocol == "grpc":
            self._fits_grpc()
        elif (
            (urlsplit(self.endpoint).hostname or "").startswith("otlp-gateway-")
            and self._grafana()
            and not (self.endpoint.endswith("/otlp"))
        ):
            raise problem("is not what Grafana Cloud gives", "it ends in .grafana.net/otlp", key="endpoint")
        return self

    def _fits_grpc(self) -> None:
        parts = urlsplit(self.endpoint)
        if self._grafana():
            raise problem('must be "http" here: Grafana Cloud takes no gRPC', key="protocol")
        if parts.path:
            raise problem('must have no path with protocol = "grpc"', "host and port are enough", key="endpoint")
        if parts.port is None:
            raise problem('needs a port with protocol = "grpc"', "which is 4317 as a rule", key="endpoint")
        if any(name.lower().startswith("grpc-") or name.lower().endswith("-bin") for name in self.headers):
            raise problem("names one that is gRPC's own", "grpc-… and …-bin cannot be set", key="headers")


# --- the environment -------------------------------------------------------------------------------------------


def filling(table: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Key → name and value of the variable that fills it. Those for metrics come before the general ones, as
    OpenTelemetry has it; those for logs are not read, because one sink has one connection.
    """
    found = {}
    for key, suffix in _SUFFIXES.items():
        if key in table:
            continue
        for name in (f"OTEL_EXPORTER_OTLP_METRICS_{suffix}", f"OTEL_EXPORTER_OTLP_{suffix}"):
            if environ.get(name, "").strip():
                found[key] = name, environ[name].strip()
                break
    if table.keys() & {"username", "password", "token"}:
        found.pop("headers", None)
    if "client_cert" in table:
        found.pop("client_key", None)
    return found


_SUFFIXES: Final = {
    "endpoint": "ENDPOINT",
    "protocol": "PROTOCOL",
    "headers": "HEADERS",
    "compression": "COMPRESSION",
    "timeout": "TIMEOUT",
    "ca_file": "CERTIFICATE",
    "client_cert": "CLIENT_CERTIFICATE",
    "client_key": "CLIENT_KEY",
}


def _endpoint(name: str, text: str) -> str:
    if "_METRICS_" in name:
        if not text.endswith("/v1/metrics"):
            raise _wrong("endpoint", name, "does not end in /v1/metrics", "or set endpoint")
        text = text.removesuffix("/v1/metrics")
    try:
        return otlp_url(text)
    except PydanticCustomError as error:
        context = error.context or {}
        raise _wrong("endpoint", name, context.get("reason", "is no URL"), context.get("hint", "")) from None


def _word(key: str, words: Mapping[str, str]) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        if text not in words:
            raise _wrong(key, name, "must be " + " or ".join(f'"{word}"' for word in words), f"or set {key}")
        return words[text]

    return read


def _milliseconds(name: str, text: str) -> str:
    if not re.fullmatch("[0-9]{3,6}", text) or not 100 <= int(text) <= 300_000:
        raise _wrong("timeout", name, "must be 100 to 300000 milliseconds", "as in 10000 for ten seconds")
    return f"{int(text)}ms"


def _file(key: str) -> Callable[[str, str], str]:
    def read(name: str, text: str) -> str:
        path = Path(text).expanduser().absolute()
        if not path.is_file():
            raise _wrong(key, name, "names no file", f"or set {key}")
        return str(path)

    return read


def _headers(name: str, text: str) -> dict[str, Secret]:
    found = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        header, equals, value = pair.partition("=")
        value = unquote(value.strip())
        if not (equals and re.fullmatch(HEADER_PATTERN, header.strip()) and value.isascii() and value.isprintable()):
            raise _wrong("headers", name, "is not name=value,name=value", "a space in a value is written %20")
        found[header.strip()] = Secret(value.strip())
    return found


_READ: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "endpoint": _endpoint,
    "protocol": _word("protocol", {"http/protobuf": "http", "grpc": "grpc"}),
    "headers": _headers,
    "compression": _word("compression", {"gzip": "gzip", "none": "none"}),
    "timeout": _milliseconds,
    "ca_file": _file("ca_file"),
    "client_cert": _file("client_cert"),
    "client_key": _file("client_key"),
}


def _wrong(key: str, name: str, reason: str, hint: str) -> PydanticCustomError:
    return problem(f"is left out, and {name} {reason}", hint, key=key)
