"""The way to the agent inside a domain: libvirt has its channel."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from storkit.core.errors import CommandFailed, NotFound, StorkitError, TimedOut, Unsupported
from storkit.hypervisors import _guestagent as agents
from storkit.hypervisors._libvirt.virsh import PACKAGE, Virsh
from storkit.hypervisors._machine import look_command
from storkit.system.qemu import guestagent
from storkit.system.run import run
from storkit.system.timeouts import scaled

_MOST = 3 << 20
"""Characters of a request: libvirt's messages have texts of 4 MiB at most (VIR_NET_MESSAGE_STRING_MAX)."""
_AROUND = scaled(30.0)
_NO_HISTORY = {"XDG_CACHE_HOME": "/dev/null"}
"""virsh keeps the lines that it reads, with all that is in them, in a history below this directory (virsh.c)."""
_UNKEPT = "Failed to create '/dev/null"
_REFUSED = "unable to execute QEMU agent command"
"""What libvirt says before an agent's own words."""


def way(virsh: Virsh, name: str, uuid: str) -> agents.Way:
    """The way to the agent of a domain."""

    @contextmanager
    def talk(timeout: float = guestagent.ANSWERS) -> Iterator[guestagent.Ask]:
        def ask(command: str, arguments: dict[str, Any] | None = None, within: float = timeout) -> Any:
            return _ask(virsh, name, uuid, command, arguments, within)

        ask("guest-ping")
        yield lambda command, arguments=None, timeout=timeout: ask(command, arguments, timeout)

    def thaw() -> list[str]:
        with talk():
            pass
        command = json.dumps({"execute": "guest-fsfreeze-thaw"})
        return ["program", "virsh", "-c", virsh.uri, "-q", "qemu-agent-command", uuid, "--timeout", "20", command]

    return agents.Way(talk, lambda: talk(scaled(3.0)), uuid, thaw)


def _ask(virsh: Virsh, name: str, uuid: str, command: str, arguments: dict[str, Any] | None, timeout: float) -> Any:
    """Have the agent of a domain carry out a command. It stands on virsh's input: its words are everybody's to read."""
    request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
    if len(request) > _MOST:
        message = f"libvirt lets {_MOST >> 20} MiB at most through to a guest's agent"
        raise Unsupported(message, "copy it by ssh, or put it on a disk of the guest")
    line = f"qemu-agent-command {uuid} --timeout {math.ceil(timeout)} {shlex.quote(request)}\n"
    argv = ["virsh", "-c", virsh.uri, "-q"]
    done = run(argv, stdin=line, timeout=timeout + _AROUND, ok=(0, 1), package=PACKAGE, env=_NO_HISTORY)
    answers = [each for each in done.stdout.splitlines() if each.startswith(('{"return":', '{"error":'))]
    if answers:
        try:
            return guestagent.value_of(command, json.loads(answers[-1]))
        except ValueError:
            raise guestagent.strange(command) from None
    said = [each for each in done.stderr.splitlines() if each.strip() and _UNKEPT not in each]
    raise _explained(name, command, "\n".join(said), timeout)


def _explained(name: str, command: str, said: str, timeout: float) -> StorkitError:
    """What virsh said, as what it means."""
    if _REFUSED in said:
        return guestagent.AgentRefused(command, said.partition(_REFUSED)[2].partition(": ")[2])
    if "agent is not configured" in said:
        return agents.unreachable(name)
    if "agent is not connected" in said:
        return agents.absent(name)
    if "is not running" in said:
        return NotFound(f"guest {name} does not run here", look_command(name))
    if "agent is not responding" in said or "agent not available" in said or "timed out" in said.lower():
        message = f"the guest's agent has not answered {command} for {timeout:g} seconds"
        return TimedOut(message, f"look at what it does: storkit guest console {name}")
    if "too large" in said or "too big" in said:
        message = f"what the command in guest {name} says is more than libvirt lets through"
        return Unsupported(message, "have it write into a file there")
    return CommandFailed(["virsh", "qemu-agent-command"], 1, said or "virsh has no answer")
