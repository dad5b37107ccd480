"""libvirt's log of a domain, /var/log/libvirt/qemu/NAME.log."""

from __future__ import annotations

MESSAGES = 40
"""Lines of libvirt's log at most."""


def last_messages(log: str) -> str:
    """What libvirt's log of a guest says since QEMU was last started, without its command line."""
    start = log.rfind(": starting up libvirt version")
    lines = log[log.rfind("\n", 0, start) + 1 :].splitlines() if start >= 0 else log.splitlines()
    said: list[str] = []
    command = False
    for line in lines:
        # The environment and the command line are one shell command over many lines.
        if command or line.startswith("LC_ALL="):
            command = line.endswith("\\")
        else:
            said.append(line)
    return "\n".join(said[-MESSAGES:]).strip()
