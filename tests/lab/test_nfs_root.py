"""Trees exported to guests by a real server, and a guest that boots from one and moves while it writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from storkit.core.errors import Conflict, Problems, StorkitError, Unsupported
from storkit.core.model import Client, Volume
from tests.contract.transport_nfs import NfsRig
from tests.guestkit import log, nfsroot
from tests.lab import Host, Lab
from tests.lab.remote import Hosts
from tests.lab.world import World, storage

pytestmark = pytest.mark.lab

SOURCE = "/root/source"
MOUNT = "/mnt/root"


class TreeRig(NfsRig):
    """Host b is the guest: its address is what the tree is exported to."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts)
        self.guest = Client("guest:web", False, self.b.address)
        a = hosts.lab.host("a")
        a.run(["sh", "-c", f"mkdir -p {SOURCE}/etc && echo mine > {SOURCE}/etc/motd && chown 7:7 {SOURCE}/etc"])

    def tree(self, name: str) -> Volume:
        wanted = Volume(name, str(uuid4()), 0, "tested", "a", "tree")
        (made,) = self._pool.import_tree([wanted], SOURCE)
        self._made.append(made)
        return made


@pytest.fixture
def rig(lab: Lab) -> Iterator[TreeRig]:
    hosts = Hosts(lab)
    yield TreeRig(hosts)
    hosts.discard()


def mount(host: Host, rig: TreeRig, volume: Volume) -> None:
    host.run(["mkdir", "-p", MOUNT])
    host.run(["mount", "-t", "nfs", "-o", "vers=4.2", f"{rig.a.address}:{volume.path}", MOUNT])


def try_to(host: Host, command: str) -> str:
    done = host.run(["sh", "-c", command], check=False)
    return done.stdout + done.stderr


def test_a_tree_is_the_guests_alone_and_root_is_root_there(rig: TreeRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    web = rig.tree("web")
    rig.home.export([web], [rig.guest])
    mount(b, rig, web)
    assert try_to(b, f"stat -c %u {MOUNT}/etc") == "7\n"
    assert "Read-only" in try_to(b, f"touch {MOUNT}/etc/new")
    rig.home.set_writers([web], ["guest:web"])
    assert try_to(b, f"touch {MOUNT}/etc/new && chown 1234 {MOUNT}/etc/new && chmod 4755 {MOUNT}/etc/new") == ""
    assert try_to(a, f"stat -c '%u %a' {web.path}/etc/new") == "1234 4755\n"
    assert "denied" in try_to(a, f"mkdir -p {MOUNT}; mount -t nfs -o vers=4.2 {rig.a.address}:{web.path} {MOUNT}")
    (export,) = rig.home.find_exports()
    assert (export.client, export.writable, export.live) == ("guest:web", True, True)
    for client, kind in ((rig.b, Unsupported), (Client("guest:db", False, "10.77.0.99"), Conflict)):
        with pytest.raises((kind, Problems)):
            rig.home.export([web], [client])
    with pytest.raises(Unsupported, match="both come from"):
        rig.home.export([rig.tree("db")], [Client("guest:db", False, rig.b.address)])
    with pytest.raises(StorkitError, match="exported"):
        rig._pool.delete([web])
    with pytest.raises(StorkitError, match="exported"):
        rig._pool.clone(web, [Volume("copy", str(uuid4()), 0, kind="tree")])
    b.run(["umount", MOUNT])
    rig.home.unexport([web], ["guest:web"])
    assert rig.home.find_exports() == [] and web.path not in try_to(a, "cat /var/lib/nfs/etab /etc/exports.d/*")
    assert try_to(a, f"stat -c '%u %a' {web.path}/etc/new {web.path}/etc") == "1234 4755\n7 755\n"


def test_a_forged_handle_reaches_nothing_else_on_the_file_system(rig: TreeRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    web, other = rig.tree("web"), rig.tree("other")
    a.run(["sh", "-c", f"echo secret > {other.path}/etc/motd"])
    etc, secret = f"{web.path}/etc", f"{other.path}/etc"
    files = [f"{etc}/motd", etc, f"{secret}/motd", secret]
    numbers = a.run(["python3", "/storkit/tests/lab/guest/generations.py", *files]).stdout.split()
    forge = f"python3 /storkit/tests/lab/guest/forge.py {MOUNT} etc/motd {' '.join(numbers)}"
    rig.home.export([web], [rig.guest])
    rig.home.set_writers([web], ["guest:web"])
    mount(b, rig, web)
    assert try_to(b, forge) == "mine\nStale file handle\n"
    b.run(["umount", MOUNT])
    rig.home.unexport([web], ["guest:web"])
    # So that this can fail: what an export without subtree_check would give away.
    options = f"rw,no_root_squash,no_subtree_check,fsid={uuid4().hex}"
    a.run(["exportfs", "-i", "-o", options, f"{rig.b.address}:{web.path}"])
    mount(b, rig, web)
    assert try_to(b, forge) == "mine\nsecret\n"
    b.run(["umount", MOUNT])
    a.run(["exportfs", "-u", f"{rig.b.address}:{web.path}"])


def test_what_was_cut_off_stays_cut_off_and_a_reboot_of_the_server_cuts_nothing_off(rig: TreeRig, lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    web = rig.tree("web")
    rig.home.export([web], [rig.guest])
    rig.home.set_writers([web], ["guest:web"])
    mount(b, rig, web)
    rig.kill_servers()
    rig.home.restore()
    assert try_to(b, f"echo after > {MOUNT}/etc/motd") == "" and try_to(a, f"cat {web.path}/etc/motd") == "after\n"
    b.run(["mkfifo", "/root/go"])
    held = b.spawn(["sh", "-c", f"exec 3<>{MOUNT}/etc/motd; touch /root/open; read -r _ < /root/go; echo late >&3"])
    b.wait_for(lambda: b.run(["test", "-e", "/root/open"], check=False).status == 0, "open file")
    rig.home.unexport([web], ["guest:web"])
    assert try_to(a, "cat /proc/fs/nfsd/clients/*/states 2>/dev/null | grep -c superblock").strip() == "0"
    rig.home.export([web], [rig.guest])
    rig.home.set_writers([web], ["guest:web"])
    b.run(["sh", "-c", "echo > /root/go"])
    held.wait(60, check=False)
    assert "tale" in try_to(b, f"cat {MOUNT}/etc/motd") + try_to(b, f"echo x > {MOUNT}/etc/motd")
    assert try_to(a, f"cat {web.path}/etc/motd") == "after\n"
    b.run(["umount", "-l", MOUNT])
    rig.home.unexport([web], ["guest:web"])


@pytest.mark.slow
def test_a_guest_boots_from_a_tree_and_moves_while_it_writes(lab: Lab, tmp_path: Path) -> None:
    world = World(lab, tmp_path, storage("nfs"))
    kit = nfsroot.build()
    for host in (world.a, world.b):
        _bridge(host)
        host.put(kit.kernel.read_bytes(), "/root/guest/vmlinuz")
        host.put(kit.initrd.read_bytes(), "/root/guest/initrd")
    world.s.put(kit.root.read_bytes(), "/root/root.tar")
    for host in world.hosts:
        world.remains.again(host)
    world.storkit("volume", "import", "--tree", "/root/root.tar", "web")
    address = f"{world.a.address('san1').rpartition('.')[0]}.200/24"
    world.storkit(
        "guest", "define", "web", "--root", "web", "--address", address, "--memory", nfsroot.MEMORY, "--machine", "pc",
        "--kernel", "/root/guest/vmlinuz", "--initrd", "/root/guest/initrd", "--cmdline", nfsroot.CMDLINE,
        "--bridge", "br0",
    )  # fmt: skip
    path = f"{world.storkit('volume', 'show', 'web')['path']}/data/log"

    def lines() -> int:
        return len(world.s.get(path).splitlines())

    def writes() -> None:
        before = lines()
        world.s.wait_for(lambda: lines() > before + 10, "guest to write on", 180, every=0.5)

    world.storkit("guest", "start", "web", "--on", "a")
    writes()
    for destination in ("b", "a"):
        world.storkit("migrate", "run", "web", "--to", destination)
        status = world.status("web")
        assert (status["places"], status["writers"], status["window"]) == (
            {destination: "running"}, ["guest:web"], False,
        )  # fmt: skip
        writes()
    # The server loses its power: the guest waits for it.
    world.s.power_off()
    world.boot(world.s)
    world.remains.again(world.s)
    world.storkit("host", "restore", "s")
    writes()
    # What nobody can ask any more is cut off at the server, and starts anew.
    world.storkit("detach", "web", "--on", "guest:web")
    cut = world.s.get(path)
    assert world.run("guest", "start", "web", "--on", "a").status != 0
    world.storkit("guest", "stop", "web", "--force")
    assert world.s.get(path) == cut
    world.storkit("guest", "start", "web", "--on", "b")
    writes()
    # So is what may run on a host that is fenced, and nothing else: the guest is where it may write.
    assert world.storkit("fence", "a")["lost"] == []
    world.storkit("unfence", "a")
    writes()
    world.b.power_off()
    assert world.run("guest", "start", "web", "--on", "a").status != 0
    assert [export["client"] for export in world.storkit("fence", "b")["lost"]] == ["guest:web"]
    world.storkit("guest", "start", "web", "--on", "a")
    writes()
    world.boot(world.b)
    world.storkit("unfence", "b")
    world.storkit("migrate", "cleanup", "web")
    writes()
    world.storkit("guest", "stop", "web", "--timeout", "120")
    report = log.parse(world.s.get(path))
    assert report.clean and report.count >= 50, report
    world.storkit("guest", "delete", "web")
    world.storkit("volume", "delete", "web")
    left = world.left()
    assert not left, "\n".join(left)


def _bridge(host: Host) -> None:
    """Put the guest network's port and the host's address on it on a bridge, as a host for guests has it."""
    host.run(["modprobe", "-a", "bridge", "tun"])
    address = host.address("san1")
    host.run(["sh", "-c", f"ip link add br0 type bridge && ip addr del {address}/24 dev san1 && "
              f"ip link set san1 master br0 && ip addr add {address}/24 dev br0 && ip link set br0 up"])  # fmt: skip
    host.run(["mkdir", "-p", "/etc/qemu", "/root/guest"])
    host.put("allow br0\n", "/etc/qemu/bridge.conf")
