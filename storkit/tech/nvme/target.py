"""The kernel's NVMe target (nvmet) through configfs: no program is needed, and none runs.

Each client of a volume has a subsystem of its own, with one namespace on a device-mapper node of its own: so whom it
shows a disk to, what that host may do, and its controllers are nobody else's. A subsystem is ready before it is linked
to a port, and its controllers end when the last link goes; to forbid its host would leave them.

Kernel: drivers/nvme/target/{configfs,core,tcp,auth}.c.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import Conflict, StorkitError
from storkit.system.block import configfs
from storkit.system.files import make_private
from storkit.system.locks import acquire
from storkit.system.timeouts import scaled
from storkit.tech import portals
from storkit.tech.nvme.names import NAMESPACE, PREFIX, Keys, portal, serial, stated

NVMET = configfs.CONFIGFS / "nvmet"
SUBSYSTEMS, PORTS, HOSTS = NVMET / "subsystems", NVMET / "ports", NVMET / "hosts"
MODULES = ("nvmet", "nvmet_tcp")
LOCK = Path("/run/storkit/nvmet.lock")
"""One for the machine: all storkit processes share its kernel's target, whatever directory their host's state is in."""
LOCK_WAIT = scaled(600.0)
_FIRST_PORT, _PORTS, _TRIES = 0x4000, 0x4000, 8
"""Ports have numbers for names: storkit's begin here, and follow from what they listen on."""
_EVERYWHERE = ("0.0.0.0", "::")
_KEY_FILES = ("dhchap_key", "dhchap_ctrl_key")


@dataclass(frozen=True, slots=True)
class Subsystem:
    """A volume as one client should see it."""

    nqn: str
    host: str
    """The client's NQN."""
    uuid: str
    device: str
    keys: Keys | None
    portals: Sequence[str]

    @property
    def path(self) -> Path:
        return SUBSYSTEMS / self.nqn

    @property
    def namespace(self) -> Path:
        return self.path / "namespaces" / str(NAMESPACE)


@dataclass(frozen=True, slots=True)
class SeenSubsystem:
    """A subsystem as the kernel has it."""

    identity: str
    """What its namespace states; empty: it has none that is enabled."""
    device: str
    hosts: list[str]
    linked: bool
    """Whether a port shows it."""


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Keep other storkit processes from changing this machine's target meanwhile."""
    make_private(LOCK.parent)
    held = acquire(LOCK, "the NVMe target of this machine", holder=f"process {os.getpid()}", wait=LOCK_WAIT)
    try:
        yield
    finally:
        held.release()


def prepare() -> None:
    """Load the target's modules. Raises Unsupported, naming what is missing."""
    configfs.mount("nvmet")
    for module in MODULES:
        if not Path("/sys/module", module).is_dir():
            configfs.modprobe(module)


def authenticates() -> bool:
    """Whether this kernel's target asks hosts for keys (NVME_TARGET_AUTH): a host's entry has files for them then."""
    probe = HOSTS / f"{PREFIX}:probe.{os.getpid()}-{threading.get_ident()}"  # several processes may ask
    probe.mkdir(exist_ok=True)
    try:
        return (probe / "dhchap_key").exists()
    finally:
        configfs.rmdir(probe)


# What there is


def observe(nqn: str) -> SeenSubsystem | None:
    """A subsystem as the kernel has it; None if it has none of that name."""
    path = SUBSYSTEMS / nqn
    if not path.is_dir():
        return None
    namespace = path / "namespaces" / str(NAMESPACE)
    enabled = configfs.read(namespace / "enable") == "1"
    uuid, nguid = (configfs.read(namespace / name).lower() for name in ("device_uuid", "device_nguid"))
    identity = stated(uuid, nguid.replace("-", "")) if enabled else ""
    device = configfs.read(namespace / "device_path")
    hosts = configfs.entries(path / "allowed_hosts")
    return SeenSubsystem(identity, device if enabled else "", hosts, any(_links(nqn)))


def of_volume(uuid: str) -> list[str]:
    """The names of a volume's subsystems."""
    return sorted(name for name in configfs.entries(SUBSYSTEMS) if name.startswith(f"{PREFIX}:{uuid}:"))


def _forbid(subsystem: Path, hosts: Iterable[str]) -> None:
    """Let hosts in no more, and forget their names, which are of this subsystem alone."""
    for host in hosts:
        (subsystem / "allowed_hosts" / host).unlink(missing_ok=True)
        if host.startswith(f"{PREFIX}:host."):
            configfs.rmdir(HOSTS / host)


def _links(nqn: str) -> Iterator[Path]:
    for number in configfs.entries(PORTS):
        link = PORTS / number / "subsystems" / nqn
        if link.is_symlink():
            yield link


def foreign(subsystems: Sequence[Subsystem]) -> list[StorkitError]:
    """Subsystems of these names that hold something else: not ours to touch."""
    problems: list[StorkitError] = []
    for wanted in subsystems:
        seen = observe(wanted.nqn)
        if seen is not None and seen.device not in ("", wanted.device):
            hint = f"see who made it: ls {wanted.path}"
            problems.append(Conflict(f"subsystem {wanted.nqn} exists, and is made on {seen.device}", hint))
    return problems


# What there should be


def make(subsystems: Sequence[Subsystem]) -> None:
    """Have these subsystems, and only then show them: a client that comes to a port too early may give up for good."""
    try:
        for wanted in subsystems:
            _make(wanted)
    except OSError as error:
        message = f"the kernel's NVMe target refuses {error.filename}: {error.strerror}"
        raise Conflict(message, "dmesg | tail shows the kernel's reason") from error
    for wanted in subsystems:
        for text in wanted.portals:
            _link(wanted, *portal(text))


def _make(wanted: Subsystem) -> None:
    host = HOSTS / wanted.host
    host.mkdir(exist_ok=True)
    if wanted.keys is not None:
        for name, key in zip(_KEY_FILES, (wanted.keys.host, wanted.keys.controller), strict=True):
            (host / name).chmod(0o600)  # the kernel would show it to everybody
            configfs.put(host / name, key.reveal())
    wanted.path.mkdir(exist_ok=True)
    for name, value in (("attr_allow_any_host", "0"), ("attr_serial", serial(wanted.uuid)), ("attr_model", "storkit")):
        configfs.put(wanted.path / name, value)
    namespace = wanted.namespace
    namespace.mkdir(exist_ok=True)
    if configfs.read(namespace / "enable") != "1":
        for name, value in (
            ("device_path", wanted.device),
            ("device_uuid", wanted.uuid),
            ("device_nguid", wanted.uuid),
            ("enable", "1"),
        ):
            configfs.write(namespace / name, value)
    _forbid(wanted.path, [name for name in configfs.entries(wanted.path / "allowed_hosts") if name != wanted.host])
    allowed = wanted.path / "allowed_hosts" / wanted.host
    if not allowed.is_symlink():
        allowed.symlink_to(host)


def _link(wanted: Subsystem, address: str, port: int) -> None:
    try:
        link = _port(address, port) / "subsystems" / wanted.nqn
        if not link.is_symlink():
            link.symlink_to(wanted.path)
    except OSError as error:
        message = f"the kernel's NVMe target cannot listen on {portals.name(address, port)}: {error.strerror}"
        raise Conflict(message, f"see who does: ss -ltnp 'sport = :{port}'") from error


def _port(address: str, port: int) -> Path:
    """The port that listens there, whoever made it; made if there is none."""
    for number in configfs.entries(PORTS):
        there = PORTS / number
        listens, _, service = _listens(there)
        if (listens == address or listens in _EVERYWHERE) and service == str(port):
            return there
    made = next(there for there in _own(address, port) if not any(_shown(there)))
    made.mkdir(exist_ok=True)
    family = "ipv6" if ":" in address else "ipv4"
    for name, value in (
        ("addr_trtype", "tcp"),
        ("addr_adrfam", family),
        ("addr_traddr", address),
        ("addr_trsvcid", str(port)),
    ):
        configfs.put(made / name, value)
    return made


def _listens(port: Path) -> tuple[str, str, str]:
    """Address, type and service of a port."""
    address, kind, service = (configfs.read(port / f"addr_{name}") for name in ("traddr", "trtype", "trsvcid"))
    return (address, kind, service) if kind == "tcp" else ("", kind, "")


def _own(address: str, port: int) -> Iterator[Path]:
    """Where storkit makes a port that listens there: the first that nobody else has."""
    digest = hashlib.sha256(portals.name(address, port).encode()).digest()
    first = int.from_bytes(digest[:4])
    yield from (PORTS / str(_FIRST_PORT + (first + more) % _PORTS) for more in range(_TRIES))


def _shown(port: Path) -> list[str]:
    return configfs.entries(port / "subsystems")


def resized(subsystem: Subsystem) -> None:
    """Tell a subsystem's clients how large its device is now."""
    configfs.write(subsystem.namespace / "revalidate_size", "1")


# What there should no longer be


def hide(nqns: Sequence[str]) -> None:
    """Show these subsystems at no port: their controllers end."""
    for nqn in nqns:
        for link in list(_links(nqn)):
            link.unlink(missing_ok=True)


def remove(nqns: Sequence[str]) -> None:
    """Remove subsystems that nobody is shown any more, with the names of their hosts and the ports that are left over.
    Their devices must not hang: the kernel waits for what it has sent there."""
    hide(nqns)
    for nqn in nqns:
        path = SUBSYSTEMS / nqn
        _forbid(path, configfs.entries(path / "allowed_hosts"))
        for number in configfs.entries(path / "namespaces"):
            namespace = path / "namespaces" / number
            configfs.put(namespace / "enable", "0")
            configfs.rmdir(namespace)
        configfs.rmdir(path)
    for number in configfs.entries(PORTS):
        port = PORTS / number
        address, _, service = _listens(port)
        if service.isdecimal() and port in _own(address, int(service)) and not _shown(port):
            configfs.rmdir(port)
