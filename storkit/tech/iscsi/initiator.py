"""The initiator of the kernel, through open-iscsi: node records, logins and logouts of storkit's own targets.

Each of storkit's sessions has a node record (iscsid(8), iscsi_discovery(8)) of its own, written whole, 0600, where
iscsiadm keeps them: no process for every setting, and secrets in no command line. Records have an interface named
`storkit` with an initiator name of its own, so that the host's own initiator name, records and sessions are never used.
iscsid reads a record again when it is restarted, so it lives for as long as the session. Sessions are read from sysfs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storkit.core.errors import (
    CommandFailed,
    Conflict,
    ServiceUnreachable,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
)
from storkit.system import unixsockets
from storkit.system.files import PARTIAL, write_atomic
from storkit.system.run import run, which
from storkit.system.timeouts import scaled
from storkit.tech import portals
from storkit.tech.iscsi import kill
from storkit.tech.iscsi.names import Chapped, portal

INTERFACE = "storkit"
PACKAGE = "open-iscsi"
TPGT = 1
SESSIONS = Path("/sys/class/iscsi_session")
_SOCKET = "@ISCSIADM_ABSTRACT_NAMESPACE"
_DATABASES = ("/etc/iscsi/nodes", "/var/lib/iscsi/nodes")
_LOGIN_TIMEOUT = scaled(90.0)
_LOGOUT_TIMEOUT = scaled(30.0)
RECOVERY = scaled(45.0)
"""Seconds for a lost session whose target is back: iscsid's login timeout (15 s), its pause, and TCP's own back-off."""
_LOOK = 0.1
PATH_PING = (2, 3)
"""As InitiatorRecord.ping, for one path of several."""

# iscsiadm's exit statuses (open-iscsi's include/iscsi_err.h)
_TRANSPORT, _LOGIN, _TRANSPORT_TIMEOUT, _PDU_TIMEOUT = 4, 5, 8, 11
_SESSION_EXISTS, _DAEMON_LOST, _FATAL_LOGIN, _NO_DAEMON, _NO_OBJECTS = 15, 18, 19, 20, 21
_NOT_FOUND, _INTERNAL, _LOGIN_AUTH, _NOT_CONNECTED = 2, 9, 24, 32


@dataclass(frozen=True, slots=True)
class InitiatorRecord:
    """A target at one portal, and how to log in."""

    target: str
    address: str
    port: int
    initiator: str
    chap: Chapped | None = None
    login_timeout: int = 15
    replacement_timeout: int = -1
    """Seconds that I/O waits for a lost session before it fails; -1: for as long as it takes."""
    ping: tuple[int, int] = (5, 5)
    """After how many seconds without a word the target is asked whether it is there, and how many it has to answer."""

    @property
    def portal(self) -> str:
        return portals.name(self.address, self.port)


@dataclass(frozen=True, slots=True)
class IscsiSession:
    """A session as the kernel has it."""

    id: int
    target: str
    initiator: str
    portal: str
    """As it was logged in to: ADDRESS:PORT or [V6]:PORT."""
    state: str
    """LOGGED_IN, FAILED (being recovered) or FREE."""
    path: Path
    """Its device in sysfs; the SCSI targets are below."""

    @property
    def alive(self) -> bool:
        return self.state == "LOGGED_IN"


# Records


def node_record(node: InitiatorRecord) -> str:
    """A whole node record: what is left out would be zero, not open-iscsi's default.

    Nothing in it comes from iscsid.conf, so all hosts behave alike. `startup` and `scan` are manual: nobody but storkit
    logs in, and no logical unit appears that was not asked for. The target is asked every 5 seconds whether it is there
    (noop_out): a session whose connection was lost in silence is recovered after 10. Where there are other paths
    (PATH_PING), it is sooner.
    """
    auth = {"node.session.auth.authmethod": "None"}
    if node.chap is not None:
        auth = {
            "node.session.auth.authmethod": "CHAP",
            "node.session.auth.username": node.chap.user,
            "node.session.auth.password": node.chap.secret.reveal(),
        }
        if node.chap.mutual_user:
            auth["node.session.auth.username_in"] = node.chap.mutual_user
            auth["node.session.auth.password_in"] = node.chap.mutual_secret.reveal()
    settings = {
        "node.name": node.target,
        "node.tpgt": TPGT,
        "node.startup": "manual",
        "node.leading_login": "No",
        "iface.iscsi_ifacename": INTERFACE,
        "iface.initiatorname": node.initiator,
        "iface.transport_name": "tcp",
        "node.discovery_port": 0,
        "node.discovery_type": "static",
        "node.session.initial_cmdsn": 0,
        "node.session.initial_login_retry_max": 1,
        "node.session.xmit_thread_priority": -20,
        "node.session.cmds_max": 128,
        "node.session.queue_depth": 64,
        "node.session.nr_sessions": 1,
        **auth,
        "node.session.auth.chap_algs": "SHA3-256,SHA256,SHA1,MD5",
        "node.session.timeo.replacement_timeout": node.replacement_timeout,
        "node.session.err_timeo.abort_timeout": 15,
        "node.session.err_timeo.lu_reset_timeout": 30,
        "node.session.err_timeo.tgt_reset_timeout": 30,
        "node.session.err_timeo.host_reset_timeout": 60,
        "node.session.iscsi.FastAbort": "Yes",
        "node.session.iscsi.InitialR2T": "No",
        "node.session.iscsi.ImmediateData": "Yes",
        "node.session.iscsi.FirstBurstLength": 262144,
        "node.session.iscsi.MaxBurstLength": 16776192,
        "node.session.iscsi.DefaultTime2Retain": 0,
        "node.session.iscsi.DefaultTime2Wait": 2,
        "node.session.iscsi.MaxConnections": 1,
        "node.session.iscsi.MaxOutstandingR2T": 1,
        "node.session.iscsi.ERL": 0,
        "node.session.scan": "manual",
        "node.session.reopen_max": 0,
        "node.conn[0].address": node.address,
        "node.conn[0].port": node.port,
        "node.conn[0].startup": "manual",
        "node.conn[0].tcp.window_size": 524288,
        "node.conn[0].tcp.type_of_service": 0,
        "node.conn[0].timeo.logout_timeout": 5,
        "node.conn[0].timeo.login_timeout": node.login_timeout,
        "node.conn[0].timeo.auth_timeout": 45,
        "node.conn[0].timeo.noop_out_interval": node.ping[0],
        "node.conn[0].timeo.noop_out_timeout": node.ping[1],
        "node.conn[0].iscsi.MaxXmitDataSegmentLength": 0,
        "node.conn[0].iscsi.MaxRecvDataSegmentLength": 262144,
        "node.conn[0].iscsi.HeaderDigest": "None",
        "node.conn[0].iscsi.DataDigest": "None",
        "node.conn[0].iscsi.IFMarker": "No",
        "node.conn[0].iscsi.OFMarker": "No",
    }
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    return f"# BEGIN RECORD {INTERFACE}\n{lines}# END RECORD\n"


def database() -> Path:
    """Where iscsiadm keeps node records: it was told when it was built. Raises Unsupported: it is not installed."""
    program = which("iscsiadm")
    if program is None:
        raise Unsupported("iscsiadm is not installed", f"apt install {PACKAGE}")
    built = Path(program).read_bytes()
    found = [Path(place) for place in _DATABASES if place.encode() + b"\0" in built]
    found += [Path(place) for place in _DATABASES if Path(place).is_dir()]
    return found[0] if found else Path(_DATABASES[0])


def write_record(node: InitiatorRecord) -> Path:
    """Write, or replace, the record of a node."""
    path = database() / node.target / f"{node.address},{node.port},{TPGT}" / INTERFACE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, node_record(node))
    return path


def find_records(target: str) -> list[tuple[str, int]]:
    """The portals, as address and port, at which storkit has a record of this target."""
    places = (database() / target).glob(f"*,*,{TPGT}/{INTERFACE}")
    return sorted((match[1], int(match[2])) for place in places if (match := _PLACE.fullmatch(place.parent.name)))


_PLACE = re.compile(rf"(.+),([0-9]+),{TPGT}")


def delete_records(target: str) -> None:
    """Delete storkit's records of a target; those of others, at the same target, stay."""
    directory = database() / target
    for place in directory.glob("*,*,*"):
        for file in (place / INTERFACE, place / f"{INTERFACE}{PARTIAL}"):
            file.unlink(missing_ok=True)
        _remove_if_empty(place)
    _remove_if_empty(directory)


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise


# Sessions


def find_sessions(root: Path = SESSIONS) -> list[IscsiSession]:
    """The sessions that were logged in to through storkit's interface, by number."""
    found = []
    for directory in root.glob("session*"):
        try:
            if _value(directory, "ifacename") == INTERFACE:
                found.append(_session(directory))
        except OSError:
            continue  # it went while we looked
    return sorted(found, key=lambda session: session.id)


def _session(directory: Path) -> IscsiSession:
    device = (directory / "device").resolve(strict=True)
    where = ""
    for connection in device.glob("connection*/iscsi_connection/*"):
        where = portals.name(_value(connection, "persistent_address"), int(_value(connection, "persistent_port") or 0))
    return IscsiSession(
        int(directory.name.removeprefix("session")),
        _value(directory, "targetname"),
        _value(directory, "initiatorname"),
        where,
        _value(directory, "state"),
        device,
    )


def _value(directory: Path, name: str) -> str:
    text = (directory / name).read_text().strip()
    return "" if text == "(null)" else text


def check_daemon() -> None:
    """See to it that iscsid answers. Raises Unsupported if it cannot be started here."""
    if _listening():
        return
    database()
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "iscsid.socket"], package="systemd")
        if _listening():
            return
        raise Unsupported("iscsid does not run", "systemctl status iscsid.socket iscsid.service")
    raise Unsupported("iscsid does not run", "start it: iscsid")


def missing_daemon() -> Unsupported | None:
    """Why `check_daemon` would fail; it starts nothing."""
    if _listening() or Path("/run/systemd/system").is_dir() or which("iscsiadm") is None:
        return None  # where it is not installed, that is what is wrong
    return Unsupported("iscsid does not run", "start it: iscsid")


def _listening() -> bool:
    return unixsockets.bound(_SOCKET)


def login(node: InitiatorRecord) -> None:
    """Log in by the record of this node, which must be written; logged in already is fine.

    Raises ServiceUnreachable: no such target at the portal. Unsafe: one side does not accept the other's CHAP secret,
    or the target does not let this host in.
    """
    argv = ["iscsiadm", "-m", "node", "-T", node.target, "-p", f"{node.portal},{TPGT}", "--login"]
    try:
        done = run(argv, ok=(0, _SESSION_EXISTS), timeout=_LOGIN_TIMEOUT, package=PACKAGE, locked=True)
        if done.status == _SESSION_EXISTS and not at_portal(node.target, node.address, node.port):
            end_logins(node.target, [(node.address, node.port)])
            done = run(argv, ok=(0, _SESSION_EXISTS), timeout=_LOGIN_TIMEOUT, package=PACKAGE, locked=True)
    except CommandFailed as failure:
        raise explain_login(node, failure) from failure
    if done.status == _SESSION_EXISTS and not at_portal(node.target, node.address, node.port):
        raise Conflict(
            f"iscsid holds on to a session to {node.target} that is gone",
            "restart it, which no other session suffers from: systemctl restart iscsid",
        )


def at_portal(target: str, address: str, port: int) -> IscsiSession | None:
    """The session with a target at one of its portals."""
    sessions = [found for found in find_sessions() if found.target == target]
    return next((found for found in sessions if found.portal and portal(found.portal) == (address, port)), None)


def give_up_after(session: IscsiSession, seconds: int) -> None:
    """How long I/O waits for this session while it is lost, -1: as long as it takes; also for one that was made with
    another time. Of one that is lost just now it cannot be changed (EBUSY)."""
    with suppress(OSError):
        (SESSIONS / f"session{session.id}" / "recovery_tmo").write_text("off" if seconds < 0 else str(seconds))


def end_logins(target: str, places: Iterable[tuple[str, int]] | None = None) -> None:
    """End what iscsid is still logging in to by a target's node records (at these portals, by address and port; None:
    at all), for a command that was killed: the session has no name in sysfs until it is logged in, and iscsid does not
    call a login off. None is fine.

    Raises ServiceUnreachable: the target lets it wait.
    """
    for address, port in (find_records(target) if places is None else places) if _listening() else ():
        if not _log_out(target, portals.name(address, port), _LOGIN_TIMEOUT):
            message = f"iscsid is still logging in to {target}, for a command that was killed"
            raise ServiceUnreachable(message, "wait, or: systemctl restart iscsid, which no other session suffers from")


def _log_out(target: str, where: str, timeout: float) -> bool:
    """End the session of a node record, or see that there is none; False: iscsid is logging in to it all the time."""
    argv = ["iscsiadm", "-m", "node", "-T", target, "-p", f"{where},{TPGT}", "--logout"]
    ended, deadline = (0, _NO_OBJECTS, _NOT_FOUND, _NOT_CONNECTED), time.monotonic() + timeout
    while run(argv, ok=(*ended, _INTERNAL), timeout=timeout, package=PACKAGE, locked=True).status not in ended:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)  # nothing tells when it has ended
    return True


def explain_login(node: InitiatorRecord, failure: CommandFailed) -> StorkitError:
    """What a failed login means, by iscsiadm's exit status."""
    where = f"target {node.target} at {node.portal}"
    said = last_line(failure.stderr)
    if failure.status in (_LOGIN_AUTH, _FATAL_LOGIN):
        return Unsafe(
            f"{where} and this host do not accept each other: another CHAP secret, or no right to log in ({said})",
            "detach and attach it again: storkit fetches the secrets anew",
        )
    if failure.status in (_TRANSPORT, _LOGIN, _TRANSPORT_TIMEOUT, _PDU_TIMEOUT):
        return ServiceUnreachable(
            f"{where} takes no login, though its port is open: is the volume exported? ({said})", "storkit status"
        )
    if failure.status in (_NO_DAEMON, _DAEMON_LOST):
        return Unsupported("iscsid does not answer", "start it: systemctl restart iscsid, or: iscsid")
    return failure


def last_line(stderr: str) -> str:
    """The line of iscsiadm's messages that says most: the last but its summary."""
    lines = [line.removeprefix("iscsiadm: ") for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Could not log into all portals")]
    return (telling or lines or ["no message"])[-1]


def recovered(target: str, deadline: float, id: int | None = None) -> bool:
    """Wait for iscsid to take up a lost session of this target again (any, or that of this number), which it tries
    every few seconds; whether it did until `deadline`, by time.monotonic().

    A session that goes on is in sysfs and in no event. While a network was cut and healed under Linux 6.1, the last on
    NETLINK_ISCSI was the login's answer on its way to iscsid, which comes before; and there was no uevent.
    """
    while not (
        alive := any(
            found.alive and id in (None, found.id) for found in find_sessions() if found.target == target
        )
    ):  # fmt: skip
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK)
    return alive


def logout(session: IscsiSession, timeout: float = _LOGOUT_TIMEOUT) -> None:
    """End a session, and with it its SCSI devices; gone already is fine. Also one that is being recovered.

    By its node record: `iscsiadm -m session` wants a record of the interface, and the discoveries of the host's own
    administrator would begin to use that.
    """
    try:
        _log_out(session.target, session.portal, timeout)
    except TimedOut:
        if session.alive:
            raise
    # An iscsid that was restarted takes its sessions up one by one, and waits for the targets of those that are lost.
    if any(left.id == session.id for left in find_sessions()):
        kill.destroy(session.id)
