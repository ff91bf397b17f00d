"""The table of a sink that tells people: `type = "notify"`, and the addresses it takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Annotated, Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from forwarder.config_references import OptionalFile, OptionalSecret, authorities
from forwarder.config_tables import Table
from forwarder.config_values import HOST, Duration, ProxyUrl, problem, text_schema
from forwarder.secrets import Secret

INSTALL: Final = "pip install 'litellm-forwarder[notify]'"

# --- addresses -------------------------------------------------------------------------------------------------

MailMode = Literal["starttls", "ssl", "plain"]
_PORTS: Final[dict[MailMode, int]] = {"starttls": 587, "ssl": 465, "plain": 25}
_MAIL_KEYS: Final = ("from", "to", "mode", "smtp", "user", "pass")
_MAIL_HINT: Final = "as in mailtos://user:password@smtp.example.com/?from=agent@example.com&to=ops@example.com"
_MAILBOX: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
# Apprise's own for e-mail (github.com/caronc/apprise/wiki/Notify_email).
_APPRISE_KEYS: Final = frozenset(
    {"bcc", "cc", "cto", "format", "name", "overflow", "pgp", "pgpkey", "redirect", "reply", "rto", "verify"}
)
# What an Apprise URL may not change: it would take the contract of a sink with it.
_NOT_TAKEN: Final = {
    "verify": "certificates are always verified; ca_file names an authority of your own",
    "redirect": "redirects are never followed, because the credentials would go along",
    "retry": "the agent tries again by itself",
    "wait": "the agent tries again by itself",
    "rto": "use timeout",
    "cto": "use timeout",
}


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where an e-mail goes, and how. Nothing of it is in the repr: it came out of a secret."""

    server: str = field(repr=False)
    port: int
    mode: MailMode
    user: str | None = field(repr=False)
    password: Secret | None
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)


def mailbox(url: Secret) -> Mailbox | None:
    """The mailbox that a URL names, which is written as Apprise has it; None for a URL of another kind. Raises a
    problem, which repeats nothing of the URL.
    """
    parts = _parts(url)
    scheme = parts.scheme.lower()
    if scheme not in ("mailto", "mailtos"):
        return None
    query = _query(parts)
    if unknown := query.keys() - set(_MAIL_KEYS):
        count = "a parameter" if len(unknown) == 1 else f"{len(unknown)} parameters"
        # Not any name: of a password with an unescaped ? or & the rest is one.
        named = ", ".join(sorted(unknown & _APPRISE_KEYS))
        reason = f"the URL has {count} that e-mail does not take" + (f" ({named})" if named else "")
        raise problem(reason, f"it takes {', '.join(_MAIL_KEYS)}")
    mode = _mode(scheme, query.get("mode"))
    try:
        host, port = parts.hostname or "", parts.port or _PORTS[mode]
    except ValueError:
        raise problem("the URL has a port that cannot be read", _MAIL_HINT) from None
    server = query.get("smtp", host)
    if not HOST.fullmatch(server):
        raise problem("the URL has no mail server, or one that cannot be read", _MAIL_HINT)
    user = query.get("user") or (unquote(parts.username) if parts.username else None)
    password = query.get("pass") or (unquote(parts.password) if parts.password else None)
    if password is not None and mode == "plain":
        raise problem("the URL sends a password without encryption", "use mailtos://")
    if (user is None) != (password is None):
        raise problem("the URL has a user without a password, or a password without a user", _MAIL_HINT)
    sender = query.get("from") or (user if user and "@" in user else f"{user or 'litellm-forwarder'}@{host}")
    listed = [*query.get("to", "").split(","), *(unquote(part) for part in parts.path.split("/"))]
    recipients = tuple(dict.fromkeys(one.strip() for one in listed if one.strip()))
    if not recipients and not query.get("from"):
        raise problem("the URL names nobody to write to", f"add to=…, {_MAIL_HINT}")
    recipients = recipients or (sender,)
    if not all(_MAILBOX.fullmatch(one) for one in (sender, *recipients)):
        raise problem("the URL has a sender or a recipient that is no e-mail address", _MAIL_HINT)
    return Mailbox(server, port, mode, user, Secret(password) if password else None, sender, recipients)


def _parts(url: Secret) -> SplitResult:
    text = url.reveal()
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise problem("holds no URL", f"{_MAIL_HINT}; others: github.com/caronc/apprise/wiki")
    try:
        return urlsplit(text)
    except ValueError:
        raise problem("holds a URL that cannot be read", _MAIL_HINT) from None


def _query(parts: SplitResult) -> Mapping[str, str]:
    # A plus is one: addresses have them (ops+litellm@…), spaces they have not.
    found = parse_qs(parts.query.replace("+", "%2B"), keep_blank_values=True)
    return {key.lower(): values[-1].strip() for key, values in found.items()}


def _mode(scheme: str, given: str | None) -> MailMode:
    match scheme, given:
        case "mailto", None | "insecure":
            return "plain"
        case "mailtos", None | "starttls":
            return "starttls"
        case "mailtos", "ssl":
            return "ssl"
        case _:
            raise problem("the URL has a mode that is not known", "mailtos:// with mode=starttls or mode=ssl")


def _url(value: Secret | None, info: ValidationInfo) -> Secret | None:
    if value is None:
        if info.context and info.context.secrets:
            raise problem("is needed", "the secret it names is not there")
        return None
    if mailbox(value) is None:
        query = _query(_parts(value))
        for key, reason in _NOT_TAKEN.items():
            if key in query:
                raise problem(f"the URL has a parameter that is not taken here: {key}", reason)
        if find_spec("apprise") is None:
            raise problem("all but e-mail needs Apprise, which is not installed", INSTALL)
    return value


# --- values ----------------------------------------------------------------------------------------------------


def _zone(value: object) -> str:
    try:
        if isinstance(value, str):
            return ZoneInfo(value).key
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        pass
    raise problem("is no time zone that this machine knows", 'as in "Europe/Berlin"; pip install tzdata where none is')


def _cron(value: object) -> str:
    try:
        if isinstance(value, str) and len(value.split()) == 5 and len(value) <= 200:
            next(CronSim(value, datetime.now(UTC)))
            return value
    except (CronSimError, StopIteration):  # a day that no month has is either
        pass
    raise problem("is no crontab time", 'five fields: minute hour day month weekday, as in "0 2 * * sun"')


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._*?\[\]!-]{1,100}", value):
        raise problem("is no pattern of names", 'a name, or one with * for any part of it, as in "prod-*"')
    return value


def _link(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]{1,500}", value) or "@" in value:
        raise problem("is no address of a page", 'as in "https://litellm-status.example.com/"')
    return value


Zone = Annotated[str, PlainValidator(_zone), text_schema(r"^[A-Za-z0-9_+/-]+$", "IANA time zone")]
Cron = Annotated[str, PlainValidator(_cron), text_schema(r"^\S+ +\S+ +\S+ +\S+ +\S+$", "crontab time")]
Pattern = Annotated[str, PlainValidator(_pattern), text_schema(r"^[A-Za-z0-9._*?\[\]!-]{1,100}$", "pattern")]
Link = Annotated[str | None, PlainValidator(_link), text_schema("^https?://[^@]+$", "URL")]


class Maintenance(Table):
    """Planned work, during which nobody is told. What still holds at its end is told then, in one message; what began
    and ended within it is not told at all.
    """

    start: Cron = Field(description="When it begins, in `time_zone`: minute, hour, day, month, weekday.")
    duration: Annotated[float, Duration("1m", "7d")] = Field(description="How long it takes.")
    targets: tuple[Pattern, ...] = Field(
        default=("*",), strict=False, description="Names of the targets that it concerns; `*` for any part of a name."
    )


class NotifySink(Table):
    """People, told about changes: by e-mail, and through Apprise by chat, pagers, webhooks and the rest. One sink is
    one address.
    """

    type: Literal["notify"] = Field(description="Which backend this is.")
    url: OptionalSecret = Field(
        description="Where messages go, as an [Apprise URL](https://github.com/caronc/apprise/wiki): "
        "`mailtos://user:password@smtp.example.com/?from=…&to=…` for e-mail; anything else needs the extra `[notify]`."
    )
    severity: Literal["info", "warning", "error"] = Field(
        default="warning", description="The least severe change that is told. The end of what was told always is."
    )
    changes: tuple[Pattern, ...] = Field(
        default=("*",),
        strict=False,
        description="Names of the [changes](metrics.md#changes) that are told; `*` for any part of a name.",
    )
    targets: tuple[Pattern, ...] = Field(
        default=("*",), strict=False, description="Names of the targets that are told of; `*` for any part of a name."
    )
    group: Annotated[float, Duration("0s", "1h")] = Field(
        default=30.0, description="How long a message waits for what else happens, to tell it together."
    )
    remind: Annotated[float, Duration("0s", "30d")] = Field(
        default=0.0, description="Time after which people are reminded of what still lasts, and so on. `0s`: never."
    )
    max_per_hour: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Messages in an hour, at most. What happens past that is summed up in the next one.",
    )
    flapping_changes: int = Field(
        default=6,
        ge=3,
        le=100,
        description="So many changes of one thing within `flapping_within` are told once, as flapping, until it is "
        "steady.",
    )
    flapping_within: Annotated[float, Duration("1m", "1d")] = Field(
        default=1800.0, description="For how long changes count, and how long something must be steady afterwards."
    )
    time_zone: Zone = Field(default="UTC", description="Of the times in messages, and of `maintenance`.")
    maintenance: tuple[Maintenance, ...] = Field(default=(), strict=False, description="Planned work.")
    public_url: Link = Field(default=None, description="Address of the status page, for a link in each message.")
    proxy: ProxyUrl = Field(
        default=None,
        description="Forward proxy to go through; not for e-mail. No variable such as `HTTPS_PROXY` is read.",
    )
    ca_file: OptionalFile = Field(
        default=None, description="PEM file of the authorities to trust, instead of the system's."
    )
    timeout: Annotated[float, Duration("1s", "5m")] = Field(default=30.0, description="Time for one delivery attempt.")

    _checked_url = field_validator("url", mode="after")(_url)

    @field_validator("ca_file", mode="after")
    @classmethod
    def _authorities(cls, value: OptionalFile) -> OptionalFile:
        if value is not None:
            authorities(value)
        return value
