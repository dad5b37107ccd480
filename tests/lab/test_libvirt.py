"""Guests under libvirt on the lab's hosts: the hypervisor's verbs, each given to the host where it acts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from storkit.core.errors import StorkitError, from_json
from tests.guestkit import bootsector
from tests.lab import Host, Lab, iscsi, services
from tests.lab.host import Command

pytestmark = pytest.mark.lab

QEMU = 'security_driver = "none"\nuser = "root"\ngroup = "root"\nnamespaces = []\ncgroup_controllers = []\n'
VERBS = """\
import json, sys
from storkit.core.errors import StorkitError
from storkit.hosts.setup import Setup
from storkit.hosts.site import Performer, site
host, address, calls = sys.argv[1:]
setup = Setup(host, address)
performer = Performer(setup, site(setup))
results = []
for verb, args in json.loads(calls):
    try:
        results.append(performer.perform("hypervisor:libvirt", verb, args))
    except StorkitError as error:
        results.append({"error": error.to_json()})
print(json.dumps(results))
"""
UUID = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f10"
OTHER = "0f1d0c2e-5a44-4f7c-9d53-3c1a4b6f2f11"
VOLUME = "6c0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b99"
SWITCH = """\
      B8 0001    ; mov ax, 100h
      BA 0206    ; mov dx, 602h         PM1_EN of the PIIX4 where SeaBIOS puts it: the power button counts
      EF         ; out dx, ax
      BA 0006    ; mov dx, 600h         PM1_STS
wait: FB         ; sti
      F4         ; hlt                  until the next tick
      ED         ; in ax, dx
      F6C4 01    ; test ah, 1           the power button
      74 ~wait   ; jz wait
      B8 0020    ; mov ax, 2000h        SLP_EN, S5
      BA 0406    ; mov dx, 604h         PM1_CNT
      EF         ; out dx, ax
      F4         ; hlt
"""
"""A guest that does nothing but switch itself off when its power button is pressed."""
FOREIGN = """\
<domain type="qemu">
  <name>foreign</name>
  <uuid>5b0c4f0e-6f0c-4f6e-9d0a-0d4a0d0f4b11</uuid>
  <memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
</domain>
"""


DOCUMENT = """\
<domain type="qemu">
  <name>NAME</name>
  <description>made by hand</description>
  <memory unit="KiB">16640</memory>
  <os><type arch="x86_64" machine="pc">hvm</type><bootmenu enable="no"/></os>
  <clock offset="localtime"/>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" cache="none" io="threads"/>
      <source file="/srv/where-it-was"/>
      <target dev="hda" bus="ide"/>
    </disk>
    <memballoon model="none"/>
  </devices>
</domain>
"""
"""A guest's own, of which storkit changes where the disk is."""


class Hypervisor:
    """A host with libvirtd, and storkit's verbs on it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.put(QEMU, "/etc/libvirt/qemu.conf")
        services.libvirtd(host)

    def begin(self, *calls: tuple[str, dict[str, Any]]) -> Command:
        argv = ["/usr/bin/python3", "-c", VERBS, *self._words(calls)]
        return self.host.spawn(argv, env=self.host.python_environment)

    def _words(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        return [self.host.name, self.host.address(), json.dumps(calls)]

    def all(self, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
        """The results of verbs; of those that raise, the error."""
        results = json.loads(self.host.python(VERBS, *self._words(calls), timeout=300))
        return [from_json(one["error"]) if isinstance(one, dict) and "error" in one else one for one in results]

    def do(self, verb: str, **args: Any) -> Any:
        """The verb's result; raises the error that it raised there."""
        (result,) = self.all((verb, args))
        if isinstance(result, StorkitError):
            raise result
        return result

    def status(self) -> list[str]:
        return [state["status"] for state in self.do("find", guests=["g"])]

    def kill_libvirtd(self) -> None:
        self.host.run(["sh", "-c", "kill -9 $(pidof libvirtd)"])

    def start_libvirtd(self) -> None:
        self.host.run(["libvirtd", "--daemon"])
        self.host.wait_for(self.answers, "libvirtd", 60)

    def answers(self) -> bool:
        return self.host.run(["virsh", "-q", "version"], check=False).status == 0


def guest(name: str = "g", uuid: str = UUID, **more: Any) -> dict[str, Any]:
    disk = {"volume": "v", "uuid": VOLUME}
    return {"name": name, "uuid": uuid, "memory": 16 << 20, "hypervisor": "libvirt", "disks": [disk], **more}


def documented(name: str = "g", uuid: str = UUID) -> dict[str, Any]:
    disks = [{"volume": "v", "uuid": VOLUME, "target": "hda"}]
    return guest(name, uuid, document=DOCUMENT.replace("NAME", name), memory=16640 << 10, disks=disks)


def refused(error: Any, kind: str, words: str = "") -> None:
    assert isinstance(error, StorkitError) and error.kind == kind and words in error.message, error


def test_guest_lives_beside_domains_that_are_not_storkits(lab: Lab) -> None:
    here = Hypervisor(lab.host("a"))
    host = here.host
    host.put(FOREIGN, "/root/foreign.xml")
    host.run(["virsh", "define", "/root/foreign.xml"])
    before = host.run(["virsh", "dumpxml", "foreign"]).stdout
    switch = bootsector.assemble(SWITCH).ljust(510, b"\0") + b"\x55\xaa"
    host.put(switch.ljust(1 << 20, b"\0"), "/srv/disk")
    disks = [{"kind": "file", "path": "/srv/disk"}]
    psk = {"kind": "network", "protocol": "nbd", "export": "v", "server": "s", "port": 10809, "tls": "psk"}
    by_name: dict[str, Any] = {"name": "g"}
    defined = {"guest": guest(), "disks": disks}

    good, bad, clash, no_key, no_machine, found = here.all(
        ("check", {"guest": guest()}),
        ("check", {"guest": guest("foreign")}),
        ("define", {"guest": guest("foreign"), "disks": disks}),
        ("define", {"guest": guest(), "disks": [psk]}),
        ("define", {"guest": guest(machine="pc-i440fx-99.0"), "disks": disks}),
        ("find", {}),
    )
    assert good == [] and bad[0].startswith("libvirt here has a domain foreign")
    refused(clash, "conflict", "is not this guest")
    refused(no_key, "unsupported", "certificates only")
    refused(no_machine, "unsupported", "pc-i440fx-99.0")
    assert found == []
    assert host.run(["virsh", "-q", "list", "--all", "--name"]).stdout.split() == ["foreign"]

    _, started, again, same, other, undefine, retire, twin, lock = here.all(
        ("define", defined),
        ("start", by_name),
        ("start", by_name),
        ("define", defined),
        ("define", {"guest": guest(memory=32 << 20), "disks": disks}),
        ("undefine", by_name),
        ("retire", by_name),
        ("define", {"guest": documented("twin", OTHER), "disks": disks}),
        ("start", {"name": "twin"}),
    )
    assert started["status"] == again["status"] == "running" and started["machine"].startswith("pc-i440fx-")
    assert same.endswith("/libvirt/g/domain.xml") and twin.endswith("/libvirt/twin/domain.xml")
    for error in (other, undefine):
        refused(error, "conflict")
    refused(retire, "unsafe", "it is running here")
    refused(lock, "unsafe", "in use by guest g")
    kept = host.run(["virsh", "dumpxml", "twin"]).stdout
    for words in (
        OTHER,
        "made by hand",
        "16640</memory>",
        "localtime",
        "io='threads'",
        "file='/srv/disk'",
        "dev='hda'",
    ):
        assert words in kept, (words, kept)
    here.do("undefine", name="twin")

    here.kill_libvirtd()
    found, retire = here.all(("find", {"guests": ["g"]}), ("retire", by_name))
    assert [state["status"] for state in found] == ["unknown"]
    refused(retire, "unsafe", "so it may run")
    here.start_libvirtd()
    found, stopped, ended, _, left = here.all(
        ("find", {}), ("stop", {"name": "g", "timeout": 90}), ("find", {}), ("undefine", by_name), ("find", {})
    )
    assert stopped is None
    assert [[state["status"] for state in states] for states in (found, ended, left)] == [["running"], ["stopped"], []]
    assert host.run(["ls", "/var/lib/storkit/libvirt"]).stdout == ""
    assert host.run(["virsh", "dumpxml", "foreign"]).stdout == before


@pytest.mark.slow
def test_guest_sleeps_and_goes_on_where_it_was(lab: Lab) -> None:
    here = Hypervisor(lab.host("a"))
    host = here.host
    host.put(bootsector.boot_sector(rest=1).ljust(bootsector.SIZE, b"\0"), "/lab/own/disk")
    disks = [{"kind": "file", "path": "/lab/own/disk"}]
    disk, saved = host.own / "disk", {
        "guest": UUID, "name": "g", "hold": OTHER, "generations": {VOLUME: 1}, "hypervisor": "libvirt",
        "fingerprint": {},
    }  # fmt: skip

    def writes_on() -> None:
        before = bootsector.last_record(disk)
        host.wait_for(lambda: bootsector.last_record(disk) > before + 20, "records of the guest", 90, every=1)

    here.all(("define", {"guest": guest(), "disks": disks}), ("start", {"name": "g"}))
    writes_on()
    save: tuple[str, dict[str, Any]] = ("save", {"name": "g", "saved": saved})
    said, back, found = here.all(save, ("unsave", save[1]), ("find", {}))
    assert said["hold"] == OTHER and said["size"] > 1 << 18 and back is None
    assert found[0]["status"] == "running"
    writes_on()
    said, again, found, told, moved = here.all(
        save, save, ("find", {}), ("saved", {"name": "g"}), ("load", {"name": "g", "hold": UUID})
    )
    assert said == again == told and found[0]["status"] == "stopped"
    refused(moved, "conflict", "another time")
    asleep = disk.read_bytes()
    load, found, _, ended = here.all(
        ("load", {"name": "g", "hold": OTHER}), ("find", {}), ("retire", {"name": "g"}), ("find", {})
    )
    assert (load, found[0]["status"], ended[0]["status"]) == (None, "arrived", "stopped")
    assert disk.read_bytes() == asleep, "it ran before it was let go on"
    here.all(("load", {"name": "g", "hold": OTHER}), ("resume", {"name": "g"}), ("spend", {"name": "g", "guest": UUID}))
    writes_on()
    refused(here.all(("saved", {"name": "g"}))[0], "not-found")
    here.do("stop", name="g", force=True)
    assert bootsector.verify(disk).clean


@pytest.mark.slow
def test_guest_moves_and_whoever_moves_it_is_killed(lab: Lab, tmp_path: Path) -> None:
    hosts = lab.hosts("a", "b", "s")
    s = hosts[2]
    disk = s.add_disk(bootsector.SIZE)
    s.put(bootsector.boot_sector(), "/root/boot")
    s.run(["dd", "if=/root/boot", f"of={disk}", "conv=notrunc,fsync"])
    iqn = iscsi.export(s, "disk", disk, clients=hosts[:2])
    sources = [[{"kind": "block", "path": iscsi.login(host, s, iqn)}] for host in hosts[:2]]
    a, b = (Hypervisor(host) for host in hosts[:2])

    def copy() -> Path:
        # Past the page cache, which knows nothing of what the target writes.
        s.run(["dd", f"if={disk}", "of=/lab/own/copy", "bs=1M", "iflag=direct"])
        return s.own / "copy"

    def writes_on() -> None:
        before = bootsector.last_record(copy())
        s.wait_for(lambda: bootsector.last_record(copy()) > before + 20, "records of the guest", 90, every=1)

    def under_way(destination: Hypervisor) -> None:
        destination.host.wait_for(lambda: destination.status() == ["incoming"], "guest to come in", 90)

    _, started = a.all(("define", {"guest": documented(), "disks": sources[0]}), ("start", {"name": "g"}))
    machine = started["machine"]
    writes_on()
    fingerprint = ("fingerprint", {"guest": {**documented(), "machine": machine}})
    receive: tuple[str, dict[str, Any]] = ("receive", {"name": "g", "same_machine": False})
    here = ("define", {"guest": documented(), "disks": sources[1], "machine": machine})
    _, alike, to = b.all(here, fingerprint, receive)
    assert a.all(fingerprint) == [alike]

    # Called off: it stays, and nothing of it is left at the destination.
    moving = a.begin(("send", {"name": "g", "uri": to}))
    under_way(b)
    refused(b.all(("resume", {"name": "g"}))[0], "unsafe", "incoming")
    moving.kill(9)
    _, found = a.all(("cancel", {"name": "g"}), ("find", {}))
    assert found[0]["status"] == "running"
    _, found, again = b.all(("retire", {"name": "g"}), ("find", {}), receive)
    assert found[0]["status"] == "stopped" and again == to
    writes_on()

    # Killed and sent again: the migration has gone on without its coordinator.
    moving = a.begin(("send", {"name": "g", "uri": to}))
    under_way(b)
    moving.kill(9)
    moved, found = a.all(("send", {"name": "g", "uri": to}), ("find", {}))
    assert moved["total_ms"] > 0 and moved["downtime_ms"] > 0
    assert (found[0]["status"], b.status()) == ("migrated", ["arrived"])
    stands = bootsector.last_record(copy())
    assert a.do("send", name="g", uri=to) == moved
    assert bootsector.last_record(copy()) == stands, "it ran before it was let go on"
    _, found = b.all(("resume", {"name": "g"}), ("find", {}))
    assert found[0]["status"] == "running"
    writes_on()
    _, _, found = a.all(("retire", {"name": "g"}), ("undefine", {"name": "g"}), ("find", {}))
    assert found == []

    # Back, and ended.
    _, to = a.all(("define", {"guest": documented(), "disks": sources[0], "machine": machine}), receive)
    b.do("send", name="g", uri=to)
    a.do("resume", name="g")
    writes_on()
    a.do("stop", name="g", force=True)
    report = bootsector.verify(copy())
    assert report.clean, report
