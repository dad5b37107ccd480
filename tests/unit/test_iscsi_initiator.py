"""Node records, sessions in sysfs, iscsiadm's messages: of open-iscsi 2.1.8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from storkit.core.errors import CommandFailed, ServiceUnreachable, Unsafe, Unsupported
from storkit.core.model import Secret
from storkit.tech import portals
from storkit.tech.iscsi import initiator
from storkit.tech.iscsi.names import Chapped

TARGET = "iqn.2026-11.org.storkit:11111111-2222-4333-8444-000000000001"
OTHER = "iqn.2026-11.org.storkit:11111111-2222-4333-8444-000000000002"
INITIATOR = "iqn.2026-11.org.storkit:host.b"
CHAP = Chapped("user", Secret("one-two-three"), "mutual", Secret("four-five-six"))
CHAP_ONE_WAY = Chapped("user", Secret("one-two-three"))
NODE = initiator.InitiatorRecord(TARGET, "10.77.1.12", 3260, INITIATOR, CHAP)

NEW = Path(__file__).with_name("data") / "iscsiadm-2.1.8-node-new.txt"
"""The record that `iscsiadm -m node -o new` writes."""


def settings(record: str) -> dict[str, str]:
    lines = record.splitlines()
    assert lines[0].startswith("# BEGIN RECORD") and lines[-1] == "# END RECORD"
    return dict(line.split(" = ", 1) for line in lines[1:-1])


def test_a_record_is_whole() -> None:
    offload = {name for name in settings(NEW.read_text()) if name.startswith("iface.")}
    ours = settings(initiator.node_record(NODE))
    assert set(settings(NEW.read_text())) - offload - set(ours) == set()
    assert {"iface.iscsi_ifacename", "iface.transport_name"} <= set(ours)


def test_nobody_else_logs_in_or_scans_and_io_waits_for_the_target() -> None:
    found = settings(initiator.node_record(NODE))
    assert found["node.startup"] == found["node.conn[0].startup"] == found["node.session.scan"] == "manual"
    assert found["node.session.timeo.replacement_timeout"] == "-1"
    assert found["iface.initiatorname"] == INITIATOR and found["iface.iscsi_ifacename"] == "storkit"


def test_chap_both_ways_one_way_and_none() -> None:
    auth = "node.session.auth."
    both = settings(initiator.node_record(NODE))
    assert both[auth + "authmethod"] == "CHAP"
    assert both[auth + "username"] == "user" and both[auth + "password"] == "one-two-three"
    assert both[auth + "username_in"] == "mutual" and both[auth + "password_in"] == "four-five-six"
    one_way = settings(initiator.node_record(initiator.InitiatorRecord(TARGET, "h", 1, INITIATOR, CHAP_ONE_WAY)))
    assert auth + "password" in one_way and auth + "password_in" not in one_way
    none = settings(initiator.node_record(initiator.InitiatorRecord(TARGET, "h", 1, INITIATOR)))
    assert none[auth + "authmethod"] == "None" and auth + "password" not in none


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """open-iscsi as far as its database goes: an iscsiadm that was built for another directory."""
    nodes = tmp_path / "nodes"
    program = tmp_path / "bin" / "iscsiadm"
    program.parent.mkdir()
    program.write_bytes(b"\x7fELF" + os.fsencode(nodes) + b"\0")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(initiator, "_DATABASES", ("/nonexistent/nodes", str(nodes)))
    return nodes


def test_records_are_private_and_found_again(database: Path) -> None:
    assert initiator.find_records(TARGET) == []
    path = initiator.write_record(NODE)
    assert path == database / TARGET / "10.77.1.12,3260,1" / "storkit"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    initiator.write_record(initiator.InitiatorRecord(TARGET, "fd00::7", 3261, INITIATOR))
    assert initiator.find_records(TARGET) == [("10.77.1.12", 3260), ("fd00::7", 3261)]


def test_only_our_records_are_deleted(database: Path) -> None:
    initiator.write_record(NODE)
    foreign = database / TARGET / "10.77.1.12,3260,1" / "default"
    foreign.write_text("the administrator's")
    initiator.delete_records(TARGET)
    initiator.delete_records(OTHER)
    assert [file.name for file in database.rglob("*") if file.is_file()] == ["default"]
    foreign.unlink()
    initiator.write_record(NODE)
    initiator.delete_records(TARGET)
    assert list(database.iterdir()) == []


def test_without_open_iscsi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initiator, "which", lambda tool: None)
    with pytest.raises(Unsupported, match="iscsiadm is not installed") as caught:
        initiator.database()
    assert caught.value.hint == "apt install open-iscsi"


def session(root: Path, number: int, **values: str) -> None:
    """A session as Linux 6.1 shows it in sysfs."""
    device = root / "devices" / f"host{number}" / f"session{number}"
    kobject = device / "iscsi_session" / f"session{number}"
    connection = device / f"connection{number}:0" / "iscsi_connection" / f"connection{number}:0"
    for directory in (kobject, connection):
        directory.mkdir(parents=True)
    told = {"ifacename": "storkit", "initiatorname": INITIATOR, "targetname": TARGET, "state": "LOGGED_IN", **values}
    for name, value in told.items():
        (kobject / name).write_text(value + "\n")
    (kobject / "device").symlink_to(device)
    (connection / "persistent_address").write_text("10.77.1.12\n")
    (connection / "persistent_port").write_text("3260\n")
    (root / "class").mkdir(exist_ok=True)
    (root / "class" / f"session{number}").symlink_to(kobject)


def test_sessions_of_others_are_not_seen(tmp_path: Path) -> None:
    session(tmp_path, 1)
    session(tmp_path, 2, ifacename="default")
    session(tmp_path, 10, targetname=OTHER, state="FAILED")
    found = initiator.find_sessions(tmp_path / "class")
    assert [(one.id, one.target, one.alive) for one in found] == [(1, TARGET, True), (10, OTHER, False)]
    assert found[0].portal == "10.77.1.12:3260" and found[0].path.name == "session1"
    assert initiator.find_sessions(tmp_path / "none") == []


FAILED = """\
iscsiadm: Could not login to [iface: storkit, target: iqn, portal: 10.77.1.12,3260].
iscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)
iscsiadm: Could not log into all portals
"""


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (24, Unsafe),
        (19, Unsafe),
        (8, ServiceUnreachable),
        (4, ServiceUnreachable),
        (20, Unsupported),
        (6, CommandFailed),
    ],
)
def test_failed_logins_name_the_target_and_no_secret(status: int, kind: type[Exception]) -> None:
    error = initiator.explain_login(NODE, CommandFailed(["iscsiadm"], status, FAILED))
    assert type(error) is kind
    if kind in (Unsafe, ServiceUnreachable):
        assert TARGET in error.message and "10.77.1.12:3260" in error.message
    assert "one-two-three" not in f"{error.message} {error.hint}"


def test_the_telling_line_of_iscsiadm() -> None:
    wanted = "initiator reported error (24 - iSCSI login failed due to authorization failure)"
    assert initiator.last_line(FAILED) == wanted
    assert initiator.last_line("") == "no message"


def test_a_portal_that_nobody_listens_at() -> None:
    assert portals.probe("127.0.0.1", 1, 2.0) == "Connection refused"
