"""How a guest runs on one host: what its record, the same on every host, leaves open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Place:
    """How a guest runs on one host: what its record, the same on every host, leaves open."""

    accel: Literal["", "kvm", "tcg"] = ""
    """Empty: QEMU takes KVM where it works, else TCG; libvirt KVM."""
    machine: str = ""
    """The machine type with its version, pinned when the guest first started; empty: the record's, or the default."""
    incoming: bool = False
    """QEMU: start without running, to receive the guest by live migration."""
    daemonize: bool = False
    qmp: str = ""
    """QEMU: the monitor's socket."""
    console: str = ""
    """The socket of the serial console; empty: none, and its output goes to the record's file alone."""
    agent: str = ""
    """QEMU: the socket that leads to the guest's agent; empty: none."""
    pidfile: str = ""
    reconnect_delay: int = 300
    """Seconds that QEMU tries to reach an NBD server again before the guest's requests fail, and it is paused."""
    taps: list[str] = field(default_factory=list)
    """Tap devices for the network cards, in their order; without them QEMU's bridge helper makes one."""
    listening: frozenset[str] = frozenset()
    """QEMU: sockets that somebody listens at: it would take the path of one away from whoever has it."""
    secrets: str = ""
    """QEMU: the directory that has the passwords of the guest's document, each in a 0600 file of its name."""
    uml_dir: str = ""
    """User-Mode Linux: the directory of its sockets."""
    umid: str = ""
    """User-Mode Linux: its name for itself in that directory; empty: the guest's."""
    uefi_code: str = ""
    uefi_vars: str = ""
    """The firmware's variables, a file of this guest's own."""
