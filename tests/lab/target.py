"""The home half of a transport of block devices, called in a host of the lab: for the tests of that half alone."""

from __future__ import annotations

import json

from tests.lab.host import Host

MIB = 1 << 20
UUIDS = "0c9f3f0e-1111-2222-3333-4444{:08x}"

ISCSI = """\
from storkit.tech.iscsi import target, aptpl, lio, savefile
from storkit.tech.iscsi.exports import IscsiExports as Exports
from storkit.tech.iscsi.names import IscsiSettings as Settings
"""
NVME = """\
from storkit.tech.nvme import target
from storkit.tech.nvme.exports import NvmeExports as Exports
from storkit.tech.nvme.names import NvmeSettings as Settings
"""
HOME = """\
import json, os, sys, time
from pathlib import Path
from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.model import Client
from storkit.core.errors import StorkitError
from storkit.core.model import Volume
ADDRESS, SIZE, UUIDS = sys.argv[1:4]
for place in ("/var/lib/storkit", "/run/storkit", "/dev/storkit"):
    Path(place).mkdir(parents=True, exist_ok=True)
site = Site("s", Path("/var/lib/storkit"), Path("/run/storkit"), Path("/dev/storkit"), ADDRESS)
home = Exports(site, Settings())
def volume(n, **more):
    return Volume(f"v{n}", UUIDS.format(n), int(SIZE), "p", "s", path=f"/dev/mapper/source{n}", **more)
def clients(*names):
    return [Client(name, name == "s") for name in names]
def show(records):
    print(json.dumps(codec.dump(records, reveal=True)))
def rights():
    return {f"{e.volume}@{e.client}": "-rw"[(1 + e.writable) * e.live] for e in home.find_exports()}
def refused(call, *args):
    try:
        call(*args)
    except StorkitError as error:
        return f"{type(error).__name__}: {error.message} " + " ".join(str(p) for p in getattr(error, "problems", []))
    raise SystemExit("it was not refused")
"""


class Home:
    """Host s with `count` block devices that volumes are made on."""

    def __init__(self, host: Host, count: int, size: int = 4 * MIB, transport: str = ISCSI) -> None:
        self.host, self.size, self.count, self.transport = host, size, count, transport
        self.disk = host.add_disk(count * size + 16 * MIB)
        self.start()

    def start(self) -> None:
        """What a boot does not do by itself."""
        self.host.run(["modprobe", "-a", "dm_mod", "dm_flakey"])
        self.host.run(["mkdir", "-p", "/etc/rtslib-fb-target"])
        sectors = self.size // 512
        nodes = [f"source{n},,,rw,0 {sectors} linear {self.disk} {n * sectors}" for n in range(self.count)]
        self.host.run(["dmsetup", "create", "--concise"], input=";".join(nodes))
        self.host.run(["udevadm", "settle"])

    def python(self, code: str, timeout: float = 300, fresh: bool = False) -> str:
        arguments = (self.host.address(), str(self.size), UUIDS)
        return self.host.python(self.transport + HOME + code, *arguments, timeout=timeout, fresh=fresh)

    def rights(self) -> dict[str, str]:
        """VOLUME@CLIENT to r, w, or - if it is granted and not live."""
        return dict(json.loads(self.python("print(json.dumps(rights()))")))

    def read(self, n: int) -> str:
        """The first block of a volume, where it lies."""
        return self.host.run(["sh", "-c", f"dd if=/dev/mapper/source{n} bs=4k count=1 iflag=direct | md5sum"]).stdout
