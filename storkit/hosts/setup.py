"""What a host must be told of the inventory before it can work; it keeps that for the boot, when nobody tells it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.system.files import read_json, read_plain, write_atomic

if TYPE_CHECKING:
    from storkit.core.inventory import HostConfig, Inventory

REMEMBERED = "setup.json"

LOCAL = "local"
"""Who told: this machine's own command, not an agent's coordinator with a key of some grade."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """A pool's technology and its settings."""

    type: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a host must be told before it can work: sent once in the agent's hello."""

    host: str
    address: str = ""
    state: str = ""
    pools: dict[str, PoolSettings] = field(default_factory=dict)
    transports: dict[str, dict[str, Any]] = field(default_factory=dict)
    hypervisors: dict[str, dict[str, Any]] = field(default_factory=dict)
    served_by: list[str] = field(default_factory=list)
    """The transports (`transport:NAME`) of the inventory's pools."""
    runs: list[str] = field(default_factory=list)
    """The hypervisors that the inventory speaks of."""
    templates: str = ""
    """The administrator's own templates, for backends that have a setting of that name."""


def setup(inventory: Inventory, config: HostConfig) -> Setup:
    """What `config` must be told of the inventory."""
    state = config.url.removeprefix("local:") if config.url.startswith("local:") else config.state
    pools = {
        pool.name: PoolSettings(pool.type, pool.settings)
        for pool in inventory.pools.values()
        if config.name in pool.hosts
    }
    own = inventory.directory / "templates"
    templates = str(own) if own.is_dir() and config.machine == "local" else ""
    return Setup(
        config.name,
        config.reach,
        state,
        pools,
        inventory.transports,
        inventory.hypervisors,
        inventory.served_by,
        sorted({inventory.defaults.hypervisor, *inventory.hypervisors}),
        templates,
    )


def remember(given: Setup, place: Site, teller: str) -> None:
    """Keep what a host was told, and by whom (LOCAL, or a key's grade), below its state directory: at boot there is no
    coordinator to tell it again."""
    import json

    path = place.state / REMEMBERED
    text = json.dumps({"teller": teller, **codec.dump(given)}, indent=1)
    with suppress(OSError, StorkitError):  # a full or read-only file system must not keep anyone from looking
        if not path.exists() or read_plain(path) != text.encode():
            write_atomic(path, text)


def remembered(state: Path) -> Setup | None:
    """What the host with this state directory was told last; None: nothing yet."""
    told = _told(state)
    if isinstance(told, dict):
        told.pop("teller", "")
    return None if told is None else codec.load(Setup, told, str(state / REMEMBERED))


def teller(state: Path) -> str:
    """Who told that (`remember`); empty: a key without a grade, or a version that did not keep who."""
    told = _told(state)
    return str(told.get("teller", "")) if isinstance(told, dict) else ""


def _told(state: Path) -> Any:
    try:
        return read_json(state / REMEMBERED, "what this host was told")
    except FileNotFoundError:
        return None
