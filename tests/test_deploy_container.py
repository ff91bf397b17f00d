"""deploy/container: what the image is made of and how it runs, as far as that can be seen without a builder."""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from deployment import CONTAINERFILE, DEPLOY, ROOT, documents, instructions

from forwarder import config
from forwarder.cli import cli

COMPOSE = DEPLOY / "container" / "compose.yaml"


def last(name: str) -> str:
    return [rest for found, rest in instructions(CONTAINERFILE) if found == name][-1]


def service() -> dict[str, Any]:
    (document,) = documents(COMPOSE)
    return dict(document["services"]["litellm-forwarder"])


def test_the_image_is_not_root_and_says_so_by_number() -> None:
    """Kubernetes can only see that a user is not root if it is a number."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))
    assert f"--chown={last('USER')} " in next(
        rest for name, rest in instructions(CONTAINERFILE) if name == "COPY" and rest.endswith(last("VOLUME"))
    )


def test_the_agent_is_process_1_and_gets_the_signals() -> None:
    """The exec form: a shell in between would keep SIGTERM for itself."""
    assert json.loads(last("ENTRYPOINT")) == ["litellm-forwarder"]
    assert json.loads(last("CMD")) == ["run"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_commands_of_the_image_exist() -> None:
    """Entry point and health check are commands of this release."""
    check = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    for command in (json.loads(last("ENTRYPOINT")) + json.loads(last("CMD")), check):
        assert command[0] == "litellm-forwarder"
        assert CliRunner().invoke(cli, [*command[1:], "--help"]).exit_code == 0


def test_only_what_the_lock_file_pins_gets_in() -> None:
    """Everything by hash, nothing compiled on the way, and no file names where packages come from."""
    installs = [
        line
        for name, rest in instructions(CONTAINERFILE)
        if name == "RUN"
        for line in rest.split("&&")
        if " install " in line and "uv>=" not in line
    ]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes" in line or "--no-index" in line
    hosts = re.findall(r"https?://([^/\s]+)", CONTAINERFILE.read_text())
    assert set(hosts) == {"registry.invalid"}
    assert "index-url" not in CONTAINERFILE.read_text()


def test_both_stages_are_of_one_base_that_can_be_chosen() -> None:
    """The environment is made by the Python that runs it. The tag names a release, and no host."""
    assert [rest.split()[0] for name, rest in instructions(CONTAINERFILE) if name == "FROM"] == ["${BASE}", "${BASE}"]
    base = instructions(CONTAINERFILE)[0][1].removeprefix("BASE=")
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)


def test_what_the_build_copies_is_let_through() -> None:
    """.dockerignore lets in what is copied and nothing else: no state, no key that lies in the folder."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        source
        for name, rest in instructions(CONTAINERFILE)
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_compose_runs_the_image_locked_down() -> None:
    """Read-only, without capabilities, with a place for its state and time to drain."""
    agent = service()
    assert agent["read_only"] is True
    assert agent["cap_drop"] == ["ALL"]
    assert agent["security_opt"] == ["no-new-privileges:true"]
    assert f"state:{last('VOLUME')}" in agent["volumes"]
    drain = config.Agent.model_fields["drain_timeout"].default
    assert int(agent["stop_grace_period"].removesuffix("s")) > 2 * drain
    assert agent["image"] == f"litellm-forwarder:{importlib.metadata.version('litellm-forwarder')}"
    assert (COMPOSE.parent / agent["build"]["context"]).resolve() == ROOT
    assert (ROOT / agent["build"]["dockerfile"]) == CONTAINERFILE


def test_the_configuration_of_the_example_loads(tmp_path: Path) -> None:
    """With the secret where Compose puts it, and the proxy under its name there."""
    (document,) = documents(COMPOSE)
    text = (DEPLOY / "container" / "config.toml").read_text()
    for name in service()["secrets"]:
        assert f"/run/secrets/{name}" in text
        (tmp_path / name).write_text("sk-1\n")
    (tmp_path / "config.toml").write_text(text.replace("/run/secrets", str(tmp_path)))
    loaded = config.load(tmp_path / "config.toml", {"STATE_DIRECTORY": last("VOLUME")})
    assert loaded.targets[0].key_headers() == {"Authorization": "Bearer sk-1"}
    assert loaded.targets[0].url.split("/")[2].split(":")[0] in document["services"]
    assert str(loaded.agent.state_dir) == last("VOLUME")
