"""Where what `make interop` installs is kept between runs: said once, for it, for the tests, and for benchmarks/."""

import os
from pathlib import Path


def home() -> Path:
    """$LITELLM_FORWARDER_INTEROP, else in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LITELLM_FORWARDER_INTEROP") or Path(cache) / "litellm-forwarder" / "interop")


def servers() -> Path:
    """The folder that has usr/bin/prometheus and so on: $LITELLM_FORWARDER_SERVERS, else where they are unpacked."""
    return Path(os.environ.get("LITELLM_FORWARDER_SERVERS") or home() / "servers")
