"""What a host is made of: its directories, its backends' settings, and the one way a verb is carried out on it.

The coordinator uses it in process for local hosts, and `storkit agent` for its machine: the same code runs in both.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from storkit.core import calls, codec, registry
from storkit.core.backend import Backend, Pool, Site, Transport, refuse_broken
from storkit.core.errors import NotFound, StorkitError, Unsupported, UsageError, raise_problems
from storkit.core.host import SYSTEM_STATE, state_directory
from storkit.core.model import Attachment, Volume
from storkit.hosts import rights
from storkit.hosts.accept import Limits
from storkit.hosts.setup import Setup
from storkit.system import files
from storkit.system.files import make_private
from storkit.system.ownership import keep_state


def site(given: Setup) -> Site:
    """The directories of a host, made if they are missing. All are below its state directory, so that one machine can
    stand for several hosts, except for those of the machine itself.

    They follow from the state directory alone: two commands that took different ones would not see each other's locks.
    """
    state = Path(given.state).absolute() if given.state else state_directory()
    with _writable_or_not(given.host, state):
        keep_state(state)
    if Path(os.path.realpath(state)) == SYSTEM_STATE:
        run, dev = Path("/run/storkit"), Path("/dev/storkit")
    else:
        with _writable_or_not(given.host, state):
            run, dev = _runtime(state), state / "dev"
    for directory in (run, dev):
        with _writable_or_not(given.host, directory):
            make_private(directory)
    return Site(given.host, state, run, dev, given.address)


@contextmanager
def _writable_or_not(host: str, directory: Path) -> Iterator[None]:
    """Go on where a file system takes nothing new: who only reads needs nothing, who writes is told by the write."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            return
        hint = "name another directory, or run storkit as a user who may write there"
        message = f"host {host}: {files.place(error, directory)} cannot be made: {error.strerror}"
        raise UsageError(message, hint) from error


def _runtime(state: Path) -> Path:
    """The run directory below a state directory, or a short stand-in for it where sockets would not fit (unix(7))."""
    run = state / "run"
    if len(os.fsencode(run)) <= 70:
        return run
    import hashlib
    import stat

    # Not XDG_RUNTIME_DIR, which cron and sudo do not have, and which goes at logout, under what runs.
    base = Path("/run/storkit" if os.geteuid() == 0 else f"/tmp/storkit-{os.geteuid()}")
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    found = base.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise UsageError(
            f"{base} is not a directory of your own (0700)", "remove it, or choose a shorter state directory"
        )
    return base / ("storkit-" + hashlib.sha256(os.fsencode(os.path.realpath(state))).hexdigest()[:12])


class Performer:
    """Carries out verbs on one host, within the limits of whoever asks."""

    def __init__(self, given: Setup, place: Site, limits: Limits | None = None) -> None:
        self.setup = given
        self.site = place
        self.limits = limits
        self.asked = "this host itself"
        """Who asks for what is performed, for the log."""

    def backend(self, target: str, place: Site | None = None) -> Backend:
        """The backend that `pool:NAME`, `transport:NAME` or `hypervisor:NAME` stands for on this host."""
        kind, _, name = target.partition(":")
        place = place or self.site
        if kind == "pool":
            if name not in self.setup.pools:
                raise UsageError(f"host {self.setup.host} has no pool {name!r}", "check the inventory")
            given = self.setup.pools[name]
            cls = registry.pool(given.type)
            return cls(place, self._settings(cls, given.settings, target), name)
        if kind == "transport":
            transport = registry.transport(name)
            return transport(place, self._settings(transport, self.setup.transports.get(name, {}), target))
        if kind == "hypervisor":
            hypervisor = registry.hypervisor(name)
            return hypervisor(place, self._settings(hypervisor, self.setup.hypervisors.get(name, {}), target))
        raise UsageError(f"there is no backend {target!r}")

    def perform(self, target: str, verb: str, args: dict[str, Any], progress: Any = None, epoch: int = 0) -> Any:
        """Carry out one verb; arguments and result are JSON values.

        Only what the contract has (storkit.core.contracts) is carried out, whatever else is public in a backend.
        """
        kind, place = target.partition(":")[0], replace(self.site, progress=progress or self.site.progress, epoch=epoch)
        method: Callable[..., Any]
        wanted = calls.verb(kind, verb)
        if target in _MODULES:
            if wanted is None:
                raise self._no_verb(target, verb)
            method = partial(getattr(importlib.import_module(_MODULES[target]), verb), place)
        else:
            backend = self.backend(target, place)
            if wanted is None:
                raise self._no_verb(target, verb)
            method = getattr(backend, verb)
        values = wanted.read(args, f"{target}.{verb}")
        if target == "images" and "volume" in values:
            (values["volume"],) = self._here([values["volume"]])
        if target == "images" and "volumes" in values:
            values["volumes"] = self._here(values["volumes"])
        if target == "images" and "attached" in values:
            values["attached"] = self._attached_here(values["attached"])
        if kind == "transport" and verb in SERVING_VERBS:
            values["volumes"] = self._here(values["volumes"])
        with self.limits.paths(kind, verb, values) if self.limits else nullcontext(_same) as shown:
            try:
                with rights.logged(target, verb, values, self.asked) as told:
                    result = method(**values)
                    told(result)
            except OSError as error:
                raise files.explain(error, files.place(error, self.site.state)) from error
        return shown(codec.dump(result, reveal=verb in SECRET_VERBS))

    def _no_verb(self, target: str, verb: str) -> StorkitError:
        """A coordinator that knows more verbs than this host is newer."""
        return Unsupported(f"there is no verb {verb!r} of {target}", f"upgrade storkit on host {self.setup.host}")

    def _here(self, volumes: list[Volume]) -> list[Volume]:
        """The volumes as their pools on this host have them: where the bytes lie, and what may be done with them, is
        never taken from another host's word."""
        found: dict[tuple[str, str], Volume] = {}  # by the pool, too: while one is moved, two have it
        for name in {volume.pool for volume in volumes}:
            pool = self.backend(f"pool:{name}")
            assert isinstance(pool, Pool)
            wanted = [volume.name for volume in volumes if volume.pool == name]
            found.update(((name, volume.uuid), volume) for volume in pool.find(wanted))
        raise_problems(
            [
                NotFound(
                    f"pool {volume.pool} has no volume {volume.name} with UUID {volume.uuid}", "storkit volume list"
                )
                for volume in volumes
                if (volume.pool, volume.uuid) not in found
            ]
        )
        return [found[volume.pool, volume.uuid] for volume in volumes]

    def _attached_here(self, said: Attachment) -> Attachment:
        """An attachment as this host has it: what it opens is never taken from another host's word."""
        transport = self.backend(f"transport:{said.transport}")
        assert isinstance(transport, Transport)
        found = transport.find_attachments([said.uuid])
        if not found:
            raise NotFound(f"volume {said.volume} is not attached on {self.setup.host}", "storkit plan list")
        refuse_broken(found)
        return found[0]

    def _settings(self, cls: type[Backend], settings: dict[str, Any], target: str) -> Any:
        if self.limits:
            settings = self.limits.settings(cls, target, settings)
        if self.setup.templates and "templates" in cls.Settings.__dataclass_fields__:  # type: ignore[attr-defined]
            settings = {"templates": self.setup.templates, **settings}
        return codec.load(cls.Settings, settings, target)


def _same(answer: Any) -> Any:
    return answer


_MODULES = {"images": "storkit.images", "host": "storkit.hosts.declared"}
"""Targets that are no backends, and where their verbs are: functions whose first argument is the site."""


SECRET_VERBS = frozenset({"offers", "credential", "enter", "originals", "edited"})
"""Verbs whose results hold credentials: never journalled, only passed on to where they are needed."""


SERVING_VERBS = frozenset({"export", "set_writers", "take_over"})
"""Verbs of transports that open a volume's bytes."""
