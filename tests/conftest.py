"""Assertions in the shared checks are explained like those in tests; a throw-away CA for whoever tests TLS."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tls_support import Authority, made_in

pytest.register_assert_rewrite("spool_checks_queue", "spool_checks_ledger", "program")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return made_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user of the machine may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
