"""Assertions in the shared checks are explained like those in tests."""

import pytest

pytest.register_assert_rewrite("spool_checks_queue", "spool_checks_ledger", "program")
