"""How a guest of Xen's ends here: shut down, destroyed, or given up before it has ever run.

An xl that watches over a domain takes it apart when that has shut down. Whoever ends a guest looks that there is one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from storkit.core.errors import CommandFailed, TimedOut, Unsafe
from storkit.core.model import GuestStatus
from storkit.hypervisors import _door as door
from storkit.hypervisors._machine import PRESS_AGAIN, force_command, look_command, refuse_shutdown
from storkit.hypervisors._xl import incoming, toolstack
from storkit.hypervisors._xl.guests import XenGuest, XenGuests, silent, watched
from storkit.hypervisors._xl.processes import kill, wait_until, xl_processes
from storkit.hypervisors._xl.toolstack import XenDomain, xl
from storkit.system.timeouts import scaled

CHANGE_TIMEOUT = scaled(180.0)
"""Seconds for xl to build a guest and open its disks, or to take it apart; its scripts get 40 for each disk."""
SETTLE_TIMEOUT = scaled(30.0)
"""Seconds for an xl that has lost its connection to end, and for a domain to be taken apart."""
TICK = 0.2


@dataclass(frozen=True, slots=True)
class XlEnding:
    """The guests of one host, as they end."""

    guests: XenGuests

    def shut_down(self, found: XenGuest, timeout: float) -> None:
        """Press a guest's power button until it is gone, and whoever would build it anew. Raises TimedOut; Conflict: it
        cannot shut itself down."""
        deadline, pressed, name = time.monotonic() + timeout, 0.0, found.name
        if not self._take_apart(name, found.of("paused")):
            refuse_shutdown(name, found.status)
        while (running := self._living(found.uuid)) or self.guests.bringers(name):
            if time.monotonic() >= deadline:
                raise TimedOut(f"guest {name} did not shut down within {timeout:g} seconds", force_command(name))
            if time.monotonic() - pressed > PRESS_AGAIN:
                pressed = time.monotonic()
                for domain in running:
                    self._press(domain)
            self._take_apart(name, running)
            time.sleep(TICK)

    def _take_apart(self, name: str, domains: list[XenDomain]) -> bool:
        """Destroy those that have shut down, if no xl does that; whether there was one."""
        off = [domain for domain in domains if domain.ended == "-"]
        if not off or watched(name, xl_processes()):
            return False
        for domain in off:
            self._destroy(domain)
        return True

    def _destroy(self, domain: XenDomain) -> None:
        """Take a domain apart, if its xl has not done that meanwhile."""
        try:
            xl("destroy", str(domain.id), timeout=CHANGE_TIMEOUT)
        except CommandFailed:
            if any(other.id == domain.id and not other.dying for other in toolstack.domains()):
                raise

    def _press(self, domain: XenDomain) -> None:
        try:
            xl("shutdown", "-F", str(domain.id))
        except CommandFailed:
            if any(other.id == domain.id for other in toolstack.domains()):
                raise

    def _living(self, uuid: str) -> list[XenDomain]:
        return [domain for domain in toolstack.domains() if domain.uuid == uuid and not domain.dying]

    def end(self, name: str, *statuses: GuestStatus) -> None:
        """Destroy the guest's domains that are one of these now, without any all of them, and wait until their devices
        are gone. Raises Unsafe: xl does not answer."""
        found = self.guests.one(name)
        if found and found.status == "unknown":
            raise silent(name, "ended")
        seen = found.seen if found else []
        for domain in [one.domain for one in seen if not statuses or one.status in statuses]:
            self._destroy(domain)

    def give_up_arrival(self, name: str) -> None:
        """End what has arrived here and has never run, what reads its memory from a file, and what moved away."""
        self.stop_building(name)
        self.end(name, "arrived", "incoming", "migrated")
        self.guests.forget_arrival(name)

    def stop_building(self, name: str) -> None:
        """End the xl that builds the guest's domain, or would build it anew when it reboots. Raises TimedOut."""
        for process in self.guests.bringers(name):
            kill(process)
        if not wait_until(lambda: not self.guests.bringers(name), SETTLE_TIMEOUT):
            raise TimedOut(f"the xl that starts guest {name} does not end", "ps -C xl")

    def stop_receiving(self, name: str) -> None:
        """End what receives the guest here for storkit, and leave what has arrived as it is. Raises Unsafe: somebody
        else receives it."""
        directory = self.guests.moving(name)
        door.close_door(directory)
        incoming.cut(directory)

        def ended() -> bool:
            return not any(process.receives and process.guest == name for process in xl_processes())

        if not wait_until(ended, SETTLE_TIMEOUT):
            for process in xl_processes():
                if process.receives and process.guest == name:
                    kill(process)
            wait_until(ended, SETTLE_TIMEOUT)
        found = self.guests.one(name)
        strangers = [process.pid for process in xl_processes() if process.receives and not process.guest]
        if found and found.of("incoming") and strangers:
            raise Unsafe(
                f"perhaps guest {name} is just being moved here by hand, and perhaps another guest:"
                f" xl migrate-receive, process {strangers[0]}",
                f"wait for its end, then: {look_command(name)}",
            )
