"""Nothing of a lab is left on the machine, however it ends, and labs do not meet."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import Lab, image
from tests.lab.lab import missing
from tests.lab.network import NETWORKS

pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

_OPEN = """\
import sys, time
from tests.lab import Lab
lab = Lab()
lab.hosts("a", "b")
print(lab.cell.pid, flush=True)
{then}
"""


def machine() -> dict[str, object]:
    """What a lab could leave behind on this machine."""
    run = image.cache() / "run"
    return {
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if "storkit-lab" in line],
        "links": [link.name for link in Path("/sys/class/net").iterdir() if link.name.startswith(NETWORKS)],
        "run": list(run.iterdir()) if run.exists() else [],
        # another process may be making the Xen lab's image
        "cache": sorted([*image.cache().glob("[!x]*"), *(image.cache() / "images").rglob("*")]),
        "tmp": [path for path in Path("/tmp").iterdir() if "uml" in path.name.lower() or "storkit-lab" in path.name],
    }


def members(namespace: str) -> list[int]:
    """The processes of a mount namespace."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if str((directory / "ns/mnt").readlink()) == namespace:
                found.append(int(directory.name))
        except OSError:
            continue
    return found


def open_lab(then: str) -> tuple[subprocess.Popen[str], str]:
    """A lab of another process, which does `then` once two hosts are up; and its mount namespace."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OPEN.format(then=then)], stdout=subprocess.PIPE, text=True, cwd=image.TREE
    )
    assert process.stdout
    pid = process.stdout.readline().strip()
    assert pid, "the lab did not open"
    return process, str(Path(f"/proc/{pid}/ns/mnt").readlink())


def wait_until_gone(namespace: str, deadline: float = 10) -> None:
    end = time.monotonic() + deadline
    while left := members(namespace):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.05)


def test_nothing_is_left_after_kill_9() -> None:
    image.image().close()
    before = machine()
    process, namespace = open_lab("time.sleep(600)")
    assert len(members(namespace)) > 4
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    wait_until_gone(namespace)
    assert machine() == before


@pytest.mark.slow
def test_nothing_is_left_after_an_exception() -> None:
    image.image().close()
    before = machine()
    process, namespace = open_lab("raise SystemExit(1)")
    process.wait(30)
    wait_until_gone(namespace)
    assert machine() == before


@pytest.mark.slow
def test_two_labs_at_once_do_not_meet(lab: Lab) -> None:
    lab.hosts("a", "b")
    # Addresses go by the order in which hosts were first asked for, which is that of the tests before this one.
    a, b = lab.hosts(*(host.name for host in lab.known()[:2]))
    with Lab() as other:
        other_a = other.host(a.name)
        assert a.address() == other_a.address()
        a.put("mine", "/root/file")
        other_a.put("theirs", "/root/file")
        assert b.run(["ssh", a.name, "cat /root/file"]).stdout == "mine"
        assert lab.ssh(a.name, ["cat", "/root/file"]).stdout == "mine"
        assert other.ssh(a.name, ["cat", "/root/file"]).stdout == "theirs"
        assert other_a.run(["ping", "-c", "1", "-W", "1", b.address()], check=False).status
    assert a.run(["cat", "/root/file"]).stdout == "mine"
