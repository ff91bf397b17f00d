"""What differs between two configurations, by name; and whether files they refer to have changed."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from forwarder.config import Config, Target
from forwarder.config_tables import Table
from forwarder.secrets import Secret

T = TypeVar("T", bound=Table)


@dataclass(frozen=True, slots=True)
class Names:
    """Each name of the two configurations stands in exactly one of these. `renewed`: nothing but a secret differs, or
    what is in a file that it refers to.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.changed or self.renewed or self.removed)


@dataclass(frozen=True, slots=True)
class Difference:
    """`fixed`: keys that differ and cannot change in a running agent; `others`: those that can."""

    targets: Names
    sinks: Names
    fixed: tuple[str, ...]
    others: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.targets or self.sinks or self.fixed or self.others)


FIXED = frozenset({"agent.state_dir", "agent.instance", "agent.listen"})


def difference(old: Config, new: Config, touched: AbstractSet[Path]) -> Difference:
    """`touched`: files whose content may have changed since `old` was read."""
    keys = [
        f"{section}.{key}"
        for section in ("agent", "spool", "telemetry")
        for key in type(getattr(new, section)).model_fields
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    ]
    if old.resource != new.resource:
        keys.append("resource")
    return Difference(
        _names(_by_name(old.targets), _by_name(new.targets), touched),
        _names(old.sinks, new.sinks, touched),
        tuple(key for key in keys if key in FIXED),
        tuple(key for key in keys if key not in FIXED),
    )


def _by_name(targets: Iterable[Target]) -> dict[str, Target]:
    return {target.name: target for target in targets}


def _names(old: Mapping[str, T], new: Mapping[str, T], touched: AbstractSet[Path]) -> Names:
    both = [name for name in new if name in old]
    changed = [name for name in both if _shape(old[name]) != _shape(new[name])]
    renewed = [
        name
        for name in both
        if name not in changed and (old[name] != new[name] or not touched.isdisjoint(_files(new[name])))
    ]
    return Names(
        added=tuple(name for name in new if name not in old),
        changed=tuple(changed),
        renewed=tuple(renewed),
        removed=tuple(name for name in old if name not in new),
        unchanged=tuple(name for name in both if name not in changed and name not in renewed),
    )


def _shape(table: Table) -> dict[str, object]:
    """The table without the values of its secrets."""
    return {key: Secret if isinstance(value, Secret) else value for key, value in table}


def _files(table: Table) -> set[Path]:
    return {value for _, value in table if isinstance(value, Path)}
