"""What is installed and committed."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import forwarder

ROOT = Path(__file__).parent.parent


def test_the_tests_run_on_the_built_wheel() -> None:
    """Not on the folder beside them: `make test` builds and installs the wheel that users get."""
    assert Path(forwarder.__file__).is_relative_to(sys.prefix), "run the tests by `make test`"
    files = {str(file) for file in importlib.metadata.files("litellm-forwarder") or ()}
    assert "forwarder/py.typed" in files
    assert not [file for file in files if file.startswith("tests")]


def test_the_lock_file_names_no_registry() -> None:
    """Everybody installs from where their own machine is configured to (docs/adr/0001)."""
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text()))
    assert hosts == {"registry.invalid"}


@pytest.mark.parametrize("module", ["forwarder.agent", "forwarder.cli"])
def test_what_is_not_configured_is_not_imported(module: str) -> None:
    """Memory and start time are for what is used: no vendor library, no test or build tool comes along."""
    # rich is not among them: httpx imports it for its own command line wherever it is installed, as by import-linter.
    heavy = ("grpc", "datadog", "opentelemetry", "newrelic", "requests", "urllib3", "pytest", "hypothesis")
    code = f"import sys, {module}; print(*(m for m in {heavy!r} if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
