"""Into the members of a fleet by ssh(1): by the fleet's own key, and only where the member shows the host key that was
made for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from storkit.core.errors import CommandFailed, Conflict, StorkitError, TimedOut, Unsupported, UsageError, raise_problems
from storkit.core.identities import check_seconds
from storkit.guests.fleets import keys
from storkit.guests.fleets.record import Fleet
from storkit.plans.intent.coordinator import Coordinator
from storkit.system.run import run as run_program
from storkit.system.timeouts import scaled

_AT_ONCE = 32
_TRY = scaled(10.0)
"""Seconds that one try has to get in, while a member comes up."""
_GET_IN = scaled(60.0)
"""Seconds that ssh has to get into a member that is up."""
_AGAIN = 0.5
LOST = 255
"""ssh's own exit status where it did not get in (ssh(1), EXIT STATUS)."""
USER = "root"


@dataclass(frozen=True, slots=True)
class Entrance:
    """How ssh gets into a member: over a port of its host's loopback, through that host where it is another machine."""

    member: str
    host: str
    port: int
    key: str
    """The file of the fleet's key."""
    known_hosts: str
    jump: str = ""
    """[USER@]HOST[:PORT] of the member's host; empty: it is this machine."""

    @property
    def options(self) -> dict[str, str]:
        """As ssh_config(5) has them."""
        return {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": USER,
            "HostKeyAlias": self.member,
            "IdentityFile": _quoted(self.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": _quoted(self.known_hosts),
            "StrictHostKeyChecking": "yes",
            "ControlPath": "none",
            **({"ProxyJump": self.jump} if self.jump else {}),
        }

    def argv(self, *command: str, within: float = 0.0) -> list[str]:
        """The words of ssh(1). `within`: it asks nobody, and gives up getting in after so many seconds."""
        options = {**self.options, **({"BatchMode": "yes", "ConnectTimeout": f"{within:.0f}"} if within else {})}
        # The user's own configuration may speak of other hosts of this name; a host to jump through is in it.
        without = [] if self.jump else ["-F", "none"]
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", *without, *words, self.member, *command]


@dataclass(frozen=True, slots=True)
class Said:
    """What a command in a member left."""

    member: str
    status: int
    """The command's exit status; 255: ssh did not get in, or it did not end in time."""
    stdout: str
    stderr: str


def entrances(
    coordinator: Coordinator, fleet: Fleet, members: Sequence[str], where: Mapping[str, str]
) -> list[Entrance]:
    """How ssh gets into these members. `where`: the hosts of those that run.

    Raises Conflict for others; Unsupported: no port leads there.
    """
    if fleet.bridge:
        message = f"the members of fleet {fleet.name} are on bridge {fleet.bridge}, whose network gives their addresses"
        raise Unsupported(message, "ask it: ip neigh show, or its DHCP server's leases")
    if not fleet.enterable:
        message = f"nothing leads to the members of fleet {fleet.name}: {fleet.hypervisor} has no card of kind user"
        raise Unsupported(message, "see what each says: storkit guest show MEMBER; they reach each other")
    hypervisor = f"hypervisor:{fleet.hypervisor}"
    ports: dict[str, int] = {}
    for host in dict.fromkeys(where[member] for member in members if member in where):
        here = [member for member in members if where.get(member) == host]
        ports |= coordinator.connections.to(host).hypervisor(hypervisor).forwarded(here)
    hint = f"storkit fleet start {fleet.name}"
    problems: list[StorkitError] = []
    for member in members:
        if member not in ports:
            what = f"does not answer on {where[member]}" if member in where else "does not run"
            problems.append(Conflict(f"{member} {what}", f"storkit guest show {member}" if member in where else hint))
    raise_problems(problems)
    names = {made.guest: member for member, made in fleet.made.items()}
    key, known = keys.for_ssh(coordinator.state, fleet.uuid, names)
    return [
        Entrance(member, where[member], ports[member], str(key), str(known), _jump(coordinator, where[member]))
        for member in members
    ]


def run(doors: Sequence[Entrance], command: Sequence[str], timeout: float, stdin: str = "") -> list[Said]:
    """Run a command in members at the same time. Its words are one text for a shell there, as ssh(1) has it; `stdin`
    is what each reads."""
    if not command:
        raise UsageError("no command is given", "storkit fleet run NAME -- hostname")
    check_seconds(timeout)
    with ThreadPoolExecutor(min(_AT_ONCE, len(doors))) as pool:
        return list(pool.map(lambda door: _run(door, command, timeout, _GET_IN, stdin), doors))


def wait(doors: Sequence[Entrance], timeout: float) -> None:
    """Wait until every member lets ssh in. Raises TimedOut with those that do not."""
    check_seconds(timeout)
    end = time.monotonic() + timeout
    problems: list[StorkitError] = []

    def tried(door: Entrance) -> Said:
        within = min(_TRY, max(1.0, end - time.monotonic()))
        return _run(door, ["true"], 2 * within, within)

    def answers(door: Entrance) -> None:
        while (said := tried(door)).status:
            if time.monotonic() >= end:
                reason = said.stderr.strip().splitlines()[-1:] or ["it says nothing"]
                message = f"{door.member} does not let ssh in after {timeout:g} seconds: {reason[0]}"
                problems.append(TimedOut(message, f"storkit guest show {door.member}"))
                return
            time.sleep(_AGAIN)  # nothing tells that a guest has come up, but to ask it

    with ThreadPoolExecutor(min(_AT_ONCE, len(doors))) as pool:
        list(pool.map(answers, doors))
    raise_problems(problems)


def _run(door: Entrance, command: Sequence[str], timeout: float, within: float, stdin: str = "") -> Said:
    argv = door.argv(*command, within=within)
    try:
        done = run_program(argv, ok=range(256), timeout=timeout, stdin=stdin or None, package="openssh-client")
    except TimedOut:
        return Said(door.member, LOST, "", f"it did not end within {timeout:g} seconds")
    except CommandFailed as error:
        return Said(door.member, LOST, "", error.stderr)
    return Said(door.member, done.status, done.stdout, done.stderr)


def _quoted(path: str) -> str:
    """A path as ssh_config(5) takes it: in quotes, and with no tokens in it."""
    return '"' + path.replace("%", "%%") + '"'


def _jump(coordinator: Coordinator, host: str) -> str:
    """Where ssh goes through to a host's loopback; empty: it is this machine's."""
    config = coordinator.inventory.host(host)
    return urlsplit(config.url).netloc if config.url.startswith("ssh:") else ""
