from pathlib import Path
from typing import Annotated, Literal

import pytest
from config_text import Parts, lines, refused
from pydantic import BaseModel, Field, ValidationError

from forwarder import config, config_errors
from forwarder.config_sinks import SINK_TYPES
from forwarder.errors import ConfigError, Exit, Problem

KEY_HINT = '(write { env = "NAME" } or { file = "/path" })'
DURATION = 'is not a duration (a number and one of ms, s, m, h, d, as in "250ms", "15s" or "5m")'
SIZE = 'is not a size (a whole number and a unit, as in "512MiB", "16MB" or "64KiB")'
URL = '(as in "http://localhost:4000")'
HEADER = '(as in "Authorization" or "x-litellm-api-key")'
NAME = "is not a name (1 to 64 letters, digits, dots, dashes and underscores)"
SINKS = " or ".join(f'"{name}"' for name in SINK_TYPES)
TABLE = "must be a table ({ key = value }, or a [section] of its own)"
EXCLUDE = "targets[0].metrics.exclude_series"

MISTAKES = [
    # unknown keys
    (Parts(head="[target]"), "target: is not a known key (did you mean targets?)"),
    (Parts(head='[agent]\nlog-level = "info"'), "agent.log-level: is not a known key (did you mean log_level?)"),
    (
        Parts(head="[agent]\nx = 1"),
        (
            "agent.x: is not a known key "
            "(known: drain_timeout, expose_health, instance, listen, log_format, log_level, state_dir)"
        ),
    ),
    (Parts(target="intervall = 1"), "targets[0].intervall: is not a known key (did you mean interval?)"),
    (
        Parts(tables="[targets.health]\nTimeout = 1"),
        "targets[0].health.Timeout: is not a known key (did you mean timeout?)",
    ),
    (Parts(sink="address = 1"), "sinks.console.address: is not a known key (known: timeout, type)"),
    (Parts(sink="timeouts = 1"), "sinks.console.timeouts: is not a known key (did you mean timeout?)"),
    # types
    (Parts(head="agent = 1"), f"agent: {TABLE}"),
    (Parts(head="resource = 1"), f"resource: {TABLE}"),
    (Parts(target="health = true"), f"targets[0].health: {TABLE}"),
    (Parts(target='skip = "backlog"'), "targets[0].skip: must be a list ([…])"),
    (
        Parts(target='health = { enabled = "yes" }'),
        "targets[0].health.enabled: must be true or false (without quotes)",
    ),
    (
        Parts(target='changes = { failure_threshold = "2" }'),
        "targets[0].changes.failure_threshold: must be a whole number (without quotes)",
    ),
    (
        Parts(target="changes = { failure_threshold = 2.5 }"),
        "targets[0].changes.failure_threshold: must be a whole number (without quotes)",
    ),
    (
        Parts(target="changes = { failure_threshold = true }"),
        "targets[0].changes.failure_threshold: must be a whole number (without quotes)",
    ),
    (
        Parts(target="metrics = { exclude_series = ['model=\"test-*\"'] }"),
        (
            "targets[0].metrics.exclude_series[0]: is not a table of labels and patterns for their values "
            '(as in { model = "test-*" })'
        ),
    ),
    (
        Parts(target="metrics = { include_series = [{}] }"),
        (
            "targets[0].metrics.include_series[0]: is not a table of labels and patterns for their values "
            '(as in { model = "test-*" })'
        ),
    ),
    (Parts(target='metrics = { exclude_series = { model = "a" } }'), f"{EXCLUDE}: must be a list ([…])"),
    (
        Parts(target="metrics = { exclude_series = [{ status_code = 429 }] }"),
        f'{EXCLUDE}[0].status_code: must be text (in quotes, as in {{ status_code = "429" }})',
    ),
    (
        Parts(target='metrics = { exclude_series = [{ "model name" = "a" }] }'),
        f'{EXCLUDE}[0]: is not the name of a label (letters, digits and _, as in "api_key_alias")',
    ),
    (
        Parts(target='metrics = { exclude_series = [{ le = "0.5" }] }'),
        f"{EXCLUDE}[0]: cannot choose among the buckets of a histogram (buckets = false leaves them out)",
    ),
    *(
        (
            Parts(target=f'metrics = {{ exclude_series = [{{ model = "{text}" }}] }}'),
            (
                f"{EXCLUDE}[0].model: is a regular expression or an operator of Prometheus, not a pattern "
                '(the value with * for anything, as in "test-*"; exclude_series is for what must not fit)'
            ),
        )
        for text in ("=~test", "!=test", "^test", "test$", ".*test")
    ),
    (
        Parts(target='metrics = { exclude_series = [{ model = "a\\nb" }] }'),
        f"{EXCLUDE}[0].model: is not a pattern for values of a label (200 characters, none of control)",
    ),
    # closed lists
    (Parts(head='[agent]\nlog_level = "INFO"'), 'agent.log_level: must be "debug", "info", "warning" or "error"'),
    (
        Parts(target="health = { background = true }"),
        'targets[0].health.background: must be "auto", "on" or "off"',
    ),
    (
        Parts(target='skip = ["health"]'),
        (
            'targets[0].skip[0]: must be "readiness_details", "models", "services", "shared_status", "backlog", '
            '"latest" or "model_info"'
        ),
    ),
    # ranges
    (Parts(target='interval = "999ms"'), "targets[0].interval: must be from 1s to 1d"),
    (Parts(target='timeout = "0s"'), "targets[0].timeout: must be from 1ms to 5m"),
    (Parts(target='timeout = "6m"'), "targets[0].timeout: must be from 1ms to 5m"),
    (Parts(target='health = { interval = "10s" }'), "targets[0].health.interval: must be from 15s to 7d"),
    (Parts(target="changes = { failure_threshold = 0 }"), "targets[0].changes.failure_threshold: must be at least 1"),
    (
        Parts(target="changes = { success_threshold = 101 }"),
        "targets[0].changes.success_threshold: must be at most 100",
    ),
    (Parts(head='[spool]\nmax_bytes = "1023KiB"'), "spool.max_bytes: must be from 1MiB to 1000GiB"),
    (Parts(head="[spool]\nmax_bytes = -1"), "spool.max_bytes: must be from 1MiB to 1000GiB"),
    (
        Parts(target="health = { max_billed_calls_per_day = -1 }"),
        'targets[0].health.max_billed_calls_per_day: must be a whole number from 0 to 1000000000, or "unlimited"',
    ),
    (
        Parts(target='health = { max_billed_calls_per_day = "none" }'),
        'targets[0].health.max_billed_calls_per_day: must be a whole number from 0 to 1000000000, or "unlimited"',
    ),
    # durations and sizes
    (
        Parts(target="interval = 15"),
        'targets[0].interval: a duration needs a unit (write it in quotes with its unit, as in "15s")',
    ),
    (Parts(target='interval = "15"'), f"targets[0].interval: {DURATION}"),
    (Parts(target='interval = "15 s"'), f"targets[0].interval: {DURATION}"),
    (Parts(target='interval = "15min"'), f"targets[0].interval: {DURATION}"),
    (Parts(target='interval = "-15s"'), f"targets[0].interval: {DURATION}"),
    (Parts(target='interval = "nans"'), f"targets[0].interval: {DURATION}"),
    (Parts(target='interval = "\u0661s"'), f"targets[0].interval: {DURATION}"),
    (Parts(target="interval = true"), f"targets[0].interval: {DURATION}"),
    (Parts(target="interval = 07:30:00"), f"targets[0].interval: {DURATION}"),
    (Parts(target='max_body = "16 MiB"'), f"targets[0].max_body: {SIZE}"),
    (Parts(target='max_body = "16M"'), f"targets[0].max_body: {SIZE}"),
    (Parts(target='max_body = "1.5MiB"'), f"targets[0].max_body: {SIZE}"),
    (Parts(target="max_body = 1.5"), f"targets[0].max_body: {SIZE}"),
    (Parts(target=f'max_body = "{"9" * 5000}B"'), f"targets[0].max_body: {SIZE}"),
    # addresses
    (Parts(target='url = "localhost:4000"'), f"targets[0].url: must begin with http:// or https:// {URL}"),
    (Parts(target='url = "unix:///run/proxy"'), f"targets[0].url: must begin with http:// or https:// {URL}"),
    (Parts(target="url = 4000"), f"targets[0].url: must begin with http:// or https:// {URL}"),
    (Parts(target='url = "http://"'), f"targets[0].url: has no host, or one that cannot be read {URL}"),
    (Parts(target='url = "http://:4000"'), f"targets[0].url: has no host, or one that cannot be read {URL}"),
    (Parts(target='url = "http://h:0"'), f"targets[0].url: has no host, or one that cannot be read {URL}"),
    (Parts(target='url = "http://h:4000x"'), f"targets[0].url: has a port or a host that cannot be read {URL}"),
    (Parts(target='url = "http://h:65536"'), f"targets[0].url: has a port or a host that cannot be read {URL}"),
    (Parts(target='url = "http://[::1"'), f"targets[0].url: has a port or a host that cannot be read {URL}"),
    (
        Parts(target=f'url = "http://{"a" * 64}.example"'),
        f"targets[0].url: has no host, or one that cannot be read {URL}",
    ),
    (
        Parts(target='url = "http://my host"'),
        "targets[0].url: holds a space or another character that no URL has (letters of other scripts as xn--…)",
    ),
    (
        Parts(target='url = "http://h/?model=x"'),
        "targets[0].url: must not have a query or a fragment (leave out everything from the ? or # on)",
    ),
    (
        Parts(target='url = "http://admin:pw@h"'),
        "targets[0].url: must not carry a user name or password (use api_key)",
    ),
    (
        Parts(target='url = "http://h/a/../health"'),
        "targets[0].url: has a path that is not plain letters, digits, dots and dashes (without //, ./, ../ and %20)",
    ),
    (
        Parts(target='url = "http://localhost:4000/health/"'),
        "targets[0].url: must be the address of the proxy, not of an endpoint (leave the path out; the agent adds it)",
    ),
    (
        Parts(target='url = "http://localhost:4000/metrics"'),
        "targets[0].url: must be the address of the proxy, not of an endpoint (leave the path out; the agent adds it)",
    ),
    (
        Parts(target='proxy = "http://u:p@proxy:3128"'),
        "targets[0].proxy: must not carry a user name or password (proxies that ask for a password are not supported)",
    ),
    (
        Parts(target='proxy = "http://proxy:3128/path"'),
        'targets[0].proxy: must not have a path (as in "http://proxy.internal:3128")',
    ),
    # names
    (Parts(more='[[targets]]\nname = ""\nurl = "http://h"'), f"targets[1].name: {NAME}"),
    (Parts(more='[[targets]]\nname = "a b"\nurl = "http://h"'), f"targets[1].name: {NAME}"),
    (Parts(more=f'[[targets]]\nname = "{"a" * 65}"\nurl = "http://h"'), f"targets[1].name: {NAME}"),
    (Parts(more='[[targets]]\nurl = "http://h"'), "targets[1].name: is missing (it is always needed)"),
    (Parts(more='[[targets]]\nname = "us"'), "targets[1].url: is missing (it is always needed)"),
    (
        Parts(more='[[targets]]\nname = "eu"\nurl = "http://h"'),
        "targets[1].name: another target has this name (letter case does not tell names apart)",
    ),
    (
        Parts(more='[[targets]]\nname = "EU"\nurl = "http://h"'),
        "targets[1].name: another target has this name (letter case does not tell names apart)",
    ),
    (Parts(more='[sinks."my console"]\ntype = "console"'), f'sinks."my console": {NAME}'),
    # sinks
    (
        Parts(more='[sinks.dd]\ntype = "syslog"\nport = 1'),
        f"sinks.dd.type: is unknown to this release, which has {SINKS}",
    ),
    (Parts(more="[sinks.dd]\ntype = []"), f"sinks.dd.type: is unknown to this release, which has {SINKS}"),
    (Parts(more="[sinks.dd]"), f"sinks.dd.type: is missing (add type = {SINKS})"),
    (Parts(more="[sinks]\ndd = 1"), f"sinks.dd: {TABLE}"),
    # resource
    (
        Parts(head='[resource]\ndeployment.environment.name = "prod"'),
        (
            "resource.deployment: must be text or a whole number "
            '(a name with dots needs quotes: "service.namespace" = "llm")'
        ),
    ),
    (
        Parts(head='[resource]\n"litellm.target" = "x"'),
        'resource."litellm.target": is set by the agent, to the name of the target (take it out)',
    ),
    (Parts(head='[resource]\nteam = ""'), "resource.team: must be 1 to 200 printable characters"),
    (Parts(head='[resource]\nteam = "a\\nb"'), "resource.team: must be 1 to 200 printable characters"),
    (Parts(head="[resource]\nteam = true"), "resource.team: must be text or a whole number"),
    (Parts(head="[resource]\nteam = 1.5"), "resource.team: must be text or a whole number"),
    (Parts(head=f"[resource]\nteam = {2**63}"), "resource.team: must fit in 64 bits"),
    (
        Parts(head='[resource]\n"my team" = "a"'),
        'resource."my team": is not an attribute name (as OpenTelemetry writes them: "deployment.environment.name")',
    ),
    (
        Parts(head='[resource]\nteam = { env = "THE_TEAM" }'),
        "resource.team: environment variable THE_TEAM is not set (set it before starting)",
    ),
    (
        Parts(head='[resource]\nteam = { env = "sk1234" }'),  # what may be a pasted secret is not repeated
        "resource.team: the environment variable it names is not set (set it before starting)",
    ),
    (
        Parts(head='[resource]\nteam = { env = "LITELLM_API_KEY" }'),
        "resource.team: names a variable that holds a secret, by its name (attributes go to every sink, in clear)",
    ),
    (
        Parts(head="[resource]\nteam = { env = 1 }"),
        'resource.team: env must be the name of an environment variable (as in { env = "POD_NAME" })',
    ),
    # paths and certificates
    (Parts(head="[agent]\nstate_dir = 1"), "agent.state_dir: is not a path (write it in quotes)"),
    (Parts(head='[agent]\nstate_dir = ""'), "agent.state_dir: is not a path (write it in quotes)"),
    (Parts(head='[agent]\nstate_dir = "a\\u0000b"'), "agent.state_dir: is not a path (write it in quotes)"),
    (
        Parts(target='ca_file = "none.pem"'),
        "targets[0].ca_file: the file does not exist (relative paths start at the folder of the configuration)",
    ),
    (
        Parts(target='ca_file = "."'),
        "targets[0].ca_file: the file cannot be read (give the agent's user read access to it)",
    ),
    (
        Parts(target='ca_file = "config.toml"'),
        "targets[0].ca_file: holds no certificate that can be loaded (a PEM file is needed)",
    ),
    (
        Parts(target='client_cert = "none.pem"\nclient_key = "config.toml"'),
        "targets[0].client_cert: the file does not exist (relative paths start at the folder of the configuration)",
    ),
    (Parts(target='client_key = "config.toml"'), "targets[0].client_key: needs client_cert beside it"),
    # secrets
    (
        Parts(target='api_key = "sk-1"'),
        f"targets[0].api_key: a secret is never written into the configuration {KEY_HINT}",
    ),
    (
        Parts(target="api_key = 1234"),
        f"targets[0].api_key: a secret is never written into the configuration {KEY_HINT}",
    ),
    (
        Parts(target="api_key = {}"),
        f"targets[0].api_key: must name either an environment variable or a file, and nothing else {KEY_HINT}",
    ),
    (
        Parts(target='api_key = { env = "A_KEY", file = "/a" }'),
        f"targets[0].api_key: must name either an environment variable or a file, and nothing else {KEY_HINT}",
    ),
    (
        Parts(target='api_key = { value = "sk-1" }'),
        f"targets[0].api_key: must name either an environment variable or a file, and nothing else {KEY_HINT}",
    ),
    (
        Parts(target='api_key = { env = "A_KEY", optional = "yes" }'),
        f"targets[0].api_key: must name either an environment variable or a file, and nothing else {KEY_HINT}",
    ),
    (
        Parts(target='api_key = { env = "$A_KEY" }'),
        f"targets[0].api_key: env must be the name of an environment variable, not the secret itself {KEY_HINT}",
    ),
    (
        Parts(target='api_key = { env = "A_KEY" }'),
        "targets[0].api_key: environment variable A_KEY is not set (export A_KEY=… before starting)",
    ),
    (
        Parts(target='api_key = { env = "EMPTY_KEY" }'),
        "targets[0].api_key: environment variable EMPTY_KEY is empty (a secret was expected)",
    ),
    (
        Parts(target='api_key = { env = "BEARER_KEY" }'),
        "targets[0].api_key: holds a whole Authorization header (give the bare key; the agent adds the word Bearer)",
    ),
    (
        Parts(target='api_key = { env = "SPACE_KEY" }'),
        "targets[0].api_key: has a space at its beginning or end (was it pasted with care?)",
    ),
    (
        Parts(target='api_key = { file = "/none/of/these" }'),
        "targets[0].api_key: secret file /none/of/these does not exist (create it, or correct the path)",
    ),
    (
        Parts(target='api_key = { file = "none", optional = false }'),
        (
            "targets[0].api_key: the secret file it names does not exist "
            "(relative paths start at the folder of the configuration)"
        ),
    ),
    *(
        (
            Parts(target=f'api_key = {{ file = "{pasted}" }}'),
            (
                "targets[0].api_key: the secret file it names does not exist "
                "(relative paths start at the folder of the configuration)"
            ),
        )
        for pasted in ("eyJhbGciOi.eyJzdWIi.c2ln", "q83/EjRWeJCr+w==", "https://hooks.x.test/T0/B0/key")
    ),
    (
        Parts(target='api_key_header = "x key"'),
        "targets[0].api_key_header: is not the name of an HTTP header " + HEADER,
    ),
    (
        Parts(target='api_key_header = "Host"'),
        "targets[0].api_key_header: is a header that cannot carry a key " + HEADER,
    ),
]
ENVIRON = {"EMPTY_KEY": "", "BEARER_KEY": "Bearer sk-1", "SPACE_KEY": "sk-1 "}


@pytest.mark.parametrize(("parts", "line"), MISTAKES, ids=[line[:60] for _, line in MISTAKES])
def test_a_mistake_is_told_with_its_place_its_reason_and_its_fix(tmp_path: Path, parts: Parts, line: str) -> None:
    """Exactly one line for one mistake, in plain words."""
    assert lines(tmp_path, parts.text(), ENVIRON) == [line]


SECTION_HINTS = [
    "targets: needs a list of proxies to watch (write [[targets]], with two brackets, once for each proxy)",
    'sinks: needs at least one destination (write [sinks.console] and, below it, type = "console")',
]


@pytest.mark.parametrize(
    "text", ["", "targets = []\n[sinks]", "[targets]\n[[sinks]]", 'targets = "http://localhost"\nsinks = "console"']
)
def test_something_to_watch_and_somewhere_to_deliver_are_needed(tmp_path: Path, text: str) -> None:
    """An agent that does nothing does not start, and the usual slips of TOML are named."""
    assert lines(tmp_path, text) == SECTION_HINTS


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Nobody mends a file one start at a time; the order is that of the sections, and in a section that of
    its model: the keys it shares with others first.
    """
    error = refused(
        tmp_path,
        """
        agents = 1
        [agent]
        drain_timeout = 20
        [resource]
        "litellm.target" = "x"
        [[targets]]
        name = "eu"
        url = "localhost:4000"
        api_key = { env = "NOT_SET" }
        ca_file = "none.pem"
        [targets.health]
        interval = "1s"
        [[targets]]
        name = "eu"
        url = "http://localhost:4000"
        client_key = "config.toml"
        [sinks.dd]
        type = "syslog"
        [sinks.console]
        type = "console"
        timeout = 1
        """,
    )
    assert [problem.path for problem in error.problems] == [
        "agent.drain_timeout",
        'resource."litellm.target"',
        "targets[0].ca_file",
        "targets[0].url",
        "targets[0].api_key",
        "targets[0].health.interval",
        "targets[1].client_key",
        "targets[1].name",
        "sinks.dd.type",
        "sinks.console.timeout",
        "agents",
    ]
    assert str(error).splitlines()[0] == f"{tmp_path / 'config.toml'}: 11 problems"
    assert error.exit_code == Exit.CONFIG


def test_a_file_that_is_something_else_yields_a_hundred_lines_and_a_count(tmp_path: Path) -> None:
    """A wrong file does not flood the terminal, nor take long."""
    found = lines(tmp_path, "\n".join(f"key{number} = 1" for number in range(30_000)))
    assert len(found) == config_errors.MAX_PROBLEMS + 1
    assert found[-1] == "…: and 29902 more problems (is it the right file?)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = sk-1", 'line 1, column 5: is not TOML: Invalid value (text stands in quotes: key = "value")'),
        ("\nurl: http://h", "line 2, column 4: is not TOML: Expected '=' after a key in a key/value pair"),
        ("[agent]\n[agent]", "line 2, column 7: is not TOML: A key or a table stands twice"),
        ("a = {b = 1, b = 2}", "line 1, column 18: is not TOML: A key or a table stands twice"),
        ("a = " + "[" * 100_000, "file: is nested too deeply (is it the right file?)"),
        ("a = " + "9" * 10_000, "file: holds a number that is too large"),
        (b"a = '\xff'", "file: is not UTF-8 text (byte 6) (save it as UTF-8)"),
        ("a = 1".encode("utf-16"), "file: is not UTF-8 text (byte 1) (save it as UTF-8)"),
        (b"#" * (2**20 + 1), "file: is larger than 1048576 bytes (is it the right file?)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_toml_is_told_with_its_place(tmp_path: Path, text: str | bytes, line: str) -> None:
    """A slip of syntax is found by line and column."""
    assert lines(tmp_path, text) == [line]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none.toml", "file: does not exist (name one with --config)"),
        (".", "file: is a folder (name the file in it)"),
        ("config.toml/x", "file: cannot be read: Not a directory"),
        ("a\0b", "file: cannot be read: ValueError"),
        ("a" * 300, "file: cannot be read: File name too long"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path, name: str, line: str) -> None:
    """Whatever stands at the path, the message is one line and not a traceback."""
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / name, {})
    assert [str(problem) for problem in caught.value.problems] == [line]


def test_a_file_without_the_right_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual slip of a service user; patched, because tests may run as root, who may read everything."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match="file: may not be read"):
        config.load(tmp_path / "config.toml", {})


# --- more than one type of sink, as there will be --------------------------------------------------------------


class _A(BaseModel, extra="forbid"):
    type: Literal["a"]
    limit: int = 1


class _B(BaseModel, extra="forbid"):
    type: Literal["b"]
    address: str


class _Both(BaseModel):
    sinks: dict[str, Annotated[_A | _B, Field(discriminator="type")]]


@pytest.mark.parametrize("name", ["mine", "b", "type", "limit"])
def test_the_path_of_a_problem_in_one_of_several_types_of_sink(name: str) -> None:
    """Pydantic puts the type into the location; people know the name alone, whatever it is."""
    with pytest.raises(ValidationError) as caught:
        _Both.model_validate({"sinks": {name: {"type": "b", "limits": 1}}})
    assert config_errors.problems(caught.value, _Both) == [
        Problem(f"sinks.{name}.address", "is missing", "it is always needed"),
        Problem(f"sinks.{name}.limits", "is not a known key", "known: address, type"),
    ]


@pytest.mark.parametrize("name", ["./eu", "../keys/eu", "eu.key", "keys/eu.txt"])
def test_a_secret_file_is_named_where_it_cannot_be_the_secret(tmp_path: Path, name: str) -> None:
    """Whole, so that it is seen where a relative path starts."""
    (line,) = lines(tmp_path, Parts(target=f'api_key = {{ file = "{name}" }}').text())
    assert line.startswith(f"targets[0].api_key: secret file {tmp_path / name} does not exist (relative paths start")
