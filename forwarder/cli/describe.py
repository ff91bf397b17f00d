"""`validate`, `catalog` and `completion`: what the program knows by itself."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from forwarder import catalog, cost
from forwarder import config as settings
from forwarder.build import build_clients
from forwarder.catalog import PERSONAL_LABELS
from forwarder.cli.common import PROGRAM, config_option, json_option, many, say
from forwarder.config_metrics import Metrics


@click.command()
@config_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration, for editors, and exit.")
def validate(config_path: Path | None, *, schema: bool) -> None:
    """Check the configuration without starting: every problem at once, exit code 78 if there is one."""
    if schema:
        say(json.dumps(settings.json_schema(), indent=2))
        return
    path = settings.find(config_path, os.environ, Path.cwd())
    loaded = settings.read(path, os.environ)
    config = loaded.config
    build_clients(config)
    say(f"{path}: valid; {many(config.targets, 'target')}, {many(config.sinks, 'sink')}")
    for each in loaded.exposed():
        say(f"warning: {each} holds a secret and can be read by every user: chmod o-r {each}")
    for name, sink in config.sinks.items():
        if taken := getattr(sink, "from_environment", ()):
            say(f"note: sink {name} takes from the environment: {', '.join(taken)}")
    for target in config.targets:
        for note in _without_effect(target.metrics):
            say(f"note: target {target.name}: metrics.{note}")
        health = target.health
        if health.enabled and health.background != "on":
            budget = cost.Budget(health.interval, target.interval, health.max_billed_calls_per_day, health.background)
            say(f"note: target {target.name}: {cost.arithmetic(cost.Account(opened=0), budget)}")


def _without_effect(metrics: Metrics) -> Iterator[str]:
    """What of the choice of series can fit nothing, whatever the proxy's page has. Its families are the proxy's."""
    if not metrics.include:
        yield "include is empty: nothing of the metrics page goes on"
    for key in ("include", "exclude"):
        for pattern in getattr(metrics, key):
            suffix = re.search(r"_(bucket|created)$", pattern)
            if suffix and "*" not in pattern:
                yield f'{key} "{pattern}": families are named without {suffix[0]}, so this fits no histogram'
    for label in metrics.keep_labels:
        if label not in PERSONAL_LABELS:
            yield f'keep_labels "{label}": it is not dropped by default, so there is nothing to keep'


@click.command("catalog")
@json_option
def catalog_(*, as_json: bool) -> None:
    """List every metric, change and service check that the agent can emit."""
    if as_json:
        metrics = [
            {"name": m.name, "kind": m.kind, "unit": m.unit, "attributes": m.attributes, "description": m.description}
            for m in catalog.METRICS
        ]
        changes = [
            {"name": c.name, "severity": c.severity, "attributes": c.attributes, "description": c.description}
            for c in catalog.CHANGES
        ]
        checks = [
            {"name": s.name, "metric": s.metric.name, "description": s.description} for s in catalog.SERVICE_CHECKS
        ]
        say(json.dumps({"metrics": metrics, "changes": changes, "service_checks": checks}, indent=2))
        return
    for metric in catalog.METRICS:
        _entry(metric.name, f"{metric.kind}, {metric.unit}", metric.attributes, metric.description)
    for change in catalog.CHANGES:
        _entry(change.name, f"change, {change.severity}", change.attributes, change.description)
    for check in catalog.SERVICE_CHECKS:
        _entry(check.name, f"service check, from {check.metric.name}", (), check.description)


def _entry(name: str, kind: str, attributes: tuple[str, ...], description: str) -> None:
    having = " {" + ", ".join(attributes) + "}" if attributes else ""
    say(f"{click.style(name, bold=True)}{having}  ({kind})\n    {description}", coloured=True)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: source it, or put it where your shell looks.

    bash: litellm-forwarder completion bash > ~/.local/share/bash-completion/completions/litellm-forwarder
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - the choices are click's own
    say(found(click.get_current_context().find_root().command, {}, PROGRAM, "_LITELLM_FORWARDER_COMPLETE").source())
