"""Tables of several paths, by what a kernel says of them, and the names by which paths log in."""

from __future__ import annotations

import pytest

from storkit.core.errors import UsageError
from storkit.core.model import Volume
from storkit.system.block import multipath
from storkit.system.block.grabbers import multipath_takes, parse_multipath
from storkit.tech.iscsi.initiator import PATH_PING
from storkit.tech.iscsi.names import PREFIX, IscsiGrant, IscsiSettings, initiator_iqn, is_path_of, path_iqn
from storkit.tech.iscsi.paths import proving
from storkit.tech.iscsi.sessiondisk import sample

# Linux 6.1's own words for the first, and its status before and after a path was lost.
SHOWN = (
    "0 2097152 multipath 4 queue_if_no_path retain_attached_hw_handler queue_mode bio 0 1 1 service-time 0 2 2 "
    "8:0 1 1 8:16 1 1"
)
STATUS = "multipath 2 0 0 0 1 1 A 0 2 2 8:0 A 0 0 1 8:16 A 0 0 1 "
LOST = "multipath 2 0 0 0 1 1 A 0 2 2 8:0 F 1 0 1 8:16 A 0 0 1 "
PAUSE = 15
VOLUME = Volume("v", "0c9f3f0e-1111-2222-3333-444455556601", 1 << 20)


def test_a_table_is_known_in_the_kernels_words() -> None:
    table = multipath.line(["8:0", "8:16"], 2097152, queue=True)
    assert table == "0 2097152 multipath 3 queue_if_no_path queue_mode bio 0 1 1 service-time 0 2 1 8:0 1 8:16 1"
    assert multipath.alike(table, SHOWN)


@pytest.mark.parametrize(
    "other",
    [
        multipath.line(["8:0", "8:32"], 2097152, queue=True),
        multipath.line(["8:0"], 2097152, queue=True),
        multipath.line(["8:0", "8:16"], 4194304, queue=True),
        multipath.line(["8:0", "8:16"], 2097152, queue=False),
        "0 2097152 linear 8:0 0",
    ],
)
def test_another_table_is_another(other: str) -> None:
    assert not multipath.alike(other, SHOWN) and not multipath.alike(SHOWN, other)


def test_which_paths_the_kernel_uses() -> None:
    assert multipath.parse_paths(STATUS) == {"8:0": True, "8:16": True}
    assert multipath.parse_paths(LOST) == {"8:0": False, "8:16": True}
    assert multipath.parse_paths("linear ") == {}


@pytest.mark.parametrize("host", ["b", "B", "b.example.org"])
def test_each_path_has_a_name_that_is_that_of_no_other_host(host: str) -> None:
    initiator = initiator_iqn(PREFIX, host)
    names = [path_iqn(initiator, number) for number in range(3)]
    assert names == [initiator, f"{initiator}:path2", f"{initiator}:path3"]
    assert all(is_path_of(name, initiator) for name in names)
    other = initiator_iqn(PREFIX, host + "2")
    assert not any(is_path_of(name, other) for name in names) and not is_path_of(other, initiator)


def test_a_client_is_let_in_by_as_many_names_as_there_are_portals() -> None:
    initiator = initiator_iqn(PREFIX, "b")
    for portals, count in (([], 1), (["10.0.0.1:3260"], 1), (["10.0.0.1:3260", "10.0.1.1:3260"], 2)):
        grant = IscsiGrant(VOLUME, prefix=PREFIX, portals=portals)
        assert grant.initiators("b") == [path_iqn(initiator, number) for number in range(count)]


def test_a_lost_path_is_given_up_soon_enough() -> None:
    assert sum(PATH_PING) + IscsiSettings().path_given_up < PAUSE and IscsiSettings().queues
    chosen = IscsiSettings(replacement_timeout=40)
    assert chosen.path_given_up == 40 and not chosen.queues
    with pytest.raises(UsageError):
        IscsiSettings(replacement_timeout=0)


def test_every_path_reads_its_share_and_always_the_same() -> None:
    ranges = [(offset * 4096, 4096) for offset in range(8)]
    shares = proving.shares(["/dev/sda", "/dev/sdb"], ranges)
    assert sorted(shares["/dev/sda"] + shares["/dev/sdb"]) == ranges
    assert all(len(share) == 4 for share in shares.values())
    assert proving.shares(["/dev/sda", "/dev/sdb"], ranges[3:5]) == {"/dev/sda": [ranges[4]], "/dev/sdb": [ranges[3]]}
    assert proving.shares(["/dev/sda"], ranges) == {"/dev/sda": ranges}


@pytest.mark.parametrize(("finds", "taken"), [("yes", True), ("on", True), ("no", True), ("strict", False)])
def test_multipathd_takes_two_disks_of_one_name_sooner_than_one(finds: str, taken: bool) -> None:
    configuration = parse_multipath(f"defaults {{\n\tfind_multipaths {finds}\n}}\n")
    assert multipath_takes(configuration, sample(several=True)) == taken
