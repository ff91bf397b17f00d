"""The table of a Datadog sink by either transport, and which of Datadog's own variables fill it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from config_text import Parts, lines, load

from forwarder import config
from forwarder.build import build_sink
from forwarder.config_sinks import DatadogSink
from forwarder.errors import ConfigError
from forwarder.instance import Instance
from forwarder.sinks.datadog.api import DatadogApiSink
from forwarder.sinks.datadog.dogstatsd import DogStatsdSink

HINT = '(as in "unix:///var/run/datadog/dsd.socket" or "udp://127.0.0.1:8125")'


def text(*keys: str) -> str:
    return Parts(more="\n".join(["[sinks.dd]", 'type = "datadog"', *keys])).text()


def sink(folder: Path, *keys: str, environ: Mapping[str, str] | None = None) -> DatadogSink:
    found = load(folder, text(*keys), environ).sinks["dd"]
    assert isinstance(found, DatadogSink)
    return found


def mistakes(folder: Path, *keys: str, environ: Mapping[str, str] | None = None) -> list[str]:
    return lines(folder, text(*keys), environ)


@pytest.mark.parametrize(
    "address",
    [
        "unix:///var/run/datadog/dsd.socket",
        "unixgram:///run/my agent/dsd.socket",
        "unixstream:///s",
        "udp://127.0.0.1:8125",
        "udp://[::1]:8125",
        "udp://datadog.monitoring.svc.cluster.local:18125",
    ],
)
def test_addresses_are_those_of_datadogs_clients(tmp_path: Path, address: str) -> None:
    """What stands in their pages can be copied."""
    assert sink(tmp_path, f'address = "{address}"').address == address


def test_a_udp_address_may_leave_out_the_port(tmp_path: Path) -> None:
    """It is 8125 by custom."""
    assert sink(tmp_path, 'address = "udp://10.0.0.1"').address == "udp://10.0.0.1:8125"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ('"/var/run/datadog/dsd.socket"', f"is no address of a DogStatsD {HINT}"),
        ('"unix://relative"', f"is no address of a DogStatsD {HINT}"),
        ('"localhost:8125"', f"is no address of a DogStatsD {HINT}"),
        ('"http://localhost:8125"', f"is no address of a DogStatsD {HINT}"),
        ('"udp://"', f"is no address of a DogStatsD {HINT}"),
        ('"udp://h:0"', f"is no address of a DogStatsD {HINT}"),
        ('"udp://h:8125/path"', f"is no address of a DogStatsD {HINT}"),
        ('"udp://user@h:8125"', f"is no address of a DogStatsD {HINT}"),
        ('"udp://h:99999"', f"has a port or a host that cannot be read {HINT}"),
        (f'"unix:///{"x" * 107}"', "has a path that is too long for a Unix socket (107 bytes at most)"),
        ("8125", f"is no address of a DogStatsD {HINT}"),
    ],
)
def test_a_wrong_address_is_told_with_a_right_one(tmp_path: Path, address: str, reason: str) -> None:
    """At start, not as an agent that never appears."""
    assert mistakes(tmp_path, f"address = {address}") == [f"sinks.dd.address: {reason}"]


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "unix:///var/run/datadog/dsd.socket"),
        ({"DD_AGENT_HOST": "10.1.2.3"}, "udp://10.1.2.3:8125"),
        ({"DD_AGENT_HOST": "10.1.2.3", "DD_DOGSTATSD_PORT": "18125"}, "udp://10.1.2.3:18125"),
        ({"DD_AGENT_HOST": "fd00::1"}, "udp://[fd00::1]:8125"),
        ({"DD_DOGSTATSD_PORT": "18125"}, "udp://localhost:18125"),
        ({"DD_DOGSTATSD_URL": "unix:///s", "DD_AGENT_HOST": "10.1.2.3"}, "unix:///s"),
        ({"DD_DOGSTATSD_URL": "", "DD_AGENT_HOST": ""}, "unix:///var/run/datadog/dsd.socket"),
    ],
)
def test_without_an_address_datadogs_variables_say_it(
    tmp_path: Path, environ: Mapping[str, str], address: str
) -> None:
    """As in every client of theirs; Kubernetes manifests set DD_AGENT_HOST. What the file says comes first."""
    assert sink(tmp_path, environ=environ).address == address
    assert sink(tmp_path, 'address = "unixgram:///f"', environ=environ).address == "unixgram:///f"


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"DD_DOGSTATSD_URL": "tcp://h:1"}, "DD_DOGSTATSD_URL"),
        ({"DD_AGENT_HOST": "a b"}, "DD_AGENT_HOST or DD_DOGSTATSD_PORT"),
        ({"DD_DOGSTATSD_PORT": "many"}, "DD_AGENT_HOST or DD_DOGSTATSD_PORT"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, environ: Mapping[str, str], names: str) -> None:
    """The mistake is not in the file, where one would look for it."""
    found = mistakes(tmp_path, environ=environ)
    assert found == [f"sinks.dd.address: is left out, and {names} holds no address of a DogStatsD {HINT}"]


@pytest.mark.parametrize("value", ["1", "true", "True", "yes"])
def test_a_disabled_client_is_refused(tmp_path: Path, value: str) -> None:
    """With DD_DOGSTATSD_DISABLE the client throws everything away and reports success."""
    (found,) = mistakes(tmp_path, environ={"DD_DOGSTATSD_DISABLE": value})
    assert found.startswith("sinks.dd: DD_DOGSTATSD_DISABLE is set, with which the client throws everything away")
    assert sink(tmp_path, environ={"DD_DOGSTATSD_DISABLE": "false"}).transport == "dogstatsd"


def test_unified_tags_come_from_the_environment_by_default(tmp_path: Path) -> None:
    """Unified service tagging; an empty variable is none. Two configurations that differ in them differ."""
    environ = {"DD_ENV": "prod", "DD_SERVICE": "", "DD_VERSION": "7", "DD_TAGS": "a:b"}
    assert sink(tmp_path, environ=environ).tags == {"env": "prod", "version": "7"}
    assert sink(tmp_path, environ=environ) == sink(tmp_path, environ=environ)
    assert sink(tmp_path, environ=environ) != sink(tmp_path)


def test_the_agents_sink_is_built_from_its_keys(tmp_path: Path) -> None:
    """Every key reaches the sink."""
    config = sink(tmp_path, 'address = "unix:///s"', 'max_age = "2h"')
    built = build_sink("dd", config, Instance(tmp_path))
    assert isinstance(built, DogStatsdSink)
    assert built.name == "dd"
    assert built.limits.max_age == 7200
    assert not built.limits.confirms


# --- api ----------------------------------------------------------------------------------------------------------

API = 'transport = "api"'
KEY = {"DD_API_KEY": "canary-key"}


def test_the_api_needs_a_key_and_nothing_else(tmp_path: Path) -> None:
    """The key from DD_API_KEY, the site from DD_SITE, as everywhere at Datadog; else their first site."""
    assert sink(tmp_path, API, environ=KEY).key.reveal() == "canary-key"
    assert sink(tmp_path, API, environ=KEY).base_url == "https://api.datadoghq.com"
    assert sink(tmp_path, API, environ=KEY | {"DD_SITE": "datadoghq.eu"}).base_url == "https://api.datadoghq.eu"
    mine = sink(tmp_path, API, 'api_key = { env = "MINE" }', 'site = "us5.datadoghq.com"', environ={"MINE": "k"} | KEY)
    assert (mine.key.reveal(), mine.base_url) == ("k", "https://api.us5.datadoghq.com")


def test_a_url_stands_for_the_site(tmp_path: Path) -> None:
    """A relay, or what speaks the same API below a path."""
    relay = sink(tmp_path, API, 'url = "http://127.0.0.1:8428/datadog/"', environ=KEY)
    assert relay.base_url == "http://127.0.0.1:8428/datadog"


@pytest.mark.parametrize(
    ("keys", "environ", "mistake"),
    [
        ([], {}, "api_key: environment variable DD_API_KEY is not set (export DD_API_KEY=… before starting)"),
        (
            ['api_key = { env = "NONE", optional = true }'],
            {},
            "api_key: is missing (Datadog takes nothing without)",
        ),
        (
            ['api_key = "abc"'],
            KEY,
            'api_key: a secret is never written into the configuration (write { env = "NAME" } or { file = "/path" })',
        ),
        (
            ['site = "app.example.com"'],
            KEY,
            'site: is not a site of Datadog\'s (as in "datadoghq.eu" or "us5.datadoghq.com"; see your URL there)',
        ),
        (
            ['site = "https://app.datadoghq.eu"'],
            KEY,
            'site: is not a site of Datadog\'s (as in "datadoghq.eu" or "us5.datadoghq.com"; see your URL there)',
        ),
        (
            [],
            KEY | {"DD_SITE": "evil.example"},
            'site: is left out, and DD_SITE holds no site of Datadog\'s (as in "datadoghq.eu")',
        ),
        (['url = "http://h"', 'site = "datadoghq.eu"'], KEY, "site: of no use beside url (leave out one of them)"),
        (['url = "h"'], KEY, 'url: must begin with http:// or https:// (as in "http://localhost:4000")'),
        (
            ['address = "unix:///s"', "origin = true"],
            KEY,
            'address, origin: of no use with transport = "api" (leave out, or set transport = "dogstatsd")',
        ),
    ],
)
def test_mistakes_about_the_api_are_told(
    tmp_path: Path, keys: list[str], environ: Mapping[str, str], mistake: str
) -> None:
    """With their place and their fix; no value is repeated."""
    path = "sinks.dd" + (": " if mistake.startswith("address") else ".")
    assert mistakes(tmp_path, API, *keys, environ=environ) == [path + mistake]


def test_keys_of_the_api_are_of_no_use_to_an_agent(tmp_path: Path) -> None:
    """Only keys that do something are accepted."""
    found = mistakes(
        tmp_path, 'site = "datadoghq.eu"', 'proxy = "http://p:1"', 'api_key = { env = "K" }', environ={"K": "k"}
    )
    assert found == [
        'sinks.dd: api_key, proxy, site: of no use with transport = "dogstatsd" (leave out, or set transport = "api")'
    ]


def test_what_is_of_the_agent_does_not_concern_the_api(tmp_path: Path) -> None:
    """Neither a wrong address nor a disabled client in the environment, and the other way round."""
    environ = {"DD_DOGSTATSD_URL": "tcp://x", "DD_DOGSTATSD_DISABLE": "1"}
    assert sink(tmp_path, API, environ=KEY | environ).address is None
    assert sink(tmp_path, environ={"DD_SITE": "evil.example", "DD_API_KEY": ""}).site is None


def test_secrets_can_be_left_unread(tmp_path: Path) -> None:
    """Looking into the spool needs no key."""
    path = tmp_path / "config.toml"
    path.write_text(text(API), encoding="utf-8")
    found = config.load(path, {}, secrets=False).sinks["dd"]
    assert isinstance(found, DatadogSink)
    with pytest.raises(ValueError, match="secrets were not read"):
        _ = found.key


def test_the_apis_sink_is_built_from_its_keys(tmp_path: Path) -> None:
    """And shows no key."""
    built = build_sink("dd", sink(tmp_path, API, 'max_age = "17h"', environ=KEY), Instance(tmp_path))
    assert isinstance(built, DatadogApiSink)
    assert built.limits.max_age == 17 * 3600
    assert built.limits.confirms
    assert "canary" not in repr(built)
    built.close()


def test_a_forward_proxy_that_cannot_be_is_a_mistake(tmp_path: Path) -> None:
    """What only the request's own settings find out is told as the rest."""
    with pytest.raises(ConfigError, match=r"sinks\.dd: a forward proxy must begin with http://"):
        build_sink("dd", sink(tmp_path, API, 'proxy = "https://p:1"', environ=KEY), Instance(tmp_path))
