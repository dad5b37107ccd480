"""Commands inside guests, by their agents."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from storkit.core.errors import Conflict, UsageError
from storkit.core.identities import check_seconds, several
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator


@dataclass(frozen=True, slots=True)
class GuestOutput:
    """What a command left that ran in a guest."""

    guest: str
    host: str
    """Where the guest ran."""
    status: int
    """The command's exit status."""
    signal: int
    """What ended it; 0: no signal did."""
    stdout: bytes
    stderr: bytes
    cut: list[str]
    """Of which of them (stdout, stderr) there was more than an agent keeps: the beginning is here."""


def execute(
    coordinator: Coordinator, name: str, words: Sequence[str], stdin: bytes = b"", timeout: float = 600.0
) -> GuestOutput:
    """Run a command in a guest (GuestActs.execute)."""
    check_seconds(timeout)
    if not several(words):
        raise UsageError("no command is given", f"storkit guest exec {name} -- hostname")
    what = views.wherever(coordinator, name)
    if not what.running:
        what.known()
        raise Conflict(f"guest {name} does not run", f"storkit guest start {name}")
    host = what.running[0]
    if what.places[host] == "paused":
        raise Conflict(f"guest {name} stands still on {host}, and its agent with it", f"storkit guest resume {name}")
    hypervisor = coordinator.connections.to(host).hypervisor(f"hypervisor:{what.guest.hypervisor}")
    said = hypervisor.execute(name, list(words), base64.b64encode(stdin).decode(), timeout)
    stdout, stderr = base64.b64decode(said.stdout), base64.b64decode(said.stderr)
    return GuestOutput(name, host, said.status, said.signal, stdout, stderr, list(said.cut))
