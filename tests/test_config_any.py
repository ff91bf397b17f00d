import datetime as dt
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from config_text import load
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from schema_check import complaints

from forwarder import config
from forwarder.config_sinks import SINK_TYPES
from forwarder.errors import ConfigError
from forwarder.http.settings import checked_base
from forwarder.secrets import Secret
from forwarder.transport.settings import checked_headers

keys = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.sampled_from(["15s", "1MiB", "console", "unlimited", "on", "eu", "http://h", "/", "A_KEY", ".", "1h", "7d"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys | st.sampled_from(["env", "file", "optional", "type", "interval"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def toml(value: object) -> str:
    """`value` in TOML, tables inline."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case list():
            return "[" + ", ".join(toml(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
        case _:
            raise TypeError(type(value))


def document(tables: Mapping[str, Any]) -> str:
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in tables.items())


def check_any(folder: Path, text: str | bytes) -> config.Config | None:
    """Load; nothing but a ConfigError may come out, with a path for each problem and one line for each."""
    try:
        return load(folder, text, {"A_KEY": "sk-1"})
    except ConfigError as caught:
        error = caught
    assert error.problems
    assert len(str(error).splitlines()) == 1 + len(error.problems)
    for problem in error.problems:
        assert problem.path
        assert problem.reason != "is not valid", "words are missing for an error of pydantic's"
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@settings(deadline=None)  # they write a file
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_load_or_are_a_configuration_error(folder: Path, data: bytes) -> None:
    """No file makes the agent crash."""
    check_any(folder, data)


@settings(deadline=None)
@given(
    tables=st.dictionaries(
        st.sampled_from(["agent", "spool", "resource", "targets", "sinks"]) | keys, values, max_size=4
    )
)
def test_any_tables_load_or_are_a_configuration_error(folder: Path, tables: dict[str, Any]) -> None:
    """No content makes the agent crash."""
    text = document(tables)
    assert tomllib.loads(text).keys() == tables.keys()
    check_any(folder, text)


SECTIONS: dict[str, type[BaseModel]] = {
    "agent": config.Agent,
    "spool": config.Spool,
    "targets": config.Target,
    "health": config.Health,
    "changes": config.Changes,
    **{f"sinks.{name}": model for name, model in SINK_TYPES.items()},
}
SINKS: dict[str, dict[str, Any]] = {  # what a type of sink needs
    "otlp": {"endpoint": "http://h"},
    "newrelic": {"api_key": {"env": "A_KEY"}},
}
PLACES = [("resource", "team"), *((section, key) for section, model in SECTIONS.items() for key in model.model_fields)]


@settings(deadline=None)
@given(place=st.sampled_from(PLACES), value=values)
def test_any_value_in_any_place(folder: Path, place: tuple[str, str], value: object) -> None:
    """Whatever stands where a value belongs is taken or refused in words; what is taken, the schema takes as well."""
    section, key = place
    tables: dict[str, dict[str, Any]] = {"agent": {}, "spool": {}, "resource": {}, "health": {}, "changes": {}}
    tables["targets"] = {"name": "eu", "url": "http://h", "health": tables["health"], "changes": tables["changes"]}
    kind = section.removeprefix("sinks.") if section.startswith("sinks.") else "console"
    tables[f"sinks.{kind}"] = {"type": kind, **SINKS.get(kind, {})}
    tables[section][key] = value
    whole: dict[str, Any] = {name: tables[name] for name in ("agent", "spool", "resource")}
    whole |= {"targets": [tables["targets"]], "sinks": {"out": tables[f"sinks.{kind}"]}}
    if check_any(folder, document(whole)) is not None:
        schema = config.json_schema()
        assert list(complaints(whole, schema, schema)) == []


@given(
    st.from_regex(
        r"https?://[A-Za-z0-9._\[\]:@-]{1,70}(:[0-9]{1,6})?(/[A-Za-z0-9._%;,=+~-]{0,12}){0,3}/?", fullmatch=True
    )
    | st.sampled_from(["", "/x"]).flatmap(
        lambda prefix: st.sampled_from(["/health/drain", "/cache/ping/a", "/health", "/HEALTH/x"]).map(
            lambda path: f"http://h{prefix}{path}"
        )
    )
)
def test_a_url_that_is_taken_can_be_requested(url: str) -> None:
    """What the configuration accepts, the client accepts: no surprise after the check has passed."""
    try:
        target = config.Target(name="eu", url=url)
    except ValidationError:
        return
    checked_base(target.url)
    assert config.Target(name="eu", url=target.url).url == target.url


@given(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True) | st.sampled_from(["accept", "TE", "Upgrade", "host"]))
def test_a_header_that_is_taken_can_be_sent(name: str) -> None:
    """As above, for the header that carries the key."""
    try:
        target = config.Target(name="eu", url="http://h", api_key=Secret("sk-1"), api_key_header=name)
    except ValidationError:
        return
    assert checked_headers(target.key_headers())
