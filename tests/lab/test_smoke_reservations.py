"""SCSI persistent reservations through the kernel's ioctls (linux/pr.h): what fences a host at the storage."""

from __future__ import annotations

import pytest

from tests.lab import Host, Lab, iscsi

pytestmark = [pytest.mark.lab, pytest.mark.slow]

KEY = {"a": 0xA, "b": 0xB}

_RESERVE = """\
import fcntl, struct, sys
def pr(number, layout, *fields):
    # a refusal by the target is a positive return value, and only with a mutable buffer
    buffer = bytearray(struct.pack(layout, *fields))
    with open(device, "rb+", buffering=0) as disk:
        return fcntl.ioctl(disk, 1 << 30 | len(buffer) << 16 | ord("p") << 8 | number, buffer)
device, verb, *keys = sys.argv[1:]
own, victim = (int(key) for key in (*keys, "0")[:2])
REGISTRANTS_WRITE = 3
print({
    "register": lambda: pr(200, "=QQII", 0, own, 0, 0),
    "reserve": lambda: pr(201, "=QII", own, REGISTRANTS_WRITE, 0),
    "preempt": lambda: pr(203, "=QQII", own, victim, REGISTRANTS_WRITE, 0),
}[verb]())
"""


def reserve(host: Host, device: str, verb: str, *keys: int) -> int:
    return int(host.python(_RESERVE, device, verb, *map(str, keys)))


def may_write(host: Host, device: str) -> bool:
    host.run(["test", "-b", device])
    argv = ["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1", "oflag=direct", "conv=notrunc"]
    return host.run(argv, check=False).status == 0


def may_read(host: Host, device: str) -> bool:
    return (
        host.run(["dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"], check=False).status == 0
    )


def test_the_right_to_write_goes_from_a_to_b(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    iqn = iscsi.export(s, "disk", s.add_disk(1 << 30), clients=[a, b])
    on_a, on_b = iscsi.login(a, s, iqn), iscsi.login(b, s, iqn)

    assert reserve(a, on_a, "register", KEY["a"]) == 0
    assert reserve(a, on_a, "reserve", KEY["a"]) == 0
    assert may_write(a, on_a)
    assert not may_write(b, on_b) and may_read(b, on_b)
    assert reserve(b, on_b, "reserve", KEY["b"]) > 0, "a host that is not registered cannot reserve"

    assert reserve(b, on_b, "register", KEY["b"]) == 0
    assert may_write(a, on_a) and may_write(b, on_b), "the window: both may write"
    keys = b.run(["sg_persist", "--in", "--read-keys", on_b]).stdout
    assert "0xa" in keys and "0xb" in keys, "b sees a's key: they hold one disk"

    assert reserve(b, on_b, "preempt", KEY["b"], KEY["a"]) == 0
    assert may_write(b, on_b)
    assert not may_write(a, on_a) and may_read(a, on_a)
