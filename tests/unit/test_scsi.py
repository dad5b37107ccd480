"""SCSI answers, captured from the kernel's iSCSI target of Linux 6.1 with an iblock backstore."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storkit.core.errors import Conflict, NotFound, ServiceUnreachable, StorkitError, Unsafe
from storkit.system.block import scsi

STANDARD = bytes.fromhex(
    "000006025bb800024c494f2d4f52472049424c4f434b20202020202020202020342e30200000000000000000000000000000000000000000"
    "000000000a00960046004c0000000000000000000000000000000000000000000000000000000000"
)
SERIAL = bytes.fromhex("0080002531313131313131312d323232322d343333332d383434342d30303030303030303030303100")
DESIGNATORS = bytes.fromhex(
    "008300f40103001060014051111111122224333844400000020100344c494f2d4f52472049424c4f434b3a31313131313131312d32323232"
    "2d343333332d383434342d30303030303030303030303100519400040000000151950004000000000106000400000000"
    "5398004869716e2e323032362d31312e6f72672e73746f726b69743a31313131313131312d323232322d343333332d383434342d30303030"
    "30303030303030312c742c307830303031000000"
    "53a8004869716e2e323032362d31312e6f72672e73746f726b69743a31313131313131312d323232322d343333332d383434342d30303030"
    "303030303030303100000000"
)
PAGES = bytes.fromhex("0000000800808386b0b1b2b3")
CAPACITY = bytes.fromhex("000000000001ffff0000020000000000" + 16 * "00")
KEYS = bytes.fromhex("0000000a00000018" + 3 * "8d9f4889500bf3cb")
RESERVATION = bytes.fromhex("0000000a000000108d9f4889500bf3cb0000000000050000")
ILLEGAL_FIELD = bytes.fromhex("70000500000000 0a 00000000 2400 0000 0000".replace(" ", ""))


def test_who_a_disk_is() -> None:
    assert scsi.parse_inquiry(STANDARD) == scsi.Standard(True, 0, "LIO-ORG", "IBLOCK")
    assert scsi.parse_serial(SERIAL) == "11111111-2222-4333-8444-000000000001"
    assert scsi.parse_naa(DESIGNATORS) == "60014051111111122224333844400000"
    assert scsi.parse_page_list(PAGES) == {0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2, 0xB3}


def test_no_logical_unit_at_this_lun() -> None:
    assert not scsi.parse_inquiry(b"\x7f" + STANDARD[1:]).connected
    assert not scsi.parse_inquiry(b"\x3f" + STANDARD[1:]).connected


def test_a_naa_of_the_port_or_the_target_is_not_the_disks() -> None:
    port = DESIGNATORS[:5] + b"\x13" + DESIGNATORS[6:]
    assert scsi.parse_naa(port) == ""
    text = DESIGNATORS[:4] + b"\x02" + DESIGNATORS[5:]
    assert scsi.parse_naa(text) == ""


def test_size_and_block_size() -> None:
    assert scsi.parse_capacity(CAPACITY) == (64 << 20, 512)
    assert scsi.parse_capacity((2**41 - 1).to_bytes(8) + (4096).to_bytes(4)) == (2**53, 4096)


def test_reservations() -> None:
    assert scsi.parse_keys(KEYS) == [0x8D9F4889500BF3CB] * 3
    assert scsi.parse_keys(bytes(8)) == []
    held = scsi.parse_reservation(RESERVATION)
    assert held is not None and held.key == 0x8D9F4889500BF3CB
    assert scsi.RESERVATION_TYPES[held.type] == "write exclusive, registrants only"
    assert scsi.parse_reservation(bytes(8)) is None


def test_keys_that_were_cut_short_are_not_taken_for_all() -> None:
    with pytest.raises(Unsafe):
        scsi.parse_keys(KEYS[:-8])
    with pytest.raises(Unsafe):
        scsi.parse_reservation(RESERVATION[:-1])


@given(st.binary(max_size=300))
def test_whatever_a_disk_answers_is_read_or_refused(data: bytes) -> None:
    for parse in (
        scsi.parse_inquiry, scsi.parse_serial, scsi.parse_naa, scsi.parse_capacity, scsi.parse_keys,
        scsi.parse_reservation, scsi.parse_page_list, scsi.parse_sense,
    ):  # fmt: skip
        try:
            parse(data)
        except StorkitError as error:
            assert "malformed" in error.message


def test_sense_data_in_both_formats() -> None:
    assert scsi.parse_sense(ILLEGAL_FIELD) == scsi.Sense(5, 0x24, 0)
    assert scsi.parse_sense(bytes.fromhex("7205240000000000")) == scsi.Sense(5, 0x24, 0)
    assert scsi.parse_sense(b"") is None


def test_refusals_in_words() -> None:
    def why(status: int, sense: scsi.Sense | None = None, host: int = 0) -> StorkitError | None:
        return scsi.explain("/dev/sda", "READ KEYS", status, sense, host)

    assert why(0) is None
    assert isinstance(why(0x18), Conflict)
    assert isinstance(why(0, host=1), ServiceUnreachable)
    refused = why(2, scsi.Sense(7, 0x27, 0))
    assert refused is not None and "data protect" in refused.message and "READ KEYS" in refused.message


def test_the_layout_that_the_kernel_reads() -> None:
    assert ctypes.sizeof(scsi._Header) == 88
    assert scsi._Header.dxferp.offset == 16 and scsi._Header.status.offset == 64


def test_what_is_no_scsi_disk() -> None:
    with pytest.raises(NotFound, match="/dev/no-such-disk"):
        scsi.ScsiDisk("/dev/no-such-disk")
    with scsi.ScsiDisk("/dev/null") as disk, pytest.raises(StorkitError, match="takes no SCSI commands"):
        disk.identity()
