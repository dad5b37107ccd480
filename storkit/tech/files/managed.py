"""Directories that several hosts share, each of which may act for the pool: its managers.

A directory that they share says so itself, in `.storkit.managers`: which one it is, who they are, and who of them is
barred, since a person has seen that it is off. The sidecar of a volume names the manager that has it, and its term: how
often that has changed. Who has a volume serves it, or writes into its file, and nobody else does, until it gives the
volume up or is barred. The name is there before the first byte is served, and outlives every power cut.

All of that is changed under the lock of the directory. Beside it whoever has a volume open holds a lock (flock(2)) on a
file in `.storkit.use`, as NFS 4, and NFS 3 with lockd, keep it for all hosts. It ends with its process, and, once the
server's lease is over, with its host. So a volume is taken over when a person says that its manager is off, and the
storage has let go of its lock: a manager that only seems to be off renews its lease, and is not robbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, UsageError, collected, raise_problems
from storkit.core.identities import HostName, Uuid
from storkit.core.model import Volume
from storkit.system import files, locks
from storkit.system.timeouts import scaled
from storkit.tech.files.mounts import keeps_locks_alone
from storkit.tech.files.sidecar import Sidecar, VolumeDirectory

RECORD = ".storkit.managers"
_USE = ".storkit.use"
_MOMENT = scaled(5.0)
"""Seconds that a lock is waited for whose holder has just ended."""
_LEASE = scaled(120.0)
"""Seconds that a storage gets to find out that a host is gone: an NFS server waits for 90 by default."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """The content of `.storkit.managers`."""

    version: int
    id: Uuid
    managers: list[HostName]
    barred: list[HostName] = field(default_factory=list)


def read(path: Path) -> Sharing | None:
    """What a directory says of its managers; None: one host has it, or nothing was made in it yet."""
    file = path / RECORD
    try:
        found = codec.load(Sharing, files.read_json(file, "the record of managers"), str(file), strict=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise files.explain(error, file) from error
    except UsageError as error:
        raise Unsafe(f"{file} is damaged: {error.message}", "restore it from a backup") from error
    if found.version > 1:
        raise Unsafe(f"{file} is of version {found.version}, made by a newer storkit", "upgrade storkit here")
    return found


def check(path: Path, pool: str, managers: Sequence[str]) -> Sharing | None:
    """What a directory says of its managers. Raises Unsafe unless it is what a pool is said to be: of these managers,
    or (none) of one host."""
    if managers:
        files.look_anew(path)
    found = read(path)
    if found and not managers:
        said = ", ".join(f'"{name}"' for name in found.managers)
        message = f"directory {path} of pool {pool} is one that {', '.join(found.managers)} share"
        raise Unsafe(message, f"write hosts = [{said}] in place of host into [pools.{pool}]")
    if managers and (why := keeps_locks_alone(path)):
        message = f"pool {pool}: {path} is mounted so that its locks are kept by this host alone ({why})"
        raise Unsafe(message, "mount it on all managers with NFS 4, or NFS 3 without nolock and local_lock")
    return found


def enter(directory: VolumeDirectory, host: str, managers: Sequence[str], act: bool = True) -> Sharing:
    """See, under the directory's lock, that `host` may change something in it; the first that does makes the record.

    `managers`: as the inventory has them now. `act`: False for what lets managers in and out.

    Raises Unsafe: the host is barred; the directory was one host's; or a manager that is left out has a volume.
    """
    path = directory.path
    found = read(path)
    if found is None:
        if there := directory.names():
            message = f"{path} has volumes of a pool with one host, as {there[0]}"
            raise Unsafe(message, "name an empty directory, and move them: storkit volume move VOLUME --to POOL")
        found = Sharing(1, str(uuid4()), list(managers))
        _write(path, found)
    if set(found.managers) != set(managers):
        have = {each.manager for each in directory.select(None) if each.manager} | set(found.barred)
        if left := sorted(have - set(managers)):
            message = f"{', '.join(left)} has volumes of {path}, or is barred there, and is no manager by the inventory"
            raise Unsafe(message, f"write it into hosts, with {', '.join(managers)}")
        found = replace(found, managers=list(managers))
        _write(path, found)
    if act:
        refuse_barred(path, found, host)
    return found


def refuse_barred(path: Path, found: Sharing | None, host: str) -> None:
    """Raise Unsafe if a manager is barred."""
    if found and host in found.barred:
        message = f"host {host} is barred from {path}: somebody has seen that it was off"
        raise Unsafe(message, f"once it is known to be harmless: storkit unfence {host}")


def bar(directory: VolumeDirectory, found: Sharing, manager: str) -> None:
    """Bar a manager (PoolVerbs.bar), under the directory's lock."""
    if manager not in found.managers:
        raise UsageError(f"{manager} is no manager of {directory.path}", f"they are {', '.join(found.managers)}")
    if manager not in found.barred:
        _write(directory.path, replace(found, barred=sorted([*found.barred, manager])))


def unbar(directory: VolumeDirectory, found: Sharing, manager: str) -> None:
    """Let a manager act again, under the directory's lock."""
    if manager in found.barred:
        _write(directory.path, replace(found, barred=[name for name in found.barred if name != manager]))


def _write(path: Path, sharing: Sharing) -> None:
    files.write_atomic(path / RECORD, codec.text(sharing))


# Who has a volume


def directory_of(volume: Volume) -> VolumeDirectory:
    """The directory of a volume of several managers, as its pool on this host has found it."""
    return VolumeDirectory(Path(volume.path).parent, shared=True)


def other(sidecar: Sidecar, host: str, what: str) -> list[StorkitError]:
    """A Conflict if another manager has this volume: it cannot be `what` by `host`."""
    return [] if sidecar.manager in ("", host) else [_not_ours(sidecar.volume.name, sidecar.manager, host, what)]


def _not_ours(volume: str, manager: str, host: str, what: str) -> StorkitError:
    message = f"volume {volume} is {manager}'s to serve, and cannot be {what} by {host}"
    return Conflict(message, f"if {manager} is off: storkit fence {manager} --confirmed-off")


def has(host: str, volume: Volume) -> bool:
    """Whether a host is still the one that has a volume, in the term of `volume`, as the storage says. Raises NotFound:
    that is not there."""
    directory = directory_of(volume)
    if read(directory.path) is None:
        raise unmounted(directory.path)
    sidecar = directory.read(volume.name)
    return sidecar is not None and _same(sidecar, volume) and sidecar.manager == host and sidecar.term == volume.term


def _same(sidecar: Sidecar, volume: Volume) -> bool:
    return sidecar.volume.uuid == volume.uuid


def claim(site: Site, volumes: Sequence[Volume], what: str) -> list[Volume]:
    """Have this host be the one that has these volumes; as they are then. Those of one host stay as they are.

    Raises Conflict: another manager has one. Unsafe: this host is barred.
    """
    claimed = {volume.uuid: volume for volume in volumes}
    for directory, group in _by_directory(volumes):
        with _acting(directory, site.host, what):
            claimed.update({each.uuid: each for each in claim_within(directory, site.host, group, what)})
    return [claimed[volume.uuid] for volume in volumes]


def claim_within(directory: VolumeDirectory, host: str, volumes: Sequence[Volume], what: str) -> list[Volume]:
    """As `claim`, under the lock of the directory of all of them, where this host may act."""
    known = directory.known(volumes)
    raise_problems([problem for sidecar in known for problem in other(sidecar, host, what)])
    taken = [each if each.manager else replace(each, manager=host, term=each.term + 1) for each in known]
    directory.write([new for old, new in zip(known, taken, strict=True) if old != new])
    # As they are now: another manager may have changed one since the caller looked.
    return [
        replace(directory.whole(new), host=volume.host, pool=volume.pool)
        for volume, new in zip(volumes, taken, strict=True)
    ]


def give_up(site: Site, volumes: Iterable[Volume], generations: dict[str, int] | None = None) -> None:
    """Have nobody have these volumes, as far as this host has them in their terms. `generations`: of the right to write
    that was given last, which whoever has them next goes on from."""
    for directory, group in _by_directory(volumes):
        with directory.locked("give volumes up"):
            changed: list[Sidecar] = []
            for volume in group:
                sidecar = directory.read(volume.name)
                if sidecar and _same(sidecar, volume) and (sidecar.manager, sidecar.term) == (site.host, volume.term):
                    least = max(sidecar.volume.generation, (generations or {}).get(volume.uuid, 0))
                    free = replace(sidecar.volume, generation=least)
                    changed.append(replace(sidecar, manager="", volume=free))
            directory.write(changed)


Inherit = Callable[[Volume], tuple[bool, int]]
"""What keeps, durably, who was granted a volume, before the volume says that this host has it: whether anybody was, and
the generation of the right that was given last."""


def inherit(site: Site, volumes: Sequence[Volume], keep: Inherit) -> list[StorkitError]:
    """Have this host be the one that has volumes which a barred manager had, or nobody where nobody is granted them. It
    waits until the storage has let go of the locks of who had them. Each is done for itself: why some were not, Unsafe:
    a manager that has one is not barred; Conflict: the storage still has its lock.
    """
    problems: list[StorkitError] = []
    deadline = time.monotonic() + _LEASE
    for directory, group in _by_directory(volumes):
        for volume in group:
            with collected(problems):
                _inherit(site, directory, volume, keep, deadline)
    return problems


def _inherit(site: Site, directory: VolumeDirectory, volume: Volume, keep: Inherit, deadline: float) -> None:
    if volume.manager == site.host and has(site.host, volume):
        return  # its server may run by now, and has the lock
    site.progress(0.0, f"waiting for the storage to let go of {volume.name}")
    path, holder = use_lock(directory.path, volume.uuid), f"{site.host}, which takes it over\n"
    left = max(0.0, deadline - time.monotonic())
    lock = locks.acquire(path, f"volume {volume.name}", holder=holder, wait=left)
    try:
        with _acting(directory, site.host, "take volumes over") as sharing:
            (sidecar,) = directory.known([volume])
            had = sidecar.manager
            if had in ("", site.host):
                return
            if had not in sharing.barred:
                message = f"volume {volume.name} is {had}'s to serve, and {had} is not barred"
                raise Unsafe(message, f"once you have seen that it is off: storkit fence {had} --confirmed-off")
            term = sidecar.term + 1
            served, generation = keep(replace(volume, manager=site.host, term=term))
            least = replace(sidecar.volume, generation=max(sidecar.volume.generation, generation))
            directory.write([replace(sidecar, manager=site.host if served else "", term=term, volume=least)])
    finally:
        lock.release()


def used_here(site: Site, volume: Volume) -> bool:
    """Whether a server or a command of this host has a volume open, or any manager has."""
    return locks.held(locks.use_lock(site.run, volume.uuid)) or in_use(Path(volume.path).parent, volume.uuid)


@contextmanager
def _acting(directory: VolumeDirectory, host: str, what: str) -> Iterator[Sharing]:
    """Under the directory's lock, as a manager that is not barred. Raises Unsafe."""
    with directory.locked(f"{what} on {host}"):
        sharing = read(directory.path)
        if sharing is None:
            raise unmounted(directory.path)
        if host not in sharing.managers:
            message = f"host {host} is no manager of {directory.path}"
            raise Unsafe(message, f"they are {', '.join(sharing.managers)}: write it into hosts of its pool")
        yield enter(directory, host, sharing.managers)


def unmounted(path: Path) -> StorkitError:
    return NotFound(f"there is no {path / RECORD}", f"is its file system mounted? findmnt -T {path}; mount {path}")


def _by_directory(volumes: Iterable[Volume]) -> list[tuple[VolumeDirectory, list[Volume]]]:
    groups: dict[Path, list[Volume]] = {}
    for volume in volumes:
        if volume.term:
            groups.setdefault(Path(volume.path).parent, []).append(volume)
    return [(VolumeDirectory(path, shared=True), group) for path, group in groups.items()]


# Who has it open


def use_lock(path: Path, uuid: str) -> Path:
    """The lock of whoever has a volume open, for all hosts. It is never removed while there is the volume: a host may
    still know a file by its name that another has removed."""
    directory = path / _USE
    with suppress(OSError):
        files.make_private(directory)
    return directory / f"{uuid}.lock"


@contextmanager
def serving(site: Site, volume: Volume) -> Iterator[list[int]]:
    """The descriptor of the lock of a server that is about to open a volume, which inherits it; none for one of one
    host. While the context lasts, this host has the volume in the term of `volume`.

    Raises Unsafe: it has not, any more. Conflict: somebody has it open.
    """
    if not volume.term:
        yield []
        return
    directory = directory_of(volume)
    with _acting(directory, site.host, f"serve {volume.name}"):
        if not has(site.host, volume):
            message = f"volume {volume.name} is not {site.host}'s to serve any more: another manager has it"
            raise Unsafe(message, f"storkit volume show {volume.name}")
        lock = locks.acquire(
            use_lock(directory.path, volume.uuid), f"volume {volume.name}", holder=f"its server on {site.host}\n",
            wait=_MOMENT,
        )  # fmt: skip
    try:
        yield [lock.descriptor]
    finally:
        lock.release()


class Used:
    """A volume that a command has open, for as long as it is not released."""

    def __init__(self, own: locks.Lock, shared: locks.Lock | None, end: Callable[[], None]) -> None:
        self._own, self._shared, self._end = own, shared, end

    def release(self, *, remove: bool = False) -> None:
        """Let go; `remove`: also of the file of this host's own lock."""
        try:
            self._end()
        finally:
            if self._shared:
                self._shared.release()
            self._own.release(remove=remove)


def use(
    site: Site, volume: Volume, *, shared: bool = False, holder: str = "",
    within: VolumeDirectory | None = None, brief: bool = False,
) -> Used:  # fmt: skip
    """Have a volume open, alone or (`shared`) with others who only read it. One of several managers is this host's
    meanwhile, if it is to be written. `within`: its directory, if the lock of that is held; `brief`: for as long as the
    volume is used.

    Raises Conflict: somebody has it open, on this host or another.
    """
    what = f"volume {volume.name}"
    own = locks.acquire(locks.use_lock(site.run, volume.uuid), what, shared=shared, holder=holder)
    taken: list[Volume] = []
    try:
        if not volume.term:
            return Used(own, None, lambda: None)
        if volume.manager not in ("", site.host):
            raise _not_ours(volume.name, volume.manager, site.host, "used")
        if not (shared or volume.manager or brief):
            act = partial(claim_within, within, site.host) if within else partial(claim, site)
            taken = act([volume], "changed")
        path = use_lock(Path(volume.path).parent, volume.uuid)
        lock = locks.acquire(path, what, shared=shared, holder=f"{holder or 'a command'} on {site.host}\n")
        return Used(own, lock, lambda: give_up(site, taken))
    except BaseException:
        own.release()
        if taken and not within:
            give_up(site, taken)
        raise


def in_use(path: Path, uuid: str) -> bool:
    """Whether any manager has a volume open."""
    files.look_anew(path / _USE)
    return locks.held(use_lock(path, uuid))


def forget(path: Path, uuid: str) -> None:
    """Remove the lock of a volume that is gone."""
    with suppress(OSError):
        use_lock(path, uuid).unlink()
