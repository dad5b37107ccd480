"""NFS pools of other kinds: qcow2 overlays on an image, and a server that storkit does not manage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import pytest

from storkit.core.errors import Unsafe
from storkit.core.model import Volume
from tests.contract.transport_nfs import NfsRig
from tests.lab import Host, Lab, services
from tests.lab.remote import Hosts

pytestmark = pytest.mark.lab


class Qcow2(NfsRig):
    def pool_settings(self, host: Host) -> dict[str, Any]:
        return {"format": "qcow2"}


class Nas(NfsRig):
    """The pool is on host s, which exports a directory and knows nothing of storkit."""

    settings = MappingProxyType({"enforce": "locks"})

    def pool_settings(self, host: Host) -> dict[str, Any]:
        nas = self._hosts.lab.host("s")
        nas.run(["mkdir", "-p", "/export/guests"])
        nas.put("/export/guests 10.77.0.0/24(rw,no_root_squash,no_subtree_check)\n", "/etc/exports")
        services.nfs_server(nas)
        nas.run(["exportfs", "-r"])
        return {"server": f"{nas.address()}:/export/guests"}


class StrictNas(Nas):
    settings = MappingProxyType({})


@pytest.fixture
def rig(lab: Lab, request: pytest.FixtureRequest) -> Iterator[NfsRig]:
    hosts = Hosts(lab)
    yield request.param(hosts)
    hosts.discard()


def qemu_io(host: Host, path: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = host.run(["qemu-io", "-f", "qcow2", "-t", "none", *words, path], check=False)
    return done.stdout + done.stderr


def qemu(path: str) -> list[str]:
    """A QEMU that has opened a disk, and waits."""
    words = "qemu-system-x86_64 -M pc -accel tcg -m 32 -S -nodefaults -display none -drive"
    return [*words.split(), f"file={path},format=raw,if=virtio,cache=none"]


@pytest.mark.slow
@pytest.mark.parametrize("rig", [Qcow2], indirect=True)
def test_an_overlay_is_written_and_its_image_is_not(rig: NfsRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    golden = rig.volume("golden")
    assert "wrote" in qemu_io(a, golden.path, "write -P 7 0 64k")
    image = rig._pool.relabel([_with(golden, kind="image")])[0]
    (web,) = rig._pool.clone(image, [Volume("web", str(uuid4()), image.size)])
    assert web.made == "overlay"
    rig.home.export([web], [rig.a, rig.b])
    rig.home.set_writers([web], ["b"])
    here = rig.home.attach(rig.home.offers([web], "a"))[0]
    there = rig.far.attach(rig.home.offers([web], "b"))[0]
    assert (there.source.format, Path(there.source.path).name) == ("qcow2", "web.qcow2")
    done = qemu_io(b, there.source.path, "read -P 7 0 64k", "write -P 9 0 4k", "flush", "read -P 9 0 4k")
    assert "wrote" in done and "verification failed" not in done and "rror" not in done, done
    (one,), (two,) = rig.home.evidence([web]), rig.far.evidence([web])
    assert (one.identity, one.size, one.blocks) == (two.identity, two.size, two.blocks) and one.size == web.size
    # What the guest's host can reach of the image, it cannot write.
    backing = Path(there.source.path).with_name("golden.qcow2")
    tried = b.run(["sh", "-c", f"echo x >> {backing}; chmod 666 {backing}"], check=False).stderr
    assert "Permission denied" in tried and "not permitted" in tried
    assert "rror" not in qemu_io(a, here.source.path, "read -P 9 0 4k")


def _with(volume: Volume, **fields: Any) -> Volume:
    from dataclasses import replace

    return replace(volume, **fields)


@pytest.mark.parametrize("rig", [Nas], indirect=True)
def test_a_server_that_storkit_does_not_manage(rig: NfsRig, lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    table = s.run(["cat", "/var/lib/nfs/etab"]).stdout
    volume = rig.volume("v")
    rig.home.export([volume], [rig.a, rig.b])
    rig.home.set_writers([volume], ["a"])
    here = rig.home.attach(rig.home.offers([volume], "a"))[0]
    there = rig.far.attach(rig.home.offers([volume], "b"))[0]
    with rig.access(here) as one, rig.access(there) as two:
        one.write(0, b"a" * 4096)
        assert two.read(0, 4096) == b"a" * 4096
    (one_sees,), (two_sees,) = rig.home.evidence([volume]), rig.far.evidence([volume])
    assert (one_sees.identity, one_sees.blocks) == (two_sees.identity, two_sees.blocks)
    assert all(s.address() in mounted.run(["cat", "/proc/mounts"]).stdout for mounted in (a, b))
    # QEMU's locks are what there is: a second QEMU does not get the file.
    holder = a.spawn(qemu(here.source.path))
    a.wait_for(lambda: "OFDLCK" in a.run(["cat", "/proc/locks"]).stdout, "lock of the first QEMU")
    second = b.run(qemu(there.source.path), check=False, timeout=60)
    assert second.status != 0 and "lock" in second.stderr, second
    holder.kill()
    holder.wait(30, check=False)
    with pytest.raises(Unsafe, match="may still write there"):
        rig.home.fence("b")
    rig.home.unfence("b")
    assert s.run(["cat", "/var/lib/nfs/etab"]).stdout == table
    rig.far.detach([volume])
    rig.home.detach([volume])
    rig.home.unexport([volume], ["a", "b"])
    assert s.run(["ls", "/export/guests/.exports"]).stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("rig", [StrictNas], indirect=True)
def test_writers_on_such_a_server_have_to_be_asked_for(rig: NfsRig) -> None:
    volume = rig.volume("v")
    rig.home.export([volume], [rig.b])
    with pytest.raises(Unsafe, match="any host could write it"):
        rig.home.set_writers([volume], ["b"])
    rig.home.set_writers([volume], [])
