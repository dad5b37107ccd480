"""Targets made by rtslib alone, with all that can be wrong with one, and storkit's initiator side against them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from storkit.core import codec
from storkit.core.errors import from_json
from storkit.core.model import AttachedHere, Attachment, Credential, Evidence, Offer, Secret, Volume
from storkit.tech.iscsi import names
from tests.lab import services
from tests.lab.host import Command, Host

SIZE = 64 << 20
USER, SECRET, MUTUAL_USER, MUTUAL_SECRET = "initiator", "a-secret-of-16-c", "target", "another-of-16-ch"
STATES = "cat /sys/class/iscsi_session/*/state 2>/dev/null"

_TARGETS = f"""\
import json, os, sys
import rtslib_fb as lio
def find(iqn):
    return next(iter(lio.Target(lio.FabricModule("iscsi"), iqn, mode="lookup").tpgs))
def make(iqn, serial, size, portals, lun, name):
    disk = lio.FileIOStorageObject(name, dev="/root/" + name, size=size, wwn=serial)
    tpg = lio.TPG(lio.Target(lio.FabricModule("iscsi"), iqn), 1)
    tpg.set_attribute("authentication", "1")
    tpg.enable = True
    for portal in portals:
        lio.NetworkPortal(tpg, portal, 3260)
    lio.LUN(tpg, lun, disk)
def allow(iqn, initiator, writable):
    tpg = find(iqn)
    acl = lio.NodeACL(tpg, initiator)
    acl.chap_userid, acl.chap_password = {USER!r}, {SECRET!r}
    acl.chap_mutual_userid, acl.chap_mutual_password = {MUTUAL_USER!r}, {MUTUAL_SECRET!r}
    for lun in tpg.luns:
        lio.MappedLUN(acl, lun.lun, lun, write_protect=not writable)
def deny(iqn, initiator):
    for acl in list(find(iqn).node_acls):
        if acl.node_wwn == initiator:
            acl.delete()
def protect(iqn, initiator, on):
    for acl in find(iqn).node_acls:
        if acl.node_wwn == initiator:
            for lun in acl.mapped_luns:
                lun.write_protect = on
def remove(iqn):
    disks = [lun.storage_object for lun in find(iqn).luns]
    lio.Target(lio.FabricModule("iscsi"), iqn, mode="lookup").delete()
    for disk in disks:
        disk.delete()
for verb, *args in json.loads(sys.argv[1]):
    globals()[verb](*args)
"""

WRITER = """\
import mmap, os, sys, time
block = mmap.mmap(-1, 4096)
with open("/run/written", "a", buffering=1) as written:
    while True:
        try:
            disk = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
            for number in range(10):
                os.pwrite(disk, block, 4096 * number)
            os.close(disk)
        except OSError:
            sys.exit(3)
        written.write(".\\n")
        time.sleep(0.05)
"""

_CLIENT = """\
import json, sys
from pathlib import Path
from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import StorkitError
from storkit.core.model import Offer, Volume
from storkit.tech.iscsi.attach import IscsiAttachments
from storkit.tech.iscsi.names import IscsiSettings
request = sys.argv[1]
request = json.loads(request if request.startswith("{") else Path(request).read_text())
site = Site(request["host"], Path("/var/lib/storkit"), Path("/run/storkit"), Path("/dev/storkit"))
for directory in (site.state, site.run):
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
client = IscsiAttachments(site, IscsiSettings())
loads = {"offers": list[Offer], "volumes": list[Volume] | None, "writers": list[str], "offsets": list[int] | None}
args = {name: codec.load(loads[name], value) for name, value in request["args"].items()}
try:
    print(json.dumps({"result": codec.dump(getattr(client, request["verb"])(**args))}))
except StorkitError as error:
    print(json.dumps({"error": error.to_json()}))
"""


def uuid(number: int) -> str:
    return f"5a0c7e11-2222-4333-8444-{number:012d}"


def iqn(number: int) -> str:
    return names.target_iqn(names.PREFIX, uuid(number))


def initiator(host: Host) -> str:
    return names.initiator_iqn(names.PREFIX, host.name)


def volume(number: int) -> Volume:
    return Volume(f"v{number}", uuid(number), SIZE)


class Targets:
    """The targets of one host: number N is of volume vN, unless a test says otherwise."""

    def __init__(self, host: Host) -> None:
        services.target(host)
        self.host = host

    def do(self, *requests: Sequence[Any]) -> None:
        self.host.python(_TARGETS, json.dumps(requests))

    def make(self, number: int, *clients: Host, writable: bool = False, **fields: Any) -> None:
        self.do(*self.making(number, *clients, writable=writable, **fields))

    def making(self, number: int, *clients: Host, writable: bool = False, serial: str = "", size: int = SIZE,
               portals: Sequence[str] = (), lun: int = 0, name: str = "") -> list[list[Any]]:  # fmt: skip
        """What `do` has to do for a target with these clients."""
        where = list(portals) or [self.host.address("san1")]
        made = ["make", iqn(number), serial or uuid(number), size, where, lun, name or f"storkit-v{number}"]
        paths = [(client, path) for client in clients for path in range(len(where))]
        return [
            made,
            *(["allow", iqn(number), names.path_iqn(initiator(client), path), writable] for client, path in paths),
        ]

    def offer(self, number: int, client: Host, writable: bool = False, **fields: Any) -> Offer:
        secret = Secret(fields.pop("secret", SECRET))
        mutual = {"mutual-user": Secret(MUTUAL_USER), "mutual-secret": Secret(fields.pop("mutual", MUTUAL_SECRET))}
        told: dict[str, Any] = {"size": SIZE, "portals": [f"{self.host.address('san1')}:3260"], **fields}
        name, who = f"v{number}", told.pop("identity", names.identity(uuid(number)))
        credential = Credential("chap", USER, secret, mutual)
        size = told.pop("size")
        return Offer(
            name, uuid(number), size, client.name, "iscsi", iqn(number), who, writable, credential=credential, **told
        )


def _answer(said: str) -> Any:
    answer = json.loads(said)
    if "error" in answer:
        raise from_json(answer["error"])
    return answer["result"]


class Client:
    """A host with storkit's initiator side."""

    def __init__(self, host: Host) -> None:
        services.iscsid(host)
        host.run(["modprobe", "dm-mod"])
        self.host = host

    def attach(self, *offers: Offer) -> list[Attachment]:
        return codec.load(list[Attachment], self._call("attach", offers=offers))

    def detach(self, *numbers: int) -> None:
        self._call("detach", volumes=[volume(number) for number in numbers])

    def claim(self, number: int, *writers: str) -> None:
        self._call("claim", volumes=[volume(number)], writers=list(writers))

    def find(self) -> list[Attachment]:
        return codec.load(AttachedHere, self._call("look", volumes=None)).attachments

    def evidence(self, number: int) -> Evidence:
        return codec.load(list[Evidence], self._call("evidence", volumes=[volume(number)], offsets=None))[0]

    def restore(self) -> None:
        self._call("restore")

    def spawn(self, verb: str, **args: Any) -> Command:
        """Start a verb in a process of its own; `result` has its outcome."""
        request = self._request(verb, args)
        name = f"/run/request-{abs(hash(request))}"
        self.host.put(request, name, 0o600)
        self.host.put(_CLIENT, "/run/client.py")
        argv = ["/usr/bin/python3", "/run/client.py", name]
        return self.host.spawn(argv, env=self.host.python_environment, timeout=240)

    def _request(self, verb: str, args: dict[str, Any]) -> str:
        return json.dumps({"host": self.host.name, "verb": verb, "args": codec.dump(args, reveal=True)})

    def result(self, command: Command) -> Any:
        return _answer(command.wait(timeout=240).stdout)

    def _call(self, verb: str, **args: Any) -> Any:
        return _answer(self.host.python(_CLIENT, self._request(verb, args), timeout=240))

    # what it sees

    def sh(self, command: str) -> str:
        return self.host.run(["sh", "-c", command], check=False, timeout=120).stdout.strip()

    def left(self) -> list[str]:
        """Whatever of an attachment is still on this host."""
        places = (
            "/sys/class/iscsi_session/* /sys/class/scsi_disk/* /dev/mapper/storkit:* /dev/storkit/* /dev/storkit/.* "
            "/etc/iscsi/nodes/* /etc/iscsi/static/* /etc/iscsi/ifaces/* /var/lib/storkit/iscsi-attached/* "
            "/run/storkit/iscsi-attach/* /run/storkit/iscsi-paths.pid"
        )
        return self.sh(f"for f in {places}; do [ -e $f -o -L $f ] && echo $f; done | grep -v '/[.]*$'").split()

    def write(self, number: int, count: int = 1) -> bool:
        """Write blocks of zeros at the stable path, past the page cache."""
        path = f"/dev/storkit/v{number}"
        argv = ["dd", "if=/dev/zero", f"of={path}", "bs=4096", f"count={count}", "oflag=direct", "conv=notrunc,nocreat"]
        self.host.run(["test", "-b", path])
        return self.host.run(argv, check=False, timeout=120).status == 0

    def writer(self, number: int) -> Command:
        """Something that goes on writing at the stable path, and ends with status 3 at the first error."""
        return self.host.spawn(["/usr/bin/python3", "-c", WRITER, f"/dev/storkit/v{number}"])

    def written(self) -> int:
        return self.host.run(["cat", "/run/written"], check=False).stdout.count(".")

    def states(self) -> list[str]:
        return self.sh(STATES).split()

    def wait_for_state(self, state: str, deadline: float = 90) -> None:
        self.host.wait_for(lambda: set(self.states()) == {state}, f"session that is {state}", deadline)

    def restart_iscsid(self) -> None:
        self.sh("kill -9 $(pidof iscsid)")
        services.iscsid(self.host)
