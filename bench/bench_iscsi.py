"""iSCSI between two hosts of the lab (docs/lab.md), against what one would run instead, in one run.

    python bench/bench_iscsi.py [PART...] [LUNS...]      exports, attachments, data: all; 10 100 1000 volumes to export

exports       one call of storkit's transport; one `targetcli` process for each volume, which is what scripts do; and
              one process that is fed all commands. Volumes are device-mapper nodes of 4 MiB. Starting programs counts.
attachments   storkit's verb; os-brick's connect_volume (PyPI: os-brick, without multipath); and iscsiadm's new, update,
              login and udevadm settle, typed one after the other. In process, so that starting Python does not count.
data path     fio with O_DIRECT on /dev/storkit/NAME, on the SCSI device below it, and on that once more, in turns: what
              the same device differs from itself is what the figures can tell.

Both hosts are User-Mode Linux on one machine: ratios hold, times do not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import _table  # noqa: E402
from bench._lab import BACKEND, attach, python, speeds  # noqa: E402
from tests.lab import Host, Lab, services  # noqa: E402

EXTENT = 4 << 20
ROUNDS = 5
DATA_ROUNDS = 30
MEMORY = "3G"
"""LIO keeps about half a megabyte of the kernel's memory for each block device (IBLOCK_BIO_POOL_SIZE)."""
OS_BRICK = ROOT / "build/os-brick"
PREFIX = "iqn.2026-11.org.storkit"

VOLUMES = """\
def iscsi(host, address):
    return transport("iscsi", host, address)
def volumes(first, count):
    return [Volume(f"v{n}", f"{n:08x}-0000-4000-8000-000000000000", 4 << 20, "p", "s", format="raw",
                   path=f"/dev/mapper/bench{n}") for n in range(first, first + count)]
"""


def main() -> None:
    counts = [int(word) for word in sys.argv[1:] if word.isdigit()] or [10, 100, 1000]
    parts = [word for word in sys.argv[1:] if not word.isdigit()] or ["exports", "attachments", "data"]
    with Lab(print) as lab:
        s, b = lab.host("s", MEMORY), lab.host("b")
        prepare(s, max(counts))
        ready(b)
        if "exports" in parts:
            exports(s, counts)
        if "attachments" in parts:
            attachments(s, b, install_os_brick(lab))
        if "data" in parts:
            data_path(s, b)


def prepare(s: Host, count: int) -> None:
    services.target(s)
    s.run(["modprobe", "dm_mod"])
    disk, sectors = s.add_disk((count + ROUNDS) * EXTENT), EXTENT // 512
    names = [*(f"bench{n}" for n in range(count)), *(f"aside{n}" for n in range(ROUNDS))]
    nodes = ";".join(f"{name},,,rw,0 {sectors} linear {disk} {n * sectors}" for n, name in enumerate(names))
    # udevd would look into each of them
    s.run(["dmsetup", "create", "--noudevrules", "--verifyudev", "--concise"], input=nodes, timeout=300)
    s.run(["mkdir", "-p", "/run/dbus"])
    s.run(["dbus-daemon", "--system", "--fork"])  # targetcli asks it for user-space backstores


def ready(b: Host) -> None:
    b.run(["sh", "-c", f"echo InitiatorName={PREFIX}:host.b > /etc/iscsi/initiatorname.iscsi"])
    services.iscsid(b)
    b.run(["modprobe", "dm_mod"])


# Exports


def exports(s: Host, counts: list[int]) -> None:
    storkit_exports(s, 1)  # compiles storkit, and loads the kernel's modules
    for count in counts:
        rows: list[list[str]] = []
        made = storkit_exports(s, count)
        calls = {"storkit": made["export"], "one targetcli": targetcli_at_once(s, count)}
        if count <= 100:  # each looks at all that is there: a thousand would take a day
            calls["targetcli each"] = targetcli_each(s, count)
        for title, seconds in calls.items():
            each = seconds / count * 1000
            rows.append([title, f"{seconds:.2f}", f"{each:.1f}", f"{seconds / made['export']:.1f} x"])
        rows.append(["storkit, away again", f"{made['unexport']:.2f}", f"{made['unexport'] / count * 1000:.1f}", ""])
        _table.table(f"{count} exports", ["by", "s", "ms each", "of storkit's"], rows)


def storkit_exports(s: Host, count: int) -> dict[str, float]:
    """Seconds for `count` exports to one host, and for taking them away, programs' starts included."""
    found = {}
    for verb, call in (
        ("export", f'iscsi("s", "{s.address()}").export(volumes(0, {count}), [Client("b", False, "b")])'),
        ("unexport", f'iscsi("s", "{s.address()}").unexport(volumes(0, {count}), ["b"])'),
    ):
        code = BACKEND + VOLUMES + f"{call}\n"
        env = {"PYTHONPATH": "/storkit:/opt/storkit/site-packages", "PYTHONPYCACHEPREFIX": "/lab/common/pyc"}
        done = s.run(["/usr/bin/python3", "-"], input=code, env=env, timeout=1800)
        found[verb] = done.seconds
    return found


def targetcli_words(s: Host, n: int) -> list[str]:
    target = f"{PREFIX}:t{n}"
    group = f"/iscsi/{target}/tpg1"
    client = f"{PREFIX}:host.b"
    return [
        f"/backstores/block create name=t{n} dev=/dev/mapper/bench{n}",
        f"/iscsi create {target}",
        f"{group}/luns create /backstores/block/t{n}",
        f"{group}/acls create {client}",
        f"{group}/acls/{client} set auth userid=user{n} password=secret{n:08}",
    ]


def targetcli_at_once(s: Host, count: int) -> float:
    script = "\n".join(word for n in range(count) for word in targetcli_words(s, n)) + "\nsaveconfig\nexit\n"
    done = s.run(["targetcli"], input=script, timeout=3000)
    clear(s)
    return done.seconds


def targetcli_each(s: Host, count: int) -> float:
    """One process a volume, fed its commands."""
    seconds = 0.0
    for n in range(count):
        script = "\n".join([*targetcli_words(s, n), "saveconfig", "exit"]) + "\n"
        seconds += s.run(["targetcli"], input=script, timeout=120).seconds
    clear(s)
    return seconds


def clear(s: Host) -> None:
    s.run(["targetcli", "clearconfig", "confirm=True"], timeout=600)


# Attachments


def install_os_brick(lab: Lab) -> bool:
    """Have os-brick in the lab's hosts, below /lab/common."""
    if not (OS_BRICK / "os_brick").is_dir():
        # os-brick's own dependencies are for the machine's Python, which is the hosts' as well.
        argv = ["/usr/bin/python3", "-m", "pip", "install", "-q", "--target", str(OS_BRICK), "os-brick"]
        if subprocess.run([sys.executable, *argv[1:]], check=False).returncode:
            print("os-brick cannot be installed: it is left out")
            return False
    shutil.copytree(OS_BRICK, lab.cell.path(lab.cell.run_dir / "common/os-brick"))
    return True


def attachments(s: Host, b: Host, os_brick: bool) -> None:
    offers = python(
        s,
        VOLUMES
        + f"""
t = iscsi("s", "{s.address()}")
t.export(volumes(0, {ROUNDS}), [Client("b", False, "b")])
t.set_writers(volumes(0, {ROUNDS}), ["b"])
print(json.dumps(codec.dump(t.offers(volumes(0, {ROUNDS}), "b"), reveal=True)))
""",
    )
    storkit = python(
        b,
        VOLUMES
        + f"""
offers = codec.load(list[Offer], json.loads({json.dumps(offers)!r}))
t, found = iscsi("b", "{b.address()}"), []
for offer, volume in zip(offers, volumes(0, {ROUNDS})):
    found.append((timed(lambda: t.attach([offer]))[0], timed(lambda: t.detach([volume]))[0]))
print(json.dumps(found))
""",
    )
    ways: dict[str, list[list[float]]] = {"storkit": storkit}
    plain = [plain_target(s, n) for n in range(ROUNDS)]
    ways["iscsiadm, udevadm"] = [by_hand(b, s, iqn) for iqn in plain]
    if os_brick:
        ways["os-brick"] = by_os_brick(b, s, plain)
    base = median(pair[0] for pair in storkit), median(pair[1] for pair in storkit)
    rows = []
    for title, pairs in ways.items():
        on, off = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
        rows.append([title, f"{on * 1000:.0f}", f"{on / base[0]:.2f} x", f"{off * 1000:.0f}", f"{off / base[1]:.2f} x"])
    _table.table(f"one volume, median of {ROUNDS}", ["", "attach ms", "", "detach ms", ""], rows)


def plain_target(s: Host, n: int) -> str:
    """A target as scripts make it, without authentication, over one of the nodes set aside for it."""
    target, group = f"{PREFIX}:plain{n}", f"/iscsi/{PREFIX}:plain{n}/tpg1"
    script = [
        f"/backstores/block create name=plain{n} dev=/dev/mapper/aside{n}",
        "set global auto_add_default_portal=false",
        f"/iscsi create {target}",
        f"{group}/portals create {s.address()} 3260",
        f"{group}/luns create /backstores/block/plain{n}",
        f"{group}/acls create {PREFIX}:host.b",
        f"{group} set attribute authentication=0",
        "exit",
    ]
    s.run(["targetcli"], input="\n".join(script) + "\n", timeout=120)
    return target


def by_hand(b: Host, s: Host, target: str) -> list[float]:
    """iscsiadm as an administrator types it, one process after the other, and its undo."""
    node = f"iscsiadm -m node -T {target} -p {s.address()}:3260"
    device = f"/dev/disk/by-path/ip-{s.address()}:3260-iscsi-{target}-lun-0"
    found = python(
        b,
        f"""
import subprocess
def shell(text):
    subprocess.run(["sh", "-ec", text], check=True, stdout=subprocess.DEVNULL)
on = "{node} -o new; {node} -o update -n node.startup -v manual; {node} --login; udevadm settle; test -b {device}"
off = "blockdev --flushbufs {device}; {node} --logout; {node} -o delete"
print(json.dumps([timed(lambda: shell(on))[0], timed(lambda: shell(off))[0]]))
""",
    )
    return [float(seconds) for seconds in found]


def by_os_brick(b: Host, s: Host, targets: list[str]) -> list[list[float]]:
    found = python(
        b,
        f"""
sys.path.append("/lab/common/os-brick")
import logging
logging.disable(logging.CRITICAL)
from oslo_concurrency import lockutils
lockutils.set_defaults("/run/lock")
from os_brick import privileged
from os_brick.initiator import connector
privileged.default.set_client_mode(False)  # this is root already: no helper process
c = connector.InitiatorConnector.factory("ISCSI", "", use_multipath=False, device_scan_attempts=5)
found = []
for target in {targets!r}:
    wanted = dict(target_portal="{s.address()}:3260", target_iqn=target, target_lun=0, target_discovered=False,
                  auth_method="", volume_id=target)
    on, device = timed(lambda: c.connect_volume(dict(wanted)))
    off, _ = timed(lambda: c.disconnect_volume(dict(wanted), device))
    found.append([on, off])
print(json.dumps(found))
""",
    )
    return [[float(seconds) for seconds in pair] for pair in found]


# The data path


def data_path(s: Host, b: Host) -> None:
    size = 64 << 20
    s.run(["dmsetup", "create", "data", "--table", f"0 {size // 512} linear {s.add_disk(size)} 0"])
    volume = f'Volume("data", "{9:08x}-0000-4000-8000-000000000000", {size}, "p", "s", path="/dev/mapper/data")'
    path = attach(s, b, "iscsi", volume)
    below = b.run(["sh", "-c", f"ls /sys/block/$(basename $(readlink -f {path}))/slaves"]).stdout.split()[0]
    rows = []
    devices = {"raw": f"/dev/{below}", "ours": path, "again": f"/dev/{below}"}
    for title, seen in speeds(b, devices, DATA_ROUNDS).items():
        raw, ours, again = (seen[name][0] for name in devices)
        rows.append([title, f"{raw / 1e6:.1f}", f"{ours / raw:.2f} x", f"{again / raw:.2f} x"])
    heads = ["", "SCSI device, MB/s", "/dev/storkit", "SCSI device again"]
    _table.table(f"data path, median of {DATA_ROUNDS}", heads, rows)


if __name__ == "__main__":
    main()
