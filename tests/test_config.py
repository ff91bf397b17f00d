import ssl
import traceback
from pathlib import Path
from typing import Any

import pytest
import trustme
from config_text import Parts, lines, load, refused
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forwarder import config
from forwarder.config_sinks import ConsoleSink
from forwarder.config_values import Duration, Size, duration_text, seconds, size, size_text
from forwarder.errors import ConfigError
from forwarder.secrets import Secret

CANARY = "sk-CANARY-1f9c"


# --- what is read ----------------------------------------------------------------------------------------------


def test_the_smallest_configuration_gets_the_documented_defaults(tmp_path: Path) -> None:
    """Defaults are API: changing one changes what running agents do."""
    loaded = load(tmp_path, Parts().text())
    assert loaded.agent.drain_timeout == 20
    assert loaded.agent.log_level == "info"
    assert loaded.spool == config.Spool()
    assert (loaded.spool.max_bytes, loaded.spool.max_age) == (512 * 1024**2, 7 * 86400)
    assert (loaded.telemetry.enabled, loaded.telemetry.interval) == (True, 60)
    assert loaded.resource == {}
    (target,) = loaded.targets
    assert (target.name, target.url, target.api_key) == ("eu", "http://localhost:4000", None)
    assert (target.interval, target.timeout, target.max_body) == (15, 10, 16 * 1024**2)
    assert (target.ca_file, target.client_cert, target.client_key, target.proxy) == (None, None, None, None)
    assert target.skip == frozenset()
    assert target.health.model_dump() == {
        "enabled": True,
        "interval": "5m",
        "timeout": "90s",
        "max_billed_calls_per_day": 5000,
        "background": "auto",
    }
    assert (target.changes.failure_threshold, target.changes.success_threshold) == (2, 2)
    assert loaded.sinks == {"console": ConsoleSink(type="console")}
    assert loaded.sinks["console"].timeout == 10


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each key arrives where it belongs."""
    (tmp_path / "key").write_text("sk-1\n")
    loaded = load(
        tmp_path,
        """
        [agent]
        state_dir = "state"
        drain_timeout = "0s"
        log_level = "debug"
        [spool]
        max_bytes = 1048576
        max_age = "1.5h"
        [telemetry]
        enabled = false
        interval = "5m"
        [resource]
        "deployment.environment.name" = "prod"
        shard = 7
        [[targets]]
        name = "eu"
        url = "HTTPS://LiteLLM.Example.com:8443/team/a//"
        api_key = { file = "key" }
        api_key_header = "x-litellm-api-key"
        interval = "1s"
        timeout = "2500ms"
        max_body = "1MB"
        proxy = "http://proxy.internal:3128/"
        skip = ["backlog", "services", "backlog"]
        health = { enabled = false, interval = "1h", max_billed_calls_per_day = "unlimited", background = "on" }
        changes = { failure_threshold = 1, success_threshold = 100 }
        [sinks.out]
        type = "console"
        timeout = "1m"
        """,
    )
    (target,) = loaded.targets
    assert loaded.agent.state_dir == tmp_path / "state"
    assert (loaded.agent.drain_timeout, loaded.agent.log_level) == (0, "debug")
    assert (loaded.spool.max_bytes, loaded.spool.max_age) == (1048576, 5400)
    assert (loaded.telemetry.enabled, loaded.telemetry.interval) == (False, 300)
    assert loaded.resource == {"deployment.environment.name": "prod", "shard": 7}
    assert target.url == "https://litellm.example.com:8443/team/a"
    assert target.key_headers() == {"x-litellm-api-key": "sk-1"}
    assert (target.interval, target.timeout, target.max_body) == (1, 2.5, 1_000_000)
    assert target.proxy == "http://proxy.internal:3128"
    assert target.skip == {"backlog", "services"}
    assert (target.health.enabled, target.health.interval, target.health.background) == (False, 3600, "on")
    assert target.health.max_billed_calls_per_day is None
    assert target.changes == config.Changes(failure_threshold=1, success_threshold=100)
    assert loaded.sinks["out"].timeout == 60


def test_a_configuration_is_frozen_and_compares_by_value(tmp_path: Path) -> None:
    """A reload tells what changed by comparing; nobody changes it underneath."""
    first, second = load(tmp_path, Parts().text()), load(tmp_path, Parts().text())
    assert first == second
    assert first.targets[0] != load(tmp_path, Parts(target='interval = "30s"').text()).targets[0]
    with pytest.raises(ValidationError):
        first.agent.log_level = "error"  # type: ignore[misc]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_editors_of_other_systems_are_welcome(tmp_path: Path, mark: bytes) -> None:
    """A byte-order mark and CRLF are not mistakes."""
    assert load(tmp_path, mark + Parts().text().replace("\n", "\r\n").encode()).targets


def test_the_state_folder_is_the_one_that_systemd_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit with StateDirectory= needs no state_dir; without either it is the user's folder."""
    environ = {"STATE_DIRECTORY": "/var/lib/litellm-forwarder:/var/lib/other"}
    assert load(tmp_path, Parts().text(), environ).agent.state_dir == Path("/var/lib/litellm-forwarder")
    explicit = Parts(head='[agent]\nstate_dir = "/srv/state"').text()
    assert load(tmp_path, explicit, environ).agent.state_dir == Path("/srv/state")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load(tmp_path, Parts().text()).agent.state_dir == tmp_path / "litellm-forwarder"


def test_an_attribute_may_come_from_the_place_of_running(tmp_path: Path) -> None:
    """Replicas that share a configuration are told apart: each names itself."""
    text = Parts(head='[resource]\n"k8s.pod.name" = { env = "POD_NAME" }').text()
    assert load(tmp_path, text, {"POD_NAME": "litellm-7d4"}).resource == {"k8s.pod.name": "litellm-7d4"}
    assert lines(tmp_path, text, {"POD_NAME": "a\nb"}) == [
        'resource."k8s.pod.name": must be 1 to 200 printable characters'
    ]
    # Commands beside the agent, in another environment, look into the spool all the same.
    (tmp_path / "config.toml").write_text(text)
    assert config.load(tmp_path / "config.toml", {}, secrets=False).targets


def test_no_home_folder_is_said_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container under an arbitrary user, state must not land in a folder called `~`."""
    monkeypatch.setattr("platformdirs.user_state_path", lambda _: Path("~/.local/state/litellm-forwarder"))
    assert lines(tmp_path, Parts().text()) == [
        "agent.state_dir: has no default here, because this user has no home folder (set it)"
    ]


# --- secrets ---------------------------------------------------------------------------------------------------


def test_a_missing_optional_secret_means_none(tmp_path: Path) -> None:
    """The shipped configuration works with and without a key."""
    # An empty variable too: KEY: "${KEY:-}" in a compose file sets one.
    for reference in ('{ env = "A_KEY", optional = true }', '{ file = "none", optional = true }'):
        for environ in ({}, {"A_KEY": ""}):
            target = load(tmp_path, Parts(target=f"api_key = {reference}").text(), environ).targets[0]
            assert target.api_key is None
            assert target.key_headers() == {}


def test_a_file_that_is_there_but_unusable_is_a_problem_even_when_optional(tmp_path: Path) -> None:
    """Optional means that it may be missing, not that it may be broken."""
    (tmp_path / "key").write_text("")
    assert lines(tmp_path, Parts(target='api_key = { file = "key", optional = true }').text())
    assert lines(tmp_path, Parts(target='api_key = { file = "key/under-a-file", optional = true }').text())


@pytest.mark.parametrize(
    ("header", "sent"),
    [("Authorization", "Bearer sk-1"), ("authorization", "Bearer sk-1"), ("x-api-key", "sk-1"), ("API-Key", "sk-1")],
)
def test_the_key_travels_in_the_header_that_was_asked_for(tmp_path: Path, header: str, sent: str) -> None:
    """Authorization has its scheme; gateways with a header of their own want the bare key."""
    text = Parts(target=f'api_key = {{ env = "A_KEY" }}\napi_key_header = "{header}"').text()
    assert load(tmp_path, text, {"A_KEY": "sk-1"}).targets[0].key_headers() == {header: sent}


def test_a_loaded_configuration_shows_no_secret(tmp_path: Path) -> None:
    """Logging the whole configuration leaks nothing."""
    loaded = load(tmp_path, Parts(target='api_key = { env = "A_KEY" }').text(), {"A_KEY": CANARY})
    assert loaded.targets[0].api_key == Secret(CANARY)
    for text in (repr(loaded), str(loaded), f"{loaded}", repr(loaded.model_dump()), repr(loaded.targets[0])):
        assert "CANARY" not in text
    with pytest.raises(ValueError, match="serialize"):
        loaded.model_dump_json()


@pytest.mark.parametrize(
    "text",
    [
        Parts(target=f'api_key = "{CANARY}"').text(),
        Parts(target=f'api_key = ["{CANARY}"]').text(),
        Parts(target=f'api_key = {{ env = "{CANARY}" }}').text(),
        Parts(target=f'api_key = {{ env = "{CANARY.replace("-", "_")}" }}').text(),
        Parts(target=f'api_key = {{ env = "{CANARY.replace("-", "").upper()}" }}').text(),
        Parts(target=f'api_key = {{ file = "{CANARY}" }}').text(),
        Parts(target=f'api_key = {{ file = "{CANARY}\\u0000" }}').text(),
        Parts(target=f'api_key = {{ value = "{CANARY}" }}').text(),
        Parts(target=f'api_key = {{ "{CANARY}" = true }}').text(),
        Parts(target=f'api_key = {{ env = "A_KEY", optional = "{CANARY}" }}').text(),
        Parts(target='api_key = { env = "A_KEY" }').text(),
        Parts(target='api_key = { file = "key" }').text(),
        Parts(target=f'api_key_header = "Authorization: Bearer {CANARY}"').text(),
        Parts(target=f'key = "{CANARY}"').text(),
        Parts(target=f'{CANARY} = "{CANARY}"').text(),
        Parts(head=f"[{CANARY}]").text(),
        Parts(target=f'url = "http://user:{CANARY}@localhost"').text(),
        Parts(target=f'url = "http://{CANARY}@localhost"').text(),
        Parts(target=f'url = "http://localhost/?key={CANARY}"').text(),
        Parts(target=f'url = "http://user:{CANARY}"').text(),
        Parts(target=f'url = "{CANARY}"').text(),
        Parts(target=f'proxy = "http://user:{CANARY}@localhost"').text(),
        Parts(target=f'ca_file = "{CANARY}"').text(),
        Parts(target=f'client_key = """-----BEGIN PRIVATE KEY-----\n{CANARY}"""').text(),
        Parts(target=f'interval = "{CANARY}"\nmax_body = "{CANARY}"\nhealth = "{CANARY}"').text(),
        Parts(target=f'skip = ["{CANARY}"]').text(),
        Parts(tables=f'[targets.health]\nbackground = "{CANARY}"\nmax_billed_calls_per_day = "{CANARY}"').text(),
        Parts(tables=f'[targets.changes]\nfailure_threshold = "{CANARY}"').text(),
        Parts(more=f'[sinks.dd]\ntype = "{CANARY}"').text(),
        Parts(sink=f'api_key = "{CANARY}"').text(),
        Parts(head=f'[agent]\nlog_level = "{CANARY}"\nstate_dir = ["{CANARY}"]').text(),
        Parts(head=f'[resource]\nkey = {{ value = "{CANARY}" }}').text(),
        Parts(head=f"api_key = {CANARY}").text(),
        Parts(head=f'api_key = "{CANARY}').text(),
        Parts(head=f'api_key = "{CANARY}" # x\napi_key = "{CANARY}"').text(),
        Parts(head=f'api_key = "{CANARY}\\x"').text(),
        Parts().text().encode() + f'"{CANARY}'.encode() + b"\xff",
    ],
    ids=range(37),
)
def test_no_value_is_ever_repeated(tmp_path: Path, text: str | bytes) -> None:
    """A key pasted in the wrong place stays out of the message, the traceback and the error's own causes."""
    (tmp_path / "key").write_text(f"{CANARY}\n{CANARY}")
    error = refused(tmp_path, text, {"A_KEY": f"{CANARY}\n"})
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.problems)
    assert "CANARY" not in shown.upper()
    # pydantic's errors hold the values; a reporter of crashes that walks the chain must not come upon one.
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("key", ["a\\nb", "a\\u001b[31m", "a\\u2028b", "x" * 61, "[key]", 'a\\"b'])
def test_an_odd_key_forges_no_line(tmp_path: Path, key: str) -> None:
    """Keys come from whoever wrote the file; messages go to terminals and logs."""
    error = refused(tmp_path, Parts(head=f'"{key}" = 1').text())
    assert [problem.path for problem in error.problems] == ['"…"']
    assert len(str(error).splitlines()) == 2


# --- certificates ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("client", "other"):
        cert = ca.issue_cert(f"{name}.example")
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        cert.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}-both.pem")
    key = serialization.load_pem_private_key((folder / "client.key").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pw")
    )
    (folder / "encrypted.key").write_bytes(encrypted)
    return folder


@pytest.mark.parametrize(
    "target",
    [
        'ca_file = "ca.pem"',
        'client_cert = "client.pem"\nclient_key = "client.key"',
        'client_cert = "client-both.pem"',
        'ca_file = "ca.pem"\nclient_cert = "client-both.pem"\nclient_key = "client.key"',
    ],
)
def test_certificates_that_load_are_taken(certificates: Path, tmp_path: Path, target: str) -> None:
    """Paths are relative to the configuration; the key may be in the file of the certificate."""
    for file in certificates.iterdir():
        (tmp_path / file.name).symlink_to(file)
    loaded = load(tmp_path, Parts(target=target).text()).targets[0]
    assert {loaded.ca_file, loaded.client_cert} & {tmp_path / "ca.pem", tmp_path / "client.pem", None}


@pytest.mark.parametrize(
    "target",
    [
        'client_cert = "client.pem"',
        'client_cert = "client.pem"\nclient_key = "other.key"',
        'client_cert = "client.pem"\nclient_key = "encrypted.key"',
        'client_cert = "client.key"\nclient_key = "client.key"',
    ],
)
def test_a_pair_that_does_not_load_is_found_before_the_start(certificates: Path, tmp_path: Path, target: str) -> None:
    """Among them an encrypted key, for which OpenSSL would otherwise ask on the terminal."""
    for file in certificates.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert lines(tmp_path, Parts(target=target).text()) == [
        (
            "targets[0].client_key: client_cert and client_key cannot be loaded as a pair "
            "(PEM files, a key that belongs to the certificate and is not encrypted)"
        )
    ]


def test_an_encrypted_key_never_asks_on_the_terminal(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service has nobody to answer; a password is always given, so that OpenSSL has no reason to ask."""
    given: list[object] = []
    real = ssl.SSLContext.load_cert_chain

    def spy(self: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        given.append(kwargs.get("password"))
        real(self, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    for file in certificates.iterdir():
        (tmp_path / file.name).symlink_to(file)
    refused(tmp_path, Parts(target='client_cert = "client.pem"\nclient_key = "encrypted.key"').text())
    assert given
    assert None not in given


# --- finding ---------------------------------------------------------------------------------------------------


def test_the_file_is_found_in_the_documented_order(tmp_path: Path) -> None:
    """--config, else the working folder, else the system's."""
    here, system = tmp_path / "here", tmp_path / "system"
    here.mkdir()
    system.mkdir()
    environ = {"CONFIGURATION_DIRECTORY": str(system)}
    (system / "config.toml").touch()
    assert config.find(None, environ, here) == system / "config.toml"
    (here / "config.toml").touch()
    assert config.find(None, environ, here) == here / "config.toml"
    assert config.find(Path("other.toml"), environ, here) == here / "other.toml"
    assert config.find(Path("/else/where.toml"), environ, here) == Path("/else/where.toml")


def test_when_none_is_found_the_places_are_named(tmp_path: Path) -> None:
    """The operator learns where the agent looked."""
    with pytest.raises(ConfigError) as caught:
        config.find(None, {"CONFIGURATION_DIRECTORY": "/none"}, tmp_path)
    assert [str(problem) for problem in caught.value.problems] == [
        f"file: none found; looked at {tmp_path}/config.toml and /none/config.toml (name one with --config)"
    ]
    assert config.FOLDER == "/etc/litellm-forwarder"


# --- durations and sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("250ms", 0.25), ("0s", 0), ("15s", 15), ("1.5s", 1.5), ("5m", 300), ("1h", 3600), ("7d", 604800)],
)
def test_durations(text: str, value: float) -> None:
    """Seconds, whatever the unit."""
    assert Duration("0s", "365d").read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("512MiB", 2**29), ("16MB", 16_000_000), ("64KiB", 65536), ("1kB", 1000), ("1KB", 1000), ("9B", 9), (4096, 4096)],
)
def test_sizes(text: str | int, value: int) -> None:
    """Bytes; MB and MiB are told apart."""
    assert Size("1B", "1GiB").read(text) == value


@given(st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000))
def test_a_duration_reads_back_as_it_is_written(value: float) -> None:
    """Defaults in the documentation and the schema are what the code uses."""
    assert seconds(duration_text(value)) == pytest.approx(value)


@given(st.integers(0, 2**39))
def test_a_size_reads_back_as_it_is_written(value: int) -> None:
    """As above."""
    assert size(size_text(value)) == value
