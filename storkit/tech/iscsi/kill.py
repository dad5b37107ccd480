"""The last way to end an iSCSI session: asking the kernel itself, by the netlink interface that iscsid uses.

An iscsid that was restarted while a target was away will log out of that session only once the target is back. This
must not wait for that. iscsid keeps an entry for the session, which it drops when it is restarted.

The messages are struct iscsi_uevent of the kernel's include/scsi/iscsi_if.h.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from storkit.core.errors import Conflict
from storkit.system.timeouts import scaled

_NETLINK_ISCSI = 8
_DESTROY_SESSION, _DESTROY_CONNECTION, _STOP_CONNECTION = 12, 14, 18
_TERMINATE = 1
_PAYLOAD = 112
"""At least as long as both unions of the message together."""
_TIMEOUT = scaled(15.0)
HANDLE = Path("/sys/class/iscsi_transport/tcp/handle")


def destroy(session: int) -> None:
    """End the session of this number, its connection and its SCSI devices; what they were still to do fails.

    Raises Conflict: the kernel refuses.
    """
    _ask(_STOP_CONNECTION, struct.pack("=IIQI", session, 0, 0, _TERMINATE))
    _ask(_DESTROY_CONNECTION, struct.pack("=II", session, 0))
    if error := _ask(_DESTROY_SESSION, struct.pack("=I", session)):
        raise Conflict(f"the kernel does not end iSCSI session {session}: {os.strerror(error)}", "dmesg | tail")


def _ask(kind: int, what: bytes) -> int:
    """Send one request; the error number of the answer."""
    body = struct.pack("=IIQ", kind, 0, int(HANDLE.read_text())) + what.ljust(_PAYLOAD, b"\0")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ISCSI) as netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body)
        answer = netlink.recv(4096)
    (error,) = struct.unpack_from("=i", answer, 20)
    return -int(error)
