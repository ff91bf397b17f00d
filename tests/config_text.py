"""A working configuration with room for mistakes, and ways to load it; for the tests of the configuration."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from forwarder import config
from forwarder.errors import ConfigError


class Parts(NamedTuple):
    """A working configuration with room for a mistake in each place."""

    head: str = ""
    target: str = ""
    tables: str = ""
    sink: str = ""
    more: str = ""

    def text(self) -> str:
        url = "" if re.search(r"^url ", self.target, re.MULTILINE) else 'url = "http://localhost:4000"'
        target = f'[[targets]]\nname = "eu"\n{url}\n{self.target}\n{self.tables}'
        return f'{self.head}\n{target}\n[sinks.console]\ntype = "console"\n{self.sink}\n{self.more}\n'


def load(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> config.Config:
    path = folder / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load(path, environ or {})


def refused(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return caught.value


def lines(folder: Path, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    return [str(problem) for problem in refused(folder, text, environ).problems]
