"""What a transport is tested on: a home host with volumes, two client hosts, and ways to break things.

A technology gives one in `tests/contract/transport_NAME.py`, or in a module of its own package (docs/add-a-backend.md),
for this machine, for the lab, or for both:

    def setups() -> dict[str, Callable[[], ContextManager[Rig]]]
    def lab_setups() -> dict[str, Callable[[Hosts], ContextManager[Rig]]]         # tests/lab/remote.py

from the name of a variant to a context manager which prepares the machine and yields the rig; it may raise pytest.skip
with the reason, and must end whatever a failed test left running. The tests are the same: what is in `lab_setups` is
run by tests/lab/test_contract_transports.py, on hosts with kernels of their own.
"""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from storkit.core.backend import Transport
from storkit.core.model import Attachment, Client, Volume
from storkit.system.timeouts import scaled
from tests.contract.access import Access, access

BLOCK = 4096


def wait_until(true: Callable[[], bool], timeout: float = scaled(10)) -> None:
    """Wait for what is to come true by itself; fail if it does not."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


class Rig(ABC):
    """Hosts a and b; the volumes are at a, which is its own first client."""

    home: Transport
    """The transport on host a, where the volumes are; a is a client as well."""
    far: Transport
    """The transport on host b."""
    a: Client
    b: Client

    @abstractmethod
    def volume(self, name: str, size: int = 16 << 20, **fields: Any) -> Volume:
        """A new volume on host a, full of zeros. `fields` are Volume's."""

    @abstractmethod
    def grow(self, volume: Volume, size: int) -> Volume:
        """Make a volume larger that may be served, as its pool does it; as it is then. A qcow2 image is left as it is:
        its server does that."""

    @abstractmethod
    def kill_servers(self) -> None:
        """End everything that serves volumes at once, as kill -9 or a power cut does, and wait until it is gone."""

    def disconnect(self, attachment: Attachment) -> None:
        """Take away what the kernel of its host has of an attachment, as a fault or a hand does; its record stays."""
        raise NotImplementedError(f"nothing is known of how {attachment.transport} loses a connection")

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Processes, files, links and sockets that the transport has left on either host."""

    def at_home(self, *argv: str) -> str:
        """What a program of host a prints."""
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout

    def swap(self, path: Path, data: bytes) -> bytes:
        """Put something else into a file of host a, in place; what it was."""
        before = path.read_bytes()
        path.write_bytes(data)
        return before

    def recover(self) -> None:  # noqa: B027
        """Bring hosts back on which an access hangs for good, as an operator would: by a power cycle."""

    def access(self, attachment: Attachment) -> AbstractContextManager[Access]:
        """The bytes of an attachment, on the host where it is."""
        return access(attachment)

    def has_path(self, site: Transport, name: str) -> bool:
        """Whether there is anything at the stable path of a volume on one of the hosts."""
        path = site.site.dev / name
        return path.is_symlink() or path.exists()

    def set_writers(self, volumes: list[Volume], hosts: list[str]) -> None:
        """Say who writes, as the engine does: at the server, then at every new writer that has the volume attached."""
        self.home.set_writers(volumes, hosts)
        if not self.home.claims:
            return
        for site, client in ((self.home, self.a), (self.far, self.b)):
            attached = {attachment.uuid for attachment in site.find_attachments([volume.uuid for volume in volumes])}
            mine = [volume for volume in volumes if volume.uuid in attached and client.name in hosts]
            if mine:
                site.claim(mine, hosts)


RigSetup = Callable[[], AbstractContextManager[Rig]]
