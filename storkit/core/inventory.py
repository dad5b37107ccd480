"""The inventory: hosts, pools, transports and defaults, in a TOML file (docs/inventory.md).

With no inventory there is one host, `local`, with one directory pool and the NBD transport in user space. A host URL
(`local:DIR`, `ssh://user@host`) stands for a host wherever a host's name does, so that a first try needs no file.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storkit.core.codec import convert
from storkit.core.errors import NotFound, StorkitError, UsageError, raise_problems
from storkit.core.host import config_directory, state_directory
from storkit.core.identities import check_name, url_problem

HOST_SCHEMES = "local, local:DIR or ssh://[USER@]HOST[:PORT]"


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One host, as the inventory or a URL names it."""

    name: str
    url: str
    address: str = ""
    """The storage network's address of the host, for its servers; by default the host of an ssh URL."""
    state: str = ""
    """Where storkit keeps its state on that host; by default /var/lib/storkit."""

    @property
    def machine(self) -> str:
        """Two hosts with the same machine reach each other's Unix sockets and files."""
        if self.url.startswith("ssh:"):
            parts = urlsplit(self.url)
            return f"{parts.hostname}:{parts.port or 22}"
        return "local"

    @property
    def reach(self) -> str:
        """The address that other machines reach this one at; empty for a host that only this machine reaches."""
        if self.address or not self.url.startswith("ssh:"):
            return self.address
        return urlsplit(self.url).hostname or ""


@dataclass(frozen=True, slots=True, eq=False)
class PoolConfig:
    """One pool: which technology (`type`), on which host, and the technology's own settings."""

    name: str
    host: str
    type: str
    settings: dict[str, Any] = field(default_factory=dict)
    transport: str = ""
    """How its volumes reach hosts; empty: as the technology prefers, or else the default."""

    @property
    def managers(self) -> list[str]:
        """The hosts that may act for it, where it has been given a list of them; `host` is the first of these, or the
        one that acts in this command (Survey.acting)."""
        found: list[str] = self.settings.get(MANAGERS, [])
        return found

    @property
    def hosts(self) -> list[str]:
        """All hosts that may act for it."""
        return self.managers or [self.host]


MANAGERS = "managers"
"""The setting by which a host is told of a pool's managers: `hosts` in the inventory."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is taken when a command does not say."""

    pool: str = "default"
    transport: str = "nbd"
    hypervisor: str = "qemu"
    apart: list[str] = field(default_factory=list)
    """Patterns of guests' names: those that match the same one share no host where storkit chooses it."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything the administrator has said about the hosts."""

    hosts: dict[str, HostConfig]
    pools: dict[str, PoolConfig]
    transports: dict[str, dict[str, Any]] = field(default_factory=dict)
    hypervisors: dict[str, dict[str, Any]] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    path: Path | None = None
    directory: Path = Path()
    """Where guests/ and templates/ are."""

    def known(self, name: str) -> HostConfig | None:
        """The host of this name, or of this URL; None: the inventory has none such."""
        if name in self.hosts:
            return self.hosts[name]
        if ":" in name or name == "local":
            place = _place(name)
            for host in self.hosts.values():
                if _place(host.url, host.state) == place:
                    return host
        return None

    def host(self, name: str) -> HostConfig:
        """The host that a person names, or its URL. Raises NotFound with the names there are."""
        if host := self.hosts.get(name):
            return host
        if ":" in name or name == "local":
            problem = url_problem(name)
            if problem:
                raise UsageError(f"{name!r} is not a host URL: {problem}", f"write {HOST_SCHEMES}")
            if host := self.known(name):
                return host
            if ":" in name:
                place = _place(name)
                # One name for one place: exports are granted, and hosts fenced, by name.
                name = place if name.startswith("local:") else name
                return HostConfig(name, name)
        raise NotFound(f"there is no host {name!r}", f"hosts: {', '.join(self.hosts)}; or write {HOST_SCHEMES}")

    def lacks(self, client: str) -> bool:
        """Whether the client of an export is a host, named as such, that is not in the inventory (any more)."""
        return ":" not in client and client not in self.hosts

    def shown(self, client: str) -> str:
        """The client of an export, for people."""
        return f"{client} (not in the inventory)" if self.lacks(client) else client

    def pool(self, name: str) -> PoolConfig:
        """The pool of a name. Raises NotFound with the names there are."""
        if name in self.pools:
            return self.pools[name]
        raise NotFound(f"there is no pool {name!r}", f"pools: {', '.join(self.pools)}")

    def transport(self, pool: str) -> str:
        """The target (`transport:NAME`) that serves the volumes of a pool."""
        config = self.pools.get(pool)
        name = config.transport if config else ""
        if config and not name:
            from storkit.core import registry

            name = registry.pool(config.type).transport
        return f"transport:{name or self.defaults.transport}"

    @property
    def homes(self) -> set[str]:
        """The hosts that may serve volumes."""
        return {host for pool in self.pools.values() for host in pool.hosts}

    def managed_by(self, host: str) -> list[PoolConfig]:
        """The pools that a host is one of several managers of."""
        return [pool for pool in self.pools.values() if host in pool.managers]

    @property
    def served_by(self) -> list[str]:
        """The targets of all transports that some pool is served by."""
        alike = {(pool.transport, pool.type): name for name, pool in self.pools.items()}
        return sorted({self.transport(name) for name in alike.values()})

    def with_host(self, config: HostConfig) -> Inventory:
        """This inventory and one host more."""
        return replace(self, hosts={**self.hosts, config.name: config})


def load(path: Path | None = None) -> Inventory:
    """The inventory in `path`, in $STORKIT_INVENTORY, in the default place, or the built-in one, in that order.

    Raises UsageError or Problems with everything that is wrong in it, each with file and line or key.
    """
    if path is None and os.environ.get("STORKIT_INVENTORY"):
        path = Path(os.environ["STORKIT_INVENTORY"])
    if path is None:
        path = config_directory() / "inventory.toml"
        if not path.exists():
            return built_in()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the inventory {path} cannot be read: {reason}", "name another with --inventory") from None
    return parse(text, path)


def built_in() -> Inventory:
    """The inventory of a machine that has none."""
    return Inventory(
        hosts={"local": HostConfig("local", "local")},
        pools={"default": PoolConfig("default", "local", "directory")},
        directory=config_directory(),
    )


@dataclass(frozen=True, slots=True)
class _Host:
    url: str
    address: str = ""
    state: str = ""


_SECTIONS = ("hosts", "pools", "transports", "hypervisors", "defaults")


def parse(text: str, path: Path) -> Inventory:
    """The inventory that `text` (TOML) describes; `path` is named in messages and anchors relative paths."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}", "see toml.io for the syntax") from None
    where = str(path)
    problems: list[StorkitError] = []
    for key in data.keys() - set(_SECTIONS):
        problems.append(UsageError(f"{where}: unknown section {key!r}", f"sections: {', '.join(_SECTIONS)}"))
    tables: dict[str, dict[str, Any]] = {}
    for section in _SECTIONS:
        value = data.get(section, {})
        if not isinstance(value, dict):
            problems.append(UsageError(f"{where}: {section}: a table is wanted"))
            value = {}
        tables[section] = value
    hosts = _hosts(tables["hosts"] or {"local": {"url": "local"}}, where, path.parent, problems)
    pools = _pools(tables["pools"], hosts, where, problems)
    for kind in ("transports", "hypervisors"):
        _check_settings(kind, tables[kind], where, problems)
    defaults = convert(Defaults, tables["defaults"], where, "defaults", problems) or Defaults()
    if "pool" not in tables["defaults"] and len(pools) == 1:
        defaults = replace(defaults, pool=next(iter(pools)))
    if not pools and "pools" not in data:
        first = next(iter(hosts), "local")
        pools = {"default": PoolConfig("default", first, "directory")}
    elif pools and defaults.pool not in pools and "pool" in tables["defaults"]:
        problems.append(
            UsageError(f"{where}: defaults.pool: there is no pool {defaults.pool!r}", f"pools: {', '.join(pools)}")
        )
    raise_problems(problems)
    inventory = Inventory(
        hosts,
        pools,
        tables["transports"],
        tables["hypervisors"],
        defaults,
        path,
        path.absolute().parent,
    )
    _check_managed(inventory, where, problems)
    raise_problems(problems)
    return inventory


def _hosts(table: dict[str, Any], where: str, base: Path, problems: list[StorkitError]) -> dict[str, HostConfig]:
    hosts: dict[str, HostConfig] = {}
    places: dict[str, str] = {}
    for name, data in table.items():
        _check(lambda name=name: check_name("host", name), where, f"hosts.{name}", problems)
        host = convert(_Host, data, where, f"hosts.{name}", problems)
        if not isinstance(host, _Host):
            continue
        url = host.url
        if url.startswith("local:") and not url.startswith("local:/"):
            url = f"local:{(base / url[6:]).absolute()}"
        problem = url_problem(url)
        if problem:
            problems.append(UsageError(f"{where}: hosts.{name}.url: {problem}", f"write {HOST_SCHEMES}"))
        elif (twin := places.setdefault(_place(url, host.state), name)) != name:
            problems.append(UsageError(f"{where}: hosts.{name}: the same url as hosts.{twin}: they would be one host"))
        hosts[name] = HostConfig(name, url, host.address, host.state)
    return hosts


def _place(url: str, state: str = "") -> str:
    """What the state directory of a host is, however its URL is written: two hosts of one place would be one."""
    if url == "local":
        return f"local:{os.path.realpath(state or state_directory())}"
    if url.startswith("local:"):
        return f"local:{os.path.realpath(url.removeprefix('local:'))}"
    try:
        parts = urlsplit(url)
        return f"ssh://{parts.username or ''}@{parts.hostname}:{parts.port or 22} {state}"
    except ValueError:
        return url


def _pools(
    table: dict[str, Any], hosts: dict[str, HostConfig], where: str, problems: list[StorkitError]
) -> dict[str, PoolConfig]:
    pools: dict[str, PoolConfig] = {}
    for name, data in table.items():
        key = f"pools.{name}"
        _check(lambda name=name: check_name("pool", name), where, key, problems)
        if not isinstance(data, dict):
            problems.append(UsageError(f"{where}: {key}: a table is wanted"))
            continue
        settings = dict(data)
        host, kind = settings.pop("host", None), settings.pop("type", "directory")
        transport = settings.pop("transport", "")
        if transport:
            _check_backend("transport", transport, {}, where, f"{key}.transport", problems)
        if MANAGERS in settings:
            problems.append(UsageError(f"{where}: {key}: unknown key {MANAGERS!r}", "write them as hosts = [...]"))
            del settings[MANAGERS]
        if "hosts" in settings:
            host = _managers(settings, host, hosts, f"{where}: {key}", problems)
            if isinstance(kind, str) and not _several("pool", kind):
                message = f"{where}: {key}: a pool of type {kind} has one host, and no list of them"
                problems.append(UsageError(message, 'write host = ...; several hosts: type = "directory"'))
                continue
        elif host is None:
            problems.append(UsageError(f"{where}: {key}: 'host' is missing", "say which host holds the pool"))
        elif host not in hosts:
            problems.append(UsageError(f"{where}: {key}.host: there is no host {host!r}", f"hosts: {', '.join(hosts)}"))
        _check_backend("pool", kind, settings, where, key, problems)
        pools[name] = PoolConfig(name, str(host), str(kind), settings, str(transport))
    return pools


def _managers(
    settings: dict[str, Any], host: Any, hosts: dict[str, HostConfig], where: str, problems: list[StorkitError]
) -> str:
    """The first of a pool's managers; all of them become a setting of its technology."""
    found = settings.pop("hosts")
    if host is not None:
        problems.append(UsageError(f"{where}: 'host' and 'hosts' are both there", "one host, or a list of managers"))
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        problems.append(UsageError(f"{where}.hosts: a list of hosts' names is wanted", 'as hosts = ["b", "c"]'))
        return ""
    for name in dict.fromkeys(found):
        if name not in hosts:
            problems.append(UsageError(f"{where}.hosts: there is no host {name!r}", f"hosts: {', '.join(hosts)}"))
        if found.count(name) > 1:
            problems.append(UsageError(f"{where}.hosts: host {name!r} is there twice", "name each once"))
    settings[MANAGERS] = list(found)
    return str(found[0])


def _check_managed(inventory: Inventory, where: str, problems: list[StorkitError]) -> None:
    """Pools with several managers, whose volumes go by what has one."""
    for pool in inventory.pools.values():
        if not pool.managers:
            continue
        transport = inventory.transport(pool.name).partition(":")[2]
        if not _several("transport", transport):
            message = f"{where}: pools.{pool.name}: volumes of several managers do not go by {transport}"
            problems.append(UsageError(message, 'write transport = "nbd" into it'))


def _several(kind: str, name: str) -> bool:
    """Whether a technology is made for several managers; one that is not known is told of elsewhere."""
    from storkit.core import registry

    try:
        return bool(getattr(registry, kind)(name).several)
    except StorkitError:
        return True


def _check_settings(kind: str, table: dict[str, Any], where: str, problems: list[StorkitError]) -> None:
    for name, settings in table.items():
        _check_backend(kind.removesuffix("s"), name, settings, where, f"{kind}.{name}", problems)


def _check_backend(kind: str, name: Any, settings: Any, where: str, key: str, problems: list[StorkitError]) -> None:
    from storkit.core import registry

    try:
        backend = getattr(registry, kind)(str(name))
    except StorkitError as error:
        problems.append(type(error)(f"{where}: {key}: {error.message}", error.hint))
        return
    convert(backend.Settings, settings, where, key, problems)


def _check(action: Any, where: str, key: str, problems: list[StorkitError]) -> None:
    try:
        action()
    except StorkitError as error:
        problems.append(type(error)(f"{where}: {key}: {error.message}", error.hint))
