"""From a configuration to the objects that do the work; no I/O but the reading of certificates."""

import ssl
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from forwarder import config_newrelic, config_notify, config_otlp, config_sinks
from forwarder.config import Config, Target
from forwarder.errors import ConfigError, Problem
from forwarder.http import Client
from forwarder.instance import Instance
from forwarder.sinks.base import Sink
from forwarder.spool.sqlite import SqliteSpool
from forwarder.transport import HttpProblem, tls_context

SPOOL_FILE: Final = "spool.db"


def build_spool(config: Config, *, owner: bool) -> SqliteSpool:
    """The configured spool, not yet opened. `owner`: this process holds the folder's lock."""
    path = config.agent.state_dir / SPOOL_FILE
    return SqliteSpool(path, max_bytes=config.spool.room, max_age=config.spool.max_age, owner=owner)


def spool_size(config: Config) -> int | None:
    """Bytes of the spool's files on disk; None when they cannot be seen."""
    files = [config.agent.state_dir / (SPOOL_FILE + suffix) for suffix in ("", "-wal")]
    try:
        return sum(path.stat().st_size for path in files if path.exists())
    except OSError:
        return None


def build_clients(config: Config, only: Iterable[Target] | None = None) -> list[Client]:
    """One client per target, or for `only` some of them; TLS contexts are shared where the settings are the same.
    ConfigError where one cannot be built.
    """
    contexts: dict[tuple[Path | None, ...], ssl.SSLContext] = {}
    clients = []
    for target in config.targets if only is None else only:
        files = (target.ca_file, target.client_cert, target.client_key)
        try:
            if files not in contexts:
                contexts[files] = tls_context(*files)
            clients.append(
                Client(target.url, target.key_headers(), contexts[files], proxy=target.proxy, max_body=target.max_body)
            )
        except HttpProblem as error:
            problem = Problem(f"targets[{config.targets.index(target)}]", error.reason, error.hint)
            raise ConfigError("configuration", [problem]) from None
    return clients


def build_sink(name: str, config: config_sinks.SinkConfig, instance: Instance) -> Sink:
    """The sink of a configuration; its library is imported here, and only if it is configured. ConfigError when it
    cannot be built. `instance` need not be opened yet.
    """
    match config:
        case config_sinks.ConsoleSink():
            from forwarder.sinks.console import ConsoleSink

            # Python sets it to None when the process was started without.
            return ConsoleSink(name, None if sys.stdout is None else 1)
        case config_sinks.DatadogSink(transport="dogstatsd"):
            from forwarder.sinks.datadog.dogstatsd import DogStatsdSink
            from forwarder.sinks.datadog.points import Form

            form = Form(config.changes, config.histogram_buckets, config.tags)
            return DogStatsdSink(
                name,
                config.address or "",
                form,
                max_age=config.max_age,
                timestamps=config.timestamps,
                origin=config.origin,
            )
        case config_sinks.DatadogSink():
            from forwarder.sinks.datadog.api import DatadogApiSink
            from forwarder.sinks.datadog.points import Form
            from forwarder.transport.post import Poster

            form = Form(config.changes, config.histogram_buckets, config.tags)
            try:
                context = tls_context(config.ca_file, config.client_cert, config.client_key)
                poster = Poster(config.base_url, {"DD-API-KEY": config.key}, context, proxy=config.proxy)
            except HttpProblem as error:
                raise ConfigError("configuration", [Problem(f"sinks.{name}", error.reason, error.hint)]) from None
            return DatadogApiSink(name, poster, form, max_age=config.max_age)
        case config_otlp.OtlpSink():
            from forwarder.sinks.otlp import build as otlp

            try:
                return otlp.build(name, config, instance.name)
            except HttpProblem as error:
                problem = Problem(f"sinks.{name}", error.reason, error.hint)
                raise ConfigError("configuration", [problem]) from None
        case config_newrelic.NewRelicSink():
            from forwarder.sinks.newrelic import REGIONS, NewRelicSink

            url, events_url = REGIONS[config.region]
            try:
                return NewRelicSink(
                    name,
                    config.license_key,
                    tls_context(config.ca_file, config.client_cert, config.client_key),
                    url=config.url or url,
                    events_url=config.events_url or events_url,
                    proxy=config.proxy,
                    changes=config.changes,
                    histogram_buckets=config.histogram_buckets,
                )
            except HttpProblem as error:
                raise ConfigError("configuration", [Problem(f"sinks.{name}", error.reason, error.hint)]) from None
        case config_notify.NotifySink():
            from forwarder.sinks.notify.build import notify_sink

            return notify_sink(name, config)
