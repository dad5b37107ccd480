"""virsh: how it is called, and what its answers mean.

Domains are named by UUID: virsh would take a name of digits for an id. Formats: virsh(1); the numbers are those of
virDomainState and its reasons (libvirt.org/html/libvirt-libvirt-domain.html).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storkit.core.errors import CommandFailed
from storkit.hypervisors._libvirt import domain as domains
from storkit.system.run import TIMEOUT, run
from storkit.system.timeouts import scaled

PACKAGE = "libvirt-clients"
ASK_TIMEOUT = scaled(15.0)
"""Seconds after which a libvirtd that does not answer makes its guests `unknown`."""

NO_STATE, PAUSED, SHUT_OFF, CRASHED = 0, 3, 5, 6
RUNNING = (1, 2, 4)
"""Running, blocked on a resource, shutting down."""
BY_USER, BY_MIGRATION, BY_ERROR, STARTING_UP = 1, 2, 5, 11
"""Why a domain is paused (virDomainPausedReason)."""
REASONS = {BY_ERROR: "a disk's error", 6: "its watchdog", 10: "its kernel's panic", 13: "a migration that failed"}
"""Those that nobody wanted."""
MIGRATED = 4
"""Why a domain is shut off."""
OUTGOING = 5
"""A job's operation: VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT."""


@dataclass(frozen=True, slots=True)
class State:
    """What a domain does, and why."""

    state: int
    reason: int

    @property
    def active(self) -> bool:
        """Whether there is a process."""
        return self.state not in (SHUT_OFF, CRASHED)

    @property
    def migrated(self) -> bool:
        return (self.state, self.reason) == (SHUT_OFF, MIGRATED)


def parse_blocks(text: str) -> list[tuple[str, str]]:
    """`virsh domblklist`: the disks of a domain, each by its target, and where it is (a path, an export's name)."""
    rows = [line.split(maxsplit=1) for line in text.splitlines()]
    return [(row[0], row[1].strip()) for row in rows if len(row) == 2]


@dataclass(frozen=True, slots=True)
class DomainListing:
    """What libvirt has at one time, by UUID."""

    names: dict[str, str]
    states: dict[str, State]
    saved: set[str]
    """Domains whose memory was saved to start from (managedsave)."""
    xml: list[str]


@dataclass(frozen=True, slots=True)
class Job:
    """A migration under way, or ended (`domjobinfo --completed`). Times are milliseconds, sizes bytes."""

    operation: int
    numbers: dict[str, int]

    @property
    def outgoing(self) -> bool:
        return self.operation == OUTGOING


@dataclass(frozen=True, slots=True)
class Virsh:
    """virsh for one connection."""

    uri: str

    def __call__(self, *words: str, timeout: float = TIMEOUT) -> str:
        """Run one command; its output. Raises CommandFailed, TimedOut, and Unsupported without virsh."""
        return run(["virsh", "-c", self.uri, "-q", *words], timeout=timeout, package=PACKAGE).stdout

    def batch(self, commands: Sequence[str], timeout: float = ASK_TIMEOUT) -> str:
        """Run several commands in one process; the output of those that work. Raises if there is no connection."""
        text = "; ".join(commands)
        done = run(["virsh", "-c", self.uri, "-q", text], timeout=timeout, ok=(0, 1), package=PACKAGE)
        if done.status and "failed to connect" in done.stderr:
            raise CommandFailed(["virsh", "-c", self.uri], done.status, done.stderr, hint="is libvirtd running?")
        return done.stdout

    def look(self, uuids: Sequence[str] = (), kept: Sequence[str] = ()) -> DomainListing:
        """All domains, with the XML of those of `uuids` that exist (of live ones as they run), and after it that which
        those of `kept` would be started with the next time, passwords included."""
        lists = ["list --all --uuid --name", "list --all --uuid --with-managed-save", "domstats --state --nowait"]
        now = [f"dumpxml {uuid}" for uuid in uuids]
        return parse_listing(self.batch([*lists, *now, *map(_kept, kept)]))

    def kept(self, uuids: Sequence[str]) -> list[str]:
        """What those of these domains that exist would be started with the next time, passwords included."""
        return split_documents(self.batch([_kept(uuid) for uuid in uuids])) if uuids else []

    def define(self, files: Mapping[str, Path]) -> None:
        """Define domains that are to have storkit's mark, by their UUIDs, by these files, all in one process.

        Raises CommandFailed: it does not take one. Others may be defined then.
        """
        left = dict(files)
        if len(files) > 1:
            commands = [f"define {shlex.quote(str(file))} --validate" for file in files.values()]
            found = map(domains.read, split_documents(self.batch([*commands, *map(_kept, files)], timeout=TIMEOUT)))
            left = {uuid: files[uuid] for uuid in files.keys() - {domain.uuid for domain in found if domain.ours}}
        for file in left.values():
            self("define", str(file), "--validate")  # which says why not

    def states(self) -> dict[str, State]:
        """The state of every domain, by UUID."""
        return self.look().states

    def definitions(self, uuids: Sequence[str]) -> list[str]:
        """The XML of those of these domains that exist."""
        return split_documents(self.batch([f"dumpxml {uuid}" for uuid in uuids])) if uuids else []

    def disk_errors(self, uuid: str) -> dict[str, bool]:
        """The disks whose errors have paused a domain, by their device name; whether each had no room."""
        return parse_errors(self.batch([f"domblkerror {uuid}"]))

    def job(self, uuid: str, completed: bool = False) -> Job | None:
        """The job under way, or the last one that has ended; None without any."""
        words = f"domjobinfo {uuid} --rawstats" + (" --completed --keep-completed" if completed else "")
        return parse_job(self.batch([words]))


def _kept(uuid: str) -> str:
    return f"dumpxml {uuid} --inactive --security-info"


def parse_listing(text: str) -> DomainListing:
    """What `Virsh.look` asks for. No line of it but those of `dumpxml` begins with an angle bracket."""
    lists, start, documents = f"\n{text}".partition("\n<domain")
    listed, domain, domstats = lists.partition("\nDomain: ")
    pairs = [line.rstrip().partition(" ")[::2] for line in listed.splitlines() if line.strip()]
    names = {uuid: name for uuid, name in pairs if name}
    by_name = parse_domstats(domain + domstats)
    return DomainListing(
        names=names,
        states={uuid: by_name[name] for uuid, name in names.items() if name in by_name},
        saved={uuid for uuid, name in pairs if not name},
        xml=split_documents(start + documents),
    )


def parse_domstats(text: str) -> dict[str, State]:
    """`virsh -q domstats --state` as a table of name to state."""
    found: dict[str, State] = {}
    name, numbers = "", dict[str, int]()
    for line in text.splitlines():
        if line.startswith("Domain: '"):
            name, numbers = line[len("Domain: '") : -1], {}
        elif "=" in line:
            key, _, value = line.strip().partition("=")
            numbers[key] = int(value)
            if {"state.state", "state.reason"} <= numbers.keys():
                found[name] = State(numbers["state.state"], numbers["state.reason"])
    return found


def parse_errors(text: str) -> dict[str, bool]:
    """`virsh -q domblkerror`: `vda: no space`, or `vda: unspecified error`, a line for each; `No errors found`."""
    pairs = (line.strip().partition(": ")[::2] for line in text.splitlines() if ": " in line)
    return {disk: error == "no space" for disk, error in pairs}


def parse_job(text: str) -> Job | None:
    """`virsh -q domjobinfo --rawstats`; None if it says that there is no job, or nothing."""
    pairs = (line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    values: dict[str, Any] = {key.strip(): value.strip() for key, value in pairs}
    if values.pop("Job type", "0") == "0":
        return None
    numbers = {key: int(value) for key, value in values.items() if value.isdigit()}
    return Job(numbers.get("operation", 0), numbers)


def split_documents(text: str) -> list[str]:
    """The output of several `dumpxml`: libvirt indents all that a domain contains, so its end stands alone."""
    return [part.strip() + "\n</domain>" for part in text.split("\n</domain>")[:-1]]
