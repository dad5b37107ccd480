"""NFS where the server stands in the way: squashed root, read-only, full, elsewhere, old; and storkit killed there."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from storkit.core.errors import Conflict, ServiceUnreachable, StorkitError, Unsafe
from storkit.core.model import Volume
from tests.contract.transport_nfs import NFS_CONF, NfsRig
from tests.lab import Host, Lab, services
from tests.lab.killing import KILLED
from tests.lab.remote import Hosts

pytestmark = pytest.mark.lab

MIB = 1 << 20
SMALL = "/srv/small"
UUID = "6b1e2a52-53cc-4bbf-8df8-bb4e4dfb8a01"


@pytest.fixture
def rig(lab: Lab, request: pytest.FixtureRequest) -> Iterator[NfsRig]:
    hosts = Hosts(lab)
    yield getattr(request, "param", NfsRig)(hosts)
    hosts.discard()


class Small(NfsRig):
    """The pool is on a file system of 64 MiB."""

    def pool_settings(self, host: Host) -> dict[str, Any]:
        if host.run(["mountpoint", "-q", SMALL], check=False).status:
            disk = host.add_disk(64 * MIB)
            host.run(["mkfs.ext4", "-q", "-m", "0", disk])
            host.run(["mkdir", "-p", SMALL])
            host.run(["mount", disk, SMALL])
        return {"path": SMALL}


class Nas(NfsRig):
    """The pool is on host s, which exports a directory and knows nothing of storkit."""

    settings = MappingProxyType({"enforce": "locks"})
    words = "rw,no_subtree_check"

    def pool_settings(self, host: Host) -> dict[str, Any]:
        nas = self._hosts.lab.host("s")
        nas.run(["mkdir", "-p", "/export/guests"])
        nas.put(f"/export/guests 10.77.0.0/24({self.words})\n", "/etc/exports")
        services.nfs_server(nas)
        nas.run(["exportfs", "-r"])
        return {"server": f"{nas.address()}:/export/guests"}


class ReadOnlyNas(Nas):
    words = "ro,no_root_squash,no_subtree_check"


class Version3(NfsRig):
    settings = MappingProxyType({"version": "3"})

    def prepare(self, host: Host) -> None:
        super().prepare(host)
        host.put(NFS_CONF.replace("vers3=n", "vers3=y"), "/etc/nfs.conf")
        host.run(["modprobe", "-a", "nfsv3", "lockd"])
        if host.run(["pidof", "rpcbind"], check=False).status:
            host.run(["mkdir", "-p", "/run/rpcbind"])
            host.run(["rpcbind", "-w"])


class Version3Writers(Version3):
    settings = MappingProxyType({"version": "3", "v3_writers": True, "options": "nolock"})


def attach(rig: NfsRig, volume: Volume, *writers: str) -> Any:
    """The volume attached on b."""
    rig.home.export([volume], [rig.b])
    rig.home.set_writers([volume], list(writers))
    return rig.far.attach(rig.home.offers([volume], "b"))[0]


@pytest.mark.parametrize("rig", [Nas, pytest.param(ReadOnlyNas, marks=pytest.mark.slow)], indirect=True)
def test_a_server_that_squashes_root_or_exports_read_only_is_named(rig: NfsRig) -> None:
    with pytest.raises(Conflict, match=r"lets host a change nothing in .*:/export/guests") as refused:
        rig.volume("v")
    assert "no_root_squash" in refused.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("rig", [Small], indirect=True)
def test_a_full_file_system_fails_a_write_and_takes_it_once_there_is_room(rig: NfsRig, lab: Lab) -> None:
    a = lab.host("a")
    volume, image = rig.volume("v", size=8 * MIB), rig.volume("image", size=8 * MIB)
    a.run(["dd", "if=/dev/urandom", f"of={image.path}", "bs=1M", "count=8", "conv=notrunc"])
    there = attach(rig, volume, "b")
    with rig.access(there) as disk:
        disk.write(0, b"x" * 4096)
        a.run(["sh", "-c", f"dd if=/dev/zero of={SMALL}/ballast bs=1M; sync"], check=False)
        with pytest.raises(OSError) as full:
            disk.write(4 * MIB, b"y" * 4096)
        assert full.value.errno == errno.ENOSPC
        # What storkit would add is refused as well, and nothing of it is left.
        with pytest.raises(StorkitError, match=r"room|space"):
            rig._pool.clone(image, [replace(image, name="w", uuid=UUID, path="")])
        assert [one.name for one in rig._pool.find(None)] == ["image", "v"]
        a.run(["rm", f"{SMALL}/ballast"])
        disk.write(4 * MIB, b"y" * 4096)
        assert disk.read(0, 4096) == b"x" * 4096


def test_a_file_that_was_exchanged_on_the_server_is_not_taken_for_the_volume(rig: NfsRig, lab: Lab) -> None:
    a = lab.host("a")
    volume = rig.volume("v")
    attach(rig, volume, "b")
    a.run(["sh", "-c", f"cp {volume.path} /srv/copy; rm {volume.path}; d=$(dirname {volume.path}); "
           "rm $d/.exports/*/v.raw; mv /srv/copy $d/v.raw; chown nobody $d/v.raw; "
           "for e in $d/.exports/*; do ln $d/v.raw $e/; done"])  # fmt: skip
    with pytest.raises((Unsafe, Conflict)):
        rig.far.evidence([volume])
    rig.far.detach([volume])
    assert rig.far.find_attachments() == []


@pytest.mark.slow
def test_a_server_that_answers_at_one_address_only(rig: NfsRig, lab: Lab) -> None:
    a = lab.host("a")
    volume = rig.volume("v")
    rig.home.export([volume], [rig.b])
    (offer,) = rig.home.offers([volume], "b")
    others = [address for network in ("san1", "san2", "lan") if (address := a.address(network)) != offer.server]
    a.run(["rpc.nfsd", "0"])
    a.run(["rpc.nfsd", "--host", others[0], "8"])
    started = time.monotonic()
    with pytest.raises(ServiceUnreachable, match=f"no NFS server answers at {offer.server}"):
        rig.far.attach([offer])
    assert time.monotonic() - started < 30
    assert not rig.has_path(rig.far, "v")
    a.run(["rpc.nfsd", "0"])
    a.run(["rpc.nfsd", "8"])
    rig.far.attach([offer])


@pytest.mark.parametrize("rig", [Version3], indirect=True)
def test_writing_over_nfs_3_has_to_be_asked_for(rig: NfsRig) -> None:
    volume = rig.volume("v")
    rig.home.export([volume], [rig.b])
    with pytest.raises(Unsafe, match="NFS 3"):
        rig.home.set_writers([volume], ["b"])


@pytest.mark.slow
@pytest.mark.parametrize("rig", [Version3Writers], indirect=True)
def test_nfs_3_works_where_it_was_asked_for(rig: NfsRig, lab: Lab) -> None:
    volume = rig.volume("v")
    there = attach(rig, volume, "b")
    assert "vers=3" in lab.host("b").run(["cat", "/proc/mounts"]).stdout
    with rig.access(there) as disk:
        disk.write(0, b"x" * 4096)
        rig.home.set_writers([volume], [])
        with pytest.raises(OSError):
            disk.write(0, b"y" * 4096)
        assert disk.read(0, 4096) == b"x" * 4096


WALK = """\
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from storkit.core import codec, registry
from storkit.core.model import Client
from storkit.core.model import Volume
from storkit.hosts.setup import Setup
from storkit.hosts.site import site
A, B, C, STEP = *sys.argv[2:5], int(sys.argv[5])
pool_class, nfs_class = registry.pool("nfs"), registry.transport("nfs")
place = site(Setup("a", A, "/var/lib/storkit"))
pool, nfs = pool_class(place, pool_class.Settings(), "p"), nfs_class(place, nfs_class.Settings())
(volume,) = pool.create([Volume("v", "8c9f3f0e-1111-2222-3333-444400000001", 1 << 20)])
clients = [Client("b", False, B), Client("c", False, C), Client("a", True, A)]
PLACES = ("/proc/net/rpc", "/proc/fs/nfsd", "/var/lib/storkit", "/etc/exports.d", "/run/storkit", "/dev/storkit")
def rights():
    return {e.client: "-rw"[(1 + e.writable) * e.live] for e in nfs.find_exports()}
def etab():
    return [line for line in Path("/var/lib/nfs/etab").read_text().splitlines() if volume.uuid in line]
def nothing_left():
    attached = list(Path("/dev/storkit").iterdir()) + [m for m in Path("/proc/mounts").read_text().splitlines()
                                                       if volume.uuid in m]
    grants = list(Path("/var/lib/storkit/nfs").glob("*.json*")) + list(Path("/etc/exports.d").glob("*"))
    links = list(Path(volume.path).parent.joinpath(".exports").iterdir())
    there = os.stat(volume.path)
    left = (attached, grants, links, etab(), there.st_uid, there.st_nlink)
    assert left == ([], [], [], [], 0, 1), left
def exported():
    nfs.export([volume], clients)
    nfs.set_writers([volume], ["b"])
def attached():
    exported()
    nfs.set_writers([volume], ["a"])
    nfs.attach(nfs.offers([volume], "a"))
READ = {"a": "r", "b": "r", "c": "r"}
VERBS = {
    "export": (lambda: None, lambda: nfs.export([volume], clients), READ),
    "set_writers": (exported, lambda: nfs.set_writers([volume], ["c"]), {**READ, "c": "w"}),
    "unexport": (exported, lambda: nfs.unexport([volume], ["b"]), {"a": "r", "c": "r"}),
    "fence": (exported, lambda: nfs.fence("b"), {"a": "r", "c": "r"}),
    "attach": (exported, lambda: nfs.attach(nfs.offers([volume], "a")), {**READ, "b": "w"}),
    "detach": (attached, lambda: nfs.detach([volume]), {**READ, "a": "w"}),
}
before, verb, after = VERBS[sys.argv[1]]
at = 0
exported()
nfs.unexport([volume], ["a", "b", "c"])
while True:
    nfs.unfence("b")
    before()
    if not killed(verb, at, PLACES):
        break
    was = rights()
    assert list(was.values()).count("w") <= 1, (at, was)
    if at % 2:
        verb()
        assert rights() == after, (at, rights())
    nfs.detach([volume])
    nfs.unexport([volume], ["a", "b", "c"])
    nothing_left()
    at += STEP
print(json.dumps(at))
"""


@pytest.mark.parametrize(
    ("verb", "step"),
    [
        pytest.param("export", 3, marks=pytest.mark.slow),
        pytest.param("set_writers", 3, marks=pytest.mark.slow),
        pytest.param("unexport", 3, marks=pytest.mark.slow),
        ("fence", 3),
        pytest.param("attach", 2, marks=pytest.mark.slow),
        pytest.param("detach", 1, marks=pytest.mark.slow),
    ],
)
def test_a_verb_that_was_killed_is_finished_by_the_next_and_undone_by_the_other(lab: Lab, verb: str, step: int) -> None:
    a = lab.host("a")
    a.put(NFS_CONF, "/etc/nfs.conf")
    a.run(["modprobe", "-a", "nfsd", "nfs", "nfsv4"])
    a.run(["mkdir", "-p", "/var/lib/nfs/v4recovery"])
    said = a.python(KILLED + WALK, verb, a.address(), "10.77.0.99", "10.77.0.98", str(step), timeout=900, fresh=True)
    assert json.loads(said) > 5
