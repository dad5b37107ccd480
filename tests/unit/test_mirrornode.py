"""Tables and states of nodes that write two disks, by what a kernel says of them."""

from __future__ import annotations

import pytest

from storkit.system.block import devmapper, dmioctl, mirrornode
from storkit.system.block.mirrornode import MirrorStatus

# Linux 6.1's own words: copying, whole, and after the copy and the disk had failed under a writer.
SHOWN = "0 32768 mirror core 1 1024 2 254:0 0 254:1 0 1 handle_errors"
COPYING = "mirror 2 254:0 254:1 7/32 1 AA 1 core "
WHOLE = "mirror 2 254:0 254:1 32/32 1 AA 1 core "
FAILED = ("mirror 2 254:0 254:1 31/32 1 AD 1 core ", "mirror 2 254:0 254:1 32/32 1 DA 1 core ")
UUID = "0c9f3f0e-1111-4222-8333-444455556601"


def test_a_table_is_known_in_the_kernels_words() -> None:
    assert mirrornode.line("254:0", "254:1", 32768) == SHOWN
    assert mirrornode.legs(SHOWN) == ("254:0", "254:1")
    assert mirrornode.legs("0 32768 linear 254:0 0") is None


@pytest.mark.parametrize(
    ("wanted", "so"),
    [
        ("0 32768 linear 254:0 0", True),
        ("0 32768 linear 254:1 0", False),
        ("0 16384 linear 254:0 0", False),
        ("0 32768 linear 254:0 8", False),
        ("0 32768 error", False),
        ("0 32768 flakey 254:0 0 0 1 1 error_writes", False),
    ],
)
def test_whoever_wants_the_disk_has_it_while_it_is_copied(wanted: str, so: bool) -> None:
    """And whoever takes a right away takes it: what fails or refuses writes is another table."""
    assert mirrornode.stands_on(SHOWN, wanted) is so


def test_how_far_a_copy_is() -> None:
    assert mirrornode.parse_status(COPYING) == MirrorStatus(7, 32, True)
    whole = mirrornode.parse_status(WHOLE)
    assert whole is not None and whole.whole
    for text in FAILED:
        failed = mirrornode.parse_status(text)
        assert failed is not None and not failed.good and not failed.whole
    assert mirrornode.parse_status("linear ") is None


def test_the_device_of_a_node_of_one_line() -> None:
    assert mirrornode.plain("0 32768 linear 8:0 0") == "8:0"
    assert not mirrornode.plain("0 32768 linear 8:0 64") and not mirrornode.plain(SHOWN)
    assert not mirrornode.plain("0 8 linear 8:0 0\n8 8 linear 8:16 0")


def test_a_node_that_was_renamed_is_told_by_its_name() -> None:
    """The kernel gives no node another UUID."""

    def uuid(name: str, kernels: str) -> str:
        mapped = dmioctl.Mapped(name, kernels, "dm-0", False, False, False, 0, [(0, 8, "error", "")])
        return devmapper._node(mapped).uuid

    was = devmapper.node_uuid(UUID, "local")
    assert uuid("storkit:g:local", was) == was
    assert uuid("storkit:g:attached", was) == devmapper.node_uuid(UUID, "attached")
    assert uuid("elsewhere", was) == was and uuid("storkit:g:x", "LVM-1") == "LVM-1"
    assert uuid("storkit:g:x", "STORKIT-x") == "STORKIT-x"
