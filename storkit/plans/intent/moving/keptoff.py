"""Hosts that take no guests, since somebody works on them."""

from __future__ import annotations

from storkit.core.errors import Conflict
from storkit.core.guest import Guest
from storkit.plans.intent.coordinator import Coordinator


def refuse_drained(coordinator: Coordinator, host: str, guest: Guest) -> None:
    """Raise Conflict if a host takes no guests; HostUnreachable: it is silent; Unsafe: its word is damaged."""
    coordinator.connections.to(host)
    closed = coordinator.once((host, "drained", guest), lambda: coordinator.survey.drained([host]))
    if error := coordinator.survey.unread.get((host, "host:drained")):
        raise error
    for said in closed.values():
        raise Conflict(
            f"host {host} takes no guests: {said.by} drains it since {said.since}", f"storkit host undrain {host}"
        )
