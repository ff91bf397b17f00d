"""Values that refer to something outside the file: paths, certificates, and secrets in variables and files.

What they refer to is read when the configuration is, so that a wrong path is found at start and not at night.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, PlainValidator, ValidationInfo, WithJsonSchema

from forwarder import secrets
from forwarder.config_values import problem, text_schema
from forwarder.secrets import Secret, SecretProblem

Stamp = tuple[int, int, int] | None  # of a file's content: inode, time (ns) and size; None when it is not there


def stamp(path: Path) -> Stamp:
    """Kubernetes changes a mounted file by pointing a link elsewhere: another inode."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Surroundings:
    """What values are read against, handed to every validator as its context: the environment, the folder that
    relative paths start from, whether secrets are to be read, the target names seen so far, and the files that were
    referred to, as they were before they were read; `private` are those of them that nobody else should read.
    """

    environ: Mapping[str, str]
    folder: Path
    secrets: bool = True
    names: set[str] = field(default_factory=set)
    files: dict[Path, Stamp] = field(default_factory=dict)
    private: set[Path] = field(default_factory=set)

    def refer(self, path: Path) -> None:
        self.files.setdefault(path, stamp(path))


# --- paths and certificates ------------------------------------------------------------------------------------


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise problem("is not a path", "write it in quotes")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise problem("begins with a user whose home folder is not known", "write the whole path") from None
    return info.context.folder / path if info.context else path


def _readable(value: object, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    path = _path(value, info)
    if info.context:
        info.context.refer(path)
    try:
        with secrets.opened(path) as stream:
            stream.read(1)
    except FileNotFoundError:
        raise problem("the file does not exist", "relative paths start at the folder of the configuration") from None
    except (OSError, ValueError):
        raise problem("the file cannot be read", "give the agent's user read access to it") from None
    return path


def _private(value: object, info: ValidationInfo) -> Path | None:
    path = _readable(value, info)
    if path is not None and info.context:
        info.context.private.add(path)
    return path


Folder = Annotated[Path, PlainValidator(_path), text_schema(r"\S", "path")]
OptionalFile = Annotated[Path | None, PlainValidator(_readable), text_schema(r"\S", "path")]
OptionalKeyFile = Annotated[Path | None, PlainValidator(_private), text_schema(r"\S", "path")]


def authorities(path: Path) -> None:
    """Raise a problem unless `path` holds certificates to trust."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        raise problem("holds no certificate that can be loaded", "a PEM file is needed") from None


def certificate(cert: Path, key: Path | None) -> None:
    """Raise a problem unless the two are a certificate and its private key; None: the key is in the same file."""
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
    except (OSError, ValueError):
        raise problem(
            "client_cert and client_key cannot be loaded as a pair",
            "PEM files, a key that belongs to the certificate and is not encrypted",
        ) from None


# --- secrets ---------------------------------------------------------------------------------------------------

_HOW: Final = 'write { env = "NAME" } or { file = "/path" }'


def _reference(value: object, info: ValidationInfo) -> Secret | None:
    """The secret that a reference names, or None where it may be missing and is."""
    if value is None or isinstance(value, Secret):
        return value
    if not isinstance(value, dict):
        raise problem("a secret is never written into the configuration", _HOW)
    optional = value.get("optional", False)
    if value.keys() - {"optional"} not in ({"env"}, {"file"}) or not isinstance(optional, bool):
        raise problem("must name either an environment variable or a file, and nothing else", _HOW)
    around = info.context or Surroundings({}, Path())
    if not around.secrets:
        return None
    if "env" in value:
        return _from_env(value["env"], around.environ, optional=optional)
    return _from_file(value["file"], around, optional=optional)


def _from_env(name: object, environ: Mapping[str, str], *, optional: bool) -> Secret | None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise problem("env must be the name of an environment variable, not the secret itself", _HOW)
    if optional and not environ.get(name):  # empty as compose files make it: KEY: "${KEY:-}"
        return None
    try:
        return secrets.from_env(name, environ)
    except SecretProblem as error:
        # A key pasted where its variable's name belongs can look like a name; only what is written as variables
        # are by custom is repeated.
        if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", name):
            raise problem(error.reason, error.hint) from None
        state = "is not usable" if name in environ else "is not set"
        raise problem(f"the environment variable it names {state}", "was the secret itself written here?") from None


# A relative path may be a pasted key, as above: only what no key looks like is repeated. A slash or a dot alone says
# nothing, for base64, tokens and webhooks have them.
_A_PATH: Final = re.compile(r"/|\.{1,2}/|.*\.(key|pem|secret|token|txt)$")


def _from_file(name: object, around: Surroundings, *, optional: bool) -> Secret | None:
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise problem("file must be the path of a file that holds the secret", _HOW)
    path = around.folder / name
    around.refer(path)
    around.private.add(path)
    try:
        if optional and not exists(path):
            return None
        return secrets.from_file(path, "" if _A_PATH.match(name) else "the secret file it names")
    except SecretProblem as error:
        hint = error.hint
        if not name.startswith("/") and not exists(path):
            hint = "relative paths start at the folder of the configuration"
        raise problem(error.reason, hint) from None
    except ValueError:
        raise problem("file must be the path of a file that holds the secret", _HOW) from None


def exists(path: Path) -> bool:
    """Whether something is there, as far as can be seen. Path.exists raises for a folder that may not be entered."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # there is something, and reading it says what is wrong
    return True


def _bare_key(value: Secret | None) -> Secret | None:
    if value is not None and re.match(r"(bearer|basic)\s", value.reveal(), re.IGNORECASE):
        raise problem("holds a whole Authorization header", "give the bare key; the agent adds the word Bearer")
    if value is not None and value.reveal() != value.reveal().strip():
        raise problem("has a space at its beginning or end", "was it pasted with care?")
    return value


_REFERENCE_SCHEMA: Final = {
    "title": "secret",
    "type": "object",
    "properties": {
        "env": {"type": "string", "description": "Name of the environment variable that holds the secret."},
        "file": {"type": "string", "description": "Path of a file that holds the secret."},
        "optional": {"type": "boolean", "default": False, "description": "Go on without a secret when it is missing."},
    },
    "oneOf": [{"required": ["env"]}, {"required": ["file"]}],
    "additionalProperties": False,
}

OptionalSecret = Annotated[Secret | None, PlainValidator(_reference), WithJsonSchema(_REFERENCE_SCHEMA)]
ApiKey = Annotated[OptionalSecret, AfterValidator(_bare_key), WithJsonSchema(_REFERENCE_SCHEMA)]


def _header_value(value: object, info: ValidationInfo) -> Secret | str | None:
    if not isinstance(value, str):
        return _reference(value, info)
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise problem("holds what no HTTP header can carry", "printable ASCII, without spaces around it")
    return value


HeaderValue = Annotated[
    Secret | str | None,
    PlainValidator(_header_value),
    WithJsonSchema({"anyOf": [{"type": "string"}, _REFERENCE_SCHEMA], "title": "text or secret"}),
]
