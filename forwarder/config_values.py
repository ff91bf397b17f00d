"""The kinds of values a configuration holds that mean the same everywhere: durations, sizes, names, URLs.

Each is a marker for `Annotated`, so that a model's field says both what it is in Python and how it is written in
TOML. No message holds a value: what stands in the wrong place may be a secret.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


def problem(reason: str, hint: str = "", *, key: str = "") -> PydanticCustomError:
    """The one error our own validators raise; `key` names a key of the table at hand, when it is at fault.
    The template is constant, so braces in a reason mean nothing.
    """
    return PydanticCustomError("problem", "{reason}", {"reason": reason, "hint": hint, "key": key})


# --- durations and sizes ---------------------------------------------------------------------------------------

DURATION_PATTERN: Final = r"^[0-9]{1,12}(\.[0-9]{1,3})?(ms|s|m|h|d)$"
SIZE_PATTERN: Final = r"^[0-9]{1,12}(B|kB|KB|MB|GB|KiB|MiB|GiB)$"
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def seconds(text: str) -> float:
    """As in 1.5 for "1.5s". ValueError for anything that is not a duration."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError("not a duration")
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * _SECONDS[unit]


def size(text: str) -> int:
    """As in 65536 for "64KiB". ValueError for anything that is not a size."""
    if not re.fullmatch(SIZE_PATTERN, text):
        raise ValueError("not a size")
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * _BYTES[unit]


def duration_text(value: float) -> str:
    """As a person would write it: "5m" for 300.0. To the millisecond."""
    rest = round(value * 1000)
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if rest % factor == 0 and (rest or unit == "s"):
            return f"{rest // factor}{unit}"
    return f"{rest}ms"


def size_text(value: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % _BYTES[unit] == 0:
            return f"{value // _BYTES[unit]}{unit}"
    return f"{value}B"


@dataclass(frozen=True)
class Duration:
    """Seconds as a float, written "15s", between `least` and `most`."""

    least: str
    most: str

    def read(self, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise problem("a duration needs a unit", 'write it in quotes with its unit, as in "15s"')
        try:
            result = seconds(value) if isinstance(value, str) else None
        except ValueError:
            result = None
        if result is None:
            raise problem("is not a duration", 'a number and one of ms, s, m, h, d, as in "250ms", "15s" or "5m"')
        if not seconds(self.least) <= result <= seconds(self.most):
            raise problem(f"must be from {self.least} to {self.most}")
        return result

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.plain_serializer_function_ser_schema(duration_text)
        return core_schema.no_info_plain_validator_function(self.read, serialization=text)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": DURATION_PATTERN, "title": f"duration, {self.least} to {self.most}"}


@dataclass(frozen=True)
class Size:
    """Bytes as an int, written "16MiB" or as a plain number, between `least` and `most`."""

    least: str
    most: str

    def read(self, value: object) -> int:
        result = value if isinstance(value, int) and not isinstance(value, bool) else None
        if isinstance(value, str):
            try:
                result = size(value)
            except ValueError:
                result = None
        if result is None:
            raise problem("is not a size", 'a whole number and a unit, as in "512MiB", "16MB" or "64KiB"')
        if not size(self.least) <= result <= size(self.most):
            raise problem(f"must be from {self.least} to {self.most}")
        return result

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.plain_serializer_function_ser_schema(size_text)
        return core_schema.no_info_plain_validator_function(self.read, serialization=text)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        forms = [
            {"type": "string", "pattern": SIZE_PATTERN},
            {"type": "integer", "minimum": size(self.least), "maximum": size(self.most)},
        ]
        return {"anyOf": forms, "title": f"size, {self.least} to {self.most}"}


# --- names and attributes --------------------------------------------------------------------------------------

NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
ATTRIBUTE_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9._/-]{0,99}$"
HEADER_PATTERN: Final = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"  # RFC 9110, token
# How a message is framed, addressed and decoded is the client's business; none of these can carry a key.
_RESERVED_HEADERS: Final = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
}


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        raise problem("is not a name", "1 to 64 letters, digits, dots, dashes and underscores")
    return value


def _optional_name(value: object) -> str | None:
    return None if value is None else _name(value)


def _attribute_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(ATTRIBUTE_PATTERN, value):
        raise problem("is not an attribute name", 'as OpenTelemetry writes them: "deployment.environment.name"')
    if value == "litellm.target":
        raise problem("is set by the agent, to the name of the target", "take it out")
    return value


_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CUSTOMARY: Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL")


def _attribute_value(value: object, info: ValidationInfo) -> str | int:
    """The value itself, or `{ env = "NAME" }`, for what only the place of running knows. `info.context` is None or
    has `environ`, and `secrets`: without them, as for commands beside the agent, a variable need not be set.
    """
    if not isinstance(value, dict) or value.keys() != {"env"}:
        return _attribute(value)
    name = value["env"]
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        raise problem("env must be the name of an environment variable", 'as in { env = "POD_NAME" }')
    if _SECRET_NAME.search(name.upper()):
        raise problem("names a variable that holds a secret, by its name", "attributes go to every sink, in clear")
    if info.context and name in info.context.environ:
        return _attribute(info.context.environ[name])
    if info.context and not info.context.secrets:
        return "unread"
    # What may be a secret, pasted where a name belongs, is not repeated.
    which = f"environment variable {name}" if _CUSTOMARY.fullmatch(name) else "the environment variable it names"
    raise problem(f"{which} is not set", "set it before starting")


def _attribute(value: object) -> str | int:
    if isinstance(value, dict):
        raise problem("must be text or a whole number", 'a name with dots needs quotes: "service.namespace" = "llm"')
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise problem("must be text or a whole number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise problem("must fit in 64 bits")
    if isinstance(value, str) and not (value.strip() and value.isprintable() and len(value) <= 200):
        raise problem("must be 1 to 200 printable characters")
    return value


def _header(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(HEADER_PATTERN, value):
        raise problem("is not the name of an HTTP header", 'as in "Authorization" or "x-litellm-api-key"')
    if value.lower() in _RESERVED_HEADERS:
        raise problem("is a header that cannot carry a key", 'as in "Authorization" or "x-litellm-api-key"')
    return value


def _budget(value: object) -> int | None:
    if value == "unlimited" or value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
        raise problem('must be a whole number from 0 to 1000000000, or "unlimited"')
    return value


def text_schema(pattern: str, title: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "title": title})


Name = Annotated[str, PlainValidator(_name), text_schema(NAME_PATTERN, "name")]
OptionalName = Annotated[str | None, PlainValidator(_optional_name), text_schema(NAME_PATTERN, "name")]
AttributeName = Annotated[str, PlainValidator(_attribute_name), text_schema(ATTRIBUTE_PATTERN, "attribute name")]
AttributeValue = Annotated[
    str | int,
    PlainValidator(_attribute_value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["string", "integer"], "minLength": 1},
                {
                    "type": "object",
                    "properties": {"env": {"type": "string", "pattern": f"^{_VARIABLE.pattern}$"}},
                    "required": ["env"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Header = Annotated[str, PlainValidator(_header), text_schema(HEADER_PATTERN, "name of an HTTP header")]
Budget = Annotated[
    int | None,
    PlainValidator(_budget),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": 10**9}, {"const": "unlimited"}],
            "title": 'whole number, or "unlimited"',
        }
    ),
]

# --- where to listen -------------------------------------------------------------------------------------------

LISTEN_PATTERN: Final = r"^(off|(localhost|[0-9.]{7,15}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5})$"


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address, without brackets, and a TCP port; port 0 is any that is free."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def url(self) -> str:
        """Where it is reached from here: an address that means all of them, by loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{Address(host, self.port)}"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Listen:
    """An `Address`, written "127.0.0.1:9464" or "[::1]:9464"; "off" is None."""

    def read(self, value: object) -> Address | None:
        if value == "off":
            return None
        if not isinstance(value, str) or not re.fullmatch(LISTEN_PATTERN, value):
            raise problem("is not an IP address and a port", 'as in "127.0.0.1:9464" or "[::1]:9464"; "off" for none')
        host, _, port = value.rpartition(":")
        host = "127.0.0.1" if host == "localhost" else host.strip("[]")
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise problem("has no IP address before its port", 'as in "127.0.0.1:9464" or "[::1]:9464"') from None
        if int(port) > 65535:
            raise problem("has a port above 65535")
        return Address(host, int(port))

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.plain_serializer_function_ser_schema(lambda value: "off" if value is None else str(value))
        return core_schema.no_info_plain_validator_function(self.read, serialization=text)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": LISTEN_PATTERN, "title": 'address, or "off"'}


# --- URLs ------------------------------------------------------------------------------------------------------

# A longer label makes the resolver raise UnicodeError instead of not finding the host (Python 3.11).
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]")
# As forwarder.http requires: behind an escape or a `;` a gateway may see another path than we do.
_PLAIN_PATH: Final = re.compile(r"(/[A-Za-z0-9_~:@+,=.-]+)*")
_ENDPOINT: Final = re.compile(r"/(health(/.*)?|metrics|cache/ping(/.*)?)$", re.IGNORECASE)


def _url(value: object, credentials: str) -> str:
    """A normal form of the URL, without a trailing slash. `credentials`: what to do instead of a password in it."""
    if not isinstance(value, str) or not re.match(r"https?://", value, re.IGNORECASE):
        raise problem("must begin with http:// or https://", 'as in "http://localhost:4000"')
    if not re.fullmatch(r"[!-~]+", value) or "\\" in value:
        raise problem("holds a space or another character that no URL has", "letters of other scripts as xn--…")
    if "?" in value or "#" in value:
        raise problem("must not have a query or a fragment", "leave out everything from the ? or # on")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise problem("has a port or a host that cannot be read", 'as in "http://localhost:4000"') from None
    if "@" in parts.netloc:
        raise problem("must not carry a user name or password", credentials)
    host = parts.netloc.removesuffix(f":{port}") if port is not None else parts.netloc.removesuffix(":")
    if not HOST.fullmatch(host) or port == 0:
        raise problem("has no host, or one that cannot be read", 'as in "http://localhost:4000"')
    path = parts.path.rstrip("/")
    if not _PLAIN_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise problem("has a path that is not plain letters, digits, dots and dashes", "without //, ./, ../ and %20")
    return f"{parts.scheme}://{host.lower()}{'' if port is None else f':{port}'}{path}"


def _target_url(value: object) -> str:
    url = _url(value, "use api_key")
    if _ENDPOINT.search(urlsplit(url).path):
        raise problem("must be the address of the proxy, not of an endpoint", "leave the path out; the agent adds it")
    return url


def _proxy_url(value: object) -> str | None:
    if value is None:
        return None
    url = _url(value, "proxies that ask for a password are not supported")
    if "/" in url.partition("://")[2]:
        raise problem("must not have a path", 'as in "http://proxy.internal:3128"')
    return url


def agent_url(value: str) -> str:
    """Where a running agent answers. Raises PydanticCustomError."""
    return _url(value, "it asks for none")


def otlp_url(value: object) -> str:
    url = _url(value, "use username and password, or token")
    if url.endswith(("/v1/metrics", "/v1/logs", "/v1/traces")):
        raise problem("must be the base address", "leave out /v1/…; the agent adds it")
    return url


def _optional_url(value: object) -> str | None:
    return None if value is None else _url(value, "there is a key for it")


TargetUrl = Annotated[str, PlainValidator(_target_url), text_schema("^[Hh][Tt][Tt][Pp][Ss]?://[^?#@]+$", "URL")]
ProxyUrl = Annotated[str | None, PlainValidator(_proxy_url), text_schema("^[Hh][Tt][Tt][Pp][Ss]?://[^?#@]+$", "URL")]
OtlpUrl = Annotated[str, PlainValidator(otlp_url), text_schema("^[Hh][Tt][Tt][Pp][Ss]?://[^?#@]+$", "URL")]
OptionalUrl = Annotated[
    str | None, PlainValidator(_optional_url), text_schema("^[Hh][Tt][Tt][Pp][Ss]?://[^?#@]+$", "URL")
]
