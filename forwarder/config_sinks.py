"""The tables `[sinks.<name>]`: one model for each type of sink."""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from forwarder.config_newrelic import NewRelicSink
from forwarder.config_notify import NotifySink
from forwarder.config_otlp import OtlpSink
from forwarder.config_references import ApiKey
from forwarder.config_tables import Connection, Table
from forwarder.config_values import HOST, Duration, OptionalUrl, problem, text_schema
from forwarder.secrets import Secret


class ConsoleSink(Table):
    """One JSON object per event, on a line of standard output."""

    type: Literal["console"] = Field(description="Which backend this is.")
    timeout: Annotated[float, Duration("1ms", "5m")] = Field(
        default=10.0, description="Time for one delivery attempt."
    )


# --- Datadog ---------------------------------------------------------------------------------------------------

_ADDRESS_HINT: Final = 'as in "unix:///var/run/datadog/dsd.socket" or "udp://127.0.0.1:8125"'
_LONGEST_PATH: Final = 107  # bytes; what a Unix socket's address has room for on Linux


def _address(value: object) -> str | None:
    """A normal form: udp:// always with its port."""
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"unix(gram|stream)?:///[ -~]+|udp://[!-~]+", value):
        raise problem("is no address of a DogStatsD", _ADDRESS_HINT)
    if not value.startswith("udp://"):
        if len(value.partition("://")[2]) > _LONGEST_PATH:
            raise problem("has a path that is too long for a Unix socket", f"{_LONGEST_PATH} bytes at most")
        return value
    try:
        parts = urlsplit(value)
        port = parts.port or 8125
    except ValueError:
        raise problem("has a port or a host that cannot be read", _ADDRESS_HINT) from None
    host = parts.netloc.removesuffix(f":{parts.port}").removesuffix(":")
    if not HOST.fullmatch(host) or parts.port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise problem("is no address of a DogStatsD", _ADDRESS_HINT)
    return f"udp://{host}:{port}"


def _site(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not re.fullmatch(SITE_PATTERN, value)):
        raise problem("is not a site of Datadog's", 'as in "datadoghq.eu" or "us5.datadoghq.com"; see your URL there')
    return value


SITE_PATTERN: Final = r"^([a-z0-9]{2,5}\.)?(datadoghq\.com|datadoghq\.eu|ddog-gov\.com)$"
Address = Annotated[str | None, PlainValidator(_address), text_schema(r"^(unix(gram|stream)?:///|udp://)", "address")]
Site = Annotated[str | None, PlainValidator(_site), text_schema(SITE_PATTERN, "site")]
# What is read where the file leaves a key out, as Datadog's own clients do.
_UNIFIED: Final = {"DD_ENV": "env", "DD_SERVICE": "service", "DD_VERSION": "version"}
_DEFAULT_ADDRESS: Final = "unix:///var/run/datadog/dsd.socket"
_OF_ONE_TRANSPORT: Final = {
    "dogstatsd": {"address", "timestamps", "origin"},
    "api": {"api_key", "site", "url", "proxy", "ca_file", "client_cert", "client_key"},
}


class DatadogSink(Connection):
    """Datadog, through its agent (DogStatsD) or straight to its intake (API)."""

    type: Literal["datadog"] = Field(description="Which backend this is.")
    transport: Literal["dogstatsd", "api"] = Field(
        default="dogstatsd",
        description="`dogstatsd` hands everything to a Datadog agent, which acknowledges nothing; `api` posts to "
        "Datadog itself, which acknowledges.",
    )
    address: Address = Field(
        default=None,
        validate_default=True,
        description="`dogstatsd`: where the Datadog agent listens: `unix:///path`, `unixgram:///path`, "
        "`unixstream:///path` or `udp://host:port`. Default: `$DD_DOGSTATSD_URL`, else `$DD_AGENT_HOST` and "
        f"`$DD_DOGSTATSD_PORT`, else `{_DEFAULT_ADDRESS}`.",
    )
    timestamps: bool = Field(
        default=True,
        description="`dogstatsd`: whether metrics carry their time. Agents older than 7.40 do not understand it; "
        "without it what is late counts as of now.",
    )
    origin: bool = Field(
        default=False,
        description="`dogstatsd`: whether the agent may add tags of the container that this runs in. They change with "
        "each restart, and each combination of tags is billed.",
    )
    api_key: ApiKey = Field(
        default=None,
        validate_default=True,
        description="`api`: an API key of your organisation. Default: `$DD_API_KEY`.",
    )
    site: Site = Field(
        default=None,
        validate_default=True,
        description="`api`: your Datadog site, such as `datadoghq.eu`. Default: `$DD_SITE`, else `datadoghq.com`.",
    )
    url: OptionalUrl = Field(
        default=None, description="`api`: the whole address instead of a site: a relay, or what speaks the same API."
    )
    changes: bool = Field(default=True, description="Whether changes are sent, as Datadog events.")
    histogram_buckets: bool = Field(
        default=False,
        description="Whether histograms are sent bucket by bucket too, tagged `upper_bound`. Each combination of tags "
        "is billed.",
    )
    max_age: Annotated[float, Duration("1m", "365d")] = Field(
        default=3480.0,
        description="Age past which events are not sent any more, but counted as expired. Datadog drops metrics older "
        "than an hour without a word, unless its Historical Metrics Ingestion is on for them.",
    )
    timeout: Annotated[float, Duration("1ms", "5m")] = Field(
        default=10.0, description="Time for one delivery attempt."
    )
    _tags: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def tags(self) -> Mapping[str, str]:
        """Of `$DD_ENV`, `$DD_SERVICE` and `$DD_VERSION`: for what has no such tag otherwise."""
        return self._tags

    @property
    def key(self) -> Secret:
        """ValueError where the configuration was loaded without its secrets."""
        if self.api_key is None:
            raise ValueError("the secrets were not read")
        return self.api_key

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return self.url or f"https://api.{self.site}"

    @field_validator("address", mode="before")
    @classmethod
    def _usual_address(cls, value: object, info: ValidationInfo) -> object:
        if value is not None or info.data.get("transport") != "dogstatsd":
            return value
        environ = _environ(info)
        host, port = environ.get("DD_AGENT_HOST"), environ.get("DD_DOGSTATSD_PORT")
        found = environ.get("DD_DOGSTATSD_URL")
        if not found and (host or port):
            bare = host or "localhost"
            found = f"udp://[{bare}]" if ":" in bare else f"udp://{bare}"
            found += f":{port}" if port else ""
        if not found:
            return _DEFAULT_ADDRESS
        try:
            return _address(found)
        except ValueError:
            names = "DD_DOGSTATSD_URL" if environ.get("DD_DOGSTATSD_URL") else "DD_AGENT_HOST or DD_DOGSTATSD_PORT"
            raise problem(f"is left out, and {names} holds no address of a DogStatsD", _ADDRESS_HINT) from None

    @field_validator("api_key", mode="before")
    @classmethod
    def _usual_key(cls, value: object, info: ValidationInfo) -> object:
        return {"env": "DD_API_KEY"} if value is None and info.data.get("transport") == "api" else value

    @field_validator("site", mode="before")
    @classmethod
    def _usual_site(cls, value: object, info: ValidationInfo) -> object:
        if value is not None or info.data.get("transport") != "api":
            return value
        site = _environ(info).get("DD_SITE") or "datadoghq.com"
        try:
            return _site(site)
        except ValueError:
            raise problem("is left out, and DD_SITE holds no site of Datadog's", 'as in "datadoghq.eu"') from None

    @model_validator(mode="after")
    def _fits_the_transport(self, info: ValidationInfo) -> Self:
        environ = _environ(info)
        other = "api" if self.transport == "dogstatsd" else "dogstatsd"
        if idle := sorted(self.model_fields_set & _OF_ONE_TRANSPORT[other]):
            raise problem(
                f'{", ".join(idle)}: of no use with transport = "{self.transport}"',
                f'leave out, or set transport = "{other}"',
            )
        if self.url and "site" in self.model_fields_set:
            raise problem("of no use beside url", "leave out one of them", key="site")
        if self.transport == "api" and self.api_key is None and (info.context is None or info.context.secrets):
            raise problem("is missing", "Datadog takes nothing without", key="api_key")
        if self.transport == "dogstatsd" and environ.get("DD_DOGSTATSD_DISABLE") in _DISABLED:
            raise problem(
                "DD_DOGSTATSD_DISABLE is set, with which the client throws everything away",
                'unset it, or set transport = "api"',
            )
        self._tags.update({key: environ[name] for name, key in _UNIFIED.items() if environ.get(name)})
        return self


_DISABLED: Final = {"True", "true", "yes", "1"}  # as datadog 0.56.0 reads it


def _environ(info: ValidationInfo) -> Mapping[str, str]:
    environ: Mapping[str, str] = info.context.environ if info.context else {}
    return environ


# --- any of them -----------------------------------------------------------------------------------------------

# A new sink is a model, an entry here and a member of the union below.
SINK_TYPES: Final[dict[str, type[Table]]] = {
    "console": ConsoleSink,
    "datadog": DatadogSink,
    "newrelic": NewRelicSink,
    "otlp": OtlpSink,
    "notify": NotifySink,
}


def _known_type(value: object) -> object:
    """Before the models look: keys of a sink that this release does not have are not mistakes of their own."""
    known = " or ".join(f'"{name}"' for name in SINK_TYPES)
    if isinstance(value, dict) and "type" not in value:
        raise problem("is missing", f"add type = {known}", key="type")
    if isinstance(value, dict) and value["type"] not in list(SINK_TYPES):
        raise problem(f"is unknown to this release, which has {known}", key="type")
    return value


SinkConfig = Annotated[
    ConsoleSink | DatadogSink | NewRelicSink | OtlpSink | NotifySink,
    Field(discriminator="type"),
    BeforeValidator(_known_type),
]


def confirms(sink: SinkConfig) -> bool:
    """Whether the backend acknowledges what it takes, as `Limits.confirms` of the sink that is built of it."""
    return not (isinstance(sink, DatadogSink) and sink.transport == "dogstatsd")
