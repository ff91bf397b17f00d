"""deploy/kubernetes: valid by the schemas of Kubernetes, within its restricted profile, and fitting the program."""

import importlib.metadata
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from deployment import CONTAINERFILE, DEPLOY, documents, instructions, merged

from forwarder import config
from forwarder.cli import cli

FOLDER = DEPLOY / "kubernetes"
KUBECTL = shutil.which("kubectl") or shutil.which("kustomize")
VERSIONS = ("1.29", "1.33", "1.37")  # the first with native sidecars, the first where they are stable, a late one
SECRETS = "/run/secrets/litellm-forwarder"


def kustomization(kind: str) -> dict[str, Any]:
    (document,) = documents(FOLDER / kind / "kustomization.yaml")
    return dict(document)


def resources(kind: str) -> list[dict[str, Any]]:
    """What a kustomization comes to, but for the ConfigMaps it generates."""
    plan = kustomization(kind)
    found = [document for name in plan["resources"] for document in documents(FOLDER / kind / name)]
    for patch in plan.get("patches", []):
        (change,) = documents(FOLDER / kind / patch["path"])
        target = patch["target"]
        found = [merged(each, change) if selects(target, each) else each for each in found]
    return found


def selects(target: dict[str, str], document: dict[str, Any]) -> bool:
    return bool(target["kind"] == document["kind"] and target["name"] == document["metadata"]["name"])


def pod(kind: str) -> dict[str, Any]:
    (deployment,) = (each for each in resources(kind) if each["kind"] == "Deployment")
    return dict(deployment["spec"]["template"]["spec"])


def agent(kind: str) -> dict[str, Any]:
    containers = [*pod(kind)["containers"], *pod(kind).get("initContainers", [])]
    (found,) = (each for each in containers if each["name"] == "litellm-forwarder")
    return dict(found)


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("base", "sidecar"):
        for document in resources(kind):
            yield f"{kind} {document['kind']} {document['metadata']['name']}", document
    (secret,) = documents(FOLDER / "base" / "secret.example.yaml")
    yield "base Secret", secret


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [pytest.param(document, id=name) for name, document in examples()])
def test_kubernetes_would_take_it(document: dict[str, Any], version: str) -> None:
    """Every field exists and has the right type, by the strict schemas of that release."""
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_find_mistakes() -> None:
    """They are not so loose that they let everything through."""
    wrong = next(document for name, document in examples() if name == "base Deployment litellm-forwarder")
    spec = wrong["spec"]["template"]["spec"]
    spec["containers"][0]["livenessProbes"] = spec["containers"][0].pop("livenessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProbes"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.skipif(KUBECTL is None, reason="NOT CHECKED: neither kubectl nor kustomize is installed")
@pytest.mark.parametrize("kind", ["base", "sidecar"])
def test_kustomize_makes_the_same_of_it(kind: str) -> None:
    """The real kustomize comes to what these tests look at, with every ConfigMap and image named as generated."""
    program = Path(KUBECTL or "")
    command = [str(program), "kustomize" if program.name == "kubectl" else "build", str(FOLDER / kind)]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    found = {
        (each["kind"], each["metadata"]["name"].partition("-h")[0]): each for each in yaml.safe_load_all(built.stdout)
    }
    for expected in resources(kind):
        made = found[expected["kind"], expected["metadata"]["name"]]
        if expected["kind"] != "Deployment":
            assert made == expected
            continue
        (container,) = (each for each in every_container(made) if each["name"] == "litellm-forwarder")
        ours = agent(kind)
        assert container.pop("image") == f"{ours.pop('image')}:{importlib.metadata.version('litellm-forwarder')}"
        assert container == ours
        names = {each["metadata"]["name"] for each in yaml.safe_load_all(built.stdout) if each["kind"] == "ConfigMap"}
        used = {
            each["configMap"]["name"] for each in made["spec"]["template"]["spec"]["volumes"] if "configMap" in each
        }
        assert used == names


def every_container(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    spec = deployment["spec"]["template"]["spec"]
    return [*spec["containers"], *spec.get("initContainers", [])]


@pytest.mark.parametrize("kind", ["base", "sidecar"])
def test_the_agent_fits_the_restricted_profile(kind: str) -> None:
    """Pod Security Standards, "restricted": a namespace that enforces it takes the agent."""
    whole = pod(kind).get("securityContext", {})
    own = agent(kind)["securityContext"]
    assert {**whole, **own}["runAsNonRoot"] is True
    assert {**whole, **own}["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert pod(kind)["automountServiceAccountToken"] is False
    assert all(
        volume.keys() & {"configMap", "secret", "emptyDir", "persistentVolumeClaim"} for volume in pod(kind)["volumes"]
    )
    (user,) = (rest for name, rest in instructions(CONTAINERFILE) if name == "USER")
    ids = {**whole, **own}
    assert f"{ids['runAsUser']}:{ids['runAsGroup']}" == user
    assert whole["fsGroup"] == ids["runAsGroup"]


@pytest.mark.parametrize("kind", ["base", "sidecar"])
def test_state_configuration_and_secrets_are_where_the_agent_looks(kind: str) -> None:
    """Folders, not files: what Kubernetes mounts by subPath does not follow when the Secret is changed."""
    mounts = {mount["mountPath"]: mount for mount in agent(kind)["volumeMounts"]}
    (volume,) = (rest for name, rest in instructions(CONTAINERFILE) if name == "VOLUME")
    assert set(mounts) == {config.FOLDER, SECRETS, volume}
    assert not any("subPath" in mount for mount in mounts.values())
    assert {mount["name"] for mount in mounts.values()} <= {each["name"] for each in pod(kind)["volumes"]}


@pytest.mark.parametrize("kind", ["base", "sidecar"])
@pytest.mark.parametrize("secret", [True, False])
def test_the_configuration_loads_with_and_without_the_secret(tmp_path: Path, kind: str, *, secret: bool) -> None:
    """What is applied first works, before anybody has made a Secret."""
    text = (FOLDER / kind / "config.toml").read_text()
    assert f'"{SECRETS}/litellm_api_key"' in text
    (tmp_path / "config.toml").write_text(text.replace(SECRETS, str(tmp_path)))
    if secret:
        (tmp_path / "litellm_api_key").write_text("sk-1")
    environ = {each["name"]: "litellm-forwarder-0" for each in agent(kind)["env"]}
    loaded = config.load(tmp_path / "config.toml", environ | {"STATE_DIRECTORY": "/var/lib/litellm-forwarder"})
    assert bool(loaded.targets[0].key_headers()) is secret


@pytest.mark.parametrize("kind", ["base", "sidecar"])
def test_a_stop_leaves_time_to_drain(kind: str) -> None:
    """The grace period is longer than what the agent may take to deliver what is left."""
    assert pod(kind)["terminationGracePeriodSeconds"] > 2 * config.Agent.model_fields["drain_timeout"].default


def test_one_agent_owns_the_state() -> None:
    """A rolling update would start the second agent beside the first, on the same volume."""
    (deployment,) = (each for each in resources("base") if each["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_the_probes_of_the_standalone_agent_reach_it() -> None:
    """On the port that its configuration listens on, which is also the one that the network policy opens."""
    listen = tomllib.loads((FOLDER / "base" / "config.toml").read_text())["agent"]["listen"]
    (port,) = agent("base")["ports"]
    assert listen == f"0.0.0.0:{port['containerPort']}"
    assert agent("base")["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert agent("base")["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    (policy,) = (each for each in resources("base") if each["kind"] == "NetworkPolicy")
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": port["containerPort"]}]
    (deployment,) = (each for each in resources("base") if each["kind"] == "Deployment")
    assert policy["spec"]["podSelector"] == deployment["spec"]["selector"]


def test_the_sidecar_neither_opens_a_port_nor_hinders_the_proxy() -> None:
    """Its page stays on loopback and is asked by a command; the proxy neither waits for it nor is judged by it."""
    own = agent("sidecar")
    assert own["restartPolicy"] == "Always"
    assert own in pod("sidecar")["initContainers"]
    assert not own.keys() & {"ports", "startupProbe", "readinessProbe"}
    command = own["livenessProbe"]["exec"]["command"]
    assert command[0] == "litellm-forwarder"
    assert CliRunner().invoke(cli, [*command[1:], "--help"]).exit_code == 0
    assert "listen" not in tomllib.loads((FOLDER / "sidecar" / "config.toml").read_text()).get("agent", {})


def test_the_proxy_has_the_probes_of_its_documentation() -> None:
    """With time enough: a busy proxy's liveliness was measured to take more than five seconds."""
    (proxy,) = pod("sidecar")["containers"]
    assert proxy["livenessProbe"]["httpGet"] == {"path": "/health/liveliness", "port": "http"}
    assert proxy["readinessProbe"]["httpGet"] == {"path": "/health/readiness", "port": "http"}
    assert all(proxy[probe]["timeoutSeconds"] >= 10 for probe in ("startupProbe", "livenessProbe", "readinessProbe"))
