"""The configuration: one TOML file, read into frozen models, with every mistake reported at once.

    config = load(find(None, os.environ, Path.cwd()), os.environ)

The models are the reference: docs/configuration.md and docs/config.schema.json are generated from them. The tables
of sinks are in `config_sinks`, the kinds of values (durations, secrets, URLs) in `config_values`, the words of the
errors in `config_errors`.
"""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import platformdirs
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema

from forwarder import config_errors, config_file
from forwarder.config_metrics import Metrics
from forwarder.config_references import ApiKey, Folder, Stamp, Surroundings, exists, stamp
from forwarder.config_sinks import SinkConfig
from forwarder.config_tables import Connection, Table
from forwarder.config_values import (
    Address,
    AttributeName,
    AttributeValue,
    Budget,
    Duration,
    Header,
    Listen,
    Name,
    OptionalName,
    Size,
    TargetUrl,
    problem,
)
from forwarder.errors import ConfigError, Problem
from forwarder.secrets import exposed

FOLDER: Final = "/etc/litellm-forwarder"

OptionalEndpoint = Literal[
    "readiness_details", "models", "services", "shared_status", "backlog", "latest", "model_info"
]


class Agent(Table):
    """The agent itself."""

    # No default of its own: the validator below knows the environment, and the factory only makes it run.
    state_dir: Folder = Field(
        default_factory=Path,
        validate_default=True,
        description="Folder for the spool and what must survive a restart. Default: `$STATE_DIRECTORY`, which systemd "
        "sets, else the user's state folder. A relative path starts at the folder of this file.",
    )
    instance: OptionalName = Field(
        default=None,
        description="What tells this agent from others that watch the same targets: OTLP sends it in "
        "`service.instance.id`. Default: the host's name and eight digits, made once and kept in the state folder.",
    )
    listen: Annotated[Address | None, Listen()] = Field(
        default=Address("127.0.0.1", 9464),
        description="Where the status page, `/healthz`, `/readyz`, `/metrics` and `/api/status` are served, without a "
        'password: leave it on loopback, or guard it. `"off"` serves none.',
    )
    expose_health: bool = Field(
        default=True,
        description="Whether `/metrics` shows, beside the agent's own metrics, the newest gauges of every target: "
        "`litellm.health` and all others of metrics.md. What is not known now is left out.",
    )
    drain_timeout: Annotated[float, Duration("0s", "1h")] = Field(
        default=20.0, description="How long a stopping agent goes on delivering what is spooled."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe messages that are logged, to standard error."
    )

    log_format: Literal["text", "json"] = Field(
        default="text",
        description="`text`: `key=value` for people; `json`: one object a line. `run --log-format` wins over it.",
    )

    @field_validator("state_dir", mode="after")
    @classmethod
    def _default_state_dir(cls, value: Path, info: ValidationInfo) -> Path:
        if value != Path():
            return value
        # systemd separates several folders by colons; the first is ours.
        given = info.context.environ.get("STATE_DIRECTORY", "").split(":")[0] if info.context else ""
        if given:
            return Path(given).absolute()
        folder = platformdirs.user_state_path("litellm-forwarder")
        if not folder.is_absolute():  # no HOME, as in containers that run under an arbitrary user
            raise problem("has no default here, because this user has no home folder", "set it")
        return folder


class Spool(Table):
    """What is kept on disk until every sink has it."""

    max_bytes: Annotated[int, Size("1MiB", "1000GiB")] = Field(
        default=512 * 2**20,
        description="Size of the spool, all its files together; past it the oldest events are dropped, and counted. "
        "Below 16 MiB its log, of some 4 MiB, comes on top.",
    )
    max_age: Annotated[float, Duration("1m", "365d")] = Field(
        default=7 * 86400.0, description="Age past which events that could not be delivered are dropped, and counted."
    )

    @property
    def room(self) -> int:
        """Of `max_bytes`, what batches may take: the rest is for tables, dead letters, what is remembered of targets,
        and SQLite's log, which may grow to 16 MiB before it is cut.
        """
        return max(self.max_bytes // 2, self.max_bytes - self.max_bytes // 10 - 16 * 2**20)


class Telemetry(Table):
    """What the agent says about itself (`forwarder.*` in metrics.md), to every sink."""

    enabled: bool = Field(default=True, description="Whether the agent's own metrics are delivered.")
    interval: Annotated[float, Duration("1s", "1d")] = Field(
        default=60.0, description="Time between two readings of them."
    )


class Health(Table):
    """How the target's `/health` is read. Unless the proxy runs background health checks, every reading makes one
    real, billed call to every deployment, up to three where one fails.
    """

    enabled: bool = Field(default=True, description="Whether `/health` is read at all.")
    interval: Annotated[float, Duration("15s", "7d")] = Field(
        default=300.0,
        description="Time between two billed readings of `/health`; free ones follow the target's `interval`.",
    )
    timeout: Annotated[float, Duration("1ms", "10m")] = Field(
        default=90.0, description="Time for the complete reply; the proxy answers when its slowest deployment has."
    )
    max_billed_calls_per_day: Budget = Field(
        default=5000,
        description="Budget of billed calls to deployments per day (UTC). When it is spent, `/health` is not read "
        'until the next day. `"unlimited"` lifts it; 0 allows only free readings.',
    )
    background: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether the proxy runs background health checks, which make `/health` free: `on` trusts you, "
        "`off` counts every reading, `auto` counts until the proxy's replies prove it.",
    )


class Changes(Table):
    """When a verdict becomes a change. Metrics are never held back."""

    failure_threshold: int = Field(default=2, ge=1, le=100, description="Bad readings in a row that make a change.")
    success_threshold: int = Field(default=2, ge=1, le=100, description="Good readings in a row that make a change.")


class Target(Connection):
    """One LiteLLM proxy to watch."""

    name: Name = Field(description="Your name for it, on everything it yields as `litellm.target`. Must be unique.")
    url: TargetUrl = Field(description="Address of the proxy, with its path prefix if it has one.")
    api_key: ApiKey = Field(
        default=None, description="Key for the endpoints that need one, `/health` among them on most proxies."
    )
    api_key_header: Header = Field(
        default="Authorization",
        description="Header that carries the key. `Authorization` carries `Bearer <key>`, any other the bare key.",
    )
    interval: Annotated[float, Duration("1s", "1d")] = Field(
        default=15.0, description="Time between two readings of each cheap endpoint."
    )
    timeout: Annotated[float, Duration("1ms", "5m")] = Field(
        default=10.0, description="Time for the complete reply of a cheap endpoint."
    )
    max_body: Annotated[int, Size("1KiB", "1GiB")] = Field(
        default=16 * 2**20, description="Largest reply that is read, after decompression."
    )
    skip: frozenset[OptionalEndpoint] = Field(
        default=frozenset(),
        strict=False,
        description="Optional endpoints that are not to be read.",
        json_schema_extra={"uniqueItems": False},  # naming one twice does no harm
    )
    health: Health = Field(default_factory=Health, description="How `/health` is read.")
    metrics: Metrics = Field(default_factory=Metrics, description="How the target's metrics page is read.")
    changes: Changes = Field(default_factory=Changes, description="When a verdict becomes a change.")

    def key_headers(self) -> dict[str, str]:
        """The header that carries the key. Reveals the secret: hand it to the client and keep it nowhere."""
        if self.api_key is None:
            return {}
        bearer = self.api_key_header.lower() == "authorization"
        return {self.api_key_header: ("Bearer " if bearer else "") + self.api_key.reveal()}

    @field_validator("name", mode="after")
    @classmethod
    def _unique(cls, value: str, info: ValidationInfo) -> str:
        if info.context:
            # Some backends fold case: two such targets would be one there.
            if value.lower() in info.context.names:
                raise problem("another target has this name", "letter case does not tell names apart")
            info.context.names.add(value.lower())
        return value


class Config(Table):
    """What one agent watches, and where it delivers."""

    agent: Agent = Field(default_factory=Agent, description="The agent itself.")
    spool: Spool = Field(default_factory=Spool, description="What is kept on disk until every sink has it.")
    telemetry: Telemetry = Field(
        default_factory=Telemetry, description="What the agent says about itself, to every sink."
    )
    resource: Mapping[AttributeName, AttributeValue] = Field(
        default_factory=dict,
        description="Attributes of everything that is delivered, in OpenTelemetry's names, in quotes: "
        '`"deployment.environment.name" = "prod"`. A value that only the place of running knows is taken from a '
        'variable, never a secret: `"k8s.pod.name" = { env = "POD_NAME" }`.',
        json_schema_extra={"additionalProperties": False},
    )
    targets: tuple[Target, ...] = Field(
        strict=False, description="The proxies to watch.", json_schema_extra={"minItems": 1}
    )
    sinks: Mapping[Name, SinkConfig] = Field(
        description="Where everything goes; the spool keeps each sink's place by its name.",
        json_schema_extra={"minProperties": 1, "additionalProperties": False},
    )

    # Not by min_length, which would also complain where all members there are have mistakes of their own.
    @field_validator("targets", "sinks", mode="after")
    @classmethod
    def _some(cls, value: Sized, info: ValidationInfo) -> Sized:
        if not value:
            raise problem(*config_errors.SECTIONS[str(info.field_name)])
        return value


def find(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """Which file is the configuration: `--config`, else config.toml here, else in /etc/litellm-forwarder (or in the
    folder that systemd names instead). ConfigError when there is none.
    """
    if explicit is not None:
        return cwd / explicit
    folder = environ.get("CONFIGURATION_DIRECTORY", "").split(":")[0] or FOLDER
    places = (cwd / "config.toml", Path(folder) / "config.toml")
    for place in places:
        if exists(place):
            return place
    looked = " and ".join(str(place) for place in places)
    raise ConfigError("configuration", [Problem("file", f"none found; looked at {looked}", "name one with --config")])


@dataclass(frozen=True)
class Loaded:
    """A configuration and where it came from. `files`: what it refers to (secrets, certificates), as it was read;
    `private`: those that nobody else should read.
    """

    config: Config
    path: Path
    files: Mapping[Path, Stamp]
    tables: Mapping[str, Any]
    private: frozenset[Path] = frozenset()

    def exposed(self) -> list[Path]:
        """Files that hold a secret and can be read by every user of the machine."""
        return sorted(path for path in self.private if exposed(path))

    def again(self, environ: Mapping[str, str]) -> "Loaded":
        """The same text, though the file may say something else by now, with what it refers to read anew."""
        return _checked(self.path, self.tables, environ)


def stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    return {path: stamp(path) for path in files}


def read(path: Path, environ: Mapping[str, str], *, secrets: bool = True) -> Loaded:
    """Read, check and resolve everything. ConfigError carries every problem there is. Without `secrets` they are left
    unread, all None: looking into the spool needs none.
    """
    return _checked(path.absolute(), config_file.read(path), environ, secrets=secrets)


def listen_of(path: Path) -> Address | None:
    """agent.listen of a file that is wrong elsewhere; its default where the file does not say, or cannot be read."""
    try:
        return Agent.model_validate({"listen": config_file.read(path)["agent"]["listen"]}).listen
    except (ConfigError, ValidationError, KeyError, TypeError):
        return Agent().listen


def load(path: Path, environ: Mapping[str, str], *, secrets: bool = True) -> Config:
    """As `read`, for whoever needs the configuration alone."""
    return read(path, environ, secrets=secrets).config


def _checked(path: Path, tables: Mapping[str, Any], environ: Mapping[str, str], *, secrets: bool = True) -> Loaded:
    around = Surroundings(environ, path.parent, secrets)
    try:
        # An agent table always, so that its defaults see the environment.
        config = Config.model_validate({"agent": {}} | dict(tables), context=around)
        return Loaded(config, path, around.files, tables, frozenset(around.private))
    except ValidationError as error:
        found = config_errors.problems(error, Config)
    # Outside the handler: pydantic's error holds the values, and would travel along as the context of ours.
    raise ConfigError(str(path), found)


UNNAMED: Final = "url"  # the name of a target that was given as a URL


def for_url(url: str, key_env: str, environ: Mapping[str, str]) -> Config:
    """A configuration of one target given on the command line, with the key of that variable if it is set."""
    target = {"name": UNNAMED, "url": url, "api_key": {"env": key_env, "optional": True}}
    tables = {"agent": {"state_dir": "unused"}, "targets": [target], "sinks": {"unused": {"type": "console"}}}
    try:
        return Config.model_validate(tables, context=Surroundings(environ, Path("/")))
    except ValidationError as error:
        found = config_errors.problems(error, Config)
    raise ConfigError("command line", [Problem("URL", each.reason, each.hint) for each in found])


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the TOML file, for editors."""
    schema = Config.model_json_schema(schema_generator=_Schema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "litellm-forwarder configuration"}


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, _schema: Any) -> bool:
        return False  # "Drain Timeout" says no more than drain_timeout

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        """Defaults as they would be written in the file: "20s", not 20.0, and nothing instead of None."""
        result = super().default_schema(schema)
        default = result.pop("default", None)
        how = schema["schema"].get("serialization", {})
        if default is not None and how.get("type") == "function-plain":  # that of Duration, Size and Listen
            default = how["function"](schema["default"])
        return result if default is None else result | {"default": default}
