"""Several paths to one disk: a session with the target at each of its portals, and the node over all of their disks.

A path is used once it is known to lead to the right disk, and, where this host writes, once this host is registered by
it: persistent reservations bind the single path. One that is lost is given up within seconds, by its session's time
(recovery_tmo) and then by device-mapper; nobody asks for it again but `watching`, and whoever attaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from storkit.core.errors import NotFound, ServiceUnreachable, StorkitError, TimedOut, Unsafe, raise_problems
from storkit.core.model import Offer
from storkit.system.block import devmapper, reservations
from storkit.system.block.devmapper import MappedNode
from storkit.system.timeouts import scaled
from storkit.tech import portals
from storkit.tech.iscsi import attached, initiator, sessiondisk
from storkit.tech.iscsi.initiator import InitiatorRecord, IscsiSession
from storkit.tech.iscsi.names import portal

END_TIMEOUT = scaled(60.0)
"""Seconds for all sessions of an attachment to end."""
Answers = Callable[[Offer, str], object]
"""Reads from a disk, or raises ServiceUnreachable."""


def log_in(record: Offer, described: Callable[[int], InitiatorRecord], told: bool, deadline: float) -> None:
    """Have a session at each portal that answers; one is enough. `described` says how to log in at the portal of a
    number; `told`: with secrets, which open-iscsi's records have otherwise.

    Raises ServiceUnreachable: nobody answers anywhere; what the targets say, where they refuse.
    """
    silent, refused, answering = list[str](), list[StorkitError](), list[int]()
    kept = [] if told else initiator.find_records(record.name)
    for number, text in enumerate(record.portals):
        place = portal(text)
        session = initiator.at_portal(record.name, *place)
        if session is not None and session.alive:
            continue
        node = described(number)
        if any(each.initiator == node.initiator for each in attached.sessions(record) if each != session):
            continue  # from before there were several: two sessions of one name are one too many for the target
        if told:
            initiator.write_record(node)  # also where nobody answers: the way back is the same
        elif place not in kept:
            hint = f"storkit attach {record.volume} on the host again"
            refused.append(NotFound(f"the record of volume {record.volume} at {text} is gone", hint))
            continue
        if reason := portals.probe(*place):
            silent.append(f"{text}: {reason}")
            continue
        try:
            _log_in_again(node, session, deadline)
        except StorkitError as error:
            refused.append(error)
            if isinstance(error, Unsafe) and number and told:
                answering.append(number)
    if answering and not attached.sessions(record):
        _log_in_by_the_first_name(described, answering[0], refused)
    if not any(each.alive for each in attached.sessions(record)):
        raise_problems(refused)
        message = f"no portal of volume {record.volume} answers ({'; '.join(silent)})"
        raise ServiceUnreachable(message, "storkit host check")


def _log_in_by_the_first_name(
    described: Callable[[int], InitiatorRecord], number: int, refused: list[StorkitError]
) -> None:
    """A target of an earlier storkit knows its clients by one name, whatever the portal."""
    node = replace(described(number), initiator=described(0).initiator)
    try:
        initiator.write_record(node)
        initiator.login(node)
    except StorkitError as error:
        refused[:] = [error]


def _log_in_again(node: InitiatorRecord, session: IscsiSession | None, deadline: float) -> None:
    """Wait for a session that is lost, or log in anew: the target may have other secrets by now, which a session that
    exists never learns. The disk has other paths meanwhile."""
    if session is not None:
        if initiator.recovered(node.target, deadline, session.id):
            return
        initiator.logout(session)
    initiator.login(node)


def disks(record: Offer, answers: Answers) -> list[str]:
    """The disks of the sessions, each verified, in the order of the portals. A path that does not answer is left out.

    Raises Unsafe, and ends the session: one shows another disk. ServiceUnreachable: none answers.
    """
    found, problems = list[str](), list[StorkitError]()
    for text in record.portals:
        session = initiator.at_portal(record.name, *portal(text))
        if session is None or not session.alive:
            continue
        try:
            found.append(_verified(record, session, answers))
        except (ServiceUnreachable, TimedOut) as error:
            problems.append(error)
        except (Unsafe, NotFound):
            if len(attached.sessions(record)) > 1:  # whoever uses the others keeps these alone
                initiator.logout(session)
            raise
    if not found:
        raise_problems(problems)
        message = f"the target {record.name} of volume {record.volume} has gone away again"
        raise ServiceUnreachable(message, "storkit status")
    return found


def _verified(record: Offer, session: IscsiSession, answers: Answers) -> str:
    if disk := sessiondisk.find(session):
        answers(record, disk)
    return sessiondisk.attach(session, record.volume, record.identity, record.size).path


def back(record: Offer, node: MappedNode, answers: Answers, key: int | None) -> list[str]:
    """The disks of sessions that go on, which the node does not use: verified, and registered with a writer's `key`."""
    used = devmapper.paths(node)
    found = []
    for text in record.portals:
        session = initiator.at_portal(record.name, *portal(text))
        if session is None or not session.alive or used.get(sessiondisk.find(session)):
            continue
        with suppress(StorkitError):  # it is lost again, or another disk: the next look finds it so, or better
            disk = _verified(record, session, answers)
            if key is None or _registered(disk, key):
                found.append(disk)
    return found


def _registered(disk: str, key: int) -> bool:
    """Register by a path. One by which the target lets nobody write has lost its right: the target refuses by itself,
    and what is read may go that way. Device-mapper takes no disk in that is read-only, where the node is not."""
    sessiondisk.rescan(disk)
    if not sessiondisk.readonly(disk):
        reservations.register(disk, key)
    return True


def hang_up(record: Offer) -> None:
    """End all sessions of an attachment. Raises ServiceUnreachable: one does not end."""
    deadline = time.monotonic() + END_TIMEOUT
    while session := attached.session(record):
        if time.monotonic() > deadline:
            message = f"the session of volume {record.volume} with {session.portal} does not end"
            raise ServiceUnreachable(message, "see whether iscsid logs in to it again: iscsiadm -m session")
        initiator.logout(session)


def give_up_after(record: Offer, seconds: int) -> None:
    """How long each session is waited for from now on, once the node has others: one that had no other waits longer."""
    for session in attached.sessions(record):
        initiator.give_up_after(session, seconds)


def reinstate(node: MappedNode, wanted: Sequence[str]) -> None:
    """Use those of these disks again that the kernel gave up."""
    states = devmapper.paths(node)
    for disk in wanted:
        if states.get(disk) is False:
            devmapper.reinstate(node, disk)
