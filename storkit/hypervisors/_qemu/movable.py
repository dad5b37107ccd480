"""How guests of QEMU come to a host and leave it, by a migration or by a file of their memory."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    UsageError,
)
from storkit.core.model import Credential, GuestStatus, MigrationResult, Saved, check_name
from storkit.hypervisors import _saved as memory
from storkit.hypervisors._embedded import Embedded
from storkit.hypervisors._machine import look_command, refuse_retire
from storkit.hypervisors._qemu import definition as definitions
from storkit.hypervisors._qemu.definition import Definition
from storkit.hypervisors._qemu.process import ASK_TIMEOUT, Process
from storkit.hypervisors._qemu.settings import QemuSettings
from storkit.system.addresses import own_address
from storkit.system.qemu import qmp
from storkit.system.sourcefilter import sources


class Movable(Embedded[Definition], ABC):
    """The verbs of QEMU's guests that move, or sleep."""

    settings: QemuSettings

    @abstractmethod
    def _process(self, name: str) -> Process:
        """A guest's process, alive or not."""

    @abstractmethod
    def _status(self, here: Process) -> GuestStatus:
        """What a guest does, as its process says."""

    @abstractmethod
    def _launch(self, here: Process, arguments: str) -> bool:
        """Start the process with the arguments of a file; False if it lives already."""

    def receive(self, name: str, same_machine: bool, source: str = "", told: str = "") -> str:
        self._check_disks(name)
        here = self._process(name)
        if not same_machine:
            own_address(self.site.host, self.site.address)
        if not self._launch(here, definitions.RECEIVE):
            status = self._status(here)
            if status not in ("incoming", "arrived"):
                raise Conflict(f"guest {name} cannot be received here: it is {status} here", look_command(name))
        import asyncio

        from storkit.hypervisors._qemu import migration as migration

        if same_machine:
            uri = f"unix:{here.incoming}"
            asyncio.run(migration.listen(here.monitor, uri))
            return uri
        from storkit.hypervisors import _door as door

        tls = self._tls(migration)
        if tls is None and not self.settings.migration_plain:
            tls = migration.new_key(here.keys)
        if not asyncio.run(migration.expect(here.monitor, tls)):
            return f"tcp:{self.site.address}:0"  # it is on its way already: nobody has to find the port any more
        expected = door.Expected(
            self.site.address,
            self.settings.migration_port,
            tuple(sources(source, told)),
            door.TLS_HELLO if tls else migration.PLAIN_HELLO,
            "set migration_port of hypervisors.qemu to another, or to 0",
        )
        return "tcp:" + door.open_door(here.monitor, expected, partial(migration.take, here.monitor))

    def credential(self, name: str) -> Credential | None:
        from storkit.hypervisors._qemu import migration as migration

        return migration.read_key(self._process(name).keys)

    def resume(self, name: str, run: bool = True) -> None:
        import asyncio

        from storkit.hypervisors._qemu import migration as migration

        here = self._process(name)
        asyncio.run(migration.go_on(here.monitor, here.arriving, name, run))
        shutil.rmtree(here.keys, ignore_errors=True)

    @classmethod
    def leads_to(cls, uri: str) -> str:
        if uri.startswith("unix:"):
            return ""
        found = re.fullmatch(r"tcp:(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9][A-Za-z0-9.-]*)):\d{1,5}", uri)
        if found is None:
            raise UsageError(f"{uri!r} is no URI to migrate to", "take the one that `receive` gave at the destination")
        return found[1] or found[2]

    def send(self, name: str, uri: str, credential: Credential | None = None) -> MigrationResult:
        self._definition(name)
        here = self._process(name)
        if not here.alive():
            raise NotFound(f"guest {name} does not run here", look_command(name))
        self.leads_to(uri)
        import asyncio

        from storkit.hypervisors._qemu import migration as migration

        limits = migration.QemuLimits(
            self.settings.downtime_limit, self.settings.bandwidth, self.settings.stall_timeout
        )
        tls = self._tls(migration) or (migration.write_key(here.keys, credential) if credential else None)
        try:
            return asyncio.run(migration.send(here.migration, name, uri, limits, tls, self.site.progress))
        except qmp.Lost:
            here.wait(ASK_TIMEOUT)  # whoever asks next is told that it has ended, not that it is silent
            raise

    def cancel(self, name: str) -> None:
        import asyncio

        from storkit.hypervisors._qemu import migration as migration

        here = self._process(check_name("guest", name))
        if here.alive():
            asyncio.run(migration.cancel(here.monitor, name))

    def retire(self, name: str) -> None:
        from storkit.hypervisors import _door as door

        here = self._process(name)
        door.close_door(here.monitor)
        if not here.alive():
            return here.forget()
        status = self._status(here)
        if status in ("starting", "unknown") and here.arriving.exists():
            # It hangs, and was never let go on. Its source may stand still for it: QEMU waits in its main loop.
            here.kill()
            return here.forget()
        refuse_retire(name, status)
        if status == "migrated":
            # Its disks have been the destination's since the switchover: it has nothing to write back, and would
            # only wait for a server that has cut it off.
            here.kill()
            return here.forget()
        return here.end()

    def save(self, name: str, saved: Saved, file: str = "") -> Saved:
        from storkit.hypervisors._qemu import saving

        return saving.save(self.site, self._process(name), saved, file, self.settings.stall_timeout)

    def unsave(self, name: str, saved: Saved, file: str = "") -> None:
        from storkit.hypervisors._qemu import saving

        saving.unsave(self.site, self._process(name), saved, file)

    def saved(self, name: str, file: str = "") -> Saved:
        return memory.read(memory.place(self.site, name, file))

    def load(self, name: str, hold: str, file: str = "") -> None:
        from storkit.hypervisors._qemu import saving

        here = self._process(name)
        with memory.opened(memory.place(self.site, name, file)) as (descriptor, saved):
            memory.refuse_other(saved, name, hold)
            if (status := self._status(here)) == "arrived":
                return
            if status == "incoming":  # killed while it read
                here.end()
            self._check_disks(name)
            if not self._launch(here, definitions.RECEIVE):
                raise Conflict(f"guest {name} cannot wake up here: it is {self._status(here)} here", look_command(name))
            try:
                saving.load(self.site, here, descriptor, saved, self.settings.stall_timeout)
            except StorkitError as error:
                said = self.messages(name)
                here.kill()
                here.forget()
                if not said:
                    raise
                raise CommandFailed(["QMP migrate-incoming"], 1, said, hint=error.hint) from None

    def spend(self, name: str, guest: str, file: str = "") -> None:
        memory.spend(memory.place(self.site, name, file), not file, name, guest)

    def messages(self, name: str) -> str:
        """What QEMU said since the guest's last start here: at the destination, why a migration did not arrive."""
        log = self._directory(check_name("guest", name)) / definitions.LOG
        return log.read_text(errors="replace").strip() if log.exists() else ""

    def _check_disks(self, name: str) -> None:
        taken = self._taken(self._definition(name).guest)
        if taken and not self._process(name).alive():
            raise Unsafe(f"guest {name} cannot be here: {'; '.join(taken)}", look_command(name))

    def _tls(self, migration: Any) -> Any:
        if not self.settings.migration_tls:
            return None
        return migration.Tls(self.settings.migration_tls, self.settings.migration_tls_dir)
