"""The keys of [hypervisors.qemu] in the inventory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storkit.core.backend import path_setting, program_setting
from storkit.core.identities import Count, Port, Seconds


@dataclass(frozen=True, slots=True)
class QemuSettings:
    """What QEMU is on a host, and how guests move."""

    binary: str = program_setting("qemu-system-x86_64")
    accel: Literal["", "kvm", "tcg"] = ""
    """Empty: KVM where a guest really runs under it, TCG otherwise. Both hosts of a migration need the same."""
    templates: str = path_setting()
    """A directory whose qemu/guest.args.j2 is taken instead of the one that comes with storkit."""
    downtime_limit: Count = 300
    """Milliseconds that a guest may stand still in a migration's switchover."""
    bandwidth: Count = 0
    """Bytes a second that a migration may take; 0: no limit."""
    stall_timeout: Seconds = 120.0
    """Seconds without a byte sent after which a migration is given up."""
    migration_port: Port = 0
    """The TCP port to receive migrations on; 0: a free one."""
    migration_tls: Literal["", "psk", "x509"] = ""
    """Encrypt migrations between machines by the files in `migration_tls_dir`; empty: by a key made for each one."""
    migration_tls_dir: str = path_setting()
    """psk: keys.psk with the user `qemu`; x509: ca-cert.pem and the server's or client's certificate and key."""
    migration_plain: bool = False
    """True: guests' memory may cross the network unencrypted."""
