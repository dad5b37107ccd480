"""The home host's half of the transport iscsi on the kernel's own target, with open-iscsi alone as its client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import Host, Lab, services
from tests.lab.target import MIB, UUIDS, Home

pytestmark = pytest.mark.lab

SAVE = "/etc/rtslib-fb-target/saveconfig.json"


@pytest.fixture
def home(lab: Lab) -> Iterator[Home]:
    yield Home(lab.host("s"), 4)


def login(client: Host, home: Home, n: int) -> str:
    """Log in as storkit's client does, by the offer alone; the disk's device."""
    services.iscsid(client)
    (offer,) = json.loads(home.python(f"show(home.offers([volume({n})], {client.name!r}))"))
    iface = ["iscsiadm", "-m", "iface", "-I", "lab"]
    client.run([*iface, "-o", "new"])
    name = f"iqn.2026-11.org.storkit:host.{client.name}"
    client.run([*iface, "-o", "update", "-n", "iface.initiatorname", "-v", name])
    node = ["iscsiadm", "-m", "node", "-T", offer["name"], "-p", offer["portals"][0], "-I", "lab"]
    client.run([*node, "-o", "new"])
    chap = offer["credential"]
    for key, value in {
        "authmethod": "CHAP",
        "username": chap["user"],
        "password": chap["secret"],
        "username_in": chap["files"]["mutual-user"],
        "password_in": chap["files"]["mutual-secret"],
    }.items():
        client.run([*node, "-o", "update", "-n", f"node.session.auth.{key}", "-v", value])
    # A machine that is busy for longer than the 5 s that a ping may take must not end the session under a test.
    client.run([*node, "-o", "update", "-n", "node.conn[0].timeo.noop_out_interval", "-v", "0"])
    client.run([*node, "--login"])
    device = f"/dev/disk/by-path/ip-{offer['portals'][0]}-iscsi-{offer['name']}-lun-0"
    client.wait_for(lambda: client.run(["test", "-b", device], check=False).status == 0, device)
    return client.run(["readlink", "-f", device]).stdout.strip()


def make_writable(client: Host, device: str) -> None:
    """Let the kernel see that it may write now; a session that was cut comes back within seconds."""
    disk = device.removeprefix("/dev/")
    again = f"echo 1 > /sys/block/{disk}/device/rescan && grep -q 0 /sys/block/{disk}/ro"
    client.wait_for(lambda: client.run(["sh", "-c", again], check=False).status == 0, "writable disk", 60, every=0.5)


WRITER = """\
import mmap, os, sys
device, tries = sys.argv[1], int(sys.argv[2])
block = mmap.mmap(-1, 4096)
descriptor = os.open(device, os.O_RDWR | os.O_DIRECT)
done = refused = 0
while refused < tries:
    block[:8] = done.to_bytes(8, "big")
    try:
        os.pwrite(descriptor, block, 0)
        done += 1
        if done == 1:
            open("/tmp/writing", "w").close()
    except OSError:
        refused += 1
print(done, refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["home.set_writers([volume(0)], ['s'])", "home.unexport([volume(0)], ['a'])"])
def test_no_write_comes_through_once_a_right_is_taken(lab: Lab, home: Home, verb: str) -> None:
    a = lab.host("a")
    home.python("home.export([volume(0)], clients('a', 's')); home.set_writers([volume(0)], ['a'])")
    device = login(a, home, 0)
    a.put(WRITER, "/root/writer.py")
    writer = a.spawn(["python3", "/root/writer.py", device, "1000"])
    a.wait_for(lambda: a.run(["test", "-e", "/tmp/writing"], check=False).status == 0, "writes")
    home.python(verb)
    after = home.read(0)
    if "unexport" in verb:
        # without a target the client waits for it, as it should, until it is told to give up
        a.run(["iscsiadm", "-m", "session", "-u"])
        writer.wait(120, check=False)
    else:
        done, refused = map(int, writer.wait(120).stdout.split())
        assert done > 0 and refused == 1000
        make = f"dd if=/dev/urandom of={device} bs=4k count=1 oflag=direct"
        assert a.run(["sh", "-c", make], check=False).status != 0
    assert home.read(0) == after


def test_a_right_comes_back_to_a_session_that_lost_it(lab: Lab, home: Home) -> None:
    a = lab.host("a")
    home.python("home.export([volume(0)], clients('a')); home.set_writers([volume(0)], ['a'])")
    device = login(a, home, 0)
    home.python("home.set_writers([volume(0)], [])")
    a.wait_for(
        lambda: a.run(["dd", f"if={device}", "of=/dev/null", "count=1", "iflag=direct"]).status == 0, "reads", 60
    )
    assert a.run(["dd", "if=/dev/zero", f"of={device}", "count=1", "oflag=direct"], check=False).status != 0
    home.python("home.set_writers([volume(0)], ['a'])")
    make_writable(a, device)
    a.run(["dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct"])


SLOW = """
import subprocess
target.DRAIN = 3.0
try:
    for verb in TRIES:
        said = refused(*verb)
        assert said.startswith("TimedOut") and "do not come back" in said, said
        print(rights())
finally:
    subprocess.run(["dmsetup", "resume", "source0"], check=True)
target.DRAIN = 60.0
TRIES[0][0](*TRIES[0][1:])
print(rights())
"""
TO_S, TO_A, FENCE = (
    "(home.set_writers, [volume(0)], ['s'])",
    "(home.set_writers, [volume(0)], ['a'])",
    "(home.fence, 'a')",
)
BOTH, A, S = ({"v0@a": a, "v0@s": s} for a, s in ("ww", "wr", "rw"))
ONLY_S = {"v0@s": "r"}
NOT_YET = {"v0@a": "w", "v0@s": "r"}
ABANDONED = """
home.unfence("a")
home.export([volume(0)], clients("a"))
home.unexport([volume(0)], ["s"])
home._grants.fence("a")  # and killed there
home.restore()
print(os.listdir("/var/lib/storkit/iscsi"))
"""


@pytest.mark.parametrize(
    ("tries", "seen"),
    [
        ([TO_S, TO_S, TO_A], [BOTH, BOTH, A, S]),
        pytest.param([FENCE, FENCE], [NOT_YET, NOT_YET, ONLY_S], marks=pytest.mark.slow),
    ],
)
def test_a_right_is_not_taken_before_its_writes_have_arrived_however_often_it_is_tried(
    lab: Lab, home: Home, tries: list[str], seen: list[dict[str, str]]
) -> None:
    a = lab.host("a")
    home.python("home.export([volume(0)], clients('a', 's')); home.set_writers([volume(0)], ['a'])")
    device = login(a, home, 0)
    home.host.run(["dmsetup", "suspend", "--noflush", "source0"])
    a.spawn(["dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct"])
    stat = f"awk '{{exit $9 == 0}}' /sys/block/{device.removeprefix('/dev/')}/stat"
    a.wait_for(lambda: a.run(["sh", "-c", stat], check=False).status == 0, "a write on its way")
    said = home.python(f"TRIES = [{', '.join(tries)}]\n" + SLOW, fresh=True).splitlines()
    assert said == list(map(str, seen))
    if FENCE in tries:
        assert home.python(ABANDONED) == "['fenced']\n"


FOREIGN = """
import rtslib_fb as rts
archive = rts.FileIOStorageObject("archive", "/var/tmp/archive.img", 8 << 20)
scratch = rts.RDMCPStorageObject("scratch", 4 << 20)
target = rts.Target(rts.FabricModule("iscsi"), "iqn.2003-01.org.linux-iscsi.nas:archive")
group = rts.TPG(target, 1)
group.enable = True
rts.NetworkPortal(group, "0.0.0.0", 3260)
lun = rts.LUN(group, 0, archive)
acl = rts.NodeACL(group, "iqn.1994-05.com.redhat:client")
acl.chap_userid, acl.chap_password = "client", "another-secret"
rts.MappedLUN(acl, 0, lun, write_protect=True)
"""

CLASH = f"""
import rtslib_fb as rts
disk = rts.RDMCPStorageObject("theirs", 4 << 20)
group = rts.TPG(rts.Target(rts.FabricModule("iscsi"), "iqn.2026-11.org.storkit:{UUIDS.format(0)}"), 1)
rts.LUN(group, 0, disk)
"""

SNAPSHOT = """
def tree(top):
    found = {}
    for place, _, files in os.walk(top):
        for name in files:
            path = f"{place}/{name}"
            try:
                found[path] = os.readlink(path) if os.path.islink(path) else open(path).read()
            except OSError as error:
                found[path] = str(error)
    return {path: text for path, text in found.items() if "/statistics/" not in path}
def foreign():
    top = "/sys/kernel/config/target"
    parts = [path for path in Path(f"{top}/core").glob("*_*") if not path.name.startswith("iblock_")]
    parts += Path(f"{top}/iscsi").glob("iqn.2003*")
    return {str(part): tree(part) for part in parts}
"""


def test_what_others_made_is_untouched_and_rtslib_restores_what_we_made(lab: Lab, home: Home) -> None:
    a, s = lab.host("a"), home.host
    s.run(["modprobe", "-a", "target_core_mod", "target_core_file"])
    s.run(["/usr/bin/python3", "-"], input=FOREIGN)
    s.run(["targetctl", "save"])
    # an entry that is in the file, and does not run: rtslib's own save would lose it
    edit = f"""
path = "{SAVE}"
data = json.load(open(path))
data["storage_objects"].append({{"name": "gone", "plugin": "block", "dev": "/dev/gone", "wwn": "x", "note": "é"}})
open(path, "w").write(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\\n")
"""
    home.python(edit)
    before = s.get(SAVE).decode()
    kernel = home.python(SNAPSHOT + "show(foreign())")
    home.python(
        "home.export([volume(0), volume(1), volume(2)], clients('a', 's'));"
        "home.set_writers([volume(0)], ['a']); home.unexport([volume(1)], ['a'])"
    )
    device = login(a, home, 0)
    granted = home.rights()
    assert granted == {"v0@a": "w", "v0@s": "r", "v1@s": "r", "v2@a": "r", "v2@s": "r"}
    assert home.python(SNAPSHOT + "show(foreign())") == kernel

    s.run(["targetctl", "restore"])  # clears everything first
    assert home.rights() == granted
    make_writable(a, device)
    a.run(["dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct"])

    # whoever changes what is ours does not change who may write
    flags = "*/tpgt_1/acls/*:host.a/lun_0/write_protect"
    home.python(f"for flag in lio.FABRIC.glob({flags!r}): flag.write_text('0')")
    assert home.rights()["v2@a"] == "w"
    home.python("home.restore()")
    assert home.rights() == granted

    home.python("home.unexport([volume(0), volume(1), volume(2)], ['a', 's'])")
    assert s.get(SAVE).decode() == before
    left = s.run(["sh", "-c", "ls /sys/kernel/config/target/core /sys/kernel/config/target/iscsi; dmsetup ls"]).stdout
    assert "storkit" not in left and "iblock" not in left and "archive" in left
    assert s.run(["sh", "-c", "ls /var/lib/storkit/iscsi"]).stdout == ""


STRANGERS = """
import rtslib_fb as rts
fabric = rts.FabricModule("iscsi")
group = rts.TPG(rts.Target(fabric, "iqn.2003-01.org.linux-iscsi.nas:theirs"), 1)
rts.LUN(group, 7, rts.BlockStorageObject("theirs", "/dev/mapper/source3"))
rts.NetworkPortal(group, "ADDRESS", 3260)
rts.TPG(rts.Target(fabric, "iqn.2003-01.org.linux-iscsi.nas:memory"), 1)
rts.RDMCPStorageObject("memory", 4 << 20)
"""

NAMED = """
from storkit.tech.iscsi import others
before = sorted(str(path) for path in lio.TARGET.rglob("*"))
found = others.findings(site, Settings())
assert sorted(str(path) for path in lio.TARGET.rglob("*")) == before
show([[each.message, each.hint, each.warning] for each in found])
print(refused(home.set_writers, [volume(3)], ["s"]))
print(refused(home.export, [volume(1)], clients("a")))
"""


def test_others_on_storkits_disks_are_named_by_host_check_and_given_no_right_beside(lab: Lab, home: Home) -> None:
    s = home.host
    s.run(["sh", "-c", "mke2fs -q /dev/mapper/source1 && mkdir -p /mnt/v && mount /dev/mapper/source1 /mnt/v"])
    home.python("home.export([volume(0), volume(3)], clients('s')); home.export([volume(0)], clients('a'))")
    s.run(["/usr/bin/python3", "-"], input=STRANGERS.replace("ADDRESS", s.address()))
    s.run(["mkdir", "/sys/kernel/config/target/iscsi/iqn.2003-01.nas:damaged"])
    found, kernel, mounted = home.python(NAMED).splitlines()
    damaged, beside, backstore = json.loads(found)
    theirs = "iqn.2003-01.org.linux-iscsi.nas:theirs"
    assert "rtslib cannot read target iqn.2003-01.nas:damaged" in damaged[0] and not damaged[2]
    assert f"target {theirs}, which storkit did not make, listens at {s.address()}:3260" in beside[0] and beside[2]
    assert (
        f"backstore block/theirs, which storkit did not make, has volume v3 open, as LUN 7 of target {theirs}"
        in (backstore[0])
    )
    assert backstore[1] == "targetcli /backstores/block delete theirs" and not backstore[2]
    assert "volume v3 is open for writing" in kernel and "something in the kernel" in kernel
    assert "volume v1 is open for writing" in mounted and "the mount /mnt/v on /dev/dm-1" in mounted


def test_what_stands_in_the_way_is_refused_and_changes_nothing(lab: Lab, home: Home) -> None:
    s = home.host
    s.run(["modprobe", "-a", "target_core_mod", "iscsi_target_mod"])
    s.run(["/usr/bin/python3", "-"], input=CLASH)
    said = home.python(
        """
print(refused(home.export, [volume(0), volume(1)], clients("a")))
home.export([volume(1)], clients("a", "s"))
save = savefile.directory() / "saveconfig.json"
good = save.read_text()
for bad in ("", good[:-20]):
    save.write_text(bad)
    print(refused(home.export, [volume(2)], clients("a")))
    assert save.read_text() == bad
print(refused(home.set_writers, [volume(1)], ["a"]))
print(refused(home.unexport, [volume(1)], ["a"]))
print(rights())
save.write_text(good)
home.unexport([volume(1)], ["a", "s"])
Path(f"/var/lib/storkit/iscsi/{volume(3).uuid}.json").write_text("{")
print(refused(home.fence, "a"))
"""
    )
    lines = said.splitlines()
    assert "Conflict" in lines[0] and "holds another disk: theirs" in lines[0]
    assert all("Unsafe" in line and "is not overwritten" in line for line in lines[1:5])
    # a right that is taken is taken whatever the file is like; none is given
    assert "'v1@a': '-'" in lines[5] and "'v1@s': 'r'" in lines[5], "a is named, as the save file may still name it"
    assert "Unsafe" in lines[6] and "damaged" in lines[6]
    assert "theirs" in s.run(["ls", "-R", "/sys/kernel/config/target/core"]).stdout


@pytest.mark.slow
def test_a_fenced_host_has_no_way_left(lab: Lab, home: Home) -> None:
    a = lab.host("a")
    home.python("home.export([volume(0), volume(1)], clients('a', 's')); home.set_writers([volume(0)], ['a'])")
    device = login(a, home, 0)
    a.run(["sg_persist", "--out", "--register", "--param-sark=a1", "--param-aptpl", device])
    a.run(["sg_persist", "--out", "--reserve", "--param-rk=a1", "--prout-type=5", "--param-aptpl", device])
    show = "print([target.registrations(p) for p in lio.CORE.glob('iblock_*/storkit-v0')])"
    assert home.python(show) == "[{'iqn.2026-11.org.storkit:host.a': '00000000000000a1'}]\n"
    had = json.loads(home.python("show(home.fence('a'))"))
    assert {(export["volume"], export["writable"]) for export in had} == {("v0", True), ("v1", False)}
    assert home.rights() == {"v0@s": "r", "v1@s": "r"}
    home.python("home.unfence('a'); home.export([volume(0)], clients('a'))")
    assert home.python(show) == "[{}]\n"
    said = home.python("home.fence('a'); print(refused(home.export, [volume(0)], clients('a')))")
    assert "fenced" in said


def test_a_reboot_brings_back_rights_and_reservations(lab: Lab, home: Home) -> None:
    a, s = lab.host("a"), home.host
    home.python("home.export([volume(0), volume(1)], clients('a', 's')); home.set_writers([volume(0)], ['a'])")
    device = login(a, home, 0)
    a.run(["sg_persist", "--out", "--register", "--param-sark=a1", "--param-aptpl", device])
    s.run(["sync"])  # the kernel does not flush the file that it keeps registrations in
    s.power_off()
    s.boot()
    home.start()
    assert home.rights() == {"v0@a": "-", "v0@s": "r", "v1@a": "-", "v1@s": "r"}
    home.python("home.restore()")
    assert home.rights() == {"v0@a": "w", "v0@s": "r", "v1@a": "r", "v1@s": "r"}
    show = "print([target.registrations(p) for p in lio.CORE.glob('iblock_*/storkit-v0')])"
    assert home.python(show) == "[{'iqn.2026-11.org.storkit:host.a': '00000000000000a1'}]\n"
    make_writable(a, device)
    a.run(["dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct"])


@pytest.mark.slow
def test_a_volume_that_cannot_be_restored_keeps_no_other_from_it(home: Home) -> None:
    s = home.host
    home.python(
        "all = [volume(n) for n in range(3)]; home.export(all, clients('a', 's')); home.set_writers(all, ['s']);"
        "home.attach_here(home.offers(all, 's'))"
    )
    s.run(["sync"])
    s.power_off()
    s.boot()
    home.start()
    s.run(["sh", "-c", "dmsetup remove source1 && dmsetup create source1 --table '0 2048 zero'"])
    s.run(["dmsetup", "create", "storkit:v2:export", "--table", "0 8192 zero"])
    said = home.python("print(refused(home.restore)); print(rights(), sorted(os.listdir('/dev/storkit')))")
    why, restored = said.splitlines()
    assert "source1 is smaller than volume v1" in why and "storkit:v2:export is another node" in why
    rights = {"v0@a": "r", "v0@s": "w", "v1@a": "-", "v1@s": "w", "v2@a": "-", "v2@s": "w"}
    assert restored == f"{rights} ['v0']"
    assert "zero" in s.run(["dmsetup", "table", "storkit:v2:export"]).stdout


MANY = """
import subprocess
processes = []
for number in range(8):
    mine = [volume(n) for n in range(number * 4, number * 4 + 4)]
    child = os.fork()
    if child == 0:
        try:
            home.export(mine, clients("a", "b"))
            home.set_writers(mine, ["a"])
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    processes.append(child)
others = "import rtslib_fb as rts\\nfor n in range(20): rts.RDMCPStorageObject(f'foreign{n}', 1 << 20)"
lio.prepare(savefile.directory())
foreign = subprocess.run(["/usr/bin/python3", "-c", others], env={}, stderr=subprocess.PIPE, text=True)
assert foreign.returncode == 0, foreign.stderr
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in processes]
assert codes == [0] * 8, codes
assert len(list(lio.CORE.glob("rd_mcp_*/foreign*"))) == 20
saved = json.loads((savefile.directory() / "saveconfig.json").read_text())
assert len(saved["targets"]) == len(saved["storage_objects"]) == 32
for n in range(32):
    (backstore,) = lio.CORE.glob(f"iblock_*/storkit-v{n}")
    seen = target.observe("iqn.2026-11.org.storkit:" + UUIDS.format(n))
    assert (seen.backstore, seen.serial) == (backstore, UUIDS.format(n)), seen
    assert seen.device == f"/dev/mapper/storkit:v{n}:export"
show(rights())
"""


@pytest.mark.slow
def test_many_processes_export_at_once(lab: Lab) -> None:
    home = Home(lab.host("s"), 32, MIB)
    found: dict[str, Any] = json.loads(home.python(MANY, timeout=600, fresh=True))
    assert found == {f"v{n}@{client}": "w" if client == "a" else "r" for n in range(32) for client in "ab"}
