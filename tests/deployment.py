"""What deploy/ holds, as data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SERVICE = DEPLOY / "systemd" / "litellm-forwarder.service"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"


def documents(path: Path) -> Iterator[Any]:
    yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def unit(path: Path) -> dict[str, list[str]]:
    """The settings of a unit file, in their order; one that is set several times has several values."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Containerfile and their arguments; continued lines are one."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def merged(whole: Any, patch: Any) -> Any:
    """A strategic merge, as far as ours need it: tables by key, lists of named things by name."""
    if isinstance(whole, dict) and isinstance(patch, dict):
        return whole | {key: merged(whole[key], value) if key in whole else value for key, value in patch.items()}
    if isinstance(whole, list) and isinstance(patch, list):
        names = {each["name"]: each for each in patch}
        kept = [merged(each, names.pop(each["name"])) if each["name"] in names else each for each in whole]
        return [*kept, *names.values()]
    return patch
